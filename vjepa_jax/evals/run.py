"""Frozen probes of a run: which encoders are compared, and on which videos."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

from data_pipelines import pipeline
from vjepa_jax.config import ConfigError, EvalConfig, RunConfig
from vjepa_jax.encoder import Encoder, load
from vjepa_jax.evals import controls, frozen
from vjepa_jax.training.files import write_json


def evaluate(encoder: Encoder, cfg: EvalConfig, on_row: Callable[[frozen.Row], None] | None = None) -> list[frozen.Row]:
    """Probe rows (evals.frozen.probe_rows) of an encoder and its baselines on the labelled videos `cfg.path`.

    `on_row` is called with every row when it is done.

    The baselines are the same model with random weights, one for each seed, and the raw pixels as tokens. Clips have
    the frames and the size that the encoder was trained with: the middle clip of a video, centre crop.

    Raises:
      ConfigError, DataError: no labelled videos, no train or test split.
    """
    if not cfg.path:
        raise ConfigError("eval.path is empty: give a manifest with the columns path, label and split")
    encoders = controls.encoders(encoder, cfg.seeds) if cfg.baselines else {controls.TRAINED: [encoder]}
    return frozen.probe_rows(
        encoders, _videos(encoder.run, cfg, "train"), _videos(encoder.run, cfg, "test"), cfg, on_row=on_row
    )


def _videos(run: RunConfig, cfg: EvalConfig, split: str):
    """A function that starts a pass over the videos of a split."""
    return functools.partial(
        pipeline.eval_batches,
        cfg.path,
        num_frames=run.data.num_frames,
        size=run.data.size,
        batch_size=cfg.batch_size,
        fps=None if run.data.frame_step else run.data.fps,
        frame_step=run.data.frame_step,
        split=split,
        segments=cfg.segments,
        antialias=run.data.augment.antialias,
        # threads: a pass over a few hundred videos is over before worker processes have started
        num_threads=max(run.data.num_threads, run.data.num_workers),
    )


def main(options: Any) -> int:
    """`vjepa eval`: probe the encoder of a run folder, print the table, write probes.json there."""
    encoder = load(options.workdir, options.step)
    given = {
        "path": options.data,
        "probes": tuple(options.probes.split(",")) if options.probes else None,
        "num_labels": tuple(int(n) for n in options.labels.split(",")) if options.labels else None,
        "seeds": options.seeds,
        "segments": options.segments,
    }
    cfg = dataclasses.replace(encoder.run.eval, **{key: value for key, value in given.items() if value is not None})
    rows = evaluate(encoder, cfg, on_row=_say)
    print(frozen.format_table(rows))
    write_json(pathlib.Path(options.workdir) / "probes.json", rows)
    return 0


def _say(row: frozen.Row) -> None:
    result = f"{row['accuracy_mean']:.1f} % ({row['selected']})"
    print(f"{row['encoder']}, {row['probe']}, {row['num_labels']} labels: {result}", flush=True)

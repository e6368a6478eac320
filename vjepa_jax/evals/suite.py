"""Every evaluation by name, and what a run of some of them leaves: RUN/evals/<config>/scores.json and scores.md.

A new protocol is a line in PROTOCOLS: the settings, a dataclass whose defaults are the published protocol, and
run(encoders, settings, on_score) -> list[Score], which reads features and predictions and nothing else of a model.
"""

import dataclasses
import datetime
import functools
import hashlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from vjepa_jax import __version__
from vjepa_jax.config import ConfigError
from vjepa_jax.config_build import build, hint
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import (
    action_detection,
    anomaly,
    anticipation,
    boundaries,
    classification,
    consistency,
    context,
    controls,
    davis,
    dense,
    finetune,
    motion,
    repetition,
    retrieval,
    surprise,
    transfer,
    youtube_vos,
)
from vjepa_jax.evals.scores import OnScore, Score, format_scores
from vjepa_jax.training.files import write_bytes, write_json

PROTOCOLS: dict[str, tuple[type, Callable[..., list[Score]]]] = {
    "action_detection": (action_detection.Config, action_detection.run),
    "anomaly": (anomaly.Config, anomaly.run),
    "anticipation": (anticipation.Config, anticipation.run),
    "boundaries": (boundaries.Config, boundaries.run),
    "classification": (classification.Config, classification.run),
    "consistency": (consistency.Config, consistency.run),
    "context": (context.Config, context.run),
    "davis": (davis.Config, davis.run),
    "depth": (dense.DepthConfig, dense.run),
    "finetune": (finetune.Config, finetune.run),
    "motion": (motion.Config, motion.run),
    "repetition": (repetition.Config, repetition.run),
    "retrieval": (retrieval.Config, retrieval.run),
    "segmentation": (dense.SegmentationConfig, dense.run),
    "surprise": (surprise.Config, surprise.run),
    "transfer": (transfer.Config, transfer.run),
    "youtube_vos": (youtube_vos.Config, youtube_vos.run),
}
CONFIGS = {name: config for name, (config, _) in PROTOCOLS.items()}
FOLDER = "evals"


class OutOfTimeError(Exception):
    """A protocol has used up its time."""


def settings(groups: Mapping[str, Mapping[str, Any]], path: str = "") -> dict[str, Any]:
    """Settings of named protocols from plain groups of keys.

    Raises:
      ConfigError: an unknown protocol or key, a value of the wrong type.
    """
    for name in groups:
        if name not in CONFIGS:
            raise ConfigError(f"{path}{name}: unknown protocol: there is {', '.join(CONFIGS)}{hint(name, CONFIGS)}")
    return {name: build(CONFIGS[name], dict(group), path + name) for name, group in groups.items()}


def run_protocol(
    name: str,
    encoders: Mapping[str, Sequence[Any]],
    cfg: Any,
    on_score: OnScore | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """One protocol and what must be known of it.

    Args:
      encoders: as controls.encoders gives them; a protocol takes the random inits of its first `seeds`.
      seconds: after these it is cut off, at the next score or batch; the scores that are there are kept.

    Returns:
      "protocol", "config", "hash" (of protocol, settings and code), "seeds", "seconds", "cut" (whether time ran out),
      "scores".
    """
    run, began, scores = PROTOCOLS[name][1], time.perf_counter(), []
    seeds = getattr(cfg, "seeds", 3)

    def check() -> None:
        if seconds is not None and time.perf_counter() - began > seconds:
            raise OutOfTimeError

    def keep(row: Score) -> None:
        scores.append(row)
        if on_score:
            on_score(row)
        check()

    named = {key: [_Timed(each, check) for each in group[: max(seeds, 1)]] for key, group in encoders.items()}
    cut = False
    try:
        scores = list(run(named, cfg, keep))
    except OutOfTimeError:
        cut = True
    return {
        "protocol": name,
        "config": to_plain(cfg),
        "hash": protocol_hash(name, cfg),
        "seeds": seeds,
        "seconds": round(time.perf_counter() - began, 1),
        "cut": cut,
        "scores": scores,
    }


class _Timed:
    """An encoder that looks at the clock before every call."""

    def __init__(self, encoder: Any, check: Callable[[], None]):
        self._encoder, self._check = encoder, check
        if hasattr(encoder, "predict"):
            self.predict = self._predict

    def __call__(self, video: Any) -> Any:
        self._check()
        return self._encoder(video)

    def _predict(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return self._encoder.predict(*args, **kwargs)

    def with_params(self, params: Any) -> "_Timed":
        return _Timed(self._encoder.with_params(params), self._check)

    def with_model(self, model: Any) -> "_Timed":
        return _Timed(self._encoder.with_model(model), self._check)

    def __getattr__(self, name: str) -> Any:
        if name == "predict":
            raise AttributeError(name)
        return getattr(self._encoder, name)


def protocol_hash(name: str, cfg: Any) -> str:
    """12 hexadecimal digits that change with the protocol's name, any of its settings, or the text of the modules of
    evaluation that it is made of.

    Numbers of one hash may be compared; of different ones they were not measured alike.
    """
    code = [inspect.getsource(sys.modules[module]) for module in _made_of(type(cfg).__module__)]
    text = json.dumps([name, to_plain(cfg), code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _made_of(module: str) -> list[str]:
    """Names of a module of evaluation and of all that it takes functions, classes or modules from, in order; without
    scores.py, which says how numbers are written."""
    found, left = set(), [module]
    while left:
        found.add(name := left.pop())
        values = vars(sys.modules[name]).values()
        others = {v.__name__ if inspect.ismodule(v) else getattr(v, "__module__", None) for v in values}
        left += [o for o in others - found - {format_scores.__module__} if str(o).startswith(f"{__package__}.")]
    return sorted(found)


def to_plain(cfg: Any) -> dict[str, Any]:
    """Settings as JSON has them."""
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def evaluate(
    encoder: Encoder,
    groups: Mapping[str, Any],
    folder: Path,
    facts: Mapping[str, Any],
    on_score: OnScore | None = None,
    on_protocol: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run protocols on an encoder and its controls, and write folder/scores.json and scores.md after each.

    Args:
      groups: settings by protocol (config_file.load_groups).
      facts: what is known of this run: "command", "checkpoint", "step".

    Returns:
      What scores.json holds: the facts, "name", "date", "version", "devices", and "protocols", a list of what
      `run_protocol` returns.
    """
    seeds = max((getattr(cfg, "seeds", 3) for cfg in groups.values()), default=3)
    encoders = controls.encoders(encoder, seeds)
    record = dict(facts) | {
        "name": folder.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "protocols": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, cfg in groups.items():
        if on_protocol:
            on_protocol(name)
        record["protocols"].append(run_protocol(name, encoders, cfg, on_score))
        write(folder, record)
    return record


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """scores.json and scores.md of what `evaluate` returns."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "scores.json", record)
    lines = [f"# {record['name']}", "", f"    {record['command']}", ""]
    lines += [f"{record['checkpoint']}, step {record['step']}; vjepa_jax {record['version']}; {record['date']}", ""]
    for part in record["protocols"]:
        cut = ", cut off when its time was up" if part["cut"] else ""
        lines += [f"## {part['protocol']}", "", f"protocol {part['hash']}, {part['seconds']:.0f} s{cut}", ""]
        lines += [format_scores(part["scores"]) if part["scores"] else "no score", ""]
    write_bytes(folder / "scores.md", "\n".join(lines).encode())


def main(options: Any, overrides: Sequence[str], command: str) -> int:
    """`vjepa eval --config FILE --checkpoint RUN`: run the file's protocols, print and write their scores."""
    from vjepa_jax import config_file
    from vjepa_jax.encoder import load
    from vjepa_jax.training.report import write_report

    groups = config_file.load_groups(options.config, list(overrides), CONFIGS)
    source = Path(options.checkpoint)
    if options.out is None and not source.is_dir():
        raise ConfigError(f"{source} is no folder to write scores to: name one with --out")
    encoder = load(source, options.step)
    name = Path(options.config.partition(":")[0]).stem
    if variant := options.config.partition(":")[2]:
        name = f"{name}-{variant}"
    out = Path(options.out or source) / FOLDER / name
    facts = {"command": command, "checkpoint": str(source), "step": step_of(source, options.step)}
    say = functools.partial(print, flush=True)
    record = evaluate(encoder, groups, out, facts, on_protocol=lambda protocol: say(f"{protocol} ..."))
    for part in record["protocols"]:
        say(f"\n{part['protocol']} ({part['seconds']:.0f} s)\n{format_scores(part['scores'])}")
    say(f"\n{out / 'scores.json'}")
    if (source / "metrics.jsonl").is_file() and options.out is None:
        say(write_report(source))
    return 0


def step_of(checkpoint: Path, step: int | None) -> int | None:
    """The step of a run's checkpoint that `load` takes; None for weights that are no run's."""
    from vjepa_jax.training.checkpoint import FOLDER as CHECKPOINTS

    if step is None and (checkpoint / CHECKPOINTS).is_dir():
        steps = [int(path.name) for path in (checkpoint / CHECKPOINTS).iterdir() if path.name.isdigit()]
        return max(steps, default=None)
    return step

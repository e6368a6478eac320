"""Retention under shift: how much of what a frozen probe learned on one distribution is left on another.

R = (accuracy on the target - chance) / (accuracy on the source - chance), the probe trained on the source alone. A poor
model can keep all of little: the accuracy on the source stands beside R. The embedded world shifts speeds, shapes,
texture and noise; two manifests with the same classes make a real pair (UCF101, and what it shares with HMDB51).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import pipeline, sources
from data_pipelines.world_spec import DIRECTIONS, SHAPES, WorldSpec
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import controls, worlds
from vjepa_jax.evals.features import Features, balanced_subset, extract_all, held_out
from vjepa_jax.evals.frozen import POOLING
from vjepa_jax.evals.knn import train_knn
from vjepa_jax.evals.linear import train_linear
from vjepa_jax.evals.scores import OnScore, Score, bootstrap, mean_interval, score
from vjepa_jax.evals.worlds import Clip

SHIFTS = ("speeds", "shapes", "texture", "noise")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    source, target: manifests with path, label and split (train and test of the source, test of the target); "": the
      embedded world, whose label is the direction of motion. Labels are compared by number: both need the same classes.
    shifts: of the world; probes: linear, knn and their variants (frozen.POOLING), on pooled features.
    train, test: videos of the world.
    """

    source: str = ""
    target: str = ""
    shifts: tuple[str, ...] = SHIFTS
    probes: tuple[str, ...] = ("linear", "knn")
    train: int = 2000
    test: int = 1000
    batch_size: int = 64
    seeds: int = 3


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """Accuracy on the source, and accuracy and retention on every target, by probe and encoder.

    Seeds of the trained encoder vary the part of the training videos that settings are chosen on, and nine tenths of
    the rest; those of random init also the weights.

    Raises:
      ConfigError: unknown shifts or probes, unlabelled videos, target classes that the source lacks.
    """
    _check(cfg)
    clip = worlds.clip_of(encoders, "transfer", least_steps=1)
    named = controls.with_frames(encoders)
    sets = {name: _features(named, videos) for name, videos in _videos(encoders, clip, cfg).items()}
    rows: list[Score] = []
    for probe in cfg.probes:
        for name in named:
            for row in _rows(name, probe, {key: found[name] for key, found in sets.items()}, cfg):
                rows.append(row)
                if on_score:
                    on_score(row)
    return rows


def retention(right_target: np.ndarray, right_source: np.ndarray, chance: float) -> float:
    """(accuracy on the target - chance) / (accuracy on the source - chance), from bool [n] and [m], chance of 1.

    0 where the source is not two standard errors above chance: there is nothing to retain.
    """
    gain = right_source.mean() - chance
    if gain <= 2 * np.sqrt(chance * (1 - chance) / len(right_source)):
        return 0.0
    return float((right_target.mean() - chance) / gain)


# -------------------------------------------------------------------------------------------------------- the videos


def world_specs(clip: Clip) -> dict[str, WorldSpec]:
    """The source and every shift of it. The source holds every second speed and three of six shapes, on plain noise."""
    base = worlds.travelling(clip)
    source = dataclasses.replace(base, speeds=base.speeds[::2], shapes=SHAPES[:3])
    return {
        "source": source,
        "speeds": dataclasses.replace(source, speeds=base.speeds[1::2]),
        "shapes": dataclasses.replace(source, shapes=SHAPES[3:]),
        "texture": dataclasses.replace(source, background="static", texture=0.08),
        "noise": dataclasses.replace(source, noise=3 * source.noise),
    }


def _videos(encoders: Mapping[str, Sequence[Any]], clip: Clip, cfg: Config) -> dict[str, Any]:
    """A function that starts a pass over each set: "train" and "source", and the targets."""
    if cfg.source:
        run = encoders[controls.TRAINED][0].run
        passes = functools.partial(
            pipeline.eval_batches,
            num_frames=clip.frames,
            size=clip.size,
            batch_size=cfg.batch_size,
            fps=None if run.data.frame_step else run.data.fps,
            frame_step=run.data.frame_step,
            antialias=run.data.augment.antialias,
        )
        _check_classes(cfg)
        return {
            "train": functools.partial(passes, cfg.source, split="train"),
            "source": functools.partial(passes, cfg.source, split="test"),
            "target": functools.partial(passes, cfg.target, split="test"),
        }
    specs = world_specs(clip)
    of = lambda name, count, seed: functools.partial(_world_batches, specs[name], count, seed, cfg.batch_size)
    return {"train": of("source", cfg.train, 41), "source": of("source", cfg.test, 42)} | {
        shift: of(shift, cfg.test, 43) for shift in cfg.shifts
    }


def _world_batches(spec: WorldSpec, count: int, seed: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """As pipeline.eval_batches, of a world in memory; the label is the direction."""
    videos, truths = worlds.render(spec, count, seed)
    labels = np.array([truth.direction for truth in truths], np.int32)
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size)
        inside = np.minimum(rows, count - 1)
        yield {"video": videos[inside], "label": labels[inside], "index": np.where(rows < count, rows, -1)}


def _features(named: Mapping[str, Sequence[Any]], batches: Any) -> dict[str, list[Features]]:
    flat = iter(extract_all([encode for group in named.values() for encode in group], batches(), keep_space=False))
    return {name: [next(flat) for _ in group] for name, group in named.items()}


def _check_classes(cfg: Config) -> None:
    """The target's classes must be among those the probe is trained on."""
    if not cfg.target:
        raise ConfigError("transfer.target is empty: give a second manifest with the columns path, label and split")
    known = {
        path: {opened.label(i) for i in range(len(opened))}
        for path, opened in (
            (cfg.source, sources.open_source(cfg.source, split="train")),
            (cfg.target, sources.open_source(cfg.target, split="test")),
        )
    }
    if unknown := known[cfg.target] - known[cfg.source] if cfg.source != cfg.target else set():
        raise ConfigError(
            f"transfer.target={cfg.target} has labels that transfer.source={cfg.source} lacks (first: "
            f"{min(unknown)}): keep the videos of shared classes, numbered alike in both manifests"
        )


# -------------------------------------------------------------------------------------------------------- the scores


def _rows(name: str, probe: str, sets: dict[str, list[Features]], cfg: Config) -> Iterator[Score]:
    each = [
        _right(probe, {key: found[seed % len(found)] for key, found in sets.items()}, seed) for seed in range(cfg.seeds)
    ]
    classes = len(np.unique(sets["train"][0].labels))
    chance, benchmark = 1.0 / classes, "world, transfer" if not cfg.source else "transfer"
    source = [right["source"] for right in each]
    yield _accuracy(benchmark, f"{probe}, accuracy on the source", name, source, chance)
    for target in (key for key in sets if key not in ("train", "source")):
        right = [own[target] for own in each]
        yield _accuracy(benchmark, f"{probe}, accuracy on {_named(target)}", name, right, chance)
        values = [retention(t, s, chance) for t, s in zip(right, source, strict=True)]
        n, m = len(right[0]), len(source[0])
        # one draw of rows resamples both sets, whose videos have nothing to do with each other
        resampled = lambda rows, t=right[0], s=source[0]: retention(t[rows % len(t)], s[rows % len(s)], chance)
        interval = bootstrap(resampled, max(n, m), resamples=500) if len(each) == 1 else None
        more = {"count": n, "interval": interval, "unit": "", "chance": 0.0}
        yield score(benchmark, f"{probe}, retention on {_named(target)}", name, values, **more)


def _named(target: str) -> str:
    return "the target" if target == "target" else f"other {target}" if target in ("speeds", "shapes") else target


def _accuracy(benchmark: str, metric: str, name: str, right: list[np.ndarray], chance: float) -> Score:
    interval = mean_interval(right[0], scale=100.0) if len(right) == 1 else None
    values = [100.0 * float(own.mean()) for own in right]
    return score(benchmark, metric, name, values, count=len(right[0]), interval=interval, chance=100.0 * chance)


def _right(probe: str, sets: dict[str, Features], seed: int) -> dict[str, np.ndarray]:
    """bool [n] of every test set: what a probe trained on nine tenths of "train" gets right."""
    train, rng = sets["train"], np.random.default_rng([seed, 5])
    classes = int(max(found.labels.max() for found in sets.values())) + 1
    subset = balanced_subset(train.labels, max(len(train.labels) * 9 // 10, 2 * classes), rng)
    x, labels = train.pooled(POOLING[probe])[subset], train.labels[subset]
    if probe.startswith("linear"):
        trained = train_linear(x, labels, held_out(labels, rng), classes)
    else:
        trained = train_knn(x, labels, classes, center=probe == "knn_centred")
    tests = {key: found for key, found in sets.items() if key != "train"}
    return {key: trained.predict(found.pooled(POOLING[probe])) == found.labels for key, found in tests.items()}


def _check(cfg: Config) -> None:
    known = tuple(name for name, pooling in POOLING.items() if pooling != "tokens")
    for values, names, what in ((cfg.shifts, SHIFTS, "shifts"), (cfg.probes, known, "probes")):
        for value in values:
            if value not in names:
                raise ConfigError(f"transfer.{what}: {value!r} is not one of {', '.join(names)}")
    if cfg.target and not cfg.source:
        raise ConfigError("transfer.source is empty: the probe is trained on it")
    if cfg.seeds < 1 or cfg.test < 2 or cfg.train < 3 * len(DIRECTIONS):
        raise ConfigError(
            f"transfer.seeds={cfg.seeds}, transfer.test={cfg.test} and transfer.train={cfg.train} must be at least 1, "
            f"2 and {3 * len(DIRECTIONS)}"
        )

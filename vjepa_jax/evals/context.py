"""Effective context: what happened how long ago do features still tell? Clips of up to 128 frames with cues in time.

  needle    one object shows for a moment: which of four colours?
  order     three objects of known colours show one after the other: in which of six orders?
  counting  one object shows one to four times: how often?

The moments are spread evenly over the clip, in every class alike. (The last colour leaves two of the six orders open:
so much a few last frames may tell.) Two curves over the number of frames: longer (the frame rate stays, a moment lasts
as many frames) and denser (the duration stays, a moment lasts a share of the clip).

Shape suffixes: N videos, D channels.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import world_physics, world_render
from data_pipelines.world_spec import WorldSpec
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import controls, worlds
from vjepa_jax.evals.features import held_out
from vjepa_jax.evals.linear import train_linear
from vjepa_jax.evals.scores import OnScore, Score, mean_interval, score
from vjepa_jax.evals.worlds import Clip

BENCHMARK = "world, context"
CLASSES = {"needle": 4, "order": 6, "counting": 4}
CURVES = ("longer", "denser")
COLOURS = np.array([[1.0, 0.15, 0.15], [0.15, 1.0, 0.15], [0.3, 0.3, 1.0], [1.0, 1.0, 0.15]], np.float32)
_ORDERS = tuple(itertools.permutations(range(3)))


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    frames: of the clips, ascending. moment: frames that a cue shows, in the shortest clips and wherever clips get
    longer. last: of the control that sees so many frames alone. train, test: videos.
    """

    frames: tuple[int, ...] = (8, 16, 32, 64, 128)
    moment: int = 1
    tasks: tuple[str, ...] = ("needle", "order", "counting")
    curves: tuple[str, ...] = CURVES
    last: int = 16
    train: int = 384
    test: int = 384
    batch_size: int = 16
    seeds: int = 3


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """Accuracy of linear probes on mean features of every length, and the effective context in frames.

    Raises:
      ConfigError: frames that do not divide, unknown tasks or curves.
    """
    clip = worlds.clip_of(encoders, "context", least_steps=1)
    _check(cfg, clip)
    rows: list[Score] = []

    def keep(row: Score) -> None:
        rows.append(row)
        if on_score:
            on_score(row)

    lengths = list(_lengths(cfg))
    for part in (lengths[:1], lengths[1:]):  # first the longest clips of all tasks, which tell the most
        for task, (frames, curve, moment) in itertools.product(cfg.tasks, part):
            examples = Examples(task, frames, moment, clip)
            answers = _answers(encoders, examples, cfg)
            for row in _accuracies(answers, examples, curve):
                keep(row)
            if frames == cfg.frames[-1] and curve == cfg.curves[0]:
                for row in _effective(answers, examples, cfg):
                    keep(row)
    return rows


# ------------------------------------------------------------------------------------------------------- the videos


@dataclasses.dataclass(frozen=True)
class Examples:
    """The videos of one task and length: video i depends on i alone."""

    task: str
    frames: int
    moment: int
    clip: Clip

    @property
    def slots(self) -> int:
        """Moments in a clip."""
        return self.frames // self.moment

    @property
    def spec(self) -> WorldSpec:
        return worlds.travelling(self.clip, self.frames, objects=(3, 3), shapes=("circle",))

    def shows(self, index: int) -> tuple[int, list[tuple[int, int]]]:
        """Label, and (slot, colour) of everything that shows, in order of time."""
        rng = np.random.default_rng([index, self.frames])
        label = index % CLASSES[self.task]
        if self.task == "needle":
            return label, [(index // CLASSES["needle"] % self.slots, label)]
        if self.task == "order":
            slots = np.sort(rng.choice(self.slots, 3, replace=False))
            return label, list(zip(slots.tolist(), _ORDERS[label], strict=True))
        count = label + 1
        # a free slot after every one but the last: so many ways are drawn from, evenly
        slots = np.sort(rng.choice(self.slots - count + 1, count, replace=False)) + np.arange(count)
        colour = int(rng.integers(len(COLOURS)))
        return label, [(int(slot), colour) for slot in slots]

    def render(self, index: int) -> np.ndarray:
        """uint8 [frames, H, W, 3]."""
        spec = self.spec
        scene = world_physics.build(spec, 31, index)
        look = world_render.draw_look(spec, 31, index, len(scene.radius))
        colour = look.colour.copy()
        scene.present[:] = False
        for slot, which in self.shows(index)[1]:
            place = which if self.task == "order" else 0
            colour[0, place] = COLOURS[which]
            scene.present[slot * self.moment : (slot + 1) * self.moment, place] = True
        look = dataclasses.replace(look, colour=colour)
        return world_render.paint(spec, scene, look, world_render.backdrop(spec, 31, index, look)).video

    def labels(self, count: int) -> np.ndarray:
        """int32 [count]."""
        return np.arange(count, dtype=np.int32) % CLASSES[self.task]

    def lags(self, count: int) -> np.ndarray:
        """Frames from the end of the last moment to the end of the clip, int [count]."""
        ends = np.array([(self.shows(i)[1][-1][0] + 1) * self.moment for i in range(count)])
        return self.frames - ends


def _lengths(cfg: Config) -> Iterator[tuple[int, str, int]]:
    """(frames, curve, moment), the longest first; the shortest clips are of both curves and come once."""
    for curve in cfg.curves:
        for frames in reversed(cfg.frames):
            if frames == cfg.frames[0] and curve != cfg.curves[0]:
                continue
            yield frames, curve, cfg.moment * (frames // cfg.frames[0] if curve == "denser" else 1)


# ------------------------------------------------------------------------------------------------------ the answers


@dataclasses.dataclass(frozen=True)
class Answers:
    """By encoder (a list of seeds): bool [test], whether the probe of the mean feature, and that of the last time
    step, is right. `windows`: the trained encoder on the last w frames alone."""

    clip: dict[str, list[np.ndarray]]
    last: dict[str, list[np.ndarray]]
    windows: dict[int, np.ndarray]


def _answers(encoders: Mapping[str, Sequence[Any]], examples: Examples, cfg: Config) -> Answers:
    trained = encoders[controls.TRAINED][0]
    named: dict[Any, list[Callable[..., Any]]] = {name: list(group) for name, group in encoders.items()}
    named[controls.SHUFFLED] = [controls.shuffled_frames(trained)]
    windows = {w for w in (*cfg.frames, cfg.last) if w < examples.frames}
    if examples.frames != cfg.frames[-1]:
        windows &= {cfg.last}
    for w in sorted(windows):
        named[w] = [lambda video, w=w: trained(video[:, -w:])]
    total = cfg.train + cfg.test
    pooled = {name: [([], []) for _ in group] for name, group in named.items()}
    for start in range(0, total, cfg.batch_size):  # every video is rendered once and forgotten
        rows = np.arange(start, start + cfg.batch_size)
        video = np.stack([examples.render(int(i)) for i in np.minimum(rows, total - 1)])
        for name, group in named.items():
            for encode, (whole, last) in zip(group, pooled[name], strict=True):
                features = np.asarray(encode(video), np.float32)[: total - start]
                whole.append(features.mean((1, 2, 3)))
                last.append(features[:, -1].mean((1, 2)))
    labels = examples.labels(total)
    probe = lambda parts: _probe(np.concatenate(parts), labels, cfg.train, CLASSES[examples.task])
    clip = {name: [probe(whole) for whole, _ in seeds] for name, seeds in pooled.items()}
    return Answers(
        clip={name if isinstance(name, str) else f"last {name} frames": right for name, right in clip.items()},
        last={name: [probe(last) for _, last in seeds] for name, seeds in pooled.items() if isinstance(name, str)},
        windows={name: right[0] for name, right in clip.items() if not isinstance(name, str)},
    )


def _probe(x_ND: np.ndarray, labels: np.ndarray, train: int, classes: int) -> np.ndarray:
    """bool [test]: what a linear probe of the first `train` rows gets right of the others."""
    chooses = held_out(labels[:train], np.random.default_rng(0))
    linear = train_linear(x_ND[:train], labels[:train], chooses, classes)
    return linear.predict(x_ND[train:]) == labels[train:]


# ------------------------------------------------------------------------------------------------------- the scores


def _accuracies(answers: Answers, examples: Examples, curve: str) -> Iterator[Score]:
    chance, dense = 100.0 / CLASSES[examples.task], ", denser" if curve == "denser" else ""
    metrics = [(f"{examples.task}, {examples.frames} frames{dense}", answers.clip)]
    if examples.task == "needle":
        metrics.append((f"needle from the last step, {examples.frames} frames{dense}", answers.last))
    for metric, by_encoder in metrics:
        for name, seeds in by_encoder.items():
            interval = mean_interval(seeds[0], scale=100.0) if len(seeds) == 1 else None
            values = [100.0 * float(right.mean()) for right in seeds]
            yield score(BENCHMARK, metric, name, values, count=len(seeds[0]), interval=interval, chance=chance)


def _effective(answers: Answers, examples: Examples, cfg: Config) -> Iterator[Score]:
    """The effective context of the trained encoder, in frames, on the longest clips."""
    chance = 1.0 / CLASSES[examples.task]
    whole = answers.clip[controls.TRAINED][0]
    used = effective_window(whole, answers.windows, examples.frames, chance)
    row = lambda metric, value, note: score(
        BENCHMARK, metric, controls.TRAINED, [value], count=len(whole), unit="", chance=0.0, note=note
    )
    note = "fewest last frames within a standard error of all; 0: no better than chance"
    yield row(f"effective context in frames, {examples.task}", used, note)
    if examples.task == "needle":
        lags = examples.lags(cfg.train + cfg.test)[cfg.train :]
        for name, seeds in answers.last.items():
            values = [effective_lag(right, lags, chance) for right in seeds]
            note = "longest lag of a cue up to which accuracy is above half of the best; 0: no better than chance"
            count = len(seeds[0])
            metric = "effective context in frames, needle from the last step"
            yield score(BENCHMARK, metric, name, values, count=count, unit="", chance=0.0, note=note)


def effective_window(whole: np.ndarray, windows: Mapping[int, np.ndarray], frames: int, chance: float) -> float:
    """The smallest window whose accuracy is within one standard error of that of all frames.

    0 where that of all is not two standard errors above chance: nothing is used.
    """
    accuracy = whole.mean()
    error = np.sqrt(max(accuracy * (1 - accuracy), 1.0 / len(whole)) / len(whole))
    if accuracy <= chance + 2 * np.sqrt(chance * (1 - chance) / len(whole)):
        return 0.0
    return float(min([w for w, right in windows.items() if right.mean() >= accuracy - error], default=frames))


def effective_lag(right: np.ndarray, lags: np.ndarray, chance: float, bins: int = 8) -> float:
    """The longest lag (that of a bin) up to which every bin's accuracy exceeds chance + (best - chance) / 2, and chance
    by two standard errors.

    0 where the best bin is not three standard errors above chance.
    """
    edges = np.array_split(np.unique(lags), min(bins, len(np.unique(lags))))
    groups = [(float(edge.max()), right[np.isin(lags, edge)]) for edge in edges]
    excess = np.array([own.mean() - chance for _, own in groups])
    errors = np.array([np.sqrt(chance * (1 - chance) / len(own)) for _, own in groups])
    best = int(np.argmax(excess))
    reached = 0.0
    if excess[best] > 3 * errors[best]:
        for (lag, _), above, error in zip(groups, excess, errors, strict=True):
            if above <= max(excess[best] / 2, 2 * error):
                break
            reached = lag
    return reached


def _check(cfg: Config, clip: Clip) -> None:
    for values, known, name in ((cfg.tasks, CLASSES, "tasks"), (cfg.curves, CURVES, "curves")):
        for value in values:
            if value not in known:
                raise ConfigError(f"context.{name}: {value!r} is not one of {', '.join(known)}")
    if not cfg.frames or not cfg.tasks or not cfg.curves:
        raise ConfigError("context.frames, context.tasks and context.curves must hold at least one value each")
    for frames in cfg.frames:
        if frames % cfg.frames[0] or frames % clip.tubelet or frames // max(cfg.moment, 1) < 8:
            raise ConfigError(
                f"context.frames: {frames} must be a multiple of {cfg.frames[0]}, the first, and of {clip.tubelet} "
                f"frames a time step, and hold at least 8 moments of context.moment={cfg.moment} frames"
            )
    if list(cfg.frames) != sorted(set(cfg.frames)):
        raise ConfigError(f"context.frames={cfg.frames} must be ascending")
    if cfg.last % clip.tubelet or cfg.last < 1 or min(cfg.train, cfg.test) < 48:
        raise ConfigError(
            f"context.last={cfg.last} must be a multiple of {clip.tubelet}, context.train and context.test at least 48"
        )

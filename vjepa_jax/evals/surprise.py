"""Violation of expectation: is a model more surprised by a video that breaks physics than by its possible twin?

Surprise of a window is the mean L1 distance between the predicted and the real latents of its later frames, given the
first c frames; of a video the mean (or maximum) over windows (arXiv 2502.11831). IntPhys, GRASP, InfLevel, or the
embedded world, whose twins are equal frame for frame up to the violation.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from vjepa_jax.config import ConfigError
from vjepa_jax.evals.forecast import errors, forecasters
from vjepa_jax.evals.scores import OnScore, Score, bootstrap, mean_interval, score
from vjepa_jax.evals.surprise_data import LAYOUTS, Pair, read_pairs, world_pairs
from vjepa_jax.evals.worlds import Clip, clip_of, in_batches

AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {"mean": np.mean, "max": np.max}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are those of the paper on IntPhys.

    layout: world (rendered), or intphys, grasp, inflevel under `path` (surprise_data.py shows each).
    contexts: frames that are given, of the encoder's clip; fixed_context: the one that is reported as such.
    stride: frames between windows; frame_step: of the video's frames (1 in the world; IntPhys 2, GRASP 10, InfLevel 5).
    pairs, frames: of the world; frames None: windows slide over twice the clip.
    percentile: of the possible videos of every second pair; above it a video counts as impossible (absolute accuracy).
    """

    layout: str = "world"
    path: str = ""
    contexts: tuple[int, ...] = (2, 4, 6, 8, 10)
    fixed_context: int = 6
    stride: int = 2
    frame_step: int = 2
    aggregate: str = "mean"
    percentile: float = 90.0
    pairs: int = 256
    frames: int | None = None
    batch_size: int = 32
    seeds: int = 3


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """Relative and absolute accuracy and AUROC at the fixed and at the best context, and by property.

    The best context is chosen on the scored pairs, as published, and says so. Intervals resample pairs.

    Raises:
      ConfigError: contexts that do not fit the clip, a wrong setting; DataError: a wrong layout.
    """
    clip = clip_of(encoders, "surprise")
    _check(cfg, clip)
    pairs = world_pairs(clip, cfg.pairs, cfg.frames) if cfg.layout == "world" else read_pairs(cfg, clip)
    properties = np.array([pair.kind for pair in pairs])
    rows: list[Score] = []
    for name, models in forecasters(encoders).items():
        surprises = [surprise_of_pairs(model, pairs, clip, cfg) for model in models]  # [context, pair, 2] a seed
        for row in _rows(cfg, name, surprises, properties):
            rows.append(row)
            if on_score:
                on_score(row)
    return rows


def relative_accuracy(possible: np.ndarray, impossible: np.ndarray) -> float:
    """Share of pairs whose impossible video surprises more, in %; a tie counts half. [P], [P]."""
    return 100.0 * float(np.mean((impossible > possible) + 0.5 * (impossible == possible)))


def auroc(possible: np.ndarray, impossible: np.ndarray) -> float:
    """Probability that any impossible video surprises more than any possible one, in %; ties count half."""
    ranks = rankdata(np.concatenate([possible, impossible]))
    n, m = len(possible), len(impossible)
    return 100.0 * float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def absolute_accuracy(possible: np.ndarray, impossible: np.ndarray, percentile: float) -> float:
    """Videos of odd pairs that one threshold sorts rightly, in %: the percentile of the possible ones of even pairs.

    A tie with the threshold counts half, so that constant surprise gives 50 %.
    """
    threshold = np.percentile(possible[::2], percentile)
    above = lambda values: np.mean((values > threshold) + 0.5 * (values == threshold))
    return 100.0 * float(above(impossible[1::2]) + 1.0 - above(possible[1::2])) / 2.0


def windows(frames: int, length: int, stride: int) -> np.ndarray:
    """Frames of every window, int64 [W, length]; a shorter video has one, which repeats its last frame."""
    starts = np.arange(0, max(frames - length, 0) + 1, stride)
    return np.minimum(starts[:, None] + np.arange(length), frames - 1)


def surprise_of_pairs(model: Any, pairs: Sequence[Pair], clip: Clip, cfg: Config) -> np.ndarray:
    """Surprise of each pair's possible and impossible video at each context: float64 [contexts, pairs, 2]."""
    contexts = tuple(c // clip.tubelet for c in cfg.contexts)

    of_batch = lambda video: errors(model, video, contexts, clip.steps, clip.places)
    surprises = np.empty((len(contexts), len(pairs), 2))
    for first in range(0, len(pairs), cfg.batch_size):  # so many are held in memory, cut into windows
        some = pairs[first : first + cfg.batch_size]
        videos = [video for pair in some for video in pair.load()]
        cuts = [windows(len(video), clip.frames, cfg.stride) for video in videos]
        clips = np.concatenate([video[cut] for video, cut in zip(videos, cuts, strict=True)])
        # Rounded: a model that predicts its constant features has ties, not differences of the last bit.
        values = np.round(in_batches(of_batch, cfg.batch_size, clips).astype(np.float64), 6)
        ends = np.cumsum([len(cut) for cut in cuts])[:-1]
        videowise = [AGGREGATES[cfg.aggregate](part, axis=0) for part in np.split(values, ends)]
        surprises[:, first : first + len(some)] = np.stack(videowise, 1).reshape(len(contexts), len(some), 2)
    return surprises


def _rows(cfg: Config, name: str, surprises: list[np.ndarray], properties: np.ndarray):
    fixed = cfg.contexts.index(cfg.fixed_context)
    relative = lambda s: [relative_accuracy(*pair.T) for pair in s]
    best = [int(np.argmax(relative(s))) for s in surprises]
    at = f"context of {cfg.fixed_context} frames"
    given = {"count": len(properties), "chance": 50.0}

    def row(metric: str, statistic: Callable[..., float], picked: list[np.ndarray], note: str = "", **more: Any):
        values = [statistic(*pair.T) for pair in picked]
        interval = None
        if len(picked) == 1:
            interval = bootstrap(lambda rows: statistic(*picked[0][rows].T), len(picked[0]), resamples=500)
        return score(_benchmark(cfg), metric, name, values, note=note, interval=interval, **(given | more))

    at_fixed = [s[fixed] for s in surprises]
    absolute = lambda p, i: absolute_accuracy(p, i, cfg.percentile)
    yield row(f"relative accuracy, {at}", relative_accuracy, at_fixed)
    yield row(f"AUROC, {at}", auroc, at_fixed)
    threshold = f"threshold: percentile {cfg.percentile:g} of the possible videos of even pairs"
    values = [absolute(*pair.T) for pair in at_fixed]
    # No bootstrap by rows: even pairs set the threshold, odd ones are scored.
    interval = _binomial(values[0], len(properties)) if len(values) == 1 else None
    of_odd = given | {"count": len(properties) // 2 * 2 // 2}
    yield score(_benchmark(cfg), f"absolute accuracy, {at}", name, values, note=threshold, interval=interval, **of_odd)
    chosen = sorted({cfg.contexts[b] for b in best})
    note = f"context chosen on the test: {', '.join(map(str, chosen))} frames"
    yield row(
        "relative accuracy, best context", relative_accuracy, [s[b] for s, b in zip(surprises, best, strict=True)], note
    )
    for kind in dict.fromkeys(properties.tolist()):
        mine = properties == kind
        picked = [s[fixed][mine] for s in surprises]
        yield row(f"relative accuracy, {kind}, {at}", relative_accuracy, picked, count=int(mine.sum()))


def _binomial(percent: float, pairs: int) -> tuple[float, float]:
    """95 % interval of a share of the videos of every second pair."""
    videos = max(pairs // 2 * 2, 1)
    right = np.zeros(videos)
    right[: round(videos * percent / 100.0)] = 1.0
    return mean_interval(right, scale=100.0)


def _benchmark(cfg: Config) -> str:
    return {"world": "world, violations", "intphys": "IntPhys", "grasp": "GRASP", "inflevel": "InfLevel"}[cfg.layout]


def _check(cfg: Config, clip: Clip) -> None:
    if cfg.layout not in ("world", *LAYOUTS):
        raise ConfigError(f"surprise.layout={cfg.layout!r} is not one of world, {', '.join(LAYOUTS)}")
    if cfg.aggregate not in AGGREGATES:
        raise ConfigError(f"surprise.aggregate={cfg.aggregate!r} is not one of {', '.join(AGGREGATES)}")
    for context in cfg.contexts:
        if not 0 < context < clip.frames or context % clip.tubelet:
            raise ConfigError(
                f"surprise.contexts: {context} frames must be a multiple of {clip.tubelet} and fewer than the "
                f"{clip.frames} of a clip"
            )
    if cfg.fixed_context not in cfg.contexts:
        raise ConfigError(f"surprise.fixed_context={cfg.fixed_context} is not one of surprise.contexts={cfg.contexts}")
    if min(cfg.stride, cfg.frame_step, cfg.batch_size) < 1 or cfg.pairs < 2:
        raise ConfigError("surprise.stride, frame_step and batch_size must be at least 1, surprise.pairs at least 2")
    if cfg.frames is not None and cfg.frames < clip.frames:
        raise ConfigError(f"surprise.frames={cfg.frames} is fewer than the {clip.frames} of a clip")

"""Temporal consistency that a collapsed encoder cannot have: is a moving point found again by its features?

f_t(x) is the feature of frame t at point x: linear between time steps and between tokens. On tracks of the embedded
world, whose points are exact:

  TC-disc    share of (track, t, delta) where the token most alike to f_t(x_t) in frame t + delta lies within k of
             x_(t + delta) (PCK@k)
  TC-ICC     1 - variance within tracks / total variance of track features, standardised by dataset; 0 where RankMe is
             below 2 % of the channels
  jitter     1 - cosine of the same frame's features in two overlapping windows, divided by that of random frames
  straight   mean cosine of successive changes of the pooled feature, minus that of the pixels

A cosine of neighbouring frames is not given: it is 1 for constant features.

Shape suffixes: N videos, T frames, S time steps, Y X the token grid, D channels, O tracks, P points.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from data_pipelines.world_spec import tracking_spec
from data_pipelines.world_truth import Truth
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import controls, worlds
from vjepa_jax.evals.scores import OnScore, Score, bootstrap, score
from vjepa_jax.evals.worlds import Clip
from vjepa_jax.training.health import rankme

BENCHMARK = "world, consistency"
_SEEN = 0.5  # share of an object that must be seen, for a frame to count


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    deltas: frames between query and answer. radius: k of PCK, in token sides (the nearest centre is up to 0.71 away).
    shift: frames between overlapping windows; None: half of the clip. per_frame: also an encoder of stills, every frame
    encoded as a clip of its own (as costly as there are time steps).
    """

    videos: int = 128
    deltas: tuple[int, ...] = (1, 4, 8)
    radius: float = 1.0
    shift: int | None = None
    per_frame: bool = True
    batch_size: int = 32
    seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Tracks:
    """points float32 [N, T, O, 2] (x, y) in pixels; seen bool [N, T, O]: present, in the frame and mostly visible."""

    points: np.ndarray
    seen: np.ndarray


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """Scores of every encoder, of constant features, of stills, and of standing still as the guess.

    Raises:
      ConfigError: deltas or a shift that do not fit the clip.
    """
    clip = worlds.clip_of(encoders, "consistency", least_steps=4)
    shift = _shift(cfg, clip)
    _check(cfg, clip, shift)
    # videos go on after the clip, so that a second window can overlap the first
    spec = worlds.sized(tracking_spec(clip.side, clip.frames + shift), clip)
    # twice as fast: at 32 pixels standing still would be within a token of the truth for half of a clip
    spec = dataclasses.replace(spec, speeds=tuple(2.0 * speed for speed in spec.speeds))
    videos, truths = worlds.render(spec, cfg.videos, seed=21)
    tracks, pixel_turns = _tracks(truths, clip), straightness(pixel_steps(videos[:, : clip.frames], clip))
    rows: list[Score] = []

    def keep(row: Score) -> None:
        rows.append(row)
        if on_score:
            on_score(row)

    for name, group in _with_controls(encoders, clip, cfg).items():
        each = [_measure(encode, videos, tracks, clip, shift, cfg) for encode in group]
        for row in _rows(name, each, pixel_turns, cfg):
            keep(row)
    for delta in cfg.deltas:
        hits = stay(tracks, delta, cfg.radius * clip.patch)
        keep(_per_video(f"TC-disc, PCK, frames apart: {delta}", "no motion", [hits], None, scale=100.0))
    return rows


# --------------------------------------------------------------------------------------------------------- features


def frame_features(features_NSYXD: np.ndarray, frames: int) -> np.ndarray:
    """Features of every frame, [N, frames, Y, X, D]: linear between the middles of time steps, constant at the ends."""
    steps = features_NSYXD.shape[1]
    tubelet = frames // steps
    place = np.clip((np.arange(frames) - (tubelet - 1) / 2) / tubelet, 0, steps - 1)
    first = np.minimum(place.astype(int), max(steps - 2, 0))
    share = (place - first)[:, None, None, None].astype(np.float32)
    return (1 - share) * features_NSYXD[:, first] + share * features_NSYXD[:, np.minimum(first + 1, steps - 1)]


def at_points(maps_PYXD: np.ndarray, points_P2: np.ndarray, patch: int) -> np.ndarray:
    """Bilinear between token centres, one point (x, y) in pixels a map: [P, D]. Beyond the centres the edge counts."""
    rows, columns = maps_PYXD.shape[1:3]
    place = np.clip(points_P2 / patch - 0.5, 0, np.array([columns - 1, rows - 1]))
    low = np.minimum(place.astype(int), np.maximum(np.array([columns - 2, rows - 2]), 0))
    x, y = (place - low).T.astype(np.float32)[:, :, None]
    p, high = np.arange(len(maps_PYXD)), np.minimum(low + 1, np.array([columns - 1, rows - 1]))
    at = lambda row, column: maps_PYXD[p, row, column]
    upper = (1 - x) * at(low[:, 1], low[:, 0]) + x * at(low[:, 1], high[:, 0])
    lower = (1 - x) * at(high[:, 1], low[:, 0]) + x * at(high[:, 1], high[:, 0])
    return (1 - y) * upper + y * lower


def token_centres(rows: int, columns: int, patch: int) -> np.ndarray:
    """(x, y) of every token in pixels, [rows * columns, 2]."""
    y, x = np.mgrid[:rows, :columns]
    return (np.stack([x, y], -1).reshape(-1, 2) + 0.5) * patch


# ---------------------------------------------------------------------------------------------------------- metrics


def pck(frames_NTYXD: np.ndarray, tracks: Tracks, delta: int, patch: int, radius: float) -> list[np.ndarray]:
    """For every video the hits of its (track, t) at `delta` frames, in [0, 1]: the share of the tokens most alike (ties
    within 1e-5) that lie within `radius` pixels of the true point. Videos without a pair have none."""
    centres = token_centres(*frames_NTYXD.shape[2:4], patch)
    results = []
    for maps, points, seen in zip(frames_NTYXD, tracks.points, tracks.seen, strict=True):
        t, o = np.nonzero(seen[:-delta] & seen[delta:])
        query = _unit(at_points(maps[t], points[t, o], patch))
        tokens = _unit(maps.reshape(len(maps), -1, maps.shape[-1]))[t + delta]
        cosine = np.einsum("pd,pkd->pk", query, tokens)
        best = cosine >= cosine.max(1, keepdims=True, initial=-1.0) - 1e-5
        near = np.hypot(*(centres - points[t + delta, o][:, None]).transpose(2, 0, 1)) <= radius
        results.append((best & near).sum(1) / np.maximum(best.sum(1), 1))
    return results


def chance(tracks: Tracks, delta: int, patch: int, radius: float, grid: tuple[int, int]) -> float:
    """The share of all tokens that lie within `radius` pixels of the true point, in %."""
    centres = token_centres(*grid, patch)
    n, t, o = np.nonzero(tracks.seen[:, :-delta] & tracks.seen[:, delta:])
    apart = centres - tracks.points[n, t + delta, o][:, None]
    return 100.0 * float((np.hypot(apart[..., 0], apart[..., 1]) <= radius).mean())


def stay(tracks: Tracks, delta: int, radius: float) -> list[np.ndarray]:
    """As `pck` for the guess that nothing moves: whether the point is still within `radius` of where it was."""
    moved = np.hypot(*np.moveaxis(tracks.points[:, delta:] - tracks.points[:, :-delta], -1, 0)) <= radius
    both = tracks.seen[:, delta:] & tracks.seen[:, :-delta]
    return [m[b].astype(float) for m, b in zip(moved, both, strict=True)]


def intraclass(groups: Sequence[np.ndarray]) -> float:
    """1 - variance within / total variance of rows in groups ([n_i, D] each, standardised alike), summed over channels.

    One-way analysis of variance: the variance within has a degree of freedom less for each group, the total one less in
    all. About 0 for noise, 1 for features that are constant along every track and differ between them.
    """
    together = np.concatenate(groups).astype(np.float64)
    within = sum(float(np.square(g - g.mean(0)).sum()) for g in map(np.float64, groups))
    total = float(np.square(together - together.mean(0)).sum())
    freedom = sum(len(g) - 1 for g in groups)
    if total <= 1e-9 * len(together) or not freedom:
        return 0.0
    return 1.0 - (within / freedom) / (total / (len(together) - 1))


def jitter(first_NPD: np.ndarray, second_NPD: np.ndarray) -> float:
    """Mean 1 - cosine of the same tokens in two windows / that of the same places in different videos; 1 where the
    latter is nothing (a collapsed encoder is not stable, it is blind)."""
    a, b = _unit(first_NPD), _unit(second_NPD)
    same = 1.0 - (a * b).sum(-1).mean()
    random = 1.0 - (a * np.roll(b, 1, axis=0)).sum(-1).mean()
    return float(same / random) if random > 1e-6 else 1.0


def straightness(z_NSD: np.ndarray) -> np.ndarray:
    """Mean cosine of successive changes z_(t+1) - z_t of every video, float64 [N]; 0 where nothing changes."""
    v = np.diff(z_NSD.astype(np.float64), axis=1)
    length = np.linalg.norm(v, axis=-1)
    scale = np.abs(z_NSD).max() if z_NSD.size else 0.0
    moves = length > 1e-5 * max(float(scale), 1e-12)
    dots = (v[:, :-1] * v[:, 1:]).sum(-1)
    both = moves[:, :-1] & moves[:, 1:]
    return np.where(both, dots / np.maximum(length[:, :-1] * length[:, 1:], 1e-300), 0.0).mean(1)


def pixel_steps(videos: np.ndarray, clip: Clip) -> np.ndarray:
    """Pixels averaged over each time step, [N, S, values]: what the straightness of features is compared with."""
    by_step = videos.reshape(len(videos), clip.steps, clip.tubelet, -1)
    return by_step.mean(2, dtype=np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


# --------------------------------------------------------------------------------------------------------- together


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one encoder: PCK hits by delta and video, chance of these, track features by video, RankMe, jitter by two
    windows [N, P, D], straightness by video."""

    hits: dict[int, list[np.ndarray]]
    chances: dict[int, float]
    groups: list[list[np.ndarray]]
    alive: bool
    windows: tuple[np.ndarray, np.ndarray]
    turns: np.ndarray


def _measure(encode: Any, videos: np.ndarray, tracks: Tracks, clip: Clip, shift: int, cfg: Config) -> Measured:
    encoded = lambda clips: worlds.in_batches(encode, cfg.batch_size, clips).astype(np.float32)
    features = encoded(videos[:, : clip.frames])
    frames = frame_features(features, clip.frames)
    radius, dim = cfg.radius * clip.patch, features.shape[-1]
    flat = features.reshape(-1, dim)
    mean, std = flat.mean(0), flat.std(0)
    alive = float(rankme(jnp.asarray(flat - mean))) >= 0.02 * dim and float(std.max()) > 1e-6
    groups = [[] for _ in videos]
    for n, (maps, points, seen) in enumerate(zip(frames, tracks.points, tracks.seen, strict=True)):
        for o in range(seen.shape[1]):
            t = np.flatnonzero(seen[:, o])
            if len(t) > 1:
                groups[n].append((at_points(maps[t], points[t, o], clip.patch) - mean) / np.maximum(std, 1e-6))
    steps = shift // clip.tubelet
    later = encoded(videos[:, shift : shift + clip.frames])
    tokens = lambda z: z.reshape(len(z), -1, dim)
    return Measured(
        hits={delta: pck(frames, tracks, delta, clip.patch, radius) for delta in cfg.deltas},
        chances={d: chance(tracks, d, clip.patch, radius, features.shape[2:4]) for d in cfg.deltas},
        groups=groups,
        alive=alive,
        windows=(tokens(features[:, steps:]), tokens(later[:, : clip.steps - steps])),
        turns=straightness(features.mean((2, 3))),
    )


def _rows(name: str, each: list[Measured], pixel_turns: np.ndarray, cfg: Config) -> Iterator[Score]:
    for delta in cfg.deltas:
        hits = [m.hits[delta] for m in each]
        yield _per_video(f"TC-disc, PCK, frames apart: {delta}", name, hits, each[0].chances[delta], scale=100.0)
    pick = lambda m, rows: [group for row in rows for group in m.groups[row]]
    icc = lambda m, rows: intraclass(pick(m, rows)) if m.alive and pick(m, rows) else 0.0
    yield _row("TC-ICC", name, each, icc, chance=0.0)
    moved = lambda m, rows: jitter(m.windows[0][rows], m.windows[1][rows])
    yield _row("jitter of overlapping windows", name, each, moved, higher_is_better=False, chance=1.0)
    straight = lambda m, rows: float((m.turns[rows] - pixel_turns[rows]).mean())
    yield _row("straightness, above that of pixels", name, each, straight, chance=None)


def _row(metric: str, name: str, each: list[Measured], statistic: Callable[..., float], **more: Any) -> Score:
    rows = np.arange(len(each[0].turns))
    interval = bootstrap(lambda r: statistic(each[0], r), len(rows), resamples=200) if len(each) == 1 else None
    values = [statistic(m, rows) for m in each]
    return score(BENCHMARK, metric, name, values, count=len(rows), interval=interval, unit="", **more)


def _per_video(metric: str, name: str, hits: list[list[np.ndarray]], chance: float | None, scale: float) -> Score:
    """A share over all pairs; the interval resamples videos."""
    statistic = lambda own, rows: scale * float(np.concatenate([own[r] for r in rows]).mean())
    rows = np.arange(len(hits[0]))
    interval = bootstrap(lambda r: statistic(hits[0], r), len(rows), resamples=200) if len(hits) == 1 else None
    values = [statistic(own, rows) for own in hits]
    count = sum(map(len, hits[0]))
    return score(BENCHMARK, metric, name, values, count=count, interval=interval, chance=chance)


def per_frame(encode: Any, clip: Clip) -> Callable[[np.ndarray], np.ndarray]:
    """An encoder that sees one frame at a time: a time step is the mean over time of a clip that repeats its frame."""

    def stills(video: np.ndarray) -> np.ndarray:
        steps = []
        for s in range(video.shape[1] // clip.tubelet):
            frame = video[:, s * clip.tubelet + (clip.tubelet - 1) // 2]
            clips = np.repeat(frame[:, None], clip.frames, axis=1)
            steps.append(np.asarray(encode(clips)).mean(1))
        return np.stack(steps, 1)

    return stills


def _with_controls(encoders: Mapping[str, Sequence[Any]], clip: Clip, cfg: Config) -> dict[str, list[Any]]:
    named = {name: list(group) for name, group in encoders.items()}
    if cfg.per_frame:
        named["trained, one frame at a time"] = [per_frame(encoders[controls.TRAINED][0], clip)]
    named["constant"] = [lambda video: controls.constant_features(video, clip.patch, clip.tubelet)]
    return named


def _tracks(truths: Sequence[Truth], clip: Clip) -> Tracks:
    most = max(t.tracks.shape[1] for t in truths)
    points = np.zeros((len(truths), clip.frames, most, 2), np.float32)
    seen = np.zeros(points.shape[:3], bool)
    height, width = clip.size
    for n, t in enumerate(truths):
        objects, own = t.tracks.shape[1], t.tracks[: clip.frames]
        inside = ((own >= 0) & (own < np.array([width, height]))).all(-1)
        points[n, :, :objects] = own
        seen[n, :, :objects] = inside & t.present[: clip.frames] & (t.visible_fraction[: clip.frames] > _SEEN)
    return Tracks(points, seen)


def _shift(cfg: Config, clip: Clip) -> int:
    return clip.steps // 2 * clip.tubelet if cfg.shift is None else cfg.shift


def _check(cfg: Config, clip: Clip, shift: int) -> None:
    for delta in cfg.deltas:
        if not 1 <= delta < clip.frames:
            raise ConfigError(
                f"consistency.deltas: {delta} must be at least 1 and below the {clip.frames} frames of a clip"
            )
    if not 0 < shift < clip.frames or shift % clip.tubelet:
        raise ConfigError(
            f"consistency.shift={shift} must be a multiple of {clip.tubelet} between 0 and the {clip.frames} frames of "
            "a clip, so that time steps of both windows show the same frames"
        )
    if cfg.videos < 2 or cfg.radius <= 0:
        raise ConfigError(
            f"consistency.videos={cfg.videos} must be at least 2, consistency.radius={cfg.radius} positive"
        )

"""Temporal action detection on frozen features: mAP at overlaps .3 to .7 by a small anchor-free detector that is
trained on them (detection_head.py), on THUMOS14, ActivityNet or the embedded world.

A feature is the mean over all tokens of a clip that starts every `stride` frames, as the sliding windows of the
published protocol (16 frames, stride 4, at 30 frames a second); or, with stride 0, the mean over the places of a time
step, averaged over clips that overlap by half.

Beside the encoders stands what needs no video: segments of the usual length, end to end, with the frequency of each
class in training as the score.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import augment, world_behaviours
from data_pipelines.decode import DecodeError, VideoReader
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import controls, worlds
from vjepa_jax.evals.detection_head import HeadConfig, Track, train_detector
from vjepa_jax.evals.scores import OnScore, Score, bootstrap, score
from vjepa_jax.evals.temporal_metrics import OVERLAPS, detection_map, detection_recall
from vjepa_jax.evals.windows import encode_clips, padded, step_features
from vjepa_jax.evals.worlds import Clip, clip_of

LAYOUT = (
    '{path}/annotations.json: {{"database": {{"VIDEO": {{"subset": "{train}" or "{test}", "duration": seconds, '
    '"annotations": [{{"segment": [start, end], "label": "class"}}, ...]}}, ...}}}} and {path}/videos/VIDEO.mp4'
)
PRIOR = "usual segments"
ACTIONS = ("dash", "orbit", "shake", "still")  # of the world; in between the object drifts
_WORLD_FPS = 8.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are ActionFormer's for THUMOS14.

    data: annotated (a folder `path`, LAYOUT), or world. name: of the benchmark in scores. train, test: subsets.
    frame_step: of the videos' frames. stride: see above, in frames. head: the detector. worlds: videos of the embedded
    world to train on and to score.
    """

    data: str = "annotated"
    path: str = ""
    name: str = "thumos14"
    train: str = "validation"
    test: str = "test"
    frame_step: int = 1
    stride: int = 4
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    worlds: tuple[int, int] = (48, 32)
    batch_size: int = 32  # clips of one call of the encoder
    seeds: int = 3
    frame_controls: bool = True  # beside the trained encoder, the same on stills and on shuffled frames


@dataclasses.dataclass(frozen=True)
class Video:
    """`load(first, last)` gives frames uint8 [n, H, W, 3] of `frames`, `fps` of them a second; actions in seconds."""

    name: str
    fps: float
    frames: int
    duration: float
    segments: np.ndarray  # float [n, 2]
    labels: np.ndarray  # int [n]
    load: Callable[[int, int], np.ndarray]


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """mAP of every encoder at each overlap and their mean, and recall by as many detections as there are actions.

    Seeds vary the detector; seed s takes encoder s modulo their number. One seed gets an interval over videos.

    Raises:
      ConfigError, DataError: wrong settings, a wrong layout.
    """
    clip = clip_of(encoders, "action_detection")
    _check(cfg)
    train, test, classes = world_videos(clip, cfg) if cfg.data == "world" else read_annotated(cfg, clip)
    named = controls.with_frames(encoders) if cfg.frame_controls else encoders
    named = {name: list(group)[: cfg.seeds] for name, group in named.items()}
    benchmark = "world, actions" if cfg.data == "world" else cfg.name
    flat = [model for group in named.values() for model in group]
    features = [iter(extract(flat, videos, clip, cfg)) for videos in (train, test)]
    prior = usual(train, test, len(classes))
    chance = _values(test, prior)
    rows: list[Score] = []

    def keep(name: str, found: list[dict[str, Any]], note: str) -> None:
        for row in _rows(benchmark, name, found, test, chance, note):
            rows.append(row)
            if on_score:
                on_score(row)

    for name, group in named.items():
        own = [tuple(next(part) for part in features) for _ in group]
        found = [
            _detect(*own[seed % len(own)], train, test, len(classes), clip, cfg, seed) for seed in range(cfg.seeds)
        ]
        keep(name, found, f"{len(classes)} classes, {len(train)} training videos, {cfg.head.epochs} epochs")
    keep(PRIOR, [prior], "no features")
    return rows


# --------------------------------------------------------------------------------------------------------- features


def extract(models: Sequence[Any], videos: Sequence[Video], clip: Clip, cfg: Config) -> list[list[np.ndarray]]:
    """Features float32 [S, D] of every video, by model; every video is decoded once."""
    features: list[list[np.ndarray]] = [[] for _ in models]
    for video in videos:
        if not cfg.stride:
            frames = video.load(0, video.frames)
            for model, own in zip(models, features, strict=True):
                pool = lambda tokens: tokens.mean((2, 3))
                steps = step_features(model, frames, clip.frames, clip.tubelet, cfg.batch_size, pool)
                own.append(steps[: max(len(frames) // clip.tubelet, 1)])
            continue
        parts: list[list[np.ndarray]] = [[] for _ in models]
        for clips in windows(video, clip, cfg):
            for model, own in zip(models, parts, strict=True):
                own.append(encode_clips(model, clips, cfg.batch_size, lambda tokens: tokens.mean((1, 2, 3))))
        for own, part in zip(features, parts, strict=True):
            own.append(np.concatenate(part))
    return features


def windows(video: Video, clip: Clip, cfg: Config) -> Iterator[np.ndarray]:
    """Clips that start every `stride` frames, uint8 [n, T, H, W, 3], a batch at a time: a long video is never whole in
    memory."""
    starts = range(0, max(video.frames - clip.frames, 0) + 1, cfg.stride)
    for at in range(0, len(starts), cfg.batch_size):
        some = starts[at : at + cfg.batch_size]
        frames = padded(
            video.load(some[0], min(some[-1] + clip.frames, video.frames)), some[-1] - some[0] + clip.frames
        )
        yield np.stack([frames[start - some[0] : start - some[0] + clip.frames] for start in some])


def clock(video: Video, clip: Clip, cfg: Config) -> tuple[float, float]:
    """Seconds from one feature to the next, and of the middle of what the first one sees."""
    step = (cfg.stride or clip.tubelet) / video.fps
    return step, (clip.frames if cfg.stride else clip.tubelet) / 2 / video.fps


# -------------------------------------------------------------------------------------------------------- detection


def _detect(
    train_features: list[np.ndarray],
    test_features: list[np.ndarray],
    train: Sequence[Video],
    test: Sequence[Video],
    num_classes: int,
    clip: Clip,
    cfg: Config,
    seed: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Detections of the test videos, in seconds, by a detector trained with this seed."""
    tracks = []
    for video, features in zip(train, train_features, strict=True):
        step, first = clock(video, clip, cfg)
        tracks.append(Track(features, (video.segments - first) / step, video.labels))
    detector = train_detector(tracks, num_classes, cfg.head, seed)
    found = {}
    for video, features in zip(test, test_features, strict=True):
        step, first = clock(video, clip, cfg)
        one = detector(features)
        found[video.name] = one | {"segments": np.clip(one["segments"] * step + first, 0.0, video.duration)}
    return found


def usual(train: Sequence[Video], test: Sequence[Video], num_classes: int) -> dict[str, dict[str, np.ndarray]]:
    """Segments of the median length of training, end to end, once for every class with its frequency as the score."""
    lengths = np.concatenate([video.segments[:, 1] - video.segments[:, 0] for video in train])
    share = np.bincount(np.concatenate([video.labels for video in train]), minlength=num_classes) / len(lengths)
    found = {}
    for video in test:
        starts = np.arange(0.0, video.duration, np.median(lengths))
        segments = np.stack([starts, np.minimum(starts + np.median(lengths), video.duration)], 1)
        found[video.name] = {
            "segments": np.tile(segments, (num_classes, 1)),
            "labels": np.repeat(np.arange(num_classes), len(segments)),
            "scores": np.repeat(share, len(segments)),
        }
    return found


def _values(test: Sequence[Video], found: Mapping[str, Any], rows: np.ndarray | None = None) -> dict[str, float]:
    """Metrics in %; rows: videos, of which one that is drawn twice counts twice."""
    rows = np.arange(len(test)) if rows is None else rows
    truth = {str(i): {"segments": test[row].segments, "labels": test[row].labels} for i, row in enumerate(rows)}
    picked = {str(i): found[test[row].name] for i, row in enumerate(rows)}
    precision = 100.0 * detection_map(truth, picked)
    values = {"mAP@0.3:0.7": float(precision.mean())}
    values |= {f"mAP@{threshold}": float(value) for threshold, value in zip(OVERLAPS, precision, strict=True)}
    return values | {"recall@0.5 by 1x": 100.0 * float(detection_recall(truth, picked, (0.5,), (1,))[0, 0])}


def _rows(
    benchmark: str, name: str, found: list[dict[str, Any]], test: Sequence[Video], chance: dict[str, float], note: str
) -> Iterator[Score]:
    values = [_values(test, one) for one in found]
    drawn: dict[bytes, dict[str, float]] = {}  # all metrics are resampled alike, so that each resample is scored once

    def resampled(rows: np.ndarray) -> dict[str, float]:
        key = rows.tobytes()
        if key not in drawn:
            drawn[key] = _values(test, found[0], rows)
        return drawn[key]

    for metric in values[0]:
        interval = None
        if len(found) == 1 and name != PRIOR:  # whose scores are equal, so that the order of videos would count
            interval = bootstrap(lambda rows, metric=metric: resampled(rows)[metric], len(test), resamples=50)
        yield score(
            *(benchmark, metric, name, [one[metric] for one in values]),
            count=sum(len(video.labels) for video in test),
            interval=interval,
            chance=chance[metric],
            note=note,
        )


# ------------------------------------------------------------------------------------------------------------- data


def world_videos(clip: Clip, cfg: Config) -> tuple[list[Video], list[Video], tuple[str, ...]]:
    """Videos of the embedded world to train and to score with, and the classes: an object drifts, and 3 to 5 times does
    something else for 1.5 to 5 seconds. It stays the same object over the same background."""
    spec = worlds.travelling(clip)
    rng = np.random.default_rng(17)
    videos = []
    for index in range(sum(cfg.worlds)):
        plan = [("drift", int(rng.integers(8, 25)))]
        for _ in range(rng.integers(3, 6)):
            plan.append((ACTIONS[rng.integers(len(ACTIONS))], int(rng.integers(12, 41))))
            plan.append(("drift", int(rng.integers(8, 25))))
        frames, _ = world_behaviours.render_behaviours(spec, 17, index, plan)
        actions = [part for part in world_behaviours.segments(plan) if part[0] in ACTIONS]
        videos.append(
            Video(
                f"world {index}",
                _WORLD_FPS,
                len(frames),
                len(frames) / _WORLD_FPS,
                np.array([part[1:] for part in actions]) / _WORLD_FPS,
                np.array([ACTIONS.index(part[0]) for part in actions]),
                lambda first, last, frames=frames: frames[first:last],
            )
        )
    return videos[: cfg.worlds[0]], videos[cfg.worlds[0] :], ACTIONS


def read_annotated(cfg: Config, clip: Clip) -> tuple[list[Video], list[Video], tuple[str, ...]]:
    """Training and test videos of a folder laid out as LAYOUT says, and the names of the classes, sorted.

    Videos of other subsets and those without an action are left out. Raises DataError.
    """
    root, layout = Path(cfg.path), LAYOUT.format(path=cfg.path, train=cfg.train, test=cfg.test)
    file = root / "annotations.json"
    parts: dict[str, list[tuple[str, float, list[Any]]]] = {cfg.train.lower(): [], cfg.test.lower(): []}
    try:
        for name, one in json.loads(file.read_text())["database"].items():
            actions = [(*map(float, a["segment"]), str(a["label"])) for a in one["annotations"]]
            if one["subset"].lower() in parts and actions:
                parts[one["subset"].lower()].append((name, float(one["duration"]), actions))
            for start, end, _ in actions:
                if not 0 <= start < end:
                    raise ValueError(f"{name}: a segment from {start} to {end}")
    except FileNotFoundError:
        raise DataError(f"{file} does not exist: expected {layout}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} cannot be read ({error!r}): expected {layout}") from None
    for subset, videos in parts.items():
        if not videos:
            raise DataError(f"{file} has no video with actions in subset {subset!r}: expected {layout}")
    train, test = parts.values()
    classes = sorted({action[2] for _, _, actions in train for action in actions})
    if unknown := sorted({action[2] for _, _, actions in test for action in actions} - set(classes)):
        raise DataError(f"{file}: class {unknown[0]!r} of subset {cfg.test!r} has no action in {cfg.train!r}")
    video = functools.partial(_file, root=root, classes=classes, clip=clip, cfg=cfg, layout=layout)
    return [video(*one) for one in train], [video(*one) for one in test], tuple(classes)


def _file(name, duration, actions, *, root: Path, classes: list[str], clip: Clip, cfg: Config, layout: str) -> Video:
    path = root / "videos" / f"{name}.mp4"
    if not path.is_file():
        raise DataError(f"{path} does not exist: expected {layout}")
    choose = lambda height, width: augment.center_box(height, width, clip.size)

    def load(first: int, last: int) -> np.ndarray:
        try:
            with VideoReader(path) as reader:
                return reader.crops(np.arange(first, last) * cfg.frame_step, choose, clip.size)
        except (DecodeError, OSError) as error:
            raise DataError(f"{path} cannot be decoded ({error}): take it out of annotations.json") from None

    try:
        with VideoReader(path) as reader:
            frames, fps = -(-reader.num_frames // cfg.frame_step), reader.fps / cfg.frame_step
    except (DecodeError, OSError) as error:
        raise DataError(f"{path} cannot be decoded ({error}): take it out of annotations.json") from None
    labels = np.array([classes.index(action[2]) for action in actions])
    return Video(name, fps, frames, duration, np.array([action[:2] for action in actions]), labels, load)


def _check(cfg: Config) -> None:
    if cfg.data not in ("annotated", "world"):
        raise ConfigError(f"action_detection.data={cfg.data!r} is not one of annotated, world")
    if cfg.data == "annotated" and not cfg.path:
        layout = LAYOUT.format(path="PATH", train=cfg.train, test=cfg.test)
        raise ConfigError(f"action_detection.path is empty: give a folder with {layout}")
    if cfg.data == "annotated" and cfg.train.lower() == cfg.test.lower():
        raise ConfigError(f"action_detection.train and test are both {cfg.train!r}: name two subsets")
    for key, least in (("frame_step", 1), ("stride", 0), ("batch_size", 1), ("seeds", 1)):
        if getattr(cfg, key) < least:
            raise ConfigError(f"action_detection.{key}={getattr(cfg, key)} must be at least {least}")
    if min(cfg.worlds) < 1:
        raise ConfigError(f"action_detection.worlds={cfg.worlds} must be at least one to train and one to score")
    head = cfg.head
    if head.suppression not in ("soft", "hard"):
        raise ConfigError(f"action_detection.head.suppression={head.suppression!r} is not one of soft, hard")
    if head.dim % head.num_heads or min(head.levels, head.reach, head.length, head.epochs, head.batch_size) < 1:
        raise ConfigError(
            f"action_detection.head: dim={head.dim} must be divisible by num_heads={head.num_heads}, and levels, "
            "reach, length, epochs and batch_size be at least 1"
        )

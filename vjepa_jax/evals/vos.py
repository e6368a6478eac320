"""Video object segmentation by label propagation on frozen features: what DAVIS and YouTube-VOS have in common."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from vjepa_jax.config import ConfigError
from vjepa_jax.evals.controls import PIXELS, TRAINED
from vjepa_jax.evals.davis_metrics import boundary_accuracy, region_similarity, statistics
from vjepa_jax.evals.features import Encode
from vjepa_jax.evals.propagation import METHODS, SEARCH, Method, propagate, to_masks, token_labels
from vjepa_jax.evals.scores import Score, bootstrap, score
from vjepa_jax.evals.windows import encode_clips, padded, step_features
from vjepa_jax.evals.worlds import Clip, clip_of

COPY = "copy of the first mask"
FRAMES = {"repeated": ("repeated",), "windows": ("windows",), "both": ("repeated", "windows")}
VOID = 255  # of a palette image: pixels of no object


@dataclasses.dataclass(frozen=True)
class Settings:
    """How labels are carried on.

    method: dino, crw or vjepa21 (evals/propagation.py), never to be compared with one another.
    size: pixels of the shorter side.
    frames: how a video encoder sees single frames: repeated (each fills a tubelet of its own), windows (clips that
      overlap by half are averaged, and stretched in time from tubelets to frames), or both, one after the other.
    interpolate: rows and columns are counted as in a clip of the trained size, instead of on beyond it.
    search: of method vjepa21: settings are chosen for each encoder among those that V-JEPA 2.1 tried, by J&F of the
      first `tune_videos` videos that are not scored; else they are those that it found best.
    """

    method: str = "dino"
    size: int = 480
    frames: str = "both"
    interpolate: bool = False
    batch_size: int = 1
    seeds: int = 3
    search: bool = False
    tune_videos: int = 20


@dataclasses.dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
      pictures: files of its frames, in order; `size`: their height and width.
      annotations: by frame, object numbers uint8 [H, W], 0 for background.
      given: the part of them that is told: in frame 0, and in later ones the objects that appear there.
      scored: by object number, the frames in which it is scored.
    """

    name: str
    pictures: list[Path]
    size: tuple[int, int]
    annotations: dict[int, np.ndarray]
    given: dict[int, np.ndarray]
    scored: dict[int, list[int]]


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder by the name that its scores carry, in one of the ways of `Settings.frames`, and how its features carry
    labels on."""

    name: str
    way: str
    seeds: list[Any]
    how: Method


Objects = list[np.ndarray]  # J and F of every object of a video, [2, frames]


def check(cfg: Settings, where: str) -> None:
    """Raises ConfigError, which names the key `where`.KEY, for a setting that is wrong."""
    for key, allowed in (("method", METHODS), ("frames", FRAMES)):
        if getattr(cfg, key) not in allowed:
            raise ConfigError(f"{where}.{key}={getattr(cfg, key)!r} is not one of {', '.join(allowed)}")
    if cfg.batch_size < 1 or cfg.size < 1 or cfg.tune_videos < 1:
        raise ConfigError(f"{where}.batch_size, {where}.size and {where}.tune_videos must be at least 1")
    if cfg.search and cfg.method != "vjepa21":
        raise ConfigError(f"{where}.search is of {where}.method=vjepa21: {cfg.method} has settings of its own")


def models(encoders: Mapping[str, Sequence[Any]], cfg: Settings, where: str) -> list[Model]:
    """Every encoder in every way that `cfg` asks for; an encoder of single frames sees them as they are.

    Raises:
      ConfigError: positions that cannot be interpolated.
    """
    ways = FRAMES[cfg.frames] if clip_of(encoders, where, least_steps=1).frames > 1 else ("single",)
    sized = at_size(encoders, cfg, where)
    return [Model(name, way, group, METHODS[cfg.method]) for way in ways for name, group in sized.items()]


def at_size(encoders: Mapping[str, Sequence[Any]], cfg: Any, where: str) -> dict[str, list[Any]]:
    """Encoders at another size than they were trained with: positions go on beyond it, or are interpolated
    (cfg.interpolate).

    All are parameters of one model, which is compiled once. Raises ConfigError for a model that was not trained on
    squares.
    """
    trained = encoders[TRAINED][0]
    if not cfg.interpolate or trained.run.model.rope_grid:
        return {name: list(group) for name, group in encoders.items()}
    rows, columns = trained.run.grid[1:]
    if rows != columns:
        raise ConfigError(f"{where}.interpolate needs a model trained on squares: leave it off")
    resized = trained.with_model(dataclasses.replace(trained.run.model, rope_grid=rows))
    other = lambda encode: resized.with_params(encode.params) if hasattr(encode, "params") else encode
    return {name: [other(encode) for encode in group] for name, group in encoders.items()}


def evaluate(
    videos: Iterable[Video], group: Sequence[Model], clip: Clip, cfg: Settings, where: str
) -> tuple[list[list[list[Objects]]], list[Objects]]:
    """Scores of the objects of all videos: by model, seed and video; and of the masks that are given, copied on.

    Raises:
      ConfigError: as for `input_size`.
    """
    found: list[list[list[Objects]]] = [[[] for _ in model.seeds] for model in group]
    copied: list[Objects] = []
    for video in videos:
        copied.append(object_scores(video, copies(video)))
        pixels = read_pictures(video.pictures, input_size(video.size, clip.patch, cfg, where))
        for model, seeds in zip(group, found, strict=True):
            for encode, one in zip(model.seeds, seeds, strict=True):
                features = frame_features(encode, pixels, clip, model.way, cfg.batch_size)
                one.append(object_scores(video, segment(features, video, pixels.shape[1:3], model.how)))
    return found, copied


def searched(videos: Iterable[Video], group: Sequence[Model], clip: Clip, cfg: Settings, where: str) -> list[Model]:
    """Models with the settings of propagation.SEARCH by which their first seed has the highest J&F on `videos`.

    Raises:
      ConfigError: no video, or as for `input_size`.
    """
    found: list[list[list[Objects]]] = [[[] for _ in SEARCH] for _ in group]
    for video in itertools.islice((video for video in videos if video.scored), cfg.tune_videos):
        pixels = read_pictures(video.pictures, input_size(video.size, clip.patch, cfg, where))
        for model, tried in zip(group, found, strict=True):
            features = frame_features(model.seeds[0], pixels, clip, model.way, cfg.batch_size)
            for how, one in zip(SEARCH, tried, strict=True):
                one.append(object_scores(video, segment(features, video, pixels.shape[1:3], how)))
    if not found[0][0]:
        raise ConfigError(f"{where}.search needs videos to choose settings by besides those that are scored")
    best = [int(np.argmax([summary(videos)["J&F"] for videos in tried])) for tried in found]
    return [dataclasses.replace(model, how=SEARCH[i]) for model, i in zip(group, best, strict=True)]


def input_size(frame: tuple[int, int], patch: int, cfg: Settings, where: str) -> tuple[int, int]:
    """Height and width that a frame is resized to: the shorter side `size`, the other to a multiple of 64 below, or
    11/6 of it (crw: 480 x 880); both whole patches.

    Raises:
      ConfigError: a size that is no multiple of the patch, or too small.
    """
    if cfg.size % patch:
        raise ConfigError(f"{where}.size={cfg.size} must be a multiple of the model's patch size {patch}")
    short, long = sorted(frame)
    unit = 64 if 64 % patch == 0 else patch
    other = cfg.size * 11 // 6 // patch * patch if cfg.method == "crw" else int(cfg.size * long / short) // unit * unit
    if not other:
        raise ConfigError(
            f"{where}.size={cfg.size} is too small: the longer side is cut to a multiple of {unit} pixels"
        )
    return (cfg.size, other) if frame[0] <= frame[1] else (other, cfg.size)


def frame_features(encode: Encode, pixels: np.ndarray, clip: Clip, way: str, batch_size: int) -> np.ndarray:
    """Features of single frames by an encoder of clips: float32 [F, rows, columns, D].

    Args:
      pixels: uint8 [F, H, W, 3]; way: "windows", or else every frame for itself, see Settings.frames.
    """
    frames = len(pixels)
    if way != "windows":
        filled = padded(pixels, -(-frames // clip.steps) * clip.steps).reshape(-1, clip.steps, *pixels.shape[1:])
        features = encode_clips(encode, np.repeat(filled, clip.tubelet, axis=1), batch_size)
        return features.reshape(-1, *features.shape[2:])[:frames]
    steps = step_features(encode, pixels, clip.frames, clip.tubelet, batch_size)
    return np.asarray(jax.image.resize(steps, (clip.tubelet * len(steps), *steps.shape[1:]), "cubic"))[:frames]


def segment(features: np.ndarray, video: Video, inner: tuple[int, int], how: Method) -> np.ndarray:
    """Objects carried on from the frames that they are given in: uint8 [F, H, W].

    Args:
      features: [F, rows, columns, D], of frames of height and width `inner`.
    """
    grid = features.shape[1:3]
    count = 1 + max(int(mask.max()) for mask in video.given.values())
    labels = {frame: token_labels(mask, grid, inner, count, how) for frame, mask in video.given.items()}
    for frame in labels.keys() - {0}:
        labels[frame] = labels[frame] * (np.arange(count) > 0)  # what is not told there is no background
    soft = propagate(features.reshape(len(features), grid[0] * grid[1], -1), grid, labels, how)
    found = to_masks(soft, grid, inner, video.size, how)
    for frame, mask in video.given.items():
        found[frame] = np.where(mask > 0, mask, found[frame] if frame else 0)
    return found


def copies(video: Video) -> np.ndarray:
    """The masks that are given, copied to all frames after theirs: uint8 [F, H, W]."""
    found = np.zeros((len(video.pictures), *video.size), np.uint8)
    for frame, mask in sorted(video.given.items()):
        found[frame:] = np.where(mask > 0, mask, found[frame])
    return found


def object_scores(video: Video, found: np.ndarray) -> Objects:
    """J and F of every object in the frames that it is scored in; found: uint8 [F, H, W]."""
    metrics = (region_similarity, boundary_accuracy)
    same = lambda metric, n, f: metric(video.annotations[f] == n, found[f] == n)
    return [np.array([[same(m, n, f) for f in frames] for m in metrics]) for n, frames in video.scored.items()]


def summary(videos: Sequence[Objects]) -> dict[str, float]:
    """Percentages over all objects of all videos: J&F, and mean, recall and decay of J and F."""
    objects = [[statistics(values) for values in pair] for video in videos for pair in video]
    (j, j_recall, j_decay), (f, f_recall, f_decay) = 100.0 * np.mean(objects, axis=0)
    return {
        "J&F": (j + f) / 2, "J mean": j, "J recall": j_recall, "J decay": j_decay,
        "F mean": f, "F recall": f_recall, "F decay": f_decay,
    }  # fmt: skip


def rows(
    benchmark: str,
    metrics: Sequence[str],
    cfg: Settings,
    model: Model | None,
    seeds: Sequence[Sequence[Objects]],
    note: str = "",
) -> Iterator[Score]:
    """Scores of a model, or of copied masks (None), by seed, video and object. Intervals resample videos.

    Names of metrics tell the protocol, and windows where frames were not repeated; of copies, the protocol alone.
    """
    summaries, count = [summary(videos) for videos in seeds], len(seeds[0])
    notes = [note] if note else []
    windows = ", windows" if model and model.way == "windows" else ""
    if model:
        notes.append(f"{cfg.size} px, frames {model.way}")
        notes += ["positions interpolated"] * (cfg.interpolate and model.name != PIXELS)
        notes += [f"{model.how.settings()}, chosen on other videos"] * cfg.search
    for metric in metrics:
        resampled = functools.partial(_resampled, seeds, metric)
        yield score(
            benchmark,
            f"{metric}, {(model.how if model else METHODS[cfg.method]).title}{windows}",
            model.name if model else COPY,
            [one[metric] for one in summaries],
            count=sum(map(len, seeds[0])),
            interval=bootstrap(resampled, count, resamples=200) if count > 1 else None,
            higher_is_better="decay" not in metric,
            note=", ".join(notes),
        )


def _resampled(seeds: Sequence[Sequence[Objects]], metric: str, picked: np.ndarray) -> float:
    return float(np.mean([summary([videos[row] for row in picked])[metric] for videos in seeds]))


def read_mask(path: Path) -> np.ndarray:
    """Object numbers, uint8 [H, W]: of a palette image, whose void counts as background; any other is black and white,
    one object."""
    with Image.open(path) as image:
        if image.mode == "P":
            numbers = np.asarray(image)
            return np.where(numbers == VOID, 0, numbers).astype(np.uint8)
        return (np.asarray(image.convert("L")) > 127).astype(np.uint8)


def has_palette(path: Path) -> bool:
    """Whether a mask holds object numbers; else it is black and white."""
    with Image.open(path) as image:
        return image.mode == "P"


def read_pictures(paths: Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    """Pictures at another size, bilinear: uint8 [F, *size, 3]."""
    pixels = np.empty((len(paths), *size, 3), np.uint8)
    for frame, path in zip(pixels, paths, strict=True):
        with Image.open(path) as image:
            frame[:] = np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    return pixels


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture."""
    with Image.open(path) as image:
        return image.size[::-1]

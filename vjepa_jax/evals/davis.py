"""Video object segmentation on DAVIS by label propagation, J and F in the semi-supervised mode (arXiv 1704.00675)."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from vjepa_jax.config import ConfigError
from vjepa_jax.evals.davis_metrics import boundary_accuracy, region_similarity, statistics
from vjepa_jax.evals.features import Encode
from vjepa_jax.evals.propagation import METHODS, Method, propagate, to_masks
from vjepa_jax.evals.scores import OnScore, Score, bootstrap, score
from vjepa_jax.evals.windows import encode_clips, padded, step_features
from vjepa_jax.evals.worlds import clip_of

LAYOUT = "{path}/JPEGImages/480p/SEQUENCE/00000.jpg ... and {path}/Annotations/480p/SEQUENCE/00000.png ..."
COPY = "copy of the first mask"
FRAMES = ("repeated", "windows")
_VOID = 255


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    path: a folder of DAVIS 2017, or of 2016, whose numbers are not those of 2017.
    sequences: by name, or those of ImageSets/2017/`split`.txt, or all.
    method: dino or crw (evals/propagation.py), never to be compared with one another.
    size: pixels of the shorter side.
    frames: how a video encoder sees single frames: repeated (each fills a tubelet of its own) or windows (clips that
      overlap by half are averaged, and stretched in time from tubelets to frames).
    interpolate: rows and columns are counted as in a clip of the trained size, instead of on beyond it.
    """

    path: str = ""
    split: str = "val"
    sequences: tuple[str, ...] = ()
    method: str = "dino"
    size: int = 480
    frames: str = "repeated"
    interpolate: bool = False
    batch_size: int = 1
    seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Video:
    """One video: frames uint8 [F, H, W, 3], masks of object numbers uint8 [F, H, W], 0 for background."""

    name: str
    frames: np.ndarray
    masks: np.ndarray


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """J&F, J and F with mean, recall and decay over all objects of all sequences, of every encoder and of the first
    mask copied to all frames. Intervals resample sequences.

    Raises:
      ConfigError: a wrong setting or layout.
    """
    _check(cfg)
    names, method = sequence_names(cfg), METHODS[cfg.method]
    clip = clip_of(encoders, "davis")
    models = {name: [_at_size(model, cfg) for model in group] for name, group in encoders.items()}
    values: dict[tuple[str, int], list[np.ndarray]] = {}
    for name in names:
        sequence = read_sequence(Path(cfg.path), name)
        copied = np.repeat(sequence.masks[:1], len(sequence.masks), axis=0)
        values.setdefault((COPY, 0), []).append(object_scores(sequence.masks, copied))
        size = input_size(sequence.frames.shape[1:3], clip.patch, cfg)
        video = resize_frames(sequence.frames, size)
        for label, group in models.items():
            for seed, model in enumerate(group):
                features = frame_features(model, video, clip.frames, clip.tubelet, cfg)
                found = segment(features, sequence.masks[0], method)
                values.setdefault((label, seed), []).append(object_scores(sequence.masks, found))
    rows: list[Score] = []
    for label in (*models, COPY):
        seeds = [value for (key, _), value in values.items() if key == label]
        for row in _rows(cfg, label, seeds, len(names)):
            rows.append(row)
            if on_score:
                on_score(row)
    return rows


def segment(features: np.ndarray, first: np.ndarray, method: Method) -> np.ndarray:
    """The first frame's objects carried on: uint8 [F, H, W].

    Args:
      features: [F, rows, columns, D]; first: object numbers uint8 [H, W].
    """
    grid = features.shape[1:3]
    labels = np.eye(int(first.max()) + 1, dtype=np.float32)[nearest(first, grid)].reshape(grid[0] * grid[1], -1)
    soft = propagate(features.reshape(len(features), grid[0] * grid[1], -1), grid, labels, method)
    return to_masks(soft, grid, first.shape, method)


def object_scores(annotations: np.ndarray, found: np.ndarray) -> np.ndarray:
    """J and F of every object of the first frame in every frame but the first and the last: [objects, 2, F - 2]."""
    objects = [n for n in np.unique(annotations[0]) if n]
    inner = range(1, len(annotations) - 1)
    metrics = (region_similarity, boundary_accuracy)
    return np.array(
        [[[metric(annotations[f] == n, found[f] == n) for f in inner] for metric in metrics] for n in objects]
    )


def summary(sequences: Sequence[np.ndarray]) -> dict[str, float]:
    """Percentages over all objects of all sequences (of `object_scores`): J&F, and mean, recall, decay of J and F."""
    objects = [[statistics(values) for values in pair] for sequence in sequences for pair in sequence]
    (j, j_recall, j_decay), (f, f_recall, f_decay) = 100.0 * np.mean(objects, axis=0)
    return {
        "J&F": (j + f) / 2, "J mean": j, "J recall": j_recall, "J decay": j_decay,
        "F mean": f, "F recall": f_recall, "F decay": f_decay,
    }  # fmt: skip


def frame_features(encode: Encode, video: np.ndarray, clip: int, tubelet: int, cfg: Config) -> np.ndarray:
    """Features of single frames by an encoder of clips: float32 [F, rows, columns, D]. See Config.frames.

    Args:
      video: uint8 [F, H, W, 3]; clip: frames of the encoder's clip.
    """
    frames = len(video)
    if cfg.frames == "repeated":
        steps = clip // tubelet
        filled = padded(video, -(-frames // steps) * steps).reshape(-1, steps, *video.shape[1:])
        features = encode_clips(encode, np.repeat(filled, tubelet, axis=1), cfg.batch_size)
        return features.reshape(-1, *features.shape[2:])[:frames]
    steps = step_features(encode, video, clip, tubelet, cfg.batch_size)
    return np.asarray(jax.image.resize(steps, (tubelet * len(steps), *steps.shape[1:]), "cubic"))[:frames]


def input_size(frame: tuple[int, int], patch: int, cfg: Config) -> tuple[int, int]:
    """Height and width that a frame is resized to: the shorter side `size`, the other to a multiple of 64 below (dino),
    or 11/6 of it (crw: 480 x 880); both whole patches.

    Raises:
      ConfigError: a size that is no multiple of the patch.
    """
    if cfg.size % patch:
        raise ConfigError(f"davis.size={cfg.size} must be a multiple of the model's patch size {patch}")
    short, long = sorted(frame)
    unit = 64 if 64 % patch == 0 else patch
    other = int(cfg.size * long / short) // unit * unit if cfg.method == "dino" else cfg.size * 11 // 6 // patch * patch
    return (cfg.size, other) if frame[0] <= frame[1] else (other, cfg.size)


def sequence_names(cfg: Config) -> list[str]:
    """Names of the sequences that are evaluated. Raises ConfigError, which shows the layout, where there are none."""
    root, layout = Path(cfg.path), LAYOUT.format(path=cfg.path or "PATH")
    images, annotations = root / "JPEGImages/480p", root / "Annotations/480p"
    if not cfg.path or not images.is_dir() or not annotations.is_dir():
        raise ConfigError(f"davis.path={cfg.path!r} is no folder of DAVIS: expected {layout}")
    listed = root / "ImageSets/2017" / f"{cfg.split}.txt"
    names = list(cfg.sequences) or (listed.read_text().split() if listed.is_file() else [])
    names = names or sorted(path.name for path in annotations.iterdir() if path.is_dir())
    for name in names:
        frames, masks = (
            {path.stem for path in (folder / name).glob(pattern)}
            for folder, pattern in ((images, "*.jpg"), (annotations, "*.png"))
        )
        if len(frames) < 3 or frames != masks:
            raise ConfigError(
                f"davis: sequence {name} has {len(frames)} frames and {len(masks)} masks, it needs a mask for each "
                f"and at least 3: expected {layout}"
            )
    if not names:
        raise ConfigError(f"davis.path={cfg.path!r} holds no sequence: expected {layout}")
    return names


def read_sequence(root: Path, name: str) -> Video:
    """Frames and masks of a sequence. Masks are palette images of object numbers (2017) or black and white (2016)."""
    paths = sorted((root / "JPEGImages/480p" / name).glob("*.jpg"))
    frames = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    masks = [read_mask(root / "Annotations/480p" / name / f"{path.stem}.png") for path in paths]
    shapes = {mask.shape for mask in masks}
    if shapes != {frames.shape[1:3]}:
        raise ConfigError(f"davis: masks of {name} have shapes {shapes}, its frames {frames.shape[1:3]}")
    if not masks[0].any():
        raise ConfigError(f"davis: the first mask of {name} is empty: there is no object to follow")
    return Video(name, frames, np.stack(masks))


def read_mask(path: Path) -> np.ndarray:
    """Object numbers, uint8 [H, W]. Void pixels (255 of a palette image) count as background."""
    image = Image.open(path)
    if image.mode == "P":
        numbers = np.asarray(image)
        return np.where(numbers == _VOID, 0, numbers).astype(np.uint8)
    return (np.asarray(image.convert("L")) > 127).astype(np.uint8)


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [F, H, W, 3] at another size, bicubic."""
    resized = [Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(image) for image in resized])


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size, by its nearest pixels."""
    rows, columns = (np.floor((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, mask.shape, strict=True))
    return mask[rows[:, None], columns]


def _at_size(model: Any, cfg: Config) -> Any:
    """The encoder at another size than it was trained with: positions go on, or are interpolated."""
    run = getattr(model, "run", None)
    if run is None or not cfg.interpolate:
        return model
    height, width = run.data.size
    if height != width:
        raise ConfigError("davis.interpolate needs a model trained on squares: leave it off")
    return model.with_model(
        dataclasses.replace(run.model, rope_grid=run.model.rope_grid or height // run.model.patch_size)
    )


def _rows(cfg: Config, label: str, seeds: list[list[np.ndarray]], count: int) -> Iterator[Score]:
    summaries = [summary(sequences) for sequences in seeds]
    note = "" if label == COPY else f"{cfg.size} px, frames {cfg.frames}"
    for metric in summaries[0]:
        values = [one[metric] for one in summaries]
        resampled = functools.partial(_resampled, seeds, metric)
        interval = bootstrap(resampled, count, resamples=200) if count > 1 else None
        better = "decay" not in metric
        objects = sum(len(sequence) for sequence in seeds[0])
        yield score(
            "davis2017",
            f"{metric}, {cfg.method.upper()} protocol",
            label,
            values,
            count=objects,
            interval=interval,
            higher_is_better=better,
            note=note,
        )


def _resampled(seeds: list[list[np.ndarray]], metric: str, rows: np.ndarray) -> float:
    return float(np.mean([summary([sequences[row] for row in rows])[metric] for sequences in seeds]))


def _check(cfg: Config) -> None:
    if cfg.method not in METHODS:
        raise ConfigError(f"davis.method={cfg.method!r} is not one of {', '.join(METHODS)}")
    if cfg.frames not in FRAMES:
        raise ConfigError(f"davis.frames={cfg.frames!r} is not one of {', '.join(FRAMES)}")
    if cfg.batch_size < 1 or cfg.size < 1:
        raise ConfigError("davis.batch_size and davis.size must be at least 1")

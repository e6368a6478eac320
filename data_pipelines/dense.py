"""Pictures with a label for every pixel: folders of semantic segmentation (as ADE20K's) and of depth (as NYUv2's).

Classes are int32 from 0 on, with IGNORED where a pixel does not count; depth is float32 in metres, 0 where there is
none.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from PIL import Image

from data_pipelines import loading
from data_pipelines.sources import DataError

SEGMENTATION_LAYOUT = (
    "{path}/images/training/NAME.jpg with {path}/annotations/training/NAME.png (8 bits: 0 counts nowhere, classes 1 to "
    "{classes}), and images/validation with annotations/validation"
)
DEPTH_LAYOUT = (
    "{path}/{file} with lines 'IMAGE DEPTH' (paths in {path}): a picture of 8 bits and a PNG of 16 bits, depth in "
    "1/{factor:g} metres, 0 where there is none"
)
IGNORED = -1
# Rows and columns of a picture of NYU Depth v2 that all published numbers are of, as those of arXiv 1406.2283.
EIGEN_CROP = (slice(45, 471), slice(41, 601))
_EIGEN_SIZE = (480, 640)
_PICTURES = (".jpg", ".jpeg", ".png")
_DEPTH_MODES = ("I;16", "I;16B", "I")


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Reads a picture and its classes. Annotations hold class k as k + 1."""

    classes: int
    void: float = IGNORED  # of pixels without a label

    def __call__(self, image: str, label: str) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] and int32 [H, W]. Raises DataError."""
        numbers, mode = _load(label)
        if mode not in ("L", "P", "I;16", "I") or numbers.max() > self.classes:
            raise DataError(
                f"{label} holds values up to {numbers.max()} in mode {mode}: an annotation is a picture of one channel "
                f"with classes 0 to {self.classes}"
            )
        return _same_size(_load(image, "RGB")[0], numbers.astype(np.int32) - 1, image, label)


@dataclasses.dataclass(frozen=True)
class Depth:
    """Reads a picture and its depth: `factor` units of the file are a metre; outside of EIGEN_CROP, where it is asked
    for, there is none."""

    factor: float
    eigen_crop: bool = False
    void: float = 0.0

    def __call__(self, image: str, label: str) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] and float32 [H, W], metres. Raises DataError."""
        units, mode = _load(label)
        if mode not in _DEPTH_MODES:
            raise DataError(f"{label} has mode {mode}: depth is a PNG of 16 bits, in 1/{self.factor:g} metres")
        depth = units.astype(np.float32) / np.float32(self.factor)
        if self.eigen_crop:
            if depth.shape != _EIGEN_SIZE:
                raise DataError(
                    f"{label} has {depth.shape} pixels, the Eigen crop is one of {_EIGEN_SIZE}: leave it off"
                )
            kept = np.zeros_like(depth)
            kept[EIGEN_CROP] = depth[EIGEN_CROP]
            depth = kept
        return _same_size(_load(image, "RGB")[0], depth, image, label)


Pairs = Sequence[tuple[str, str]]
Read = Callable[[str, str], tuple[np.ndarray, np.ndarray]]


def segmentation_pairs(root: str, part: str, classes: int) -> Pairs:
    """Paths of the pictures of a part ("training", "validation") and of their annotations, in order.

    Raises:
      DataError: a folder that is not laid out like this, or a picture without an annotation.
    """
    layout = SEGMENTATION_LAYOUT.format(path=root, classes=classes)
    images, annotations = (Path(root) / name / part for name in ("images", "annotations"))
    for folder in (images, annotations):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: expected {layout}")
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in _PICTURES)
    if not found:
        raise DataError(f"{images} holds no picture: expected {layout}")
    pairs = [(str(path), str(annotations / f"{path.stem}.png")) for path in found]
    for image, annotation in pairs:
        if not Path(annotation).is_file():
            raise DataError(f"{image} has no annotation {annotation}: expected {layout}")
    return pairs


def depth_pairs(root: str, file: str, factor: float) -> Pairs:
    """Paths of pictures and depth maps that a list names; further columns (a focal length) and lines whose depth is
    "None" are left out.

    Raises:
      DataError: no such list, a line or a path that cannot be used.
    """
    layout = DEPTH_LAYOUT.format(path=root, file=file, factor=factor)
    listed = Path(root) / file
    if not listed.is_file():
        raise DataError(f"{listed} is no file: expected {layout}")
    pairs = []
    for number, line in enumerate(listed.read_text().splitlines(), 1):
        fields = line.split()
        if not fields or fields[1:2] == ["None"]:
            continue
        if len(fields) < 2:
            raise DataError(f"{listed}, line {number}: {line!r} names no depth: expected {layout}")
        # some lists begin their paths with a slash
        image, depth = (str(Path(root) / name.lstrip("/")) for name in fields[:2])
        for path in (image, depth):
            if not Path(path).is_file():
                raise DataError(f"{listed}, line {number}: there is no file {path}: expected {layout}")
        pairs.append((image, depth))
    if not pairs:
        raise DataError(f"{listed} names no picture: expected {layout}")
    return pairs


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a training picture is cut out.

    size: pixels (height, width) of the cut; what lies beyond the picture is black and counts nowhere.
    shorter: of the whole picture's sides is resized to this many pixels, times a factor from `scale`; 0: not resized.
    """

    size: tuple[int, int]
    shorter: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    hflip: bool = True

    def __call__(
        self, image: np.ndarray, label: np.ndarray, void: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [*size, 3] and its labels [*size]: pictures are resized bilinearly, labels to the nearest pixel."""
        factor = rng.uniform(*self.scale)
        if self.shorter:
            image, label = resized(image, label, round(self.shorter * factor))
        corner = [int(rng.integers(max(n - m, 0) + 1)) for n, m in zip(label.shape, self.size, strict=True)]
        flip = self.hflip and rng.random() < 0.5
        window = tuple(slice(c, c + m) for c, m in zip(corner, self.size, strict=True))
        image, label = image[window], label[window]
        missing = [(0, m - n) for n, m in zip(label.shape, self.size, strict=True)]
        image = np.pad(image, [*missing, (0, 0)])
        label = np.pad(label, missing, constant_values=void)
        return (image[:, ::-1], label[:, ::-1]) if flip else (image, label)


def resized(image: np.ndarray, label: np.ndarray, shorter: int) -> tuple[np.ndarray, np.ndarray]:
    """Both with a shorter side of `shorter` pixels, in the same proportions."""
    height, width = label.shape
    factor = shorter / min(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    return (
        np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)),
        np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST)),
    )


def training_batches(
    pairs: Pairs,
    read: Read,
    cut: Cut,
    order: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    num_threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Freshly cut pictures in the order of the given rows of `pairs`, int [n].

    Yields:
      "image" uint8 [B, H, W, 3]; "label" int32 or float32 [B, H, W]; "index" int64 [B].
    """
    example = functools.partial(_training_example, pairs=pairs, read=read, cut=cut)
    rows = grain.MapDataset.source(np.asarray(order, np.int64))
    batches = rows.random_map(example, seed=seed % 2**32).batch(batch_size, drop_remainder=True)
    return loading.iterate(batches, num_workers, num_threads, 2, batch_size * cut.size[0] * cut.size[1] * 7)


def in_order(
    pairs: Pairs, read: Read, rows: Sequence[int], *, num_workers: int = 0, num_threads: int = 2
) -> Iterator[dict[str, np.ndarray]]:
    """Whole pictures, one at a time: "image" uint8 [H, W, 3], "label" [H, W], "index"."""
    examples = grain.MapDataset.source(np.asarray(rows, np.int64)).map(
        functools.partial(_whole_example, pairs=pairs, read=read)
    )
    return loading.iterate(examples, num_workers, num_threads, 4, 1 << 24)


def _training_example(row: int, rng: np.random.Generator, *, pairs: Pairs, read: Read, cut: Cut) -> dict:
    image, label = read(*pairs[int(row)])
    image, label = cut(image, label, read.void, rng)
    return {"image": image, "label": label, "index": np.int64(row)}


def _whole_example(row: int, *, pairs: Pairs, read: Read) -> dict:
    image, label = read(*pairs[int(row)])
    return {"image": image, "label": label, "index": np.int64(row)}


def _load(path: str, mode: str | None = None) -> tuple[np.ndarray, str]:
    """A picture and its mode, converted to `mode` where one is given."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode) if mode else image), image.mode
    except OSError as error:
        raise DataError(f"{path} cannot be read as a picture ({error}): replace it or take it out") from None


def _same_size(image: np.ndarray, label: np.ndarray, *paths: str) -> tuple[np.ndarray, np.ndarray]:
    if image.shape[:2] != label.shape:
        raise DataError(f"{paths[0]} has {image.shape[:2]} pixels and {paths[1]} {label.shape}: they must be equal")
    return image, label

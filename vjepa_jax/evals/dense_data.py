"""What dense prediction is trained and scored on: folders of pictures with labels, or scenes of the embedded world.

`cfg`: dense.SegmentationConfig or dense.DepthConfig.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines import dense, world_depth
from data_pipelines.dense import Cut, Pairs, Read
from data_pipelines.world_spec import SHAPES
from vjepa_jax.evals.dense_tasks import Depth, Segmentation, Task

Batches = Iterator[dict[str, np.ndarray]]
_SEED = 37


@dataclasses.dataclass(frozen=True)
class View:
    """How a whole picture is seen: its size while it is (pixels), that of a window, where windows begin, and whether
    each is seen mirrored too."""

    size: tuple[int, int]
    window: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    mirrored: bool = False

    def windows(self, image: np.ndarray) -> np.ndarray:
        """uint8 [V, *window, 3], by rows, each followed by its mirror image."""
        if image.shape[:2] != self.size:
            image = np.asarray(Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR))
        height, width = self.window
        parts = [image[top : top + height, left : left + width] for top in self.tops for left in self.lefts]
        return np.stack([seen for part in parts for seen in ((part, part[:, ::-1]) if self.mirrored else (part,))])

    def placement(self, labels: tuple[int, int], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Matrices float32 [V, H, h] and [V, W, w] that bring maps of the windows [V, h, w] to the labels [H, W]:
        sum_V rows @ map @ columns^T. Each map is stretched over its window, windows are averaged where they meet, and
        the whole is stretched over the labels, all of it bilinearly."""
        rows = _axis(labels[0], self.size[0], self.window[0], self.tops, grid[0])
        columns = _axis(labels[1], self.size[1], self.window[1], self.lefts, grid[1])
        pairs = [(r, c) for r in rows for c in columns]
        if self.mirrored:
            pairs = [pair for r, c in pairs for pair in ((r / 2, c), (r / 2, c[:, ::-1]))]
        return tuple(np.stack(part) for part in zip(*pairs, strict=True))


@dataclasses.dataclass(frozen=True)
class Data:
    """Training pictures and pictures to score, both numbered from 0, and the group that each is of: groups are held out
    whole, and are what a bootstrap draws.

    training(order, seed): batches of "image" uint8 [B, H, W, 3], "label" [B, H, W] and "index", in the order of rows.
    rows(some): these training pictures whole, one at a time; test(): those that are scored.
    """

    name: str
    task: Task
    groups: np.ndarray
    test_groups: np.ndarray
    training: Callable[[np.ndarray, int], Batches]
    rows: Callable[[Sequence[int]], Batches]
    test: Callable[[], Batches]
    view: Callable[[tuple[int, int]], View]  # of a picture's size


def folder_data(cfg: Any) -> Data:
    """Pictures and labels in folders (data_pipelines.dense).

    Raises:
      DataError: a wrong layout.
    """
    affine = cfg.norm == "batch"
    if cfg.data == "ade20k":
        task: Task = Segmentation(cfg.classes, affine)
        read: Read = dense.Segmentation(cfg.classes)
        train, test = (dense.segmentation_pairs(cfg.path, part, cfg.classes) for part in (cfg.train, cfg.test))
    else:
        task = Depth(cfg.bins, *cfg.depth, cfg.upsample, affine)
        read = dense.Depth(cfg.factor, cfg.eigen_crop)
        train, test = (dense.depth_pairs(cfg.path, file, cfg.factor) for file in (cfg.train, cfg.test))
    options = {"num_workers": cfg.num_workers, "num_threads": cfg.num_threads}
    cut = Cut(cfg.size, cfg.shorter, cfg.scale, cfg.hflip)
    whole = functools.partial(dense.in_order, train, read, **options)
    group = scenes if cfg.data == "nyuv2" else lambda pairs: np.arange(len(pairs))
    return Data(
        name=cfg.name,
        task=task,
        groups=group(train),
        test_groups=group(test),
        training=lambda order, seed: dense.training_batches(
            train, read, cut, order, batch_size=cfg.batch_size, seed=seed, **options
        ),
        rows=whole,
        test=lambda: dense.in_order(test, read, range(len(test)), **options),
        view=functools.partial(view_of, cfg=cfg),
    )


def scenes(pairs: Pairs) -> np.ndarray:
    """The folder of each picture as a number, int [n]: pictures of a scene are alike. Each its own where all lie in one
    folder."""
    names = [str(Path(image).parent) for image, _ in pairs]
    known = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([known[name] for name in names]) if len(known) > 1 else np.arange(len(names))


def world_data(size: tuple[int, int], cfg: Any, depth: bool) -> Data:
    """Scenes of the embedded world in depth (data_pipelines.world_depth): shapes to segment, or their depth."""
    spec = dataclasses.replace(world_depth.scene_spec(min(size)), size=size)
    found = [world_depth.render_scene(spec, _SEED, index) for index in range(sum(cfg.worlds))]
    images = np.stack([video[0] for video, _, _ in found])
    classes, depths = (np.stack([truth[which][0] for truth in found]) for which in (1, 2))
    # What is background tells itself apart by its colour, and would be most of every score: it counts nowhere.
    labels = np.where(classes > 0, depths, 0.0).astype(np.float32) if depth else classes - 1
    count, affine = cfg.worlds[0], cfg.norm == "batch"
    if depth:
        near, far = world_depth.depth_range(spec)
        task: Task = Depth(cfg.bins, near / 2, far + near / 2, cfg.upsample, affine, unit="")
    else:
        task = Segmentation(len(SHAPES), affine)

    def training(order: np.ndarray, seed: int) -> Batches:
        rng = np.random.default_rng([seed, _SEED])
        for rows in order[: len(order) // cfg.batch_size * cfg.batch_size].reshape(-1, cfg.batch_size):
            flips = rng.random(len(rows)) < (0.5 if cfg.hflip else 0.0)
            image, label = images[rows], labels[rows]
            image[flips], label[flips] = image[flips, :, ::-1], label[flips, :, ::-1]
            yield {"image": image, "label": label, "index": rows}

    def whole(rows: Sequence[int]) -> Batches:
        for row in rows:
            yield {"image": images[row], "label": labels[row], "index": np.int64(row)}

    return Data(
        name="world, depth" if depth else "world, segmentation",
        task=task,
        groups=np.arange(count),
        test_groups=np.arange(len(images) - count),
        training=training,
        rows=whole,
        test=lambda: whole(range(count, len(images))),
        view=lambda shape: View(shape, shape, (0,), (0,)),
    )


def view_of(shape: tuple[int, int], cfg: Any) -> View:
    """How a picture of `shape` is seen: whole and resized to cfg.whole, or its shorter side resized to cfg.shorter and
    in windows of cfg.size, cfg.stride apart."""
    if any(cfg.whole):
        return View(cfg.whole, cfg.whole, (0,), (0,), cfg.mirrored)
    factor = cfg.shorter / min(shape)
    size = tuple(max(round(n * factor), m) for n, m in zip(shape, cfg.size, strict=True))
    tops, lefts = (window_starts(n, m, cfg.stride) for n, m in zip(size, cfg.size, strict=True))
    return View(size, cfg.size, tops, lefts, cfg.mirrored)


def window_starts(length: int, window: int, stride: int) -> tuple[int, ...]:
    """Where windows begin that cover a length: `stride` apart, the last at its end."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return tuple(min(i * stride, length - window) for i in range(count))


@functools.lru_cache(maxsize=64)
def _axis(labels: int, size: int, window: int, starts: tuple[int, ...], cells: int) -> tuple[np.ndarray, ...]:
    """The placement of windows along one axis, float32 [labels, cells] each."""
    inside = resize_matrix(window, cells)
    placed = np.zeros((len(starts), size, cells))
    cover = np.zeros(size)
    for one, start in zip(placed, starts, strict=True):
        one[start : start + window] = inside
        cover[start : start + window] += 1
    return tuple((resize_matrix(labels, size) @ (placed / cover[:, None])).astype(np.float32))


def resize_matrix(to: int, size: int) -> np.ndarray:
    """Bilinear resizing between centres of pixels as a matrix, float64 [to, size]: the two nearest of `size` pixels,
    without smoothing where it shrinks (torch's interpolate with align_corners=False)."""
    at = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    low = np.minimum(np.floor(at).astype(int), max(size - 2, 0))
    matrix = np.zeros((to, size))
    matrix[np.arange(to), low] = 1 - (at - low)
    matrix[np.arange(to), np.minimum(low + 1, size - 1)] += at - low
    return matrix


def order_of(keeps_out: np.ndarray, together: int, count: int, seed: int) -> np.ndarray:
    """`count` rows in passes of random order, int [count], in which `together` neighbours (whose pixels share a loss)
    are either all held out or none; a pass leaves out what fills no such group."""
    rng = np.random.default_rng([seed, _SEED, 1])
    parts, have = [], 0
    while have < count:
        groups = []
        for rows in (np.flatnonzero(keeps_out), np.flatnonzero(~keeps_out)):
            mixed = rng.permutation(rows)
            groups.append(mixed[: len(mixed) // together * together].reshape(-1, together))
        parts.append(rng.permutation(np.concatenate(groups)).reshape(-1))
        have += len(parts[-1])
    return np.concatenate(parts)[:count]

"""Segmentation and depth as tasks of one protocol (dense.py): head, loss, what is kept of a picture, and metrics.

Shape suffixes: B items of a batch, each of N pictures; G heads, M pictures, H, W rows and columns, C classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vjepa_jax.evals import dense_metrics
from vjepa_jax.models.dense_head import DepthMap, LinearMap, stretched
from vjepa_jax.ops.dense_losses import pixel_cross_entropy, scale_invariant_log


@dataclasses.dataclass(frozen=True)
class Metric:
    """name; unit of its score; how a value becomes a score."""

    name: str
    unit: str
    scale: float = 1.0
    higher_is_better: bool = True


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A class of `classes` for every pixel. The first metric chooses a head."""

    classes: int
    affine: bool
    chance: ClassVar[str] = "majority class"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("mIoU", "%", 100.0), Metric("pixel accuracy", "%", 100.0))

    def model(self) -> LinearMap:
        """The head."""
        return LinearMap(self.classes, self.affine)

    def loss(self, maps: jax.Array, labels_BNHW: jax.Array) -> jax.Array:
        """Cross-entropy, float [B], of what the head gives."""
        return pixel_cross_entropy(stretched(maps, labels_BNHW.shape[2:]), labels_BNHW)

    def final(self, map_HWC: jax.Array) -> jax.Array:
        """The prediction of a map at the size of the labels: int32 [H, W]."""
        return map_HWC.argmax(-1).astype(jnp.int32)

    def judge(self, labels_HW: np.ndarray, found_GHW: np.ndarray) -> np.ndarray:
        """What is kept of a picture: exact counts, int64 [G, 3, C] (dense_metrics.areas)."""
        tables = [dense_metrics.confusion(labels_HW, found, self.classes) for found in found_GHW]
        return np.stack([dense_metrics.areas(table) for table in tables])

    def values(self, kept_M3C: np.ndarray) -> tuple[float, ...]:
        """The metrics over all pictures."""
        total = kept_M3C.sum(0)
        return dense_metrics.mean_iou(total), dense_metrics.pixel_accuracy(total)

    def count(self, labels_BHW: np.ndarray) -> np.ndarray:
        """What is learnt without a picture, which adds up: pixels of every class."""
        return np.bincount(labels_BHW[labels_BHW >= 0].astype(np.int64), minlength=self.classes)

    def guess(self, counts_C: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """The most frequent class everywhere."""
        return np.full(shape, counts_C.argmax(), np.int32)


@dataclasses.dataclass(frozen=True)
class Depth:
    """A depth between `low` and `high` for every pixel."""

    bins: int
    low: float
    high: float
    upsample: int
    affine: bool
    unit: str = "m"
    chance: ClassVar[str] = "mean depth"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """RMSE chooses a head."""
        rmse, relative, delta = dense_metrics.DEPTH_ERRORS
        return Metric(rmse, self.unit, 1.0, False), Metric(relative, "", 1.0, False), Metric(delta, "%", 100.0)

    def model(self) -> DepthMap:
        """The head."""
        return DepthMap(self.bins, self.low, self.high, self.upsample, self.affine)

    def loss(self, maps: jax.Array, labels_BNHW: jax.Array) -> jax.Array:
        """The scale-invariant loss, float [B], of what the head gives; pictures of an item share it."""
        found = stretched(maps, labels_BNHW.shape[2:])[..., 0]
        return scale_invariant_log(found, labels_BNHW, self.high)

    def final(self, map_HWC: jax.Array) -> jax.Array:
        """The prediction of a map at the size of the labels: float32 [H, W]."""
        return jnp.clip(map_HWC[..., 0], self.low, self.high)

    def judge(self, labels_HW: np.ndarray, found_GHW: np.ndarray) -> np.ndarray:
        """What is kept of a picture: its errors, float64 [G, 3]."""
        valid = (labels_HW > self.low) & (labels_HW < self.high)
        return dense_metrics.depth_errors(labels_HW, found_GHW, valid)

    def values(self, kept_M3: np.ndarray) -> tuple[float, ...]:
        """The means over pictures with a valid pixel; NaN where there is none."""
        scored = kept_M3[np.isfinite(kept_M3).all(1)]
        return tuple(scored.mean(0).tolist()) if len(scored) else (float("nan"),) * 3

    def count(self, labels_BHW: np.ndarray) -> np.ndarray:
        """What is learnt without a picture, which adds up: number and sum of the valid depths."""
        valid = labels_BHW[(labels_BHW > self.low) & (labels_BHW < self.high)].astype(np.float64)
        return np.array([valid.size, valid.sum()])

    def guess(self, counts: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """The mean depth everywhere."""
        return np.full(shape, counts[1] / max(counts[0], 1), np.float32)


Task = Segmentation | Depth


def best(task: Task, values: Sequence[float]) -> int:
    """The head with the best value of the first metric; a NaN never is."""
    sign = 1.0 if task.metrics[0].higher_is_better else -1.0
    return int(np.nan_to_num(sign * np.asarray(values, np.float64), nan=-np.inf).argmax())

"""Metrics of dense prediction: intersection over union from exact counts, and errors of depth, in NumPy.

Semantic segmentation counts pixels as MMSegmentation does: over all images of the split, a class that neither
annotations nor predictions hold is left out. Errors of depth (Eigen et al., arXiv 1406.2283) are means over the images
of the errors within each, as the toolboxes behind DINOv2's and DINOv3's numbers take them.
"""

import numpy as np

DEPTH_ERRORS = ("RMSE", "abs-rel", "delta1")


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by annotated (row) and predicted (column) class, int64 [classes, classes].

    Args:
      labels: ints of any shape, negative where a pixel does not count.
      predictions: ints of the same shape, 0 to classes - 1.

    Raises:
      ValueError: different shapes, or a class beyond the last.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(f"labels have shape {labels.shape}, predictions {predictions.shape}")
    counts = labels >= 0
    labels, predictions = labels[counts].astype(np.int64), predictions[counts].astype(np.int64)
    if labels.size and (max(labels.max(), predictions.max()) >= classes or predictions.min() < 0):
        raise ValueError(f"labels and predictions must lie below {classes}")
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def areas(matrix: np.ndarray) -> np.ndarray:
    """Pixels of every class that are right, annotated and predicted, int64 [3, classes]: those of images add up."""
    return np.stack([np.diagonal(matrix), matrix.sum(1), matrix.sum(0)])


def class_iou(total: np.ndarray) -> np.ndarray:
    """Intersection over union of every class, float64 [classes], of `areas`; NaN for a class that nowhere is."""
    right, annotated, predicted = np.asarray(total, np.float64)
    union = annotated + predicted - right
    return np.divide(right, union, out=np.full_like(union, np.nan), where=union > 0)


def mean_iou(total: np.ndarray) -> float:
    """The mean over the classes that are, 0 to 1; NaN where no pixel counts."""
    found = class_iou(total)
    return float(found[~np.isnan(found)].mean()) if (~np.isnan(found)).any() else float("nan")


def pixel_accuracy(total: np.ndarray) -> float:
    """Share of the annotated pixels that are right, 0 to 1; NaN where there is none."""
    right, annotated = total[0].sum(), total[1].sum()
    return float(right / annotated) if annotated else float("nan")


def depth_errors(depth: np.ndarray, predictions: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """DEPTH_ERRORS of predictions [..., H, W] of one image, float64 [..., 3]; NaN where no pixel is valid.

    RMSE: root of the mean squared error, in the unit of depth. abs-rel: mean of |error| / depth. delta1: share of
    pixels whose prediction and depth differ by a factor below 1.25.
    """
    true, found = depth[valid].astype(np.float64), predictions[..., valid].astype(np.float64)
    if not true.size:
        return np.full((*predictions.shape[:-2], 3), np.nan)
    error = found - true
    ratio = np.maximum(found / true, true / np.maximum(found, 1e-12))
    root = np.sqrt(np.square(error).mean(-1))
    return np.stack([root, (abs(error) / true).mean(-1), (ratio < 1.25).mean(-1)], -1)

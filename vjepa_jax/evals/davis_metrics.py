"""The metrics of DAVIS 2017 (davis2017-evaluation, metrics.py and utils.py; arXiv 1704.00675), in NumPy."""

import numpy as np
from scipy import ndimage

TOLERANCE = 0.008  # of the image's diagonal: how far boundaries may lie apart


def region_similarity(annotation: np.ndarray, prediction: np.ndarray) -> float:
    """J: intersection over union of two masks [H, W]; 1 where both are empty.

    Raises:
      ValueError: masks of different shapes.
    """
    annotation, prediction = _masks(annotation, prediction)
    union = (annotation | prediction).sum()
    return float((annotation & prediction).sum() / union) if union else 1.0


def boundary_accuracy(annotation: np.ndarray, prediction: np.ndarray) -> float:
    """F: the harmonic mean of the shares of either boundary that lie within .008 of the diagonal of the other.

    Both boundaries empty: 1; one of them: 0.

    Raises:
      ValueError: masks of different shapes.
    """
    annotation, prediction = _masks(annotation, prediction)
    radius = np.ceil(TOLERANCE * np.hypot(*annotation.shape))
    true, found = boundary(annotation), boundary(prediction)
    if not true.any() or not found.any():
        return float(true.any() == found.any())
    rows, columns = (np.flatnonzero((true | found).any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # beyond it nothing counts
    true, found = true[box], found[box]
    precision = (found & _grown(true, radius)).sum() / found.sum()
    recall = (true & _grown(found, radius)).sum() / true.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels that differ from the one to the right, below, or across; the last row looks to the right
    only, the last column down only, the last corner not at all."""
    right, down, across = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1], down[:-1], across[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edges = (mask ^ right) | (mask ^ down) | (mask ^ across)
    edges[-1], edges[:, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ down[:, -1]
    edges[-1, -1] = False
    return edges


def statistics(values: np.ndarray) -> tuple[float, float, float]:
    """Of one object's values over its frames: mean, recall (share above .5), and decay (the first quarter's mean less
    the last one's; quarters share their end frames)."""
    ends = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(int)
    first, last = values[ends[0] : ends[1] + 1], values[ends[3] : ends[4] + 1]
    return float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean())


def _grown(edges: np.ndarray, radius: float) -> np.ndarray:
    """Pixels within a disc of `radius` around any of `edges`."""
    return ndimage.distance_transform_edt(~edges) <= radius


def _masks(annotation: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if annotation.shape != prediction.shape or annotation.ndim != 2:
        raise ValueError(f"masks of shapes {annotation.shape} and {prediction.shape} must both be [H, W]")
    return annotation.astype(bool), prediction.astype(bool)

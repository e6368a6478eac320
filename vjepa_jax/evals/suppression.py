"""Detections that say the same thing twice: non-maximum suppression of segments, hard and soft, and voting. NumPy.

Segments are rows (start, end); detections of one video and one class.
"""

import numpy as np

from vjepa_jax.evals.temporal_metrics import overlap


def nms(segments: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Rows that stay, by falling score: each takes away those that overlap it by more than `threshold`; int [k]."""
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        kept.append(order[0])
        order = order[1:][overlap(segments[order[:1]], segments[order[1:]])[0] <= threshold]
    return np.asarray(kept, np.int64)


def soft_nms(
    segments: np.ndarray, scores: np.ndarray, sigma: float = 0.5, least: float = 0.001, most: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Rows by falling score and their new scores: whatever is taken lowers the others by exp(-overlap^2 / sigma)
    (Gaussian soft-NMS, arXiv 1704.04503). Ends when the next score is below `least`, or with `most` rows.

    Returns:
      int [k], float [k].
    """
    left, current = np.arange(len(scores)), np.array(scores, np.float64)
    kept, values = [], []
    while len(left) and len(kept) < most:
        best = int(np.argmax(current))
        if current[best] < least:
            break
        kept.append(left[best])
        values.append(current[best])
        taken = segments[left[best]]
        left, current = np.delete(left, best), np.delete(current, best)
        current = current * np.exp(-(overlap(taken[None], segments[left])[0] ** 2) / sigma)
    return np.asarray(kept, np.int64), np.asarray(values, np.float64)


def vote(kept: np.ndarray, segments: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Each kept segment moved to the mean of all that overlap it by `threshold` or more, weighted by score times
    overlap (ActionFormer's voting); [k, 2]."""
    overlaps = overlap(kept, segments)
    weights = np.where(overlaps >= threshold, overlaps, 0.0) * scores
    total = weights.sum(1, keepdims=True)
    return np.where(total > 0, weights @ segments / np.maximum(total, 1e-12), kept)

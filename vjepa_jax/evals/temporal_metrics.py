"""Official metrics of things in time: event boundaries, actions and their segments, anticipated classes. In NumPy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BOUNDARY_THRESHOLDS = tuple(0.05 * (i + 1) for i in range(10))
OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)
AGREEMENT = 0.3  # raters of a video must agree as well, or it does not count


def boundary_f1(
    annotations: Mapping[str, Mapping[str, Any]], found: Mapping[str, Sequence[float]], threshold: float
) -> float:
    """F1 of event boundaries, summed over videos (Kinetics-GEBD, Challenge_eval_Code/eval.py; arXiv 2101.10511).

    Args:
      annotations: by video "f1_consis_avg", "video_duration" (seconds) and "substages_timestamps", a list of seconds
        for each rater. Videos whose raters agree less than .3 are left out.
      found: seconds of the boundaries of each video.
      threshold: how far a boundary may lie from an annotated one, as a share of the video's duration.

    A video is compared with each rater and scored with the one that gives the best F1; an annotated boundary takes the
    nearest one that is left. A video without any found boundary counts the first rater's as missed.
    """
    true = positives = detected = 0
    for name, video in annotations.items():
        if video["f1_consis_avg"] < AGREEMENT:
            continue
        times = np.array([t for t in found.get(name, ()) if 0 <= t <= video["video_duration"]])
        raters = video["substages_timestamps"]
        if not len(times):
            positives += len(raters[0])
            continue
        matched = [_matched(rater, times, threshold * video["video_duration"]) for rater in raters]
        scores = [_f1(hits, len(rater), len(times)) for hits, rater in zip(matched, raters, strict=True)]
        best = int(np.argmax(scores))
        true, positives, detected = true + matched[best], positives + len(raters[best]), detected + len(times)
    return _f1(true, positives, detected)


def _matched(annotated: Sequence[float], times: np.ndarray, tolerance: float) -> int:
    """Annotated times, one after the other, that find a time near enough among those not yet taken."""
    hits, left = 0, times
    for time in annotated:
        if not len(left):
            break
        nearest = int(np.argmin(abs(left - time)))
        if abs(left[nearest] - time) <= tolerance:
            hits, left = hits + 1, np.delete(left, nearest)
    return hits


def _f1(hits: int, positives: int, detected: int) -> float:
    recall = hits / positives if positives else 1.0
    precision = hits / detected if detected else 0.0
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


# --------------------------------------------------------------------------------------------------------- segments

# A segment is a row (start, end) in seconds. Truth and predictions: dicts by video of segments float [n, 2], labels
# int [n], and for predictions scores float [n].
Segments = Mapping[str, Mapping[str, np.ndarray]]


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Temporal intersection over union of segments [n, 2] and [m, 2]: [n, m]; 0 for empty ones."""
    shared = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
    shared = np.maximum(shared, 0.0)
    union = (a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def detection_map(truth: Segments, predictions: Segments, thresholds: Sequence[float] = OVERLAPS) -> np.ndarray:
    """Mean average precision of temporal action detection at each overlap, [len(thresholds)]: the matching of
    ActivityNet's evaluator (interpolated precision, mean over the classes of the truth).

    Predictions of a class are taken from the highest score on; each takes, of the true segments of its video that no
    other has taken, the one with the largest overlap, if that reaches the threshold.
    """
    classes = sorted({int(label) for video in truth.values() for label in video["labels"]})
    precisions = [_average_precision(truth, predictions, label, thresholds) for label in classes]
    return np.mean(precisions, axis=0) if precisions else np.zeros(len(thresholds))


def _average_precision(truth: Segments, predictions: Segments, label: int, thresholds: Sequence[float]) -> np.ndarray:
    true = {name: _of_class(video, label)[0] for name, video in truth.items()}
    count = sum(map(len, true.values()))
    rows = []
    for name, video in predictions.items():
        segments, scores = _of_class(video, label)
        rows += [(score, name, segment) for score, segment in zip(scores, segments, strict=True)]
    rows.sort(key=lambda row: -row[0])
    hits = np.zeros((len(thresholds), len(rows)), bool)
    taken = [{name: np.zeros(len(segments), bool) for name, segments in true.items()} for _ in thresholds]
    for at, (_, name, segment) in enumerate(rows):
        if name not in true or not len(true[name]):
            continue
        overlaps = overlap(segment[None], true[name])[0]
        for i, threshold in enumerate(thresholds):
            for best in np.argsort(-overlaps, kind="stable"):
                if overlaps[best] < threshold:
                    break
                if not taken[i][name][best]:
                    taken[i][name][best] = hits[i, at] = True
                    break
    return np.array([_area(row, count) for row in hits])


def _area(hits: np.ndarray, count: int) -> float:
    """The area under the interpolated curve of precision over recall."""
    true = np.cumsum(hits)
    recall = np.concatenate([[0.0], true / max(count, 1), [1.0]])
    precision = np.concatenate([[0.0], true / np.arange(1, len(hits) + 1), [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(((recall[steps] - recall[steps - 1]) * precision[steps]).sum())


def detection_recall(
    truth: Segments, predictions: Segments, thresholds: Sequence[float] = OVERLAPS, times: Sequence[int] = (1, 5)
) -> np.ndarray:
    """Recall at k times as many predictions as there are true segments, [len(thresholds), len(times)]: of each class
    and video the highest scores, mean over classes (ActionFormer, libs/utils/metrics.py)."""
    classes = sorted({int(label) for video in truth.values() for label in video["labels"]})
    recalls = []
    for label in classes:
        found, count = np.zeros((len(thresholds), len(times))), 0
        for name, video in truth.items():
            segments = _of_class(video, label)[0]
            count += len(segments)
            guesses, scores = _of_class(predictions.get(name), label)
            if not len(segments) or not len(guesses):
                continue
            overlaps = overlap(guesses[np.argsort(-scores, kind="stable")], segments)
            for j, k in enumerate(times):
                best = overlaps[: k * len(segments)].max(0)
                found[:, j] += [(best >= threshold).sum() for threshold in thresholds]
        recalls.append(found / count)
    return np.mean(recalls, axis=0)


def _of_class(video: Mapping[str, np.ndarray] | None, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments [n, 2] and scores [n] (zeros where there are none) of one class."""
    if video is None:
        return np.zeros((0, 2)), np.zeros(0)
    rows = np.asarray(video["labels"]) == label
    segments = np.asarray(video["segments"], np.float64).reshape(-1, 2)[rows]
    scores = np.asarray(video["scores"], np.float64)[rows] if "scores" in video else np.zeros(len(segments))
    return segments, scores


# ----------------------------------------------------------------------------------------------------- anticipation


def class_mean_recall(logits: np.ndarray, labels: np.ndarray, k: int = 5, valid: Sequence[int] | None = None) -> float:
    """Mean over classes of the share of their videos whose class is among the k highest logits, in %
    (EPIC-Kitchens-100 action anticipation, arXiv 2006.13256).

    Args:
      logits: [n, classes]; labels: int [n].
      valid: classes that may be predicted and that count; None: all. Of these, those that have a video.

    Raises:
      ValueError: no video of a class that counts.
    """
    logits, labels = np.array(logits, np.float64), np.asarray(labels)
    if valid is not None:
        hidden = np.ones(logits.shape[1], bool)
        hidden[list(valid)] = False
        logits[:, hidden] = -np.inf
    top = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    hits = (top == labels[:, None]).any(1)
    counted = sorted(set(labels.tolist()) & set(range(logits.shape[1]) if valid is None else map(int, valid)))
    if not counted:
        raise ValueError("there is no video of a class that counts")
    return 100.0 * float(np.mean([hits[labels == label].mean() for label in counted]))

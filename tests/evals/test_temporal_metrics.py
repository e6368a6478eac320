"""Metrics of things in time: equal to the official evaluators, and by hand."""

import json
import pathlib

import numpy as np
import pytest

from vjepa_jax.evals import temporal_metrics as metrics

KNOWN = json.loads((pathlib.Path(__file__).parent.parent / "fixtures/temporal_metrics.json").read_text())


def test_boundaries_are_scored_as_officially():
    known = KNOWN["gebd"]
    assert len(known["f1"]) == len(metrics.BOUNDARY_THRESHOLDS)
    for threshold, f1 in known["f1"].items():
        got = metrics.boundary_f1(known["annotations"], known["detections"], float(threshold))
        assert got == pytest.approx(f1, abs=1e-9)


def test_boundaries_by_hand():
    video = {"f1_consis_avg": 0.9, "video_duration": 10.0, "substages_timestamps": [[2.0, 5.0], [2.0, 5.0, 8.0]]}
    videos = {"a": video}
    assert metrics.boundary_f1(videos, {"a": [2.1, 5.4, 8.5]}, 0.05) == 1.0  # the second rater's
    assert metrics.boundary_f1(videos, {"a": [2.1, 5.6]}, 0.05) == pytest.approx(0.5)  # one of two, either way
    assert metrics.boundary_f1(videos, {"a": [2.1, 2.2]}, 0.05) == pytest.approx(0.5)  # taken once
    assert metrics.boundary_f1(videos, {"a": [-1.0, 12.0]}, 0.05) == metrics.boundary_f1(videos, {}, 0.05) == 0.0
    disputed = {"b": video | {"f1_consis_avg": 0.2}}
    assert metrics.boundary_f1(videos | disputed, {"a": [2.0, 5.0]}, 0.05) == 1.0


def segments(rows, scored=False):
    """Rows of (video, start, end, label[, score]) by video."""
    videos = {}
    for name, *row in rows:
        videos.setdefault(name, []).append(row)
    columns = lambda rows: {
        "segments": np.array([row[:2] for row in rows]),
        "labels": np.array([row[2] for row in rows]),
        **({"scores": np.array([row[3] for row in rows])} if scored else {}),
    }
    return {name: columns(rows) for name, rows in videos.items()}


def test_detections_are_scored_as_officially():
    known = KNOWN["action_localization"]
    truth = segments(
        [(name, *one["segment"], one["label_id"]) for name, ones in known["ground_truth"].items() for one in ones]
    )
    p = known["predictions"]
    columns = zip(p["video-id"], p["t-start"], p["t-end"], p["label"], p["score"], strict=True)
    found = segments(columns, scored=True)
    got = metrics.detection_map(truth, found, known["tiou"])
    np.testing.assert_allclose(got, known["mAP"], atol=1e-9)
    assert got.mean() == pytest.approx(known["average_mAP"], abs=1e-9)
    recall = metrics.detection_recall(truth, found, known["tiou"])
    np.testing.assert_allclose(recall, known["recall_at_1x_5x"], atol=1e-9)


def test_detections_by_hand():
    """Two true segments; the three predictions are right, a repeat, and wrong, by falling score."""
    truth = segments([("a", 0.0, 10.0, 0), ("b", 0.0, 10.0, 0)])
    found = segments([("a", 0, 10, 0, 0.9), ("a", 0, 9, 0, 0.8), ("b", 8, 20, 0, 0.7)], scored=True)
    np.testing.assert_allclose(metrics.detection_map(truth, found, (0.5,)), [0.5])  # half of the recall at precision 1
    np.testing.assert_allclose(metrics.detection_recall(truth, found, (0.5,)), [[0.5, 0.5]])
    assert metrics.overlap(np.array([[0.0, 10.0]]), np.array([[5.0, 15.0], [3.0, 3.0]])).tolist() == [[1 / 3, 0.0]]
    other = segments([("c", 0, 10, 0, 0.9)], scored=True)
    assert metrics.detection_map(truth, other, (0.5,))[0] == metrics.detection_map(truth, {}, (0.5,))[0] == 0.0


def test_recall_of_classes_is_the_official_one():
    known = KNOWN["class_mean_recall_at_5"]
    logits, labels = np.array(known["logits"]), np.array(known["labels"])
    assert metrics.class_mean_recall(logits, labels) == pytest.approx(known["recall"], abs=1e-5)
    valid = known["valid_classes"]
    assert metrics.class_mean_recall(logits, labels, valid=valid) == pytest.approx(known["recall_valid"], abs=1e-5)


def test_recall_of_classes_by_hand():
    """Class 0 has three videos and is always found, class 1 has one and is not: 50 %, whatever the numbers."""
    logits = np.tile([3.0, 0.0, 2.0, 1.0], (4, 1))
    labels = np.array([0, 0, 0, 1])
    assert metrics.class_mean_recall(logits, labels, k=1) == 50.0
    assert metrics.class_mean_recall(logits, labels, k=4) == 100.0
    assert metrics.class_mean_recall(logits, labels, k=1, valid=[1, 3]) == 0.0
    with pytest.raises(ValueError, match="no video of a class that counts"):
        metrics.class_mean_recall(logits, labels, valid=[2])

"""Metrics of dense prediction on cases worked by hand."""

import numpy as np
import pytest

from vjepa_jax.evals import dense_metrics as metrics


def test_counts_and_iou_by_hand():
    labels = np.array([[0, 0, 0, 1], [1, 1, -1, -1]])
    found = np.array([[0, 0, 1, 1], [1, 2, 0, 3]])
    matrix = metrics.confusion(labels, found, 5)
    assert matrix.dtype == np.int64 and matrix.sum() == 6  # two pixels count nowhere
    assert matrix[0, 0] == 2 and matrix[0, 1] == 1 and matrix[1, 1] == 2 and matrix[1, 2] == 1
    total = metrics.areas(matrix)
    np.testing.assert_array_equal(total, [[2, 2, 0, 0, 0], [3, 3, 0, 0, 0], [2, 3, 1, 0, 0]])
    # class 0: 2 of 3, class 1: 2 of 4, class 2 is predicted and never there, 3 and 4 are nowhere
    np.testing.assert_allclose(metrics.class_iou(total), [2 / 3, 1 / 2, 0, np.nan, np.nan])
    assert metrics.mean_iou(total) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert metrics.pixel_accuracy(total) == pytest.approx(4 / 6)


def test_counts_of_pictures_add_up_to_one_matrix():
    rng = np.random.default_rng(0)
    labels, found = rng.integers(-1, 4, (5, 6, 7)), rng.integers(0, 4, (5, 6, 7))
    each = sum(metrics.areas(metrics.confusion(one, other, 4)) for one, other in zip(labels, found, strict=True))
    np.testing.assert_array_equal(each, metrics.areas(metrics.confusion(labels, found, 4)))
    ious = [
        ((labels == c) & (found == c)).sum() / (((labels == c) | (found == c)) & (labels >= 0)).sum() for c in range(4)
    ]
    assert metrics.mean_iou(each) == pytest.approx(np.mean(ious))


def test_right_wrong_and_one_class_everywhere():
    labels = np.repeat(np.arange(4), 25)
    score = lambda found: metrics.mean_iou(metrics.areas(metrics.confusion(labels, found, 4)))
    assert score(labels) == 1.0 and score((labels + 1) % 4) == 0.0
    assert score(np.zeros_like(labels)) == pytest.approx(0.25 / 4)  # 25 of 100 pixels, in one class of four
    nothing = metrics.areas(metrics.confusion(-np.ones(3, int), np.zeros(3, int), 4))
    assert np.isnan(metrics.mean_iou(nothing)) and np.isnan(metrics.pixel_accuracy(nothing))


def test_counts_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"labels have shape \(2,\), predictions \(3,\)"):
        metrics.confusion(np.zeros(2, int), np.zeros(3, int), 2)
    with pytest.raises(ValueError, match="must lie below 2"):
        metrics.confusion(np.array([2]), np.array([0]), 2)


def test_errors_of_depth_by_hand():
    depth = np.array([[2.0, 4.0], [5.0, 0.0]])
    found = np.array([[[2.0, 4.0], [5.0, 9.0]], [[1.0, 5.0], [6.0, 9.0]]])
    right, off = metrics.depth_errors(depth, found, depth > 0)
    np.testing.assert_allclose(right, [0.0, 0.0, 1.0])
    # errors -1, 1, 1; ratios 2, 1.25 (not below), 1.2
    np.testing.assert_allclose(off, [1.0, (1 / 2 + 1 / 4 + 1 / 5) / 3, 1 / 3])
    assert np.isnan(metrics.depth_errors(depth, found, np.zeros((2, 2), bool))).all()

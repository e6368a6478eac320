"""Boxes that move over a clip, and boxes of several views, against the published formulas."""

from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.augment import center_box, fitting_box, moving_boxes, random_box, view_boxes


def test_moving_boxes_are_the_published_ones():
    """int() of linspace between first and last box, one number at a time; here in fractions."""
    rng = np.random.default_rng(0)
    for count in (2, 3, 16, 31):
        first, last = (random_box(90, 120, (0.1, 1.0), (0.75, 1.35), rng) for _ in range(2))
        boxes = moving_boxes(first, last, count)
        assert boxes[0] == first and boxes[-1] == last and len(boxes) == count
        for i, box in enumerate(boxes):
            assert list(box) == [int(a + Fraction(i, count - 1) * (b - a)) for a, b in zip(first, last, strict=True)]
            assert box[0] + box[2] <= 90 and box[1] + box[3] <= 120 and min(box[2:]) > 0


def test_a_single_frame_has_the_first_box():
    assert moving_boxes((1, 2, 3, 4), (5, 6, 7, 8), 1) == [(1, 2, 3, 4)]


def test_no_box_fits():
    rng = np.random.default_rng(0)
    assert fitting_box(10, 1000, (0.9, 1.0), (0.75, 1.35), 100, rng) is None


@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (720, 1280), (101, 333), (64, 64)])
@pytest.mark.parametrize("num_views", [2, 3, 5])
def test_views_are_the_published_ones(shape, num_views):
    """Short side to 96, then crops (long - 96) // (views - 1) apart: the same places to a pixel of that size."""
    scale = 96 / min(shape)
    longer = int(96 * max(shape) / min(shape))
    step = (longer - 96) // (num_views - 1)
    boxes = view_boxes(*shape, (96, 96), num_views)
    for view, (top, left, height, width) in enumerate(boxes):
        assert (height, width) == (min(shape), min(shape))
        along, across = (top, left) if shape[0] > shape[1] else (left, top)
        assert across == 0 and abs(along * scale - view * step) <= num_views
    assert boxes[0][:2] == (0, 0)
    assert boxes[-1][0] + boxes[-1][2] == shape[0] and boxes[-1][1] + boxes[-1][3] == shape[1]
    if num_views == 3:
        assert boxes[1] == center_box(*shape, (96, 96))


def test_one_view_is_the_centre_and_oblong_views_spread_where_there_is_room():
    assert view_boxes(240, 320, (64, 64), 1) == [center_box(240, 320, (64, 64))]
    assert view_boxes(100, 100, (32, 64), 3) == [(0, 0, 50, 100), (25, 0, 50, 100), (50, 0, 50, 100)]

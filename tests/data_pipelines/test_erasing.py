"""Random erasing: boxes and noise as timm draws them, up to the ends of the pixel range."""

import numpy as np
import pytest

from data_pipelines.erasing import erase
from vjepa_jax.ops import patches


def erased(seed, shape=(3, 40, 60)):
    """A clip with a box of noise, and where it differs from the clip before, bool[T, H, W]."""
    clip = np.full((*shape, 3), (1, 254, 3), np.uint8)
    before = clip.copy()
    erase(clip, np.random.default_rng(seed))
    return clip, (clip != before).any(-1)


def box_of(changed):
    """top, left, height, width of what changed in any frame."""
    rows, columns = np.flatnonzero(changed.any((0, 2))), np.flatnonzero(changed.any((0, 1)))
    return rows[0], columns[0], rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]


def test_one_box_in_all_frames_with_new_noise_in_each():
    clip, changed = erased(0)
    top, left, height, width = box_of(changed)
    inside = np.zeros_like(changed)
    inside[:, top : top + height, left : left + width] = True
    assert not (changed & ~inside).any() and changed[inside].mean() > 0.99
    noise = clip[inside].reshape(3, -1)
    assert (noise[0] != noise[1]).mean() > 0.9


def test_areas_and_shapes():
    boxes = np.array([box_of(erased(seed, (1, 60, 80))[1]) for seed in range(600)])
    top, left, height, width = boxes.T
    share, ratio = height * width / (60 * 80), height / width
    assert share.min() > 0.015 and share.max() < 0.35
    assert abs(share.mean() - (0.02 + 1 / 3) / 2) < 0.015  # uniform
    assert ratio.min() > 0.25 and ratio.max() < 4.0 and abs(np.log(ratio).mean()) < 0.1
    for start, free in ((left, 80 - width), (top, 60 - height)):
        assert abs((start / np.maximum(free, 1))[free > 0].mean() - 0.5) < 0.05


def test_noise_is_normal_once_normalised_on_the_device():
    """N(0, 1), with the tails clipped where pixels end: its quantiles, and the share of clipped values."""
    clips = [erased(seed, (4, 96, 96)) for seed in range(4)]
    noise = np.concatenate([clip[changed] for clip, changed in clips])
    values = np.asarray(patches.normalize(noise))
    for colour in range(3):
        quantiles = np.quantile(values[:, colour], [0.1587, 0.5, 0.8413])  # of N(0, 1): -1, 0, 1
        np.testing.assert_allclose(quantiles, [-1, 0, 1], atol=0.03)
    np.testing.assert_allclose(values.std(0), [0.98, 0.98, 0.96], atol=0.02)
    clipped = ((noise == 0) | (noise == 255)).mean()
    assert 0.02 < clipped < 0.05


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 1, 50), (2, 3, 3)])
def test_frames_too_small_for_a_box_stay(shape):
    clip, changed = erased(0, shape)
    assert clip.shape == (*shape, 3) and changed.shape == shape


def test_the_same_generator_erases_the_same():
    np.testing.assert_array_equal(erased(3)[0], erased(3)[0])
    assert (erased(3)[0] != erased(4)[0]).any()

"""Crops: drawn as torchvision draws them, the same for all frames, and resized without a shift."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.augment import center_box, crop_clip, random_box, resize

SCALE, ASPECT = (0.3, 1.0), (0.75, 1.35)


def gradient(height, width):
    """Channel 0 grows to the right, channel 1 downwards, over the whole range."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return image


def test_random_boxes_have_the_asked_area_and_shape():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(240, 320, SCALE, ASPECT, rng) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 240).all() and (left + width <= 320).all()
    share, aspect = height * width / (240 * 320), width / height
    assert share.min() > 0.29 and share.max() <= 1.0
    assert aspect.min() > 0.74 and aspect.max() < 1.36
    small = share < 0.6  # larger boxes are often refused, as they do not fit
    assert abs(np.log(aspect[small]).mean() - np.log([0.75, 1.35]).mean()) < 0.02
    assert np.histogram(share[small], 3, (0.3, 0.6))[0].min() > 0.8 * small.sum() / 3
    # Places are uniform: the mean of (left / free) is a half.
    assert abs((left / np.maximum(320 - width, 1))[small].mean() - 0.5) < 0.02


def test_random_boxes_follow_torchvisions_draws():
    """Area, then log aspect, then place: written out from RandomResizedCrop.get_params, with our generator."""
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        while True:
            area = 90 * 120 * other.uniform(*SCALE)
            aspect = np.exp(other.uniform(*np.log(ASPECT)))
            width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if width <= 120 and height <= 90:
                break
        expected = (int(other.integers(90 - height + 1)), int(other.integers(120 - width + 1)), height, width)
        assert random_box(90, 120, SCALE, ASPECT, rng) == expected


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 1000, (0, 493, 10, 14)), (1000, 10, (493, 0, 13, 10)), (1, 1, (0, 0, 1, 1))],
)
def test_boxes_that_never_fit_become_centred(height, width, box):
    assert random_box(height, width, (0.9, 1.0), ASPECT, np.random.default_rng(0)) == box


def test_center_box_is_resize_then_crop():
    assert center_box(240, 320, (64, 64)) == (0, 40, 240, 240)
    assert center_box(320, 240, (64, 64)) == (40, 0, 240, 240)
    assert center_box(240, 320, (48, 64)) == (0, 0, 240, 320)
    assert center_box(100, 100, (32, 64)) == (25, 0, 50, 100)
    assert center_box(1, 50, (64, 64)) == (0, 24, 1, 1)


def test_one_box_for_all_frames():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 60, 80, 3), dtype=np.uint8)
    calls = []

    def choose(height, width):
        calls.append((height, width))
        return 10, 20, 32, 48

    clip = crop_clip(iter(frames), choose, (32, 48))
    assert calls == [(60, 80)]
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, frames[:, 10:42, 20:68])
    flipped = crop_clip(iter(frames), choose, (32, 48), flip=True)
    np.testing.assert_array_equal(flipped, clip[:, :, ::-1])
    assert flipped.flags.c_contiguous


def test_repeated_frames_are_resized_once():
    frame = gradient(40, 40)
    clip = crop_clip([frame, frame, frame], lambda h, w: (0, 0, h, w), (16, 16))
    assert clip.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(clip[0], clip[2])


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (64, 96), (130, 250)])
def test_resize_keeps_places(size):
    """A gradient stays a gradient, with pixel centres where they belong (align_corners=False)."""
    image = gradient(100, 100)
    resized = resize(image, size).astype(float)
    across = (np.arange(size[1]) + 0.5) * 100 / size[1] - 0.5
    down = (np.arange(size[0]) + 0.5) * 100 / size[0] - 0.5
    inside = slice(2, -2)
    assert np.abs(resized[:, inside, 0] - across[inside] * 255 / 99).max() < 2
    assert np.abs(resized[inside, :, 1] - (down * 255 / 99)[inside, None]).max() < 2
    assert np.abs(resized[..., 2]).max() <= 1


def test_shrinking_averages():
    """Antialiased: single-pixel stripes become grey, instead of black or white by chance."""
    image = np.zeros((96, 96, 3), np.uint8)
    image[:, ::2] = 255
    assert np.abs(resize(image, (16, 16))[:, 1:-1].astype(int) - 127).max() < 3


def test_colours_stay_apart():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = (255, 0, 0)
    image[:, 32:] = (0, 0, 255)
    resized = resize(image, (32, 32)).astype(int)
    assert np.abs(resized[:, :14] - (255, 0, 0)).max() <= 1
    assert np.abs(resized[:, 18:] - (0, 0, 255)).max() <= 1


def test_resize_agrees_with_pillow():
    frame = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    for size in ((64, 64), (224, 224)):
        expected = np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(resize(frame, size) - expected).mean() < 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 300)])
def test_tiny_images(shape):
    assert resize(np.full((*shape, 3), 77, np.uint8), (32, 32)).tolist() == np.full((32, 32, 3), 77).tolist()

"""Boxes of frames: against a float reference made from the planes, for every layout of pixels and every orientation."""

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines.augment import center_box
from data_pipelines.decode import DecodeError, VideoReader
from data_pipelines.frame_crops import FrameCropper, resize_nearest_four

from .videos import HEIGHT, WIDTH, read_numbers, write_video

HIGH, WIDE = 120, 160
KR_KB = {5: (0.299, 0.114), 1: (0.2126, 0.0722)}  # ITU-R BT.601 and BT.709, by FFmpeg's number
EDGE_CASES = 20  # of 21: one is empty


def natural_image(rng):
    """float32[HIGH, WIDE, 3]: smooth shapes and mild texture; no colour is so strong that it would be clipped."""
    coarse = rng.uniform(60, 190, (HIGH // 8, WIDE // 8, 3)).astype(np.float32)
    smooth = [Image.fromarray(coarse[..., c]).resize((WIDE, HIGH), Image.Resampling.BICUBIC) for c in range(3)]
    return np.stack([np.asarray(c) for c in smooth], -1) + rng.normal(0, 4, (HIGH, WIDE, 1)).astype(np.float32)


def yuv_frame(rng, pixels="yuv420p", colorspace=5, color_range=1):
    """A frame of that layout, and its planes: float32[h, w] each, in 8-bit units."""
    rgb = av.VideoFrame.from_ndarray(np.clip(natural_image(rng), 0, 255).astype(np.uint8), format="rgb24")
    names = {5: "ITU601", 1: "ITU709"}
    frame = rgb.reformat(format=pixels, dst_colorspace=names[colorspace], dst_color_range=color_range)
    frame.colorspace, frame.color_range = colorspace, color_range
    bits = frame.format.components[0].bits
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)
        planes.append(rows[:, : plane.width].astype(np.float32) / 2 ** (bits - 8))
    return frame, planes


def upsample(plane, size, places):
    """Linear interpolation of chroma at luma's places. places: of the first sample, in luma pixels, down and across."""
    for axis, (new, place) in enumerate(zip(size, places, strict=True)):
        old = plane.shape[axis]
        at = np.clip((np.arange(new) - place) * old / new, 0, old - 1)
        first = np.floor(at).astype(int)
        share = np.expand_dims(at - first, 1 - axis).astype(np.float32)
        plane = plane.take(first, axis) * (1 - share) + plane.take(np.minimum(first + 1, old - 1), axis) * share
    return plane


def to_rgb(planes, colorspace, color_range):
    """float32[H, W, 3] by the formulas of ITU-R BT.601 / 709; chroma level with even columns, between rows."""
    luma = planes[0]
    subsampled = planes[1].shape[0] < luma.shape[0]
    u, v = (upsample(c, luma.shape, (0.5 if subsampled else 0, 0)) - 128 for c in planes[1:3])
    if color_range == 1:
        luma, u, v = (luma - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    kr, kb = KR_KB[colorspace]
    red, blue = luma + 2 * (1 - kr) * v, luma + 2 * (1 - kb) * u
    return np.clip(np.stack([red, (luma - kr * red - kb * blue) / (1 - kr - kb), blue], -1), 0, 255)


def resized(image, box, size):
    """Pillow's antialiased bilinear resize, in float32."""
    top, left, height, width = box
    part = np.ascontiguousarray(image[top : top + height, left : left + width])
    channels = [Image.fromarray(part[..., c]).resize(size[::-1], Image.Resampling.BILINEAR) for c in range(3)]
    return np.stack([np.asarray(c) for c in channels], -1)


def widened(box, planes):
    """The box on the chroma grid, as numbers of pixels."""
    ends = [(box[i], box[i] + box[i + 2], planes[0].shape[i] // planes[1].shape[i]) for i in (0, 1)]
    starts, stops = zip(*((a - a % grid, b + -b % grid) for a, b, grid in ends), strict=True)
    return (*starts, stops[0] - starts[0], stops[1] - starts[1])


@pytest.mark.parametrize(
    ("pixels", "colorspace", "color_range"),
    [("yuv420p", 5, 1), ("yuv420p", 1, 1), ("yuv420p", 1, 2), ("yuv422p", 5, 1), ("yuv444p", 1, 1),
     ("yuv420p10le", 1, 1), ("yuv411p", 5, 1)],
)  # fmt: skip
def test_pixels_agree_with_a_float_reference(pixels, colorspace, color_range):
    frame, planes = yuv_frame(np.random.default_rng(0), pixels, colorspace, color_range)
    image = to_rgb(planes, colorspace, color_range)
    for box in ((0, 0, HIGH, WIDE), (20, 30, 80, 100), (21, 31, 79, 102), (HIGH - 31, WIDE - 41, 31, 41)):
        for size in ((64, 64), (160, 150)):
            error = np.abs(FrameCropper(size)(frame, box) - resized(image, widened(box, planes), size))
            assert error.mean() < 0.8 and np.quantile(error[8:-8, 8:-8], 0.999) < 6, (box, size)


def test_without_antialiasing_four_pixels_count():
    """Stripes stay stripes; and numbers of the formula, written out for one pixel."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    small = resize_nearest_four(image, (8, 9))
    down, across = 3.5 * 50 / 8 - 0.5, 5.5 * 70 / 9 - 0.5
    (y, p), (x, q) = divmod(down, 1), divmod(across, 1)
    four = image[int(y) : int(y) + 2, int(x) : int(x) + 2].astype(float)
    expected = np.einsum("i,j,ijc", [1 - p, p], [1 - q, q], four)
    np.testing.assert_allclose(small[3, 5], expected, atol=0.51)
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::8] = 255
    frame = av.VideoFrame.from_ndarray(stripes, format="rgb24")
    box = (0, 0, 96, 96)
    assert FrameCropper((12, 12), antialias=False)(frame, box).max() == 0  # no stripe is among the four
    assert FrameCropper((12, 12))(frame, box)[:, 1:-1].min() > 20
    # A box that starts between two chroma samples: as if it were cut from the whole frame in RGB.
    frame, planes = yuv_frame(rng)
    box = (11, 21, 91, 110)
    whole = FrameCropper((HIGH, WIDE))(frame, (0, 0, HIGH, WIDE))
    top, left, height, width = widened(box, planes)
    expected = resize_nearest_four(whole[top : top + height, left : left + width], (40, 50))
    got = FrameCropper((40, 50), antialias=False)(frame, box)
    assert np.abs(got[1:-1, 1:-1].astype(int) - expected[1:-1, 1:-1]).max() <= 1
    # Where the box grows, there is nothing to average: the two are one.
    large, part = FrameCropper((120, 200), antialias=False), (10, 10, 60, 80)
    np.testing.assert_array_equal(large(frame, part), FrameCropper((120, 200))(frame, part))


@pytest.mark.parametrize(
    "rotation", [{"degrees": 90}, {"degrees": -90}, {"degrees": 180}, {"degrees": 0, "hflip": True},
                 {"degrees": 90, "hflip": True}, {"degrees": 0, "vflip": True}],
)  # fmt: skip
@pytest.mark.parametrize("flip", [False, True])
def test_turned_videos(tmp_path, rotation, flip):
    """The box is one of the displayed picture: equal to cutting it from whole displayed frames."""
    with VideoReader(write_video(tmp_path / "turned.mp4", 12, rotation=rotation)) as reader:
        whole = reader.read([3, 8])
        box = (6, 4, whole.shape[1] - 20, whole.shape[2] - 12)
        clip = reader.crops([3, 8], lambda h, w: box, (24, 32), flip=flip)
    for frame, shown in zip(clip, whole.astype(np.float32), strict=True):
        expected = resized(shown, box, (24, 32))
        assert np.abs(frame - (expected[:, ::-1] if flip else expected)).mean() < 4  # chroma as blocks in `read`


def test_any_order_repeats_and_a_box_for_each(tmp_path):
    path = write_video(tmp_path / "plain.mp4")
    indices, calls = [40, 3, 3, 17, 40], []
    boxes = [(0, 0, HEIGHT, WIDTH), (0, 0, HEIGHT, WIDTH), (8, 0, 40, 64), (0, 0, HEIGHT, WIDTH), (8, 0, 40, 64)]

    def choose(height, width):
        calls.append((height, width))
        return np.array(boxes)

    with VideoReader(path) as reader:
        clip = reader.crops(indices, choose, (HEIGHT, WIDTH))
        assert calls == [(HEIGHT, WIDTH)]
        assert clip.shape == (5, HEIGHT, WIDTH, 3) and clip.dtype == np.uint8
        assert read_numbers(clip[[0, 1, 3]]).tolist() == [40, 3, 17]
        for i, (index, box) in enumerate(zip(indices, boxes, strict=True)):
            (alone,) = reader.crops([index], lambda h, w, box=box: box, (HEIGHT, WIDTH))
            np.testing.assert_array_equal(clip[i], alone)
        with pytest.raises(DecodeError, match="frame 60 does not exist"):
            reader.crops([1, 60], choose, (8, 8))


def test_a_mistake_in_the_choice_is_no_decode_error(tmp_path):
    with VideoReader(write_video(tmp_path / "plain.mp4", 4)) as reader, pytest.raises(ZeroDivisionError):
        reader.crops([0], lambda h, w: 1 // 0, (8, 8))


def test_a_stream_that_changes_its_size(tmp_path):
    """Raw streams can be joined: the second half has twice the size, and the same part of it is cut."""
    parts = [write_video(tmp_path / f"{n}.h264", 8, format="h264", height=n * HEIGHT, width=n * WIDTH) for n in (1, 2)]
    (tmp_path / "joined.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoReader(tmp_path / "joined.h264") as reader:
        clip = reader.crops([2, 12], lambda h, w: (1, 3, 32, 48), (32, 48)).astype(int)
        assert reader.num_frames == 16
    with av.open(str(tmp_path / "joined.h264")) as container:
        second = [f for f in container.decode(video=0)][12]
    assert (second.width, second.height) == (2 * WIDTH, 2 * HEIGHT)
    np.testing.assert_array_equal(clip[1], FrameCropper((32, 48))(second, (2, 6, 64, 96)))


def test_edge_cases_agree_with_whole_frames(shared_data):
    """All layouts of pixels of the real files that break decoders: close to cutting whole frames in RGB."""
    checked = 0
    for path in sorted((shared_data / "edge_cases").iterdir()):
        try:
            with VideoReader(path) as reader:
                (whole,) = reader.read([min(3, reader.num_frames - 1)]).astype(np.float32)
                box = center_box(*whole.shape[:2], (32, 32))
                (crop,) = reader.crops([min(3, reader.num_frames - 1)], lambda h, w, box=box: box, (32, 32))
        except DecodeError:
            continue
        checked += 1
        assert np.abs(crop - resized(whole, box, (32, 32))).mean() < 2, path.name
    assert checked == EDGE_CASES

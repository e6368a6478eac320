"""Crops of clips, in uint8 from the decoder to the device: one box and one flip for all frames of a clip.

Resizing is bilinear and antialiased: where it shrinks, it averages over all pixels, like Pillow and unlike the
transforms of V-JEPA (torch `interpolate` without antialias). It runs in libswscale, which PyAV brings along. Measured,
processor time on one core for a crop of 450 x 320 to 256 x 256: libswscale 1.4 ms, Pillow 1.9 ms, numpy (not
antialiased) 4.0 ms. The flags below keep colour at full resolution: on noise, 0.2 of 255 from Pillow on average.
"""

import math
from collections.abc import Callable, Iterable

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

_TRIES = 10
_BILINEAR = (
    Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
)  # fmt: skip


def random_box(
    height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A box of random area and shape, as torchvision's RandomResizedCrop and V-JEPA draw it.

    Up to 10 tries: area uniform in `scale` (shares of the frame), width / height log-uniform in `aspect`, place
    uniform. If none fits, the largest centred box whose width / height lies in `aspect`.
    """
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    return _centred(height, width, min(max(width / height, aspect[0]), aspect[1]))


def center_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """The largest centred box of the shape of `size` = (height, width).

    Resized to `size`, it is the same as resizing the short side and then cropping the centre.
    """
    return _centred(height, width, size[1] / size[0])


def _centred(height: int, width: int, ratio: float) -> Box:
    box_height = max(1, min(height, round(width / ratio)))
    box_width = max(1, min(width, round(height * ratio)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def crop_clip(
    frames: Iterable[np.ndarray], choose: Callable[[int, int], Box], size: tuple[int, int], flip: bool = False
) -> np.ndarray:
    """Cuts the same box from all frames and resizes it.

    Args:
      frames: uint8[H, W, 3] each, all of one size. Consumed one by one, so that large frames do not pile up.
      choose: (H, W) -> box; called once.
      size: height and width of the result.
      flip: mirror left and right.

    Returns:
      uint8[T, *size, 3].
    """
    reformatter = VideoReformatter()
    box, clip, before = None, [], None
    for frame in frames:
        if frame is before:  # a repeated frame of a short or slow video
            clip.append(clip[-1])
            continue
        before = frame
        box = box or choose(*frame.shape[:2])
        top, left, height, width = box
        clip.append(resize(frame[top : top + height, left : left + width], size, reformatter))
    video = np.stack(clip)
    return np.ascontiguousarray(video[:, :, ::-1]) if flip else video


def resize(image: np.ndarray, size: tuple[int, int], reformatter: VideoReformatter | None = None) -> np.ndarray:
    """uint8[H, W, 3] to uint8[*size, 3], bilinear, antialiased. Pass a reformatter to reuse its tables."""
    if image.shape[:2] == tuple(size):
        return image
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    reformatter = reformatter or VideoReformatter()
    scaled = reformatter.reformat(
        frame, width=size[1], height=size[0], format="rgb24", interpolation=_BILINEAR, threads=1
    )
    return scaled.to_ndarray()

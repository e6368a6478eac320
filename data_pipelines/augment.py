"""Crops of clips, in uint8 from the decoder to the device: one box (or a moving one) and one flip for all frames.

Resizing is bilinear and antialiased unless asked otherwise: where it shrinks, it averages over all pixels, like Pillow
and unlike the transforms of V-JEPA (torch `interpolate` without antialias). See frame_crops.py.
"""

import math
from collections.abc import Callable, Iterable

import av
import numpy as np

from data_pipelines.frame_crops import Box, FrameCropper

Boxes = Box | list[Box]  # one for all frames, or one for each

_TRIES = 10


def random_box(
    height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A box of random area and shape, as torchvision's RandomResizedCrop and V-JEPA draw it.

    Up to 10 tries: area uniform in `scale` (shares of the frame), width / height log-uniform in `aspect`, place
    uniform. If none fits, the largest centred box whose width / height lies in `aspect`.
    """
    box = fitting_box(height, width, scale, aspect, _TRIES, rng)
    return box or _centred(height, width, min(max(width / height, aspect[0]), aspect[1]))


def fitting_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    tries: int,
    rng: np.random.Generator,
) -> Box | None:
    """The first of up to `tries` random boxes that fits into the frame, placed at random; None if none does."""
    for _ in range(tries):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    return None


def moving_boxes(first: Box, last: Box, count: int) -> list[Box]:
    """`count` boxes on a straight way from `first` to `last`, rounded down: the motion shift of V-JEPA
    (facebookresearch/vjepa2, src/datasets/utils/video/transforms.py). They fit wherever the two fit."""
    steps = max(count - 1, 1)
    return [tuple((a * (steps - i) + b * i) // steps for a, b in zip(first, last, strict=True)) for i in range(count)]


def center_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """The largest centred box of the shape of `size` = (height, width).

    Resized to `size`, it is the same as resizing the short side and then cropping the centre.
    """
    return _centred(height, width, size[1] / size[0])


def view_boxes(height: int, width: int, size: tuple[int, int], num_views: int) -> list[Box]:
    """`num_views` boxes as large as the centred one, spread evenly over the longer side: left, centre and right, or
    top, centre and bottom (facebookresearch/vjepa2, evals/video_classification_frozen/utils.py). One is the centred."""
    centred = center_box(height, width, size)
    if num_views == 1:
        return [centred]
    free_y, free_x, steps = height - centred[2], width - centred[3], num_views - 1
    return [(free_y * view // steps, free_x * view // steps, *centred[2:]) for view in range(num_views)]


def _centred(height: int, width: int, ratio: float) -> Box:
    box_height = max(1, min(height, round(width / ratio)))
    box_width = max(1, min(width, round(height * ratio)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def crop_clip(
    frames: Iterable[np.ndarray],
    choose: Callable[[int, int], Boxes],
    size: tuple[int, int],
    flip: bool = False,
    antialias: bool = True,
) -> np.ndarray:
    """Cuts a box from all frames, or one from each, and resizes it. From a file, VideoReader.crops does it faster.

    Args:
      frames: uint8[H, W, 3] each, all of one size. Consumed one by one, so that large frames do not pile up.
      choose: (H, W) -> box, or a list of boxes, one for each frame; called once.
      size: height and width of the result.
      flip, antialias: see frame_crops.FrameCropper.

    Returns:
      uint8[T, *size, 3].
    """
    cropper = FrameCropper(size, flip, antialias)
    boxes, box, clip, before = None, None, [], None
    for frame in frames:
        boxes = boxes or choose(*frame.shape[:2])
        last, box = box, boxes[len(clip)] if isinstance(boxes, list) else boxes
        if frame is before and box == last:  # a repeated frame of a short or slow video
            clip.append(clip[-1])
            continue
        before = frame
        top, left, height, width = box
        part = np.ascontiguousarray(frame[top : top + height, left : left + width])
        clip.append(cropper(av.VideoFrame.from_ndarray(part, format="rgb24"), (0, 0, height, width)))
    return np.stack(clip)


def resize(image: np.ndarray, size: tuple[int, int], antialias: bool = True) -> np.ndarray:
    """uint8[H, W, 3] to uint8[*size, 3], bilinear; see frame_crops.FrameCropper."""
    if image.shape[:2] == tuple(size):
        return image
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return FrameCropper(size, antialias=antialias)(frame, (0, 0, *image.shape[:2]))

"""A box of a decoded frame as RGB of another size: from the frame's planes, without a full frame in RGB.

A filter graph of FFmpeg shows libswscale only the box (`crop` moves pointers), scales it to planar RGB, turns and
mirrors it there, and packs it. Measured on one core, 256 x 256 from a 600 x 500 box of a 1280 x 720 frame: 0.33 ms;
converting the whole frame to RGB, cutting and resizing 1.5 ms. Planar RGB is not a detour: libswscale has vector code
for it with colour at full resolution, and none for packed RGB (0.66 ms).
"""

from dataclasses import dataclass

import av
import numpy as np

Box = tuple[int, int, int, int]  # top, left, height, width in pixels

_SCALE_FLAGS = "bilinear+full_chroma_int+full_chroma_inp+accurate_rnd+bitexact"
_MAX_GRAPHS = 8  # views of a video; a box that moves needs a new graph for each frame (0.08 ms)
_LUMA_PIXEL = 256  # one pixel of luma, in the units of libswscale's chroma positions


@dataclass(frozen=True)
class Orientation:
    """From a coded to a displayed image: rows and columns swapped, then rows reversed, then columns reversed."""

    transposed: bool = False
    flipped: bool = False
    mirrored: bool = False

    def shown(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) as displayed from those as coded; its own inverse."""
        return (size[1], size[0]) if self.transposed else size

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The displayed image, uint8[H, W, 3]."""
        image = image.transpose(1, 0, 2) if self.transposed else image
        image = image[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]
        return np.ascontiguousarray(image)

    def coded_box(self, box: Box, shown: tuple[int, int]) -> Box:
        """The box of the coded image for a box of the image displayed as (height, width) = `shown`."""
        top, left, height, width = box
        top = shown[0] - top - height if self.flipped else top
        left = shown[1] - left - width if self.mirrored else left
        return (left, top, width, height) if self.transposed else (top, left, height, width)


def orientation(frame: av.VideoFrame) -> Orientation:
    """The frame's display matrix, rounded to quarter turns and mirrorings.

    For one frame of a video: PyAV 18 never frees some 100 bytes of each frame whose side data are read.
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return Orientation()
    # 3 x 3, row-major: x' = a x + c y, y' = b x + d y, with y downwards (libavutil/display.h).
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    transposed = abs(b) > abs(a)
    if transposed:
        a, d = c, b
    return Orientation(transposed, flipped=d < 0, mirrored=a < 0)


class FrameCropper:
    """Cuts boxes from the frames of one clip and resizes them. Frames and boxes that are alike share a graph.

    Args:
      size: height and width of the results.
      flip: mirror left and right.
      antialias: average over all pixels where the box shrinks, like Pillow. False: bilinear between the four nearest
        pixels, like torch `interpolate` without antialias, which V-JEPA trains on; slower.
      turn: how the frames are displayed.
    """

    def __init__(
        self, size: tuple[int, int], flip: bool = False, antialias: bool = True, turn: Orientation = Orientation()
    ):
        self._size, self._flip, self._antialias, self._turn = tuple(size), flip, antialias, turn
        self._graphs: dict[tuple, av.filter.Graph] = {}

    def __call__(self, frame: av.VideoFrame, box: Box, shown: tuple[int, int] | None = None) -> np.ndarray:
        """uint8[*size, 3], RGB, of a box in pixels of the displayed frame, widened to whole chroma samples.

        Args:
          shown: height and width of the image that the box was chosen for; None: this frame's. A stream may change its
            size midway: then the same part of the frame is cut.
        """
        turn = self._turn
        here = turn.shown((frame.height, frame.width))
        if shown not in (None, here):
            box = _fit(box, shown, here)
        coded = _to_chroma_grid(turn.coded_box(box, here), frame)
        height, width = turn.shown(coded[2:])
        shrinks = height > self._size[0] or width > self._size[1]
        size = (height, width) if shrinks and not self._antialias else self._size
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, coded)
        if key not in self._graphs:
            if len(self._graphs) == _MAX_GRAPHS:
                self._graphs.clear()
            self._graphs[key] = self._build(frame, coded, turn.shown(size))
        graph = self._graphs[key]
        graph.vpush(frame)
        image = graph.vpull().to_ndarray()
        return image if size == self._size else resize_nearest_four(image, self._size)

    def _build(self, frame: av.VideoFrame, box: Box, size: tuple[int, int]) -> av.filter.Graph:
        """The graph for frames like this one; `box` and `size` as coded."""
        top, left, height, width = box
        turns = [("transpose", "cclock_flip")] * self._turn.transposed
        turns += [("vflip", None)] * self._turn.flipped + [("hflip", None)] * (self._turn.mirrored != self._flip)
        graph = av.filter.Graph()
        graph.threads = 1
        # Chroma is level with the first column and midway between its rows (ITU-T H.264, figure E-1, type 0).
        chroma = f"in_h_chr_pos=0:in_v_chr_pos={_LUMA_PIXEL * (_chroma_grid(frame.format)[0] - 1) // 2}"
        properties = f"colorspace={frame.colorspace}:range={frame.color_range}:time_base=1/1:pixel_aspect=1/1"
        nodes = [
            ("buffer", f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:{properties}"),
            ("crop", f"{width}:{height}:{left}:{top}"),
            ("scale", f"{size[1]}:{size[0]}:flags={_SCALE_FLAGS}:{chroma}"),
            ("format", "gbrp"),
            *turns,
            ("scale", f"flags={_SCALE_FLAGS}"),
            ("format", "rgb24"),
            ("buffersink", None),
        ]
        graph.link_nodes(*(graph.add(name, arguments) for name, arguments in nodes)).configure()
        return graph


def _fit(box: Box, shown: tuple[int, int], here: tuple[int, int]) -> Box:
    """The part of an image of size `here` that `box` is of one of size `shown`."""
    ends = [(box[0], box[0] + box[2], 0), (box[1], box[1] + box[3], 1)]
    starts, stops = zip(*((a * here[i] // shown[i], -(-b * here[i] // shown[i])) for a, b, i in ends), strict=True)
    return (*starts, stops[0] - starts[0], stops[1] - starts[1])


def _to_chroma_grid(box: Box, frame: av.VideoFrame) -> Box:
    """The box widened to whole chroma samples: at the most by a pixel on each side with 4:2:0, by none with 4:4:4.

    Half a sample cannot be cut: libswscale would shift the colours against the brightness, and FFmpeg's crop filter
    (exact=1) reads wrong bytes for 10-bit frames.
    """
    top, left, height, width = box
    rows, columns = _chroma_grid(frame.format)
    bottom, right = -(-(top + height) // rows) * rows, -(-(left + width) // columns) * columns
    top, left = top // rows * rows, left // columns * columns
    return top, left, min(bottom, frame.height) - top, min(right, frame.width) - left


def _chroma_grid(pixels: av.VideoFormat) -> tuple[int, int]:
    """Rows and columns of pixels that share a chroma sample: 1, 2 or 4."""
    return 4 // pixels.chroma_height(4), 4 // pixels.chroma_width(4)


def resize_nearest_four(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[H, W, 3] to uint8[*size, 3], bilinear between the four nearest pixels (align_corners=False), rounded."""
    rows, row_share = _neighbours(image.shape[0], size[0])
    columns, column_share = _neighbours(image.shape[1], size[1])
    # Samples instead of pixels of three: numpy picks single numbers eight times faster.
    before, after = ((3 * column[:, None] + np.arange(3)).ravel() for column in columns)
    lines = []
    for row in rows:
        line = image[row].reshape(size[0], -1)
        left, right = line.take(before, 1).astype(np.float32), line.take(after, 1).astype(np.float32)
        lines.append(left + (right - left) * np.repeat(column_share, 3))
    upper, lower = lines
    return (upper + (lower - upper) * row_share[:, None] + 0.5).astype(np.uint8).reshape(*size, 3)


def _neighbours(old: int, new: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """For each new pixel the two old ones around it, int64[new] each, and the share of the second: float32[new]."""
    place = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
    first = np.minimum(place.astype(np.int64), old - 1)
    return (first, np.minimum(first + 1, old - 1)), (place - first).astype(np.float32)

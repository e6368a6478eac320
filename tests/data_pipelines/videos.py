"""Small videos whose frames carry their own number, so that tests can tell which frame of which video they got."""

import pathlib
from fractions import Fraction

import av
import numpy as np

HEIGHT, WIDTH = 48, 64
_CELL = 8  # pixels of one bit: 8 bits side by side


def numbered_frame(number: int, video: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8[height, width, 3]: first row of cells is `number`, second row `video`, in binary; the rest moves."""
    frame = np.full((height, width, 3), 96, np.uint8)
    for row, value in enumerate((number, video)):
        for bit in range(8):
            shade = 235 if value >> bit & 1 else 20
            frame[row * _CELL : (row + 1) * _CELL, bit * _CELL : (bit + 1) * _CELL] = shade
    column = (5 * number) % (width - _CELL)
    frame[3 * _CELL : 4 * _CELL, column : column + _CELL] = (200, 60, 30)
    return frame


def read_numbers(frames: np.ndarray, row: int = 0) -> np.ndarray:
    """The numbers in frames uint8[..., H, W, 3]: int[...]. row: 0 for the frame's, 1 for the video's number."""
    inner = frames[..., row * _CELL + 2 : (row + 1) * _CELL - 2, : 8 * _CELL, :].mean((-3, -1))
    bits = inner.reshape(*inner.shape[:-1], 8, _CELL)[..., 2:-2].mean(-1) > 128
    return (bits * 2 ** np.arange(8)).sum(-1)


def write_video(
    path: pathlib.Path,
    num_frames: int = 60,
    *,
    video: int = 0,
    fps: int = 30,
    gop: int = 12,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    format: str | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    times: list[int] | None = None,
    timeless: bool = False,
    rotation: dict | None = None,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> pathlib.Path:
    """Writes numbered frames; returns the path.

    times: presentation times in 1/fps s instead of 0, 1, 2, ...; timeless: every frame claims time 0.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=format, options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.gop_size = gop
        stream.codec_context.thread_count = 1
        # Without the macroblock tree the same frames give the same bytes (reencode.py): tests compare two encodings.
        libx264 = {"crf": "23", "preset": "veryfast", "bf": "2", "mbtree": "0"}
        stream.options = libx264 if codec == "libx264" else {}
        stream.options |= options or {}
        if rotation is not None:
            stream.set_display_rotation(**rotation)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, video, height, width), format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, fps)
            _mux(container, stream.encode(frame), timeless)
        _mux(container, stream.encode(), timeless)
    return path


def _mux(container: av.container.OutputContainer, packets: list[av.Packet], timeless: bool) -> None:
    for packet in packets:
        if timeless:
            packet.pts = packet.dts = 0
        container.mux(packet)

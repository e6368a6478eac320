"""Chosen frames of a video file, by index, with PyAV (FFmpeg).

Frame i is the i-th frame in presentation order. How it is found, from cheap to certain:

  index   MP4 and MOV hold a table of all frames. If it is evenly spaced, the time stamp of frame i is known without
          reading the file. Every decoded frame must carry the expected time stamp, else the next way is taken.
  scan    Read all packets, without decoding, and sort their time stamps.
  order   Decode from the start and count: for files whose time stamps or key frames cannot be relied on (raw streams,
          some AVI files, files whose time stamps were lost, intra refresh).

The first two seek to the last key frame before a wanted frame, and leave out frames that no other frame refers to (1.5
to 1.7 times faster on x264 files, same pixels). After the packet of the last wanted frame the decoder is drained: it
decodes nothing beyond. Only wanted frames are converted to RGB, and of these only the box of a clip.

Decoding is single-threaded: PyAV hangs on some broken files with frame threads, and the caller runs in parallel anyway.
Pixels are taken as square; the display matrix (rotation, mirroring) is applied.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from data_pipelines.frame_crops import Box, FrameCropper, Orientation, orientation
from data_pipelines.timelines import DecodeError as DecodeError
from data_pipelines.timelines import Timeline, timeline_from_index, timeline_from_packets

File = str | os.PathLike | BinaryIO

# Frames that a seek must skip to be worth it: with a table of all frames a seek only moves a pointer.
_SEEK_GAINS = {"index": 1, "scan": 4}
_MAX_TAIL = 16  # frames that may be missing at the end of a stream (decoders drop a few); more is a broken file
_SKIPPING_CODECS = ("h264", "hevc", "mpeg2video", "mpeg4", "vp8")  # decoders that can leave out single frames
# MP4 states all that FFmpeg would find out by decoding a first frame: without that, a 720p file opens 5 times faster.
_TRUSTING = {"probesize": "32", "skip_frame": "all"}


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds: frames, frames per second, height and width in pixels as displayed, seconds."""

    num_frames: int
    fps: float
    height: int
    width: int
    duration: float


def probe(file: File) -> VideoInfo:
    """Size and length of a video; decodes one frame, because only frames carry the rotation.

    Raises:
      DecodeError: the file cannot be decoded.
    """
    with VideoReader(file) as reader:
        height, width = next(reader.frames([0])).shape[:2]
        return VideoInfo(reader.num_frames, reader.fps, height, width, reader.num_frames / reader.fps)


class _Inexact(Exception):
    """Frames did not come as the timeline promised: try the next, more certain way."""


class VideoReader:
    """An open video. Use as a context manager; not for several threads at once.

    Attributes:
      num_frames: number of frames, at least 1.
      fps: frames per second, the average if the rate varies.
    """

    def __init__(self, file: File):
        self._file = file
        self._container: av.container.InputContainer | None = None
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None  # coded width and height of the first frame
        self._turn: Orientation | None = None
        with _decode_errors(), contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            self._options = _TRUSTING if self._is_mp4() else {}
            self._open()
            self._timeline = timeline_from_index(self._container, self._stream) or self._scan()
            if self._timeline.count < 1:
                raise DecodeError("the video stream holds no frames")
            on_error.pop_all()

    @property
    def num_frames(self) -> int:
        return self._timeline.count

    @property
    def fps(self) -> float:
        return self._timeline.fps

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the container; a file object given by the caller stays open."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(self, indices: Iterable[int]) -> np.ndarray:
        """Frames at `indices`, in any order, repeats allowed: uint8[T, H, W, 3], RGB. Raises DecodeError."""
        unique, inverse = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        return np.stack(list(self.frames(unique)))[inverse]

    def frames(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """Frames at ascending `indices`, one at a time: uint8[H, W, 3], RGB. Repeats yield the same array again.

        Raises:
          DecodeError: a frame is missing or damaged; may come after some frames were yielded.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices[0] < 0 or (np.diff(indices) < 0).any()):
            raise ValueError(f"frame indices must ascend from 0, got {indices.tolist()}")
        unique, counts = np.unique(indices, return_counts=True)
        for frame, count in zip(self._decoded(unique), counts.tolist(), strict=True):
            with _decode_errors():
                image = self._to_rgb(frame)
            yield from [image] * count

    def crops(
        self,
        indices: Iterable[int],
        choose: Callable[[int, int], Box | np.ndarray],
        size: tuple[int, int],
        *,
        flip: bool = False,
        antialias: bool = True,
    ) -> np.ndarray:
        """Boxes of frames, resized: far cheaper than whole frames in RGB. Decodes all frames in one go.

        Args:
          indices: T frames, in any order, repeats allowed.
          choose: (height, width) as displayed -> one box (top, left, height, width) for all frames, or int[T, 4] with
            a box for each of `indices`; called once.
          size, flip, antialias: see `FrameCropper`.

        Returns:
          uint8[T, *size, 3], RGB.

        Raises:
          DecodeError: a frame is missing or damaged.
        """
        indices = np.asarray(indices, np.int64)
        unique, inverse = np.unique(indices, return_inverse=True)
        cropper, shown, boxes = None, None, None
        clip = np.empty((len(indices), *size, 3), np.uint8)
        for i, frame in enumerate(self._decoded(unique)):
            if cropper is None:
                turn = self._orientation(frame)
                cropper, shown = FrameCropper(size, flip, antialias, turn), turn.shown((frame.height, frame.width))
                boxes = np.broadcast_to(np.asarray(choose(*shown), np.int64), (len(indices), 4)).tolist()
            done = {}  # a repeated frame of a short or slow video
            for place in np.flatnonzero(inverse == i).tolist():
                box = tuple(boxes[place])
                with _decode_errors():
                    clip[place] = done[box] if box in done else cropper(frame, box, shown)
                done[box] = clip[place]
        return clip

    def _decoded(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """Frames for unique ascending indices, found in the cheapest way that proves exact."""
        done = 0
        with _decode_errors():
            while done < len(indices):
                if indices[-1] >= self.num_frames:
                    raise DecodeError(f"frame {indices[-1]} does not exist: the video holds {self.num_frames} frames")
                try:
                    for frame in self._decode(indices[done:]):
                        yield frame
                        done += 1
                except _Inexact:
                    self._next_way()

    def _is_mp4(self) -> bool:
        with contextlib.nullcontext(self._file) if hasattr(self._file, "read") else open(self._file, "rb") as file:
            file.seek(0)
            return file.read(8)[4:] == b"ftyp"

    def _open(self) -> None:
        self.close()
        if hasattr(self._file, "seek"):
            self._file.seek(0)
        file = self._file if hasattr(self._file, "read") else os.fspath(self._file)
        self._container = av.open(file, options=self._options)
        # The cover picture of an audio file is a video stream too.
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise DecodeError("the file has no video stream")
        self._stream = streams[0]
        if self._stream.codec_context is None:
            raise DecodeError("no decoder is known for the video stream")
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1
        self._fresh = True

    def _scan(self) -> Timeline:
        self._options = {}
        self._open()
        timeline = timeline_from_packets(self._container, self._stream)
        self._open()
        return timeline

    def _next_way(self) -> None:
        if self._timeline.way == "index":
            self._timeline = self._scan()
        else:
            self._timeline = Timeline("order", self.num_frames, self.fps)

    def _decode(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """Decoded frames for unique ascending indices. Raises _Inexact where another way may do better."""
        if self._timeline.way == "order":
            yield from self._in_order(indices)
            return
        try:
            for key, part in _plan(indices, self._timeline):
                yield from self._by_time(key, part)
        except av.FFmpegError as error:
            raise _Inexact from error

    def _by_time(self, key: tuple[int, int] | None, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """Frames by time stamp, decoding from `key` = (seek time, its frame), or from the start if None."""
        self._go_to(key)
        pts = self._timeline.pts[indices].tolist()
        wanted, missing, position, entered = set(pts), len(pts), 0, key is None
        context = self._stream.codec_context
        skips = context.name in _SKIPPING_CODECS
        for packet in self._container.demux(self._stream):
            if not entered:
                if not packet.is_keyframe:
                    continue  # some formats seek to any packet
                if packet.pts is None:
                    raise _Inexact
                if packet.pts > pts[0]:  # an open group of pictures: the frame also needs the key frame before
                    yield from self._by_time(self._timeline.key(key[1] - 1), indices)
                    return
                entered = True
            is_wanted = packet.pts in wanted
            if skips:
                context.skip_frame = "DEFAULT" if packet.pts is None or is_wanted else "NONREF"
            missing -= is_wanted
            # Nothing after the last wanted packet is needed to decode it.
            for frame in packet.decode() + ([] if missing or packet.size == 0 else context.decode(None)):
                if frame.pts is None or frame.pts > pts[position]:
                    raise _Inexact
                if frame.pts < pts[position]:
                    continue
                if key is not None and frame.is_corrupt:
                    raise _Inexact
                yield frame
                position += 1
                if position == len(pts):
                    return
            if not missing:
                break
        raise _Inexact

    def _in_order(self, indices: np.ndarray) -> Iterator[av.VideoFrame]:
        """Frames by counting, from the start. A few missing at the end are replaced by the last one."""
        self._go_to(None)
        self._stream.codec_context.skip_frame = "DEFAULT"
        position, last = 0, None
        for count, frame in enumerate(self._container.decode(self._stream)):
            last = frame
            if count == indices[position]:
                yield frame
                position += 1
                if position == len(indices):
                    return
        if last is None or indices[position] - count > _MAX_TAIL:
            raise DecodeError(f"frame {indices[position]} cannot be decoded: the stream breaks off before it")
        for _ in range(position, len(indices)):
            yield last

    def _go_to(self, key: tuple[int, int] | None) -> None:
        if key is not None:
            self._container.seek(key[0], stream=self._stream, backward=True)
        elif not self._fresh:
            self._open()
        self._fresh = False

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        # A stream may change its size midway: later frames are scaled to the first one.
        self._size = self._size or (frame.width, frame.height)
        width, height = self._size
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        return self._orientation(frame).apply(rgb.to_ndarray())

    def _orientation(self, frame: av.VideoFrame) -> Orientation:
        self._turn = self._turn or orientation(frame)
        return self._turn


def _plan(indices: np.ndarray, timeline: Timeline) -> Iterator[tuple[tuple[int, int] | None, np.ndarray]]:
    """Cuts ascending indices into runs that are decoded in one go, each with the key frame that it starts from."""
    start, start_key, position = 0, None, 0
    for i, index in enumerate(indices.tolist()):
        here = timeline.key(index)
        if here is not None and here[1] - position > _SEEK_GAINS[timeline.way]:
            if i > start:
                yield start_key, indices[start:i]
            start, start_key = i, here
        position = index
    yield start_key, indices[start:]


@contextlib.contextmanager
def _decode_errors() -> Iterator[None]:
    """Turns whatever PyAV raises into a DecodeError: the types vary (InvalidData, EOF, Index, Value, Permission)."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error

"""Where the frames of a video lie in time: from the frame table of a file, or from its packets. See decode.py."""

import dataclasses

import av
import numpy as np

_INDEX_CHECKS = 64  # entries of a file's frame table that are compared with even spacing
_PTS_SEEKERS = ("mp4", "matroska")  # demuxers whose seeks take the time that a key frame is shown, not decoded
_PLAUSIBLE_FPS = (1, 480)
_DEFAULT_FPS = 25.0  # of raw streams that state no rate; FFmpeg's own default


class DecodeError(ValueError):
    """A video that cannot be decoded: missing, empty, truncated, damaged, or without a video stream."""


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Where frames lie. pts: int64[n], ascending. keys: int64[k, 2], seek time and frame of each key frame."""

    way: str  # index, scan, order; order has neither pts nor keys
    count: int
    fps: float
    pts: np.ndarray | None = None
    keys: np.ndarray | None = None

    def key(self, frame: int) -> tuple[int, int] | None:
        """The last key frame that is not after `frame`; None for the first one, where no seek is needed."""
        if self.keys is None or not len(self.keys):
            return None
        found = int(np.searchsorted(self.keys[:, 1], frame, side="right")) - 1
        return tuple(self.keys[found].tolist()) if found > 0 else None


def timeline_from_index(container: av.container.InputContainer, stream: av.VideoStream) -> Timeline | None:
    """The timeline from the frame table of an MP4 or MOV file of constant rate; None if there is none.

    Raises:
      DecodeError: the table points beyond the end of the file (a cut-off download).
    """
    entries = stream.index_entries
    count = len(entries)
    if "mp4" not in container.format.name or count != stream.frames or count < 2 or stream.start_time is None:
        return None
    ends = max(entries[i].pos + entries[i].size for i in (0, count - 2, count - 1))
    if 0 < container.size < ends:
        raise DecodeError(f"the file is truncated: it has {container.size} bytes, its frames end at byte {ends}")
    sample = [(i, entries[i]) for i in np.unique(np.linspace(0, count - 1, _INDEX_CHECKS).astype(int)).tolist()]
    first, step = entries[0].timestamp, entries[1].timestamp - entries[0].timestamp
    if step <= 0 or any(e.is_discard or e.timestamp != first + i * step for i, e in sample):
        return None

    # The table holds decoding times. No frame decodes after it is shown, so the key frame found for a frame may be too
    # late (open groups of pictures), never too early; the reader notices. Entries must not outlive the container.
    keys, found = [], 0
    while found >= 0:
        keys.append((stream.start_time + found * step, found))
        found = entries.search_timestamp(first + (found + 1) * step, backward=False)
    pts = stream.start_time + step * np.arange(count, dtype=np.int64)
    return Timeline("index", count, float(1 / (step * stream.time_base)), pts, np.array(keys, np.int64))


def timeline_from_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Timeline:
    """The timeline from all packets of the stream, which are read but not decoded."""
    packets = [
        (p.pts, p.dts if p.dts is not None else p.pts, p.is_keyframe)
        for p in container.demux(stream)
        if p.size and not p.is_discard
    ]
    in_order = Timeline("order", len(packets), _stated_fps(stream))
    times = [p[0] for p in packets]
    if not times or None in times or len(set(times)) < len(times):
        return in_order
    # AVI has no presentation times: where frames are reordered, FFmpeg's guess may be wrong.
    if container.format.name == "avi" and (stream.codec_context.has_b_frames or times != sorted(times)):
        return in_order
    pts = np.sort(np.array(times, np.int64))
    keys = sorted((shown, decoded) for shown, decoded, is_key in packets if is_key)
    if keys:
        pts = pts[np.searchsorted(pts, keys[0][0]) :]  # nothing before the first key frame can be decoded
    by_pts = any(name in container.format.name for name in _PTS_SEEKERS)
    keys = np.array([(shown if by_pts else decoded, np.searchsorted(pts, shown)) for shown, decoded in keys], np.int64)
    fps = in_order.fps
    if len(pts) > 1:
        fps = (len(pts) - 1) / float((int(pts[-1]) - int(pts[0])) * stream.time_base)
    return Timeline("scan", len(pts), fps, pts, keys)


def _stated_fps(stream: av.VideoStream) -> float:
    """The rate that a file states, where its time stamps give none.

    The average rate comes last: in a file whose frames all have time 0 it is off by the number of frames.
    """
    for rate in (stream.guessed_rate, stream.codec_context.framerate, stream.average_rate):
        if rate and _PLAUSIBLE_FPS[0] <= rate <= _PLAUSIBLE_FPS[1]:
            return float(rate)
    return _DEFAULT_FPS

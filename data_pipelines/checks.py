"""`vjepa data check`: decodes every frame of a source and compares checksums, to name what is broken."""

from collections.abc import Callable, Iterator

from data_pipelines import pool
from data_pipelines.decode import DecodeError
from data_pipelines.index import check_sha256
from data_pipelines.indexing import Broken, content, video_reader
from data_pipelines.sources import NO_SHA256, Source

_TASK = 4  # videos


def check_source(
    source: Source, *, workers: int | None = None, progress: Callable[[int], None] = lambda done: None
) -> Iterator[Broken]:
    """Names the videos of a source that are broken, and what is wrong: unreadable or undecodable, other bytes, another
    number of frames or another size than its index says.

    Args:
      workers: as in `pool.each`.
      progress: called with the number of videos checked so far.
    """
    done = 0
    for videos, broken in pool.each(_check_all, source, pool.ranges(len(source), _TASK), workers):
        done += videos
        progress(done)
        yield from broken


def _check_all(source: Source, videos: range) -> tuple[int, list[Broken]]:
    broken = []
    for i in videos:
        try:
            _check(source, i)
        except (OSError, DecodeError) as error:
            broken.append((source.name(i), str(error)))
    return len(videos), broken


def _check(source: Source, i: int) -> None:
    """Raises OSError or DecodeError if video i is broken."""
    row, file = source.row(i), source.open(i)
    if row.sha256 != NO_SHA256:
        check_sha256(content(file), row.sha256, source.name(i))
    with video_reader(file) as reader:
        count = reader.num_frames
        for frame in reader.frames(range(count)):
            size = frame.shape[:2]
    if row.frames and (row.frames, row.height, row.width) != (count, *size):
        raise DecodeError(
            f"it has {count} frames of {size[0]} x {size[1]} (height x width), the index says {row.frames} of "
            f"{row.height} x {row.width}: index it again"
        )

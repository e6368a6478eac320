"""`vjepa data index`: a fast look at every video of a source, into an index."""

import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Callable

from data_pipelines import pool, storage
from data_pipelines.decode import DecodeError, VideoReader, probe
from data_pipelines.index import IndexSource, IndexWriter
from data_pipelines.sources import DataError, FileSource, Row, Source, relative

_TASK = 16  # videos

Broken = tuple[str, str]  # name of a video and what is wrong with it
Opened = str | io.BytesIO | VideoReader  # what `Source.open` gives: a path, bytes, or frames behind that interface


def write_index(
    source: Source,
    dst: str,
    *,
    checksums: bool = False,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Broken]:
    """Writes the index of a source; returns the videos that cannot be read, which are left out.

    Paths below the folder of the index become relative, so that both can move together.

    Args:
      checksums: also read all bytes for their sha256.
      workers: as in `pool.each`.
      progress: called with the number of videos looked at so far.

    Raises:
      DataError: no video can be read, or they are no files (a dataset of TFDS).
    """
    if not isinstance(source, (FileSource, IndexSource)):
        raise DataError(f"{source.path} holds no files that an index could name, and opens at once as it is")
    broken: list[Broken] = []
    root = os.path.dirname(local(dst))
    with IndexWriter(dst, source.class_names, source.cluster_names) as writer:
        look, tasks, done = functools.partial(_probe_all, checksums=checksums), pool.ranges(len(source), _TASK), 0
        for rows in pool.each(look, source, tasks, workers):
            done += len(rows)
            for row in rows:
                if isinstance(row, Row):
                    writer.write(dataclasses.replace(row, path=relative(row.path, root)))
                else:
                    broken.append(row)
            progress(done)
        if len(broken) == len(source):
            raise DataError(f"no video of {source.path} can be read; the first one: {': '.join(broken[0])}")
    return broken


def local(dst: str) -> str:
    """The absolute path of what is to be written. Raises DataError if it is remote."""
    if storage.is_remote(dst):
        raise DataError(f"{dst} is remote: write to a folder of this machine, then copy it there")
    return os.path.abspath(os.path.expanduser(dst))


def probed(row: Row, file: Opened) -> Row:
    """`row` with frames, rate, size and duration as `file` has them. Raises DecodeError."""
    info = probe(file)
    return dataclasses.replace(
        row, frames=info.num_frames, fps=info.fps, height=info.height, width=info.width, duration=info.duration
    )


def _probe_all(source: Source, videos: range, *, checksums: bool) -> list[Row | Broken]:
    rows = []
    for i in videos:
        try:
            file = source.open(i)
            row = probed(source.row(i), file)
            if checksums:
                row = dataclasses.replace(row, sha256=hashlib.sha256(content(file)).digest())
            rows.append(row)
        except (OSError, DecodeError) as error:
            rows.append((source.name(i), str(error)))
    return rows


def content(file: Opened) -> bytes:
    """The bytes of a video. Raises DataError where it is no file."""
    if isinstance(file, str):
        return storage.read(file)
    if isinstance(file, io.BytesIO):
        return file.getvalue()
    raise DataError("the videos of this source are single frames, not files: have them encoded, as with --gop 12")


def video_reader(file: Opened) -> VideoReader:
    """The open video of what `Source.open` gives, to be used as a context manager. Raises DecodeError."""
    return VideoReader(file) if isinstance(file, (str, io.BytesIO)) else file

"""Shards: ordinary ArrayRecord files whose records are video files as they are, so that one range read gives a video.

ArrayRecord files are Riegeli files (github.com/google/riegeli, doc/riegeli_records_file_format.md): a row of chunks,
each a header of 40 bytes and its data, cut into blocks of 64 KiB that begin with a block header of 24 bytes. Written
with "group_size:1,uncompressed", a record is the end of the data of a chunk of its own. Who knows where it starts reads
it without the file's table, from a disk or from an object store alike, and drops the block headers.
"""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator

from data_pipelines import storage

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_CHUNK_HEADER = struct.Struct("<8xQ8xcI3xQ")  # hash, data size, hash of data, type, records (7 bytes), decoded size
_OPTIONS = "group_size:1,uncompressed"


def write(path: str, videos: Iterable[bytes]) -> list[tuple[int, int]]:
    """Writes one ArrayRecord file; returns (offset, length) of every record, as `read` takes them.

    Raises:
      OSError: the file cannot be written (no space, no permission), or does not read back.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    lengths = []
    with _os_errors(path):
        writer = ArrayRecordWriter(path, _OPTIONS)
    for video in videos:
        with _os_errors(path):
            writer.write(video)
        lengths.append(len(video))
    with _os_errors(path):
        writer.close()
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    spans = _spans(path, len(lengths))
    if [length for _, length in spans] != lengths:
        raise OSError(f"{path} does not read back as it was written: is the disk full or broken?")
    return spans


def read(path: str, offset: int, length: int) -> bytes:
    """The record that starts at byte `offset` of a shard, local or remote, and is `length` bytes long.

    Raises:
      OSError: the file cannot be read, or ends before.
    """
    end = _place(_logical(offset) + length - 1) + 1 if length else offset
    raw = memoryview(storage.read_range(path, offset, end - offset))
    if offset // _BLOCK == (end - 1) // _BLOCK:
        return bytes(raw)
    starts = range(offset - offset % _BLOCK + _BLOCK, end, _BLOCK)
    pieces = [raw[: starts[0] - offset]]
    pieces += [raw[start + _BLOCK_HEADER - offset : start + _BLOCK - offset] for start in starts]
    return b"".join(pieces)


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """array_record reports errors of the file system as RuntimeError or ValueError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{path} cannot be written: {' '.join(str(error).split())}") from error


def _spans(path: str, count: int) -> list[tuple[int, int]]:
    """(offset, length) of the first `count` records of a shard, from the headers of its chunks."""
    spans, position, end = [], 0, os.path.getsize(path)
    while len(spans) < count and _place(position) + _CHUNK_HEADER.size < end:
        header = read(path, _place(position), _CHUNK_HEADER.size)
        size, kind, records, decoded = _CHUNK_HEADER.unpack(header)
        position += _CHUNK_HEADER.size + size
        if kind == b"r" and records == 1:
            spans.append((_place(position - decoded), decoded))
    return spans


def _logical(place: int) -> int:
    """A position counted without block headers, from the position in the file."""
    return place - (place // _BLOCK + 1) * _BLOCK_HEADER


def _place(logical: int) -> int:
    """The position in the file of a position that is counted without block headers."""
    room = _BLOCK - _BLOCK_HEADER
    return logical // room * _BLOCK + _BLOCK_HEADER + logical % room

"""The index of a data set: an Arrow file with one row a video, which is mapped into memory, never read into it.

    with IndexWriter("index.arrow", class_names) as writer:       # rows in any order, any number of them
        writer.write(Row("videos/a.mp4", split="train", ...))
    source = IndexSource("index.arrow", split="train")            # opens at once; holds no column

The columns are the fields of `sources.Row`; paths are absolute, remote, or relative to the folder of the index. Rows
are sorted by cluster, then split, and otherwise keep their order. So the rows of a split are a few runs of neighbours,
which the schema's metadata lists: {"format", "batch", "class_names", "cluster_names", "splits", "runs", "more"}, where
a run is [cluster, number of its split, rows].
"""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines import array_records
from data_pipelines.sources import NO_SHA256, DataError, Row, fetched, joined, no_split, open_file

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT = 1  # raise it when older code would misread the file
_KEY = b"vjepa_jax.index"
_BATCH = 16384  # rows a record batch
_WINDOW = 16 * _BATCH  # rows that are brought into order at a time


def partial_name(path: str) -> str:
    """Under what name a file is written that is to appear as a whole. Clusters may do a job twice at a time."""
    return f"{path}.{secrets.token_hex(4)}.partial"


@functools.cache
def schema() -> "pa.Schema":
    """The columns of an index."""
    import pyarrow as pa

    kinds = {
        "path": pa.string(), "label": pa.int32(), "group": pa.string(), "split": pa.string(), "licence": pa.string(),
        "cluster": pa.int32(), "id": pa.string(), "offset": pa.int64(), "length": pa.int64(), "frames": pa.int32(),
        "fps": pa.float32(), "height": pa.int32(), "width": pa.int32(), "duration": pa.float32(),
        "sha256": pa.binary(32),
    }  # fmt: skip
    return pa.schema([pa.field(field.name, kinds[field.name], nullable=False) for field in dataclasses.fields(Row)])


class IndexWriter:
    """Writes an index. Use as a context manager: the file appears when all rows are written, or not at all.

    Rows go to a second file beside it first. Memory holds a batch of them, and 12 bytes for every change of cluster or
    split from one row to the next; where these do not come in order, for a while about 50 bytes a row.
    """

    def __init__(
        self,
        path: str,
        class_names: Sequence[str] = (),
        cluster_names: Sequence[str] = (),
        more: Mapping[str, Any] | None = None,
    ):
        """more: further values that JSON can hold, which `IndexSource.more` gives back."""
        import pyarrow as pa

        self._path, self._spool = path, partial_name(path)
        self._metadata = {"class_names": list(class_names), "cluster_names": list(cluster_names), "more": more or {}}
        self._rows: list[tuple] = []
        self._splits: dict[str, int] = {}
        self._runs: list[np.ndarray] = []  # int32[r, 3]: cluster, split in order of appearance, rows
        self._writer = pa.ipc.new_file(self._spool, schema())

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(OSError):  # what went wrong may go wrong again
                self._writer.close()
                os.remove(self._spool)

    def write(self, row: Row) -> None:
        """Adds a row. `row.path` is absolute, remote, or relative to the folder of the index."""
        self._rows.append(_values(row))
        if len(self._rows) == _BATCH:
            self._flush()

    def write_batch(self, batch: "pa.RecordBatch") -> None:
        """Adds rows in the columns of `schema()`."""
        import pyarrow as pa

        self._flush()
        if not batch.num_rows:
            return
        splits = batch.column("split").dictionary_encode()
        numbers = np.array([self._splits.setdefault(s, len(self._splits)) for s in splits.dictionary.to_pylist()])
        keys = np.stack([batch.column("cluster").to_numpy(), numbers[splits.indices.to_numpy()]], 1)
        starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(1)])
        self._runs.append(np.c_[keys[starts], np.diff(np.r_[starts, len(keys)])].astype(np.int32))
        self._writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema()))

    def close(self) -> None:
        """Brings the rows into order and puts the file in its place."""
        import pyarrow as pa

        self._flush()
        self._writer.close()
        splits = sorted(self._splits)
        rank = np.array([splits.index(name) for name in self._splits] or [0], np.int64)
        runs = np.concatenate([np.zeros((0, 3), np.int32), *self._runs])
        keys, lengths = runs[:, 0] * np.int64(len(splits)) + rank[runs[:, 1]], runs[:, 2]
        unique = np.unique(keys)
        counts = np.bincount(np.searchsorted(unique, keys), lengths, len(unique)).astype(int).tolist()
        merged = [[key // len(splits), key % len(splits), n] for key, n in zip(unique.tolist(), counts, strict=True)]
        order = None
        if (np.diff(keys) < 0).any():
            order = np.argsort(np.repeat(keys, lengths), kind="stable")
        metadata = {"format": _FORMAT, "batch": _BATCH, "splits": splits, "runs": merged} | self._metadata
        partial = partial_name(self._path)
        with (
            pa.memory_map(self._spool) as spool,
            pa.ipc.new_file(partial, schema().with_metadata({_KEY: json.dumps(metadata)})) as writer,
        ):
            for batch in _in_order(pa.ipc.open_file(spool), sum(counts), order):
                writer.write_batch(batch)
        os.replace(partial, self._path)
        os.remove(self._spool)

    def _flush(self) -> None:
        import pyarrow as pa

        if rows := self._rows:
            self._rows = []
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema(), strict=True)
            ]
            self.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema()))


def _in_order(spool: "pa.RecordBatchFileReader", count: int, order: np.ndarray | None) -> Iterator["pa.RecordBatch"]:
    """All rows of a file in batches of _BATCH. order: int64[count], or None as they are."""
    import pyarrow as pa

    batches = [spool.get_batch(i) for i in range(spool.num_record_batches)]
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    for first in range(0, count, _WINDOW):
        last = min(first + _WINDOW, count)
        rows = np.arange(first, last) if order is None else order[first:last]
        batch_of = np.searchsorted(starts, rows, side="right") - 1
        by_batch = np.argsort(batch_of, kind="stable")
        pieces = [
            batches[batch_of[part[0]]].take(pa.array(rows[part] - starts[batch_of[part[0]]]))
            for part in np.split(by_batch, np.flatnonzero(np.diff(batch_of[by_batch])) + 1)
        ]
        window = pa.Table.from_batches(pieces).combine_chunks()
        if order is not None:
            window = window.take(pa.array(np.argsort(by_batch)))
        yield from window.to_batches(max_chunksize=_BATCH)


def read_index(path: str) -> tuple[dict[str, Any], list["pa.RecordBatch"]]:
    """The metadata of an index, and its rows, mapped. Raises DataError."""
    import pyarrow as pa

    copy = fetched(path)
    try:
        file = pa.ipc.open_file(pa.memory_map(copy))
        metadata = json.loads((file.schema.metadata or {})[_KEY])
        batches = [file.get_batch(i) for i in range(file.num_record_batches)]
    except FileNotFoundError as error:
        raise DataError(f"no such file or folder: {path}") from error
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{path} is no whole index of videos: write it with `vjepa data index`") from error
    if metadata["format"] != _FORMAT:
        raise DataError(f"{path} is an index of format {metadata['format']}, not {_FORMAT}: write it again")
    return metadata, batches


class IndexSource:
    """The videos of an index, or of one split of it: a `sources.Source` that takes no memory for its rows.

    Pages of the file that were read count as resident, but belong to the page cache, which all processes share.

    Attributes:
      more: what the writer was given as `more`.
    """

    def __init__(self, path: str, split: str = ""):
        """Raises DataError: no index, one of another version, no rows, or a split that it does not have."""
        self.path, self._split = path, split
        metadata, self._batches = read_index(path)
        self.class_names, self.cluster_names = tuple(metadata["class_names"]), tuple(metadata["cluster_names"])
        self.more: dict[str, Any] = metadata["more"]
        self._batch: int = metadata["batch"]
        runs = np.array(metadata["runs"], np.int64).reshape(-1, 3)
        firsts = np.cumsum(runs[:, 2]) - runs[:, 2]
        if split:
            if split not in metadata["splits"]:
                raise no_split(path, split, metadata["splits"])
            keep = runs[:, 1] == metadata["splits"].index(split)
            runs, firsts = runs[keep], firsts[keep]
        self._clusters, self._counts, self._firsts = runs[:, 0], runs[:, 2], firsts
        self._ends: list[int] = np.cumsum(self._counts).tolist()
        if not len(self):
            raise DataError(f"no rows in {path}")

    def __reduce__(self) -> tuple:
        return IndexSource, (self.path, self._split)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def clusters(self) -> np.ndarray | None:
        if (self._clusters < 0).all():
            return None
        return np.repeat(self._clusters.astype(np.int32), self._counts)

    def name(self, i: int) -> str:
        path, offset = self._path(i), self._value("offset", i)
        return path if offset < 0 else f"{path}#{self._value('id', i)}"

    def label(self, i: int) -> int:
        return self._value("label", i)

    def group(self, i: int) -> str:
        return self._value("group", i)

    def row(self, i: int) -> Row:
        """All that is known of video i; its path as it is opened."""
        batch, place = self._locate(i)
        row = Row(*(column[place].as_py() for column in batch.columns))
        return dataclasses.replace(row, path=self._path(i))

    def open(self, i: int) -> str | io.BytesIO:
        path, offset = self._path(i), self._value("offset", i)
        if offset < 0:
            return open_file(path)
        video = array_records.read(path, offset, self._value("length", i))
        check_sha256(video, self._value("sha256", i), self.name(i))
        return io.BytesIO(video)

    def values(self, *columns: str) -> Iterator[tuple]:
        """The values of columns for all videos in turn, much faster than `row`; paths as they are written."""
        for row, count in zip(self._firsts.tolist(), self._counts.tolist(), strict=True):
            end = row + count
            while row < end:
                batch = self._batches[row // self._batch].slice(row % self._batch, end - row)
                yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)
                row += batch.num_rows

    def _path(self, i: int) -> str:
        return joined(os.path.dirname(self.path), self._value("path", i))

    def _value(self, column: str, i: int) -> Any:
        batch, place = self._locate(i)
        return batch.column(column)[place].as_py()

    def _locate(self, i: int) -> tuple["pa.RecordBatch", int]:
        """The record batch of video i, and its place there."""
        if not 0 <= i < len(self):
            raise IndexError(f"video {i} of {len(self)}")
        run = bisect.bisect_right(self._ends, i)
        row = int(self._firsts[run]) + i - (self._ends[run] - int(self._counts[run]))
        return self._batches[row // self._batch], row % self._batch


def check_sha256(video: bytes, expected: bytes, name: str) -> None:
    """Raises OSError if the bytes of a video are not those that were indexed. Zeros stand for an unknown checksum."""
    if expected != NO_SHA256 and hashlib.sha256(video).digest() != expected:
        raise OSError(f"{name} is damaged: its bytes do not have the checksum of the index")


def _values(row: Row) -> tuple:
    return tuple(getattr(row, name) for name in _FIELDS)


_FIELDS = tuple(field.name for field in dataclasses.fields(Row))

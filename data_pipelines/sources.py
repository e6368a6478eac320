"""Where videos come from: folders, manifests and ArrayRecord files, told apart by the path itself.

  folder              all videos below it (for clips of one frame also all pictures), sorted. Label: index of the
                      first-level subfolder among the sorted ones that hold videos; -1 for videos directly in the folder
  one video file      a source of one video, label -1
  *.csv, *.txt        manifest. With a header line that names a `path` column: columns path, label (all integers, or
                      names that become indices into the sorted names), split, group or scene; others are ignored.
                      Without: lines `path label` or `path::label` (the V-JEPA format), or only `path`
  *.array_record      ArrayRecord file, a glob of such files, or a folder that holds some (see `write_array_record`)

Relative paths in a manifest start at the manifest's folder. Whether a video exists is seen when it is decoded.
"""

import csv
import functools
import glob
import io
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from vjepa_jax.config import DataConfig

SUFFIXES = tuple(
    ".3gp .avi .flv .gif .h264 .ivf .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv .y4m".split()
)
IMAGE_SUFFIXES = tuple(".bmp .jpeg .jpg .png .tif .tiff .webp".split())
MANIFEST_SUFFIXES = (".csv", ".txt")

_HEADER_LENGTH = struct.Struct("<I")
_INTEGER = re.compile(r"-?[0-9]{1,9}")


class DataError(ValueError):
    """Data that cannot be used. The message is one line and says what to change."""


@dataclass(frozen=True, slots=True)
class Row:
    """One video: its path or name, class index (-1 if unknown), group (scene, subject; may be empty) and split."""

    name: str
    label: int = -1
    group: str = ""
    split: str = ""


@dataclass(frozen=True, eq=False)
class Source:
    """Videos 0..n-1 of one path. Columns are packed arrays, so that millions of rows travel cheaply to workers.

    Attributes:
      path: where the source was opened.
      names: StringDType[n], absolute paths, or names inside ArrayRecord files.
      labels: int32[n], -1 if unknown.
      groups: StringDType[n], empty if unknown.
      class_names: names of the labels, empty if labels are plain integers or absent.
      shards, records: ArrayRecord files, and int64[n, 2] with the shard and record of each video; else empty and None.
    """

    path: str
    names: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    class_names: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    records: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The path of video i; for a record `<file>#<name>`."""
        if self.records is None:
            return str(self.names[i])
        return f"{self.shards[self.records[i, 0]]}#{self.names[i]}"

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def group(self, i: int) -> str:
        return str(self.groups[i])

    def open(self, i: int) -> str | io.BytesIO:
        """What a decoder opens: the path of video i, or its bytes. A record that cannot be read raises OSError."""
        if self.records is None:
            return self.name(i)
        shard, record = self.records[i].tolist()
        try:
            return io.BytesIO(_unpack(_reader(self.shards[shard]).read([record])[0])[1])
        except Exception as error:
            raise OSError(f"record {record} of {self.shards[shard]} cannot be read: {error}") from error


def open_sources(data: DataConfig) -> list[Source]:
    """The sources named by `data.path`, each restricted to `data.split` if that is set.

    Raises:
      DataError: nothing there, no videos, an unreadable manifest row (file and line), an unknown split.
    """
    if not data.paths:
        raise DataError("data.path is empty: give a folder of videos, a manifest (.csv) or .array_record files")
    return [open_source(path, split=data.split, pictures=data.num_frames == 1) for path in data.paths]


def open_source(path: str, *, split: str = "", pictures: bool = False) -> Source:
    """One source; see `open_sources`. `pictures`: a folder's pictures count as videos of one frame."""
    path = os.path.abspath(os.path.expanduser(path))
    folder, name = os.path.split(path)
    if ".array_record" in name or (os.path.isdir(path) and glob.glob(f"{glob.escape(path)}/*.array_record*")):
        return _from_array_records(path, split)
    if not os.path.exists(path):
        raise DataError(f"no such file or folder: {path}")
    suffix, suffixes = os.path.splitext(name)[1].lower(), SUFFIXES + (IMAGE_SUFFIXES if pictures else ())
    if os.path.isdir(path) or suffix in suffixes:
        rows, class_names = _walk(path, suffixes) if os.path.isdir(path) else ([Row(path)], ())
    elif suffix in MANIFEST_SUFFIXES:
        rows, class_names = _read_manifest(path)
        rows = [Row(os.path.join(folder, row.name), row.label, row.group, row.split) for row in rows]
    else:
        raise DataError(
            f"cannot tell what {path} is: give a folder of videos, a manifest ({', '.join(MANIFEST_SUFFIXES)}) "
            "or .array_record files"
        )
    if not rows:
        raise DataError(f"no rows in {path}: a manifest needs one video a line")
    keep = _in_split(path, [row.split for row in rows], split)
    rows = [rows[i] for i in keep]
    return Source(path, *_columns(rows), class_names)


def _columns(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    text = np.dtypes.StringDType()
    return (
        np.array([row.name for row in rows], text),
        np.array([row.label for row in rows], np.int32),
        np.array([row.group for row in rows], text),
    )


def _in_split(path: str, splits: Sequence[str], split: str) -> Sequence[int]:
    """Rows whose split is `split`; all if it is empty."""
    if not split:
        return range(len(splits))
    keep = [i for i, value in enumerate(splits) if value == split]
    if not keep:
        known = sorted(set(splits) - {""})
        has = f"it has {', '.join(known)}" if known else "it has none: give a manifest with a `split` column"
        raise DataError(f"no split {split!r} in {path}: {has}")
    return keep


def _walk(root: str, suffixes: tuple[str, ...]) -> tuple[list[Row], tuple[str, ...]]:
    """All videos below a folder, sorted by path, links followed; and the first-level subfolders that hold some."""
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        # Links may lead back up: enter every real folder once.
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(s for s in subfolders if os.path.realpath(os.path.join(folder, s)) not in seen)
        found += [os.path.join(folder, f) for f in files if f.lower().endswith(suffixes) and not f.startswith(".")]
    if not found:
        raise DataError(f"no videos in {root}: looked in all subfolders for {' '.join(suffixes)}")
    for path in found:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"a file name is not UTF-8 text: {path!r}: rename the file") from error
    tops = {p: os.path.relpath(p, root).split(os.sep)[0] if os.path.dirname(p) != root else "" for p in found}
    class_names = tuple(sorted(set(tops.values()) - {""}))
    ids = {name: i for i, name in enumerate(class_names)} | {"": -1}
    return [Row(p, ids[tops[p]]) for p in sorted(found)], class_names


def _read_manifest(path: str) -> tuple[list[Row], tuple[str, ...]]:
    lines = list(_lines(path))
    if not lines:
        return [], ()
    header = next(csv.reader([lines[0][1]], skipinitialspace=True))
    if "path" in [cell.strip() for cell in header]:
        return _read_columns(path, lines)
    return [_parse_line(path, number, line) for number, line in lines], ()


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Non-empty lines with their number, from 1."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: not UTF-8 text ({error.reason})") from error
            if line.strip():
                yield number, line


def _parse_line(path: str, number: int, line: str) -> Row:
    """`path label`, `path::label`, or only `path` if that ends like a video. Paths may contain spaces."""
    line = line.strip()
    *name, label = [part.strip() for part in (line.rsplit("::", 1) if "::" in line else line.rsplit(None, 1))]
    if name and name[0] and _INTEGER.fullmatch(label) and int(label) >= -1:
        return Row(name[0].strip('"'), int(label))
    if line.lower().endswith(SUFFIXES + IMAGE_SUFFIXES):
        return Row(line)
    raise DataError(
        f"{path}:{number}: cannot read {line!r}: write `path label` (label: an integer from 0, or -1), "
        "or start the file with a header line that names a `path` column"
    )


def _read_columns(path: str, lines: list[tuple[int, str]]) -> tuple[list[Row], tuple[str, ...]]:
    """Rows of a manifest with a header; quoted cells may not contain line breaks."""
    header: list[str] = []
    rows, labels = [], []
    for number, line in lines:
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], strict=True, skipinitialspace=True))]
        except csv.Error as error:
            raise DataError(f"{path}:{number}: cannot read {line!r}: {error}") from error
        if not header:
            header = cells
            continue
        if len(cells) != len(header):
            raise DataError(f"{path}:{number}: {len(cells)} cells, the header names {len(header)}: {line!r}")
        row = dict(zip(header, cells, strict=True))
        if not row["path"]:
            raise DataError(f"{path}:{number}: the path is empty")
        rows.append(Row(row["path"], -1, row.get("group") or row.get("scene") or "", row.get("split", "")))
        labels.append((number, row.get("label", "")))
    ids, class_names = _class_ids(path, labels)
    return [Row(r.name, i, r.group, r.split) for r, i in zip(rows, ids, strict=True)], class_names


def _class_ids(path: str, labels: list[tuple[int, str]]) -> tuple[list[int], tuple[str, ...]]:
    """Integers as they are; names become indices into the sorted names. An empty label is -1."""
    given = [(number, label) for number, label in labels if label]
    integers = [bool(_INTEGER.fullmatch(label)) for _, label in given]
    if any(integers) and not all(integers):
        number, label = given[integers.index(False)]
        raise DataError(f"{path}:{number}: label {label!r} is a name, other rows have integers: use one kind")
    if any(integers):
        for number, label in given:
            if int(label) < -1:
                raise DataError(f"{path}:{number}: label {label} is negative: count classes from 0, -1 is unknown")
        return [int(label or -1) for _, label in labels], ()
    class_names = tuple(sorted({label for _, label in given}))
    ids = {name: i for i, name in enumerate(class_names)} | {"": -1}
    return [ids[label] for _, label in labels], class_names


def write_array_record(dst: str, rows: Iterable[tuple[Row, bytes]], class_names: Sequence[str] = ()) -> int:
    """Packs encoded videos (the bytes of video files) into one ArrayRecord file; returns how many.

    A record is the length of its header (4 bytes, little-endian), the header (JSON: name, label, group, split) and the
    bytes of the video file. The last record holds no video; its header lists all others, so that a file opens with one
    read: {"rows": [[name, label, group, split], ...], "class_names": [...]}. The file appears when it is complete.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = f"{dst}.partial"
    writer = ArrayRecordWriter(partial, "group_size:1")  # one record a chunk: records are read one at a time
    index = []
    for row, video in rows:
        writer.write(_pack(asdict(row), video))
        index.append([row.name, row.label, row.group, row.split])
    writer.write(_pack({"rows": index, "class_names": list(class_names)}))
    writer.close()
    os.replace(partial, dst)
    return len(index)


def _pack(header: dict, video: bytes = b"") -> bytes:
    text = json.dumps(header, ensure_ascii=False).encode()
    return _HEADER_LENGTH.pack(len(text)) + text + video


def _unpack(record: bytes) -> tuple[dict, bytes]:
    start = _HEADER_LENGTH.size
    end = start + _HEADER_LENGTH.unpack_from(record)[0]
    return json.loads(record[start:end]), record[end:]


@functools.lru_cache(maxsize=256)
def _reader(shard: str):
    """An open reader, one a process and file: readers do not pickle."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(shard, "readahead_buffer_size:0")


def _from_array_records(path: str, split: str) -> Source:
    pattern = f"{glob.escape(path)}/*.array_record*" if os.path.isdir(path) else path
    shards = tuple(sorted(s for s in glob.glob(pattern) if not s.endswith(".partial")))
    if not shards:
        raise DataError(f"no such file or folder: {path}")
    rows, records, class_names = [], [], None
    for number, shard in enumerate(shards):
        try:
            reader = _reader(shard)
            index = _unpack(reader.read([reader.num_records() - 1])[0])[0]
            shard_rows = [Row(*row) for row in index["rows"]]
        except Exception as error:
            raise DataError(
                f"{shard} holds no index of videos: write it with data_pipelines.sources.write_array_record"
            ) from error
        if class_names not in (None, tuple(index["class_names"])):
            raise DataError(f"{shard} names other classes than {shards[0]}: pack all files with the same class names")
        class_names = tuple(index["class_names"])
        rows += shard_rows
        records += [(number, i) for i in range(len(shard_rows))]
    if not rows:
        raise DataError(f"no videos in {path}")
    keep = _in_split(path, [row.split for row in rows], split)
    columns = _columns([rows[i] for i in keep])
    return Source(path, *columns, class_names, shards, np.array(records, np.int64)[list(keep)])

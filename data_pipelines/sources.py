"""Where videos come from: folders, manifests and indexed shards, told apart by the path itself.

  folder              all videos below it (and pictures, see `open_sources`), sorted. Label: index of the
                      first-level subfolder among the sorted ones that hold videos; -1 for videos directly in the folder
  one video file      a source of one video, label -1
  *.csv, *.txt        manifest. With a header line that names a `path` column: columns path, label and cluster (all
                      integers, or names that become indices into the sorted names), split, group or scene, licence;
                      others are ignored. Without: lines `path label` or `path::label` (V-JEPA's format), or only `path`
  *.arrow             index (data_pipelines.index), or a folder that holds index.arrow, as `vjepa data shard` writes it
  tfds://NAME         dataset of TensorFlow Datasets, or the folder of one (data_pipelines.tfds_source)

Relative paths in a manifest start at the manifest's folder. Whether a video exists is seen when it is decoded. All of
these may lie in an object store (s3://, gs://).
"""

import csv
import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from data_pipelines import storage
from vjepa_jax.config import DataConfig

T = TypeVar("T")

SUFFIXES = tuple(
    ".3gp .avi .flv .gif .h264 .ivf .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv .y4m".split()
)
IMAGE_SUFFIXES = tuple(".bmp .jpeg .jpg .png .tif .tiff .webp".split())
MANIFEST_SUFFIXES = (".csv", ".txt")
INDEX_SUFFIX = ".arrow"
INDEX_NAME = f"index{INDEX_SUFFIX}"  # of a folder of shards
SHARDS_STATE = "shards.json"  # what a folder of shards is to hold, written before the first one
NO_SHA256 = bytes(32)

_GROUP, _LICENCE = ("group", "scene"), ("licence", "license")
_INTEGER = re.compile(r"-?[0-9]{1,9}")


class DataError(ValueError):
    """Data that cannot be used. The message is one line and says what to change."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one video. Manifests tell some of it, an index all.

    Attributes:
      path: the video, or the shard that holds it.
      label, cluster: indices, -1 if unknown.
      group: scene or subject; group, split and licence may be empty.
      id: name within the data set.
      offset, length: where the video lies in a shard, see `array_records.read`; -1 for a file of its own.
      frames, fps, height, width, duration: as `decode.probe` finds them (duration in seconds); 0 if unknown.
      sha256: of the video's bytes; zeros if unknown.
    """

    path: str
    label: int = -1
    group: str = ""
    split: str = ""
    licence: str = ""
    cluster: int = -1
    id: str = ""
    offset: int = -1
    length: int = -1
    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    duration: float = 0.0
    sha256: bytes = NO_SHA256


class Source(Protocol):
    """Videos 0..n-1 of one path, as the pipeline reads them.

    Attributes:
      path: where the source was opened.
      class_names, cluster_names: of the labels and clusters; empty if these are plain integers or absent.
      clusters: int32[n], or None where there are none.
    """

    path: str
    class_names: tuple[str, ...]
    cluster_names: tuple[str, ...]

    @property
    def clusters(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """The path of video i; for a video in a shard `<shard>#<id>`."""

    def label(self, i: int) -> int: ...

    def group(self, i: int) -> str: ...

    def row(self, i: int) -> Row:
        """All that is known of video i."""

    def open(self, i: int) -> str | io.BytesIO:
        """What a decoder opens: the path of video i, or its bytes. OSError where it cannot be read."""


@dataclass(frozen=True, eq=False)
class FileSource:
    """A `Source` of files. Columns are packed arrays, so that millions of rows travel cheaply to workers.

    Attributes:
      names: StringDType[n], paths.
      labels: int32[n], -1 if unknown.
      groups, splits, licences: StringDType[n], empty if unknown.
      clusters: int32[n], or None.
    """

    path: str
    names: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    splits: np.ndarray
    licences: np.ndarray
    clusters: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    cluster_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return str(self.names[i])

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def group(self, i: int) -> str:
        return str(self.groups[i])

    def row(self, i: int) -> Row:
        name, text = self.name(i), (self.groups, self.splits, self.licences)
        cluster = -1 if self.clusters is None else int(self.clusters[i])
        folder = self.path if name.startswith(f"{self.path}/") else os.path.dirname(self.path)
        return Row(name, self.label(i), *(str(column[i]) for column in text), cluster, relative(name, folder))

    def open(self, i: int) -> str | io.BytesIO:
        return open_file(self.name(i))


def open_file(path: str) -> str | io.BytesIO:
    """What a decoder opens of a file: its path, or its bytes if it is remote. Raises OSError."""
    return io.BytesIO(storage.read(path)) if storage.is_remote(path) else path


def joined(folder: str, path: str) -> str:
    """A path that starts at `folder`, unless it is absolute or remote."""
    return path if storage.is_remote(path) else os.path.join(folder, path)


def relative(path: str, folder: str) -> str:
    """`path` seen from a folder; as it is where it lies elsewhere."""
    return path.removeprefix(folder.rstrip("/") + "/")


def open_sources(data: DataConfig) -> list[Source]:
    """The sources named by `data.path`, each restricted to `data.split` if that is set.

    Pictures in folders belong to them for clips of one frame, and where data.pictures is "repeat".

    Raises:
      DataError: nothing there, no videos, an unreadable manifest row (file and line), an unknown split.
    """
    if not data.paths:
        raise DataError("data.path is empty: give a folder of videos, a manifest (.csv) or a folder of shards")
    pictures = data.num_frames == 1 or data.pictures == "repeat"
    return [open_source(path, split=data.split, pictures=pictures) for path in data.paths]


def open_source(path: str, *, split: str = "", pictures: bool = False) -> Source:
    """One source; see `open_sources`. `pictures`: a folder's pictures count as videos of one frame."""
    from data_pipelines import tfds_source  # it knows this module, as `index` does

    suffixes = SUFFIXES + (IMAGE_SUFFIXES if pictures else ())
    if path.startswith(tfds_source.SCHEME):
        return tfds_source.open_tfds(path, split)
    if storage.is_remote(path):
        path = path.rstrip("/")
        files = [] if _suffix(path) in (INDEX_SUFFIX, *MANIFEST_SUFFIXES) else _listed(path)
        is_folder, has_index = files != [] and files != [path], f"{path}/{INDEX_NAME}" in files
    else:
        path = os.path.abspath(os.path.expanduser(path))
        if not os.path.exists(path):
            raise DataError(f"no such file or folder: {path}")
        files, is_folder, has_index = [], os.path.isdir(path), os.path.isfile(os.path.join(path, INDEX_NAME))
    if has_index or _suffix(path) == INDEX_SUFFIX:
        from data_pipelines import index

        return index.IndexSource(f"{path}/{INDEX_NAME}" if has_index else path, split)
    if is_folder and not files and tfds_source.is_tfds(path):
        return tfds_source.open_tfds(path, split)
    clusters: tuple[str, ...] = ()
    if is_folder:
        found = [f for f in files if _is_video(f, suffixes)] if files else _walk(path, suffixes)
        rows, class_names = _classed(path, found, suffixes)
    elif _suffix(path) in suffixes:
        rows, class_names = [Row(path)], ()
    elif _suffix(path) in MANIFEST_SUFFIXES:
        rows, class_names, clusters = _read_manifest(path)
    else:
        raise DataError(
            f"cannot tell what {path} is: give a folder of videos, a manifest ({', '.join(MANIFEST_SUFFIXES)}), "
            f"an index ({INDEX_SUFFIX}) or a folder of shards"
        )
    if not rows:
        raise DataError(f"no rows in {path}: a manifest needs one video a line")
    keep = _in_split(path, [row.split for row in rows], split)
    return _packed(path, [rows[i] for i in keep], class_names, clusters)


def _packed(path: str, rows: Sequence[Row], class_names: tuple[str, ...], cluster_names: tuple[str, ...]) -> FileSource:
    text = np.dtypes.StringDType()
    columns = [np.array([getattr(row, key) for row in rows], text) for key in ("path", "group", "split", "licence")]
    names, *columns = columns
    labels, clusters = (np.array([getattr(row, key) for row in rows], np.int32) for key in ("label", "cluster"))
    known = clusters if (clusters >= 0).any() else None
    return FileSource(path, names, labels, *columns, known, class_names, cluster_names)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _listed(folder: str) -> list[str]:
    """The files below a remote folder; `folder` itself if it is a file."""
    files = _asked(storage.list_files, folder)
    if not files:
        raise DataError(f"no such file or folder: {folder}")
    return files


def _in_split(path: str, splits: Sequence[str], split: str) -> Sequence[int]:
    """Rows whose split is `split`; all if it is empty."""
    if not split:
        return range(len(splits))
    keep = [i for i, value in enumerate(splits) if value == split]
    if not keep:
        raise no_split(path, split, splits)
    return keep


def no_split(path: str, split: str, splits: Iterable[str]) -> DataError:
    """The error of a split that is not among `splits`."""
    known = sorted(set(splits) - {""})
    has = f"it has {', '.join(known)}" if known else "it has none: give a manifest with a `split` column"
    return DataError(f"no split {split!r} in {path}: {has}")


def _is_video(path: str, suffixes: tuple[str, ...]) -> bool:
    return path.lower().endswith(suffixes) and not os.path.basename(path).startswith(".")


def fetched(path: str) -> str:
    """A local copy of a manifest or index; see storage.open_local. Raises DataError where it cannot be had."""
    return _asked(storage.open_local, path)


def _asked(function: Callable[[str], T], path: str) -> T:
    """What a function of `storage` says of a path. Raises DataError for its OSError."""
    try:
        return function(path)
    except OSError as error:
        raise DataError(str(error)) from error


def _walk(root: str, suffixes: tuple[str, ...]) -> list[str]:
    """All videos below a folder, links followed."""
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        # Links may lead back up: enter every real folder once.
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(s for s in subfolders if os.path.realpath(os.path.join(folder, s)) not in seen)
        found += [os.path.join(folder, f) for f in files if _is_video(f, suffixes)]
    return found


def _classed(root: str, found: list[str], suffixes: tuple[str, ...]) -> tuple[list[Row], tuple[str, ...]]:
    """Rows of the videos below a folder, sorted by path; and the first-level subfolders that hold some."""
    if not found:
        if os.path.exists(os.path.join(root, SHARDS_STATE)):
            raise DataError(f"{root} holds unfinished shards: run the `vjepa data shard` that writes them once more")
        raise DataError(f"no videos in {root}: looked in all subfolders for {' '.join(suffixes)}")
    for path in found:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"a file name is not UTF-8 text: {path!r}: rename the file") from error
    tops = {path: relative(path, root).rpartition("/")[0].partition("/")[0] for path in found}
    class_names = tuple(sorted(set(tops.values()) - {""}))
    ids = {name: i for i, name in enumerate(class_names)} | {"": -1}
    return [Row(path, ids[tops[path]]) for path in sorted(found)], class_names


Manifest = tuple[list[Row], tuple[str, ...], tuple[str, ...]]  # rows, names of classes, names of clusters


def _read_manifest(path: str) -> Manifest:
    lines = list(_lines(fetched(path)))
    if not lines:
        return [], (), ()
    header = next(csv.reader([lines[0][1]], skipinitialspace=True))
    if "path" in [cell.strip() for cell in header]:
        rows, *names = _read_columns(path, lines)
    else:
        rows, *names = [_parse_line(path, number, line) for number, line in lines], (), ()
    folder = os.path.dirname(path)
    return [dataclasses.replace(row, path=joined(folder, row.path)) for row in rows], *names


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


def _read_columns(path: str, lines: list[tuple[int, str]]) -> Manifest:
    """Rows of a manifest with a header; quoted cells may not contain line breaks."""
    header: list[str] = []
    rows, labels, clusters = [], [], []
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
        group, licence = (next((row[key] for key in keys if row.get(key)), "") for keys in (_GROUP, _LICENCE))
        rows.append(Row(row["path"], -1, group, row.get("split", ""), licence))
        labels.append((number, row.get("label", "")))
        clusters.append((number, row.get("cluster", "")))
    ids, class_names = _class_ids(path, labels, "label")
    cluster_ids, cluster_names = _class_ids(path, clusters, "cluster")
    for i, row in enumerate(rows):
        rows[i] = dataclasses.replace(row, label=ids[i], cluster=cluster_ids[i])
    return rows, class_names, cluster_names


def _class_ids(path: str, labels: list[tuple[int, str]], what: str) -> tuple[list[int], tuple[str, ...]]:
    """Integers as they are; names become indices into the sorted names. An empty label is -1."""
    given = [(number, label) for number, label in labels if label]
    integers = [bool(_INTEGER.fullmatch(label)) for _, label in given]
    if any(integers) and not all(integers):
        number, label = given[integers.index(False)]
        raise DataError(f"{path}:{number}: {what} {label!r} is a name, other rows have integers: use one kind")
    if any(integers):
        for number, label in given:
            if int(label) < -1:
                raise DataError(f"{path}:{number}: {what} {label} is negative: count from 0, -1 is unknown")
        return [int(label or -1) for _, label in labels], ()
    class_names = tuple(sorted({label for _, label in given}))
    ids = {name: i for i, name in enumerate(class_names)} | {"": -1}
    return [ids[label] for _, label in labels], class_names

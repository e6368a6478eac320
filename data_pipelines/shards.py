"""`vjepa data shard`: a source becomes ArrayRecord shards and their index, in jobs that any number of machines can do.

    jobs = plan_shards("videos", "shards")           # a plain list; the same one at every call with the same arguments
    for job in jobs: write_shard(job)                # in any order, anywhere that sees both folders
    merge_shards(jobs, "shards")

A folder of shards:

    shards.json                             what is to be written: source, encoding, videos of each shard
    videos-00000-of-00012.array_record ...  the videos (array_records.py)
    index.arrow                             their index; it appears last
    bad_videos.jsonl                        videos that were left out, where there are any: {"path", "error"}

While it is written there are also plan.arrow, the rows of the source where that is no index, and parts/, the index of
each finished shard. Every file appears whole or not at all, so that after a kill the same command does what is missing.
"""

import dataclasses
import functools
import glob
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines import array_records, pool, storage
from data_pipelines.decode import DecodeError
from data_pipelines.index import IndexSource, IndexWriter, partial_name, read_index
from data_pipelines.indexing import Broken, content, local, probed, video_reader
from data_pipelines.reencode import Encoding, encode
from data_pipelines.sources import INDEX_NAME, SHARDS_STATE, DataError, FileSource, Row, Source, joined, open_source

LEDGER = "bad_videos.jsonl"
_FORMAT = 1
_PLAN, _PARTS = "plan.arrow", "parts"
_GUESS = 1 << 20  # bytes that a remote video is taken for: asking for each would take too long


@dataclass(frozen=True)
class ShardJob:
    """Videos [start, stop) of a source (path and split) for one shard file, and the part of the index to write."""

    source: str
    split: str
    start: int
    stop: int
    shard: str
    part: str
    encoding: Encoding | None = None


def write_shards(
    src: str,
    dst: str,
    *,
    split: str = "",
    pictures: bool = False,
    encoding: Encoding | None = None,
    shard_bytes: int = 256 << 20,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Writes the shards of a source to the folder `dst`, or what is missing of them; returns the path of their index.

    Without `encoding` the bytes of the files are kept, so that clips are bitwise those of the source. Rows keep its
    order (an index sorts them by cluster and split). The files do not depend on the number of workers.

    Args:
      split, pictures: as in `sources.open_source`.
      encoding: encode all videos anew.
      shard_bytes: of the videos of a shard before they are encoded, about.
      workers: as in `pool.each`.
      progress: called with videos done and videos in all.

    Raises:
      DataError: the source cannot be opened, no video of it can be read, `dst` holds something else or cannot be
        written (no space).
    """
    dst = local(dst)
    try:
        jobs = plan_shards(src, dst, split=split, pictures=pictures, encoding=encoding, shard_bytes=shard_bytes)
        if not os.path.exists(os.path.join(dst, INDEX_NAME)):
            total, open_jobs = jobs[-1].stop, [job for job in jobs if not is_finished(job)]
            done = total - sum(job.stop - job.start for job in open_jobs)
            progress(done, total)
            for count in pool.each(_write_shard, None, open_jobs, workers):
                done += count
                progress(done, total)
        return merge_shards(jobs, dst)
    except OSError as error:
        raise DataError(
            f"{dst} cannot be written ({error}): free space or name another folder; what is finished is kept, "
            "run the same command again"
        ) from error


def plan_shards(
    src: str,
    dst: str,
    *,
    split: str = "",
    pictures: bool = False,
    encoding: Encoding | None = None,
    shard_bytes: int = 256 << 20,
) -> list[ShardJob]:
    """The jobs for `write_shard`; writes `dst`/shards.json, which holds them at later calls. See `write_shards`."""
    dst = local(dst)
    asked = {
        "format": _FORMAT,
        "source": src if storage.is_remote(src) else local(src),
        "split": split,
        "pictures": pictures,
        "encoding": encoding and dataclasses.asdict(encoding),
        "shard_bytes": shard_bytes,
    }
    saved = _saved(dst, asked)
    if "starts" not in saved:
        source = open_source(src, split=split, pictures=pictures)
        # The state first, so that what follows is known as the beginning of these shards.
        _write_state(dst, asked)
        saved = asked | _cut(source, dst, shard_bytes)
        _write_state(dst, saved)
    starts: list[int] = saved["starts"]
    src, split = (os.path.join(dst, _PLAN), "") if saved["planned"] else (asked["source"], split)
    count = len(starts) - 1
    return [
        ShardJob(
            src,
            split,
            starts[i],
            starts[i + 1],
            os.path.join(dst, f"videos-{i:05d}-of-{count:05d}.array_record"),
            os.path.join(dst, _PARTS, f"{i:05d}.arrow"),
            encoding,
        )
        for i in range(count)
    ]


def is_finished(job: ShardJob) -> bool:
    """Whether the shard of a job is there: its part of the index is, and its size is right."""
    try:
        size = read_index(job.part)[0]["more"]["bytes"]
    except DataError:
        return False
    return not size or (os.path.exists(job.shard) and os.path.getsize(job.shard) == size)


def write_shard(job: ShardJob) -> int:
    """Writes one shard and its part of the index; returns the number of videos looked at. The same job gives the same
    bytes. Raises OSError where they cannot be written."""
    source = _opened(job.source, job.split)
    rows: list[Row] = []
    broken: list[Broken] = []

    def videos() -> Iterator[bytes]:
        for i in range(job.start, job.stop):
            try:
                row, video = _prepare(source, i, job.encoding)
            except (OSError, DecodeError) as error:
                broken.append((source.name(i), str(error)))
                continue
            rows.append(row)
            yield video

    temporary = partial_name(job.shard)
    spans, size = array_records.write(temporary, videos()), 0
    if rows:
        size = os.path.getsize(temporary)
        os.replace(temporary, job.shard)
    else:
        os.remove(temporary)
    more = {"bytes": size, "broken": broken}
    with IndexWriter(job.part, source.class_names, source.cluster_names, more) as writer:
        for row, (offset, length) in zip(rows, spans, strict=True):
            place = {"path": os.path.basename(job.shard), "offset": offset, "length": length}
            writer.write(dataclasses.replace(row, **place))
    return job.stop - job.start


def merge_shards(jobs: Sequence[ShardJob], dst: str) -> str:
    """Joins the parts of the index, names broken videos in the ledger and tidies up; returns the path of the index.

    Raises:
      DataError: no video could be read.
    """
    dst = local(dst)
    index = os.path.join(dst, INDEX_NAME)
    if not os.path.exists(index):
        metadata = read_index(jobs[0].part)[0]
        with IndexWriter(index, metadata["class_names"], metadata["cluster_names"]) as writer:
            count, broken = 0, []
            for job in jobs:
                part, batches = read_index(job.part)
                broken += part["more"]["broken"]
                for batch in batches:
                    count += batch.num_rows
                    writer.write_batch(batch)
            if not count:
                raise DataError(f"no video of {jobs[0].source} can be read; the first one: {': '.join(broken[0])}")
            _write_ledger(os.path.join(dst, LEDGER), broken)
    shutil.rmtree(os.path.join(dst, _PARTS), ignore_errors=True)
    if os.path.exists(os.path.join(dst, _PLAN)):
        os.remove(os.path.join(dst, _PLAN))
    return index


def _write_shard(_: None, job: ShardJob) -> int:
    return write_shard(job)


@functools.lru_cache(maxsize=2)
def _opened(path: str, split: str) -> Source:
    return open_source(path, split=split)


def _prepare(source: Source, i: int, encoding: Encoding | None) -> tuple[Row, bytes]:
    """The row and the bytes of video i as a shard holds them. Raises OSError or DecodeError."""
    file = source.open(i)
    if encoding is None:
        video = content(file)
    else:
        with video_reader(file) as reader:
            video = encode(reader.frames(range(reader.num_frames)), reader.fps, encoding)
    row = probed(source.row(i), io.BytesIO(video))
    return dataclasses.replace(row, sha256=hashlib.sha256(video).digest()), video


def _saved(dst: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What shards.json holds, {} in a new folder. Raises DataError if the folder holds something else."""
    state = os.path.join(dst, SHARDS_STATE)
    if not os.path.exists(state):
        if os.path.exists(dst) and (not os.path.isdir(dst) or set(os.listdir(dst)) - {f"{SHARDS_STATE}.partial"}):
            raise DataError(f"{dst} exists and holds no shards: name a new or empty folder")
        return {}
    with open(state, encoding="utf-8") as file:
        saved = json.load(file)
    for key, now in asked.items():
        if saved.get(key) != now:
            raise DataError(
                f"{dst} holds other shards ({key}: {saved.get(key)} there, {now} asked): name another folder"
            )
    for partial in glob.glob(f"{glob.escape(dst)}/**/*.partial", recursive=True):
        os.remove(partial)
    return saved


def _cut(source: Source, dst: str, shard_bytes: int) -> dict[str, Any]:
    """Where shards begin, and whether the rows of the source had to be planned (it is no index)."""
    planned = isinstance(source, FileSource)
    if planned:
        with IndexWriter(os.path.join(dst, _PLAN), source.class_names, source.cluster_names) as writer:
            for i in range(len(source)):
                writer.write(source.row(i))
        source = open_source(os.path.join(dst, _PLAN))
    starts, size = [0], 0
    for i, here in enumerate(_sizes(source)):
        if size and size + here > shard_bytes:
            starts.append(i)
            size = 0
        size += here
    return {"starts": [*starts, len(source)], "planned": planned}


def _sizes(source: Source) -> Iterator[int]:
    """Bytes of every video; a guess where that is not known here."""
    if not isinstance(source, IndexSource):
        yield from itertools.repeat(_GUESS, len(source))
        return
    folder = os.path.dirname(source.path)
    for path, length in source.values("path", "length"):
        if length < 0:
            path = joined(folder, path)
            length = os.path.getsize(path) if os.path.exists(path) else _GUESS
        yield length


def _write_state(dst: str, values: dict[str, Any]) -> None:
    os.makedirs(dst, exist_ok=True)
    _write_text(os.path.join(dst, SHARDS_STATE), json.dumps(values))
    os.makedirs(os.path.join(dst, _PARTS), exist_ok=True)


def _write_ledger(path: str, broken: Sequence[Broken]) -> None:
    if broken:
        entries = [json.dumps({"path": name, "error": error}, ensure_ascii=False) for name, error in broken]
        _write_text(path, "\n".join([*entries, ""]))


def _write_text(path: str, text: str) -> None:
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.partial", path)

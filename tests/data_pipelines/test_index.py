"""The index: every column comes back, in the order of clusters and splits, mapped and never copied."""

import dataclasses
import hashlib
import os
import pathlib
import pickle

import numpy as np
import pyarrow as pa
import pytest

from data_pipelines import array_records, index, index_bench, indexing
from data_pipelines.decode import probe
from data_pipelines.index import IndexSource, IndexWriter
from data_pipelines.sources import DataError, Row, open_source

from .videos import write_video


def make_rows(count: int, clusters: int = 1, splits: tuple[str, ...] = ("",), seed: int = 0) -> list[Row]:
    """Rows of which every field differs from its default, in no order."""
    rng = np.random.default_rng(seed)
    return [
        Row(
            f"/v/{i}.mp4", i % 7, f"group {i % 5}", splits[rng.integers(len(splits))], "CC BY",
            int(rng.integers(clusters)), f"{i}", -1, -1, i + 1, 0.5 * i, 2 * i, 3 * i, i / 4,
            hashlib.sha256(b"%d" % i).digest(),
        )
        for i in range(count)
    ]  # fmt: skip


def write(path, rows, **kwargs):
    with IndexWriter(str(path), **kwargs) as writer:
        for row in rows:
            writer.write(row)
    return str(path)


def read(source):
    return [source.row(i) for i in range(len(source))]


def test_columns_come_back_in_order(tmp_path, monkeypatch):
    """Sorted by cluster and split like Python's stable sort does it, over several batches and windows."""
    monkeypatch.setattr(index, "_BATCH", 16)
    monkeypatch.setattr(index, "_WINDOW", 48)
    rows = make_rows(200, clusters=5, splits=("train", "", "test"))
    names = [f"cluster {i}" for i in range(5)]
    path = write(tmp_path / "a.arrow", rows, class_names=["x"], cluster_names=names, more={"k": [1]})
    assert os.listdir(tmp_path) == ["a.arrow"]
    source = IndexSource(path)
    expected = sorted(rows, key=lambda row: (row.cluster, row.split))
    assert read(source) == expected
    assert source.class_names == ("x",) and source.cluster_names == tuple(names) and source.more == {"k": [1]}
    assert source.clusters.tolist() == [row.cluster for row in expected] and source.clusters.dtype == np.int32
    for split in ("train", "test"):
        part = IndexSource(path, split)
        expected_part = [row for row in expected if row.split == split]
        assert read(part) == expected_part and part.path == path
        assert part.clusters.tolist() == [row.cluster for row in expected_part]
        assert list(part.values("id", "frames")) == [(row.id, row.frames) for row in expected_part]
        assert (part.name(3), part.label(3), part.group(3)) == (
            expected_part[3].path, expected_part[3].label, expected_part[3].group
        )  # fmt: skip


def test_order_stays_where_there_is_nothing_to_sort(tmp_path):
    rows = [dataclasses.replace(row, cluster=-1) for row in make_rows(50)]
    source = IndexSource(write(tmp_path / "a.arrow", rows))
    assert read(source) == rows and source.clusters is None


def test_it_pickles_as_its_path(tmp_path):
    source = IndexSource(write(tmp_path / "a.arrow", make_rows(5000, splits=("a", "b"))), "b")
    packed = pickle.dumps(source)
    assert len(packed) < 300
    assert read(pickle.loads(packed)) == read(source)


def test_paths_start_at_the_folder_of_the_index(tmp_path):
    rows = [Row("sub/a.mp4"), Row("/elsewhere/b.mp4"), Row("s3://bucket/c.mp4")]
    source = IndexSource(write(tmp_path / "a.arrow", rows))
    assert [source.name(i) for i in range(3)] == [str(tmp_path / "sub/a.mp4"), "/elsewhere/b.mp4", "s3://bucket/c.mp4"]
    assert source.open(0) == str(tmp_path / "sub/a.mp4")
    for place in (-1, 3):
        with pytest.raises(IndexError, match=f"video {place} of 3"):
            source.name(place)


def test_an_index_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), IndexWriter(str(tmp_path / "a.arrow")) as writer:
        writer.write(Row("a.mp4"))
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == []


def test_errors_are_one_clear_line(tmp_path):
    path = write(tmp_path / "a.arrow", make_rows(3, splits=("train",)))
    with pytest.raises(DataError, match=r"no split 'val' in .*a\.arrow: it has train"):
        IndexSource(path, "val")
    data = pathlib.Path(path).read_bytes()
    (tmp_path / "cut.arrow").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.arrow is no whole index of videos: write it with `vjepa data index`"):
        IndexSource(str(tmp_path / "cut.arrow"))
    other = pa.table({"path": ["a.mp4"]})
    with pa.ipc.new_file(str(tmp_path / "other.arrow"), other.schema) as writer:
        writer.write_table(other)
    with pytest.raises(DataError, match=r"other\.arrow is no whole index of videos"):
        IndexSource(str(tmp_path / "other.arrow"))
    with pytest.raises(DataError, match=r"no rows in .*empty\.arrow"):
        IndexSource(write(tmp_path / "empty.arrow", []))


def test_an_index_of_another_format(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_FORMAT", 99)
    path = write(tmp_path / "a.arrow", make_rows(1))
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"a\.arrow is an index of format 99, not 1: write it again"):
        IndexSource(path)


def test_records_are_one_range_read(tmp_path):
    """Sizes around the blocks of the file format; the official reader sees the same records."""
    from array_record.python.array_record_module import ArrayRecordReader

    rng = np.random.default_rng(0)
    sizes = [0, 1, 127, 128, 65536, 65535, 65471, 65472, 200_000, 1 << 20, *rng.integers(1, 150_000, 40).tolist()]
    videos = [rng.bytes(size) for size in sizes]
    path = str(tmp_path / "a.array_record")
    spans = array_records.write(path, iter(videos))
    assert [length for _, length in spans] == sizes
    assert [array_records.read(path, *span) for span in spans] == videos
    assert ArrayRecordReader(path).read_all() == videos
    with pytest.raises(OSError, match="is truncated"):
        array_records.read(path, os.path.getsize(path) - 10, 100)


def test_a_full_disk_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"/dev/full cannot be written: .*No space left on device"):
        array_records.write("/dev/full", [b"video"])
    with pytest.raises(OSError, match="No such file or directory"):
        array_records.write(str(tmp_path / "absent" / "a"), [])


def test_damaged_records_are_named(tmp_path):
    videos = [b"a" * 100_000, b"b" * 100]
    shard = tmp_path / "a.array_record"
    spans = array_records.write(str(shard), videos)
    rows = [
        Row("a.array_record", id=f"{i}.mp4", offset=offset, length=length, sha256=hashlib.sha256(videos[i]).digest())
        for i, (offset, length) in enumerate(spans)
    ]
    source = open_source(write(tmp_path / "index.arrow", rows))
    assert [source.open(i).getvalue() for i in range(2)] == videos
    assert source.name(1) == f"{shard}#1.mp4"
    data = bytearray(shard.read_bytes())
    data[spans[0][0] + 500] ^= 1
    shard.write_bytes(data)
    with pytest.raises(OSError, match=r"a\.array_record#0\.mp4 is damaged: its bytes do not have the checksum"):
        source.open(0)
    assert source.open(1).getvalue() == videos[1]
    shard.write_bytes(data[:70_000])
    with pytest.raises(OSError, match=r"a\.array_record is truncated"):
        source.open(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_index_of_a_folder(tmp_path, workers):
    """What `probe` finds, for any number of workers; the index may move with its folder."""
    folder = tmp_path / "videos"
    for i in range(18):
        write_video(folder / "ab"[i % 2] / f"{i:02d}.mp4", 3 + i, video=i, fps=10 + i, gop=4)
    (folder / "a" / "bad.mp4").write_bytes(b"no video")
    seen = []
    broken = indexing.write_index(
        open_source(str(folder)), str(folder / "index.arrow"), checksums=True, workers=workers, progress=seen.append
    )
    assert [name for name, _ in broken] == [str(folder / "a" / "bad.mp4")] and seen == [16, 19]
    moved = folder.rename(tmp_path / "moved")
    source = open_source(str(moved))
    assert isinstance(source, IndexSource) and len(source) == 18 and source.class_names == ("a", "b")
    for i in range(18):
        row = source.row(i)
        path = pathlib.Path(source.open(i))
        info = probe(path)
        assert (row.frames, row.height, row.width) == (info.num_frames, info.height, info.width)
        assert (row.fps, row.duration) == (np.float32(info.fps), np.float32(info.duration))
        assert row.sha256 == hashlib.sha256(path.read_bytes()).digest()
        assert row.id == str(path.relative_to(moved)) and row.label == "ab".index(path.parent.name)


def test_an_index_needs_a_video(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(DataError, match=r"no video of .* can be read; the first one: .*a\.mp4: "):
        indexing.write_index(open_source(str(tmp_path)), str(tmp_path / "index.arrow"), workers=0)
    assert os.listdir(tmp_path) == ["a.mp4"]
    with pytest.raises(DataError, match=r"s3://b/i\.arrow is remote: write to a folder of this machine"):
        indexing.write_index(open_source(str(tmp_path)), "s3://b/i.arrow", workers=0)


def test_only_files_can_be_indexed(tmp_path):
    class Dataset:
        """A source of another kind."""

        path = "tfds"

    with pytest.raises(DataError, match="tfds holds no files that an index could name"):
        indexing.write_index(Dataset(), str(tmp_path / "index.arrow"))


def test_benchmark_of_opening(tmp_path):
    record = index_bench.benchmark(2000, str(tmp_path))
    rows, of_split = record["shape"]
    assert rows == 2000 and 1700 < of_split < 1900 and record["row_us"] > 0
    assert record["rss_mib"][0] < 500 and max(record["open_s"]) < 5 and os.listdir(tmp_path) == []

"""Our videos as a dataset of TFDS: read by TFDS and by us to the same bytes; no TensorFlow; one clear line else."""

import argparse
import hashlib
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from data_pipelines import tfds_builder
from data_pipelines.decode import probe
from data_pipelines.index import IndexWriter
from data_pipelines.sources import DataError, Row
from data_pipelines.tfds_source import open_tfds

from .videos import write_video

# With protobuf 6, which Apache Beam brings, TFDS is warned of how it reads its own descriptors.
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{i}.mp4", 4 + i, video=i) for i in range(4)]


@pytest.fixture(scope="module")
def index(videos):
    path = str(videos[0].parent / "index.arrow")
    with IndexWriter(path, ["wave", "jump"], ["few", "many"]) as writer:
        for i, video in enumerate(videos):
            split = "test" if i == 1 else "train"
            writer.write(Row(video.name, i % 2, f"g{i}", split, "CC0", 1, f"clip {i}"))
    return path


def read_back(data_dir, name, split):
    """What TFDS itself gives."""
    return list(tfds.data_source(name, data_dir=str(data_dir), split=split))


def test_an_index_there_and_back(index, videos, tmp_path):
    seen = []
    progress = lambda done, total: seen.append((done, total))
    folder, broken = tfds_builder.build(index, str(tmp_path), "mine", version="1.2.0", progress=progress)
    assert folder == str(tmp_path / "mine" / "1.2.0") and broken == []
    assert seen == [(i, 4) for i in range(1, 5)]
    for split, rows in (("train", [0, 2, 3]), ("test", [1])):
        examples, source = read_back(tmp_path, "mine:1.2.0", split), open_tfds(folder, split)
        assert len(examples) == len(source) == len(rows)
        assert source.class_names == ("wave", "jump")
        for k, i in enumerate(rows):
            data = videos[i].read_bytes()
            assert examples[k]["video"] == source.open(k).getvalue() == data
            assert examples[k]["sha256"] == hashlib.sha256(data).digest()
            assert examples[k]["id"].decode() == f"clip {i}" and source.name(k) == f"{folder}#clip {i}"
            assert examples[k]["label"] == source.label(k) == i % 2
            assert source.group(k) == f"g{i}" and examples[k]["licence"] == b"CC0" and examples[k]["cluster"] == 1
            info = probe(str(videos[i]))
            shape = [examples[k][key] for key in ("frames", "height", "width", "fps", "duration")]
            assert shape == pytest.approx([info.num_frames, info.height, info.width, info.fps, info.duration])
            row = source.row(k)
            assert (row.id, row.label, row.group, row.split) == (f"clip {i}", i % 2, f"g{i}", split)
            assert row.licence == "CC0"
            assert row.length == len(data)


def test_a_folder_with_a_broken_video(videos, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for video in videos[:2]:
        (folder / video.name).write_bytes(video.read_bytes())
    (folder / "broken.mp4").write_bytes(b"no video")
    parser = argparse.ArgumentParser()
    tfds_builder.add_arguments(parser)
    assert tfds_builder.run(parser.parse_args([str(folder), str(tmp_path / "datasets"), "--name", "mine"])) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'datasets' / 'mine' / '1.0.0'}: 2 videos, 1 broken ones left out\n"
    assert err.startswith(f"{folder / 'broken.mp4'}: ")
    examples = read_back(tmp_path / "datasets", "mine", "train")
    assert [example["video"] for example in examples] == [video.read_bytes() for video in videos[:2]]
    assert [example["label"] for example in examples] == [-1, -1]


def test_no_tensorflow(videos, tmp_path):
    code = (
        "import sys; from data_pipelines import tfds_builder, tfds_source; "
        "folder, _ = tfds_builder.build(sys.argv[1], sys.argv[2], 'mine'); "
        "print(len(tfds_source.open_tfds(folder).open(0).getvalue()) > 0, "
        "[m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(videos[0]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "True []\n", done.stderr


def broken_folder(path):
    (path / "videos").mkdir()
    (path / "videos" / "broken.mp4").write_bytes(b"no video")
    return str(path / "videos")


def manifest(path, split):
    (path / "videos.csv").write_text(f"path,split\na.mp4,{split}\n")
    return str(path / "videos.csv")


ERRORS = {
    "TFDS takes no dataset 'Mine': name it with small letters": lambda v, p: (v, p, "Mine"),
    "version '1.0' must be three numbers": lambda v, p: (v, p, "mine", "1.0"),
    r"mine/1\.0\.0 exists: give another --name or --version":
        lambda v, p: tfds_builder.build(v, p, "mine") and (v, p, "mine"),
    "is a dataset of TFDS already": lambda v, p: (tfds_builder.build(v, p, "mine")[0], p, "again"),
    r"no video of a split of .* can be read; the last one: .*broken\.mp4: ":
        lambda v, p: (broken_folder(p), p / "out", "mine"),
    "TFDS takes no split 'a b': name it with letters": lambda v, p: (manifest(p, "a b"), p, "mine"),
    "TFDS takes no split 'all'": lambda v, p: (manifest(p, "all"), p, "mine"),
    "no such file or folder": lambda v, p: (p / "absent", p, "mine"),
    r"file/mine/1\.0\.0 cannot be written .*: free space or name":
        lambda v, p: (v, (p / "file").touch() or p / "file", "mine"),
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_clear_line(videos, tmp_path, message):
    src, dst, name, *version = ERRORS[message](str(videos[0]), tmp_path)
    with pytest.raises(DataError, match=message) as error:
        tfds_builder.build(str(src), str(dst), name, **({"version": version[0]} if version else {}))
    assert "\n" not in str(error.value)

"""Sources: every kind of path, their labels, groups and splits, and one clear line for each that cannot be used."""

import os
import pickle

import numpy as np
import pytest

from data_pipelines.decode import VideoReader
from data_pipelines.sources import DataError, Row, open_source, open_sources, write_array_record
from vjepa_jax.config import DataConfig

from .videos import read_numbers, write_video


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def manifest(tmp_path, text, name="videos.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def columns(source):
    return [(os.path.relpath(source.name(i), "/"), source.label(i), source.group(i)) for i in range(len(source))]


def test_folder_with_classes(tmp_path):
    touch(tmp_path, "run/b.mp4", "run/deep/a.MKV", "jump/c.webm", "notes.txt", "empty/readme.md", "run/.hidden.mp4")
    source = open_source(str(tmp_path))
    names = [os.path.relpath(source.name(i), tmp_path) for i in range(len(source))]
    assert names == ["jump/c.webm", "run/b.mp4", "run/deep/a.MKV"]
    assert source.labels.tolist() == [0, 1, 1]
    assert source.class_names == ("jump", "run")
    assert source.labels.dtype == np.int32
    assert source.open(1) == str(tmp_path / "run/b.mp4")


def test_folder_without_classes(tmp_path):
    touch(tmp_path, "b.mp4", "a.avi")
    source = open_source(str(tmp_path))
    assert source.labels.tolist() == [-1, -1] and source.class_names == ()
    assert source.name(0).endswith("a.avi")


def test_folder_with_links_that_lead_back(tmp_path):
    touch(tmp_path, "videos/a.mp4", "elsewhere/b.mp4")
    (tmp_path / "videos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "videos")
    assert len(open_source(str(tmp_path / "videos"))) == 2


def test_one_video(tmp_path):
    touch(tmp_path, "a.mp4")
    source = open_source(str(tmp_path / "a.mp4"))
    assert len(source) == 1 and source.label(0) == -1


def test_manifest_of_vjepa(tmp_path):
    text = "/data/a.mp4 3\nwith space/b.mp4 0\n\nc.mp4::12\nd.webm\ne.mp4 -1\n"
    source = open_source(manifest(tmp_path, text, "videos.txt"))
    assert [source.name(i) for i in range(5)] == [
        "/data/a.mp4", *(str(tmp_path / n) for n in ("with space/b.mp4", "c.mp4", "d.webm", "e.mp4"))
    ]  # fmt: skip
    assert source.labels.tolist() == [3, 0, 12, -1, -1]


def test_manifest_with_columns(tmp_path):
    text = (
        "\ufeffpath,label,split,scene,speed\n"
        '"a, b.mp4",wave,train,kitchen,1\n'
        "c.mp4,,test,garden,2\n"
        "d.mp4,jump,test,,3\n"
    )
    path = manifest(tmp_path, text)
    source = open_source(path)
    assert source.name(0) == str(tmp_path / "a, b.mp4")
    assert source.labels.tolist() == [1, -1, 0]
    assert source.class_names == ("jump", "wave")
    assert [source.group(i) for i in range(3)] == ["kitchen", "garden", ""]
    test = open_source(path, split="test")
    # Class indices are those of the whole file, so that splits agree.
    assert test.labels.tolist() == [-1, 0] and test.class_names == source.class_names
    assert test.name(0) == str(tmp_path / "c.mp4")


def test_manifest_with_integer_labels(tmp_path):
    source = open_source(manifest(tmp_path, "label,path,group\n7,a.mp4,x\n-1,b.mp4,y\n,c.mp4,\n"))
    assert source.labels.tolist() == [7, -1, -1] and source.class_names == ()
    assert source.group(1) == "y"


def test_array_record(tmp_path):
    rows = []
    for i in range(5):
        path = write_video(tmp_path / "videos" / f"{i}.mp4", 4, video=i)
        row = Row(path.name, i % 2, group=f"g{i}", split="train" if i < 3 else "test")
        rows.append((row, path.read_bytes()))
    shards = tmp_path / "shards"
    shards.mkdir()
    assert write_array_record(str(shards / "a.array_record"), rows[:2], ["left", "right"]) == 2
    assert write_array_record(str(shards / "b.array_record"), rows[2:], ["left", "right"]) == 3
    assert sorted(os.listdir(shards)) == ["a.array_record", "b.array_record"]
    for path in (str(shards), str(shards / "*.array_record")):
        source = pickle.loads(pickle.dumps(open_source(path)))
        assert source.labels.tolist() == [0, 1, 0, 1, 0] and source.class_names == ("left", "right")
        assert source.name(2) == str(shards / "b.array_record") + "#2.mp4" and source.group(2) == "g2"
        for i in range(5):
            with VideoReader(source.open(i)) as reader:
                assert read_numbers(reader.read([3]), row=1) == [i]
    test = open_source(str(shards), split="test")
    assert [test.name(i)[-5:] for i in range(2)] == ["3.mp4", "4.mp4"]
    with VideoReader(test.open(1)) as reader:
        assert read_numbers(reader.read([0]), row=1) == [4]
    assert len(open_source(str(shards / "a.array_record"))) == 2


def test_several_sources_and_pickling(tmp_path):
    touch(tmp_path, "one/a.mp4", "two/b.mp4", "two/c.mp4")
    sources = open_sources(DataConfig(path=f"{tmp_path}/one, {tmp_path}/two"))
    assert [len(s) for s in sources] == [1, 2]
    copies = pickle.loads(pickle.dumps(sources))
    assert [columns(s) for s in copies] == [columns(s) for s in sources]


def test_columns_are_packed(tmp_path):
    """Columns are packed: what goes to each worker is about the size of the manifest."""
    text = "".join(f"/videos/of/some/data/set/{i:07d}.mp4 {i % 400}\n" for i in range(20000))
    packed = pickle.dumps(open_source(manifest(tmp_path, text)), protocol=5)
    assert len(packed) < 3 * len(text)


ERRORS = {
    "no videos in .*looked in all subfolders for .*.mp4": lambda p: (touch(p, "a/b.jpg"), str(p))[1],
    "no such file or folder: .*absent": lambda p: str(p / "absent"),
    "no such file or folder: .*absent.csv": lambda p: str(p / "absent.csv"),
    "no such file or folder: .*x.array_record": lambda p: str(p / "x.array_record"),
    "cannot tell what .*data.bin is": lambda p: (touch(p, "data.bin"), str(p / "data.bin"))[1],
    r"videos.csv:3: cannot read 'what is this': write `path label`":
        lambda p: manifest(p, "a.mp4 1\n\nwhat is this\n"),
    r"videos.csv:2: cannot read 'b.mp4 -2'": lambda p: manifest(p, "a.mp4 1\nb.mp4 -2\n"),
    r"videos.csv:1: cannot read 'video,label'": lambda p: manifest(p, "video,label\na.mp4,1\n"),
    r"videos.csv:2: not UTF-8 text": lambda p: manifest(p, b"a.mp4 1\n\xff\xfe.mp4 1\n"),
    r"videos.csv:4: 1 cells, the header names 2": lambda p: manifest(p, "path,label\n\na.mp4,1\nb.mp4\n"),
    r"videos.csv:2: the path is empty": lambda p: manifest(p, "path,label\n,1\n"),
    r"videos.csv:3: label 'wave' is a name, other rows have integers":
        lambda p: manifest(p, "path,label\na.mp4,1\nb.mp4,wave\n"),
    r"videos.csv:2: label -3 is negative": lambda p: manifest(p, "path,label\na.mp4,-3\n"),
    r'videos.csv:2: cannot read .*"b': lambda p: manifest(p, 'path,label\na.mp4,"b\n'),
    "no rows in .*videos.csv": lambda p: manifest(p, "path,label\n"),
    "no rows in .*empty.csv": lambda p: manifest(p, "", "empty.csv"),
    "text.array_record holds no index of videos": lambda p: manifest(p, "text", "text.array_record"),
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_clear_line(tmp_path, message):
    path = ERRORS[message](tmp_path)
    with pytest.raises(DataError, match=message) as error:
        open_source(path)
    assert "\n" not in str(error.value)


def test_split_errors(tmp_path):
    path = manifest(tmp_path, "path,split\na.mp4,train\nb.mp4,test\n")
    with pytest.raises(DataError, match=r"no split 'val' in .*videos.csv: it has test, train"):
        open_source(path, split="val")
    with pytest.raises(DataError, match=r"no split 'val' in .*: it has none: give a manifest with a `split` column"):
        open_source(manifest(tmp_path, "a.mp4 1\n", "plain.csv"), split="val")
    touch(tmp_path, "folder/a.mp4")
    with pytest.raises(DataError, match="no split 'train'"):
        open_sources(DataConfig(path=str(tmp_path / "folder"), split="train"))


def test_empty_path():
    with pytest.raises(DataError, match=r"data\.path is empty: give a folder"):
        open_sources(DataConfig(path=" "))


def test_file_names_that_are_no_text(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / os.fsdecode(b"b\xff.mp4")).touch()
    with pytest.raises(DataError, match=r"not UTF-8 text: .*: rename the file"):
        open_source(str(tmp_path))


def test_shards_with_other_classes(tmp_path):
    for name, classes in (("a", ["left"]), ("b", ["right"])):
        write_array_record(str(tmp_path / f"{name}.array_record"), [(Row("x.mp4", 0), b"")], classes)
    with pytest.raises(DataError, match=r"b\.array_record names other classes than .*a\.array_record"):
        open_source(str(tmp_path))


def test_real_folders(shared_data):
    gestures = open_source(str(shared_data / "gestures" / "labels.csv"))
    assert len(gestures) == 160 and len(gestures.class_names) == 10
    assert sorted(set(gestures.labels.tolist())) == list(range(10))
    fights = open_source(str(shared_data / "surveillance"))
    assert fights.class_names == ("fight", "noFight")
    assert np.bincount(fights.labels).tolist() == [150, 150]

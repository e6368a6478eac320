"""Sources: every kind of path, their labels, groups and splits, and one clear line for each that cannot be used."""

import os
import pickle
import sys

import numpy as np
import pytest

from data_pipelines.index import IndexWriter
from data_pipelines.sources import DataError, Row, open_source, open_sources
from vjepa_jax.config import DataConfig


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


def test_everything_that_a_manifest_tells(tmp_path):
    text = "path,licence,cluster,scene,split,label\na.mp4,CC BY,night,s1,train,3\n/b.mp4,,day,,,\nc.mp4,,,,,0\n"
    source = open_source(manifest(tmp_path, text))
    assert source.cluster_names == ("day", "night") and source.clusters.tolist() == [1, 0, -1]
    assert source.clusters.dtype == np.int32
    assert source.row(0) == Row(str(tmp_path / "a.mp4"), 3, "s1", "train", "CC BY", 1, id="a.mp4")
    assert source.row(1) == Row("/b.mp4", -1, cluster=0, id="/b.mp4")
    assert open_source(manifest(tmp_path, "path\na.mp4\n")).clusters is None


def test_manifest_with_integer_labels(tmp_path):
    source = open_source(manifest(tmp_path, "label,path,group\n7,a.mp4,x\n-1,b.mp4,y\n,c.mp4,\n"))
    assert source.labels.tolist() == [7, -1, -1] and source.class_names == ()
    assert source.group(1) == "y"


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
    "cannot tell what .*x.array_record is: .* or a folder of shards": lambda p: manifest(p, "x", "x.array_record"),
    "text.arrow is no whole index of videos": lambda p: manifest(p, "text", "text.arrow"),
    "no such file or folder: .*absent.arrow": lambda p: str(p / "absent.arrow"),
    r"videos.csv:3: cluster 'b' is a name, other rows have integers":
        lambda p: manifest(p, "path,cluster\na.mp4,1\nb.mp4,b\n"),
    "holds unfinished shards: run the `vjepa data shard`": lambda p: (touch(p, "shards.json"), str(p))[1],
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


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder of an object store that lies in memory: two videos and a manifest of them."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("VJEPA_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.pipe({f"/{tmp_path.name}/{n}": n.encode() for n in ("run/b.mp4", "jump/a.mp4", "run/notes.txt")})
    files.pipe(f"/{tmp_path.name}/list.csv", b"path,label\nrun/b.mp4,4\nmemory://else/c.mp4,5\n")
    yield f"memory://{tmp_path.name}"
    files.rm(f"/{tmp_path.name}", recursive=True)


def test_remote_folder(store):
    source = open_source(f"{store}/")
    assert [source.name(i) for i in range(2)] == [f"{store}/jump/a.mp4", f"{store}/run/b.mp4"]
    assert source.labels.tolist() == [0, 1] and source.class_names == ("jump", "run")
    assert source.open(1).getvalue() == b"run/b.mp4" and source.row(1).id == "run/b.mp4"
    one = open_source(f"{store}/run/b.mp4")
    assert len(one) == 1 and one.label(0) == -1 and one.open(0).getvalue() == b"run/b.mp4"
    with pytest.raises(DataError, match="no such file or folder: memory://absent"):
        open_source("memory://absent")


def test_remote_manifest(store):
    source = open_source(f"{store}/list.csv")
    assert [source.name(i) for i in range(2)] == [f"{store}/run/b.mp4", "memory://else/c.mp4"]
    assert source.labels.tolist() == [4, 5] and source.open(0).getvalue() == b"run/b.mp4"
    with pytest.raises(OSError, match=r"no such file or folder: memory://else/c\.mp4"):
        source.open(1)


def test_remote_folder_with_an_index(store, tmp_path):
    with IndexWriter(str(tmp_path / "index.arrow")) as writer:
        writer.write(Row("run/b.mp4", 3))
    sys.modules["fsspec"].filesystem("memory").put(str(tmp_path / "index.arrow"), f"/{tmp_path.name}/index.arrow")
    for path in (store, f"{store}/index.arrow"):
        source = open_source(path)
        assert source.name(0) == f"{store}/run/b.mp4" and source.label(0) == 3
        assert source.open(0).getvalue() == b"run/b.mp4"


def test_real_folders(shared_data):
    gestures = open_source(str(shared_data / "gestures" / "labels.csv"))
    assert len(gestures) == 160 and len(gestures.class_names) == 10
    assert sorted(set(gestures.labels.tolist())) == list(range(10))
    fights = open_source(str(shared_data / "surveillance"))
    assert fights.class_names == ("fight", "noFight")
    assert np.bincount(fights.labels).tolist() == [150, 150]

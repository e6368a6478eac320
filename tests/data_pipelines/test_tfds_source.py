"""Datasets prepared by TFDS: every layout of a video, splits, names and labels; no TensorFlow; one clear line else."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.decode import DecodeError, VideoReader
from data_pipelines.sources import DataError, Row
from data_pipelines.tfds_source import FrameSequence, is_tfds, open_tfds

from .videos import numbered_frame, read_numbers, write_video

F = tfds.features
TENSOR = F.Tensor(shape=(), dtype=np.object_)
PICTURES = F.Sequence(F.Image(shape=(None, None, 3)))


def prepare(folder, features, examples):
    """A dataset as a user makes one: splits train and test, shards of ArrayRecord. examples: {split: [dict, ...]}."""

    class Mine(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = url_infos = None  # TFDS would look beside this file

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in examples}

        def _generate_examples(self, split):
            yield from enumerate(examples[split])

    tfds.disable_progress_bar()
    Mine(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder / "mine" / "1.0.0"


def pictures(count, video=0, format="PNG"):
    return [encoded(numbered_frame(number, video), format) for number in range(count)]


def encoded(frame, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format)
    return file.getvalue()


def numbers(source, i, indices, row=0):
    with source.open(i) as reader:
        return read_numbers(np.stack(list(reader.frames(indices))), row).tolist()


@pytest.fixture(scope="module")
def bytes_dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    files = [write_video(folder / f"{i}.mp4", 6, video=i).read_bytes() for i in range(5)]
    features = {
        "video": TENSOR,
        "label": F.ClassLabel(names=["wave", "jump"]),
        "metadata": {"video_id": F.Text(), "scene": F.Text(), "caption": F.Text()},
    }
    rows = [
        {"video": file, "label": i % 2, "metadata": {"video_id": f"clip {i}", "scene": f"g{i}", "caption": "a cat"}}
        for i, file in enumerate(files)
    ]
    return prepare(folder, features, {"train": rows[:3], "test": rows[3:]}), files


def test_video_bytes(bytes_dataset):
    folder, files = bytes_dataset
    source = open_tfds(str(folder), "train")
    assert len(source) == 3 and source.clusters is None and source.path == str(folder)
    assert [source.open(i).getvalue() for i in range(3)] == files[:3]
    assert source.class_names == ("wave", "jump") and [source.label(i) for i in range(3)] == [0, 1, 0]
    assert source.name(1) == f"{folder}#clip 1" and source.group(2) == "g2"
    with VideoReader(source.open(2)) as reader:
        assert read_numbers(reader.read([3]), row=1) == [2]


def test_ways_to_name_it_and_splits(bytes_dataset):
    folder, files = bytes_dataset
    root = folder.parent.parent
    for path in (str(folder), str(folder.parent), f"tfds://{folder}", f"tfds://mine:1.0.0?data_dir={root}"):
        assert is_tfds(path)
        assert len(open_tfds(path)) == 5
    assert not is_tfds(str(root)) and not is_tfds(str(folder / "absent"))
    files_of = lambda split: [f.getvalue() for f in map(open_tfds(str(folder), split).open, range(2))]
    assert files_of("test") == files[3:]
    assert files_of("train[1:]") == files[1:3]
    part = open_tfds(str(folder), "test+train[:34%]")
    assert [part.row(i).split for i in range(3)] == ["test", "test", "train"]
    assert [open_tfds(str(folder)).row(i).split for i in (2, 3)] == [part.row(2).split, part.row(0).split]


def test_it_pickles_as_its_path(bytes_dataset):
    folder, files = bytes_dataset
    source = open_tfds(f"tfds://{folder}?label=label", "test")
    source.label(0)
    packed = pickle.dumps(source)
    assert len(packed) < 400
    copy = pickle.loads(packed)
    assert copy.open(1).getvalue() == files[4] and copy.label(1) == 0 and copy.split == "test"


def test_frames_as_in_ucf101(tmp_path):
    """TFDS's Video is a Sequence of Image under another name in features.json; making one needs TensorFlow."""
    features = {"video": PICTURES, "label": F.ClassLabel(names=["a", "b", "c"])}
    rows = [{"video": pictures(3 + i, video=i), "label": i} for i in range(3)]
    folder = prepare(tmp_path, features, {"train": rows})
    entry = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": ["-1", "48", "64", "3"]}},
    }
    for change in (None, entry):
        if change:
            described = json.loads((folder / "features.json").read_text())
            described["featuresDict"]["features"]["video"] = change
            (folder / "features.json").write_text(json.dumps(described))
        source = open_tfds(f"tfds://{folder}?fps=12.5", "train")
        assert [source.open(i).num_frames for i in range(3)] == [3, 4, 5] and source.open(0).fps == 12.5
        assert numbers(source, 2, [0, 3, 3, 4]) == [0, 3, 3, 4] and numbers(source, 2, [1], row=1) == [2]
        assert source.label(1) == 1 and source.name(1) == f"{folder}#train[1]" and source.group(0) == ""
        np.testing.assert_array_equal(next(source.open(0).frames([2])), numbered_frame(2))
        assert open_tfds(str(folder)).open(0).fps == 25


def test_frames_as_in_davis(tmp_path):
    features = {
        "video": F.Sequence({"frames": F.Image(), "segmentations": F.Image(shape=(None, None, 1), use_colormap=True)}),
        "metadata": {"num_frames": np.int64, "video_name": np.object_, "fps": np.float32},
    }
    empty = {"frames": [], "segmentations": []}
    rows = [
        {
            "video": {"frames": pictures(4, 7, "JPEG"), "segmentations": pictures(4, 1)} if name else empty,
            "metadata": {"num_frames": 4, "video_name": name, "fps": 24},
        }
        for name in ("bear", "")
    ]
    source = open_tfds(str(prepare(tmp_path, features, {"train": rows})))
    assert numbers(source, 0, [1, 2]) == [1, 2] and numbers(source, 0, [1], row=1) == [7]
    assert source.name(0).endswith("1.0.0#bear") and source.name(1).endswith("1.0.0#all[1]")
    assert source.label(0) == -1 and source.class_names == () and source.open(0).fps == 24
    with pytest.raises(DecodeError, match="the video holds no frames"):
        source.open(1)


@pytest.mark.parametrize(
    "feature",
    [
        F.Tensor(shape=(None, 48, 64, 3), dtype=np.uint8),
        F.Tensor(shape=(4, 48, 64, 3), dtype=np.uint8, encoding="zlib"),
        F.Sequence(F.Tensor(shape=(48, 64, 3), dtype=np.uint8, encoding="bytes")),
        F.Sequence(F.Tensor(shape=(48, 64, 1), dtype=np.uint8)),
    ],
    ids=["plain", "zlib", "sequence of bytes", "grey"],
)
def test_pixels(tmp_path, feature):
    channels = feature.get_tensor_info().shape[-1]
    video = np.stack([numbered_frame(n, 5)[..., :channels] for n in range(4)])
    source = open_tfds(str(prepare(tmp_path, {"anything": feature, "size": np.int32}, {"train": [
        {"anything": video, "size": 1}
    ]})))  # fmt: skip
    reader = source.open(0)
    frames = list(reader.frames([0, 1, 1, 3]))
    assert frames[1] is frames[2] and all(frame.shape == (48, 64, 3) and frame.flags.c_contiguous for frame in frames)
    np.testing.assert_array_equal(reader.read([3, 0])[..., :channels], video[[3, 0]])
    crops = reader.crops([3, 0, 0], lambda height, width: (8, 16, 24, 32), (24, 32), flip=True)
    np.testing.assert_array_equal(crops[..., :channels], video[[3, 0, 0], 8:32, 47:15:-1])


def test_strings(tmp_path):
    """Files and frames in features that say nothing of videos but their name."""
    path = write_video(tmp_path / "a.mp4", 3)
    features = {"clip": F.Text(), "more": {"frames": F.Sequence(TENSOR)}, "note": F.Text()}
    rows = [{"clip": path.read_bytes(), "more": {"frames": pictures(4, video=9)}, "note": "a cat"}]
    folder = prepare(tmp_path, features, {"train": rows})
    assert open_tfds(str(folder)).open(0).getvalue() == path.read_bytes()
    frames = open_tfds(f"tfds://{folder}?video=more/frames")
    assert numbers(frames, 0, [1, 3]) == [1, 3] and numbers(frames, 0, [0], row=1) == [9]
    assert frames.row(0).length == sum(map(len, pictures(4, video=9)))


def test_records_without_what_the_features_promise(tmp_path):
    """As a newer version of a dataset may have them."""
    folder = prepare(tmp_path, {"video": TENSOR, "label": F.ClassLabel(num_classes=2)}, {"train": [
        {"video": b"text", "label": 1}
    ]})  # fmt: skip
    with pytest.raises(OSError, match=r"example 0 of .* has no mp4"):
        source = with_feature(folder, tmp_path / "other", "mp4", TENSOR)
        source.open(0)
    assert source.row(0).length == 0
    wrong = with_feature(folder, tmp_path / "wrong", "label", F.Tensor(shape=(2, 4, 4, 3), dtype=np.uint8))
    with pytest.raises(OSError, match=r"example 0 of .*: label: cannot reshape") as error:
        wrong.open(0)
    assert "\n" not in str(error.value)


def with_feature(folder, copy, name, feature):
    """The records of a dataset as one with a single other feature."""
    shutil.copytree(folder, copy)
    F.FeaturesDict({name: feature}).save_config(str(copy))
    return open_tfds(str(copy))


def test_pictures_are_videos_of_one_frame(tmp_path):
    features = {"image": F.Image(), "label": F.ClassLabel(num_classes=3)}
    source = open_tfds(str(prepare(tmp_path, features, {"train": [{"image": pictures(1)[0], "label": -1}]})))
    with VideoReader(source.open(0)) as reader:
        assert reader.num_frames == 1
        np.testing.assert_array_equal(reader.read([0])[0], numbered_frame(0))
    assert source.label(0) == -1 and source.class_names == ()


def test_frame_sequences_with_faults():
    frames = pictures(3)
    reader = FrameSequence([frames[0], frames[1][:60], b"text"], 25)
    assert len(list(reader.frames([0]))) == 1
    for index, message in ((1, "frame 1: .*"), (2, "frame 2: UnidentifiedImageError"), (3, "frame 3 does not exist")):
        with pytest.raises(DecodeError, match=message) as error:
            list(reader.frames([index]))
        assert "\n" not in str(error.value)
    # Later frames are scaled to the first, as from a video whose size changes midway.
    mixed = FrameSequence([frames[0], encoded(numbered_frame(1, height=96, width=128))], 25)
    assert mixed.read([0, 1]).shape == (2, 48, 64, 3)


def test_broken_records(bytes_dataset, tmp_path):
    folder = shutil.copytree(bytes_dataset[0], tmp_path / "1.0.0")
    shard = next(folder.glob("*-train*"))
    data = bytearray(shard.read_bytes())
    data[200:210] = bytes(10)
    shard.write_bytes(data)
    source = open_tfds(str(folder), "train")
    with pytest.raises(OSError, match=rf"example 0 of {folder} cannot be read: ") as error:
        source.open(0)
    assert "\n" not in str(error.value)
    assert source.row(0) == Row(f"{folder}#train[0]", split="train", id="train[0]")
    assert source.name(0) == f"{folder}#train[0]" and source.open(2).getvalue() == bytes_dataset[1][2]
    shard.unlink()
    with pytest.raises(OSError, match=r"example 1 of .* cannot be read"):
        open_tfds(str(folder), "train").open(1)


FEATURES = {
    r"holds no videos: its features are x \(tensor float32\[3\]\), y \(classLabel\); needed is a string Tensor":
        {"x": F.Tensor(shape=(3,), dtype=np.float32), "y": F.ClassLabel(num_classes=2)},
    r"left, right could each be the video: choose one with tfds://.*\?video=FEATURE": {"left": TENSOR, "right": TENSOR},
    r"holds no videos: its features are caption \(text string\); needed": {"caption": F.Text()},
    r"its features are v \(tensor uint8\[-1, -1, 4, 3\]\)":
        {"v": F.Tensor(shape=(None, None, 4, 3), dtype=np.uint8, encoding="zlib")},
    r"its features are depth \(image uint16": {"depth": F.Sequence(F.Image(shape=(4, 4, 1), dtype=np.uint16))},
}  # fmt: skip


@pytest.mark.parametrize("message", FEATURES)
def test_features_that_hold_no_video(tmp_path, message):
    F.FeaturesDict(FEATURES[message]).save_config(str(tmp_path))
    (tmp_path / "dataset_info.json").write_text('{"name": "mine", "version": "1.0.0", "fileFormat": "array_record"}')
    with pytest.raises(DataError, match=message) as error:
        open_tfds(str(tmp_path))
    assert "\n" not in str(error.value)


def changed(folder, copy, name, text):
    copy.mkdir()
    for file in ("dataset_info.json", "features.json"):
        (copy / file).write_text((folder / file).read_text())
    (copy / name).write_text(text)
    return str(copy)


ERRORS = {
    r"no split 'val' in .*1\.0\.0: it has train, test": lambda f, p: (str(f), "val"),
    r"no split 'train\[' in .*: it has train": lambda f, p: (str(f), "train["),
    r"no videos in split 'train\[3:\]' of": lambda f, p: (str(f), "train[3:]"),
    r"unknown option 'fsp' in .*: there is data_dir, video, label, fps": lambda f, p: f"tfds://{f}?fsp=3",
    r"fps=fast must be a number above 0": lambda f, p: f"tfds://{f}?fps=fast",
    r"fps=nan must be a number above 0": lambda f, p: f"tfds://{f}?fps=nan",
    r"holds no video as 'clip': its features are label": lambda f, p: f"tfds://{f}?video=clip",
    r"holds no video as 'label'": lambda f, p: f"tfds://{f}?video=label",
    r"has no label 'video': it has label": lambda f, p: f"tfds://{f}?label=video",
    r"no dataset of TFDS in .*other/9: name one as tfds://NAME/CONFIG:VERSION\?data_dir=DIR":
        lambda f, p: f"tfds://other:9?data_dir={p}",
    r"read from disks: mount or copy gs://b": lambda f, p: "tfds://mine?data_dir=gs://b",
    r"holds several datasets \(1\.0\.0, 2\.0\.0\): name one, as in .*2\.0\.0":
        lambda f, p: [changed(f, p / v, "x", "") for v in ("1.0.0", "2.0.0")] and str(p),
    r"holds tfrecord files, which need TensorFlow: where it is installed, run `tfds convert_format":
        lambda f, p: changed(f, p / "a", "dataset_info.json", '{"name": "mine", "version": "1.0.0"}'),
    r"a/dataset_info.json cannot be read: prepare": lambda f, p: changed(f, p / "a", "dataset_info.json", "{"),
    r"a/features.json cannot be read: prepare": lambda f, p: changed(f, p / "a", "features.json", "{}"),
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_clear_line(bytes_dataset, tmp_path, message):
    arguments = ERRORS[message](bytes_dataset[0], tmp_path)
    with pytest.raises(DataError, match=message) as error:
        open_tfds(*(arguments if isinstance(arguments, tuple) else (arguments,)))
    assert "\n" not in str(error.value)


def test_the_default_folder_is_that_of_tfds(monkeypatch, bytes_dataset):
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(bytes_dataset[0].parent.parent))
    assert len(open_tfds("tfds://mine")) == 5

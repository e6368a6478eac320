"""Videos of a dataset that was prepared by TensorFlow Datasets (TFDS), read without TensorFlow.

  tfds://NAME[/CONFIG][:VERSION]?data_dir=DIR   a dataset by its name; without data_dir, in TFDS's own folder
  tfds:///FOLDER                                a prepared folder (with dataset_info.json and features.json), or the
                                                folder above it that holds one version

After the question mark, joined by &, also: video=FEATURE and label=FEATURE, where the features do not tell by
themselves what is what, and fps=RATE of frames whose dataset states no rate. A split may be any of TFDS's
(`train`, `train[:80%]`, `train+test`); none means all.

What counts as a video, by the entries of features.json (nested names joined by a slash, as TFDS does):

  bytes     a string Tensor, a Text or an Image: the file of a video, or of a picture
  frames    a Video, or a Sequence of Image or of strings: one JPEG or PNG a frame (as in ucf101 and davis)
  pixels    a Tensor uint8[T, H, W, C], or a Sequence of uint8[H, W, C], with 1 or 3 channels

TFDS finds the files and the records of a split; the records are taken as they are (tf.train.Example) and only the
features in use are decoded. TFDS itself cannot do that without TensorFlow: the constructor of its Video feature needs
it, and images inside a Sequence are either all decoded or, with SkipDecoding, an error (TFDS 4.9.10).
"""

import bisect
import glob
import io
import itertools
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import av
import numpy as np
from PIL import Image

from data_pipelines import storage, tfds_features
from data_pipelines.decode import DecodeError
from data_pipelines.frame_crops import Box, FrameCropper
from data_pipelines.sources import DataError, Row
from data_pipelines.tfds_features import SCHEME

_INFO = "dataset_info.json"
_ALL = "all"  # TFDS's name of all splits together
_OPTIONS = ("data_dir", "video", "label", "fps")
# Last parts of feature names, the likeliest first.
_ID_NAMES = ("id", "video_id", "video_name", "name", "filename", "file_name", "path", "key")
_GROUP_NAMES = ("group", "scene", "subject")
_LICENCE_NAMES = ("licence", "license")
_FPS_NAMES = ("fps", "frame_rate")
_DEFAULT_FPS = 25.0  # as decode.py takes it for streams that state no rate; ucf101 has it, davis 24


class FrameSequence:
    """Frames that lie in memory, behind the interface of `decode.VideoReader`: an item that is no video file.

    Attributes:
      num_frames: number of frames, at least 1.
      fps: frames per second.
    """

    def __init__(self, frames: Sequence[bytes] | np.ndarray, fps: float):
        """frames: the files of pictures (JPEG, PNG, ...), or uint8[T, H, W, C] with C = 1 or 3. Raises DecodeError."""
        if not len(frames):
            raise DecodeError("the video holds no frames")
        self._frames, self.num_frames, self.fps = frames, len(frames), fps

    def __enter__(self) -> "FrameSequence":
        return self

    def __exit__(self, *_) -> None:
        pass

    def read(self, indices: Iterable[int]) -> np.ndarray:
        """Frames at `indices`, in any order, repeats allowed: uint8[T, H, W, 3], RGB. Raises DecodeError."""
        return np.stack(list(self.frames(indices)))

    def frames(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """Frames at `indices`, one at a time: uint8[H, W, 3], RGB. Repeats in a row yield the same array again.

        Raises:
          DecodeError: a frame is missing or damaged; may come after some frames were yielded.
        """
        before, image = -1, None
        for index in np.asarray(indices, np.int64).tolist():
            if not 0 <= index < self.num_frames:
                raise DecodeError(f"frame {index} does not exist: the video holds {self.num_frames} frames")
            if index != before:
                before, image = index, self._to_rgb(index, image)
            yield image

    def crops(
        self,
        indices: Iterable[int],
        choose: Callable[[int, int], Box | np.ndarray],
        size: tuple[int, int],
        *,
        flip: bool = False,
        antialias: bool = True,
    ) -> np.ndarray:
        """Boxes of frames, resized: uint8[T, *size, 3], RGB. Arguments and errors are those of `VideoReader.crops`."""
        indices = np.asarray(indices, np.int64)
        order = np.argsort(indices, kind="stable")  # repeated frames are decoded once
        cropper, boxes, clip = FrameCropper(size, flip, antialias), None, np.empty((len(indices), *size, 3), np.uint8)
        for place, image in zip(order.tolist(), self.frames(indices[order]), strict=True):
            if boxes is None:
                boxes = np.broadcast_to(np.asarray(choose(*image.shape[:2]), np.int64), (len(indices), 4)).tolist()
            clip[place] = cropper(av.VideoFrame.from_ndarray(image, format="rgb24"), tuple(boxes[place]))
        return clip

    def _to_rgb(self, index: int, before: np.ndarray | None) -> np.ndarray:
        """uint8[H, W, 3]. Scaled to the size of the frame before it, if there is one, as VideoReader has it."""
        frame = self._frames[index]
        if isinstance(frame, np.ndarray):
            return np.ascontiguousarray(np.broadcast_to(frame, (*frame.shape[:2], 3)))
        try:
            with Image.open(io.BytesIO(frame)) as picture:
                rgb = picture.convert("RGB")
            size = rgb.size if before is None else before.shape[1::-1]
            return np.asarray(rgb if rgb.size == size else rgb.resize(size))
        except Exception as error:  # Pillow's types vary: OSError, SyntaxError, ValueError, struct.error, ...
            raise DecodeError(f"frame {index}: {type(error).__name__}: {' '.join(str(error).split())}") from error


class TfdsSource:
    """A split of a prepared dataset, with the interface of `sources.Source`; pickles as its path.

    Records are read one at a time. Labels and groups lie in the records too, so nothing is kept in memory for a video;
    each thread keeps the last record that it read, for the label asked for after the video.

    Attributes:
      path: folder of the dataset.
      split: as given; empty for all.
      class_names: of the labels; empty if the dataset has none.
    """

    clusters: np.ndarray | None = None
    cluster_names: tuple[str, ...] = ()

    def __init__(self, folder: str, split: str = "", options: Mapping[str, str] | None = None):
        """folder: of one version, absolute. options: see the module. Raises DataError."""
        self.path, self.split, self._options = folder, split, dict(options or {})
        features = tfds_features.read(folder)
        self._video = tfds_features.choose_video(folder, features, self._options.get("video", ""))
        self._label = tfds_features.choose_label(folder, features, self._options.get("label", ""))
        self._id, self._group, self._licence, self._fps = (
            tfds_features.named(features, names) for names in (_ID_NAMES, _GROUP_NAMES, _LICENCE_NAMES, _FPS_NAMES)
        )
        self.class_names = tfds_features.class_names(folder, self._label)
        self._default_fps = _rate(self._options.get("fps", str(_DEFAULT_FPS)))
        self._records, self._splits, self._ends = _open_records(folder, split)
        self._last = threading.local()

    def __reduce__(self):
        return TfdsSource, (self.path, self.split, self._options)

    def __len__(self) -> int:
        return len(self._records)

    def name(self, i: int) -> str:
        """`<folder>#<id>` if the dataset names its videos, else, and for broken records, `<folder>#<split>[i]`."""
        try:
            return f"{self.path}#{self._id_of(i)}"
        except OSError:
            return f"{self.path}#{self._place(i)}"

    def label(self, i: int) -> int:
        """Class index of video i, -1 if unknown. Reads its record."""
        return int(self._value(i, self._label, -1))

    def group(self, i: int) -> str:
        """Group of video i, empty if unknown. Reads its record."""
        return self._text(i, self._group)

    def row(self, i: int) -> Row:
        """What the record of video i tells, which is read; only a name and a split where it is broken."""
        split = self._splits[bisect.bisect_right(self._ends, i)]
        try:
            length = sum(map(len, self._values(i, self._video.name))) if self._video.layout() != "pixels" else -1
            known = {"licence": self._text(i, self._licence), "id": self._id_of(i), "length": length}
            return Row(self.name(i), self.label(i), self.group(i), split, **known)
        except OSError:
            return Row(self.name(i), split=split, id=self._place(i))

    def open(self, i: int) -> io.BytesIO | FrameSequence:
        """The file of video i, or its frames.

        Raises:
          OSError: the record cannot be read, or holds no video.
          DecodeError: the video has no frames.
        """
        values, layout = self._values(i, self._video.name), self._video.layout()
        if layout == "bytes":
            if not values:
                raise OSError(f"example {i} of {self.path} has no {self._video.name}")
            return io.BytesIO(values[0])
        fps = float(self._value(i, self._fps, 0)) or self._default_fps
        return FrameSequence(values if layout == "frames" else self._pixels(i, values), fps)

    def _pixels(self, i: int, values: Sequence[int] | Sequence[bytes]) -> np.ndarray:
        """uint8[T, H, W, C] of a tensor's values."""
        try:
            if self._video.encoding == "none":
                pixels = np.array(values, np.uint8)
            else:
                unpack = zlib.decompress if self._video.encoding == "zlib" else bytes
                pixels = np.frombuffer(b"".join(map(unpack, values)), np.uint8)
            return pixels.reshape(self._video.shape)
        except (ValueError, zlib.error) as error:
            raise OSError(f"example {i} of {self.path}: {self._video.name}: {error}") from error

    def _example(self, i: int) -> Mapping[str, Any]:
        """The features of record i, by name."""
        if getattr(self._last, "row", None) != i:
            from tensorflow_datasets.proto import tf_example_pb2

            self._last.row = None
            try:
                self._last.example = tf_example_pb2.Example.FromString(self._records[i])
            except Exception as error:
                raise OSError(f"example {i} of {self.path} cannot be read: {' '.join(str(error).split())}") from error
            self._last.row = i
        return self._last.example.features.feature

    def _values(self, i: int, name: str) -> Sequence[Any]:
        """The values of a feature of record i; empty where it has none."""
        data = self._example(i).get(name) if name else None
        kind = data.WhichOneof("kind") if data is not None else None
        return getattr(data, kind).value if kind else ()

    def _value(self, i: int, name: str, default: Any) -> Any:
        return next(iter(self._values(i, name)), default)

    def _id_of(self, i: int) -> str:
        return self._text(i, self._id) or self._place(i)

    def _place(self, i: int) -> str:
        return f"{self.split or _ALL}[{i}]"

    def _text(self, i: int, name: str) -> str:
        value = self._value(i, name, b"")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def is_tfds(path: str) -> bool:
    """Whether a path names a dataset of TFDS, by its scheme or by what the folder holds."""
    return path.startswith(SCHEME) or bool(_versions(path))


def open_tfds(path: str, split: str = "") -> TfdsSource:
    """The videos of a dataset; see the module.

    Raises:
      DataError: no dataset, several versions, a file format that needs TensorFlow, features that hold no video, an
        unknown split or option.
    """
    if not path.startswith(SCHEME):
        return TfdsSource(_one_version(path), split)
    name, _, query = path.removeprefix(SCHEME).partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    for option in options:
        if option not in _OPTIONS:
            raise DataError(f"unknown option {option!r} in {path}: there is {', '.join(_OPTIONS)}")
    data_dir = options.pop("data_dir", "")
    if storage.is_remote(data_dir):
        raise DataError(f"TFDS datasets are read from disks: mount or copy {data_dir}, or make shards of the dataset")
    if not name.startswith(("/", "~")):
        name = os.path.join(data_dir or _default_folder(), *name.split(":"))
    return TfdsSource(_one_version(name), split, options)


def _default_folder() -> str:
    from tensorflow_datasets.core import constants

    return os.fspath(constants.DATA_DIR)


def _versions(folder: str) -> list[str]:
    """Absolute folders of one dataset each: this one, or else those directly below it."""
    folder = os.path.abspath(os.path.expanduser(folder))
    infos = [path for sub in ("", "*") for path in glob.glob(os.path.join(glob.escape(folder), sub, _INFO))]
    found = sorted(map(os.path.dirname, infos))
    return [folder] if folder in found else found


def _one_version(folder: str) -> str:
    found = _versions(folder)
    if not found:
        raise DataError(
            f"no dataset of TFDS in {folder}: name one as {SCHEME}NAME/CONFIG:VERSION?data_dir=DIR, or prepare it with "
            "file_format='array_record'"
        )
    if len(found) > 1:
        names = ", ".join(map(os.path.basename, found))
        raise DataError(f"{folder} holds several datasets ({names}): name one, as in {found[-1]}")
    return found[0]


def _open_records(folder: str, split: str) -> tuple[Sequence[bytes], list[str], list[int]]:
    """The records of a split, by number, none of which is read yet; for each of their files its split, and the number
    of records up to its end."""
    from array_record.python import array_record_data_source
    from tensorflow_datasets.core import dataset_info, naming, splits

    try:
        info = dataset_info.read_proto_from_builder_dir(folder)
    except Exception as error:
        raise DataError(f"{folder}/{_INFO} cannot be read: prepare the dataset again with TFDS 4.9") from error
    formats = {info.file_format or "tfrecord", *info.alternative_file_formats}
    if "array_record" not in formats:
        raise DataError(
            f"{folder} holds {', '.join(sorted(formats))} files, which need TensorFlow: where it is installed, run "
            f"`tfds convert_format --dataset_dir={folder} --out_path=DIR --out_file_format=array_record`"
        )
    template = naming.ShardedFileTemplate(dataset_name=info.name, data_dir=folder, filetype_suffix="array_record")
    known = splits.SplitDict.from_proto(repeated_split_infos=info.splits, filename_template=template)
    try:
        instructions = known[split or _ALL].file_instructions
    except Exception as error:
        raise DataError(f"no split {split!r} in {folder}: it has {', '.join(known)}") from error
    if not instructions:
        raise DataError(f"no videos in split {split!r} of {folder}")
    split_of = {os.fspath(path): name for name, info in known.items() for path in info.filepaths}
    ends = list(itertools.accumulate(instruction.take for instruction in instructions))
    parts = [split_of[os.fspath(instruction.filename)] for instruction in instructions]
    return array_record_data_source.ArrayRecordDataSource(instructions), parts, ends


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not (rate > 0 and math.isfinite(rate)):
        raise DataError(f"fps={text} must be a number above 0")
    return rate

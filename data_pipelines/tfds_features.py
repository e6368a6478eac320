"""What is what in a dataset of TensorFlow Datasets: the leaves of features.json, and which of them is the video."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.sources import DataError

SCHEME = "tfds://"

_FEATURES = "features.json"
# Last parts of feature names, the likeliest first.
_VIDEO_NAMES = ("video", "video_bytes", "encoded_video", "mp4", "clip", "frames", "image")


@dataclass(frozen=True)
class Feature:
    """One leaf of features.json.

    Attributes:
      name: path of keys, joined by slashes, as in the records.
      kind: what TFDS calls it: tensor, text, image, video, classLabel, scalar, ...
      dtype: a numpy name or `string`; empty if the kind has none.
      shape: of a value, with its Sequences before it; -1 where it varies.
      rank: how many Sequences it lies in; a Video is one of images.
      encoding: of a tensor: none, bytes, zlib.
      colours: false for pictures of class indices.
    """

    name: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    rank: int = 0
    encoding: str = "none"
    colours: bool = True

    def layout(self) -> str:
        """How a video may lie in it: bytes, frames, pixels, or nothing."""
        if self.kind in ("video", "image") and self.dtype == "uint8" and self.colours:
            return {0: "bytes", 1: "frames"}.get(self.rank, "")
        if self.kind in ("tensor", "text") and self.dtype == "string":
            return {0: "bytes", 1: "frames"}.get(len(self.shape), "")
        is_clip = self.dtype == "uint8" and len(self.shape) == 4 and self.shape[3] in (1, 3)
        return "pixels" if self.kind == "tensor" and is_clip and self.shape.count(-1) < 2 else ""

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}{f' {self.dtype}' if self.dtype else ''}{list(self.shape) or ''})"


def read(folder: str) -> dict[str, Feature]:
    """The leaves of features.json (tensorflow_datasets/core/proto/feature.proto, as JSON) by name. Raises DataError."""
    path = os.path.join(folder, _FEATURES)
    try:
        with open(path, "rb") as file:
            return {leaf.name: leaf for leaf in _leaves(json.load(file), "", ())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: prepare the dataset again with TFDS 4.9") from error


def _leaves(node: Mapping[str, Any], name: str, lengths: tuple[int, ...]) -> Iterator[Feature]:
    """lengths: of the Sequences around it."""
    kind = next((key for key in node if isinstance(node[key], dict)), "")
    content = node[kind]
    if kind == "featuresDict":
        for key, child in content["features"].items():
            yield from _leaves(child, f"{name}/{key}" if name else key, lengths)
    elif kind == "sequence":
        yield from _leaves(content["feature"], name, (*lengths, int(content.get("length", -1))))
    else:
        shape = tuple(int(size) for size in content.get("shape", {}).get("dimensions", ()))
        if kind == "image":
            shape = shape or (-1, -1, 3)
        if kind == "video":
            shape = shape or (-1, -1, -1, 3)
        dtype = content.get("dtype", {"text": "string", "image": "uint8", "video": "uint8"}.get(kind, ""))
        encoding, colours = content.get("encoding", "none"), not content.get("useColormap", False)
        yield Feature(name, kind, dtype, (*lengths, *shape), len(lengths) + (kind == "video"), encoding, colours)


def choose_video(folder: str, features: Mapping[str, Feature], name: str) -> Feature:
    """The feature that holds the video: the one asked for, or one with a telling name, or the only one that fits."""
    listed = f"its features are {', '.join(map(str, features.values()))}"
    if name:
        if name in features and features[name].layout():
            return features[name]
        raise DataError(f"{folder} holds no video as {name!r}: {listed}")
    fits = {key: feature for key, feature in features.items() if feature.layout()}
    telling = named(fits, _VIDEO_NAMES)
    # A text is a video only where it is called so.
    fits = {key: feature for key, feature in fits.items() if feature.kind != "text"}
    if telling or len(fits) == 1:
        return features[telling] if telling else next(iter(fits.values()))
    if fits:
        raise DataError(
            f"{folder}: {', '.join(fits)} could each be the video: choose one with {SCHEME}{folder}?video=FEATURE"
        )
    raise DataError(
        f"{folder} holds no videos: {listed}; needed is a string Tensor with the bytes of a video file, a Video or "
        "Sequence of Image, or a Tensor uint8[T, H, W, C] of which at most one dimension varies"
    )


def choose_label(folder: str, features: Mapping[str, Feature], name: str) -> str:
    """The feature that holds the class index; empty if there is none."""
    integers = {key: f for key, f in features.items() if not f.shape and (f.kind == "classLabel" or "int" in f.dtype)}
    if name and name not in integers:
        raise DataError(f"{folder} has no label {name!r}: it has {', '.join(integers) or 'none'}")
    classes = [key for key, feature in integers.items() if feature.kind == "classLabel"]
    return name or named(integers, ("label",)) or (classes[0] if len(classes) == 1 else "")


def named(features: Mapping[str, Feature], names: Sequence[str]) -> str:
    """The feature whose last key comes first in `names`, at the least depth; empty if there is none."""
    found = [(names.index(last), key.count("/"), key) for key in features if (last := key.rpartition("/")[2]) in names]
    return min(found, default=(0, 0, ""))[2]


def class_names(folder: str, label: str) -> tuple[str, ...]:
    """TFDS writes them beside features.json, one a line; empty if it did not."""
    if not label:
        return ()
    try:
        with open(os.path.join(folder, f"{label.replace('/', '-')}.labels.txt"), encoding="utf-8") as file:
            return tuple(name.strip() for name in file if name.strip())
    except OSError:
        return ()

"""`vjepa data tfds`: videos and what is known of them as a dataset of TensorFlow Datasets (TFDS), without TensorFlow.

    build("shards", "datasets", "gestures")                                # all videos of a source, bytes as they are
    tfds.data_source("gestures", data_dir="datasets", split="train")[0]     # {"video": bytes, "label": 3, ...}
    open_source("tfds://gestures?data_dir=datasets")                        # a source again

The splits are those of the rows; rows without one make up `train`. Within a split videos keep their order.
"""

import argparse
import array
import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines import data_cli
from data_pipelines.decode import DecodeError
from data_pipelines.indexing import Broken, content, probed
from data_pipelines.sources import DataError, Source, open_source
from data_pipelines.tfds_source import is_tfds, open_tfds

_DEFAULT_SPLIT = "train"
_NAME, _SPLIT = re.compile(r"[a-z][a-z0-9_]*"), re.compile(r"[\w-]+")


class VideoDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder whose features are the columns of our index (data_pipelines.index) and the bytes of the videos."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks for the checksums of downloads and a README beside the code, with a package that it does not install.
    pkg_dir_path = url_infos = None

    def __init__(
        self,
        source: Source,
        name: str,
        data_dir: str,
        version: str = "1.0.0",
        on_video: Callable[[int, Broken | None], None] = lambda i, broken: None,
    ):
        """on_video: called with the number of each video, and with what is wrong if it had to be left out."""
        self.name, self.VERSION = name, tfds.core.Version(version)
        self._source, self._on_video = source, on_video
        super().__init__(data_dir=data_dir, version=version, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        classes, integer, text = self._source.class_names, tfds.features.Scalar(np.int32), tfds.features.Text()
        features = {
            "video": tfds.features.Tensor(shape=(), dtype=np.object_, doc="bytes of a video file"),
            "id": text, "group": text, "licence": text,
            "label": tfds.features.ClassLabel(names=classes) if classes else tfds.features.Scalar(np.int64),
            "cluster": integer, "frames": integer, "height": integer, "width": integer,
            "fps": tfds.features.Scalar(np.float32), "duration": tfds.features.Scalar(np.float32, doc="seconds"),
            "sha256": tfds.features.Tensor(shape=(), dtype=np.object_, doc="of the bytes of the video"),
        }  # fmt: skip
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Videos of {os.path.basename(self._source.path)}. Labels and clusters: -1 if unknown.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # rows keep their order, and TFDS does not sort the videos
        )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator[tuple[int, dict[str, Any]]]]:
        splits: dict[str, array.array] = {}
        for i in range(len(self._source)):
            splits.setdefault(self._source.row(i).split or _DEFAULT_SPLIT, array.array("q")).append(i)
        for split in splits:
            if not _SPLIT.fullmatch(split) or split == "all":
                raise DataError(f"TFDS takes no split {split!r}: name it with letters, digits, _ and -, but not `all`")
        return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows: array.array) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in rows:
            try:
                video = content(self._source.open(i))
                row = probed(self._source.row(i), io.BytesIO(video))
            except (OSError, DecodeError) as error:
                self._on_video(i, (self._source.name(i), str(error)))
                continue
            known = {key: getattr(row, key) for key in self.info.features if key != "video"}
            yield i, known | {"video": video, "sha256": hashlib.sha256(video).digest()}
            self._on_video(i, None)


def build(
    src: str,
    data_dir: str,
    name: str,
    *,
    version: str = "1.0.0",
    split: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, list[Broken]]:
    """Writes the dataset data_dir/name/version of a source; returns its folder, and the videos that had to be left out.

    One process; the videos of a split pass through memory up to 1 GB and through a temporary file beyond. It starts
    anew after a kill: of millions of videos, make shards.

    Args:
      split: as in `sources.open_source`.
      progress: called with videos done and videos in all.

    Raises:
      DataError: the source cannot be opened or is a dataset of TFDS already, no video of it can be read, the dataset
        exists, its name, version or a split is none of TFDS's, the folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"TFDS takes no dataset {name!r}: name it with small letters, digits and _, from a letter on")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise DataError(f"version {version!r} must be three numbers, as 1.0.0")
    if is_tfds(src):
        raise DataError(f"{src} is a dataset of TFDS already")
    source = open_source(src, split=split)
    data_dir = os.path.abspath(os.path.expanduser(data_dir))
    folder = os.path.join(data_dir, name, version)
    if os.path.exists(folder):
        raise DataError(f"{folder} exists: give another --name or --version, or remove it")
    broken: list[Broken] = []
    done = 0

    def on_video(i: int, what: Broken | None) -> None:
        nonlocal done
        done += 1
        broken.extend([what] if what else [])
        progress(done, len(source))

    try:
        with _quietly():
            VideoDataset(source, name, data_dir, version, on_video).download_and_prepare()
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}): free space or name another folder") from error
    except AssertionError as error:  # TFDS writes no empty split
        if not broken:
            raise
        raise DataError(f"no video of a split of {src} can be read; the last one: {': '.join(broken[-1])}") from error
    return folder, broken


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """TFDS announces what it does in bold, and draws bars of its own."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vjepa data tfds`."""
    parser.description = "Make a dataset of TensorFlow Datasets from a source, without TensorFlow."
    parser.epilog = "example: vjepa data tfds shards datasets --name gestures"
    parser.add_argument("src", metavar="SRC", help="folder, manifest, index or folder of shards")
    parser.add_argument("dst", metavar="DATA_DIR", help="folder of datasets, as TFDS's data_dir")
    parser.add_argument("--name", required=True, help="of the dataset")
    parser.add_argument("--version", default="1.0.0", help="of the dataset (1.0.0)")
    parser.add_argument("--split", default="", help="only the rows of this split")


def run(args: argparse.Namespace) -> int:
    """`vjepa data tfds`; the exit code. Raises DataError."""
    with data_cli.progress("wrote", None) as update:
        folder, broken = build(args.src, args.dst, args.name, version=args.version, split=args.split, progress=update)
    data_cli.report(folder, len(open_tfds(folder)), broken)
    return 0

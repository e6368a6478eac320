"""Batches of labelled videos for training a classifier: every segment of a video, each cut and augmented afresh."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines import examples, ledgers, loading, storage
from data_pipelines.decode import DecodeError
from data_pipelines.sources import DataError, Source, open_source
from vjepa_jax.config import DataConfig


def open_labelled(path: str, split: str, pictures: bool = True) -> tuple[Source, np.ndarray]:
    """A source and its labels, int32[n].

    Raises:
      DataError: the source cannot be opened, or a video has no label.
    """
    source = open_source(path, split=split, pictures=pictures)
    labels = np.array([source.label(row) for row in range(len(source))], np.int32)
    if (labels < 0).any():
        raise DataError(
            f"{int((labels < 0).sum())} of {len(labels)} videos of {path} have no label (first: "
            f"{source.name(int(np.argmax(labels < 0)))}): give a manifest with the columns path,label,split, one "
            "video a line, or a folder with a subfolder a class"
        )
    return source, labels


def training_batches(
    source: Source,
    data: DataConfig,
    *,
    rows: Sequence[int],
    batch_size: int,
    epochs: int,
    seed: int,
    copies: int = 1,
    ledger: str | None = None,
) -> Iterator[dict[str, Any]]:
    """`epochs` passes over the videos `rows` in fresh random order, in batches that run across the passes.

    A video is divided into data.clips_per_video equal parts, and a clip at a random place of each is cut and augmented
    on its own (data.augment, data.random_resize_*, data.hflip). An undecodable video is replaced by another of `rows`.

    Args:
      copies: clips from each part, one after the other (repeated augmentation, arXiv 1901.09335).

    Yields:
      "video" uint8[B, S, T, H, W, 3], S = data.clips_per_video * copies, also where it is 1; "label" int32[B];
      "index" int64[B], the row; "substituted" int32[B]. The last videos, fewer than a batch, are left out.

    Raises:
      DataError: fewer videos than a batch; while iterating, 32 undecodable videos in a row.
    """
    if len(rows) * epochs < batch_size:
        raise DataError(f"{len(rows)} videos to train on are fewer than a batch of {batch_size}: lower batch_size")
    rows = [int(row) for row in rows]
    example = functools.partial(_example, source=source, rows=rows, data=data, copies=copies, ledger=ledger)
    order = grain.MapDataset.source(rows).shuffle(seed=seed % 2**32).repeat(epochs)
    batches = order.random_map(example, seed=seed % 2**32).batch(batch_size, drop_remainder=True)
    clip_bytes = data.num_frames * data.size[0] * data.size[1] * 3
    return loading.iterate(
        batches,
        data.num_workers,
        data.num_threads,
        data.buffer_size,
        batch_size * data.clips_per_video * copies * clip_bytes,
    )


def _example(
    row: int,
    rng: np.random.Generator,
    *,
    source: Source,
    rows: list[int],
    data: DataConfig,
    copies: int,
    ledger: str | None,
) -> dict[str, Any]:
    storage.take_retries()
    for substituted in range(examples.MAX_SUBSTITUTIONS + 1):
        try:
            parts = [clip for clip in range(data.clips_per_video) for _ in range(copies)]
            clips = [examples.train_clip(source, row, clip, data, rng) for clip in parts]
        except DecodeError as error:
            broken, reason = source.name(row), str(error)
            ledgers.record(ledger, broken, reason)
            row = rows[int(rng.integers(len(rows)))]
            continue
        return {
            "video": np.stack(clips),
            "label": np.int32(source.label(row)),
            "index": np.int64(row),
            "substituted": np.int32(substituted),
        }
    raise DataError(
        f"{examples.MAX_SUBSTITUTIONS} videos in a row from {source.path} cannot be decoded; the last one: "
        f"{broken}: {reason}"
    )

"""One example from its place in the stream: a clip and its masks, or, for evaluation, the middle of a video."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines import augment, erasing, ledgers, masking, randaugment, sampling, storage
from data_pipelines.clips import ClipSpec, clip_indices
from data_pipelines.decode import DecodeError, VideoReader
from data_pipelines.indexing import video_reader
from data_pipelines.sources import DataError, Source
from vjepa_jax.config import DataConfig

Example = dict[str, Any]

MAX_SUBSTITUTIONS = 32  # in a row, before a source is taken for broken


def train_example(
    key: tuple[int, int, int],
    rng: np.random.Generator,
    *,
    sources: Sequence[Source],
    data: DataConfig,
    plan: masking.MaskPlan,
    seed: int,
    ledger: str | None,
    orders: Sequence[sampling.Order | None] = (),
) -> Example:
    """One example. key: its position in the mixed stream, its source, and row * clips_per_video + clip.

    In place of a video that cannot be decoded any other of its source comes, drawn by weight where `orders` holds one
    with clusters.
    """
    position, number, example = key
    storage.take_retries()  # those of before are not of this example
    # Masks first: they stay the same whether or not a video has to be replaced.
    masks = masking.draw(plan, rng, position, seed)
    source = sources[number]
    row, clip = divmod(example, data.clips_per_video)
    for substituted in range(MAX_SUBSTITUTIONS + 1):
        try:
            video = train_clip(source, row, clip, data, rng)
        except DecodeError as error:
            broken, reason = source.name(row), str(error)
            ledgers.record(ledger, broken, reason)
            order = orders[number] if orders else None
            row = int(rng.integers(len(source))) if order is None else order.stand_in(rng)
            continue
        return {
            "video": video,
            "masks": masks,
            "label": np.int32(source.label(row)),
            "index": np.int64(sum(len(s) for s in sources[:number]) + row),
            "substituted": np.int32(substituted),
            "retries": np.int32(storage.take_retries()),
        }
    listed = f"see {ledger}" if ledger else "no ledger lists them"
    raise DataError(
        f"{MAX_SUBSTITUTIONS} videos in a row from {source.path} cannot be decoded ({listed}); the last one: "
        f"{broken}: {reason}"
    )


def train_clip(source: Source, row: int, clip: int, data: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """uint8[T, H, W, 3]. Draws in this order: flip, frames, RandAugment, box (two if it moves), erasing."""
    spec = ClipSpec(data.num_frames, None if data.frame_step else data.fps, data.frame_step, data.clips_per_video)
    flip = bool(rng.random() < 0.5 and data.hflip)
    with _reader(source, row) as reader:
        indices = clip_indices(reader.num_frames, reader.fps, spec, clip, rng)
        return augmented(reader, indices, data, rng, flip)


def augmented(
    reader: VideoReader, indices: np.ndarray, data: DataConfig, rng: np.random.Generator, flip: bool = False
) -> np.ndarray:
    """Frames of a video as they are trained on, uint8[T, H, W, 3]. Draws: RandAugment, box (two if it moves), erasing.

    Raises:
      DecodeError: a frame is missing or damaged.
    """
    options = {"flip": flip, "antialias": data.augment.antialias}
    policy = data.augment.policy
    operations = randaugment.draw(policy, rng) if policy else []

    def box(height: int, width: int) -> augment.Box:
        return augment.random_box(height, width, data.random_resize_scale, data.random_resize_aspect, rng)

    def boxes(height: int, width: int) -> augment.Boxes:
        first = box(height, width)
        return augment.moving_boxes(first, box(height, width), len(indices)) if data.augment.motion_shift else first

    if operations:  # they take whole frames
        frames = randaugment.apply(operations, reader.frames(indices))
        video = augment.crop_clip(frames, boxes, data.size, **options)
    else:
        video = reader.crops(indices, boxes, data.size, **options)
    if data.augment.erase_prob and rng.random() < data.augment.erase_prob:
        erasing.erase(video, rng)
    return video


def eval_example(
    row: int,
    *,
    source: Source,
    spec: ClipSpec,
    size: tuple[int, int],
    ledger: str | None,
    num_views: int = 1,
    antialias: bool = True,
) -> Example:
    """One video: "video" uint8[S * V, T, H, W, 3], view v of segment s at s * V + v; uint8[T, H, W, 3] if both are one.

    Segments are the clips of `spec`, in the middle of each part of the video; views are those of augment.view_boxes.
    """
    video, label, index, failed = None, -1, -1, 0
    storage.take_retries()
    if row < len(source):
        try:
            video, label, index = _eval_clips(source, row, spec, size, num_views, antialias), source.label(row), row
        except DecodeError as error:
            failed = 1
            ledgers.record(ledger, source.name(row), str(error))
    if video is None:
        video = np.zeros((spec.clips * num_views, spec.num_frames, *size, 3), np.uint8)
    return {
        "video": video if len(video) > 1 else video[0],
        "label": np.int32(label),
        "index": np.int64(index),
        "substituted": np.int32(failed),
        "retries": np.int32(storage.take_retries()),
    }


def _eval_clips(
    source: Source, row: int, spec: ClipSpec, size: tuple[int, int], num_views: int, antialias: bool
) -> np.ndarray:
    """uint8[S * V, T, H, W, 3]. Every frame is decoded once."""
    shape = (spec.clips, num_views, spec.num_frames)

    def boxes(height: int, width: int) -> np.ndarray:
        views = np.array(augment.view_boxes(height, width, size, num_views))
        return np.broadcast_to(views[:, None], (*shape, 4)).reshape(-1, 4)

    with _reader(source, row) as reader:
        clips = [clip_indices(reader.num_frames, reader.fps, spec, clip) for clip in range(spec.clips)]
        indices = np.broadcast_to(np.stack(clips)[:, None], shape).reshape(-1)
        video = reader.crops(indices, boxes, size, antialias=antialias)
    return video.reshape(-1, spec.num_frames, *size, 3)


@contextlib.contextmanager
def _reader(source: Source, row: int) -> Iterator[VideoReader]:
    try:
        file = source.open(row)
    except OSError as error:
        raise DecodeError(str(error)) from error
    with video_reader(file) as reader:  # VideoReader, or frames that are no file
        yield reader

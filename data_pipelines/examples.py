"""One example from its place in the stream: a clip and its masks, or, for evaluation, the middle of a video."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines import augment, ledgers, masking
from data_pipelines.clips import ClipSpec, clip_indices
from data_pipelines.decode import DecodeError, VideoReader
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
) -> Example:
    """One example. key: its position in the mixed stream, its source, and row * clips_per_video + clip."""
    position, number, example = key
    # Masks first: they stay the same whether or not a video has to be replaced.
    masks = (
        masking.draw_masks(plan, rng) if plan.policy == "uniform" else masking.draw_masks_first_k(plan, position, seed)
    )
    source = sources[number]
    row, clip = divmod(example, data.clips_per_video)
    for substituted in range(MAX_SUBSTITUTIONS + 1):
        try:
            video = _train_clip(source, row, clip, data, rng)
        except DecodeError as error:
            broken, reason = source.name(row), str(error)
            ledgers.record(ledger, broken, reason)
            row = int(rng.integers(len(source)))
            continue
        return {
            "video": video,
            "masks": masks,
            "label": np.int32(source.label(row)),
            "index": np.int64(sum(len(s) for s in sources[:number]) + row),
            "substituted": np.int32(substituted),
        }
    listed = f"see {ledger}" if ledger else "no ledger lists them"
    raise DataError(
        f"{MAX_SUBSTITUTIONS} videos in a row from {source.path} cannot be decoded ({listed}); the last one: "
        f"{broken}: {reason}"
    )


def _train_clip(source: Source, row: int, clip: int, data: DataConfig, rng: np.random.Generator) -> np.ndarray:
    spec = ClipSpec(data.num_frames, None if data.frame_step else data.fps, data.frame_step, data.clips_per_video)
    flip = rng.random() < 0.5 and data.hflip
    with _reader(source, row) as reader:
        indices = clip_indices(reader.num_frames, reader.fps, spec, clip, rng)

        def box(height: int, width: int) -> augment.Box:
            return augment.random_box(height, width, data.random_resize_scale, data.random_resize_aspect, rng)

        return augment.crop_clip(reader.frames(indices), box, data.size, flip)


def eval_example(row: int, *, source: Source, spec: ClipSpec, size: tuple[int, int], ledger: str | None) -> Example:
    video, label, index, failed = None, -1, -1, 0
    if row < len(source):
        try:
            video, label, index = _eval_clips(source, row, spec, size), source.label(row), row
        except DecodeError as error:
            failed = 1
            ledgers.record(ledger, source.name(row), str(error))
    if video is None:
        video = np.zeros((spec.clips, spec.num_frames, *size, 3), np.uint8)
    return {
        "video": video if spec.clips > 1 else video[0],
        "label": np.int32(label),
        "index": np.int64(index),
        "substituted": np.int32(failed),
    }


def _eval_clips(source: Source, row: int, spec: ClipSpec, size: tuple[int, int]) -> np.ndarray:
    """uint8[S, T, H, W, 3]."""

    def box(height: int, width: int) -> augment.Box:
        return augment.center_box(height, width, size)

    with _reader(source, row) as reader:
        clips = [clip_indices(reader.num_frames, reader.fps, spec, clip) for clip in range(spec.clips)]
        return np.stack([augment.crop_clip(reader.frames(indices), box, size) for indices in clips])


@contextlib.contextmanager
def _reader(source: Source, row: int) -> Iterator[VideoReader]:
    try:
        file = source.open(row)
    except OSError as error:
        raise DecodeError(str(error)) from error
    with VideoReader(file) as reader:
        yield reader

"""Batches of clips for training and evaluation, from sources to uint8 arrays on the host.

Every step is a grain MapDataset up to the finished batch, so that batch k is a function of k alone: the same global
batches come out for any number of hosts, workers and threads, and training resumes from a step number. Nothing is ever
filtered: a video that cannot be decoded is replaced by another one of the same source, drawn from the example's own
generator, and counted.
"""

import contextlib
import fcntl
import functools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines import augment, masking
from data_pipelines.clips import ClipSpec, clip_indices
from data_pipelines.decode import DecodeError, VideoReader
from data_pipelines.sources import DataError, Source, open_source, open_sources
from vjepa_jax.config import DataConfig, RunConfig

Batch = dict[str, Any]

MAX_SUBSTITUTIONS = 32  # in a row, before a source is taken for broken
_MIN_SHARED_BYTES = 1 << 16  # smaller arrays travel faster pickled than in a shared memory block of their own
_SHARED_MEMORY = "/dev/shm"


def train_batches(
    run: RunConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    ledger: str | None = None,
) -> Iterator[Batch]:
    """This process's share of every global batch from `start_step` on, without end. Close the iterator (`close()`).

    With `run.images` a batch also holds "images", {"video", "masks"} of the second stream, and "substituted" counts for
    both: int32[B + B of the images].

    Example e of the mixed stream goes to process e % process_count. With data.clips_per_video = K every clip is an
    example of its own: an epoch of a source visits each video K times, once for each part of the video.

    Args:
      ledger: a JSON-lines file that names every undecodable video once, {"path", "error"}. Process p > 0 writes to
        `<name>.p<suffix>`.

    Yields:
      "video" uint8[B, T, H, W, 3]; "label" int32[B], -1 if unknown; "index" int64[B], the row of the video in the
      concatenated sources; "substituted" int32[B], undecodable videos tried before this one; "masks", a list with one
      dict per mask group: "context" int32[B, Kc], "target" int32[B, Kt], and for policy first_k "context_valid"
      bool[B, Kc], "target_valid" bool[B, Kt]. B = batch_size / process_count.

    Raises:
      DataError: sources that cannot be opened (at once), or 32 undecodable videos in a row (while iterating).
      ConfigError: mask budgets that no draw can meet.
    """
    share = {
        "process_index": process_index,
        "process_count": process_count,
        "start_step": start_step,
        "ledger": _ledger_of_process(ledger, process_index),
    }
    batches = _train_stream(run, **share)
    return batches if run.images is None else _joined(batches, _train_stream(run.images_run, **share))


def _joined(batches: Iterator[Batch], images: Iterator[Batch]) -> Iterator[Batch]:
    """Batches of videos that carry those of images."""
    with contextlib.closing(batches), contextlib.closing(images):
        for batch, image_batch in zip(batches, images, strict=True):
            pictures = {key: image_batch[key] for key in ("video", "masks")}
            substituted = np.concatenate([batch["substituted"], image_batch["substituted"]])
            yield batch | {"images": pictures, "substituted": substituted}


def _train_stream(
    run: RunConfig, *, process_index: int, process_count: int, start_step: int, ledger: str | None
) -> Iterator[Batch]:
    """The batches of one stream; see `train_batches`."""
    if run.batch_size % process_count:
        raise DataError(f"batch_size={run.batch_size} is not divisible by the {process_count} processes: change it")
    data, local = run.data, run.batch_size // process_count
    sources = open_sources(data)
    if any(weight <= 0 for weight in data.weights):
        raise DataError(f"data.weights={data.weights} must be positive: remove sources that should not be used")
    seed = run.seed % 2**32
    streams = [
        grain.MapDataset.range(len(source) * data.clips_per_video)
        .shuffle(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        .repeat()
        .map(functools.partial(_tag, number))
        for number, source in enumerate(sources)
    ]
    example = functools.partial(
        _train_example,
        sources=sources,
        data=data,
        plan=masking.make_plan(run),
        seed=seed,
        ledger=ledger,
    )
    stream = grain.MapDataset.mix(streams, data.weights or None).map_with_index(_with_position)
    # The generator of an example follows from its place in the stream, so it is drawn before the stream is divided.
    stream = stream.random_map(example, seed=seed)[process_index::process_count]
    batches = stream.batch(local, drop_remainder=True)[start_step:]
    clip_bytes = data.num_frames * data.size[0] * data.size[1] * 3
    return _iterate(batches, data.num_workers, data.num_threads, data.buffer_size, local * clip_bytes)


def eval_batches(
    source_path: str,
    *,
    num_frames: int,
    size: tuple[int, int],
    batch_size: int,
    fps: float | None = None,
    frame_step: int | None = None,
    split: str = "",
    segments: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
    buffer_size: int = 2,
    ledger: str | None = None,
) -> Iterator[Batch]:
    """Every video once, in order: the middle clip, or the middle clip of each of `segments` equal parts; centre crop.

    Rows with index -1 hold no video: they fill up the last batch, or stand for a video that cannot be decoded (then
    substituted is 1). So shapes never change, and row r of batch b is video b * batch_size + r or nothing.

    Yields:
      As `train_batches`, without masks: "video" uint8[B, T, H, W, 3], or uint8[B, S, T, H, W, 3] if segments > 1;
      "label" int32[B]; "index" int64[B]; "substituted" int32[B].

    Raises:
      DataError: the source cannot be opened (at once).
    """
    source = open_source(source_path, split=split)
    spec = ClipSpec(num_frames, fps, frame_step, segments)
    example = functools.partial(_eval_example, source=source, spec=spec, size=tuple(size), ledger=ledger)
    padded = -(-len(source) // batch_size) * batch_size
    batches = grain.MapDataset.range(padded).map(example).batch(batch_size, drop_remainder=True)
    batch_bytes = batch_size * segments * num_frames * size[0] * size[1] * 3
    return _iterate(batches, num_workers, num_threads, buffer_size, batch_bytes)


def _iterate(
    batches: grain.MapDataset, num_workers: int, num_threads: int, buffer_size: int, batch_bytes: int
) -> Iterator[Batch]:
    """An iterator over finished batches: made by worker processes, or by threads of this one, ahead of use."""
    if not num_workers:
        read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(1, buffer_size, num_threads))
        iterator = iter(batches.to_iter_dataset(read))
        iterator.start_prefetch()
        return iterator
    per_worker = max(1, buffer_size // 2)  # grain keeps this many in the worker and as many again in this process
    _check_shared_memory(num_workers * (2 * per_worker + 2) + 1, num_workers, batch_bytes)
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES)
    stream = grain.experimental.WithOptionsIterDataset(stream, options)
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=per_worker)
    return iter(stream.mp_prefetch(workers))


def _check_shared_memory(num_batches: int, num_workers: int, batch_bytes: int) -> None:
    """Without room for all batches on their way, a worker dies of a bus error, far from the cause."""
    if not os.path.isdir(_SHARED_MEMORY):
        return
    need, free = num_batches * batch_bytes, shutil.disk_usage(_SHARED_MEMORY).free
    if need > free:
        raise DataError(
            f"{num_workers} workers need about {need / 2**30:.1f} GiB of shared memory, {_SHARED_MEMORY} has "
            f"{free / 2**30:.1f} GiB free: lower data.num_workers, data.buffer_size or batch_size, "
            "or start the container with a larger --shm-size"
        )


def _tag(number: int, example: int) -> tuple[int, int]:
    return number, int(example)


def _with_position(position: int, tagged: tuple[int, int]) -> tuple[int, int, int]:
    return position, *tagged


def _train_example(
    key: tuple[int, int, int],
    rng: np.random.Generator,
    *,
    sources: Sequence[Source],
    data: DataConfig,
    plan: masking.MaskPlan,
    seed: int,
    ledger: str | None,
) -> Batch:
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
            _record(ledger, broken, reason)
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


def _eval_example(row: int, *, source: Source, spec: ClipSpec, size: tuple[int, int], ledger: str | None) -> Batch:
    video, label, index, failed = None, -1, -1, 0
    if row < len(source):
        try:
            video, label, index = _eval_clips(source, row, spec, size), source.label(row), row
        except DecodeError as error:
            failed = 1
            _record(ledger, source.name(row), str(error))
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


def _ledger_of_process(ledger: str | None, process_index: int) -> str | None:
    if ledger is None or process_index == 0:
        return ledger
    stem, suffix = os.path.splitext(ledger)
    return f"{stem}.{process_index}{suffix}"


def _record(ledger: str | None, path: str, error: str) -> None:
    """Names a video in the ledger, unless it is there already. Safe across threads, workers and restarts."""
    if ledger is None:
        return
    with open(ledger, "ab+") as file:  # O_APPEND: a line is written whole
        fcntl.flock(file, fcntl.LOCK_EX)  # held until the file is closed
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        if path in (entry.get("path") for entry in map(_parse_entry, lines)):
            return
        torn = lines and not lines[-1].endswith(b"\n")
        entry = json.dumps({"path": path, "error": error}, ensure_ascii=False)
        file.write((b"\n" if torn else b"") + entry.encode() + b"\n")


def _parse_entry(line: bytes) -> Mapping[str, str]:
    """An entry of the ledger; empty for a line torn by a crash."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}

"""Batches of clips for training and evaluation, from sources to uint8 arrays on the host.

Every step is a grain MapDataset up to the finished batch, so that batch k is a function of k alone: the same global
batches come out for any number of hosts, workers and threads, and training resumes from a step number. Nothing is ever
filtered: a video that cannot be decoded is replaced by another one of the same source, drawn from the example's own
generator, and counted.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines import examples, ledgers, loading, masking, sampling
from data_pipelines.clips import ClipSpec
from data_pipelines.sources import DataError, Source, open_source, open_sources
from vjepa_jax.config import DataConfig, RunConfig

Batch = dict[str, Any]
COUNTS = ("substituted", "retries")  # what an example tells of its reading


def train_batches(
    run: RunConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    ledger: str | None = None,
) -> Iterator[Batch]:
    """This process's share of every global batch from `start_step` on, without end. Close the iterator (`close()`).

    With further streams (`run.all_streams`) a batch also holds "streams", {name: {"video", "masks"}}, and "substituted"
    and "retries" count for all: int32[B + the B of each].

    Example e of the mixed stream goes to process e % process_count. With data.clips_per_video = K every clip is an
    example of its own: an epoch of a source visits each video K times, once for each part of the video.

    Args:
      ledger: a JSON-lines file that names every undecodable video once, {"path", "error"}. Process p > 0 writes to
        `<name>.p<suffix>`.

    Yields:
      "video" uint8[B, T, H, W, 3]; "label" int32[B], -1 if unknown; "index" int64[B], the row of the video in the
      concatenated sources; "substituted" int32[B], undecodable videos tried before this one; "retries" int32[B], how
      often a remote store was asked again; "masks", a list with one dict per mask group: "context" int32[B, Kc],
      "target" int32[B, Kt], and for policy first_k "context_valid" bool[B, Kc], "target_valid" bool[B, Kt].
      B = batch_size / process_count.

    Raises:
      DataError: sources that cannot be opened or drawn from as asked (at once), or 32 undecodable videos in a row
        (while iterating).
      ConfigError: mask budgets that no draw can meet.
    """
    share = {
        "process_index": process_index,
        "process_count": process_count,
        "start_step": start_step,
        "ledger": ledgers.of_process(ledger, process_index),
    }
    batches = _train_stream(run, **share)
    if not (runs := run.stream_runs):
        return batches
    with contextlib.ExitStack() as on_error:
        on_error.callback(batches.close)
        streams = {}
        for name, stream in runs.items():
            streams[name] = _train_stream(stream, **share)
            on_error.callback(streams[name].close)
        on_error.pop_all()
    return _joined(batches, streams)


def _joined(batches: Iterator[Batch], streams: dict[str, Iterator[Batch]]) -> Iterator[Batch]:
    """Batches of the main stream that carry those of the others."""
    with contextlib.ExitStack() as stack:
        for iterator in (batches, *streams.values()):
            stack.enter_context(contextlib.closing(iterator))
        for batch in batches:
            others = {name: next(stream) for name, stream in streams.items()}
            counts = {key: np.concatenate([b[key] for b in (batch, *others.values())]) for key in COUNTS}
            inputs = {name: {key: other[key] for key in ("video", "masks")} for name, other in others.items()}
            yield batch | {"streams": inputs} | counts


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
    keys, orders = draws(data, sources, seed)
    example = functools.partial(
        examples.train_example,
        sources=sources,
        data=data,
        plan=masking.make_plan(run),
        seed=seed,
        ledger=ledger,
        orders=orders,
    )
    # The generator of an example follows from its place in the stream, so it is drawn before the stream is divided.
    stream = keys.random_map(example, seed=seed)[process_index::process_count]
    batches = stream.batch(local, drop_remainder=True)[start_step:]
    clip_bytes = data.num_frames * data.size[0] * data.size[1] * 3
    return loading.iterate(batches, data.num_workers, data.num_threads, data.buffer_size, local * clip_bytes)


def draws(
    data: DataConfig, sources: Sequence[Source], seed: int
) -> tuple[grain.MapDataset, list[sampling.Order | None]]:
    """The mixed stream without end of (position, source, row * clips_per_video + clip), and the order of each source.

    Raises:
      DataError: weights or a window that the sources do not allow; see `sampling`.
    """
    weights = sampling.cluster_weights(data, sources)
    streams, orders = [], []
    for number, source in enumerate(sources):
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        order = sampling.source_order(source, data, own, weights)
        if order is None:
            stream = grain.MapDataset.range(len(source) * data.clips_per_video).shuffle(seed=own).repeat()
        else:
            stream = grain.MapDataset.range(sys.maxsize).map(order)
        streams.append(stream.map(functools.partial(_tag, number)))
        orders.append(order)
    return grain.MapDataset.mix(streams, data.weights or None).map_with_index(_with_position), orders


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
    views: int = 1,
    antialias: bool = True,
    num_workers: int = 0,
    num_threads: int = 2,
    buffer_size: int = 2,
    ledger: str | None = None,
    rows: Sequence[int] | None = None,
    pictures: bool = False,
) -> Iterator[Batch]:
    """Every video (or those of `rows`) once, in order: the middle clip, or that of each of `segments` equal parts; the
    centre crop, or `views` crops side by side (augment.view_boxes).

    Rows with index -1 hold no video: they fill up the last batch, or stand for a video that cannot be decoded (then
    substituted is 1). So shapes never change, and row r of batch b is video b * batch_size + r or nothing.

    Args:
      rows: the videos to take, in this order; None: all.
      pictures: as for sources.open_source.

    Yields:
      As `train_batches`, without masks: "video" uint8[B, T, H, W, 3], or uint8[B, S * V, T, H, W, 3] for several
      segments or views, view v of segment s at s * V + v; "label" int32[B]; "index" int64[B]; "substituted" int32[B].

    Raises:
      DataError: the source cannot be opened (at once).
    """
    source = open_source(source_path, split=split, pictures=pictures)
    spec = ClipSpec(num_frames, fps, frame_step, segments)
    example = functools.partial(
        examples.eval_example,
        source=source,
        spec=spec,
        size=tuple(size),
        ledger=ledger,
        num_views=views,
        antialias=antialias,
    )
    if rows is None:
        order = grain.MapDataset.range(-(-len(source) // batch_size) * batch_size)
    else:
        order = grain.MapDataset.source([*map(int, rows)] + [len(source)] * (-len(rows) % batch_size))
    batches = order.map(example).batch(batch_size, drop_remainder=True)
    batch_bytes = batch_size * segments * views * num_frames * size[0] * size[1] * 3
    return loading.iterate(batches, num_workers, num_threads, buffer_size, batch_bytes)


def _tag(number: int, example: int) -> tuple[int, int]:
    return number, int(example)


def _with_position(position: int, tagged: tuple[int, int]) -> tuple[int, int, int]:
    return position, *tagged

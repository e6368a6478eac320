"""Batches ahead of use: made by threads of this process, or by worker processes over shared memory."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import grain

from data_pipelines.sources import DataError

_MIN_SHARED_BYTES = 1 << 16  # smaller arrays travel faster pickled than in a shared memory block of their own
_SHARED_MEMORY = "/dev/shm"


def iterate(
    batches: grain.MapDataset, num_workers: int, num_threads: int, buffer_size: int, batch_bytes: int
) -> Iterator[dict[str, Any]]:
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

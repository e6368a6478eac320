"""Batches ahead of use: made by threads of this process, or by worker processes over shared memory."""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grain
from absl import flags

from data_pipelines.sources import DataError

# Arrays from this size on travel in shared memory blocks. A message that fits into a pipe is written at once: a worker
# that is killed midway through a longer one would leave the reader waiting for its end.
_MIN_SHARED_BYTES = 1 << 11
_SHARED_MEMORY = "/dev/shm"
_MAX_DEATHS = 3  # of workers, before the same batch
_DEATH = re.compile(r"terminated unexpectedly with exit code (-?\d+)")  # grain's words

_log = logging.getLogger(__name__)


class WorkerError(DataError, RuntimeError):
    """Worker processes end and it does not help to start them again. The message is one line."""


def iterate(
    batches: grain.MapDataset, num_workers: int, num_threads: int, buffer_size: int, batch_bytes: int
) -> Iterator[dict[str, Any]]:
    """An iterator over finished batches: made by worker processes, or by threads of this one, ahead of use.

    Workers that the kernel kills (out of memory) are started again at the batch that is due. They ignore Ctrl-C, which
    is for this process to act on, and end when this process does, however it ends.

    Raises:
      DataError: too little shared memory for the workers.
      WorkerError: while iterating: a worker ended by itself or was asked to, or was killed too often.
    """
    if not flags.FLAGS.is_parsed():  # grain reads its own and refuses where no program has parsed any
        flags.FLAGS.mark_as_parsed()
    if not num_workers:
        read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(1, buffer_size, num_threads))
        iterator = iter(batches.to_iter_dataset(read))
        iterator.start_prefetch()
        return iterator
    per_worker = max(1, buffer_size // 2)  # grain keeps this many in the worker and as many again in this process
    _check_shared_memory(num_workers * (2 * per_worker + 2) + 1, num_workers, batch_bytes)
    return _from_workers(batches, grain.MultiprocessingOptions(num_workers, per_worker))


def _from_workers(batches: grain.MapDataset, workers: grain.MultiprocessingOptions) -> Iterator[dict[str, Any]]:
    """Batches from worker processes, which are started anew where some were killed."""
    done, deaths = 0, 0
    while True:
        with contextlib.closing(_start(batches[done:], workers)) as iterator:
            while True:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if (death := _DEATH.search(str(error))) is None:
                        raise
                    deaths += 1
                    _after_death(int(death[1]), deaths, error)
                    break
                done, deaths = done + 1, 0
                yield batch


def _start(batches: grain.MapDataset, workers: grain.MultiprocessingOptions) -> Iterator[dict[str, Any]]:
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES)
    stream = grain.experimental.WithOptionsIterDataset(stream, options)
    return iter(stream.mp_prefetch(workers, worker_init_fn=_prepare_worker))


def _prepare_worker(worker: int, num_workers: int) -> None:
    """Runs first in every worker process. One whose parent was killed would wait for it for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(0)


def _after_death(exit_code: int, deaths: int, error: RuntimeError) -> None:
    """Says that workers are started again, or raises WorkerError where that would be of no use."""
    if exit_code > 0:
        raise WorkerError(
            f"a data worker ended with exit code {exit_code}, see its output above: a script that trains needs "
            "`if __name__ == '__main__':`; data.num_workers=0 works without worker processes"
        ) from error
    name = signal.Signals(-exit_code).name
    if exit_code == -signal.SIGTERM:
        raise WorkerError(f"a data worker was stopped by {name}") from error
    if deaths == _MAX_DEATHS:
        raise WorkerError(
            f"data workers were killed by {name} {deaths} times before the same batch: {_remedy(name)}"
        ) from error
    _log.warning("a data worker was killed by %s: all are started again (%s)", name, _remedy(name))


def _remedy(name: str) -> str:
    return {
        "SIGKILL": "out of memory? then lower data.num_workers or data.buffer_size",
        "SIGBUS": f"is {_SHARED_MEMORY} full? then lower data.buffer_size or give the container a larger --shm-size",
    }.get(name, "a video may crash the decoder: look for it with data.num_workers=0")


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

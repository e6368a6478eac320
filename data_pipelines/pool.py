"""Work over many videos in worker processes: in order, a few tasks ahead, and no worker outlives its parent.

Workers are spawned, not forked: the caller may hold threads that do not survive a fork. Its main module must be
importable (the usual `if __name__ == "__main__"`).
"""

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data_pipelines.sources import DataError

Task, Result = TypeVar("Task"), TypeVar("Result")

_AHEAD = 4  # tasks for each worker that are handed out before their turn

_shared: Any = None  # of a worker process


def each(
    function: Callable[[Any, Task], Result], shared: Any, tasks: Iterable[Task], workers: int | None = None
) -> Iterator[Result]:
    """function(shared, task) of every task, in the order of the tasks.

    Args:
      shared: pickled once a worker, unlike the tasks.
      workers: processes; 0 works in this one, None takes one a core.

    Raises:
      DataError: a worker died; else what `function` raises.
    """
    workers = cores() if workers is None else workers
    if workers < 1:
        for task in tasks:
            yield function(shared, task)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (shared,))
    waiting = collections.deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_call, function, task))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, most likely for want of memory, or crashed in a decoder: "
            "try again with fewer --workers; --workers 0 shows which video it is"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranges(count: int, size: int) -> Iterator[range]:
    """0..count-1 in pieces of `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _begin(shared: Any) -> None:
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent ends the workers
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable[[Any, Task], Result], task: Task) -> Result:
    return function(_shared, task)

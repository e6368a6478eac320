"""Notices a step that does not end: says so, and writes what every thread is doing."""

import faulthandler
import pathlib
import threading
import time
from collections.abc import Callable
from types import TracebackType


class Watchdog:
    """Context with a thread that looks at the clock since the last `step`.

    Args:
      seconds: without a step for so long, one line is given to `say` and all stacks are written to `path`; again after
        as long. 0 switches it off.
      who: the process, as the line names it.
    """

    def __init__(self, seconds: float, path: pathlib.Path, who: str, say: Callable[[str], None]):
        self._seconds, self._path, self._who, self._say = seconds, path, who, say
        self._step, self._doing, self._since = 0, "starting", time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()

    def step(self, step: int, doing: str) -> None:
        """The loop goes on: `doing` what, in which step."""
        self._step, self._doing, self._since = step, doing, time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            stuck = time.monotonic() - self._since
            if stuck > self._seconds:
                self._since = time.monotonic()
                with open(self._path, "a") as file:
                    file.write(f"{self._who}, step {self._step}, {self._doing} for {stuck:.0f} s\n")
                    file.flush()
                    faulthandler.dump_traceback(file, all_threads=True)
                where = f"{self._who} has been {self._doing} for {stuck:.0f} s in step {self._step}"
                self._say(f"{where}: what every thread does is in {self._path}")

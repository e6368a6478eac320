"""SIGTERM and Ctrl-C, as a training loop takes them: noted at once, acted upon between two steps."""

import signal
import time


class StopSignal:
    """Context in which SIGTERM and the first Ctrl-C only set `asked`; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.asked = ""

    def __enter__(self):
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def arrives(self, seconds: float = 5.0) -> bool:
        """Whether a stop was asked for, or is within the next seconds."""
        limit = time.monotonic() + seconds
        while not self.asked and time.monotonic() < limit:
            time.sleep(0.05)
        return bool(self.asked)

    def _handle(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name

"""Where the time of a run goes, its throughput without compilation and pauses, and totals that survive a restart."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

# Every second of the main thread belongs to one of these. "init" ends with the first wait for data; "step" is what is
# left of the loop: handing steps to the devices and waiting for them. "lost" is what a start that was killed had done
# after its last checkpoint.
KINDS = ("init", "compile", "data_wait", "step", "checkpoint", "evaluation", "pictures", "lost")


class Chrono:
    """Time by kind, and clips/s, data-wait share and MFU of the steps between two readings.

    Call `tick()` after each step and `read()` when the metrics of the last step have arrived from the device: steps are
    dispatched ahead of time, only then are they known to be finished. The first `warmup_steps` of a process fill queues
    and belong to no reading.

    Args:
      items: clips a step, over all devices and hosts.
      flops_per_step: model FLOPs of one step, over all devices.
      peak_flops: FLOP/s of all devices together; None leaves MFU out.
      state: what `state()` gave before a restart.
      since: when this start began, by the clock; default: now.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        items: int,
        *,
        warmup_steps: int = 2,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        state: Mapping[str, float] | None = None,
        since: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._items, self._clock = items, clock
        self._mfu_per_rate = flops_per_step / peak_flops if flops_per_step and peak_flops else None
        names = [f"{kind}_seconds" for kind in KINDS]
        self._totals = {name: (state or {}).get(name, 0) for name in (*names, "steps", "items", "starts")}
        self._totals["starts"] += 1
        self._kind, self._since = "init", clock() if since is None else since
        self._warmup_left = warmup_steps
        self.seconds_per_step: float | None = None
        self._open()

    def _book(self) -> None:
        """Add the time since the last booking to the kind it belongs to."""
        now = self._clock()
        self._totals[f"{self._kind}_seconds"] += now - self._since
        self._since = now

    def _enter(self, kind: str) -> None:
        self._book()
        self._kind = kind

    def _training(self) -> tuple[float, float]:
        """Seconds of steps with their waiting, and of the waiting alone."""
        self._book()
        waited = self._totals["data_wait_seconds"]
        return self._totals["step_seconds"] + waited, waited

    def _open(self) -> None:
        """Begin the window that the next reading is about."""
        self._window, self._steps = self._training(), 0

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Around what belongs to one of KINDS; afterwards time goes on as before."""
        before = self._kind
        self._enter(kind)
        try:
            yield
        finally:
            self._enter(before)

    def begin(self) -> None:
        """The loop starts: time is that of steps from now on, unless it is spent otherwise."""
        self._enter("step")

    def tick(self) -> None:
        """One step is done (or dispatched)."""
        self._steps += 1
        self._totals["steps"] += 1
        self._totals["items"] += self._items
        if self._warmup_left:
            self._warmup_left -= 1
            self._open()

    def lose(self, seconds: float) -> None:
        """Count time of an earlier start whose work is gone."""
        self._totals["lost_seconds"] += seconds

    def read(self) -> dict[str, float]:
        """clips_per_s, data_wait (a share of 1) and, where the peak is known, mfu since the last reading.

        Empty while there is no step after warm-up to speak of.
        """
        busy, waited = (now - then for now, then in zip(self._training(), self._window, strict=True))
        if not self._steps or busy <= 0.0:
            return {}
        rate = self._steps / busy
        self._open()
        self.seconds_per_step = 1 / rate
        reading = {"clips_per_s": rate * self._items, "data_wait": min(waited / busy, 1.0)}
        if self._mfu_per_rate is not None:
            reading["mfu"] = rate * self._mfu_per_rate
        return reading

    def state(self) -> dict[str, float]:
        """Totals over all starts, to be saved with a checkpoint and given back as `state`: seconds by kind, "seconds"
        (of training: steps with their waiting), "steps", "items", "starts"."""
        seconds, _ = self._training()
        return self._totals | {"seconds": seconds}


def spent(totals: Mapping[str, float]) -> dict[str, float]:
    """Seconds by kind of `Chrono.state()`; a kind that is not there counts 0."""
    return {kind: totals.get(f"{kind}_seconds", 0.0) for kind in KINDS}


def goodput(totals: Mapping[str, float]) -> float:
    """The share of all time that went into steps which count: 1 is best."""
    seconds = spent(totals)
    return seconds["step"] / max(sum(seconds.values()), 1e-9)

"""Timing of a training loop: throughput without compilation and pauses, and totals that survive a restart."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Chrono:
    """Clips/s, data-wait share and MFU of the steps between two readings, and totals over all restarts of a run.

    Call `tick()` after each step and `read()` when the metrics of the last step have arrived from the device: steps are
    dispatched ahead of time, only then are they known to be finished. Time inside `pause()` (evaluation, checkpoint)
    belongs to no step. The first `warmup_steps` of a process compile and fill queues; they count only in
    `warmup_seconds`.

    Args:
      items: clips a step, over all devices and hosts.
      flops_per_step: model FLOPs of one step, over all devices.
      peak_flops: FLOP/s of all devices together; None leaves MFU out.
      state: what `state()` gave before a restart.
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
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._items, self._warmup, self._clock = items, warmup_steps, clock
        self._mfu_per_rate = flops_per_step / peak_flops if flops_per_step and peak_flops else None
        names = ("seconds", "wait_seconds", "paused_seconds", "warmup_seconds", "steps", "items", "starts")
        self._totals = {name: (state or {}).get(name, 0) for name in names}
        self._totals["starts"] += 1
        self._ticks, self._warm = 0, warmup_steps == 0
        self._paused_at: float | None = None
        self.seconds_per_step: float | None = None
        self._open()

    def _open(self) -> None:
        self._since, self._paused, self._waited, self._steps = self._clock(), 0.0, 0.0, 0
        if self._paused_at is not None:  # metrics written within a pause
            self._paused_at = self._since

    def _busy(self) -> float:
        """Seconds of the open window without its pauses."""
        now = self._clock() if self._paused_at is None else self._paused_at
        return max(now - self._since - self._paused, 0.0)

    def _close(self) -> None:
        """Book the open window and start the next one."""
        self._totals = self.state()
        self._open()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next batch."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around work that belongs to no step. Does not nest."""
        self._paused_at = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - self._paused_at
            self._paused_at = None

    def tick(self) -> None:
        """One step is done (or dispatched)."""
        self._ticks += 1
        self._steps += 1
        if self._ticks == self._warmup:
            self._close()
            self._warm = True

    def read(self) -> dict[str, float]:
        """clips_per_s, data_wait (a share of 1) and, where the peak is known, mfu since the last reading.

        Empty while there is no step after warm-up to speak of.
        """
        busy, steps, waited = self._busy(), self._steps, self._waited
        if not self._warm or not steps or busy <= 0.0:
            return {}
        self._close()
        rate = steps / busy
        self.seconds_per_step = 1 / rate
        reading = {"clips_per_s": rate * self._items, "data_wait": min(waited / busy, 1.0)}
        if self._mfu_per_rate is not None:
            reading["mfu"] = rate * self._mfu_per_rate
        return reading

    def state(self) -> dict[str, float]:
        """Totals up to now as a small JSON-able dict, to be saved with a checkpoint and given back as `state`."""
        totals, busy = dict(self._totals), self._busy()
        # Read inside pause() too: a checkpoint is saved there.
        open_pause = 0.0 if self._paused_at is None else self._clock() - self._paused_at
        totals["paused_seconds"] += self._paused + open_pause
        if self._warm:
            totals["seconds"] += busy
            totals["wait_seconds"] += self._waited
        else:
            totals["warmup_seconds"] += busy
        totals["steps"] += self._steps
        totals["items"] += self._steps * self._items
        return totals

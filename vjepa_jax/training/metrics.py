"""What a run tells while it trains: metrics.jsonl, TensorBoard events, a progress bar or plain lines.

Nothing here touches a device: metrics come as floats, pictures as numpy arrays, so the caller decides when to wait for
the accelerator. One JSON object a line follows big_vision; the bar replaces it on a terminal only.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from vjepa_jax.training.chrono import Chrono, goodput, spent
from vjepa_jax.training.events import EventFile
from vjepa_jax.training.files import write_bytes

# JSON has no NaN and no infinity: they are written as these strings, which float() and JavaScript's Number() read back.
_NON_FINITE = ("NaN", "Infinity", "-Infinity")


# --------------------------------------------------------------------------------------------------- metrics.jsonl


def to_json(record: Mapping[str, Any]) -> str:
    """One line of strict JSON; non-finite floats become the strings NaN, Infinity and -Infinity."""
    return json.dumps({k: _jsonable(v) for k, v in record.items()}, allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _parse(line: str) -> dict[str, Any] | None:
    """The record of one line, or None for a line that a killed run left unfinished."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return {k: float(v) if isinstance(v, str) and v in _NON_FINITE else v for k, v in record.items()}


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, in file order; unfinished lines are left out. An absent file gives []."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [record for record in map(_parse, text.splitlines()) if record is not None]


def drop_after(path: str | os.PathLike[str], step: int) -> int:
    """Remove what a killed run logged beyond the step that training goes on from. Returns the lines removed.

    Keeps lines with a step <= `step` (none for step 0, a start from scratch) and drops unfinished lines. The file is
    replaced atomically, so a kill in here loses nothing.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return 0

    def stays(line: str) -> bool:
        record = _parse(line)
        return record is not None and line.endswith("\n") and 0 < step and record["step"] <= step

    kept = [line for line in lines if stays(line)]
    if len(kept) < len(lines):
        write_bytes(path, "".join(kept).encode())
    return len(lines) - len(kept)


# --------------------------------------------------------------------------------------------------------- display


def duration(seconds: float) -> str:
    """12.3 -> '0:12', 3723 -> '1:02:03', 180000 -> '2d 02:00:00'."""
    total = round(seconds)
    days, rest = divmod(total, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}:{secs:02d}"
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def summary(record: Mapping[str, Any], eta: float | None = None) -> str:
    """The numbers of a record that a person watches, in one line; what is absent is left out."""
    shown = []
    for key, text in (
        ("loss", lambda v: f"loss {v:.4f}"),
        ("lr", lambda v: f"lr {v:.2e}"),
        ("clips_per_s", lambda v: f"{v:.0f} clips/s" if v >= 100 else f"{v:.3g} clips/s"),
        ("data_wait", lambda v: f"wait {v:.0%}"),
        ("mfu", lambda v: f"mfu {v:.1%}"),
    ):
        if key in record:
            shown.append(text(record[key]))
    if eta is not None:
        shown.append(f"eta {duration(eta)}")
    for count in ("substituted", "retries"):
        if record.get(count):
            shown.append(f"{count} {record[count]:g}")
    if "rankme" in record:
        limit = f"/{record['rankme_max']:.0f}" if "rankme_max" in record else ""
        shown.append(f"rankme {record['rankme']:.1f}{limit}")
    if "feature_std" in record:
        shown.append(f"std {record['feature_std']:.3f}")
    return "  ".join(shown)


class RunLog:
    """Everything that one run writes about itself. Use as a context manager; only the main process writes.

    ```
    with RunLog(workdir, total_steps=n, start_step=s, items=batch_size, state=saved) as log:
        for step in range(s + 1, n + 1):
            with log.waiting():
                batch = next(batches)
            state, metrics = train_step(state, batch)
            log.tick()
            if step % every == 0:
                log.write(step, floats_of(metrics))
    ```

    Args:
      workdir: the run's folder; receives metrics.jsonl and tensorboard/.
      total_steps: where the bar ends.
      start_step: step that training goes on from; lines and events beyond it are dropped. 0: from scratch.
      is_main: False on the other processes of a multi-host run: they keep time and write nothing.
      items, flops_per_step, peak_flops, state, since, warmup_steps: see `Chrono`.
      console: where bar and lines go; stdout if None.
      bar: True for a progress bar, False for plain lines; None: a bar on a terminal.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        total_steps: int,
        start_step: int = 0,
        is_main: bool = True,
        items: int = 1,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        state: Mapping[str, float] | None = None,
        since: float | None = None,
        warmup_steps: int = 2,
        console: Console | None = None,
        bar: bool | None = None,
    ):
        self.chrono = Chrono(
            items,
            warmup_steps=warmup_steps,
            flops_per_step=flops_per_step,
            peak_flops=peak_flops,
            state=state,
            since=since,
        )
        self._total, self._main = total_steps, is_main
        self._live: Live | None = None
        if not is_main:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._file = workdir / "metrics.jsonl"
        self.chrono.lose(_lost_seconds(self._file, state or {}))
        drop_after(self._file, start_step)
        self._board: EventFile | None = EventFile(workdir / "tensorboard", start_step + 1 if start_step else 0)
        self._console = console or Console()
        if bar is None:
            bar = self._console.is_interactive and self._console.file.isatty()
        if bar:
            self._start_bar(start_step)

    def _start_bar(self, start_step: int) -> None:
        # Two lines: at 80 columns bar and numbers do not fit beside each other.
        self._progress = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=None), TaskProgressColumn(),
            console=self._console, expand=True,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=self._total, completed=start_step)
        self._numbers, self._doing = "compiling", ""
        self._live = Live(self._render(), console=self._console, refresh_per_second=4)
        self._live.start()

    def _render(self) -> Group:
        numbers = Text(self._numbers, style="dim")
        return Group(self._progress, numbers.append(f"  {self._doing}" if self._doing else ""))

    def waiting(self) -> Any:
        """Context around the wait for a batch; its time becomes `data_wait`."""
        return self.chrono.spend("data_wait")

    @contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        """Context around work that is no training step: one of chrono.KINDS, shown on the bar."""
        with self.chrono.spend(kind):
            if self._live is not None:
                self._doing = kind
                self._live.update(self._render(), refresh=True)
            try:
                yield
            finally:
                self._doing = ""
                if self._live is not None:
                    self._live.update(self._render())

    def tick(self) -> None:
        """Count one step."""
        self.chrono.tick()
        if self._live is not None:
            self._progress.advance(self._task)

    def write(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Log the metrics of a step (scalars, on the host) to file, TensorBoard and screen. Once for each step.

        Returns the record as written: step, the metrics, and the timing since the last call.
        """
        record: dict[str, Any] = {"step": int(step)} | {k: _scalar(k, v) for k, v in metrics.items()}
        record |= self.chrono.read()
        totals = self.chrono.state()
        record |= {"seconds": round(totals["seconds"], 3), "goodput": round(goodput(totals), 4)}
        record |= {f"time/{kind}": round(seconds, 3) for kind, seconds in spent(totals).items()}
        if not self._main:
            return record
        try:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(to_json(record) + "\n")
        except OSError as error:
            self.warn(f"step {step} is not in {self._file} ({error.strerror}): free space")
        # TensorBoard has no place for non-finite values; metrics.jsonl has them
        finite = {key: value for key, value in record.items() if key != "step" and math.isfinite(value)}
        self._to_board(lambda board: board.scalars(finite, record["step"]))
        self._show(record)
        return record

    def _to_board(self, write: Callable[[EventFile], None]) -> None:
        """Write to TensorBoard; where that fails, its events end here and training goes on."""
        if self._board is None:
            return
        try:
            write(self._board)
        except OSError as error:
            self._board = None
            self.warn(f"TensorBoard events end here ({error.strerror}): free space and restart to have them again")

    def _show(self, record: Mapping[str, Any]) -> None:
        pace = self.chrono.seconds_per_step
        text = summary(record, None if pace is None else pace * max(self._total - record["step"], 0))
        if self._live is None:
            self._print(f"step {record['step']}/{self._total}  {text}")
        else:
            self._numbers = text
            self._progress.update(self._task, completed=record["step"])
            self._live.update(self._render())

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Show uint8[H,W,3] in TensorBoard."""
        if self._main:
            self._to_board(lambda board: board.picture(name, image, int(step)))

    def say(self, text: str, style: str = "") -> None:
        """Print a line, above the bar if there is one."""
        if self._main:
            self._print(text, style)

    def warn(self, text: str) -> None:
        """Print a line that must be seen."""
        self.say(f"warning: {text}", style="bold yellow")

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def state(self) -> dict[str, float]:
        """Totals of the run so far, restarts included; see `Chrono.state`."""
        return self.chrono.state()

    def close(self) -> None:
        """Stop the bar and close the files. May be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._main:
            self._to_board(lambda board: board.close())
            self._board = None

    def __enter__(self) -> "RunLog":
        self.chrono.begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _lost_seconds(path: Path, totals: Mapping[str, float]) -> float:
    """What the last line of metrics.jsonl has in seconds that the totals of the last checkpoint have not."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    last = next(filter(None, map(_parse, reversed(lines))), {})
    then = sum(value for key, value in last.items() if key.startswith("time/"))
    return max(then - sum(spent(totals).values()), 0.0)


def _scalar(key: str, value: Any) -> int | float:
    """A Python number from a number or a numpy scalar."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        # bfloat16 and its relatives are of kind V: they convert to float but are not known to numpy.
        if array.size != 1 or array.dtype.kind != "V":
            raise ValueError(f"metric {key!r} must be one number, got {type(value).__name__} of shape {array.shape}")
        return float(array.astype(np.float32).item())
    return int(array.item()) if array.dtype.kind in "biu" else float(array.item())

"""The log of a run: metrics.jsonl that survives kills, TensorBoard events, bar and lines, timing."""

import io
import json
import math
import struct

import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from vjepa_jax.parallel.chips import peak_flops
from vjepa_jax.training.chrono import Chrono, goodput, spent
from vjepa_jax.training.metrics import RunLog, drop_after, duration, read_metrics, summary, to_json


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def console(terminal: bool = False, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, legacy_windows=False)


def events(workdir) -> list[Event]:
    """All TensorBoard events, read without TensorBoard: length, checksum, message, checksum."""
    found = []
    for path in sorted((workdir / "tensorboard").glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


# ----------------------------------------------------------------------------------------------------------- peaks


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("cpu", None),
        ("TPU v4 lite", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_flops(kind, peak):
    assert peak_flops(kind) == peak


# --------------------------------------------------------------------------------------------------- metrics.jsonl


def test_non_finite_values_stay_valid_json(tmp_path):
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1}
    text = to_json({"step": 3, **values})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(text, parse_constant=refuse) == {
        "step": 3, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 0.1
    }  # fmt: skip
    (tmp_path / "m.jsonl").write_text(text + "\n")
    (record,) = read_metrics(tmp_path / "m.jsonl")
    assert math.isnan(record["a"]) and record["b"] == math.inf and record["c"] == -math.inf and record["d"] == 0.1


def test_drop_after_removes_later_steps_and_torn_lines_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(to_json({"step": s, "loss": 1 / s}) + "\n" for s in (10, 20, 30, 40)) + '{"step": 50, "lo')
    assert [r["step"] for r in read_metrics(path)] == [10, 20, 30, 40]
    kept = path.read_text().splitlines(keepends=True)[:2]
    assert drop_after(path, 20) == 3
    assert path.read_text() == "".join(kept)
    before = path.stat()
    assert drop_after(path, 20) == 0
    assert path.stat().st_ino == before.st_ino, "an unchanged file is not written again"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert drop_after(path, 0) == 2 and path.read_text() == ""
    assert drop_after(tmp_path / "absent.jsonl", 5) == 0


def test_a_whole_last_line_without_newline_is_dropped_too(tmp_path):
    # Appending to it would join two records.
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert drop_after(path, 5) == 1
    assert path.read_text() == '{"step": 1}\n'


def test_drop_after_leaves_the_file_whole_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        drop_after(path, 1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_resumed_run_has_each_step_once(tmp_path):
    with RunLog(tmp_path, total_steps=40, console=console()) as log:
        for step in (10, 20, 30):
            log.write(step, {"loss": 1.0})
    with RunLog(tmp_path, total_steps=40, start_step=20, console=console()) as log:
        for step in (30, 40):
            log.write(step, {"loss": 2.0})
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in records] == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    # TensorBoard is told the same: it hides events from the first step that is run again.
    starts = [e.step for e in events(tmp_path) if e.WhichOneof("what") == "session_log"]
    assert starts == [0, 21]


def test_only_the_main_process_writes(tmp_path):
    out = console()
    with RunLog(tmp_path / "run", total_steps=4, is_main=False, items=2, console=out) as log:
        log.tick()
        record = log.write(1, {"loss": np.float32(0.5)})
        log.picture(1, "masks", np.zeros((4, 4, 3), np.uint8))
        log.say("hello")
        assert log.state()["items"] == 2
    assert record["loss"] == 0.5
    assert not (tmp_path / "run").exists() and out.file.getvalue() == ""


def test_write_takes_numpy_numbers_and_refuses_arrays(tmp_path):
    with RunLog(tmp_path, total_steps=4, console=console()) as log:
        log.write(1, {"loss": np.float32(0.1), "substituted": np.int32(3), "one": np.array([2.5])})
        with pytest.raises(ValueError, match=r"metric 'loss' must be one number, got ndarray of shape \(2,\)"):
            log.write(2, {"loss": np.zeros(2)})
        with pytest.raises(ValueError, match="metric 'name' must be one number"):
            log.write(2, {"name": "x"})
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record["loss"] == float(np.float32(0.1)) and record["substituted"] == 3 and record["one"] == 2.5


def test_tensorboard_holds_finite_scalars_and_pictures(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    with RunLog(tmp_path, total_steps=4, console=console()) as log:
        log.write(2, {"loss": 0.25, "grad_norm": math.nan})
        log.picture(2, "masks", picture)
    values = {v.tag: v for e in events(tmp_path) if e.step == 2 for v in e.summary.value}
    assert values["loss"].simple_value == 0.25
    assert "grad_norm" not in values
    from PIL import Image

    decoded = Image.open(io.BytesIO(values["masks"].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(decoded), picture)


# --------------------------------------------------------------------------------------------------------- display


def test_plain_lines(tmp_path):
    out = console(width=40)
    with RunLog(tmp_path, total_steps=200, console=out) as log:
        log.write(100, {"loss": 0.51234, "lr": 6e-4, "substituted": 0, "rankme": 40.26, "rankme_max": 96.0})
        log.write(110, {"loss": 0.5, "substituted": 2})
        log.warn("look [here]")
    assert out.file.getvalue().splitlines() == [
        "step 100/200  loss 0.5123  lr 6.00e-04  rankme 40.3/96",
        "step 110/200  loss 0.5000  substituted 2",
        "warning: look [here]",
    ]


def test_bar_on_a_terminal(tmp_path):
    out = console(terminal=True, width=80)
    with RunLog(tmp_path, total_steps=200, start_step=90, items=8, warmup_steps=1, console=out, bar=True) as log:
        for _ in range(10):
            with log.waiting():
                pass
            log.tick()
        log.write(100, {"loss": 0.51234, "lr": 6e-4})
        log.say("saved a checkpoint")
        with log.spend("evaluation"):
            pass
    text = out.file.getvalue()
    for wanted in ("compiling", "100/200", "50%", "loss 0.5123", "lr 6.00e-04", "clips/s", "wait ", "eta 0:0",
                   "saved a checkpoint", "evaluation"):  # fmt: skip
        assert wanted in text, wanted
    assert "\x1b[?25h" in text, "the cursor is shown again"
    assert "step 100/200  loss" not in text, "no plain lines beside the bar"


def test_no_bar_without_a_terminal(tmp_path):
    out = console(terminal=True)  # colours forced, but a file all the same
    with RunLog(tmp_path, total_steps=2, console=out) as log:
        log.write(1, {"loss": 0.5})
    assert out.file.getvalue() == "step 1/2  loss 0.5000\n"


def test_bar_stops_when_training_fails(tmp_path):
    out = console(terminal=True)
    with pytest.raises(RuntimeError, match="boom"), RunLog(tmp_path, total_steps=2, console=out, bar=True) as log:
        with log.spend("checkpoint"):
            raise RuntimeError("boom")
    assert "\x1b[?25h" in out.file.getvalue()
    log.close()


def test_summary_and_duration():
    line = summary({"loss": 1.0, "clips_per_s": 12.345, "data_wait": 0.013, "mfu": 0.3812}, eta=3723)
    assert line == "loss 1.0000  12.3 clips/s  wait 1%  mfu 38.1%  eta 1:02:03"
    assert [duration(s) for s in (12.3, 3723, 180000)] == ["0:12", "1:02:03", "2d 02:00:00"]


# ---------------------------------------------------------------------------------------------------------- timing


def begun(clock: Clock, items: int = 1, **options) -> Chrono:
    chrono = Chrono(items, clock=clock, **options)
    chrono.begin()
    return chrono


def run_steps(chrono: Chrono, clock: Clock, steps: int, seconds: float, wait: float = 0.0) -> None:
    for _ in range(steps):
        with chrono.spend("data_wait"):
            clock.sleep(wait)
        clock.sleep(seconds - wait)
        chrono.tick()


def test_compilation_and_pauses_do_not_count():
    clock = Clock()
    chrono = begun(clock, 16, warmup_steps=2, flops_per_step=5e12, peak_flops=100e12)
    run_steps(chrono, clock, 2, 60.0, wait=5.0)
    assert chrono.read() == {}
    run_steps(chrono, clock, 10, 0.1, wait=0.02)
    with chrono.spend("evaluation"):
        clock.sleep(30.0)
    run_steps(chrono, clock, 10, 0.1, wait=0.02)
    reading = chrono.read()
    assert reading == pytest.approx({"clips_per_s": 160.0, "data_wait": 0.2, "mfu": 0.5})
    assert chrono.seconds_per_step == pytest.approx(0.1)
    assert chrono.read() == {}, "no step since the last reading"
    run_steps(chrono, clock, 5, 0.2)
    assert chrono.read() == pytest.approx({"clips_per_s": 80.0, "data_wait": 0.0, "mfu": 0.25})


def test_warm_up_ending_within_a_window_shortens_it():
    clock = Clock()
    chrono = begun(clock, warmup_steps=2)
    run_steps(chrono, clock, 2, 60.0)
    run_steps(chrono, clock, 8, 0.5)
    assert chrono.read() == pytest.approx({"clips_per_s": 2.0, "data_wait": 0.0})


def test_unknown_peak_gives_no_mfu():
    clock = Clock()
    chrono = begun(clock, warmup_steps=0, flops_per_step=1e12)
    run_steps(chrono, clock, 1, 1.0)
    assert "mfu" not in chrono.read()


def test_every_second_has_a_kind_and_totals_survive_a_restart():
    clock = Clock()
    first = Chrono(4, warmup_steps=1, clock=clock)
    clock.sleep(3.0)
    first.begin()
    with first.spend("compile"):
        clock.sleep(29.0)
    run_steps(first, clock, 10, 1.0, wait=0.5)
    first.read()
    with first.spend("checkpoint"):
        clock.sleep(7.0)
        saved = json.loads(json.dumps(first.state()))  # a checkpoint is saved within its own time
    clock.sleep(500.0)
    began = clock()
    clock.sleep(2.0)  # imports
    second = begun(clock, 4, warmup_steps=1, state=saved, since=began)
    second.lose(40.0)
    run_steps(second, clock, 3, 1.0)
    with pytest.raises(RuntimeError), second.spend("evaluation"):
        clock.sleep(6.0)
        raise RuntimeError
    totals = second.state()
    by_kind = {"init": 5.0, "compile": 29.0, "data_wait": 5.0, "step": 8.0, "checkpoint": 7.0, "evaluation": 6.0,
               "pictures": 0.0, "lost": 40.0}  # fmt: skip
    assert spent(totals) == pytest.approx(by_kind)
    assert {k: totals[k] for k in ("seconds", "steps", "items", "starts")} == pytest.approx(
        {"seconds": 13.0, "steps": 13, "items": 52, "starts": 2}
    )
    assert goodput(totals) == pytest.approx(8 / 100)


def test_metrics_written_within_a_pause():
    clock = Clock()
    chrono = begun(clock, warmup_steps=0)
    run_steps(chrono, clock, 4, 1.0)
    with chrono.spend("checkpoint"):
        clock.sleep(5.0)
        assert chrono.read()["clips_per_s"] == pytest.approx(1.0)
        clock.sleep(5.0)
    run_steps(chrono, clock, 4, 1.0)
    assert chrono.read()["clips_per_s"] == pytest.approx(1.0)
    assert chrono.state()["checkpoint_seconds"] == pytest.approx(10.0)


def test_what_a_killed_start_did_after_its_checkpoint_is_lost(tmp_path):
    lines = [{"step": 4, "time/init": 3.0, "time/step": 4.0}, {"step": 9, "time/init": 3.0, "time/step": 9.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(to_json(line) + "\n" for line in lines))
    saved = {"init_seconds": 3.0, "step_seconds": 5.0}  # with the checkpoint of step 5

    def start(state):
        return RunLog(tmp_path, total_steps=9, start_step=5, state=state, console=console())

    with start(saved) as log:  # killed before its first line of metrics: nothing more is known to be lost
        totals = log.state()
        assert totals["lost_seconds"] == pytest.approx(4.0)
    with start(totals) as log:
        record = log.write(6, {"loss": 1.0})
    assert record["time/lost"] == pytest.approx(4.0)
    assert record["goodput"] == pytest.approx(record["time/step"] / (9.0 + record["time/init"]), abs=0.01)
    with start(saved) as log:  # as if killed now, with the older totals: all since then
        assert log.state()["lost_seconds"] == pytest.approx(
            sum(totals[k] for k in totals if k.endswith("_seconds")) - 8.0, abs=0.01
        )

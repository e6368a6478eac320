"""Workers that are killed, end by themselves or lose their parent: the next batch, or one line; never a hang."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import grain
import numpy as np
import psutil
import pytest

from data_pipelines import loading
from data_pipelines.pipeline import train_batches
from vjepa_jax.config import DataConfig, MaskConfig, MaskGroupConfig, ModelConfig, RunConfig

from .videos import write_video

# A process that takes batches from one worker for ever, or as main of a script without a guard.
SCRIPT = """
import signal
import sys
import grain
from data_pipelines import loading

def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and its children do
    batches = grain.MapDataset.range(10**9).batch(2)
    for batch in loading.iterate(batches, 1, 1, 2, 16):
        print(batch[0], flush=True)

{start}
"""
GUARDED = "if __name__ == '__main__':\n    main()"


def kill_itself(element, *, number):
    os.kill(os.getpid(), number)
    return element


@contextlib.contextmanager
def running(folder, start=GUARDED):
    """SCRIPT as a process group of its own; killed in the end, whatever happens."""
    (folder / "script.py").write_text(SCRIPT.format(start=start))
    process = subprocess.Popen(
        [sys.executable, "script.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()}, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_killed_worker_is_replaced_at_the_batch_that_is_due(tmp_path, caplog):
    for i in range(3):
        write_video(tmp_path / f"{i}.mp4", 8, video=i)

    def run(workers):
        data = DataConfig(path=str(tmp_path), num_frames=2, resolution=32, num_workers=workers)
        masks = MaskConfig(groups=(MaskGroupConfig(kind="tube", ratio=0.5),))
        return train_batches(RunConfig(steps=1, batch_size=2, data=data, model=ModelConfig(patch_size=8), masks=masks))

    with contextlib.closing(run(0)) as batches:
        expected = list(itertools.islice(batches, 9))
    with contextlib.closing(run(2)) as batches:
        found = [next(batches), next(batches)]
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        found += itertools.islice(batches, 7)
    assert not multiprocessing.active_children()
    for a, b in zip(expected, found, strict=True):
        for key in ("video", "index", "label"):
            np.testing.assert_array_equal(a[key], b[key])
        np.testing.assert_array_equal(a["masks"][0]["target"], b["masks"][0]["target"])
    assert [r.getMessage() for r in caplog.records if r.name == loading.__name__] == [
        "a data worker was killed by SIGKILL: all are started again "
        "(out of memory? then lower data.num_workers or data.buffer_size)"
    ]


def test_workers_that_are_killed_again_and_again_end_the_run(monkeypatch):
    monkeypatch.setattr(loading, "_MAX_DEATHS", 1)
    batches = grain.MapDataset.range(8).map(lambda i: kill_itself(i, number=signal.SIGKILL)).batch(2)
    message = "data workers were killed by SIGKILL 1 times before the same batch: out of memory"
    with pytest.raises(loading.WorkerError, match=message) as error:
        list(loading.iterate(batches, 1, 1, 2, 16))
    assert "\n" not in str(error.value) and not multiprocessing.active_children()


def test_a_worker_that_is_killed_while_it_hands_over_a_batch(monkeypatch):
    """A pipe holds 64 KiB: of a longer message the second half would never come, and the reader would wait for it."""
    monkeypatch.setattr(loading, "_MAX_DEATHS", 1)
    batches = grain.MapDataset.range(9).map(lambda i: [np.full(60_000, i, np.uint8)] * 4).batch(1)
    iterator, ends = loading.iterate(batches, 1, 1, 2, 240_000), []
    assert next(iterator)[3][0, -1] == 0

    def read_on():
        with pytest.raises(loading.WorkerError, match="SIGKILL"):
            ends.extend(iterator)
        ends.append("clear")

    time.sleep(0.5)  # now the worker has filled what it may
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    thread = threading.Thread(target=read_on, daemon=True)
    thread.start()
    thread.join(60)
    assert ends[-1:] == ["clear"], "the reader waits for ever"


@pytest.mark.parametrize(
    ("exit_code", "deaths", "message"),
    [
        (-signal.SIGTERM, 1, "a data worker was stopped by SIGTERM"),
        (-signal.SIGBUS, 3, r"killed by SIGBUS 3 times .*: is /dev/shm full\? then lower"),
        (-signal.SIGSEGV, 3, "killed by SIGSEGV 3 times .*: a video may crash the decoder: look for it"),
    ],
)
def test_what_is_said_when_workers_end(exit_code, deaths, message):
    with pytest.raises(RuntimeError, match=message) as error:
        loading._after_death(exit_code, deaths, RuntimeError())
    assert isinstance(error.value, loading.WorkerError) and "\n" not in str(error.value)


def test_a_script_without_a_guard(tmp_path):
    """Each worker runs the script again, and fails at once."""
    with running(tmp_path, start="main()") as process:
        _, err = process.communicate(timeout=120)
    last = err.strip().splitlines()[-1]
    assert "a data worker ended with exit code 1, see its output above" in last and "__name__" in last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_is_left_behind(tmp_path, number):
    """Ctrl-C reaches the whole group; a killed process closes nothing."""
    with running(tmp_path) as process:
        assert process.stdout.readline() == "0\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2  # a worker and the tracker of shared memory
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.kill()
        assert process.wait(60) == -number
        limit = time.monotonic() + 30
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
            assert time.monotonic() < limit, f"{[c.cmdline() for c in children if c.is_running()]} were left behind"
            time.sleep(0.05)
        assert process.stderr.read().count("Traceback") == (number == signal.SIGINT)

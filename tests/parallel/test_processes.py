"""Several real processes over the loopback: the losses of one, stopping together, and the death of one of them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from vjepa_jax.config import ConfigError
from vjepa_jax.parallel import distributed
from vjepa_jax.training.watchdog import Watchdog

from ..processes import assert_same, finish, losses, outcome, start, train, wait_for_step

DEVICES = 4  # of all processes together


def test_two_processes_train_as_one(alone, config, tmp_path):
    config = config | {"log": config["log"] | {"images_every_steps": 6, "report": True}}
    outputs = train(config, tmp_path / "run", 2, devices=DEVICES)
    assert_same(tmp_path / "run", alone)
    assert "report:" in outputs[0] and "step" not in outputs[1]  # one process speaks
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 6  # masks and PCA of steps 1, 6 and 12


def test_a_signal_to_one_of_four_stops_all_and_any_number_goes_on(alone, config, tmp_path):
    processes = start(config, tmp_path / "run", 4, devices=DEVICES)
    wait_for_step(tmp_path / "run", 2, processes)
    processes[2].send_signal(signal.SIGTERM)
    outputs = finish(processes, distributed.EXIT_RESUME)
    assert "stopped by a signal to another process after step" in outputs[0]
    assert max(losses(tmp_path / "run")) < config["steps"]
    for devices in (1, 8):
        copy = tmp_path / f"on_{devices}"
        shutil.copytree(tmp_path / "run", copy)
        (output,) = train(config, copy, devices=devices)
        assert "going on from step" in output
        assert_same(copy, alone)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_ends_the_other_and_a_restart_goes_on(alone, config, tmp_path, victim):
    processes = start(config, tmp_path / "run", 2, devices=DEVICES)
    wait_for_step(tmp_path / "run", 6, processes)
    processes[victim].kill()
    died = time.monotonic()
    codes, outputs = outcome(processes)
    assert time.monotonic() - died < 30
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, 1, 2)
    for output in outputs:
        assert "Start the same command on all hosts again" in output
    if victim == 1:
        train(config, tmp_path / "run", 2, devices=DEVICES)
        assert_same(tmp_path / "run", alone)


def test_processes_that_would_run_different_things_say_so(config, tmp_path):
    other = config | {"seed": 4}
    for output in finish(start(config, tmp_path / "run", 2, overrides={1: other}), 2):
        assert re.search(r"process 1 on \S+ has config \w+, process 0 on \S+ has \w+: start all processes", output)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_all(config, tmp_path):
    outputs = finish(start(config | {"optim": {"lr": 1e30, "start_lr": 1e30}}, tmp_path / "run", 2), 1)
    assert all("the loss is" in output for output in outputs), "\n".join(outputs)


@pytest.mark.parametrize(
    "spec", ["10.0.0.1", "10.0.0.1:1234", "10.0.0.1:1234,4,4", "10.0.0.1:x,0,1", ":1,0,1", "a:1,0,1,2"]
)
def test_a_bad_specification_is_one_line(spec):
    with pytest.raises(ConfigError, match=f"--distributed {spec} must be auto or HOST:PORT,INDEX,COUNT"):
        distributed.join(spec)


def test_no_cluster_is_one_line(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("SLURM", "OMPI", "TPU", "KUBERNETES", "JAX_COORDINATOR"))]:
        monkeypatch.delenv(name)
    code = "from vjepa_jax.parallel import distributed; distributed.join('auto')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "no cluster is recognised here" in done.stderr and "give the processes as" in done.stderr


LAST_WORDS = """
import os, sys, time
from vjepa_jax.parallel import distributed
with distributed.last_words("farewell"):
    print("up", flush=True)
    if sys.argv[1] == "fine":
        sys.exit(0)
    if sys.argv[1] == "abort":
        os.abort()
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["fine", "abort", "kill"])
def test_last_words_of_a_process_that_cannot_speak(end):
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", LAST_WORDS, end], **pipe)
    assert process.stdout.readline() == "up\n"
    if end == "kill":
        process.kill()
    assert ("farewell" in process.communicate(timeout=60)[1]) == (end != "fine")


def test_watchdog_writes_down_what_a_stuck_step_does(tmp_path):
    said = []
    with Watchdog(0.2, tmp_path / "stuck.txt", "process 3 of 4 on b", said.append) as watchdog:
        for step in range(1, 6):
            watchdog.step(step, "waiting for data")
            time.sleep(0.05)
        assert not said
        watchdog.step(6, "waiting for the devices")
        limit = time.monotonic() + 30
        while not said and time.monotonic() < limit:
            time.sleep(0.05)
    assert re.match(r"process 3 of 4 on b has been waiting for the devices for 0 s in step 6: .*stuck\.txt", said[0])
    assert "test_watchdog_writes_down" in (tmp_path / "stuck.txt").read_text()

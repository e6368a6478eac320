"""Several real processes over the loopback: the losses of one, stopping together, and the death of one of them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from vjepa_jax.config import ConfigError
from vjepa_jax.parallel import distributed
from vjepa_jax.training import metrics as metrics_lib
from vjepa_jax.training.watchdog import Watchdog

START = """
import contextlib, json, sys
from absl import flags
from vjepa_jax import config, train
from vjepa_jax.parallel import distributed
flags.FLAGS.mark_as_parsed()
if __name__ == "__main__":
    with distributed.member(sys.argv[3]) if sys.argv[3] else contextlib.nullcontext():
        code = train.train(config.from_config_dict(json.load(open(sys.argv[1]))), sys.argv[2])
    sys.exit(code)
"""
DEVICES = 8
STEPS = 12


def losses(workdir):
    return {r["step"]: r["loss"] for r in metrics_lib.read_metrics(workdir / "metrics.jsonl")}


def start(config, workdir, count, devices=DEVICES, overrides=None):
    """`count` processes with `devices` together; `overrides`: configs of some processes of their own."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    program = workdir.parent / "start.py"
    program.write_text(START)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(count):
        file = workdir.parent / f"{workdir.name}.{index}.json"
        file.write_text(json.dumps((overrides or {}).get(index, config)))
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices // count)}
        spec = f"127.0.0.1:{port},{index},{count}" if count > 1 else ""
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, str(program), str(file), str(workdir), spec]
        processes.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipe))
    return processes


def finish(processes):
    """Exit codes and outputs."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def wait_for_step(workdir, step, processes):
    limit = time.monotonic() + 240
    while max(losses(workdir), default=0) < step:
        assert all(process.poll() is None for process in processes), "\n".join(finish(processes)[1])
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tmp_path_factory.mktemp("reference")


@pytest.fixture
def config(tiny_config):
    return tiny_config(steps=STEPS, checkpoint={"every_steps": 4}, mesh={"fsdp": -1}, seed=3)


@pytest.fixture
def alone(reference, config):
    """Losses of one process with one device, started once."""
    if not (reference / "alone").is_dir():
        assert finish(start(config, reference / "alone", 1, devices=1))[0] == [0]
    return losses(reference / "alone")


def assert_same(workdir, expected):
    """The metrics hold every step once, with the losses of one process."""
    ours = losses(workdir)
    assert len(metrics_lib.read_metrics(workdir / "metrics.jsonl")) == len(ours)
    assert ours.keys() == expected.keys()
    np.testing.assert_allclose([ours[k] for k in sorted(ours)], [expected[k] for k in sorted(ours)], atol=1e-5)


def test_two_processes_train_as_one(alone, config, tmp_path):
    config = config | {"log": config["log"] | {"images_every_steps": 6, "report": True}}
    codes, outputs = finish(start(config, tmp_path / "run", 2))
    assert codes == [0, 0], "\n".join(outputs)
    assert_same(tmp_path / "run", alone)
    assert "report:" in outputs[0] and "step" not in outputs[1]  # one process speaks
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 6  # masks and PCA of steps 1, 6 and 12


def test_a_signal_to_one_of_four_stops_all_and_any_number_goes_on(alone, config, tmp_path):
    processes = start(config, tmp_path / "run", 4)
    wait_for_step(tmp_path / "run", 2, processes)
    processes[2].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [distributed.EXIT_RESUME] * 4, "\n".join(outputs)
    assert "stopped by a signal to another process after step" in outputs[0]
    assert max(losses(tmp_path / "run")) < STEPS
    for devices in (1, 2, 8):
        copy = tmp_path / f"on_{devices}"
        shutil.copytree(tmp_path / "run", copy)
        codes, outputs = finish(start(config, copy, 1, devices=devices))
        assert codes == [0] and "going on from step" in outputs[0]
        assert_same(copy, alone)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_ends_the_other_and_a_restart_goes_on(alone, config, tmp_path, victim):
    processes = start(config, tmp_path / "run", 2)
    wait_for_step(tmp_path / "run", 6, processes)
    processes[victim].kill()
    died = time.monotonic()
    codes, outputs = finish(processes)
    assert time.monotonic() - died < 30
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, 1, 2)
    for output in outputs:
        assert "Start the same command on all hosts again" in output
    if victim == 1:
        assert finish(start(config, tmp_path / "run", 2))[0] == [0, 0]
        assert_same(tmp_path / "run", alone)


def test_processes_that_would_run_different_things_say_so(config, tmp_path):
    other = config | {"seed": 4}
    codes, outputs = finish(start(config, tmp_path / "run", 2, overrides={1: other}))
    assert codes == [2, 2]
    for output in outputs:
        assert re.search(r"process 1 on \S+ has config \w+, process 0 on \S+ has \w+: start all processes", output)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_all(config, tmp_path):
    codes, outputs = finish(start(config | {"optim": {"lr": 1e30, "start_lr": 1e30}}, tmp_path / "run", 2))
    assert codes == [1, 1]
    assert all("the loss is" in output for output in outputs)


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

"""Training in processes of its own: started, watched, killed, and compared by their losses."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import numpy as np

from vjepa_jax.training import metrics as metrics_lib

# jax lets only process 0 write to the compilation cache; on CPUs every process has programs of its own, which would be
# compiled by every test again
PROGRAM = """
import contextlib, json, sys, types
from jax._src import compiler
from vjepa_jax import config_stages, stages
from vjepa_jax.parallel import distributed
compiler.distributed = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0, client=None))
{fault}
if __name__ == "__main__":
    file, workdir, spec = sys.argv[1:]
    with distributed.member(spec) if spec else contextlib.nullcontext():
        with open(file) as opened:
            code = stages.train(config_stages.expand(json.load(opened)), workdir)
    sys.exit(code)
"""


def start(config, workdir, count=1, devices=None, overrides=None, fault=""):
    """`count` processes that train `config`, a run or a ladder, in `workdir`.

    Args:
      devices: of all processes together; one each by default.
      overrides: configs of single processes, by index, in place of `config`.
      fault: Python that every process runs before it trains.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    program = workdir.parent / f"{workdir.name}.py"
    program.write_text(PROGRAM.format(fault=fault))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(count):
        file = workdir.parent / f"{workdir.name}.{index}.json"
        file.write_text(json.dumps((overrides or {}).get(index, config)))
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str((devices or count) // count)}
        spec = f"127.0.0.1:{port},{index},{count}" if count > 1 else ""
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, str(program), str(file), str(workdir), spec]
        processes.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipe))
    return processes


def finish(processes, code=0):
    """Outputs of processes, once all have ended with the exit code `code`."""
    codes, outputs = outcome(processes)
    assert codes == [code] * len(processes), "\n".join(outputs)
    return outputs


def outcome(processes):
    """Exit codes and outputs, once all have ended; none waits for its output to be read."""
    late = threading.Timer(300, lambda: [process.kill() for process in processes])
    late.start()
    with futures.ThreadPoolExecutor(len(processes)) as pool:
        outputs = list(pool.map(lambda process: process.communicate()[0], processes))
    assert late.is_alive(), "\n".join(outputs)
    late.cancel()
    return [process.returncode for process in processes], outputs


def train(config, workdir, count=1, **options):
    """Outputs of `count` processes that train to the end; see `start`."""
    return finish(start(config, workdir, count, **options))


def kill(processes):
    """Ends processes as a crash of their machines would, and gives their outputs."""
    for process in processes:
        process.kill()
    return outcome(processes)[1]


def wait_until(condition, processes):
    """Until condition() holds, while all processes live."""
    limit = time.monotonic() + 240
    while not condition():
        assert all(process.poll() is None for process in processes), "\n".join(outcome(processes)[1])
        assert time.monotonic() < limit
        time.sleep(0.005)


def wait_for_step(workdir, step, processes):
    wait_until(lambda: max(losses(workdir), default=0) >= step, processes)


def losses(workdir):
    """The loss of every step in a run's metrics; no step is there twice."""
    records = metrics_lib.read_metrics(workdir / "metrics.jsonl")
    by_step = {r["step"]: r["loss"] for r in records}
    assert len(by_step) == len(records)
    return by_step


def assert_same(workdir, expected, atol=1e-5):
    """The metrics hold every step of `expected` once, with its loss."""
    ours = losses(workdir)
    assert ours.keys() == expected.keys()
    np.testing.assert_allclose([ours[k] for k in sorted(ours)], [expected[k] for k in sorted(ours)], rtol=0, atol=atol)

"""Several hosts: they join, agree on what they run, stop at the same step, and leave a word when one of them dies."""

import atexit
import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from vjepa_jax.config import ConfigError
from vjepa_jax.parallel import partitioning

HEARTBEAT_SECONDS = 15  # without a sign of life for so long, a process counts as dead and the others end (jax: 100)
SHUTDOWN_SECONDS = 600  # that processes wait for each other at the end
MEETING_SECONDS = 24 * 3600  # that processes wait in `meet`; one that has died is noticed long before
LINGER_SECONDS = 1  # that a failed process stays: those that meet the same error say so before jax ends them
_TEXT_BYTES = 4096  # of one process in `gather`
_meetings = itertools.count()

EXIT_RESUME = 75  # start the same command again to go on (EX_TEMPFAIL)

_GO_ON = "Start the same command on all hosts again: it goes on from the last checkpoint"
# what a collective says whose other end is gone, over Gloo, NCCL or gRPC
_LOST_PEER = re.compile("gloo|nccl|unavailable|deadline|socket|connection", re.IGNORECASE)
_LAST_WORDS = """trap '' INT TERM HUP; read word; [ "$word" = done ] || echo "$1" >&2"""


def join(spec: str) -> None:
    """Connects this process to the others of a run; call it before anything else of jax.

    Args:
      spec: "auto" on Cloud TPU, SLURM, Kubernetes and Open MPI, which say by themselves who the others are; else
        "HOST:PORT,INDEX,COUNT": the address of process 0, which of the processes this is, and how many there are.

    Raises:
      ConfigError: the spec cannot be read, or no cluster is recognised.
    """
    given = {} if spec == "auto" else _parse(spec)
    try:
        jax.distributed.initialize(
            **given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        help_ = "no cluster is recognised here (Cloud TPU, SLURM, Kubernetes, Open MPI)" if spec == "auto" else "failed"
        raise ConfigError(
            f"--distributed {spec}: {help_}: {reason}; give the processes as --distributed HOST:PORT,INDEX,COUNT"
        ) from error


def _parse(spec: str) -> dict[str, Any]:
    address, *numbers = spec.split(",")
    host, _, port = address.rpartition(":")
    try:
        index, count = map(int, numbers)
        if not (host and 0 < int(port) < 65536 and 0 <= index < count):
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"--distributed {spec} must be auto or HOST:PORT,INDEX,COUNT with 0 <= INDEX < COUNT, "
            "such as 10.0.0.1:1234,0,4"
        ) from error
    return {"coordinator_address": address, "process_id": index, "num_processes": count}


@contextlib.contextmanager
def last_words(text: str) -> Iterator[None]:
    """Context in which `text` is printed to stderr if the process is killed or aborts, by whatever cause.

    jax ends a process from C++ when another one dies, and the kernel when memory runs out: no Python code runs then. A
    shell that waits for the end of a pipe notices either.
    """
    with subprocess.Popen(["/bin/sh", "-c", _LAST_WORDS, "sh", text], stdin=subprocess.PIPE, text=True) as shell:
        try:
            yield
        finally:  # an exception speaks for itself
            with contextlib.suppress(OSError):
                shell.stdin.write("done\n")
                shell.stdin.close()


@contextlib.contextmanager
def member(spec: str) -> Iterator[None]:
    """Context in which this process is one of several; see `join`. An error ends the process within a second: jax would
    first wait for the others, which wait for this one in a collective, and end by themselves once it is gone."""
    join(spec)
    with last_words(_lost()):
        try:
            yield
        except BaseException as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and _LOST_PEER.search(str(error)):
                reason = str(error).splitlines()[0]
                print(f"{whoami()}: another process is gone ({reason}). {_GO_ON}", file=sys.stderr, flush=True)
                os._exit(EXIT_RESUME)
            atexit.register(_leave, 2 if isinstance(error, ValueError) else 1)  # runs before what jax has registered
            raise


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(LINGER_SECONDS)
    os._exit(code)


def _lost() -> str:
    return (
        f"{whoami()} was killed or gave up: another process died, memory ran out or the network broke; the one that "
        f"ended first says why, if it could. {_GO_ON}"
    )


def whoami() -> str:
    """This process, as messages call it."""
    return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def agree(facts: Mapping[str, str]) -> None:
    """Compares facts of all processes (short strings) with those of process 0; every process must call it.

    Raises:
      ConfigError: on all processes, with the first one that differs and in what.
    """
    if jax.process_count() == 1:
        return
    first, *others = map(json.loads, gather(json.dumps({"host": socket.gethostname(), **facts})))
    for number, other in enumerate(others, start=1):
        for key in facts:
            if other.get(key) != first[key]:
                raise ConfigError(
                    f"process {number} on {other['host']} has {key} {other.get(key)}, process 0 on {first['host']} has "
                    f"{first[key]}: start all processes with the same code, packages, config and environment"
                )


def gather(text: str) -> list[str]:
    """A short text of every process, in their order; every process must call it, and waits for the others."""
    if jax.process_count() == 1:
        return [text]
    meet("gather")
    row = np.zeros(_TEXT_BYTES, np.uint8)
    row[: len(text.encode())] = np.frombuffer(text.encode(), np.uint8)
    with jax.transfer_guard("allow"):
        return [bytes(r).rstrip(b"\0").decode() for r in np.asarray(multihost_utils.process_allgather(row))]


class Vote:
    """Whether any process asks to stop, known to all of them at the same step.

    A vote is cast with every step and read when that step's metrics are: no process waits for it.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._any = jax.jit(jnp.max, out_shardings=partitioning.replicated(mesh))
        self._rows = mesh.size // jax.process_count()
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))

    def cast(self, stop: bool) -> Any:
        """A value that is true, once fetched, if some process said `stop`."""
        if jax.process_count() == 1:
            return stop
        rows = np.full(self._rows, int(stop), np.int32)
        with jax.transfer_guard_host_to_device("allow"):
            return self._any(jax.make_array_from_process_local_data(self._sharding, rows))


def fetch(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Arrays of the mesh as numpy arrays of every process, one by one; every process must call it."""
    whole = jax.jit(lambda x: x, out_shardings=partitioning.replicated(mesh))
    one = lambda x: np.asarray(x if x.is_fully_addressable else whole(x))
    with jax.transfer_guard("allow"):
        return jax.tree.map(one, tree)


def meet(name: str) -> None:
    """Until every process is here: a slow one (compiling, reading, evaluating) shall not time out a collective."""
    if (count := jax.process_count()) > 1:
        multihost.sync_global_processes(
            f"{name} {next(_meetings)}", timeout=MEETING_SECONDS, processes=set(range(count))
        )

"""Compiling for TPUs that are not here: libtpu describes their topology and compiles on any x86_64 Linux machine.

The memory that a compiled program reports, and the refusal of one that does not fit, are those of the real thing; speed
and numerics are not known (parallel/roofline.py estimates the former).
"""

import dataclasses
import importlib.util
import math
import os
import re
import tempfile
import time
from typing import Any

import jax

from vjepa_jax.config import ConfigError
from vjepa_jax.config_build import hint
from vjepa_jax.parallel.chips import GIB, TPUS, Chip

_OPTIONS = {
    "TPU_SKIP_MDS_QUERY": "1",  # no question to the cloud what this machine is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any will do, the topology counts; without one there is a warning
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process waits for the lock of the first, and aborts
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many slices of chips of one kind, such as "v5e:4x4"."""

    name: str
    slices: int = 1

    def __post_init__(self):
        chip, _, shape = self.name.partition(":")
        if chip not in TPUS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
            raise ConfigError(
                f"--topology {self.name} must be CHIP:SHAPE such as v5e:4x4, v5p:4x4x4 or v6e:16x16, "
                f"with a chip of {', '.join(TPUS)}{hint(chip, TPUS)}"
            )
        if self.slices < 1:
            raise ConfigError(f"--slices {self.slices} must be at least 1")

    @property
    def chip(self) -> Chip:
        return TPUS[self.name.partition(":")[0]]

    @property
    def num_devices(self) -> int:
        return self.slices * math.prod(map(int, self.name.partition(":")[2].split("x")))

    def devices(self) -> list[Any]:
        """Descriptions of the devices, which a mesh can be made of. Raises ConfigError where libtpu has none."""
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError("compiling for TPUs needs libtpu (Linux on x86_64): pip install 'vjepa_jax[tpu]'")
        from jax.experimental import topologies

        os.environ.update({name: value for name, value in _OPTIONS.items() if name not in os.environ})
        os.environ.setdefault("TPU_LOG_DIR", tempfile.gettempdir())
        options: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        if self.name.startswith("v4"):
            options["chip_config_name"] = "megacore"  # one device a chip, as jax has it on the machine
        if self.num_devices == self.slices:
            options["chips_per_host_bounds"] = (1, 1, 1)
        try:
            devices = topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options).devices
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--topology {self.name} is none that libtpu knows: {reason}") from error
        return list(devices)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of compiling a program.

    Attributes:
      seconds: that it took.
      memory: bytes on one device by part and in all; {} where it does not fit.
      needed: bytes that it would need where it does not fit, else 0.
      hlo: the compiled program; "" where there is none.
      error: first line of what the compiler says against it; "" where it compiles.
    """

    seconds: float
    memory: dict[str, float]
    needed: float = 0.0
    hlo: str = ""
    error: str = ""


def compile_program(lowered: jax.stages.Lowered) -> Outcome:
    """Compiles; a program that does not fit into memory is an outcome, any other error an exception."""
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Outcome(time.perf_counter() - start, {}, needed_bytes(str(error)), error=str(error).splitlines()[0])
    seconds, memory = time.perf_counter() - start, memory_parts(compiled, tpu=True)
    return Outcome(seconds, memory | {"total": sum(memory.values())}, hlo=compiled.as_text())


def memory_parts(compiled: jax.stages.Compiled, tpu: bool = False) -> dict[str, float]:
    """Bytes of one device that a compiled program takes, by part.

    tpu: compiled by libtpu, which counts as "temp" also what takes one another's place (ViT-L, 128 clips on 16 chips:
    17.8 GiB of 15.75, and it does not refuse them). Its peak is what its refusals are about: twice what remains of 13.2
    without arguments is the 25.5 GiB that it says 256 clips need.
    """
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,  # beyond donated arguments
        "temporary": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    if tpu and stats.peak_memory_in_bytes:
        parts["temporary"] = stats.peak_memory_in_bytes - parts["arguments"] - parts["results"]
    return parts


def needed_bytes(message: str) -> float:
    """Of the compiler's refusal, "Used 215.87G of 15.75G hbm" or "... HLO temporaries (205.71G) exceeds ..." (what is
    temporary alone); 0 where it does not say."""
    found = re.search(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT]?)\b", message)
    return float(found[1]) * GIB / 1024 ** (3 - " KMGT".index(found[2] or " ")) if found else 0.0

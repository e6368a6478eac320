"""How much of the communication is hidden, of traces with a known answer."""

import gzip
import json

import pytest

from vjepa_jax.config import ConfigError
from vjepa_jax.parallel import profiling


def meta(what, pid, name, tid=None):
    return {"ph": "M", "name": what, "pid": pid, "args": {"name": name}} | ({} if tid is None else {"tid": tid})


def kernel(name, start, stop, tid, pid=1):
    return {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": start, "dur": stop - start}


DEVICE = [
    meta("process_name", 1, "/device:GPU:0"),
    meta("process_name", 9, "/host:CPU"),
    meta("thread_name", 1, "Stream #13(Compute)", 13),
    meta("thread_name", 1, "Stream #20(Compute)", 20),
    meta("thread_name", 1, "XLA Ops", 1),
]


def test_what_is_exposed_is_what_runs_alone():
    events = DEVICE + [
        kernel("gemm", 0, 1000, 13),
        kernel("fusion", 500, 1500, 13),  # beside the first: the union is 0 to 1500
        kernel("ncclDevKernel_AllGather_RING_LL", 1000, 2500, 20),
        kernel("gemm", 3000, 4000, 13),
        kernel("ncclDevKernel_ReduceScatter_Sum_f32", 3200, 3600, 20),
        kernel("ncclDevKernel_AllGather_RING_LL", 0, 9000, 1),  # a line of ops, no stream
        kernel("nccl on the host", 0, 9000, 13, pid=9),
    ]
    found = profiling.overlap(events)
    assert found == pytest.approx({"busy_ms": 3.5, "collective_ms": 1.9, "exposed_ms": 1.0, "hidden": 9 / 19})


def test_one_device_sends_nothing():
    assert profiling.overlap([*DEVICE, kernel("gemm", 0, 1000, 13)])["hidden"] == 1.0


def test_the_newest_profile_of_a_folder_is_read(tmp_path):
    folder = tmp_path / "plugins" / "profile" / "2026_11_25"
    folder.mkdir(parents=True)
    with gzip.open(folder / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": [*DEVICE, kernel("nccl", 0, 1000, 20)]}, file)
    assert profiling.collective_overlap(tmp_path)["exposed_ms"] == 1.0


def test_no_profile_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no profile in"):
        profiling.collective_overlap(tmp_path)

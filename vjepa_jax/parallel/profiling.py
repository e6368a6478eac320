"""Reads profiles of `jax.profiler.trace`: how much of the communication between GPUs hides behind computation."""

import glob
import gzip
import json
import os
from collections.abc import Iterable
from typing import Any

from vjepa_jax.config import ConfigError

_COLLECTIVES = ("nccl", "rccl")  # in the names of their kernels

Span = tuple[float, float]


def collective_overlap(folder: str | os.PathLike[str]) -> dict[str, float]:
    """Of the newest profile in a folder, summed over its GPUs, in ms.

    Returns:
      "busy_ms": with a kernel of any kind running; "collective_ms": with a collective running; "exposed_ms": with a
      collective running and nothing else, which is the time that communication costs; "hidden": the share of
      collective_ms that is not exposed (1 where there is none).

    Raises:
      ConfigError: the folder holds no profile.
    """
    found = glob.glob(os.path.join(folder, "**", "*.trace.json.gz"), recursive=True)
    if not found:
        raise ConfigError(f"no profile in {folder}: it would hold a *.trace.json.gz, written by jax.profiler.trace")
    with gzip.open(max(found, key=os.path.getmtime)) as file:
        return overlap(json.load(file)["traceEvents"])


def overlap(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """`collective_overlap` of the events of a Chrome trace (times in microseconds): a process a device, a thread a
    stream; only the streams of GPUs count."""
    events = list(events)
    named = [(e["pid"], e.get("tid"), e["name"], e["args"].get("name", "")) for e in events if e.get("ph") == "M"]
    devices = {pid for pid, _, what, name in named if what == "process_name" and "/device:GPU" in name}
    streams = {(pid, tid) for pid, tid, what, name in named if what == "thread_name" and name.startswith("Stream")}
    total = {"busy_ms": 0.0, "collective_ms": 0.0, "exposed_ms": 0.0}
    for device in sorted(devices):
        collective: list[Span] = []
        other: list[Span] = []
        for event in events:
            if event.get("ph") == "X" and event["pid"] == device and (device, event["tid"]) in streams:
                spans = collective if event["name"].lower().startswith(_COLLECTIVES) else other
                spans.append((event["ts"], event["ts"] + event.get("dur", 0.0)))
        busy, apart, sent = (_length(spans) for spans in (collective + other, other, collective))
        total["busy_ms"] += busy / 1e3
        total["collective_ms"] += sent / 1e3
        total["exposed_ms"] += (busy - apart) / 1e3
    sent = total["collective_ms"]
    return total | {"hidden": 1.0 - total["exposed_ms"] / sent if sent else 1.0}


def _length(spans: Iterable[Span]) -> float:
    """Of the union of spans."""
    length, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        length += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return length

"""`vjepa bench index`: how long it takes to open an index of many rows, and in how much memory.

The rows are made up (two splits mixed, 1,000 clusters in no order) and written as `vjepa data index` writes them. A
fresh process then opens the index, as a training process or a worker does.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.index import IndexSource, IndexWriter, schema

if TYPE_CHECKING:
    import pyarrow as pa

_CLUSTERS = 1000
_CHUNK = 100_000  # rows generated at a time
_READS = 1000  # random rows that are read
_MIB = 2**20


def benchmark(rows: int = 20_000_000, folder: str | None = None) -> dict[str, Any]:
    """Writes an index of `rows` rows, opens it in a fresh process with a split filter, reads 1,000 random rows.

    Args:
      folder: where the index is written for a while (about 350 bytes a row); default: a temporary one.

    Returns:
      "what", "shape" (rows, those of the split), "file_mib", "write_s", "open_s" (of the index, and of a split of it),
      "rss_mib" (resident memory with both open, and after the random rows, mapped pages included), "row_us" (the
      second time, from the page cache), "clusters_mib" (an array that exists when it is asked for) and "versions".
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = os.path.join(temporary, "index.arrow")
        start = time.perf_counter()
        generate(path, rows)
        write_s = time.perf_counter() - start
        child = [sys.executable, "-m", "data_pipelines.index_bench", path]
        done = subprocess.run(child, capture_output=True, text=True, check=True)
        opened = json.loads(done.stdout)
        return {
            "what": "index",
            "shape": [rows, opened.pop("split_rows")],
            "file_mib": round(os.path.getsize(path) / _MIB),
            "write_s": round(write_s, 1),
            **opened,
            "versions": {"python": platform.python_version(), "pyarrow": version("pyarrow")},
        }


def generate(path: str, rows: int, seed: int = 0) -> None:
    """Writes an index of made-up videos, of which 100,000 are in memory at a time."""
    rng = np.random.default_rng(seed)
    names = [f"cluster {i}" for i in range(_CLUSTERS)]
    with IndexWriter(path, class_names=[f"class {i}" for i in range(400)], cluster_names=names) as writer:
        for start in range(0, rows, _CHUNK):
            writer.write_batch(_batch(start, min(start + _CHUNK, rows), rng))


def _batch(start: int, stop: int, rng: np.random.Generator) -> "pa.RecordBatch":
    import pyarrow as pa
    import pyarrow.compute as pc

    count = stop - start
    numbers = lambda high: pa.array(rng.integers(0, high, count, np.int32))
    same = lambda value: pa.repeat(value, count)
    text = lambda *parts: pc.binary_join_element_wise(*(pc.cast(part, pa.string()) for part in parts), "")
    ids, frames = pc.cast(pa.array(range(start, stop)), pa.string()), numbers(400)
    sums = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), count, [None, pa.py_buffer(rng.bytes(32 * count))])
    columns = {
        "path": text(same("part-"), numbers(1000), same("/videos/"), ids, same(".mp4")),
        "label": numbers(400),
        "group": text(same("scene "), numbers(100_000)),
        "split": pc.if_else(pa.array(rng.random(count) < 0.9), "train", "val"),
        "licence": same("CC BY 4.0"),
        "cluster": numbers(_CLUSTERS),
        "id": ids,
        "offset": same(-1),
        "length": same(-1),
        "frames": frames,
        "fps": same(30.0),
        "height": same(240),
        "width": same(320),
        "duration": pc.divide(pc.cast(frames, pa.float64()), 30.0),
        "sha256": sums,
    }
    fields = schema()
    return pa.record_batch([columns[f.name].cast(f.type) for f in fields], schema=fields)


def _open(path: str) -> dict[str, Any]:
    start = time.perf_counter()
    whole = IndexSource(path)
    middle = time.perf_counter()
    train = IndexSource(path, "train")
    end, memory = time.perf_counter(), [_resident()]
    places = np.random.default_rng(1).integers(0, len(train), _READS).tolist()
    for i in places:
        train.row(i)
    memory.append(_resident())
    again = time.perf_counter()
    for i in places:
        train.row(i)
    row_s = (time.perf_counter() - again) / _READS
    return {
        "split_rows": len(train),
        "open_s": [round(middle - start, 3), round(end - middle, 3)],
        "rss_mib": [round(value / _MIB) for value in memory],
        "row_us": round(1e6 * row_s, 1),
        "clusters_mib": round(whole.clusters.nbytes / _MIB),
    }


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    if not os.path.exists("/proc/self/statm"):
        return 0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(_open(sys.argv[1])))

"""How long drawing masks takes on one core: `python -m data_pipelines.masking_bench` prints one JSON line a policy."""

import dataclasses
import json
import math
import platform
import statistics
import time
from typing import Any

import numpy as np

from data_pipelines.masking import draw_masks, draw_masks_first_k, make_plan
from vjepa_jax.config import DataConfig, MaskConfig, RunConfig


def benchmark(
    clips: int = 24, num_frames: int = 16, resolution: int = 256, policy: str = "uniform", repeats: int = 300
) -> dict[str, Any]:
    """Time to draw the masks of all default groups for a batch of clips, in this thread.

    Returns:
      "what", "shape" (clips, tokens a clip), "groups", "budgets", "ms" (median over `repeats` batches), "ms_min",
      "cpu_ms" (median of the thread's processor time), "clips_per_s" (from ms) and "versions". On a busy machine ms
      and cpu_ms grow; ms_min stays near what an idle core needs.
    """
    run = RunConfig(steps=1, batch_size=clips, data=DataConfig(path="", num_frames=num_frames, resolution=resolution))
    plan = make_plan(dataclasses.replace(run, masks=MaskConfig(policy=policy)))
    rngs = [np.random.Generator(np.random.Philox(key=i)) for i in range(clips)]  # what grain hands out
    times, cpu_times = [], []
    for batch in range(repeats + 20):
        start, cpu_start = time.perf_counter(), time.thread_time()
        for row, rng in enumerate(rngs):
            if policy == "first_k":
                draw_masks_first_k(plan, batch * clips + row, seed=0)
            else:
                draw_masks(plan, rng)
        times.append(1e3 * (time.perf_counter() - start))
        cpu_times.append(1e3 * (time.thread_time() - cpu_start))
    ms = statistics.median(times[20:])  # the first batches fill caches
    return {
        "what": f"draw_masks {policy}",
        "shape": [clips, math.prod(plan.grid)],
        "groups": len(plan.groups),
        "budgets": [[group.context, group.target] for group in plan.groups],
        "ms": round(ms, 3),
        "ms_min": round(min(times[20:]), 3),
        "cpu_ms": round(statistics.median(cpu_times[20:]), 3),
        "clips_per_s": round(1e3 * clips / ms),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }


if __name__ == "__main__":
    for name in ("uniform", "first_k"):
        print(json.dumps(benchmark(policy=name)))

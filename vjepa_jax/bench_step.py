"""`vjepa bench step`: the training step of a config on the devices that are here.

The step is the one that `vjepa train` runs, on made-up pixels and masks drawn as in training. Every step gets another
of a few batches that lie on the devices already: reading and sending data is measured by `vjepa bench data`.
"""

import gc
import statistics
import tempfile
import time
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from data_pipelines import masking
from vjepa_jax.ahead import by_stream, executed_flops, lower
from vjepa_jax.config import RunConfig
from vjepa_jax.parallel import partitioning, profiling
from vjepa_jax.parallel.chips import GIB, peak_flops
from vjepa_jax.parallel.compile import memory_parts
from vjepa_jax.prepare import Setup, prepare
from vjepa_jax.training.state import fresh_state

WARM_UP, BATCHES, PROFILED = 3, 4, 3


def benchmark(run: RunConfig, repeats: int = 30, profile: str | None = None) -> dict[str, Any]:
    """Compiles the step twice (afresh, and from the cache that this left), then runs it `repeats` times after 3.

    Args:
      profile: a folder for a profile of three more steps, which then also gives "collectives".

    Returns:
      "what", "shape" (clips, then context + target tokens of each group), "dtype", "devices", "mesh", "ms" (median time
      from the end of one step to that of the next) with "ms_min" and "ms_max", "clips_per_s", "flops_per_clip"
      (analytic, no recomputation), "mfu" and "hfu" (with what remat computes again) where the peak is known,
      "compile_s" and "cached_compile_s" (tracing included), "gib_per_device" (by part, as compiled; "peak" as the
      device counted, where it does), "losses" (first and last), "versions".

    Raises:
      ConfigError: what is wrong with the config, or with the mesh on these devices.
    """
    setup = prepare(run)
    mesh = partitioning.make_mesh(run.mesh)
    partitioning.check_mesh(run, mesh, setup.budgets)
    with partitioning.on_mesh(mesh):
        batches = [partitioning.put_batch(made_up_batch(run, setup, seed), mesh) for seed in range(BATCHES)]
        step, compile_s, cached_s = _compile_twice(run, setup, mesh)
        shardings = partitioning.state_shardings(setup.abstract, mesh)
        state = fresh_state(setup.objective, setup.optimizer, run.seed, shardings)
        state, losses, times = _run(step, state, batches, WARM_UP + repeats)
        times = times[WARM_UP:]
        overlap = {}
        if profile is not None:
            with jax.profiler.trace(profile):
                _run(step, state, batches, PROFILED)
            overlap = {"collectives": profiling.collective_overlap(profile)}
    return _record(run, setup, mesh, statistics.median(times)) | {
        "ms_min": round(1e3 * min(times), 2),
        "ms_max": round(1e3 * max(times), 2),
        "compile_s": round(compile_s, 1),
        "cached_compile_s": round(cached_s, 1),
        "gib_per_device": _memory(step),
        "losses": [losses[0], losses[-1]],
        **overlap,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax")},
    }


def _run(step: Any, state: Any, batches: list[Any], count: int) -> tuple[Any, list[float], list[float]]:
    """`count` steps and one before them: the state, and their losses and seconds. A step is waited for while the next
    one runs, so that the devices never wait for this loop."""
    losses, ends, running = [], [], None
    for i in range(count + 1):
        state, metrics = step(state, batches[i % len(batches)])
        if running is not None:
            losses.append(float(jax.device_get(running)))
            ends.append(time.perf_counter())
        running = metrics["loss"]
    losses.append(float(jax.device_get(running)))
    ends.append(time.perf_counter())
    return state, losses[1:], np.diff(ends).tolist()


def made_up_batch(run: RunConfig, setup: Setup, seed: int) -> dict[str, Any]:
    """What the objective reads of a batch: random pixels, and masks as the pipeline draws them."""
    return by_stream(run, setup, lambda run, plan: made_up_stream(run, plan, seed))


def made_up_stream(run: RunConfig, plan: masking.MaskPlan, seed: int) -> dict[str, Any]:
    """The same for one stream: "video" uint8 [B, T, H, W, 3] and "masks"."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    first = seed * run.batch_size
    masks = [masking.draw(plan, rng, first + i, run.seed) for i in range(run.batch_size)]
    return {
        "video": rng.integers(0, 256, (run.batch_size, run.data.num_frames, *run.data.size, 3), np.uint8),
        "masks": [{key: np.stack([row[i][key] for row in masks]) for key in masks[0][i]} for i in range(len(masks[0]))],
    }


def _compile_twice(run: RunConfig, setup: Setup, mesh: Any) -> tuple[Any, float, float]:
    """The compiled step, which cannot compile again, and the seconds without and with the persistent cache."""
    kept, seconds = jax.config.jax_compilation_cache_dir, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for _ in range(2):
                _use_cache(folder)
                start = time.perf_counter()
                compiled = lower(run, setup, mesh).compile()
                seconds.append(time.perf_counter() - start)
        finally:
            _use_cache(kept)
    return compiled, *seconds


def _use_cache(folder: str | None) -> None:
    from jax.experimental.compilation_cache import compilation_cache

    gc.collect()
    jax.clear_caches()  # in memory
    compilation_cache.reset_cache()  # jax looks at the folder only once
    jax.config.update("jax_compilation_cache_dir", folder)


def _record(run: RunConfig, setup: Setup, mesh: Any, seconds: float) -> dict[str, Any]:
    kind = jax.devices()[0].device_kind
    rate = run.batch_size / seconds
    record = {
        "what": f"step {run.objective} {run.model.variant}",
        "shape": [run.batch_size, *(f"{c}+{m}" for groups in setup.budgets.values() for c, m in groups)],
        "clip": [run.data.num_frames, *run.data.size],
        "dtype": run.model.dtype,
        "target_dtype": run.model.target_dtype,
        "forward_dtype": run.model.forward_dtype,
        "remat": run.model.remat,
        "unroll": run.model.unroll,
        "devices": f"{mesh.size} x {kind}",
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "ms": round(1e3 * seconds, 2),
        "clips_per_s": round(rate, 2),
        "flops_per_clip": setup.clip_flops,
    }
    if peak := peak_flops(kind):
        whole = peak * mesh.size * seconds
        record["mfu"] = round(setup.step_flops / whole, 4)
        record["hfu"] = round(executed_flops(run, setup) / whole, 4)
    return record


def _memory(step: Any) -> dict[str, float]:
    """GiB of one device."""
    parts = memory_parts(step, jax.default_backend() == "tpu")
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        parts["peak"] = peak
    return {name: round(size / GIB, 2) for name, size in parts.items()}

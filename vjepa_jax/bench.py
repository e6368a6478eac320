"""`vjepa bench predictor`: the published predictor and the cross-attention one, side by side on one device.

And what `vjepa bench data` needs of a device: the time to bring a batch there.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import masking
from vjepa_jax import objectives
from vjepa_jax.config import DataConfig, ModelConfig, RunConfig
from vjepa_jax.models.predictor import predictor_flops
from vjepa_jax.parallel.chips import peak_flops

WARM_UP, REPEATS = 3, 20


def predictors(
    variant: str = "vit_large", num_frames: int = 16, resolution: int = 256, batch: int = 1, dtype: str = "bfloat16"
) -> Iterator[dict[str, Any]]:
    """One record a predictor: forward and backward of both mask groups of V-JEPA 2 on ready context features.

    Yields:
      "what", "shape" (clips, then context + target tokens of each group), "dtype", "devices", "ms" (median of 20 calls
      after 3), "clips_per_s", "flops_per_clip" (analytic, 3 forwards), "mfu" where the peak is known, "versions".
    """
    data = DataConfig(path="", num_frames=num_frames, resolution=resolution)
    base = RunConfig(steps=1, batch_size=batch, data=data, model=ModelConfig(variant=variant, dtype=dtype))
    budgets = masking.make_plan(base).budgets
    kind_of = jax.devices()[0].device_kind
    for kind in ("joint", "cross"):
        predictor = dataclasses.replace(base.model.predictor, kind=kind)
        run = dataclasses.replace(base, model=dataclasses.replace(base.model, predictor=predictor))
        seconds = _time(run, budgets, batch)
        flops = 3.0 * sum(predictor_flops(run.model, c, m) for c, m in budgets)
        record = {
            "what": f"predictor {kind}, {variant}",
            "shape": [batch, *(f"{c}+{m}" for c, m in budgets)],
            "dtype": dtype,
            "devices": f"1 x {kind_of}",
            "ms": round(1e3 * seconds, 2),
            "clips_per_s": round(batch / seconds, 2),
            "flops_per_clip": flops,
        }
        if peak := peak_flops(kind_of):
            record["mfu"] = round(flops * batch / seconds / peak, 4)
        yield record | {"versions": {name: version(name) for name in ("jax", "jaxlib", "flax")}}


def transfer(batch: int = 24, num_frames: int = 16, resolution: int = 256) -> Iterator[dict[str, Any]]:
    """One record: bringing one batch of clips, uint8, from the host to the first device: as `predictors`, and "mb"."""
    clips = np.zeros((batch, num_frames, resolution, resolution, 3), np.uint8)
    times = []
    for i in range(WARM_UP + REPEATS):
        clips[...] = i  # or a device that shares the host's memory would have nothing to do
        start = time.perf_counter()
        jax.block_until_ready(jax.device_put(clips))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[WARM_UP:])
    yield {
        "what": "transfer",
        "shape": list(clips.shape),
        "dtype": "uint8",
        "devices": f"1 x {jax.devices()[0].device_kind}",
        "mb": round(clips.nbytes / 1e6, 1),
        "ms": round(1e3 * seconds, 3),
        "clips_per_s": round(batch / seconds),
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
    }


def _time(run: RunConfig, budgets: list[tuple[int, int]], batch: int) -> float:
    """Median seconds of a gradient of the predictor with respect to its parameters and its input."""
    objective = objectives.create(run)
    params = jax.jit(lambda key: objective.init(key)[0])(jax.random.key(0))["predictor"]
    width = params["embed"]["kernel"].shape[0]
    groups = [
        (
            jax.random.normal(jax.random.key(i), (batch, context, width)),
            jnp.broadcast_to(jnp.arange(context), (batch, context)),
            jnp.broadcast_to(jnp.arange(context, context + target), (batch, target)),
        )
        for i, (context, target) in enumerate(budgets)
    ]

    def loss(params, features):
        apply = lambda z, c, t: objective.predictor.apply({"params": params}, z, c, t, run.grid)[0]
        return sum(jnp.abs(apply(z, c, t)).mean() for z, (_, c, t) in zip(features, groups, strict=True))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    features = [group[0] for group in groups]
    times = []
    for _ in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(gradient(params, features))
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])

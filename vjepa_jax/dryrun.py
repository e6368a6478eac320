"""What a config will cost before a machine is booked: `vjepa train --dry-run`. Builds nothing and reads no data.

Parameters, layout on the mesh and FLOPs are those of the run itself (shapes from jax.eval_shape, the mesh's shardings,
the objective's `flops`); the memory of activations is an estimate, and hours follow from the MFU that is assumed.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from data_pipelines.masking import MaskPlan
from vjepa_jax.config import ModelConfig, RunConfig
from vjepa_jax.models.family import align
from vjepa_jax.models.variants import ViTSize, encoder_size, predictor_size
from vjepa_jax.parallel import partitioning
from vjepa_jax.parallel.chips import GIB, Machine
from vjepa_jax.prepare import Setup, prepare
from vjepa_jax.training.state import num_parameters


def describe(name: str, run: RunConfig, machine: Machine) -> dict[str, Any]:
    """One stage as plain data: sizes, FLOPs (2 a multiply-add), GiB of one device, hours.

    Raises:
      ConfigError: what is wrong with the config, or with its mesh on this number of devices.
    """
    mesh = partitioning.abstract_mesh(run.mesh, machine.devices)
    setup = prepare(run)
    partitioning.check_mesh(run, mesh, setup.budgets)
    seconds = run.steps * setup.step_flops / machine.flops
    memory = _memory(run, setup, mesh, machine)
    return {
        "stage": name,
        "objective": run.objective,
        "variant": run.model.variant,
        "parameters": {part: num_parameters(tree) for part, tree in setup.abstract["params"].items()},
        "frames": run.data.num_frames,
        "resolution": list(run.data.size),
        "grid": list(run.grid),
        "tokens": math.prod(run.grid),
        "budgets": [list(budget) for budget in setup.plan.budgets],
        "batch_size": run.batch_size,
        "streams": {name: stream.batch_size for name, stream in run.all_streams.items()},
        "steps": run.steps,
        "clips": run.steps * run.batch_size,
        "flops_per_clip": setup.clip_flops,
        "flops_per_step": setup.step_flops,
        "mesh": dict(mesh.shape),
        "gib_per_device": {part: size / GIB for part, size in memory.items()},
        "note": _uncut(mesh, memory["parameters"], 4.0 * num_parameters(setup.abstract["params"])),
        "device_hours": seconds / 3600,
        "hours": seconds / 3600 / machine.devices,
        **dataclasses.asdict(machine),
    }


def _memory(run: RunConfig, setup: Setup, mesh: AbstractMesh, machine: Machine) -> dict[str, float]:
    """Bytes on one device. All but the activations are exact."""
    shardings = partitioning.state_shardings(setup.abstract, mesh)

    def shard(part: str) -> float:
        pairs = zip(jax.tree.leaves(setup.abstract[part]), jax.tree.leaves(shardings[part]), strict=True)
        return float(sum(math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize for a, s in pairs))

    shards = run.optim.accumulate * math.prod(mesh.shape[axis] for axis in partitioning.BATCH_AXES)
    streams = [(run, setup.plan), *((r, setup.stream_plans[name]) for name, r in run.stream_runs.items())]
    fused = run.model.attention != "xla" and run.model.dtype == "bfloat16"  # no kernel but XLA holds queries x keys
    activations = sum(r.batch_size / shards * clip_activations(r, plan, fused) for r, plan in streams)
    parts = {
        "parameters": shard("params"),
        "target": shard("aux"),
        "moments": shard("opt"),
        "gradients": shard("params") * (1 if run.optim.accumulate == 1 else 2),  # of a micro-batch, and their sum
        "activations_estimate": activations,
    }
    return parts | {"total": sum(parts.values())}


def _uncut(mesh: AbstractMesh, here: float, whole: float) -> str:
    """A line where the fsdp axis cuts next to nothing, else ""."""
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1 or here < 0.9 * whole / mesh.shape["tensor"]:
        return ""
    return (
        f"mesh.fsdp={fsdp} does not divide the model's width, so that every device holds all of it: "
        "set mesh.fsdp to a divisor and mesh.replica to the rest"
    )


def clip_activations(run: RunConfig, plan: MaskPlan, fused: bool) -> float:
    """Estimated bytes of activations for one clip: what the blocks of encoder and predictor keep for the backward pass
    under model.remat in every mask group, and the working set of the largest single block. Attention weights count
    unless a fused kernel computes attention. Left out: XLA's own buffers, and what it saves by fusing.
    """
    model, tokens = run.model, math.prod(run.grid)
    encoder, predictor = encoder_size(model), predictor_size(model)
    sequences = [(encoder, group.context) for group in plan.groups]
    sequences += [(predictor, context + target) for context, target in plan.budgets]
    kept = sum(size.depth * block_residuals(size, n, model, model.remat, fused) for size, n in sequences)
    whole = [block_residuals(size, n, model, "none", fused) for size, n in [*sequences, (encoder, tokens)]]
    return kept + max(whole)


def block_residuals(size: ViTSize, tokens: int, model: ModelConfig, remat: str, fused: bool) -> float:
    """Bytes that one block keeps of one sequence for its backward pass, as jax.vjp does it (a test compares).

    none: the inputs of LayerNorms, matrix products, attention and GELU; dots: the results of matrix products and of a
    fused attention; full: the block's input.
    """
    n, d, m, width = tokens, size.embed_dim, size.mlp_dim, jnp.dtype(model.dtype).itemsize
    if remat == "full":
        return float(n * width * d)
    if remat == "dots":
        return float(n * width * ((6 if fused else 5) * d + m))
    weights = 0 if fused else size.num_heads * n * n * (4 + width)
    return float(n * width * (8 * d + 2 * m) + weights)


def format_plan(rows: list[dict[str, Any]]) -> str:
    """What `describe` tells of the stages, one column each, and their sum."""
    first, gib = rows[0], lambda row, part: f"{row['gib_per_device'][part]:.2f} GiB"
    lines: list[list[str]] = []
    add = lambda label, cell: lines.append([label, *map(cell, rows)])
    add("model", lambda r: f"{r['objective']} {r['variant']}")
    for part in first["parameters"]:
        add(f"parameters, {part}", lambda r, part=part: f"{r['parameters'][part] / 1e6:.1f} M")
    add("clip", lambda r: f"{r['frames']} x {r['resolution'][0]} x {r['resolution'][1]} px")
    add("tokens", lambda r: f"{'x'.join(map(str, r['grid']))} = {r['tokens']:,}")
    for i in range(max(len(r["budgets"]) for r in rows)):
        budget = lambda r, i=i: " + ".join(map(str, r["budgets"][i])) if i < len(r["budgets"]) else "-"
        add(f"context + target, mask {i}", budget)
    add("FLOP a clip", lambda r: f"{r['flops_per_clip'] / 1e12:.3g} T")
    add("FLOP a step", lambda r: f"{r['flops_per_step'] / 1e15:.3g} P")
    add("steps x clips a step", lambda r: f"{r['steps']:,} x {r['batch_size']:,}")
    for name in dict.fromkeys(name for r in rows for name in r["streams"]):
        add(f"{name} a step", lambda r, name=name: f"{r['streams'].get(name, 0):,}")
    add("clips", lambda r: f"{r['clips']:,}")
    for part in first["gib_per_device"]:
        add(f"memory, {part.replace('_', ', ')}", lambda r, part=part: gib(r, part))
    add("device-hours", lambda r: f"{r['device_hours']:,.1f}")
    add("hours", lambda r: f"{r['hours']:,.1f}")
    axes = ", ".join(f"{axis} {size}" for axis, size in first["mesh"].items() if size > 1) or "no axis"
    title = f"{first['devices']} x {first['chip']} at {first['mfu']:.0%} MFU; mesh: {axes}; memory of one device"
    hours = sum(row["device_hours"] for row in rows)
    total = f"in all {hours:,.1f} device-hours, {hours / first['devices']:,.1f} hours"
    notes = dict.fromkeys(f"note: {row['note']}" for row in rows if row["note"])
    head = ["", *(row["stage"] or "the run" for row in rows)]
    return "\n".join([title, align(head, lines, right=range(1, len(head))), total, *notes])

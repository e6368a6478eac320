"""`vjepa compile`: the training step of a config, compiled for TPUs that are not here.

It tells whether the step compiles and fits, what it keeps in memory and sends between chips (counted in the compiled
program), and the least time that it can take (parallel/roofline.py). FLOPs are analytic: XLA counts the body of a scan
once and Pallas kernels not at all.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data_pipelines.masking import MaskPlan
from vjepa_jax import dryrun
from vjepa_jax.config import RunConfig
from vjepa_jax.models.family import align
from vjepa_jax.models.variants import ViTSize, encoder_size, predictor_size
from vjepa_jax.ops.attention import splash_blocks
from vjepa_jax.ops.tokens import cuts_sequences
from vjepa_jax.parallel import partitioning
from vjepa_jax.parallel.chips import GIB
from vjepa_jax.parallel.collectives import Collective, read_collectives
from vjepa_jax.parallel.compile import Outcome, Topology, compile_program
from vjepa_jax.parallel.roofline import roofline, traffic
from vjepa_jax.prepare import Setup, jit_step, prepare
from vjepa_jax.training.state import abstract_state

REMATS = ("none", "dots", "full")
RECOMPUTED = {"none": 3.0, "dots": 3.0, "full": 4.0}  # forward passes that a step costs where gradients flow
_KERNEL = 'custom_call_target="tpu_custom_call"'


def describe(name: str, run: RunConfig, topology: Topology) -> dict[str, Any]:
    """Compiles the step of one run and tells what came of it, as plain data.

    Returns:
      "fits" and "error"; "gib_per_device" by part against "hbm_gib" (of a step that does not fit, what the compiler
      says it needs, where it says so); "collectives" by kind, those between slices as "all-reduce dcn" and the like:
      how many the program holds, how often a step runs them, GiB sent by one device; "network": these by mesh axes,
      with their seconds and FLOPs a byte; "kernels": calls of Pallas kernels in the program; "hbm_traffic_gib" of one
      chip (`memory_traffic`); "padding" (`padding_share`); "flops_per_step" (analytic, 2 a multiply-add, of all
      devices, no recomputation); "roofline": seconds.

    Raises:
      ConfigError: what is wrong with the config, the topology, or the mesh on it.
    """
    devices = topology.devices()
    mesh = partitioning.make_mesh(run.mesh, devices)
    setup = prepare(run)
    partitioning.check_mesh(run, mesh, setup.budgets)
    outcome = compile_program(lower(run, setup, mesh))
    memory = outcome.memory or {"total": outcome.needed}
    row = {
        "stage": name,
        "objective": run.objective,
        "variant": run.model.variant,
        "frames": run.data.num_frames,
        "resolution": list(run.data.size),
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.num_devices,
        "mesh": dict(mesh.shape),
        "batch_size": run.batch_size,
        "remat": run.model.remat,
        "attention": run.model.attention,
        "fits": not outcome.error,
        "error": outcome.error,
        "compile_s": round(outcome.seconds, 1),
        "gib_per_device": {part: size / GIB for part, size in memory.items()},
        "hbm_gib": topology.chip.hbm / GIB,
        "flops_per_step": setup.step_flops,
        "versions": {package: version(package) for package in ("jax", "libtpu")},
    }
    return row | (_measured(run, setup, mesh, topology, outcome) if row["fits"] else {})


def lower(run: RunConfig, setup: Setup, mesh: Mesh) -> jax.stages.Lowered:
    """The training step on a mesh, traced with the shapes of its state and batch."""
    shardings = partitioning.state_shardings(setup.abstract, mesh)
    state = abstract_state(setup.objective, setup.optimizer, shardings)
    with partitioning.on_mesh(mesh):
        return jit_step(run, setup, mesh).lower(state, abstract_batch(run, setup, mesh))


def abstract_batch(run: RunConfig, setup: Setup, mesh: Mesh) -> dict[str, Any]:
    """Shapes of what the objective reads of a batch (training.step.MODEL_KEYS)."""
    sharding = partitioning.batch_sharding(mesh)

    def stream(run: RunConfig, plan: MaskPlan) -> dict[str, Any]:
        array = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct((run.batch_size, *shape), dtype, sharding=sharding)
        masks = []
        for context, target in plan.budgets:
            masks.append({"context": array(context), "target": array(target)})
            if plan.policy == "first_k":
                valid = functools.partial(array, dtype=jnp.bool_)
                masks[-1] |= {"context_valid": valid(context), "target_valid": valid(target)}
        return {"video": array(run.data.num_frames, *run.data.size, 3, dtype=jnp.uint8), "masks": masks}

    return by_stream(run, setup, stream)


def by_stream(run: RunConfig, setup: Setup, make: Callable[[RunConfig, MaskPlan], dict[str, Any]]) -> dict[str, Any]:
    """A batch of what `make` gives for the main stream and for the further ones."""
    batch = make(run, setup.plan)
    if streams := {name: make(other, setup.stream_plans[name]) for name, other in run.stream_runs.items()}:
        batch["streams"] = streams
    return batch


def _measured(run: RunConfig, setup: Setup, mesh: Mesh, topology: Topology, outcome: Outcome) -> dict[str, Any]:
    """What is read from a program that compiled."""
    devices = list(mesh.devices.flat)
    found = read_collectives(outcome.hlo, devices)
    table = traffic(found, mesh.shape, devices, topology.chip)
    flops = executed_flops(run, setup) / mesh.size
    network = {
        axes: {"gib": row["bytes"] / GIB, "seconds": row["seconds"], "flops_per_byte": flops / row["bytes"]}
        for axes, row in table.items()
    }
    moved = memory_traffic(run, setup, mesh, outcome)
    times = roofline(topology.chip, flops, moved, table)
    return {
        "collectives": _by_kind(found),
        "network": network,
        "kernels": outcome.hlo.count(_KERNEL),
        "hbm_traffic_gib": moved / GIB,
        "padding": padding_share(run, setup) if outcome.hlo.count(_KERNEL) else 0.0,
        "roofline": times | {"mfu": setup.step_flops / mesh.size / topology.chip.flops / times["step"]},
    }


def _by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = {}
    for one in found:
        kind = one.kind if one.network == "ici" else f"{one.kind} {one.network}"
        row = kinds.setdefault(kind, {"in_program": 0, "in_step": 0, "gib": 0.0})
        row["in_program"] += 1
        row["in_step"] += one.times
        row["gib"] += one.sent / GIB
    return kinds


def executed_flops(run: RunConfig, setup: Setup) -> float:
    """FLOPs of a step with what `model.remat` computes again: one more forward pass of all that has gradients."""
    factor = RECOMPUTED[run.model.remat] / 3.0
    total = 0.0
    for stream, plan in _streams(run, setup):
        parts = setup.objective.flops(plan.budgets, None if stream is run else stream)
        total += stream.batch_size * sum(cost if part == "target" else factor * cost for part, cost in parts.items())
    return total


def memory_traffic(run: RunConfig, setup: Setup, mesh: Mesh, outcome: Outcome) -> float:
    """Estimated bytes between HBM and one chip in a step: the state is read and written once; what a block would keep
    for its backward pass is written and read once in every pass (forward, recomputed, backward); so are its weights
    once they are gathered. XLA keeps some of it on the chip."""
    shards = math.prod(mesh.shape[axis] for axis in partitioning.BATCH_AXES)
    total, passes = 2.0 * outcome.memory["arguments"], RECOMPUTED[run.model.remat] - 1.0
    width, cut = jnp.dtype(run.model.dtype).itemsize, mesh.shape["context"] * mesh.shape["tensor"]
    with partitioning.on_mesh(mesh):
        packed = not cuts_sequences() and run.objective != "ijepa"  # mask groups read the weights together
    for stream, plan in _streams(run, setup):
        for size, tokens, trained in _sequences(run, stream, plan):
            block = dryrun.block_residuals(size, tokens, run.model, "none", fused=run.model.attention != "xla")
            weights = width * size.num_parameters() / mesh.shape["tensor"]
            weights /= len(plan.groups) if trained and packed else 1
            moved = size.depth * block * stream.batch_size / shards / cut + weights
            total += 2.0 * (passes if trained else 1.0) * moved
    return total


def padding_share(run: RunConfig, setup: Setup) -> float:
    """FLOPs that splash attention spends on the tokens that fill its blocks, over the FLOPs of the step that count."""
    extra = 0.0
    for stream, plan in _streams(run, setup):
        for size, tokens, trained in _sequences(run, stream, plan):
            wasted = splash_blocks(tokens)[1] ** 2 - tokens**2
            extra += (3.0 if trained else 1.0) * stream.batch_size * 4.0 * size.depth * size.embed_dim * wasted
    return extra / setup.step_flops


def _sequences(run: RunConfig, stream: RunConfig, plan: MaskPlan) -> Iterator[tuple[ViTSize, int, bool]]:
    """What passes through blocks for one clip: their size, tokens, and whether a gradient comes back."""
    encoder, predictor, special = encoder_size(run.model), predictor_size(run.model), run.model.registers
    special += run.model.cls_token
    yield encoder, math.prod(stream.grid) + special, False
    for group in plan.groups:
        yield encoder, group.context + special, True
    for context, target in plan.budgets:
        yield predictor, context + target, True


def _streams(run: RunConfig, setup: Setup) -> list[tuple[RunConfig, MaskPlan]]:
    return [(run, setup.plan), *((stream, setup.stream_plans[name]) for name, stream in run.stream_runs.items())]


# ---------------------------------------------------------------------------------------------------------- search


def search(name: str, run: RunConfig, topology: Topology) -> Iterator[dict[str, Any]]:
    """For each `model.remat` the largest batch that fits, among powers of two of clips on a data shard; every attempt
    is a row of `describe`. It starts from the estimate of `vjepa train --dry-run` and doubles or halves from there."""
    mesh = partitioning.abstract_mesh(run.mesh, topology.num_devices)
    unit = run.optim.accumulate * math.prod(mesh.shape[axis] for axis in partitioning.BATCH_AXES)
    for remat in REMATS:
        model = dataclasses.replace(run.model, remat=remat)
        attempt = lambda clips, model=model: dataclasses.replace(run, model=model, batch_size=clips * unit)
        clips = _first_guess(attempt(1), topology)
        row = describe(name, attempt(clips), topology)
        yield row
        grows = row["fits"]
        while row["fits"] == grows and (grows or clips > 1):
            clips = clips * 2 if grows else clips // 2
            row = describe(name, attempt(clips), topology)
            yield row


def _first_guess(run: RunConfig, topology: Topology) -> int:
    """Of a run of one clip a data shard: the largest power of two of clips whose estimated memory fits, at least 1."""
    machine = dryrun.Machine(topology.num_devices, topology.name.partition(":")[0])
    memory = dryrun.describe("", run, machine)["gib_per_device"]
    clip = memory["activations_estimate"]
    room = topology.chip.hbm / GIB - (memory["total"] - clip)
    return 2 ** int(math.log2(max(1.0, room / clip)))


def best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of rows that fit the one with the most clips a second at the roofline; None where none fits."""
    fitting = [row for row in rows if row["fits"]]
    return max(fitting, key=lambda row: row["batch_size"] / row["roofline"]["step"]) if fitting else None


# ----------------------------------------------------------------------------------------------------------- table


def format_rows(rows: list[dict[str, Any]]) -> str:
    """What `describe` tells, one column a row; of several attempts at a run (`search`) a line says the fastest."""
    lines: list[list[str]] = []
    add = lambda label, cell: lines.append([label, *(cell(row) if row["fits"] else "" for row in rows)])
    always = lambda label, cell: lines.append([label, *map(cell, rows)])
    always("topology", lambda r: f"{r['slices']} x {r['topology']}" if r["slices"] > 1 else r["topology"])
    always("mesh", lambda r: ", ".join(f"{axis} {size}" for axis, size in r["mesh"].items() if size > 1) or "one chip")
    always("model", lambda r: f"{r['objective']} {r['variant']}")
    always("clip", lambda r: f"{r['frames']} x {r['resolution'][0]} x {r['resolution'][1]} px")
    always("batch, remat", lambda r: f"{r['batch_size']:,}, {r['remat']}")
    always("compiles and fits", lambda r: "yes" if r["fits"] else "no")
    always("compile time", lambda r: f"{r['compile_s']:.0f} s")
    always("memory of a chip", lambda r: f"{r['gib_per_device']['total']:.2f} of {r['hbm_gib']:.0f} GiB")
    for part in dict.fromkeys(part for r in rows for part in r["gib_per_device"] if part != "total"):
        add(f"  {part}", lambda r, part=part: f"{r['gib_per_device'][part]:.2f} GiB")
    for kind in dict.fromkeys(kind for r in rows for kind in r.get("collectives", ())):
        add(kind, lambda r, kind=kind: _kind_cell(r["collectives"].get(kind)))
    for axes in dict.fromkeys(axes for r in rows for axes in r.get("network", ())):
        add(f"over {axes}", lambda r, axes=axes: _network_cell(r["network"].get(axes)))
    add("to and from HBM, estimate", lambda r: f"{r['hbm_traffic_gib']:.1f} GiB a step" if "padding" in r else "-")
    add("Pallas kernels", lambda r: str(r["kernels"]))
    add("attention's padding", lambda r: f"{r['padding']:.1%} of the FLOPs" if "padding" in r else "-")
    always("FLOP a step", lambda r: f"{r['flops_per_step'] / 1e15:.3g} P")
    for part in ("compute", "hbm", "ici", "dcn"):
        add(f"roofline, {part}", lambda r, part=part: f"{1e3 * r['roofline'][part]:.1f} ms")
    add("step at best", lambda r: f"{1e3 * r['roofline']['step']:.1f} ms ({r['roofline']['limit']})")
    add("MFU at best", lambda r: f"{r['roofline']['mfu']:.0%}")
    head = ["", *(row["stage"] or "the run" for row in rows)]
    errors = dict.fromkeys(f"does not fit: {row['error']}" for row in rows if row["error"])
    return "\n".join([align(head, lines, right=range(1, len(head))), *errors, *_fastest(rows)])


def _fastest(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each run that several rows are attempts at."""
    for name in dict.fromkeys(row["stage"] for row in rows):
        attempts = [row for row in rows if row["stage"] == name]
        if len(attempts) > 1 and (row := best(attempts)):
            speed = row["batch_size"] / row["roofline"]["step"]
            run = f" of {name}" if name else ""
            yield f"most clips a second{run}: batch {row['batch_size']:,}, remat {row['remat']} ({speed:,.0f} at best)"


def _kind_cell(row: Mapping[str, float] | None) -> str:
    return f"{row['in_step']:,} a step, {row['gib']:.2f} GiB" if row else "-"


def _network_cell(row: Mapping[str, float] | None) -> str:
    return f"{row['gib']:.2f} GiB, {row['flops_per_byte']:,.0f} FLOP/B" if row else "-"

"""Meshes, and which axis of which array lies on which mesh axis.

Mesh axes, from the slowest network to the fastest: replica (copies of everything), fsdp (parameters, optimiser,
target and batch), context (tokens), tensor (heads and MLP). Arrays get logical axis names by their own name; `RULES`
maps these to mesh axes. The target encoder and the optimiser moments follow the parameters they belong to. Activations
are named where they are made (models/, ops/): every sequence is cut over context, and only the keys and values of an
attention, the patches and the targets are gathered from it.
"""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vjepa_jax.config import ConfigError, MeshConfig, RunConfig
from vjepa_jax.models.variants import encoder_size, predictor_size

AXES = ("replica", "fsdp", "context", "tensor")
BATCH_AXES = ("replica", "fsdp")

RULES: dict[str, Any] = {
    "batch": BATCH_AXES,
    "token": "context",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
}

# Regular expressions over names like "params/encoder/blocks/qkv/kernel", first match wins. Vectors stay whole.
LOGICAL_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"blocks/qkv/kernel$", (None, "embed", None, "heads", None)),
    (r"blocks/proj/kernel$", (None, "heads", None, "embed")),
    (r"blocks/(fc1|gate)/kernel$", (None, "embed", "mlp")),
    (r"blocks/fc2/kernel$", (None, "mlp", "embed")),
    (r"blocks/query/kernel$", (None, "embed", "heads", None)),
    (r"blocks/kv/kernel$", (None, "embed", None, "heads", None)),
    (r"blocks/fc3/kernel$", (None, "mlp", "embed")),
    (r"(patch_embed|embed|embed_levels|_encoder)/kernel$", (None, "embed")),
    (r"out(_context)?/kernel$", ("embed", None)),
    (r"(bias|scale|_tokens|modality_embed|losses)$", ()),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The device mesh. Raises ConfigError where the axes do not multiply to the number of devices or fit no slices."""
    devices = jax.devices() if devices is None else devices
    array = arrange(mesh_sizes(config, len(devices)), devices)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of shape `sizes`, neighbours in the network next to each other.

    Slices (jax.Device.slice_index), which a slow network joins, are divided over replica as far as that goes, and over
    fsdp for the rest: context and tensor stay inside a slice.

    Raises:
      ConfigError: the slices are uneven, or replica * fsdp cannot be divided among them.
    """
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if len(set(slices.values())) > 1:
        raise ConfigError(f"the slices have {sorted(slices.values())} devices: use slices of one size")
    replica = math.gcd(sizes[0], len(slices))
    slow = [replica, len(slices) // replica, 1, 1]
    if sizes[1] % slow[1]:
        raise ConfigError(
            f"mesh.replica={sizes[0]}, mesh.fsdp={sizes[1]} cannot be divided among {len(slices)} slices of "
            f"{len(devices) // len(slices)} devices: set mesh.replica={len(slices)}, and context * tensor to fit in one"
        )
    fast = [size // parts for size, parts in zip(sizes, slow, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(fast, slow, devices, allow_split_physical_axes=True)


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The mesh that `make_mesh` would make of so many devices, without any. Raises ConfigError."""
    return AbstractMesh(tuple(mesh_sizes(config, devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(config: MeshConfig, devices: int) -> list[int]:
    """Devices along each axis. Raises ConfigError where they do not multiply to `devices`."""
    sizes = [getattr(config, axis) for axis in AXES]
    wanted = "mesh." + ", mesh.".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ConfigError(f"{wanted}: at most one axis may be -1, all others must be at least 1")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices or -1 in sizes:
        raise ConfigError(f"{wanted} do not multiply to {devices} devices: change one, or set it to -1")
    return sizes


def check_batch(run: RunConfig, mesh: Mesh) -> None:
    """Raises ConfigError where a micro-batch does not divide over the data axes of the mesh."""
    shards = math.prod(mesh.shape[a] for a in BATCH_AXES)
    for name, stream in run.stream_runs.items():
        try:
            check_batch(stream, mesh)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    micro = run.batch_size // run.optim.accumulate
    if micro % shards:
        name = "batch_size" if run.optim.accumulate == 1 else "batch_size / optim.accumulate"
        raise ConfigError(
            f"{name} = {micro} is not divisible by mesh.replica * mesh.fsdp = {shards}: "
            f"use a multiple of {shards * run.optim.accumulate}"
        )


def check_mesh(run: RunConfig, mesh: Mesh | AbstractMesh, budgets: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Raises ConfigError where an axis of the mesh does not divide what it cuts: the micro-batch over replica and fsdp,
    heads and MLPs over tensor, every sequence of tokens over context.

    Args:
      budgets: (context, target) tokens of every predicted set, of the main stream under "" and of others by name.
    """
    check_batch(run, mesh)
    models = {"": run.model} | ({"teacher's ": run.teacher.model} if run.teacher else {})
    towers = {f"the {of}encoder": encoder_size(model) for of, model in models.items()}
    towers["the predictor"] = predictor_size(run.model)
    cut = {f"heads of {name}": size.num_heads for name, size in towers.items()}
    cut |= {f"MLP channels of {name}": size.mlp_dim for name, size in towers.items()}
    _check_axis(mesh, "tensor", cut, "and more of the other axes")

    cut = {f"CLS and register tokens of the {of}encoder": m.registers + m.cls_token for of, m in models.items()}
    for name, stream in ({"": run} | run.stream_runs).items():
        where = f" of {name}" if name else ""
        cut[f"tokens of a clip{where}"] = math.prod(stream.grid)
        for i, (context, target) in enumerate(budgets[name]):
            cut |= {f"context tokens of mask {i}{where}": context, f"target tokens of mask {i}{where}": target}
    _check_axis(mesh, "context", cut, "or masks.groups with budgets that divide")


def _check_axis(mesh: Mesh | AbstractMesh, axis: str, cut: Mapping[str, int], advice: str) -> None:
    """Raises ConfigError where mesh.`axis` does not divide all the sizes of `cut`, with the numbers that would."""
    size, common = mesh.shape[axis], math.gcd(*cut.values())
    if bad := [f"{count} {what}" for what, count in cut.items() if count % size]:
        fitting = [str(n) for n in range(1, common + 1) if common % n == 0 and mesh.size % n == 0]
        raise ConfigError(
            f"mesh.{axis}={size} does not divide {', '.join(bad)}: use mesh.{axis}={' or '.join(fitting)} {advice}"
        )


def spec_of(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of the array called `name`; an axis that does not divide stays whole. KeyError if unknown."""
    if not shape:
        return PartitionSpec()
    logical = next((axes for pattern, axes in LOGICAL_AXES if re.search(pattern, name)), None)
    if logical is None:
        raise KeyError(f"no rule in LOGICAL_AXES for array {name}")
    axes = [RULES[a] if a else None for a in logical]
    return PartitionSpec(*(a if a and shape[i] % mesh.shape[a] == 0 else None for i, a in enumerate(axes)))


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a state or parameter tree."""
    name_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    names = {name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract)}

    def decide(path, leaf):
        name = name_of(path)
        if "/fc2/" in name and name.replace("/fc2/", "/fc3/") in names:
            name = name.replace("/fc2/", "/gate/")  # of a SwiGLU, whose output is fc3
        return NamedSharding(mesh, spec_of(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(decide, abstract)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows as part of the global batch on the devices."""
    sharding = batch_sharding(mesh)
    with jax.transfer_guard_host_to_device("allow"):  # of several processes, this one counts as a hidden transfer
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Context in which functions are traced and called that place activations by the rules above.

    It is entered around single calls and not around the loop, because code that knows nothing of the mesh (evaluation,
    pictures) would run in it on every device at once.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(RULES.items())):
        yield

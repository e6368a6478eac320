"""Meshes, and which axis of which array lies on which mesh axis.

Mesh axes, from the slowest network to the fastest: replica (copies of everything), fsdp (parameters, optimiser,
target and batch), context (tokens), tensor (heads and MLP). Arrays get logical axis names by their own name; `RULES`
maps these to mesh axes. The target encoder and the optimiser moments follow the parameters they belong to.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vjepa_jax.config import ConfigError, MeshConfig, RunConfig

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
    (r"blocks/fc1/kernel$", (None, "embed", "mlp")),
    (r"blocks/fc2/kernel$", (None, "mlp", "embed")),
    (r"blocks/query/kernel$", (None, "embed", "heads", None)),
    (r"blocks/kv/kernel$", (None, "embed", None, "heads", None)),
    (r"blocks/fc3/kernel$", (None, "mlp", "embed")),
    (r"(patch_embed|embed|embed_levels|_encoder)/kernel$", (None, "embed")),
    (r"out(_context)?/kernel$", ("embed", None)),
    (r"(bias|scale|_tokens|modality_embed|losses)$", ()),
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The device mesh. Raises ConfigError where the axes do not multiply to the number of devices."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


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
    if run.images is not None:
        try:
            check_batch(run.images_run, mesh)
        except ConfigError as error:
            raise ConfigError(f"images: {error}") from error
    micro = run.batch_size // run.optim.accumulate
    if micro % shards:
        name = "batch_size" if run.optim.accumulate == 1 else "batch_size / optim.accumulate"
        raise ConfigError(
            f"{name} = {micro} is not divisible by mesh.replica * mesh.fsdp = {shards}: "
            f"use a multiple of {shards * run.optim.accumulate}"
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

    def decide(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
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
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Context in which functions are traced and called that place activations by the rules above.

    It is entered around single calls and not around the loop, because code that knows nothing of the mesh (evaluation,
    pictures) would run in it on every device at once.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(RULES.items())):
        yield

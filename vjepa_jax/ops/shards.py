"""Kernels that XLA cannot divide, on the devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

Places = tuple[PartitionSpec, ...]


def platform() -> str:
    """What the caller is traced for: the devices of its mesh, which need not be here (ahead.py), or those of jax."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_shards(
    kernel: Callable[..., Any],
    other: Callable[..., Any],
    arrays: tuple[Any, ...],
    specs: Callable[[], Places],
    results: Callable[[Places], Any] = lambda places: places[0],
) -> Any:
    """`kernel(*arrays)` on every device's own share, of the mesh that the caller is traced for.

    What the mesh does not divide evenly (the two tokens with which parameters are made) goes to `other(*arrays)`.

    Args:
      arrays: the first is divided if all are; None stays None.
      specs: gives the place of every array on the mesh.
      results: gives the place of every result, from these; that of the first array where there is one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return kernel(*arrays)
    places = specs()
    try:
        NamedSharding(mesh, places[0]).shard_shape(arrays[0].shape)
    except ValueError:
        return other(*arrays)
    return jax.shard_map(kernel, in_specs=places, out_specs=results(places), check_vma=False)(*arrays)

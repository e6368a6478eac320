"""Kernels that XLA cannot divide, on the devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def on_shards(
    kernel: Callable[..., jax.Array],
    other: Callable[..., jax.Array],
    arrays: tuple[Any, ...],
    specs: Callable[[], tuple[PartitionSpec, ...]],
) -> jax.Array:
    """`kernel(*arrays)` on every device's own share, of the mesh that the caller is traced for.

    What the mesh does not divide evenly (the two tokens with which parameters are made) goes to `other(*arrays)`.

    Args:
      arrays: the first has the shape of the result; None stays None.
      specs: gives the place of every array on the mesh, that of the first being that of the result too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return kernel(*arrays)
    places = specs()
    try:
        NamedSharding(mesh, places[0]).shard_shape(arrays[0].shape)
    except ValueError:
        return other(*arrays)
    return jax.shard_map(kernel, in_specs=places, out_specs=places[0], check_vma=False)(*arrays)

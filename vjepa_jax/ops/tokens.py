"""Gathering tokens by id, sequences side by side, and distances between tokens.

Shape suffixes: B batch, N tokens, K kept tokens, D channels, T Y X the token grid.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Segments = tuple[tuple[int, int], ...]  # queries and keys of sequences that lie side by side; (): there is one


def gather_tokens(x_BND: jax.Array, ids_BK: jax.Array) -> jax.Array:
    """The tokens `ids_BK` of each row, [B, K, D]; on a mesh each device takes its share of K from all of x."""
    x_BND = nn.with_logical_constraint(x_BND, ("batch", None, None))
    return nn.with_logical_constraint(jnp.take_along_axis(x_BND, ids_BK[:, :, None], axis=1), ("batch", "token", None))


def split_tokens(x: jax.Array | None, counts: Sequence[int]) -> list[Any]:
    """[B, N, ...] in parts of `counts` tokens; of None as many times None."""
    if x is None or len(counts) == 1:
        return [x] * len(counts)
    return jax.lax.split(x, tuple(counts), axis=1)


def join_tokens(parts: Sequence[jax.Array]) -> jax.Array:
    """The inverse of `split_tokens`: sequences side by side."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def cuts_sequences() -> bool:
    """Whether the mesh that the caller is traced for divides the tokens of a sequence among devices."""
    (axis,) = nn.logical_to_mesh_axes(("token",))
    return axis is not None and jax.sharding.get_abstract_mesh().shape.get(axis, 1) > 1


def all_ids(batch: int, num_tokens: int) -> jax.Array:
    """Ids of every token for each row, int32 [B, N]."""
    return jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), (batch, num_tokens))


def scatter_tokens(ids_BK: jax.Array, grid: tuple[int, int, int], valid_BK: jax.Array | None = None) -> jax.Array:
    """bool [B, T, Y, X], True at the given tokens."""
    batch, (steps, height, width) = ids_BK.shape[0], grid
    valid_BK = jnp.ones(ids_BK.shape, bool) if valid_BK is None else valid_BK
    flat_BN = jnp.zeros((batch, steps * height * width), bool).at[jnp.arange(batch)[:, None], ids_BK].max(valid_BK)
    return flat_BN.reshape(batch, *grid)


def distance_to_nearest(
    from_BK: jax.Array, to_BM: jax.Array, grid: tuple[int, int, int], valid_BM: jax.Array | None = None
) -> jax.Array:
    """Euclidean distance on the grid from each token of `from_BK` to the nearest valid one of `to_BM`; float32 [B, K].

    An exact distance transform, one axis after the other (Felzenszwalb and Huttenlocher, 2012, with the minimum taken
    directly): N (T + Y + X) operations in place of K M. Without any valid token the result is infinite.
    """
    squared = jnp.where(scatter_tokens(to_BM, grid, valid_BM), 0.0, jnp.inf)
    for axis, length in enumerate(grid, start=1):
        steps = jnp.arange(length, dtype=jnp.float32)
        gaps = jnp.square(steps[:, None] - steps)
        squared = jnp.moveaxis(squared, axis, -1)
        squared = jnp.moveaxis((squared[..., None, :] + gaps).min(-1), -1, axis)
    return jnp.sqrt(jnp.take_along_axis(squared.reshape(len(squared), -1), from_BK, axis=1))

"""A bias whose gradient is a pass of its own over memory (on NVIDIA).

XLA sums that gradient up in the kernel that makes what is summed: of queries, keys and values the backward pass of
their rotation, which it slows down by more than the pass costs.

Shape suffixes: B batch, N tokens.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vjepa_jax.ops import rowwise
from vjepa_jax.ops.shards import on_shards

_TILE = rowwise.Tile(4, 512)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def add_bias(x: jax.Array, bias: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """x + bias, in the dtype of x.

    Args:
      x: [B, N, ...].
      bias: [...], float32. Its gradient is summed up in float32.
      axes: logical names of the axes of x.
    """
    return x + bias.astype(x.dtype)


def _forward(x, bias, axes):
    return add_bias(x, bias, axes), None


def _backward(axes, kept, dy):
    del kept
    if not rowwise.usable(dy):
        return dy, _sums(dy)[0]

    places = lambda: (nn.logical_to_mesh_axes(axes),)
    of_sums = lambda places: rowwise.sums_place(places[0], len(axes) - 2)
    return dy, on_shards(sums_kernel, _sums, (dy,), places, of_sums).sum(0)


add_bias.defvjp(_forward, _backward)


def _sums(x: jax.Array) -> jax.Array:
    """Over the first two axes, float32 [1, ...]."""
    return x.astype(jnp.float32).sum((0, 1))[None]


@rowwise.kernel("interpret", "tile")
def sums_kernel(x: jax.Array, interpret: bool = False, tile=_TILE) -> jax.Array:
    """`_sums` in one pass over memory."""
    matrix = x.reshape(x.shape[0] * x.shape[1], -1)
    options = {"sums": 1, "interpret": interpret, "name": "bias_gradient"}
    (total,) = rowwise.one_pass(lambda x: ([], [], [x]), [matrix], [], tile, **options)
    return total.reshape(1, *x.shape[2:])

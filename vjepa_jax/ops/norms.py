"""LayerNorm with learned scale and bias, whose backward pass keeps its input and two numbers a row.

In training on NVIDIA both passes of a residual branch are one kernel each (ops.rowwise): XLA makes three of the forward
pass and four of the backward pass, and writes float32 values between them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vjepa_jax.ops import rowwise
from vjepa_jax.ops.e4m3 import E4M3, Rounded, cut
from vjepa_jax.ops.shards import on_shards

TOKENS = ("batch", "token", None)  # logical axes of what is normalised
WIDEST = 4096  # channels: a program of the kernels holds whole rows
Added = tuple[jax.Array, jax.Array]  # [..., D] and a float32 bias [D]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm_affine(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float, dtype: Any) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, in float32 (arXiv 1607.06450).

    Derived by jax, the same keeps several float32 arrays of the size of x where layers are scanned.

    Args:
      x: [..., D], any float dtype.
      scale_D, bias_D: float32.
      dtype: of the result.
    """
    return _normed(x, None, scale_D, bias_D, eps, dtype)[0]


def _forward_affine(x, scale_D, bias_D, eps, dtype):
    normed, _, mean, rate = _normed(x, None, scale_D, bias_D, eps, dtype)
    return normed, (x, scale_D, mean, rate)


def _backward_affine(eps, dtype, kept, dy):
    del eps, dtype
    return _gradients(kept, dy, None)[:3]


layer_norm_affine.defvjp(_forward_affine, _backward_affine)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def layer_norm_branch(
    x: jax.Array,
    added: Added | None,
    scale_D: jax.Array,
    bias_D: jax.Array,
    eps: float,
    dtype: Any,
    short: bool = False,
) -> tuple[jax.Array | Rounded, jax.Array]:
    """A residual stream where a branch leaves it: `layer_norm_affine` of x + added, and that sum itself.

    The sum is of x's dtype. Both gradients of it, from the branch and from what follows, are added in the pass that
    makes the one.

    Args:
      added: the output of the branch before, without its bias, and that bias; None: nothing.
      short: the normed is Rounded.
    """
    # without a gradient by XLA, which sums a stream up where it is normed, and does not write every sum
    return _normed(x, added, scale_D, bias_D, eps, dtype, short)[:2]


def _forward_branch(x, added, scale_D, bias_D, eps, dtype, short):
    options = eps, dtype, short
    if _has_kernel(x):
        call = lambda f: lambda x, scale_D, bias_D, *added: f(x, added or None, scale_D, bias_D, *options)
        arrays = x, scale_D, bias_D, *(added or ())
        places = functools.partial(_places, len(arrays))
        results = on_shards(call(normed_kernel), call(_normed), arrays, places, lambda places: (places[0],) * 4)
    else:
        results = _normed(x, added, scale_D, bias_D, *options)
    normed, x, mean, rate = results
    product = None if added is None else jnp.zeros(0, added[0].dtype)  # for its dtype
    return (normed, x), (x, scale_D, mean, rate, product)


def _backward_branch(eps, dtype, short, kept, cotangents):
    del eps, dtype
    *kept, product = kept
    dy, along_x = cotangents
    dx, to_scale, to_bias, to_added = _gradients(kept, dy.exact if short else dy, along_x)
    return dx, None if product is None else (dx.astype(product.dtype), to_added), to_scale, to_bias


def _places(count: int) -> tuple[PartitionSpec, ...]:
    """Of x, scale, bias, and of what is added and its bias."""
    tokens, whole = nn.logical_to_mesh_axes(TOKENS), PartitionSpec()
    return (tokens, whole, whole, tokens, whole)[:count]


layer_norm_branch.defvjp(_forward_branch, _backward_branch)


def _has_kernel(x: jax.Array) -> bool:
    return x.ndim == 3 and x.shape[-1] <= WIDEST and rowwise.usable(x)


def _normed(x, added, scale_D, bias_D, eps, dtype, short=False):
    """The normed sum of x and what is added (with `short` as Rounded), the sum, and its mean and reciprocal deviation
    [..., 1]."""
    if added is not None:
        x = (x + (added[0] + added[1].astype(added[0].dtype))).astype(x.dtype)
    normed, mean, rate = _normalise(x.astype(jnp.float32), scale_D, bias_D, eps, x.shape[-1])
    return Rounded(normed.astype(dtype), cut(normed)) if short else normed.astype(dtype), x, mean, rate


def _normalise(x, scale, bias, eps, size: int, there=None):
    """In float32. size: channels, those that are `there`, where the last axis is longer."""
    mean = x.sum(-1, keepdims=True) / size
    centred = x - mean if there is None else jnp.where(there, x - mean, 0.0)
    rate = jax.lax.rsqrt(jnp.square(centred).sum(-1, keepdims=True) / size + eps)
    return centred * (rate * scale) + bias, mean, rate


@rowwise.kernel("eps", "dtype", "short", "interpret", "tile")
def normed_kernel(x_BND, added, scale_D, bias_D, eps, dtype, short=False, interpret: bool = False, tile=None):
    """`_normed` in one pass over memory."""
    size = x_BND.shape[-1]
    columns = rowwise.power_of_two(size)
    tile = tile or rowwise.Tile(4 if columns <= 1024 else 2, columns, 4 if columns <= 1024 else 8)
    matrices = [m.reshape(-1, size) for m in (x_BND, *(added or ())[:1])]

    def body(x, *rest):
        *added, scale, bias = rest
        if added:
            x = (x + (added[0] + added[1])).astype(x_BND.dtype).astype(jnp.float32)
        there = None if tile.columns == size else jnp.arange(tile.columns) < size
        normed, mean, rate = _normalise(x, scale, bias, eps, size, there)
        return [normed, *([cut(normed)] if short else []), *([x] if added else [])], [mean, rate], []

    results = rowwise.one_pass(
        body,
        matrices,
        [dtype, *([E4M3] if short else []), *([x_BND.dtype] if added else [])],
        tile,
        vectors=[*(added or ())[1:], scale_D, bias_D],
        row_outputs=2,
        interpret=interpret,
        name="layer_norm",
    )
    *results, mean, rate = results
    *normed, x = (m.reshape(x_BND.shape) for m in (results if added else [*results, x_BND]))
    mean, rate = (numbers.reshape(*x_BND.shape[:-1], 1) for numbers in (mean, rate))
    return Rounded(*normed) if short else normed[0], x, mean, rate


def _gradients(kept, dy, along_x):
    """The gradients of x [..., D], of scale and bias, and the sum of the first over rows: that of what is added.

    along_x: what is added to the gradient of x, or None.
    """
    x, scale_D, mean, rate = kept
    arrays = x, dy, along_x, mean, rate, scale_D
    if _has_kernel(x):
        dx, *sums = on_shards(gradient_kernel, _gradients_by_xla, arrays, _gradient_places, _result_places)
    else:
        dx, *sums = _gradients_by_xla(*arrays)
    return dx, *(part.sum(0) for part in sums)


def _gradient_places() -> tuple[PartitionSpec, ...]:
    """Of x, both gradients, both numbers of every row, and the scale."""
    tokens = nn.logical_to_mesh_axes(TOKENS)
    return *[tokens] * 5, PartitionSpec()


def _result_places(places):
    return places[0], *[rowwise.sums_place(places[0])] * 3


def _gradients_by_xla(x, dy, along_x, mean, rate, scale_D) -> tuple[jax.Array, ...]:
    """The gradient of x, and the three sums as [1, D]."""
    dx, *terms = _formulas(x.astype(jnp.float32), dy.astype(jnp.float32), mean, rate, scale_D, x.shape[-1])
    if along_x is not None:
        dx = dx + along_x.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    return dx.astype(x.dtype), *(values.sum(rows)[None] for values in (*terms, dx))


def _formulas(x, dy, mean, rate, scale, size: int):
    """The gradient of x from that of the normed, and what sums up to those of scale and bias."""
    average = lambda values: values.sum(-1, keepdims=True) / size
    unit = (x - mean) * rate
    d_unit = dy * scale
    return rate * (d_unit - average(d_unit) - unit * average(d_unit * unit)), dy * unit, dy


@rowwise.kernel("interpret", "tile")
def gradient_kernel(x_BND, dy_BND, along_BND, mean_BN1, rate_BN1, scale_D, interpret: bool = False, tile=None):
    """`_gradients_by_xla` in one pass over memory."""
    size = x_BND.shape[-1]

    def body(x, dy, *rest):
        *along, mean, rate, scale = rest
        dx, *terms = _formulas(x, dy, mean, rate, scale, size)
        dx = sum(along, dx)
        return [dx], [], [*terms, dx]

    dx, *sums = rowwise.one_pass(
        body,
        [m.reshape(-1, size) for m in (x_BND, dy_BND, along_BND) if m is not None],
        [x_BND.dtype],
        tile or _gradient_tile(rowwise.power_of_two(size)),
        numbers=[mean_BN1.reshape(-1), rate_BN1.reshape(-1)],
        vectors=[scale_D],
        sums=3,
        interpret=interpret,
        name="layer_norm_gradient",
    )
    return dx.reshape(x_BND.shape), *(part[None] for part in sums)


def _gradient_tile(columns: int) -> rowwise.Tile:
    """The fastest of 5 sizes each at 384, 1,024 and 1,408 channels on an H100."""
    return rowwise.Tile(4, columns) if columns <= 512 else rowwise.Tile(1, columns, 4 if columns <= 1024 else 8, 528)

"""GELU, exact to the precision of its input, whose backward pass keeps the input alone.

`jax.nn.gelu(approximate=False)` goes through erfc, two branches of polynomials with an exponential and a division each,
and keeps three arrays. For 16-bit inputs the normal distribution function is one polynomial here, with an error far
below what 16 bits resolve: the exact GELU costs hardly more than the approximate one.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vjepa_jax.ops import instructions, rowwise
from vjepa_jax.ops.e4m3 import E4M3, Rounded, cut
from vjepa_jax.ops.shards import on_shards

HIDDEN = ("batch", "token", "mlp")  # logical axes of the inside of an MLP
_VALUE_TILE, _SLOPE_TILE = rowwise.Tile(8, 512), rowwise.Tile(2, 512)  # the fastest of 17 on an H200
_PEAK = 1.0 / math.sqrt(2.0 * math.pi)  # of the normal density


class Polynomial(NamedTuple):
    """Phi(x) = 1/2 + u R(2 (u / cut)^2 - 1) with u = x cut to [-cut, cut]; R by its coefficients, that of 1 first.

    Of least maximal error (Lawson's iteration on 6,001 Chebyshev points) under the condition that Phi(cut) = 1.
    """

    cut: float
    coefficients: tuple[float, ...]


SIXTEEN_BIT = Polynomial(  # |error| < 9e-7 in float32, of x Phi(x) < 5e-6
    5.0,
    (
        *(0.14136360585689545, -0.07029791921377182, 0.051535043865442276, -0.040404312312603, 0.0312567874789238),
        *(-0.023513639345765114, 0.017261451110243797, -0.010534700006246567, 0.004621251951903105),
        *(-0.003384748473763466, 0.003430967917665839, -0.0013337836135178804),
    ),
)
EIGHT_BIT = Polynomial(  # |error| of x Phi(x) < 1.9e-4, a tenth of the smallest step of E4M3
    4.0,
    (
        *(0.17597076296806335, -0.08442454785108566, 0.05539511516690254, -0.03547607734799385),
        *(0.024147894233465195, -0.016534509137272835, 0.005921362433582544),
    ),
)


def gelu(x: jax.Array, kind: str = "erf", bias_F: jax.Array | None = None) -> jax.Array:
    """x Phi(x), Phi the distribution function of the standard normal (arXiv 1606.08415). Keeps shape and dtype.

    Args:
      x: [..., F], any float dtype.
      kind: erf (exact) or tanh (the approximation of the same paper).
      bias_F: float32; x + bias in place of x, summed in float32. Only x is kept, which a dense layer has made already.
    """
    if kind == "tanh":
        return jax.nn.gelu(x if bias_F is None else x + bias_F.astype(x.dtype), approximate=True)
    return _gelu(x) if bias_F is None else _gelu_of_sum(x, bias_F)


@jax.custom_vjp
def _gelu(x: jax.Array) -> jax.Array:
    return value_by_xla(x, 0.0)


def _forward(x):
    # as it was given: XLA would keep, and write, the float32 values that x was rounded from
    x = jax.lax.optimization_barrier(x)
    return _gelu(x), x


def _backward(x, dy):
    return (_slope(x, dy, 0.0).astype(x.dtype),)


_gelu.defvjp(_forward, _backward)


@jax.custom_vjp
def _gelu_of_sum(x: jax.Array, bias_F: jax.Array) -> jax.Array:
    return value(x, bias_F)


def _forward_of_sum(x, bias_F):
    x = jax.lax.optimization_barrier(x)
    return value(x, bias_F), (x, bias_F)


def _backward_of_sum(kept, dy):
    x, bias_F = kept
    return slope(x, dy, bias_F)


_gelu_of_sum.defvjp(_forward_of_sum, _backward_of_sum)


def value(x: jax.Array, bias_F: jax.Array, short: bool = False) -> Any:
    """GELU(x + bias) of x [..., F] in its dtype, with `short` as Rounded. It has no gradient: `slope` is that."""
    own, other = (functools.partial(f, short=short) for f in (value_kernel, value_by_xla))
    return on_shards(own, other, (x, bias_F), places) if _has_kernel(x) else other(x, bias_F)


def slope(x: jax.Array, dy: jax.Array, bias_F: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of x, in its dtype, and of the bias."""
    if _has_kernel(x):
        dx, d_bias = on_shards(slope_kernel, _slope_and_sum, (x, dy, bias_F), _slope_places, _slope_result_places)
    else:
        dx, d_bias = _slope_and_sum(x, dy, bias_F)
    return dx, d_bias.sum(0)


def _has_kernel(x: jax.Array) -> bool:
    return x.ndim == 3 and rowwise.usable(x)


def places() -> tuple[PartitionSpec, ...]:
    """Of x and the bias."""
    hidden = nn.logical_to_mesh_axes(HIDDEN)
    return hidden, PartitionSpec(hidden[2])


def _slope_places() -> tuple[PartitionSpec, ...]:
    hidden, bias = places()
    return hidden, hidden, bias


def _slope_result_places(places):
    return places[0], rowwise.sums_place(places[0])


def value_by_xla(x: jax.Array, bias: Any, short: bool = False) -> Any:
    wide = x.astype(jnp.float32) + bias
    wide = wide * _normal_cdf(wide, x.dtype)
    return Rounded(wide.astype(x.dtype), cut(wide)) if short else wide.astype(x.dtype)


def _slope(x: jax.Array, dy: jax.Array, bias: Any) -> jax.Array:
    """dy times the derivative, float32."""
    wide = x.astype(jnp.float32) + bias
    density = jnp.exp(-0.5 * wide * wide) * _PEAK
    return dy.astype(jnp.float32) * (_normal_cdf(wide, x.dtype) + wide * density)


def _slope_and_sum(x, dy, bias_F):
    """The gradients of x, and of the bias as [1, F]."""
    dx = _slope(x, dy, bias_F)
    return dx.astype(x.dtype), dx.sum(tuple(range(x.ndim - 1)))[None]


@rowwise.kernel("short", "interpret", "tile")
def value_kernel(x_BNF, bias_F, short: bool = False, interpret: bool = False, tile=_VALUE_TILE) -> Any:
    """`value_by_xla` of 16-bit x in one pass over memory."""

    def body(x, bias):
        result = (x + bias) * normal_cdf(x + bias, interpret=interpret)
        return [result, cut(result)] if short else [result], [], []

    matrices = [x_BNF.reshape(-1, x_BNF.shape[-1])]
    outputs = [x_BNF.dtype, E4M3] if short else [x_BNF.dtype]
    options = {"vectors": [bias_F], "interpret": interpret, "name": "gelu"}
    results = rowwise.one_pass(body, matrices, outputs, tile, **options)
    results = [result.reshape(x_BNF.shape) for result in results]
    return Rounded(*results) if short else results[0]


@rowwise.kernel("interpret", "tile")
def slope_kernel(x_BNF, dy_BNF, bias_F, interpret: bool = False, tile=_SLOPE_TILE) -> tuple[jax.Array, jax.Array]:
    """`_slope_and_sum` of 16-bit x in one pass over memory."""

    def body(x, dy, bias):
        wide = x + bias
        density = instructions.exp2(wide * wide * (-0.5 * math.log2(math.e)), interpret) * _PEAK
        dx = dy * instructions.multiply_add(wide, density, normal_cdf(wide, interpret=interpret), interpret)
        return [dx], [], [dx]

    matrices = [x.reshape(-1, x.shape[-1]) for x in (x_BNF, dy_BNF)]
    options = {"vectors": [bias_F], "sums": 1, "interpret": interpret, "name": "gelu_gradient"}
    dx, d_bias = rowwise.one_pass(body, matrices, [x_BNF.dtype], tile, **options)
    return dx.reshape(x_BNF.shape), d_bias[None]


def _normal_cdf(wide: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Phi of float32 values, to the precision of dtype."""
    return 0.5 * jax.lax.erfc(-math.sqrt(0.5) * wide) if jnp.dtype(dtype).itemsize > 2 else normal_cdf(wide)


def normal_cdf(x: jax.Array, polynomial: Polynomial = SIXTEEN_BIT, interpret: bool = True) -> jax.Array:
    """Phi(x) of float32 x by a polynomial. interpret: False in a kernel for a GPU."""
    multiply_add = functools.partial(instructions.multiply_add, interpret=interpret)
    end, (*others, last) = polynomial
    u = jnp.clip(x, -end, end)
    s = multiply_add(u * u, 2.0 / end**2, -1.0)
    total = jnp.full_like(s, last)
    for coefficient in reversed(others):
        total = multiply_add(total, s, coefficient)
    return multiply_add(u, total, 0.5)

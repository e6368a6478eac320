"""LayerNorm with learned scale and bias, whose backward pass keeps its input and two numbers a row."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm_affine(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float, dtype: Any) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, in float32 (arXiv 1607.06450).

    Derived by jax, the same keeps several float32 arrays of the size of x where layers are scanned.

    Args:
      x: [..., D], any float dtype.
      scale_D, bias_D: float32.
      dtype: of the result.
    """
    return _forward(x, scale_D, bias_D, eps, dtype)[0]


def _forward(x, scale_D, bias_D, eps, dtype):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    centred = wide - mean
    rate = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return (centred * (rate * scale_D) + bias_D).astype(dtype), (x, scale_D, mean, rate)


def _backward(eps, dtype, kept, dy):
    del eps, dtype
    x, scale_D, mean, rate = kept
    unit = (x.astype(jnp.float32) - mean) * rate
    dy = dy.astype(jnp.float32)
    rows = tuple(range(dy.ndim - 1))
    d_unit = dy * scale_D
    along = (d_unit * unit).mean(-1, keepdims=True)
    dx = rate * (d_unit - d_unit.mean(-1, keepdims=True) - unit * along)
    return dx.astype(x.dtype), (dy * unit).sum(rows), dy.sum(rows)


layer_norm_affine.defvjp(_forward, _backward)

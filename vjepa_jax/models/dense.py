"""Dense layers of a transformer block, with the parameters of flax's DenseGeneral. A bias is added by what comes next,
so that no pass over memory is for it alone.

Shape suffixes: B batch, N tokens, D embedding, F hidden, H heads, K head size.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vjepa_jax.ops.attention import QUERIES
from vjepa_jax.ops.float8 import float8_dot_general, float8_gelu_dot
from vjepa_jax.ops.gelu import HIDDEN, gelu
from vjepa_jax.ops.norms import Added

weight_init = nn.initializers.normal(0.02)


def parameters(module: nn.Module, inputs: tuple[int, ...], features: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """ "kernel" [*inputs, *features] and "bias" [*features] of `module`, float32, as flax's DenseGeneral makes them."""
    flat = math.prod(inputs), math.prod(features)
    kernel = module.param("kernel", lambda rng: weight_init(rng, flat, jnp.float32).reshape(*inputs, *features))
    return kernel, module.param("bias", nn.initializers.zeros, features, jnp.float32)


def product(
    x: jax.Array, kernel: jax.Array, axes: int = 1, dot: Callable[..., jax.Array] = jax.lax.dot_general
) -> jax.Array:
    """The last `axes` axes of x times the first ones of the kernel."""
    return dot(x, kernel, ((tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))), ((), ())))


class QKV(nn.Module):
    """Queries, keys and values [B, N, H, K] of one dense layer, and the bias [H, K] that the values lack, or None.

    Values of float8 products come without their bias: the weights of an attention sum up to one, so that it may be
    added to what attention gives (`Projection` does). They are a product of their own then, and no pass cuts them out.
    With a gradient that does not pay: XLA makes one product of both again, and two of its gradient.

    parts: 2 leaves out the queries.
    """

    heads: tuple[int, int]
    dtype: Any
    float8: bool = False
    parts: int = 3

    @nn.compact
    def __call__(self, x_BND):
        kernel, bias = parameters(self, x_BND.shape[-1:], (self.parts, *self.heads))
        x_BND, kernel = x_BND.astype(self.dtype), kernel.astype(self.dtype)
        joint = self.parts - 1 if self.float8 else self.parts
        dot = float8_dot_general if self.float8 else jax.lax.dot_general
        each = product(x_BND, kernel[:, :joint], dot=dot) + bias[:joint].astype(self.dtype)
        each = nn.with_logical_constraint(each, (*QUERIES[:2], None, *QUERIES[2:]))
        results = [each[:, :, i] for i in range(joint)]
        if not self.float8:
            return *results, None
        return *results, nn.with_logical_constraint(product(x_BND, kernel[:, -1], dot=dot), QUERIES), bias[-1]


class Projection(nn.Module):
    """The output [B, N, D] of an attention without its bias, and that bias [D], to be added together.

    __call__(y_BNHK, v_bias): what attention gives, and the bias that its values lack, or None.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, y_BNHK, v_bias=None) -> Added:
        kernel, bias = parameters(self, y_BNHK.shape[-2:], (self.features,))
        kernel = kernel.astype(self.dtype)
        if v_bias is not None:
            bias += jnp.einsum("HK,HKD->D", v_bias, kernel, preferred_element_type=jnp.float32)
        return product(y_BNHK.astype(self.dtype), kernel, 2), bias


class GeluDense(nn.Module):
    """GELU of a dense layer. With `float8` its product is of float8 inputs, and an exact GELU float8 (ops.float8)."""

    features: int
    dtype: Any
    gelu: str
    float8: bool

    @nn.compact
    def __call__(self, x_BND):
        kernel_DF, bias_F = parameters(self, x_BND.shape[-1:], (self.features,))
        if self.float8 and self.gelu == "erf":
            return float8_gelu_dot(x_BND, kernel_DF, bias_F)
        dot = float8_dot_general if self.float8 else jax.lax.dot_general
        product_BNF = product(x_BND.astype(self.dtype), kernel_DF.astype(self.dtype), dot=dot)
        return gelu(nn.with_logical_constraint(product_BNF, HIDDEN), self.gelu, bias_F)

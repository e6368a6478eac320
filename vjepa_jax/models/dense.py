"""Dense layers of a transformer block, with the parameters of flax's DenseGeneral. A bias is added by what comes next,
so that no pass over memory is for it alone.

Shape suffixes: B batch, N tokens, D embedding, F hidden, H heads, K head size.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vjepa_jax.ops import flash
from vjepa_jax.ops.attention import QUERIES
from vjepa_jax.ops.biases import add_bias
from vjepa_jax.ops.e4m3 import E4M3, Rounded, rounded
from vjepa_jax.ops.float8 import exact_product, float8_gelu_layer, float8_product, scaled_product
from vjepa_jax.ops.gelu import HIDDEN, gelu
from vjepa_jax.ops.norms import Added

weight_init = nn.initializers.normal(0.02)


def parameters(module: nn.Module, inputs: tuple[int, ...], features: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """ "kernel" [*inputs, *features] and "bias" [*features] of `module`, float32, as flax's DenseGeneral makes them."""
    flat = math.prod(inputs), math.prod(features)
    kernel = module.param("kernel", lambda rng: weight_init(rng, flat, jnp.float32).reshape(*inputs, *features))
    return kernel, module.param("bias", nn.initializers.zeros, features, jnp.float32)


def product(x: jax.Array | Rounded, kernel: jax.Array, axes: int = 1) -> jax.Array:
    """The last `axes` axes of x times the first ones of the kernel, which is of its dtype."""
    return (float8_product if isinstance(x, Rounded) else exact_product)(x, kernel, axes)


def channels(x: jax.Array | Rounded) -> tuple[int]:
    return (x.exact if isinstance(x, Rounded) else x).shape[-1:]


def as_dtype(x: jax.Array | Rounded, dtype: Any) -> jax.Array | Rounded:
    return x if isinstance(x, Rounded) else x.astype(dtype)


class Dense(nn.Module):
    """A dense layer. It takes, as the layers below, an array or Rounded: then the product of the forward pass is of
    float8 inputs (ops.float8).

    apart: it gives its product and its bias, to be added together.
    """

    features: tuple[int, ...]
    dtype: Any
    apart: bool = False

    @nn.compact
    def __call__(self, x) -> Any:
        kernel, bias = parameters(self, channels(x), self.features)
        result = product(as_dtype(x, self.dtype), kernel.astype(self.dtype))
        return (result, bias) if self.apart else result + bias.astype(self.dtype)


class QKV(nn.Module):
    """Queries, keys and values of one dense layer, [B, N, 3, H, K], and None twice.

    frozen: no gradient is taken. Of float8 products queries and keys alone are joint then; what follows are the values
    [B, N, H, K], and the bias [H, K] that they lack: the weights of an attention sum up to one, so that it may be added
    to what attention gives (`Projection` does). So no pass cuts the values out. With a gradient that does not pay: XLA
    makes one product of both again, and two of its gradient.

    parts: 2 leaves out the queries.
    """

    heads: tuple[int, int]
    dtype: Any
    frozen: bool = False
    parts: int = 3

    @nn.compact
    def __call__(self, x):
        kernel, bias = parameters(self, channels(x), (self.parts, *self.heads))
        x, kernel = as_dtype(x, self.dtype), kernel.astype(self.dtype)
        apart = self.frozen and isinstance(x, Rounded)
        joint = self.parts - 1 if apart else self.parts
        axes = (*QUERIES[:2], None, *QUERIES[2:])
        each = nn.with_logical_constraint(add_bias(product(x, kernel[:, :joint]), bias[:joint], axes), axes)
        if not apart:
            return each, None, None
        return each, nn.with_logical_constraint(product(x, kernel[:, -1]), QUERIES), bias[-1]


class Projection(nn.Module):
    """The output [B, N, D] of an attention without its bias, and that bias [D], to be added together.

    __call__(y_BNHK, v_bias): what attention gives, `short` or not, and the bias that its values lack, or None.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, y_BNHK, v_bias=None) -> Added:
        kernel, bias = parameters(self, y_BNHK.shape[-2:], (self.features,))
        kernel = kernel.astype(self.dtype)
        if v_bias is not None:
            bias += jnp.einsum("HK,HKD->D", v_bias, kernel, preferred_element_type=jnp.float32)
        if y_BNHK.dtype == E4M3:
            return scaled_product(y_BNHK, kernel, 2, self.dtype, flash.TIMES), bias
        return product(y_BNHK.astype(self.dtype), kernel, 2), bias


class GeluDense(nn.Module):
    """GELU of a dense layer: of an array as one, of Rounded as Rounded."""

    features: int
    dtype: Any
    gelu: str

    @nn.compact
    def __call__(self, x):
        kernel_DF, bias_F = parameters(self, channels(x), (self.features,))
        x, kernel_DF = as_dtype(x, self.dtype), kernel_DF.astype(self.dtype)
        if isinstance(x, Rounded) and self.gelu == "erf":
            return float8_gelu_layer(x, kernel_DF, bias_F)
        value = gelu(nn.with_logical_constraint(product(x, kernel_DF), HIDDEN), self.gelu, bias_F)
        return rounded(value) if isinstance(x, Rounded) else value

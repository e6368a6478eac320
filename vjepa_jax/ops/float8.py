"""Matrix products of float8 inputs in forward passes (arXiv 2209.05433). Gradients are those of the product of exact
values, in their dtype.

Shape suffixes: B batch, N tokens, D embedding, F hidden.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vjepa_jax.ops import gelu, rowwise
from vjepa_jax.ops.e4m3 import E4M3, LARGEST, Rounded, cut
from vjepa_jax.ops.shards import on_shards

_TILE = rowwise.Tile(16, 256)  # the fastest of 17 on an H200


def exact_product(x: jax.Array, kernel: jax.Array, axes: int = 1) -> jax.Array:
    """The last `axes` axes of x times the first ones of the kernel, as they are."""
    numbers = ((tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))), ((), ()))
    return jax.lax.dot_general(x, kernel, numbers)


def scaled_product(
    short: jax.Array, kernel: jax.Array, axes: int = 1, dtype: jnp.dtype = jnp.bfloat16, times: float = 1.0
) -> jax.Array:
    """The last `axes` axes of E4M3 values times the first ones of the kernel rounded to E4M3, summed up in float32 and
    divided by `times`, as `dtype`. It has no gradient.

    The kernel is scaled so that its largest value becomes that of E4M3. On an H100 or later XLA makes one float8
    product with a scale of this; elsewhere it is a product of rounded values.
    """
    kept, short = kernel.shape[axes:], short.reshape(*short.shape[:-axes], -1)
    kernel = kernel.reshape(short.shape[-1], -1)
    largest = jnp.maximum(jnp.abs(kernel).max().astype(jnp.float32), LARGEST * jnp.finfo(jnp.float32).tiny)
    scale = (largest / LARGEST).astype(dtype)
    # hardware wants the contracted axis of both arrays last; transposed in one pass with the rounding, which XLA would
    # part to make the transposition one of the product, and then make it again
    rounded_FD = jax.lax.optimization_barrier(cut(kernel.astype(jnp.float32) / scale.astype(jnp.float32)).T)
    numbers = (((short.ndim - 1,), (1,)), ((), ()))
    product = jax.lax.dot_general(short, rounded_FD, numbers, preferred_element_type=dtype) * (scale / times)
    return product.reshape(*product.shape[:-1], *kept)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def float8_product(x: Rounded, kernel: jax.Array, axes: int = 1) -> jax.Array:
    """`scaled_product` of x in the dtype of `x.exact`.

    Args:
      x: not scaled: the output of a LayerNorm or of a GELU, which is of order 1.
    """
    return scaled_product(x.short, kernel, axes, x.exact.dtype)


def _forward_product(x, kernel, axes):
    return float8_product(x, kernel, axes), (x.exact, kernel)


def _backward_product(axes, kept, dy):
    exact, d_kernel = _product_gradients(*kept, axes, dy)
    return Rounded(exact, None), d_kernel


float8_product.defvjp(_forward_product, _backward_product)


def _product_gradients(x: jax.Array, kernel: jax.Array, axes: int, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(lambda x, kernel: exact_product(x, kernel, axes), x, kernel)[1](dy)


@jax.custom_vjp
def float8_gelu_layer(x: Rounded, kernel_DF: jax.Array, bias_F: jax.Array) -> Rounded:
    """The exact GELU of x @ kernel + bias, [B, N, F]; the product is `scaled_product`, x [B, N, D] as for
    `float8_product`.

    Where no gradient is taken `short` is off by less than 1.9e-4, a tenth of the smallest step of E4M3: on NVIDIA by a
    Pallas kernel (Triton), 49152 x 4096 in .19 ms on an H200, where XLA took .46 on an H100.
    """
    product_BNF = _hidden_product(x, kernel_DF)
    exact = gelu.value_by_xla(product_BNF, bias_F)
    if not rowwise.usable(product_BNF):
        return Rounded(exact, _short(product_BNF, bias_F))
    return Rounded(exact, on_shards(short_kernel, _short, (product_BNF, bias_F), gelu.places))


def _forward_layer(x, kernel_DF, bias_F):
    product_BNF = jax.lax.optimization_barrier(_hidden_product(x, kernel_DF))  # kept in 16 bits, as in gelu.py
    return gelu.value(product_BNF, bias_F, short=True), (x.exact, kernel_DF, product_BNF, bias_F)


def _backward_layer(kept, cotangents):
    exact, kernel_DF, product_BNF, bias_F = kept
    d_hidden, d_bias = gelu.slope(product_BNF, cotangents.exact, bias_F)
    d_exact, d_kernel = _product_gradients(exact, kernel_DF, 1, d_hidden)
    return Rounded(d_exact, None), d_kernel, d_bias


float8_gelu_layer.defvjp(_forward_layer, _backward_layer)


def _hidden_product(x: Rounded, kernel_DF) -> jax.Array:
    product_BNF = scaled_product(x.short, kernel_DF, 1, x.exact.dtype)
    return nn.with_logical_constraint(product_BNF, gelu.HIDDEN)


@rowwise.kernel("interpret")
def short_kernel(product_BNF: jax.Array, bias_F: jax.Array, interpret: bool = False) -> jax.Array:
    """`GELU(product + bias)` as E4M3 in one pass over memory."""
    body = lambda product, bias: ([_short(product, bias, interpret)], [], [])
    matrices = [product_BNF.reshape(-1, len(bias_F))]
    options = {"vectors": [bias_F], "interpret": interpret, "name": "gelu_float8"}
    return rowwise.one_pass(body, matrices, [E4M3], _TILE, **options)[0].reshape(product_BNF.shape)


def _short(product, bias, interpret=True):
    """interpret: False in a kernel for a GPU."""
    x = product.astype(jnp.float32) + bias.astype(jnp.float32)
    return jnp.minimum(x * gelu.normal_cdf(x, gelu.EIGHT_BIT, interpret), LARGEST).astype(E4M3)

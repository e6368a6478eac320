"""Matrix products of float8 inputs, for forward passes that need no gradient (arXiv 2209.05433)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vjepa_jax.ops import instructions, rowwise
from vjepa_jax.ops.gelu import EIGHT_BIT, HIDDEN, normal_cdf
from vjepa_jax.ops.shards import on_shards

E4M3 = jnp.float8_e4m3fn
LARGEST = 448.0  # of E4M3; its relative precision is 1/16, down to 1/64
_TILE = rowwise.Tile(16, 256)  # the fastest of 17 on an H200


def float8_dot_general(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    *,
    is_rounded: bool = False,
    **options: Any,
) -> jax.Array:
    """`jax.lax.dot_general` of both arrays rounded to E4M3, with sums in float32; result in x's dtype.

    For forward passes alone. The kernel is scaled so that its largest value becomes that of E4M3. x is not scaled and
    cut off at +-448: it is the output of a LayerNorm or of a GELU, which is of order 1.

    On an H100 or later XLA makes one float8 product of this; elsewhere it is a product of rounded values.

    Args:
      is_rounded: x holds values of E4M3.
    """
    del precision, options
    product, scale = _product(x, kernel, dimension_numbers, is_rounded)
    return product * scale.astype(x.dtype)


def float8_gelu_dot(x_BND: jax.Array, kernel_DF: jax.Array, bias_F: jax.Array) -> jax.Array:
    """GELU(x @ kernel + bias) as E4M3, [B, N, F]; the product as in `float8_dot_general`, the GELU off by less
    than 1.9e-4, a tenth of the smallest step of E4M3.

    On NVIDIA the GELU is a Pallas kernel (Triton): 49152 x 4096 takes it .19 ms on an H200; XLA took .46 ms on an H100.
    """
    product_BNF, scale = _product(x_BND, kernel_DF, (((2,), (0,)), ((), ())))
    product_BNF = nn.with_logical_constraint(product_BNF, HIDDEN)
    if not rowwise.usable(product_BNF):
        return _gelu(product_BNF, scale, bias_F)
    return on_shards(gelu_kernel, _gelu, (product_BNF, scale, bias_F), _specs)


def _specs() -> tuple[PartitionSpec, ...]:
    """Places of product, scale and bias."""
    hidden = nn.logical_to_mesh_axes(HIDDEN)
    return hidden, PartitionSpec(), PartitionSpec(hidden[2])


@rowwise.kernel("interpret")
def gelu_kernel(product_BNF: jax.Array, scale: jax.Array, bias_F: jax.Array, interpret: bool = False) -> jax.Array:
    """`GELU(product * scale + bias)` as E4M3 in one pass over memory."""
    body = lambda product, scale, bias: ([_gelu(product, scale, bias, interpret)], [], [])
    matrices, vectors = [product_BNF.reshape(-1, len(bias_F))], [jnp.broadcast_to(scale, bias_F.shape), bias_F]
    options = {"vectors": vectors, "interpret": interpret, "name": "gelu_float8"}
    return rowwise.one_pass(body, matrices, [E4M3], _TILE, **options)[0].reshape(product_BNF.shape)


def _product(x, kernel, dimension_numbers, is_rounded=False) -> tuple[jax.Array, jax.Array]:
    """The product of rounded values in x's dtype, and the float32 number that it is to be multiplied by."""
    (contract, kernel_contract), (batch, kernel_batch) = dimension_numbers
    if batch or kernel_batch:
        raise ValueError("float8_dot_general takes one kernel for the whole batch")
    # hardware wants the contracted axis of both arrays last
    kept = [axis for axis in range(kernel.ndim) if axis not in kernel_contract]
    kernel = kernel.transpose(*kept, *kernel_contract).astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(kernel).max() / LARGEST, jnp.finfo(jnp.float32).tiny)
    rounded = x.astype(E4M3) if is_rounded else _cut(x)
    numbers = ((contract, tuple(range(len(kept), kernel.ndim))), ((), ()))
    return jax.lax.dot_general(rounded, _cut(kernel / scale), numbers, preferred_element_type=x.dtype), scale


def _cut(values: jax.Array) -> jax.Array:
    return jnp.clip(values.astype(jnp.float32), -LARGEST, LARGEST).astype(E4M3)


def _gelu(product, scale, bias, interpret=True):
    """interpret: False in a kernel for a GPU."""
    x = instructions.multiply_add(product.astype(jnp.float32), scale, bias.astype(jnp.float32), interpret)
    return jnp.minimum(x * normal_cdf(x, EIGHT_BIT, interpret), LARGEST).astype(E4M3)

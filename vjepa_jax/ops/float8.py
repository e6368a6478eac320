"""Matrix products of float8 inputs, for forward passes that need no gradient (arXiv 2209.05433)."""

from typing import Any

import jax
import jax.numpy as jnp

E4M3 = jnp.float8_e4m3fn
LARGEST = 448.0  # of E4M3; its relative precision is 1/16, down to 1/64


def float8_dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None, **options: Any
) -> jax.Array:
    """`jax.lax.dot_general` of both arrays rounded to E4M3, with sums in float32; result in x's dtype.

    For forward passes alone. The kernel is scaled so that its largest value becomes that of E4M3. x is not scaled and
    cut off at +-448: it is the output of a LayerNorm or of a GELU, which is of order 1.

    On an H100 or later XLA makes one float8 product of this; elsewhere it is a product of rounded values.
    """
    del precision, options
    (contract, kernel_contract), (batch, kernel_batch) = dimension_numbers
    if batch or kernel_batch:
        raise ValueError("float8_dot_general takes one kernel for the whole batch")
    # hardware wants the contracted axis of both arrays last
    kept = [axis for axis in range(kernel.ndim) if axis not in kernel_contract]
    kernel = kernel.transpose(*kept, *kernel_contract).astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(kernel).max() / LARGEST, jnp.finfo(jnp.float32).tiny)
    cut = lambda values: jnp.clip(values.astype(jnp.float32), -LARGEST, LARGEST).astype(E4M3)
    numbers = ((contract, tuple(range(len(kept), kernel.ndim))), ((), ()))
    product = jax.lax.dot_general(cut(x), cut(kernel / scale), numbers, preferred_element_type=x.dtype)
    return product * scale.astype(x.dtype)

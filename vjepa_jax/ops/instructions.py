"""Instructions of NVIDIA GPUs for Pallas kernels (Triton) where XLA makes several of what jnp says: it lets no product
and sum become one instruction there, and keeps exponentials below 2**-126 by four more around each.

Counted on an H200: the GELU to float8 had 39 instructions for each number, 14 of them for this (and 5 for a longer
polynomial); attention with heads of 32 had 344 for each 64 x 64 scores and warp, 100 of them for small exponentials.
"""

from typing import Any

import jax
import jax.numpy as jnp


def exp2(x: jax.Array, interpret: bool = False) -> jax.Array:
    """2 ** x of float32; results below 2**-126 are 0. interpret: without a GPU."""
    return jnp.exp2(x) if interpret else _inline("ex2.approx.ftz.f32 $0, $1;", x)


def multiply_add(a: Any, b: Any, c: Any, interpret: bool = False) -> jax.Array:
    """a * b + c of float32 arrays or numbers, rounded once. interpret: without a GPU, rounded twice."""
    if interpret:
        return a * b + c
    shape = jnp.broadcast_shapes(*map(jnp.shape, (a, b, c)))
    return _inline("fma.rn.f32 $0, $1, $2, $3;", *(jnp.broadcast_to(jnp.float32(x), shape) for x in (a, b, c)))


def _inline(assembly: str, *arrays: jax.Array) -> jax.Array:
    from jax.experimental.pallas import triton  # only where it is used: experimental, and slow to import

    like = jax.ShapeDtypeStruct(arrays[0].shape, jnp.float32)
    constraints = ",".join(["=f"] + ["f"] * len(arrays))
    options = {"constraints": constraints, "pack": 1, "result_shape_dtypes": [like]}
    return triton.elementwise_inline_asm(assembly, args=arrays, **options)[0]

"""E4M3 (arXiv 2209.05433): numbers of 8 bits up to 448, precise to 1/16 down to 1/64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

E4M3 = jnp.float8_e4m3fn
LARGEST = 448.0


class Rounded(NamedTuple):
    """Values of a model's dtype, and the same as E4M3. Products of forward passes take `short`, gradients `exact`."""

    exact: jax.Array
    short: jax.Array


def cut(values: jax.Array) -> jax.Array:
    """Rounded to E4M3; what is beyond its largest value becomes that."""
    return jnp.clip(values.astype(jnp.float32), -LARGEST, LARGEST).astype(E4M3)


def rounded(values: jax.Array) -> Rounded:
    """Gradients pass through `exact`."""
    return Rounded(values, cut(jax.lax.stop_gradient(values)))

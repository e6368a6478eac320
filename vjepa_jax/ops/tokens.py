"""Gathering tokens by id.

Shape suffixes: B batch, N tokens, K kept tokens, D channels.
"""

import jax
import jax.numpy as jnp


def gather_tokens(x_BND: jax.Array, ids_BK: jax.Array) -> jax.Array:
    """The tokens `ids_BK` of each row, [B, K, D]."""
    return jnp.take_along_axis(x_BND, ids_BK[:, :, None], axis=1)


def all_ids(batch: int, num_tokens: int) -> jax.Array:
    """Ids of every token for each row, int32 [B, N]."""
    return jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), (batch, num_tokens))

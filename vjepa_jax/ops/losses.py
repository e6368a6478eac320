"""Losses on latents.

Shape suffixes: B batch, K target tokens, D channels.
"""

import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """LayerNorm over the last axis without parameters, in float32. eps: PyTorch's default, as released."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


def latent_regression(
    prediction_BKD: jax.Array,
    target_BKD: jax.Array,
    valid_BK: jax.Array | None = None,
    exponent: float = 1.0,
    weight_BK: jax.Array | None = None,
) -> jax.Array:
    """mean of weight |prediction - target|^exponent / exponent over valid tokens and channels; float32 scalar.

    exponent 1 is the L1 loss of V-JEPA 2 (arXiv 2506.09985, eq. 1; vjepa2 app/vjepa/train.py). The mean is over the
    tokens, not over their weights (app/vjepa_2_1/train.py).
    """
    error = jnp.abs(prediction_BKD.astype(jnp.float32) - target_BKD.astype(jnp.float32))
    if exponent != 1.0:
        error = error**exponent / exponent
    error_BK = error.mean(-1)
    if weight_BK is not None:
        error_BK = error_BK * weight_BK
    if valid_BK is None:
        return error_BK.mean()
    return jnp.where(valid_BK, error_BK, 0.0).sum() / jnp.maximum(valid_BK.sum(), 1)

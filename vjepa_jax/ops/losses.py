"""Losses on latents, and of labels where most are absent.

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
    smooth_l1: bool = False,
) -> jax.Array:
    """mean of weight |prediction - target|^exponent / exponent over valid tokens and channels; float32 scalar.

    exponent 1 is the L1 loss of V-JEPA 2 (arXiv 2506.09985, eq. 1; vjepa2 app/vjepa/train.py). The mean is over the
    tokens, not over their weights (app/vjepa_2_1/train.py).

    smooth_l1: e^2 / 2 where the error e is below 1, e - 1/2 elsewhere, in place of the power (I-JEPA).
    """
    error = jnp.abs(prediction_BKD.astype(jnp.float32) - target_BKD.astype(jnp.float32))
    if smooth_l1:
        error = jnp.where(error < 1.0, 0.5 * error**2, error - 0.5)
    elif exponent != 1.0:
        error = error**exponent / exponent
    error_BK = error.mean(-1)
    if weight_BK is not None:
        error_BK = error_BK * weight_BK
    if valid_BK is None:
        return error_BK.mean()
    return jnp.where(valid_BK, error_BK, 0.0).sum() / jnp.maximum(valid_BK.sum(), 1)


def focal(logits: jax.Array, truth: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Sigmoid focal loss (arXiv 1708.02002), elementwise: logits float, truth 0 or 1, of one shape."""
    p = jax.nn.sigmoid(logits)
    ce = -(truth * jax.nn.log_sigmoid(logits) + (1 - truth) * jax.nn.log_sigmoid(-logits))
    wrong = truth * (1 - p) + (1 - truth) * p
    return (truth * alpha + (1 - truth) * (1 - alpha)) * wrong**gamma * ce

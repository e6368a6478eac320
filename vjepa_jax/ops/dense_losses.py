"""Losses of dense prediction, of maps that are stretched to the size of their labels.

Shape suffixes: B items of a batch, each of N pictures; Y, X rows and columns of labels; C classes.
"""

import jax
import jax.numpy as jnp
import optax

_EPS = 1e-3  # of depth under the logarithm, as DINOv2 has it
_MEAN = 0.15  # weight of the squared mean


def pixel_cross_entropy(logits_BNYXC: jax.Array, labels_BNYX: jax.Array) -> jax.Array:
    """Cross-entropy summed over the pixels that count (labels from 0 on) and divided by the number of all pixels, as
    MMSegmentation averages; [B]."""
    counts = labels_BNYX >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_BNYXC, jnp.where(counts, labels_BNYX, 0))
    return jnp.where(counts, losses, 0.0).mean((1, 2, 3))


def scale_invariant_log(found_BNYX: jax.Array, depth_BNYX: jax.Array, high: float) -> jax.Array:
    """sqrt(var(g) + .15 mean(g)^2) over the valid pixels of all pictures of an item, g the difference of the
    logarithms; [B]. An item without a valid pixel: 0.

    This is what DINOv2 trains depth with (dinov2/eval/depth/models/losses/sigloss.py, after arXiv 2011.14141), without
    its first 100 steps of the second term alone. Its gradient loss is left out: there it slices the axes of pictures
    and channels, of 2 and 1, and adds nothing.

    Args:
      depth_BNYX: true depth; valid are depths above 0 and up to `high`.
    """
    valid = (depth_BNYX > 0) & (depth_BNYX <= high)
    count = valid.sum((1, 2, 3))
    g = jnp.where(valid, jnp.log(found_BNYX + _EPS) - jnp.log(jnp.where(valid, depth_BNYX, 1.0) + _EPS), 0.0)
    mean = g.sum((1, 2, 3)) / jnp.maximum(count, 1)
    centred = jnp.where(valid, g - mean[:, None, None, None], 0.0)
    variance = jnp.square(centred).sum((1, 2, 3)) / jnp.maximum(count - 1, 1)
    # The floor keeps the gradient of the root finite where everything is right.
    return jnp.where(count > 0, jnp.sqrt(jnp.maximum(variance + _MEAN * jnp.square(mean), 1e-12)), 0.0)

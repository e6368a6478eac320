"""Linear heads on the tokens of pictures: a class or a depth for every place (DINOv2's, arXiv 2304.07193), in Flax.

Shape suffixes: B items of a batch, each of N pictures; h, w rows and columns of tokens; D embedding; C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vjepa_jax.models.probe import Affine

_KERNEL = nn.initializers.normal(0.01)  # as MMSegmentation's last layers
_FLOOR = 0.1  # what every bin of depth gets beside its logit


class LinearMap(nn.Module):
    """Logits of `channels` classes: one linear layer, after the scale and bias of a normalisation where `affine`."""

    channels: int
    affine: bool

    @nn.compact
    def __call__(self, x_BNhwD: jax.Array) -> jax.Array:
        """[B, N, h, w, D] to [B, N, h, w, C], float32."""
        return _linear(x_BNhwD, self.channels, self.affine)


class DepthMap(nn.Module):
    """Depth as a mean over bins, uniform from `low` to `high`, weighted by ReLU(logit) + .1 (AdaBins' linear
    normalisation, arXiv 2011.14141, with fixed bins).

    Logits are stretched bilinearly by `upsample` before the weights: DINOv2 stretches features, and a linear layer does
    not tell the difference.
    """

    bins: int
    low: float
    high: float
    upsample: int
    affine: bool

    @nn.compact
    def __call__(self, x_BNhwD: jax.Array) -> jax.Array:
        """[B, N, h, w, D] to depth [B, N, upsample * h, upsample * w, 1], float32."""
        logits = stretched(_linear(x_BNhwD, self.bins, self.affine), [self.upsample * n for n in x_BNhwD.shape[2:4]])
        weights = nn.relu(logits) + _FLOOR
        centres = jnp.linspace(self.low, self.high, self.bins)
        return (weights @ centres / weights.sum(-1))[..., None]


def stretched(maps: jax.Array, size: tuple[int, int] | list[int]) -> jax.Array:
    """[B, N, h, w, C] at another size [B, N, *size, C], bilinear between the centres of pixels."""
    shape = (*maps.shape[:2], *size, maps.shape[-1])
    return jax.image.resize(maps, shape, "bilinear", antialias=False)


def _linear(x_BNhwD: jax.Array, channels: int, affine: bool) -> jax.Array:
    """Called inside a module's `__call__`, which owns the parameters."""
    dim = x_BNhwD.shape[-1]
    if affine:
        scale_D, bias_D = Affine(name="norm")(dim)
        x_BNhwD = x_BNhwD * scale_D + bias_D
    return nn.Dense(channels, kernel_init=_KERNEL, name="linear")(x_BNhwD)

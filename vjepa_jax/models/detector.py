"""A detector of actions in a sequence of features: a pyramid over time, and at each of its points the classes and the
distances to the start and the end of the action (after ActionFormer, arXiv 2202.07925).

Points of level l stand at every 2^l-th step. What differs from ActionFormer: queries, keys and values share one
depth-wise convolution, and no path is dropped.

Shape suffixes: B batch, S steps, D channels, H heads, K head size, N blocks of W steps, C classes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PRIOR = 0.01  # of a class at a point, which its bias starts at
_no_bias = nn.initializers.constant(float(-np.log((1 - PRIOR) / PRIOR)))


class LocalAttention(nn.Module):
    """Every step attends to those at most `reach` away from it."""

    num_heads: int
    reach: int

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array) -> jax.Array:
        steps, dim = x_BSD.shape[1:]
        size = min(self.reach, steps)  # of a block: a step looks into its own and the two beside it
        pad = -steps % size
        heads = lambda name: nn.DenseGeneral((self.num_heads, dim // self.num_heads), name=name)(x_BSD)
        q, k, v = (_blocks(heads(name), size, pad) for name in ("query", "key", "value"))
        seen_BNW = _blocks(mask_BS, size, pad)
        k, v, seen = (_with_neighbours(a) for a in (k, v, seen_BNW))
        offset = np.arange(-size, 2 * size)[None] - np.arange(size)[:, None]
        allowed = (abs(offset) <= self.reach)[None, None, None] & seen[:, :, None, None, :]
        logits = jnp.einsum("bnwhk,bnvhk->bnhwv", q, k) * (dim // self.num_heads) ** -0.5
        # a large number and not infinity: a step of padding may see nothing
        weights = jax.nn.softmax(jnp.where(allowed, logits, -1e9), axis=-1)
        y = jnp.einsum("bnhwv,bnvhk->bnwhk", weights, v).reshape(x_BSD.shape[0], steps + pad, dim)[:, :steps]
        return nn.Dense(dim, name="out")(y)


def _blocks(x: jax.Array, size: int, pad: int) -> jax.Array:
    """[B, S, ...] to [B, N, W, ...], filled up with zeros."""
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, size, *x.shape[2:])


def _with_neighbours(x: jax.Array) -> jax.Array:
    """[B, N, W, ...] to [B, N, 3 W, ...]: each block between the ones before and after it."""
    edges = jnp.pad(x, [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2))
    return jnp.concatenate([edges[:, :-2], x, edges[:, 2:]], axis=2)


class Conv(nn.Module):
    """A convolution over three steps, as one matrix product: XLA's own is ten times slower on a CPU."""

    dim: int
    use_bias: bool = True
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        x_BSX = jnp.concatenate(_three(x_BSD), axis=-1)
        return nn.Dense(self.dim, use_bias=self.use_bias, bias_init=self.bias_init, name="kernel")(x_BSX)


def _three(x_BSD: jax.Array, stride: int = 1, fill: float = 0.0) -> list[jax.Array]:
    """The step before, the step and the step after each `stride`-th one, so that point i stands at step stride * i."""
    x_BSD = jnp.pad(x_BSD, [(0, 0), (1, 1), (0, 0)], constant_values=fill)
    return [x_BSD[:, k : k + x_BSD.shape[1] - 2 : stride] for k in range(3)]


class Block(nn.Module):
    """Pre-norm local attention and MLP; with `stride` 2 it halves the sequence."""

    num_heads: int
    reach: int
    stride: int = 1

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
        dim = x_BSD.shape[-1]
        hidden = _masked(nn.LayerNorm(name="norm1")(x_BSD), mask_BS)
        depthwise = self.param("depthwise", nn.initializers.lecun_normal(in_axis=0, out_axis=()), (3, dim))
        hidden = sum(w_D * part for w_D, part in zip(depthwise, _three(hidden, self.stride), strict=True))
        if self.stride > 1:
            x_BSD = functools.reduce(jnp.maximum, _three(jnp.where(mask_BS[..., None], x_BSD, -1e9), self.stride, -1e9))
            mask_BS = mask_BS[:, :: self.stride]
            x_BSD = _masked(x_BSD, mask_BS)
        x_BSD = x_BSD + LocalAttention(self.num_heads, self.reach, name="attention")(hidden, mask_BS)
        hidden = nn.Dense(4 * dim, name="fc1")(nn.LayerNorm(name="norm2")(x_BSD))
        x_BSD = x_BSD + nn.Dense(dim, name="fc2")(nn.gelu(hidden))
        return _masked(x_BSD, mask_BS), mask_BS


class Detector(nn.Module):
    """Classes and distances at the points of a pyramid.

    levels: of the pyramid, the first at every step; stem: blocks before it; reach: of attention, in points of a level.

    __call__(x_BSD, mask_BS), S divisible by 2^(levels - 1), returns for all points P of all levels, finest first:
      logits float32 [B, P, C]; distances float32 [B, P, 2] to the start and the end, in steps, not negative;
      mask bool [B, P], False at points that stand on padding.
    """

    num_classes: int
    dim: int = 512
    num_heads: int = 4
    levels: int = 6
    stem: int = 2
    reach: int = 9

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        for i in range(2):
            x_BSD = nn.Conv(self.dim, (3,), padding=[(1, 1)], use_bias=False, name=f"embed{i}")(_masked(x_BSD, mask_BS))
            x_BSD = nn.relu(nn.LayerNorm(name=f"embed_norm{i}")(x_BSD))
        x_BSD = _masked(x_BSD, mask_BS)
        for i in range(self.stem):
            x_BSD, mask_BS = Block(self.num_heads, self.reach, name=f"stem{i}")(x_BSD, mask_BS)
        pyramid = [(x_BSD, mask_BS)]
        for i in range(1, self.levels):
            pyramid.append(Block(self.num_heads, self.reach, 2, name=f"level{i}")(*pyramid[-1]))
        # one sequence of all levels, an empty step between them that convolutions see as the end of each
        gaps = [(0, 0), (0, 1), (0, 0)]
        joined = [
            jnp.pad(_masked(nn.LayerNorm(name=f"pyramid_norm{i}")(x), mask), gaps)
            for i, (x, mask) in enumerate(pyramid)
        ]
        sizes = [x.shape[1] for x, _ in pyramid]
        mask_BP = jnp.concatenate([jnp.pad(mask, gaps[:2]) for _, mask in pyramid], axis=1)
        x_BPD = jnp.concatenate(joined, axis=1)
        real = np.concatenate([np.arange(n) + sum(sizes[:i]) + i for i, n in enumerate(sizes)])
        logits_BPC = Tower(self.dim, self.num_classes, _no_bias, name="classify")(x_BPD, mask_BP)[:, real]
        raw_BP2 = Tower(self.dim, 2, name="regress")(x_BPD, mask_BP)[:, real]
        level = np.repeat(np.arange(self.levels), sizes)
        scale_P = self.param("scales", nn.initializers.ones, (self.levels,))[level]
        # softplus and not relu: a distance that has become 0 would learn no more
        distances_BP2 = nn.softplus(scale_P[:, None] * raw_BP2) * (2.0**level)[:, None]
        return logits_BPC, distances_BP2, mask_BP[:, real]


class Tower(nn.Module):
    """Two convolutions and an output, shared by all levels."""

    dim: int
    outputs: int
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array) -> jax.Array:
        for i in range(2):
            x_BSD = Conv(self.dim, use_bias=False, name=f"conv{i}")(x_BSD)
            x_BSD = _masked(nn.relu(nn.LayerNorm(name=f"norm{i}")(x_BSD)), mask_BS)
        return Conv(self.outputs, bias_init=self.bias_init, name="output")(x_BSD)


def _masked(x_BSD: jax.Array, mask_BS: jax.Array) -> jax.Array:
    return x_BSD * mask_BS[..., None]


def points(steps: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the points of all levels stand (in steps) and their level, float32 and int [P], in the detector's order."""
    at = [np.arange(0, steps, 2**level) for level in range(levels)]
    return np.concatenate(at).astype(np.float32), np.repeat(np.arange(levels), [len(part) for part in at])

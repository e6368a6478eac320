"""Optional terms beside the prediction loss, all off by default: smoothness of predictions, and what prevents collapse.

Shape suffixes: B batch, M target tokens, N tokens of the whole grid, C context tokens, D channels, X tokens of all
clips, S random directions.

Smoothness alone is best served by constant features; `config_checks` asks for something that prevents these. The
anti-collapse terms see every token of the batch as a sample: the global batch under jit, whatever the mesh, and one
micro-batch under gradient accumulation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjepa_jax.ops.rope import Grid, token_positions
from vjepa_jax.ops.tokens import gather_tokens

LossConfig = Any  # config.LossConfig, which lies on the same level

TIME, HEIGHT, WIDTH = range(3)


def terms(
    loss: LossConfig,
    rng: jax.Array,
    grid: Grid,
    *,
    prediction_BMD: jax.Array,
    target_ids_BM: jax.Array,
    target_valid_BM: jax.Array | None = None,
    context_BCD: jax.Array,
    context_valid_BC: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The terms of one mask group whose coefficient is not 0, each before its coefficient; the others cost nothing.

    Args:
      loss: coefficients by the names of the terms.
      rng: key for the directions of SIGReg; a new one each step, the same on every host.
      grid: tokens along time, height and width of the whole clip.
      prediction_BMD, target_ids_BM: predicted features and their int32 token ids, for the two smoothness terms.
      context_BCD: features of the context encoder, for the three anti-collapse terms.
      target_valid_BM, context_valid_BC: bool, False for padding; None if there is none.

    Returns:
      {"spatial_coherence" | "temporal_smoothness" | "variance" | "covariance" | "sigreg": float32 scalar}. To the loss
      goes `weighted_sum`.
    """
    where = (prediction_BMD, target_ids_BM, grid, target_valid_BM)
    known = {
        "spatial_coherence": lambda: spatial_coherence(*where),
        "temporal_smoothness": lambda: temporal_smoothness(*where),
        "variance": lambda: variance(context_BCD, context_valid_BC),
        "covariance": lambda: covariance(context_BCD, context_valid_BC),
        "sigreg": lambda: sigreg(context_BCD, rng, context_valid_BC),
    }
    return {name: term() for name, term in known.items() if getattr(loss, name)}


def weighted_sum(loss: LossConfig, values: dict[str, jax.Array]) -> jax.Array:
    """Sum of coefficient times value over the terms that `terms` returned; float32 scalar, 0 if there are none."""
    return sum((getattr(loss, name) * value for name, value in values.items()), jnp.float32(0.0))


def spatial_coherence(x_BMD: jax.Array, ids_BM: jax.Array, grid: Grid, valid_BM: jax.Array | None = None) -> jax.Array:
    """mean of (x_i - x_j)^2 over channels and pairs i, j of present tokens side by side at one time step.

    Each pair of the 4-neighbourhood (right, below) counts once; float32 scalar, 0 where there is no pair. It is
    `temporal_smoothness` along height and width; no published recipe has it, so no coefficient is known: watch RankMe.
    """
    return _neighbour_difference(x_BMD, ids_BM, grid, valid_BM, (HEIGHT, WIDTH))


def temporal_smoothness(
    x_BMD: jax.Array, ids_BM: jax.Array, grid: Grid, valid_BM: jax.Array | None = None
) -> jax.Array:
    """mean of (x_t+1 - x_t)^2 over channels and pairs of present tokens at one place in successive tubelets.

    The time-similarity term of PLDM (arXiv 2502.14819) and eb_jepa, where it always stands beside variance and
    covariance terms and is tuned for each environment; no coefficient is published for natural video. float32 scalar,
    0 where there is no pair.
    """
    return _neighbour_difference(x_BMD, ids_BM, grid, valid_BM, (TIME,))


def variance(x_BCD: jax.Array, valid_BC: jax.Array | None = None, gamma: float = 1.0, eps: float = 1e-4) -> jax.Array:
    """(1/D) sum_d max(0, gamma - sqrt(Var_d + eps)), Var unbiased over tokens (VICReg, arXiv 2105.04906, eq. 1).

    Usual coefficient 1 of the prediction loss (25 beside 25 in the paper). float32 scalar.
    """
    x_XD, count = _centered(x_BCD, valid_BC)
    std_D = jnp.sqrt(jnp.square(x_XD).sum(0) / jnp.maximum(count - 1.0, 1.0) + eps)
    return jnp.maximum(gamma - std_D, 0.0).mean()


def covariance(x_BCD: jax.Array, valid_BC: jax.Array | None = None) -> jax.Array:
    """(1/D) sum_{i != j} C_ij^2, C the unbiased covariance over tokens (VICReg, arXiv 2105.04906, eq. 3 and 4).

    Usual coefficient .04 of the prediction loss (1 beside 25 in the paper). Constant features have none: alone it does
    not prevent collapse. float32 scalar.
    """
    x_XD, count = _centered(x_BCD, valid_BC)
    covariance_DD = jnp.einsum("XD,XE->DE", x_XD, x_XD) / jnp.maximum(count - 1.0, 1.0)
    channels = x_XD.shape[-1]
    return jnp.square(covariance_DD * (1.0 - jnp.eye(channels))).sum() / channels


def sigreg(
    x_BCD: jax.Array,
    rng: jax.Array,
    valid_BC: jax.Array | None = None,
    num_directions: int = 1024,
    num_knots: int = 17,
    t_max: float = 3.0,
) -> jax.Array:
    """Epps-Pulley distance of the tokens to N(0, I), mean over random unit directions (LeJEPA, arXiv 2511.08544).

    For one direction with projections p of X tokens and phi(t) = exp(-t^2 / 2):
    X * integral of |mean exp(i t p) - phi(t)|^2 phi(t) dt over [-t_max, t_max], by the trapezoid rule on `num_knots`
    points of its even half (lejepa/univariate/epps_pulley.py). About 1.06 for normal tokens and .4 X for constant ones.

    Published coefficients are .02 to .05 for X some hundred clips; the value grows with X, so with thousands of tokens
    they shrink in proportion. float32 scalar; memory is X * num_directions, not that times the knots.
    """
    channels = x_BCD.shape[-1]
    directions_DS = jax.random.normal(rng, (channels, num_directions), jnp.float32)
    directions_DS /= jnp.linalg.norm(directions_DS, axis=0)
    p_XS = x_BCD.reshape(-1, channels).astype(jnp.float32) @ directions_DS
    weight_X = _weights(x_BCD, valid_BC)
    count = weight_X.sum()
    # sums and not products with a vector, which accelerators round to fewer bits than the distance of many tokens has
    mean = lambda values_XS: (weight_X[:, None] * values_XS).sum(0) / jnp.maximum(count, 1.0)

    @jax.checkpoint  # else the backward pass keeps a sine and a cosine of every knot
    def distance(t: jax.Array) -> jax.Array:
        real_S, imaginary_S = mean(jnp.cos(t * p_XS)), mean(jnp.sin(t * p_XS))
        return (jnp.square(real_S - jnp.exp(-0.5 * t**2)) + jnp.square(imaginary_S)).mean()

    knots = np.linspace(0.0, t_max, num_knots)
    step = np.full(num_knots, 2.0 * t_max / (num_knots - 1))
    step[[0, -1]] /= 2.0
    quadrature = jnp.asarray(step * np.exp(-0.5 * knots**2), jnp.float32)
    return count * (jax.lax.map(distance, jnp.asarray(knots, jnp.float32)) @ quadrature)


def _neighbour_difference(x_BMD, ids_BM, grid, valid_BM, axes) -> jax.Array:
    """Mean squared difference to the next token along `axes`, over the pairs of which both tokens are present."""
    x_BMD = x_BMD.astype(jnp.float32)
    valid_BM = jnp.ones(ids_BM.shape, bool) if valid_BM is None else valid_BM
    absent, outside = ids_BM.shape[1], grid[0] * grid[1] * grid[2]

    def places(ids_M, valid_M):
        place_N = jnp.full(outside, absent, jnp.int32)
        return place_N.at[jnp.where(valid_M, ids_M, outside)].set(jnp.arange(absent, dtype=jnp.int32), mode="drop")

    place_BN = jax.vmap(places)(ids_BM, valid_BM)  # where in its row a token of the grid is given
    total, pairs = jnp.float32(0.0), jnp.float32(0.0)
    for axis in axes:
        is_last_BM = token_positions(ids_BM, grid)[axis] + 1 == grid[axis]
        next_BM = jnp.where(is_last_BM, 0, ids_BM + int(np.prod(grid[axis + 1 :])))
        near_BM = jnp.take_along_axis(place_BN, next_BM, axis=1)
        paired_BM = valid_BM & ~is_last_BM & (near_BM < absent)
        gap_BM = jnp.square(x_BMD - gather_tokens(x_BMD, jnp.minimum(near_BM, absent - 1))).mean(-1)
        total += jnp.where(paired_BM, gap_BM, 0.0).sum()
        pairs += paired_BM.sum()
    return total / jnp.maximum(pairs, 1.0)


def _weights(x_BCD, valid_BC) -> jax.Array:
    """1 for a token, 0 for padding, float32 [X]."""
    ones_X = jnp.ones(x_BCD.shape[0] * x_BCD.shape[1], jnp.float32)
    return ones_X if valid_BC is None else valid_BC.reshape(-1).astype(jnp.float32)


def _centered(x_BCD, valid_BC) -> tuple[jax.Array, jax.Array]:
    """The tokens less their mean, padding set to 0, float32 [X, D]; and how many they are."""
    weight_X = _weights(x_BCD, valid_BC)
    x_XD = x_BCD.reshape(-1, x_BCD.shape[-1]).astype(jnp.float32)
    count = weight_X.sum()
    mean_D = (weight_X[:, None] * x_XD).sum(0) / jnp.maximum(count, 1.0)
    return (x_XD - mean_D) * weight_X[:, None], count

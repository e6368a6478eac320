"""Is the representation alive? Measured on a few clips every `log.health_every_steps` steps.

Shape suffixes: B batch, N tokens, D channels, C context tokens, M target tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vjepa_jax.config import RunConfig
from vjepa_jax.ops.losses import layer_norm
from vjepa_jax.ops.rope import Grid, token_positions
from vjepa_jax.ops.tokens import gather_tokens
from vjepa_jax.training.alarms import RANKME_ALARM, STD_ALARM

CLIPS = 16  # enough tokens for the spectrum (at least 1024 at any usual size), few enough to cost nothing


def rankme(features_XD: jax.Array) -> jax.Array:
    """Effective rank exp(-sum p log p) of the singular values, p = s / sum(s) + 1e-5 (RankMe, arXiv 2210.02885).

    The singular values are the roots of the eigenvalues of the D x D Gram matrix, which is cheap for many tokens.
    """
    x = features_XD.astype(jnp.float32)
    singular = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(x.T @ x), 0.0))
    p = singular / jnp.maximum(singular.sum(), 1e-12) + 1e-5
    return jnp.exp(-jnp.sum(p * jnp.log(p)))


def pair_cosine(features_XD: jax.Array) -> jax.Array:
    """Mean cosine over all pairs of different tokens, in closed form: 1 when every token has the same direction."""
    x = features_XD.astype(jnp.float32)
    unit = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    n = x.shape[0]
    return (jnp.square(unit.sum(0)).sum() - n) / (n * (n - 1))


def nearest_context(context_BC: jax.Array, target_BM: jax.Array, grid: Grid, valid_BC=None) -> jax.Array:
    """For each target token, the position in `context_BC` of the visible token nearest on the grid. int32 [B, M].

    Ties go to the lowest id, that is to the past. With a future-only mask this is the last visible token at the place.
    """
    positions = lambda ids: jnp.stack(token_positions(ids, grid), -1).astype(jnp.float32)
    valid_BC = jnp.ones(context_BC.shape, bool) if valid_BC is None else valid_BC

    def nearest(clip):  # one clip at a time: at 64 frames of 384 px the distances of one are 240 MB
        context_C, target_M, valid_C = clip
        distance_MC = jnp.square(positions(target_M)[:, None] - positions(context_C)).sum(-1)
        return jnp.where(valid_C, distance_MC, jnp.inf).argmin(-1).astype(jnp.int32)

    return jax.lax.map(nearest, (context_BC, target_BM, valid_BC))


def make_health(objective: Any, run: RunConfig):
    """A pure function (state, batch) -> float32 scalars.

    rankme, rankme_max (the channels), feature_std (mean and min over channels, of normalised features across tokens),
    pair_cosine; and on the same clips health_loss beside baseline_copy (copy the target feature of the nearest visible
    token) and baseline_mean (predict the mean feature of all tokens): a model that understands something beats both.
    Of further streams nothing is looked at.
    """

    def health(state: Any, batch: Any) -> dict[str, jax.Array]:
        few = jax.tree.map(lambda x: x[:CLIPS], batch)
        outputs = objective.outputs(state["params"], state["aux"], few)
        features_XD = outputs.features.reshape(-1, outputs.features.shape[-1])
        normal_BND = layer_norm(outputs.features)
        std_D = normal_BND.reshape(features_XD.shape).std(0)
        mean_D = outputs.targets.mean((0, 1))
        losses, copies, means = [], [], []
        for g in outputs.groups:
            near_BM = nearest_context(g.context_ids, g.target_ids, run.grid, g.context_valid)
            copied = gather_tokens(outputs.targets, jnp.take_along_axis(g.context_ids, near_BM, axis=1))
            for total, guess in ((losses, g.prediction), (copies, copied), (means, mean_D)):
                total.append(objective.regression(guess, g.target, g.target_valid))
        average = lambda values: jnp.mean(jnp.stack(values))
        return {
            "rankme": rankme(features_XD - features_XD.mean(0)),
            "rankme_max": jnp.float32(features_XD.shape[-1]),
            "feature_std": std_D.mean(),
            "feature_std_min": std_D.min(),
            "pair_cosine": pair_cosine(normal_BND.reshape(features_XD.shape)),
            "health_loss": average(losses),
            "baseline_copy": average(copies),
            "baseline_mean": average(means),
        }

    return health


def warning(metrics: dict[str, float]) -> str | None:
    """One line if the features have collapsed (RankMe below 5 % of the channels, or std below .05), else None."""
    rank, channels, std = metrics["rankme"], metrics["rankme_max"], metrics["feature_std"]
    if rank < RANKME_ALARM * channels or std < STD_ALARM:
        return (
            f"the features are collapsing: RankMe {rank:.1f} of {channels:.0f}, feature std {std:.3f}. "
            "Lower optim.lr, raise ema.start, or check the masks"
        )
    return None

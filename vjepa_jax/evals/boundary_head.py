"""A boundary classifier on frozen features, after the pairwise boundary classifier of Kinetics-GEBD (arXiv 2101.10511):
for every time step it compares what comes before with what comes after, and says whether a boundary lies between.

Shape suffixes: S time steps of a video, M of all videos, D channels, X = 3 D inputs.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

HIDDEN, STEPS, BATCH = 128, 300, 256
LR, WEIGHT_DECAY = 1e-3, 1e-2
_adamw = optax.adamw(LR, weight_decay=WEIGHT_DECAY)


def inputs(steps_SD: np.ndarray, reach: int) -> np.ndarray:
    """Means of up to `reach` steps before and from each step on, and their absolute difference: float32 [S, 3 D]. The
    first step has no past and stands for it itself."""
    rows = []
    for t in range(len(steps_SD)):
        past, future = steps_SD[max(t - reach, 0) : max(t, 1)].mean(0), steps_SD[t : t + reach].mean(0)
        rows.append(np.concatenate([past, future, abs(future - past)]))
    return np.asarray(rows, np.float32)


def targets(raters: Sequence[Sequence[float]], duration: float, steps: int, seconds: float) -> np.ndarray:
    """Share of the raters who have a boundary within 5 % of the duration of the beginning of each step, float32 [S].

    seconds: of a step; where 5 % is less than half of it, that is taken.
    """
    reach = max(0.05 * duration, seconds / 2)
    at = np.arange(steps) * seconds
    near = [(abs(at[:, None] - np.asarray(rater, float)[None]) <= reach).any(1) for rater in raters]
    return np.mean(near, axis=0).astype(np.float32)


def train(
    videos: Sequence[np.ndarray], labels: Sequence[np.ndarray], reach: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A classifier, float [S] of the features of a video [S, D], trained on features and targets of all steps."""
    x_MX, y_M = np.concatenate([inputs(v, reach) for v in videos]), np.concatenate(labels)
    mean, std = x_MX.mean(0), x_MX.std(0)
    scale = np.where(std > 1e-6, 1.0 / np.maximum(std, 1e-6), 0.0).astype(np.float32)  # a constant channel says nothing
    rng = np.random.default_rng(seed)
    batches = rng.integers(0, len(x_MX), (STEPS, BATCH))
    params = _fit(((x_MX - mean) * scale)[batches], y_M[batches], seed)
    return lambda steps_SD: np.asarray(_probability(params, (inputs(steps_SD, reach) - mean) * scale), np.float64)


@functools.partial(jax.jit, static_argnums=2)
def _fit(x_TBX, y_TB, seed):
    dim = x_TBX.shape[-1]
    first, last = jax.random.split(jax.random.key(seed, impl="rbg"))
    params = {
        "w1": jax.random.normal(first, (dim, HIDDEN)) * (2 / dim) ** 0.5,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(last, (HIDDEN, 1)) * HIDDEN**-0.5,
        "b2": jnp.zeros(1),
    }

    def step(state, batch):
        params, optimizer = state
        loss = lambda p: optax.sigmoid_binary_cross_entropy(_logit(p, batch[0]), batch[1]).mean()
        updates, optimizer = _adamw.update(jax.grad(loss)(params), optimizer, params)
        return (optax.apply_updates(params, updates), optimizer), None

    return jax.lax.scan(step, (params, _adamw.init(params)), (x_TBX, y_TB))[0][0]


def _logit(params, x_BX):
    return (jax.nn.relu(x_BX @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"])[..., 0]


def _probability(params, x_SX):
    # videos differ in length: not compiled for each
    hidden = np.maximum(x_SX @ np.asarray(params["w1"]) + np.asarray(params["b1"]), 0.0)
    logit = (hidden @ np.asarray(params["w2"]) + np.asarray(params["b2"]))[:, 0]
    return 1.0 / (1.0 + np.exp(-logit))

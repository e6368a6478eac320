"""Attentive probe on frozen tokens: several (learning rate, weight decay) heads trained at once on the same batches.

Shape suffixes: B batch, N tokens, D embedding, C classes, G heads (settings of learning rate and weight decay).
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vjepa_jax.models.probe import AttentiveClassifier, init_classifier

# vjepa2 configs/eval: SSv2, K400, COIN (20 heads)
PUBLISHED_LRS = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
PUBLISHED_WEIGHT_DECAYS = (0.8, 0.4, 0.1, 0.01)

_adam = optax.scale_by_adam()


@dataclasses.dataclass(frozen=True)
class AttentiveConfig:
    """The probe and its training. The defaults are small; the published probe has depth 4, 16 heads and 20 settings."""

    lrs: tuple[float, ...] = (5e-3, 2e-3)
    weight_decays: tuple[float, ...] = (0.1,)
    steps: int = 200
    batch_size: int = 32
    depth: int = 1  # self-attention blocks + 1; 1 is cross-attention only
    num_heads: int = 4
    mlp_ratio: float = 1.0

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(learning rate, weight decay) of every head."""
        return list(itertools.product(self.lrs, self.weight_decays))


@dataclasses.dataclass(frozen=True)
class AttentiveProbe:
    """Heads trained on all rows (parameters stacked on a leading axis), and the one that the held-out rows chose."""

    config: AttentiveConfig
    model: AttentiveClassifier
    params: Any
    chosen: int

    def predict(self, x_MND: np.ndarray) -> np.ndarray:
        """Classes of every head, int64 [G, M]."""
        return _predict(self.model, self.params, x_MND, self.config.batch_size)


def train_attentive(
    x_MND: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    held_out: np.ndarray,
    num_classes: int,
    config: AttentiveConfig,
    seed: int,
) -> AttentiveProbe:
    """Train every head with AdamW: all parameters decayed, no warm-up, cosine to 0 (vjepa2 evals, frozen video probe).

    Every setting is trained twice on the same batches: once with the held-out rows weighing nothing, to choose by,
    once with all rows. Shapes do not depend on the number of labels, so nothing is compiled again for other subsets.

    Args:
      x_MND: tokens of all training videos, float32 or bfloat16; labels: int [M].
      rows: int [n], the labelled subset; held_out: bool [n], the part of it to choose by.
      seed: of the initial parameters (the same for all heads) and the order of batches.
    """
    model = AttentiveClassifier(num_classes, config.num_heads, config.depth, config.mlp_ratio)
    heads = len(config.grid)
    params, state = _start(model, seed, x_MND.shape[1:], 2 * heads)
    lrs, decays = np.tile(np.asarray(config.grid, np.float32), (2, 1)).T
    cosine = 0.5 * (1.0 + np.cos(np.pi * np.arange(config.steps) / config.steps)).astype(np.float32)

    for step, batch in enumerate(_batches(len(rows), config, seed)):
        weight_GB = np.ones((2 * heads, config.batch_size), np.float32)
        weight_GB[:heads] = ~held_out[batch]
        taken = rows[batch]
        params, state = _step(model, params, state, x_MND[taken], labels[taken], weight_GB, lrs * cosine[step], decays)

    choosing, final = jax.tree.map(lambda leaf: leaf[:heads], params), jax.tree.map(lambda leaf: leaf[heads:], params)
    right_GM = _predict(model, choosing, x_MND[rows[held_out]], config.batch_size) == labels[rows[held_out]]
    return AttentiveProbe(config, model, final, int(right_GM.sum(1).argmax()))


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _start(model, seed, shape_ND, copies):
    """The same fresh parameters and optimiser state for every head, stacked on a leading axis."""
    # This generator compiles in a fifth of the time of the default one.
    params = init_classifier(model, jax.random.key(seed, impl="rbg"), jnp.zeros((1, *shape_ND), jnp.float32))
    params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (copies, *leaf.shape)), params)
    return params, jax.vmap(_adam.init)(params)


def _batches(num_rows: int, config: AttentiveConfig, seed: int) -> np.ndarray:
    """Rows of every step, int [steps, batch]: epoch after epoch in fresh random order."""
    rng = np.random.default_rng(seed)
    wanted = config.steps * config.batch_size
    epochs = -(-wanted // num_rows)
    order = np.concatenate([rng.permutation(num_rows) for _ in range(epochs)])
    return order[:wanted].reshape(config.steps, config.batch_size)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(model, params, state, x_BND, labels_B, weight_GB, lr_G, decay_G):
    def one(params, state, weight_B, lr, decay):
        def loss(params):
            logits_BC = model.apply({"params": params}, x_BND)
            ce_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, labels_B)
            return (weight_B * ce_B).sum() / jnp.maximum(weight_B.sum(), 1.0)

        updates, state = _adam.update(jax.grad(loss)(params), state)
        return jax.tree.map(lambda p, u: p - lr * (u + decay * p), params, updates), state

    return jax.vmap(one)(params, state, weight_GB, lr_G, decay_G)


@functools.partial(jax.jit, static_argnums=0)
def _classes(model, params, x_BND):
    return jax.vmap(lambda p: model.apply({"params": p}, x_BND).argmax(-1))(params)


def _predict(model, params, x_MND, batch_size):
    """Classes of every head, int [G, M], in batches of one shape."""
    predictions = []
    for start in range(0, len(x_MND), batch_size):
        part = x_MND[start : start + batch_size]
        missing = batch_size - len(part)
        if missing:
            part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
        predictions.append(_classes(model, params, part)[:, : batch_size - missing])
    return np.concatenate([np.asarray(p) for p in predictions], axis=1)

"""Attentive probe on tokens that are kept: several (learning rate, weight decay) heads trained at once (heads.py).

Shape suffixes: M videos, N tokens, D embedding, G heads (settings of learning rate and weight decay), B batch.
"""

import dataclasses
import itertools

import numpy as np

from vjepa_jax.evals.heads import Heads, Setting
from vjepa_jax.models.probe import AttentiveClassifier

# vjepa2 configs/eval: SSv2, K400, COIN (20 heads)
PUBLISHED_LRS = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
PUBLISHED_WEIGHT_DECAYS = (0.8, 0.4, 0.1, 0.01)


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


class _Cosine(Setting):
    """The rate of the first step is the whole one."""

    def rates(self, step: int, steps: int) -> tuple[float, float]:
        return self.lr * 0.5 * (1.0 + float(np.cos(np.pi * step / steps))), self.weight_decay


@dataclasses.dataclass(frozen=True)
class AttentiveProbe:
    """Heads: those that did not see the held-out rows, then those that saw all; and the one that these rows chose."""

    config: AttentiveConfig
    heads: Heads
    chosen: int

    def predict(self, x_MND: np.ndarray) -> np.ndarray:
        """Classes of every head that saw all rows, int64 [G, M]."""
        return _predict(self.heads, x_MND, self.config.batch_size)[len(self.config.grid) :]


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
    count = len(config.grid)
    heads = Heads(model, [_Cosine(*pair) for pair in config.grid] * 2, config.steps, seed, at_once=0, micro=0)
    for batch in _batches(len(rows), config, seed):
        weight_GB = np.ones((2 * count, config.batch_size), np.float32)
        weight_GB[:count] = ~held_out[batch]
        heads.train(x_MND[rows[batch]], labels[rows[batch]], weight_GB)
    chooses = rows[held_out]
    right_GM = _predict(heads, x_MND[chooses], config.batch_size)[:count] == labels[chooses]
    return AttentiveProbe(config, heads, int(right_GM.sum(1).argmax()))


def _batches(num_rows: int, config: AttentiveConfig, seed: int) -> np.ndarray:
    """Rows of every step, int [steps, batch]: epoch after epoch in fresh random order."""
    rng = np.random.default_rng(seed)
    wanted = config.steps * config.batch_size
    epochs = -(-wanted // num_rows)
    order = np.concatenate([rng.permutation(num_rows) for _ in range(epochs)])
    return order[:wanted].reshape(config.steps, config.batch_size)


def _predict(heads: Heads, x_MND: np.ndarray, batch_size: int) -> np.ndarray:
    """Classes of every head, int [G, M], in batches of one shape."""
    predictions = []
    for start in range(0, len(x_MND), batch_size):
        part = x_MND[start : start + batch_size]
        missing = batch_size - len(part)
        if missing:
            part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
        predictions.append(np.asarray(heads.logits(part)).argmax(-1)[:, : batch_size - missing])
    return np.concatenate(predictions, axis=1)

"""k nearest neighbours on pooled features: no training, one number to choose (DINO's protocol).

Shape suffixes: N training videos, M query videos, D feature dimensions, K neighbours, C classes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

K_GRID = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07
CHUNK = 512  # queries compared at a time
MAX_QUERIES = 10_000  # training videos that vote on k


@dataclasses.dataclass(frozen=True)
class KnnProbe:
    """Unit features [N, D] with labels; `k` is the chosen number of neighbours, `mean` what was subtracted first."""

    features_ND: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    num_classes: int
    k: int
    pad_to: int

    def predict(self, x_MD: np.ndarray) -> np.ndarray:
        """Classes, int64 [M]."""
        similarity, neighbours = _neighbours(self.features_ND, normalize(x_MD, self.mean), self.pad_to)
        return vote(similarity, self.labels[neighbours], (self.k,), self.num_classes)[0]


def train_knn(
    x_ND: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    k_grid: tuple[int, ...] = K_GRID,
    center: bool = False,
    pad_to: int = 0,
) -> KnnProbe:
    """Choose k by leave-one-out on the training rows (at most 10,000 of them vote); ties go to the smaller k.

    Args:
      x_ND: training features, L2-normalised here; labels: int [N].
      center: subtract the training mean first. The published protocol does not.
      pad_to: rows to pad to, so that subsets of every size share one compiled search.
    """
    mean = x_ND.mean(0) if center else np.zeros(x_ND.shape[1], x_ND.dtype)
    features = normalize(x_ND, mean)
    usable = tuple(k for k in sorted(k_grid) if k < len(features)) or (1,)
    queries = np.arange(0, len(features), -(-len(features) // MAX_QUERIES))
    similarity, neighbours = _neighbours(features, features[queries], pad_to, exclude=queries)
    predictions = vote(similarity, labels[neighbours], usable, num_classes)
    correct = [(p == labels[queries]).sum() for p in predictions]
    return KnnProbe(features, labels, mean, num_classes, usable[int(np.argmax(correct))], pad_to)


def normalize(x_ND: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Rows minus `mean`, divided by their L2 norm, float32."""
    x_ND = np.asarray(x_ND - mean, np.float32)
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def vote(similarity_MK: np.ndarray, labels_MK: np.ndarray, ks: tuple[int, ...], num_classes: int) -> list[np.ndarray]:
    """Classes int64 [M] for every k: neighbours, sorted by falling cosine, vote with exp(cosine / T)."""
    # Relative to the nearest neighbour, so that nothing overflows; rows that are only padding weigh exp(-inf) = 0.
    weights_MK = np.exp((similarity_MK - similarity_MK[:, :1]) / TEMPERATURE)
    rows = np.arange(len(weights_MK))
    votes_MC, done, predictions = np.zeros((len(weights_MK), num_classes), np.float64), 0, []
    for k in ks:
        for j in range(done, min(k, weights_MK.shape[1])):
            votes_MC[rows, labels_MK[:, j]] += weights_MK[:, j]
        done = k
        predictions.append(votes_MC.argmax(1))
    return predictions


def _neighbours(
    features_ND: np.ndarray, queries_MD: np.ndarray, pad_to: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of the nearest training videos, [M, K] each, nearest first. exclude: a row to skip for each."""
    n, dim = features_ND.shape
    padded_ND = np.zeros((max(n, pad_to), dim), np.float32)
    padded_ND[:n] = features_ND
    train_ND = jnp.asarray(padded_ND)
    exclude = np.full(len(queries_MD), -1) if exclude is None else exclude
    similarity, neighbours = [], []
    for start in range(0, len(queries_MD), CHUNK):
        size = min(CHUNK, len(queries_MD) - start)
        chunk_MD = np.zeros((CHUNK, dim), np.float32)
        chunk_MD[:size] = queries_MD[start : start + size]
        skip_M = np.full(CHUNK, -1, np.int32)
        skip_M[:size] = exclude[start : start + size]
        s_MK, i_MK = _search(train_ND, chunk_MD, skip_M, n, min(max(K_GRID), len(padded_ND)))
        similarity.append(np.asarray(s_MK)[:size])
        neighbours.append(np.asarray(i_MK)[:size])
    return np.concatenate(similarity), np.minimum(np.concatenate(neighbours), n - 1)


@functools.partial(jax.jit, static_argnums=4)
def _search(train_ND, queries_MD, skip_M, num_rows, k):
    cosine_MN = jnp.matmul(queries_MD, train_ND.T, precision="highest")
    rows_N = jnp.arange(train_ND.shape[0])
    hidden_MN = (rows_N >= num_rows) | (rows_N == skip_M[:, None])
    return jax.lax.top_k(jnp.where(hidden_MN, -jnp.inf, cosine_MN), k)

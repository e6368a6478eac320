"""Tokens of videos kept in memory: the cheap mode of the attentive probe, without augmentation."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np

from vjepa_jax.config import ConfigError
from vjepa_jax.evals.sequences import Reader


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """Tokens of videos by encoder, bfloat16 [M, N, D], and their rows, int [M] ascending, without undecodable ones."""

    tokens: dict[str, np.ndarray]
    rows: np.ndarray

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where `rows` lie, int [n], and which of them are there at all, bool [n] (the others are given any place)."""
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return at, self.rows[at] == rows

    def read(self, name: str, places: np.ndarray, dtype: str) -> jax.Array:
        """Tokens by the encoder `name`, [n, N, D] in `dtype`."""
        return jax.numpy.asarray(self.tokens[name][places], dtype)


def fill(reader: Reader, batches: Iterable[dict[str, Any]], videos: int, most_gib: float) -> TokenCache:
    """The first view of every video in `batches`, encoded once and not standardised.

    Args:
      batches: "video" uint8 [B, S, V, T, H, W, 3] and "index" ascending, -1 for rows without a video; videos: how many
        come.

    Raises:
      ConfigError: they would take more than `most_gib`.
    """
    kept: dict[str, list[np.ndarray]] = {name: [] for name in reader.encoders}
    rows = []
    for batch in batches:
        real = batch["index"] >= 0
        rows.append(batch["index"][real])
        for name, parts in kept.items():
            parts.append(np.asarray(reader.raw(name, batch["video"][:, :, 0])[real]).astype(ml_dtypes.bfloat16))
        if len(rows) == 1:
            _check_memory(videos * sum(parts[0][:1].nbytes for parts in kept.values()) / 2**30, most_gib)
    return TokenCache({name: np.concatenate(parts) for name, parts in kept.items()}, np.concatenate(rows))


def batches_of(
    cached: TokenCache, rows: np.ndarray, epochs: int, batch_size: int, seed: int, dtype: str
) -> Iterator[tuple[Any, Any]]:
    """Of the videos `rows`: those of every batch and a function from an encoder's name to their tokens; passes in fresh
    random order."""
    places, there = cached.places(rows)
    rows, places = rows[there], places[there]
    rng = np.random.default_rng([seed, 1])
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(epochs)])
    if len(order) < batch_size:
        raise ConfigError(
            f"{len(order)} training videos are fewer than classification.batch_size={batch_size}: lower it"
        )
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        yield rows[chosen], lambda name, at=places[chosen]: cached.read(name, at, dtype)


def _check_memory(need: float, most: float) -> None:
    if need > most:
        raise ConfigError(
            f"classification.cache would take {need:.1f} GiB for all encoders and controls, more than "
            f"cache_gib={most:g}: raise it, lower segments or controls, or leave cache=False"
        )

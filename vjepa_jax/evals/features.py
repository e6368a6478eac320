"""Features of labelled videos, extracted once and probed many times, and the subsets of labels that probes train on."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vjepa_jax.config import ConfigError
from vjepa_jax.ops.patches import normalize, patchify, token_grid

# video uint8 [B, T, H, W, 3] -> features [B, T', H', W', D]
Encode = Callable[[np.ndarray], Any]

POOLINGS = ("mean", "time")


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of n videos: tokens [n, T', H', W', D] in the encoder's dtype, labels int32 [n], index int64 [n]."""

    tokens: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def pooled(self, pooling: str = "mean") -> np.ndarray:
        """One float32 vector a video. "mean": over all tokens, [n, D]; "time": over space only, [n, T'*D].

        Raises:
          ConfigError: an unknown pooling.
        """
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        axes = (1, 2, 3) if pooling == "mean" else (2, 3)
        return self.tokens.mean(axes, dtype=np.float32).reshape(len(self.tokens), -1)

    def sequences(self) -> np.ndarray:
        """The tokens as sequences, [n, N, D]."""
        return self.tokens.reshape(len(self.tokens), -1, self.tokens.shape[-1])


def extract(encode: Encode, batches: Iterable[dict[str, np.ndarray]], *, keep_space: bool = True) -> Features:
    """Features of every video in `batches` by one encoder; see `extract_all`."""
    return extract_all([encode], batches, keep_space=keep_space)[0]


def extract_all(
    encoders: Sequence[Encode], batches: Iterable[dict[str, np.ndarray]], *, keep_space: bool = True
) -> list[Features]:
    """Features of every video by several encoders in one pass, so that each video is decoded once.

    Args:
      encoders: trained, random-init, raw pixels: any function of uint8 video.
      batches: dicts with "video" uint8 [B, T, H, W, 3], or [B, S, T, H, W, 3] for S segments whose tokens are joined
        in time; "label" int32 [B]; "index" int64 [B], -1 for rows that pad the last batch and are dropped.
      keep_space: False keeps the mean over space only ([n, T', 1, 1, D]), which is all that pooled probes read.

    Returns:
      One Features an encoder, all with the same labels and index.

    Raises:
      ConfigError: no videos, or a video without a label.
    """
    tokens: list[list[np.ndarray]] = [[] for _ in encoders]
    labels, index = [], []
    pending: list[tuple[np.ndarray, Any]] = []  # features still being computed while the next batch is decoded

    def collect() -> None:
        for kept, (rows, features) in zip(tokens, pending, strict=True):
            features = np.asarray(features)
            kept.append((features if keep_space else _mean_over_space(features))[rows])
        pending.clear()

    for batch in batches:
        rows = np.asarray(batch["index"]) >= 0
        computing = [(rows, _encode(encode, np.asarray(batch["video"]))) for encode in encoders]
        if pending:
            collect()
        pending.extend(computing)
        labels.append(np.asarray(batch["label"], np.int32)[rows])
        index.append(np.asarray(batch["index"], np.int64)[rows])
    if not labels or not sum(map(len, labels)):
        raise ConfigError("no videos to probe: check eval.path and the `split` column of its manifest (train, test)")
    collect()
    label, row = np.concatenate(labels), np.concatenate(index)
    if (label < 0).any():
        raise ConfigError(
            f"{(label < 0).sum()} of {len(label)} videos to probe have no label (first: row {row[label < 0][0]}): "
            "add a `label` column to the manifest"
        )
    return [Features(np.concatenate(kept), label, row) for kept in tokens]


def _encode(encode: Encode, video: np.ndarray) -> Any:
    if video.ndim == 5:
        return encode(video)
    b, s = video.shape[:2]
    features = encode(video.reshape(b * s, *video.shape[2:]))
    return features.reshape(b, s * features.shape[1], *features.shape[2:])


def _mean_over_space(features: np.ndarray) -> np.ndarray:
    return features.mean((2, 3), keepdims=True, dtype=np.float32)


def pixel_features(video: np.ndarray, patch: int, tubelet: int) -> np.ndarray:
    """Raw pixels as tokens, the baseline without an encoder: the normalised tubelets that an encoder takes in.

    Args:
      video: uint8 [B, T, H, W, 3].

    Returns:
      float32 [B, T/tubelet, H/patch, W/patch, tubelet*patch*patch*3].

    Raises:
      ValueError: the clip does not divide into tubelets.
    """
    tubelets = patchify(normalize(video), tubelet, patch)
    return tubelets.reshape(len(video), *token_grid(video.shape, tubelet, patch), -1)


def balanced_subset(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of a random subset of exactly `size` videos, with as equal numbers of every class as there are.

    Raises:
      ConfigError: fewer than two videos a class asked for, or more than there are.
    """
    classes = len(np.unique(labels))
    if size > len(labels):
        raise ConfigError(
            f"eval.num_labels={size} exceeds the {len(labels)} labelled training videos: lower it or leave it empty"
        )
    if size < 2 * classes:
        raise ConfigError(
            f"{size} labelled training videos are too few for {classes} classes: eval.num_labels must be at least "
            f"{2 * classes}, two a class (one to train on and one to choose by)"
        )
    order = np.lexsort((rng.random(len(labels)), _rank_in_class(labels, rng)[0]))
    return np.sort(order[:size])


def held_out(labels: np.ndarray, rng: np.random.Generator, share: float = 0.2) -> np.ndarray:
    """bool [n]: a random `share` of the rows, the same of every class, that leaves each class a row to train on."""
    rank, counts = _rank_in_class(labels, rng)
    place = np.where(rank > 0, (rank + rng.random(len(labels))) / counts, -1.0)  # uniform in each class
    chosen = np.zeros(len(labels), bool)
    chosen[np.argsort(-place)[: min(max(1, round(share * len(labels))), int((rank > 0).sum()))]] = True
    return chosen


def _rank_in_class(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random order within each class (0 for one row of every class, 1 for the next, ...) and the class's size."""
    order = np.lexsort((rng.random(len(labels)), labels))
    counts = np.unique(labels, return_counts=True)[1]
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.concatenate([np.arange(count) for count in counts])
    size = np.empty(len(labels), np.int64)
    size[order] = np.repeat(counts, counts)
    return rank, size

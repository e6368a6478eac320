"""Retrieval by nearest neighbours: is one of the k training videos nearest to a test video of its class (R@k)?

No parameter is trained or chosen. Videos are their mean token, compared by the cosine. The cheap headline is an encoder
pre-trained on UCF101 alone and judged on UCF101 and HMDB51, split 1 of each.

Shape suffixes: M test videos, N training videos, D embedding.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from data_pipelines import pipeline
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import controls
from vjepa_jax.evals.features import Features, extract_all
from vjepa_jax.evals.knn import normalize
from vjepa_jax.evals.scores import OnScore, Score, mean_interval, score

CHUNK = 512  # test videos compared at a time


@dataclasses.dataclass(frozen=True)
class Config:
    """Which videos are searched, and how they are read: middle clips of equal parts, centre crop."""

    path: str = ""  # manifest with the columns path, label and split
    name: str = ""  # of the benchmark in scores; "": that of the manifest's folder
    train: str = "train"  # split that is searched
    test: str = "test"  # split that asks
    ks: tuple[int, ...] = (1, 5, 10, 20)
    frames: int = 16
    frame_step: int = 4
    resolution: int = 224
    segments: int = 1
    batch_size: int = 32
    num_threads: int = 2


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """R@k of every encoder and of the trained one on stills and shuffled frames; several of a name are seeds.

    Raises:
      ConfigError, DataError: settings or data that cannot be used.
    """
    check(cfg)
    named = controls.with_frames(encoders)
    flat = [encode for group in named.values() for encode in group]
    train, test = (iter(extract_all(flat, _videos(cfg, split), keep_space=False)) for split in (cfg.train, cfg.test))
    scores = []
    for name, group in named.items():
        pairs = [(next(train), next(test)) for _ in group]
        for row in _scores(name, pairs, cfg):
            scores.append(row)
            if on_score:
                on_score(row)
    return scores


def check(cfg: Config) -> None:
    """Raises ConfigError for settings that cannot be run."""
    if not cfg.path:
        raise ConfigError(
            "retrieval.path is empty: give a manifest with the columns path,label,split (splits "
            f"{cfg.train} and {cfg.test}), e.g. --config.retrieval.path=ucf101/manifest.csv"
        )
    for key in ("frames", "frame_step", "segments", "batch_size"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"retrieval.{key}={getattr(cfg, key)} must be at least 1")
    if not cfg.ks or min(cfg.ks) < 1:
        raise ConfigError(f"retrieval.ks={cfg.ks} must be numbers from 1 on, e.g. (1, 5)")


def _videos(cfg: Config, split: str):
    return pipeline.eval_batches(
        cfg.path,
        split=split,
        num_frames=cfg.frames,
        frame_step=cfg.frame_step,
        size=(cfg.resolution, cfg.resolution),
        batch_size=cfg.batch_size,
        segments=cfg.segments,
        num_threads=cfg.num_threads,
    )


def _scores(name: str, pairs: Sequence[tuple[Features, Features]], cfg: Config) -> Iterator[Score]:
    benchmark = cfg.name or PurePath(cfg.path).parent.name or PurePath(cfg.path).stem
    labels, asked = pairs[0][0].labels, pairs[0][1].labels
    usable = [k for k in cfg.ks if k <= len(labels)]
    found = [recall(train.pooled(), train.labels, test.pooled(), test.labels, usable) for train, test in pairs]
    for i, k in enumerate(usable):
        hits = [hits_KM[i] for hits_KM in found]
        yield score(
            *(benchmark, f"retrieval R@{k}", name, [100.0 * float(h.mean()) for h in hits]),
            count=len(asked),
            interval=mean_interval(hits[0], scale=100.0) if len(hits) == 1 else None,
            chance=100.0 * chance(labels, asked, k),
            note=cfg.path,
        )


def recall(
    x_ND: np.ndarray, labels_N: np.ndarray, queries_MD: np.ndarray, labels_M: np.ndarray, ks: Sequence[int]
) -> np.ndarray:
    """Whether one of the k nearest rows by the cosine has the query's label, bool [len(ks), M].

    Of rows that are equally near the earlier one is taken.
    """
    x_ND, queries_MD = (normalize(x, np.float32(0.0)) for x in (x_ND, queries_MD))
    right = []
    for start in range(0, len(queries_MD), CHUNK):
        cosine = queries_MD[start : start + CHUNK] @ x_ND.T
        order = np.argsort(-cosine, axis=1, kind="stable")[:, : max(ks)]
        same = labels_N[order] == labels_M[start : start + CHUNK, None]
        right.append([same[:, :k].any(1) for k in ks])
    return np.concatenate(right, axis=1)


def chance(labels_N: np.ndarray, labels_M: np.ndarray, k: int) -> float:
    """The share of queries with a hit among k different rows drawn at random."""
    rows = len(labels_N)
    miss = []
    for label in labels_M:
        others = rows - int((labels_N == label).sum())
        miss.append(np.prod([(others - i) / (rows - i) for i in range(k)]) if others >= k else 0.0)
    return float(1.0 - np.mean(miss))

"""Anomaly detection on short videos: does an encoder give videos of the anomalous folder higher scores (AUROC)?

error       mean L1 distance of the predicted and the real latents of a window's later steps, given its first ones;
            mean and maximum over the windows of a video. Nothing is trained.
neighbours  mean distance of a window's features to the nearest windows of normal training videos, over its windows
probe       a linear probe on the mean of a video's features, trained on both kinds

What is trained sees other sources than it is judged on: videos with the same background (anomaly_data.same_source) lie
in one fold, anomalous or not. Only videos of the same fold are compared with one another. Intervals resample sources.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from vjepa_jax.config import ConfigError
from vjepa_jax.config_build import hint
from vjepa_jax.evals import controls
from vjepa_jax.evals.anomaly_data import Videos, read_videos
from vjepa_jax.evals.forecast import errors, forecasters
from vjepa_jax.evals.groups import group_bootstrap, group_folds, hold_out_groups
from vjepa_jax.evals.linear import standardize, train_linear
from vjepa_jax.evals.scores import OnScore, Score, score
from vjepa_jax.evals.surprise import auroc, windows
from vjepa_jax.evals.worlds import Clip, clip_of, in_batches

WAYS = ("error", "neighbours", "probe")
_HELD_OUT = 0.2  # of the training videos, to choose the strength of the penalty by


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings. The defaults were fixed before any score was seen.

    path: a folder with the subfolders `normal` and `anomalous`; limit: videos of each that are read, 0 for all.
    fps: frames a second that are read; stride: frames between windows of the encoder's clip.
    context: share of a clip that is given to the predictor.
    neighbours: windows that a distance is averaged over. alike: correlation from which two backgrounds are one source.
    """

    path: str = ""
    normal: str = "noFight"
    anomalous: str = "fight"
    name: str = "surveillance_fights"
    ways: tuple[str, ...] = WAYS
    limit: int = 0
    fps: float = 10.0
    stride: int = 2
    context: float = 0.5
    neighbours: int = 5
    folds: int = 5
    alike: float = 0.75
    batch_size: int = 32
    seeds: int = 3


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """AUROC of every encoder and control by each way that `cfg.ways` names.

    Raises:
      ConfigError: wrong settings, fewer sources than folds; DataError: a wrong layout.
    """
    clip = clip_of(encoders, "anomaly")
    _check(cfg)
    videos = read_videos(cfg, clip)
    cuts = [windows(len(frames), clip.frames, cfg.stride) for frames in videos.frames]
    rows: list[Score] = []

    def keep(row: Score) -> None:
        rows.append(row)
        if on_score:
            on_score(row)

    if "error" in cfg.ways:
        for name, models in forecasters(encoders).items():
            values = [window_errors(model, videos, cuts, clip, cfg) for model in models]
            for how, aggregate in (("mean", np.mean), ("maximum", np.max)):
                found = [np.array([aggregate(part) for part in parts]) for parts in values]
                metric = f"AUROC, prediction error, {how} over windows"
                keep(_row(cfg, metric, name, found, videos, np.zeros(len(found[0]), np.int64)))
    trained = [way for way in ("neighbours", "probe") if way in cfg.ways]
    if trained:
        folds = group_folds(videos.labels, videos.groups, cfg.folds)
        _check_folds(folds, videos.labels)
        for name, models in controls.with_frames(encoders).items():
            features = [window_features(model, videos, cuts, cfg) for model in models]
            for way in trained:
                of, metric = _TRAINED[way]
                found = [of(parts, videos.labels, videos.groups, folds, cfg) for parts in features]
                keep(_row(cfg, metric, name, found, videos, folds))
    return rows


def window_errors(model: Any, videos: Videos, cuts: Sequence[np.ndarray], clip: Clip, cfg: Config) -> list[np.ndarray]:
    """Prediction error of every window, a video at a time: float64 [W]."""
    context = min(max(round(cfg.context * clip.steps), 1), clip.steps - 1)
    of_batch = lambda batch: errors(model, batch, (context,), clip.steps, clip.places)[:, 0]
    return _of_windows(of_batch, videos, cuts, cfg.batch_size)


def window_features(model: Any, videos: Videos, cuts: Sequence[np.ndarray], cfg: Config) -> list[np.ndarray]:
    """Mean token of every window, a video at a time: float64 [W, D]."""
    return _of_windows(lambda batch: np.asarray(model(batch)).mean((1, 2, 3)), videos, cuts, cfg.batch_size)


def _of_windows(function: Callable[[np.ndarray], Any], videos: Videos, cuts: Sequence[np.ndarray], batch_size: int):
    """A function of clips on all windows, joined to full batches. Rounded: constant features give ties."""
    found: list[np.ndarray] = []
    for first in range(0, len(cuts), batch_size):
        some = cuts[first : first + batch_size]
        clips = [frames[cut] for frames, cut in zip(videos.frames[first:], some, strict=False)]
        values = in_batches(function, batch_size, np.concatenate(clips))
        ends = np.cumsum([len(cut) for cut in some])[:-1]
        found += np.split(np.round(np.asarray(values, np.float64), 6), ends)
    return found


def neighbour_scores(
    features: Sequence[np.ndarray], labels: np.ndarray, groups: np.ndarray, folds: np.ndarray, cfg: Config
) -> np.ndarray:
    """Mean distance of every video's windows to their `cfg.neighbours` nearest windows of normal videos of the other
    folds, by features standardised over these: float64 [n]."""
    del groups
    scores = np.empty(len(features))
    for fold in np.unique(folds):
        normal = np.concatenate([features[i] for i in np.flatnonzero((folds != fold) & (labels == 0))])
        mean, scale = standardize(normal)
        reference = (normal - mean) * scale
        for i in np.flatnonzero(folds == fold):
            distances = np.sort(cdist((features[i] - mean) * scale, reference), axis=1)
            scores[i] = distances[:, : cfg.neighbours].mean()
    return np.round(scores, 6)


def probe_scores(
    features: Sequence[np.ndarray], labels: np.ndarray, groups: np.ndarray, folds: np.ndarray, cfg: Config
) -> np.ndarray:
    """Log odds of "anomalous" of every video by a linear probe that was trained on the other folds; its penalty is
    chosen on held-out sources of these: float64 [n]."""
    del cfg
    x_ND, scores = np.stack([part.mean(0) for part in features]).astype(np.float32), np.empty(len(labels))
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), folds == fold
        out = hold_out_groups(labels[train], groups[train], np.random.default_rng(int(fold)), _HELD_OUT)
        probe = train_linear(x_ND[train], labels[train], out, 2, pad_to=len(labels))
        scores[test] = np.diff(probe.logits(x_ND[test]), axis=1)[:, 0]
    return np.round(scores, 6)


_TRAINED = {
    "neighbours": (neighbour_scores, "AUROC, distance to normal videos"),
    "probe": (probe_scores, "AUROC, linear probe"),
}


def fold_auroc(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    """Of all pairs of a normal and an anomalous video of the same fold, the share whose anomalous one scores higher,
    in %; ties count half. Scores of different folds come from different training and are not compared. NaN without a
    pair."""
    won, pairs = 0.0, 0
    for fold in np.unique(folds):
        normal, anomalous = (scores[(folds == fold) & (labels == label)] for label in (0, 1))
        if count := len(normal) * len(anomalous):
            won, pairs = won + count * auroc(normal, anomalous), pairs + count
    return won / pairs if pairs else float("nan")


def _row(cfg: Config, metric: str, name: str, found: Sequence[np.ndarray], videos: Videos, folds: np.ndarray) -> Score:
    value = lambda one, rows: fold_auroc(one[rows], videos.labels[rows], folds[rows])
    everything, sources = np.arange(len(videos.labels)), len(np.unique(videos.groups))
    return score(
        *(cfg.name, metric, name, [value(one, everything) for one in found]),
        count=len(everything),
        interval=group_bootstrap(lambda rows: float(np.mean([value(one, rows) for one in found])), videos.groups),
        chance=50.0,
        note=f"{sources} sources" + (f" in {folds.max() + 1} folds" if folds.any() else ", nothing trained"),
    )


def _check(cfg: Config) -> None:
    if not cfg.ways or (odd := [way for way in cfg.ways if way not in WAYS]):
        raise ConfigError(
            f"anomaly.ways={cfg.ways} must name some of {', '.join(WAYS)}{hint(odd[0], WAYS) if cfg.ways else ''}"
        )
    for key in ("stride", "neighbours", "batch_size"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"anomaly.{key}={getattr(cfg, key)} must be at least 1")
    if cfg.fps <= 0 or not 0 < cfg.context < 1 or cfg.limit < 0:
        raise ConfigError("anomaly.fps must be positive, context between 0 and 1, and limit not negative (0: all)")


def _check_folds(folds: np.ndarray, labels: np.ndarray) -> None:
    """Every fold's training part needs normal videos, and both kinds."""
    for fold in np.unique(folds):
        if len(np.unique(labels[folds != fold])) < 2:
            raise ConfigError(
                f"anomaly.folds: one of {folds.max() + 1} folds would hold all videos of a kind, as they share a "
                "source: give videos of more recordings"
            )

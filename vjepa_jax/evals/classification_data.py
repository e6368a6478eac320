"""The videos of the attentive probe: of splits or of folds of groups, augmented to train on and as they are to test.

`cfg` is classification.Config throughout.

Shape suffixes: B videos, S segments, V views.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import labelled, pipeline
from data_pipelines.sources import Source
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import controls
from vjepa_jax.evals.clips import training_clips
from vjepa_jax.evals.groups import group_folds


@dataclasses.dataclass(frozen=True)
class Data:
    """Which rows of a source train, the labels of all its rows, and the rows (None: all of the split) and labels that
    test. groups: of all rows, where they are kept whole."""

    source: Source
    labels: np.ndarray
    rows: np.ndarray
    test_labels: np.ndarray
    test_rows: np.ndarray | None = None
    groups: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        return int(max(self.labels.max(), self.test_labels.max())) + 1


def fitted(cfg: Any, encoders: Mapping[str, Sequence[Any]]) -> Any:
    """Settings with the trained encoder's clips where they are asked for, and labels.csv of a folder that is to be
    divided into folds."""
    changes: dict[str, Any] = {}
    if not cfg.frames or not cfg.resolution:
        data = encoders[controls.TRAINED][0].run.data
        changes = {"frames": cfg.frames or data.num_frames, "resolution": cfg.resolution or min(data.size)}
    if cfg.folds:
        listed = Path(cfg.path) / "labels.csv"
        changes |= {"path": str(listed) if listed.is_file() else cfg.path}
    return dataclasses.replace(cfg, **changes)


def open_folds(cfg: Any) -> list[Data]:
    """A part for every fold of groups: of all videos, or, where the manifest has splits, of those to test. The others
    train in every fold.

    Raises:
      ConfigError: videos without a group, too few groups.
    """
    source, labels = labelled.open_labelled(cfg.path, "")
    groups = np.array([source.group(row) for row in range(len(source))])
    if (groups == "").any():
        raise ConfigError(
            f"{cfg.path}: {int((groups == '').sum())} of {len(groups)} videos are of no scene: classification.folds "
            "needs a manifest with the columns path,label,scene, or a folder that holds it as labels.csv"
        )
    _check_classes(cfg.path, labels)
    splits = np.array([source.row(row).split for row in range(len(source))])
    tested = splits == cfg.test if (splits != "").any() else np.ones(len(source), bool)
    if shared := sorted(set(groups[tested]) & set(groups[~tested])):
        raise ConfigError(
            f"{cfg.path}: scene {shared[0]} has videos of split {cfg.test} and of others: put it on one side"
        )
    folds = np.full(len(source), -1)
    folds[tested] = group_folds(labels[tested], groups[tested], cfg.folds)
    parts = []
    for fold in range(cfg.folds):
        test = np.flatnonzero(folds == fold)
        parts.append(Data(source, labels, np.flatnonzero(folds != fold), labels[test], test, groups))
        if missing := set(labels.tolist()) - set(labels[parts[-1].rows].tolist()):
            raise ConfigError(
                f"{cfg.path}: class {min(missing)} has videos in one of {cfg.folds} folds only, and is not learnt for "
                "it: give it more scenes"
            )
    return parts


def open_splits(cfg: Any) -> Data:
    """The part that the splits of a manifest make."""
    source, labels = labelled.open_labelled(cfg.path, cfg.train)
    test_source, test_labels = labelled.open_labelled(*test_of(cfg))
    names, test_names = source.class_names, test_source.class_names
    if names and test_names and names != test_names:
        odd = sorted(set(names) ^ set(test_names))[:3]
        raise ConfigError(
            f"{cfg.path} and {test_of(cfg)[0]} have different classes ({', '.join(odd)}, ...), so that a label means "
            "two things: put both into one manifest with a `split` column"
        )
    _check_classes(cfg.path, labels)
    return Data(source, labels, np.arange(len(labels)), test_labels)


def _check_classes(path: str, labels: np.ndarray) -> None:
    if len(np.unique(labels)) < 2:
        raise ConfigError(f"the training videos of {path} have one class only: nothing is to be learnt")


def test_of(cfg: Any) -> tuple[str, str]:
    """Path and split of the test videos; of folds, rows are picked from all."""
    return cfg.test_path or cfg.path, "" if cfg.folds else cfg.test


def train_of(cfg: Any) -> tuple[str, str]:
    """As `test_of`, of the training videos."""
    return cfg.path, "" if cfg.folds else cfg.train


def training(cfg: Any, data: Data, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Freshly cut and augmented training videos, "video" uint8 [B, S, T, H, W, 3]."""
    clips = training_clips(cfg, split=cfg.train, **_spacing(cfg), clips_per_video=cfg.segments, hflip=cfg.hflip)
    return labelled.training_batches(
        data.source, clips, rows=data.rows.tolist(), batch_size=cfg.batch_size, epochs=cfg.epochs, seed=seed
    )


def _spacing(cfg: Any) -> dict[str, Any]:
    """Of a clip's frames: frames a second, or frames of the video."""
    fps = cfg.frames / cfg.seconds if cfg.seconds else None
    return {"fps": fps, "frame_step": None if fps else cfg.frame_step}


def middle(cfg: Any, path: str, split: str, views: int, rows: Sequence[int] | None = None, batch: int = 0):
    """Videos in order, the middle clip of every segment, "video" uint8 [B, S, V, T, H, W, 3]."""
    batch = batch or max(1, cfg.encode_batch // (cfg.segments * views))
    batches = pipeline.eval_batches(
        path,
        split=split,
        num_frames=cfg.frames,
        **_spacing(cfg),
        size=(cfg.resolution, cfg.resolution),
        batch_size=batch,
        segments=cfg.segments,
        views=views,
        num_workers=cfg.num_workers,
        num_threads=cfg.num_threads,
        rows=rows,
        pictures=True,
    )
    for found in batches:
        video = found["video"]
        yield found | {"video": video.reshape(batch, cfg.segments, views, *video.shape[-4:])}

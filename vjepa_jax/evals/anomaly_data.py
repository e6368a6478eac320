"""Two folders of short videos, normal and anomalous, and which of them were cut from the same recording."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csgraph

from data_pipelines import augment
from data_pipelines.decode import DecodeError, VideoReader
from data_pipelines.sources import SUFFIXES, DataError
from vjepa_jax.evals.worlds import Clip

LAYOUT = "{path}/{normal}/*.mp4 and {path}/{anomalous}/*.mp4, two or more videos each"
_FRAMES, _THUMBNAIL, _CELLS = 9, 64, 16  # frames of a background, its pixels a side, and the cells compared


@dataclasses.dataclass(frozen=True)
class Videos:
    """Videos in memory: frames uint8 [F, H, W, 3] each, labels int32 [n] (1: anomalous), groups int [n] by source."""

    names: list[str]
    frames: list[np.ndarray]
    labels: np.ndarray
    groups: np.ndarray


def read_videos(cfg: Any, clip: Clip) -> Videos:
    """The videos of a folder laid out as LAYOUT; `cfg` is anomaly.Config.

    Raises:
      DataError: another layout, or a video that cannot be decoded.
    """
    layout = LAYOUT.format(path=cfg.path or "PATH", normal=cfg.normal, anomalous=cfg.anomalous)
    if not cfg.path or not Path(cfg.path).is_dir():
        raise DataError(f"anomaly.path={cfg.path!r} is not a folder: expected {layout}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate((cfg.normal, cfg.anomalous)):
        folder = Path(cfg.path) / name
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
        found = found[: cfg.limit or None]
        if len(found) < 2:
            raise DataError(f"{folder} holds {len(found)} videos: expected {layout}")
        paths += found
        labels += [label] * len(found)
    frames, backgrounds = [], []
    for path in paths:
        try:
            with VideoReader(path) as reader:
                frames.append(_at_rate(reader, clip.size, cfg.fps))
                backgrounds.append(background(reader))
        except (DecodeError, OSError) as error:
            raise DataError(f"{path} cannot be decoded ({error}): remove it from the folder") from None
    return Videos(
        [path.stem for path in paths], frames, np.array(labels, np.int32), same_source(backgrounds, cfg.alike)
    )


def _at_rate(reader: VideoReader, size: tuple[int, int], fps: float) -> np.ndarray:
    """Frames nearest to `fps` a second, centre crop: uint8 [F, H, W, 3]."""
    count = max(int(reader.num_frames / reader.fps * fps), 1)
    rows = np.minimum(np.floor(np.arange(count) * reader.fps / fps + 0.5).astype(np.int64), reader.num_frames - 1)
    return reader.crops(rows, lambda height, width: augment.center_box(height, width, size), size)


def background(reader: VideoReader) -> np.ndarray:
    """What a fixed camera sees behind everything that moves: grey means of 16 x 16 cells of the median of 9 frames,
    centred and of length 1 (0 for a blank picture), float64 [256]."""
    rows = np.linspace(0, reader.num_frames - 1, _FRAMES).astype(np.int64)
    whole = lambda height, width: (0, 0, height, width)
    still = np.median(reader.crops(rows, whole, (_THUMBNAIL, _THUMBNAIL)), axis=0).mean(-1)
    side = _THUMBNAIL // _CELLS
    cells = still.reshape(_CELLS, side, _CELLS, side).mean((1, 3)).ravel()
    cells = cells - cells.mean()
    return cells / max(np.linalg.norm(cells), 1e-6)


def same_source(backgrounds: Sequence[np.ndarray], alike: float) -> np.ndarray:
    """Groups int [n]: videos whose backgrounds correlate by more than `alike` are of one source, and so are theirs."""
    x = np.stack(backgrounds)
    return csgraph.connected_components(x @ x.T > alike, directed=False)[1]

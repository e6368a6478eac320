"""Counting repetitions without training: the period of a video in the self-similarity of its features over time.

Every time step is the middle one of a clip around it, so that all stand at the same place of their clip, and keeps all
its tokens. The mean squared distance between steps that lie l apart, over all such pairs, dips below its trend (what is
seen drifts) at every multiple of the period. The period is the first dip that is deep enough beside the deepest, made
exact by its multiples; the count is the number of whole periods in the video. How deep is enough is chosen for each
video on all others (leave one out). The trend's degree and the rounding were chosen by raw pixels of the QUVA videos
themselves, which favours those and makes all rows look better than they are. Three cycles are found reliably; of two,
the trend takes a part of the only dip.

Scores as in RepNet (arXiv 2006.15418): the absolute error by the true count, and the share of videos whose count is off
by one at most.

Shape suffixes: F frames, S time steps, D all channels of all tokens of a step, L lags, P shares of depth.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import find_peaks

from data_pipelines.sources import SUFFIXES, DataError
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import controls
from vjepa_jax.evals.scores import OnScore, Score, bootstrap, score
from vjepa_jax.evals.surprise_data import read_frames
from vjepa_jax.evals.windows import encode_clips
from vjepa_jax.evals.worlds import Clip, clip_of

LAYOUT = (
    "{path}/repetition/NAME.mp4 and, for each, {path}/repetition_annotations/NAME.npy: the frames in which cycles end, "
    "integers that ascend"
)
MEAN_COUNT, CONSTANT = "mean count of the other videos", "best constant count of the other videos"
_DEGREE, _LACKS = 3, 0.1  # of the trend; the part of a period that a whole one may lack


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    path: a folder as LAYOUT says; limit: videos that are read, 0 for all.
    frame_step: of the videos' frames. shortest: period in time steps.
    depths: what share of the deepest dip's depth a dip must have, to choose from.
    """

    path: str = ""
    name: str = "quva_repetition"
    limit: int = 0
    frame_step: int = 1
    shortest: int = 3
    depths: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    batch_size: int = 32
    seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Video:
    """Frames uint8 [F, H, W, 3], the number of cycles that end within them, and whether more are annotated."""

    name: str
    frames: np.ndarray
    count: int
    cut: bool


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """Error and off-by-one accuracy of every encoder, of the trained one on stills and shuffled frames, and of a
    constant guess. Intervals resample videos.

    Raises:
      ConfigError: wrong settings; DataError: a wrong layout.
    """
    clip = clip_of(encoders, "repetition")
    _check(cfg)
    named = controls.with_frames(encoders)
    guesses: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in group] for name, group in named.items()}
    truth, cut = [], 0
    for video in read_videos(cfg, clip):
        truth.append(video.count)
        cut += video.cut
        for name, group in named.items():
            for seed, model in enumerate(group):
                steps = middle_steps(model, video.frames, clip, cfg.batch_size)
                guesses[name][seed].append(counts(lag_distances(steps), len(steps), cfg.depths, cfg.shortest))
    rows: list[Score] = []
    true_counts, note = np.array(truth), f"{cut} of the videos end before their last annotated cycle"
    for name, found in guesses.items():
        picked = [leave_one_out(np.array(counts_VP), true_counts, cfg.depths) for counts_VP in found]
        shares = ", ".join(f"{share:g}" for share in np.unique([chosen for _, chosen in picked]))
        how = f"a dip counts from {shares} of the deepest on, chosen by leaving one out; {note}"
        rows += _rows(cfg, name, [guess for guess, _ in picked], true_counts, how)
    for name, guess in ((MEAN_COUNT, mean_of_others), (CONSTANT, best_constant)):
        rows += _rows(cfg, name, [guess(true_counts)], true_counts, note)
    for row in rows:
        if on_score:
            on_score(row)
    return rows


def middle_steps(encode: Any, video: np.ndarray, clip: Clip, batch_size: int) -> np.ndarray:
    """Features of every time step, from a clip of which it is the middle one: float32 [S, D].

    In clips that lie side by side a step's features also hold its place in the clip, which repeats as well. The first
    and the last frame fill up clips that reach beyond the video.
    """
    count, middle = max(len(video) // clip.tubelet, 1), clip.steps // 2
    starts = (np.arange(count) - middle) * clip.tubelet
    rows = np.clip(starts[:, None] + np.arange(clip.frames), 0, len(video) - 1)
    parts = []
    for first in range(0, count, batch_size):  # all clips at once would be many times the video
        clips = video[rows[first : first + batch_size]]
        parts.append(encode_clips(encode, clips, batch_size, lambda features: features[:, middle]))
    return np.concatenate(parts).reshape(count, -1)


def lag_distances(steps_SD: np.ndarray) -> np.ndarray:
    """Mean squared distance a channel of all pairs of steps that lie l apart, float64 [L], l from 0 to two thirds of S:
    the dip of a video of two cycles lies at a half.

    It is the mean of the temporal self-similarity matrix (squared distances) along its diagonals.
    """
    x = np.asarray(steps_SD, np.float64)
    x = x - x.mean(0)
    squares = (x * x).sum(1)
    matrix = np.maximum(squares[:, None] + squares[None] - 2.0 * x @ x.T, 0.0) / x.shape[1]
    return np.array([np.diagonal(matrix, lag).mean() for lag in range(2 * len(x) // 3 + 1)])


def counts(distances_L: np.ndarray, steps: int, depths: Sequence[float], shortest: int) -> np.ndarray:
    """Periods in a video of so many steps by every share of depth, float64 [P]; 0 where nothing repeats.

    Args:
      distances_L: what `lag_distances` gives.
      depths: a dip is the period if it has this share of the deepest dip's depth (its prominence) and none before has.
      shortest: period in steps.
    """
    noise = 1e-6 * max(float(np.max(distances_L, initial=0.0)), 1e-6)  # rounding of constant features is no dip
    level_L = detrended(distances_L, shortest)
    dips, found = find_peaks(-level_L, prominence=noise)
    depth = found["prominences"][dips >= shortest]
    dips = dips[dips >= shortest]
    if not len(dips):
        return np.zeros(len(depths))
    first = [dips[np.argmax(depth >= share * depth.max())] for share in depths]
    return np.array([steps / exact_period(level_L, int(lag)) for lag in first])


def detrended(distances_L: np.ndarray, shortest: int) -> np.ndarray:
    """Distances less the cubic in the lag that fits those from the shortest period on best."""
    lags = np.arange(len(distances_L)) / max(len(distances_L) - 1, 1)
    if len(lags) < shortest + _DEGREE + 1:
        return distances_L
    return distances_L - np.polyval(np.polyfit(lags[shortest:], distances_L[shortest:], _DEGREE), lags)


def exact_period(distances_L: np.ndarray, lag: int) -> float:
    """A period in steps and parts of a step, from the dip at `lag` and those at its multiples, each looked for within a
    quarter of a period of where it should be."""
    period = _bottom(distances_L, lag)
    for multiple in range(2, int((len(distances_L) - 2) / period) + 1):
        near, reach = multiple * period, max(int(period / 4), 1)
        low, high = max(round(near) - reach, 1), min(round(near) + reach, len(distances_L) - 2)
        if low > high:
            break
        lag = low + int(np.argmin(distances_L[low : high + 1]))
        if low < lag < high or distances_L[lag] <= min(distances_L[lag - 1], distances_L[lag + 1]):
            period = _bottom(distances_L, lag) / multiple
    return period


def _bottom(distances_L: np.ndarray, lag: int) -> float:
    """Where the parabola through a dip and its neighbours is lowest."""
    before, here, after = distances_L[lag - 1 : lag + 2]
    curve = before - 2.0 * here + after
    return lag + (0.5 * (before - after) / curve if curve > 0 else 0.0)


def leave_one_out(counts_VP: np.ndarray, truth: np.ndarray, depths: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Whole counts [V] (a period may lack a tenth), each by the share of depth that has the lowest mean error on all
    other videos, and these shares [V]; of equal ones the first."""
    rounded = np.floor(counts_VP + _LACKS)
    error_VP = abs(rounded - truth[:, None]) / truth[:, None]
    others = (error_VP.sum(0) - error_VP) / max(len(truth) - 1, 1)
    chosen = np.round(others, 9).argmin(1)
    return rounded[np.arange(len(truth)), chosen], np.asarray(depths)[chosen]


def mean_of_others(truth: np.ndarray) -> np.ndarray:
    """A guess that does not look at the video: the mean count of all others, a whole number [V]."""
    return np.round((truth.sum() - truth) / max(len(truth) - 1, 1))


def best_constant(truth: np.ndarray) -> np.ndarray:
    """As `mean_of_others`, of the count that has the lowest error on all others [V]."""
    guesses = np.arange(1, truth.max() + 1)
    error_VG = abs(guesses - truth[:, None]) / truth[:, None]
    return guesses[np.round(error_VG.sum(0) - error_VG, 9).argmin(1)].astype(np.float64)


def normalised_error(guess: np.ndarray, truth: np.ndarray) -> float:
    """Mean of |guess - truth| / truth (RepNet's MAE)."""
    return float(np.mean(abs(guess - truth) / truth))


def off_by_one(guess: np.ndarray, truth: np.ndarray) -> float:
    """Share of videos whose count is at most 1 off, in %."""
    return 100.0 * float(np.mean(abs(guess - truth) <= 1))


def read_videos(cfg: Config, clip: Clip) -> Iterator[Video]:
    """The videos of a folder that have a cycle, one at a time.

    Files may be cut short: only cycles that end within the frames that are there are counted.

    Raises:
      DataError: another layout.
    """
    root, layout = Path(cfg.path), LAYOUT.format(path=cfg.path or "PATH")
    folder = root / "repetition"
    if not cfg.path or not folder.is_dir():
        raise DataError(f"repetition.path={cfg.path!r} is no folder with counted videos: expected {layout}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[: cfg.limit or None]
    ends = {path: _ends(root / "repetition_annotations" / f"{path.stem}.npy", layout) for path in paths}
    found = 0
    for path in paths:
        frames = read_frames(path, clip.size, cfg.frame_step)
        count = int((ends[path] < len(frames) * cfg.frame_step).sum())
        if count:
            found += 1
            yield Video(path.stem, frames, count, count < len(ends[path]))
    if found < 2:
        raise DataError(f"{folder} holds {found} videos with a whole cycle, two are needed: expected {layout}")


def _ends(path: Path, layout: str) -> np.ndarray:
    try:
        ends = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: expected {layout}") from None
    except (ValueError, OSError, EOFError):
        raise DataError(f"{path} is no array that NumPy can read: expected {layout}") from None
    if ends.ndim != 1 or not np.issubdtype(ends.dtype, np.integer) or (np.diff(ends) <= 0).any():
        raise DataError(f"{path} holds {ends.dtype} {ends.shape}: expected {layout}")
    return ends


def _rows(cfg: Config, name: str, guesses: list[np.ndarray], truth: np.ndarray, note: str) -> list[Score]:
    rows = []
    for metric, statistic, unit in (
        ("MAE by the true count", normalised_error, ""),
        ("off-by-one accuracy", off_by_one, "%"),
    ):
        values = [statistic(guess, truth) for guess in guesses]
        mean = lambda rows, statistic=statistic: float(np.mean([statistic(g[rows], truth[rows]) for g in guesses]))
        rows.append(
            score(
                *(cfg.name, metric, name, values),
                count=len(truth),
                interval=bootstrap(mean, len(truth)),
                unit=unit,
                higher_is_better=unit == "%",
                note=note,
            )
        )
    return rows


def _check(cfg: Config) -> None:
    for key in ("frame_step", "batch_size"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"repetition.{key}={getattr(cfg, key)} must be at least 1")
    if cfg.shortest < 2 or cfg.limit < 0:
        raise ConfigError("repetition.shortest must be at least 2 time steps, and limit not negative (0: all)")
    if not cfg.depths or not all(0 < share <= 1 for share in cfg.depths):
        raise ConfigError(f"repetition.depths={cfg.depths} must be shares above 0 and up to 1, e.g. (0.5,)")

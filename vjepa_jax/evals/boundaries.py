"""Generic event boundaries (Kinetics-GEBD, arXiv 2101.10511): without training on them, from the change of features
over time and from the error of the prediction, and by a small classifier on frozen features.

change   1 - cosine of the mean features of the next and of the last `reach` time steps
error    mean L1 distance of the predicted and the real latents of the next step, from half a clip before it
head     the probability that a classifier of what comes before and after gives (boundary_head.py)

Peaks of the smoothed signal are boundaries; how far they must stand out is chosen on training videos. Beside them: as
many boundaries as training videos have, at equal distances.

Shape suffixes: F frames, S time steps, P places, D channels.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from data_pipelines import world_behaviours
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import boundary_head, controls, plain_pickle, worlds
from vjepa_jax.evals.forecast import forecast, latents
from vjepa_jax.evals.scores import OnScore, Score, bootstrap, score
from vjepa_jax.evals.surprise_data import read_frames
from vjepa_jax.evals.temporal_metrics import BOUNDARY_THRESHOLDS, boundary_f1
from vjepa_jax.evals.windows import padded, step_features
from vjepa_jax.evals.worlds import Clip, clip_of, in_batches

LAYOUT = (
    '{path}/annotations.json: {{"VIDEO": {{"split": "train" or "val", "fps": .., "video_duration": seconds, '
    '"f1_consis_avg": .., "substages_timestamps": [[seconds, ...] of each rater]}}, ...}} and {path}/videos/VIDEO.mp4 '
    "(or {path}/train.pkl and val.pkl, the official pickles, in place of annotations.json)"
)
UNIFORM = "equal distances"
BENCHMARKS = {"kinetics": "kinetics_gebd", "world": "world, boundaries", "behaviours": "world, changes of behaviour"}
_WORLD_FPS = 8.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    data: kinetics (a folder `path`, LAYOUT), world: videos of the embedded world that are joined from several, or
    behaviours: of one object of that world that changes what it does, so that looks tell nothing.
    frame_step: of the videos' frames. reach, smooth: of the signal, in time steps. least_distance: between boundaries,
    in seconds. head: whether a classifier is trained. train, videos, parts: of the world: videos that choose, that are
    scored, and parts of each on average.
    """

    data: str = "kinetics"
    path: str = ""
    frame_step: int = 2
    reach: int = 3
    smooth: float = 1.0
    least_distance: float = 0.3
    head: bool = True
    prominences: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # deviations of the signal
    train: int = 32
    videos: int = 64
    parts: int = 4
    batch_size: int = 32
    seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Video:
    """`load()` gives frames uint8 [F, H, W, 3], `fps` of them a second; `annotation` as boundary_f1 takes it."""

    name: str
    fps: float
    annotation: Mapping[str, Any]
    load: Callable[[], np.ndarray]


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """F1 at 5 % of the duration and its mean over 5 to 50 %, by the change of every encoder's features, by the error of
    every model that predicts and by a trained head; and of the trained encoder on stills and shuffled frames. Intervals
    resample videos.

    Raises:
      ConfigError, DataError: wrong settings, a wrong layout.
    """
    clip = clip_of(encoders, "boundaries")
    _check(cfg)
    read = {"kinetics": read_annotated, "world": world_videos, "behaviours": behaviour_videos}[cfg.data]
    train, test = read(clip, cfg)
    rows: list[Score] = []

    def keep(found: Iterator[Score]) -> None:
        for row in found:
            rows.append(row)
            if on_score:
                on_score(row)

    benchmark = BENCHMARKS[cfg.data]
    for name, models in controls.with_frames(encoders).items():
        by_model = [curves(model, train, test, clip, cfg, seed) for seed, model in enumerate(models)]
        for kind in by_model[0]:
            found, notes = [], []
            for one in by_model:
                prominence = choose(one[kind][0], train, clip, cfg)
                found.append(_all_found(one[kind][1], test, clip, cfg, prominence))
                notes.append(f"{prominence:g}")
            note = f"peaks stand out by {', '.join(notes)} deviations, chosen on training videos"
            keep(_rows(benchmark, f"by {kind}", name, found, test, note))
    count = round(np.mean([len(video.annotation["substages_timestamps"][0]) for video in train]))
    keep(_rows(benchmark, "by nothing", UNIFORM, [{v.name: uniform(v, count) for v in test}], test, f"{count} a video"))
    return rows


Curves = tuple[list[np.ndarray], list[np.ndarray]]  # of training and of test videos, float64 [S] each


def curves(
    model: Any, train: Sequence[Video], test: Sequence[Video], clip: Clip, cfg: Config, seed: int
) -> dict[str, Curves]:
    """The signals of all videos by the ways that a model has: "change", "error" where it predicts, "head"."""
    errs = hasattr(model, "predict")
    features, errors = [], []
    for part in (train, test):
        features.append([])
        errors.append([])
        for video in part:
            frames = video.load()
            features[-1].append(pooled_steps(model, frames, clip, cfg))
            if errs:
                errors[-1].append(error_signal(model, frames, clip, cfg))
    found: dict[str, Curves] = {"change": tuple([change(steps, cfg.reach) for steps in part] for part in features)}
    if errs:
        found["error"] = tuple(errors)
    if cfg.head:
        found["head"] = head_curves(*features, train, clip, cfg, seed)
    return found


def pooled_steps(model: Any, video: np.ndarray, clip: Clip, cfg: Config) -> np.ndarray:
    """Features of every time step, mean over its places, float32 [S, D]."""
    pool = lambda features: features.mean((2, 3))
    steps = step_features(model, video, clip.frames, clip.tubelet, cfg.batch_size, pool)
    return steps[: max(len(video) // clip.tubelet, 1)]


def head_curves(
    train_features: list[np.ndarray],
    test_features: list[np.ndarray],
    train: Sequence[Video],
    clip: Clip,
    cfg: Config,
    seed: int,
) -> Curves:
    """What a trained head says. Of training videos, a head that was trained on the others (two halves): what is chosen
    by them would otherwise be chosen on what is known by heart."""
    labels = []
    for video, steps in zip(train, train_features, strict=True):
        a = video.annotation
        seconds = clip.tubelet / video.fps
        labels.append(boundary_head.targets(a["substages_timestamps"], a["video_duration"], len(steps), seconds))
    own: list[np.ndarray] = [np.zeros(0)] * len(train)
    for half in (0, 1):
        others = range(1 - half, len(train), 2) if len(train) > 1 else range(len(train))
        head = boundary_head.train([train_features[i] for i in others], [labels[i] for i in others], cfg.reach, seed)
        for i in range(half, len(train), 2):
            own[i] = head(train_features[i])
    head = boundary_head.train(train_features, labels, cfg.reach, seed)
    return [np.round(curve, 6) for curve in own], [np.round(head(steps), 6) for steps in test_features]


def change(steps_SD: np.ndarray, reach: int) -> np.ndarray:
    """1 - cosine of the means of up to `reach` steps from each on and before it: float64 [S], 0 at the first."""
    out = np.zeros(len(steps_SD))
    for t in range(1, len(steps_SD)):
        past, future = steps_SD[max(t - reach, 0) : t].mean(0), steps_SD[t : t + reach].mean(0)
        length = np.linalg.norm(past) * np.linalg.norm(future)
        out[t] = 1.0 - float(past @ future) / length if length > 0 else 0.0
    return np.round(out, 6)  # constant features have no peaks of the last bit


def error_signal(model: Any, video: np.ndarray, clip: Clip, cfg: Config) -> np.ndarray:
    """Error of the prediction of every time step from half a clip before it: float64 [S]; the first half has the first
    one's."""
    context, steps = clip.steps // 2, max(len(video) // clip.tubelet, 1)
    targets = np.arange(context, max(steps, context + 1))
    filled = padded(video, int(targets[-1] - context) * clip.tubelet + clip.frames)

    def errors(some: np.ndarray) -> np.ndarray:
        clips = np.stack([filled[s : s + clip.frames] for s in (some - context) * clip.tubelet])
        predicted = forecast(model, clips, context, clip.steps, clip.places)[:, 0]
        return np.asarray(abs(predicted - latents(model, clips)[:, context]).mean((1, 2)))

    values = in_batches(errors, cfg.batch_size, targets).astype(np.float64)
    return np.round(np.concatenate([np.full(context, values[0]), values])[:steps], 6)


def peaks(signal: np.ndarray, seconds: float, cfg: Config, prominence: float) -> list[float]:
    """Seconds of the peaks of a signal that stand out by `prominence` of its deviations; `seconds` a step."""
    smooth = gaussian_filter1d(signal, cfg.smooth) if cfg.smooth else signal
    if smooth.std() < 1e-9:
        return []
    distance = max(round(cfg.least_distance / seconds), 1)
    found, _ = find_peaks(smooth, distance=distance, prominence=max(prominence * smooth.std(), 1e-12))
    return [float(at) * seconds for at in found]


def choose(curves: Sequence[np.ndarray], videos: Sequence[Video], clip: Clip, cfg: Config) -> float:
    """The prominence with the best F1 at 5 % on these videos, of equals the largest."""
    truth = {video.name: video.annotation for video in videos}
    f1 = [boundary_f1(truth, _all_found(curves, videos, clip, cfg, p), 0.05) for p in cfg.prominences]
    return max(p for p, value in zip(cfg.prominences, f1, strict=True) if value == max(f1))


def uniform(video: Video, count: int) -> list[float]:
    """So many boundaries at equal distances."""
    return [video.annotation["video_duration"] * (i + 1) / (count + 1) for i in range(count)]


def world_videos(clip: Clip, cfg: Config) -> tuple[list[Video], list[Video]]:
    """Videos to choose and to score with, each of 2 to 2 (`parts` - 1) videos of the embedded world one after the
    other, of half a clip to two clips of frames; where one ends is a boundary. Parts differ in all but their size."""
    spec = worlds.travelling(clip, 2 * clip.frames, palette="random")
    rng = np.random.default_rng(11)
    counts = rng.integers(2, 2 * cfg.parts - 1, cfg.train + cfg.videos)
    frames, _ = worlds.render(spec, int(counts.sum()), seed=11)
    videos = []
    for number, parts in enumerate(np.split(frames, np.cumsum(counts)[:-1])):
        lengths = rng.integers(clip.frames // 2, 2 * clip.frames + 1, len(parts))
        joined = np.concatenate([part[:length] for part, length in zip(parts, lengths, strict=True)])
        ends = (np.cumsum(lengths)[:-1] / _WORLD_FPS).tolist()
        annotation = {
            "f1_consis_avg": 1.0,
            "video_duration": len(joined) / _WORLD_FPS,
            "substages_timestamps": [ends],
        }
        videos.append(Video(f"world {number}", _WORLD_FPS, annotation, lambda joined=joined: joined))
    return videos[: cfg.train], videos[cfg.train :]


def behaviour_videos(clip: Clip, cfg: Config) -> tuple[list[Video], list[Video]]:
    """As `world_videos`, of one object over one background that does 2 to 2 (`parts` - 1) things one after the other,
    never the same twice in a row, each for one to three clips of frames."""
    spec, behaviours = worlds.travelling(clip), world_behaviours.BEHAVIOURS
    rng = np.random.default_rng(13)
    videos = []
    for number in range(cfg.train + cfg.videos):
        plan: list[tuple[str, int]] = []
        for _ in range(rng.integers(2, 2 * cfg.parts - 1)):
            others = [b for b in behaviours if not plan or b != plan[-1][0]]
            plan.append((others[rng.integers(len(others))], int(rng.integers(clip.frames, 3 * clip.frames + 1))))
        frames, _ = world_behaviours.render_behaviours(spec, 13, number, plan)
        annotation = {
            "f1_consis_avg": 1.0,
            "video_duration": len(frames) / _WORLD_FPS,
            "substages_timestamps": [[start / _WORLD_FPS for _, start, _ in world_behaviours.segments(plan)[1:]]],
        }
        videos.append(Video(f"world {number}", _WORLD_FPS, annotation, lambda frames=frames: frames))
    return videos[: cfg.train], videos[cfg.train :]


def _annotations(root: Path) -> dict[str, Any]:
    """annotations.json, or the two pickles with "split" set by their names."""
    if (root / "annotations.json").exists() or not (root / "val.pkl").exists():
        return json.loads((root / "annotations.json").read_text())
    parts = {split: plain_pickle.read(root / f"{split}.pkl") for split in ("train", "val")}
    return {name: dict(one) | {"split": split} for split, part in parts.items() for name, one in part.items()}


def read_annotated(clip: Clip, cfg: Config) -> tuple[list[Video], list[Video]]:
    """Training and validation videos of a folder laid out as LAYOUT says. Raises DataError."""
    root, layout = Path(cfg.path), LAYOUT.format(path=cfg.path)
    file = root / "annotations.json"
    try:
        annotations = _annotations(root)
        parts: dict[str, list[Video]] = {"train": [], "val": []}
        for name, one in annotations.items():
            raters = [[float(t) for t in rater] for rater in one["substages_timestamps"]]
            facts = {key: float(one[key]) for key in ("f1_consis_avg", "video_duration")}
            path = root / "videos" / f"{name}.mp4"
            load = lambda path=path: read_frames(path, clip.size, cfg.frame_step)
            facts["substages_timestamps"] = raters
            parts[one["split"]].append(Video(name, float(one["fps"]) / cfg.frame_step, facts, load))
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} does not exist: expected {layout}") from None
    except DataError as error:
        raise DataError(f"{root}: {error}: expected {layout}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} cannot be read ({error!r}): expected {layout}") from None
    for name, videos in parts.items():
        if not videos:
            raise DataError(f"{file} has no video of split {name}: expected {layout}")
        for video in videos:
            if not (root / "videos" / f"{video.name}.mp4").is_file():
                raise DataError(f"{root}/videos/{video.name}.mp4 does not exist: expected {layout}")
    return parts["train"], parts["val"]


def _all_found(
    curves: Sequence[np.ndarray], videos: Sequence[Video], clip: Clip, cfg: Config, prominence: float
) -> dict[str, list[float]]:
    """Found boundaries of every video, in seconds."""
    return {v.name: peaks(c, clip.tubelet / v.fps, cfg, prominence) for c, v in zip(curves, videos, strict=True)}


def _rows(
    benchmark: str, how: str, encoder: str, found: list[dict[str, list[float]]], videos: Sequence[Video], note: str
) -> Iterator[Score]:
    truth = {video.name: video.annotation for video in videos}
    names = list(truth)

    def value(one: dict[str, list[float]], thresholds: Sequence[float], rows: np.ndarray) -> float:
        # a video that is drawn twice counts twice
        picked = {str(i): truth[names[row]] for i, row in enumerate(rows)}
        times = {str(i): one[names[row]] for i, row in enumerate(rows)}
        return float(np.mean([boundary_f1(picked, times, threshold) for threshold in thresholds]))

    for metric, thresholds in (("F1@0.05", (0.05,)), ("mean F1@0.05:0.5", BOUNDARY_THRESHOLDS)):
        values = [value(one, thresholds, np.arange(len(names))) for one in found]
        mean = lambda rows, thresholds=thresholds: float(np.mean([value(one, thresholds, rows) for one in found]))
        interval = bootstrap(mean, len(names), resamples=100)
        yield score(
            benchmark, f"{metric}, {how}", encoder, values, count=len(names), interval=interval, unit="", note=note
        )


def _check(cfg: Config) -> None:
    if cfg.data not in BENCHMARKS:
        raise ConfigError(f"boundaries.data={cfg.data!r} is not one of {', '.join(BENCHMARKS)}")
    if cfg.data == "kinetics" and not cfg.path:
        raise ConfigError(f"boundaries.path is empty: give a folder with {LAYOUT.format(path='PATH')}")
    least = {key: getattr(cfg, key) for key in ("frame_step", "reach", "train", "videos", "batch_size")}
    for key, value in least.items():
        if value < 1:
            raise ConfigError(f"boundaries.{key}={value} must be at least 1")
    if cfg.parts < 2:
        raise ConfigError(f"boundaries.parts={cfg.parts} must be at least 2: a boundary lies between two")
    if not cfg.prominences or min(cfg.prominences) < 0 or cfg.smooth < 0 or cfg.least_distance < 0:
        raise ConfigError("boundaries.prominences, smooth and least_distance must not be negative, and one be given")

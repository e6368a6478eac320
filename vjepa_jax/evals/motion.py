"""Motion prediction: do forecasts of latents beat a copy, a mean and a straight line, and do they say what moves?

 (a) skill S_h = 1 - E|forecast - real| / E|baseline - real| at h time steps after the context;
 (b) retrieval of the pooled real latent among 64, of which 15 are of the same video at other times;
 (c) a linear readout of position, velocity and occupancy, trained on real latents and applied to forecasts: only this
     compares models whose latents differ.

Shape suffixes: N videos, T time steps of a clip, F of its future, P places, D channels, C candidates.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import pipeline
from data_pipelines.world_truth import Truth
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import readout, worlds
from vjepa_jax.evals.forecast import forecast, forecasters, latents
from vjepa_jax.evals.scores import OnScore, Score, bootstrap, mean_interval, score
from vjepa_jax.evals.worlds import Clip

NOTHING_MOVES = 1e-4  # baseline error below which there is nothing to predict; latents have a deviation of 1


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    path, split: labelled or unlabelled videos for (a) and (b); "": the embedded world, where (c) is run too.
    context: time steps that are given; None: half of the clip. horizons: time steps after the last given one.
    moving: the share of tokens with the largest persistence error that counts as motion.
    candidates, hard: of the retrieval; hard ones are of the same video, the last given step and the reversed video
      among them.
    """

    path: str = ""
    split: str = "test"
    videos: int = 256
    context: int | None = None
    horizons: tuple[int, ...] = (1, 2, 4)
    moving: float = 0.25
    candidates: int = 64
    hard: int = 15
    batch_size: int = 32
    seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Forecasts:
    """Of one model: forecasts [N, F, P, D] of the steps after the context, real latents [N, T, P, D], and pooled
    latents of the same videos reversed [N, T, D] and at later windows [N, W, D]."""

    predicted: np.ndarray
    real: np.ndarray
    reversed_NTD: np.ndarray
    later_NWD: np.ndarray


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """Scores of every model that predicts, of copies of the last step, and of shuffled frames.

    Raises:
      ConfigError: horizons or candidates that do not fit; DataError: videos that cannot be read.
    """
    clip = worlds.clip_of(encoders, "motion")
    context = clip.steps // 2 if cfg.context is None else cfg.context
    _check(cfg, clip, context)
    videos, truths = _videos(encoders, cfg, clip)
    rows: list[Score] = []
    for name, models in forecasters(encoders).items():
        found = [forecasts(model, videos, clip, context, cfg.batch_size) for model in models]
        for row in _rows(name, found, truths, cfg, clip, context):
            rows.append(row)
            if on_score:
                on_score(row)
    return rows


def forecasts(model: Any, videos: np.ndarray, clip: Clip, context: int, batch_size: int) -> Forecasts:
    """Run a model over videos uint8 [N, frames, H, W, 3], whose first clip is the one that is forecast."""
    windows = videos.shape[1] // clip.frames

    def of_batch(video: np.ndarray) -> tuple[Any, ...]:
        first = video[:, : clip.frames]
        pooled = lambda part: np.asarray(latents(model, part)).mean(2)
        later = [pooled(video[:, w * clip.frames : (w + 1) * clip.frames]) for w in range(1, windows)]
        real = latents(model, first)
        empty = np.zeros((len(video), 0, real.shape[-1]), np.float32)
        predicted = forecast(model, first, context, clip.steps, clip.places)
        return predicted, real, pooled(first[:, ::-1]), np.concatenate([empty, *later], 1)

    return Forecasts(*worlds.in_batches(of_batch, batch_size, videos))


# ------------------------------------------------------------------------------------------------------------ (a)


def errors(f: Forecasts, context: int, horizon: int) -> dict[str, np.ndarray]:
    """Mean |guess - real| of every token at a horizon, [N, P]: of the forecast and of the guesses without a model.

    "persistence": the token at the same place in the last given step; "mean": the mean token of all videos;
    "linear": the line through the last two given steps (persistence where one step is given).
    """
    at = context - 1 + horizon
    last, before = f.real[:, context - 1], f.real[:, max(context - 2, 0)]
    guesses = {
        "forecast": f.predicted[:, horizon - 1],
        "persistence": last,
        "mean": np.broadcast_to(f.real.mean((0, 1, 2)), last.shape),
        "linear": last + horizon * (last - before),
    }
    return {name: abs(guess - f.real[:, at]).mean(-1, dtype=np.float64) for name, guess in guesses.items()}


def skill(forecast_N: np.ndarray, baseline_N: np.ndarray) -> float:
    """1 - sum of forecast errors / sum of baseline errors; 0 where the baseline makes no error (nothing to predict)."""
    if baseline_N.mean() < NOTHING_MOVES:
        return 0.0
    return float(1.0 - forecast_N.sum() / baseline_N.sum())


def moving_tokens(persistence_NP: np.ndarray, share: float) -> np.ndarray:
    """bool [N, P]: the `share` of all tokens that persistence is worst at."""
    threshold = np.quantile(persistence_NP, 1.0 - share)
    return persistence_NP >= threshold


def ahead(horizon: int) -> str:
    """ "1 tubelet", "2 tubelets", ...: how metrics name a horizon."""
    return f"{horizon} tubelet{'s' if horizon > 1 else ''}"


def _skills(name: str, found: list[Forecasts], cfg: Config, context: int, benchmark: str) -> Iterator[Score]:
    for horizon in cfg.horizons:
        each = [errors(f, context, horizon) for f in found]
        for baseline in ("persistence", "mean", "linear"):
            pairs = [(e["forecast"].mean(1), e[baseline].mean(1)) for e in each]
            yield _skill_row(f"skill against {baseline} at {ahead(horizon)}", benchmark, name, pairs)
        masks = [moving_tokens(e["persistence"], cfg.moving) for e in each]
        # Means over the moving tokens of all videos, as sums a video: a video where nothing moves adds nothing.
        of = lambda e, key, mask: np.where(mask, e[key], 0.0).mean(1)
        pairs = [(of(e, "forecast", m), of(e, "persistence", m)) for e, m in zip(each, masks, strict=True)]
        yield _skill_row(f"skill against persistence at {ahead(horizon)}, moving tokens", benchmark, name, pairs)


def _skill_row(metric: str, benchmark: str, name: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Score:
    interval = None
    if len(pairs) == 1:
        a, b = pairs[0]
        interval = bootstrap(lambda rows: skill(a[rows], b[rows]), len(a), resamples=500)
    values = [skill(*pair) for pair in pairs]
    return score(benchmark, metric, name, values, count=len(pairs[0][0]), interval=interval, unit="", chance=0.0)


# ------------------------------------------------------------------------------------------------------------ (b)


def hard_negatives(f: Forecasts, context: int, horizon: int, count: int) -> np.ndarray:
    """Pooled latents of the same video at other times, [N, count, D], the most alike first.

    The last given step, then in turn the nearest steps of the clip and of the reversed clip, then later windows.
    """
    at, steps = context - 1 + horizon, f.real.shape[1]
    pooled = f.real.mean(2)
    forward = sorted((t for t in range(steps) if t not in (at, context - 1)), key=lambda t: abs(t - at))
    backward = sorted(range(steps), key=lambda t: abs(steps - 1 - t - at))
    ordered = [pooled[:, context - 1]]
    for i in range(steps):
        ordered += [pooled[:, forward[i]]] if i < len(forward) else []
        ordered += [f.reversed_NTD[:, backward[i]]]
    ordered += list(f.later_NWD.swapaxes(0, 1))
    return np.stack(ordered[:count], 1)


def ranks(predicted_ND: np.ndarray, true_ND: np.ndarray, negatives_NCD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many negatives are nearer to the forecast (mean L1) than the true one, and how many are as near; int [N]."""
    distance = abs(negatives_NCD - predicted_ND[:, None]).mean(-1, dtype=np.float64)
    own = abs(true_ND - predicted_ND).mean(-1, dtype=np.float64)[:, None]
    same = abs(distance - own) <= 1e-6 * (1.0 + own)
    return ((distance < own) & ~same).sum(1), same.sum(1)


def top1(better: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Chance of each row that the true one comes first when ties are broken by lot: float64 [N]."""
    return np.where(better == 0, 1.0 / (1.0 + same), 0.0)


def reciprocal_rank(better: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Mean of 1/rank over the places that ties leave open: float64 [N]."""
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, better.max() + same.max() + 2))])
    return (harmonic[better + same + 1] - harmonic[better]) / (same + 1)


def _retrieval(name: str, found: list[Forecasts], cfg: Config, context: int, benchmark: str) -> Iterator[Score]:
    for horizon in cfg.horizons:
        results: dict[str, list[np.ndarray]] = {}
        for f in found:
            at = context - 1 + horizon
            predicted, true = f.predicted[:, horizon - 1].mean(1), f.real[:, at].mean(1)
            hard = hard_negatives(f, context, horizon, cfg.hard)
            easy = _other_videos(true, cfg.candidates - 1 - cfg.hard)
            together = ranks(predicted, true, np.concatenate([hard, easy], 1))
            against_hard = ranks(predicted, true, hard)
            for key, values in (
                (f"retrieval top-1 of {cfg.candidates}", top1(*together)),
                (f"retrieval MRR of {cfg.candidates}", reciprocal_rank(*together)),
                (f"retrieval top-1 of {cfg.hard + 1}, same video", top1(*against_hard)),
            ):
                results.setdefault(key, []).append(100.0 * values)
        places = np.arange(1, cfg.candidates + 1)
        chances = (100.0 / cfg.candidates, 100.0 * (1.0 / places).mean(), 100.0 / (cfg.hard + 1))
        for (key, values), chance in zip(results.items(), chances, strict=True):
            interval = mean_interval(values[0]) if len(values) == 1 else None
            means = [v.mean() for v in values]
            count = len(values[0])
            yield score(
                benchmark, f"{key} at {ahead(horizon)}", name, means, count=count, interval=interval, chance=chance
            )


def _other_videos(true_ND: np.ndarray, count: int) -> np.ndarray:
    """For each video the true latents of `count` others, drawn the same for every model: [N, count, D]."""
    rng, n = np.random.default_rng(0), len(true_ND)
    chosen = np.stack([rng.choice(n - 1, count, replace=False) for _ in range(n)])
    return true_ND[chosen + (chosen >= np.arange(n)[:, None])]


# ------------------------------------------------------------------------------------------------------------ (c)


def _readouts(name, found, truths, cfg, clip, context, benchmark) -> Iterator[Score]:
    by_model = [readout.read_out(f, truths, clip, context, cfg.horizons) for f in found]
    for horizon, *each in zip(cfg.horizons, *by_model, strict=True):
        count = len(truths) - len(truths) // 2

        def row(metric: str, statistic: Any, each: list = each, count: int = count) -> Score:
            rows = np.arange(count)
            interval = bootstrap(lambda r: statistic(each[0], r), count, resamples=200) if len(each) == 1 else None
            values = [statistic(e, rows) for e in each]
            return score(benchmark, metric, name, values, count=count, interval=interval, unit="", chance=0.0)

        for what in ("position", "occupancy"):
            yield row(f"{what}, readout-normalised at {ahead(horizon)}", functools.partial(_share, what))
        for what in ("position", "velocity", "occupancy"):
            for source in ("forecast", "copy", "oracle"):
                yield row(f"R2 of {what} from the {source} at {ahead(horizon)}", functools.partial(_r2, what, source))


def _r2(what: str, source: str, read: Mapping[str, Any], rows: np.ndarray) -> float:
    return readout.r_squared(read[what][source][rows], read[what]["true"][rows])


def _share(what: str, read: Mapping[str, Any], rows: np.ndarray) -> float:
    return readout.normalised(*(_r2(what, source, read, rows) for source in ("forecast", "copy", "oracle")))


# ----------------------------------------------------------------------------------------------------- together


def _rows(name, found, truths, cfg, clip, context) -> Iterator[Score]:
    benchmark = "world, motion" if truths else "motion"
    read = list(_readouts(name, found, truths, cfg, clip, context, benchmark)) if truths else []
    normalised = [row for row in read if "normalised" in row["metric"]]
    yield from normalised  # first what compares models
    yield from _skills(name, found, cfg, context, benchmark)
    yield from _retrieval(name, found, cfg, context, benchmark)
    yield from (row for row in read if row not in normalised)


def _videos(encoders, cfg: Config, clip: Clip) -> tuple[np.ndarray, list[Truth]]:
    """Videos with as many windows as hard negatives need: uint8 [N, windows * frames, H, W, 3], and their truth."""
    frames = clip.frames * _windows(cfg, clip)
    if not cfg.path:
        return worlds.render(worlds.travelling(clip, frames), cfg.videos, seed=11)
    run = encoders["trained"][0].run
    batches = pipeline.eval_batches(
        cfg.path,
        num_frames=frames,
        size=clip.size,
        batch_size=cfg.batch_size,
        fps=None if run.data.frame_step else run.data.fps,
        frame_step=run.data.frame_step,
        split=cfg.split,
        antialias=run.data.augment.antialias,
    )
    videos = np.concatenate([batch["video"][batch["index"] >= 0] for batch in batches])[: cfg.videos]
    if len(videos) < cfg.candidates:
        raise ConfigError(
            f"motion.path={cfg.path} has {len(videos)} videos: {cfg.candidates} are needed to retrieve among"
        )
    return videos, []


def _windows(cfg: Config, clip: Clip) -> int:
    """Clips in a row that give `hard` negatives: the first gives its other steps and those of its reverse."""
    return 1 + max(0, -(-(cfg.hard - (2 * clip.steps - 1)) // clip.steps))


def _check(cfg: Config, clip: Clip, context: int) -> None:
    if not 1 <= context < clip.steps:
        raise ConfigError(
            f"motion.context={context} must be at least 1 and below the {clip.steps} time steps of a clip"
        )
    for horizon in cfg.horizons:
        if not 1 <= horizon <= clip.steps - context:
            raise ConfigError(
                f"motion.horizons: {horizon} must be at least 1 and at most {clip.steps - context}: a clip has "
                f"{clip.steps} time steps and {context} are given"
            )
    if not 1 <= cfg.hard < cfg.candidates or cfg.videos < cfg.candidates:
        raise ConfigError(
            f"motion.hard={cfg.hard} must be below motion.candidates={cfg.candidates}, and that at most "
            f"motion.videos={cfg.videos}"
        )
    if not 0.0 < cfg.moving <= 1.0:
        raise ConfigError(f"motion.moving={cfg.moving} must lie in (0, 1]")

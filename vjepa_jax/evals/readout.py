"""Linear readouts of what is in a scene: trained on the real latents of a model, applied to its forecasts.

The one measure of forecasts that compares models whose latents differ; a copy of the last step is the lower bound, the
real latents are the upper one (as in DINO-world, arXiv 2507.19468).

Shape suffixes: N videos, T time steps, P places, D channels, R rows, F features, Y targets.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.world_truth import Truth
from vjepa_jax.evals.linear import standardize
from vjepa_jax.evals.worlds import Clip

Read = dict[str, dict[str, np.ndarray]]
GRID = 4  # the readout of position sees at most so many cells a side


@dataclasses.dataclass(frozen=True)
class Ridge:
    """targets = (x - mean) * scale @ weights_FY + bias."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, x_RF: np.ndarray) -> np.ndarray:
        return ((x_RF - self.mean) * self.scale) @ self.weights + self.bias


def fit_ridge(x_RF: np.ndarray, y_RY: np.ndarray, penalties: Sequence[float] = (1e-3, 1e-2, 0.1, 1.0, 10.0)) -> Ridge:
    """Ridge regression on standardised features; the penalty (of the mean squared error, times the mean variance) is
    chosen on the last fifth of the rows, which must be in an order that keeps videos together."""
    mean, scale = standardize(x_RF)
    z, bias = ((x_RF - mean) * scale).astype(np.float64), y_RY.mean(0)
    y, cut = y_RY - bias, len(x_RF) - max(len(x_RF) // 5, 1)
    part = _ridges(z[:cut], y[:cut], penalties)
    losses = [np.square(z[cut:] @ weights - y[cut:]).mean() for weights in part]
    (whole,) = _ridges(z, y, [penalties[int(np.argmin(losses))]])
    return Ridge(mean, scale, whole, bias)


def _ridges(z: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> list[np.ndarray]:
    """Weights for every penalty, from one decomposition in the smaller of the two spaces, rows or features."""
    rows, dims = z.shape
    values, axes = np.linalg.eigh(z.T @ z if dims <= rows else z @ z.T)
    shrunk = axes.T @ (z.T @ y if dims <= rows else y)
    solved = [axes @ (shrunk / (values + penalty * rows)[:, None]) for penalty in penalties]
    return solved if dims <= rows else [z.T @ dual for dual in solved]


def r_squared(guess: np.ndarray, true: np.ndarray) -> float:
    """1 - squared error / squared deviation from the mean, over all videos (first axis) and targets together."""
    return float(1.0 - np.square(guess - true).sum() / np.square(true - true.mean(0)).sum())


def normalised(predicted: float, copied: float, oracle: float) -> float:
    """(m(forecast) - low) / (m(oracle) - low), low being the better of m(copy) and 0, what the mean scores in R2: else
    a forecast of the mean would gain wherever a copy is worse than that.

    0 where the oracle is less than 0.02 above, so that features that tell nothing score nothing.
    """
    low = max(copied, 0.0)
    return (predicted - low) / (oracle - low) if oracle - low > 0.02 else 0.0


def targets(truths: Sequence[Truth], clip: Clip) -> dict[str, np.ndarray]:
    """What is read out at every time step: position [N, T, 4] as sine and cosine on the torus, velocity [N, T, 2] in
    pixels a frame, occupancy [N, T, P] as the share of a token's pixels that belong to an object."""
    stack = lambda field: np.stack([getattr(t, field)[: clip.frames] for t in truths])
    by_step = lambda x: x.reshape(len(truths), clip.steps, clip.tubelet, *x.shape[2:])
    height, width = clip.size
    angle = 2 * np.pi * by_step(stack("tracks")[:, :, 0]) / np.array([width, height])
    angles = np.concatenate([np.sin(angle), np.cos(angle)], -1).mean(2)
    p = clip.patch
    solid = by_step(stack("masks") > 0).mean(2)
    tokens = solid.reshape(len(truths), clip.steps, height // p, p, width // p, p).mean((3, 5))
    return {
        "position": angles,
        "velocity": by_step(stack("velocity")[:, :, 0]).mean(2),
        "occupancy": tokens.reshape(len(truths), clip.steps, -1),
    }


def cells(z_NPD: np.ndarray, clip: Clip) -> np.ndarray:
    """Latents of one time step as one row: means over at most 4 x 4 cells of the frame, [N, cells * D]."""
    h, w = clip.size[0] // clip.patch, clip.size[1] // clip.patch
    rows, columns = (np.array_split(np.arange(n), min(n, GRID)) for n in (h, w))
    z = z_NPD.reshape(len(z_NPD), h, w, -1)
    return np.concatenate([z[:, r][:, :, c].mean((1, 2)) for r in rows for c in columns], -1)


def fit(real_NTPD: np.ndarray, truths: Sequence[Truth], clip: Clip) -> dict[str, Ridge]:
    """Readouts of position, velocity and occupancy from real latents, of all time steps of the videos."""
    readouts = {}
    for what, target in targets(truths, clip).items():
        x = _rows(what, real_NTPD.reshape(-1, *real_NTPD.shape[2:]), clip)
        readouts[what] = fit_ridge(x, target.reshape(len(x), -1))
    return readouts


def _rows(what: str, z_NPD: np.ndarray, clip: Clip) -> np.ndarray:
    """What a readout reads of one time step: occupancy every token on its own, the others all of them."""
    return z_NPD.reshape(-1, z_NPD.shape[-1]) if what == "occupancy" else cells(z_NPD, clip)


def read_out(f: Any, truths: Sequence[Truth], clip: Clip, context: int, horizons: Sequence[int]) -> list[Read]:
    """Position, velocity and occupancy of the second half of the videos, read from what a model predicts.

    Readouts are trained on the real latents of the first half.

    Args:
      f: motion.Forecasts.

    Returns:
      For each horizon and quantity "true", and what is read from the "forecast", from a "copy" of the last given step,
      and from the "oracle", the real latents: float64 [n, targets] each.
    """
    half, results = len(truths) // 2, []
    readouts, target = fit(f.real[:half], truths[:half], clip), targets(truths[half:], clip)
    for horizon in horizons:
        at = context - 1 + horizon
        sources = {"forecast": f.predicted[half:, horizon - 1], "copy": f.real[half:, context - 1]}
        sources["oracle"] = f.real[half:, at]
        read: Read = {}
        for what, ridge in readouts.items():
            true = target[what][:, at]
            read[what] = {name: ridge(_rows(what, z, clip)).reshape(true.shape) for name, z in sources.items()}
            read[what]["true"] = true
        results.append(read)
    return results

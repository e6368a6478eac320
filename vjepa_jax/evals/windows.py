"""Features of videos longer than a clip: windows that overlap by half, averaged where they meet."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vjepa_jax.evals.features import Encode


def window_starts(frames: int, clip: int, tubelet: int) -> list[int]:
    """First frames of clips that overlap by half and cover the video; the last may reach beyond its end."""
    stride = max(clip // 2 // tubelet, 1) * tubelet
    return list(range(0, max(frames - clip, 0) + stride, stride))


def padded(video: np.ndarray, frames: int) -> np.ndarray:
    """The first `frames` frames of a video, its last one repeated."""
    return video[np.minimum(np.arange(frames), len(video) - 1)]


def encode_clips(
    encode: Encode, clips: np.ndarray, batch_size: int, reduce: Callable[[Any], Any] | None = None
) -> np.ndarray:
    """Features of many clips, a batch of the same size at a time, float32; `reduce` of each batch where it is given."""
    parts = []
    for start in range(0, len(clips), batch_size):
        part = clips[start : start + batch_size]
        features = encode(padded(part, batch_size))
        parts.append(np.asarray(reduce(features) if reduce else features, np.float32)[: len(part)])
    return np.concatenate(parts)


def step_features(
    encode: Encode,
    video: np.ndarray,
    clip: int,
    tubelet: int,
    batch_size: int,
    reduce: Callable[[Any], Any] | None = None,
) -> np.ndarray:
    """Features of every time step of a video of any length, each the mean over the windows that hold it.

    Args:
      video: uint8 [F, H, W, 3]; its last frame fills up the last window.
      clip: frames of the encoder's clip; tubelet: frames of a step.
      reduce: what is kept of features [B, T', ...], say their mean over space.

    Returns:
      float32 [S, ...], S at least F / tubelet.
    """
    starts = window_starts(len(video), clip, tubelet)
    filled = padded(video, starts[-1] + clip)
    features = encode_clips(encode, np.stack([filled[s : s + clip] for s in starts]), batch_size, reduce)
    total = np.zeros((len(filled) // tubelet, *features.shape[2:]), np.float32)
    count = np.zeros(len(total), np.float32)
    for start, part in zip(starts, features, strict=True):
        at = slice(start // tubelet, (start + clip) // tubelet)
        total[at] += part
        count[at] += 1
    return total / count.reshape(-1, *[1] * (total.ndim - 1))

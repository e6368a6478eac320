"""Tokens of labelled videos as probes read them: several segments of a video, several blocks of an encoder."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Control:
    """An encoder that is shown something else than the clip: `wrap` is a function of evals.controls."""

    def __init__(self, wrap: Callable[[Any], Any], encoder: Any):
        self._wrap, self._encoder = wrap, encoder

    def __call__(self, video: Any) -> Any:
        return self._wrap(self._encoder)(video)

    def layers(self, video: Any, layers: tuple[int, ...]) -> Any:
        return self._wrap(lambda clip: outputs(self._encoder, clip, layers))(video)


def sequence(encoder: Any, video: np.ndarray, layers: tuple[int, ...], dtype: str, at_once: int) -> jax.Array:
    """Tokens of videos, all segments in one sequence, those of several blocks one after the other (vjepa2
    evals/video_classification_frozen/modelcustom).

    The encoder sees `at_once` clips at a time, and never another number, so that it is compiled once.

    Args:
      encoder: gives features of clips, and `layers(clips, layers)` where it has several (vjepa_jax.encoder.Encoder);
        raw pixels and other functions are taken as they are.
      video: uint8 [B, S, T, H, W, 3].
      layers: blocks from 0, ending with the last; (): the features.

    Returns:
      [B, S * L * N, D] in `dtype`.
    """
    clips, parts = video.reshape(-1, *video.shape[2:]), []
    for start in range(0, len(clips), at_once):
        part = clips[start : start + at_once]
        missing = at_once - len(part)
        if missing:
            part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
        found = outputs(encoder, part, layers)
        tokens = jnp.asarray(found.reshape(at_once, -1, found.shape[-1]), dtype)
        parts.append(tokens[: at_once - missing])
    tokens = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    return tokens.reshape(len(video), -1, tokens.shape[-1])


def outputs(encoder: Any, clips: np.ndarray, layers: tuple[int, ...]) -> Any:
    """[B, L, T', H', W', D] of the layers, where the encoder has them, else its features [B, T', H', W', D]."""
    return encoder.layers(clips, layers) if layers and hasattr(encoder, "layers") else encoder(clips)


def moments(tokens: Any) -> np.ndarray:
    """Number, sum and sum of squares of every channel, float64 [3, D]: those of several batches add up."""
    x_XD = np.asarray(tokens, np.float64).reshape(-1, tokens.shape[-1])
    return np.stack([np.full(x_XD.shape[1], len(x_XD)), x_XD.sum(0), (x_XD * x_XD).sum(0)])


def affine(total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every channel and what to multiply by to give it a deviation of 1 (a constant one: 0), float32 [D]."""
    count, first, second = total
    mean = first / count
    deviation = np.sqrt(np.maximum(second / count - mean**2, 0.0))
    scale = np.where(deviation > 1e-6, 1.0 / np.maximum(deviation, 1e-6), 0.0)
    return mean.astype(np.float32), scale.astype(np.float32)


def affines(names: Iterable[str], batches: Iterable[Callable[[str], Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`affine` of every encoder over the tokens of some batches, functions from its name to them; of none: {}."""
    sums: dict[str, Any] = {}
    for tokens in batches:
        for name in names:
            sums[name] = sums.get(name, 0.0) + moments(tokens(name))
    return {name: affine(total) for name, total in sums.items()}


class Reader:
    """Sequences of videos by every encoder, as probes read them.

    The published protocol takes features as they are. An encoder trained for a short time has most of its length in a
    common mean, which heads take long to see past: `fit` finds what is then subtracted and divided by.
    """

    def __init__(self, encoders: Mapping[str, Any], layers: tuple[int, ...], dtype: str, at_once: int):
        self.encoders = encoders
        self._options = (layers, dtype, at_once)
        self._affine: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def fit(self, batches: Iterable[Callable[[str], Any]]) -> None:
        """Mean and deviation of every channel over the tokens of some batches; a constant channel becomes 0.

        batches: functions from an encoder's name to what `raw` gives.
        """
        self._affine = affines(self.encoders, batches)

    def raw(self, name: str, video: np.ndarray) -> jax.Array:
        """Tokens of videos uint8 [B, S, T, H, W, 3] by one encoder; see `sequence`."""
        return sequence(self.encoders[name], video, *self._options)

    def standardised(self, name: str, x_BND: jax.Array) -> jax.Array:
        """Tokens that `raw` gave as probes read them."""
        if name not in self._affine:
            return x_BND
        mean_D, scale_D = self._affine[name]
        return ((x_BND.astype(jnp.float32) - mean_D) * scale_D).astype(x_BND.dtype)

    def __call__(self, name: str, video: np.ndarray) -> jax.Array:
        """Both."""
        return self.standardised(name, self.raw(name, video))

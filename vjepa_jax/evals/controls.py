"""What stands beside a trained encoder in every table: the same model with random weights, raw pixels, fewer frames.

An encoder is anything that is called with uint8 video [B, T, H, W, 3] and gives features [B, T', H', W', D]; those
that predict have `predict(video, context, target, mask_index)` as well (vjepa_jax.encoder.Encoder).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjepa_jax.encoder import Encoder
from vjepa_jax.evals.features import Encode, pixel_features
from vjepa_jax.ops.patches import token_grid

TRAINED, RANDOM, PIXELS = "trained", "random init", "raw pixels"
STILL, SHUFFLED = "single frame", "shuffled frames"


def encoders(encoder: Encoder, seeds: int, *, pixels: bool = True) -> dict[str, list[Any]]:
    """The encoder, as many random initialisations of its model as there are seeds, and raw pixels.

    `pixels=False` leaves out raw pixels, for evaluations of the prediction.
    """
    model = encoder.run.model
    named: dict[str, list[Any]] = {TRAINED: [encoder]}
    fresh = jax.jit(lambda key: encoder.objective.eval_params(*encoder.objective.init(key)))
    # the same model: compiled once for all of them
    named[RANDOM] = [encoder.with_params(fresh(jax.random.key(1000 + seed))) for seed in range(seeds)]
    if pixels:
        named[PIXELS] = [functools.partial(pixel_features, patch=model.patch_size, tubelet=model.tubelet_size)]
    return named


def with_frames(encoders: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The same, and beside them the trained encoder on stills and on shuffled frames: what it knows without time, and
    without its order."""
    named = {name: list(group) for name, group in encoders.items()}
    for name, control in FRAMES.items():
        named[name] = [control(encode) for encode in named[TRAINED]]
    return named


def single_frame(encode: Encode) -> Encode:
    """The encoder of a still: every frame of a clip is its middle one."""

    def still(video: np.ndarray) -> Any:
        video = np.asarray(video)
        middle = video[:, video.shape[1] // 2]
        return encode(np.repeat(middle[:, None], video.shape[1], axis=1))

    return still


def shuffled_frames(encode: Encode, seed: int = 0) -> Encode:
    """The encoder of a clip whose frames stand in one fixed random order, the same for all clips of a length.

    The order is never the one that it was.
    """

    def shuffled(video: np.ndarray) -> Any:
        video = np.asarray(video)
        frames = video.shape[1]
        rng = np.random.default_rng([seed, frames])
        order = np.arange(frames)
        while frames > 1 and (order == np.arange(frames)).all():
            order = rng.permutation(frames)
        return encode(video[:, order])

    return shuffled


FRAMES: dict[str, Callable[[Encode], Encode]] = {STILL: single_frame, SHUFFLED: shuffled_frames}


def constant_features(video: np.ndarray, patch: int, tubelet: int, width: int = 8) -> jax.Array:
    """A collapsed encoder: one vector for every token, float32 [B, T/tubelet, H/patch, W/patch, width]."""
    grid = token_grid(np.asarray(video).shape, tubelet, patch)
    return jnp.broadcast_to(jnp.arange(1.0, width + 1), (len(video), *grid, width))

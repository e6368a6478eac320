"""Forecasts of latents: what a model predicts for the later tokens of a clip from its first ones, and what came.

Shape suffixes: B batch, K context steps, F future steps, P places (tokens of one time step), D channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vjepa_jax.evals import controls
from vjepa_jax.evals.features import Encode
from vjepa_jax.ops.losses import layer_norm


def latents(encode: Encode, video: np.ndarray) -> Any:
    """What a forecast is compared with: features of whole clips, normalised as in training; float32 [B, T', P, D]."""
    features = layer_norm(jnp.asarray(encode(video)))
    return features.reshape(*features.shape[:2], -1, features.shape[-1])


def forecast(model: Any, video: np.ndarray, context_steps: int, steps: int, places: int) -> Any:
    """Predicted latents of the time steps from `context_steps` on, from the tokens before: float32 [B, F, P, D].

    The context is what the encoder sees: later tokens are not given to it, neither real nor blank. Of models that
    predict several levels, the last is taken.
    """
    batch = len(video)
    ids = np.broadcast_to(np.arange(steps * places, dtype=np.int32), (batch, steps * places))
    context, target = np.split(ids, [context_steps * places], axis=1)
    predicted = jnp.asarray(model.predict(video, context, target))
    predicted = predicted.reshape(batch, steps - context_steps, places, -1)
    return predicted[..., -_width(model, predicted.shape[-1]) :]


def errors(model: Any, video: np.ndarray, contexts: Sequence[int], steps: int, places: int) -> np.ndarray:
    """Mean L1 distance of the predicted and the real latents of all later steps, after each number of context steps:
    float32 [B, contexts]."""
    real = latents(model, video)
    each = [abs(forecast(model, video, c, steps, places) - real[:, c:]).mean((1, 2, 3)) for c in contexts]
    return np.stack([np.asarray(e) for e in each], 1)


def _width(model: Any, predicted: int) -> int:
    """Channels of one level."""
    run = getattr(model, "run", None)
    levels = run.model.levels if run is not None and not run.model.predictor.last_level_only else ()
    return predicted // max(len(levels), 1)


class CopyLast:
    """The forecast without a model of motion: every later token is the one at its place in the last context step."""

    def __init__(self, encode: Encode):
        self.encode = encode

    def __call__(self, video: np.ndarray) -> Any:
        return self.encode(video)

    def predict(self, video: np.ndarray, context: np.ndarray, target: np.ndarray, mask_index: int = 0) -> Any:
        """As vjepa_jax.encoder.Encoder.predict; its last step is that of the whole clip's features."""
        del mask_index
        z_BTPD = latents(self.encode, video)
        places = z_BTPD.shape[2]
        last = int(context.max()) // places
        return jnp.take_along_axis(z_BTPD[:, last], (target % places)[:, :, None], axis=1)


class Shuffled:
    """A model that gets the frames of every clip in one fixed random order (controls.shuffled_frames)."""

    def __init__(self, model: Any, seed: int = 0):
        self.model, self.seed = model, seed

    def __call__(self, video: np.ndarray) -> Any:
        return controls.shuffled_frames(self.model, self.seed)(video)

    def predict(self, video: np.ndarray, context: np.ndarray, target: np.ndarray, mask_index: int = 0) -> Any:
        """As vjepa_jax.encoder.Encoder.predict."""
        predict = lambda clip: self.model.predict(clip, context, target, mask_index)
        return controls.shuffled_frames(predict, self.seed)(video)


def forecasters(encoders: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The encoders that predict, and beside them the controls of a forecast: copies of the last step (in latents and,
    where there are raw pixels, in pixels) and shuffled frames."""
    named = {name: list(group) for name, group in encoders.items() if all(hasattr(e, "predict") for e in group)}
    trained = encoders[controls.TRAINED][0]
    named["copy of the last step"] = [CopyLast(trained)]
    named[controls.SHUFFLED] = [Shuffled(trained)]
    if controls.PIXELS in encoders:
        named["copy of the last pixels"] = [CopyLast(encoders[controls.PIXELS][0])]
    return named

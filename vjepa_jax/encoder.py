"""The one thing that evaluations, streaming, planning and users take: config + parameters + jitted functions."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from vjepa_jax import config as config_lib
from vjepa_jax import objectives
from vjepa_jax.config import RunConfig
from vjepa_jax.training import checkpoint
from vjepa_jax.training.optim import make_optimizer
from vjepa_jax.training.state import abstract_state

CONFIG_FILE = "config.json"


class Encoder:
    """A trained (or random) model: call it on video for features, `predict` for the features of masked tokens."""

    def __init__(self, run: RunConfig, params: Any, objective: Any = None):
        """`params` is what `objective.eval_params` gives; `objective` is made from the config where it is None."""
        self.run, self.params = run, params
        self.objective = objectives.create(run) if objective is None else objective
        self._features = jax.jit(self.objective.features)
        self._predict = jax.jit(self.objective.predict, static_argnums=4)

    @classmethod
    def random(cls, run: RunConfig, seed: int = 0) -> "Encoder":
        """Freshly initialised weights: the baseline that every evaluation prints."""
        objective = objectives.create(run)
        params, aux = jax.jit(objective.init)(jax.random.key(seed))
        return cls(run, objective.eval_params(params, aux), objective)

    def __call__(self, video: Any) -> jax.Array:
        """Features of clips: uint8 or normalised float [B, T, H, W, 3] (or one clip without B).

        Returns:
          float32 [B, T', H', W', D] (or without B), after the final norm.

        Raises:
          ValueError: the clip does not divide into tubelets.
        """
        video, single = _batched(video)
        features = self._features(self.params, video)
        return features[0] if single else features

    def predict(self, video: Any, context: Any, target: Any, mask_index: int = 0) -> jax.Array:
        """Predicted normalised features of the tokens `target` from the visible tokens `context`.

        Args:
          video: as for a call.
          context, target: int32 [B, C] and [B, M] token ids t*H'*W' + h*W' + w (or [C], [M] for one clip).
          mask_index: which learned mask token to use.

        Returns:
          float32 [B, M, D] (or [M, D]).
        """
        video, single = _batched(video)
        context, target = (np.asarray(ids, np.int32) for ids in (context, target))
        if single:
            context, target = context[None], target[None]
        prediction = self._predict(self.params, video, context, target, mask_index)
        return prediction[0] if single else prediction


def load(path: str | os.PathLike[str], step: int | None = None) -> Encoder:
    """The target encoder and the predictor of a run folder, from its newest checkpoint or the one of `step`.

    Raises:
      CheckpointError: no run, no checkpoint, or a damaged one.
    """
    folder = pathlib.Path(path)
    run = read_config(folder)
    objective = objectives.create(run)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device),
        abstract_state(objective, make_optimizer(run)),
    )
    # only what is evaluated is read: neither the optimiser nor, where there is a target, the online encoder
    wanted = objective.eval_params(abstract["params"], abstract["aux"])
    state = checkpoint.load_parts(folder, _parts(objective, abstract, wanted), step)
    return Encoder(run, objective.eval_params(state["params"], state["aux"]), objective)


def read_config(folder: str | os.PathLike[str]) -> RunConfig:
    """The config that a run folder was trained with. Raises CheckpointError where it is none."""
    path = pathlib.Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise checkpoint.CheckpointError(f"{folder} is not a run folder: it has no {CONFIG_FILE}")
    return config_lib.from_config_dict(json.loads(path.read_text()))


def _parts(objective, abstract, wanted):
    """The leaves of params and aux that `eval_params` keeps, as a partial state tree."""
    kept = {id(leaf) for leaf in jax.tree.leaves(wanted)}

    def prune(tree):
        if not isinstance(tree, dict):
            return tree if id(tree) in kept else None
        pruned = {key: prune(value) for key, value in tree.items()}
        return {key: value for key, value in pruned.items() if value is not None} or None

    state = prune({"params": abstract["params"], "aux": abstract["aux"]}) or {}
    return {"params": {}, "aux": {}} | state


def _batched(video) -> tuple[Any, bool]:
    video = video if isinstance(video, jax.Array) else np.asarray(video)
    if video.ndim not in (4, 5) or video.shape[-1] != 3:
        raise ValueError(f"video must be [T, H, W, 3] or [B, T, H, W, 3], got shape {video.shape}")
    return (video[None], True) if video.ndim == 4 else (video, False)

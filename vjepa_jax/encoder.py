"""The one thing that evaluations, streaming, planning and users take: config + parameters + jitted functions."""

import copy
import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from vjepa_jax import config as config_lib
from vjepa_jax import objectives
from vjepa_jax.config import ModelConfig, RunConfig
from vjepa_jax.config_build import flatten
from vjepa_jax.convert import ConvertError, ac, formats
from vjepa_jax.convert.shapes import check as check_shapes
from vjepa_jax.convert.weights import Hints, Weights
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
        self._features = jax.jit(self.objective.features, static_argnums=2)
        self._predict = jax.jit(self.objective.predict, static_argnums=4)

    @classmethod
    def random(cls, run: RunConfig, seed: int = 0) -> "Encoder":
        """Freshly initialised weights: the baseline that every evaluation prints."""
        objective = objectives.create(run)
        params, aux = jax.jit(objective.init)(jax.random.key(seed))
        return cls(run, objective.eval_params(params, aux), objective)

    def with_params(self, params: Any) -> "Encoder":
        """The same model with other parameters of the same shapes; what has been compiled serves it too."""
        other = copy.copy(self)
        other.params = params
        return other

    def with_model(self, model: ModelConfig) -> "Encoder":
        """The same parameters in a model that differs in what has none, say in how positions are counted."""
        return Encoder(dataclasses.replace(self.run, model=model), self.params)

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

    def layers(self, video: Any, layers: tuple[int, ...]) -> jax.Array:
        """Outputs of several blocks, counted from 0 and ending with the last, each after its norm.

        Args:
          video: uint8 or normalised float [B, T, H, W, 3].

        Returns:
          float32 [B, L, T', H', W', D].

        Raises:
          ConfigError: blocks that the model does not have, or has no norm for.
        """
        return self._features(self.params, video, tuple(layers))

    def predict(self, video: Any, context: Any, target: Any, mask_index: int = 0) -> jax.Array:
        """Predicted normalised features of the tokens `target` from the visible tokens `context`.

        Args:
          video: as for a call.
          context, target: int32 [B, C] and [B, M] token ids t*H'*W' + h*W' + w (or [C], [M] for one clip).
          mask_index: which learned mask token to use (transformers always takes 1).

        Returns:
          float32 [B, M, D] (or [M, D]).

        Raises:
          ConvertError: the weights came without a predictor, or with one that is conditioned on actions.
        """
        if isinstance(self.params, dict) and "ac_predictor" in self.params:
            raise ConvertError(
                "the predictor of these weights is conditioned on actions and fills in no masked tokens: apply "
                'models.ac_predictor.ACPredictor(encoder.run.model) with encoder.params["ac_predictor"]'
            )
        if isinstance(self.params, dict) and self.params.keys() == {"encoder"}:
            raise ConvertError("these weights hold an encoder and no predictor: load a file or folder that has both")
        video, single = _batched(video)
        context, target = (np.asarray(ids, np.int32) for ids in (context, target))
        if single:
            context, target = context[None], target[None]
        prediction = self._predict(self.params, video, context, target, mask_index)
        return prediction[0] if single else prediction


def load(path: str | os.PathLike[str], step: int | None = None, dtype: str | None = None, **hints: Any) -> Encoder:
    """An encoder, and its predictor where there is one, from any weights.

    The predictor of a V-JEPA 2-AC file is `params["ac_predictor"]` of what is returned, with its sizes in
    `run.model.predictor`: `models.ac_predictor.ACPredictor(encoder.run.model)` applies it.

    Args:
      path: a run folder (the target encoder of its newest checkpoint, or of the one of `step`), a folder that
        `vjepa convert` wrote, an official .pt file, or a Hugging Face folder.
      dtype: of matrix products, "float32" or "bfloat16"; None: as the config says (foreign weights: bfloat16).
      hints: what an official file does not say: fields of convert.weights.Hints (tower, variant, num_heads, ...).

    Raises:
      CheckpointError: no run, no checkpoint, or a damaged one.
      ConvertError: a file or folder that cannot be read whole.
    """
    weights = read_weights(path, step, Hints(**hints))
    run = weights.run
    if run is None:
        raise ConvertError(f"{path} holds a probe and no encoder")
    if dtype is not None:
        model = dataclasses.replace(run.model, dtype=dtype)
        run = config_lib.from_config_dict(config_lib.to_dict(dataclasses.replace(run, model=model)))
    return Encoder(run, jax.device_put(weights.params, jax.local_devices()[0]))


def read_weights(path: str | os.PathLike[str], step: int | None = None, hints: Hints | None = None) -> Weights:
    """What `load` and `vjepa convert` read, checked against the model of its config, tensor by tensor.

    Raises:
      CheckpointError, ConvertError: as for `load`.
    """
    if formats.kind(path) != "run":
        if step is not None:
            raise ConvertError(f"{path} is no run folder and has no steps: leave out the step")
        weights = formats.read(path, hints)
        if weights.run is not None:
            _check(weights)
        return weights
    (hints or Hints()).refuse(path)
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
    return Weights(run, objective.eval_params(state["params"], state["aux"]))


def convert(options: Any) -> int:
    """`vjepa convert`: read SRC whole, write DST whole, say what went over and what did not."""
    hints = Hints(**{f.name: getattr(options, f.name, None) for f in dataclasses.fields(Hints)})
    if options.probe:
        hints, probe_hints = dataclasses.replace(hints, classifier=None), Hints(classifier=hints.classifier)
    weights = read_weights(options.src, options.step, hints)
    probe = formats.read(options.probe, probe_hints).probe if options.probe else weights.probe
    if probe is None and (options.probe or options.probe_eps is not None):
        raise ConvertError(f"{options.probe or options.src} holds no probe: name one with --probe")
    if options.probe_eps is not None:
        probe = dataclasses.replace(probe, model=probe.model.clone(eps=options.probe_eps))
    weights = dataclasses.replace(weights, params=jax.device_get(weights.params), probe=probe)
    to = options.to or ("official" if str(options.dst).endswith((".pt", ".pth", ".pth.tar")) else "ours")
    formats.write(options.dst, weights, to)
    trees = weights.params | ({"probe": probe.params} if probe else {})
    counts = [f"{name} {sum(leaf.size for leaf in jax.tree.leaves(tree)):,}" for name, tree in trees.items()]
    print(f"{options.dst} ({to}), parameters: {', '.join(counts)}")
    if probe and len(probe.model.tasks) > 1:
        tasks = [f"{name} ({classes:,} classes)" for name, classes in probe.model.tasks]
        print(f"heads of the probe in the order of its queries: {', '.join(tasks)}")
    return 0


def _check(weights: Weights) -> None:
    """Raises ConvertError unless every parameter of the model is there in its shape, but for a whole predictor."""
    objective = objectives.create(weights.run)
    expected = flatten(objective.eval_params(*jax.eval_shape(objective.init, jax.random.key(0))))
    expected = {name: tuple(leaf.shape) for name, leaf in expected.items()}
    if "predictor" not in weights.params:
        expected = {name: shape for name, shape in expected.items() if not name.startswith("predictor.")}
    if "ac_predictor" in weights.params:
        shapes = ac.tree_shapes(weights.params["ac_predictor"], weights.run.model)
        expected |= {f"ac_predictor.{name}": shape for name, shape in shapes.items()}
    check_shapes(flatten(weights.params), expected)


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

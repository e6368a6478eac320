"""State dicts of the V-JEPA 2-AC predictor (vjepa2 src/models/ac_predictor.py) to our tree and back."""

from typing import Any

import jax
import jax.numpy as jnp

from vjepa_jax.config import ModelConfig
from vjepa_jax.config_build import flatten
from vjepa_jax.convert import official
from vjepa_jax.convert.shapes import CONDITIONS, Shapes, ac_predictor_shapes
from vjepa_jax.convert.weights import Params, State
from vjepa_jax.models.ac_predictor import ACPredictor
from vjepa_jax.models.variants import encoder_size, predictor_size

# Our name of every linear layer around the blocks, and the official one.
_LINEARS = {"embed": "predictor_embed", "out": "predictor_proj"} | {name: name for name in CONDITIONS}


def ac_predictor_from_official(state: State, model: ModelConfig) -> Params:
    """The tree of `models.ac_predictor.ACPredictor` from an official state dict, its sizes those of `model.predictor`.

    Raises ConvertError that names a tensor that does not fit; actions, states and extrinsics may be of any size.
    """
    state = official.admit(state, ac_predictor_shapes(model, _values(state, "{}.weight", -1)))
    params = {ours: official.linear_from(state, theirs) for ours, theirs in _LINEARS.items()}
    params["blocks"] = official.blocks_from(state, "predictor_blocks", predictor_size(model))
    params["norm"] = official.norm_from(state, "predictor_norm")
    return params


def ac_predictor_to_official(params: Params) -> State:
    """The inverse of `ac_predictor_from_official`."""
    state = official.blocks_to(params["blocks"], "predictor_blocks")
    state |= official.norm_to(params["norm"], "predictor_norm")
    for ours, theirs in _LINEARS.items():
        state |= official.linear_to(params[ours], theirs)
    return state


def tree_shapes(params: Params, model: ModelConfig) -> Shapes:
    """Name and shape of every leaf that `ACPredictor(model)` has, for the sizes of actions, states and extrinsics that
    `params` has. Raises ConfigError for a model without rotary positions."""
    values = _values(flatten(params), "{}.kernel", 0)
    module = ACPredictor(model, extrinsics_dim=values["extrinsics_encoder"])
    widths = (encoder_size(model).embed_dim, values["action_encoder"], values["state_encoder"])
    inputs = [jnp.zeros((1, 1, width)) for width in widths]  # of one patch of one step
    fresh = jax.eval_shape(lambda rng: module.init(rng, *inputs, (1, 1, 1))["params"], jax.random.key(0))
    return {name: tuple(leaf.shape) for name, leaf in flatten(fresh).items()}


def _values(tensors: dict[str, Any], name: str, axis: int) -> dict[str, int]:
    """How many values an action, a state and extrinsics have: an axis of their layers' weights, else as released."""
    shapes = {layer: getattr(tensors.get(name.format(layer)), "shape", ()) for layer in CONDITIONS}
    return {layer: shape[axis] if shape else CONDITIONS[layer] for layer, shape in shapes.items()}

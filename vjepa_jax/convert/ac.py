"""State dicts of the V-JEPA 2-AC predictor (vjepa2 src/models/ac_predictor.py) to our tree and back."""

from vjepa_jax.config import ModelConfig
from vjepa_jax.convert import official
from vjepa_jax.convert.official import Params, State
from vjepa_jax.models.variants import predictor_size

# Our name of every linear layer around the blocks, and the official one.
_LINEARS = {
    "embed": "predictor_embed",
    "action_encoder": "action_encoder",
    "state_encoder": "state_encoder",
    "extrinsics_encoder": "extrinsics_encoder",
    "out": "predictor_proj",
}


def ac_predictor_from_official(state: State, model: ModelConfig) -> Params:
    """The tree of `models.ac_predictor.ACPredictor` from an official state dict, its sizes those of `model.predictor`.

    Raises ValueError that names a tensor that is missing or left over.
    """
    reader = official._Reader(state)
    params = {ours: official._linear_from(reader, theirs) for ours, theirs in _LINEARS.items()}
    params["blocks"] = official._blocks_from(reader, "predictor_blocks", predictor_size(model))
    params["norm"] = official._norm_from(reader, "predictor_norm")
    reader.finish()
    return params


def ac_predictor_to_official(params: Params) -> State:
    """The inverse of `ac_predictor_from_official`."""
    state = official._blocks_to(params["blocks"], "predictor_blocks")
    state |= official._norm_to(params["norm"], "predictor_norm")
    for ours, theirs in _LINEARS.items():
        state |= official._linear_to(params[ours], theirs)
    return state

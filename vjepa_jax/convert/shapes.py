"""What an official state dict must hold: the name and shape of every tensor, from a config.

Every reader checks its tensors against this before it converts them: nothing is initialised, dropped or cut to fit.
"""

from vjepa_jax.config import ModelConfig
from vjepa_jax.convert import ConvertError
from vjepa_jax.convert.weights import State
from vjepa_jax.models.probe import Classifier
from vjepa_jax.models.variants import ViTSize, encoder_size, feature_dim, predictor_levels, predictor_size

Shapes = dict[str, tuple[int, ...]]

# Layers of an action-conditioned predictor for what is known of a step, and how many values the released model has.
CONDITIONS = {"action_encoder": 7, "state_encoder": 7, "extrinsics_encoder": 6}


def check(state: State, expected: Shapes) -> None:
    """Raises ConvertError with the first tensor that is missing, left over, or of another shape than expected."""
    for name, shape in expected.items():
        if name not in state:
            raise ConvertError(f"tensor {name} is missing ({len(expected.keys() - state.keys())} such)")
        if state[name].shape != shape:
            raise ConvertError(f"tensor {name} is {list(state[name].shape)} and this model has {list(shape)}")
    if left := state.keys() - expected.keys():
        raise ConvertError(f"tensor {min(left)} has no place in this model ({len(left)} such)")


def encoder_shapes(model: ModelConfig) -> Shapes:
    """The encoder's tensors, official names (vjepa2 src/models and app/vjepa_2_1/models, vision_transformer.py)."""
    size, patch = encoder_size(model), model.patch_size
    d = size.embed_dim
    shapes = {"patch_embed.proj.weight": (d, 3, model.tubelet_size, patch, patch), "patch_embed.proj.bias": (d,)}
    if model.image_tokenizer:
        shapes |= {"patch_embed_img.proj.weight": (d, 3, 1, patch, patch), "patch_embed_img.proj.bias": (d,)}
        shapes |= {"img_mod_embed": (1, 1, d), "video_mod_embed": (1, 1, d)}
    shapes |= _blocks("blocks", size)
    for i in range(len(model.levels)):
        shapes |= _norm(f"norms_block.{i}", d)
    return shapes if model.levels else shapes | _norm("norm", d)


def predictor_shapes(model: ModelConfig) -> Shapes:
    """The predictor's tensors, official names (predictor.py beside the encoder's file)."""
    size, d, levels = predictor_size(model), encoder_size(model).embed_dim, predictor_levels(model)
    e, out = size.embed_dim, feature_dim(model)
    shapes = {f"mask_tokens.{i}": (1, 1, e) for i in range(model.predictor.num_mask_tokens)}
    if levels > 1:
        shapes |= _linear("predictor_embed.0", levels * d, d) | _linear("predictor_embed.2", d, e)
    else:
        shapes |= _linear("predictor_embed", d, e)
    if model.image_tokenizer:
        shapes |= {"img_mod_embed": (1, 1, e), "video_mod_embed": (1, 1, e)}
    shapes |= _blocks("predictor_blocks", size) | _norm("predictor_norm", e) | _linear("predictor_proj", e, out)
    return shapes | (_linear("predictor_proj_context", e, out) if model.predictor.predict_context else {})


def ac_predictor_shapes(model: ModelConfig, values: dict[str, int]) -> Shapes:
    """The tensors of an action-conditioned predictor (vjepa2 src/models/ac_predictor.py).

    Args:
      values: inputs of each layer of `CONDITIONS`.
    """
    size, d = predictor_size(model), encoder_size(model).embed_dim
    e = size.embed_dim
    shapes = _linear("predictor_embed", d, e)
    for name in CONDITIONS:
        shapes |= _linear(name, values[name], e)
    return shapes | _blocks("predictor_blocks", size) | _norm("predictor_norm", e) | _linear("predictor_proj", e, d)


def probe_shapes(probe: Classifier, dim: int) -> Shapes:
    """The tensors of an attentive classifier for tokens of `dim` channels (attentive_pooler.py)."""
    mlp_dim = int(dim * probe.mlp_ratio)
    cross = "pooler.cross_attention_block"
    shapes = {"pooler.query_tokens": (1, len(probe.tasks), dim)}
    shapes |= _norm(f"{cross}.norm1", dim) | _linear(f"{cross}.xattn.q", dim, dim)
    shapes |= _linear(f"{cross}.xattn.kv", dim, 2 * dim) | _norm(f"{cross}.norm2", dim)
    shapes |= _linear(f"{cross}.mlp.fc1", dim, mlp_dim) | _linear(f"{cross}.mlp.fc2", mlp_dim, dim)
    shapes |= _blocks("pooler.blocks", ViTSize(dim, probe.depth - 1, probe.num_heads, mlp_dim))
    for task, classes in probe.tasks:
        shapes |= _linear(task, dim, classes)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _blocks(prefix: str, size: ViTSize) -> Shapes:
    d, m = size.embed_dim, size.mlp_dim
    shapes: Shapes = {}
    for name in (f"{prefix}.{i}" for i in range(size.depth)):
        shapes |= _norm(f"{name}.norm1", d) | _linear(f"{name}.attn.qkv", d, 3 * d) | _linear(f"{name}.attn.proj", d, d)
        shapes |= _norm(f"{name}.norm2", d) | _linear(f"{name}.mlp.fc1", d, m)
        if size.swiglu:  # fc2 is the gate
            shapes |= _linear(f"{name}.mlp.fc2", d, m) | _linear(f"{name}.mlp.fc3", m, d)
        else:
            shapes |= _linear(f"{name}.mlp.fc2", m, d)
    return shapes

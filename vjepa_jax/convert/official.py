"""State dicts of facebookresearch/vjepa2 (families 2 and 2.1) to our parameter trees and back, as numpy arrays.

PyTorch Linear is [out, in], Conv3d is [D, 3, tubelet, patch, patch], qkv rows are (3, heads, head size).
"""

from typing import Any

import numpy as np

from vjepa_jax.config import ModelConfig
from vjepa_jax.convert.shapes import Shapes, check, encoder_shapes, predictor_shapes
from vjepa_jax.convert.weights import Params, State, float32
from vjepa_jax.models.variants import ViTSize, encoder_size, predictor_levels, predictor_size

# Present in official files and without meaning here: fixed tables of positions, which our models compute.
IGNORED = ("pos_embed", "predictor_pos_embed")


def admit(state: State, shapes: Shapes) -> State:
    """The tensors of an official state dict as float32. Raises ConvertError that names one that does not fit."""
    state = {name: array for name, array in state.items() if name not in IGNORED}
    check(state, shapes)
    return float32(state)


def encoder_from_official(state: State, model: ModelConfig) -> Params:
    """Our encoder tree from an official one. Raises ConvertError that names a tensor that does not fit."""
    state = admit(state, encoder_shapes(model))
    params = {"patch_embed": _patches_from(state, "patch_embed")}
    params["blocks"] = blocks_from(state, "blocks", encoder_size(model))
    if model.image_tokenizer:
        params["image_patch_embed"] = _patches_from(state, "patch_embed_img")
        params["modality_embed"] = _modalities_from(state)
    if model.levels:
        norms = [norm_from(state, f"norms_block.{i}") for i in range(len(model.levels))]
        params["norms"] = _map(lambda *leaves: np.stack(leaves), *norms)
    else:
        params["norm"] = norm_from(state, "norm")
    return params


def encoder_to_official(params: Params, model: ModelConfig) -> State:
    """The inverse of `encoder_from_official`."""
    state = _patches_to(params["patch_embed"], model.tubelet_size, model.patch_size, "patch_embed")
    state |= blocks_to(params["blocks"], "blocks")
    if model.image_tokenizer:
        state |= _patches_to(params["image_patch_embed"], 1, model.patch_size, "patch_embed_img")
        state |= _modalities_to(params["modality_embed"])
    if not model.levels:
        return state | norm_to(params["norm"], "norm")
    for i in range(len(model.levels)):
        state |= norm_to({name: leaf[i] for name, leaf in params["norms"].items()}, f"norms_block.{i}")
    return state


def predictor_from_official(state: State, model: ModelConfig) -> Params:
    """Our predictor tree from an official one. Raises ConvertError that names a tensor that does not fit."""
    state = admit(state, predictor_shapes(model))
    count = model.predictor.num_mask_tokens
    params = {
        "mask_tokens": np.stack([state[f"mask_tokens.{i}"].reshape(-1) for i in range(count)]),
        "blocks": blocks_from(state, "predictor_blocks", predictor_size(model)),
        "norm": norm_from(state, "predictor_norm"),
    }
    for ours, theirs in _predictor_linears(model).items():
        params[ours] = linear_from(state, theirs)
    if model.image_tokenizer:
        params["modality_embed"] = _modalities_from(state)
    return params


def predictor_to_official(params: Params, model: ModelConfig) -> State:
    """The inverse of `predictor_from_official`."""
    state = {f"mask_tokens.{i}": np.asarray(t).reshape(1, 1, -1) for i, t in enumerate(params["mask_tokens"])}
    state |= blocks_to(params["blocks"], "predictor_blocks") | norm_to(params["norm"], "predictor_norm")
    for ours, theirs in _predictor_linears(model).items():
        state |= linear_to(params[ours], theirs)
    return state | (_modalities_to(params["modality_embed"]) if model.image_tokenizer else {})


def _predictor_linears(model: ModelConfig) -> dict[str, str]:
    """Our name of every linear layer around the blocks, and the official one."""
    names = {"embed": "predictor_embed", "out": "predictor_proj"}
    if predictor_levels(model) > 1:
        names |= {"embed_levels": "predictor_embed.0", "embed": "predictor_embed.2"}
    return names | ({"out_context": "predictor_proj_context"} if model.predictor.predict_context else {})


def _patches_from(state: State, name: str) -> Params:
    kernel = state[f"{name}.proj.weight"]  # D C T Y X -> (T Y X C) D
    return {
        "kernel": kernel.transpose(2, 3, 4, 1, 0).reshape(-1, kernel.shape[0]),
        "bias": state[f"{name}.proj.bias"],
    }


def _patches_to(params: Params, frames: int, patch: int, name: str) -> State:
    kernel = np.asarray(params["kernel"])
    kernel = kernel.reshape(frames, patch, patch, 3, kernel.shape[1]).transpose(4, 3, 0, 1, 2)
    return {f"{name}.proj.weight": kernel, f"{name}.proj.bias": np.asarray(params["bias"])}


_MODALITIES = ("img_mod_embed", "video_mod_embed")  # in the order of our rows (models.vit.IMAGE, VIDEO)


def _modalities_from(state: State) -> np.ndarray:
    return np.stack([state[name].reshape(-1) for name in _MODALITIES])


def _modalities_to(embeds: Any) -> State:
    return {name: np.asarray(row).reshape(1, 1, -1) for name, row in zip(_MODALITIES, embeds, strict=True)}


def linear_from(state: State, name: str) -> Params:
    """kernel [in, out] and bias [out] of the official Linear `name`."""
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def linear_to(params: Params, name: str) -> State:
    """The inverse of `linear_from`."""
    return {f"{name}.weight": np.asarray(params["kernel"]).T, f"{name}.bias": np.asarray(params["bias"])}


def norm_from(state: State, name: str) -> Params:
    """scale and bias of the official LayerNorm `name`."""
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def norm_to(params: Params, name: str) -> State:
    """The inverse of `norm_from`."""
    return {f"{name}.weight": np.asarray(params["scale"]), f"{name}.bias": np.asarray(params["bias"])}


def _block_from(state: State, name: str, size: ViTSize) -> Params:
    heads = (size.num_heads, size.head_dim)
    qkv = linear_from(state, f"{name}.attn.qkv")
    proj = linear_from(state, f"{name}.attn.proj")
    return {
        "norm1": norm_from(state, f"{name}.norm1"),
        "qkv": {
            "kernel": qkv["kernel"].reshape(size.embed_dim, 3, *heads),
            "bias": qkv["bias"].reshape(3, *heads),
        },
        "proj": {"kernel": proj["kernel"].reshape(*heads, size.embed_dim), "bias": proj["bias"]},
        "norm2": norm_from(state, f"{name}.norm2"),
        **{f"fc{i + 1}": linear_from(state, f"{name}.mlp.fc{i + 1}") for i in range(size.mlp_linears)},
    }


def _block_to(params: Params, name: str) -> State:
    d = params["proj"]["kernel"].shape[-1]
    qkv = {"kernel": params["qkv"]["kernel"].reshape(d, 3 * d), "bias": params["qkv"]["bias"].reshape(3 * d)}
    proj = {"kernel": params["proj"]["kernel"].reshape(d, d), "bias": params["proj"]["bias"]}
    state = norm_to(params["norm1"], f"{name}.norm1") | norm_to(params["norm2"], f"{name}.norm2")
    state |= linear_to(qkv, f"{name}.attn.qkv") | linear_to(proj, f"{name}.attn.proj")
    for linear in ("fc1", "fc2", "fc3"):
        if linear in params:
            state |= linear_to(params[linear], f"{name}.mlp.{linear}")
    return state


def _map(function, *trees: Params) -> Params:
    first = trees[0]
    if isinstance(first, dict):
        return {key: _map(function, *(t[key] for t in trees)) for key in first}
    return function(*trees)


def blocks_from(state: State, name: str, size: ViTSize) -> Params:
    """The official blocks `name`.0, `name`.1, ... of one size, each leaf stacked: [depth, ...]."""
    blocks = [_block_from(state, f"{name}.{i}", size) for i in range(size.depth)]
    return _map(lambda *leaves: np.stack(leaves), *blocks)


def blocks_to(params: Params, name: str) -> State:
    """The inverse of `blocks_from`."""
    depth = params["norm1"]["scale"].shape[0]
    state: State = {}
    for i in range(depth):
        state |= _block_to(_map(lambda leaf, i=i: np.asarray(leaf[i]), params), f"{name}.{i}")
    return state

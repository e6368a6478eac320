"""State dicts of facebookresearch/vjepa2 (family 2) to our parameter trees and back, as numpy arrays.

PyTorch Linear is [out, in], Conv3d is [D, 3, tubelet, patch, patch], qkv rows are (3, heads, head size).
"""

from typing import Any

import numpy as np

from vjepa_jax.config import ModelConfig
from vjepa_jax.models.variants import ViTSize, encoder_size, predictor_size

State = dict[str, np.ndarray]
Params = dict[str, Any]

# Present in official files and without meaning for a rotary model.
IGNORED = ("pos_embed", "predictor_pos_embed")


def encoder_from_official(state: State, model: ModelConfig) -> Params:
    """Our encoder tree from an official one. Raises ValueError that names a tensor that is missing or left over."""
    state = _Reader(state)
    kernel = state.take("patch_embed.proj.weight")  # D C T Y X -> (T Y X C) D
    params = {
        "patch_embed": {
            "kernel": kernel.transpose(2, 3, 4, 1, 0).reshape(-1, kernel.shape[0]),
            "bias": state.take("patch_embed.proj.bias"),
        },
        "blocks": _blocks_from(state, "blocks", encoder_size(model)),
        "norm": _norm_from(state, "norm"),
    }
    state.finish()
    return params


def encoder_to_official(params: Params, model: ModelConfig) -> State:
    """The inverse of `encoder_from_official`."""
    kernel = params["patch_embed"]["kernel"]
    shape = (model.tubelet_size, model.patch_size, model.patch_size, 3, kernel.shape[1])
    state = {
        "patch_embed.proj.weight": np.asarray(kernel).reshape(shape).transpose(4, 3, 0, 1, 2),
        "patch_embed.proj.bias": np.asarray(params["patch_embed"]["bias"]),
    }
    return state | _blocks_to(params["blocks"], "blocks") | _norm_to(params["norm"], "norm")


def predictor_from_official(state: State, model: ModelConfig) -> Params:
    """Our predictor tree from an official one. Raises ValueError that names a tensor that is missing or left over."""
    state = _Reader(state)
    count = model.predictor.num_mask_tokens
    params = {
        "embed": _linear_from(state, "predictor_embed"),
        "mask_tokens": np.stack([state.take(f"mask_tokens.{i}").reshape(-1) for i in range(count)]),
        "blocks": _blocks_from(state, "predictor_blocks", predictor_size(model)),
        "norm": _norm_from(state, "predictor_norm"),
        "out": _linear_from(state, "predictor_proj"),
    }
    state.finish()
    return params


def predictor_to_official(params: Params) -> State:
    """The inverse of `predictor_from_official`."""
    tokens = {f"mask_tokens.{i}": np.asarray(t).reshape(1, 1, -1) for i, t in enumerate(params["mask_tokens"])}
    blocks, norm = _blocks_to(params["blocks"], "predictor_blocks"), _norm_to(params["norm"], "predictor_norm")
    ends = _linear_to(params["embed"], "predictor_embed") | _linear_to(params["out"], "predictor_proj")
    return ends | tokens | blocks | norm


class _Reader:
    """Hands out tensors by name and knows which were not asked for."""

    def __init__(self, state: State):
        self.left = {k: np.asarray(v) for k, v in state.items() if k not in IGNORED}

    def take(self, name: str) -> np.ndarray:
        if name not in self.left:
            raise ValueError(f"tensor {name} is missing from the checkpoint: is it of another model or family?")
        return self.left.pop(name)

    def finish(self) -> None:
        if self.left:
            raise ValueError(
                f"tensor {min(self.left)} has no place in this model ({len(self.left)} such): check depth and variant"
            )


def _linear_from(state: _Reader, name: str) -> Params:
    return {"kernel": state.take(f"{name}.weight").T, "bias": state.take(f"{name}.bias")}


def _linear_to(params: Params, name: str) -> State:
    return {f"{name}.weight": np.asarray(params["kernel"]).T, f"{name}.bias": np.asarray(params["bias"])}


def _norm_from(state: _Reader, name: str) -> Params:
    return {"scale": state.take(f"{name}.weight"), "bias": state.take(f"{name}.bias")}


def _norm_to(params: Params, name: str) -> State:
    return {f"{name}.weight": np.asarray(params["scale"]), f"{name}.bias": np.asarray(params["bias"])}


def _block_from(state: _Reader, name: str, size: ViTSize) -> Params:
    heads = (size.num_heads, size.head_dim)
    qkv = _linear_from(state, f"{name}.attn.qkv")
    proj = _linear_from(state, f"{name}.attn.proj")
    return {
        "norm1": _norm_from(state, f"{name}.norm1"),
        "qkv": {
            "kernel": qkv["kernel"].reshape(size.embed_dim, 3, *heads),
            "bias": qkv["bias"].reshape(3, *heads),
        },
        "proj": {"kernel": proj["kernel"].reshape(*heads, size.embed_dim), "bias": proj["bias"]},
        "norm2": _norm_from(state, f"{name}.norm2"),
        "fc1": _linear_from(state, f"{name}.mlp.fc1"),
        "fc2": _linear_from(state, f"{name}.mlp.fc2"),
    }


def _block_to(params: Params, name: str) -> State:
    d = params["proj"]["kernel"].shape[-1]
    qkv = {"kernel": params["qkv"]["kernel"].reshape(d, 3 * d), "bias": params["qkv"]["bias"].reshape(3 * d)}
    proj = {"kernel": params["proj"]["kernel"].reshape(d, d), "bias": params["proj"]["bias"]}
    return (
        _norm_to(params["norm1"], f"{name}.norm1")
        | _linear_to(qkv, f"{name}.attn.qkv")
        | _linear_to(proj, f"{name}.attn.proj")
        | _norm_to(params["norm2"], f"{name}.norm2")
        | _linear_to(params["fc1"], f"{name}.mlp.fc1")
        | _linear_to(params["fc2"], f"{name}.mlp.fc2")
    )


def _map(function, *trees: Params) -> Params:
    first = trees[0]
    if isinstance(first, dict):
        return {key: _map(function, *(t[key] for t in trees)) for key in first}
    return function(*trees)


def _blocks_from(state: _Reader, name: str, size: ViTSize) -> Params:
    blocks = [_block_from(state, f"{name}.{i}", size) for i in range(size.depth)]
    return _map(lambda *leaves: np.stack(leaves), *blocks)


def _blocks_to(params: Params, name: str) -> State:
    depth = params["norm1"]["scale"].shape[0]
    state: State = {}
    for i in range(depth):
        state |= _block_to(_map(lambda leaf, i=i: np.asarray(leaf[i]), params), f"{name}.{i}")
    return state

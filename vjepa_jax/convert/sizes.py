"""The model config of an official state dict, from the names and shapes of its tensors.

What they do not tell, the number of heads, comes from the known sizes (models/variants.py).
"""

import dataclasses
import re
from typing import Any

from vjepa_jax.config import ModelConfig, PredictorConfig
from vjepa_jax.convert import ConvertError
from vjepa_jax.convert.weights import Hints, State
from vjepa_jax.models import family
from vjepa_jax.models.variants import VARIANTS, ViTSize, encoder_size, feature_dim

# V-JEPA 2.1: blocks whose outputs are features, by depth (app/vjepa_2_1/models/vision_transformer.py)
LEVELS = {VARIANTS[variant].depth: levels for variant, levels in family.LEVELS.items()}
# heads by width: every released predictor, and the one of V-JEPA 2-AC
PREDICTOR_HEADS = {384: 12}
AC_HEADS = {1024: 16}
RELEASED = {"vit_giant": "vit_giant_xformers", "vit_gigantic": "vit_gigantic_xformers"}


def infer_model(encoder: State, predictor: State | None, hints: Hints) -> ModelConfig:
    """The config that fits an official encoder and predictor (or None), names without prefix.

    Raises:
      ConvertError: a tensor that tells the size is missing, or the heads are unknown (says which option tells them).
    """
    shape = _shape(encoder, "patch_embed.proj.weight")
    if len(shape) != 5 or shape[3] != shape[4] or shape[1] != 3:
        raise ConvertError(f"patch_embed.proj.weight is {shape}, not [D, 3, frames, patch, patch] of a video model")
    swiglu = "blocks.0.mlp.fc3.weight" in encoder
    width, mlp_dim = shape[0], _shape(encoder, "blocks.0.mlp.fc1.weight")[0]
    found = ViTSize(width, _count(encoder, "blocks"), hints.num_heads or 0, mlp_dim, swiglu)
    model: dict[str, Any] = {"tubelet_size": shape[2], "patch_size": shape[3], "mlp": "swiglu" if swiglu else "gelu"}
    model |= _position(encoder, found.depth, shape[3], hints) | size_keys(found, hints)
    model = ModelConfig(**model)
    return model if predictor is None else dataclasses.replace(model, predictor=_predictor(predictor, model, hints))


def is_ac(predictor: State) -> bool:
    """Whether a predictor is conditioned on actions (V-JEPA 2-AC)."""
    return any(name.startswith("action_encoder.") for name in predictor)


def ratio(hidden: int, width: int) -> float:
    """An `mlp_ratio` with int(width * ratio) == hidden, which rounding can make hidden - 1."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def _shape(state: State, name: str) -> tuple[int, ...]:
    if name not in state:
        raise ConvertError(f"tensor {name} is missing: this is not a V-JEPA encoder with its predictor")
    return state[name].shape


def _count(state: State, name: str) -> int:
    """How many numbered parts NAME.0, NAME.1, ... there are."""
    numbers = {int(m[1]) for key in state if (m := re.match(rf"{name}\.(\d+)\b", key))}
    return max(numbers, default=-1) + 1


def _position(encoder: State, depth: int, patch: int, hints: Hints) -> dict[str, Any]:
    norms = _count(encoder, "norms_block")
    if not norms:
        return {"position": hints.position or "rope_tiled"}
    if norms != len(LEVELS.get(depth, ())):
        raise ConvertError(
            f"norms_block.{norms - 1} of a V-JEPA 2.1 encoder with {depth} blocks fits no released model"
        )
    return {
        "position": hints.position or "rope_interleaved",
        "rope_grid": 256 // patch,
        "levels": LEVELS[depth],
        "image_tokenizer": "patch_embed_img.proj.weight" in encoder,
    }


def size_keys(found: ViTSize, hints: Hints) -> dict[str, Any]:
    """The keys of a ModelConfig that make an encoder of this size, by name where it has one.

    Raises:
      ConvertError: num_heads is 0, for unknown, and the other numbers fit no size or several.
    """
    mlp = "swiglu" if found.swiglu else "gelu"
    known = {name: encoder_size(ModelConfig(variant=name, mlp=mlp)) for name in VARIANTS}
    alike = [n for n, size in known.items() if dataclasses.replace(size, num_heads=found.num_heads) == found]
    what = f"an encoder of {_describe(found)}"
    if len(alike) != 1 and hints.like and not (found.num_heads or hints.variant):
        like = encoder_size(hints.like)
        if dataclasses.replace(like, num_heads=found.num_heads) != found:
            raise ConvertError(f"{what} is another than the config's of {_describe(like)}: use the same model settings")
        found = like
    if found.num_heads:
        alike = [name for name in alike if known[name].num_heads == found.num_heads]
    if hints.variant:
        if hints.variant not in alike:
            fitting = f"use one of {', '.join(alike)}" if alike else "no known one does, so give the number of heads"
            raise ConvertError(f"variant {hints.variant} does not fit {what}: {fitting}")
        return {"variant": hints.variant}
    if len(alike) == 1:
        return {"variant": alike[0]}
    if alike:
        released = next((name for short, name in RELEASED.items() if short in alike), alike[0])
        raise ConvertError(
            f"{what} may be {' or '.join(alike)}, which differ in their heads, and the file does not tell: "
            f"give --variant (the released weights are {released})"
        )
    if not found.num_heads:
        raise ConvertError(f"{what} is of no known size, and its file does not tell the number of heads: give --heads")
    # a gate leaves two thirds of an MLP, up to a multiple of 8
    hidden = found.mlp_dim * 3 // 2 if found.swiglu else found.mlp_dim
    return {
        "variant": "vit_tiny",
        "embed_dim": found.embed_dim,
        "depth": found.depth,
        "num_heads": found.num_heads,
        "mlp_ratio": ratio(hidden, found.embed_dim),
    }


def _describe(size: ViTSize) -> str:
    return f"width {size.embed_dim}, {size.depth} blocks and MLP width {size.mlp_dim}"


def _predictor(state: State, model: ModelConfig, hints: Hints) -> PredictorConfig:
    width = _shape(state, "predictor_norm.weight")[0]
    hidden, out = _shape(state, "predictor_blocks.0.mlp.fc1.weight")[0], _shape(state, "predictor_proj.weight")[0]
    size = PredictorConfig(
        embed_dim=width,
        depth=_count(state, "predictor_blocks"),
        num_heads=_predictor_heads(width, is_ac(state), model, hints),
        mlp_ratio=ratio(hidden * 3 // 2 if model.mlp == "swiglu" else hidden, width),
    )
    if is_ac(state):
        return size
    last_only = bool(model.levels) and "predictor_embed.weight" in state  # a layer for all levels is a stack of two
    predictor = dataclasses.replace(
        size,
        num_mask_tokens=_count(state, "mask_tokens"),
        mask_token_per_group=False,
        predict_context="predictor_proj_context.weight" in state,
        last_level_only=last_only,
    )
    own = feature_dim(dataclasses.replace(model, predictor=predictor))
    return predictor if out == own else dataclasses.replace(predictor, out_dim=out)


def _predictor_heads(width: int, ac: bool, model: ModelConfig, hints: Hints) -> int:
    heads = hints.predictor_heads or (AC_HEADS if ac else PREDICTOR_HEADS).get(width)
    if model.position == "sincos" and not hints.predictor_heads:  # V-JEPA 1 gave it as many as the encoder
        heads = encoder_size(model).num_heads
    if heads is None and hints.like and not ac:
        like = hints.like.predictor
        if like.embed_dim != width:
            raise ConvertError(
                f"a predictor of width {width} is another than the config's of width {like.embed_dim}: "
                f"set model.predictor.embed_dim={width}"
            )
        heads = like.num_heads
    if heads is None:
        raise ConvertError(
            f"a predictor of width {width} is of no known size, and its file does not tell the number of heads: "
            "give --predictor-heads"
        )
    return heads

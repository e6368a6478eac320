"""Folders of transformers' VJEPA2Model and VJEPA2ForVideoClassification <-> Weights.

A folder holds config.json and model.safetensors (or shards). Tensors are renamed to the official names, which the rest
of this package knows. What differs in use (transformers models/vjepa2/modeling_vjepa2.py):
  - its predictor stands for targets with mask token 1: `encoder.predict(..., mask_index=1)` gives its numbers;
  - it drops tokens after the encoder, where training drops them before, so masked features differ by design;
  - positions come from `crop_size`, so it is right for square clips of that size only;
  - its pooler has the encoder's number of heads and eps 1e-6 (published probes: 16 heads and 1e-5).
"""

import json
import pathlib
from typing import Any

import numpy as np

from vjepa_jax.config import ModelConfig, PredictorConfig, to_dict
from vjepa_jax.convert import ConvertError, official, probes
from vjepa_jax.convert.official_file import check_published, trees
from vjepa_jax.convert.shapes import Shapes, check, encoder_shapes, predictor_shapes, probe_shapes
from vjepa_jax.convert.sizes import ratio, size_keys
from vjepa_jax.convert.tensors import read_folder, write_tensors
from vjepa_jax.convert.weights import Hints, State, Weights, float32, make_run, read_json
from vjepa_jax.models.probe import AttentiveClassifier
from vjepa_jax.models.variants import ViTSize, encoder_size, predictor_size

EPS = 1e-6  # of every LayerNorm, the pooler's included
BACKBONE = "vjepa2."  # before the names of encoder and predictor in a classifier

# transformers' defaults of the keys that are read here: a saved config may leave them out
_DEFAULTS = {
    "patch_size": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
    "tubelet_size": 2,
    "hidden_size": 1024,
    "in_chans": 3,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "mlp_ratio": 4.0,
    "layer_norm_eps": EPS,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "num_pooler_layers": 3,
    "pred_hidden_size": 384,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
    "pred_mlp_ratio": 4.0,
}
_FIXED = ("in_chans", "layer_norm_eps", "qkv_bias", "hidden_act")  # we have one value, which is also the default

# official name of a linear layer, norm or convolution -> transformers' names; several share the rows of ours
_MLP = {"mlp.fc1": ("mlp.fc1",), "mlp.fc2": ("mlp.fc2",)}
_BLOCK = {
    "norm1": ("norm1",),
    "attn.qkv": ("attention.query", "attention.key", "attention.value"),
    "attn.proj": ("attention.proj",),
    "norm2": ("norm2",),
} | _MLP
_POOLER_BLOCK = {
    "norm1": ("layer_norm1",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
} | _MLP
_CROSS = {
    "norm1": ("layer_norm1",),
    "xattn.q": ("cross_attn.q_proj",),
    "xattn.kv": ("cross_attn.k_proj", "cross_attn.v_proj"),
    "norm2": ("layer_norm2",),
} | _MLP
_MASK_TOKENS = "predictor.embeddings.mask_tokens"
Layers = dict[str, tuple[str, ...]]


def read(folder: str | pathlib.Path) -> Weights:
    """The encoder, the predictor where the folder has one, and the probe of a classifier with its labels.

    Raises:
      ConvertError: not such a folder, a setting or a tensor that our model does not have, or one that is missing.
    """
    folder = pathlib.Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "vjepa2":
        raise ConvertError(f"{folder} is a model of type {config.get('model_type')!r}: only 'vjepa2' is read")
    config = _DEFAULTS | config
    for key in _FIXED:
        if config[key] != _DEFAULTS[key]:
            raise ConvertError(f"{folder}/config.json has {key}={config[key]!r}: only {_DEFAULTS[key]!r} is read")
    return _weights(config, read_folder(folder))


def write(folder: str | pathlib.Path, weights: Weights) -> None:
    """A folder that `VJEPA2Model.from_pretrained` (with a probe: `VJEPA2ForVideoClassification`) loads whole.

    Raises:
      ConvertError: a model or a probe that transformers does not have; its own would compute something else.
    """
    folder = pathlib.Path(folder)
    _check_writable(weights)
    model, prefix = weights.run.model, BACKBONE if weights.probe else ""
    encoder = official.encoder_to_official(weights.params["encoder"], model)
    predictor = official.predictor_to_official(weights.params["predictor"], model)
    state = _from_official(encoder, _encoder_layers(model)) | _from_official(predictor, _predictor_layers(model))
    tokens = [predictor[f"mask_tokens.{i}"] for i in range(model.predictor.num_mask_tokens)]
    state = {prefix + name: array for name, array in {**state, _MASK_TOKENS: np.stack(tokens)}.items()}
    if weights.probe:
        probe = probes.to_official(weights.probe)
        state |= _from_official(probe, _probe_layers(weights.probe.model.depth))
        state["pooler.query_tokens"] = probe["pooler.query_tokens"]
    write_tensors(folder / "model.safetensors", state, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(weights), indent=2) + "\n")


def _weights(config: dict[str, Any], state: State) -> Weights:
    has_probe = "classifier.weight" in state
    prefix = BACKBONE if has_probe else ""
    has_predictor = any(name.startswith(f"{prefix}predictor.") for name in state)
    model = _model(config)
    shapes = _their_shapes(encoder_shapes(model), _encoder_layers(model))
    if has_predictor:
        shapes |= _their_shapes(predictor_shapes(model), _predictor_layers(model))
        shapes[_MASK_TOKENS] = (model.predictor.num_mask_tokens, 1, 1, model.predictor.embed_dim)
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    probe_layers = _probe_layers(config["num_pooler_layers"] + 1)
    if has_probe:
        classes = len(state["classifier.weight"])
        classifier = AttentiveClassifier(classes, config["num_attention_heads"], config["num_pooler_layers"] + 1)
        probe = probe_shapes(classifier, config["hidden_size"])
        shapes |= _their_shapes(probe, probe_layers) | {"pooler.query_tokens": probe["pooler.query_tokens"]}
    check(state, shapes)
    state = float32(state)

    backbone = {name.removeprefix(prefix): array for name, array in state.items()}
    predictor = None
    if has_predictor:
        predictor = _to_official(backbone, _predictor_layers(model))
        predictor |= {f"mask_tokens.{i}": token for i, token in enumerate(backbone[_MASK_TOKENS])}
    params = trees(_to_official(backbone, _encoder_layers(model)), predictor, model)
    run = make_run(to_dict(model), {"num_frames": config["frames_per_clip"], "resolution": config["crop_size"]})
    if not has_probe:
        return Weights(run, params)
    probe = _to_official(state, probe_layers) | {"pooler.query_tokens": state["pooler.query_tokens"]}
    names = config.get("id2label", {})
    labels = tuple(names.get(str(i), f"LABEL_{i}") for i in range(classes))
    return Weights(run, params, probes.from_official(probe, config["num_attention_heads"], EPS, labels))


def _model(config: dict[str, Any]) -> ModelConfig:
    width, sides = config["hidden_size"], set(np.atleast_1d(config["patch_size"]).tolist())
    if len(sides) != 1:
        raise ConvertError(f"patch_size={config['patch_size']} is not square: only square patches are read")
    size = ViTSize(width, config["num_hidden_layers"], config["num_attention_heads"], int(width * config["mlp_ratio"]))
    predictor = PredictorConfig(
        embed_dim=config["pred_hidden_size"],
        depth=config["pred_num_hidden_layers"],
        num_heads=config["pred_num_attention_heads"],
        mlp_ratio=float(config["pred_mlp_ratio"]),
        num_mask_tokens=config["pred_num_mask_tokens"],
        mask_token_per_group=False,
    )
    return ModelConfig(
        **size_keys(size, Hints()), patch_size=sides.pop(), tubelet_size=config["tubelet_size"], predictor=predictor
    )


def _config(weights: Weights) -> dict[str, Any]:
    run, probe = weights.run, weights.probe
    model, size, predictor = run.model, encoder_size(run.model), predictor_size(run.model)
    config = {
        "architectures": ["VJEPA2ForVideoClassification" if probe else "VJEPA2Model"],
        "model_type": "vjepa2",
        "dtype": "float32",
        "patch_size": model.patch_size,
        "tubelet_size": model.tubelet_size,
        "crop_size": run.data.size[0],
        "frames_per_clip": run.data.num_frames,
        "hidden_size": size.embed_dim,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "mlp_ratio": ratio(size.mlp_dim, size.embed_dim),
        "layer_norm_eps": EPS,
        "pred_hidden_size": predictor.embed_dim,
        "pred_num_hidden_layers": predictor.depth,
        "pred_num_attention_heads": predictor.num_heads,
        "pred_num_mask_tokens": model.predictor.num_mask_tokens,
        "pred_mlp_ratio": ratio(predictor.mlp_dim, predictor.embed_dim),
    }
    if probe:
        labels = probe.labels or tuple(f"LABEL_{i}" for i in range(probe.model.num_classes))
        config["num_pooler_layers"] = probe.model.depth - 1
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    return config


def _check_writable(weights: Weights) -> None:
    if "ac_predictor" in weights.params:
        raise ConvertError("transformers has no action-conditioned model (V-JEPA 2-AC): use --to official or --to ours")
    if weights.run is None or "predictor" not in weights.params:
        raise ConvertError(
            "transformers' model has an encoder and a predictor and makes random ones where they are missing: these "
            "weights lack one of them"
        )
    check_published(weights, "transformers")
    run, model, probe = weights.run, weights.run.model, weights.probe
    size = encoder_size(model)
    other = model.position != "rope_tiled" or model.rope_grid or model.levels or model.image_tokenizer
    if other or model.predictor.predict_context:
        raise ConvertError("transformers has V-JEPA 2 only, this is of another family: use --to official or --to ours")
    if size.swiglu or (model.predictor.out_dim or size.embed_dim) != size.embed_dim:
        raise ConvertError("transformers has no SwiGLU and no predictor.out_dim: convert to ours instead (--to ours)")
    if run.data.size[0] != run.data.size[1]:
        raise ConvertError(f"transformers has square clips only, data.resolution is {run.data.size}")
    if probe is None:
        return
    if not isinstance(probe.model, AttentiveClassifier):
        names = ", ".join(name for name, _ in probe.model.tasks)
        raise ConvertError(f"transformers has no probe with the heads {names}: use --to official or --to ours")
    if (probe.model.num_heads, probe.model.eps, probe.model.mlp_ratio) != (size.num_heads, EPS, 4.0):
        raise ConvertError(
            f"transformers' pooler has the encoder's {size.num_heads} heads, eps {EPS} and mlp_ratio 4, this probe "
            f"{probe.model.num_heads} heads, eps {probe.model.eps} and mlp_ratio {probe.model.mlp_ratio}"
        )


def _their_shapes(shapes: Shapes, layers: Layers) -> Shapes:
    """Shapes under transformers' names; layers that share rows of ours have an equal part of them each."""
    return {
        f"{name}.{part}": (shapes[f"{ours}.{part}"][0] // len(names), *shapes[f"{ours}.{part}"][1:])
        for ours, names in layers.items()
        for part in ("weight", "bias")
        for name in names
    }


def _to_official(state: State, layers: Layers) -> State:
    joined = lambda arrays: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)  # no copy of what stands alone
    return {
        f"{ours}.{part}": joined([state[f"{name}.{part}"] for name in names])
        for ours, names in layers.items()
        for part in ("weight", "bias")
    }


def _from_official(state: State, layers: Layers) -> State:
    return {
        f"{name}.{part}": rows
        for ours, names in layers.items()
        for part in ("weight", "bias")
        for name, rows in zip(names, np.split(state[f"{ours}.{part}"], len(names)), strict=True)
    }


def _encoder_layers(model: ModelConfig) -> Layers:
    layers: Layers = {
        "patch_embed.proj": ("encoder.embeddings.patch_embeddings.proj",),
        "norm": ("encoder.layernorm",),
    }
    return layers | _numbered("blocks", "encoder.layer", _BLOCK, encoder_size(model).depth)


def _predictor_layers(model: ModelConfig) -> Layers:
    layers: Layers = {
        "predictor_embed": ("predictor.embeddings.predictor_embeddings",),
        "predictor_norm": ("predictor.layernorm",),
        "predictor_proj": ("predictor.proj",),
    }
    return layers | _numbered("predictor_blocks", "predictor.layer", _BLOCK, model.predictor.depth)


def _probe_layers(depth: int) -> Layers:
    cross = {
        f"pooler.cross_attention_block.{ours}": tuple(f"pooler.cross_attention_layer.{name}" for name in names)
        for ours, names in _CROSS.items()
    }
    blocks = _numbered("pooler.blocks", "pooler.self_attention_layers", _POOLER_BLOCK, depth - 1)
    return cross | blocks | {"linear": ("classifier",)}


def _numbered(ours: str, theirs: str, block: Layers, depth: int) -> Layers:
    return {
        f"{ours}.{i}.{part}": tuple(f"{theirs}.{i}.{name}" for name in names)
        for i in range(depth)
        for part, names in block.items()
    }

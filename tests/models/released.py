"""Tiny models with the weights and inputs of the released PyTorch modules, from tests/fixtures."""

import json
from typing import Any

import numpy as np

from vjepa_jax import config as config_lib
from vjepa_jax.convert import official
from vjepa_jax.objectives.vjepa2 import VJEPA2

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def part(fixture: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k[len(prefix) :]: v for k, v in fixture.items() if k.startswith(prefix)}


def channels_last(video: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(video, 1, -1))


def config_of(fixture) -> dict[str, Any]:
    """The config of a fixture's model, family 2 or 2.1, as a nested dict."""
    meta = json.loads(str(fixture["meta"]))
    model = {
        "variant": "vit_tiny",
        "embed_dim": meta["embed_dim"],
        "depth": meta["depth"],
        "num_heads": meta["num_heads"],
        "dtype": "float32",
        "attention": "xla",
        "predictor": {
            "embed_dim": meta["predictor_embed_dim"],
            "depth": meta["predictor_depth"],
            "num_heads": meta["predictor_num_heads"],
            "mask_token_per_group": False,
        },
    }
    config = {
        "steps": 300,
        "batch_size": 3,
        "data": {"path": "unused", "num_frames": meta["frames"], "resolution": meta["resolution"]},
        "model": model,
        "optim": {"lr": meta.get("lr", 1e-3), "weight_decay": meta.get("weight_decay", 0.04)},
        "ema": {"start": meta.get("ema", 0.99925), "end": meta.get("ema", 0.99925)},
    }
    if meta["family"] == "2.1":
        model |= {"position": "rope_interleaved", "rope_grid": 16, "image_tokenizer": True}
        model["levels"] = meta["hierarchical_layers"]
        model["predictor"]["predict_context"] = True
        config["loss"] = {"context_weight": 0.5, "context_warmup": (10, 20)}
    return config


def build(fixture, model: dict[str, Any] | None = None, optim: dict[str, Any] | None = None):
    """(objective, params, aux, batch) with the fixture's weights, clips and masks."""
    config = config_of(fixture)
    config["model"] |= model or {}
    config["optim"] |= optim or {}
    run = config_lib.from_config_dict(config)
    params = {
        "encoder": official.encoder_from_official(part(fixture, "encoder/"), run.model),
        "predictor": official.predictor_from_official(part(fixture, "predictor/"), run.model),
    }
    target = part(fixture, "target_encoder/")
    aux = {"target": official.encoder_from_official(target, run.model) if target else params["encoder"]}
    masks = [{k: fixture[f"masks/{i}/{k}"].astype(np.int32) for k in ("context", "target")} for i in range(2)]
    return VJEPA2(run), params, aux, {"video": channels_last(fixture["video_bcthw"]), "masks": masks}


def released_loss_21(fixture, masks, ramp: float) -> tuple[float, float]:
    """The loss of family 2.1 and its context part in plain numpy, from the released modules' outputs.

    Levels normalised one by one; context errors divided by sqrt(distance to the nearest target); half the context loss
    times `ramp` is added (app/vjepa_2_1/train.py).
    """
    levels = fixture["encoder_out/full_hierarchical"].astype(np.float64).reshape(3, 64, 4, 32)
    levels = (levels - levels.mean(-1, keepdims=True)) / np.sqrt(levels.var(-1, keepdims=True) + 1e-5)
    targets, rows = levels.reshape(3, 64, -1), np.arange(3)[:, None]
    positions = lambda ids: np.stack(np.unravel_index(ids, (4, 4, 4)), -1).astype(np.float64)
    target_losses, context_losses = [], []
    for i, mask in enumerate(masks):
        target_losses.append(np.abs(fixture[f"predictor_out/{i}"] - targets[rows, mask["target"]]).mean())
        gaps = positions(mask["context"])[:, :, None] - positions(mask["target"])[:, None]
        distance = np.linalg.norm(gaps, axis=-1).min(-1)
        error = np.abs(fixture[f"predictor_context_out/{i}"] - targets[rows, mask["context"]])
        context_losses.append((error / np.sqrt(distance)[..., None]).mean())
    return np.mean(target_losses) + 0.5 * ramp * np.mean(context_losses), np.mean(context_losses)

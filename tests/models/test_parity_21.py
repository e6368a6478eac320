"""Agreement with the PyTorch V-JEPA 2.1 modules (fixtures/vjepa2_1_tiny.npz): levels, images, scaled positions."""

import json

import jax
import numpy as np
import pytest

from vjepa_jax import config as config_lib
from vjepa_jax.convert import official
from vjepa_jax.objectives.vjepa2 import VJEPA2

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def part(fixture, prefix):
    return {k[len(prefix) :]: v for k, v in fixture.items() if k.startswith(prefix)}


def tiny_run(meta, **changes) -> config_lib.RunConfig:
    config = {
        "steps": 100,
        "batch_size": 3,
        "data": {"path": "unused", "num_frames": meta["frames"], "resolution": meta["resolution"]},
        "model": {
            "variant": "vit_tiny",
            "embed_dim": meta["embed_dim"],
            "depth": meta["depth"],
            "num_heads": meta["num_heads"],
            "dtype": "float32",
            "position": "rope_interleaved",
            "rope_grid": 16,
            "levels": meta["hierarchical_layers"],
            "image_tokenizer": True,
            "predictor": {
                "embed_dim": meta["predictor_embed_dim"],
                "depth": meta["predictor_depth"],
                "num_heads": meta["predictor_num_heads"],
                "mask_token_per_group": False,
                "predict_context": True,
            },
        },
        "loss": {"context_weight": 0.5, "context_warmup": (10, 20)},
    }
    config["model"] |= changes.pop("model", {})
    return config_lib.from_config_dict(config | changes)


@pytest.fixture
def fixture(fixture_npz):
    return fixture_npz("vjepa2_1_tiny.npz")


def channels_last(video):
    return np.ascontiguousarray(np.moveaxis(video, 1, -1))


def build(fixture, **changes):
    run = tiny_run(json.loads(str(fixture["meta"])), **changes)
    params = {
        "encoder": official.encoder_from_official(part(fixture, "encoder/"), run.model),
        "predictor": official.predictor_from_official(part(fixture, "predictor/"), run.model),
    }
    masks = [{k: fixture[f"masks/{i}/{k}"].astype(np.int32) for k in ("context", "target")} for i in range(2)]
    batch = {"video": channels_last(fixture["video_bcthw"]), "masks": masks}
    return VJEPA2(run), params, {"target": params["encoder"]}, batch


@pytest.mark.parametrize("unroll", [1, 0])
def test_forward_agrees(fixture, unroll):
    objective, params, aux, batch = build(fixture, model={"unroll": unroll})

    @jax.jit
    def every_level(video):
        patches, grid = objective._patches(video)
        image = objective._is_image(video)
        return objective._encode(params["encoder"], patches, grid, image=image, every_level=True)

    for video, name in (("video_bcthw", "full"), ("image_bcthw", "image"), ("video_nonsquare_bcthw", "nonsquare")):
        levels = every_level(channels_last(fixture[video]))
        np.testing.assert_allclose(levels, fixture[f"encoder_out/{name}_hierarchical"], err_msg=name, **TOLERANCE)
    features = jax.jit(objective.features)(params, batch["video"])
    last = fixture["encoder_out/full_hierarchical"][..., -features.shape[-1] :]
    np.testing.assert_allclose(features.reshape(last.shape), last, **TOLERANCE)

    groups = jax.jit(lambda: [vars(g) for g in objective.outputs(params, aux, batch).groups])()
    for i, group in enumerate(groups):
        np.testing.assert_allclose(group["context"], fixture[f"encoder_out/context{i}"], **TOLERANCE)
        np.testing.assert_allclose(group["prediction"], fixture[f"predictor_out/{i}"], **TOLERANCE)
        np.testing.assert_allclose(group["context_prediction"], fixture[f"predictor_context_out/{i}"], **TOLERANCE)


def test_official_layout_round_trip_is_bitwise(fixture):
    objective, params, _, _ = build(fixture)
    model = objective.run.model
    encoder = official.encoder_to_official(params["encoder"], model)
    predictor = official.predictor_to_official(params["predictor"], model)
    for ours, prefix in ((encoder, "encoder/"), (predictor, "predictor/")):
        theirs = part(fixture, prefix)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


def normalised_levels(fixture, name, width):
    """Every level normalised over its channels, as the released loss does."""
    levels = fixture[name].astype(np.float64)
    levels = levels.reshape(*levels.shape[:-1], -1, width)
    levels = (levels - levels.mean(-1, keepdims=True)) / np.sqrt(levels.var(-1, keepdims=True) + 1e-5)
    return levels.reshape(*levels.shape[:-2], -1)


def positions(ids, side):
    return np.stack([ids // side**2, ids // side % side, ids % side], -1).astype(np.float64)


@pytest.mark.parametrize("step, ramp", [(0, 0.0), (10, 0.0), (15, 0.5), (20, 1.0), (50, 1.0)])
def test_loss_is_the_released_formula_on_the_fixtures_numbers(fixture, step, ramp):
    """Targets, context loss with 1/sqrt(distance) and its ramp, in plain numpy on PyTorch's outputs."""
    objective, params, aux, batch = build(fixture)
    targets = normalised_levels(fixture, "encoder_out/full_hierarchical", 32)
    target_losses, context_losses = [], []
    for i, mask in enumerate(batch["masks"]):
        rows = np.arange(3)[:, None]
        target_losses.append(np.abs(fixture[f"predictor_out/{i}"] - targets[rows, mask["target"]]).mean())
        gaps = positions(mask["context"], 4)[:, :, None] - positions(mask["target"], 4)[:, None]
        distance = np.sqrt((gaps**2).sum(-1)).min(-1)
        error = np.abs(fixture[f"predictor_context_out/{i}"] - targets[rows, mask["context"]])
        context_losses.append((error / np.sqrt(distance)[..., None]).mean())
    expected = np.mean(target_losses) + 0.5 * ramp * np.mean(context_losses)
    loss, metrics = jax.jit(objective.loss)(params, aux, batch, jax.random.key(0), step)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/context"], np.mean(context_losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["context_weight"], 0.5 * ramp)

"""Agreement with the PyTorch V-JEPA 2 modules (fixtures/vjepa2_tiny.npz): forward, loss, gradients, an update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.convert import official
from vjepa_jax.ops.losses import layer_norm
from vjepa_jax.ops.patches import normalize
from vjepa_jax.training.optim import make_optimizer
from vjepa_jax.training.step import make_train_step

from .released import TOLERANCE, build, channels_last, part


@pytest.fixture
def fixture(fixture_npz):
    return fixture_npz("vjepa2_tiny.npz")


@pytest.mark.parametrize("unroll", [1, 0])
def test_forward_agrees(fixture, unroll):
    objective, params, aux, batch = build(fixture, {"unroll": unroll})
    features = jax.jit(objective.features)
    full = features(params, batch["video"])
    np.testing.assert_allclose(full.reshape(3, 64, -1), fixture["encoder_out/full"], **TOLERANCE)
    nonsquare = channels_last(fixture["video_nonsquare_bcthw"])
    wide = features(params, nonsquare)
    assert wide.shape[1:4] == (4, 4, 6)
    np.testing.assert_allclose(wide.reshape(2, 96, -1), fixture["encoder_out/nonsquare"], **TOLERANCE)

    outputs = jax.jit(lambda: dataclasses.asdict(objective.outputs(params, aux, batch)))()
    np.testing.assert_allclose(layer_norm(outputs["features"]), fixture["target_out/normalized"], **TOLERANCE)
    for i, (group, mask) in enumerate(zip(outputs["groups"], batch["masks"], strict=True)):
        patches, grid = objective._patches(batch["video"])
        kept = jnp.take_along_axis(patches, mask["context"][..., None], 1)
        encode = jax.jit(objective.encoder.apply, static_argnums=2)
        context = encode({"params": params["encoder"]}, kept, grid, mask["context"])
        np.testing.assert_allclose(context, fixture[f"encoder_out/context{i}"], **TOLERANCE)
        np.testing.assert_allclose(group["prediction"], fixture[f"predictor_out/{i}"], **TOLERANCE)
    loss, _ = jax.jit(objective.loss)(params, aux, batch, jax.random.key(0), 0)
    np.testing.assert_allclose(loss, fixture["loss"], rtol=1e-5)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_gradients_agree(fixture, remat):
    objective, params, aux, batch = build(fixture, {"remat": remat})
    grads, _ = jax.jit(jax.grad(objective.loss, has_aux=True))(params, aux, batch, jax.random.key(0), 0)
    model = objective.run.model
    ours = {
        "encoder": official.encoder_to_official(grads["encoder"], model),
        "predictor": official.predictor_to_official(grads["predictor"], model),
    }
    checked = 0
    for name, norm in part(fixture, "grad_norm/").items():
        tower, key = name.split("/", 1)
        np.testing.assert_allclose(np.linalg.norm(ours[tower][key]), norm, err_msg=name, **TOLERANCE)
        checked += 1
    assert checked == len(ours["encoder"]) + len(ours["predictor"]) - 1  # mask token 1 takes no part
    key = "blocks.0.attn.qkv.weight"
    np.testing.assert_allclose(ours["encoder"][key], fixture[f"grad/encoder/{key}"], **TOLERANCE)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_one_update_and_ema_agree(fixture, accumulate):
    objective, params, aux, batch = build(fixture, optim={"accumulate": accumulate})
    run = objective.run
    optimizer = make_optimizer(run)
    state = {"step": jnp.zeros([], jnp.int32), "params": params, "aux": aux, "opt": optimizer.init(params)}
    state, metrics = jax.jit(make_train_step(objective, optimizer, run))(state, batch)
    assert state["step"] == 1
    np.testing.assert_allclose(metrics["loss"], fixture["loss"], rtol=1e-5)
    after = {
        "encoder": official.encoder_to_official(state["params"]["encoder"], run.model),
        "predictor": official.predictor_to_official(state["params"]["predictor"], run.model),
        "target_encoder": official.encoder_to_official(state["aux"]["target"], run.model),
    }
    for name, value in part(fixture, "after_step/").items():
        tower, key = name.split("/", 1)
        np.testing.assert_allclose(after[tower][key], value, err_msg=name, **TOLERANCE)


def test_official_layout_round_trip_is_bitwise(fixture):
    objective, params, _, _ = build(fixture)
    encoder = official.encoder_to_official(params["encoder"], objective.run.model)
    predictor = official.predictor_to_official(params["predictor"], objective.run.model)
    for ours, prefix in ((encoder, "encoder/"), (predictor, "predictor/")):
        theirs = part(fixture, prefix)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_a_missing_and_a_surplus_tensor_are_named(fixture):
    objective, *_ = build(fixture)
    state = part(fixture, "encoder/")
    removed = {k: v for k, v in state.items() if k != "blocks.1.mlp.fc1.bias"}
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc1\.bias is missing"):
        official.encoder_from_official(removed, objective.run.model)
    with pytest.raises(ValueError, match=r"blocks\.9\.norm1\.bias has no place"):
        official.encoder_from_official({**state, "blocks.9.norm1.bias": np.zeros(3)}, objective.run.model)


def test_padding_with_validity_changes_nothing(fixture):
    objective, params, aux, batch = build(fixture)
    padded = []
    for mask in batch["masks"]:
        row = {}
        for name, ids in mask.items():
            row[name] = np.concatenate([ids, np.repeat(ids[:, :1], 5, 1)], 1)
            row[f"{name}_valid"] = np.arange(ids.shape[1] + 5)[None].repeat(3, 0) < ids.shape[1]
        padded.append(row)
    plain, _ = jax.jit(objective.loss)(params, aux, batch, jax.random.key(0), 0)
    masked, _ = jax.jit(objective.loss)(params, aux, {**batch, "masks": padded}, jax.random.key(0), 0)
    np.testing.assert_allclose(masked, plain, rtol=1e-6)


def test_uint8_video_is_normalised_on_the_device(fixture):
    objective, params, _, _ = build(fixture)
    video = np.random.default_rng(0).integers(0, 256, (1, 8, 64, 64, 3), np.uint8)
    scaled = (video / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(normalize(video), scaled, atol=1e-5)
    features = jax.jit(objective.features)
    expected = features(params, scaled.astype(np.float32))
    np.testing.assert_allclose(features(params, video), expected, **TOLERANCE)

"""Agreement with the PyTorch V-JEPA 2.1 modules (fixtures/vjepa2_1_tiny.npz): levels, images, scaled positions."""

import jax
import numpy as np
import pytest

from vjepa_jax.convert import official

from .released import TOLERANCE, build, channels_last, part, released_loss_21


@pytest.fixture
def fixture(fixture_npz):
    return fixture_npz("vjepa2_1_tiny.npz")


@pytest.mark.parametrize("unroll", [1, 0])
def test_forward_agrees(fixture, unroll):
    objective, params, aux, batch = build(fixture, {"unroll": unroll})

    @jax.jit
    def every_level(video):
        patches, grid = objective._patches(video)
        image = objective._is_image(video)
        return objective._encode_levels(params["encoder"], patches, grid, image=image)

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


@pytest.mark.parametrize("step, ramp", [(0, 0.0), (10, 0.0), (15, 0.5), (20, 1.0), (50, 1.0)])
def test_loss_is_the_released_formula_on_the_fixtures_numbers(fixture, step, ramp):
    """Targets, context loss with 1/sqrt(distance) and its ramp, in plain numpy on PyTorch's outputs."""
    objective, params, aux, batch = build(fixture)
    expected, context = released_loss_21(fixture, batch["masks"], ramp)
    loss, metrics = jax.jit(objective.loss)(params, aux, batch, jax.random.key(0), step)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/context"], context, rtol=1e-5)
    np.testing.assert_allclose(metrics["context_weight"], 0.5 * ramp)

"""Losses of dense prediction by hand, and the linear heads that they train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.models.dense_head import DepthMap, LinearMap, stretched
from vjepa_jax.ops.dense_losses import pixel_cross_entropy, scale_invariant_log


def test_cross_entropy_is_a_mean_over_all_pixels():
    logits = jnp.log(jnp.array([[[[[0.5, 0.5], [0.25, 0.75]], [[0.9, 0.1], [0.2, 0.8]]]]]))
    labels = jnp.array([[[[0, 1], [-1, 0]]]])
    expected = -(np.log(0.5) + np.log(0.75) + np.log(0.2)) / 4  # the third pixel counts nowhere
    np.testing.assert_allclose(pixel_cross_entropy(logits, labels), [expected], rtol=1e-6)


def test_the_scale_invariant_loss_by_hand():
    depth = np.array([[[[1.0, 2.0], [4.0, 0.0]]], [[[1.0, 2.0], [4.0, 11.0]]]])
    g = np.array([0.3, -0.2, 0.5])
    found = np.ones_like(depth)
    valid = np.zeros(depth.shape, bool)
    valid[..., 0, :], valid[..., 1, 0] = True, True
    found[valid] = np.exp(np.log(depth[valid] + 1e-3) + np.tile(g, 2)) - 1e-3
    expected = np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    # no depth, and more than there may be, do not count
    np.testing.assert_allclose(scale_invariant_log(found, depth, 10.0), [expected] * 2, rtol=1e-5)
    twice = scale_invariant_log(2 * depth + 1e-3, depth, 10.0)  # twice as far: of the mean alone
    np.testing.assert_allclose(twice, [np.sqrt(0.15) * np.log(2)] * 2, rtol=1e-4)


def test_the_loss_is_of_all_pictures_of_an_item():
    depth = np.array([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    found = depth * np.array([1.2, 0.8])[:, None, None]
    g = np.repeat(np.log([1.2, 0.8]), 2)
    expected = np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    np.testing.assert_allclose(scale_invariant_log(found, depth, 10.0), [expected], rtol=1e-2)
    alone = scale_invariant_log(found.reshape(2, 1, 1, 2), depth.reshape(2, 1, 1, 2), 10.0)
    assert (np.asarray(alone) < expected).all()  # a scale of each picture is nearly free where each is its own


def test_no_valid_pixel_and_no_error_have_gradients():
    grad = jax.grad(lambda found, depth: scale_invariant_log(found, depth, 10.0).sum())
    for depth in (jnp.zeros((1, 1, 2, 2)), jnp.full((1, 1, 2, 2), 3.0)):
        assert np.isfinite(grad(jnp.full((1, 1, 2, 2), 3.0), depth)).all()


def test_depth_is_a_mean_over_bins():
    head = DepthMap(3, 1.0, 3.0, upsample=1, affine=False)
    x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    params = {"linear": {"kernel": jnp.array([[0.3, -5.0, 1.7], [0.0, 0.0, 0.0]]), "bias": jnp.array([0.0, 0.0, 0.2])}}
    weights = np.array([0.3, 0.0, 1.9]) + 0.1
    expected = weights @ [1.0, 2.0, 3.0] / weights.sum()
    np.testing.assert_allclose(head.apply({"params": params}, x).ravel(), [expected], rtol=1e-6)


def test_stretched_logits_are_those_of_stretched_features():
    x = np.random.default_rng(0).normal(size=(2, 1, 3, 4, 5)).astype(np.float32)
    head = LinearMap(3, affine=True)
    params = head.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)
    np.testing.assert_allclose(
        stretched(head.apply({"params": params}, x), (12, 16)),
        head.apply({"params": params}, stretched(x, (12, 16))),
        atol=1e-5,
    )


@pytest.mark.parametrize("affine", [True, False])
def test_the_scale_belongs_to_the_head_only_behind_a_norm(affine):
    params = LinearMap(3, affine).init(jax.random.key(0), jnp.zeros((1, 1, 2, 2, 4)))["params"]
    assert ("norm" in params) == affine and params["linear"]["kernel"].shape == (4, 3)

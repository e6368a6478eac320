"""The attentive probe against the PyTorch modules, and its initialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.config import ConfigError
from vjepa_jax.convert import probes
from vjepa_jax.models.probe import AttentiveClassifier, AttentivePooler, init_classifier

HEADS = 2  # of the probe in the fixture
KEY = jax.random.key(0, impl="rbg")  # compiles in a fifth of the time of the default generator


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, x_BND):
    return model.apply({"params": params}, x_BND)


@pytest.fixture
def official(fixture_npz):
    """The tokens, the state dict and the logits of the PyTorch probe (depth 3, 7 classes)."""
    data = fixture_npz("vjepa2_tiny.npz")
    state = {k.removeprefix("probe/"): v for k, v in data.items() if k.startswith("probe/")}
    return data["probe_in"], state, data["probe_out"]


def test_agrees_with_the_pytorch_probe(official):
    x, state, expected = official
    model = AttentiveClassifier(num_classes=7, num_heads=HEADS, depth=3)
    params = probes.from_official(state, HEADS).params
    fresh = jax.eval_shape(lambda: init_classifier(model, KEY, jnp.asarray(x)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, fresh)
    np.testing.assert_allclose(apply(model, params, x), expected, atol=1e-5, rtol=0)


def test_the_number_of_heads_matters(official):
    x, state, expected = official
    other = AttentiveClassifier(num_classes=7, num_heads=4, depth=3)
    assert np.abs(apply(other, probes.from_official(state, 4).params, x) - expected).max() > 1e-4


def test_token_order_does_not_matter(official):
    x, state, expected = official
    model = AttentiveClassifier(num_classes=7, num_heads=HEADS, depth=3)
    np.testing.assert_allclose(apply(model, probes.from_official(state, HEADS).params, x[:, ::-1]), expected, atol=1e-5)


def test_bfloat16_stays_close_to_float32(official):
    x, state, expected = official
    model = AttentiveClassifier(num_classes=7, num_heads=HEADS, depth=3, dtype=jnp.bfloat16)
    out = apply(model, probes.from_official(state, HEADS).params, x)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-2)


def test_initialisation_shrinks_the_residual_branches():
    x = jnp.zeros((1, 4, 64))
    pooler = init_classifier(AttentiveClassifier(num_classes=3, num_heads=4, depth=4), KEY, x)["pooler"]
    fc2, proj = pooler["blocks"]["fc2"]["kernel"], pooler["blocks"]["proj"]["kernel"]
    expected = 0.02 / np.sqrt(2.0 * np.arange(1, 4))
    np.testing.assert_allclose(np.std(fc2, (1, 2)), expected, rtol=0.05)
    np.testing.assert_allclose(np.std(proj, (1, 2, 3)), expected, rtol=0.05)
    np.testing.assert_allclose(np.std(pooler["cross"]["fc2"]["kernel"]), 0.02 / np.sqrt(6.0), rtol=0.05)
    np.testing.assert_allclose(np.std(pooler["cross"]["fc1"]["kernel"]), 0.02, rtol=0.05)
    shallow = init_classifier(AttentiveClassifier(num_classes=3, num_heads=4), KEY, x)["pooler"]
    assert "blocks" not in shallow
    np.testing.assert_allclose(np.std(shallow["cross"]["fc2"]["kernel"]), 0.02 / np.sqrt(2.0), rtol=0.05)


def test_several_queries_give_several_vectors():
    pooler = AttentivePooler(num_heads=2, num_queries=3)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    out, _ = jax.jit(pooler.init_with_output)(KEY, x)
    assert out.shape == (2, 3, 8) and out.dtype == jnp.float32
    assert np.abs(out[:, 0] - out[:, 1]).min() > 0


def test_uneven_heads_are_refused():
    with pytest.raises(ConfigError, match="tokens of 10 channels do not divide over 4 probe heads"):
        AttentivePooler(num_heads=4).init(KEY, jnp.zeros((1, 3, 10)))

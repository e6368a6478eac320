"""The attentive probe against the PyTorch modules, and its initialisation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.config import ConfigError
from vjepa_jax.convert import probes
from vjepa_jax.models.probe import AttentiveClassifier, AttentivePooler, MultiTaskClassifier, init_classifier

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


TASKS = {"verb_classifier": 4, "noun_classifier": 5, "action_classifier": 6}  # names and order of the official probe


@pytest.fixture
def anticipation(official):
    """Tokens and state dict of a probe with three queries: PyTorch's cross-attention, new queries and heads."""
    rng = np.random.default_rng(0)
    x, state, _ = official
    state = {name: array for name, array in state.items() if name.startswith("pooler.cross_attention_block.")}
    state["pooler.query_tokens"] = rng.normal(size=(1, 3, 32)).astype(np.float32)
    for name, classes in TASKS.items():
        state[f"{name}.weight"] = rng.normal(size=(classes, 32)).astype(np.float32)
        state[f"{name}.bias"] = rng.normal(size=classes).astype(np.float32)
    return x, state


def cross_attention(state, query_D, x_ND):
    """One query over the tokens of one video in float64, from the formula with all keys and values: [D]."""
    p = {k.removeprefix("pooler.cross_attention_block."): v.astype(np.float64) for k, v in state.items()}
    linear = lambda name, y: y @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, y):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        return y * p[f"{name}.weight"] + p[f"{name}.bias"]

    q_D, kv_NE = linear("xattn.q", query_D), linear("xattn.kv", norm("norm1", x_ND))
    dim, size = len(query_D), len(query_D) // HEADS
    mixed = []
    for start in range(0, dim, size):
        part = slice(start, start + size)
        weights_N = np.exp(kv_NE[:, :dim][:, part] @ q_D[part] / np.sqrt(size))
        mixed.append(weights_N / weights_N.sum() @ kv_NE[:, dim:][:, part])
    q_D = query_D + np.concatenate(mixed)
    hidden = linear("mlp.fc1", norm("norm2", q_D))
    return q_D + linear("mlp.fc2", hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))))


def test_three_queries_agree_with_the_formula(anticipation):
    x, state = anticipation
    probe = probes.from_official(state, HEADS)
    logits = apply(probe.model, probe.params, x)
    assert {name: out.shape for name, out in logits.items()} == {name: (3, n) for name, n in TASKS.items()}
    for name, query_D in zip(TASKS, state["pooler.query_tokens"][0].astype(np.float64), strict=True):
        pooled = np.stack([cross_attention(state, query_D, x_ND.astype(np.float64)) for x_ND in x])
        expected = pooled @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        assert logits[name].dtype == jnp.float32
        np.testing.assert_allclose(logits[name], expected, atol=2e-5, rtol=0, err_msg=name)


def test_every_query_gives_what_it_gives_alone(anticipation):
    x, state = anticipation
    probe = probes.from_official(state, HEADS)
    assert probe.model == MultiTaskClassifier(tuple(TASKS.items()), num_heads=HEADS)
    together, alone = apply(probe.model, probe.params, x), []
    for i, name in enumerate(TASKS):
        query = probe.params["pooler"]["query_tokens"][i : i + 1]
        params = {"pooler": {**probe.params["pooler"], "query_tokens": query}, "linear": probe.params[name]}
        alone.append(apply(AttentiveClassifier(TASKS[name], num_heads=HEADS), params, x))
        np.testing.assert_allclose(together[name], alone[-1], atol=1e-5, rtol=0, err_msg=name)
    assert np.abs(alone[0] - alone[1][:, :4]).max() > 0.1


def test_one_of_three_queries_agrees_with_the_pytorch_probe(official, anticipation):
    x, state, expected = official
    others = anticipation[1]["pooler.query_tokens"]
    state = {name: array for name, array in state.items() if not name.startswith("linear.")} | {
        f"{name}.{part}": state[f"linear.{part}"] for name in TASKS for part in ("weight", "bias")
    }
    for query, name in enumerate(TASKS):
        queries = others.copy()
        queries[0, query] = state["pooler.query_tokens"][0, 0]
        probe = probes.from_official(state | {"pooler.query_tokens": queries}, HEADS)
        logits = apply(probe.model, probe.params, x)
        np.testing.assert_allclose(logits.pop(name), expected, atol=1e-5, rtol=0)
        assert all(np.abs(other - expected).max() > 1e-2 for other in logits.values())


def test_fresh_parameters_of_several_tasks():
    model = MultiTaskClassifier((("verb", 3), ("heads.0", 4)), num_heads=4)
    params = jax.eval_shape(lambda: init_classifier(model, KEY, jnp.zeros((1, 4, 64))))
    assert params.keys() == {"pooler", "verb", "heads_0"}
    assert params["heads_0"]["kernel"].shape == (64, 4) and params["pooler"]["query_tokens"].shape == (2, 64)


def test_uneven_heads_are_refused():
    with pytest.raises(ConfigError, match="tokens of 10 channels do not divide over 4 probe heads"):
        AttentivePooler(num_heads=4).init(KEY, jnp.zeros((1, 3, 10)))

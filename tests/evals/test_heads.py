"""Heads trained side by side: each is what it would be alone, with optax's AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vjepa_jax.evals.heads import Heads, Setting
from vjepa_jax.models.probe import AttentiveClassifier, init_classifier

MODEL = AttentiveClassifier(3, num_heads=2, depth=2, mlp_ratio=1.0)
STEPS = 4
SETTINGS = [Setting(1e-2, 0.1), Setting(1e-3, 0.4, 1e-4, 2), Setting(3e-3, 0.2, final_weight_decay=0.0)]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, 8, 5, 12)).astype(np.float32)
LABELS = RNG.integers(0, 3, (STEPS, 8))
WEIGHTS = (RNG.random((3, 8)) < 0.8).astype(np.float32)


def train(settings=SETTINGS, weights=WEIGHTS, at_once=0, micro=0):
    heads = Heads(MODEL, settings, STEPS, 0, at_once, micro)
    for x, labels in zip(X, LABELS, strict=True):
        heads.train(x, labels, weights)
    return heads


def alone(setting, weight):
    """The same training by optax.adamw, whose schedules are plain tables."""
    rates = [setting.rates(step, STEPS) for step in range(STEPS)]
    lr = lambda count: jnp.asarray([r[0] for r in rates])[count]
    params = init_classifier(MODEL, jax.random.key(0, impl="rbg"), jnp.zeros((1, 5, 12)))
    adam = optax.scale_by_adam()
    state = adam.init(params)
    for step in range(STEPS):

        def loss(p, step=step):
            ce = optax.softmax_cross_entropy_with_integer_labels(MODEL.apply({"params": p}, X[step]), LABELS[step])
            return (weight * ce).sum() / weight.sum()

        updates, state = adam.update(jax.grad(loss)(params), state)
        step_of = optax.chain(optax.add_decayed_weights(rates[step][1]), optax.scale(-float(lr(step))))
        updates, _ = step_of.update(updates, step_of.init(params), params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture(scope="module")
def together():
    return train()


def test_a_head_beside_others_is_the_head_alone(together):
    for head, (setting, weight) in enumerate(zip(SETTINGS, WEIGHTS, strict=True)):
        expected = alone(setting, weight)
        found = together.parameters(head)
        worst = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), found, expected)
        assert max(jax.tree.leaves(worst)) < 2e-4, worst
        probabilities = np.asarray(together.probabilities(X[0])[head])
        logits = MODEL.apply({"params": expected}, X[0])
        np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=2e-3)
        assert np.abs(found["linear"]["kernel"] - together.parameters((head + 1) % 3)["linear"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize(("at_once", "micro"), [(1, 0), (0, 2), (1, 4)])
def test_memory_saving_changes_no_number(together, at_once, micro):
    other = train(at_once=at_once, micro=micro)
    for head in range(3):
        a, b = together.parameters(head), other.parameters(head)
        worst = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), a, b)
        assert max(jax.tree.leaves(worst)) < 2e-4, worst


def test_heads_lie_on_as_many_devices_as_divide_them(together):
    assert together.mesh.size == 3 and len(jax.local_devices()) == 8  # three heads, eight devices
    assert Heads(MODEL, SETTINGS * 4, STEPS, 0, 0, 0).mesh.size == 6
    kernel = together._state[0]["linear"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[0] == 1


def test_a_video_of_no_weight_teaches_a_head_nothing(together):
    changed = LABELS.copy()
    changed[:, WEIGHTS[0] == 0] = (changed[:, WEIGHTS[0] == 0] + 1) % 3
    assert (WEIGHTS[0] == 0).any()
    heads = Heads(MODEL, SETTINGS, STEPS, 0, 0, 0)
    for x, labels in zip(X, changed, strict=True):
        heads.train(x, labels, WEIGHTS)
    a, b = together.parameters(0)["linear"]["kernel"], heads.parameters(0)["linear"]["kernel"]
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.abs(together.parameters(1)["linear"]["kernel"] - heads.parameters(1)["linear"]["kernel"]).max() > 1e-5


def test_schedules_are_those_of_the_published_code():
    cosine = [0.5 * (1 + np.cos(np.pi * k / 4)) for k in (1, 2, 3, 4)]
    plain = [Setting(1e-2, 0.1).rates(step, 4) for step in range(4)]
    np.testing.assert_allclose(plain, [(1e-2 * c, 0.1) for c in cosine], atol=1e-9)
    warm = [Setting(1.0, 0.1, 0.2, 2).rates(step, 4)[0] for step in range(4)]
    np.testing.assert_allclose(warm, [0.2 + 0.8 / 2, 1.0, 0.5, 0.0], atol=1e-9)
    decays = [Setting(1.0, 0.4, final_weight_decay=0.0).rates(step, 4)[1] for step in range(4)]
    np.testing.assert_allclose(decays, [0.4 * c for c in cosine], atol=1e-9)

"""The linear probe against a slow reference, and what it may and may not look at."""

import numpy as np
import pytest
import scipy.optimize

from vjepa_jax.evals import linear
from vjepa_jax.evals.features import held_out
from vjepa_jax.evals.linear import standardize, train_linear

# One shape for all tests (and for test_frozen.py), so that the solver is compiled once.
ROWS, DIM, CLASSES = 160, 24, 4


def clusters(seed, rows=ROWS, spread=1.0, scales=None):
    """Classes as Gaussian clusters around the same centres for every seed."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, DIM))
    labels = rng.integers(0, CLASSES, rows).astype(np.int32)
    x = centres[labels] + spread * rng.normal(size=(rows, DIM))
    return (x * (np.ones(DIM) if scales is None else scales) + 5.0).astype(np.float32), labels


def fit(x, labels, seed=0, **kwargs):
    return train_linear(x, labels, held_out(labels, np.random.default_rng(seed)), CLASSES, pad_to=ROWS, **kwargs)


def objective(flat, z, labels, l2):
    """Mean cross-entropy + l2/2 |W|^2 and its gradient, in float64."""
    w = flat.reshape(DIM + 1, CLASSES)
    logits = z @ w[:-1] + w[-1]
    logits = logits - logits.max(1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = np.arange(len(z))
    loss = -np.log(p[rows, labels]).mean() + 0.5 * l2 * (w[:-1] ** 2).sum()
    p[rows, labels] -= 1.0
    grad = np.concatenate([z.T @ p / len(z) + l2 * w[:-1], p.mean(0, keepdims=True)])
    return loss, grad.reshape(-1)


@pytest.mark.parametrize("l2", [0.1, 10.0])
@pytest.mark.parametrize(("spread", "rows"), [(0.3, ROWS), (2.0, ROWS), (2.0, 100)])  # separable, overlapping, padded
def test_reaches_the_optimum(l2, spread, rows):
    scales = np.geomspace(1e-2, 1e3, DIM)  # outlier dimensions, as V-JEPA features have
    x, labels = clusters(0, rows, spread, scales)
    probe = fit(x, labels, l2_grid=(l2,) * len(linear.L2_GRID))
    mean, scale = standardize(x)
    z = ((x - mean) * scale).astype(np.float64)
    start = np.zeros((DIM + 1) * CLASSES)
    reference = scipy.optimize.minimize(
        objective, start, (z, labels, l2 / rows), method="L-BFGS-B", jac=True, options={"maxiter": 5000, "gtol": 1e-9}
    )
    ours = np.concatenate([probe.kernel_DC, probe.bias_C[None]]).astype(np.float64).reshape(-1)
    loss, grad = objective(ours, z, labels, l2 / rows)
    assert loss - reference.fun < 1e-4
    assert np.linalg.norm(grad) < 2e-3


def test_more_dimensions_than_videos_give_the_same_optimum():
    """Features that are copies of fewer ones: both ways of finding the axes solve the same problem."""
    x, labels = clusters(0, spread=2.0)
    wide = np.tile(x, (1, 10))
    # Ten copies of a feature with weight w / 10 each cost a tenth of the penalty of w.
    few = fit(x, labels, l2_grid=(1.0,) * len(linear.L2_GRID))
    many = fit(wide, labels, l2_grid=(10.0,) * len(linear.L2_GRID))
    assert many.kernel_DC.shape == (10 * DIM, CLASSES)
    np.testing.assert_allclose(
        many.kernel_DC.reshape(10, DIM, CLASSES), np.tile(few.kernel_DC / 10, (10, 1, 1)), atol=1e-3
    )
    np.testing.assert_allclose(many.bias_C, few.bias_C, atol=2e-3)


def test_separable_classes_are_learned_and_shuffled_labels_are_not():
    x, labels = clusters(0, spread=0.3)
    test_x, test_labels = clusters(1, rows=400, spread=0.3)
    assert (fit(x, labels).predict(test_x) == test_labels).mean() > 0.99
    shuffled = np.random.default_rng(2).permutation(labels)
    test_shuffled = np.random.default_rng(3).permutation(test_labels)
    assert abs((fit(x, shuffled).predict(test_x) == test_shuffled).mean() - 1 / CLASSES) < 0.1


def test_noise_calls_for_a_stronger_penalty():
    x, labels = clusters(0, spread=0.2)
    noise, noise_labels = clusters(1, spread=20.0)
    assert fit(x, labels).l2 < fit(noise, noise_labels).l2


def test_the_strength_is_chosen_on_the_held_out_rows_only():
    x, labels = clusters(0, spread=2.0)
    chooses = np.zeros(ROWS, bool)
    chooses[:40] = True
    before = train_linear(x, labels, chooses, CLASSES, pad_to=ROWS)
    # With held-out labels at random, the choice falls on the strongest penalties: the rest says nothing about them.
    random = labels.copy()
    random[:40] = np.random.default_rng(1).integers(0, CLASSES, 40)
    after = train_linear(x, random, chooses, CLASSES, pad_to=ROWS)
    assert after.l2 >= before.l2
    part = fit(x[40:], labels[40:], l2_grid=(before.l2 * 120 / 160,) * len(linear.L2_GRID))
    assert (part.predict(x[:40]) == labels[:40]).mean() > 0.5


def test_constant_dimensions_are_left_out():
    x, labels = clusters(0, spread=2.0)
    x[:, 3] = 7.25
    probe = fit(x, labels)
    assert probe.scale[3] == 0.0 and np.isfinite(probe.kernel_DC).all()
    test_x, _ = clusters(1)
    moved = test_x.copy()
    moved[:, 3] += 100.0
    assert (probe.predict(test_x) == probe.predict(moved)).all()


def test_other_rows_do_not_compile_again():
    x, labels = clusters(0)
    fit(x, labels)
    before = linear._solve._cache_size()
    fit(x[:70], labels[:70], seed=1)
    fit(*clusters(5))
    assert linear._solve._cache_size() == before

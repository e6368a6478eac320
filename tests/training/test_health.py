"""Health metrics on arrays with known answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.training import health


def test_rankme_of_known_spectra():
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.normal(size=(64, 8)))[0]
    assert float(health.rankme(jnp.asarray(orthogonal))) == pytest.approx(8.0, rel=1e-2)
    line = np.outer(rng.normal(size=64), rng.normal(size=8))
    assert float(health.rankme(jnp.asarray(line))) == pytest.approx(1.0, abs=0.05)
    x = rng.normal(size=(64, 8)) * np.linspace(0.1, 3, 8)
    singular = np.linalg.svd(x, compute_uv=False)
    p = singular / singular.sum() + 1e-5
    assert float(health.rankme(jnp.asarray(x))) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)


def test_pair_cosine_is_the_mean_over_all_pairs():
    x = np.random.default_rng(1).normal(size=(7, 3)) + 1.0
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(7) for j in range(7) if i != j]
    assert float(health.pair_cosine(jnp.asarray(x))) == pytest.approx(np.mean(pairs), abs=1e-5)
    assert float(health.pair_cosine(jnp.ones((5, 3)))) == pytest.approx(1.0)


def test_nearest_context_copies_the_last_visible_token_of_a_future_mask():
    grid = (4, 2, 2)
    context, target = jnp.arange(8)[None], jnp.arange(8, 16)[None]
    near = health.nearest_context(context, target, grid)
    assert np.array_equal(np.asarray(context)[0][np.asarray(near)[0]], [4, 5, 6, 7, 4, 5, 6, 7])
    valid = jnp.asarray([[True] * 4 + [False] * 4])
    near = health.nearest_context(context, target, grid, valid)
    assert np.array_equal(np.asarray(near)[0], [0, 1, 2, 3, 0, 1, 2, 3])


def test_a_collapse_is_told_in_one_line():
    fine = {"rankme": 40.0, "rankme_max": 96.0, "feature_std": 0.5}
    assert health.warning(fine) is None
    assert "RankMe 2.0 of 96" in health.warning(fine | {"rankme": 2.0})
    assert "feature std 0.010" in health.warning(fine | {"feature_std": 0.01})

"""The optional loss terms against plain numpy loops and closed forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax import config as config_lib
from vjepa_jax.config import ConfigError, LossConfig
from vjepa_jax.ops import regularizers

GRID = (2, 3, 4)
value_and_slope = jax.jit(jax.value_and_grad(functools.partial(regularizers.sigreg, num_directions=8)))


@pytest.fixture
def tokens():
    """Some tokens of two clips on GRID, unsorted; the last three of a row are padding that repeats its first."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(24)[:15] for _ in range(2)]).astype(np.int32)
    ids[:, 12:] = ids[:, :1]
    return rng.normal(size=(2, 15, 5)).astype(np.float32), ids, np.arange(15)[None].repeat(2, 0) < 12


def naive_smoothness(x, ids, valid, steps):
    """Loops over clips and over all pairs of valid tokens; `steps`: allowed (t, h, w) from one to the other."""
    gaps = []
    for row in range(len(x)):
        place = [np.unravel_index(i, GRID) for i in ids[row]]
        kept = [k for k in range(len(place)) if valid[row, k]]
        for a in kept:
            for b in kept:
                if tuple(np.subtract(place[b], place[a])) in steps:
                    gaps.append(((x[row, a] - x[row, b]) ** 2).mean())
    return np.mean(gaps), len(gaps)


@pytest.mark.parametrize(
    ("term", "steps"),
    [
        (regularizers.spatial_coherence, {(0, 1, 0), (0, 0, 1)}),
        (regularizers.temporal_smoothness, {(1, 0, 0)}),
    ],
)
def test_smoothness_over_pairs_that_are_both_present(tokens, term, steps):
    x, ids, valid = tokens
    expected, pairs = naive_smoothness(x, ids, valid, steps)
    assert pairs > 3
    jitted = jax.jit(term, static_argnums=2)
    assert float(jitted(x, ids, GRID, valid)) == pytest.approx(expected, rel=1e-5)
    assert float(jitted(x[:, :12], ids[:, :12], GRID)) == pytest.approx(expected, rel=1e-5)
    grads = np.asarray(jax.jit(jax.grad(term), static_argnums=2)(x, ids, GRID, valid))
    assert np.abs(grads[:, :12]).sum() > 0 and not np.any(grads[:, 12:])


def test_smoothness_by_hand():
    # a row of four tokens 0 1 3 6 and, one time step later, its second token again as 11
    x = np.array([[[0.0], [1.0], [3.0], [6.0], [11.0]]], np.float32)
    spatial, temporal = (
        jax.jit(functools.partial(f, grid=GRID))
        for f in (regularizers.spatial_coherence, regularizers.temporal_smoothness)
    )
    ids = np.array([[0, 1, 2, 3, 13]], np.int32)
    assert float(spatial(x, ids)) == pytest.approx((1 + 4 + 9) / 3)
    assert float(temporal(x, ids)) == pytest.approx(100.0)
    # tokens 3 and 4 follow each other in id, at the end of one row and the start of the next; so do frames
    apart = np.array([[3, 4, 11, 12, 23]], np.int32)
    assert float(spatial(x, apart)) == 0.0
    assert float(temporal(x, apart)) == pytest.approx(64.0)  # tokens 11 and 23: (11 - 3)^2
    assert float(temporal(x, np.array([[0, 1, 2, 3, 4]], np.int32))) == 0.0


def test_variance_and_covariance_of_vicreg(tokens):
    x, _, valid = tokens
    variance, covariance = jax.jit(regularizers.variance), jax.jit(regularizers.covariance)
    x = x * np.array([0.1, 0.5, 1.0, 2.0, 0.0], np.float32) + 3.0
    kept = x[valid].astype(np.float64)
    std = np.sqrt(kept.var(0, ddof=1) + 1e-4)
    assert (std > 1).any() and (std < 1).any()
    expected = np.mean([max(0.0, 1.0 - s) for s in std])
    assert float(variance(x, valid)) == pytest.approx(expected, rel=1e-5)
    matrix = np.cov(kept.T)
    expected = sum(matrix[i, j] ** 2 for i in range(5) for j in range(5) if i != j) / 5
    assert float(covariance(x, valid)) == pytest.approx(expected, rel=1e-4)

    by_hand = jnp.asarray([[[1.0, 2.0], [-1.0, -2.0]]])  # C = [[2, 4], [4, 8]], both std above 1
    assert float(variance(by_hand)) == 0.0
    assert float(covariance(by_hand)) == pytest.approx(16.0)
    assert float(variance(jnp.ones((2, 3, 4)))) == pytest.approx(0.99)  # 1 - sqrt(eps)


def naive_sigreg(x, directions):
    knots, statistics = np.linspace(0.0, 3.0, 17), []
    for direction in directions.T:
        p = x @ (direction / np.linalg.norm(direction))
        error = [abs(np.exp(1j * t * p).mean() - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2) for t in knots]
        statistics.append(len(x) * 2 * np.trapezoid(error, knots))
    return np.mean(statistics)


def test_sigreg_by_loops(tokens):
    x, _, valid = tokens
    key = jax.random.key(3)
    directions = np.asarray(jax.random.normal(key, (5, 8), jnp.float32), np.float64)
    value, _ = value_and_slope(x, key, valid)
    assert float(value) == pytest.approx(naive_sigreg(x[valid].astype(np.float64), directions), rel=1e-4)


def test_sigreg_of_constant_and_of_normal_tokens():
    keys = jax.random.split(jax.random.key(0), 128)
    normal = np.random.default_rng(1).normal(size=(128, 2, 15, 5)).astype(np.float32)
    every = np.ones((2, 15), bool)
    # all tokens 0: X times the integral of (1 - phi)^2 phi over [-3, 3], three Gaussian integrals
    gauss = lambda a: math.sqrt(2 * math.pi / a) * math.erf(3 * math.sqrt(a / 2))
    value, _ = value_and_slope(0.0 * normal[0], keys[0], every)
    assert float(value) == pytest.approx(30 * (gauss(1) - 2 * gauss(2) + gauss(3)), rel=1e-2)
    # independent N(0, I): the expected statistic is the integral of (1 - phi^2) phi, for any number of tokens
    values = [float(value_and_slope(cloud, key, every)[0]) for cloud, key in zip(normal, keys, strict=True)]
    assert np.mean(values) == pytest.approx(gauss(1) - gauss(3), rel=0.09)
    # descending it moves a narrow cloud towards variance 1
    narrow = 0.3 * normal[0]
    _, slope = value_and_slope(narrow, keys[0], every)
    assert float((slope * narrow).sum()) < 0.0


def test_only_terms_with_a_coefficient_are_computed(tokens):
    x, ids, valid = tokens
    given = {"prediction_BMD": x, "target_ids_BM": ids, "target_valid_BM": valid, "context_valid_BC": valid}
    key = jax.random.key(0)

    def loss_of(context, **coefficients):
        config = LossConfig(**coefficients)
        values = regularizers.terms(config, key, GRID, context_BCD=context, **given)
        return regularizers.weighted_sum(config, values), values

    total, values = loss_of(x)
    assert values == {} and float(total) == 0.0
    assert "cos" not in str(jax.make_jaxpr(lambda c: loss_of(c, variance=1.0))(x))
    assert "cos" in str(jax.make_jaxpr(lambda c: loss_of(c, sigreg=1.0))(x))

    coefficients = {
        "spatial_coherence": 0.5, "temporal_smoothness": 0.25, "variance": 2.0, "covariance": 0.125, "sigreg": 0.0625
    }  # fmt: skip
    total, values = jax.jit(functools.partial(loss_of, **coefficients))(x)
    arguments = {
        "spatial_coherence": (x, ids, GRID, valid),
        "temporal_smoothness": (x, ids, GRID, valid),
        "variance": (x, valid),
        "covariance": (x, valid),
        "sigreg": (x, key, valid),
    }
    expected = jax.jit(lambda: {k: getattr(regularizers, k)(*args) for k, args in arguments.items()})()
    assert {k: float(v) for k, v in values.items()} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, rel=1e-5
    )
    assert all(v.shape == () and v.dtype == jnp.float32 for v in values.values())
    assert float(total) == pytest.approx(sum(coefficients[k] * float(v) for k, v in expected.items()), rel=1e-6)


def build(loss, **ema):
    raw = {"steps": 10, "batch_size": 4, "data": {"path": "videos"}, "loss": loss, "ema": ema}
    return config_lib.from_config_dict(raw)


@pytest.mark.parametrize("name", ["spatial_coherence", "temporal_smoothness"])
def test_smoothness_needs_something_against_collapse(name):
    online = {"start": 0.0, "end": 0.0}
    for loss in ({}, {"covariance": 1.0}):
        with pytest.raises(ConfigError, match=rf"loss\.{name}=0\.1 with ema\.start=ema\.end=0 .* set loss\.variance"):
            build({name: 0.1} | loss, **online)
    assert getattr(build({name: 0.1}).loss, name) == 0.1
    assert build({name: 0.1}, start=0.0, end=0.9).ema.end == 0.9
    assert build({name: 0.1, "variance": 1.0}, **online).loss.variance == 1.0
    assert build({name: 0.1, "sigreg": 0.1}, **online).loss.sigreg == 0.1


@pytest.mark.parametrize("name", ["spatial_coherence", "temporal_smoothness", "variance", "covariance", "sigreg"])
def test_a_negative_coefficient_is_one_line(name):
    with pytest.raises(ConfigError, match=rf"^loss\.{name}=-1\.0 must not be negative$"):
        build({name: -1})

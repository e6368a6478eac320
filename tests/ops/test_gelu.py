"""Exact GELU against the error function of the C library, and its derivative."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.ops.gelu import _normal_cdf, gelu

X = np.concatenate([np.linspace(-12.0, 12.0, 4801), [-60.0, -0.0, 60.0]])


def cdf(x):
    return np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in x])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2.0**-8), ("float16", 2.0**-10)])
def test_values_and_slopes_are_exact_to_the_rounding_of_the_dtype(dtype, tolerance):
    x = jnp.asarray(X, dtype)
    exact = np.asarray(x, np.float64)  # of the rounded inputs
    value = np.asarray(jax.jit(gelu)(x), np.float64)
    np.testing.assert_allclose(value, exact * cdf(exact), rtol=tolerance, atol=6e-6)
    (slope,) = jax.jit(lambda x: jax.vjp(gelu, x)[1](jnp.ones_like(x)))(x)
    density = np.exp(-0.5 * exact**2) / math.sqrt(2.0 * math.pi)
    np.testing.assert_allclose(np.asarray(slope, np.float64), cdf(exact) + exact * density, rtol=tolerance, atol=6e-6)


def test_the_polynomial_is_what_its_comment_says():
    sixteen = jnp.asarray(np.linspace(-6, 6, 100_001), jnp.bfloat16)
    error = np.asarray(_normal_cdf(sixteen), np.float64) - cdf(np.asarray(sixteen, np.float64))
    assert np.abs(error).max() < 9e-7
    ends = _normal_cdf(jnp.asarray([5.0, 300.0, -5.0, -300.0], jnp.bfloat16))
    np.testing.assert_allclose(ends, [1.0, 1.0, 0.0, 0.0], rtol=0, atol=1e-7)


def test_tanh_is_the_other_one():
    x = jnp.asarray(X, jnp.float32)
    np.testing.assert_array_equal(gelu(x, "tanh"), jax.nn.gelu(x, approximate=True))
    assert float(jnp.abs(gelu(x, "tanh") - gelu(x)).max()) > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backward_pass_keeps_the_input_alone(dtype):
    x = jnp.ones((3, 5), dtype)
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(gelu, x)[1], x))
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((3, 5), jnp.dtype(dtype))]

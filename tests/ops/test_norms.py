"""LayerNorm with a backward pass of its own, against the definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.ops.norms import layer_norm_affine

EPS = 1e-6


def inputs(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3.0, 2.0, (2, 5, 24)), dtype)
    scale, bias = (jnp.asarray(rng.normal(size=24), jnp.float32) for _ in range(2))
    return x, scale, bias, jnp.asarray(rng.normal(size=(2, 5, 24)), dtype)


def definition(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPS) * scale + bias


def gradients(x, scale, dy):
    """Written out from the definition (arXiv 1607.06450), in float64."""
    centred = x - x.mean(-1, keepdims=True)
    rate = 1.0 / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPS)
    size, dx = x.shape[-1], np.empty_like(x)
    for row in np.ndindex(x.shape[:-1]):
        unit = centred[row] * rate[row]
        jacobian = rate[row] * (np.eye(size) - 1.0 / size - np.outer(unit, unit) / size)
        dx[row] = jacobian @ (dy[row] * scale)
    return dx, (dy * centred * rate).sum((0, 1)), dy.sum((0, 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 2e-2)])
def test_values_and_gradients(dtype, tolerance):
    x, scale, bias, dy = inputs(dtype)
    apply = jax.jit(layer_norm_affine, static_argnums=(3, 4))
    y, pull = jax.vjp(lambda x, s, b: apply(x, s, b, EPS, jnp.dtype(dtype)), x, scale, bias)
    wide = [np.asarray(a, np.float64) for a in (x, scale, bias, dy)]
    assert y.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(y, np.float64), definition(*wide[:3]), rtol=tolerance, atol=tolerance)
    found = pull(dy)
    assert [g.dtype for g in found] == [x.dtype, jnp.float32, jnp.float32]
    for one, exact in zip(found, gradients(wide[0], wide[1], wide[3]), strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float64), exact, rtol=tolerance, atol=tolerance)


def test_it_keeps_its_input_and_two_numbers_a_row():
    x, scale, bias, _ = inputs("bfloat16")
    kept = jax.eval_shape(lambda x: jax.vjp(lambda x: layer_norm_affine(x, scale, bias, EPS, jnp.bfloat16), x)[1], x)
    sizes = sorted(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept) if leaf.ndim == 3)
    assert sizes == [4 * 10, 4 * 10, 2 * 240]

"""Exact GELU against the error function of the C library, and its derivative."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from vjepa_jax.config import MeshConfig
from vjepa_jax.ops import gelu as gelu_module
from vjepa_jax.ops import rowwise
from vjepa_jax.ops.gelu import gelu, normal_cdf
from vjepa_jax.parallel import partitioning

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

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


@pytest.mark.parametrize(
    "polynomial, of_phi, of_value", [(gelu_module.SIXTEEN_BIT, 9e-7, 5e-6), (gelu_module.EIGHT_BIT, 4e-4, 1.9e-4)]
)
def test_the_polynomials_are_what_their_comments_say(polynomial, of_phi, of_value):
    x = np.asarray(jnp.asarray(np.linspace(-6, 6, 100_001), jnp.bfloat16), np.float32)
    error = np.asarray(normal_cdf(jnp.asarray(x), polynomial), np.float64) - cdf(x.astype(np.float64))
    assert np.abs(error).max() < of_phi and np.abs(x * error).max() < of_value
    ends = normal_cdf(jnp.asarray([polynomial.cut, 300.0, -polynomial.cut, -300.0]), polynomial)
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


def sum_inputs(shape, dtype):
    rng = np.random.default_rng(0)
    matrix = lambda: jnp.asarray(rng.normal(0.0, 2.0, shape), dtype)
    return matrix(), jnp.asarray(rng.normal(size=shape[-1]), jnp.float32), matrix()


def exact_sum(x, bias, dy):
    """GELU(x + bias) and the gradients of both, in float64."""
    x, bias, dy = (np.asarray(a, np.float64) for a in (x, bias, dy))
    phi = norm.cdf(x + bias)
    dx = dy * (phi + (x + bias) * norm.pdf(x + bias))
    return (x + bias) * phi, dx, dx.sum((0, 1))


def sum_gradients(x, bias, dy):
    y, pull = jax.vjp(lambda x, bias: gelu(x, bias_F=bias), x, bias)
    return y, *pull(dy)


def close(got, want, tolerance):
    for one, exact in zip(got, want, strict=True):
        one = np.asarray(one, np.float64)
        np.testing.assert_allclose(one, exact.reshape(one.shape), rtol=0, atol=tolerance * np.abs(exact).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_of_a_sum_with_a_bias(dtype, tolerance):
    inputs = sum_inputs((2, 6, 40), dtype)
    found = jax.jit(sum_gradients)(*inputs)
    assert [a.dtype for a in found] == [jnp.dtype(dtype), jnp.dtype(dtype), jnp.float32]
    close(found, exact_sum(*inputs), tolerance)
    kept = jax.eval_shape(lambda x, bias: jax.vjp(lambda x, b: gelu(x, bias_F=b), x, bias)[1], *inputs[:2])
    assert sorted(leaf.shape for leaf in jax.tree.leaves(kept)) == [(2, 6, 40), (40,)]
    tanh = gelu(*inputs[:1], "tanh", inputs[1])
    np.testing.assert_array_equal(tanh, gelu(inputs[0] + inputs[1].astype(dtype), "tanh"))


# whole tiles; columns and rows that do not fill the last one
@pytest.mark.parametrize("shape", [(2, 8, 512), (2, 5, 640), (1, 9, 24)])
def test_one_pass_with_a_bias_forward_and_backward(shape):
    """Interpreted here; JAX_PLATFORMS=cuda python -m pytest tests/ops/test_gelu.py compiles it on an NVIDIA GPU."""
    x, bias, dy = sum_inputs(shape, jnp.bfloat16)
    interpret = jax.default_backend() != "gpu"
    y = gelu_module.value_kernel(x, bias, interpret=interpret)
    found = y, *gelu_module.slope_kernel(x, dy, bias, interpret=interpret)
    assert [a.dtype for a in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    close(found, exact_sum(x, bias, dy), 1e-2)


def test_one_pass_to_both_precisions():
    x, bias, dy = sum_inputs((2, 5, 640), jnp.bfloat16)
    y, short = gelu_module.value_kernel(x, bias, short=True, interpret=jax.default_backend() != "gpu")
    want, *_ = exact_sum(x, bias, dy)
    for values, eighth in ((y, short), gelu_module.value_by_xla(x, bias, short=True)):
        assert (values.dtype, eighth.dtype) == (jnp.bfloat16, jnp.float8_e4m3fn)
        close([values], [want], 1e-2)
        np.testing.assert_allclose(np.asarray(eighth, np.float64), want, rtol=1 / 16 + 1e-3, atol=2**-10 + 1e-5)


def test_devices_take_their_own_share(monkeypatch):
    """Rows over fsdp and channels over tensor; the bias's gradient is the sum over all devices."""
    seen = []

    def interpreted(kernel):
        return lambda x, *rest, **options: seen.append(x.shape) or kernel(x, *rest, interpret=True, **options)

    inputs = sum_inputs((4, 6, 64), jnp.bfloat16)
    monkeypatch.setattr(rowwise, "usable", lambda x: x.dtype == jnp.bfloat16)
    for name in ("value_kernel", "slope_kernel"):
        monkeypatch.setattr(gelu_module, name, interpreted(getattr(gelu_module, name)))
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig(fsdp=4, tensor=2))):
        divided = jax.jit(sum_gradients)(*inputs)
    assert seen == [(1, 6, 32)] * 2
    close(divided, exact_sum(*inputs), 1e-2)

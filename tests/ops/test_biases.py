"""A bias whose gradient is one pass, against the sum in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.config import MeshConfig
from vjepa_jax.ops import biases, rowwise
from vjepa_jax.ops.biases import add_bias
from vjepa_jax.parallel import partitioning

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
AXES = ("batch", "token", None, "heads", None)


def inputs(shape, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(key, shape).astype(dtype) for key in keys[:2])
    return x, jax.random.normal(keys[2], shape[2:]), dy


def gradients(x, bias, dy):
    y, pull = jax.vjp(lambda x, bias: add_bias(x, bias, AXES), x, bias)
    return y, *pull(dy)


def check(found, x, bias, dy):
    assert [a.dtype for a in found] == [x.dtype, x.dtype, jnp.float32]
    np.testing.assert_array_equal(found[0], x + bias.astype(x.dtype))
    np.testing.assert_array_equal(found[1], dy)
    np.testing.assert_allclose(found[2], np.asarray(dy, np.float64).sum((0, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients(dtype):
    arrays = inputs((2, 6, 3, 4, 8), dtype)
    check(gradients(*arrays), *arrays)


# whole tiles; channels and rows that do not fill the last one
@pytest.mark.parametrize("shape", [(2, 8, 3, 4, 128), (3, 5, 3, 4, 10)])
def test_sums_in_one_pass(shape):
    """Interpreted here; JAX_PLATFORMS=cuda python -m pytest tests/ops/test_biases.py compiles it on an NVIDIA GPU."""
    *_, dy = inputs(shape, jnp.bfloat16)
    (got,) = biases.sums_kernel(dy, jax.default_backend() != "gpu")
    np.testing.assert_allclose(got, np.asarray(dy, np.float64).sum((0, 1)), rtol=1e-4, atol=1e-4)


def test_devices_sum_their_own_share(monkeypatch):
    """Rows over fsdp, tokens over context and heads over tensor; one row is not divided: by XLA."""
    seen, kernel = [], biases.sums_kernel
    monkeypatch.setattr(rowwise, "usable", lambda x: x.dtype == jnp.bfloat16)
    monkeypatch.setattr(biases, "sums_kernel", lambda x: seen.append(x.shape) or kernel(x, interpret=True))
    x, bias, dy = inputs((4, 6, 3, 4, 8), jnp.bfloat16)
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))):
        for rows in (4, 1):
            check(jax.jit(gradients)(x[:rows], bias, dy[:rows]), x[:rows], bias, dy[:rows])
    assert seen == [(2, 3, 3, 2, 8)]

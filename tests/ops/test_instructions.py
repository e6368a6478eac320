"""Instructions that kernels name: what is asked of a GPU, and what stands for it elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.ops import instructions

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
X = jnp.asarray([[-3.0, 0.5], [2.0, -200.0]])


def test_a_gpu_is_asked_for_one_instruction():
    """Their results on a GPU: the tests of the kernels that have them."""
    power = str(jax.make_jaxpr(instructions.exp2)(X))
    assert "ex2.approx.ftz.f32" in power and power.count("elementwise_inline_asm") == 1
    step = jax.make_jaxpr(lambda x: instructions.multiply_add(x, x[:1], 2.0))(X)
    assert str(step).count("fma.rn.f32") == 1 and step.out_avals[0].shape == X.shape


def test_elsewhere_they_are_what_jnp_says():
    np.testing.assert_array_equal(instructions.exp2(X, True), jnp.exp2(X))
    np.testing.assert_array_equal(instructions.multiply_add(X, X[:1], 2.0, True), X * X[:1] + 2.0)

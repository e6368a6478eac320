"""Dense layers whose biases are added by what comes next, against flax's, and what of them a layer keeps."""

from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.config import ModelConfig
from vjepa_jax.models import dense
from vjepa_jax.models.blocks import REMAT_POLICIES, make_block
from vjepa_jax.models.dense import QKV, Dense, GeluDense, Projection
from vjepa_jax.models.variants import encoder_size
from vjepa_jax.ops import flash, rowwise
from vjepa_jax.ops.attention import attention
from vjepa_jax.ops.e4m3 import cut, rounded
from vjepa_jax.ops.rope import rope_tables

from .programs import equations

X = jax.random.normal(jax.random.key(0), (2, 5, 24))


def drawn(params):
    """Biases start at zero: with these values they count."""
    return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)


@pytest.mark.parametrize("features", [(3, 4, 6), (7,)])
def test_parameters_are_those_of_flax(features):
    ours = QKV((4, 6), jnp.float32) if len(features) == 3 else GeluDense(7, jnp.float32, "erf")
    flax = nn.DenseGeneral(features, kernel_init=dense.weight_init)
    want = flax.init(jax.random.key(1), X)
    for layer in (ours, Dense(features, jnp.float32)):
        assert jax.tree.all(jax.tree.map(np.array_equal, layer.init(jax.random.key(1), X), want))
    want = drawn(want)
    np.testing.assert_allclose(Dense(features, jnp.float32).apply(want, X), flax.apply(want, X), rtol=1e-6)


@pytest.mark.parametrize("parts", [2, 3])
def test_queries_keys_and_values(parts):
    layer = QKV((4, 6), jnp.float32, parts=parts)
    params = drawn(layer.init(jax.random.key(1), X))
    found, *missing = layer.apply(params, X)
    want = nn.DenseGeneral((parts, 4, 6)).apply(params, X)
    assert missing == [None, None]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def attend(layers, params, x):
    joint, v, v_bias = layers[0].apply(params[0], x)
    v = joint[:, :, 2] if v is None else v
    return layers[1].apply(params[1], attention(joint[:, :, 0], joint[:, :, 1], v, implementation="xla"), v_bias)


def test_the_bias_of_values_may_come_after_attention(monkeypatch):
    """Of float8 products without a gradient, here not rounded."""
    exact = lambda x, kernel, axes: dense.product(x.exact, kernel, axes)
    monkeypatch.setattr(dense, "float8_product", exact)
    joint, apart = QKV((4, 6), jnp.float32), QKV((4, 6), jnp.float32, frozen=True)
    projection = Projection(24, jnp.float32)
    params = [
        drawn(joint.init(jax.random.key(1), X)),
        drawn(projection.init(jax.random.key(2), jnp.ones((1, 2, 4, 6)))),
    ]
    *_, v_bias = apart.apply(params[0], rounded(X))
    np.testing.assert_array_equal(v_bias, params[0]["params"]["bias"][2])
    output, bias = attend([joint, projection], params, X)
    np.testing.assert_array_equal(bias, params[1]["params"]["bias"])
    other, larger_bias = attend([apart, projection], params, rounded(X))
    assert apart.apply(params[0], X)[-1] is None  # other products have it already
    assert np.abs(bias - larger_bias).max() > 0.1
    np.testing.assert_allclose(other + larger_bias, output + bias, rtol=1e-5, atol=1e-5)


def test_the_output_of_attention_may_have_eight_bits():
    layer, y = Projection(24, jnp.float32), jax.random.normal(jax.random.key(3), (2, 5, 4, 6))
    params = drawn(layer.init(jax.random.key(2), y))
    plain, bias = layer.apply(params, y)
    short, same_bias = layer.apply(params, cut(flash.TIMES * y))
    np.testing.assert_array_equal(bias, same_bias)
    error = np.abs(short - plain).mean() / np.abs(plain).mean()
    assert 1e-3 < error < 0.05


def test_a_gelu_of_a_dense_layer():
    layer = GeluDense(7, jnp.float32, "erf")
    params = drawn(layer.init(jax.random.key(1), X))
    want = jax.nn.gelu(nn.Dense(7).apply(params, X), approximate=False)
    np.testing.assert_allclose(layer.apply(params, X), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rotates", [False, True])
@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("dots", 1), ("full", 1)])
def test_only_products_are_kept(remat, again, rotates, monkeypatch):
    """The kernels of norms and GELU run again where a policy drops what they gave, as on an NVIDIA GPU; those of
    attention are kept with products."""
    monkeypatch.setattr(rowwise, "usable", lambda x: True)
    model = ModelConfig(variant="vit_micro", attention="triton", remat=remat)
    block, x = make_block(encoder_size(model), model), jnp.ones((1, 8, 96), jnp.bfloat16)
    params = jax.eval_shape(block.init, jax.random.key(0), x)
    rope = rope_tables(jnp.arange(8)[None], (2, 2, 2), 32, "tiled") if rotates else None
    apply = block.apply if remat == "none" else jax.checkpoint(block.apply, policy=REMAT_POLICIES[remat])
    program = jax.make_jaxpr(jax.grad(lambda params: apply(params, x, rope).sum().astype(jnp.float32)))(params)
    ran = Counter(e.params["name"] for e in equations(program.jaxpr) if e.primitive.name == "pallas_call")
    assert (ran["forward_kernel"], ran["keys_kernel"]) == (2 if remat == "full" else 1, 1)
    count = lambda name: ran[rowwise.PREFIX + name]
    assert (count("gelu"), count("gelu_gradient")) == (1 + again, 1)
    assert (count("layer_norm"), count("layer_norm_gradient")) == (2 + 2 * again, 2)
    assert count("bias_gradient") == 2  # of qkv and of the last dense layer

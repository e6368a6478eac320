"""cuDNN attention against the float32 oracle: JAX_PLATFORMS=cuda python -m pytest tests/ops/test_cudnn.py on a GPU."""

import jax
import jax.numpy as jnp
import pytest

from vjepa_jax.ops.attention import attention, block_causal_mask

STEPS, TOKENS, HEADS, SIZE = 4, 130, 4, 64


@pytest.mark.parametrize("masks", [(), ("mask_NM",), ("valid_BM",), ("mask_NM", "valid_BM")])
def test_cudnn_agrees_with_float32(masks):
    if jax.default_backend() != "gpu":
        pytest.skip("cuDNN attention needs an NVIDIA GPU")
    count = STEPS * TOKENS
    known = {
        "mask_NM": block_causal_mask(STEPS, TOKENS),
        "valid_BM": jnp.arange(count)[None] < jnp.array([[count], [count - 100]]),
    }
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (jax.random.normal(key, (2, count, HEADS, SIZE), jnp.bfloat16) for key in keys)

    def run(implementation, dtype):
        def loss(q, k, v):
            given = {name: known[name] for name in masks}
            y = attention(*(x.astype(dtype) for x in (q, k, v)), implementation=implementation, **given)
            return (y.astype(jnp.float32) * weight).sum(), y

        (_, y), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return [x.astype(jnp.float32) for x in (y, *grads)]

    for ours, oracle in zip(run("cudnn", jnp.bfloat16), run("xla", jnp.float32), strict=True):
        assert jnp.abs(ours - oracle).max() < 0.02 * jnp.abs(oracle).max()  # bfloat16 has 8 bits

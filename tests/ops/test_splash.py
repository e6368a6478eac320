"""Splash attention, interpreted on CPU, against XLA attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.config import MeshConfig
from vjepa_jax.ops import attention
from vjepa_jax.parallel import partitioning

BATCH, HEADS, SIZE = 2, 2, 8


def arrays(queries: int, keys: int, batch: int = BATCH, heads: int = HEADS):
    parts = jax.random.split(jax.random.key(0), 4)
    shape = lambda tokens: (batch, tokens, heads, SIZE)
    q, k, v, weight = (
        jax.random.normal(key, shape(n)) for key, n in zip(parts, (queries, keys, keys, queries), strict=True)
    )
    return q, k, v, weight


def outputs(implementation: str, q, k, v, weight, valid=None):
    """Attention and its gradients."""

    def loss(q, k, v):
        y = attention.attention(q, k, v, valid_BM=valid, implementation=implementation)
        return (y * weight).sum(), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return y, *grads


def test_splash_agrees_where_tokens_are_padded_and_keys_invalid():
    q, k, v, weight = arrays(130, 200, batch=1, heads=1)  # padded to 256 both
    valid = jnp.arange(200)[None] < 140
    ours, oracle = (outputs(kernel, q, k, v, weight, valid) for kernel in ("splash", "xla"))
    for a, b in zip(ours, oracle, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert np.abs(ours[0] - outputs("xla", q, k, v, weight)[0]).max() > 1e-2  # what is hidden would matter


def test_splash_on_a_mesh_divides_batch_queries_and_heads():
    q, k, v, _ = arrays(256, 256)
    mesh = partitioning.make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    with partitioning.on_mesh(mesh):
        run = jax.jit(lambda *x: attention.attention(*x, implementation="splash"))
        hlo, y = run.lower(q, k, v).as_text(), run(q, k, v)
    assert "tensor<1x128x1x8xf32>" in hlo  # a device's share of the queries: half of everything
    np.testing.assert_allclose(y, attention.attention(q, k, v, implementation="xla"), atol=2e-6)


@pytest.mark.parametrize("tokens", [127, 2])
def test_few_tokens_and_masks_go_to_xla(tokens):
    q, k, v, _ = arrays(tokens, tokens)
    assert "while" not in str(jax.make_jaxpr(lambda *x: attention.attention(*x, implementation="splash"))(q, k, v))
    mask = attention.block_causal_mask(2, 128)
    q, k, v, _ = arrays(256, 256)
    masked = [attention.attention(q, k, v, mask_NM=mask, implementation=kernel) for kernel in ("splash", "xla")]
    np.testing.assert_array_equal(*masked)


def test_blocks_hold_all_tokens_with_little_padding():
    expected = {128: (128, 128), 200: (256, 256), 528: (640, 640), 1568: (640, 1920), 2048: (512, 2048)}
    assert {tokens: attention.splash_blocks(tokens) for tokens in expected} == expected
    for tokens in range(128, 20_000, 7):
        block, padded = attention.splash_blocks(tokens)
        assert padded >= tokens and padded % block == block % 128 == 0 and block <= 640
        assert padded - tokens < 640 and padded <= max(tokens + 127, 1.5 * tokens)


def test_auto_is_splash_on_a_mesh_of_tpus(monkeypatch):
    assert attention.platform() == "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert attention.resolve("auto", jnp.bfloat16, 32) == "splash"
    assert attention.resolve("auto", jnp.float32, 32) == attention.resolve("auto", jnp.bfloat16, 26) == "xla"
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig())):  # of CPUs, whatever this machine has
        assert attention.platform() == "cpu" and attention.resolve("auto", jnp.bfloat16, 32) == "xla"

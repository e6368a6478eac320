"""Attention by our kernel against XLA: interpreted here, and compiled where there is an NVIDIA GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.config import MeshConfig
from vjepa_jax.ops import attention, flash
from vjepa_jax.ops.rope import rope_tables
from vjepa_jax.parallel import partitioning

ON_GPU = jax.default_backend() == "gpu"
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


def results(implementation, dtype, queries, keys, heads, size, scale=1.0, segments=()):
    seeds = jax.random.split(jax.random.key(queries + keys), 4)
    draw = lambda seed, count: jax.random.normal(seed, (2, count, heads, size), jnp.float32).astype(jnp.bfloat16)
    q, k, v, weight = (draw(*pair) for pair in zip(seeds, (queries, keys, keys, queries), strict=True))

    return with_gradients(implementation, dtype, weight, q, k, v, scale, segments)


def with_gradients(implementation, dtype, weight, q, k, v, scale=1.0, segments=()):
    """What attention gives, and the gradients of queries, keys and values of its sum with these weights, float32."""

    def loss(q, k, v):
        y = attention.attention(q * scale, k, v, implementation=implementation, segments=segments)
        return (y.astype(jnp.float32) * weight).sum(), y

    arrays = [x.astype(dtype) for x in (q, k, v)]
    (_, y), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return [np.asarray(x, np.float32) for x in (y, *grads)]


# whole blocks; blocks that reach beyond the last token; fewer tokens than one block; other keys than queries
@pytest.mark.parametrize("queries, keys", [(128, 128), (72, 72), (9, 9), (40, 130)])
@pytest.mark.parametrize("size", flash.HEAD_DIMS)
def test_float32_agrees_with_xla(queries, keys, size):
    if ON_GPU:
        pytest.skip("a GPU multiplies float32 in shorter numbers: the test of bfloat16 runs there")
    ours = results("triton", jnp.float32, queries, keys, 3, size)
    for got, want in zip(ours, results("xla", jnp.float32, queries, keys, 3, size), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-4)


# of two sequences the first ends in the middle of a block, and in the second case at its end
@pytest.mark.parametrize("segments", [((72, 72), (20, 40)), ((64, 128), (9, 9), (64, 1))])
def test_sequences_side_by_side_do_not_see_one_another(segments):
    """Outputs and gradients, against XLA on one sequence after the other."""
    queries, keys = map(sum, zip(*segments, strict=True))
    dtype, tolerance = (jnp.bfloat16, 3e-2) if ON_GPU else (jnp.float32, 1e-4)
    ours, oracle = (results(kernel, dtype, queries, keys, 2, 64, segments=segments) for kernel in ("triton", "xla"))
    for got, want in zip(ours, oracle, strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("queries, keys", [(72, 72), (1584, 1584), (528, 656)])
def test_bfloat16_agrees_with_float32(queries, keys):
    """JAX_PLATFORMS=cuda python -m pytest tests/ops/test_flash.py, on a machine with a GPU: all sizes, compiled."""
    if queries > 100 and not ON_GPU:
        pytest.skip("long sequences are interpreted too slowly without an NVIDIA GPU")
    ours = results("triton", jnp.bfloat16, queries, keys, 4, 32)
    for got, want in zip(ours, results("xla", jnp.float32, queries, keys, 4, 32), strict=True):
        assert np.abs(got - want).max() < 0.02 * np.abs(want).max()  # bfloat16 has 8 bits


def test_gradients_see_the_scores_of_the_forward_pass():
    """Of wide scores bfloat16 leaves little; what the forward pass rounded the gradients must not round otherwise."""
    seeds = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (jax.random.normal(seed, (2, 72, 4, 32), jnp.bfloat16) for seed in seeds)
    ours, oracle = (
        with_gradients(kernel, dtype, weight, 16 * q, k, v)
        for kernel, dtype in (("triton", jnp.bfloat16), ("xla", jnp.float32))
    )
    off = [np.linalg.norm(got - want) / np.linalg.norm(want) for got, want in zip(ours, oracle, strict=True)]
    assert off[0] < 0.01 and off[1] < 0.03
    assert off[3] < 2 * off[0] and off[2] < 2 * off[1]  # values as outputs, keys as queries


# the blocks of long sequences, without their length: whole, and with a rest of one tile of keys and less
@pytest.mark.parametrize("size", [32, 64])
def test_blocks_of_long_sequences(size, monkeypatch):
    monkeypatch.setattr(flash, "LONG", 0)
    segments = ((136, 136), (24, 44))
    dtype, tolerance = (jnp.bfloat16, 3e-2) if ON_GPU else (jnp.float32, 1e-4)
    ours, oracle = (results(kernel, dtype, 160, 180, 2, size, segments=segments) for kernel in ("triton", "xla"))
    for got, want in zip(ours, oracle, strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


def test_large_scores_do_not_overflow():
    dtype = jnp.bfloat16 if ON_GPU else jnp.float32
    ours, oracle = (results(kernel, dtype, 72, 72, 2, 32, scale=100.0) for kernel in ("triton", "xla"))
    for got, want in zip(ours, oracle, strict=True):
        assert np.isfinite(got).all()
        if not ON_GPU:  # scores of hundreds in bfloat16 decide at random
            assert np.abs(got - want).mean() < 1e-4 * np.abs(want).max()


# of two keys among many; of all keys
@pytest.mark.parametrize("first, others", [(32.0, 0.0), (-32.0, -32.0)])
def test_scores_beyond_the_range_of_exponentials(first, others):
    """Scores of +-522 in powers of two: weights as they are would be infinite, or all 0."""
    seeds = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (jax.random.normal(seed, (1, 150, 2, 32), jnp.bfloat16) for seed in seeds)
    q, k = q.at[..., 0].set(64.0), k.at[..., 0].set(others).at[:, 100:102, :, 0].set(first)

    run = functools.partial(with_gradients, weight=weight, q=q, k=k, v=v)
    ours = run("triton", jnp.bfloat16 if ON_GPU else jnp.float32)
    tolerance = 0.1 if ON_GPU else 0.01  # a rounding of the output, times keys of 32, is in the gradient of the queries
    for got, want in zip(ours, run("xla", jnp.float32), strict=True):
        assert np.abs(got - want).max() < tolerance * np.abs(want).max()


@pytest.mark.parametrize("implementation", ["triton", "xla"])
@pytest.mark.parametrize("segments", [(), ((72, 72), (20, 20))])
def test_outputs_of_eight_bits(implementation, segments, monkeypatch):
    """By the kernel itself, or rounded after another one."""
    q, k, v = (jax.random.normal(seed, (2, 92, 2, 32)) for seed in jax.random.split(jax.random.key(0), 3))
    if implementation == "xla":
        monkeypatch.setattr(flash, "short_attention", lambda *_: pytest.fail("it was not asked for"))
    else:
        monkeypatch.setattr(flash, "flash_attention", lambda *_: pytest.fail("it gives 32 bits"))
    got = attention.attention(q, k, v, implementation=implementation, segments=segments, short=True)
    want = flash.TIMES * np.asarray(attention.attention(q, k, v, implementation="xla", segments=segments))
    assert got.dtype == jnp.float8_e4m3fn
    tolerance = 2e-2 if ON_GPU else 1e-4
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=1 / 16 + tolerance, atol=2**-10 + tolerance)


def test_masks_and_other_heads_give_way(monkeypatch):
    monkeypatch.setattr(flash, "flash_attention", lambda *_: pytest.fail("this kernel takes no masks"))
    q = jnp.ones((1, 8, 2, 32), jnp.bfloat16)
    attend = functools.partial(attention.attention, implementation="triton")
    attend(q, q, q, valid_BM=jnp.ones((1, 8), bool))
    attend(q, q, q, mask_NM=jnp.ones((8, 8), bool))
    attend(q[..., :24], q[..., :24], q[..., :24])


def test_sequences_side_by_side_are_one_call(monkeypatch):
    calls, real = [], flash.flash_attention
    monkeypatch.setattr(flash, "flash_attention", lambda *args: calls.append(args[3]) or real(*args))
    q = jnp.ones((1, 12, 2, 16), jnp.bfloat16)
    segments = ((8, 8), (4, 4))
    attend = functools.partial(attention.attention, q, q, q, implementation="triton", segments=segments)
    attend()
    assert calls == [segments]
    attend(valid_BM=jnp.ones((1, 12), bool))  # one after the other, by another kernel
    assert calls == [segments]
    monkeypatch.setattr(attention, "cuts_sequences", lambda: True)  # devices hold parts of both
    attend()
    assert calls[1:] == [(), ()]


def rotated(qkv, rope, segments, implementation):
    """Attention after a rotation, and the gradient of all three."""
    attend = lambda qkv: attention.self_attention(qkv, rope, segments=segments, implementation=implementation)
    y, pull = jax.vjp(attend, qkv)
    return [np.asarray(x, np.float32) for x in (y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype)))]


# whole blocks; blocks that reach beyond the last token, of one sequence and of two
@pytest.mark.parametrize("segments", [((128, 128),), ((72, 72),), ((72, 72), (20, 20))])
@pytest.mark.parametrize("size", flash.HEAD_DIMS)
def test_gradients_before_the_rotation(size, segments):
    tokens = sum(queries for queries, _ in segments)
    qkv = jax.random.normal(jax.random.key(0), (2, tokens, 3, 3, size))
    ids = jax.random.randint(jax.random.key(1), (2, tokens), 0, 4 * 8 * 8)
    rope, dtype = rope_tables(ids, (4, 8, 8), size, "tiled"), jnp.bfloat16 if ON_GPU else jnp.float32
    segments = segments if len(segments) > 1 else ()
    for got, want in zip(*(rotated(qkv.astype(dtype), rope, segments, i) for i in ("triton", "xla")), strict=True):
        np.testing.assert_allclose(got, want, atol=(3e-2 if ON_GPU else 1e-4) * np.abs(want).max())


def test_tables_of_one_row_are_those_of_all():
    qkv = jax.random.normal(jax.random.key(0), (2, 24, 3, 2, 32))
    rope = rope_tables(jnp.arange(24)[None], (2, 3, 4), 32, "tiled")
    for got, want in zip(*(rotated(qkv, rope, (), i) for i in ("triton", "xla")), strict=True):
        np.testing.assert_allclose(got, want, atol=(3e-2 if ON_GPU else 1e-4) * np.abs(want).max())


def test_a_rotation_with_masks_is_left_to_others(monkeypatch):
    monkeypatch.setattr(flash, "rotated_attention", lambda *_: pytest.fail("this kernel takes no masks"))
    qkv, valid = jnp.ones((1, 24, 3, 2, 32), jnp.bfloat16), jnp.ones((1, 24), bool)
    rope = rope_tables(jnp.arange(24)[None], (2, 3, 4), 32, "tiled")
    attention.self_attention(qkv, rope, valid_BM=valid, implementation="triton")
    attention.self_attention(qkv, None, implementation="triton")


def test_devices_rotate_their_own_share(monkeypatch):
    """Rows over fsdp and heads over tensor; a row that these do not divide goes to XLA."""
    calls, real = [], flash.rotated_attention
    monkeypatch.setattr(flash, "rotated_attention", lambda *args: calls.append(args[0].shape) or real(*args))
    qkv = jax.random.normal(jax.random.key(0), (4, 24, 3, 2, 32))
    rope = rope_tables(jnp.tile(jnp.arange(24), (4, 1)), (2, 3, 4), 32, "tiled")
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig(fsdp=4, tensor=2))):
        attend = lambda *args: attention.self_attention(*args, implementation="triton")
        got = jax.jit(jax.grad(lambda qkv, rope: jnp.square(attend(qkv, rope)).sum()))(qkv, rope)
        jax.jit(attend)(qkv[:1], tuple(table[:1] for table in rope))
    assert calls == [(1, 24, 3, 1, 32)]
    attend = lambda qkv: attention.self_attention(qkv, rope, implementation="xla")
    want = jax.grad(lambda qkv: jnp.square(attend(qkv)).sum())(qkv)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_devices_take_their_own_share_of_both_sequences(monkeypatch):
    """Rows over fsdp and heads over tensor; a row that these do not divide goes to XLA, sequence by sequence."""
    calls, real = [], flash.flash_attention
    monkeypatch.setattr(flash, "flash_attention", lambda *args: calls.append(args[0].shape) or real(*args))
    q = jax.random.normal(jax.random.key(0), (4, 24, 2, 16))
    attend = lambda kernel, q: attention.attention(q, q, q, implementation=kernel, segments=((16, 16), (8, 8)))
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig(fsdp=4, tensor=2))):
        divided = [jax.jit(functools.partial(attend, "triton"))(q[:rows]) for rows in (4, 1)]
    assert calls == [(1, 24, 1, 16)]
    for got, rows in zip(divided, (4, 1), strict=True):
        np.testing.assert_allclose(got, attend("xla", q[:rows]), atol=2e-6)


def test_a_gpu_takes_it_for_the_heads_that_it_has(monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    kernels = [attention.resolve("auto", jnp.bfloat16, size) for size in (16, 24, 32, 64, 80)]
    assert kernels == ["triton", "cudnn", "triton", "triton", "cudnn"]
    assert attention.resolve("auto", jnp.float16, 32) == "cudnn"  # which it would overflow
    assert attention.resolve("auto", jnp.float32, 32) == "xla"
    monkeypatch.setattr(flash, "available", lambda: False)
    assert attention.resolve("auto", jnp.bfloat16, 32) == "cudnn"

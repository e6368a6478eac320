"""Pure functions on arrays against plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.ops import attention, losses, patches, rope, tokens


def test_attention_is_softmax_of_scaled_products():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 8)).astype(np.float32) for n in (5, 7, 7))
    logits = np.einsum("bnhk,bmhk->bhnm", q, k) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bhnm,bmhk->bnhk", weights, v)
    np.testing.assert_allclose(attention.attention(q, k, v, implementation="xla"), expected, atol=1e-5)

    valid = np.arange(7)[None].repeat(2, 0) < 4
    masked = attention.attention(q, k, v, valid_BM=jnp.asarray(valid), implementation="xla")
    np.testing.assert_allclose(masked, attention.attention(q, k[:, :4], v[:, :4], implementation="xla"), atol=1e-6)


def test_attention_under_a_block_causal_mask():
    rng = np.random.default_rng(4)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 6, 3, 8)), jnp.float32) for _ in range(3))
    mask = attention.block_causal_mask(3, 2)
    expected = [[j // 2 <= i // 2 for j in range(6)] for i in range(6)]
    assert mask.dtype == bool and mask.tolist() == expected
    valid = jnp.asarray([[True] * 6, [True, False, True, True, False, True]])
    attend = functools.partial(attention.attention, implementation="xla")
    masked, both = attend(q, k, v, mask_NM=mask), attend(q, k, v, mask_NM=mask, valid_BM=valid)
    for i in range(0, 6, 2):  # a step sees what an unmasked call on the steps up to it sees
        alone = attend(q[:, : i + 2], k[:, : i + 2], v[:, : i + 2])
        np.testing.assert_allclose(masked[:, i : i + 2], alone[:, i : i + 2], atol=1e-6)
        alone = attend(q[:, : i + 2], k[:, : i + 2], v[:, : i + 2], valid_BM=valid[:, : i + 2])
        np.testing.assert_allclose(both[:, i : i + 2], alone[:, i : i + 2], atol=1e-6)
    assert np.abs(both[1] - masked[1]).max() > 1e-3


def test_the_kernel_behind_auto(monkeypatch):
    assert attention.resolve("auto", jnp.bfloat16, 64) == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert attention.resolve("auto", jnp.bfloat16, 80) == "cudnn"
    assert attention.resolve("auto", jnp.float32, 64) == attention.resolve("auto", jnp.bfloat16, 26) == "xla"
    x = jnp.zeros((1, 2, 1, 8))
    with pytest.raises(ValueError, match="attention='flash' is not one of"):
        attention.attention(x, x, x, implementation="flash")


def naive_rope(x, position, mode):
    """One head, one axis, channel by channel."""
    half = len(x) // 2
    omega = 10000.0 ** (-np.arange(half) / half)
    out = np.zeros_like(x)
    for c in range(len(x)):
        angle = position * (omega[c % half] if mode == "tiled" else omega[c // 2])
        partner = -x[c + 1] if c % 2 == 0 else x[c - 1]
        out[c] = x[c] * np.cos(angle) + partner * np.sin(angle)
    return out


@pytest.mark.parametrize("mode", ["tiled", "interleaved"])
@pytest.mark.parametrize("head_dim", [64, 32, 26])
def test_rope_channel_by_channel(mode, head_dim):
    grid, ids = (3, 4, 5), np.array([[0, 7, 59, 33]])
    x = np.random.default_rng(1).normal(size=(1, 4, 2, head_dim))
    ours = rope.apply_rope(jnp.asarray(x, jnp.float32), *rope.rope_tables(jnp.asarray(ids), grid, head_dim, mode))
    s = rope.axis_channels(head_dim)
    for n, token in enumerate(ids[0]):
        place = (token // 20, token // 5 % 4, token % 5)
        for head in range(2):
            parts = [naive_rope(x[0, n, head, i * s : (i + 1) * s], place[i], mode) for i in range(3)]
            expected = np.concatenate([*parts, x[0, n, head, 3 * s :]])
            np.testing.assert_allclose(ours[0, n, head], expected, atol=1e-5)


def test_an_interleaved_rotation_keeps_lengths_and_depends_on_differences():
    ids = jnp.asarray([[0, 21]])
    q = jnp.asarray(np.random.default_rng(2).normal(size=(1, 2, 1, 32)), jnp.float32)
    turned = lambda shift: rope.apply_rope(q, *rope.rope_tables(ids + shift, (8, 4, 5), 32, "interleaved"))
    near, far = turned(0), turned(40)
    np.testing.assert_allclose(jnp.linalg.norm(near, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5)
    product = lambda x: float((x[0, 0, 0] * x[0, 1, 0]).sum())
    assert product(near) == pytest.approx(product(far), abs=1e-4)
    with pytest.raises(ValueError, match="rope mode"):
        rope.rope_tables(ids, (8, 4, 5), 32, "other")


def test_sincos_table_of_each_axis():
    table = rope.sincos_table(24, (2, 3, 4))
    assert table.shape == (24, 24) and table.dtype == np.float32
    t, h, w = np.unravel_index(17, (2, 3, 4))
    omega = 10000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([f(p * omega) for p in (t, h, w) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(table[17], expected, atol=1e-6)


@pytest.mark.parametrize("axes", [2, 3])
def test_sincos_positions_span_the_trained_side_whatever_the_grid(axes):
    """Rows 0, 1, 2 of three stand where those of a side of five have 0, 2, 4; a single row stays at 0."""
    known = rope.sincos_table(24, (2, 5, 5), axes).reshape(2, 5, 5, 24)
    scaled = rope.sincos_table(24, (2, 3, 5), axes, side=5).reshape(2, 3, 5, 24)
    np.testing.assert_allclose(scaled, known[:, ::2], atol=1e-6)
    np.testing.assert_array_equal(rope.sincos_table(24, (2, 1, 5), axes, side=5), known[:, 0].reshape(-1, 24))


def test_patchify_orders_tokens_and_values():
    video = np.arange(2 * 4 * 6 * 9 * 3).reshape(2, 4, 6, 9, 3)
    cut = patches.patchify(jnp.asarray(video), 2, 3)
    assert cut.shape == (2, 2 * 2 * 3, 2 * 3 * 3 * 3)
    np.testing.assert_array_equal(cut[1, 1 * 6 + 1 * 3 + 2], video[1, 2:4, 3:6, 6:9].ravel())
    with pytest.raises(ValueError, match="a clip of 5 frames of 6x9 pixels does not divide"):
        patches.token_grid((1, 5, 6, 9, 3), 2, 3)


def test_gather_and_losses():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 6, 4)), jnp.float32)
    ids = jnp.asarray([[5, 0], [1, 1]])
    np.testing.assert_array_equal(tokens.gather_tokens(x, ids)[0], np.asarray(x)[0, [5, 0]])
    assert tokens.all_ids(2, 3).tolist() == [[0, 1, 2], [0, 1, 2]]

    normal = losses.layer_norm(x)
    np.testing.assert_allclose(normal.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(normal.var(-1), 1, atol=1e-3)
    a, b = x[:, :2], x[:, 2:4]
    assert float(losses.latent_regression(a, b)) == pytest.approx(float(jnp.abs(a - b).mean()))
    assert float(losses.latent_regression(a, b, exponent=2.0)) == pytest.approx(float(((a - b) ** 2).mean() / 2))
    valid = jnp.asarray([[True, False], [True, True]])
    expected = np.abs(np.asarray(a - b)).mean(-1)[np.asarray(valid)].mean()
    assert float(losses.latent_regression(a, b, valid)) == pytest.approx(expected, rel=1e-6)


def test_distance_to_nearest_is_the_brute_force_minimum():
    rng, grid = np.random.default_rng(0), (3, 5, 4)
    count = int(np.prod(grid))
    shuffled = np.stack([rng.permutation(count) for _ in range(4)]).astype(np.int32)
    near, far, valid = shuffled[:, :20], shuffled[:, 20:33], rng.random((4, 13)) < 0.6
    positions = lambda ids: np.stack(np.unravel_index(ids, grid), -1)
    gaps = np.linalg.norm(positions(near)[:, :, None] - positions(far)[:, None], axis=-1)
    expected = np.where(valid[:, None], gaps, np.inf).min(-1)
    np.testing.assert_allclose(tokens.distance_to_nearest(near, far, grid, valid), expected, rtol=1e-6)
    np.testing.assert_allclose(tokens.distance_to_nearest(near, far, grid), gaps.min(-1), rtol=1e-6)


def test_smooth_l1_and_token_weights_have_their_known_values():
    prediction, target = jnp.array([[[0.5], [3.0], [9.0]]]), jnp.zeros((1, 3, 1))
    np.testing.assert_allclose(losses.latent_regression(prediction, target, smooth_l1=True), (0.125 + 2.5 + 8.5) / 3)
    weight, valid = jnp.array([[2.0, 0.5, 1.0]]), jnp.array([[True, True, False]])
    np.testing.assert_allclose(losses.latent_regression(prediction, target, valid, 1.0, weight), (1.0 + 1.5) / 2)
    np.testing.assert_allclose(
        losses.latent_regression(prediction, target, None, 2.0, weight), (0.25 + 2.25 + 40.5) / 3
    )

"""Options that no fixture covers: SwiGLU, CLS and registers, the cross-attention predictor, sin-cos tables, FLOPs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.config import ConfigError, ModelConfig, PredictorConfig
from vjepa_jax.models.blocks import Block, CrossBlock
from vjepa_jax.models.predictor import Predictor, predictor_flops
from vjepa_jax.models.variants import encoder_size
from vjepa_jax.models.vit import Encoder
from vjepa_jax.ops.rope import sincos_table

GRID = (2, 4, 4)
MODEL = ModelConfig(
    variant="vit_micro",
    embed_dim=24,
    depth=2,
    num_heads=2,
    patch_size=4,
    dtype="float32",
    predictor=PredictorConfig(embed_dim=16, depth=2, num_heads=2),
)
PATCH = 2 * 4 * 4 * 3


def randomised(params, seed=1):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def encoder(**changes):
    model = dataclasses.replace(MODEL, **changes)
    patches = jax.random.normal(jax.random.key(0), (3, 32, PATCH))
    params = Encoder(model).init(jax.random.key(2), patches, GRID)["params"]
    return model, Encoder(model), randomised(params), patches


def normed(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def linear(x, p):
    return np.tensordot(x, p["kernel"], 1) + p["bias"]


def softmax_attention(q, k, v):
    """[N, H, K], [M, H, K] -> [N, H, K]."""
    logits = np.einsum("NHK,MHK->HNM", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("HNM,MHK->NHK", weights / weights.sum(-1, keepdims=True), v)


def swiglu(x, p):
    hidden = linear(normed(x, p["norm2"]), p["fc1"])
    return x + linear(hidden / (1 + np.exp(-hidden)) * linear(normed(x, p["norm2"]), p["fc2"]), p["fc3"])


def test_swiglu_block_is_its_formula_and_two_thirds_as_wide():
    size = encoder_size(dataclasses.replace(MODEL, mlp="swiglu"))
    assert size.swiglu and size.mlp_dim == 64  # 24 * 4 * 2 / 3
    assert encoder_size(dataclasses.replace(MODEL, mlp="swiglu", mlp_ratio=4.2)).mlp_dim == 72  # 66 up to eights
    x = jax.random.normal(jax.random.key(0), (1, 5, 24))
    params = randomised(Block(size).init(jax.random.key(1), x)["params"])
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    qkv = linear(normed(np.asarray(x[0]), p["norm1"]), p["qkv"])
    attended = softmax_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2]).reshape(5, -1)
    proj = {"kernel": p["proj"]["kernel"].reshape(24, 24), "bias": p["proj"]["bias"]}
    expected = swiglu(np.asarray(x[0]) + linear(attended, proj), p)
    np.testing.assert_allclose(Block(size).apply({"params": params}, x)[0], expected, atol=1e-4)


def test_cross_block_is_its_formula():
    size = dataclasses.replace(encoder_size(MODEL), mlp_dim=40, swiglu=True)
    x, context = (jax.random.normal(jax.random.key(i), (1, n, 24)) for i, n in ((0, 3), (1, 7)))
    valid = jnp.arange(7)[None] < 5
    params = randomised(CrossBlock(size).init(jax.random.key(1), x, context)["params"])
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    query = linear(normed(np.asarray(x[0]), p["norm1"]), p["query"])
    kv = linear(normed(np.asarray(context[0, :5]), p["norm_context"]), p["kv"])
    attended = softmax_attention(query, kv[:, 0], kv[:, 1]).reshape(3, -1)
    proj = {"kernel": p["proj"]["kernel"].reshape(24, 24), "bias": p["proj"]["bias"]}
    expected = swiglu(np.asarray(x[0]) + linear(attended, proj), p)
    ours = CrossBlock(size).apply({"params": params}, x, context, None, valid)
    np.testing.assert_allclose(ours[0], expected, atol=1e-4)


@pytest.mark.parametrize("position", ["rope_tiled", "rope_interleaved", "sincos"])
def test_special_tokens_take_part_and_leave_the_features_shape(position):
    _, special, params_s, patches = encoder(position=position, cls_token=True, registers=2)
    assert params_s["special_tokens"].shape == (3, 24)
    with_tokens = special.apply({"params": params_s}, patches, GRID)
    assert with_tokens.shape == (3, 32, 24)
    # tokens carry no position: their order is nothing, their content is something
    swapped = {**params_s, "special_tokens": params_s["special_tokens"][::-1]}
    np.testing.assert_allclose(special.apply({"params": swapped}, patches, GRID), with_tokens, atol=1e-5)
    moved = {**params_s, "special_tokens": -params_s["special_tokens"]}
    assert np.abs(special.apply({"params": moved}, patches, GRID) - with_tokens).max() > 1e-3
    # a masked encoder with padding sees exactly the valid tokens and the special ones
    ids = jnp.broadcast_to(jnp.arange(12), (3, 12))
    kept = special.apply({"params": params_s}, patches[:, :12], GRID, ids)
    padded_ids = jnp.concatenate([ids, ids[:, :4]], axis=1)
    padded = special.apply(
        {"params": params_s}, patches[:, padded_ids[0]], GRID, padded_ids, jnp.arange(16)[None].repeat(3, 0) < 12
    )
    np.testing.assert_allclose(padded[:, :12], kept, atol=1e-5)


def predictor(kind, **changes):
    model = dataclasses.replace(MODEL, predictor=dataclasses.replace(MODEL.predictor, kind=kind), **changes)
    context = jax.random.normal(jax.random.key(0), (2, 9, 24))
    context_ids = jnp.stack([jnp.arange(9), jnp.arange(3, 12)])
    target_ids = jnp.stack([jnp.arange(12, 24), jnp.arange(14, 26)])
    params = Predictor(model).init(jax.random.key(3), context, context_ids, target_ids, GRID)["params"]
    apply = lambda *args, **kw: Predictor(model).apply({"params": randomised(params)}, *args, **kw)[0]
    return model, apply, context, context_ids, target_ids


@pytest.mark.parametrize("position", ["rope_tiled", "sincos"])
def test_cross_predictions_depend_on_context_and_place_but_not_on_each_other(position):
    _, apply, context, context_ids, target_ids = predictor("cross", position=position)
    whole = apply(context, context_ids, target_ids, GRID)
    assert whole.shape == (2, 12, 24)
    np.testing.assert_allclose(apply(context, context_ids, target_ids[:, :5], GRID), whole[:, :5], atol=1e-5)
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 1e-3  # queries differ by their place only
    assert np.abs(apply(context[:, ::-1], context_ids, target_ids, GRID) - whole).max() > 1e-3
    # padding of the context is not seen
    padded = jnp.concatenate([context, 7.0 * context[:, :3]], axis=1)
    padded_ids = jnp.concatenate([context_ids, context_ids[:, :3]], axis=1)
    valid = jnp.arange(12)[None].repeat(2, 0) < 9
    ours = apply(padded, padded_ids, target_ids, GRID, 0, valid, jnp.ones(target_ids.shape, bool))
    np.testing.assert_allclose(ours, whole, atol=1e-5)


def test_joint_predictions_do_depend_on_each_other():
    _, apply, context, context_ids, target_ids = predictor("joint")
    whole = apply(context, context_ids, target_ids, GRID)
    assert np.abs(apply(context, context_ids, target_ids[:, :5], GRID) - whole[:, :5]).max() > 1e-4


def matmul_flops(jaxpr) -> float:
    """FLOPs of every matrix product in a jaxpr, those of a scan as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _), shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * np.prod([shape[axis] for axis in contracted])
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        total += times * sum(matmul_flops(getattr(p, "jaxpr", p)) for p in inner)
    return total


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize(
    "kind, levels, context_head", [("joint", (), False), ("joint", (0, 1), True), ("cross", (), False)]
)
def test_flops_count_every_matrix_product(kind, levels, context_head, mlp):
    cfg = dataclasses.replace(MODEL.predictor, kind=kind, predict_context=context_head)
    model = dataclasses.replace(MODEL, mlp=mlp, levels=levels, predictor=cfg)
    context, ids, targets = (
        jnp.zeros((1, 10, 24 * max(1, len(levels)))),
        jnp.zeros((1, 10), int),
        jnp.zeros((1, 14), int),
    )
    params = Predictor(model).init(jax.random.key(0), context, ids, targets, GRID)["params"]
    traced = jax.make_jaxpr(lambda p: Predictor(model).apply({"params": p}, context, ids, targets, GRID))(params)
    assert matmul_flops(traced.jaxpr) == predictor_flops(model, 10, 14)

    patches = jnp.zeros((1, 32, PATCH))
    params = Encoder(model).init(jax.random.key(0), patches, GRID)["params"]
    traced = jax.make_jaxpr(lambda p: Encoder(model).apply({"params": p}, patches, GRID))(params)
    assert matmul_flops(traced.jaxpr) == encoder_size(model).forward_flops(32) + 2.0 * 32 * PATCH * 24


def test_image_sincos_tells_column_then_row():
    table = sincos_table(8, (1, 3, 5), axes=2)
    assert table.shape == (15, 8)
    omega = 10000.0 ** -(np.arange(2) / 2)
    for token in range(15):
        row, column = divmod(token, 5)
        expected = [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
        np.testing.assert_allclose(table[token], np.concatenate(expected), atol=1e-6)


@pytest.mark.parametrize("levels", [(0,), (0, 3)])
def test_levels_must_end_with_the_last_block(levels):
    with pytest.raises(ConfigError, match=r"must end with the last of the 2 blocks, 1"):
        encoder_size(dataclasses.replace(MODEL, levels=levels))

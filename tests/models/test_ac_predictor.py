"""The action-conditioned predictor against the PyTorch module (fixtures/vjepa2_tiny.npz) and plain numpy."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from vjepa_jax.config import ConfigError, ModelConfig, PredictorConfig
from vjepa_jax.convert import ac
from vjepa_jax.models.ac_predictor import ACPredictor

HEADS = 2
MODEL = ModelConfig(
    variant="vit_tiny",
    embed_dim=32,
    depth=3,
    num_heads=HEADS,
    dtype="float32",
    predictor=PredictorConfig(embed_dim=32, depth=2, num_heads=HEADS),
)
erf = np.vectorize(math.erf)


@pytest.fixture
def weights(fixture_npz):
    return {k.removeprefix("ac_predictor/"): v for k, v in fixture_npz("vjepa2_tiny.npz").items() if "ac_pred" in k}


@pytest.fixture
def example(fixture_npz):
    return {k.removeprefix("ac/"): v for k, v in fixture_npz("vjepa2_tiny.npz").items() if k.startswith("ac/")}


def predict(weights, *inputs, grid, extrinsics=None, **options):
    model = ACPredictor(MODEL, use_extrinsics=extrinsics is not None, **options)
    apply = jax.jit(lambda params, *arrays: model.apply({"params": params}, *arrays[:3], grid, *arrays[3:]))
    arrays = inputs if extrinsics is None else (*inputs, extrinsics)
    return np.asarray(apply(ac.ac_predictor_from_official(weights, MODEL), *arrays))


def norm(x, w, name):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def turn(x, position, first, size):
    """Channels first to first + size of one token and head, as released: adjacent pairs, tiled frequencies."""
    out, half = x.copy(), size // 2
    for c in range(size):
        angle = position * 10000.0 ** (-(c % half) / half)
        partner = -x[first + c + 1] if c % 2 == 0 else x[first + c - 1]
        out[first + c] = x[first + c] * np.cos(angle) + partner * np.sin(angle)
    return out


def naive(w, frames, conditions, grid, side):
    """One clip, token by token. conditions: (layer name, values [T, ...]) in the order of the tokens of a step."""
    steps, height, width = grid
    tokens, places = [], []  # a place is (step, row, column), or (step,) for a conditioning token
    for t in range(steps):
        for name, values in conditions:
            tokens.append(linear(values[t], w, name))
            places.append((t,))
        for row in range(height):
            for column in range(width):
                tokens.append(linear(frames[(t * height + row) * width + column], w, "predictor_embed"))
                places.append((t, row * side / height, column * side / width))
    x, size = np.stack(tokens).astype(np.float64), len(tokens)
    head_dim = x.shape[1] // HEADS
    channels = 2 * ((head_dim // 3) // 2)
    sees = np.array([[places[j][0] <= places[i][0] for j in range(size)] for i in range(size)])
    for layer in range(MODEL.predictor.depth):
        name = f"predictor_blocks.{layer}"
        qkv = linear(norm(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv").reshape(size, 3, HEADS, head_dim)
        for i, place in enumerate(places):
            for axis, position in enumerate(place):
                for which in range(2):
                    for h in range(HEADS):
                        qkv[i, which, h] = turn(qkv[i, which, h], position, axis * channels, channels)
        logits = np.einsum("ihk,jhk->hij", qkv[:, 0], qkv[:, 1]) / np.sqrt(head_dim)
        shares = np.where(sees, np.exp(logits), 0.0)
        y = np.einsum("hij,jhk->ihk", shares / shares.sum(-1, keepdims=True), qkv[:, 2]).reshape(size, -1)
        x = x + linear(y, w, f"{name}.attn.proj")
        hidden = linear(norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
        x = x + linear(0.5 * hidden * (1.0 + erf(hidden / math.sqrt(2.0))), w, f"{name}.mlp.fc2")
    kept = np.array([len(place) == 3 for place in places])
    return linear(norm(x[kept], w, "predictor_norm"), w, "predictor_proj")


def test_agrees_with_the_pytorch_module(weights, example):
    out = predict(weights, example["frames"], example["actions"], example["states"], grid=(3, 4, 4))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, example["out"], rtol=1e-5, atol=1e-5)
    conditions = [("action_encoder", example["actions"][0]), ("state_encoder", example["states"][0])]
    oracle = naive(weights, example["frames"][0], conditions, (3, 4, 4), side=4)
    np.testing.assert_allclose(oracle, example["out"][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("grid", "side"), [((2, 3, 5), None), ((3, 2, 2), 4)])
def test_extrinsics_and_scaled_positions(weights, grid, side):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    frames = draw(1, math.prod(grid), 32)
    actions, states, extrinsics = draw(1, grid[0], 7), draw(1, grid[0], 7), draw(1, grid[0], 6)
    out = predict(weights, frames, actions, states, grid=grid, extrinsics=extrinsics, side=side)
    conditions = [
        ("action_encoder", actions[0]), ("state_encoder", states[0]), ("extrinsics_encoder", extrinsics[0])
    ]  # fmt: skip
    np.testing.assert_allclose(out[0], naive(weights, frames[0], conditions, grid, side or grid[1]), atol=1e-5)


@pytest.mark.parametrize("changed", ["frames", "actions", "states"])
def test_a_step_does_not_see_later_ones(weights, example, changed):
    inputs = {k: example[k] for k in ("frames", "actions", "states")}
    before = predict(weights, *inputs.values(), grid=(3, 4, 4)).reshape(2, 3, 16, 32)
    rows = 16 if changed == "frames" else 1
    inputs[changed] = inputs[changed].copy()
    inputs[changed][:, rows : 2 * rows] += 1.0
    after = predict(weights, *inputs.values(), grid=(3, 4, 4)).reshape(2, 3, 16, 32)
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert all(np.abs(after[:, t] - before[:, t]).max() > 1e-3 for t in (1, 2))


def test_a_fresh_tree_is_that_of_a_checkpoint(weights, example):
    params = ac.ac_predictor_from_official(weights, MODEL)
    inputs = (example["frames"], example["actions"], example["states"], (3, 4, 4))
    fresh = jax.eval_shape(lambda: ACPredictor(MODEL).init(jax.random.key(0), *inputs)["params"])
    assert jax.tree.map(lambda x: x.shape, fresh) == jax.tree.map(lambda x: x.shape, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": (3, 4, 5)}, "48 frame tokens are not the 3x4x5 of the grid"),
        ({"actions": np.zeros((2, 4, 7))}, r"actions of shape \(2, 4, 7\) must be \[2, 3, \.\.\.\], one row a step"),
        ({"states": np.zeros((1, 3, 7))}, r"states of shape \(1, 3, 7\) must be \[2, 3"),
        ({"extrinsics": np.zeros((2, 3, 6))}, "use_extrinsics=False, but extrinsics were given"),
        ({"use_extrinsics": True}, "use_extrinsics=True, but no extrinsics were given"),
        ({"position": "sincos"}, "model.position='sincos': actions need one of rope_tiled, rope_interleaved"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(example, changes, message):
    given = example | {"grid": (3, 4, 4), "extrinsics": None, "use_extrinsics": False, "position": MODEL.position}
    given |= changes
    model = ACPredictor(dataclasses.replace(MODEL, position=given["position"]), given["use_extrinsics"])
    inputs = [given[k] for k in ("frames", "actions", "states", "grid", "extrinsics")]
    with pytest.raises(ConfigError, match=message):
        model.init(jax.random.key(0), *inputs)

"""Products of float8 inputs against numpy, and the target encoder that they are for."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy.stats import norm

from vjepa_jax.config import ConfigError, MeshConfig, from_config_dict
from vjepa_jax.models.vit import Encoder
from vjepa_jax.objectives.vjepa2 import VJEPA2
from vjepa_jax.ops import float8, rowwise
from vjepa_jax.ops.e4m3 import E4M3, rounded
from vjepa_jax.ops.float8 import float8_product
from vjepa_jax.parallel import partitioning

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
MODEL = {
    "variant": "vit_micro",
    "patch_size": 4,
    "dtype": "float32",
    "predictor": {"embed_dim": 32, "depth": 1, "num_heads": 2},
}
NAMES = "context", "prediction"
RUN = {"steps": 2, "batch_size": 2, "data": {"path": "v", "num_frames": 4, "resolution": 16}}


def by_numpy(x):
    return np.asarray(x, np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def drawn(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("out", [(5,), (3, 2, 4)])
def test_it_is_the_product_of_rounded_values(out):
    x, kernel = drawn(2, 7, 16), drawn(16, *out, seed=1, scale=0.02)
    x[0, 0, 0] = 1000.0  # beyond the largest value: cut off there, not lost
    got = float8_product(rounded(jnp.asarray(x)), jnp.asarray(kernel))
    scale = np.float32(np.abs(kernel).max() / 448.0)
    want = np.tensordot(by_numpy(np.clip(x, -448, 448)), by_numpy(kernel / scale), 1) * scale
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_the_last_axes_are_contracted():
    x, kernel = drawn(2, 7, 4, 6), drawn(4, 6, 5, seed=1)
    got = float8_product(rounded(jnp.asarray(x)), jnp.asarray(kernel), 2)
    want = float8_product(rounded(jnp.asarray(x.reshape(2, 7, 24))), jnp.asarray(kernel.reshape(24, 5)))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_small_kernels_keep_their_precision():
    x, kernel = rounded(jnp.eye(16)), drawn(16, 8, seed=1, scale=1e-6)
    got = float8_product(x, jnp.asarray(kernel))
    large = np.abs(kernel) > np.abs(kernel).max() / 100
    np.testing.assert_allclose(np.asarray(got)[large], kernel[large], rtol=1 / 16)
    assert not np.asarray(float8_product(x, jnp.zeros((16, 8)))).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_gradients_are_those_of_the_exact_product(dtype):
    shapes = (2, 7, 16), (16, 3, 4), (2, 7, 3, 4)
    x, kernel, dy = (jnp.asarray(drawn(*shape, seed=i), dtype) for i, shape in enumerate(shapes))
    found = jax.vjp(lambda x, kernel: float8_product(rounded(x), kernel), x, kernel)[1](dy)
    want = jax.vjp(lambda x, kernel: jnp.tensordot(x, kernel, 1), x, kernel)[1](dy)
    for got, exact in zip(found, want, strict=True):
        assert got.dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(exact, np.float32))


# blocks of several sizes, and a width that none divides
@pytest.mark.parametrize("rows, columns", [((2, 6), 256), ((1, 3), 384), ((2, 2), 2048), ((1, 2), 100)])
def test_gelu_in_one_pass(rows, columns):
    """Against the error function, rounded by numpy; the kernel is interpreted where there is no GPU."""
    product = drawn(*rows, columns, scale=2.0).astype(ml_dtypes.bfloat16)
    product[0, 0, :2] = 3e4, -3e4  # beyond the largest value
    bias = drawn(columns, seed=1)
    interpret = jax.default_backend() != "gpu"
    got = float8.short_kernel(jnp.asarray(product), jnp.asarray(bias), interpret)
    assert got.dtype == E4M3
    x = product.astype(np.float64) + bias
    want = np.clip(x * norm.cdf(x), -448, 448)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=1 / 16 + 1e-3, atol=2**-10 + 1e-5)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_the_layer_before_a_gelu_is_that_of_other_dtypes(with_gradient):
    x, kernel, bias = rounded(jnp.asarray(drawn(2, 4, 16))), jnp.asarray(drawn(16, 128, scale=0.3)), jnp.ones(128)
    layer = lambda x: float8.float8_gelu_layer(x, kernel, bias)
    got = jax.vjp(layer, x)[0] if with_gradient else layer(x)
    want = jax.nn.gelu(float8_product(x, kernel) + bias, approximate=False)
    np.testing.assert_allclose(got.exact, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(got.short, np.float32), want, rtol=1 / 16 + 1e-3, atol=2**-10 + 1e-5)


def test_the_gradients_of_the_layer_before_a_gelu():
    """The slope is taken where the rounded product is, and goes through the exact one."""
    shapes = (2, 4, 16), (16, 32), (32,), (2, 4, 32)
    x, kernel, bias, dy = (jnp.asarray(drawn(*shape, seed=i)) for i, shape in enumerate(shapes))
    layer = lambda x, kernel, bias: float8.float8_gelu_layer(rounded(x), kernel, bias).exact
    found = jax.vjp(layer, x, kernel, bias)[1](dy)
    at = float8_product(rounded(x), kernel) + bias
    slope = dy * (norm.cdf(at) + at * norm.pdf(at))
    want = slope @ kernel.T, jnp.einsum("bnd,bnf->df", x, slope), slope.sum((0, 1))
    for got, exact in zip(found, want, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)


def test_devices_do_their_own_share_in_one_pass(monkeypatch):
    """Batch over fsdp and channels over tensor; what these do not divide goes to XLA."""
    shares = []
    kernel = lambda *shards: shares.append([x.shape for x in shards]) or float8._short(*shards)
    monkeypatch.setattr(float8, "short_kernel", kernel)
    monkeypatch.setattr(rowwise, "usable", lambda x: True)
    x = jnp.asarray(drawn(4, 4, 16))
    weights = jnp.asarray(drawn(16, 128, scale=0.3)), jnp.linspace(-1.0, 1.0, 128)
    apply = lambda x: float8.float8_gelu_layer(rounded(x), *weights).short
    whole = [apply(x[:rows]) for rows in (4, 1)]
    assert shares.pop(0) == [(4, 4, 128), (128,)]
    shares.clear()
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig(fsdp=4, tensor=2))):
        divided = [jax.jit(apply)(x[:rows]) for rows in (4, 1)]
    assert shares == [[(1, 4, 64), (64,)]]
    for got, want in zip(divided, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))


@pytest.mark.parametrize("mlp, gelu", [("gelu", "erf"), ("gelu", "tanh"), ("swiglu", "erf")])
@pytest.mark.parametrize("frozen", [False, True])
def test_features_are_near_those_without(mlp, gelu, frozen):
    model = from_config_dict(RUN | {"model": MODEL | {"mlp": mlp, "gelu": gelu}}).model
    patches = jax.random.normal(jax.random.key(0), (2, 32, 96))
    params = Encoder(model).init(jax.random.key(1), patches, (2, 4, 4))["params"]
    plain, short = (Encoder(model, f, frozen).apply({"params": params}, patches, (2, 4, 4)) for f in (False, True))
    error = float(jnp.abs(plain - short).mean() / jnp.abs(plain).mean())
    assert 1e-3 < error < 0.1


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    masks = [{"context": np.arange(8)[None].repeat(2, 0), "target": np.arange(8, 32)[None].repeat(2, 0)}] * 2
    return {"video": rng.integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8), "masks": masks}


def with_and_without(model, **changes):
    """Parameters, and the objective of a model as it is and with changes."""
    run = from_config_dict(RUN | {"model": model})
    changed = dataclasses.replace(run, model=dataclasses.replace(run.model, **changes))
    return jax.jit(VJEPA2(run).init)(jax.random.key(0)), [VJEPA2(run), VJEPA2(changed)]


def outputs_of(objective, params, aux, batch):
    """Targets, and context and prediction of the first group."""

    @jax.jit
    def compute(params, aux):
        outputs = objective.outputs(params, aux, batch)
        return {"targets": outputs.targets} | {name: getattr(outputs.groups[0], name) for name in NAMES}

    return compute(params, aux)


def test_target_dtype_is_of_the_target_alone(batch):
    """The online encoder, what is evaluated and the gradients' path stay in the model's dtype."""
    (params, aux), both = with_and_without(MODEL, target_dtype="float8")
    outputs = [outputs_of(objective, params, aux, batch) for objective in both]
    np.testing.assert_array_equal(outputs[0]["prediction"], outputs[1]["prediction"])
    assert 1e-4 < np.abs(outputs[0]["targets"] - outputs[1]["targets"]).mean() < 0.1
    features = [jax.jit(o.features)({"encoder": aux["target"]}, batch["video"]) for o in both]
    np.testing.assert_array_equal(*features)


@pytest.mark.parametrize("kind", ["joint", "cross"])
def test_forward_dtype_is_of_what_is_trained(kind, batch):
    """The target and what is evaluated stay in the model's dtype; gradients are near those without."""
    model = MODEL | {"predictor": MODEL["predictor"] | {"kind": kind}}
    (params, aux), both = with_and_without(model, forward_dtype="float8")
    outputs = [outputs_of(objective, params, aux, batch) for objective in both]
    np.testing.assert_array_equal(outputs[0]["targets"], outputs[1]["targets"])
    for name in NAMES:
        plain, short = (o[name] for o in outputs)
        assert 1e-3 < float(jnp.abs(plain - short).mean() / jnp.abs(plain).mean()) < 0.15
    ids = jnp.asarray(batch["masks"][0]["context"]), jnp.asarray(batch["masks"][0]["target"])
    video = batch["video"]
    evaluated = [jax.jit(lambda p, o=o: (o.features(p, video), o.predict(p, video, *ids)))(params) for o in both]
    jax.tree.map(np.testing.assert_array_equal, *evaluated)
    key, step = jax.random.key(0), jnp.int32(0)
    gradients = [jax.jit(jax.grad(lambda p, o=o: o.loss(p, aux, batch, key, step)[0]))(params) for o in both]
    plain, short = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in gradients)
    error = float(jnp.linalg.norm(plain - short) / jnp.linalg.norm(plain))
    assert 1e-3 < error < 0.3


def test_devices_of_a_mesh_agree(batch):
    (params, aux), (_, objective) = with_and_without(MODEL, target_dtype="float8", forward_dtype="float8")
    wide = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), batch)  # rows for every device
    loss = lambda params: objective.loss(params, aux, wide, jax.random.key(0), jnp.int32(0))[0]
    alone = jax.jit(jax.value_and_grad(loss))(params)
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig(fsdp=4, tensor=2))):
        divided = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(divided[0], alone[0], rtol=1e-3)
    got, want = (jnp.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for _, tree in (divided, alone))
    assert jnp.linalg.norm(got - want) < 2e-2 * jnp.linalg.norm(want)


@pytest.mark.parametrize("key", ["target_dtype", "forward_dtype"])
def test_other_names_are_refused(key):
    with pytest.raises(ConfigError, match=rf"model\.{key}='fp8' is not one of same, float8"):
        from_config_dict(RUN | {"model": MODEL | {key: "fp8"}})

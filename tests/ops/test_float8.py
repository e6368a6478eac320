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
from vjepa_jax.ops.float8 import float8_dot_general
from vjepa_jax.parallel import partitioning

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
MODEL = {
    "variant": "vit_micro",
    "patch_size": 4,
    "dtype": "float32",
    "predictor": {"embed_dim": 32, "depth": 1, "num_heads": 2},
}
RUN = {"steps": 2, "batch_size": 2, "data": {"path": "v", "num_frames": 4, "resolution": 16}}


def rounded(x):
    return np.asarray(x, np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


@pytest.mark.parametrize("out", [(5,), (3, 2, 4)])
def test_it_is_the_product_of_rounded_values(out):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 16)).astype(np.float32)
    x[0, 0, 0] = 1000.0  # beyond the largest value: cut off there, not lost
    kernel = (0.02 * rng.normal(size=(16, *out))).astype(np.float32)
    got = float8_dot_general(jnp.asarray(x), jnp.asarray(kernel), (((2,), (0,)), ((), ())))
    scale = np.abs(kernel).max() / 448.0
    want = np.tensordot(rounded(np.clip(x, -448, 448)), rounded(kernel / scale), 1) * scale
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_small_kernels_keep_their_precision():
    x, kernel = np.eye(16, dtype=np.float32), 1e-6 * np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    got = float8_dot_general(jnp.asarray(x), jnp.asarray(kernel), (((1,), (0,)), ((), ())))
    large = np.abs(kernel) > np.abs(kernel).max() / 100
    np.testing.assert_allclose(np.asarray(got)[large], kernel[large], rtol=1 / 16)
    zeros = float8_dot_general(jnp.asarray(x), jnp.zeros((16, 8)), (((1,), (0,)), ((), ())))
    assert not np.asarray(zeros).any()


def test_one_kernel_for_the_whole_batch():
    with pytest.raises(ValueError, match="one kernel for the whole batch"):
        float8_dot_general(jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5)), (((2,), (1,)), ((0,), (0,))))


# blocks of several sizes, and a width that none divides
@pytest.mark.parametrize("rows, columns", [((2, 6), 256), ((1, 3), 384), ((2, 2), 2048), ((1, 2), 100)])
def test_gelu_in_one_pass(rows, columns):
    """Against the error function, rounded by numpy; the kernel is interpreted where there is no GPU."""
    rng = np.random.default_rng(2)
    product = (40.0 * rng.normal(size=(*rows, columns))).astype(ml_dtypes.bfloat16)
    product[0, 0, :2] = 3e4, -3e4  # beyond the largest value
    bias, scale = rng.normal(size=columns).astype(np.float32), np.float32(0.05)
    interpret = jax.default_backend() != "gpu"
    got = float8.gelu_kernel(jnp.asarray(product), jnp.asarray(scale), jnp.asarray(bias), interpret)
    assert got.dtype == float8.E4M3
    x = product.astype(np.float64) * scale + bias
    want = np.clip(x * norm.cdf(x), -448, 448)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=1 / 16 + 1e-3, atol=2**-10 + 1e-5)


def test_the_layer_before_a_gelu_is_that_of_other_dtypes():
    x = jax.random.normal(jax.random.key(0), (2, 4, 16))
    kernel, bias = 0.3 * jax.random.normal(jax.random.key(1), (16, 128)), jnp.linspace(-1.0, 1.0, 128)
    got = np.asarray(float8.float8_gelu_dot(x, kernel, bias), np.float32)
    want = jax.nn.gelu(float8_dot_general(x, kernel, (((2,), (0,)), ((), ()))) + bias, approximate=False)
    np.testing.assert_allclose(got, want, rtol=1 / 16 + 1e-3, atol=2**-10 + 1e-5)
    values = jnp.asarray(got)
    whole = [float8_dot_general(values, kernel.T, (((2,), (0,)), ((), ())), is_rounded=r) for r in (False, True)]
    np.testing.assert_array_equal(*whole)


def test_devices_do_their_own_share_in_one_pass(monkeypatch):
    """Batch over fsdp and channels over tensor; what these do not divide goes to XLA."""
    shares = []
    kernel = lambda *shards: shares.append([x.shape for x in shards]) or float8._gelu(*shards)
    monkeypatch.setattr(float8, "gelu_kernel", kernel)
    monkeypatch.setattr(rowwise, "usable", lambda x: True)
    x = jax.random.normal(jax.random.key(0), (4, 4, 16))
    weights = 0.3 * jax.random.normal(jax.random.key(1), (16, 128)), jnp.linspace(-1.0, 1.0, 128)
    whole = [float8.float8_gelu_dot(x[:rows], *weights) for rows in (4, 1)]
    assert shares.pop(0) == [(4, 4, 128), (), (128,)]
    shares.clear()
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig(fsdp=4, tensor=2))):
        divided = [jax.jit(float8.float8_gelu_dot)(x[:rows], *weights) for rows in (4, 1)]
    assert shares == [[(1, 4, 64), (), (64,)]]
    for got, want in zip(divided, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_features_are_near_those_without(mlp):
    model = from_config_dict(RUN | {"model": MODEL | {"mlp": mlp}}).model
    patches = jax.random.normal(jax.random.key(0), (2, 32, 96))
    params = Encoder(model).init(jax.random.key(1), patches, (2, 4, 4))["params"]
    plain, short = (Encoder(model, float8=f).apply({"params": params}, patches, (2, 4, 4)) for f in (False, True))
    error = float(jnp.abs(plain - short).mean() / jnp.abs(plain).mean())
    assert 1e-3 < error < 0.1


def test_it_is_the_target_alone():
    """The online encoder, what is evaluated and the gradients' path stay in the model's dtype."""
    run = from_config_dict(RUN | {"model": MODEL})
    short = dataclasses.replace(run, model=dataclasses.replace(run.model, target_dtype="float8"))
    rng = np.random.default_rng(0)
    masks = [{"context": np.arange(8)[None].repeat(2, 0), "target": np.arange(8, 32)[None].repeat(2, 0)}] * 2
    batch = {"video": rng.integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8), "masks": masks}
    params, aux = VJEPA2(run).init(jax.random.key(0))
    outputs = [VJEPA2(c).outputs(params, aux, batch) for c in (run, short)]
    np.testing.assert_array_equal(outputs[0].groups[0].prediction, outputs[1].groups[0].prediction)
    assert 1e-4 < np.abs(outputs[0].targets - outputs[1].targets).mean() < 0.1
    features = [VJEPA2(c).features({"encoder": aux["target"]}, batch["video"]) for c in (run, short)]
    np.testing.assert_array_equal(*features)


def test_other_names_are_refused():
    with pytest.raises(ConfigError, match=r"model\.target_dtype='fp8' is not one of same, float8"):
        from_config_dict(RUN | {"model": MODEL | {"target_dtype": "fp8"}})

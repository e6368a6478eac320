"""LayerNorm with a backward pass of its own, against the definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.config import MeshConfig
from vjepa_jax.ops import norms, rowwise
from vjepa_jax.ops.norms import layer_norm_affine
from vjepa_jax.parallel import partitioning

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
EPS = 1e-6


def inputs(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3.0, 2.0, (2, 5, 24)), dtype)
    scale, bias = (jnp.asarray(rng.normal(size=24), jnp.float32) for _ in range(2))
    return x, scale, bias, jnp.asarray(rng.normal(size=(2, 5, 24)), dtype)


def definition(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPS) * scale + bias


def gradients(x, scale, dy):
    """Written out from the definition (arXiv 1607.06450), in float64."""
    centred = x - x.mean(-1, keepdims=True)
    rate = 1.0 / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPS)
    size, dx = x.shape[-1], np.empty_like(x)
    for row in np.ndindex(x.shape[:-1]):
        unit = centred[row] * rate[row]
        jacobian = rate[row] * (np.eye(size) - 1.0 / size - np.outer(unit, unit) / size)
        dx[row] = jacobian @ (dy[row] * scale)
    return dx, (dy * centred * rate).sum((0, 1)), dy.sum((0, 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 2e-2)])
def test_values_and_gradients(dtype, tolerance):
    x, scale, bias, dy = inputs(dtype)
    apply = jax.jit(layer_norm_affine, static_argnums=(3, 4))
    y, pull = jax.vjp(lambda x, s, b: apply(x, s, b, EPS, jnp.dtype(dtype)), x, scale, bias)
    wide = [np.asarray(a, np.float64) for a in (x, scale, bias, dy)]
    assert y.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(y, np.float64), definition(*wide[:3]), rtol=tolerance, atol=tolerance)
    found = pull(dy)
    assert [g.dtype for g in found] == [x.dtype, jnp.float32, jnp.float32]
    for one, exact in zip(found, gradients(wide[0], wide[1], wide[3]), strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float64), exact, rtol=tolerance, atol=tolerance)


def test_it_keeps_its_input_and_two_numbers_a_row():
    x, scale, bias, _ = inputs("bfloat16")
    kept = jax.eval_shape(lambda x: jax.vjp(lambda x: layer_norm_affine(x, scale, bias, EPS, jnp.bfloat16), x)[1], x)
    sizes = sorted(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept) if leaf.ndim == 3)
    assert sizes == [4 * 10, 4 * 10, 2 * 240]


def branch_inputs(shape):
    """x, what is added and its bias, scale, bias, and the gradients of the normed and of the sum."""
    rng = np.random.default_rng(1)
    matrix = lambda: jnp.asarray(rng.normal(1.0, 2.0, shape), jnp.bfloat16)
    vector = lambda: jnp.asarray(rng.normal(size=shape[-1]), jnp.float32)
    return [matrix(), (matrix(), vector()), vector(), vector(), (matrix(), matrix())]


def exact_branch(x, added, scale, bias, cotangents):
    """Normed, sum, and all gradients in float64. The sum is rounded as it is kept."""
    wide = lambda a: np.asarray(a, np.float64)
    x, dy, along = wide(x), *map(wide, cotangents)
    if added is not None:
        x = wide(jnp.asarray(x + (wide(added[0]) + wide(added[1])), jnp.bfloat16))
    dx, to_scale, to_bias = gradients(x, wide(scale), dy)
    dx = dx + along
    return definition(x, wide(scale), wide(bias)), x, dx, dx.sum((0, 1)), to_scale, to_bias


def close(got, want, tolerance):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=tolerance * np.abs(want).max(), rtol=0)


# channels of one tile; fewer than its columns; rows that do not fill the last tile
@pytest.mark.parametrize("shape", [(2, 8, 128), (2, 6, 96), (1, 7, 24), (3, 40, 1408)])
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("has_added", [True, False])
def test_one_pass_of_a_branch_forward_and_backward(shape, has_added, short):
    """Interpreted here; JAX_PLATFORMS=cuda python -m pytest tests/ops/test_norms.py compiles it on an NVIDIA GPU."""
    x, added, scale, bias, (dy, along) = branch_inputs(shape)
    added = added if has_added else None
    normed, total, *sums = exact_branch(x, added, scale, bias, (dy, along if has_added else jnp.zeros_like(along)))
    interpret = jax.default_backend() != "gpu"
    got = norms.normed_kernel(x, added, scale, bias, EPS, jnp.bfloat16, short, interpret)
    if short:
        got = got[0].exact, *got[1:], got[0].short
        assert got[4].dtype == jnp.float8_e4m3fn
        np.testing.assert_allclose(np.asarray(got[4], np.float64), normed, rtol=1 / 16 + 1e-2, atol=2e-2)
    assert [a.dtype for a in got[:4]] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    close(got[0], normed, 2e-2)
    close(got[1], total, 1e-2)
    x, mean, rate = got[1:4]
    found = norms.gradient_kernel(x, dy, along if has_added else None, mean, rate, scale, interpret)
    dx, of_sum, to_scale, to_bias = sums
    for one, exact in zip(found, (dx, to_scale[None], to_bias[None], of_sum[None]), strict=True):
        close(one, exact, 2e-2)


@pytest.fixture
def by_kernels(monkeypatch):
    """What an NVIDIA GPU would be given, interpreted; the shapes that the kernels see."""
    seen = []

    def interpreted(kernel):
        return lambda x, *rest: seen.append(x.shape) or kernel(x, *rest, interpret=True)

    monkeypatch.setattr(rowwise, "usable", lambda x: x.dtype == jnp.bfloat16)
    for name in ("normed_kernel", "gradient_kernel"):
        monkeypatch.setattr(norms, name, interpreted(getattr(norms, name)))
    return seen


def branch_gradients(x, added, scale, bias, cotangents, short=False):
    def apply(*inputs):
        normed, total = norms.layer_norm_branch(*inputs, EPS, jnp.dtype("bfloat16"), short)
        return normed.exact if short else normed, total

    values, pull = jax.vjp(apply, x, added, scale, bias)
    return jax.tree.leaves((values, pull(cotangents)))


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("has_added", [True, False])
def test_a_branch_is_the_same_by_xla_and_by_kernels(has_added, short, request):
    inputs = branch_inputs((2, 8, 96))
    inputs[1] = inputs[1] if has_added else None
    plain = branch_gradients(*inputs)
    normed, total, dx, of_sum, to_scale, to_bias = exact_branch(*inputs)
    exact = [normed, total, dx, *[dx, of_sum] * has_added, to_scale, to_bias]
    seen = request.getfixturevalue("by_kernels")
    for one, other, want in zip(plain, branch_gradients(*inputs, short), exact, strict=True):
        assert one.dtype == other.dtype
        close(one, want, 2e-2)
        close(other, want, 2e-2)
    assert seen == [(2, 8, 96)] * 2


def test_devices_norm_their_own_tokens(by_kernels):
    """Rows over fsdp and tokens over context; sums are those over all devices."""
    inputs = branch_inputs((4, 16, 24))
    whole = branch_gradients(*inputs)
    by_kernels.clear()
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig(fsdp=4, context=2))):
        divided = jax.jit(branch_gradients)(*inputs)
        uneven = jax.jit(branch_gradients)(*jax.tree.map(lambda a: a[:1] if a.ndim == 3 else a, inputs))
    assert by_kernels == [(1, 8, 24)] * 2  # one row is not divided: by XLA
    for got, want in zip(divided, whole, strict=True):
        close(got, np.asarray(want, np.float64), 1e-2)
    np.testing.assert_allclose(np.asarray(uneven[0], np.float32), np.asarray(whole[0][:1], np.float32), atol=2e-2)


def test_devices_round_their_own_tokens(by_kernels):
    x, added, scale, bias, _ = branch_inputs((4, 16, 24))

    def rounded(x, added):
        apply = lambda x: norms.layer_norm_branch(x, added, scale, bias, EPS, jnp.dtype("bfloat16"), True)
        return jax.vjp(apply, x)[0][0].short

    whole = rounded(x, added)
    by_kernels.clear()
    with partitioning.on_mesh(partitioning.make_mesh(MeshConfig(fsdp=4, context=2))):
        divided = jax.jit(rounded)(x, added)
    assert by_kernels == [(1, 8, 24)]
    np.testing.assert_array_equal(*(np.asarray(a, np.float32) for a in (divided, whole)))


def test_without_a_gradient_a_branch_is_left_to_xla(by_kernels):
    x, added, scale, bias, _ = branch_inputs((2, 8, 24))
    normed, total = norms.layer_norm_branch(x, added, scale, bias, EPS, jnp.dtype("bfloat16"))
    assert normed.shape == total.shape == x.shape and not by_kernels


def test_a_branch_keeps_the_sum_and_two_numbers_a_row():
    x, added, scale, bias, _ = branch_inputs((2, 5, 24))
    apply = lambda x, added: norms.layer_norm_branch(x, added, scale, bias, EPS, jnp.dtype("bfloat16"))
    kept = jax.eval_shape(lambda *inputs: jax.vjp(apply, *inputs)[1], x, added)
    sizes = sorted(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept) if leaf.ndim == 3)
    assert sizes == [4 * 10, 4 * 10, 2 * 240]

"""Every axis of the mesh, and every pair of axes, trains as one device does."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax import objectives
from vjepa_jax.config import MeshConfig, from_config_dict
from vjepa_jax.ops import attention
from vjepa_jax.parallel import partitioning
from vjepa_jax.parallel.partitioning import AXES
from vjepa_jax.training.optim import make_optimizer
from vjepa_jax.training.state import init_state
from vjepa_jax.training.step import make_train_step

STEPS = 10
ONES_AND_PAIRS = [{axis: 8} for axis in AXES] + [{a: 2, b: 4} for a, b in itertools.combinations(AXES, 2)]
# For 2.1 three axes at a time, in which every pair occurs.
TRIPLES = [{axis: 2 for axis in AXES if axis != left_out} for left_out in ("replica", "context", "tensor")]
MESHES = [("2", sizes) for sizes in ONES_AND_PAIRS] + [("2.1", sizes) for sizes in TRIPLES]


@functools.cache
def quick() -> dict:
    """Compiler options for programs of which nobody needs the speed: XLA divides them as ever, LLVM hardly optimises.
    The second one, where this XLA knows it, halves the time again."""
    options = {"xla_backend_optimization_level": 0}
    more = options | {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: jnp.zeros(1), compiler_options=more)()
    except jax.errors.JaxRuntimeError:
        return options
    return more


def config(family: str):
    """Tiny models whose heads, tokens and rows divide by 8: V-JEPA 2 on clips of 128 frames; 2.1 on images."""
    size = {"embed_dim": 48, "num_heads": 8, "mlp_ratio": 2.0}
    model = {"variant": "vit_micro", "depth": 2, "patch_size": 4, "dtype": "float32", **size}
    run = {
        "steps": STEPS,
        "batch_size": 8,
        "data": {"path": "unused", "num_frames": 128, "resolution": (4, 8)},
        "model": model | {"predictor": {"depth": 1, **size}},
        "masks": {"groups": [{"context": 32, "target": 64}], "policy": "first_k"},
        "optim": {"lr": 1e-3, "start_lr": 1e-3},
        "ema": {"start": 0.9, "end": 0.9},
    }
    if family == "2.1":
        levels = {"position": "rope_interleaved", "rope_grid": 16, "image_tokenizer": True, "levels": (0, 1)}
        run |= {
            "data": {"path": "unused", "num_frames": 1, "resolution": 16},
            "model": model | levels | {"predictor": {"depth": 1, "predict_context": True, **size}},
            "masks": {"groups": [{"context": 8, "target": 8}]},
            "loss": {"context_weight": 0.5},
        }
    return from_config_dict(run)


def draw(run, rng):
    """A random batch; of policy first_k with padding."""
    rows, (group,) = run.batch_size, run.masks.groups
    ids = rng.permuted(np.tile(np.arange(np.prod(run.grid), dtype=np.int32), (rows, 1)), axis=1)
    context, target, _ = np.split(ids, [group.context, group.context + group.target], axis=1)
    mask = {"context": context, "target": target}
    if run.masks.policy == "first_k":
        mask |= {f"{name}_valid": rng.random(ids.shape) < 0.8 for name, ids in tuple(mask.items())}
    video = rng.integers(0, 256, (rows, run.data.num_frames, *run.data.size, 3), np.uint8)
    return {"video": video, "masks": [mask]}


def train(run, state, batches, mesh):
    """Losses and gradient norms [steps, 2], and the bytes that the step needs on a device beside its arguments."""
    shardings, rows = partitioning.state_shardings(state, mesh), partitioning.batch_sharding(mesh)
    step = jax.jit(
        make_train_step(objectives.create(run), make_optimizer(run), run),
        in_shardings=(shardings, rows),
        out_shardings=(shardings, partitioning.replicated(mesh)),
        compiler_options=quick(),
    )
    state, curve = jax.device_put(state, shardings), []
    with partitioning.on_mesh(mesh):
        step = step.lower(state, batches[0]).compile()
        for batch in batches:
            state, metrics = step(state, partitioning.put_batch(batch, mesh))
            curve.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(curve), step.memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def one_device():
    """The run of a family on one device, computed once: config, first state, batches, curve and bytes."""

    @functools.cache
    def compute(family: str):
        run, rng = config(family), np.random.default_rng(0)
        fresh = jax.jit(lambda: init_state(objectives.create(run), make_optimizer(run), 0), compiler_options=quick())
        state, batches = jax.device_get(fresh()), [draw(run, rng) for _ in range(STEPS)]
        mesh = partitioning.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
        return run, state, batches, *train(run, state, batches, mesh)

    return compute


@pytest.mark.parametrize(("family", "sizes"), MESHES)
def test_a_mesh_trains_as_one_device_does(one_device, family, sizes):
    run, state, batches, expected, whole = one_device(family)
    mesh = partitioning.make_mesh(MeshConfig(**({"fsdp": 1} | sizes)))
    partitioning.check_mesh(run, mesh, {"": [(group.context, group.target) for group in run.masks.groups]})
    curve, share = train(run, state, batches, mesh)
    np.testing.assert_allclose(curve[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(curve[:, 1], expected[:, 1], rtol=1e-4)  # AdamW does not see the scale of gradients
    assert abs(curve[-1, 0] / curve[0, 0] - 1) > 0.01  # the losses are those of a model that moves
    if family == "2":  # activations are cut, not only parameters: what is made on one device, eight make in parts
        assert whole > 2.5 * share, (whole, share)


@pytest.mark.parametrize("masks", [(), ("valid_BM", "mask_NM")])
def test_a_kernel_runs_on_shares(monkeypatch, masks):
    """XLA's attention as a kernel that XLA cannot divide; the sizes that are not divided go to XLA directly."""
    mesh = partitioning.make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    rng, shapes = np.random.default_rng(0), []
    q, k, v, weight = (rng.standard_normal((2, n, 4, 8), np.float32) for n in (6, 10, 10, 6))
    given = {"valid_BM": rng.random((2, 10)) < 0.7, "mask_NM": np.tri(6, 10, 4, bool)}
    given = {name: given[name] for name in masks}

    def kernel(*arrays):
        shapes.append([x.shape for x in arrays[:3]])
        return attention._xla(*arrays)

    def run(implementation, q, k, v):
        y = attention.attention(q, k, v, **given, implementation=implementation)
        return (y * weight).sum(), y

    grad = lambda name: jax.jit(jax.grad(functools.partial(run, name), argnums=(0, 1, 2), has_aux=True))
    expected = grad("xla")(q, k, v)
    monkeypatch.setitem(attention._KERNELS, "cudnn", kernel)
    with partitioning.on_mesh(mesh):
        got = grad("cudnn")(q, k, v)
        assert shapes == [[(1, 3, 2, 8), (1, 10, 2, 8), (1, 10, 2, 8)]]
        uneven = jax.jit(functools.partial(attention.attention, implementation="cudnn"))(q[:, :5], k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)
    np.testing.assert_allclose(uneven, attention.attention(q[:, :5], k, v), rtol=1e-5, atol=1e-5)
    assert len(shapes) == 1


@pytest.mark.parametrize("axis", ["fsdp", "context", "tensor"])
def test_cudnn_on_two_gpus_agrees_with_float32(axis):
    """JAX_PLATFORMS=cuda python -m pytest tests/parallel/test_axes.py -k cudnn, on a machine with two GPUs."""
    if jax.default_backend() != "gpu" or jax.device_count() < 2:
        pytest.skip("needs two NVIDIA GPUs")
    keys = jax.random.split(jax.random.key(0), 4)
    *qkv, weight = (jax.random.normal(key, (2, 256, 4, 64), jnp.bfloat16) for key in keys)

    def run(implementation, dtype):
        loss = lambda *x: (attention.attention(*x, implementation=implementation).astype(jnp.float32) * weight).sum()
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*(x.astype(dtype) for x in qkv))

    mesh = partitioning.make_mesh(MeshConfig(**({"fsdp": 1} | {axis: 2})), jax.devices()[:2])
    _, oracle = run("xla", jnp.float32)
    with partitioning.on_mesh(mesh):
        _, grads = run("auto", jnp.bfloat16)
    for ours, exact in zip(jax.device_get(grads), jax.device_get(oracle), strict=True):
        assert np.abs(ours.astype(np.float32) - exact).max() < 0.02 * np.abs(exact).max()  # bfloat16 has 8 bits

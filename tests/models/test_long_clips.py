"""Long clips: no array of the training step is tokens x tokens large, outside of attention kernels."""

import math

import jax
import jax.numpy as jnp
import pytest

from vjepa_jax import config_file
from vjepa_jax.models.variants import encoder_size, predictor_size
from vjepa_jax.ops.attention import splash_blocks
from vjepa_jax.prepare import prepare

from .programs import equations

LONG = [(64, 256), (64, 384), (128, 256)]


def lengths(run, plan) -> set[int]:
    """Tokens of every sequence that attention sees, and what splash pads them to, but for widths of the model."""
    sizes = encoder_size(run.model), predictor_size(run.model)
    widths = {width for size in sizes for width in (size.embed_dim, size.mlp_dim)}
    counts = {math.prod(run.grid), *(c for c, _ in plan.budgets), *(c + m for c, m in plan.budgets)}
    return (counts | {splash_blocks(count)[1] for count in counts}) - widths - {run.model.tubelet_size * 16 * 16 * 3}


def shapes(jaxpr):
    """Of every value in a program and in the programs in it; kernels are left out."""
    return (var.aval.shape for equation in equations(jaxpr) for var in equation.outvars)


def squares(repo, frames, pixels, attention):
    options = {"data.path": "v", "data.num_frames": frames, "data.resolution": pixels, "batch_size": 1}
    options |= {"model.attention": attention}
    path = str(repo / "experiments/pretrain/vjepa2.py") + ":vitl"
    run = config_file.load(path, [f"--config.{key}={value}" for key, value in options.items()])
    setup = prepare(run)
    ids = lambda count: jax.ShapeDtypeStruct((1, count), jnp.int32)
    batch = {
        "video": jax.ShapeDtypeStruct((1, frames, pixels, pixels, 3), jnp.uint8),
        "masks": [{"context": ids(context), "target": ids(target)} for context, target in setup.plan.budgets],
    }
    params, aux = jax.eval_shape(setup.objective.init, jax.random.key(0))
    loss = lambda params, aux, batch: setup.objective.loss(params, aux, batch, jax.random.key(0), jnp.int32(0))[0]
    program = jax.make_jaxpr(jax.grad(loss))(params, aux, batch)
    counts = lengths(run, setup.plan)
    found = list(shapes(program.jaxpr))
    assert len(found) > 1000
    return {shape for shape in found if sum(size in counts for size in shape) > 1}


@pytest.mark.parametrize(("frames", "pixels"), LONG)
def test_no_attention_is_materialised(frames, pixels, repo):
    assert squares(repo, frames, pixels, "splash") == set()


def test_it_would_be_seen(repo):
    assert squares(repo, 64, 256, "xla")

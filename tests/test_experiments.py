"""Every config under experiments/ builds, validates and shape-checks."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import masking
from vjepa_jax import config_file, objectives
from vjepa_jax.training.optim import decay_mask, make_optimizer
from vjepa_jax.training.state import abstract_state
from vjepa_jax.training.step import make_train_step

ROOT = pathlib.Path(__file__).resolve().parent.parent / "experiments"
FILES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_config_builds_and_its_step_has_shapes(file):
    path = ROOT / file
    for line in ("COMMAND:", "HARDWARE:", "PUBLISHED NUMBER:", "MEASURED:"):
        assert line in path.read_text(), f"{file} does not say {line}"
    run = config_file.load(str(path))
    plan, objective, optimizer = masking.make_plan(run), objectives.create(run), make_optimizer(run)
    state = abstract_state(objective, optimizer)
    decay_mask(state["params"], run.optim)
    batch, (height, width) = run.batch_size, run.data.size
    ids = lambda count: jax.ShapeDtypeStruct((batch, count), jnp.int32)
    inputs = {
        "video": jax.ShapeDtypeStruct((batch, run.data.num_frames, height, width, 3), jnp.uint8),
        "masks": [{"context": ids(g.context), "target": ids(g.target)} for g in plan.groups],
    }
    after, metrics = jax.eval_shape(make_train_step(objective, optimizer, run), state, inputs)
    assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert all(m.shape == () and np.issubdtype(m.dtype, np.floating) for m in metrics.values())

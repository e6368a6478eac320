"""Tiny V-JEPA 2 and 2.1 train from the released modules' weights, sharded over two devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.config import MeshConfig
from vjepa_jax.convert import official
from vjepa_jax.parallel import partitioning
from vjepa_jax.training import health
from vjepa_jax.training.optim import make_optimizer
from vjepa_jax.training.step import make_train_step

from .released import TOLERANCE, build, part, released_loss_21


@pytest.mark.parametrize("family", ["2", "2.1"])
def test_the_first_step_is_the_released_one_and_200_more_learn(fixture_npz, family):
    fixture = fixture_npz({"2": "vjepa2_tiny.npz", "2.1": "vjepa2_1_tiny.npz"}[family])
    objective, params, aux, batch = build(fixture, {"attention": "auto"})
    run, optimizer = objective.run, make_optimizer(objective.run)
    mesh = partitioning.make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    # the target is a tree of its own: the step donates its state
    state = {"step": jnp.int32(0), "params": params, "aux": jax.tree.map(np.copy, aux)}
    state |= {"opt": optimizer.init(params)}
    shardings = partitioning.state_shardings(state, mesh)
    assert any(not s.is_fully_replicated for s in jax.tree.leaves(shardings["params"]))
    state = jax.device_put(state, shardings)
    # every clip twice: the means over the batch stay, and two devices have something to share
    batch = partitioning.put_batch(jax.tree.map(lambda x: np.concatenate([x] * 2), batch), mesh)
    step = jax.jit(make_train_step(objective, optimizer, run), donate_argnums=0, out_shardings=(shardings, None))
    measure = jax.jit(health.make_health(objective, run))

    with partitioning.on_mesh(mesh):
        outputs = jax.jit(lambda s, b: [vars(g) for g in objective.outputs(s["params"], s["aux"], b).groups])
        for i, group in enumerate(outputs(state, batch)):
            np.testing.assert_allclose(group["context"][:3], fixture[f"encoder_out/context{i}"], **TOLERANCE)
            np.testing.assert_allclose(group["prediction"][-3:], fixture[f"predictor_out/{i}"], **TOLERANCE)
            if family == "2.1":
                seen = fixture[f"predictor_context_out/{i}"]
                np.testing.assert_allclose(group["context_prediction"][:3], seen, **TOLERANCE)
        state, metrics = step(state, batch)
        first = float(metrics["loss"])
        expected = fixture["loss"] if family == "2" else released_loss_21(fixture, build(fixture)[3]["masks"], 0.0)[0]
        np.testing.assert_allclose(first, expected, rtol=1e-5)
        if family == "2":
            after = {
                "encoder": official.encoder_to_official(state["params"]["encoder"], run.model),
                "predictor": official.predictor_to_official(state["params"]["predictor"], run.model),
                "target_encoder": official.encoder_to_official(state["aux"]["target"], run.model),
            }
            for name, value in part(fixture, "after_step/").items():
                tower, key = name.split("/", 1)
                np.testing.assert_allclose(after[tower][key], value, err_msg=name, **TOLERANCE)
        for _ in range(200):
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)  # simulated devices starve each other where steps pile up
        vitals = {key: float(value) for key, value in measure(state, batch).items()}
    last = float(metrics["loss/target"] if family == "2.1" else metrics["loss"])
    assert last < 0.8 * first, (first, last)
    assert health.warning(vitals) is None and vitals["rankme"] > 4, vitals

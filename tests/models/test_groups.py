"""Mask groups side by side in one pass, and what a layer keeps: nothing of it may change a number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.bench_step import made_up_stream
from vjepa_jax.config import from_config_dict
from vjepa_jax.objectives import create, vjepa2
from vjepa_jax.prepare import prepare

PREDICTOR = {"embed_dim": 16, "depth": 2, "num_heads": 2}
GROUPS = [
    {"num_blocks": 2, "spatial_scale": [0.3, 0.3], "context": 8, "target": 8},
    {"num_blocks": 1, "spatial_scale": [0.5, 0.5], "context": 12, "target": 10},
]
CASES = {
    "published": {},
    "registers and CLS": {"model": {"cls_token": True, "registers": 2}},
    "padded": {"masks": {"policy": "first_k", "truncation_group": 2, "groups": GROUPS}},
    "cross": {"model": {"predictor": PREDICTOR | {"kind": "cross"}}},
    "2.1": {
        "model": {"position": "rope_interleaved", "levels": (0, 1), "predictor": PREDICTOR | {"predict_context": True}},
        "loss": {"context_weight": 0.5, "context_distance": True},
    },
}


def randomised(params):
    """Mask tokens start at zero, registers nearly so: with these values every one of them counts."""
    noise = lambda leaf: leaf + 0.05 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)
    return jax.tree.map(noise, params)


def loss_and_gradients(run, batch):
    objective = create(run)
    params, aux = objective.init(jax.random.key(0))
    loss = lambda params: objective.loss(params, aux, batch, jax.random.key(1), jnp.int32(0))[0]
    return jax.jit(jax.value_and_grad(loss))(randomised(params))


@pytest.mark.parametrize("case", CASES)
def test_groups_side_by_side_are_groups_on_their_own(case, tiny_config, monkeypatch):
    run = from_config_dict(tiny_config(**{"masks": {"groups": GROUPS}} | CASES[case]))
    batch = made_up_stream(run, prepare(run).plan, seed=0)
    assert len(batch["masks"]) > 1
    together = loss_and_gradients(run, batch)
    monkeypatch.setattr(vjepa2, "cuts_sequences", lambda: True)
    alone = loss_and_gradients(run, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-7), together, alone)


@pytest.mark.parametrize("options", [{"unroll": 0}, {"remat": "dots"}, {"remat": "full", "unroll": 0}, {"unroll": 2}])
def test_loops_and_what_is_kept_change_no_number(options, tiny_config):
    run = from_config_dict(tiny_config(masks={"groups": GROUPS}))
    batch = made_up_stream(run, prepare(run).plan, seed=0)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, **options))
    pair = loss_and_gradients(run, batch), loss_and_gradients(other, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-7), *pair)


@pytest.mark.parametrize("options", [{}, {"unroll": 0}, {"unroll": 0, "remat": "dots"}])
@pytest.mark.parametrize("case", ["published", "padded"])
def test_the_last_block_leaves_out_only_what_nobody_asks_for(case, options, tiny_config):
    """A predictor with an output for the context, which no loss reads here, takes all tokens through all its blocks."""
    targets = from_config_dict(tiny_config(**{"masks": {"groups": GROUPS}} | CASES[case]))
    targets = dataclasses.replace(targets, model=dataclasses.replace(targets.model, **options))
    predictor = dataclasses.replace(targets.model.predictor, predict_context=True)
    everything = dataclasses.replace(targets, model=dataclasses.replace(targets.model, predictor=predictor))
    batch = made_up_stream(targets, prepare(targets).plan, seed=0)
    (loss, gradients), (same_loss, same_gradients) = (loss_and_gradients(r, batch) for r in (targets, everything))
    unread = same_gradients["predictor"].pop("out_context")
    assert not any(leaf.any() for leaf in jax.tree.leaves(unread))
    np.testing.assert_allclose(loss, same_loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-7), gradients, same_gradients)


@pytest.mark.parametrize("options", [{"unroll": 0}, {"remat": "dots"}])
def test_the_same_with_float8_products(options, tiny_config):
    """A number at the border of two of eight bits may fall to either side, no more."""
    run = from_config_dict(tiny_config(masks={"groups": GROUPS}, model={"forward_dtype": "float8"}))
    batch = made_up_stream(run, prepare(run).plan, seed=0)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, **options))
    (loss, gradients), (same_loss, same_gradients) = (loss_and_gradients(r, batch) for r in (run, other))
    np.testing.assert_allclose(loss, same_loss, rtol=1e-4)
    flat, same = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(t)]) for t in (gradients, same_gradients))
    assert jnp.linalg.norm(flat - same) < 1e-2 * jnp.linalg.norm(flat)


@pytest.mark.parametrize(("remat", "forward"), [("none", 1), ("dots", 1), ("full", 2)])
def test_attention_kernels_run_again_under_full_remat_only(remat, forward, tiny_config):
    """Splash, whose kernels any machine can trace: one forward and two backward kernels a layer, and a repeated one."""
    config = tiny_config(model={"dtype": "bfloat16", "attention": "splash", "remat": remat, "embed_dim": 128})
    run = from_config_dict(config | {"data": config["data"] | {"num_frames": 4, "resolution": 48}})
    objective = create(run)
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0))[0])["encoder"]
    patches = jnp.zeros((1, 288, 96), jnp.bfloat16)
    encode = lambda params: objective.encoder.apply({"params": params}, patches, (2, 12, 12)).sum()
    jaxpr = str(jax.make_jaxpr(jax.grad(encode))(params))
    assert jaxpr.count("pallas_call") == forward + 2

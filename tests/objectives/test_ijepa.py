"""I-JEPA: separate target blocks, the smooth L1 loss, frames on their own, and a run end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import masking
from vjepa_jax import config as config_lib
from vjepa_jax import objectives
from vjepa_jax import train as train_lib
from vjepa_jax.config import ConfigError
from vjepa_jax.encoder import load
from vjepa_jax.ops.losses import layer_norm
from vjepa_jax.training.metrics import read_metrics

GROUP = {"kind": "separate", "num_blocks": 4, "spatial_scale": [0.15, 0.2], "aspect_ratio": [0.75, 1.5]}


@pytest.fixture
def config(tiny_config):
    def make(**changes):
        config = tiny_config(objective="ijepa", masks={"groups": [GROUP]}, loss={"smooth_l1": True})
        config["data"] = config["data"] | {"num_frames": 1, "resolution": 32}
        config["model"] = config["model"] | {"tubelet_size": 1, "position": "sincos2d"}
        return config | changes

    return make


def drawn(run, clips):
    plan = masking.make_plan(run)
    masks = [masking.draw_masks(plan, np.random.default_rng(i))[0] for i in range(clips)]
    return [{key: np.stack([m[key] for m in masks]) for key in ("context", "target")}]


@pytest.fixture
def built(config):
    run = config_lib.from_config_dict(config())
    objective = objectives.create(run)
    params, aux = jax.jit(objective.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(1), x.shape), params)
    video = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32, 3), np.uint8)
    return objective, params, aux, {"video": video, "masks": drawn(run, 3)}


def test_loss_is_smooth_l1_of_every_block_predicted_on_its_own(built):
    objective, params, aux, batch = built
    loss, metrics = jax.jit(objective.loss)(params, aux, batch, jax.random.key(0), 0)
    targets = layer_norm(objective.features({"encoder": aux["target"]}, batch["video"]).reshape(3, 64, -1))
    mask, errors = batch["masks"][0], []
    predict = jax.jit(objective.predict)
    for k in range(4):
        block = mask["target"].reshape(3, 4, -1)[:, k]
        prediction = predict(params, batch["video"], mask["context"], block)
        error = np.abs(prediction - np.take_along_axis(targets, block[..., None], 1))
        errors.append(np.where(error < 1, error**2 / 2, error - 0.5))
    np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/group0"], loss)


def test_frames_of_a_video_are_encoded_on_their_own(built):
    objective, params, *_ = built
    video = np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32, 3), np.uint8)
    features = objective.features(params, video)
    assert features.shape == (2, 3, 8, 8, 16)
    np.testing.assert_allclose(features[:, 1:2], objective.features(params, video[:, 1:2]), atol=1e-5)


def test_flops_count_the_context_once(built):
    objective, *_ = built
    budgets = masking.make_plan(objective.run).budgets
    assert len(budgets) == 4 and len(set(budgets)) == 1
    ((context, target),) = set(budgets)
    one, four = objective.flops([(context, target)]), objective.flops(budgets)
    assert four["context"] == one["context"] and four["predictor"] == 4 * one["predictor"]


def test_a_run_learns_and_loads(config, tmp_path):
    run = config_lib.from_config_dict(config(steps=40, optim={"lr": 2e-3, "start_lr": 2e-3}))
    assert train_lib.train(run, tmp_path / "run") == 0
    losses = [r["loss"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert load(tmp_path / "run")(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 8, 8, 16)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"masks": {"groups": [{"kind": "random"}]}}, "use masks.groups of kind 'separate'"),
        ({"loss": {"context_weight": 0.5}}, "set loss.context_weight, loss.spatial_coherence"),
        ({"loss": {"temporal_smoothness": 0.5}}, "loss.temporal_smoothness to 0"),
        ({"data": {"path": "", "num_frames": 4, "resolution": 32}}, "set data.num_frames=1 and model.tubelet_size=1"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(config, changes, match):
    broken = config(**changes)
    if "loss" in changes:
        broken["model"] = broken["model"] | {"predictor": broken["model"]["predictor"] | {"predict_context": True}}
    with pytest.raises(ConfigError, match=match):
        objectives.create(config_lib.from_config_dict(broken))


def test_separate_blocks_need_the_uniform_policy(config):
    with pytest.raises(ConfigError, match=r"masks.groups\[0\].kind='separate' needs masks.policy='uniform'"):
        config_lib.from_config_dict(config(masks={"groups": [GROUP], "policy": "first_k"}))


def test_gradients_do_not_reach_the_target(built):
    objective, params, aux, batch = built
    grads = jax.grad(lambda aux: objective.loss(params, aux, batch, jax.random.key(0), jnp.int32(0))[0])(aux)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))

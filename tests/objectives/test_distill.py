"""Distillation: the frozen teacher's features are the targets, the student's EMA is what comes out."""

import jax
import numpy as np
import pytest

from vjepa_jax import config as config_lib
from vjepa_jax import objectives
from vjepa_jax import train as train_lib
from vjepa_jax.config import ConfigError
from vjepa_jax.encoder import load
from vjepa_jax.ops.losses import layer_norm
from vjepa_jax.training.checkpoint import CheckpointError, load_parts


@pytest.fixture
def config(tiny_config):
    def make(path="", **changes):
        config = tiny_config(objective="distill", **changes)
        teacher = {key: value for key, value in config["model"].items() if key != "predictor"}
        config["teacher"] = {"path": str(path), "model": teacher | {"embed_dim": 24, "depth": 3}}
        predictor = config["model"]["predictor"] | {"out_dim": 24, "last_level_only": True}
        config["model"] = config["model"] | {"levels": [0, 1], "predictor": predictor}
        return config

    return make


def test_targets_are_the_teachers_and_health_looks_at_the_student(config):
    run = config_lib.from_config_dict(config())
    objective = objectives.create(run)
    params, aux = jax.jit(objective.init)(jax.random.key(0))
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    ids = np.arange(32, dtype=np.int32)[None].repeat(2, 0)
    batch = {"video": video, "masks": [{"context": ids[:, :8], "target": ids[:, 8:20]}]}
    outputs = objective.outputs(params, aux, batch)
    patches, grid = objective._patches(video)
    teacher = layer_norm(objective.teacher.apply({"params": aux["teacher"]}, patches, grid))
    np.testing.assert_allclose(outputs.targets, teacher, atol=1e-5)
    np.testing.assert_allclose(outputs.groups[0].target, teacher[:, 8:20], atol=1e-5)
    student = objective.features({"encoder": aux["target"]}, video)
    np.testing.assert_allclose(outputs.features, student.reshape(2, 32, 16), atol=1e-5)
    moved = objective.after_update(jax.tree.map(lambda x: x + 1.0, params), aux, np.int32(0))
    jax.tree.map(np.testing.assert_array_equal, moved["teacher"], aux["teacher"])
    assert np.abs(moved["target"]["norms"]["bias"] - aux["target"]["norms"]["bias"]).max() > 0


def test_a_run_distils_a_trained_run(config, tiny_config, tmp_path):
    larger = tiny_config(steps=2)
    larger["model"] = larger["model"] | {"embed_dim": 24, "depth": 3}
    assert train_lib.train(config_lib.from_config_dict(larger), tmp_path / "teacher") == 0
    run = config_lib.from_config_dict(config(tmp_path / "teacher", steps=2))
    assert train_lib.train(run, tmp_path / "student") == 0
    student = load(tmp_path / "student")
    assert student(np.zeros((4, 16, 16, 3), np.uint8)).shape == (2, 4, 4, 16)
    teacher = load(tmp_path / "teacher").params["encoder"]
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), teacher)
    saved = load_parts(tmp_path / "student", {"aux": {"teacher": wanted}})
    jax.tree.map(np.testing.assert_array_equal, saved["aux"]["teacher"], teacher)

    wrong = config_lib.from_config_dict(config(tmp_path / "student", steps=2))
    with pytest.raises(CheckpointError, match=r"teacher.path=.* is not a vit_micro as teacher.model says"):
        train_lib.train(wrong, tmp_path / "wrong")
    with pytest.raises(ConfigError, match=r"teacher.path is empty"):
        train_lib.train(config_lib.from_config_dict(config(steps=2)), tmp_path / "none")


def test_what_does_not_fit_is_one_clear_line(config):
    def refused(match, **changes):
        with pytest.raises(ConfigError, match=match):
            objectives.create(config_lib.from_config_dict(config() | changes))

    refused("needs a teacher: set teacher.model", teacher=None)
    model = config()["model"]
    refused(r"set model.predictor.out_dim=24 and", model=model | {"predictor": model["predictor"] | {"out_dim": 16}})
    refused(r"set model.predictor.out_dim=24 and", model=model | {"predictor": {"out_dim": 24, "num_heads": 2}})
    teacher = config()["teacher"]
    refused("teacher.model.patch_size differ", teacher=teacher | {"model": teacher["model"] | {"patch_size": 8}})

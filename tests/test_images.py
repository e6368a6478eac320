"""Images beside videos in every step: the batch, the loss, and a run end to end."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines import masking, pipeline
from data_pipelines.sources import open_source
from vjepa_jax import config as config_lib
from vjepa_jax import objectives
from vjepa_jax import train as train_lib
from vjepa_jax.config import ConfigError
from vjepa_jax.encoder import load
from vjepa_jax.training.metrics import read_metrics
from vjepa_jax.training.step import MODEL_KEYS


@pytest.fixture
def pictures(tmp_path):
    """A folder of six pictures of one colour each, as JPEG and PNG."""
    folder = tmp_path / "pictures" / "a"
    folder.mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 100, 200)).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    return folder.parent


@pytest.fixture
def config(tiny_config, pictures):
    def make(**changes):
        config = tiny_config(**changes)
        config["model"] = config["model"] | {
            "levels": (0, 1),
            "image_tokenizer": True,
            "position": "rope_interleaved",
            "rope_grid": 16,
            "predictor": config["model"]["predictor"] | {"predict_context": True},
        }
        config["loss"] = {"context_weight": 0.5, "context_warmup": (1, 3)}
        config["images"] = {
            "batch_size": 16,
            "weight": 3.0,
            "context_weight": 0.7,
            "data": {"path": str(pictures), "num_frames": 1, "resolution": 32, "num_threads": 1},
            "masks": {"groups": [{"num_blocks": 4, "spatial_scale": [0.15, 0.15]}]},
        }
        return config

    return make


def test_a_folder_of_pictures_is_a_source_of_single_frames(pictures):
    assert len(open_source(str(pictures), pictures=True)) == 6
    with pytest.raises(ValueError, match="no videos in"):
        open_source(str(pictures))


def test_batches_hold_both_streams_and_resume(config, pictures):
    run = config_lib.from_config_dict(config())
    whole = pipeline.train_batches(run)
    batches = [next(whole) for _ in range(3)]
    whole.close()
    later = pipeline.train_batches(run, start_step=2)
    jax.tree.map(np.testing.assert_array_equal, next(later), batches[2])
    later.close()
    batch = batches[0]
    assert batch["video"].shape == (8, 4, 16, 16, 3) and batch["streams"]["images"]["video"].shape == (16, 1, 32, 32, 3)
    assert batch["substituted"].shape == (24,) and not batch["substituted"].any()
    ((context, target),) = masking.make_plan(run.stream_runs["images"]).budgets
    assert batch["streams"]["images"]["masks"][0]["context"].shape == (16, context)
    assert batch["streams"]["images"]["masks"][0]["target"].max() < 64 and context + target <= 64
    colours = {tuple(np.round(p / 20).astype(int)) for p in batch["streams"]["images"]["video"].mean((1, 2, 3))}
    assert len(colours) == 6  # every picture was read, each in its own colour


def test_the_loss_is_the_weighted_mean_of_the_streams(config):
    run = config_lib.from_config_dict(config())
    objective = objectives.create(run)
    params, aux = jax.jit(objective.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.01, params)
    iterator = pipeline.train_batches(run)
    batch = next(iterator)
    iterator.close()
    batch = {key: batch[key] for key in MODEL_KEYS}
    loss, metrics = jax.jit(objective.loss)(params, aux, batch, jax.random.key(0), jnp.int32(2))
    np.testing.assert_allclose(loss, (metrics["videos/loss"] + 3 * metrics["images/loss"]) / 4, rtol=1e-6)
    for prefix, weight in (("", 0.25), ("images/", 0.35)):  # half of the ramp is done at step 2
        np.testing.assert_allclose(metrics[f"{prefix}context_weight"], weight)
        total = metrics[f"{prefix}loss/target"] + weight * metrics[f"{prefix}loss/context"]
        np.testing.assert_allclose(total, metrics["images/loss" if prefix else "videos/loss"], rtol=1e-6)
    # the gradient reaches both tokenizers and both modality embeddings
    grads = jax.jit(jax.grad(lambda p: objective.loss(p, aux, batch, jax.random.key(0), jnp.int32(2))[0]))(params)
    for leaf in (grads["encoder"]["patch_embed"]["kernel"], grads["encoder"]["image_patch_embed"]["kernel"]):
        assert np.abs(leaf).max() > 0
    assert (np.abs(grads["encoder"]["modality_embed"]).max(1) > 0).all()
    assert (np.abs(grads["predictor"]["modality_embed"]).max(1) > 0).all()


def test_a_run_with_images_trains_and_its_encoder_takes_both(config, tmp_path):
    run = config_lib.from_config_dict(config(steps=3))
    assert train_lib.train(run, tmp_path / "run") == 0
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3]
    assert not (tmp_path / "run" / "pictures").exists()  # log.images_every_steps=0
    assert all(np.isfinite(r["images/loss"]) for r in records) and os.path.isdir(tmp_path / "run" / "checkpoints")
    encoder = load(tmp_path / "run")
    assert encoder(np.zeros((4, 16, 16, 3), np.uint8)).shape == (2, 4, 4, 16)
    assert encoder(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 8, 8, 16)


def test_what_does_not_fit_is_one_clear_line(config):
    def refused(match, **images):
        changed = config()
        changed["images"] = changed["images"] | images
        with pytest.raises(ConfigError, match=match):
            config_lib.from_config_dict(changed)

    refused(r"images needs model.image_tokenizer=True and images.data.num_frames=1", data={"path": "", "num_frames": 4})
    refused(r"images.weight=0.0 must be positive", weight=0.0)
    refused(r"images: data.resolution=30 is not divisible", data={"path": "", "num_frames": 1, "resolution": 30})
    without = config()
    without["model"] = without["model"] | {"image_tokenizer": False}
    with pytest.raises(ConfigError, match=r"images needs model.image_tokenizer=True"):
        config_lib.from_config_dict(without)

"""Fine-tuning: each part of the recipe by hand, and the whole on videos whose class is a colour."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError, ModelConfig, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import finetune
from vjepa_jax.evals.features import pixel_features
from vjepa_jax.evals.finetune import METRIC, Config

TRAIN, TEST = 30, 12


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("reds"), ["path,label,split"]
    colours = np.array([[180, 60, 60], [60, 170, 60], [60, 60, 190]])
    for i in range(TRAIN + TEST):
        noise = np.random.default_rng(i).integers(-40, 40, (6, 16, 16, 3))
        world.encode(folder / f"{i}.mp4", (colours[i % 3] + noise).astype(np.uint8), fps=6)
        lines.append(f"{i}.mp4,{i % 3},{'train' if i < TRAIN else 'test'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def encoder():
    config = {
        "steps": 1,
        "batch_size": 8,
        "data": {"path": "x", "num_frames": 4, "frame_step": 1, "resolution": 16},
        "model": {"variant": "vit_micro", "depth": 2, "patch_size": 8, "dtype": "float32"},
        "masks": {"groups": [{"num_blocks": 1, "spatial_scale": [0.3, 0.3], "context": 2, "target": 2}]},
    }
    return Encoder.random(from_config_dict(config), 0)


def settings(manifest, **changes):
    small = {"path": str(manifest), "frames": 4, "frame_step": 1, "resolution": 16, "clips": 2, "views": 1}
    small |= {"epochs": 12, "warmup_epochs": 1.0, "batch_size": 5, "lr": 5e-2, "final_lr": 0.0, "num_threads": 1}
    return Config(**small | {"rand_augment": "", "erase_prob": 0.0, "test_batch": 4} | changes)


def test_it_learns_and_the_encoder_it_began_with_stays(manifest, encoder):
    before = jax.tree.map(np.asarray, encoder.params)
    (row,) = finetune.run({"trained": [encoder], "raw pixels": [lambda v: pixel_features(v, 8, 2)]}, settings(manifest))
    assert row["metric"] == METRIC and row["encoder"] == "trained" and row["count"] == TEST
    assert row["value"] >= 75.0 and row["chance"] == pytest.approx(100 / 3)
    assert row["value"] == pytest.approx(100 * int(re.search(r"right: (\d+) of 12", row["note"])[1]) / TEST)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, encoder.params))


def test_an_encoder_that_is_stuck_at_a_constant_stays_at_chance(manifest, encoder):
    """Collapsed weights: every token is the bias of the last norm, and without a learning rate it remains so."""
    collapsed = jax.tree.map(jnp.zeros_like, encoder.params)
    (row,) = finetune.run(
        {"trained": [Encoder(encoder.run, collapsed)]}, settings(manifest, epochs=2, layer_decay=1e-6, mixup=0.0)
    )
    assert row["value"] == pytest.approx(100 / 3)  # one answer for all, right for a third


def test_micro_batches_change_the_noise_alone(manifest, encoder):
    quiet = {"fc_drop": 0.0, "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "epochs": 1, "lr": 1e-3}
    source = finetune.labelled.open_labelled(str(manifest), "train")[0]
    whole, parts = (
        finetune.train(encoder, settings(manifest, micro_batch=size, **quiet), source, 3, 0).params for size in (0, 2)
    )
    worst = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), whole, parts)
    assert max(jax.tree.leaves(worst)) < 2e-5
    moved = jnp.abs(whole["head"]["kernel"] - finetune.fresh(encoder, 3, 0)["head"]["kernel"]).max()
    assert moved > 5e-5


def test_rates_fall_from_block_to_block(encoder):
    scales = finetune.rate_scales(finetune.fresh(encoder, 3, 0), 0.5)
    assert scales["encoder"]["blocks"]["qkv"]["kernel"].ravel().tolist() == [0.25, 0.5]  # two blocks
    assert scales["encoder"]["patch_embed"]["kernel"] == 0.125
    assert scales["encoder"]["norm"]["scale"] == scales["head"]["kernel"] == scales["norm"]["bias"] == 1.0


def test_a_dropped_block_passes_its_input_on(encoder):
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8)
    weights = encoder.params["encoder"]
    features = lambda keep: encoder.objective.features(
        {"encoder": finetune.drop_blocks(weights, jnp.asarray(keep))}, video
    )
    np.testing.assert_allclose(features([1.0, 1.0]), encoder(video), atol=1e-6)
    layer = np.asarray(encoder.layers(video, (0, 1)))[:, 0]
    np.testing.assert_allclose(features([1.0, 0.0]), layer, atol=1e-5)
    assert np.abs(np.asarray(features([0.0, 1.0])) - layer).max() > 1e-3


def test_what_is_kept_has_the_mean_of_all(encoder):
    params, rng = finetune.fresh(encoder, 3, 0), np.random.default_rng(0)
    cfg = Config(fc_drop=0.5, drop_path=0.4)
    draws = [finetune._noise(rng, cfg, params, 8) for _ in range(2000)]
    keep_L = np.stack([d[0] for d in draws])
    assert (keep_L[:, 0] == 1.0).all() and set(np.unique(keep_L[:, 1])) == {0.0, np.float32(1 / 0.6)}
    assert keep_L[:, 1].mean() == pytest.approx(1.0, abs=0.06)
    assert np.mean([d[1].mean() for d in draws]) == pytest.approx(1.0, abs=0.01)


def test_mixing_and_labels_by_hand():
    rng = np.random.default_rng(0)
    assert finetune.mixing(rng, (4, 6), 0.0, 0.0)[1] == 1.0
    for _ in range(50):
        weight, share = finetune.mixing(rng, (8, 12), 0.8, 0.0)
        assert weight.min() == weight.max() == np.float32(share)
        weight, share = finetune.mixing(rng, (8, 12), 0.0, 1.0)
        assert set(np.unique(weight)) <= {0.0, 1.0} and share == pytest.approx(weight.mean())
        hole = np.argwhere(weight == 0)
        if len(hole):  # a box
            sides = hole.max(0) - hole.min(0) + 1
            assert len(hole) == sides[0] * sides[1]
    kinds = [len(np.unique(finetune.mixing(rng, (64, 64), 0.8, 1.0)[0])) for _ in range(200)]
    assert 60 < sum(k == 2 for k in kinds) < 120  # about half are boxes
    labels = finetune.soft_labels(np.array([0, 2]), 0.75, 4, 0.2)
    one, other = [0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]
    np.testing.assert_allclose(labels[0], 0.75 * np.array(one) + 0.25 * np.array(other), atol=1e-6)
    np.testing.assert_allclose(labels[1], 0.75 * np.array(other) + 0.25 * np.array(one), atol=1e-6)


def test_the_learning_rate_scales_with_the_clips_of_a_batch():
    cfg = Config(batch_size=64, copies=2, lr=1e-3, final_lr=0.0, warmup_epochs=2.0)
    rates = [finetune.learning_rate(cfg, step, 60, 10.0) for step in (0, 10, 20, 40, 60)]
    np.testing.assert_allclose(rates, [0.0, 0.25e-3, 0.5e-3, 0.25e-3, 0.0], atol=1e-9)


def test_weight_decay_is_for_kernels_alone(encoder):
    params = finetune.fresh(encoder, 3, 0)
    before = jax.tree.map(np.asarray, params)
    zeros, ones = jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda _: np.float32(1.0), params)
    one = np.float32(1.0)
    after, _ = finetune._apply(params, finetune._adam.init(params), zeros, ones, one, np.float32(0.1), np.float32(0.5))
    np.testing.assert_allclose(after["head"]["kernel"], before["head"]["kernel"] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(after["norm"]["scale"], before["norm"]["scale"])
    np.testing.assert_array_equal(
        after["encoder"]["blocks"]["norm1"]["scale"], before["encoder"]["blocks"]["norm1"]["scale"]
    )


def test_the_cost_by_hand():
    cfg = Config(epochs=3, copies=2, clips=5, views=3)
    forward = 24 * (24 * 1568 * 1024**2 + 4 * 1568**2 * 1024) + 2 * 1568 * 1536 * 1024
    assert finetune.flops(cfg, ModelConfig(variant="vit_large"), 10, 4) == pytest.approx(forward * (3 * 60 + 60))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"path": ""}, "finetune.path is empty: give a manifest with the columns path,label,split"),
        ({"views": 0}, "finetune.views=0 must be at least 1"),
        ({"micro_batch": 3}, "10 clips a batch are not divisible by micro_batch=3"),
        ({"drop_path": 1.0}, "finetune.drop_path=1.0 must lie in [0, 1)"),
        ({"layer_decay": 0.0}, "finetune.layer_decay=0.0 must lie in (0, 1]"),
    ],
)
def test_settings_that_cannot_be_run_are_one_line(manifest, encoder, change, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        finetune.run({"trained": [encoder]}, settings(manifest, **change))


def test_nothing_to_tune_and_missing_splits_are_one_line(manifest, encoder):
    with pytest.raises(ConfigError, match="nothing to fine-tune: none of raw pixels has weights"):
        finetune.run({"raw pixels": [lambda v: pixel_features(v, 8, 2)]}, settings(manifest))
    with pytest.raises(DataError, match=r"no split 'val' in .*: it has test, train"):
        finetune.run({"trained": [encoder]}, dataclasses.replace(settings(manifest), test="val"))

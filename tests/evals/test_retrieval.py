"""Retrieval: recall by hand, chance by counting, and encoders that know nothing."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import controls, retrieval
from vjepa_jax.evals.features import pixel_features
from vjepa_jax.evals.retrieval import Config


def test_recall_by_hand():
    x = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [-1.0, 0.0]])
    labels = np.array([0, 1, 1, 2])
    queries = np.array([[5.0, 0.0], [0.0, 1.0], [1.0, 0.2]])  # nearest rows: 0 1 2 3; 2 1 0 3; 1 0 2 3
    hits = retrieval.recall(x, labels, queries, np.array([1, 1, 2]), (1, 2, 4))
    np.testing.assert_array_equal(hits, [[False, True, False], [True, True, False], [True, True, True]])


def test_chance_is_that_of_drawing():
    labels, asked = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 2, 2, 1])
    rng = np.random.default_rng(0)
    drawn = np.array([rng.permutation(6)[:2] for _ in range(20_000)])
    simulated = np.mean([(labels[drawn] == label).any(1).mean() for label in asked])
    assert retrieval.chance(labels, asked, 2) == pytest.approx(simulated, abs=0.01)
    assert retrieval.chance(labels, asked, 1) == pytest.approx((2 + 3 + 3 + 1) / 6 / 4)
    assert retrieval.chance(labels, asked, 6) == 1.0


def run(manifest, encoders, **changes):
    cfg = Config(str(manifest), frames=4, frame_step=1, resolution=16, batch_size=8, ks=(1, 5, 64), num_threads=1)
    return retrieval.run(encoders, dataclasses.replace(cfg, **changes))


def test_the_world_by_pixels_and_by_a_collapsed_encoder(tiny_world):
    """Sixteen test videos of the embedded world, two of each motion."""
    pixels = lambda video: pixel_features(video, 4, 2)
    constant = lambda video: controls.constant_features(video, 4, 2)
    rows = run(tiny_world, {"trained": [pixels], "random init": [constant, constant]})
    by = {(r["encoder"], r["metric"]): r for r in rows}
    assert {r["metric"] for r in rows} == {"retrieval R@1", "retrieval R@5"}  # 64 is more than there are
    collapsed = by["random init", "retrieval R@1"]
    # one and the same answer for all sixteen test videos of eight classes
    assert collapsed["value"] == 12.5 and collapsed["chance"] == pytest.approx(12.5) and collapsed["seeds"] == 2
    assert by["trained", "retrieval R@5"]["value"] >= by["trained", "retrieval R@1"]["value"]
    assert {r["encoder"] for r in rows} == {"trained", "random init", "single frame", "shuffled frames"}


def test_classes_that_pixels_tell_are_found_and_stills_of_them_too(tmp_path):
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])
    lines = ["path,label,split"]
    for i in range(18):
        noise = np.random.default_rng(i).integers(-20, 20, (6, 16, 16, 3))
        world.encode(tmp_path / f"{i}.mp4", (colours[i % 3] + noise).astype(np.uint8), fps=6)
        lines.append(f"{i}.mp4,{i % 3},{'train' if i < 12 else 'test'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    pixels, constant = (lambda video: pixel_features(video, 4, 2)), (lambda v: controls.constant_features(v, 4, 2))
    rows = run(tmp_path / "manifest.csv", {"trained": [pixels], "flat": [constant]}, ks=(1,), segments=2)
    by = {r["encoder"]: r for r in rows}
    assert by["trained"]["value"] == by["single frame"]["value"] == 100.0 and by["trained"]["count"] == 6
    assert by["flat"]["value"] == pytest.approx(100 / 3) == by["flat"]["chance"]


def test_mistakes_are_one_line(tiny_world):
    encoders = {"trained": [lambda video: pixel_features(video, 4, 2)]}
    with pytest.raises(
        ConfigError, match=r"retrieval\.path is empty: give a manifest with the columns path,label,split"
    ):
        retrieval.run(encoders, Config())
    with pytest.raises(ConfigError, match=r"retrieval\.ks=\(0,\) must be numbers from 1 on"):
        run(tiny_world, encoders, ks=(0,))
    with pytest.raises(ConfigError, match=r"retrieval\.segments=0 must be at least 1"):
        run(tiny_world, encoders, segments=0)
    with pytest.raises(DataError, match="no split 'val'"):
        run(tiny_world, encoders, test="val")

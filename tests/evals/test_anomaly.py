"""Anomaly detection: the metric by hand, sources that stay together, models with known answers, and the layout."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.decode import VideoReader
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import anomaly, anomaly_data, controls
from vjepa_jax.evals.anomaly import Config, fold_auroc, neighbour_scores, probe_scores
from vjepa_jax.evals.worlds import Clip

from .models import Collapsed, Static

CLIP = Clip(frames=4, size=(16, 16), tubelet=2, patch=4)


@pytest.fixture
def run(tiny_config):
    return from_config_dict(tiny_config())


def test_only_videos_of_a_fold_are_compared():
    scores = np.array([1.0, 2.0, 3.0, 2.0, 9.0, 8.0])
    labels, folds = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1])
    # fold 0: normal 1 and 3, anomalous 2 and 2: two of four pairs; fold 1: normal 9, anomalous 8: none of one
    assert fold_auroc(scores, labels, folds) == pytest.approx(100 * 2 / 5)
    assert fold_auroc(np.ones(6), labels, folds) == 50.0
    assert np.isnan(fold_auroc(scores[:1], labels[:1], folds[:1]))


def parts(centres, seed=0):
    """Two windows a video around its centre [n, D]."""
    rng = np.random.default_rng(seed)
    return [centre + 0.1 * rng.normal(size=(2, len(centre))) for centre in centres]


def test_outliers_are_far_from_normal_videos_of_other_folds():
    labels, folds = np.tile([0, 0, 0, 1], 6), np.repeat(np.arange(3), 8)
    outlying = np.random.default_rng(1).normal(size=(24, 4)) * np.where(labels == 1, 8.0, 1.0)[:, None]
    cfg = Config(neighbours=3)
    found = neighbour_scores(parts(outlying), labels, folds, folds, cfg)
    assert fold_auroc(found, labels, folds) > 95
    flat = neighbour_scores([np.ones((2, 4))] * 24, labels, folds, folds, cfg)
    assert (flat == 0).all() and fold_auroc(flat, labels, folds) == 50.0


def test_distances_by_hand():
    """Normal videos of the other fold at 0 and 4 (two windows each): mean 2, deviation 2."""
    features = [np.array([[0.0], [0.0]]), np.array([[4.0], [4.0]]), np.array([[8.0], [2.0]]), np.array([[99.0]])]
    folds, labels = np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1])
    features, folds, labels = [*features, np.array([[1.0]])], np.append(folds, 1), np.append(labels, 0)
    found = neighbour_scores(features, labels, folds, folds, Config(neighbours=2))
    # 8 is 4 from both windows at 4; 2 is 2 from two windows: in deviations 2 and 1, their mean 1.5
    assert found[2] == pytest.approx(1.5) and found[4] == pytest.approx(0.5)


def test_a_probe_learns_and_constant_features_do_not():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], 30))
    groups = np.arange(60) // 2
    folds = groups % 3
    told = rng.normal(size=(60, 6))
    told[:, 2] += 4.0 * labels
    assert fold_auroc(probe_scores(parts(told), labels, groups, folds, Config()), labels, folds) > 95
    nothing = probe_scores([np.ones((2, 6))] * 60, labels, groups, folds, Config())
    assert fold_auroc(nothing, labels, folds) == 50.0


def test_the_labels_of_a_fold_do_not_reach_its_own_scores():
    """Wrong labels in one fold change the scores of the others and none of its own."""
    rng = np.random.default_rng(0)
    labels, groups = np.tile([0, 1], 30), np.arange(60) // 2
    folds, features = groups % 3, parts(rng.normal(size=(60, 6)))
    wrong = np.where(folds == 1, 1 - labels, labels)
    for scores in (neighbour_scores, probe_scores):
        honest, fooled = (scores(features, given, groups, folds, Config()) for given in (labels, wrong))
        np.testing.assert_array_equal(honest[folds == 1], fooled[folds == 1])
        assert (honest[folds == 0] != fooled[folds == 0]).any()


def write(path, scene, jumps, seed, frames=10):
    """A fixed camera that looks at one of the scenes; a square moves a little, or jumps about."""
    rng = np.random.default_rng(seed)
    cells = np.random.default_rng(1000 + scene).integers(30, 220, (8, 8, 3))
    video = np.repeat(np.kron(cells, np.ones((4, 4, 1)))[None], frames, 0).astype(np.uint8)
    top, left = rng.integers(0, 28, 2)
    for t in range(frames):
        top, left = rng.integers(0, 28, 2) if jumps else (top, min(left + t % 2, 28))
        video[t, top : top + 4, left : left + 4] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    world.encode(path, video, fps=10, crf=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight scenes, two normal and two anomalous videos of each."""
    root = tmp_path_factory.mktemp("cameras")
    for scene in range(8):
        for number in range(2):
            write(root / "noFight" / f"{scene}_{number}.mp4", scene, False, 2 * scene + number)
            write(root / "fight" / f"{scene}_{number}.mp4", scene, True, 100 + 2 * scene + number)
    return root


def small(path, **changes):
    return dataclasses.replace(Config(path=str(path), folds=4, neighbours=2, batch_size=8, seeds=2), **changes)


def test_videos_of_a_camera_are_one_source(folder):
    videos = anomaly_data.read_videos(small(folder), CLIP)
    assert videos.labels.tolist() == [0] * 16 + [1] * 16
    scenes = np.array([name[0] for name in videos.names])
    assert len(np.unique(videos.groups)) == 8
    assert all(len(set(videos.groups[scenes == scene])) == 1 for scene in np.unique(scenes))
    assert all(frames.shape == (10, 16, 16, 3) for frames in videos.frames)
    # at half the rate every second frame
    slow = anomaly_data.read_videos(small(folder, fps=5.0, limit=2), CLIP)
    assert slow.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(slow.frames[0], videos.frames[0][::2])


def test_sources_chain_and_blank_pictures_are_alone(folder):
    with VideoReader(folder / "fight" / "0_0.mp4") as reader:
        found = anomaly_data.background(reader)
    assert found.shape == (256,) and np.linalg.norm(found) == pytest.approx(1.0)
    angles = np.array([0.0, 0.6, 1.2, 3.0])  # each neighbour is alike (cos .6 = .83), the ends are not (cos 1.2 = .36)
    chain = np.stack([np.cos(angles), np.sin(angles)], 1)
    blank = np.zeros((1, 2))
    groups = anomaly_data.same_source([*chain, *blank, *blank], 0.75)
    assert groups[0] == groups[1] == groups[2] and len(np.unique(groups)) == 4


def test_jumps_surprise_a_model_that_expects_permanence_and_no_collapsed_one(folder, run):
    named = {controls.TRAINED: [Static(run)], controls.RANDOM: [Collapsed(run), Collapsed(run)]}
    seen = []
    rows = anomaly.run(named, small(folder), seen.append)
    assert rows == seen and {row["benchmark"] for row in rows} == {"surveillance_fights"}
    by = {(row["encoder"], row["metric"]): row for row in rows}
    metrics = {row["metric"] for row in rows}
    assert len(metrics) == 4 and all(row["count"] == 32 and row["chance"] == 50.0 for row in rows)
    for how in ("mean", "maximum"):
        assert by["trained", f"AUROC, prediction error, {how} over windows"]["value"] > 90
    for metric in metrics:
        assert by["random init", metric]["value"] == 50.0 and by["random init", metric]["seeds"] == 2
    assert {"single frame", "shuffled frames", "copy of the last step"} < {row["encoder"] for row in rows}
    assert by["trained", "AUROC, linear probe"]["note"] == "8 sources in 4 folds"
    assert by["trained", "AUROC, prediction error, mean over windows"]["note"] == "8 sources, nothing trained"
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)


def test_an_encoder_runs_with_its_controls(folder, run):
    rows = anomaly.run(controls.encoders(Encoder.random(run), 2), small(folder, ways=("neighbours",)))
    names = ["trained", "random init", "raw pixels", "single frame", "shuffled frames"]
    assert [row["encoder"] for row in rows] == names and all(0 <= row["value"] <= 100 for row in rows)


def test_wrong_layouts_show_the_right_one(folder, run, tmp_path):
    named = {controls.TRAINED: [Static(run)]}
    layout = r": expected .*/noFight/\*\.mp4 and .*/fight/\*\.mp4, two or more videos each"
    with pytest.raises(DataError, match=r"anomaly\.path='' is not a folder" + layout):
        anomaly.run(named, Config())
    with pytest.raises(DataError, match="/noFight holds 0 videos" + layout):
        anomaly.run(named, small(tmp_path))
    with pytest.raises(DataError, match=r"/riot holds 0 videos: expected .*/riot/"):
        anomaly.run(named, small(folder, anomalous="riot"))
    for name in ("noFight", "fight"):
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"noFight/0\.mp4 cannot be decoded .*: remove it from the folder"):
        anomaly.run(named, small(tmp_path))


def test_settings_that_cannot_be_run_are_one_line(folder, run):
    for change, line in (
        ({"ways": ("prob",)}, r"anomaly\.ways=\('prob',\) must name some of .*; did you mean 'probe'"),
        ({"ways": ()}, r"anomaly\.ways=\(\) must name some of"),
        ({"stride": 0}, r"anomaly\.stride=0 must be at least 1"),
        ({"context": 1.0}, "context between 0 and 1"),
        ({"folds": 9}, "9 folds of 8 groups of videos"),
    ):
        with pytest.raises(ConfigError, match=line):
            anomaly.run({controls.TRAINED: [Static(run)]}, small(folder, **change))
    with pytest.raises(ConfigError, match="would hold all videos of a kind"):
        anomaly._check_folds(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 0]))


def test_real_cameras_lie_in_several_groups(shared_data):
    if not (shared_data / "surveillance").is_dir():
        pytest.skip("no surveillance videos in the folder of real ones")
    videos = anomaly_data.read_videos(Config(path=str(shared_data / "surveillance"), limit=90), CLIP)
    group = dict(zip(videos.names, videos.groups, strict=True))
    # one corridor, one room: seen by eye
    assert group["nofi079"] == group["nofi080"] == group["nofi081"] and group["fi047"] == group["fi049"]
    assert group["fi046"] == group["nofi024"]  # a fight and none in one room
    assert 40 < len(set(videos.groups)) < 150

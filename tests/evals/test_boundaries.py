"""Event boundaries: signals and peaks by hand, the world's own boundaries, and what a collapsed encoder gets."""

import dataclasses
import itertools
import json
import pathlib
import pickle

import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.evals import boundaries, boundary_head, controls
from vjepa_jax.evals.worlds import Clip

from .models import Collapsed, Static

CLIP = Clip(frames=8, size=(32, 32), tubelet=2, patch=8)
CFG = boundaries.Config(data="world", frame_step=1, train=8, videos=8, batch_size=8, seeds=1)


@pytest.fixture(scope="module")
def run():
    model = {
        "variant": "vit_micro",
        "patch_size": 8,
        "dtype": "float32",
        "predictor": {"embed_dim": 32, "num_heads": 2},
    }
    data = {"path": "v", "num_frames": 8, "resolution": 32}
    return from_config_dict({"steps": 1, "batch_size": 8, "data": data, "model": model})


def test_the_change_of_features_by_hand():
    steps = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    np.testing.assert_allclose(boundaries.change(steps, 1), [0, 0, 1, 0])
    halfway = 1 - np.sqrt(0.5)  # (1, 0) and the mean of (1, 0) and (0, 1)
    np.testing.assert_allclose(boundaries.change(steps, 2), [0, halfway, 1, halfway], atol=1e-6)
    assert not boundaries.change(np.ones((4, 2)), 2).any() and not boundaries.change(np.zeros((4, 2)), 2).any()


def test_peaks_by_hand():
    signal = np.array([0, 0, 1.0, 0, 0, 0.2, 0, 0.9, 0, 0])
    cfg = dataclasses.replace(CFG, smooth=0.0, least_distance=0.0)
    assert boundaries.peaks(signal, 0.5, cfg, 0.0) == [1.0, 2.5, 3.5]
    assert boundaries.peaks(signal, 0.5, cfg, 1.0) == [1.0, 3.5]
    far = dataclasses.replace(cfg, least_distance=1.5)
    assert boundaries.peaks(signal, 0.5, far, 0.0) == [1.0, 3.5]  # the small one is too near the last
    assert boundaries.peaks(np.full(9, 0.3), 0.5, cfg, 0.0) == []


def test_the_worlds_boundaries_are_where_its_parts_meet():
    train, test = boundaries.world_videos(CLIP, CFG)
    assert len(train) == len(test) == 8
    for video in train:
        frames, (ends,) = video.load(), video.annotation["substages_timestamps"]
        assert 1 <= len(ends) <= 5 and video.annotation["video_duration"] == len(frames) / video.fps
        jumps = abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))
        at = {round(end * video.fps) - 1 for end in ends}  # the change from the last frame of a part to the next
        assert min(jumps[sorted(at)]) > np.median(jumps)


def test_the_worlds_changes_of_behaviour_are_where_its_object_does_something_else():
    train, test = boundaries.behaviour_videos(CLIP, CFG)
    assert len(train) == len(test) == 8
    for video in train:
        frames, (ends,) = video.load(), video.annotation["substages_timestamps"]
        assert 1 <= len(ends) <= 5 and video.annotation["video_duration"] == len(frames) / video.fps
        edges = [0, *(round(end * video.fps) for end in ends), len(frames)]
        assert all(8 <= b - a <= 24 for a, b in itertools.pairwise(edges))
        for start, end in itertools.pairwise(edges):
            moved = abs(np.diff(frames[start:end].astype(int), axis=0)).sum(-1) > 250  # five deviations of the noise
            still = moved.mean((1, 2)).max() < 0.003
            if still and start:  # the first frame of what comes after moves, and the one before did
                assert (abs(frames[start - 1].astype(int) - frames[start - 2]).sum(-1) > 250).mean() >= 0.003


def test_the_inputs_and_targets_of_the_head_by_hand():
    steps = np.array([[0.0], [2.0], [6.0]])
    found = boundary_head.inputs(steps, 2)
    np.testing.assert_allclose(found, [[0, 1, 1], [0, 4, 4], [1, 6, 5]])
    # 5 % of 10 s is half a second; two raters, one of whom has a boundary at 2.4 s as well
    near = boundary_head.targets([[1.0], [1.0, 2.4]], 10.0, 5, 0.5)
    np.testing.assert_allclose(near, [0, 1, 1, 1, 0.5])
    assert boundary_head.targets([[]], 10.0, 3, 0.5).tolist() == [0, 0, 0]


def test_a_head_learns_what_the_change_of_features_cannot_tell():
    """Features change all the time; a boundary is where one channel jumps, much less than others do."""
    rng = np.random.default_rng(0)

    def video():
        x = 5 * rng.normal(size=(60, 8))
        at = int(rng.integers(15, 45))
        x[:, 0] = 0.2 * rng.normal(size=60)
        x[at:, 0] += 2.0
        return x, boundary_head.targets([[at]], 60.0, 60, 1.0), at

    train, test = [video() for _ in range(60)], [video() for _ in range(30)]
    head = boundary_head.train([v[0] for v in train], [v[1] for v in train], 3, 0)
    right = [abs(int(head(x).argmax()) - at) <= 3 for x, _, at in test]
    untrained = [abs(int(boundaries.change(x, 3).argmax()) - at) <= 3 for x, _, at in test]
    assert np.mean(right) > 0.8 > 0.4 > np.mean(untrained)
    assert np.ptp(boundary_head.train([np.ones((9, 2))], [np.zeros(9)], 3, 0)(np.ones((5, 2)))) < 1e-6


def test_copied_pixels_find_the_worlds_boundaries_and_constant_features_none(run):
    static = Static(run)
    named = {controls.TRAINED: [static], "collapsed": [Collapsed(run)]}
    seen = []
    rows = boundaries.run(named, CFG, seen.append)
    assert rows == seen
    value = {(row["encoder"], row["metric"]): row["value"] for row in rows}
    assert {row["encoder"] for row in rows} == {*named, controls.STILL, controls.SHUFFLED, boundaries.UNIFORM}
    for how in ("change", "error", "head"):
        assert value["collapsed", f"F1@0.05, by {how}"] == 0.0
    uniform = value[boundaries.UNIFORM, "F1@0.05, by nothing"]
    assert value[controls.TRAINED, "F1@0.05, by change"] > uniform + 0.3
    assert value[controls.TRAINED, "F1@0.05, by error"] > uniform + 0.1  # a copy errs wherever something moves
    assert value[controls.TRAINED, "mean F1@0.05:0.5, by error"] > value[controls.TRAINED, "F1@0.05, by error"]
    assert all("chosen on training videos" in row["note"] for row in rows if row["encoder"] != boundaries.UNIFORM)


def test_the_error_stands_at_the_step_that_is_predicted(run):
    """A still that changes at step 5 of 12: the copy is wrong there, and where its context holds both."""
    video = np.zeros((24, 32, 32, 3), np.uint8)
    video[10:, :16] = 255
    signal = boundaries.error_signal(Static(run), video, CLIP, CFG)
    assert signal.shape == (12,) and int(signal.argmax()) == 5 and signal[0] == signal[8] == 0.0


def write_folder(root, videos=4):
    (root / "videos").mkdir(parents=True)
    annotations = {}
    for i in range(videos):
        frames = np.zeros((40, 32, 48, 3), np.uint8)
        frames[20:] = 200
        world.encode(root / f"videos/v{i}.mp4", frames, fps=10)
        annotations[f"v{i}"] = {
            **{"split": "train" if i % 2 else "val", "fps": 10, "video_duration": 4.0, "f1_consis_avg": 0.8},
            "substages_timestamps": [[2.0]],
        }
    (root / "annotations.json").write_text(json.dumps(annotations))
    return dataclasses.replace(CFG, data="kinetics", path=str(root))


def test_a_folder_of_annotated_videos(tmp_path, run):
    cfg = write_folder(tmp_path / "gebd")
    rows = boundaries.run({controls.TRAINED: [Static(run)]}, cfg)
    value = {(row["encoder"], row["metric"]): row["value"] for row in rows}
    assert value[controls.TRAINED, "F1@0.05, by error"] == 1.0 and {row["count"] for row in rows} == {2}
    assert rows[0]["benchmark"] == "kinetics_gebd"


def test_the_official_pickles_are_read_and_nothing_else_in_them(tmp_path, run):
    cfg = write_folder(tmp_path / "gebd")
    expected = boundaries.read_annotated(CLIP, cfg)
    annotations = json.loads((tmp_path / "gebd/annotations.json").read_text())
    (tmp_path / "gebd/annotations.json").unlink()
    for protocol in (2, 5):
        for split in ("train", "val"):
            part = {name: {k: v for k, v in one.items() if k != "split"} for name, one in annotations.items()
                    if one["split"] == split}  # fmt: skip
            for one in part.values():
                one["f1_consis"], one["fps"] = np.array([0.8, 0.9]), np.float64(one["fps"])
            (tmp_path / f"gebd/{split}.pkl").write_bytes(pickle.dumps(part, protocol))
        found = boundaries.read_annotated(CLIP, cfg)
        facts = lambda parts: [[(v.name, v.fps, v.annotation) for v in part] for part in parts]
        assert facts(found) == facts(expected)
    (tmp_path / "gebd/train.pkl").write_bytes(pickle.dumps({"v1": pathlib.PurePosixPath("x")}))
    with pytest.raises(
        DataError, match=r"holds an object of pathlib.*, which is not loaded: .*: expected .*train\.pkl"
    ):
        boundaries.read_annotated(CLIP, cfg)
    (tmp_path / "gebd/train.pkl").write_bytes(b"c_codecs\nencode\n(Vx\nVbz2\ntR.")
    with pytest.raises(DataError, match="text in bz2, which is not loaded"):
        boundaries.read_annotated(CLIP, cfg)
    (tmp_path / "gebd/train.pkl").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"train\.pkl cannot be read .*: fetch it again: expected"):
        boundaries.read_annotated(CLIP, cfg)
    (tmp_path / "gebd/train.pkl").unlink()
    with pytest.raises(DataError, match=r"train\.pkl does not exist: expected"):
        boundaries.read_annotated(CLIP, cfg)


def test_wrong_folders_show_the_layout(tmp_path, run):
    attempt = lambda cfg: boundaries.run({controls.TRAINED: [Static(run)]}, cfg)
    cfg = write_folder(tmp_path / "gebd")
    with pytest.raises(ConfigError, match=r"path is empty: give a folder with PATH/annotations\.json"):
        attempt(dataclasses.replace(cfg, path=""))
    with pytest.raises(DataError, match=r"annotations\.json does not exist: expected .*videos/VIDEO\.mp4"):
        attempt(dataclasses.replace(cfg, path=str(tmp_path)))
    (tmp_path / "gebd/videos/v1.mp4").unlink()
    with pytest.raises(DataError, match=r"videos/v1\.mp4 does not exist: expected"):
        attempt(cfg)
    (tmp_path / "gebd/annotations.json").write_text('{"v0": {"split": "val"}}')
    with pytest.raises(DataError, match=r"cannot be read .*substages_timestamps.*: expected"):
        attempt(cfg)
    (tmp_path / "gebd/annotations.json").write_text("{}")
    with pytest.raises(DataError, match="no video of split train: expected"):
        attempt(cfg)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"data": "other"}, "is not one of kinetics, world, behaviours"),
        ({"parts": 1}, "parts=1 must be at least 2"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"prominences": ()}, "must not be negative, and one be given"),
    ],
)
def test_wrong_settings_are_one_line(run, wrong, text):
    with pytest.raises(ConfigError, match=text):
        boundaries.run({controls.TRAINED: [Static(run)]}, dataclasses.replace(CFG, **wrong))

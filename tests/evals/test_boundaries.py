"""Event boundaries: signals and peaks by hand, the world's own boundaries, and what a collapsed encoder gets."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.evals import boundaries, controls
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


def test_copied_pixels_find_the_worlds_boundaries_and_constant_features_none(run):
    static = Static(run)
    named = {controls.TRAINED: [static], "collapsed": [Collapsed(run)]}
    seen = []
    rows = boundaries.run(named, CFG, seen.append)
    assert rows == seen
    value = {(row["encoder"], row["metric"]): row["value"] for row in rows}
    for how in ("change", "error"):
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
        ({"data": "other"}, "is not one of kinetics, world"),
        ({"parts": 1}, "parts=1 must be at least 2"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"prominences": ()}, "must not be negative, and one be given"),
    ],
)
def test_wrong_settings_are_one_line(run, wrong, text):
    with pytest.raises(ConfigError, match=text):
        boundaries.run({controls.TRAINED: [Static(run)]}, dataclasses.replace(CFG, **wrong))

"""Action detection end to end: the world's own actions, a folder of videos, and what collapsed features get."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.evals import action_detection, controls
from vjepa_jax.evals.detection_head import HeadConfig
from vjepa_jax.evals.worlds import Clip

from .models import Collapsed

CLIP = Clip(frames=8, size=(32, 32), tubelet=2, patch=8)
HEAD = HeadConfig(
    dim=24, num_heads=2, levels=2, stem=0, reach=3, length=160, epochs=40, warmup_epochs=4, batch_size=8, lr=4e-3,
    ema=0.95, normalizer=20.0, candidates=200, most=50,
)  # fmt: skip
CFG = action_detection.Config(data="world", stride=0, head=HEAD, worlds=(24, 12), seeds=1, frame_controls=False)


@pytest.fixture(scope="module")
def run():
    model = {"variant": "vit_micro", "patch_size": 8, "dtype": "float32"}
    data = {"path": "v", "num_frames": 8, "resolution": 32}
    return from_config_dict({"steps": 1, "batch_size": 8, "data": data, "model": model})


class Moved:
    """Features that say how much every tubelet and its surroundings changed, [B, T', 1, 1, 64], most of them 0."""

    def __init__(self, run):
        self.run = run

    def __call__(self, video):
        x = np.asarray(video, np.float32)
        bright = (abs(x - np.median(x, axis=(1, 2, 3), keepdims=True)) > 60).any(-1).astype(np.float32)
        step = abs(np.diff(bright, axis=1, prepend=bright[:, :1])).mean((2, 3))
        far = abs(bright[:, 2:] - bright[:, :-2]).mean((2, 3))
        far = np.concatenate([far[:, :1], far, far[:, -1:]], 1)
        parts = [a.reshape(len(x), -1, 2).mean(-1) for a in (step, far, bright.mean((2, 3)))]
        return np.pad(np.stack(parts, -1), [(0, 0), (0, 0), (0, 61)])[:, :, None, None]


def test_the_worlds_actions_are_where_its_object_stands_still():
    train, test, classes = action_detection.world_videos(CLIP, CFG)
    assert len(train) == 24 and len(test) == 12 and classes == action_detection.ACTIONS
    again = action_detection.world_videos(CLIP, CFG)[1][3]
    assert (again.load(0, 9) == test[3].load(0, 9)).all()
    checked = 0
    for video in train:
        assert 3 <= len(video.labels) <= 5 and video.segments[-1, 1] < video.duration == video.frames / video.fps
        for (start, end), label in zip(video.segments, video.labels, strict=True):
            first, last = round(start * video.fps), round(end * video.fps)
            frames = video.load(first, last).astype(int)
            moved = abs(np.diff(frames, axis=0)).sum(-1) > 250  # five deviations of the noise
            still = moved.mean((1, 2)).max() < 0.005
            assert still == (classes[label] == "still")
            checked += 1
    assert checked > 60


def test_features_that_see_motion_find_actions_and_constant_ones_do_not(run):
    seen = []
    named = {controls.TRAINED: [Moved(run)], "collapsed": [Collapsed(run)]}
    rows = action_detection.run(named, CFG, seen.append)
    assert rows == seen and len(rows) == 3 * 7
    value = {(row["encoder"], row["metric"]): row["value"] for row in rows}
    prior = value[action_detection.PRIOR, "mAP@0.3:0.7"]
    assert value[controls.TRAINED, "mAP@0.3:0.7"] > prior + 20
    assert value["collapsed", "mAP@0.3:0.7"] < prior + 5
    mean = np.mean([value[controls.TRAINED, f"mAP@{t}"] for t in (0.3, 0.4, 0.5, 0.6, 0.7)])
    assert value[controls.TRAINED, "mAP@0.3:0.7"] == pytest.approx(mean)
    first = rows[0]
    assert first["benchmark"] == "world, actions" and first["low"] < first["value"] < first["high"]
    assert first["chance"] == pytest.approx(prior)


def test_sliding_windows_cover_a_video_a_batch_at_a_time():
    video = action_detection.Video("v", 10.0, 30, 3.0, np.zeros((0, 2)), np.zeros(0), lambda a, b: np.arange(a, b))
    cfg = dataclasses.replace(CFG, stride=4, batch_size=3)
    clips = list(action_detection.windows(video, CLIP, cfg))
    assert [len(part) for part in clips] == [3, 3]
    found = np.concatenate(clips)
    assert (found == 4 * np.arange(6)[:, None] + np.arange(8)).all()
    assert action_detection.clock(video, CLIP, cfg) == (0.4, 0.4)  # 4 frames on, the middle of 8
    assert action_detection.clock(video, CLIP, CFG) == (0.2, 0.1)  # of a tubelet of 2
    short = dataclasses.replace(video, frames=5)
    assert np.concatenate(list(action_detection.windows(short, CLIP, cfg))).tolist() == [[0, 1, 2, 3, 4, 4, 4, 4]]


def test_usual_segments_by_hand():
    video = lambda segments, labels, duration: action_detection.Video(
        "v", 1.0, 1, duration, np.array(segments, float), np.array(labels), None
    )
    train = [video([[0, 2], [3, 5], [6, 9]], [0, 0, 1], 10.0)]
    found = action_detection.usual(train, [video([[0, 1]], [0], 5.0)], 2)["v"]
    assert found["segments"].tolist() == [[0, 2], [2, 4], [4, 5]] * 2 and found["labels"].tolist() == [0] * 3 + [1] * 3
    np.testing.assert_allclose(found["scores"], [2 / 3] * 3 + [1 / 3] * 3)


def write_folder(root):
    (root / "videos").mkdir(parents=True)
    database = {}
    for i in range(6):
        frames = np.zeros((40, 32, 48, 3), np.uint8)
        frames[12:24] = 200
        world.encode(root / f"videos/v{i}.mp4", frames, fps=10)
        subset = ("Validation", "Validation", "Validation", "Validation", "Test", "Ambiguous")[i]
        actions = [{"segment": [1.2, 2.4], "label": "flash", "label_id": 7}]
        database[f"v{i}"] = {"subset": subset, "duration": 4.0, "fps": 10, "annotations": actions}
    (root / "annotations.json").write_text(json.dumps({"database": database}))
    return dataclasses.replace(CFG, data="annotated", path=str(root), stride=2)


def test_a_folder_of_annotated_videos(tmp_path):
    cfg = write_folder(tmp_path / "thumos")
    train, test, classes = action_detection.read_annotated(cfg, CLIP)
    assert [v.name for v in train] == ["v0", "v1", "v2", "v3"] and [v.name for v in test] == ["v4"]
    assert classes == ("flash",) and test[0].labels.tolist() == [0] and test[0].segments.tolist() == [[1.2, 2.4]]
    assert (test[0].frames, test[0].fps, test[0].duration) == (40, 10.0, 4.0)
    frames = test[0].load(10, 14)
    assert frames.shape == (4, 32, 32, 3) and frames[:2].max() < 20 and frames[2:].min() > 180
    (features,) = action_detection.extract([lambda video: video[..., :1].astype(np.float32)], test, CLIP, cfg)
    assert features[0].shape == (17, 1) and features[0].argmax() in (6, 7, 8)
    halved = action_detection.read_annotated(dataclasses.replace(cfg, frame_step=2), CLIP)[1][0]
    assert (halved.frames, halved.fps) == (20, 5.0) and halved.load(5, 6).max() < 20 < halved.load(6, 7).min()


def test_wrong_folders_show_the_layout(tmp_path, run):
    attempt = lambda cfg: action_detection.run({controls.TRAINED: [Collapsed(run)]}, cfg)
    cfg = write_folder(tmp_path / "thumos")
    with pytest.raises(ConfigError, match=r'path is empty: give a folder with PATH/annotations\.json: \{"database"'):
        attempt(dataclasses.replace(cfg, path=""))
    with pytest.raises(DataError, match=r"annotations\.json does not exist: expected .*videos/VIDEO\.mp4"):
        attempt(dataclasses.replace(cfg, path=str(tmp_path)))
    file = tmp_path / "thumos/annotations.json"
    database = json.loads(file.read_text())["database"]
    (tmp_path / "thumos/videos/v1.mp4").unlink()
    with pytest.raises(DataError, match=r"videos/v1\.mp4 does not exist: expected"):
        attempt(cfg)
    (tmp_path / "thumos/videos/v1.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"v1\.mp4 cannot be decoded .*: take it out of annotations\.json"):
        attempt(cfg)
    for wrong, text in (
        ({}, "cannot be read .*database.*: expected"),
        ({"database": {"v0": {"subset": "test"}}}, "cannot be read .*annotations.*: expected"),
        ({"database": {"v4": database["v4"]}}, "no video with actions in subset 'validation': expected"),
        (
            {"database": {"v0": database["v0"] | {"annotations": [{"segment": [3, 2], "label": "a"}]}}},
            r"a segment from 3.0 to 2.0.*: expected",
        ),
        (
            {
                "database": database
                | {
                    "v4": database["v4"] | {"annotations": [{"segment": [0, 2], "label": "other"}]},
                    "v1": database["v0"],
                }
            },
            "class 'other' of subset 'test' has no action in 'validation'",
        ),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=text):
            attempt(cfg)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"data": "other"}, "is not one of annotated, world"),
        ({"stride": -1}, "stride=-1 must be at least 0"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"worlds": (0, 3)}, "at least one to train and one to score"),
        ({"data": "annotated", "path": "x", "train": "test"}, "train and test are both 'test'"),
        ({"head": HeadConfig(suppression="none")}, "'none' is not one of soft, hard"),
        ({"head": HeadConfig(dim=10, num_heads=4)}, "dim=10 must be divisible by num_heads=4"),
    ],
)
def test_wrong_settings_are_one_line(run, wrong, text):
    with pytest.raises(ConfigError, match=text):
        action_detection.run({controls.TRAINED: [Collapsed(run)]}, dataclasses.replace(CFG, **wrong))

"""Violation of expectation: the metrics by hand, models that must win or fail, the worlds and the layouts."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources import DataError
from data_pipelines.world import encode
from data_pipelines.world_spec import VIOLATIONS
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, surprise, surprise_data
from vjepa_jax.evals.surprise import Config, absolute_accuracy, auroc, relative_accuracy, surprise_of_pairs, windows
from vjepa_jax.evals.surprise_data import Pair, match, read_pairs, violations, world_pairs
from vjepa_jax.evals.worlds import Clip

from .models import Collapsed, Static

CLIP = Clip(frames=4, size=(32, 32), tubelet=2, patch=8)
SMALL = Config(contexts=(2,), fixed_context=2, pairs=12, frame_step=1, batch_size=8, seeds=1)


def test_metrics_by_hand():
    possible, impossible = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 3.0, 5.0])
    assert relative_accuracy(possible, impossible) == 100 * 2.5 / 4
    # of 16 pairs of values the impossible one is larger in 8 and equal in 3
    wins = sum((i > p) + 0.5 * (i == p) for i in impossible for p in possible)
    assert auroc(possible, impossible) == pytest.approx(100 * wins / 16)
    # even pairs: possible 1 and 3, their median 2; odd: possible 2 (tie) and 4, impossible 1 and 5
    assert absolute_accuracy(possible, impossible, 50.0) == 100 * ((0 + 1) / 2 + 1 - (0.5 + 1) / 2) / 2
    same = np.ones(6)
    assert relative_accuracy(same, same) == auroc(same, same) == absolute_accuracy(same, same, 90.0) == 50.0


def test_windows_slide_and_short_videos_repeat_their_last_frame():
    assert windows(7, 4, 2).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert windows(3, 4, 2).tolist() == [[0, 1, 2, 2]]


@pytest.fixture
def run(tiny_config):
    return from_config_dict(tiny_config(data={"resolution": 32}, model={"patch_size": 8}))


def vanishing(seed):
    """A still picture, and the same with one token blank from frame 4 on."""
    rng = np.random.default_rng(seed)
    possible = np.repeat(rng.integers(0, 256, (1, 32, 32, 3), np.uint8), 8, 0)
    impossible = possible.copy()
    impossible[4:, :8, :8] = 0
    return Pair("vanish", str(seed), lambda: (possible, impossible))


def test_a_model_that_expects_permanence_is_surprised_by_what_vanishes(run):
    pairs = [vanishing(seed) for seed in range(6)]
    (values,) = surprise_of_pairs(Static(run), pairs, CLIP, SMALL)
    assert (values[:, 0] == 0).all() and (values[:, 1] > 0).all()
    assert relative_accuracy(*values.T) == 100.0
    # by hand: of the windows at 0, 2 and 4 only the one at 2 has the change after its context; 1 of 16 tokens differs
    possible, impossible = pairs[0].load()
    seen, blank = (clip[:2, :8, :8] / 255.0 for clip in (possible, impossible[4:]))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normal = []
    for part in (seen, blank):
        token = ((part - mean) / std).ravel()
        normal.append((token - token.mean()) / np.sqrt(token.var() + 1e-5))
    assert values[0, 1] == pytest.approx(abs(normal[0] - normal[1]).mean() / 16 / 3, abs=1e-4)
    (largest,) = surprise_of_pairs(Static(run), pairs, CLIP, dataclasses.replace(SMALL, aggregate="max"))
    np.testing.assert_allclose(largest, 3 * values, atol=1e-5)


def test_a_collapsed_model_is_at_chance(run):
    rows = surprise.run({controls.TRAINED: [Collapsed(run)]}, dataclasses.replace(SMALL, pairs=18))
    mine = [row for row in rows if row["encoder"] == "trained"]
    assert len(mine) == 4 + len(VIOLATIONS) and {row["value"] for row in mine} == {50.0}


def test_rows_of_a_model_with_its_controls(run):
    cfg = dataclasses.replace(SMALL, contexts=(2,), pairs=12)
    seen = []
    rows = surprise.run(controls.encoders(Encoder.random(run), 2), cfg, seen.append)
    assert rows == seen
    names = ["trained", "random init", "copy of the last step", "shuffled frames", "copy of the last pixels"]
    assert list(dict.fromkeys(row["encoder"] for row in rows)) == names
    by_name = {(row["encoder"], row["metric"]): row for row in rows}
    best = by_name["trained", "relative accuracy, best context"]
    assert best["note"] == "context chosen on the test: 2 frames"
    assert by_name["random init", "relative accuracy, context of 2 frames"]["seeds"] == 2
    assert sum(row["count"] for row in rows if row["encoder"] == "trained" and row["metric"].count(",") == 2) == 12
    assert all(row["low"] is not None and 0 <= row["value"] <= 100 for row in rows)


@pytest.mark.parametrize(("side", "frames"), [(32, 8), (32, 16), (64, 16), (64, 32), (224, 64)])
def test_violations_fit_clips_of_any_length(side, frames):
    spec = violations(Clip(frames, (side, side), 2, 8), frames)
    assert spec.num_frames == frames and spec.height == side
    pairs = world_pairs(Clip(frames, (side, side), 2, 8), 12, frames)
    assert {pair.kind for pair in pairs} == set(VIOLATIONS)
    for pair in pairs[:6]:
        possible, impossible = pair.load()
        differs = (possible != impossible).any((1, 2, 3))
        assert not differs[0] and differs.any() and not differs[: differs.argmax()].any()


def test_settings_that_do_not_fit_are_one_line(run):
    named = {controls.TRAINED: [Collapsed(run)]}
    for changes, message in (
        ({"contexts": (2, 4)}, "surprise.contexts: 4 frames must be a multiple of 2 and fewer than the 4 of a clip"),
        ({"contexts": (3,)}, "3 frames must be a multiple of 2"),
        ({"fixed_context": 4}, "surprise.fixed_context=4 is not one of"),
        ({"layout": "clevrer"}, "surprise.layout='clevrer' is not one of world, intphys, grasp, inflevel"),
        ({"aggregate": "sum"}, "surprise.aggregate='sum' is not one of mean, max"),
        ({"frames": 2}, "surprise.frames=2 is fewer than the 4 of a clip"),
        ({"frames": 5}, "violations do not fit into 5 frames of 32 pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            surprise.run(named, dataclasses.replace(SMALL, **changes))


def picture_folder(folder, video):
    folder.mkdir(parents=True)
    for number, frame in enumerate(video, start=1):
        Image.fromarray(frame).save(folder / f"scene_{number:03d}.png")


@pytest.fixture
def intphys(tmp_path):
    """One scene whose videos 1 and 3 are twins, and 2 and 4."""
    good_a, bad_a = vanishing(0).load()
    good_b, bad_b = vanishing(1).load()
    for number, (video, possible) in enumerate(((bad_a, False), (good_b, True), (good_a, True), (bad_b, False)), 1):
        folder = tmp_path / "O1" / "01" / str(number)
        picture_folder(folder / "scene", video)
        (folder / "status.json").write_text(json.dumps({"header": {"is_possible": possible}}))
    return tmp_path


def cfg_of(layout, path):
    return dataclasses.replace(SMALL, layout=layout, path=str(path))


def test_intphys_quadruplets_are_split_by_their_first_different_frame(intphys, run):
    pairs = read_pairs(cfg_of("intphys", intphys), CLIP)
    assert [(p.kind, p.name) for p in pairs] == [("O1", "O1/01/0"), ("O1", "O1/01/1")]
    for pair in pairs:
        possible, impossible = pair.load()
        assert (
            possible.shape == (8, 32, 32, 3)
            and (possible != impossible).any((1, 2, 3)).tolist() == [False] * 4 + [True] * 4
        )
    rows = surprise.run({controls.TRAINED: [Static(run)]}, cfg_of("intphys", intphys))
    assert rows[0]["value"] == 100.0 and rows[0]["benchmark"] == "IntPhys" and rows[0]["count"] == 2


def test_matching_takes_the_longest_common_beginnings():
    common = {("a", "x"): 5, ("a", "y"): 1, ("b", "x"): 6, ("b", "y"): 4}
    assert match(["a", "b"], ["x", "y"], lambda p, i: common[p, i]) == [("a", "x"), ("b", "y")]


def test_grasp_and_inflevel_pairs(tmp_path, run):
    possible, impossible = vanishing(0).load()
    for side, video in (("possible", possible), ("impossible", impossible)):
        (tmp_path / "permanence" / side).mkdir(parents=True)
        encode(tmp_path / "permanence" / side / "a.mp4", video, fps=8)
    (pair,) = read_pairs(cfg_of("grasp", tmp_path), CLIP)
    assert (pair.kind, pair.name) == ("permanence", "permanence/a") and pair.load()[0].shape == (8, 32, 32, 3)
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "property", "group", "possible"])
        writer.writerow(["permanence/possible/a.mp4", "continuity", "7", "1"])
        writer.writerow(["permanence/impossible/a.mp4", "continuity", "7", "0"])
    (pair,) = read_pairs(cfg_of("inflevel", tmp_path), CLIP)
    assert pair.kind == "continuity" and (pair.load()[0] != pair.load()[1]).any()
    half = dataclasses.replace(cfg_of("inflevel", tmp_path), frame_step=2)
    assert read_pairs(half, CLIP)[0].load()[0].shape == (4, 32, 32, 3)


def test_wrong_layouts_show_the_right_one(intphys, tmp_path):
    def refused(layout, path, message):
        with pytest.raises(DataError, match=message) as caught:
            [pair.load() for pair in read_pairs(cfg_of(layout, path), CLIP)]
        assert "\n" not in str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    for layout, shape in surprise_data.LAYOUTS.items():
        refused(layout, tmp_path / "nowhere", "is not a folder: .* is laid out as ")
        assert shape.startswith("PATH/")
    refused("intphys", empty, "holds no matched pair: intphys is laid out as PATH/O1/01/1/status.json")
    refused("grasp", empty, "holds no matched pair: grasp is laid out as PATH/<property>/possible/<name>.mp4")
    refused("inflevel", empty, r"pairs.csv does not exist: inflevel is laid out as PATH/pairs.csv with the columns")
    (empty / "p" / "possible").mkdir(parents=True)
    refused("grasp", empty, "has no folder 'impossible'")
    (empty / "p" / "impossible").mkdir()
    (empty / "p" / "possible" / "a.mp4").write_bytes(b"-")
    refused("grasp", empty, "a has no twin of the same name")
    (empty / "p" / "impossible" / "a.mp4").write_bytes(b"-")
    refused("grasp", empty, "a.mp4 cannot be decoded")
    (empty / "pairs.csv").write_text("path,property,possible\na.mp4,p,1\n")
    refused("inflevel", empty, "has no column 'group'")
    (empty / "pairs.csv").write_text("path,property,group,possible\na.mp4,p,1,yes\n")
    refused("inflevel", empty, "line 2: possible is 'yes'")
    (empty / "pairs.csv").write_text("path,property,group,possible\na.mp4,p,1,1\n")
    refused("inflevel", empty, "group '1' has 1 possible and 0 not")
    (intphys / "O1" / "01" / "2" / "status.json").write_text("{}")
    refused("intphys", intphys, "status.json does not say")
    shutil.rmtree(intphys / "O1" / "01" / "2")
    refused("intphys", intphys, "holds 1 possible and 2 impossible videos")

"""Anticipation: which tokens are read, the loss, the world's task, folders, and what collapsed features get."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import epic, world
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import anticipation, anticipation_data, controls
from vjepa_jax.evals.groups import held_out_rows
from vjepa_jax.evals.worlds import Clip

from .models import Collapsed, Static

CLIP = Clip(frames=8, size=(32, 32), tubelet=2, patch=8)
CFG = anticipation.Config(
    data="world", k=1, epochs=10, batch_size=32, lrs=(1e-2,), weight_decays=(1e-3,), depth=1, num_heads=2,
    mlp_ratio=1.0, dtype="float32", standardize=2, frame_controls=False, worlds=(256, 128),
)  # fmt: skip


@pytest.fixture(scope="module")
def run():
    model = {
        "variant": "vit_micro",
        "patch_size": 8,
        "dtype": "float32",
        "predictor": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    }
    data = {"path": "v", "num_frames": 8, "resolution": 32}
    return from_config_dict({"steps": 1, "batch_size": 8, "data": data, "model": model})


class Path:
    """Features of the object's path in every tubelet, how fast it goes and how it turns, [B, T', 1, 1, 64], most of
    them 0; it predicts nothing."""

    def __init__(self, run):
        self.run = run

    def __call__(self, video):
        x = np.asarray(video, np.float32)
        bright = (abs(x - np.median(x, axis=(1, 2, 3), keepdims=True)) > 60).any(-1)
        around = np.exp(2j * np.pi * np.arange(32) / 32)
        places = [np.angle(bright.sum(axis) @ around) for axis in (2, 3)]
        steps = np.stack([np.angle(np.exp(1j * np.diff(p, axis=1))) for p in places], -1)
        speed = np.hypot(*np.moveaxis(steps, -1, 0))
        turn = (steps[:, :-1] * steps[:, 1:]).sum(-1) / np.maximum(speed[:, :-1] * speed[:, 1:], 1e-3)
        parts = np.concatenate([speed, turn], 1)  # 7 and 6 numbers of 8 frames
        parts = np.pad(parts, [(0, 0), (0, 64 - parts.shape[1])])
        return np.repeat(parts[:, None, None, None], 4, axis=1).astype(np.float32)

    def predict(self, video, context, target, mask_index=0):
        return jnp.zeros((*target.shape, 64))


def tokens_of(encoder, kind, **changes):
    return anticipation.Tokens(encoder, kind, None, dataclasses.replace(CFG, **changes), 2, 16)


def test_ids_of_what_comes_later(run):
    video = np.zeros((2, 8, 32, 32, 3), np.uint8)
    context, target = tokens_of(Static(run), "both").ids(video, np.array([1.0, 0.3]))
    assert context.shape == (2, 64) and (context == np.arange(64)).all()
    # int(1 s * 8 / 2) = 4 and int(.3 s * 8 / 2) = 1 time steps lie in between
    assert (target == np.array([[64 + 16 * 4], [64 + 16 * 1]]) + np.arange(16)).all()
    assert tokens_of(Static(run), "both", steps_ahead=2).ids(video, np.array([1.0, 0.3]))[1].shape == (2, 32)


def test_an_encoder_gives_its_tokens_and_those_of_its_predictor(run):
    encoder = Encoder.random(run, 0)
    # Fresh weights hardly attend, and fresh mask tokens are zeros: every prediction would be the same.
    rng = np.random.default_rng(1)
    grown = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)
    encoder = encoder.with_params(encoder.params | {"predictor": jax.tree.map(grown, encoder.params["predictor"])})
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3)).astype(np.uint8)
    ahead = np.array([1.0, 0.5])
    both = np.asarray(tokens_of(encoder, "both")(video, ahead))
    width = 96  # of vit_micro
    assert both.shape == (2, 64 + 16, width)
    np.testing.assert_allclose(both[:, :64], np.asarray(encoder(video)).reshape(2, 64, width), atol=1e-5)
    np.testing.assert_allclose(both[:, 64:], tokens_of(encoder, "predictor")(video, ahead), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(both[:, :64], tokens_of(encoder, "encoder")(video, ahead), atol=1e-5)
    later = np.asarray(tokens_of(encoder, "predictor")(video, np.array([1.0, 2.0])))
    np.testing.assert_allclose(later[0], both[0, 64:], rtol=1e-3, atol=1e-2)
    assert abs(later[1] - both[1, 64:]).max() > 0.1  # another time, another prediction
    pixels = lambda clip: np.zeros((len(clip), 4, 4, 4, 7), np.float32)
    assert tokens_of(pixels, "both")(video, ahead).shape == (2, 64, 7)


def test_the_loss_sums_over_classes_and_tasks():
    logits = {task: jnp.zeros((2, classes)) for task, classes in zip(anticipation.TASKS, (3, 4, 5), strict=True)}
    one = 0.5**2 * np.log(2)  # (1 - p)^2 times cross-entropy at p = 1/2
    expected = 3 * 0.25 * one + (2 + 3 + 4) * 0.75 * one
    np.testing.assert_allclose(anticipation.loss(logits, jnp.zeros((2, 3), int)), [expected] * 2, rtol=1e-5)


def test_held_out_are_whole_videos():
    groups = np.repeat(np.arange(20), 5)
    kept = held_out_rows(groups, 0.1, 0)
    assert kept.sum() == 10 and all(len(set(kept[groups == g])) == 1 for g in range(20))
    assert (kept != held_out_rows(groups, 0.1, 1)).any()
    assert held_out_rows(np.array([0, 0, 0, 1]), 0.9, 0).sum() in (1, 3)
    with pytest.raises(ConfigError, match="at least two training videos"):
        held_out_rows(np.zeros(4, int), 0.1, 0)


def test_the_worlds_next_behaviour_follows_from_this_one():
    data = anticipation_data.world_data(CLIP, CFG)
    assert data.classes == (4, 6, 24) and len(data.labels) == 256 and len(data.test_labels) == 128
    assert (data.labels[:, 2] == data.labels[:, 0] * 6 + data.labels[:, 1]).all()
    behaviours = tuple(anticipation_data.NEXT)
    batch = next(data.training(0))
    for video, (verb, _, _) in zip(batch["video"], data.labels[batch["index"]], strict=True):
        (now,) = (b for b in behaviours if anticipation_data.NEXT[b] == behaviours[verb])
        moved = abs(np.diff(video.astype(int), axis=0)).sum(-1) > 250  # five deviations of the noise
        assert (moved.mean((1, 2)).max() < 0.005) == (now == "still")
    assert batch["ahead"].min() >= 0.25 and batch["ahead"].max() <= 1.75
    tests = list(data.test())
    assert sum((b["index"] >= 0).sum() for b in tests) == 128 and all((b["ahead"] == 1.0).all() for b in tests)


def test_features_of_the_path_tell_what_comes_and_constant_ones_do_not(run):
    seen = []
    named = {controls.TRAINED: [Path(run)], "collapsed": [Collapsed(run)]}
    rows = anticipation.run(named, CFG, seen.append)
    assert rows == seen and len(rows) == 2 * 6
    value = {(row["encoder"], row["metric"]): row for row in rows}
    verb = value[controls.TRAINED, f"verb recall@1, {anticipation.BEST}"]
    assert verb["value"] > 60.0 and verb["chance"] == 25.0 and verb["low"] <= verb["value"] <= verb["high"]
    for task, chance in (("verb", 100 / 4), ("noun", 100 / 6), ("action", None)):
        collapsed = value["collapsed", f"{task} recall@1, {anticipation.BEST}"]
        # one class is always named
        assert collapsed["value"] == pytest.approx(collapsed["chance"] if chance is None else chance, abs=0.01)
    assert {row["benchmark"] for row in rows} == {"world, anticipation"}


# ------------------------------------------------------------------------------------------------- EPIC-Kitchens-100


def test_where_a_clip_ends_by_both_readings():
    action = epic.Action("v", 10.0, 14.0, 0, 0)
    window = lambda reading, point: epic.Window(32, 8.0, (1.0, 1.0), (point, point), reading)
    assert window("paper", 0.0).end(action) == (9.0, 1.0)  # a second before its start
    assert window("code", 0.0).end(action) == (13.0, 1.0)  # a second before its end
    assert window("paper", 0.25).end(action)[0] == 10.0 and window("code", 0.25).end(action)[0] == 12.0
    drawn = epic.Window(32, 8.0, (0.25, 1.75), (0.0, 0.25), "paper")
    rng = np.random.default_rng(0)
    ends = [drawn.end(action, rng) for _ in range(200)]
    assert all(0.25 <= ahead <= 1.75 and 10.0 <= end + ahead <= 11.0 for end, ahead in ends)
    assert np.ptp([ahead for _, ahead in ends]) > 1.3


def test_frames_of_a_clip_by_hand():
    window = epic.Window(4, 8.0, (1.0, 1.0), (0.0, 0.0), "code")
    assert epic.indices(2.0, window, 1000, 24.0).tolist() == [36, 39, 42, 45]  # 1/8 s apart, before frame 48
    assert epic.indices(0.25, window, 1000, 24.0).tolist() == [0, 0, 0, 3]
    assert epic.indices(-1.0, window, 1000, 24.0).tolist() == [0, 0, 0, 0]
    assert epic.indices(9.0, window, 100, 24.0).tolist() == [99] * 4


def write_folder(root):
    """Five videos of 12 s at 10 frames a second with six actions each, whose brightness is that of their verb."""
    (root / "P01/videos").mkdir(parents=True)
    (root / "videos").mkdir()
    rows = {"train": [], "validation": []}
    for i in range(5):
        frames = np.zeros((120, 32, 48, 3), np.uint8)
        for j in range(6):
            verb = (i + j) % 2
            frames[20 * j : 20 * j + 20] = 40 + 150 * verb
            row = {"participant_id": "P01", "video_id": f"P01_0{i}", "narration": "cut, then"}
            row |= {"start_timestamp": f"00:00:{2 * j:02d}.90", "stop_timestamp": f"00:00:{2 * j + 1:02d}.90"}
            rows["validation" if i == 4 else "train"].append(row | {"verb_class": 3 + verb, "noun_class": 8})
        world.encode(root / (f"P01/videos/P01_0{i}.MP4" if i % 2 else f"videos/P01_0{i}.mp4"), frames, fps=10)
    rows["validation"][0]["noun_class"] = 9  # never met in training
    for part, name in epic.FILES.items():
        with open(root / name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[part][0]))
            writer.writeheader()
            writer.writerows(rows[part])
    # Clips of half a second that end a fifth of a second before the end of an action, or before its start.
    return dataclasses.replace(
        CFG, data="ek100", path=str(root), frames=8, fps=16.0, resolution=32, ahead=0.2, train_ahead=(0.1, 0.3),
        train_point=(0.0, 0.1), epochs=12, batch_size=8, rand_augment="", erase_prob=0.0, standardize=3,
    )  # fmt: skip


def test_a_folder_of_epic_kitchens(tmp_path, run):
    cfg = write_folder(tmp_path / "epic")
    data = anticipation_data.ek100_data(cfg)
    assert data.classes == (2, 1, 2) and len(data.labels) == 24 and len(data.test_labels) == 5
    assert len(np.unique(data.groups)) == 4
    batch = next(data.training(0))
    assert batch["video"].shape == (8, 8, 32, 32, 3) and 0.1 <= batch["ahead"].min() <= batch["ahead"].max() <= 0.3
    for video, (verb, _, _) in zip(batch["video"], data.labels[batch["index"]], strict=True):
        assert (video[-1].mean() > 100) == bool(verb)
    rows = anticipation.run({controls.TRAINED: [Static(run)]}, cfg)
    value = {row["metric"]: row for row in rows}
    assert value[f"verb recall@1, {anticipation.BEST}"]["value"] > 99.0
    assert rows[0]["benchmark"] == "ek100" and rows[0]["count"] == 5 and "reading: code" in rows[0]["note"]
    # a second before the start of an action the one before it is seen
    early = dataclasses.replace(cfg, reading="paper", ahead=1.0)
    shown = lambda cfg: next(anticipation_data.ek100_data(cfg).test())["video"][:5, -1].mean((1, 2, 3))
    assert ((shown(cfg) > 100) != (shown(early) > 100)).all()


def test_a_video_that_cannot_be_decoded_is_wrong_and_fatal_to_nobody(tmp_path, run):
    cfg = write_folder(tmp_path / "epic")
    (tmp_path / "epic/videos/P01_04.mp4").write_bytes(b"nothing")
    (tmp_path / "epic/videos/P01_02.mp4").write_bytes(b"nothing")
    cfg = dataclasses.replace(cfg, epochs=2, frame_controls=True)
    rows = anticipation.run({controls.TRAINED: [Static(run)]}, cfg)
    assert {row["encoder"] for row in rows} == {controls.TRAINED, controls.STILL, controls.SHUFFLED}
    assert {row["value"] for row in rows if row["metric"].startswith("verb")} == {0.0}


def test_wrong_folders_show_the_layout(tmp_path, run):
    attempt = lambda cfg: anticipation.run({controls.TRAINED: [Static(run)]}, cfg)
    cfg = write_folder(tmp_path / "epic")
    with pytest.raises(ConfigError, match=r"path is empty: give a folder with PATH/EPIC_100_train\.csv"):
        attempt(dataclasses.replace(cfg, path=""))
    with pytest.raises(DataError, match=r"EPIC_100_train\.csv does not exist: expected .*P01/videos/P01_01\.MP4"):
        attempt(dataclasses.replace(cfg, path=str(tmp_path)))
    file = tmp_path / "epic/EPIC_100_validation.csv"
    whole = file.read_text()
    for text, wrong in (
        (whole.replace("00:00:02.90", "three"), r"EPIC_100_validation\.csv, line 3: .*: expected"),
        (whole.replace("verb_class", "verb"), "no column 'verb_class': expected"),
        (whole.splitlines()[0] + "\n", "has no action: expected"),
        (whole.replace("P01_04", "P01_77"), "has no video P01_77: expected"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=wrong):
            attempt(cfg)
    file.write_text("\n".join(whole.splitlines()[:2]) + "\n")
    with pytest.raises(ConfigError, match="no action of the validation set is one of training"):
        attempt(cfg)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"data": "other"}, "is not one of ek100, world"),
        ({"reading": "mine"}, "'mine' is not one of code, paper"),
        ({"tokens": ("all",)}, "'all' is not one of both, encoder, predictor"),
        ({"k": 0}, "k=0 must be at least 1"),
        ({"micro_batch": 5}, "batch_size=32 is not divisible by micro_batch=5"),
        ({"lrs": ()}, "lrs and weight_decays hold a value"),
        ({"worlds": (8, 8)}, "a batch to train on"),
    ],
)
def test_wrong_settings_are_one_line(run, wrong, text):
    with pytest.raises(ConfigError, match=text):
        anticipation.run({controls.TRAINED: [Static(run)]}, dataclasses.replace(CFG, **wrong))


def test_a_predictor_that_cannot_look_ahead_is_named(run):
    table = dataclasses.replace(run, model=dataclasses.replace(run.model, position="sincos"))
    with pytest.raises(ConfigError, match=r"set anticipation\.tokens=\('encoder',\)"):
        anticipation.check(CFG, {controls.TRAINED: [Static(table)]})
    anticipation.check(dataclasses.replace(CFG, tokens=("encoder",)), {controls.TRAINED: [Static(table)]})

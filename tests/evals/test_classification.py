"""The frozen attentive probe end to end, on videos whose class is the colour of a moving square."""

import dataclasses
import re

import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.sources import DataError
from vjepa_jax import config_file
from vjepa_jax.config import ConfigError, ModelConfig, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import classification, classification_data, controls, token_cache
from vjepa_jax.evals.classification import BEST, CHOSEN, Config
from vjepa_jax.evals.classification_data import Data
from vjepa_jax.evals.features import pixel_features
from vjepa_jax.evals.heads import Heads
from vjepa_jax.evals.sequences import Reader, sequence
from vjepa_jax.evals.token_cache import TokenCache

COLOURS = np.array([[220, 40, 40], [40, 200, 40], [60, 60, 230], [210, 200, 40]], np.uint8)
TRAIN, TEST = 40, 18


def write(folder, index, label):
    """Eight frames of 16 x 16: a square of the class's colour moves over grey."""
    rng = np.random.default_rng(index)
    video = rng.integers(90, 110, (8, 16, 16, 3)).astype(np.uint8)
    top, left, speed = int(rng.integers(9)), int(rng.integers(5)), int(rng.integers(2))
    for t in range(8):
        column = min(left + speed * t // 2, 9)
        video[t, top : top + 7, column : column + 7] = COLOURS[label]
    world.encode(folder / f"{index}.mp4", video, fps=8, crf=10)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    lines = ["path,label,split"]
    for i in range(TRAIN + TEST):
        write(folder, i, i % 4)
        lines.append(f"{i}.mp4,{i % 4},{'train' if i < TRAIN else 'test'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def settings(manifest, **changes):
    small = Config(
        path=str(manifest),
        frames=4,
        frame_step=1,
        resolution=16,
        segments=2,
        views=2,
        epochs=16,
        batch_size=8,
        lrs=(3e-3, 1e-6),
        weight_decays=(0.1,),
        depth=2,
        num_heads=2,
        mlp_ratio=1.0,
        dtype="float32",
        crop_scale=(0.8, 1.0),
        crop_aspect=(1.0, 1.0),
        rand_augment="rand-m1-n1-mstd0-inc1",
        erase_prob=0.1,
        held_out=0.2,
        controls=(),
        encode_batch=16,
        num_threads=1,
    )
    return dataclasses.replace(small, **changes)


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


def pixels(video):
    return pixel_features(video, 8, 2)


def constant(video):
    return controls.constant_features(video, 8, 2)


def by_metric(scores, encoder):
    return {row["metric"]: row for row in scores if row["encoder"] == encoder}


@pytest.fixture(scope="module")
def scores(manifest, encoder):
    named = {"trained": [encoder], "raw pixels": [pixels], "collapsed": [constant]}
    return classification.run(named, settings(manifest, layers=(0, 1)))


def test_heads_learn_and_a_collapsed_encoder_is_at_chance(scores):
    assert len(scores) == 6
    for name in ("trained", "raw pixels"):
        best, chosen = by_metric(scores, name)[BEST], by_metric(scores, name)[CHOSEN]
        assert best["value"] >= chosen["value"] >= 80.0, name
        assert "lr=0.003 wd=0.1" in chosen["note"]  # not the head whose rate leaves it as it was
        right = int(re.search(r"right: (\d+) of 18", chosen["note"])[1])
        assert chosen["value"] == pytest.approx(100.0 * right / TEST) and chosen["count"] == TEST
        assert chosen["low"] <= chosen["value"] <= chosen["high"] and chosen["chance"] == 25.0
    # one answer for all videos: right for the share of one class, 4 or 5 of 18
    for row in by_metric(scores, "collapsed").values():
        assert row["value"] in (pytest.approx(400 / 18), pytest.approx(500 / 18))


def test_test_videos_choose_nothing_but_the_best_head(manifest, tmp_path):
    """With wrong labels on the test videos the same head is chosen, with the same weights: its answers are the same."""
    text = manifest.read_text().splitlines()
    wrong = [text[0]]
    for line in text[1:]:
        path, label, split = line.split(",")
        shifted = (int(label) + 1) % 4 if split == "test" else label
        wrong.append(f"{manifest.parent / path},{shifted},{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(wrong) + "\n")
    cfg = settings(manifest, segments=1, views=1)
    named = {"trained": [pixels]}
    honest = by_metric(classification.run(named, cfg), "trained")
    fooled = by_metric(
        classification.run(named, dataclasses.replace(cfg, path=str(tmp_path / "manifest.csv"))), "trained"
    )
    setting = lambda row: row["note"].split(";")[0]
    assert setting(honest[CHOSEN]) == setting(fooled[CHOSEN]) == "lr=0.003 wd=0.1"
    assert honest[CHOSEN]["value"] >= 80.0 and fooled[CHOSEN]["value"] <= 100.0 - honest[CHOSEN]["value"] + 1e-6
    assert setting(fooled[BEST]) == "lr=1e-06 wd=0.1"  # the untrained head is the best on wrong labels


@pytest.mark.parametrize("retrain", [True, False])
def test_held_out_videos_teach_the_choosing_heads_nothing(manifest, tmp_path, monkeypatch, retrain):
    """The eight videos that choose carry wrong labels: a useful head that has not seen them has none of them right, so
    that it does not win against the untrained one, which stands first."""
    out = np.arange(TRAIN) < 8
    monkeypatch.setattr(classification, "held_out", lambda labels, rng, share: out)
    lines = ["path,label,split"]
    for i in range(TRAIN + TEST):
        label = (i + 1) % 4 if i < 8 else i % 4
        lines.append(f"{manifest.parent / str(i)}.mp4,{label},{'train' if i < TRAIN else 'test'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    cfg = settings(tmp_path / "manifest.csv", segments=1, views=1, retrain=retrain, lrs=(1e-6, 3e-3))
    chosen = by_metric(classification.run({"trained": [pixels]}, cfg), "trained")[CHOSEN]
    assert chosen["note"].startswith("lr=1e-06")
    assert ("heads did not see the held-out videos" in chosen["note"]) != retrain


def test_the_cheap_mode_is_labelled_and_close(manifest):
    cfg = settings(manifest, cache=True, segments=1, views=1)
    rows = by_metric(classification.run({"trained": [pixels]}, cfg), "trained")
    assert set(rows) == {f"{BEST}, cached features", f"{CHOSEN}, cached features"}
    row = rows[f"{CHOSEN}, cached features"]
    assert row["value"] >= 80.0 and "cheap mode: training clips encoded once, without augmentation" in row["note"]
    with pytest.raises(ConfigError, match=r"classification\.cache would take .* more than cache_gib=1e-09"):
        classification.run({"trained": [pixels]}, dataclasses.replace(cfg, cache_gib=1e-9))


def test_batches_that_standardise_are_trained_on_and_made_once(manifest, monkeypatch):
    started, trained = [], []
    stream, train = classification.training, Heads.train
    monkeypatch.setattr(classification, "training", lambda *args: started.append(args) or stream(*args))
    monkeypatch.setattr(Heads, "train", lambda *args: trained.append(len(args[2])) or train(*args))
    cfg = settings(manifest, standardize=2, epochs=2, segments=1, views=1)
    rows = classification.run({"trained": [pixels]}, cfg)
    assert len(started) == 1 and trained == [8] * (TRAIN * 2 // 8)
    assert all("features standardised" in row["note"] for row in rows)


def test_seeds_and_controls_stand_in_the_scores(manifest):
    cfg = settings(manifest, seeds=2, epochs=2, segments=1, views=1, controls=("single frame", "shuffled frames"))
    seen = []
    rows = classification.run({"trained": [pixels], "random init": [constant, pixels]}, cfg, seen.append)
    assert rows == seen and len(rows) == 2 * 4
    assert {r["encoder"] for r in rows} == {"trained", "random init", "single frame", "shuffled frames"}
    assert all(r["seeds"] == 2 and r["low"] is not None and r["benchmark"] == manifest.parent.name for r in rows)


@pytest.fixture(scope="module")
def scenes(manifest, tmp_path_factory):
    """A folder with labels.csv: twelve scenes, each with a video of every class."""
    folder = tmp_path_factory.mktemp("scenes")
    lines = [f"{manifest.parent / str(i)}.mp4,{'abcd'[i % 4]},{i // 4:02d}" for i in range(48)]
    (folder / "labels.csv").write_text("\n".join(["path,label,scene", *lines]) + "\n")
    return folder


def test_folds_of_scenes_test_every_video_once(scenes):
    cfg = settings(scenes, folds=3, segments=1, views=1, cache=True)
    named = {"trained": [pixels], "collapsed": [constant]}
    rows = classification.run(named, cfg)
    found = by_metric(rows, "trained")[f"{CHOSEN}, cached features"]
    assert found["value"] >= 80.0 and found["count"] == 48 and found["low"] <= found["value"] <= found["high"]
    assert "3 folds of 12 groups" in found["note"] and found["benchmark"] == scenes.name
    # one answer for all videos of a fold, of which every class has a quarter
    assert {row["value"] for row in rows if row["encoder"] == "collapsed"} == {25.0}


def test_the_cheap_mode_encodes_a_video_once_for_all_folds(scenes):
    seen = []

    def counting(video):
        seen.append(len(video))
        return pixels(video)

    cfg = settings(scenes, folds=3, segments=1, views=1, cache=True, standardize=2, epochs=2)
    rows = classification.run({"trained": [counting]}, cfg)
    assert seen == [16, 16, 16] and rows[0]["count"] == 48  # encode_batch


def test_an_undecodable_video_is_wrong_in_the_cheap_mode():
    tokens = np.arange(3, dtype=np.float32)[:, None, None]
    cached = TokenCache({"a": tokens}, np.array([0, 2, 3]))
    data = Data(None, np.array([5, 6, 7, 8]), np.arange(4), np.array([6, 7]), np.array([1, 2]))
    reader, cfg = Reader({}, (), "float32", 4), Config(segments=1, encode_batch=4, dtype="float32")
    ((labels, real, (read,)),) = classification._from_cache(reader, cfg, data, cached, data.test_rows)
    assert labels.tolist()[:2] == [-1, 7] and real.tolist() == [True, True, False, False]
    assert np.asarray(read("a"))[1, 0, 0] == 1.0  # row 2 is the second that is kept
    batches = token_cache.batches_of(cached, np.array([1, 2, 3]), 2, 4, 0, "float32")
    ((rows, read),) = batches  # two passes over the two that are there
    assert sorted(rows.tolist()) == [2, 2, 3, 3]
    assert np.asarray(read("a"))[:, 0, 0].tolist() == [1.0 if row == 2 else 2.0 for row in rows]


def test_scenes_are_never_on_both_sides(scenes):
    cfg = classification_data.fitted(settings(scenes, folds=4), {})
    assert cfg.path == str(scenes / "labels.csv")
    parts = classification_data.open_folds(cfg)
    assert sorted(np.concatenate([part.test_rows for part in parts]).tolist()) == list(range(48))
    for part in parts:
        train, test = set(part.groups[part.rows]), set(part.groups[part.test_rows])
        out = classification._kept_out(cfg, part, seed=0)
        assert not train & test and len(train) == 9 and out.sum() == 8  # two scenes of four videos, of 36
        assert not out[part.test_rows].any()
        assert not set(part.groups[out]) & set(part.groups[part.rows[~out[part.rows]]])


def test_videos_of_a_training_split_are_never_tested(scenes, tmp_path):
    lines = (scenes / "labels.csv").read_text().split()[1:]
    split = lambda line: "train" if line.endswith(("00", "01", "02", "03")) else "test"
    listed = ["path,label,scene,split", *(f"{line},{split(line)}" for line in lines)]
    (tmp_path / "labels.csv").write_text("\n".join(listed) + "\n")
    parts = classification_data.open_folds(settings(tmp_path / "labels.csv", folds=4))
    assert all(set(range(16)) <= set(part.rows.tolist()) and len(part.rows) == 40 for part in parts)
    assert sorted(np.concatenate([part.test_rows for part in parts]).tolist()) == list(range(16, 48))
    rows = classification.run({"trained": [pixels]}, settings(tmp_path, folds=4, segments=1, views=1, cache=True))
    assert rows[1]["count"] == 32 and rows[1]["value"] >= 80.0 and "4 folds of 8 groups" in rows[1]["note"]
    (tmp_path / "labels.csv").write_text("\n".join([*listed, lines[20] + ",train"]) + "\n")
    with pytest.raises(ConfigError, match="scene 05 has videos of split test and of others: put it on one side"):
        classification_data.open_folds(settings(tmp_path / "labels.csv", folds=4))


def test_clips_as_the_encoder_was_trained_and_of_a_span(encoder, manifest):
    cfg = settings(manifest, frames=0, resolution=0, seconds=2.0)
    fitted = classification_data.fitted(cfg, {"trained": [encoder]})
    assert (fitted.frames, fitted.resolution) == (4, 16)
    # videos of 8 frames a second: 4 frames of 2 seconds are every fourth of 8, in the middle
    batch = next(classification_data.middle(fitted, fitted.path, "test", 1, [0], batch=1))
    four = next(classification_data.middle(settings(manifest, frame_step=4), fitted.path, "test", 1, [0], batch=1))
    np.testing.assert_array_equal(batch["video"], four["video"])


def test_folds_that_cannot_be_made_are_one_line(scenes, manifest, tmp_path):
    run = lambda cfg: classification.run({"trained": [pixels]}, cfg)
    with pytest.raises(ConfigError, match=r"path is empty: give a manifest with the columns path,label,scene"):
        run(Config(folds=4))
    with pytest.raises(ConfigError, match=r"58 of 58 videos are of no scene: .* columns path,label,scene, or a folder"):
        run(settings(manifest, folds=4))
    with pytest.raises(ConfigError, match="13 folds of 12 groups of videos: ask for 2 to 12"):
        run(settings(scenes, folds=13))
    with pytest.raises(ConfigError, match="leave test_path empty"):
        run(settings(scenes, folds=3, test_path="x.csv"))
    with pytest.raises(ConfigError, match="frames, resolution and seconds must not be negative"):
        run(settings(scenes, folds=3, seconds=-1.0))
    lines = [f"{manifest.parent / str(i)}.mp4,{i},{i}" for i in range(4)]
    (tmp_path / "alone.csv").write_text("\n".join(["path,label,scene", *lines]) + "\n")
    with pytest.raises(ConfigError, match=r"class 0 has videos in one of 2 folds only.*: give it more scenes"):
        run(settings(tmp_path / "alone.csv", folds=2))


def test_sequences_hold_all_segments_and_layers(encoder):
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 16, 16, 3)).astype(np.uint8)
    both = np.asarray(sequence(encoder, video, (0, 1), "float32", 4))
    assert both.shape == (3, 2 * 2 * 8, 96)  # two segments of two layers of 2 x 2 x 2 tokens
    alone = np.asarray(encoder(video[1, 1:2])).reshape(8, 96)
    np.testing.assert_allclose(both[1, 24:], alone, atol=1e-5)
    last = np.asarray(sequence(encoder, video, (), "float32", 4))
    np.testing.assert_allclose(last[1, 8:], alone, atol=1e-5)
    assert sequence(pixels, video, (0, 1), "bfloat16", 64).shape == (3, 16, 384)  # raw pixels have one layer


def test_features_are_standardised_when_asked_for():
    reader = Reader({"a": pixels, "flat": constant}, (), "float32", 8)
    video = np.random.default_rng(0).integers(0, 256, (6, 1, 4, 16, 16, 3)).astype(np.uint8)
    reader.fit([lambda name, part=part: reader.raw(name, part) for part in (video[:3], video[3:])])
    x = np.asarray(reader("a", video)).reshape(-1, 384)
    np.testing.assert_allclose(x.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(x.std(0), 1.0, atol=1e-3)
    assert (np.asarray(reader("flat", video)) == 0.0).all()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"path": ""}, "classification.path is empty: give a manifest with the columns path,label,split"),
        ({"controls": ("single frames",)}, "'single frames' is not one of single frame, shuffled frames; did you mean"),
        ({"held_out": 0.0}, "held_out=0.0 must lie between 0 and 1"),
        ({"segments": 0}, "classification.segments=0 must be at least 1"),
        ({"micro_batch": 3}, "batch_size=8 is not divisible by micro_batch=3"),
        ({"lrs": ()}, "classification has no head"),
        ({"rand_augment": "rand-x"}, "must be like 'rand-m7-n4-mstd0.5-inc1'"),
    ],
)
def test_settings_that_cannot_be_run_are_one_line(manifest, change, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        classification.run({"trained": [pixels]}, settings(manifest, **change))


def test_data_that_cannot_be_used_is_one_line(manifest, tmp_path):
    def one_class(split):
        (tmp_path / "m.csv").write_text(f"path,label,split\n{manifest.parent / '0.mp4'},a,{split}\n")
        return settings(tmp_path / "m.csv")

    run = lambda cfg: classification.run({"trained": [pixels]}, cfg)
    with pytest.raises(DataError, match=r"no split 'test' in .*: it has train"):
        run(one_class("train"))
    cfg = dataclasses.replace(one_class("train"), test="train")
    with pytest.raises(ConfigError, match="have one class only"):
        run(cfg)
    named = [f"{manifest.parent / f'{i}.mp4'},{'ab'[i]}" for i in (0, 1)]
    (tmp_path / "a.csv").write_text("\n".join(["path,label", *named]) + "\n")
    (tmp_path / "b.csv").write_text("\n".join(["path,label", named[0], named[1].replace(",b", ",c")]) + "\n")
    cfg = settings(tmp_path / "a.csv", test_path=str(tmp_path / "b.csv"), train="", test="")
    with pytest.raises(ConfigError, match=r"have different classes \(b, c, \.\.\.\)"):
        run(cfg)


def test_the_published_settings():
    """Heads, batches and layers of the released configs (vjepa2 configs/eval), and what they cost."""
    load = lambda name: config_file.load_groups(f"experiments/evals/{name}", [], {"classification": Config})
    heads = lambda cfg: len(classification.head_settings(cfg, 10))
    k400, ssv2 = load("k400.py:vitl")["classification"], load("ssv2.py:vitg_384")["classification"]
    assert (k400.segments, k400.views, k400.batch_size, heads(k400)) == (8, 3, 256, 20)
    assert (ssv2.frames, ssv2.frame_step, ssv2.resolution, heads(ssv2)) == (64, 2, 384, 20)
    diving = load("diving48.py:vitg")["classification"]
    assert diving.layers == (24, 29, 34, 39) and heads(diving) == 3 and diving.epochs == 100
    image = load("imagenet.py:vitl")["classification"]
    assert heads(image) == 21 and image.batch_size == 1024
    assert [s.rates(0, 200)[0] for s in classification.head_settings(image, 10)[:1]] == [
        pytest.approx(2e-4 + 3e-4 / 50)
    ]
    assert classification.head_settings(image, 10)[-1].final_weight_decay == 0.0
    assert not any(
        load(f"{n}.py")["classification"].hflip for n in ("k400", "ssv2", "coin", "jester", "ucf101", "hmdb51")
    )


def test_the_cost_of_a_probe_by_hand():
    cfg = dataclasses.replace(Config(), segments=1, views=1, epochs=2, lrs=(1e-3,), weight_decays=(0.1,), held_out=0.5)
    model = ModelConfig(variant="vit_large")
    encoder = 24 * (24 * 2048 * 1024**2 + 4 * 2048**2 * 1024) + 2 * 2048 * 1536 * 1024
    head = 3 * (24 * 2048 * 1024**2 + 4 * 2048**2 * 1024) + 4 * 2048 * 1024 * 16
    # 10 videos: twice in training, 5 held out, 4 for the test; two copies of the one head
    expected = encoder * (20 + 5 + 4) + 2 * head * (3 * 20 + 5 + 4)
    assert classification.flops(cfg, model, 10, 4) == pytest.approx(expected)

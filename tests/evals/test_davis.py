"""DAVIS: its metrics against the official ones, and the protocol end to end."""

import dataclasses
import functools
import pathlib

import numpy as np
import pytest
from PIL import Image

from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, davis, tables, vos
from vjepa_jax.evals.davis import boundary_accuracy, region_similarity
from vjepa_jax.evals.davis_metrics import boundary, statistics
from vjepa_jax.evals.features import pixel_features
from vjepa_jax.evals.propagation import METHODS
from vjepa_jax.evals.windows import window_starts
from vjepa_jax.evals.worlds import Clip

FIXTURE = pathlib.Path(__file__).parent.parent / "fixtures/davis_metrics.npz"


def test_the_metrics_are_the_official_ones():
    known = np.load(FIXTURE)
    count = len({name.split("/")[0] for name in known})
    assert count == 25
    for i in range(count):
        shape = tuple(known[f"{i}/shape"])
        masks = [
            np.unpackbits(known[f"{i}/{name}"], count=shape[0] * shape[1]) for name in ("annotation", "prediction")
        ]
        annotation, prediction = (mask.reshape(shape).astype(bool) for mask in masks)
        assert region_similarity(annotation, prediction) == pytest.approx(float(known[f"{i}/J"]), abs=1e-6)
        assert boundary_accuracy(annotation, prediction) == pytest.approx(float(known[f"{i}/F"]), abs=1e-6)


def test_empty_masks():
    empty, full = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    full[2:5, 2:5] = True
    assert region_similarity(empty, empty) == boundary_accuracy(empty, empty) == 1.0
    assert region_similarity(full, empty) == boundary_accuracy(full, empty) == boundary_accuracy(empty, full) == 0.0
    with pytest.raises(ValueError, match="must both be"):
        region_similarity(empty, np.zeros((9, 8), bool))


def test_the_boundary_by_hand():
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    want = [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(boundary(mask), np.array(want, bool))


def test_statistics_by_hand():
    """Eight frames: quarters end at frames 0, 2, 4, 5 and 7 (rounded), and share them."""
    values = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2])
    mean, recall, decay = statistics(values)
    assert mean == pytest.approx(4.9 / 8) and recall == 5 / 8
    assert decay == pytest.approx(np.mean([1.0, 0.9, 0.8]) - np.mean([0.4, 0.3, 0.2]))


def write_davis(root, frames=8, palette=True, name="squares"):
    """Two textured squares that move over a plain ground."""
    rng = np.random.default_rng(3)
    textures = rng.integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / name).mkdir(parents=True)
    for frame in range(frames):
        image, mask = np.full((64, 96, 3), 90, np.uint8), np.zeros((64, 96), np.uint8)
        for n, (row, column) in enumerate(((4, 4 + 6 * frame), (36, 64 - 6 * frame)), start=1):
            image[row : row + 24, column : column + 24] = textures[n - 1]
            mask[row : row + 24, column : column + 24] = n
        Image.fromarray(image).save(root / f"JPEGImages/480p/{name}/{frame:05}.jpg", quality=95)
        picture = Image.fromarray(mask if palette else np.where(mask, 255, 0).astype(np.uint8))
        if palette:
            picture = picture.convert("P")
            picture.putdata(mask.reshape(-1))
        picture.save(root / f"Annotations/480p/{name}/{frame:05}.png")
    return davis.Config(path=str(root), size=64, seeds=1, frames="repeated")


def made(frames=4, **changes):
    """A model of random weights, of clips of 16 px."""
    model = {
        "variant": "vit_micro",
        "patch_size": 4,
        "dtype": "float32",
        "predictor": {"embed_dim": 32, "num_heads": 2},
    }
    data = {"path": "v", "num_frames": frames, "resolution": 16}
    return Encoder.random(from_config_dict({"steps": 1, "batch_size": 8, "data": data, "model": model | changes}))


@pytest.fixture(scope="module")
def encoder():
    return made()


class Collapsed:
    def __init__(self, run):
        self.run = run

    def __call__(self, video):
        return controls.constant_features(video, 4, 2)


@pytest.mark.parametrize("method", METHODS)
def test_pixels_follow_textured_squares_and_constant_features_do_not(tmp_path, encoder, method):
    cfg = dataclasses.replace(write_davis(tmp_path), method=method)
    pixels = functools.partial(pixel_features, patch=4, tubelet=2)
    pixels.run = encoder.run
    named = {controls.TRAINED: [encoder], controls.PIXELS: [pixels], "collapsed": [Collapsed(encoder.run)]}
    seen = []
    rows = davis.run(named, cfg, seen.append)
    assert rows == seen
    value = {(row["encoder"], row["metric"].split(",")[0]): row["value"] for row in rows}
    assert {row["metric"].split(", ")[1] for row in rows} == {METHODS[method].title}
    assert value[controls.PIXELS, "J mean"] > value[vos.COPY, "J mean"] + 30
    assert value[controls.PIXELS, "F mean"] > value[vos.COPY, "F mean"] + 20
    for metric in ("J&F", "J mean", "F mean"):
        assert value["collapsed", metric] < value[vos.COPY, metric]
    assert {row["count"] for row in rows} == {2} and {row["benchmark"] for row in rows} == {"davis2017"}


def test_copies_of_the_first_mask_by_hand(tmp_path, encoder):
    """Squares of 24 pixels that have moved by 6f overlap by 24 - 6f of 24 + 6f columns, from frame 4 on not at all."""
    rows = davis.run({controls.TRAINED: [encoder]}, write_davis(tmp_path))
    (mean,) = (row for row in rows if (row["encoder"], row["metric"]) == (vos.COPY, "J mean, DINO protocol"))
    assert mean["value"] == pytest.approx(100 * np.mean([18 / 30, 12 / 36, 6 / 42, 0, 0, 0])) and mean["low"] is None


def test_single_frames_and_windows_are_told_apart(tmp_path, encoder):
    """Both ways in one run, each the same as alone; the masks that are copied are there once."""
    cfg = write_davis(tmp_path)
    both = davis.run({controls.TRAINED: [encoder]}, dataclasses.replace(cfg, frames="both"))
    assert len({(row["encoder"], row["metric"]) for row in both}) == len(both) == 21
    names = {row["metric"] for row in both if row["metric"].startswith("J&F")}
    assert names == {"J&F, DINO protocol", "J&F, DINO protocol, windows"}
    for way in ("repeated", "windows"):
        alone = davis.run({controls.TRAINED: [encoder]}, dataclasses.replace(cfg, frames=way))
        assert len(alone) == 14 and all(row in both for row in alone)


def test_an_encoder_of_single_images(tmp_path):
    """I-JEPA: a clip of one frame, a tubelet of one, and so one way to see a frame."""
    model = {"patch_size": 8, "tubelet_size": 1, "variant": "vit_micro", "dtype": "float32", "position": "sincos2d"}
    raw = {"steps": 1, "batch_size": 8, "objective": "ijepa", "data": {"path": "v", "num_frames": 1, "resolution": 32}}
    raw["model"] = model | {"predictor": {"embed_dim": 32, "num_heads": 2}}
    raw["masks"] = {"groups": [{"kind": "separate", "num_blocks": 2, "spatial_scale": [0.3, 0.3]}]}
    image = Encoder.random(from_config_dict(raw))
    for interpolate in (False, True):
        cfg = dataclasses.replace(write_davis(tmp_path / str(interpolate)), frames="both", interpolate=interpolate)
        rows = davis.run({controls.TRAINED: [image]}, cfg)
        assert {row["metric"] for row in rows if row["metric"][:3] == "J&F"} == {"J&F, DINO protocol"}
        assert len(rows) == 14 and "frames single" in rows[0]["note"]
        assert ("positions interpolated" in rows[0]["note"]) == interpolate


CLIP = Clip(frames=4, size=(16, 16), tubelet=2, patch=4)


@pytest.mark.parametrize("way", vos.FRAMES["both"])
@pytest.mark.parametrize("count", [3, 4, 7])
def test_every_frame_has_its_features(way, count):
    """An encoder that averages a tubelet: repeated frames give back each frame; windows give the tubelets' line."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    mean = lambda clips: clips.reshape(len(clips), -1, 2, 4, 4, 3).astype(np.float32).mean(2)
    got = vos.frame_features(mean, video, CLIP, way, 2)
    assert got.shape == (count, 4, 4, 3)
    if way == "repeated":
        np.testing.assert_allclose(got, video)
    else:
        still = np.repeat(video[:1], count, axis=0)
        np.testing.assert_allclose(vos.frame_features(mean, still, CLIP, way, 1), still, atol=1e-3)


def test_sizes_and_windows():
    cfg = davis.Config()
    size = lambda frame, patch, **changes: vos.input_size(frame, patch, dataclasses.replace(cfg, **changes), "davis")
    assert size((480, 854), 16) == (480, 832) and size((854, 480), 16) == (832, 480)
    assert size((480, 854), 16, method="crw") == (480, 880) and size((480, 854), 16, method="vjepa21") == (480, 832)
    assert window_starts(8, 4, 2) == [0, 2, 4] and window_starts(3, 4, 2) == [0]
    with pytest.raises(ConfigError, match=r"davis\.size=480 must be a multiple of the model's patch size 14"):
        size((480, 854), 14)
    with pytest.raises(ConfigError, match=r"davis\.size=32 is too small: .* a multiple of 64 pixels"):
        size((480, 854), 16, size=32)


@pytest.mark.parametrize("position", ["rope_tiled", "rope_interleaved", "sincos", "sincos2d"])
def test_positions_are_interpolated_on_demand(position):
    """In every kind of position; one compiled model serves all seeds, and other sizes are where they were."""
    encoder, video = made(position=position), np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3), np.uint8)
    pixels = functools.partial(pixel_features, patch=4, tubelet=2)
    named = {"trained": [encoder], "random init": [encoder.with_params(encoder.params)] * 2, "raw pixels": [pixels]}
    sized = vos.at_size(named, davis.Config(interpolate=True), "davis")
    model = sized["trained"][0]
    assert model.run.model.rope_grid == 4 and sized["raw pixels"] == [pixels]
    assert len({id(each._features) for each in (*sized["trained"], *sized["random init"])}) == 1
    assert vos.at_size(named, davis.Config(), "davis") == named
    assert np.abs(np.asarray(model(video)) - np.asarray(encoder(video))).max() > 1e-4
    np.testing.assert_allclose(model(video[:, :, :16, :16]), encoder(video[:, :, :16, :16]), atol=1e-5)


def test_positions_of_a_model_of_oblongs_are_not_interpolated(tmp_path):
    data = {"path": "v", "num_frames": 4, "resolution": [16, 32]}
    model = {"variant": "vit_micro", "patch_size": 4, "predictor": {"embed_dim": 32, "num_heads": 2}}
    oblong = Encoder.random(from_config_dict({"steps": 1, "batch_size": 8, "data": data, "model": model}))
    with pytest.raises(ConfigError, match=r"davis\.interpolate needs a model trained on squares"):
        davis.run({controls.TRAINED: [oblong]}, dataclasses.replace(write_davis(tmp_path), interpolate=True))


def test_black_and_white_masks_are_a_benchmark_of_their_own(tmp_path, encoder, repo, monkeypatch):
    """DAVIS 2016: one object, never in a column of DAVIS 2017."""
    monkeypatch.chdir(repo)
    columns = tables.load_table("T2")[1].columns
    for palette, name in ((False, "davis2016"), (True, "davis2017")):
        cfg = write_davis(tmp_path / name, palette=palette)
        rows = davis.run({controls.TRAINED: [encoder]}, cfg)
        assert {(row["benchmark"], row["count"]) for row in rows} == {(name, 2 if palette else 1)}
        result = lambda row: tables.Result("runs/a", "V-JEPA 2", "ViT-L", row, "scores.json")
        assert any(column.holds(result(row)) for column in columns for row in rows) == palette
    video = davis.read_sequence(tmp_path / "davis2016", "squares")
    assert set(np.unique(video.annotations[3])) == {0, 1} and video.size == (64, 96) and list(video.scored) == [1]
    write_davis(tmp_path / "davis2017", palette=False, name="two")
    with pytest.raises(ConfigError, match=r"two has black and white masks \(DAVIS 2016\), squares masks of object num"):
        davis.run({controls.TRAINED: [encoder]}, davis.Config(path=str(tmp_path / "davis2017")))


def test_void_pixels_are_background(tmp_path):
    mask = Image.fromarray(np.array([[0, 1, 255], [2, 255, 255]], np.uint8))
    mask.putpalette([0] * 768)
    mask.save(tmp_path / "mask.png")
    assert vos.has_palette(tmp_path / "mask.png")
    np.testing.assert_array_equal(vos.read_mask(tmp_path / "mask.png"), [[0, 1, 0], [2, 0, 0]])


@pytest.mark.parametrize("palette", [False, True])
def test_a_split_is_one_of_the_lists(tmp_path, palette):
    cfg = write_davis(tmp_path, palette=palette)
    write_davis(tmp_path, palette=palette, name="others")
    assert davis.sequence_names(cfg) == ["others", "squares"]  # no lists
    folder = tmp_path / "ImageSets" / ("2017" if palette else "480p")
    folder.mkdir(parents=True)
    lines = ["squares"] if palette else [f"/JPEGImages/480p/squares/0000{i}.jpg /Annotations/480p/..." for i in (0, 1)]
    (folder / "val.txt").write_text("\n".join(lines) + "\n")
    assert davis.sequence_names(cfg) == ["squares"]
    with pytest.raises(
        ConfigError, match=r"split='vale' is no list of .*: there is val; did you mean 'val'\?; expected"
    ):
        davis.sequence_names(dataclasses.replace(cfg, split="vale"))
    assert davis.sequence_names(dataclasses.replace(cfg, split="vale", sequences=("others",))) == ["others"]


def test_a_search_chooses_settings_by_other_sequences(tmp_path, encoder, monkeypatch):
    """Objects move: who looks at the same place alone loses them."""
    cfg = dataclasses.replace(write_davis(tmp_path), method="vjepa21", search=True)
    write_davis(tmp_path, name="others")
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    for split, names in (("val", "squares"), ("train", "squares\nothers")):
        (tmp_path / f"ImageSets/2017/{split}.txt").write_text(names)
    assert davis.tuning_names(cfg, ["squares"]) == ["others"]
    pixels = functools.partial(pixel_features, patch=4, tubelet=2)
    pixels.run = encoder.run
    far = dataclasses.replace(METHODS["vjepa21"], title="searched")
    near = dataclasses.replace(far, radius=1)
    for tried in ((near, far), (far, near)):
        monkeypatch.setattr(vos, "SEARCH", tried)
        found = {row["metric"]: row for row in davis.run({controls.TRAINED: [pixels]}, cfg) if row["note"]}
        assert found["J&F, searched"]["note"].endswith("context 15, circle 12, top 5, T 0.2, chosen on other videos")
        fixed = davis.run({controls.TRAINED: [pixels]}, dataclasses.replace(cfg, search=False))
        assert found["J&F, searched"]["value"] == fixed[0]["value"] and fixed[0]["metric"] == "J&F, as V-JEPA 2.1"
    for wrong, text in (
        ({"method": "dino"}, r"davis\.search is of davis\.method=vjepa21: dino has settings of its own"),
        ({"tune_videos": 0}, r"davis\.tune_videos must be at least 1"),
        ({"tune_split": "trai"}, r"davis\.tune_split='trai' is no list .* did you mean 'train'"),
        ({"sequences": ("squares", "others")}, r"davis\.search needs videos to choose settings by besides those"),
    ):
        with pytest.raises(ConfigError, match=text):
            davis.run({controls.TRAINED: [pixels]}, dataclasses.replace(cfg, **wrong))


def test_wrong_layouts_show_the_one_expected(tmp_path, encoder):
    run = lambda cfg: davis.run({controls.TRAINED: [encoder]}, cfg)
    with pytest.raises(ConfigError, match=r"is no folder of DAVIS: expected .*/JPEGImages/480p/SEQUENCE/00000.jpg"):
        run(davis.Config(path=str(tmp_path)))
    cfg = write_davis(tmp_path)
    for wrong, text in (
        ({"method": "other"}, "davis.method='other' is not one of dino, crw, vjepa21"),
        ({"frames": "single"}, "is not one of repeated, windows, both"),
        ({"sequences": ("dog",)}, "sequence dog has 0 frames and 0 masks"),
        ({"batch_size": 0}, "must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=text):
            run(dataclasses.replace(cfg, **wrong))
    masks = tmp_path / "Annotations/480p/squares"
    (masks / "00003.png").unlink()
    with pytest.raises(ConfigError, match="8 frames and 7 masks, it needs a mask for each"):
        run(cfg)
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(masks / "00000.png")
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(masks / "00003.png")
    with pytest.raises(ConfigError, match="first mask of squares is empty"):
        run(cfg)
    Image.fromarray(np.zeros((64, 90), np.uint8)).save(masks / "00003.png")
    with pytest.raises(ConfigError, match=r"masks of squares have shapes .*\(64, 90\).*, its frames \(64, 96\)"):
        run(cfg)
    (tmp_path / "empty/JPEGImages/480p").mkdir(parents=True)
    (tmp_path / "empty/Annotations/480p").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no sequence: expected"):
        run(davis.Config(path=str(tmp_path / "empty")))


def test_real_sequences(shared_data, encoder):
    """At this size raw pixels lose an object that a copy of its first mask still overlaps."""
    if not (shared_data / "davis").is_dir():
        pytest.skip("no DAVIS sequences beside the repository")
    pixels = functools.partial(pixel_features, patch=4, tubelet=2)
    cfg = davis.Config(path=str(shared_data / "davis"), sequences=("car-shadow",), size=64, frames="repeated")
    rows = davis.run({controls.TRAINED: [encoder], controls.PIXELS: [pixels]}, cfg)
    value = {(row["encoder"], row["metric"].split(",")[0]): row["value"] for row in rows}
    assert value[vos.COPY, "J&F"] == pytest.approx(33.0, abs=0.1) and {row["benchmark"] for row in rows} == {
        "davis2016"
    }
    assert 0 < value[controls.PIXELS, "J&F"] < 100 and {row["count"] for row in rows} == {1}

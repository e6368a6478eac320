"""Dense prediction: windows and their maps, what heads read, folders and scenes end to end, and collapsed features."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, dense, dense_data, suite
from vjepa_jax.evals.dense_data import View
from vjepa_jax.evals.dense_reader import Reader, predictions
from vjepa_jax.evals.dense_tasks import Segmentation
from vjepa_jax.evals.features import pixel_features
from vjepa_jax.evals.worlds import Clip
from vjepa_jax.models.variants import encoder_flops

from .models import Collapsed, Static

CLIP = Clip(frames=4, size=(32, 32), tubelet=2, patch=8)
QUICK = {
    "steps": 120,
    "batch_size": 8,
    "lrs": (1e-1, 1e-2),
    "weight_decays": (1e-4,),
    "warmup_steps": 5,
    "norm": "batch",
}
SEGMENT = dense.SegmentationConfig(data="world", worlds=(64, 32), **QUICK)
DEPTH = dense.DepthConfig(data="world", worlds=(64, 32), bins=16, **QUICK)


@pytest.fixture(scope="module")
def run():
    model = {
        "variant": "vit_micro",
        "patch_size": 8,
        "dtype": "float32",
        "predictor": {"embed_dim": 32, "num_heads": 2},
    }
    return from_config_dict(
        {"steps": 1, "batch_size": 8, "data": {"path": "v", "num_frames": 4, "resolution": 32}, "model": model}
    )


# ----------------------------------------------------------------------------------------------------------- windows


def test_resizing_as_a_matrix_is_bilinear_resizing():
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    for to in (7, 14, 23, 5):
        expected = jax.image.resize(x, (to, 3), "bilinear", antialias=False)
        np.testing.assert_allclose(dense_data.resize_matrix(to, 7) @ x, expected, atol=1e-5)
    np.testing.assert_allclose(dense_data.resize_matrix(4, 2)[:, 1], [0, 0.25, 0.75, 1])
    np.testing.assert_array_equal(dense_data.resize_matrix(3, 1), np.ones((3, 1)))


def test_windows_cover_a_length():
    assert dense_data.window_starts(512, 512, 341) == (0,)
    assert dense_data.window_starts(683, 512, 341) == (0, 171)
    assert dense_data.window_starts(1024, 512, 341) == (0, 341, 512)


def test_windows_are_averaged_where_they_meet_and_stretched_over_the_labels():
    """Against the steps one after the other: stretch, paste, divide by the cover, stretch."""
    rng = np.random.default_rng(0)
    view = View((24, 40), (24, 16), (0,), (0, 12, 24), mirrored=True)
    maps = rng.normal(size=(2, 6, 3, 2, 4)).astype(np.float32)
    resize = lambda x, size: np.asarray(jax.image.resize(x, (*size, x.shape[-1]), "bilinear", antialias=False))
    expected = []
    for own in maps:
        total, cover = np.zeros((24, 40, 4)), np.zeros((24, 40, 1))
        for k, left in enumerate(view.lefts):
            both = (resize(own[2 * k], (24, 16)) + resize(own[2 * k + 1][:, ::-1], (24, 16))) / 2
            total[:, left : left + 16] += both
            cover[:, left : left + 16] += 1
        expected.append(resize(total / cover, (50, 61)).argmax(-1))
    found = predictions(maps, view, (50, 61), Segmentation(4, False).final)
    assert found.shape == (2, 50, 61) and (found == np.stack(expected)).mean() > 0.999
    wide = predictions(maps, view, (50, 150), Segmentation(4, False).final)  # beyond 128 it is padded and cut
    assert wide.shape == (2, 50, 150) and abs((wide == 0).mean() - (found == 0).mean()) < 0.02


def test_windows_are_cut_by_rows_each_followed_by_its_mirror_image():
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    windows = View((6, 8), (4, 4), (0, 2), (0, 4), mirrored=True).windows(image)
    assert windows.shape == (8, 4, 4, 3)
    np.testing.assert_array_equal(windows[2], image[:4, 4:])
    np.testing.assert_array_equal(windows[5], image[2:, :4][:, ::-1])
    cfg = dense.SegmentationConfig(size=(32, 32), shorter=32, stride=20)
    view = dense_data.view_of((60, 100), cfg)
    assert (
        view == View((32, 53), (32, 32), (0,), (0, 20, 21))
        and view.windows(np.zeros((60, 100, 3), np.uint8)).shape[0] == 3
    )


def test_neighbours_that_share_a_loss_are_held_out_together():
    keeps_out = np.arange(23) % 4 == 0
    order = dense_data.order_of(keeps_out, 2, 100, 0)
    assert len(order) == 100 and np.bincount(order[:22], minlength=23).max() == 1
    assert (keeps_out[order].reshape(-1, 2).sum(1) != 1).all()
    assert (order != dense_data.order_of(keeps_out, 2, 100, 1)).any()


def test_pictures_of_a_scene_are_one_group():
    pairs = [("a/kitchen/1.jpg", ""), ("a/attic/1.jpg", ""), ("a/kitchen/2.jpg", "")]
    assert dense_data.scenes(pairs).tolist() == [1, 0, 1]
    assert dense_data.scenes(pairs[::2]).tolist() == [0, 1]  # one folder: each its own


def test_a_bootstrap_draws_scenes():
    """Two scenes of pictures that are alike within: only all right, half right and all wrong can be drawn."""
    data = dense_data.world_data((16, 16), dataclasses.replace(SEGMENT, worlds=(4, 10)), False)
    kept = np.zeros((10, 3, 6), np.int64)
    kept[:5, 0, 0], kept[:, 1, 0], kept[:, 2, 0] = 10, 10, 10
    rows = lambda groups: list(
        dense._rows(dataclasses.replace(data, test_groups=groups), "x", [kept], "", (0.0, 0.0), "")
    )
    accuracy = rows(np.repeat([0, 1], 5))[1]
    assert accuracy["value"] == 50.0 and (accuracy["low"], accuracy["high"]) == (0.0, 100.0)
    alone = rows(np.arange(10))[1]
    assert 0.0 < alone["low"] < 50.0 < alone["high"] < 100.0


# ---------------------------------------------------------------------------------------------------------- features


def test_a_picture_fills_a_tubelet_a_clip_or_is_an_image(run):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3)).astype(np.uint8)
    encoder = Encoder.random(run, 0)
    repeated = lambda frames: np.repeat(images[:, None], frames, axis=1)
    plain = dataclasses.replace(SEGMENT, norm="none", encode_batch=2)
    found = Reader(encoder, plain, CLIP)(images)
    assert found.shape == (3, 4, 6, 96)
    np.testing.assert_allclose(found, encoder(repeated(2))[:, 0], atol=1e-5)
    found = Reader(encoder, dataclasses.replace(plain, frames="clip"), CLIP)(images)
    np.testing.assert_allclose(found, np.asarray(encoder(repeated(4))).mean(1), atol=1e-5)
    layers = Reader(encoder, dataclasses.replace(plain, layers=(1, 3)), CLIP)(images)
    both = np.asarray(encoder.layers(repeated(2), (1, 3)))[:, :, 0]
    np.testing.assert_allclose(layers, np.concatenate([both[:, 0], both[:, 1]], -1), atol=1e-5)
    model = dataclasses.replace(run.model, image_tokenizer=True)
    shown = []
    watch = lambda clips: shown.append(clips.shape) or jnp.zeros((len(clips), 1, 4, 6, 8))
    watch.run = dataclasses.replace(run, model=model)
    assert Reader(watch, plain, CLIP)(images).shape == (3, 4, 6, 8) and shown[0] == (2, 1, 32, 48, 3)


def test_batch_norm_is_by_the_batch_in_training_and_by_running_moments_else():
    rng = np.random.default_rng(0)
    means = rng.normal(3, 2, (200, 1, 1, 1, 5))
    batches = iter([(means[i // 4] + rng.normal(size=(4, 1, 2, 2, 5)) * 2).astype(np.float32) for i in range(800)])
    reader = Reader(lambda clips: next(batches), dataclasses.replace(SEGMENT, encode_batch=4), CLIP)
    images = np.zeros((4, 16, 16, 3), np.uint8)
    x = np.asarray(reader(images, training=True))
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-3)
    first_mean = reader.moments[0]
    for _ in range(300):
        reader(images, training=True)
    before = reader.moments
    assert abs(first_mean - before[0]).max() > 0.1 and before[0].shape == (5,)
    reader(images)
    assert reader.moments is before  # what is scored moves nothing
    constant = Reader(lambda clips: np.full((4, 1, 2, 2, 5), 7.0, np.float32), SEGMENT, CLIP)
    constant.cfg = dataclasses.replace(SEGMENT, encode_batch=4)
    for _ in range(5):
        assert not np.asarray(constant(images, training=True)).any()
    # after n steps the running mean is 1 - .9^n of the mean
    np.testing.assert_allclose(constant.moments[0], 7 * (1 - 0.9**5), rtol=1e-5)


# -------------------------------------------------------------------------------------------------------- end to end


class Knows:
    """Tells the label at every token of scenes that it has seen before, by what they look like."""

    def __init__(self, run, size, depth):
        self.run = run
        cfg = dataclasses.replace(DEPTH if depth else SEGMENT, hflip=False)
        data = dense_data.world_data(size, cfg, depth)
        self.labels = {p["image"].tobytes(): p["label"] for part in (data.rows(range(64)), data.test()) for p in part}
        self.depth = depth

    def __call__(self, video):
        label = np.stack([self.labels[clip[0].tobytes()] for clip in np.asarray(video)])
        tokens = label.reshape(len(label), label.shape[1] // 8, 8, label.shape[2] // 8, 8)
        if self.depth:
            found = tokens.max((2, 4))[..., None] * np.ones(8)
        else:
            found = np.stack([(tokens == c).mean((2, 4)) for c in range(8)], -1)
        return found[:, None].astype(np.float32)


def values(rows, encoder):
    return {row["metric"]: row for row in rows if row["encoder"] == encoder}


def test_scenes_are_segmented_by_features_that_know_and_not_by_constant_ones(run):
    cfg = dataclasses.replace(SEGMENT, hflip=False)
    seen = []
    named = {controls.TRAINED: [Knows(run, (32, 32), False)], "collapsed": [Collapsed(run)]}
    rows = dense.run(named, cfg, seen.append)
    assert rows == seen and len(rows) == 2 * 4 + 2 and {row["benchmark"] for row in rows} == {"world, segmentation"}
    known, collapsed, guess = (values(rows, name) for name in (controls.TRAINED, "collapsed", "majority class"))
    best, chosen = (f"mIoU, {how}" for how in (dense.BEST, dense.CHOSEN))
    assert known[best]["value"] > 70.0 and known[chosen]["value"] > 70.0
    assert known[f"pixel accuracy, {dense.BEST}"]["value"] > 80.0
    assert known[best]["low"] <= known[best]["value"] <= known[best]["high"] and known[best]["count"] == 32
    # constant features name one class everywhere: at most its share of the pixels, in one class of six
    assert collapsed[best]["value"] < 7.0 and known[best]["chance"] == guess["mIoU"]["value"] < 7.0
    assert collapsed[f"pixel accuracy, {dense.BEST}"]["value"] < 40.0


def test_depth_of_scenes_is_told_by_features_that_know_and_not_by_constant_ones(run):
    cfg = dataclasses.replace(DEPTH, hflip=False, world_size=64)
    named = {controls.TRAINED: [Knows(run, (64, 64), True)], "collapsed": [Collapsed(run)]}
    rows = dense.run(named, cfg)
    known, collapsed, guess = (values(rows, name) for name in (controls.TRAINED, "collapsed", "mean depth"))
    rmse = f"RMSE, {dense.BEST}"
    assert len(rows) == 2 * 6 + 3 and not known[rmse]["higher_is_better"]
    assert known[rmse]["value"] < 0.75 * guess["RMSE"]["value"]
    assert known[f"delta1, {dense.BEST}"]["value"] > collapsed[f"delta1, {dense.BEST}"]["value"] + 10
    assert (
        collapsed[rmse]["value"] > 0.9 * guess["RMSE"]["value"] and collapsed[rmse]["chance"] == guess["RMSE"]["value"]
    )


def test_seeds_vary_the_encoder_and_give_the_interval(run):
    cfg = dataclasses.replace(SEGMENT, steps=4, seeds=2, worlds=(16, 8), world_size=16)
    named = {controls.TRAINED: [Collapsed(run)], controls.RANDOM: [Encoder.random(run, s) for s in range(2)]}
    rows = dense.run(named, cfg)
    row = values(rows, controls.RANDOM)[f"mIoU, {dense.BEST}"]
    assert row["seeds"] == 2 and len(row["values"]) == 2 and row["low"] < row["value"] < row["high"]


def test_positions_go_on_or_are_interpolated(run):
    """Of an encoder that mixes its tokens, at twice its size; pixels have no positions."""
    encoder = Encoder.random(run, 0)
    encoder = encoder.with_params(jax.tree.map(lambda leaf: 8 * leaf, encoder.params))
    pixels = functools.partial(pixel_features, patch=8, tubelet=2)
    cfg = dataclasses.replace(SEGMENT, steps=8, worlds=(16, 8), world_size=64)
    found = [
        dense.run({controls.TRAINED: [encoder], controls.PIXELS: [pixels]}, dataclasses.replace(cfg, interpolate=on))
        for on in (False, True)
    ]
    accuracy = [
        values(rows, name)[f"pixel accuracy, {dense.BEST}"]
        for name in (controls.TRAINED, controls.PIXELS)
        for rows in found
    ]
    assert accuracy[0]["value"] != accuracy[1]["value"] and "positions interpolated" in accuracy[1]["note"]
    assert accuracy[2]["value"] == accuracy[3]["value"]


@pytest.fixture
def ade(tmp_path):
    """Pictures of two halves, one of each of two colours of four; the annotation says which, and 0 between them."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (4, 3))
    for part, count in (("training", 24), ("validation", 8)):
        for i in range(count):
            left, right = rng.integers(4, size=2)
            label = np.repeat([left + 1, 0, right + 1], [28, 8, 28])[None].repeat(40, 0).astype(np.uint8)
            image = np.concatenate([np.full((40, 32, 3), colours[k]) for k in (left, right)], 1) + rng.normal(
                0, 4, (40, 64, 3)
            )
            for folder, array, kind in (("images", image, "jpg"), ("annotations", label, "png")):
                path = tmp_path / folder / part / f"{i:02d}.{kind}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.clip(array, 0, 255).astype(np.uint8)).save(path, quality=95)
    return tmp_path


def test_a_folder_of_classes_end_to_end(run, ade):
    cfg = dense.SegmentationConfig(
        path=str(ade), classes=4, size=(32, 32), shorter=32, stride=21, scale=(0.9, 1.2), encode_batch=8, **QUICK
    )
    rows = dense.run({controls.TRAINED: [Static(run)], "collapsed": [Collapsed(run)]}, cfg)
    pixels, collapsed = (values(rows, name)[f"mIoU, {dense.BEST}"] for name in (controls.TRAINED, "collapsed"))
    assert pixels["benchmark"] == "ade20k" and pixels["unit"] == "%" and pixels["count"] == 8
    assert pixels["value"] > 90.0 and collapsed["value"] < 20.0


@pytest.fixture
def nyu(tmp_path):
    """Pictures whose brightness says how far it is: 1 to 5 metres, in two parts of a picture."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        lines = []
        for i in range(count):
            metres = np.kron(rng.uniform(1, 5, (1, 2)), np.ones((32, 24)))
            image = np.repeat(250 - 45 * metres[..., None], 3, -1).astype(np.uint8)
            depth = (1000 * metres).astype(np.uint16)
            depth[:4] = 0
            names = [f"{part}{i}_{kind}.png" for kind in ("rgb", "depth")]
            for name, array in zip(names, (image, depth), strict=True):
                Image.fromarray(array).save(tmp_path / name)
            lines.append(" ".join(names))
        (tmp_path / f"nyu_{part}.txt").write_text("\n".join(lines))
    return tmp_path


def test_a_folder_of_depth_end_to_end(run, nyu):
    cfg = dense.DepthConfig(
        path=str(nyu), size=(24, 32), whole=(32, 48), bins=32, eigen_crop=False, encode_batch=8, **QUICK
    )
    rows = dense.run({controls.TRAINED: [Static(run)], "collapsed": [Collapsed(run)]}, cfg)
    pixels, collapsed, guess = (values(rows, name) for name in (controls.TRAINED, "collapsed", "mean depth"))
    rmse = f"RMSE, {dense.BEST}"
    assert pixels[rmse]["benchmark"] == "nyuv2" and pixels[rmse]["unit"] == "m"
    assert pixels[rmse]["value"] < 0.5 * guess["RMSE"]["value"]
    assert pixels[f"abs-rel, {dense.BEST}"]["value"] < 0.5 * guess["abs-rel"]["value"]
    assert collapsed[rmse]["value"] > 0.9 * guess["RMSE"]["value"]


# ------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("cfg", "changes", "message"),
    [
        (SEGMENT, {"data": "nyuv2"}, "segmentation.data='nyuv2' is not one of ade20k, world"),
        (DEPTH, {"data": "ade20k"}, "depth.data='ade20k' is not one of nyuv2, world"),
        (SEGMENT, {"data": "ade20k"}, "segmentation.path is empty: give a folder with PATH/images/training/NAME.jpg"),
        (DEPTH, {"data": "nyuv2"}, "depth.path is empty: give a folder with PATH/nyu_train.txt with lines"),
        (SEGMENT, {"frames": "window"}, "segmentation.frames='window' is not one of tubelet, clip"),
        (SEGMENT, {"norm": "layer"}, "segmentation.norm='layer' is not one of none, batch"),
        (DEPTH, {"steps": 0}, "depth.steps=0 must be at least 1"),
        (SEGMENT, {"together": 3}, "segmentation.batch_size=8 must be a multiple of together=3"),
        (SEGMENT, {"micro_batch": 3}, "of micro_batch=3"),
        (SEGMENT, {"held_out": 1.0}, "held_out must lie between 0 and 1"),
        (SEGMENT, {"world_size": 36}, "segmentation.world_size=36 must be a multiple of the model's patch 8"),
        (SEGMENT, {"worlds": (64, 1)}, "must hold at least two scenes each"),
        (SEGMENT, {"worlds": (3, 8)}, "segmentation has 3 training pictures, it needs 4 or more"),
        (SEGMENT, {"data": "ade20k", "path": "p", "size": (30, 32)}, r"segmentation.size=\(30, 32\) must be"),
        (SEGMENT, {"data": "ade20k", "path": "p", "shorter": 256}, "segmentation.shorter=256 is less than a window"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_run_are_one_line(run, cfg, changes, message):
    with pytest.raises(ConfigError, match=message):
        dense.run({controls.TRAINED: [Collapsed(run)]}, dataclasses.replace(cfg, **changes))


def test_a_folder_that_is_not_there_is_one_line(run, tmp_path):
    for cfg, expected in (
        (dense.SegmentationConfig(path=str(tmp_path)), "images/training/NAME.jpg with"),
        (dense.DepthConfig(path=str(tmp_path)), "nyu_train.txt is no file: expected"),
    ):
        with pytest.raises(DataError, match=expected):
            dense.run({controls.TRAINED: [Collapsed(run)]}, cfg)


def test_the_published_settings():
    segmentation, depth = (suite.CONFIGS[name]() for name in ("segmentation", "depth"))
    assert len(segmentation.lrs) * len(segmentation.weight_decays) == 12 and segmentation.norm == "none"
    assert len(depth.lrs) * len(depth.weight_decays) == 14 and depth.norm == "batch" and depth.bins == 256
    assert segmentation.name == "ade20k" and depth.name == "nyuv2"


def test_flops_by_hand(run):
    cfg = dataclasses.replace(SEGMENT, data="ade20k", size=(32, 32), steps=10, held_out=0.5)
    seen = 80 + 2 * (0.5 * 10 + 4)  # cuts, and two windows of 5 held-out and 4 scored pictures
    heads = 4 * (3 * 80 + 2 * 9) * 16 * 2 * 96 * 150
    assert dense.flops(cfg, run.model, 10, 4) == pytest.approx(seen * encoder_flops(run.model, 16) + heads)


def test_raw_pixels_are_seen_as_a_tubelet():
    pixels = functools.partial(pixel_features, patch=8, tubelet=2)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    found = Reader(pixels, dataclasses.replace(SEGMENT, norm="none", encode_batch=2), CLIP)(images)
    assert found.shape == (2, 2, 2, 2 * 64 * 3)

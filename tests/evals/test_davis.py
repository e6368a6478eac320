"""DAVIS: its metrics against the official ones, label propagation against plain loops, and the protocol end to end."""

import dataclasses
import functools
import pathlib

import numpy as np
import pytest
from PIL import Image

from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, davis
from vjepa_jax.evals.davis_metrics import boundary, boundary_accuracy, region_similarity, statistics
from vjepa_jax.evals.features import pixel_features
from vjepa_jax.evals.propagation import METHODS, propagate, to_masks
from vjepa_jax.evals.windows import window_starts

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


def looped(features, grid, labels, method):
    """Label propagation token by token."""
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    tokens = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    out = [labels.astype(np.float64)]
    for frame in range(1, len(features)):
        earlier = [i for i in range(frame - method.context, frame) if i > 0]
        context = [0] + ([0] * (method.context - len(earlier)) if method.primed else []) + earlier
        carried = np.zeros_like(out[0])
        for n, (row, column) in enumerate(tokens):
            found = []
            for slot, other in enumerate(context):
                for m, (r, c) in enumerate(tokens):
                    far = max(abs(r - row), abs(c - column)) > method.radius
                    if not method.square:
                        far = slot > 0 and (r - row) ** 2 + (c - column) ** 2 >= method.radius**2
                    if not far:
                        found.append((float(unit[frame, n] @ unit[other, m]), slot, other, m))
            found = sorted(found, key=lambda f: -f[0])[: method.top]
            weights = np.exp(np.array([f[0] for f in found]) / method.temperature)
            for weight, (_, _, other, m) in zip(weights / weights.sum(), found, strict=True):
                carried[n] += weight * out[other][m]
        out.append(carried)
    return np.stack(out)


@pytest.mark.parametrize("name", METHODS)
def test_propagation_is_that_of_plain_loops(name):
    method = dataclasses.replace(METHODS[name], context=2, radius=2, top=3)
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(5, 12, 6)).astype(np.float32), np.eye(3)[rng.integers(0, 3, 12)]
    got = propagate(features, (3, 4), labels, method)
    np.testing.assert_allclose(got, looped(features, (3, 4), labels, method), atol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-5)
    with pytest.raises(ValueError, match="same tokens"):
        propagate(features, (3, 3), labels, method)


def test_soft_labels_become_the_largest_one():
    soft = np.zeros((1, 4, 2), np.float32)
    soft[0, :, 0] = [0.9, 0.9, 0.9, 0.9]
    soft[0, :, 1] = [0.1, 0.1, 0.1, 0.4]
    plain = to_masks(soft, (2, 2), (2, 2), METHODS["crw"])
    assert not plain.any()
    stretched = to_masks(soft, (2, 2), (2, 2), METHODS["dino"])[0]  # the object's highest counts as whole
    np.testing.assert_array_equal(stretched, [[0, 0], [0, 1]])


def write_davis(root, frames=8, palette=True):
    """Two textured squares that move over a plain ground."""
    rng = np.random.default_rng(3)
    textures = rng.integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p/squares").mkdir(parents=True)
    for frame in range(frames):
        image, mask = np.full((64, 96, 3), 90, np.uint8), np.zeros((64, 96), np.uint8)
        for n, (row, column) in enumerate(((4, 4 + 6 * frame), (36, 64 - 6 * frame)), start=1):
            image[row : row + 24, column : column + 24] = textures[n - 1]
            mask[row : row + 24, column : column + 24] = n
        Image.fromarray(image).save(root / f"JPEGImages/480p/squares/{frame:05}.jpg", quality=95)
        picture = Image.fromarray(mask if palette else np.where(mask, 255, 0).astype(np.uint8))
        if palette:
            picture = picture.convert("P")
            picture.putdata(mask.reshape(-1))
        picture.save(root / f"Annotations/480p/squares/{frame:05}.png")
    return davis.Config(path=str(root), size=64, seeds=1)


@pytest.fixture(scope="module")
def encoder():
    model = {
        "variant": "vit_micro",
        "patch_size": 4,
        "dtype": "float32",
        "predictor": {"embed_dim": 32, "num_heads": 2},
    }
    data = {"path": "v", "num_frames": 4, "resolution": 16}
    return Encoder.random(from_config_dict({"steps": 1, "batch_size": 8, "data": data, "model": model}))


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
    assert {row["metric"].split(", ")[1] for row in rows} == {f"{method.upper()} protocol"}
    assert value[controls.PIXELS, "J mean"] > value[davis.COPY, "J mean"] + 30
    assert value[controls.PIXELS, "F mean"] > value[davis.COPY, "F mean"] + 20
    for metric in ("J&F", "J mean", "F mean"):
        assert value["collapsed", metric] < value[davis.COPY, metric]
    assert {row["count"] for row in rows} == {2}


@pytest.mark.parametrize("frames", davis.FRAMES)
@pytest.mark.parametrize("count", [3, 4, 7])
def test_every_frame_has_its_features(frames, count):
    """An encoder that averages a tubelet: repeated frames give back each frame; windows give the tubelets' line."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    mean = lambda clips: clips.reshape(len(clips), -1, 2, 4, 4, 3).astype(np.float32).mean(2)
    got = davis.frame_features(mean, video, 4, 2, davis.Config(frames=frames, batch_size=2))
    assert got.shape == (count, 4, 4, 3)
    if frames == "repeated":
        np.testing.assert_allclose(got, video)
    else:
        still = np.repeat(video[:1], count, axis=0)
        alike = davis.frame_features(mean, still, 4, 2, davis.Config(frames=frames))
        np.testing.assert_allclose(alike, still, atol=1e-3)


def test_sizes_and_windows():
    cfg = davis.Config()
    assert davis.input_size((480, 854), 16, cfg) == (480, 832)
    assert davis.input_size((854, 480), 16, cfg) == (832, 480)
    assert davis.input_size((480, 854), 16, dataclasses.replace(cfg, method="crw")) == (480, 880)
    assert window_starts(8, 4, 2) == [0, 2, 4] and window_starts(3, 4, 2) == [0]
    with pytest.raises(ConfigError, match="multiple of the model's patch size 14"):
        davis.input_size((480, 854), 14, cfg)


def test_positions_are_interpolated_on_demand(encoder):
    video = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3)).astype(np.uint8)
    model = davis._at_size(encoder, davis.Config(interpolate=True))
    assert model.run.model.rope_grid == 4 and davis._at_size(encoder, davis.Config()) is encoder
    assert np.abs(np.asarray(model(video)) - np.asarray(encoder(video))).max() > 1e-4
    np.testing.assert_allclose(model(video[:, :, :16, :16]), encoder(video[:, :, :16, :16]), atol=1e-5)


def test_black_and_white_masks_are_one_object(tmp_path):
    write_davis(tmp_path, palette=False)
    sequence = davis.read_sequence(tmp_path, "squares")
    assert set(np.unique(sequence.masks)) == {0, 1} and sequence.frames.shape == (8, 64, 96, 3)


def test_wrong_layouts_show_the_one_expected(tmp_path, encoder):
    run = lambda cfg: davis.run({controls.TRAINED: [encoder]}, cfg)
    with pytest.raises(ConfigError, match=r"is no folder of DAVIS: expected .*/JPEGImages/480p/SEQUENCE/00000.jpg"):
        run(davis.Config(path=str(tmp_path)))
    cfg = write_davis(tmp_path)
    for wrong, text in (
        ({"method": "other"}, "is not one of dino, crw"),
        ({"frames": "single"}, "is not one of repeated, windows"),
        ({"sequences": ("dog",)}, "sequence dog has 0 frames and 0 masks"),
        ({"batch_size": 0}, "must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=text):
            run(dataclasses.replace(cfg, **wrong))
    (tmp_path / "Annotations/480p/squares/00003.png").unlink()
    with pytest.raises(ConfigError, match="8 frames and 7 masks, it needs a mask for each"):
        run(cfg)
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(tmp_path / "Annotations/480p/squares/00000.png")
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(tmp_path / "Annotations/480p/squares/00003.png")
    with pytest.raises(ConfigError, match="first mask of squares is empty"):
        run(cfg)


def test_real_sequences(shared_data, encoder):
    """At this size raw pixels lose an object that a copy of its first mask still overlaps."""
    if not (shared_data / "davis").is_dir():
        pytest.skip("no DAVIS sequences beside the repository")
    pixels = functools.partial(pixel_features, patch=4, tubelet=2)
    cfg = davis.Config(path=str(shared_data / "davis"), sequences=("car-shadow",), size=64, seeds=1)
    rows = davis.run({controls.TRAINED: [encoder], controls.PIXELS: [pixels]}, cfg)
    value = {(row["encoder"], row["metric"].split(",")[0]): row["value"] for row in rows}
    assert value[davis.COPY, "J&F"] == pytest.approx(33.0, abs=0.1)
    assert 0 < value[controls.PIXELS, "J&F"] < 100 and {row["count"] for row in rows} == {1}

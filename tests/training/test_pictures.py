"""Pictures: masks on frames, PCA feature maps, encodings and their files."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vjepa_jax.training import pictures

GRID = (2, 2, 4)  # 16 tokens on 4 frames of 32 x 64 pixels, cell 64: shown as they are


@pytest.fixture
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 255, (4, 32, 64, 3), dtype=np.uint8)


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    return picture[row * 35 : row * 35 + 32, column * 67 : column * 67 + 64]


def patch(frame: np.ndarray, h: int, w: int) -> np.ndarray:
    return frame[h * 16 : h * 16 + 16, w * 16 : w * 16 + 16]


def test_mask_picture_shows_context_and_hides_target(video):
    # Token id = t * 8 + h * 4 + w.
    groups = [
        {"context": np.array([0, 9]), "target": np.array([5, 15])},
        {"context": np.array([1, 2]), "target": np.array([8])},
    ]
    picture = pictures.mask_picture(video, groups, GRID, cell=64)
    assert picture.dtype == np.uint8 and picture.shape == (3 * 35 - 3, 2 * 67 - 3, 3)
    for t in range(2):
        np.testing.assert_array_equal(cell(picture, 0, t), video[2 * t])
    for row, group in enumerate(groups, start=1):
        for token in range(16):
            t, h, w = token // 8, token // 4 % 2, token % 4
            real, shown = patch(video[2 * t], h, w), patch(cell(picture, row, t), h, w)
            if token in group["context"]:
                np.testing.assert_array_equal(shown, real)
                continue
            assert (shown != real).any(axis=-1).mean() > 0.9
            red, _, blue = shown.astype(int).reshape(-1, 3).mean(axis=0)
            assert blue - red > 50 if token in group["target"] else abs(blue - red) < 1


def test_mask_picture_ignores_padding(video):
    padded = {
        "context": np.array([3, 0]),
        "target": np.array([4, 0]),
        "context_valid": np.array([True, False]),
        "target_valid": np.array([True, False]),
    }
    exact = {"context": np.array([3]), "target": np.array([4])}
    np.testing.assert_array_equal(
        pictures.mask_picture(video, [padded], GRID), pictures.mask_picture(video, [exact], GRID)
    )


def test_mask_picture_of_a_long_clip_has_limited_columns():
    video = np.zeros((64, 16, 16, 3), np.uint8)
    picture = pictures.mask_picture(video, [], (32, 2, 2), cell=16, max_columns=8)
    assert picture.shape == (16, 8 * 19 - 3, 3)


def test_mask_picture_refuses_wrong_ids(video):
    with pytest.raises(ValueError, match=r"target ids 3\.\.16 leave the 16 tokens"):
        pictures.mask_picture(video, [{"context": np.array([0]), "target": np.array([3, 16])}], GRID)
    with pytest.raises(ValueError, match=r"masks of one clip are expected: 'context' has shape \(2, 3\)"):
        pictures.mask_picture(video, [{"context": np.zeros((2, 3), int), "target": np.array([3])}], GRID)


def test_pca_frames_separate_what_the_features_separate():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, (2, 4, 4))
    features = np.eye(12, dtype=np.float32)[labels] * 5 + rng.normal(0, 0.01, (2, 4, 4, 12))
    frames = pictures.pca_frames(features, video, cell=16)
    assert len(frames) == 4 and frames[0].shape == (16, 35, 3) and frames[0].dtype == np.uint8
    np.testing.assert_array_equal(frames[3][:, :16], video[3])
    maps = np.stack([frames[t][:, 19:][::4, ::4] for t in (0, 2)]).astype(float)
    colours = np.stack([maps[labels == k].mean(axis=0) for k in range(3)])
    spread = max(maps[labels == k].std(axis=0).max() for k in range(3))
    gaps = [np.abs(colours[a] - colours[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > 60 and spread < 25
    np.testing.assert_array_equal(frames[0][:, 19:], frames[1][:, 19:])  # one map a tubelet


def test_pca_colours_do_not_depend_on_the_sign_of_an_axis():
    rng = np.random.default_rng(0)
    features, video = rng.normal(size=(2, 4, 4, 8)), np.zeros((2, 8, 8, 3), np.uint8)
    again = pictures.pca_frames(features + 1e-9, video)
    for a, b in zip(pictures.pca_frames(features, video), again, strict=True):
        np.testing.assert_allclose(a.astype(int), b, atol=1)


@pytest.mark.parametrize("value", [0.0, 3.7, np.nan])
def test_pca_of_collapsed_features_is_grey(value):
    frames = pictures.pca_frames(np.full((2, 2, 2, 6), value, np.float32), np.zeros((2, 8, 8, 3), np.uint8), cell=8)
    assert np.unique(frames[0][:, 11:]).tolist() in ([127], [128])


def test_pca_of_fewer_than_three_channels():
    features = np.random.default_rng(0).normal(size=(1, 2, 2, 2))
    assert pictures.pca_frames(features, np.zeros((2, 8, 8, 3), np.uint8), cell=8)[0].shape == (8, 19, 3)


def test_pca_refuses_a_batch():
    with pytest.raises(ValueError, match="one clip is expected"):
        pictures.pca_frames(np.zeros((1, 2, 2, 2, 6)), np.zeros((2, 8, 8, 3), np.uint8))


def test_png_is_lossless(video):
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(pictures.png(video[0])))), video[0])


@pytest.mark.parametrize(("form", "mime"), [("webp", "image/webp"), ("gif", "image/gif"), ("png", "image/png")])
def test_animation(form, mime):
    images = [np.full((12, 20, 3), 60 * i, np.uint8) for i in range(4)]
    data = pictures.animation(images, fps=5, form=form)
    assert pictures.mime_type(data) == mime and pictures.picture_size(data) == (20, 12)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 4 and image.info.get("loop") == 0
        image.seek(3)
        np.testing.assert_allclose(np.asarray(image.convert("RGB")).astype(int), images[3], atol=6)
        assert image.info["duration"] == 200
    with Image.open(io.BytesIO(pictures.still(data))) as image:
        assert image.format == "PNG" and getattr(image, "n_frames", 1) == 1


def test_animation_refuses_unknown_form():
    with pytest.raises(ValueError, match="form='mp4' is not one of webp, gif, png"):
        pictures.animation([np.zeros((4, 4, 3), np.uint8)], form="mp4")


def test_data_uri_round_trip():
    data = pictures.png(np.zeros((4, 4, 3), np.uint8))
    head, _, body = pictures.data_uri(data).partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(body) == data
    with pytest.raises(ValueError, match="neither PNG, WebP nor GIF"):
        pictures.data_uri(b"<svg>")


def test_saved_pictures_are_found_in_order(tmp_path):
    still = pictures.png(np.zeros((4, 4, 3), np.uint8))
    moving = pictures.animation([np.full((4, 4, 3), v, np.uint8) for v in (0, 255)])
    assert pictures.save_picture(tmp_path, "masks", 20, still).name == "masks_00000020.png"
    pictures.save_picture(tmp_path, "masks", 9, still)
    pictures.save_picture(tmp_path, "pca_1", 20, moving)
    (tmp_path / "pictures" / "hand-made.png").write_bytes(still)
    (tmp_path / "pictures" / "notes.txt").write_text("x")
    found = [(p.kind, p.step, p.path.suffix) for p in pictures.saved_pictures(tmp_path)]
    assert found == [("hand-made", None, ".png"), ("masks", 9, ".png"), ("masks", 20, ".png"), ("pca_1", 20, ".webp")]
    assert pictures.saved_pictures(tmp_path / "nothing") == []

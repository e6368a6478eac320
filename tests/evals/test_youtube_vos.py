"""YouTube-VOS: the local split, objects that appear later, and masks for the server, on folders made on the fly."""

import dataclasses
import functools
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, tables, vos, youtube_vos
from vjepa_jax.evals.features import pixel_features
from vjepa_jax.evals.propagation import METHODS

from .models import Collapsed

PALETTE = [0, 0, 0, 236, 95, 103, 249, 145, 87, 250, 200, 99]
NAMES = [f"video{i}" for i in range(20)]
HELD_OUT = [name for name in NAMES if int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % 10 == 0]


def squares(frame):
    """Two textured squares of 24 pixels that move by 6 a frame; the second shows from frame 2 on."""
    textures = np.random.default_rng(3).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    image, mask = np.full((64, 96, 3), 90, np.uint8), np.zeros((64, 96), np.uint8)
    for n, (row, column) in enumerate(((4, 4 + 6 * frame), (36, 64 - 6 * frame)), start=1):
        if n == 1 or frame >= 2:
            image[row : row + 24, column : column + 24] = textures[n - 1]
            mask[row : row + 24, column : column + 24] = n
    return image, mask


def save_mask(mask, path):
    picture = Image.fromarray(mask)
    picture.putpalette(PALETTE)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_folder(root, names=("a",), valid=False, frames=8, every=1):
    """The official layout, frames 00000, 00005, ... (with `every`, more frames that have no mask between them). The
    valid set gives the masks of new objects alone."""
    videos = {}
    for name in names:
        (root / "JPEGImages" / name).mkdir(parents=True)
        for frame in range(frames):
            stem = f"{5 * frame // every:05}"
            image, mask = squares(frame)
            Image.fromarray(image).save(root / f"JPEGImages/{name}/{stem}.jpg", quality=95)
            if valid:
                mask = np.where(mask == {0: 1, 2: 2}.get(frame, 9), mask, 0)
            if frame % every == 0 and mask.any():
                save_mask(mask, root / f"Annotations/{name}/{stem}.png")
        stems = lambda start: [f"{5 * f // every:05}" for f in range(start, frames, every)]
        videos[name] = {"objects": {"1": {"category": "a", "frames": stems(0)}, "2": {"frames": stems(2)}}}
    (root / "meta.json").write_text(json.dumps({"videos": videos}))
    return youtube_vos.Config(path=str(root), videos=tuple(names), size=64, seeds=1, frames="repeated")


@pytest.fixture(scope="module")
def encoder():
    model = {"variant": "vit_micro", "patch_size": 4, "dtype": "float32"}
    model |= {"predictor": {"embed_dim": 32, "num_heads": 2}}
    data = {"path": "v", "num_frames": 4, "resolution": 16}
    return Encoder.random(from_config_dict({"steps": 1, "batch_size": 8, "data": data, "model": model}))


def pixels_of(run):
    encode = functools.partial(pixel_features, patch=4, tubelet=2)
    encode.run = run
    return encode


def test_a_tenth_of_the_videos_is_held_out_by_name(tmp_path):
    """By sha256 of the name mod 10; of many names a tenth."""
    assert 60 < sum(youtube_vos.held_out(f"{i:010x}") for i in range(1000)) < 140
    assert 0 < len(HELD_OUT) < len(NAMES)
    cfg = dataclasses.replace(write_folder(tmp_path, NAMES, frames=3), videos=())
    assert list(youtube_vos.chosen(cfg)) == sorted(HELD_OUT)
    assert list(youtube_vos.chosen(dataclasses.replace(cfg, videos=("video1",)))) == ["video1"]


def test_an_object_is_given_where_it_appears_and_scored_after_that(tmp_path):
    """Between annotated frames lie others, which are carried through and not scored."""
    cfg = write_folder(tmp_path, frames=9, every=2)
    (video,) = youtube_vos.read_videos(cfg.path, youtube_vos.chosen(cfg))
    assert len(video.pictures) == 9 and list(video.annotations) == [0, 2, 4, 6, 8]
    assert video.scored == {1: [2, 4, 6, 8], 2: [4, 6, 8]}
    assert {frame: set(np.unique(mask)) for frame, mask in video.given.items()} == {0: {0, 1}, 2: {0, 2}}
    for number, frame in ((1, 0), (2, 2)):
        np.testing.assert_array_equal(video.given[frame] == number, squares(frame)[1] == number)


def test_a_video_begins_where_its_first_object_does(tmp_path):
    cfg = write_folder(tmp_path, frames=5)
    (tmp_path / "meta.json").write_text('{"videos": {"a": {"objects": {"2": {}}}}}')
    (video,) = youtube_vos.read_videos(cfg.path, youtube_vos.chosen(cfg))
    assert [path.stem for path in video.pictures] == ["00010", "00015", "00020"] and video.scored == {2: [1, 2]}
    assert all(set(np.unique(mask)) == {0, 2} for mask in video.annotations.values())  # 1 is not listed


def test_copies_of_the_first_masks_by_hand(tmp_path, encoder):
    """A square that has moved by 6f overlaps with its copy by 24 - 6f of 24 + 6f columns, from f = 4 on not at all."""
    rows = youtube_vos.run({controls.TRAINED: [encoder]}, write_folder(tmp_path))
    found = {row["metric"]: row for row in rows if row["encoder"] == vos.COPY}
    overlap = [18 / 30, 12 / 36, 6 / 42, 0, 0, 0, 0]
    want = np.mean([np.mean(overlap), np.mean(overlap[:5])])
    assert found["J mean, DINO protocol"]["value"] == pytest.approx(100 * want)
    assert {row["count"] for row in rows} == {2} and {row["benchmark"] for row in rows} == {"youtube_vos"}
    assert all("local split, never to be compared with server numbers" in row["note"] for row in rows)


@pytest.mark.parametrize("method", ["dino", "crw"])
def test_pixels_follow_objects_that_appear_later_and_constant_features_do_not(tmp_path, encoder, method):
    cfg = dataclasses.replace(write_folder(tmp_path, ("a", "b")), method=method)
    run = encoder.run
    named = {controls.TRAINED: [encoder], controls.PIXELS: [pixels_of(run)], "collapsed": [Collapsed(run)]}
    seen = []
    rows = youtube_vos.run(named, cfg, seen.append)
    assert rows == seen and len(rows) == 12 and all(row["low"] is not None for row in rows)
    value = {(row["encoder"], row["metric"].split(",")[0]): row["value"] for row in rows}
    for metric in ("J&F", "J mean", "F mean"):
        assert value[controls.PIXELS, metric] > value[vos.COPY, metric] + 20
        assert value["collapsed", metric] < value[vos.COPY, metric]
    (video, _) = youtube_vos.read_videos(cfg.path, youtube_vos.chosen(cfg))
    frames = vos.read_pictures(video.pictures, (64, 96))
    features = vos.frame_features(pixels_of(run), frames, vos.clip_of(named, "youtube_vos"), "repeated", 1)
    found = vos.segment(features, video, (64, 96), METHODS[method])
    assert set(np.unique(found[:2])) == {0, 1} and set(np.unique(found[3:])) == {0, 1, 2}
    for frame, mask in video.given.items():
        np.testing.assert_array_equal(found[frame][mask > 0], mask[mask > 0])


def test_a_submission_is_in_the_official_layout(tmp_path, encoder):
    """Every frame that meta.json names, in the palette that was given, of the trained encoder alone; no scores."""
    write_folder(tmp_path / "valid", ("a", "b"), valid=True, frames=9, every=2)
    out = tmp_path / "out"
    cfg = youtube_vos.Config(valid=str(tmp_path / "valid"), submission=str(out), size=64, frames="repeated")
    named = {controls.TRAINED: [pixels_of(encoder.run)], controls.RANDOM: [encoder]}
    assert youtube_vos.run(named, cfg) == []
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert files == [f"Annotations/{name}/{5 * f:05}.png" for name in "ab" for f in range(5)]
    for frame in range(5):
        with Image.open(out / f"Annotations/b/{5 * frame:05}.png") as image:
            assert image.mode == "P" and image.getpalette()[: len(PALETTE)] == PALETTE
            mask, true = np.asarray(image), squares(2 * frame)[1]
        overlap = [np.mean(mask[true == n] == n) for n in np.unique(true)]
        assert min(overlap) > (0.99 if frame == 0 else 0.6)
    both = dataclasses.replace(cfg, frames="both", submission=str(tmp_path / "both"))
    youtube_vos.run(named, both)
    for way in ("repeated", "windows"):
        assert len(list((tmp_path / "both" / way / "Annotations").rglob("*.png"))) == 10
    same = [(tmp_path / "both/repeated" / file).read_bytes() == (out / file).read_bytes() for file in files]
    assert all(same)


def test_scores_stand_in_columns_of_their_own_protocol(tmp_path, encoder, repo, monkeypatch):
    monkeypatch.chdir(repo)
    columns = [column for column in tables.load_table("T2")[1].columns if column.benchmark == "youtube_vos"]
    for method in ("dino", "vjepa21"):
        cfg = dataclasses.replace(write_folder(tmp_path / method), method=method)
        rows = youtube_vos.run({controls.TRAINED: [encoder]}, cfg)
        result = lambda row: tables.Result("runs/a", "V-JEPA 2", "ViT-L", row, "scores.json")
        shown = [column.config for column in columns for row in rows if row["encoder"] != vos.COPY
                 if column.holds(result(row))]  # fmt: skip
        assert shown == [f"experiments/evals/youtube_vos.py:{method}"]


def test_a_search_looks_at_videos_that_are_neither_scored_nor_held_out(tmp_path, encoder, monkeypatch):
    free = [name for name in NAMES if name not in HELD_OUT]
    cfg = dataclasses.replace(write_folder(tmp_path, NAMES, frames=5), method="vjepa21", search=True, tune_videos=3)
    cfg = dataclasses.replace(cfg, videos=tuple(sorted(free)[:1]))
    assert list(youtube_vos.tuning(cfg, youtube_vos.chosen(cfg))) == sorted(free)[1:4]
    best = dataclasses.replace(METHODS["vjepa21"], title="searched")
    monkeypatch.setattr(vos, "SEARCH", (dataclasses.replace(best, radius=1), best))
    rows = youtube_vos.run({controls.TRAINED: [pixels_of(encoder.run)]}, cfg)
    assert rows[0]["metric"] == "J&F, searched" and "circle 12" in rows[0]["note"] and "local split" in rows[0]["note"]


def test_wrong_layouts_show_the_one_expected(tmp_path, encoder):
    run = lambda cfg, **changes: youtube_vos.run({controls.TRAINED: [encoder]}, dataclasses.replace(cfg, **changes))
    cfg = write_folder(tmp_path / "a", ("video1",), frames=3)
    layout = r"expected .*/meta\.json, .*/JPEGImages/VIDEO/00000\.jpg .*palette images of object numbers"
    for changes, text in (
        ({"path": ""}, rf"youtube_vos\.path='' is no folder of YouTube-VOS: {layout}"),
        ({"path": str(tmp_path)}, rf"is no folder of YouTube-VOS: {layout}"),
        ({"valid": str(tmp_path), "submission": "x"}, rf"youtube_vos\.valid=.* is no folder of YouTube-VOS: {layout}"),
        ({"valid": "v"}, r"youtube_vos\.valid='v' and youtube_vos\.submission='' go together"),
        ({"videos": ("vido1",)}, r"vido1 is not in .*meta\.json; did you mean 'video1'"),
        ({"videos": ()}, "none of its 1 videos is held out"),
        ({"method": "other"}, r"youtube_vos\.method='other' is not one of dino, crw, vjepa21"),
        ({"size": 66}, r"youtube_vos\.size=66 must be a multiple of the model's patch size 4"),
    ):
        with pytest.raises(ConfigError, match=text) as error:
            run(cfg, **changes)
        assert "\n" not in str(error.value)
    masks = tmp_path / "a/Annotations/video1"
    save_mask(np.zeros((64, 96), np.uint8), masks / "00099.png")
    with pytest.raises(ConfigError, match=rf"video1 has 3 frames and 4 masks, 00099 without a frame: {layout}"):
        run(cfg)
    (masks / "00099.png").unlink()
    Image.fromarray(squares(1)[1]).save(masks / "00005.png")
    with pytest.raises(ConfigError, match=r"00005\.png is no palette image: keep the masks as the official archives"):
        run(cfg)
    save_mask(np.ones((64, 90), np.uint8), masks / "00005.png")
    with pytest.raises(ConfigError, match=r"00005\.png has shape \(64, 90\), the frames of its video \(64, 96\)"):
        run(cfg)
    for path in masks.glob("*.png"):
        save_mask(np.full((64, 96), 3, np.uint8), path)
    with pytest.raises(ConfigError, match=r"no mask of video1 shows an object that .*meta\.json lists"):
        run(cfg)
    for path in sorted(masks.glob("*.png"))[1:]:
        path.unlink()
    save_mask(np.ones((64, 96), np.uint8), masks / "00000.png")
    with pytest.raises(ConfigError, match=rf"no object has a mask after its first one: {layout}"):
        run(cfg)
    (tmp_path / "a/meta.json").write_text('{"video": {}}')
    with pytest.raises(ConfigError, match=r"meta\.json cannot be read \(KeyError\('videos'\)\): expected {\"videos\""):
        run(cfg)

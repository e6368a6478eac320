"""Batches of labelled videos: every video once a pass, segments in their parts, augmentation afresh."""

import numpy as np
import pytest

from data_pipelines import labelled, pipeline, world
from data_pipelines.sources import DataError
from vjepa_jax.config import AugmentConfig, DataConfig


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Ten videos of 12 frames; frame t of video i has the brightness 20 t + i: labels i modulo 2."""
    folder = tmp_path_factory.mktemp("labelled")
    lines = ["path,label,split"]
    for i in range(10):
        video = np.empty((12, 16, 16, 3), np.uint8)
        video[:] = (20 * np.arange(12) + i)[:, None, None, None]
        world.encode(folder / f"{i}.mp4", video, fps=10, crf=0)
        lines.append(f"{i}.mp4,{'even' if i % 2 == 0 else 'odd'},{'train' if i < 7 else 'test'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def settings(manifest, **changes):
    return DataConfig(
        **{"path": str(manifest), "num_frames": 2, "frame_step": 1, "resolution": 16, "clips_per_video": 2}
        | {"random_resize_scale": (1.0, 1.0), "random_resize_aspect": (1.0, 1.0), "hflip": False, "num_threads": 1}
        | changes
    )


def batches(manifest, rows=range(7), batch_size=7, epochs=2, seed=0, copies=1, **changes):
    source, _ = labelled.open_labelled(str(manifest), "train")
    data = settings(manifest, **changes)
    return list(
        labelled.training_batches(
            source, data, rows=rows, batch_size=batch_size, epochs=epochs, seed=seed, copies=copies
        )
    )


def test_every_video_once_a_pass_in_fresh_order_with_its_label(manifest):
    first, second = batches(manifest)
    for batch in (first, second):
        assert batch["video"].shape == (7, 2, 2, 16, 16, 3) and batch["video"].dtype == np.uint8
        assert sorted(batch["index"]) == list(range(7))
        np.testing.assert_array_equal(batch["label"], batch["index"] % 2)
    assert (first["index"] != second["index"]).any()
    again = batches(manifest)
    np.testing.assert_array_equal(again[1]["video"], second["video"])
    assert any((a["index"] != b["index"]).any() for a, b in zip(batches(manifest, seed=1), again, strict=True))


def test_segments_lie_in_their_parts_of_the_video(manifest):
    brightness = np.stack([b["video"].mean((3, 4, 5)) for b in batches(manifest, epochs=6)])  # [E, B, S, T]
    index = np.stack([b["index"] for b in batches(manifest, epochs=6)])
    frames = np.rint((brightness - index[:, :, None, None]) / 20).astype(int)
    assert (np.diff(frames, axis=-1) == 1).all()  # two frames, one after the other
    assert set(frames[:, :, 0, 0].ravel()) <= set(range(5)) and set(frames[:, :, 1, 0].ravel()) <= set(range(6, 11))
    assert len(set(frames[:, :, 0, 0].ravel())) > 2  # at random places


def test_one_segment_keeps_its_axis_and_only_the_given_rows_come(manifest):
    (batch,) = batches(manifest, rows=[1, 4], batch_size=4, clips_per_video=1)
    assert batch["video"].shape == (4, 1, 2, 16, 16, 3) and sorted(batch["index"]) == [1, 1, 4, 4]


def test_copies_are_further_clips_of_the_same_part(manifest):
    (batch,) = batches(manifest, epochs=1, copies=3)
    assert batch["video"].shape == (7, 6, 2, 16, 16, 3)
    frames = np.rint((batch["video"].mean((3, 4, 5)) - batch["index"][:, None, None]) / 20).astype(int)[..., 0]
    assert (frames[:, :3] <= 4).all() and (frames[:, 3:] >= 6).all()
    assert (frames[:, :1] != frames[:, :3]).any()


def test_clips_are_augmented_each_on_its_own(manifest):
    erased = batches(manifest, augment=AugmentConfig(erase_prob=1.0))[0]["video"]
    noisy = erased.std((3, 4, 5)) > 5
    assert noisy.all()
    boxes = erased[0, :, 0].astype(int).std(-1) > 5  # of the first frames, [S, H, W]
    assert (boxes[0] != boxes[1]).any()


def test_an_undecodable_video_is_replaced_by_another_of_the_rows(manifest, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    lines = [f"{manifest.parent / '0.mp4'},0", f"{manifest.parent / '1.mp4'},1", "broken.mp4,1"]
    (tmp_path / "m.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    source, labels = labelled.open_labelled(str(tmp_path / "m.csv"), "")
    assert labels.tolist() == [0, 1, 1]
    data = settings(tmp_path / "m.csv")
    (batch,) = labelled.training_batches(source, data, rows=[0, 2], batch_size=2, epochs=1, seed=0)
    assert batch["index"].tolist() == [0, 0] and batch["label"].tolist() == [0, 0] and batch["substituted"].sum() >= 1
    with pytest.raises(DataError, match=r"32 videos in a row from .* cannot be decoded; the last one: .*broken\.mp4"):
        list(labelled.training_batches(source, data, rows=[2], batch_size=1, epochs=1, seed=0))


def test_videos_without_labels_and_too_few_are_one_line(manifest, tmp_path):
    (tmp_path / "m.csv").write_text(f"path,label\n{manifest.parent / '0.mp4'},0\n{manifest.parent / '1.mp4'},\n")
    with pytest.raises(DataError, match=r"1 of 2 videos of .* have no label \(first: .*1.mp4\): give a manifest with"):
        labelled.open_labelled(str(tmp_path / "m.csv"), "")
    with pytest.raises(DataError, match="7 videos to train on are fewer than a batch of 16: lower batch_size"):
        batches(manifest, batch_size=16, epochs=2)


def test_evaluation_of_some_rows_in_their_order(manifest):
    options = {"num_frames": 2, "frame_step": 1, "size": (16, 16), "batch_size": 4, "num_threads": 1}
    (batch,) = pipeline.eval_batches(str(manifest), split="train", rows=[5, 2], **options)
    assert batch["index"].tolist() == [5, 2, -1, -1] and batch["label"][:2].tolist() == [1, 0]
    whole = next(iter(pipeline.eval_batches(str(manifest), split="train", **options)))
    np.testing.assert_array_equal(whole["video"][2], batch["video"][1])

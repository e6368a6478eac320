"""Single examples: what is drawn from their generator, in which order, and what becomes of the frames."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from data_pipelines import augment, erasing, examples, masking, randaugment
from data_pipelines.clips import ClipSpec, clip_indices
from data_pipelines.decode import VideoReader
from data_pipelines.pipeline import train_batches
from data_pipelines.sources import open_source
from vjepa_jax.config import from_config_dict

from .videos import HEIGHT, WIDTH, write_video

SIZE = (24, 32)
EVERYTHING = {"rand_augment": "rand-m7-n4-mstd0.5-inc1", "motion_shift": True, "antialias": False, "erase_prob": 0.7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    for i in range(3):
        write_video(root / f"{i}.mp4", 40, video=i)
    return root


def config(folder, **augment_keys):
    return from_config_dict(
        {
            "steps": 1,
            "batch_size": 4,
            "data": {
                "path": str(folder), "num_frames": 4, "fps": 10.0, "resolution": SIZE, "augment": augment_keys,
            },
            "model": {"patch_size": 8},
        }
    )  # fmt: skip


def example(run, seed, row=1):
    plan = masking.make_plan(run)
    source = open_source(run.data.path)
    rng = np.random.default_rng(seed)
    return examples.train_example((0, 0, row), rng, sources=[source], data=run.data, plan=plan, seed=0, ledger=None)


def test_draws_without_augmentation_stay_what_they_were(folder, monkeypatch):
    """Flip, frames and box of fixed generators, written down before there was any augmentation."""
    seen = []

    def crops(self, indices, choose, size, *, flip, antialias):
        seen.append((flip, np.asarray(indices).tolist(), choose(HEIGHT, WIDTH)))
        assert antialias
        return np.zeros((len(indices), *size, 3), np.uint8)

    monkeypatch.setattr(VideoReader, "crops", crops)
    for seed in range(6):
        example(config(folder), seed)
    assert seen == [
        (False, [7, 10, 13, 16], (3, 4, 37, 47)),
        (False, [23, 26, 29, 32], (5, 0, 42, 49)),
        (True, [23, 26, 29, 32], (3, 16, 42, 33)),
        (False, [26, 29, 32, 35], (3, 10, 44, 54)),
        (False, [5, 8, 11, 14], (9, 13, 37, 36)),
        (True, [5, 8, 11, 14], (7, 4, 40, 36)),
    ]


@pytest.mark.parametrize("keys", [{}, *({key: value} for key, value in EVERYTHING.items()), EVERYTHING])
def test_augmentations_in_order(folder, keys):
    """An example put together by hand: masks, flip, frames, RandAugment, box or boxes, crop, erasing."""
    run = config(folder, **keys)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        masking.draw_masks(masking.make_plan(run), rng)
        flip = rng.random() < 0.5
        with VideoReader(folder / "1.mp4") as reader:
            indices = clip_indices(40, 30.0, ClipSpec(4, 10.0), 0, rng)
            operations = randaugment.draw(run.data.augment.policy, rng) if "rand_augment" in keys else []
            ends = [
                augment.random_box(HEIGHT, WIDTH, (0.3, 1.0), (0.75, 1.35), rng)
                for _ in range(1 + ("motion_shift" in keys))
            ]
            boxes = augment.moving_boxes(ends[0], ends[-1], 4)
            options = {"flip": flip, "antialias": run.data.augment.antialias}
            if operations:
                frames = list(randaugment.apply(operations, reader.frames(indices)))
                expected = augment.crop_clip(frames, lambda h, w, boxes=boxes: boxes, SIZE, **options)
            else:
                expected = reader.crops(indices, lambda h, w, boxes=boxes: boxes, SIZE, **options)
        if "erase_prob" in keys and rng.random() < 0.7:
            erasing.erase(expected, rng)
        np.testing.assert_array_equal(example(run, seed)["video"], expected)


def test_each_augmentation_changes_the_clip_and_not_the_masks(folder):
    plain = example(config(folder), 2)
    for key, value in (EVERYTHING | {"erase_prob": 1.0}).items():
        other = example(config(folder, **{key: value}), 2)
        assert (other["video"] != plain["video"]).any(), key
        for a, b in zip(plain["masks"], other["masks"], strict=True):
            np.testing.assert_array_equal(a["context"], b["context"])


def test_erasing_is_as_frequent_as_asked(folder):
    run = config(folder, erase_prob=0.25)
    plain = config(folder)
    erased = [(example(run, seed)["video"] != example(plain, seed)["video"]).any() for seed in range(40)]
    assert 3 < sum(erased) < 20


def test_augmented_batches_do_not_depend_on_processes_workers_or_the_first_step(folder):
    run = config(folder, **EVERYTHING)
    with contextlib.closing(train_batches(run)) as batches:
        whole = list(itertools.islice(batches, 3))
    assert (whole[0]["video"] != whole[1]["video"]).any()
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, num_workers=1))
    with contextlib.closing(train_batches(run, process_index=1, process_count=2, start_step=1)) as batches:
        for batch, share in zip(whole[1:], itertools.islice(batches, 2), strict=True):
            np.testing.assert_array_equal(share["video"], batch["video"][1::2])


def evaluate(folder, row=2, clips=2, **options):
    source = open_source(str(folder))
    spec = ClipSpec(4, frame_step=2, clips=clips)
    return examples.eval_example(row, source=source, spec=spec, size=(24, 24), ledger=None, **options)


@pytest.mark.parametrize("antialias", [True, False])
def test_views_and_segments_of_evaluation(folder, antialias):
    """View v of segment s at s * V + v: the crop on its own, of the same frames."""
    video = evaluate(folder, num_views=3, antialias=antialias)["video"]
    assert video.shape == (6, 4, 24, 24, 3) and video.dtype == np.uint8
    with VideoReader(folder / "2.mp4") as reader:
        for segment, view in itertools.product(range(2), range(3)):
            indices = clip_indices(40, 30.0, ClipSpec(4, frame_step=2, clips=2), segment)
            box = augment.view_boxes(HEIGHT, WIDTH, (24, 24), 3)[view]
            expected = reader.crops(indices, lambda h, w, box=box: box, (24, 24), antialias=antialias)
            np.testing.assert_array_equal(video[segment * 3 + view], expected)
    assert len({clip.tobytes() for clip in video}) == 6


def test_axes_of_evaluation(folder):
    assert evaluate(folder, clips=1)["video"].shape == (4, 24, 24, 3)
    assert evaluate(folder, clips=2)["video"].shape == (2, 4, 24, 24, 3)
    assert evaluate(folder, clips=1, num_views=3)["video"].shape == (3, 4, 24, 24, 3)
    padding = evaluate(folder, row=3, num_views=3)
    assert padding["video"].shape == (6, 4, 24, 24, 3) and not padding["video"].any() and padding["index"] == -1


def test_a_sheet_of_augmented_clips(shared_data, tmp_path):
    """To look at: every row is a clip of the same real video, with all augmentations of the published probes."""
    run = config(shared_data / "clips" / "workout", **EVERYTHING)
    data = dataclasses.replace(run.data, resolution=(96, 96), num_frames=8)
    run = dataclasses.replace(run, data=data)
    clips = [example(run, seed, row=3)["video"] for seed in range(4)]
    assert len({clip.tobytes() for clip in clips}) == 4
    Image.fromarray(np.concatenate([np.concatenate(list(clip), 1) for clip in clips])).save(tmp_path / "clips.png")

"""Batches: the same for any number of hosts, workers and threads and from any step; broken videos are replaced."""

import contextlib
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from data_pipelines import ledgers
from data_pipelines.augment import resize
from data_pipelines.pipeline import eval_batches, train_batches
from data_pipelines.shards import write_shards
from data_pipelines.sources import DataError, open_source
from vjepa_jax.config import DataConfig, MaskConfig, MaskGroupConfig, ModelConfig, RunConfig

from .videos import HEIGHT, WIDTH, read_numbers, write_video

GROUPS = (
    MaskGroupConfig(num_blocks=3, spatial_scale=(0.2, 0.4), temporal_scale=(0.5, 1.0)),
    MaskGroupConfig(kind="tube", ratio=0.5),
)
BATCH = 4


def config(path, *, policy="uniform", batch_size=BATCH, seed=0, **data):
    """A small run: 4 frames of 32 x 32, tokens of 2 x 8 x 8 pixels."""
    defaults = {"num_frames": 4, "fps": 10.0, "resolution": 32, "num_threads": 2, "clips_per_video": 1}
    return RunConfig(
        steps=1,
        batch_size=batch_size,
        seed=seed,
        data=DataConfig(path=str(path), **(defaults | data)),
        model=ModelConfig(patch_size=8),
        masks=MaskConfig(groups=GROUPS, policy=policy, truncation_group=3),
    )


def take(run, count, **kwargs):
    with contextlib.closing(train_batches(run, **kwargs)) as batches:
        return list(itertools.islice(batches, count))


def leaves(batch):
    """All arrays of a batch by name."""
    masks = {f"masks[{i}].{k}": v for i, group in enumerate(batch["masks"]) for k, v in group.items()}
    return {k: v for k, v in batch.items() if k != "masks"} | masks


def assert_same(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def interleave(parts):
    """The global batch from the shares of all processes: example e lies in share e % P."""
    shares = [leaves(part) for part in parts]
    return {k: np.stack([s[k] for s in shares], 1).reshape(-1, *shares[0][k].shape[1:]) for k in shares[0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, five videos, numbers 0 to 4; one is shorter than a clip."""
    root = tmp_path_factory.mktemp("folder")
    for i in range(5):
        write_video(root / "ab"[i % 2] / f"{i}.mp4", 6 if i == 3 else 40, video=i)
    return root


@pytest.fixture(scope="module")
def partly_broken(folder, tmp_path_factory):
    """Four good videos and three broken ones."""
    root = tmp_path_factory.mktemp("partly_broken")
    for i in range(4):
        shutil.copy(folder / "ab"[i % 2] / f"{i}.mp4", root / f"good{i}.mp4")
    for i, content in enumerate((b"", b"no video" * 99, (root / "good0.mp4").read_bytes()[:900])):
        (root / f"bad{i}.mp4").write_bytes(content)
    return root


def test_contract(folder):
    for batch in take(config(folder), 3):
        assert batch["video"].shape == (BATCH, 4, 32, 32, 3) and batch["video"].dtype == np.uint8
        assert batch["label"].dtype == np.int32 and batch["index"].dtype == np.int64
        assert batch["substituted"].dtype == np.int32 and not batch["substituted"].any()
        source = open_source(str(folder))
        assert batch["label"].tolist() == [source.label(i) for i in batch["index"]]
        assert len(batch["masks"]) == 2
        for group in batch["masks"]:
            assert set(group) == {"context", "target"}
            for ids in group.values():
                assert ids.shape[0] == BATCH and ids.dtype == np.int32 and (np.diff(ids) > 0).all()


def test_clips_are_those_of_their_video(folder):
    """Boxes that take the whole frame at its own size leave the numbers readable."""
    run = config(
        folder, resolution=(HEIGHT, WIDTH), random_resize_scale=(1.0, 1.0),
        random_resize_aspect=(WIDTH / HEIGHT, WIDTH / HEIGHT), hflip=False,
    )  # fmt: skip
    source = open_source(str(folder))
    starts = set()
    for batch in take(run, 8):
        for clip, index in zip(batch["video"], batch["index"], strict=True):
            name = int(source.name(index)[-5])
            np.testing.assert_array_equal(read_numbers(clip, row=1), name)
            frames = read_numbers(clip)
            short = name == 3
            assert frames.tolist() == ([0, 3, 5, 5] if short else list(range(frames[0], frames[0] + 12, 3)))
            starts.add(frames[0])
    assert len(starts) > 8


def test_epochs_visit_every_video_once(folder):
    run = config(folder, batch_size=5)
    orders = [batch["index"].tolist() for batch in take(run, 4)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert take(config(folder, batch_size=5, seed=1), 1)[0]["index"].tolist() != orders[0]


@pytest.mark.parametrize("policy", ["uniform", "first_k"])
def test_same_global_batches_for_any_number_of_processes(folder, policy):
    run = config(f"{folder}/a,{folder}/b", policy=policy, weights=(2.0, 1.0))
    whole = take(run, 4)
    for processes in (2, 4):
        shares = [take(run, 4, process_index=p, process_count=processes) for p in range(processes)]
        for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
            assert parts[0]["video"].shape[0] == BATCH // processes
            for key, value in interleave(parts).items():
                np.testing.assert_array_equal(value, leaves(batch)[key], err_msg=key)


def test_same_batches_for_any_number_of_threads(folder):
    whole = take(config(folder), 5)
    for threads in (0, 1, 4):
        for a, b in zip(whole, take(config(folder, num_threads=threads), 5), strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("workers", [1, 3])
def test_same_batches_for_any_number_of_workers(folder, workers):
    """One of two processes, from a later step, against the whole run in threads."""
    policy = "first_k" if workers == 1 else "uniform"
    whole = take(config(folder, policy=policy), 6)
    run = config(folder, policy=policy, num_workers=workers)
    for batch, share in zip(whole[2:], take(run, 4, start_step=2, process_index=1, process_count=2), strict=True):
        for key, value in leaves(share).items():
            np.testing.assert_array_equal(value, leaves(batch)[key][1::2], err_msg=key)


@pytest.mark.parametrize("start", [1, 3, 7])
def test_resume_at_any_step(folder, start):
    """5 videos, batches of 4: the steps lie in different epochs."""
    run = config(folder, clips_per_video=2)
    whole = take(run, start + 2)
    for a, b in zip(whole[start:], take(run, 2, start_step=start), strict=True):
        assert_same(a, b)


def test_masks_are_drawn_anew_and_do_not_depend_on_the_videos(folder, partly_broken):
    a, b = take(config(folder), 2)
    assert any((x["context"] != y["context"]).any() for x, y in zip(a["masks"], b["masks"], strict=True))
    other = take(config(partly_broken), 1)[0]
    for x, y in zip(a["masks"], other["masks"], strict=True):
        np.testing.assert_array_equal(x["context"], y["context"])


def test_first_k_masks_are_padded_with_validity(folder):
    batch = take(config(folder, policy="first_k"), 1)[0]
    for group in batch["masks"]:
        assert group["context"].shape == group["context_valid"].shape
        assert group["target_valid"].dtype == bool and group["target_valid"].any(1).all()


def test_mixing_proportions(tmp_path):
    for name in "xyz":
        write_video(tmp_path / name / "v.mp4", 1)
    run = config(",".join(str(tmp_path / n) for n in "xyz"), weights=(0.7, 0.2, 0.1), batch_size=100, num_frames=2,
                 resolution=16)  # fmt: skip
    counts = np.bincount(take(run, 1)[0]["index"], minlength=3)
    assert counts.tolist() == [70, 20, 10]
    equal = config(run.data.path, batch_size=99, num_frames=2, resolution=16)
    assert np.bincount(take(equal, 1)[0]["index"]).tolist() == [33, 33, 33]


def test_clips_per_video(folder):
    """Every clip is an example of its own: 3 clips of 5 videos make an epoch of 15, each from its third."""
    run = config(
        folder, clips_per_video=3, batch_size=15, resolution=(HEIGHT, WIDTH), random_resize_scale=(1.0, 1.0),
        random_resize_aspect=(WIDTH / HEIGHT, WIDTH / HEIGHT), hflip=False,
    )  # fmt: skip
    batch = take(run, 1)[0]
    assert np.bincount(batch["index"]).tolist() == [3] * 5
    for index in range(5):
        first = sorted(read_numbers(batch["video"][batch["index"] == index])[:, 0].tolist())
        name = int(open_source(str(folder)).name(index)[-5])
        if name != 3:
            assert all(part * 40 // 3 <= start < (part + 1) * 40 // 3 for part, start in enumerate(first))


def test_half_of_the_clips_are_flipped_if_asked(folder):
    size = {"batch_size": 20, "resolution": (HEIGHT, WIDTH), "random_resize_scale": (1.0, 1.0),
            "random_resize_aspect": (WIDTH / HEIGHT, WIDTH / HEIGHT)}  # fmt: skip
    plain, flipped = (take(config(folder, hflip=flip, **size), 1)[0]["video"] for flip in (False, True))
    turned = [not (a == b).all() for a, b in zip(plain, flipped, strict=True)]
    assert 4 < sum(turned) < 16
    for a, b, mirrored in zip(plain, flipped, turned, strict=True):
        np.testing.assert_array_equal(b, a[:, :, ::-1] if mirrored else a)


def test_broken_videos_are_replaced_and_named_once(partly_broken, tmp_path):
    run = config(partly_broken, batch_size=7)
    ledger = tmp_path / "bad_videos.jsonl"
    batches = take(run, 4, ledger=str(ledger))
    source = open_source(str(partly_broken))
    for batch in batches:
        assert all("good" in source.name(i) for i in batch["index"])
        assert batch["video"].any((1, 2, 3, 4)).all()
    assert sum(int(b["substituted"].sum()) for b in batches) >= 4 * 3
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert sorted(e["path"] for e in entries) == [str(partly_broken / f"bad{i}.mp4") for i in range(3)]
    assert all(e["error"] for e in entries)
    # The same again from a later step, into the same ledger.
    for a, b in zip(batches[1:], take(run, 3, start_step=1, ledger=str(ledger)), strict=True):
        assert_same(a, b)
    assert len(ledger.read_text().splitlines()) == 3


def test_workers_name_each_broken_video_once(partly_broken, tmp_path):
    """Into a ledger of their own, as this is process 2 of 7."""
    share = {"process_index": 2, "process_count": 7, "ledger": str(tmp_path / "bad_videos.jsonl")}
    with_workers = take(config(partly_broken, batch_size=21, num_workers=2), 3, **share)
    own = tmp_path / "bad_videos.2.jsonl"
    assert [p.name for p in tmp_path.iterdir()] == [own.name]
    paths = [json.loads(line)["path"] for line in own.read_text().splitlines()]
    assert len(paths) == len(set(paths)) > 0
    share["ledger"] = str(tmp_path / "threads.jsonl")
    for a, b in zip(with_workers, take(config(partly_broken, batch_size=21), 3, **share), strict=True):
        assert_same(a, b)
    named = (tmp_path / "threads.2.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["path"] for line in named) == sorted(paths)


def test_ledger_survives_a_torn_line(tmp_path):
    ledger = str(tmp_path / "bad.jsonl")
    ledgers.record(ledger, "a.mp4", "broken")
    with open(ledger, "a") as file:
        file.write('{"path": "b.mp4", "err')
    for path in ("a.mp4", "b.mp4", "c.mp4", "c.mp4"):
        ledgers.record(ledger, path, "broken")
    lines = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert [json.loads(lines[i])["path"] for i in (0, 2, 3)] == ["a.mp4", "b.mp4", "c.mp4"] and len(lines) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_only_broken_videos(tmp_path, workers):
    for i in range(3):
        (tmp_path / f"{i}.mp4").touch()
    ledger = tmp_path / "bad.jsonl"
    with pytest.raises(DataError, match=r"32 videos in a row .* cannot be decoded \(see .*bad\.jsonl\)") as error:
        take(config(tmp_path, num_workers=workers), 1, ledger=str(ledger))
    assert "\n" not in str(error.value)
    assert len(ledger.read_text().splitlines()) == 3


def test_missing_files_are_replaced(folder, tmp_path):
    good = folder / "a" / "0.mp4"
    (tmp_path / "list.csv").write_text(f"{good} 0\nabsent.mp4 1\n")
    batch = take(config(tmp_path / "list.csv", batch_size=8), 1)[0]
    assert set(batch["index"].tolist()) == {0} and batch["substituted"].sum() >= 4


def test_shards_give_the_same_batches_as_files(folder, tmp_path):
    write_shards(str(folder), str(tmp_path / "shards"), shard_bytes=1, workers=0)
    for workers in (0, 1):
        packed = config(tmp_path / "shards", num_workers=workers)
        for a, b in zip(take(config(folder), 2), take(packed, 2), strict=True):
            assert_same(a, b)


def test_errors_come_at_once(folder, tmp_path):
    with pytest.raises(DataError, match="no videos in"):
        train_batches(config(tmp_path))
    with pytest.raises(DataError, match="batch_size=4 is not divisible by the 3 processes"):
        train_batches(config(folder), process_count=3)
    with pytest.raises(DataError, match=r"data\.weights=\(1\.0, 0\.0\) must be positive"):
        train_batches(config(f"{folder},{folder}", weights=(1.0, 0.0)))
    with pytest.raises(ValueError, match="set exactly one of fps and frame_step"):
        eval_batches(str(folder), num_frames=4, size=(32, 32), batch_size=2)


def test_too_little_shared_memory_is_said_before_a_worker_dies(folder):
    run = config(folder, num_workers=2, batch_size=2**40, resolution=512)
    with pytest.raises(DataError, match=r"2 workers need about .* GiB of shared memory, /dev/shm has"):
        train_batches(run)


def evaluate(path, **kwargs):
    defaults = {"num_frames": 4, "size": (HEIGHT, WIDTH), "frame_step": 2, "batch_size": 4}
    with contextlib.closing(eval_batches(str(path), **(defaults | kwargs))) as batches:
        return list(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_walks_every_video_once(folder, workers):
    batches = evaluate(folder, num_workers=workers)
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3], [4, -1, -1, -1]]
    source = open_source(str(folder))
    assert [b["label"].tolist() for b in batches] == [source.labels[:4].tolist(), [source.label(4), -1, -1, -1]]
    for batch in batches:
        assert batch["video"].shape == (4, 4, HEIGHT, WIDTH, 3) and batch["video"].dtype == np.uint8
        assert batch["index"].dtype == np.int64 and batch["label"].dtype == np.int32 and "masks" not in batch
        for clip, index in zip(batch["video"], batch["index"], strict=True):
            if index >= 0:
                short = source.name(index).endswith("3.mp4")
                assert read_numbers(clip).tolist() == ([0, 2, 4, 5] if short else [16, 18, 20, 22])
            else:
                assert not clip.any()


def test_evaluation_in_segments(folder):
    batch = evaluate(folder, segments=3, batch_size=5)[0]
    assert batch["video"].shape == (5, 3, 4, HEIGHT, WIDTH, 3)
    assert read_numbers(batch["video"])[0].tolist() == [[3, 5, 7, 9], [16, 18, 20, 22], [29, 31, 33, 35]]


def test_evaluation_of_a_split_and_a_centre_crop(folder, tmp_path):
    rows = [f"{folder}/{'ab'[i % 2]}/{i}.mp4,{i},{'test' if i > 2 else 'train'}" for i in range(5)]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(["path,label,split", *rows]))
    (batch,) = evaluate(path, split="test", batch_size=2, size=(32, 32), frame_step=None, fps=15.0)
    assert batch["label"].tolist() == [3, 4] and batch["index"].tolist() == [0, 1]
    (whole,) = evaluate(path, split="test", batch_size=2)
    for clip, wide in zip(batch["video"], whole["video"], strict=True):
        for frame, wide_frame in zip(clip, wide, strict=True):
            # Colour is cut at its own, lower resolution, instead of from pixels.
            assert np.abs(resize(wide_frame[:, 8:56], (32, 32)) - frame.astype(int)).mean() < 1.5


def test_evaluation_marks_broken_videos(partly_broken, tmp_path):
    ledger = tmp_path / "bad.jsonl"
    batches = evaluate(partly_broken, ledger=str(ledger))
    assert [b["index"].tolist() for b in batches] == [[-1, -1, -1, 3], [4, 5, 6, -1]]
    assert [b["substituted"].tolist() for b in batches] == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert batches[0]["label"].tolist() == [-1] * 4
    assert len(ledger.read_text().splitlines()) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_edge_cases_survive(shared_data, tmp_path, workers):
    """All 21 files: decoded, or replaced and counted."""
    ledger = tmp_path / "bad.jsonl"
    run = config(shared_data / "edge_cases", batch_size=7, num_workers=workers)
    batches = take(run, 3, ledger=str(ledger))
    seen = np.concatenate([b["index"] for b in batches])
    source = open_source(str(shared_data / "edge_cases"))
    assert len(source) == 21
    named = {json.loads(line)["path"] for line in ledger.read_text().splitlines()}
    decoded = {source.name(i) for i in seen}
    assert named | decoded == {source.name(i) for i in range(21)}
    # The corrupted one gives a clip where that lies before the damage.
    assert {pathlib.Path(p).name for p in named} <= {"moviepy__result.webm", "decord__corrupted.mp4"}
    assert sum(int(b["substituted"].sum()) for b in batches) >= len(named) >= 1

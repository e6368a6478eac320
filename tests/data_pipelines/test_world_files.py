"""The embedded world on disk: H.264 and back, manifests, resuming, and what a wrong folder says."""

import argparse
import csv
import dataclasses
import json

import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.decode import VideoReader
from data_pipelines.pipeline import eval_batches
from data_pipelines.sources import open_source
from data_pipelines.world import (
    EVENTS,
    WorldError,
    demo_spec,
    motions_spec,
    read_truth,
    render,
    violation_spec,
    write_world,
)

LUMA = np.array([0.299, 0.587, 0.114])
SPEC = demo_spec()


def decoded(path):
    with VideoReader(path) as reader:
        return reader.read(range(reader.num_frames)), reader.fps


def psnr(a, b):
    return 10 * np.log10(255**2 / ((a - b) ** 2).mean())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("spec", [SPEC, demo_spec(64, 16), violation_spec(32)], ids=["32x8", "64x16", "pairs"])
def test_videos_survive_h264(tmp_path, spec):
    for i in range(6):
        video, truth = render(spec, 0, i)
        world.encode(tmp_path / "a.mp4", video, fps=spec.fps)
        back, fps = decoded(tmp_path / "a.mp4")
        assert back.shape == video.shape and fps == spec.fps
        assert psnr(back @ LUMA, video @ LUMA) > 36
        assert psnr(back.astype(float), video.astype(float)) > 26  # 4:2:0 blurs colour at the edges
        for i in range(len(truth.radius)):
            mask = truth.masks == i + 1
            if mask.any():
                inside = np.abs(back @ LUMA - video @ LUMA)[mask]
                assert np.median(inside) < 5


def test_twins_are_equal_up_to_the_break_after_h264(tmp_path):
    spec = violation_spec(32)
    for group in range(6):
        (video, _), (broken, twin) = world.render_group(spec, 2, group)
        world.encode(tmp_path / "a.mp4", video, fps=8)
        world.encode(tmp_path / "b.mp4", broken, fps=8)
        (a, _), (b, _) = decoded(tmp_path / "a.mp4"), decoded(tmp_path / "b.mp4")
        np.testing.assert_array_equal(a[: twin.break_frame], b[: twin.break_frame])
        assert (a[twin.break_frame] != b[twin.break_frame]).any()


def test_a_world_reads_back_through_the_pipeline(tmp_path):
    manifest = write_world(tmp_path / "w", SPEC, num_videos={"train": 80, "test": 24}, seed=3)
    with open(manifest, newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == (
        "path,label,split,shape,motion,direction,speed,group,index,violation,break_frame".split(",")
    )
    assert [row["split"] for row in table] == ["train"] * 80 + ["test"] * 24
    for i in (0, 79, 80, 103):
        video, truth = render(SPEC, 3, i)
        row = table[i]
        assert (int(row["label"]), int(row["direction"]), int(row["index"])) == (truth.direction, truth.direction, i)
        assert (row["shape"], row["motion"], float(row["speed"])) == (truth.shape, "translate", truth.speed)
        back, _ = decoded(manifest.parent / row["path"])
        assert psnr(back @ LUMA, video @ LUMA) > 36

    source = open_source(str(manifest), split="test")
    assert source.labels.tolist() == [int(row["label"]) for row in table[80:]]
    (batch,) = eval_batches(str(manifest), num_frames=8, size=(32, 32), batch_size=24, frame_step=1, split="test")
    np.testing.assert_array_equal(batch["label"], source.labels)
    assert (batch["substituted"] == 0).all()
    assert psnr(batch["video"][-1] @ LUMA, back @ LUMA) > 45  # crops interpolate the chroma, whole frames repeat it


def test_truth_reads_back(tmp_path):
    spec = motions_spec(32, noise=0.0)
    write_world(tmp_path, spec, num_videos={"a": 70, "b": 10}, seed=1)
    everything = read_truth(tmp_path)
    assert everything["index"].tolist() == list(range(80)) and everything["masks"].shape == (80, 16, 32, 32)
    part = read_truth(tmp_path, "b", masks=False)
    assert part["index"].tolist() == list(range(70, 80)) and "masks" not in part
    for row, i in enumerate(range(70, 80)):
        truth = render(spec, 1, i)[1]
        for field in dataclasses.fields(truth):
            if field.name.startswith("event_"):
                found = part[field.name][part["event_video"] == row]
            elif field.name == "masks":
                found = everything["masks"][i]
            else:
                found = part[field.name][row]
            np.testing.assert_array_equal(found, getattr(truth, field.name), err_msg=field.name)
    assert len(part["event_video"]) > 0 and set(np.unique(everything["event_kind"])) <= set(range(len(EVENTS)))


def test_truth_pads_missing_objects(tmp_path):
    write_world(tmp_path, dataclasses.replace(SPEC, objects=(1, 3)), num_videos=16)
    truth = read_truth(tmp_path)
    assert truth["tracks"].shape == (16, 8, 3, 2) and set(truth["num_objects"]) == {1, 2, 3}
    absent = np.arange(3) >= truth["num_objects"][:, None]
    assert not truth["present"][absent[:, None].repeat(8, 1)].any() and (truth["radius"][absent] == 0).all()
    assert (truth["shapes"][absent[:, None].repeat(8, 1)] == -1).all()


@pytest.mark.parametrize(
    ("label", "spec", "classes"),
    [("shape", SPEC, 6), ("speed", SPEC, 4), ("motion", motions_spec(32), 5), ("possible", violation_spec(32), 2)],
)
def test_other_labels(tmp_path, label, spec, classes):
    manifest = write_world(tmp_path, spec, num_videos=24, label=label)
    source = open_source(str(manifest))
    assert set(source.labels.tolist()) == set(range(classes))
    if label == "possible":
        assert source.labels.tolist() == [1, 0] * 12
        assert [source.group(i) for i in range(4)] == ["0", "0", "1", "1"]


def test_a_finished_world_is_left_alone(tmp_path, monkeypatch):
    manifest = write_world(tmp_path, SPEC, num_videos=16)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(world, "encode", None)  # would fail
    assert write_world(tmp_path, SPEC, num_videos=16) == manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_interrupted_world_is_completed(tmp_path, monkeypatch):
    calls = []
    write_world(tmp_path / "whole", SPEC, num_videos={"train": 150, "test": 10})
    encode = world.encode

    def interrupted(path, video, **options):
        calls.append(path)
        if len(calls) == 100:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        encode(path, video, **options)

    monkeypatch.setattr(world, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "other", SPEC, num_videos={"train": 150, "test": 10}, workers=0)
    with pytest.raises(WorldError, match="no finished world"):
        read_truth(tmp_path / "other")
    assert not (tmp_path / "other" / "manifest.csv").exists()
    done = []
    write_world(
        tmp_path / "other",
        SPEC,
        num_videos={"train": 150, "test": 10},
        workers=0,
        progress=lambda *numbers: done.append(numbers),
    )
    assert len(calls) == 100 + 160 - 64  # the first 64 were not written again
    assert done == [(128, 160), (160, 160)]
    assert contents(tmp_path / "whole") == contents(tmp_path / "other")


def test_worker_processes_write_the_same_files(tmp_path):
    write_world(tmp_path / "a", violation_spec(32), num_videos=132, workers=0)
    write_world(tmp_path / "b", violation_spec(32), num_videos=132, workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_world_in_the_folder_is_one_line(tmp_path):
    write_world(tmp_path / "w", SPEC, num_videos=8)
    for change, message in (
        (dict(spec=demo_spec(noise=0.2)), r"w holds another world \(spec.noise: 0.05 there, 0.2 asked\)"),
        (dict(seed=1), "seed: 0 there, 1 asked"),
        (dict(num_videos=16), "num_videos"),
        (dict(label="shape"), "label: direction there"),
    ):
        asked = dict(spec=SPEC, num_videos=8) | change
        with pytest.raises(WorldError, match=message) as caught:
            write_world(tmp_path / "w", **asked)
        assert "\n" not in str(caught.value)


def test_folders_that_are_no_worlds(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(WorldError, match="full exists and is not a world"):
        write_world(tmp_path / "full", SPEC, num_videos=8)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "world.json").write_text("{")
    with pytest.raises(WorldError, match=r"world\.json cannot be read"):
        write_world(tmp_path / "bad", SPEC, num_videos=8)
    with pytest.raises(WorldError, match=r"there is no world\.json"):
        read_truth(tmp_path)
    (tmp_path / "bad" / "world.json").write_text('{"spec": {"size": 32, "colour": "red"}, "seed": 0}')
    with pytest.raises(WorldError, match=r"world\.json is of another version .*colour"):
        world.read_spec(tmp_path / "bad")
    write_world(tmp_path / "w", SPEC, num_videos=8)
    with pytest.raises(WorldError, match="no split 'tset': it has train"):
        read_truth(tmp_path / "w", "tset")
    (tmp_path / "w" / "truth" / "part-00000.npz").write_bytes(b"broken")
    with pytest.raises(WorldError, match=r"part-00000.npz cannot be read .*write again"):
        read_truth(tmp_path / "w")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_videos=0), "it must be at least 1"),
        (dict(num_videos={}), "names no split"),
        (dict(num_videos={"../x": 8}), "must be a plain word"),
        (dict(num_videos=8, label="colour"), "label 'colour'"),
        (dict(num_videos=8, label="possible"), "needs violations"),
        (dict(num_videos=8, seed=-1), "seed=-1"),
        (dict(num_videos=9, spec=violation_spec(32)), "it must be even"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, arguments, message):
    with pytest.raises(WorldError, match=message):
        write_world(tmp_path / "w", **(dict(spec=SPEC) | arguments))
    assert not (tmp_path / "w").exists()


def test_command_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    world.add_arguments(parser)
    assert "example: vjepa data world --out" in parser.format_help()
    out = tmp_path / "w"
    words = f"--out {out} --num train=16 test=8 --size 48 --noise 0.1 --motions bounce --objects 1 2 --seed 4"
    assert world.run(parser.parse_args(words.split())) == out / "manifest.csv"
    assert "24 videos of 8 frames" in capsys.readouterr().out
    expected = dataclasses.replace(demo_spec(48, noise=0.1), motions=("bounce",), objects=(1, 2))
    assert world.read_spec(out) == (expected, 4)
    assert json.loads((out / "world.json").read_text())["num_videos"] == {"train": 16, "test": 8}
    with pytest.raises(WorldError, match="must be SPLIT=N"):
        world.run(parser.parse_args(["--out", str(out), "--num", "train"]))

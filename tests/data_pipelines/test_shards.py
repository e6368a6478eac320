"""Shards: the same clips as the files, the same bytes for any number of workers, and after a kill at any moment."""

import io
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import reencode, shards
from data_pipelines.decode import DecodeError, VideoReader, probe
from data_pipelines.reencode import Encoding
from data_pipelines.shards import merge_shards, plan_shards, write_shard, write_shards
from data_pipelines.sources import DataError, open_source

from .videos import read_numbers, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine videos in two classes, and two that are broken."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(9):
        write_video(root / "ab"[i % 2] / f"{i}.mp4", 12, video=i, fps=20)
    (root / "a" / "3broken.mp4").write_bytes(b"no video")
    (root / "b" / "empty.mp4").touch()
    return root


def small(folder) -> int:
    """A shard size that gives several shards."""
    return 5 * os.path.getsize(folder / "a" / "0.mp4") // 2


def contents(root):
    """Every file of a folder by its relative path."""
    root = pathlib.Path(root)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_shards_hold_the_files_as_they_are(folder, tmp_path):
    dst, seen = tmp_path / "shards", []
    path = write_shards(str(folder), str(dst), shard_bytes=small(folder), workers=0, progress=lambda *n: seen.append(n))
    assert path == str(dst / "index.arrow")
    assert seen[0] == (0, 11) and seen[-1] == (11, 11) and len(seen) > 3
    names = [f"videos-{i:05d}-of-{len(seen) - 1:05d}.array_record" for i in range(len(seen) - 1)]
    assert sorted(os.listdir(dst)) == ["bad_videos.jsonl", "index.arrow", "shards.json", *names]
    files, packed = open_source(str(folder)), open_source(str(dst))
    good = [i for i in range(len(files)) if not files.name(i).endswith(("broken.mp4", "empty.mp4"))]
    assert len(packed) == 9 and packed.class_names == files.class_names == ("a", "b")
    for i, j in enumerate(good):
        video = pathlib.Path(files.open(j)).read_bytes()
        assert packed.open(i).getvalue() == video
        assert packed.row(i).id == files.row(j).id and packed.label(i) == files.label(j)
        assert (packed.row(i).frames, packed.row(i).fps) == (12, 20.0)
        assert packed.name(i).endswith(f".array_record#{files.row(j).id}")
    entries = [json.loads(line) for line in (dst / "bad_videos.jsonl").read_text().splitlines()]
    assert [e["path"] for e in entries] == [str(folder / "a" / "3broken.mp4"), str(folder / "b" / "empty.mp4")]
    assert all(e["error"] for e in entries)
    # Once more: nothing to do. From the shards: the same videos.
    before = contents(dst)
    assert write_shards(str(folder), str(dst), shard_bytes=small(folder), workers=0) == path
    assert contents(dst) == before
    again = open_source(write_shards(str(dst), str(tmp_path / "again"), workers=0))
    assert [again.row(i).sha256 for i in range(9)] == [packed.row(i).sha256 for i in range(9)]


def test_the_number_of_workers_changes_nothing(folder, tmp_path):
    encoding = Encoding(short_side=32, gop=6)
    for workers in (0, 3):
        dst = str(tmp_path / f"{workers}")
        write_shards(str(folder), dst, encoding=encoding, shard_bytes=small(folder), workers=workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "3")


def test_jobs_run_anywhere_in_any_order(folder, tmp_path):
    """As a cluster does it: a plain list of jobs, mapped by a function, then joined."""
    write_shards(str(folder), str(tmp_path / "one"), shard_bytes=small(folder), workers=0)
    dst = str(tmp_path / "two")
    jobs = plan_shards(str(folder), dst, shard_bytes=small(folder))
    assert len(jobs) > 3 and [job.start for job in jobs[1:]] == [job.stop for job in jobs[:-1]]
    assert sum(map(write_shard, reversed(jobs))) == 11
    merge_shards(jobs, dst)
    assert contents(dst) == contents(tmp_path / "one")


def test_rows_keep_their_columns(folder, tmp_path):
    text = "path,label,split,scene,licence,cluster\n"
    text += "".join(
        f"{folder}/{'ab'[i % 2]}/{i}.mp4,{i},{('train', 'test')[i % 3 == 0]},s{i},CC BY,{1 - i // 5}\n"
        for i in range(9)
    )
    (tmp_path / "list.csv").write_text(text)
    path = write_shards(str(tmp_path / "list.csv"), str(tmp_path / "shards"), workers=0)
    source = open_source(path, split="train")
    rows = [source.row(i) for i in range(len(source))]
    assert [row.label for row in rows] == [5, 7, 8, 1, 2, 4] and [row.cluster for row in rows] == [0] * 3 + [1] * 3
    assert {(row.group, row.licence, row.split) for row in rows} == {
        (f"s{row.label}", "CC BY", "train") for row in rows
    }
    part = open_source(write_shards(path, str(tmp_path / "test"), split="test", workers=0))
    assert [part.label(i) for i in range(len(part))] == [6, 0, 3]


def test_encoded_anew(tmp_path):
    """The same frames at the same rate, smaller, with key frames as asked; larger ones only shrink."""
    path = write_video(tmp_path / "a.mp4", 25, video=5, fps=30, height=96, width=128, gop=250)
    with VideoReader(path) as reader:
        video = reencode.encode(reader.frames(range(25)), 30000 / 1001, Encoding(short_side=48, gop=6, crf=10))
    info = probe(io.BytesIO(video))
    assert (info.num_frames, info.height, info.width) == (25, 48, 64) and info.fps == 30000 / 1001
    with VideoReader(io.BytesIO(video)) as reader:
        frames = reader.read(range(25))
    with VideoReader(path) as reader:
        expected = np.stack([reencode.resize(frame, (48, 64)) for frame in reader.frames(range(25))])
    assert np.abs(frames.astype(int) - expected).mean() < 3
    assert [frame for frame, key in enumerate(keys(video)) if key] == [0, 6, 12, 18, 24]
    with VideoReader(path) as reader:
        same = reencode.encode(reader.frames(range(3)), 7.5, Encoding(short_side=1000))
    with VideoReader(io.BytesIO(same)) as reader:
        assert read_numbers(reader.read([0, 1, 2])).tolist() == [0, 1, 2] and reader.fps == 7.5


def keys(video):
    import av

    with av.open(io.BytesIO(video)) as container:
        return [frame.key_frame for frame in container.decode(video=0)]


def test_odd_sizes_become_even(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (2, 31, 33, 3), np.uint8)
    info = probe(io.BytesIO(reencode.encode(frames, 25, Encoding())))
    assert (info.num_frames, info.height, info.width) == (2, 30, 32)


@pytest.mark.parametrize("bad", [{"short_side": 2}, {"gop": 0}, {"crf": 60}])
def test_bad_encodings(bad):
    with pytest.raises(DataError, match="short_side must be at least 16, gop at least 1, crf between 0 and 51"):
        Encoding(**bad)


def test_stopped_at_any_moment(folder, tmp_path, monkeypatch):
    """The process ends before the n-th file gets its name, for every n; the next run completes what is there."""
    write_shards(str(folder), str(tmp_path / "whole"), shard_bytes=small(folder), workers=0)
    expected, replace = contents(tmp_path / "whole"), os.replace

    class Killed(BaseException):
        pass

    for stop in itertools.count():
        dst, steps = tmp_path / f"{stop}", itertools.count()

        def dying(src, to, steps=steps, stop=stop):
            if next(steps) == stop:
                raise Killed
            replace(src, to)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                write_shards(str(folder), str(dst), shard_bytes=small(folder), workers=0)
            except Killed:
                pass
            else:
                break
        write_shards(str(folder), str(dst), shard_bytes=small(folder), workers=0)
        assert contents(dst) == expected
        shutil.rmtree(dst)
    assert stop > 10


def test_killed_and_run_again(tmp_path, repo):
    """kill -9 of a run with workers: these end too, finished shards stay as they are, the result is the same."""
    root, count = tmp_path / "videos", 20
    for i in range(count):
        write_video(root / f"{i:02d}.mp4", 12, video=i)
    # It stops to hand out work after two shards, so that it cannot end before it is killed.
    (tmp_path / "run.py").write_text(
        "import time\n"
        "from data_pipelines.shards import *\n"
        "if __name__ == '__main__':\n"
        f"    write_shards({str(root)!r}, {str(tmp_path / 'killed')!r}, encoding=Encoding(), shard_bytes=1,\n"
        "                 workers=2,\n"
        "                 progress=lambda done, total: time.sleep(99 if done > 1 else 0))\n"
    )
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")], env=os.environ | {"PYTHONPATH": str(repo)}, start_new_session=True
    )
    parts = tmp_path / "killed" / "parts"
    wait_for(lambda: run.poll() is not None or len(list(parts.glob("*.arrow"))) >= 3)
    assert run.poll() is None
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_for(lambda: not group_lives(run.pid))
    finished = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("videos-*.array_record")}
    kept = sorted(parts.glob("*.arrow"))
    assert 3 <= len(kept) < count and not (tmp_path / "killed" / "index.arrow").exists()
    with pytest.raises(DataError, match="holds unfinished shards: run the `vjepa data shard`"):
        open_source(str(tmp_path / "killed"))
    for name in ("killed", "whole"):
        write_shards(str(root), str(tmp_path / name), encoding=Encoding(), shard_bytes=1, workers=0)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    for part in kept:
        name = f"videos-{part.stem}-of-{count:05d}.array_record"
        assert (tmp_path / "killed" / name).stat().st_mtime_ns == finished[name]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_damaged_shard_is_written_again(folder, tmp_path):
    """Before all are finished, a shard of the wrong size counts as missing, and one with a damaged index."""
    dst = str(tmp_path / "shards")
    jobs = plan_shards(str(folder), dst, shard_bytes=small(folder))
    assert not any(map(shards.is_finished, jobs))
    for job in jobs[:3]:
        write_shard(job)
    os.truncate(jobs[0].shard, 1000)
    os.truncate(jobs[1].part, 1000)
    assert [shards.is_finished(job) for job in jobs[:4]] == [False, False, True, False]
    write_shards(str(folder), dst, shard_bytes=small(folder), workers=0)
    write_shards(str(folder), str(tmp_path / "whole"), shard_bytes=small(folder), workers=0)
    assert contents(dst) == contents(tmp_path / "whole")


def test_only_broken_videos(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"no video of .* can be read; the first one: .*a\.mp4: "):
        write_shards(str(tmp_path / "videos"), str(tmp_path / "shards"), workers=0)


def test_errors_are_one_clear_line(folder, tmp_path, monkeypatch):
    source = str(folder)
    with pytest.raises(DataError, match="no such file or folder"):
        write_shards(str(tmp_path / "absent"), str(tmp_path / "shards"), workers=0)
    assert not (tmp_path / "shards").exists()  # a refused command leaves nothing that refuses the corrected one
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for taken in ("other", "other/file"):
        with pytest.raises(DataError, match=r"other.* exists and holds no shards: name a new or empty folder"):
            write_shards(source, str(tmp_path / taken), workers=0)
    write_shards(source, str(tmp_path / "shards"), workers=0)
    with pytest.raises(DataError, match=r"shards holds other shards \(encoding: None there, .* asked\): name another"):
        write_shards(source, str(tmp_path / "shards"), encoding=Encoding(), workers=0)
    with pytest.raises(DataError, match=r"s3://bucket/shards is remote: write to a folder of this machine"):
        write_shards(source, "s3://bucket/shards", workers=0)


def test_a_full_disk_is_one_clear_line(folder, tmp_path, monkeypatch):
    def full(path, videos):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards.array_records, "write", full)
        with pytest.raises(DataError, match=r"cannot be written \(.*No space left.*\): free space .* run the same"):
            write_shards(str(folder), str(tmp_path / "shards"), workers=0)
    assert len(open_source(write_shards(str(folder), str(tmp_path / "shards"), workers=0))) == 9


def test_videos_of_loose_frames_have_no_file_to_keep():
    class Frames:
        """What a source of single frames opens."""

    with pytest.raises(DataError, match="single frames, not files: have them encoded"):
        shards.content(Frames())


def test_a_video_that_is_damaged_midway_is_left_out_when_encoded(folder, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(folder / "a", root)
    data = bytearray(write_video(root / "damaged.mp4", 60).read_bytes())
    start, end = data.index(b"mdat"), data.index(b"moov") - 4
    data[(start + end) // 2 : end] = bytes(end - (start + end) // 2)
    (root / "damaged.mp4").write_bytes(data)
    assert probe(root / "damaged.mp4").num_frames == 60
    with pytest.raises(DecodeError), VideoReader(root / "damaged.mp4") as reader:
        list(reader.frames(range(60)))
    source = open_source(write_shards(str(root), str(tmp_path / "shards"), encoding=Encoding(), workers=0))
    assert [source.row(i).id for i in range(len(source))] == ["0.mp4", "2.mp4", "4.mp4", "6.mp4", "8.mp4"]

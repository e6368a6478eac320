"""Shards by Apache Beam: the same files as by our own workers, and one clear line where a pipeline cannot run."""

import os
import pathlib
import sys

import pytest

from data_pipelines import beam, shards
from data_pipelines.sources import DataError

from .videos import write_video

LOCAL = "--runner=DirectRunner --direct_num_workers=1"


@pytest.fixture
def with_beam():
    pytest.importorskip("apache_beam", reason="needs Apache Beam: pip install 'vjepa_jax[beam]'")


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        write_video(tmp_path / "videos" / "ab"[i % 2] / f"{i}.mp4", 6, video=i)
    (tmp_path / "videos" / "a" / "broken.mp4").write_bytes(b"no video")
    return tmp_path / "videos"


def contents(root):
    return {path.name: path.read_bytes() for path in pathlib.Path(root).rglob("*") if path.is_file()}


def test_the_same_files(with_beam, folder, tmp_path):
    """Also where some shards are there already, and where all are."""
    size = os.path.getsize(folder / "a" / "0.mp4")
    src, ours, theirs = str(folder), str(tmp_path / "ours"), str(tmp_path / "theirs")
    shards.write_shards(src, ours, shard_bytes=size, workers=0)
    jobs = shards.plan_shards(src, theirs, shard_bytes=size)
    assert len(jobs) > 3
    shards.write_shard(jobs[1])
    written = os.stat(jobs[1].shard).st_mtime_ns
    seen = []
    progress = lambda done, total: seen.append((done, total))
    for _ in range(2):
        path = beam.write_shards(src, theirs, options=LOCAL, shard_bytes=size, workers=7, progress=progress)
        assert path == os.path.join(theirs, "index.arrow")
        assert contents(theirs) == contents(ours)
    assert os.stat(jobs[1].shard).st_mtime_ns == written
    # Nothing was left to do after the pipeline.
    assert seen == [(6, 6)]


def test_a_job_that_fails(with_beam, folder, tmp_path):
    jobs = shards.plan_shards(str(folder), str(tmp_path / "shards"))
    os.remove(tmp_path / "shards" / "plan.arrow")
    with pytest.raises(DataError, match=r"the Beam pipeline failed .*; what is finished is kept, run") as error:
        beam.run_jobs(jobs, LOCAL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", ["--runner=Nobody", "--runner='", "--direct_num_workers=many"])
def test_options_that_beam_does_not_take(with_beam, options):
    with pytest.raises(DataError, match="Beam does not take --beam-options ") as error:
        beam.run_jobs([], options)
    assert "\n" not in str(error.value)


def test_without_beam(monkeypatch, folder, tmp_path):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(DataError, match=r"--beam needs Apache Beam .*: pip install 'vjepa_jax\[beam\]'"):
        beam.write_shards(str(folder), str(tmp_path / "shards"))


def test_a_folder_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/shards cannot be written .*: free space or name another folder"):
        beam.write_shards(str(folder), str(tmp_path / "file" / "shards"))

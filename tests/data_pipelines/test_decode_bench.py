"""The benchmark prints what it should, and compares ways that do the same; what it measures is not tested."""

import numpy as np
import pytest

from data_pipelines import decode_bench
from data_pipelines.sources import DataError

from .videos import write_video


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(decode_bench, "SIZES", ((48, 64),))
    monkeypatch.setattr(decode_bench, "LOADERS", (("num_threads", 1),))


def test_records(small):
    split, loader, decode = decode_bench.benchmark(quick=True)
    assert split["what"] == "split 64x48 gop 30" and split["video"] == "embedded world"
    assert set(split["ms"]) == {"open", "decode", "crop, resize", "masks", "batch"}
    assert loader["what"] == "batches 64x48 gop 30, 1 threads" and loader["clips_per_s"] > 0
    assert decode["what"] == "decode 64x48 gop 30" and decode["shape"] == [16, 256, 256, 3]
    assert set(decode["clips_per_core_s"]) == {"vjepa_jax", "pyav", "decord2", "opencv"}
    absent = [name for name, rate in decode["clips_per_core_s"].items() if rate == "not installed"]
    assert absent == [name for name, (_, module) in decode_bench.WAYS.items() if not decode_bench._is_installed(module)]
    assert decode["ratio"] > 0 and decode["rss_mb"] > 0 and decode["versions"]["av"]


def test_all_ways_give_the_same_clip(tmp_path):
    path = str(write_video(tmp_path / "plain.mp4", 70, height=240, width=320))
    clips = [
        way(path, np.random.default_rng(3)).astype(int)
        for way, module in decode_bench.WAYS.values()
        if decode_bench._is_installed(module)
    ]
    assert len(clips) >= 2
    for clip in clips[1:]:
        assert clip.shape == (16, 256, 256, 3)
        assert np.abs(clip - clips[0]).mean() < 4  # other frames or another box would differ by 10 and more


def test_a_source_without_videos(small, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="give --source a folder of videos"):
        list(decode_bench.benchmark(str(tmp_path), quick=True))

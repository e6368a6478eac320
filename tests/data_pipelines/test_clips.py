"""Which frames make up a clip."""

import numpy as np
import pytest

from data_pipelines.clips import ClipSpec, clip_indices, frame_offsets


def test_spacing_is_exact():
    """16 frames at 4 fps last 3.75 s at any rate of the video; the released sampler takes every 7th of 30 fps."""
    spec = ClipSpec(16, fps=4.0)
    assert frame_offsets(30.0, spec)[:5].tolist() == [0, 8, 15, 23, 30]
    assert frame_offsets(12.0, spec).tolist() == list(range(0, 48, 3))
    for fps in (5.0, 10.0, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 59.94, 120.0):
        seconds = frame_offsets(fps, spec) / fps
        assert np.abs(seconds - np.arange(16) / 4).max() <= 0.5 / fps + 1e-9


def test_slow_videos_repeat_frames():
    assert frame_offsets(2.0, ClipSpec(6, fps=4.0)).tolist() == [0, 1, 1, 2, 2, 3]
    assert clip_indices(100, 1.0, ClipSpec(4, fps=1000.0)).tolist() == [49] * 4


def test_frame_step_ignores_the_rate():
    assert frame_offsets(30.0, ClipSpec(4, frame_step=5)).tolist() == [0, 5, 10, 15]
    assert frame_offsets(7.0, ClipSpec(4, frame_step=5)).tolist() == [0, 5, 10, 15]


def test_middle_clip_for_evaluation():
    # 8 frames two apart span 15 of 31 frames: 8 before, 8 after.
    assert clip_indices(31, 30.0, ClipSpec(8, frame_step=2)).tolist() == list(range(8, 24, 2))
    assert clip_indices(15, 30.0, ClipSpec(8, frame_step=2)).tolist() == list(range(0, 16, 2))


def test_random_clips_cover_the_video_evenly():
    rng = np.random.default_rng(0)
    spec = ClipSpec(4, frame_step=3)
    starts = np.array([clip_indices(20, 30.0, spec, rng=rng)[0] for _ in range(3000)])
    assert np.bincount(starts).min() > 3000 / 11 * 0.75
    assert set(starts) == set(range(11))


def test_parts_do_not_overlap_where_they_are_long_enough():
    rng = np.random.default_rng(0)
    spec = ClipSpec(4, frame_step=2, clips=3)
    for _ in range(50):
        for clip in range(3):
            indices = clip_indices(31, 30.0, spec, clip, rng)
            assert clip * 31 // 3 <= indices[0] and indices[-1] < (clip + 1) * 31 // 3
            assert np.diff(indices).tolist() == [2, 2, 2]


def test_short_parts_reach_over_their_borders():
    """3 clips of 15 frames from a video of 20: all frames differ, first and last clip touch the ends."""
    spec = ClipSpec(8, frame_step=2, clips=3)
    clips = [clip_indices(20, 30.0, spec, clip) for clip in range(3)]
    assert all(np.diff(c).tolist() == [2] * 7 for c in clips)
    assert clips[0][0] == 0 and clips[2][-1] == 19
    assert clips[0][0] <= clips[1][0] <= clips[2][0]


@pytest.mark.parametrize("clips", [1, 3])
def test_short_videos_repeat_the_last_frame(clips):
    rng = np.random.default_rng(0)
    for clip in range(clips):
        for generator in (None, rng):
            indices = clip_indices(5, 30.0, ClipSpec(6, frame_step=2, clips=clips), clip, generator)
            assert indices.tolist() == [0, 2, 4, 4, 4, 4]
            assert clip_indices(1, 30.0, ClipSpec(3, fps=4.0, clips=clips), clip, generator).tolist() == [0, 0, 0]


def test_always_ascending_and_inside():
    rng = np.random.default_rng(0)
    for _ in range(500):
        num_frames, fps = int(rng.integers(1, 200)), float(rng.uniform(0.5, 120))
        spec = ClipSpec(int(rng.integers(1, 20)), fps=float(rng.uniform(0.5, 60)), clips=int(rng.integers(1, 5)))
        clip = int(rng.integers(spec.clips))
        for generator in (None, rng):
            indices = clip_indices(num_frames, fps, spec, clip, generator)
            assert indices.shape == (spec.num_frames,) and indices.dtype == np.int64
            assert indices[0] >= 0 and indices[-1] < num_frames and (np.diff(indices) >= 0).all()


def test_same_generator_same_clip():
    spec = ClipSpec(4, fps=4.0)
    draws = [clip_indices(300, 30.0, spec, rng=np.random.default_rng(5)).tolist() for _ in range(2)]
    assert draws[0] == draws[1] != clip_indices(300, 30.0, spec, rng=np.random.default_rng(6)).tolist()


def test_bad_specs():
    with pytest.raises(ValueError, match="set exactly one of fps and frame_step"):
        ClipSpec(16, fps=4.0, frame_step=4)
    with pytest.raises(ValueError, match="set exactly one of fps and frame_step"):
        ClipSpec(16)
    with pytest.raises(ValueError, match="must be positive"):
        ClipSpec(16, fps=0.0)

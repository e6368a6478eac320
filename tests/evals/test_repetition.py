"""Repetition counting: known counts of synthetic features and videos, models that must fail, and the layout."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import world
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, repetition
from vjepa_jax.evals.repetition import Config, exact_period, lag_distances, leave_one_out
from vjepa_jax.evals.worlds import Clip

from .models import Collapsed, Static

CLIP = Clip(frames=4, size=(16, 16), tubelet=2, patch=4)


def periodic(steps, period, seed=0, noise=0.0):
    """Features whose every cycle is the same smooth closed path, float64 [steps, 12]."""
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * np.arange(steps) / period
    harmonics = np.stack([f(k * phase) for k in (1, 2, 3) for f in (np.sin, np.cos)], 1)
    return harmonics @ rng.normal(size=(6, 12)) + noise * rng.normal(size=(steps, 12))


def count(features, share=0.5):
    return repetition.counts(lag_distances(features), len(features), (share,), shortest=3)[0]


@pytest.mark.parametrize(("steps", "period"), [(120, 4), (120, 7.3), (120, 12), (110, 22.5), (90, 30), (121, 10.5)])
def test_known_numbers_of_cycles(steps, period):
    for noise in (0.0, 0.3):
        assert count(periodic(steps, period, noise=noise)) == pytest.approx(steps / period, rel=0.06), noise


def test_drift_and_a_shift_of_all_features_change_nothing():
    steps = periodic(100, 10) + 100.0
    assert count(steps) == pytest.approx(10, abs=0.1)
    drifting = periodic(100, 10) + 0.05 * np.arange(100)[:, None]
    assert round(count(drifting)) == 10


def test_a_weak_half_period_is_passed_over():
    """Left and right strokes that differ: dips at half the period have less depth than those at the whole."""
    phase = 2 * np.pi * np.arange(120) / 12
    steps = np.stack([np.sin(phase), np.cos(phase), 2 * np.sin(2 * phase), 2 * np.cos(2 * phase)], 1)
    assert count(steps, 0.9) == pytest.approx(10, abs=0.3)
    assert count(steps, 0.05) == pytest.approx(20, abs=1.0)


def test_features_that_do_not_repeat_count_nothing():
    assert count(np.ones((100, 8))) == 0.0
    rounding = np.ones((100, 8)) + 1e-9 * np.random.default_rng(0).normal(size=(100, 8))
    assert count(rounding) == 0.0
    assert count(np.arange(50.0)[:, None]) == 0.0
    assert count(np.ones((1, 3))) == 0.0


def test_distances_by_hand():
    found = lag_distances(np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 3.0]]))
    # lag 1: 1, 1, 5; lag 2: 0, 2 (squares over two channels)
    np.testing.assert_allclose(found, [0.0, 7 / 3, 1.0], atol=1e-12)


def test_multiples_make_a_period_exact():
    lags = np.arange(61)
    distances = 1 - np.cos(2 * np.pi * lags / 7.25)
    assert exact_period(distances, 7) == pytest.approx(7.25, abs=0.02)


def test_metrics_by_hand():
    guess, truth = np.array([4.0, 9.0, 0.0]), np.array([5, 5, 2])
    assert repetition.normalised_error(guess, truth) == pytest.approx((0.2 + 0.8 + 1.0) / 3)
    assert repetition.off_by_one(guess, truth) == pytest.approx(100 / 3)
    assert repetition.mean_of_others(np.array([2, 4, 9])).tolist() == [6.0, 6.0, 3.0]
    # of 2 and 9 the guess 2 has the error 7/9, of 4 and 9 the guess 4 has 5/9
    assert repetition.best_constant(np.array([2, 4, 9])).tolist() == [4.0, 2.0, 2.0]


def test_a_video_does_not_choose_its_own_setting():
    """The second setting is right on the last video alone: it does not choose it for itself."""
    found = np.array([[5.0, 9.0], [6.0, 9.0], [9.0, 3.0]])
    guess, chosen = leave_one_out(found, np.array([5, 6, 3]), (0.2, 0.8))
    assert guess.tolist() == [5.0, 6.0, 9.0] or chosen[2] == 0.2
    assert chosen[2] == 0.2 and guess[2] == 9.0


@pytest.fixture
def run(tiny_config):
    return from_config_dict(tiny_config())


def folder(tmp_path, cycles=(4, 6, 8), frames=48, cut=0):
    """Videos of a bar that goes round, `cycles` times in so many frames, and their annotations."""
    (tmp_path / "repetition").mkdir()
    (tmp_path / "repetition_annotations").mkdir()
    for number, count in enumerate(cycles):
        video = np.full((frames, 16, 16, 3), 60, np.uint8)
        for t in range(frames):
            place = 6 + 6 * np.sin(2 * np.pi * t * count / frames)
            other = 6 + 6 * np.cos(2 * np.pi * t * count / frames)
            video[t, round(place) : round(place) + 4, round(other) : round(other) + 4] = 230
        world.encode(tmp_path / "repetition" / f"{number}.mp4", video, fps=10, crf=10)
        ends = np.arange(1, count + cut + 1) * frames // count - 1
        np.save(tmp_path / "repetition_annotations" / f"{number}.npy", ends)
    return Config(path=str(tmp_path), batch_size=8, seeds=1, depths=(0.5, 0.8))


def test_videos_are_counted_by_pixels_and_by_no_collapsed_encoder(tmp_path, run):
    cfg, seen = folder(tmp_path, cut=2), []
    named = {controls.TRAINED: [Static(run)], controls.RANDOM: [Collapsed(run), Collapsed(run)]}
    rows = repetition.run(named, cfg, seen.append)
    assert rows == seen
    by = {(row["encoder"], row["metric"]): row for row in rows}
    names = ["trained", "random init", "single frame", "shuffled frames", repetition.MEAN_COUNT, repetition.CONSTANT]
    assert list(dict.fromkeys(row["encoder"] for row in rows)) == names
    assert by["trained", "off-by-one accuracy"]["value"] == 100.0
    assert by["trained", "MAE by the true count"]["value"] <= 0.1
    collapsed = by["random init", "MAE by the true count"]
    assert collapsed["value"] == 1.0 and collapsed["seeds"] == 2 and not collapsed["higher_is_better"]
    assert by["random init", "off-by-one accuracy"]["value"] == 0.0
    assert "3 of the videos end before their last annotated cycle" in by["trained", "off-by-one accuracy"]["note"]
    assert all(row["low"] <= row["value"] <= row["high"] and row["count"] == 3 for row in rows)


def test_every_step_is_the_middle_of_its_clip():
    """An encoder that says what place a step has in its clip: always the same, so that nothing repeats."""
    places = lambda video: np.broadcast_to(np.arange(2.0)[None, :, None, None, None], (len(video), 2, 4, 4, 3))
    video = np.zeros((30, 16, 16, 3), np.uint8)
    steps = repetition.middle_steps(places, video, CLIP, 8)
    assert steps.shape == (15, 48) and (steps == 1.0).all()
    # and the middle step of clip s begins with frame 2 s of the video
    numbers = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    first = lambda clips: clips[:, ::2, ::4, ::4].astype(np.float32)
    found = repetition.middle_steps(first, numbers, CLIP, 4)
    assert found[:, 0].tolist() == list(range(0, 30, 2))


def test_an_encoder_runs_with_its_controls(tmp_path, run):
    named = controls.encoders(Encoder.random(run), 2)
    rows = repetition.run(named, dataclasses.replace(folder(tmp_path), limit=2))
    assert {row["count"] for row in rows} == {2} and {"raw pixels", "random init"} <= {row["encoder"] for row in rows}


def test_wrong_layouts_show_the_right_one(tmp_path, run):
    named = {controls.TRAINED: [Static(run)]}
    layout = (
        r": expected .*/repetition/NAME\.mp4 and, for each, .*/repetition_annotations/NAME\.npy: the frames in which"
    )
    refused = lambda cfg, line: pytest.raises(DataError, match=line + layout)
    with refused(None, r"repetition\.path='' is no folder with counted videos"):
        repetition.run(named, Config())
    cfg = folder(tmp_path)
    annotation = tmp_path / "repetition_annotations" / "1.npy"
    for bad, line in ((np.array([3, 2]), r"holds int64 \(2,\)"), (np.array([0.5]), r"holds float64 \(1,\)")):
        np.save(annotation, bad)
        with refused(cfg, rf"1\.npy {line}"):
            repetition.run(named, cfg)
    annotation.write_bytes(b"no array")
    with refused(cfg, r"1\.npy is no array that NumPy can read"):
        repetition.run(named, cfg)
    annotation.unlink()
    with refused(cfg, r"1\.npy does not exist"):
        repetition.run(named, cfg)
    for number in (0, 1, 2):
        np.save(tmp_path / "repetition_annotations" / f"{number}.npy", np.array([1000]))
    with refused(cfg, "holds 0 videos with a whole cycle, two are needed"):
        repetition.run(named, cfg)


def test_settings_that_cannot_be_run_are_one_line(run):
    for change, line in (
        ({"frame_step": 0}, r"repetition\.frame_step=0 must be at least 1"),
        ({"shortest": 1}, r"repetition\.shortest must be at least 2 time steps"),
        ({"depths": (0.0,)}, r"repetition\.depths=\(0\.0,\) must be shares above 0"),
    ):
        with pytest.raises(ConfigError, match=line):
            repetition.run({controls.TRAINED: [Static(run)]}, dataclasses.replace(Config(), **change))


def test_real_videos_have_their_annotations(shared_data):
    """Files of the shared folder are cut at 240 frames: cycles beyond that are not asked for."""
    if not (shared_data / "clips" / "repetition").is_dir():
        pytest.skip("no counted videos in the folder of real ones")
    cfg = Config(path=str(shared_data / "clips"), limit=9)
    found = {video.name: video for video in repetition.read_videos(cfg, CLIP)}
    assert len(found) == 9 and found["000_rope_beach"].count == 17 and not found["000_rope_beach"].cut
    assert found["013_weights_floor"].count == 2 and found["013_weights_floor"].cut

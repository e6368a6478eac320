"""Temporal consistency: every metric by hand, encoders that must find points again or must not."""

import dataclasses

import numpy as np
import pytest

from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import consistency, controls, worlds
from vjepa_jax.evals.consistency import (
    Config,
    Tracks,
    at_points,
    chance,
    frame_features,
    intraclass,
    jitter,
    pck,
    stay,
    straightness,
)

from .models import Collapsed

SMALL = Config(videos=16, deltas=(1, 4), batch_size=8, seeds=1)


@pytest.fixture
def run(tiny_config):
    return from_config_dict(tiny_config(data={"num_frames": 8, "resolution": 32}, model={"patch_size": 8}))


def test_features_of_frames_lie_between_the_middles_of_time_steps():
    features = np.array([0.0, 10.0]).reshape(1, 2, 1, 1, 1)
    # tubelets of 2 frames have their middles at 0.5 and 2.5
    assert frame_features(features, 4).ravel().tolist() == [0.0, 2.5, 7.5, 10.0]
    assert frame_features(features[:, :1], 2).ravel().tolist() == [0.0, 0.0]


def test_points_lie_between_token_centres():
    maps = np.array([[0.0, 1.0], [2.0, 3.0]]).reshape(1, 2, 2, 1)
    value = lambda x, y: at_points(maps, np.array([[x, y]]), 8).item()
    assert (value(4, 4), value(12, 4), value(4, 12), value(8, 8)) == (0.0, 1.0, 2.0, 1.5)
    assert value(6, 4) == 0.25 and value(0, 0) == 0.0 and value(16, 16) == 3.0


def one_hot_walk():
    """A token grid of 4 x 4 in which one feature walks to the right by a token a frame, over a common background."""
    frames = np.zeros((1, 4, 4, 4, 3))
    frames[..., 0] = 1.0
    points = np.zeros((1, 4, 1, 2), np.float32)
    for t in range(4):
        frames[0, t, 1, t] = [0.0, 1.0, 0.0]
        points[0, t, 0] = (8 * t + 4, 12)
    return frames, Tracks(points, np.ones((1, 4, 1), bool))


def test_a_feature_that_moves_with_its_point_is_found_again():
    frames, tracks = one_hot_walk()
    assert pck(frames, tracks, 1, 8, 8.0)[0].tolist() == [1.0] * 3
    assert pck(frames, tracks, 2, 8, 8.0)[0].tolist() == [1.0] * 2
    assert pck(frames[:, ::-1], tracks, 2, 8, 4.0)[0].tolist() != [1.0] * 2
    assert stay(tracks, 1, 7.9)[0].tolist() == [0.0] * 3 and stay(tracks, 1, 8.0)[0].tolist() == [1.0] * 3
    hidden = Tracks(tracks.points, np.array([[[True], [True], [False], [True]]]))
    assert pck(frames, hidden, 1, 8, 8.0)[0].tolist() == [1.0]


def test_constant_features_find_a_point_by_chance():
    _, tracks = one_hot_walk()
    hits = pck(np.ones((1, 4, 4, 4, 3)), tracks, 1, 8, 8.0)[0]
    # within 8 pixels of a token's centre lie 5 of 16 tokens, 4 of 16 at the right edge
    assert hits.tolist() == [5 / 16, 5 / 16, 4 / 16]
    assert chance(tracks, 1, 8, 8.0, (4, 4)) == pytest.approx(100 * hits.mean())


def test_the_intraclass_correlation_by_hand():
    groups = [np.array([[1.0], [3.0]]), np.array([[5.0], [7.0]])]
    # within: (1 + 1 + 1 + 1) / 2; total: (9 + 1 + 1 + 9) / 3
    assert intraclass(groups) == pytest.approx(1 - 2 / (20 / 3))
    assert intraclass([np.ones((3, 2)), np.zeros((3, 2))]) == 1.0
    assert intraclass([np.ones((3, 2)), np.ones((3, 2))]) == 0.0
    noise = np.random.default_rng(0).normal(size=(200, 5, 4))
    assert abs(intraclass(list(noise))) < 0.05


def test_jitter_by_hand():
    a = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert jitter(a, a) == 0.0 and jitter(a, a[::-1]) == 1.0  # random frames are orthogonal or the same: 1 / 0
    turned = np.array([[[1.0, 1.0]], [[-1.0, 1.0]]])
    cos = np.sqrt(0.5)
    # with its own: cos, cos; with the other's: a0 and (-1, 1), a1 and (1, 1)
    assert jitter(a, turned) == pytest.approx((1 - cos) / (1 - 0.0))
    assert jitter(np.ones((2, 3, 4)), np.ones((2, 3, 4))) == 1.0


def test_straightness_by_hand():
    line, corner = np.array([[0.0, 0], [1, 0], [2, 0]]), np.array([[0.0, 0], [1, 0], [1, 1]])
    back, still = np.array([[0.0, 0], [1, 0], [0, 0]]), np.ones((3, 2))
    np.testing.assert_allclose(straightness(np.stack([line, corner, back, still])), [1.0, 0.0, -1.0, 0.0])


def by_name(encoders, cfg=SMALL):
    return {(row["encoder"], row["metric"]): row for row in consistency.run(encoders, cfg)}


def test_a_collapsed_encoder_scores_badly_everywhere(run):
    rows = by_name({controls.TRAINED: [Collapsed(run)]})
    value = lambda metric: rows["trained", metric]["value"]
    for delta in (1, 4):
        row = rows["trained", f"TC-disc, PCK, frames apart: {delta}"]
        assert row["value"] == pytest.approx(row["chance"]) and row["value"] < 35
    assert value("TC-ICC") == 0.0 and value("jitter of overlapping windows") == 1.0
    pixels = consistency.straightness(
        consistency.pixel_steps(np.zeros((1, 8, 4, 4, 3), np.uint8), worlds.Clip(8, (4, 4), 2, 2))
    )
    assert pixels.tolist() == [0.0]
    assert rows["constant", "TC-ICC"]["value"] == 0.0


class Colours:
    """The mean colour of every token, relative to grey: what an object's is stays with it."""

    def __init__(self, run):
        self.run = run

    def __call__(self, video):
        n, t, h, w, _ = np.asarray(video).shape
        tokens = np.asarray(video, np.float32).reshape(n, t // 2, 2, h // 8, 8, w // 8, 8, 3)
        return tokens.mean((2, 4, 6)) - 128.0


def test_an_encoder_of_colours_finds_coloured_objects(run):
    rows = by_name({controls.TRAINED: [Colours(run)]}, dataclasses.replace(SMALL, videos=48))
    row = rows["trained", "TC-disc, PCK, frames apart: 4"]
    assert row["low"] > row["chance"] + 5
    assert rows["trained", "TC-ICC"]["value"] > 0.3 and rows["trained", "jitter of overlapping windows"]["value"] < 1e-6
    assert rows["trained", "straightness, above that of pixels"]["low"] is not None


def test_rows_with_controls(run):
    rows = by_name(controls.encoders(Encoder.random(run), 2))
    names = list(dict.fromkeys(name for name, _ in rows))
    assert names == ["trained", "random init", "raw pixels", "trained, one frame at a time", "constant", "no motion"]
    assert rows["trained, one frame at a time", "jitter of overlapping windows"]["value"] == pytest.approx(0, abs=1e-4)
    assert not any("cosine" in metric for _, metric in rows)


def test_settings_that_do_not_fit_are_one_line(run):
    named = {controls.TRAINED: [Collapsed(run)]}
    for changes, message in (
        ({"deltas": (8,)}, "consistency.deltas: 8 must be at least 1 and below the 8 frames"),
        ({"shift": 3}, "consistency.shift=3 must be a multiple of 2 between 0 and the 8 frames"),
        ({"videos": 1}, "consistency.videos=1 must be at least 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            consistency.run(named, dataclasses.replace(SMALL, **changes))
    short = from_config_dict_like(run, 4)
    with pytest.raises(ConfigError, match="consistency needs clips of at least 4 time steps"):
        consistency.run({controls.TRAINED: [Collapsed(short)]}, SMALL)


def from_config_dict_like(run, frames):
    return dataclasses.replace(run, data=dataclasses.replace(run.data, num_frames=frames))

"""Scores, their intervals, and the controls beside them."""

import numpy as np
import pytest

from vjepa_jax.config import from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls
from vjepa_jax.evals.features import pixel_features
from vjepa_jax.evals.scores import bootstrap, format_scores, mean_interval, score


def test_interval_over_seeds_is_students():
    row = score("set", "acc", "trained", [70.0, 72.0, 74.0], count=50, chance=10.0)
    assert row["value"] == 72.0 and row["seeds"] == 3
    half = 4.302653 * 2.0 / np.sqrt(3)  # t of two degrees of freedom, Student's table
    assert row["low"] == pytest.approx(72.0 - half, abs=1e-4) and row["high"] == pytest.approx(72.0 + half, abs=1e-4)


def test_one_seed_has_no_interval_unless_it_is_given():
    assert score("set", "acc", "trained", [70.0], count=50)["low"] is None
    assert score("set", "acc", "trained", [70.0], count=50, interval=(65.0, 75.0))["high"] == 75.0


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_a_score_must_be_a_number(values):
    with pytest.raises(ValueError, match="set, acc, trained"):
        score("set", "acc", "trained", values, count=1)


def test_bootstrap_of_a_mean_is_that_of_the_normal_distribution():
    items = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = mean_interval(items)
    error = 1.96 * items.std() / np.sqrt(400)
    assert low == pytest.approx(items.mean() - error, abs=0.05) and high == pytest.approx(
        items.mean() + error, abs=0.05
    )
    assert mean_interval(items) == (low, high)


def test_bootstrap_leaves_out_what_is_not_finite():
    values = iter([1.0, float("nan")] * 50)
    assert bootstrap(lambda rows: next(values), 3, resamples=100) == (1.0, 1.0)
    with pytest.raises(ValueError, match="finite"):
        bootstrap(lambda rows: float("nan"), 3, resamples=10)
    with pytest.raises(ValueError, match="at least one row"):
        bootstrap(lambda rows: 0.0, 0)


def test_the_table_of_scores():
    rows = [
        score("motion", "skill at 2", "trained", [0.25], count=9, unit="", interval=(0.1, 0.3)),
        score("probe", "accuracy", "raw pixels", [50.0, 52.0], count=100, chance=25.0),
    ]
    lines = format_scores(rows).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    assert "0.250" in lines[2] and "0.100 to 0.300" in lines[2] and "51.0 %" in lines[3] and "25.0 %" in lines[3]


def video(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, 8, 4, 4, 3)).astype(np.uint8)


def pixels(clip):
    return pixel_features(clip, 2, 2)


def test_single_frame_sees_the_middle_frame_alone():
    clip = video()
    changed = clip.copy()
    changed[:, [0, 1, 2, 3, 5, 6, 7]] = 0
    still = controls.single_frame(pixels)
    np.testing.assert_array_equal(still(clip), still(changed))
    assert (still(clip)[:, 0] == still(clip)[:, 3]).all()


def test_shuffled_frames_are_the_same_frames_in_one_other_order():
    shuffled = controls.shuffled_frames(lambda clip: clip)
    a, b = shuffled(video(0)), shuffled(video(1))
    orders = [
        [int(np.where((v[0, t] == clip[0]).all((1, 2, 3)))[0][0]) for t in range(8)]
        for v, clip in ((video(0), a), (video(1), b))
    ]
    assert orders[0] == orders[1] != list(range(8)) and sorted(orders[0]) == list(range(8))


def test_stills_and_shuffled_frames_stand_beside_every_trained_encoder():
    others = [lambda clip: clip, lambda clip: clip]
    named = controls.with_frames({controls.TRAINED: [pixels], controls.RANDOM: others})
    assert {name: len(group) for name, group in named.items()} == {
        controls.TRAINED: 1, controls.RANDOM: 2, controls.STILL: 1, controls.SHUFFLED: 1,
    }  # fmt: skip
    clip = video()
    np.testing.assert_array_equal(named[controls.STILL][0](clip), controls.single_frame(pixels)(clip))
    np.testing.assert_array_equal(named[controls.SHUFFLED][0](clip), controls.shuffled_frames(pixels)(clip))


def test_the_collapsed_encoder_is_constant():
    features = np.asarray(controls.constant_features(video(), 2, 2))
    assert features.shape == (2, 4, 2, 2, 8) and features.std((0, 1, 2, 3)).max() == 0


def test_random_inits_are_those_of_the_encoder_and_share_its_programs(tiny_config):
    encoder = Encoder.random(from_config_dict(tiny_config()), seed=1)
    named = controls.encoders(encoder, 2)
    clip = np.random.default_rng(0).integers(0, 256, (1, 4, 16, 16, 3), np.uint8)
    features = {name: [np.asarray(each(clip)) for each in group] for name, group in named.items()}
    assert list(features) == ["trained", "random init", "raw pixels"]
    first, second = features["random init"]
    assert not np.allclose(first, second) and not np.allclose(first, features["trained"][0])
    np.testing.assert_allclose(first, np.asarray(Encoder.random(encoder.run, 1000)(clip)), atol=1e-5)
    assert encoder._features._cache_size() == 1
    assert list(controls.encoders(encoder, 1, pixels=False)) == ["trained", "random init"]

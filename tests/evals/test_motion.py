"""Motion prediction: every metric by hand, and models that must win, tie or fail."""

import dataclasses

import numpy as np
import pytest

from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, motion, readout, worlds
from vjepa_jax.evals.forecast import latents
from vjepa_jax.evals.motion import Config, Forecasts, errors, hard_negatives, moving_tokens, skill
from vjepa_jax.evals.readout import fit_ridge, normalised, r_squared

from .models import Collapsed, Static

SMALL = Config(videos=40, horizons=(1,), candidates=16, hard=7, batch_size=16, seeds=1)


@pytest.fixture
def run(tiny_config):
    return from_config_dict(tiny_config(data={"num_frames": 8, "resolution": 32}, model={"patch_size": 8}))


def test_errors_and_skill_by_hand():
    # one video, 4 steps, 2 places, 1 channel: place 0 moves by 1 a step, place 1 rests
    real = np.array([[[0.0], [5.0]], [[1.0], [5.0]], [[2.0], [5.0]], [[3.5], [5.0]]])[None]
    predicted = np.array([[[2.5], [5.0]], [[3.0], [5.25]]])[None]
    f = Forecasts(predicted, real, real[:, :, 0], np.zeros((1, 0, 1)))
    at_1, at_2 = errors(f, 2, 1), errors(f, 2, 2)
    assert at_1["forecast"].tolist() == [[0.5, 0.0]] and at_1["persistence"].tolist() == [[1.0, 0.0]]
    assert at_1["linear"].tolist() == [[0.0, 0.0]] and at_2["linear"].tolist() == [[0.5, 0.0]]
    mean = real.mean()
    np.testing.assert_allclose(at_2["mean"], [[abs(mean - 3.5), abs(mean - 5.0)]])
    assert skill(at_1["forecast"].mean(1), at_1["persistence"].mean(1)) == 0.5
    assert skill(at_2["forecast"].mean(1), at_2["persistence"].mean(1)) == pytest.approx(1 - 0.75 / 2.5)
    assert moving_tokens(at_1["persistence"], 0.5).tolist() == [[True, False]]
    assert errors(f, 1, 1)["linear"].tolist() == [[1.0, 0.0]]  # one step is no line: the last one stays
    assert skill(np.array([3.0]), np.array([0.0])) == 0.0


def test_retrieval_by_hand():
    predicted, true = np.array([[1.0], [1.0], [1.0]]), np.array([[1.1], [2.0], [3.0]])
    negatives = np.array([[[0.0], [5.0]], [[1.5], [0.0]], [[3.0], [1.0]]])
    better, same = motion.ranks(predicted, true, negatives)
    assert better.tolist() == [0, 1, 1] and same.tolist() == [0, 1, 1]
    assert motion.top1(better, same).tolist() == [1.0, 0.0, 0.0]
    # rank 2 or 3 by lot: (1/2 + 1/3) / 2
    np.testing.assert_allclose(motion.reciprocal_rank(better, same), [1.0, 5 / 12, 5 / 12])
    assert motion.top1(np.array([0]), np.array([3])).tolist() == [0.25]


def test_hard_negatives_are_the_last_given_step_and_the_nearest_of_both_directions():
    real = np.arange(4.0).reshape(1, 4, 1, 1)
    f = Forecasts(real[:, 2:], real, 10 + np.arange(4.0)[None, :, None], 20 + np.arange(4.0)[None, :, None])
    # the true one is step 2; step 1 was the last given; reversed step 1 shows the same moment as step 2
    assert hard_negatives(f, 2, 1, 15)[0, :, 0].tolist() == [1, 3, 11, 0, 10, 12, 13, 20, 21, 22, 23]
    assert hard_negatives(f, 2, 1, 3)[0, :, 0].tolist() == [1, 3, 11]


@pytest.mark.parametrize(("steps", "windows"), [(8, 1), (16, 1), (4, 3), (2, 7)])
def test_there_are_always_fifteen(steps, windows):
    clip = worlds.Clip(2 * steps, (32, 32), 2, 8)
    assert motion._windows(Config(), clip) == windows
    others = 2 * steps - 1 + (windows - 1) * steps
    assert others >= 15 and (windows == 1 or others - steps < 15)


def test_ridge_recovers_a_linear_map_and_r2_is_what_it_says():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, [1.0, 10.0, 0.1], (200, 3))
    y = x @ np.array([[1.0, 0.0], [0.5, -1.0], [2.0, 3.0]]) + 4.0
    assert r_squared(fit_ridge(x, y)(x), y) > 0.9999
    wide = rng.normal(size=(40, 300))
    assert r_squared(fit_ridge(wide, wide[:, :1])(wide), wide[:, :1]) > 0.9  # more features than rows
    assert r_squared(np.broadcast_to(y.mean(0), y.shape), y) == 0.0
    assert r_squared(np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]])) == 1 - 1 / 2
    assert normalised(0.75, 0.5, 1.0) == 0.5 and normalised(0.0, -0.5, 0.5) == 0.0 and normalised(0.9, 0.5, 0.51) == 0.0


class Oracle(Static):
    """Predicts what comes."""

    def predict(self, video, context, target, mask_index=0):
        z = np.asarray(latents(self.encode, video)).reshape(len(video), -1, 384)
        return np.take_along_axis(z, target[:, :, None], 1)


def by_metric(model, cfg=SMALL):
    rows = motion.run({controls.TRAINED: [model]}, cfg)
    return {row["metric"]: row["value"] for row in rows if row["encoder"] == "trained"}


def test_a_model_that_knows_the_future_scores_all(run):
    scores = by_metric(Oracle(run))
    for metric, value in scores.items():
        if metric.startswith("skill"):
            assert value == pytest.approx(1.0, abs=1e-6), metric
        elif metric.startswith("retrieval"):
            assert value == pytest.approx(100.0), metric
    assert (
        scores["position, readout-normalised at 1 tubelet"] == 1.0
        and scores["occupancy, readout-normalised at 1 tubelet"] == 1.0
    )
    assert (
        scores["R2 of position from the oracle at 1 tubelet"]
        > scores["R2 of position from the copy at 1 tubelet"] + 0.02
    )


def test_a_model_that_expects_rest_has_no_skill(run):
    scores = by_metric(Static(run))
    for metric in ("skill against persistence at 1 tubelet", "skill against persistence at 1 tubelet, moving tokens"):
        assert scores[metric] == pytest.approx(0.0, abs=1e-6)
    assert scores["position, readout-normalised at 1 tubelet"] <= 1e-6
    # its forecast is a candidate, the last given step, which is never the right one
    assert scores["retrieval top-1 of 8, same video at 1 tubelet"] == 0.0


def test_a_collapsed_model_is_at_chance(run):
    scores = by_metric(Collapsed(run))
    for metric, value in scores.items():
        if metric.startswith("skill") or "normalised" in metric:
            assert value == 0.0, metric
        elif metric.startswith("R2"):
            assert value < 0.05, metric
    assert scores["retrieval top-1 of 16 at 1 tubelet"] == pytest.approx(100 / 16)
    assert scores["retrieval MRR of 16 at 1 tubelet"] == pytest.approx(100 * np.mean(1 / np.arange(1, 17)))
    assert scores["retrieval top-1 of 8, same video at 1 tubelet"] == pytest.approx(100 / 8)


def test_targets_are_those_of_the_truth(run):
    clip = worlds.Clip(8, (32, 32), 2, 8)
    truths = worlds.render(worlds.travelling(clip), 3, seed=0)[1]
    targets = readout.targets(truths, clip)
    assert targets["position"].shape == (3, 4, 4) and targets["occupancy"].shape == (3, 4, 16)
    truth = truths[1]
    x = 2 * np.pi * truth.tracks[2:4, 0, 0] / 32
    assert targets["position"][1, 1, 0] == pytest.approx(np.sin(x).mean(), abs=1e-5)
    np.testing.assert_allclose(targets["velocity"][1, 2], truth.velocity[4:6, 0].mean(0), atol=1e-6)
    solid = truth.masks[6:8, 8:16, 16:24] == 1
    assert targets["occupancy"][1, 3, 4 + 2] == pytest.approx(solid.mean())


def test_rows_with_controls_and_of_a_manifest(run, tiny_world):
    rows = motion.run(controls.encoders(Encoder.random(run), 2), SMALL)
    assert {row["encoder"] for row in rows} == {
        "trained", "random init", "copy of the last step", "shuffled frames", "copy of the last pixels"
    }  # fmt: skip
    assert all(row["low"] is not None for row in rows)
    real = dataclasses.replace(SMALL, path=str(tiny_world), split="", videos=72)
    rows = motion.run({controls.TRAINED: [Encoder.random(run)]}, real)
    assert rows and not any("R2" in row["metric"] for row in rows) and {row["count"] for row in rows} == {72}


def test_settings_that_do_not_fit_are_one_line(run, tiny_world):
    named = {controls.TRAINED: [Collapsed(run)]}
    for changes, message in (
        (
            {"horizons": (1, 4)},
            "motion.horizons: 4 must be at least 1 and at most 2: a clip has 4 time steps and 2 are",
        ),
        ({"context": 4}, "motion.context=4 must be at least 1 and below the 4 time steps"),
        ({"hard": 16}, "motion.hard=16 must be below motion.candidates=16"),
        ({"videos": 8}, "at most motion.videos=8"),
        ({"moving": 0.0}, "motion.moving=0.0 must lie in"),
        ({"path": str(tiny_world), "candidates": 30}, "has 16 videos: 30 are needed"),
    ):
        with pytest.raises(ConfigError, match=message):
            motion.run(named, dataclasses.replace(SMALL, **changes))

"""Effective context: the cues, the definitions by hand, and encoders whose memory is known."""

import dataclasses

import numpy as np
import pytest

from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import context, controls, worlds
from vjepa_jax.evals.context import CLASSES, Config, Examples, effective_lag, effective_window

from .models import Collapsed

CLIP = worlds.Clip(8, (16, 16), 2, 4)
SMALL = Config(frames=(8, 16), last=8, train=96, test=96, batch_size=32, seeds=1)


@pytest.fixture
def run(tiny_config):
    return from_config_dict(tiny_config(data={"num_frames": 8}))


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize(("frames", "moment"), [(8, 1), (32, 2)])
def test_cues_show_when_they_should_and_labels_are_even(task, frames, moment):
    examples = Examples(task, frames, moment, CLIP)
    labels = examples.labels(24)
    assert np.bincount(labels).tolist() == [24 // CLASSES[task]] * CLASSES[task]
    for index in range(12):
        label, shows = examples.shows(index)
        slots = [slot for slot, _ in shows]
        assert label == labels[index] and slots == sorted(slots) and 0 <= slots[0] and slots[-1] < examples.slots
        if task == "counting":
            assert len(shows) == label + 1 and (np.diff(slots) >= 2).all()
        bright = examples.render(index).max((1, 2)) > 180
        lit = np.zeros(frames, bool)
        for slot, _ in shows:
            lit[slot * moment : (slot + 1) * moment] = True
        assert (bright.any(1) == lit).all()
        assert examples.lags(12)[index] == frames - (slots[-1] + 1) * moment


def test_needles_lie_in_every_slot_in_every_class():
    examples = Examples("needle", 8, 1, CLIP)
    found = {(label, shows[0][0]) for label, shows in map(examples.shows, range(32))}
    assert len(found) == 32


def test_effective_windows_by_hand():
    right = lambda share: np.arange(100) < 100 * share
    # an error of .8 is sqrt(.16 / 100) = 4 points
    windows = {8: right(0.5), 16: right(0.77), 32: right(0.79)}
    assert effective_window(right(0.8), windows, 64, 0.25) == 16
    assert effective_window(right(0.8), {8: right(0.5)}, 64, 0.25) == 64
    assert effective_window(right(0.33), windows, 64, 0.25) == 0  # two errors of chance are 8.7 points


def test_effective_lags_by_hand():
    lags = np.repeat([0, 10, 20, 30], 100)
    right = np.concatenate([np.arange(100) < hits for hits in (100, 70, 65, 30)])
    assert effective_lag(right, lags, 0.25) == 20  # above .25 + .75 / 2
    gap = np.concatenate([np.arange(100) < hits for hits in (100, 40, 100, 100)])
    assert effective_lag(gap, lags, 0.25) == 0  # the memory ends where it first fails
    assert effective_lag(np.tile(np.arange(4) == 0, 100), lags, 0.25) == 0


class Memory:
    """The brightest colour of the last `frames` frames, in every token."""

    def __init__(self, run, frames):
        self.run, self.frames = run, frames

    def __call__(self, video):
        video = np.asarray(video, np.float32)
        brightest = video[:, -self.frames :].reshape(len(video), -1, 3).max(1)
        return np.broadcast_to(brightest[:, None, None, None], (len(video), video.shape[1] // 2, 2, 2, 3))


def values(model, **changes):
    rows = context.run({controls.TRAINED: [model]}, dataclasses.replace(SMALL, **changes))
    return {(row["encoder"], row["metric"]): row["value"] for row in rows}


def test_a_memory_is_as_long_as_it_is(run):
    whole, short = values(Memory(run, 16), curves=("longer",)), values(Memory(run, 8), curves=("longer",))
    assert whole["trained", "needle, 16 frames"] > 95 and whole["trained", "needle from the last step, 16 frames"] > 95
    assert whole["trained", "effective context in frames, needle"] == 16
    assert whole["trained", "effective context in frames, needle from the last step"] == 15
    assert 50 < short["trained", "needle, 16 frames"] < 80
    assert short["trained", "effective context in frames, needle"] == 8
    assert short["trained", "effective context in frames, needle from the last step"] == 7
    assert 50 < whole["last 8 frames", "needle, 16 frames"] < 80
    # which colours there were is in it, not when
    assert whole["trained", "order, 16 frames"] < 40
    assert whole["shuffled frames", "needle, 16 frames"] > 95


def test_a_collapsed_encoder_is_at_chance(run):
    for (_, metric), value in values(Collapsed(run)).items():
        if metric.startswith("effective"):
            assert value == 0.0, metric
        else:
            assert value == pytest.approx(100 / CLASSES[metric.split()[0].strip(",")]), metric


def test_rows_with_controls_and_both_curves(run):
    rows = context.run(controls.encoders(Encoder.random(run), 2), dataclasses.replace(SMALL, tasks=("order",)))
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    longest = ["order, 16 frames", "effective context in frames, order"]
    assert metrics == [*longest, "order, 8 frames", "order, 16 frames, denser"]
    names = {row["encoder"] for row in rows if row["metric"] == "order, 16 frames"}
    assert names == {"trained", "random init", "raw pixels", "shuffled frames", "last 8 frames"}
    assert list(context._lengths(SMALL)) == [(16, "longer", 1), (8, "longer", 1), (16, "denser", 2)]


def test_settings_that_do_not_fit_are_one_line(run):
    named = {controls.TRAINED: [Collapsed(run)]}
    for changes, message in (
        ({"tasks": ("neadle",)}, "context.tasks: 'neadle' is not one of needle, order, counting"),
        ({"curves": ("faster",)}, "context.curves: 'faster' is not one of longer, denser"),
        ({"frames": (8, 12)}, "context.frames: 12 must be a multiple of 8, the first, and of 2"),
        ({"moment": 2}, "context.frames: 8 must .* hold at least 8 moments of context.moment=2"),
        ({"frames": (8, 32, 16)}, "must be ascending"),
        ({"last": 5}, "context.last=5 must be a multiple of 2"),
        ({"frames": ()}, "must hold at least one value each"),
    ):
        with pytest.raises(ConfigError, match=message):
            context.run(named, dataclasses.replace(SMALL, **changes))

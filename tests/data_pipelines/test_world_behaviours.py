"""Behaviours of the embedded world: exact change points, the motion that the name says, the same video every time."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.world_behaviours import BEHAVIOURS, render_behaviours, segments
from data_pipelines.world_spec import WorldError, demo_spec

SPEC = dataclasses.replace(demo_spec(32, 8, noise=0.0))


def centres(video):
    """Of what is not background, on the torus, float [T, 2] (x, y)."""
    bright = (abs(video.astype(int) - video[:, :1, :1]).sum(-1) > 60).astype(float)
    out = []
    for axis in (2, 1):
        size = video.shape[axis]
        turn = np.exp(2j * np.pi * np.arange(size) / size)
        profile = bright.sum(3 - axis)
        out.append((np.angle(profile @ turn) / (2 * np.pi) * size) % size)
    return np.stack(out, 1)


def steps(video):
    """Lengths of the steps between frames."""
    moved = np.diff(centres(video), axis=0)
    return np.hypot(*((moved + 16) % 32 - 16).T)


def seeing(plan, count=4):
    """Videos whose first pixel is background all the time."""
    for index in range(60):
        video, _ = render_behaviours(SPEC, 0, index, plan)
        if np.ptp(video[:, 0, 0], axis=0).max() == 0:
            yield video
            count -= 1
        if not count:
            return


def test_every_behaviour_moves_as_its_name_says():
    for video in seeing([("dash", 12)]):
        np.testing.assert_allclose(steps(video), 3.0, atol=0.6)
    for video in seeing([("still", 12)]):
        assert (video == video[:1]).all()
    for video in seeing([("drift", 12)]):
        assert abs(steps(video).mean() - 0.75) < 0.25
    for video in seeing([("orbit", 26)]):  # two turns of 4 pi frames each, back where it was
        there = centres(video)
        assert np.hypot(*((there[25] - there[0] + 16) % 32 - 16)) < 1.5 and 1.4 < steps(video).mean() < 2.5
    for video in seeing([("shake", 13)]):
        there = centres(video)
        assert np.hypot(*((there[12] - there[0] + 16) % 32 - 16)) < 1.0 and steps(video).max() > 1.5


def test_a_change_shows_from_its_frame_on_and_not_before():
    plan = [("still", 9), ("dash", 6)]
    video, shape = render_behaviours(SPEC, 3, 5, plan)
    assert (video[:9] == video[0]).all() and all((video[t] != video[t - 1]).any() for t in range(9, 15))
    assert segments(plan) == [("still", 0, 9), ("dash", 9, 15)]
    again, same = render_behaviours(SPEC, 3, 5, plan)
    assert shape == same and (again == video).all()
    other, _ = render_behaviours(SPEC, 3, 6, plan)
    assert (other != video).any()


def test_unknown_behaviours_are_one_line():
    with pytest.raises(WorldError, match=r"'fly' of 3 frames: behaviours are drift, dash"):
        render_behaviours(SPEC, 0, 0, [("fly", 3)])
    with pytest.raises(WorldError, match="of 0 frames"):
        render_behaviours(SPEC, 0, 0, [(BEHAVIOURS[0], 0)])

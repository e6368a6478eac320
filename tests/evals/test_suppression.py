"""Suppression of segments: by hand, and against the definition worked step by step."""

import math

import numpy as np

from vjepa_jax.evals.suppression import nms, soft_nms, vote
from vjepa_jax.evals.temporal_metrics import overlap


def drawn(seed, count=40):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 50, count)
    return np.stack([start, start + rng.uniform(1, 20, count)], 1), rng.uniform(0, 1, count)


def test_hard_suppression_by_hand():
    segments = np.array([[0.0, 10], [1, 10], [20, 30], [0, 4]])
    scores = np.array([0.8, 0.9, 0.1, 0.7])
    assert nms(segments, scores, 0.5).tolist() == [1, 3, 2]  # 9 of 10 shared with the first; 3 of 10 with the last
    assert nms(segments, scores, 0.2).tolist() == [1, 2]
    assert nms(np.zeros((0, 2)), np.zeros(0), 0.5).tolist() == []


def test_hard_suppression_is_what_its_definition_says():
    """A segment stays exactly if no better one that stays overlaps it by more than the threshold."""
    for seed in range(10):
        segments, scores = drawn(seed)
        stays = set(nms(segments, scores, 0.3).tolist())
        overlaps = overlap(segments, segments)
        for i in range(len(scores)):
            better = [j for j in stays if scores[j] > scores[i] and overlaps[i, j] > 0.3]
            assert (i in stays) == (not better)


def test_soft_suppression_by_hand():
    segments = np.array([[0.0, 10], [0, 5], [20, 30]])
    rows, scores = soft_nms(segments, np.array([0.9, 0.8, 0.6]), sigma=0.5, least=0.0)
    lowered = 0.8 * math.exp(-(0.5**2) / 0.5)
    assert rows.tolist() == [0, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.6, lowered])
    assert soft_nms(segments, np.array([0.9, 0.8, 0.6]), most=1)[0].tolist() == [0]
    assert soft_nms(segments, np.array([0.9, 0.8, 0.6]), least=0.55)[0].tolist() == [0, 2]


def test_soft_suppression_is_what_its_definition_says():
    """A score is the first one times exp(-overlap^2 / sigma) of everything that was taken before."""
    for seed in range(10):
        segments, scores = drawn(seed)
        rows, new = soft_nms(segments, scores, 0.5, 0.0, 100)
        assert sorted(rows.tolist()) == list(range(len(scores))) and (np.diff(new) <= 1e-12).all()
        for place, row in enumerate(rows):
            factor = math.prod(math.exp(-(overlap(segments[row][None], segments[j][None])[0, 0] ** 2) / 0.5)
                               for j in rows[:place])  # fmt: skip
            assert abs(new[place] - scores[row] * factor) < 1e-12


def test_votes_by_hand():
    segments, scores = np.array([[0.0, 10], [0, 8], [30, 40]]), np.array([0.5, 0.25, 0.9])
    weights = np.array([0.5 * 1.0, 0.25 * 0.8])
    np.testing.assert_allclose(vote(segments[:1], segments, scores, 0.7), [[0.0, weights @ [10, 8] / weights.sum()]])
    np.testing.assert_allclose(vote(segments[2:], segments, scores, 0.7), segments[2:])

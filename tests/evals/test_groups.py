"""Groups of videos stay whole in folds, held-out parts and intervals."""

import numpy as np
import pytest

from vjepa_jax.config import ConfigError
from vjepa_jax.evals.groups import group_bootstrap, group_folds, hold_out_groups
from vjepa_jax.evals.scores import mean_interval

GROUPS = np.repeat([f"s{i:02d}" for i in range(16)], 10)
LABELS = np.tile(np.arange(10), 16)


def whole(groups, chosen):
    return all(len(set(chosen[groups == group])) == 1 for group in np.unique(groups))


def test_folds_keep_groups_whole_and_classes_even():
    folds = group_folds(LABELS, GROUPS, 4)
    assert whole(GROUPS, folds) and np.bincount(folds).tolist() == [40] * 4
    assert all((np.bincount(LABELS[folds == fold]) == 4).all() for fold in range(4))
    assert (folds == group_folds(LABELS, GROUPS, 4)).all() and (folds != group_folds(LABELS, GROUPS, 4, seed=1)).any()


def test_folds_of_uneven_groups_balance_both_classes():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    labels = (rng.random(300) < 0.5).astype(int)
    folds = group_folds(labels, groups, 5)
    assert whole(groups, folds)
    for label in (0, 1):
        sizes = np.bincount(folds[labels == label], minlength=5)
        assert sizes.max() - sizes.min() <= 0.25 * sizes.mean(), sizes


def test_held_out_groups_are_whole_and_leave_every_class():
    out = hold_out_groups(LABELS, GROUPS, np.random.default_rng(0), 0.1)
    assert whole(GROUPS, out) and out.sum() == 20  # two groups of ten: one is fewer than 16
    # class 1 is in group b alone, which therefore stays
    labels, groups = np.array([0, 0, 1, 0]), np.array(["a", "a", "b", "c"])
    for seed in range(8):
        out = hold_out_groups(labels, groups, np.random.default_rng(seed), 0.25)
        assert out.any() and not out[2]
    with pytest.raises(ConfigError, match="no group of videos can be held out"):
        hold_out_groups(np.array([0, 1]), np.array(["a", "b"]), np.random.default_rng(0), 0.5)


def test_too_many_folds_are_one_line():
    with pytest.raises(ConfigError, match="17 folds of 16 groups of videos: ask for 2 to 16"):
        group_folds(LABELS, GROUPS, 17)
    with pytest.raises(ConfigError, match="1 folds of 16 groups"):
        group_folds(LABELS, GROUPS, 1)


def test_intervals_resample_groups():
    """Values that are equal within a group: the interval is that of one value a group, not of all rows."""
    values = np.random.default_rng(0).normal(size=16)
    rows = np.repeat(values, 10)
    low, high = group_bootstrap(lambda drawn: float(rows[drawn].mean()), GROUPS)
    one_a_group = mean_interval(values)
    assert (low, high) == pytest.approx(one_a_group)
    by_rows = mean_interval(rows)
    assert high - low > 2 * (by_rows[1] - by_rows[0])
    assert group_bootstrap(lambda drawn: 0.0, np.zeros(5)) is None

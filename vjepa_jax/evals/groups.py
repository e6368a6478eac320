"""Videos that belong together (one scene, one source): folds, held-out parts and intervals that never part them."""

from collections.abc import Callable, Sequence

import numpy as np

from vjepa_jax.config import ConfigError
from vjepa_jax.evals.scores import bootstrap


def group_folds(labels: np.ndarray, groups: Sequence[str] | np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """The fold of every row, int [n], 0 ... folds - 1: whole groups, as equal numbers of every class as they allow.

    Large groups are dealt first, each to the fold that it makes least uneven; a random order breaks ties.

    Raises:
      ConfigError: fewer groups than folds, or fewer than two folds.
    """
    members = _members(groups)
    if not 2 <= folds <= len(members):
        raise ConfigError(f"{folds} folds of {len(members)} groups of videos: ask for 2 to {len(members)}")
    classes = np.unique(labels)
    sizes = np.array([[(labels[rows] == c).sum() for c in classes] for rows in members])
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(members)), -sizes.sum(1)))
    filled = np.zeros((folds, len(classes)), np.int64)
    found = np.empty(len(labels), np.int64)
    for group in order:
        cost = ((filled + sizes[group]) ** 2 - filled**2).sum(1)
        fold = int(np.argmin(cost))
        filled[fold] += sizes[group]
        found[members[group]] = fold
    return found


def hold_out_groups(
    labels: np.ndarray, groups: Sequence[str] | np.ndarray, rng: np.random.Generator, share: float
) -> np.ndarray:
    """bool [n]: whole groups in random order until they hold a `share` of the rows; every class keeps a row outside.

    Raises:
      ConfigError: every group holds all the rows of a class.
    """
    members, out = _members(groups), np.zeros(len(labels), bool)
    classes = np.unique(labels)
    for group in rng.permutation(len(members)):
        if out.sum() >= max(share * len(labels), 1):
            break
        tried = out.copy()
        tried[members[group]] = True
        if np.isin(classes, labels[~tried]).all():
            out = tried
    if not out.any():
        raise ConfigError("no group of videos can be held out: each has all videos of a class, so that none is learnt")
    return out


def held_out_rows(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool [n]: whole groups in random order until they hold a `share` of the rows, whatever their classes; at least
    one, and never all.

    Raises:
      ConfigError: one group only.
    """
    if len(np.unique(groups)) < 2:
        raise ConfigError("held_out needs at least two training videos or scenes: one of them chooses a head")
    return hold_out_groups(np.zeros(len(groups)), groups, np.random.default_rng([seed, 31]), share)


def group_bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[str] | np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """scores.bootstrap over whole groups: `statistic` gets the rows of as many groups as there are, drawn with
    replacement. None where there is one group only, of which nothing can be said."""
    members = _members(groups)
    if len(members) < 2:
        return None
    rows = lambda drawn: np.concatenate([members[i] for i in drawn])
    return bootstrap(lambda drawn: statistic(rows(drawn)), len(members), resamples=resamples, seed=seed)


def _members(groups: Sequence[str] | np.ndarray) -> list[np.ndarray]:
    """Rows of every group."""
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    return [np.flatnonzero(number == i) for i in range(number.max() + 1)]

"""The order of draws: which video, and which part of it, the k-th draw from a source takes.

All is a function of a seed and of the number of the draw, so that any process, worker and step finds its own. Memory is
a few numbers a cluster and none a video (8 bytes a video for a manifest that is not sorted by cluster).

  Epochs    Every video comes once in an epoch (data.clips_per_video times), in a new order each time. With
            data.no_repeat_window no video comes twice within so many draws, across the borders of epochs too (but for
            stand-ins for videos that cannot be decoded, which are random).
  Clusters  The draws of a source are shared out among its clusters by weight (data.cluster_weights). Clusters are the
            leaves of a tree of two-way splits. At a split the lighter side, of share p, gets one draw of every 1/p,
            at a random place, so that what it had never differs from its share by more than a draw; errors of the
            splits above shrink with the shares below. The epochs of a cluster are its own.
"""

import bisect
import csv
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines import storage
from data_pipelines.sources import DataError, Source
from vjepa_jax.config import DataConfig

_MASK = 2**64 - 1
_WHOLE = 2**50  # the weights of clusters are shares of this many
_ROUNDS = 6  # of a shuffle
_CHUNK = 2**20  # rows whose clusters are looked at in one go


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of a source that are drawn.

    Attributes:
      names: of each.
      starts, counts: int64[C]: cluster c has the rows from starts[c] on, counts[c] of them.
      bounds: int64[C + 1], ascending from 0: the weight of cluster c is bounds[c + 1] - bounds[c].
      rows: int64[n], the rows of the source by cluster, where the source itself is not sorted so; else None.
    """

    names: Sequence[str]
    starts: np.ndarray
    counts: np.ndarray
    bounds: np.ndarray
    rows: np.ndarray | None

    def row(self, cluster: int, place: int) -> int:
        """The row in the source of one of the videos of a cluster."""
        row = int(self.starts[cluster]) + place
        return row if self.rows is None else int(self.rows[row])


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """The draws from one source: draw k -> row * clips_per_video + clip. See `source_order`."""

    num_videos: int
    clips_per_video: int
    window: int
    seed: int
    clusters: Clusters | None

    def __call__(self, draw: int) -> int:
        clusters, clips = self.clusters, self.clips_per_video
        if clusters is None:
            row, clip = visit(int(draw), self.num_videos, clips, self.window, self.seed)
            return row * clips + clip
        cluster, turn, window = choose(clusters.bounds, int(draw), self.seed, self.window)
        place, clip = visit(turn, int(clusters.counts[cluster]), clips, window, _hash(self.seed, cluster))
        return clusters.row(cluster, place) * clips + clip

    def stand_in(self, rng: np.random.Generator) -> int:
        """A random video to take the place of one that cannot be decoded; of a random cluster, by weight."""
        clusters = self.clusters
        if clusters is None:
            return int(rng.integers(self.num_videos))
        cluster = int(np.searchsorted(clusters.bounds, rng.integers(clusters.bounds[-1]), side="right")) - 1
        return clusters.row(cluster, int(rng.integers(clusters.counts[cluster])))


def source_order(source: Source, data: DataConfig, seed: int, weights: Mapping[str, float] | None) -> Order | None:
    """The order of a source; None where grain's own shuffled epochs are that order (no clusters, no window).

    Args:
      weights: of clusters (`cluster_weights`); for a source without clusters it does not matter.

    Raises:
      DataError: a cluster without a weight, only weights of 0, or no order that keeps data.no_repeat_window.
    """
    window = data.no_repeat_window
    columns = source.clusters if weights is not None else None
    if columns is None and window < 2:
        return None
    clusters = None if columns is None else _clusters(source, columns, weights)
    _check_window(source, window, clusters)
    return Order(len(source), data.clips_per_video, window, seed, clusters)


def visit(draw: int, count: int, clips: int, window: int, seed: int) -> tuple[int, int]:
    """The video and clip of a draw from `count` videos of `clips` clips, no video twice in `window` draws <= count."""
    if window < 2:
        epoch, place = divmod(draw, count * clips)
        return divmod(_shuffle(place, count * clips, seed, epoch), clips)
    video = _spaced(draw, count, window, seed)
    epoch, turn = divmod(draw // count, clips)
    return video, _shuffle(turn, clips, seed, epoch, video)


def _spaced(draw: int, count: int, window: int, seed: int) -> int:
    """The video of a draw: each of `count` once an epoch, and none twice in `window` draws."""
    epoch, place = divmod(draw, count)
    edge = window - 1
    if 4 * edge > count:
        # Cut an epoch into parts that hold the same videos in every epoch, and shuffle these
        length = count - edge
        part = place // length
        start = part * length
        slot = start + _shuffle(place - start, min(length, count - start), seed, epoch, part)
        return _shuffle(slot, count, seed)
    # What the last places of an epoch and the first ones of the next hold is drawn together, without repeats, from one
    # of two sets of videos, in turns, so that the two borders of an epoch have nothing in common. Any other place of
    # the epoch is far enough from both.
    if place < edge:
        slot = _border(epoch - 1, edge + place, edge, seed)
    elif place >= count - edge:
        slot = _border(epoch, place - (count - edge), edge, seed)
    else:
        slot = _shuffle(place - edge, count - 2 * edge, seed, epoch)
        if slot < edge:
            slot = _border(epoch - 1, slot, edge, seed)
        elif slot < 2 * edge:
            slot = _border(epoch, slot, edge, seed)
        else:
            slot += 2 * edge
    return _shuffle(slot, count, seed)


def _border(epoch: int, place: int, edge: int, seed: int) -> int:
    """Of the border after an epoch: places from 0 are its last ones, places from `edge` the first of the next epoch."""
    return epoch % 2 * 2 * edge + _shuffle(place, 2 * edge, seed, epoch, 0)


def choose(bounds: np.ndarray, draw: int, seed: int, window: int = 0) -> tuple[int, int, int]:
    """The cluster of a draw.

    Args:
      bounds: int64[C + 1], see `Clusters`.

    Returns:
      The cluster; how many draws before this one it has had; the most that it ever has in `window` draws.
    """
    low, high = 0, len(bounds) - 1
    while high - low > 1:
        middle, part, whole, is_left = _cut(bounds, low, high)
        is_part, draw = split(draw, part, whole, _hash(seed, middle))
        window = most(window, part, whole, is_part)
        low, high = (low, middle) if is_part == is_left else (middle, high)
    return low, draw, window


def _cut(bounds: np.ndarray, low: int, high: int) -> tuple[int, int, int, bool]:
    """Clusters low to high - 1 in two of about the same weight: the first of the right ones, the weight of the lighter
    side and of both, and whether the left one is the lighter."""
    first, last = int(bounds[low]), int(bounds[high])
    middle = bisect.bisect_left(bounds, (first + last) // 2, low + 1, high - 1)
    left = int(bounds[middle]) - first
    is_left = 2 * left <= last - first
    return middle, left if is_left else last - first - left, last - first, is_left


def split(draw: int, part: int, whole: int, seed: int) -> tuple[bool, int]:
    """Whether a draw goes to the lighter side, which gets `part` <= `whole` / 2 of `whole` draws, and how many the side
    that it goes to had before.

    Time is cut into stretches of whole / part draws, each with one for that side at a random moment.
    """
    turn = draw * part // whole  # stretches that are over when the draw begins
    place = _place(turn, part, whole, seed)
    had = turn + (place < draw)
    if place == draw or _place(turn + 1, part, whole, seed) == draw:
        return True, had
    return False, draw - had


def _place(turn: int, part: int, whole: int, seed: int) -> int:
    """The draw at whose time a stretch has its moment; the one before if the next stretch has its moment there too."""
    place, after = ((t * 2**64 + _hash(seed, t)) * whole // (part * 2**64) for t in (turn, turn + 1))
    return place - (place == after)


def most(window: int, part: int, whole: int, is_part: bool) -> int:
    """The most draws of `window` in a row that can go to one side of `split`, of which the lighter one had, before
    draw k, floor(k * part / whole) or one more."""
    if is_part:
        return min(window, -(-window * part // whole) + 1)
    return window - max(0, window * part // whole - 1)


def _leaves(bounds: np.ndarray, window: int) -> Iterator[tuple[int, int]]:
    """Every cluster with the most draws that it can have in a window."""
    stack = [(0, len(bounds) - 1, window)]
    while stack:
        low, high, window = stack.pop()
        if high - low == 1:
            yield low, window
            continue
        middle, part, whole, is_left = _cut(bounds, low, high)
        stack.append((low, middle, most(window, part, whole, is_left)))
        stack.append((middle, high, most(window, part, whole, not is_left)))


def _check_window(source: Source, window: int, clusters: Clusters | None) -> None:
    """Raises DataError where no order keeps the window."""
    if clusters is None:
        if window > len(source):
            raise DataError(
                f"data.no_repeat_window={window} exceeds the {len(source)} videos of {source.path}: lower it to that"
            )
        return
    for cluster, need in _leaves(clusters.bounds, window) if window > 1 else ():
        if need > clusters.counts[cluster]:
            raise DataError(
                f"data.no_repeat_window={window}: cluster {clusters.names[cluster]} of {source.path} may be drawn "
                f"{need} times within it and has {clusters.counts[cluster]} videos: lower one of window and weight"
            )


def _clusters(source: Source, columns: np.ndarray, weights: Mapping[str, float]) -> Clusters:
    """The clusters of a source that have a weight. columns: int32[n], the cluster of every row."""
    rows = None
    if not all((np.diff(columns[i : i + _CHUNK + 1]) >= 0).all() for i in range(0, len(columns), _CHUNK)):
        rows = np.argsort(columns, kind="stable")
        columns = columns[rows]
    starts = _starts(columns)
    counts = np.diff(np.append(starts, len(columns)))
    names = cluster_names(source, columns[starts])
    if missing := [name for name in names if name not in weights]:
        raise DataError(
            f"cluster {missing[0]} of {source.path}{_and_more(missing)} has no row in data.cluster_weights: "
            "add one, with weight 0 to leave the cluster out"
        )
    given = np.array([weights[name] for name in names], np.float64)
    shares = np.rint(given / max(given.sum(), np.finfo(float).tiny) * _WHOLE).astype(np.int64)
    keep = np.flatnonzero(shares)
    if not len(keep):
        raise DataError(f"all clusters of {source.path} have weight 0 in data.cluster_weights: raise one")
    bounds = np.concatenate([[0], np.cumsum(shares[keep])])
    return Clusters([names[i] for i in keep], starts[keep], counts[keep], bounds, rows)


def _starts(columns: np.ndarray) -> np.ndarray:
    """int64: the rows that are of another cluster than the one before."""
    parts = (i + np.flatnonzero(np.diff(columns[i : i + _CHUNK + 1])) + 1 for i in range(0, len(columns), _CHUNK))
    return np.concatenate([[0], *parts])


def _distinct(source: Source) -> list[str]:
    """The names of all clusters of a source."""
    columns = source.clusters
    return [] if columns is None else cluster_names(source, np.unique(columns[_starts(columns)]))


def cluster_names(source: Source, ids: np.ndarray) -> list[str]:
    """The names of clusters, as a file of weights has them; where the source has no names, and for -1, the numbers."""
    return [source.cluster_names[i] if 0 <= i < len(source.cluster_names) else str(i) for i in ids.tolist()]


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def curated_weights(counts_DC: np.ndarray, weights_D: Sequence[float]) -> np.ndarray:
    """Weights of clusters from how many videos of each target set are nearest to them (arXiv 2506.09985, appendix A).

    w_c = sum_d w_d N_dc / N_d, where N_dc videos of target set d, of N_d in all, lie in cluster c.

    Args:
      counts_DC: N_dc, not negative.
      weights_D: w_d, positive.

    Returns:
      float64[C], which sum to sum_d w_d.

    Raises:
      DataError: a target set without videos, a negative count, or a weight that is not positive.
    """
    counts, weights = np.asarray(counts_DC, np.float64), np.asarray(weights_D, np.float64)
    totals = counts.sum(1)
    if (counts < 0).any() or (totals <= 0).any() or (weights <= 0).any():
        raise DataError("counts of clusters must not be negative, and every target set needs a weight and a count > 0")
    return (weights / totals) @ counts


def cluster_weights(data: DataConfig, sources: Sequence[Source]) -> dict[str, float] | None:
    """The weights of `data.cluster_weights` by name of cluster; None if that is not set.

    The file is a CSV with the columns `cluster,weight`; with `data.cluster_mix`, `cluster` and one column of counts for
    each of its weights (`curated_weights`).

    Raises:
      DataError: other columns, a line that cannot be read, a cluster that occurs twice or that no source has.
    """
    if not data.cluster_weights:
        return None
    known = {name for source in sources for name in _distinct(source)}
    if not known:
        raise DataError("data.cluster_weights is set, but no source has clusters: give an index or manifest that does")
    names, values = _read_table(data.cluster_weights, data.cluster_mix)
    weights = curated_weights(values.T, data.cluster_mix) if data.cluster_mix else values[:, 0]
    if unknown := [name for name in names if name not in known]:
        raise DataError(
            f"{data.cluster_weights}: no source has cluster {unknown[0]}{_and_more(unknown)}: remove the row"
        )
    return dict(zip(names, weights.tolist(), strict=True))


def _read_table(path: str, mix: Sequence[float]) -> tuple[list[str], np.ndarray]:
    """The names of clusters and the numbers beside them, float64[C, D]."""
    names: dict[str, None] = {}
    values: list[list[float]] = []
    try:
        with open(storage.open_local(path), newline="", encoding="utf-8-sig") as file:
            lines = (line for line in csv.reader(file, skipinitialspace=True) if line)
            header = [cell.strip() for cell in next(lines, [])]
            _check_header(path, header, mix)
            for name, *cells in lines:
                values.append(_numbers(path, header, name, cells))
                if name.strip() in names:
                    raise DataError(f"{path}: cluster {name.strip()} occurs twice: remove one row")
                names[name.strip()] = None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data.cluster_weights: cannot read {path}: {' '.join(str(error).split())}") from error
    return list(names), np.array(values).reshape(-1, len(header) - 1)


def _check_header(path: str, header: Sequence[str], mix: Sequence[float]) -> None:
    if mix and len(header) == 1 + len(mix) and header[0] == "cluster":
        return
    if mix or header != ["cluster", "weight"]:
        columns = f"cluster and {len(mix)} target sets, as data.cluster_mix has weights" if mix else "cluster,weight"
        raise DataError(f"{path}: the first line must name the columns {columns}; it is {','.join(header)!r}")


def _numbers(path: str, header: Sequence[str], name: str, cells: Sequence[str]) -> list[float]:
    """What stands beside the name of a cluster."""
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        values = []
    if len(values) != len(header) - 1 or not all(0 <= value < math.inf for value in values):
        line = ",".join([name, *cells])
        raise DataError(f"{path}: cannot read {line!r}: write {','.join(header)}, numbers from 0 on")
    return values


def _shuffle(place: int, count: int, *key: int) -> int:
    """What lies at a place of a permutation of 0 to count - 1: a Feistel network over the next power of 4, walked until
    it comes back below `count`. (grain's index_shuffle walks 2^16 / count steps: 30 ms in a cluster of 5 videos.)"""
    half, seed = ((count - 1).bit_length() + 1) // 2, _hash(*key)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_hash(seed + turn, right) & mask)
        place = left << half | right
        if place < count:
            return place


def _hash(*numbers: int) -> int:
    """64 random bits that follow from whole numbers (the steps of SplitMix64, Steele et al. 2014)."""
    bits = 0
    for number in numbers:
        bits = (bits + number + 0x9E3779B97F4A7C15) & _MASK
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
        bits ^= bits >> 31
    return bits

"""Shapes of masks: boxes, tubes, frames and random sets on a grid of tokens, as pure functions of a numpy generator.

A mask is a set of hidden (target) tokens, held as one Python integer: bit i is set if token i is hidden, with
token id = t*H'*W' + h*W' + w on the grid (T', H', W'). Placing a box is a shift, joining sets an OR and counting
`bit_count`, each several times faster than the same on arrays, which is what makes a mask cost microseconds.
data_pipelines/masking.py turns masks into context and target ids of fixed number.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class GroupPlan:
    """One mask group with everything resolved to tokens. Fields beyond these are as in `config.MaskGroupConfig`.

    Attributes:
      block: size of a cuboid in tokens (time, height, width).
      masked: what `ratio` comes to: tokens (cuboid, random), columns (tube) or time steps (frame, causal).
      context_steps: context comes from time steps below this one only; all later tokens are target.
      context, target: static budgets in tokens; of kind separate `target` is that of one box.
    """

    kind: str
    num_blocks: int
    spatial_scale: tuple[float, float]
    temporal_scale: tuple[float, float]
    aspect_ratio: tuple[float, float]
    context_scale: tuple[float, float]
    block: Grid
    masked: int
    context_steps: int
    context: int
    target: int

    @property
    def boxes(self) -> int:
        """Target sets that are predicted on their own."""
        return self.num_blocks if self.kind == "separate" else 1


def random_keys(n: int, rng: np.random.Generator) -> np.ndarray:
    """int32[n], independent and uniform over all 32-bit values.

    Raw output of the bit generator, at half the time of floats and a fifth of `Generator.integers`.

    Raises:
      ValueError: a generator whose raw output is not 64 bits wide.
    """
    if isinstance(rng.bit_generator, np.random.MT19937):
        raise ValueError("masks need a generator with 64-bit output (np.random.default_rng, Philox), not MT19937")
    return rng.bit_generator.random_raw((n + 1) // 2).view(np.int32)[:n]


def mark_smallest(keys: np.ndarray, k: int, out: np.ndarray) -> None:
    """Sets `out` (bool[n]) True at the k smallest keys (everywhere, if k >= n) and False elsewhere.

    Fewer are marked if keys are equal at the threshold, for `random_keys` about n in 2**32 times; callers draw again.
    One partition, which numpy vectorises for int32: a third of the time of `Generator.permutation` or `choice`.
    """
    if k >= len(keys):
        out[:] = True
        return
    ordered = keys.copy()
    ordered.partition(k)
    np.less(keys, ordered[k], out=out)


def random_subset(n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """bool[n] with exactly k True (all, if k >= n), every choice equally likely."""
    chosen = np.zeros(n, bool)
    while np.count_nonzero(chosen) < min(k, n):
        mark_smallest(random_keys(n, rng), k, chosen)
    return chosen


def to_bits(hidden: np.ndarray) -> int:
    """The integer of a mask bool[N] (any shape, read in C order)."""
    return int.from_bytes(np.packbits(hidden, bitorder="little").tobytes(), "little")


def to_array(bits: int, tokens: int) -> np.ndarray:
    """The mask bool[N] of an integer."""
    raw = np.frombuffer(bits.to_bytes((tokens + 7) // 8, "little"), np.uint8)
    return np.unpackbits(raw, None, tokens, "little").view(bool)


def to_ids(bits: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Context ids (not hidden) and target ids (hidden), int32, sorted."""
    hidden = to_array(bits, tokens)
    return (~hidden).nonzero()[0].astype(np.int32), hidden.nonzero()[0].astype(np.int32)


def block_size(group: GroupPlan, grid: Grid, uniforms: Sequence[float]) -> Grid:
    """Size in tokens of the blocks of a multiblock mask.

    As in the released `multiseq_multiblock3d` collator: `uniforms` in [0, 1) choose, in this order, the share of the
    time steps, the share of the area, and the aspect ratio (height / width). At least one token along each axis.
    """
    steps, height, width = grid
    u_time, u_area, u_aspect = uniforms
    low, high = group.temporal_scale
    t = int(steps * (low + u_time * (high - low)))
    low, high = group.spatial_scale
    area = int(height * width * (low + u_area * (high - low)))
    low, high = group.aspect_ratio
    aspect = low + u_aspect * (high - low)
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return max(1, t), min(height, max(1, h)), min(width, max(1, w))


@functools.lru_cache(maxsize=128)
def _placements(size: Grid, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a box at the origin, and the id of the first token of the box at each place where it fits."""

    def ids(extent: Grid) -> np.ndarray:
        t, h, w = (np.arange(n) for n in extent)
        return ((t[:, None, None] * grid[1] + h[:, None]) * grid[2] + w).ravel()

    return ids(size), ids(tuple(g - s + 1 for g, s in zip(grid, size, strict=True)))


@functools.lru_cache(maxsize=128)
def _placements_bits(size: Grid, grid: Grid) -> tuple[int, list[int]]:
    """`_placements`, the box as an integer whose bit i is token i."""
    box, corners = _placements(size, grid)
    return sum(1 << i for i in box.tolist()), corners.tolist()


def draw_hidden(
    group: GroupPlan, grid: Grid, rng: np.random.Generator, size_uniforms: Sequence[float] | None = None
) -> int:
    """One mask of the group's kind, as an integer. Its count is random for multiblock and cuboid, constant otherwise.

    Args:
      size_uniforms: the three uniforms of `block_size`, to share one block size between clips; None draws them.
    """
    steps, height, width = grid
    if group.kind == "multiblock":
        bits = _draw_multiblock(group, grid, rng, size_uniforms)
    elif group.kind == "cuboid":
        bits = to_bits(_draw_cuboids(group.block, group.masked, grid, rng))
    elif group.kind == "tube":
        bits = to_bits(np.tile(random_subset(height * width, group.masked, rng), steps))
    elif group.kind == "frame":
        bits = to_bits(np.repeat(random_subset(steps, group.masked, rng), height * width))
    elif group.kind == "random":
        bits = to_bits(random_subset(steps * height * width, group.masked, rng))
    else:  # causal
        bits = _steps_from(steps - group.masked, grid)
    return bits if group.context_steps == steps else bits | _steps_from(group.context_steps, grid)


def _steps_from(step: int, grid: Grid) -> int:
    """All tokens of this time step and later ones."""
    area = grid[1] * grid[2]
    return (1 << grid[0] * area) - (1 << step * area)


def _draw_multiblock(
    group: GroupPlan, grid: Grid, rng: np.random.Generator, size_uniforms: Sequence[float] | None
) -> int:
    uniforms = rng.random(3 + group.num_blocks).tolist()
    box, corners = _placements_bits(block_size(group, grid, size_uniforms or uniforms[:3]), grid)
    places, bits = len(corners), 0
    for u in uniforms[3:]:
        bits |= box << corners[int(u * places)]
    return bits


def draw_separate(group: GroupPlan, grid: Grid, rng: np.random.Generator) -> tuple[int, list[int]]:
    """Kind separate: context and target boxes as integers. One size for the boxes of a clip; the context is one box of
    the frame's shape, over all time, without the targets."""
    uniforms = rng.random(5 + group.num_blocks).tolist()
    box, corners = _placements_bits(block_size(group, grid, uniforms[:3]), grid)
    targets = [box << corners[int(u * len(corners))] for u in uniforms[5:]]
    low, high = group.context_scale
    side = math.sqrt(low + uniforms[3] * (high - low))
    size = (grid[0], *(min(n, max(1, round(n * side))) for n in grid[1:]))
    box, corners = _placements_bits(size, grid)
    context = box << corners[int(uniforms[4] * len(corners))]
    for target in targets:
        context &= ~target
    return context, targets


def _draw_cuboids(size: Grid, masked: int, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """bool[N]: boxes at uniform places, one after the other, until `masked` tokens or more are covered."""
    box, corners = _placements(size, grid)
    tokens = math.prod(grid)
    count = int(-1.5 * tokens * math.log1p(-masked / tokens) / len(box)) + 4  # usually enough; else as many again
    covered_by = np.full(tokens, np.iinfo(np.int64).max)  # the first box that covers each token
    drawn = 0
    while True:
        first = corners[(rng.random(count) * len(corners)).astype(np.intp)]
        order = np.repeat(np.arange(drawn, drawn + count), len(box))
        np.minimum.at(covered_by, (first[:, None] + box).ravel(), order)
        drawn += count
        last = np.partition(covered_by, masked - 1)[masked - 1]  # the box that brings the count to `masked`
        if last < drawn:
            return covered_by <= last


def boxes_to_bits(boxes: np.ndarray, grid: Grid) -> int:
    """The union of boxes, int[n, 6] in tokens with rows (t0, h0, w0, t1, h1, w1), ends excluded."""
    hidden = np.zeros(grid, bool)
    for t0, h0, w0, t1, h1, w1 in np.asarray(boxes).tolist():
        hidden[t0:t1, h0:h1, w0:w1] = True
    return to_bits(hidden)


def truncate_first_k(contexts: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The released collator's truncation: every clip keeps its first K ids, K the smallest count in the batch.

    Ids are time-major, so it is the latest tokens that go.

    Args:
      contexts, targets: B sorted id arrays each, of any lengths.

    Returns:
      int32[B, Kc] and int32[B, Kt].
    """
    return _first_k(contexts), _first_k(targets)


def _first_k(rows: Sequence[np.ndarray]) -> np.ndarray:
    k = min(len(row) for row in rows)
    return np.stack([row[:k] for row in rows]).astype(np.int32)


def grow(side: np.ndarray, count: int, allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds exactly `count` allowed tokens to a set, from its border outwards.

    Used when a mask has too few tokens on one side: boxes then grow or shrink at their faces, and no visible island
    appears inside a hidden region, from which its surroundings could be copied. Whole layers are added; of the last one
    whole columns (one place at all its times), so that a place is not shown at some times and hidden at others, apart
    from the one column in which the count is reached. An empty set starts from a random column.

    Args:
      side: bool[T', H', W'], the set that grows.
      allowed: bool[T', H', W'], tokens that may be added. At least `count` of them lie outside `side`.

    Returns:
      A new bool[T', H', W'] that contains `side`.
    """
    side, area = side.copy(), side.shape[1] * side.shape[2]
    column_keys = rng.random(area)
    while count > 0:
        free = allowed & ~side
        border = _dilate(side) & free
        if not border.any():  # nothing to grow from
            border = free & (column_keys == column_keys[free.any(0).ravel()].min()).reshape(side.shape[1:])
        ids = np.flatnonzero(border)
        if len(ids) > count:
            ids = ids[np.lexsort((ids // area, column_keys[ids % area]))[:count]]
        side.ravel()[ids] = True
        count -= len(ids)
    return side


def _dilate(side: np.ndarray) -> np.ndarray:
    """The set and its neighbours along time, height and width."""
    out = side.copy()
    for axis in range(3):
        a, b = np.moveaxis(out, axis, 0), np.moveaxis(side, axis, 0)
        a[1:] |= b[:-1]
        a[:-1] |= b[1:]
    return out


def token_mask(ids: np.ndarray, grid: Grid) -> np.ndarray:
    """bool[T', H', W'], True at the given ids (any shape; repeated ids, as padding has, are fine)."""
    mask = np.zeros(grid, bool)
    mask.ravel()[np.asarray(ids).ravel()] = True
    return mask


def pixel_mask(ids: np.ndarray, grid: Grid, patch: int, tubelet: int) -> np.ndarray:
    """bool[T'*tubelet, H'*patch, W'*patch]: the pixels of the given tokens, to draw over a clip."""
    mask = token_mask(ids, grid)
    return mask.repeat(tubelet, 0).repeat(patch, 1).repeat(patch, 2)

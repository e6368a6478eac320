"""Masks drawn on the host: for every clip and mask group, the ids of its context and target tokens in fixed numbers.

`make_plan` turns a run's configuration into a plan once; `draw_masks` (policy uniform) and `draw_masks_first_k` (policy
first_k) draw from it. Shapes never vary, so that a step compiles once.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np

from data_pipelines.mask_shapes import (
    Grid,
    GroupPlan,
    draw_hidden,
    draw_separate,
    grow,
    mark_smallest,
    random_keys,
    to_array,
    to_bits,
    to_ids,
    truncate_first_k,
)
from vjepa_jax.config import ConfigError, MaskGroupConfig, RunConfig

SIMULATED_DRAWS = 256  # clips (uniform) or truncation groups (first_k) simulated to choose budgets
MAX_DRAWS = 16  # of one clip before its budgets are met by moving tokens at the borders of its boxes
UNIFORM_QUANTILE = 0.05  # of the counts; most draws then meet both budgets, the others are redrawn
FIRST_K_QUANTILE = 0.99  # of the counts after truncation; larger ones are cut, smaller ones padded
MULTIPLE = 8  # budgets that are chosen here are multiples of this where counts vary
_MAX_EMPTY_DRAWS = 64  # of a clip without any context, before another block size is taken (policy first_k)


@dataclass(frozen=True)
class MaskPlan:
    """Everything that drawing masks needs. Immutable, hashable, picklable.

    Attributes:
      grid: tokens along time, height and width.
      policy: uniform or first_k (config.MaskConfig).
      truncation_group: clips over which first_k takes its minimum.
      groups: one resolved plan, with its budgets, per mask group.
    """

    grid: Grid
    policy: str
    truncation_group: int
    groups: tuple[GroupPlan, ...]

    @property
    def budgets(self) -> list[tuple[int, int]]:
        """(context, target) tokens of every predicted set: one a group, of kind separate one a box."""
        return [(group.context, group.target) for group in self.groups for _ in range(group.boxes)]


def make_plan(run: RunConfig) -> MaskPlan:
    """Resolve the mask groups of a run to tokens and choose the budgets that it leaves open (`budgets`).

    Raises:
      ConfigError: values out of range, a block that is not whole tokens or does not fit, a ratio that rounds to nothing
        or everything, or budgets that none of 256 simulated draws can meet. One line that names the group.
    """
    groups = []
    for i, config in enumerate(run.masks.groups):
        name = f"masks.groups[{i}]"
        _check_ranges(config, name)
        group = _resolve(config, run.grid, run.model.tubelet_size, run.model.patch_size, name)
        context, target = budgets(
            group, run.grid, config.context, config.target, run.masks.policy, run.masks.truncation_group, name
        )
        groups.append(dataclasses.replace(group, context=context, target=target))
    return MaskPlan(run.grid, run.masks.policy, run.masks.truncation_group, tuple(groups))


def budgets(
    group: GroupPlan,
    grid: Grid,
    context: int | None = None,
    target: int | None = None,
    policy: str = "uniform",
    truncation_group: int = 24,
    name: str = "mask group",
) -> tuple[int, int]:
    """Static numbers of context and target tokens of a mask group, from 256 simulated draws with a fixed seed.

    Given numbers are kept; None is chosen:
      uniform: the 5 % quantile of the count over the draws that have a token of each kind (or the given number, if one
        is given), rounded down to a multiple of 8 where that leaves 8 or more; so about nine in ten of them meet both
        budgets. Where the count never varies it is the budget; for cuboids the target budget is the ratio, which every
        draw reaches.
      first_k: the 99 % quantile of the count after truncation over 256 truncation groups, rounded up to a multiple
        of 8.

    Returns:
      (context, target). For policy uniform, context + target <= N.

    Raises:
      ConfigError: no draw meets the budgets, or no draw leaves any context. One line with what draws can give.
    """
    for key, asked in (("context", context), ("target", target)):
        if asked is not None and asked < 1:
            raise ConfigError(f"{name}.{key}={asked} must be at least 1 (or None, to choose it from simulated draws)")
    if policy == "first_k":
        return _first_k_budgets(group, grid, context, target, truncation_group, name)
    rng = np.random.default_rng(0)
    visible, hidden = np.array([_counts(group, grid, rng) for _ in range(SIMULATED_DRAWS)]).T
    if group.kind == "cuboid":
        target = target or group.masked
    met = (visible >= (context or 1)) & (hidden >= (target or 1))
    if not met.any():
        raise ConfigError(
            f"{name}: budgets context={context}, target={target} cannot be met: {SIMULATED_DRAWS} draws of kind "
            f"{group.kind!r} on a grid of {'x'.join(map(str, grid))} tokens have {visible.min()} to {visible.max()} "
            f"context and {hidden.min()} to {hidden.max()} target tokens: lower the budgets or hide less"
        )
    return context or _low_count(visible[met]), target or _low_count(hidden[met])


def _counts(group: GroupPlan, grid: Grid, rng: np.random.Generator) -> tuple[int, int]:
    """Context tokens of one draw, and its target tokens (of one box)."""
    if group.kind == "separate":
        context, targets = draw_separate(group, grid, rng)
        return context.bit_count(), targets[0].bit_count()
    hidden = draw_hidden(group, grid, rng).bit_count()
    return math.prod(grid) - hidden, hidden


def _low_count(counts: np.ndarray) -> int:
    if counts.min() == counts.max():
        return int(counts[0])
    low = int(np.quantile(counts, UNIFORM_QUANTILE, method="lower"))
    return max(low // MULTIPLE * MULTIPLE, min(low, MULTIPLE))


def _first_k_budgets(
    group: GroupPlan, grid: Grid, context: int | None, target: int | None, truncation_group: int, name: str
) -> tuple[int, int]:
    rng, counts = np.random.default_rng(0), []
    for _ in range(SIMULATED_DRAWS):
        rows = _draw_rows(group, grid, truncation_group, rng, rng.random(3).tolist(), name)
        hidden = [row.bit_count() for row in rows]
        counts.append((math.prod(grid) - max(hidden), min(hidden)))
    high = np.quantile(counts, FIRST_K_QUANTILE, axis=0, method="higher")
    chosen = [min(math.prod(grid), -(-int(n) // MULTIPLE) * MULTIPLE) for n in high]
    return context or chosen[0], target or chosen[1]


def draw(plan: MaskPlan, rng: np.random.Generator, position: int, seed: int) -> list[dict[str, np.ndarray]]:
    """The masks of one example by the policy of the plan: `draw_masks` from its generator, or `draw_masks_first_k` of
    its position in the run of this seed."""
    return draw_masks(plan, rng) if plan.policy == "uniform" else draw_masks_first_k(plan, position, seed)


def draw_masks(plan: MaskPlan, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Masks of one clip, policy uniform.

    Each group draws its own block size and places. Tokens beyond the budgets are dropped uniformly at random. A draw
    with too few tokens on one side is drawn again, up to 16 times; then the nearest of these draws is completed: its
    boxes are shrunk (too little context) or enlarged (too few targets) at their borders, see `mask_shapes.grow`.

    Args:
      rng: the only source of randomness; equal generators give equal masks.

    Returns:
      Per group {"context": int32[Kc], "target": int32[Kt]}, sorted, disjoint, exactly the budgets. Of kind separate,
      "target" is int32[num_blocks * Kt]: box after box, each sorted; boxes may share tokens.

    Raises:
      ValueError: a plan of another policy, or a generator without 64-bit output (MT19937).
    """
    _check_policy(plan, "uniform", "draw_masks_first_k")
    tokens = math.prod(plan.grid)
    everything = (1 << tokens) - 1
    sets, counts, sizes = [], [], []  # of context and target of the first group, then of the second, ...
    for group in plan.groups:
        if group.kind == "separate":
            drawn = _draw_sufficient_boxes(group, plan.grid, rng)
            sets += drawn
            counts += [bits.bit_count() for bits in drawn]
        else:
            hidden = _draw_sufficient(group, plan.grid, rng)
            count = hidden.bit_count()
            sets += (everything ^ hidden, hidden)
            counts += (tokens - count, count)
        sizes += (group.context, *[group.target] * group.boxes)
    # All sets of the clip go through each numpy call together: at this size a call costs more than its tokens.
    width = (tokens + 7) // 8
    raw = np.frombuffer(b"".join([bits.to_bytes(width, "little") for bits in sets]), np.uint8)
    ids = np.unpackbits(raw, None, None, "little").view(bool).nonzero()[0]  # token id + 8 * width * number of the set
    ids = _drop_surplus(ids, counts, sizes, rng)
    ids -= _offsets(8 * width, tuple(sizes))
    ids, masks, start = ids.astype(np.int32), [], 0
    for group in plan.groups:
        middle = start + group.context
        stop = middle + group.target * group.boxes
        masks.append({"context": ids[start:middle], "target": ids[middle:stop]})
        start = stop
    return masks


@functools.lru_cache(maxsize=16)
def _offsets(width: int, sizes: tuple[int, ...]) -> np.ndarray:
    return np.repeat(width * np.arange(len(sizes)), sizes)


def _drop_surplus(ids: np.ndarray, counts: list[int], sizes: list[int], rng: np.random.Generator) -> np.ndarray:
    """`sizes[i]` of the i-th run of `counts[i]` ids, for all i, every choice equally likely, order kept."""
    keep = np.empty(len(ids), bool)
    while True:
        keys, start = random_keys(len(ids), rng), 0
        for count, size in zip(counts, sizes, strict=True):
            mark_smallest(keys[start : start + count], size, keep[start : start + count])
            start += count
        kept = ids.compress(keep)
        if len(kept) == sum(sizes):
            return kept


def _draw_sufficient(group: GroupPlan, grid: Grid, rng: np.random.Generator) -> int:
    """A mask with at least the budgets on both sides."""
    most = grid[0] * grid[1] * grid[2] - group.context  # hidden tokens
    draws = []
    for _ in range(MAX_DRAWS):
        hidden = draw_hidden(group, grid, rng)
        if group.target <= hidden.bit_count() <= most:
            return hidden
        draws.append(hidden)
    # Both sides cannot be short at once, because the budgets add up to at most the tokens.
    nearest = min(draws, key=lambda bits: max(group.target - bits.bit_count(), bits.bit_count() - most))
    count = nearest.bit_count()
    side = to_array(nearest, math.prod(grid)).reshape(grid)
    if count < group.target:
        return to_bits(grow(side, group.target - count, np.ones(grid, bool), rng))
    early = np.zeros(grid, bool)
    early[: group.context_steps] = True
    return to_bits(~grow(~side, count - most, early, rng))


def _draw_sufficient_boxes(group: GroupPlan, grid: Grid, rng: np.random.Generator) -> list[int]:
    """Context and target boxes of kind separate with at least the budgets. `budgets` saw draws that have them."""
    while True:
        context, targets = draw_separate(group, grid, rng)
        if context.bit_count() >= group.context and targets[0].bit_count() >= group.target:
            return [context, *targets]


def draw_masks_first_k(plan: MaskPlan, position: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Masks of one clip under the released code's truncation (multiseq_multiblock3d collator of V-JEPA 2).

    Clips at positions [g*G, (g+1)*G) of the run, G = plan.truncation_group, stand for one batch of the released code:
    they share a block size (all mask groups use the same three uniforms for theirs), places are drawn per clip, and
    every clip keeps its first K ids, K the smallest count among the G clips. K is cut to the budget where it is larger.
    Where it is smaller, the row is padded with its last valid id, so rows stay sorted and in range.

    Args:
      position: of the clip in the run, 0 or more (step * batch_size + row).
      seed: of the run, 0 or more. The result depends on seed and position only, wherever it is drawn.

    Returns:
      Per group {"context": int32[Kc], "target": int32[Kt], "context_valid": bool[Kc], "target_valid": bool[Kt]}.

    Raises:
      ValueError: a plan of another policy, a negative seed or position.
    """
    _check_policy(plan, "first_k", "draw_masks")
    batch, row = divmod(position, plan.truncation_group)
    masks = []
    for group, (contexts, targets) in zip(plan.groups, _draw_truncated(plan, batch, seed), strict=True):
        context, context_valid = _pad(contexts[row], group.context)
        target, target_valid = _pad(targets[row], group.target)
        masks.append(
            {"context": context, "target": target, "context_valid": context_valid, "target_valid": target_valid}
        )
    return masks


def _check_policy(plan: MaskPlan, policy: str, other: str) -> None:
    if plan.policy != policy:
        raise ValueError(f"the plan's policy is {plan.policy!r}: draw from it with {other}")


@functools.lru_cache(maxsize=8)
def _draw_truncated(plan: MaskPlan, batch: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truncated ids of all clips of a truncation group, per mask group. Cached, as neighbouring clips ask in turn."""
    uniforms = np.random.default_rng([seed, batch]).random(3).tolist()
    truncated = []
    for i, group in enumerate(plan.groups):
        rng = np.random.default_rng([seed, batch, i])
        rows = _draw_rows(group, plan.grid, plan.truncation_group, rng, uniforms, f"masks.groups[{i}]")
        contexts, targets = zip(*(to_ids(row, math.prod(plan.grid)) for row in rows), strict=True)
        truncated.append(truncate_first_k(contexts, targets))
    return truncated


def _draw_rows(
    group: GroupPlan, grid: Grid, rows: int, rng: np.random.Generator, size_uniforms: list[float], name: str
) -> list[int]:
    """Masks of `rows` clips with one block size, each with some context.

    Clips without context are drawn again, as the released code does. It would do so for ever where the blocks of this
    size hide everything; here another size is taken.
    """
    for _ in range(SIMULATED_DRAWS):
        masks = []
        for _ in range(rows * _MAX_EMPTY_DRAWS):
            hidden = draw_hidden(group, grid, rng, size_uniforms)
            if hidden.bit_count() < math.prod(grid):
                masks.append(hidden)
            if len(masks) == rows:
                return masks
        size_uniforms = rng.random(3).tolist()
    raise ConfigError(f"{name}: masks of kind {group.kind!r} leave no context on a grid of {grid} tokens: hide less")


def _pad(ids: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    count = min(len(ids), budget)
    padded = np.full(budget, ids[count - 1], np.int32)
    padded[:count] = ids[:count]
    return padded, np.arange(budget) < count


def _check_ranges(config: MaskGroupConfig, name: str) -> None:
    for key, top in (
        ("spatial_scale", 1.0),
        ("temporal_scale", 1.0),
        ("context_scale", 1.0),
        ("aspect_ratio", math.inf),
    ):
        low, high = getattr(config, key)
        if not 0.0 < low <= high <= top:
            bound = "" if math.isinf(top) else " <= 1"
            raise ConfigError(f"{name}.{key}={(low, high)} must be (low, high) with 0 < low <= high{bound}")
    if config.num_blocks < 1:
        raise ConfigError(f"{name}.num_blocks={config.num_blocks} must be at least 1")
    if not 0.0 < config.max_temporal_keep <= 1.0:
        raise ConfigError(f"{name}.max_temporal_keep={config.max_temporal_keep} must lie in (0, 1]")


def _resolve(config: MaskGroupConfig, grid: Grid, tubelet: int, patch: int, name: str) -> GroupPlan:
    """The group in tokens, budgets still 0."""
    steps, height, width = grid
    whole = {
        "cuboid": (steps * height * width, "tokens"),
        "random": (steps * height * width, "tokens"),
        "tube": (height * width, "places of a frame"),
        "frame": (steps, "time steps"),
        "causal": (steps, "time steps"),
    }
    masked = 0
    if config.kind in whole:
        count, what = whole[config.kind]
        masked = math.floor(config.ratio * count + 0.5)
        if not 0 < masked < count:
            raise ConfigError(
                f"{name}.ratio={config.ratio} rounds to {masked} of {count} {what}: choose it so that kind "
                f"{config.kind!r} hides at least one and leaves one"
            )
    return GroupPlan(
        kind=config.kind,
        num_blocks=config.num_blocks,
        spatial_scale=config.spatial_scale,
        temporal_scale=config.temporal_scale,
        aspect_ratio=config.aspect_ratio,
        context_scale=config.context_scale,
        block=_block(config, grid, tubelet, patch, name) if config.kind == "cuboid" else (1, 1, 1),
        masked=masked,
        context_steps=max(1, int(steps * config.max_temporal_keep)),
        context=0,
        target=0,
    )


def _block(config: MaskGroupConfig, grid: Grid, tubelet: int, patch: int, name: str) -> Grid:
    block = config.block
    if min(block) < 1:
        raise ConfigError(f"{name}.block={block} must be at least 1 along each axis")
    if config.unit == "pixels":
        cell = (tubelet, patch, patch)
        if any(b % c for b, c in zip(block, cell, strict=True)):
            raise ConfigError(
                f"{name}.block={block} (frames, pixels, pixels) is not whole tokens: use multiples of {cell}"
            )
        block = tuple(b // c for b, c in zip(block, cell, strict=True))
    if any(b > g for b, g in zip(block, grid, strict=True)):
        raise ConfigError(
            f"{name}.block={config.block} {config.unit} is {block} tokens, larger than the grid of {grid} tokens: "
            "use a smaller block"
        )
    return block

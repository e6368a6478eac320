"""Shapes of masks: parity with the released collator, boxes, ratios, random subsets, growing."""

import math

import numpy as np
import pytest

from data_pipelines.mask_shapes import (
    block_size,
    boxes_to_bits,
    draw_hidden,
    grow,
    pixel_mask,
    random_subset,
    to_array,
    to_bits,
    to_ids,
    token_mask,
    truncate_first_k,
)
from data_pipelines.masking import make_plan
from vjepa_jax.config import DataConfig, MaskConfig, MaskGroupConfig, ModelConfig, RunConfig

SIZES = {  # frames, resolution, patch, tubelet
    "8x16x16": (16, 256, 16, 2),
    "4x4x4": (8, 32, 8, 2),
    "4x6x9": (8, (48, 72), 8, 2),
    "5x7x5": (5, (56, 40), 8, 1),
}


def plan_of(size="8x16x16", **group):
    """The plan of one mask group, of the default groups if nothing is given."""
    frames, resolution, patch, tubelet = SIZES[size]
    return make_plan(
        RunConfig(
            steps=1,
            batch_size=1,
            data=DataConfig(path="", num_frames=frames, resolution=resolution),
            model=ModelConfig(patch_size=patch, tubelet_size=tubelet),
            masks=MaskConfig(groups=(MaskGroupConfig(**group),)) if group else MaskConfig(),
        )
    )


def hidden_array(plan, rng, group=0):
    return to_array(draw_hidden(plan.groups[group], plan.grid, rng), math.prod(plan.grid)).reshape(plan.grid)


def opening(hidden, size):
    """Union of all boxes of this size that lie inside the hidden region."""
    out = np.zeros_like(hidden)
    for corner in np.ndindex(*(g - s + 1 for g, s in zip(hidden.shape, size, strict=True))):
        box = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
        if hidden[box].all():
            out[box] = True
    return out


@pytest.mark.parametrize("group", [0, 1])
def test_collator_arrays_follow_from_their_boxes(fixture_npz, group):
    data = fixture_npz("vjepa2_tiny.npz")
    boxes = data[f"collator/{group}/boxes_t0h0w0t1h1w1"]
    rows = [to_ids(boxes_to_bits(clip, (8, 16, 16)), 2048) for clip in boxes]
    context, target = truncate_first_k([c for c, _ in rows], [t for _, t in rows])
    assert context.dtype == target.dtype == np.int32
    np.testing.assert_array_equal(context, data[f"collator/{group}/context"])
    np.testing.assert_array_equal(target, data[f"collator/{group}/target"])


def test_collator_block_sizes_come_from_one_set_of_uniforms(fixture_npz):
    data = fixture_npz("vjepa2_tiny.npz")
    sizes = []
    for group in (0, 1):
        boxes = data[f"collator/{group}/boxes_t0h0w0t1h1w1"].reshape(-1, 6)
        (size,) = np.unique(boxes[:, 3:] - boxes[:, :3], axis=0)
        sizes.append(tuple(size.tolist()))
    plan = plan_of()
    ours = {tuple(block_size(g, plan.grid, (0.5, 0.5, u)) for g in plan.groups) for u in np.linspace(0, 0.999, 200)}
    assert tuple(sizes) in ours


def test_block_size_follows_the_formula_and_stays_in_the_grid():
    plan = plan_of(temporal_scale=(0.25, 0.75), spatial_scale=(0.1, 0.9), aspect_ratio=(0.5, 2.0))
    group, grid = plan.groups[0], (8, 16, 16)
    assert block_size(group, grid, (0.0, 0.0, 0.0)) == (2, 4, 7)  # area 25: sqrt(25 * 0.5), sqrt(25 / 0.5)
    assert block_size(group, grid, (0.5, 0.5, 1 / 3)) == (4, 11, 11)  # area 128, aspect 1
    assert block_size(group, grid, (0.999, 0.999, 0.999)) == (5, 16, 11)  # height is limited to the grid
    assert block_size(group, (1, 2, 2), (0.0, 0.0, 0.0)) == (1, 1, 1)  # never empty


def test_random_subset_is_uniform_over_subsets():
    rng = np.random.default_rng(0)
    seen = {}
    for _ in range(6000):
        subset = random_subset(5, 2, rng)
        assert subset.sum() == 2
        seen[subset.tobytes()] = seen.get(subset.tobytes(), 0) + 1
    assert len(seen) == 10
    assert max(abs(n - 600) for n in seen.values()) < 5 * math.sqrt(600)
    assert random_subset(3, 3, rng).all() and random_subset(3, 7, rng).all()


class _FirstKeysEqual:
    """A bit generator whose first answer is useless."""

    def __init__(self):
        self.calls, self.rng = 0, np.random.default_rng(0)

    def random_raw(self, n):
        self.calls += 1
        return np.zeros(n, np.uint64) if self.calls == 1 else self.rng.bit_generator.random_raw(n)


def test_equal_keys_are_drawn_again():
    class Generator:
        bit_generator = _FirstKeysEqual()

    assert random_subset(9, 4, Generator).sum() == 4
    assert Generator.bit_generator.calls == 2


@pytest.mark.parametrize("temporal_scale, t", [((1.0, 1.0), 8), ((0.5, 0.5), 4), ((0.05, 0.05), 1)])
def test_multiblock_hides_a_union_of_full_boxes(temporal_scale, t):
    plan = plan_of(temporal_scale=temporal_scale, aspect_ratio=(0.8, 0.8), num_blocks=4, spatial_scale=(0.15, 0.15))
    rng = np.random.default_rng(3)
    for _ in range(5):
        hidden = hidden_array(plan, rng)
        np.testing.assert_array_equal(opening(hidden, (t, 6, 7)), hidden)
        assert t * 42 <= hidden.sum() <= 4 * t * 42


def test_boxes_are_placed_uniformly():
    plan = plan_of("4x6x9", num_blocks=1, temporal_scale=(0.5, 0.5), aspect_ratio=(1.0, 1.0))
    t, h, w = block_size(plan.groups[0], plan.grid, (0.0, 0.0, 0.0))
    rng, seen = np.random.default_rng(0), {}
    for _ in range(6000):
        corner = tuple(np.argwhere(hidden_array(plan, rng))[0].tolist())
        seen[corner] = seen.get(corner, 0) + 1
    places = (4 - t + 1) * (6 - h + 1) * (9 - w + 1)
    assert len(seen) == places > 50
    assert max(abs(n - 6000 / places) for n in seen.values()) < 5 * math.sqrt(6000 / places)


@pytest.mark.parametrize("block, ratio", [((2, 2, 2), 0.75), ((4, 16, 16), 0.6), ((1, 1, 1), 0.3), ((3, 5, 2), 0.9)])
def test_cuboids_are_full_boxes_up_to_the_ratio(block, ratio):
    plan = plan_of(kind="cuboid", block=block, ratio=ratio)
    (group,) = plan.groups
    assert group.target == round(2048 * ratio)
    rng = np.random.default_rng(0)
    for _ in range(5):
        hidden = hidden_array(plan, rng)
        np.testing.assert_array_equal(opening(hidden, block), hidden)
        assert group.target <= hidden.sum() < group.target + math.prod(block)


def test_cuboid_in_pixels_is_the_same_as_in_tokens():
    tokens = plan_of(kind="cuboid", block=(2, 1, 3))
    pixels = plan_of(kind="cuboid", block=(4, 16, 48), unit="pixels")
    assert tokens == pixels


def test_the_first_boxes_that_reach_the_ratio_are_taken():
    # Boxes of half the clip at 5 time offsets; 5 of 8 steps are asked for, so a second box that overlaps fully is
    # not enough, and a third is not added to two that do.
    plan = plan_of(kind="cuboid", block=(4, 16, 16), ratio=0.6)
    rng = np.random.default_rng(0)
    steps = [int(hidden_array(plan, rng)[:, 0, 0].sum()) for _ in range(400)]
    assert set(steps) == {5, 6, 7, 8}
    # Two distinct offsets d steps apart hide 4 + d steps: 4, 3, 2 and 1 of the 10 pairs.
    np.testing.assert_allclose([steps.count(n) / 400 for n in (5, 6, 7, 8)], [0.4, 0.3, 0.2, 0.1], atol=0.08)


@pytest.mark.parametrize("size", SIZES)
def test_ratio_kinds_hide_what_they_say(size):
    rng = np.random.default_rng(0)
    t, h, w = plan_of(size).grid

    def rounded(x):
        return math.floor(x + 0.5)

    tube = hidden_array(plan_of(size, kind="tube", ratio=0.7), rng)
    assert (tube == tube[:1]).all() and tube[0].sum() == rounded(0.7 * (h * w))
    frame = hidden_array(plan_of(size, kind="frame", ratio=0.5), rng)
    assert (frame == frame[:, :1, :1]).all() and frame[:, 0, 0].sum() == rounded(0.5 * t)
    scattered = hidden_array(plan_of(size, kind="random", ratio=0.6), rng)
    assert scattered.sum() == rounded(0.6 * (t * h * w)) and not (scattered == scattered[:1]).all()
    causal = hidden_array(plan_of(size, kind="causal", ratio=0.5), rng)
    hidden = rounded(0.5 * t)
    assert not causal[: t - hidden].any() and causal[t - hidden :].all()
    for group in (
        plan_of(size, kind="tube", ratio=0.7),
        plan_of(size, kind="random", ratio=0.6),
        plan_of(size, kind="causal", ratio=0.5),
    ):
        assert group.groups[0].context + group.groups[0].target == t * h * w  # nothing is dropped


@pytest.mark.parametrize("keep, steps", [(1.0, 8), (0.6, 4), (0.5, 4), (0.01, 1)])
def test_context_comes_from_the_first_part_only(keep, steps):
    plan = plan_of(kind="multiblock", max_temporal_keep=keep)
    assert plan.groups[0].context_steps == steps
    rng = np.random.default_rng(0)
    for _ in range(10):
        hidden = hidden_array(plan, rng)
        assert hidden[steps:].all() and not hidden[:steps].all()


def test_pictures_of_ids():
    ids = np.array([[0, 5], [11, 11]])  # any shape, repeats allowed
    mask = token_mask(ids, (2, 2, 3))
    assert mask.dtype == bool and np.flatnonzero(mask).tolist() == [0, 5, 11]
    pixels = pixel_mask(ids, (2, 2, 3), patch=4, tubelet=2)
    assert pixels.shape == (4, 8, 12) and pixels.sum() == 3 * 2 * 4 * 4
    assert pixels[:2, :4, :4].all() and pixels[2:, 4:, 8:].all() and not pixels[2:, :4].any()


def test_a_mask_survives_the_way_through_its_integer():
    for n in (1, 7, 8, 9, 175):
        hidden = np.random.default_rng(n).random(n) < 0.5
        np.testing.assert_array_equal(to_array(to_bits(hidden), n), hidden)
        context, target = to_ids(to_bits(hidden), n)
        np.testing.assert_array_equal(context, np.flatnonzero(~hidden))
        np.testing.assert_array_equal(target, np.flatnonzero(hidden))


def test_growing_adds_whole_layers_then_whole_columns():
    side = np.zeros((4, 7, 7), bool)
    side[:, 3, 3] = True
    everywhere = np.ones_like(side)
    rng = np.random.default_rng(0)
    one_layer = grow(side, 16, everywhere, rng)
    assert one_layer.sum() == 20 and one_layer[:, [2, 3, 3, 4], [3, 2, 4, 3]].all()
    for count in (0, 3, 5, 11, 40, 4 * 49 - 4):
        grown = grow(side, count, everywhere, np.random.default_rng(count))
        assert grown.sum() == 4 + count and (grown | ~side).all()
        partial = (grown.any(0) & ~grown.all(0)).sum()
        assert partial == (count % 4 > 0)  # at most the column in which the count is reached
    early = everywhere.copy()
    early[2:] = False
    grown = grow(side, 30, early, rng)
    np.testing.assert_array_equal(grown[2:], side[2:])
    assert grown.sum() == 34
    from_nothing = grow(np.zeros_like(side), 4 * 5, everywhere, rng)
    assert from_nothing.sum() == 20 and (from_nothing == from_nothing[:1]).all()

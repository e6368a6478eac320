"""Masks of kind separate (I-JEPA): whole boxes, budgets, context without targets."""

import math

import numpy as np
import pytest

from data_pipelines.mask_shapes import draw_separate, to_array
from data_pipelines.masking import draw_masks, make_plan
from vjepa_jax.config import DataConfig, MaskConfig, MaskGroupConfig, ModelConfig, RunConfig

GROUP = MaskGroupConfig(kind="separate", num_blocks=4, spatial_scale=(0.15, 0.2))


def plan_of(resolution=(224, 160), frames=1, tubelet=1, group=GROUP):
    return make_plan(
        RunConfig(
            steps=1,
            batch_size=1,
            data=DataConfig(path="", num_frames=frames, resolution=resolution),
            model=ModelConfig(patch_size=16, tubelet_size=tubelet),
            masks=MaskConfig(groups=(group,)),
        )
    )


def extent(mask):
    """Lengths of the smallest box around the True tokens."""
    return tuple(int(np.ptp(axis)) + 1 for axis in np.nonzero(mask))


@pytest.mark.parametrize("frames, tubelet", [(1, 1), (8, 2)])
def test_targets_are_boxes_of_one_size_and_context_is_a_box_without_them(frames, tubelet):
    plan = plan_of(frames=frames, tubelet=tubelet)
    (group,), grid, tokens = plan.groups, plan.grid, math.prod(plan.grid)
    for seed in range(50):
        context, targets = draw_separate(group, grid, np.random.default_rng(seed))
        boxes = [to_array(bits, tokens).reshape(grid) for bits in targets]
        sizes = {extent(box) for box in boxes}
        assert len(boxes) == 4 and len(sizes) == 1
        (size,) = sizes
        assert all(box.sum() == math.prod(size) for box in boxes)
        assert 0.1 < size[1] * size[2] / (grid[1] * grid[2]) < 0.25
        hidden = np.logical_or.reduce(boxes)
        seen = to_array(context, tokens).reshape(grid)
        assert not (seen & hidden).any()
        outline = np.zeros(grid, bool)
        outline[tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(seen))] = True
        assert ((outline & ~hidden) == seen).all()  # nothing but targets is missing from the context's box


def test_budgets_are_exact_sorted_and_disjoint_from_the_context():
    plan = plan_of()
    (group,) = plan.groups
    assert plan.budgets == [(group.context, group.target)] * 4
    for seed in range(200):
        (mask,) = draw_masks(plan, np.random.default_rng(seed))
        assert mask["context"].shape == (group.context,) and mask["target"].shape == (4 * group.target,)
        assert (np.diff(mask["context"]) > 0).all()
        assert (np.diff(mask["target"].reshape(4, -1), axis=1) > 0).all()
        assert not set(mask["context"]) & set(mask["target"])
        assert mask["context"].min() >= 0 and max(mask["context"].max(), mask["target"].max()) < 140


def test_same_generator_same_masks_and_another_group_beside_it():
    run_groups = (GROUP, MaskGroupConfig(kind="random"))
    plan = make_plan(
        RunConfig(
            steps=1,
            batch_size=1,
            data=DataConfig(path="", num_frames=1, resolution=224),
            model=ModelConfig(patch_size=16, tubelet_size=1),
            masks=MaskConfig(groups=run_groups),
        )
    )
    first, again = draw_masks(plan, np.random.default_rng(3)), draw_masks(plan, np.random.default_rng(3))
    for a, b in zip(first, again, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    assert len(plan.budgets) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate(list(first[1].values()))), np.arange(196))

"""Masks of clips: properties of every kind under both policies, budgets, determinism, errors, speed."""

import hashlib
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import masking, masking_bench
from data_pipelines.mask_shapes import (
    boxes_to_bits,
    draw_hidden,
    to_array,
)
from data_pipelines.masking import draw_masks, draw_masks_first_k, make_plan
from vjepa_jax.config import ConfigError, DataConfig, MaskConfig, MaskGroupConfig, ModelConfig, RunConfig

KINDS = {
    "multiblock": {},
    "multiblock_long": {"kind": "multiblock", "num_blocks": 2, "spatial_scale": (0.7, 0.7)},
    "multiblock_short_time": {"kind": "multiblock", "num_blocks": 6, "temporal_scale": (0.4, 0.8)},
    "multiblock_early": {"kind": "multiblock", "max_temporal_keep": 0.6},
    "cuboid": {"kind": "cuboid", "block": (2, 2, 2)},
    "cuboid_planes": {"kind": "cuboid", "block": (1, 4, 4), "ratio": 0.5},
    "tube": {"kind": "tube", "ratio": 0.9},
    "frame": {"kind": "frame"},
    "random": {"kind": "random"},
    "causal": {"kind": "causal", "ratio": 0.5},
}
SIZES = {  # frames, resolution, patch, tubelet
    "8x16x16": (16, 256, 16, 2),
    "4x4x4": (8, 32, 8, 2),
    "4x6x9": (8, (48, 72), 8, 2),
    "5x7x5": (5, (56, 40), 8, 1),
}


def run_config(size="8x16x16", policy="uniform", truncation_group=24, groups=None, **group):
    frames, resolution, patch, tubelet = SIZES[size]
    groups = groups or ((MaskGroupConfig(**group),) if group else MaskConfig().groups)
    return RunConfig(
        steps=1,
        batch_size=1,
        data=DataConfig(path="", num_frames=frames, resolution=resolution),
        model=ModelConfig(patch_size=patch, tubelet_size=tubelet),
        masks=MaskConfig(groups=groups, policy=policy, truncation_group=truncation_group),
    )


def whole_first_k(size="8x16x16", **kwargs):
    """A first_k plan whose budgets cut nothing."""
    run = run_config(size, policy="first_k", **kwargs)
    tokens = math.prod(run.grid)
    groups = tuple(MaskGroupConfig(**{**vars(g), "context": tokens, "target": tokens}) for g in run.masks.groups)
    return make_plan(run_config(size, policy="first_k", groups=groups))


def draws(plan, count, seed=0):
    for i in range(count):
        yield draw_masks(plan, np.random.default_rng((seed, i)))


def test_first_k_keeps_as_many_tokens_as_the_released_collator():
    plan = whole_first_k()
    counts, kept, untruncated = [], np.zeros((2, 2, 8)), np.zeros((2, 2, 1))
    for position in range(0, 400 * 24, 7):
        for i, mask in enumerate(draw_masks_first_k(plan, position, seed=0)):
            context, target = (mask[key][mask[f"{key}_valid"]] for key in ("context", "target"))
            hidden = np.count_nonzero(target < 256)  # a tube hides as many tokens at every step
            counts.append((len(context), len(target)))
            untruncated[i, :, 0] += 256 - hidden, hidden
            kept[i] += [np.bincount(ids // 256, minlength=8) for ids in (context, target)]
    counts = np.reshape(counts, (-1, 2, 2)).mean(0)
    np.testing.assert_allclose(counts, [[492, 978], [132, 1438]], rtol=0.04)
    share = [
        [[1.0, 1.0, 0.99, 0.91, 0.66, 0.34, 0.13, 0.05], [1.0, 1.0, 1.0, 1.0, 0.97, 0.75, 0.33, 0.09]],
        [[0.99, 0.78, 0.44, 0.24, 0.11, 0.06, 0.04, 0.03], [1.0, 1.0, 1.0, 1.0, 1.0, 0.99, 0.73, 0.21]],
    ]
    np.testing.assert_allclose(kept / untruncated, share, atol=0.03)


# Policy uniform


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_uniform_masks_are_sorted_disjoint_in_range_and_exact(kind, size):
    plan = make_plan(run_config(size, **{"kind": "multiblock", **KINDS[kind]}))
    (group,), tokens = plan.groups, math.prod(plan.grid)
    assert 1 <= group.context and 1 <= group.target and group.context + group.target <= tokens
    seen = set()
    for (mask,) in draws(plan, 40):
        assert mask.keys() == {"context", "target"}
        for key in ("context", "target"):
            ids = mask[key]
            assert ids.dtype == np.int32 and ids.shape == (getattr(group, key),)
            assert (np.diff(ids) > 0).all() and ids[0] >= 0 and ids[-1] < tokens
        assert not np.intersect1d(mask["context"], mask["target"]).size
        assert mask["context"].max() < group.context_steps * plan.grid[1] * plan.grid[2]
        seen.add(mask["context"].tobytes() + mask["target"].tobytes())
    if kind == "causal":
        assert len(seen) == 1
    elif kind != "frame":  # a few steps have few combinations
        assert len(seen) > 5


def test_uniform_drops_without_preference_for_any_time_step():
    plan = make_plan(run_config())
    assert [(g.context, g.target) for g in plan.groups] == [(528, 1056), (128, 1440)]
    kept = np.zeros((4, 8))
    for masks in draws(plan, 400):
        kept += [np.bincount(mask[key] // 256, minlength=8) for mask in masks for key in ("context", "target")]
    # Tubes hold as many tokens at every step, so an unbiased choice keeps an eighth of its budget at each.
    expected = 400 / 8 * np.array([[528], [1056], [128], [1440]])
    np.testing.assert_allclose(kept / expected, 1.0, atol=0.04)


def test_uniform_draws_are_an_unbiased_choice_of_the_mask():
    plan = make_plan(run_config("4x4x4", kind="causal", ratio=0.5, context=10, target=20))
    counts = np.zeros(64)
    for (mask,) in draws(plan, 3000):
        counts[mask["context"]] += 1
        counts[mask["target"]] += 1
    expected = 3000 * np.repeat([10 / 32, 20 / 32], 32)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_equal_keys_at_the_threshold_are_drawn_again(monkeypatch):
    keys = [np.zeros(64, np.int32), np.random.default_rng(0).permutation(64).astype(np.int32)]
    monkeypatch.setattr(masking, "random_keys", lambda n, rng: keys.pop(0))
    plan = make_plan(run_config("4x4x4", kind="causal", ratio=0.5, context=10, target=20))
    (mask,) = draw_masks(plan, np.random.default_rng(0))
    assert (len(mask["context"]), len(mask["target"])) == (10, 20) and not keys


def test_a_32_bit_generator_is_refused():
    plan = make_plan(run_config("4x4x4"))
    with pytest.raises(ValueError, match=r"64-bit output .*not MT19937"):
        draw_masks(plan, np.random.Generator(np.random.MT19937(0)))


def test_drawing_with_the_other_policys_function_is_refused():
    with pytest.raises(ValueError, match=r"policy is 'uniform': draw from it with draw_masks$"):
        draw_masks_first_k(make_plan(run_config("4x4x4")), 0, 0)
    with pytest.raises(ValueError, match=r"policy is 'first_k': draw from it with draw_masks_first_k"):
        draw_masks(make_plan(run_config("4x4x4", policy="first_k")), np.random.default_rng(0))


# Budgets


@pytest.mark.parametrize("size, budgets", [("8x16x16", [(528, 1056), (128, 1440)]), ("4x4x4", [(16, 16), (8, 32)])])
def test_default_budgets(size, budgets):
    plan = make_plan(run_config(size))
    assert [(g.context, g.target) for g in plan.groups] == budgets
    rng = np.random.default_rng(5)
    for group in plan.groups:
        hidden = np.array([draw_hidden(group, plan.grid, rng).bit_count() for _ in range(1000)])
        hidden = hidden[hidden < math.prod(plan.grid)]
        met = (hidden >= group.target) & (math.prod(plan.grid) - hidden >= group.context)
        assert met.mean() > 0.85


def test_budgets_given_are_kept_and_the_other_is_chosen_to_go_with_them():
    (group,) = make_plan(run_config(num_blocks=8, context=900)).groups
    assert group.context == 900 and 900 < group.target <= 2048 - 900
    (group,) = make_plan(run_config(num_blocks=8, target=1500)).groups
    assert group.target == 1500 and group.context < 528
    (group,) = make_plan(run_config(num_blocks=8, target=600, context=300)).groups
    assert (group.context, group.target) == (300, 600)
    (group,) = make_plan(run_config(policy="first_k", num_blocks=8, context=100)).groups
    assert group.context == 100 and group.target % 8 == 0


def test_budgets_of_first_k_hold_nearly_every_truncation_group():
    plan, whole = make_plan(run_config(policy="first_k")), whole_first_k()
    batches = [draw_masks_first_k(whole, 24 * b, seed=3) for b in range(100)]
    for i, group in enumerate(plan.groups):
        for key, budget in (("context", group.context), ("target", group.target)):
            lengths = np.array([masks[i][f"{key}_valid"].sum() for masks in batches])
            assert budget % 8 == 0 and np.mean(lengths <= budget) > 0.95
            assert np.quantile(lengths, 0.9) < budget  # and not far more than needed:
            assert budget < lengths.mean() + 4 * lengths.std()


@pytest.mark.parametrize("key, keep", [("context", 1.0), ("context", 0.6), ("target", 1.0), ("target", 0.6)])
def test_budgets_that_draws_rarely_meet_are_met_exactly(key, keep):
    blocks = {"num_blocks": 3, "spatial_scale": (0.3, 0.3), "max_temporal_keep": keep}
    plain, rng = make_plan(run_config(**blocks)), np.random.default_rng(0)
    hidden = np.array([draw_hidden(plain.groups[0], plain.grid, rng).bit_count() for _ in range(256)])
    most = int((2048 - hidden if key == "context" else hidden).max())
    plan = make_plan(run_config(**blocks, **{"context": 64, "target": 64, key: most}))
    completed = 0
    for i in range(30):
        rng = np.random.default_rng(i)
        hidden = np.array([draw_hidden(plan.groups[0], plan.grid, rng).bit_count() for _ in range(masking.MAX_DRAWS)])
        completed += (2048 - hidden if key == "context" else hidden).max() < most
        (mask,) = draw_masks(plan, np.random.default_rng(i))
        assert (len(mask["context"]), len(mask["target"])) == (plan.groups[0].context, plan.groups[0].target)
        assert (np.diff(mask[key]) > 0).all() and not np.intersect1d(mask["context"], mask["target"]).size
        assert mask["context"].max() < plan.groups[0].context_steps * 256
    assert completed > 10  # what this test is about did happen


def test_completed_masks_leave_no_island_inside_a_box():
    # One box of 6 x 7 of the 16 x 16 places, and room for 40 places only: two are shown at its border.
    plan = make_plan(run_config(num_blocks=1, aspect_ratio=(0.7, 0.9)))
    hidden = boxes_to_bits(np.array([[0, 5, 4, 8, 11, 11]]), plan.grid)
    short = masking.dataclasses.replace(plan.groups[0], context=2048 - 40 * 8, target=40 * 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "draw_hidden", lambda *args: hidden)
        shown = to_array(masking._draw_sufficient(short, plan.grid, np.random.default_rng(0)), 2048)
    moved = (to_array(hidden, 2048) & ~shown).reshape(plan.grid)
    assert moved.sum() == 16 and not moved[:, 6:10, 5:10].any()


# Policy first_k


@pytest.mark.parametrize("size", ["8x16x16", "4x6x9"])
@pytest.mark.parametrize("kind", KINDS)
def test_first_k_masks_are_padded_prefixes(kind, size):
    plan = make_plan(run_config(size, policy="first_k", truncation_group=6, **{"kind": "multiblock", **KINDS[kind]}))
    (group,), tokens = plan.groups, math.prod(plan.grid)
    for batch in range(3):
        rows = [draw_masks_first_k(plan, 6 * batch + i, seed=0)[0] for i in range(6)]
        for key in ("context", "target"):
            budget = getattr(group, key)
            lengths = {int(row[f"{key}_valid"].sum()) for row in rows}
            assert len(lengths) == 1 and 1 <= lengths.pop() <= budget
            for row in rows:
                ids, valid = row[key], row[f"{key}_valid"]
                assert ids.dtype == np.int32 and valid.dtype == bool and ids.shape == valid.shape == (budget,)
                assert (np.diff(valid.astype(int)) <= 0).all()  # valid ones first
                assert (np.diff(ids[valid]) > 0).all() and (ids[~valid] == ids[valid][-1]).all()
                assert ids[0] >= 0 and ids[-1] < tokens
        for row in rows:
            context, target = (row[k][row[f"{k}_valid"]] for k in ("context", "target"))
            assert not np.intersect1d(context, target).size
            covered = min(context[-1], target[-1])  # a prefix: no token before the earlier end is left out
            assert np.isin(np.arange(covered + 1), np.concatenate([context, target])).all()


def test_first_k_draws_one_block_size_for_a_truncation_group_and_all_mask_groups():
    one = MaskGroupConfig(num_blocks=1, spatial_scale=(0.1, 0.6), temporal_scale=(0.2, 1.0))
    plan = whole_first_k(groups=(one, one))
    sizes = []
    for batch in range(8):
        masks = [draw_masks_first_k(plan, 24 * batch + i, seed=0) for i in range(24)]
        counts = {int(m["target_valid"].sum()) for pair in masks for m in pair}
        assert len(counts) == 1
        sizes.append(counts.pop())
        places = {m["target"][0] for pair in masks for m in pair}
        assert len(places) > 10
        assert any((a["target"] != b["target"]).any() for a, b in masks)
    assert len(set(sizes)) > 4


def test_first_k_never_exceeds_the_budget():
    plan = make_plan(run_config(policy="first_k", num_blocks=8, context=64, target=300))
    whole = whole_first_k(num_blocks=8)
    for position in (0, 5, 30):
        (cut,), (full,) = (draw_masks_first_k(p, position, 0) for p in (plan, whole))
        assert cut["context_valid"].all() and cut["target_valid"].all()
        np.testing.assert_array_equal(cut["context"], full["context"][:64])
        np.testing.assert_array_equal(cut["target"], full["target"][:300])


def test_first_k_takes_another_size_where_blocks_hide_everything():
    group = MaskGroupConfig(num_blocks=1, spatial_scale=(0.9, 1.0), aspect_ratio=(0.7, 1.4))
    plan = make_plan(run_config("4x4x4", policy="first_k", truncation_group=4, groups=(group,)))
    for position in range(0, 200, 4):
        (mask,) = draw_masks_first_k(plan, position, 0)
        assert mask["context_valid"].any()


# Determinism


def digest(masks):
    return hashlib.sha256(b"".join(m[k].tobytes() for m in masks for k in sorted(m))).hexdigest()


def test_equal_seed_step_and_example_give_equal_masks():
    plan = make_plan(run_config("8x16x16"))
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan and hash(copy) == hash(plan)
    keys = [(seed, step, example) for seed in (0, 1) for step in (0, 7) for example in (0, 3)]
    first = {key: digest(draw_masks(plan, np.random.default_rng(key))) for key in keys}
    again = {key: digest(draw_masks(copy, np.random.default_rng(key))) for key in reversed(keys)}
    assert first == again and len(set(first.values())) == len(keys)


def test_first_k_depends_on_seed_and_position_only():
    plan = make_plan(run_config("4x6x9", policy="first_k", truncation_group=6))
    positions = list(range(40))
    first = {p: digest(draw_masks_first_k(plan, p, 0)) for p in positions}
    masking._draw_truncated.cache_clear()
    np.random.default_rng(0).shuffle(positions)
    assert first == {p: digest(draw_masks_first_k(pickle.loads(pickle.dumps(plan)), p, 0)) for p in positions}
    assert first[3] != digest(draw_masks_first_k(plan, 3, 1)) and len(set(first.values())) == 40
    draw_masks_first_k(plan, 3, 0)[0]["context"][:] = -1  # results are the caller's own
    assert first[3] == digest(draw_masks_first_k(plan, 3, 0))


def test_masks_are_the_same_in_another_process(repo):
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from data_pipelines.masking import draw_masks, draw_masks_first_k, make_plan\n"
        "from vjepa_jax.config import DataConfig, MaskConfig, RunConfig\n"
        "run = [RunConfig(1, 1, DataConfig(''), masks=MaskConfig(policy=p)) for p in ('uniform', 'first_k')]\n"
        "masks = draw_masks(make_plan(run[0]), np.random.default_rng((1, 2, 3)))\n"
        "masks += draw_masks_first_k(make_plan(run[1]), 50, 9)\n"
        "assert 'jax' not in sys.modules\n"
        "sys.stdout.write(b''.join(m[k].tobytes() for m in masks for k in sorted(m)).hex())\n"
    )
    there = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True).stdout
    here = draw_masks(make_plan(run_config()), np.random.default_rng((1, 2, 3)))
    here += draw_masks_first_k(make_plan(run_config(policy="first_k")), 50, 9)
    assert digest(here) == hashlib.sha256(bytes.fromhex(there)).hexdigest()


# Errors: one line each


@pytest.mark.parametrize(
    "group, message",
    [
        ({"kind": "multiblock", "context": 2000, "target": 40}, "context=2000, target=40 cannot be met: 256 draws"),
        ({"kind": "tube", "ratio": 0.9, "context": 400}, "context=400, target=None cannot be met"),
        ({"kind": "multiblock", "context": 1500, "target": 1500}, "context=1500, target=1500 cannot be met"),
        ({"kind": "multiblock", "num_blocks": 1, "spatial_scale": (1.0, 1.0), "aspect_ratio": (1.0, 1.0)},
         "context=None, target=None cannot be met: 256 draws of kind 'multiblock' on a grid of 8x16x16 tokens have 0 "
         "to 0 context and 2048 to 2048 target tokens: lower the budgets or hide less"),
        ({"kind": "cuboid", "block": (4, 17, 16)}, r"block=\(4, 17, 16\) tokens is \(4, 17, 16\) tokens, larger than"),
        ({"kind": "cuboid", "block": (4, 16, 512), "unit": "pixels"}, r"is \(2, 1, 32\) tokens, larger than the grid"),
        ({"kind": "cuboid", "block": (3, 16, 16), "unit": "pixels"}, r"not whole tokens: use multiples of \(2, 16, 16"),
        ({"kind": "cuboid", "block": (4, 16, 24), "unit": "pixels"}, "not whole tokens"),
        ({"kind": "cuboid", "block": (0, 1, 1)}, "must be at least 1 along each axis"),
        ({"kind": "frame", "ratio": 0.95}, "ratio=0.95 rounds to 8 of 8 time steps"),
        ({"kind": "causal", "ratio": 0.05}, "ratio=0.05 rounds to 0 of 8 time steps"),
        ({"kind": "tube", "ratio": 0.999}, "rounds to 256 of 256 places of a frame"),
        ({"kind": "random", "ratio": 0.9999}, "rounds to 2048 of 2048 tokens"),
        ({"kind": "multiblock", "context": 0}, "context=0 must be at least 1"),
        ({"kind": "multiblock", "target": -3}, "target=-3 must be at least 1"),
        ({"kind": "multiblock", "num_blocks": 0}, "num_blocks=0 must be at least 1"),
        ({"kind": "multiblock", "spatial_scale": (0.7, 0.15)}, r"spatial_scale=\(0.7, 0.15\) must be \(low, high\)"),
        ({"kind": "multiblock", "spatial_scale": (0.7, 1.5)}, "0 < low <= high <= 1"),
        ({"kind": "multiblock", "temporal_scale": (0.0, 1.0)}, "temporal_scale=.* 0 < low"),
        ({"kind": "multiblock", "aspect_ratio": (-1.0, 1.0)}, "aspect_ratio=.* 0 < low <= high$"),
        ({"kind": "multiblock", "max_temporal_keep": 0.0}, r"max_temporal_keep=0.0 must lie in \(0, 1\]"),
    ],
)  # fmt: skip
def test_errors_name_the_group_and_what_to_do(group, message):
    groups = (MaskGroupConfig(), MaskGroupConfig(**group))
    with pytest.raises(ConfigError, match=r"^masks.groups\[1\].*" + message) as error:
        make_plan(run_config(groups=groups))
    assert "\n" not in str(error.value)


def test_first_k_without_any_context_is_an_error():
    group = MaskGroupConfig(num_blocks=1, spatial_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0))
    with pytest.raises(ConfigError, match=r"masks.groups\[0\]: .*leave no context on a grid of \(4, 4, 4\) tokens"):
        make_plan(run_config("4x4x4", policy="first_k", truncation_group=1, groups=(group,)))


# Speed


@pytest.mark.parametrize("policy", ["uniform", "first_k"])
def test_benchmark_reports_and_masks_are_cheap(policy):
    result = masking_bench.benchmark(clips=24, policy=policy, repeats=40)
    assert json.loads(json.dumps(result)) == result
    assert result["what"] == f"draw_masks {policy}" and result["shape"] == [24, 2048] and result["groups"] == 2
    assert result["clips_per_s"] > 0 and {"python", "numpy"} <= result["versions"].keys()
    assert result["cpu_ms"] < 10  # under 2 on an idle core; a mask drawn token by token costs far more

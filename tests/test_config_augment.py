"""Augmentation keys: timm's notation read right, and one line for each mistake."""

import pytest

from vjepa_jax import config as config_lib
from vjepa_jax.config import ConfigError, RandAugment


def build(augment=None, **data):
    return config_lib.from_config_dict(
        {"steps": 1, "batch_size": 1, "data": {"path": "v", "augment": augment or {}, **data}}
    )


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", None),
        ("rand", RandAugment(10.0, 2, 0.0, False)),  # timm's defaults
        ("rand-m7-n4-mstd0.5-inc1", RandAugment(7.0, 4, 0.5, True)),
        ("rand-inc0-mstd2-m0", RandAugment(0.0, 2, 2.0, False)),
    ],
)
def test_policies(policy, expected):
    assert build({"rand_augment": policy}).data.augment.policy == expected


@pytest.mark.parametrize(
    "policy",
    ["augmix-m3", "rand-", "rand_m7", "rand-m7-m8", "rand-w0", "rand-m", "rand-m11", "rand-n0", "rand-n1.5",
     "rand-inc2", "rand-mstd-1", "rand-m7 "],
)  # fmt: skip
def test_policies_that_are_refused(policy):
    with pytest.raises(
        ConfigError, match=r"^data\.augment\.rand_augment=.* must be like 'rand-m7-n4-mstd0\.5-inc1'"
    ) as e:
        build({"rand_augment": policy})
    assert repr(policy) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"erase_prob": 1.5}}, "data.augment.erase_prob=1.5 must lie in [0, 1]"),
        ({"augment": {"antialias": 1}}, "data.augment.antialias=1 must be of type bool"),
        ({"augment": {"erase": 0.5}}, "unknown config key data.augment.erase; did you mean 'erase_prob'?"),
        ({"random_resize_scale": (0.5, 1.5)}, "data.random_resize_scale=(0.5, 1.5) must be (least, most)"),
        ({"random_resize_scale": (0.0, 1.0)}, "data.random_resize_scale=(0.0, 1.0) must be (least, most)"),
        ({"random_resize_aspect": (2.0, 1.0)}, "data.random_resize_aspect=(2.0, 1.0) must be (least, most)"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_that_names_the_key(changes, message):
    with pytest.raises(ConfigError) as caught:
        build(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_from_before_these_keys_may_go_on():
    saved = config_lib.to_dict(build())
    del saved["data"]["augment"]
    assert config_lib.differences(saved, config_lib.to_dict(build())) == []
    changed = config_lib.differences(saved, config_lib.to_dict(build({"motion_shift": True})))
    assert changed == ["data.augment.motion_shift: False -> True"]

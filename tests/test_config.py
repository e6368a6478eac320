"""Strict configuration: round trip, and one clear line for each mistake."""

import pytest

from vjepa_jax import config as config_lib
from vjepa_jax.config import ConfigError


def build(**changes):
    return config_lib.from_config_dict({"steps": 10, "batch_size": 4, "data": {"path": "videos"}} | changes)


def test_round_trip_through_json_data():
    run = build(masks={"groups": ({"kind": "causal", "ratio": 0.5},)}, optim={"clip_norm": 1})
    assert run.optim.clip_norm == 1.0 and run.masks.groups[0].kind == "causal"
    assert config_lib.from_config_dict(config_lib.to_dict(run)) == run


def test_grid_of_square_and_oblong_clips():
    assert build().grid == (8, 16, 16)
    assert build(data={"path": "v", "num_frames": 64, "resolution": (128, 256)}).grid == (32, 8, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stpes": 3}, "unknown config key stpes; did you mean 'steps'"),
        ({"optim": {"larning_rate": 3}}, "unknown config key optim.larning_rate"),
        ({"optim": {"lr": "fast"}}, "optim.lr='fast' must be of type float"),
        ({"optim": 3}, "optim must be a group of keys"),
        ({"steps": 1.5}, "steps=1.5 must be of type int"),
        ({"steps": True}, "steps=True must be of type int"),
        ({"steps": None}, "missing config key steps"),
        ({"data": {}}, "missing config key data.path"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"log": {"images_every_steps": -1}}, "log.images_every_steps=-1 must not be negative (0: no pictures)"),
        ({"data": {"path": "v", "num_frames": 15}}, "data.num_frames=15 is not divisible by model.tubelet_size=2"),
        ({"data": {"path": "v", "resolution": 250}}, "data.resolution=250 is not divisible by model.patch_size=16"),
        ({"data": {"path": "v", "fps": 0.0}}, "data.fps=0.0 and data.frame_step=None must be positive"),
        ({"data": {"path": "a,b", "weights": (1.0,)}}, "data.weights has 1 entries, data.path names 2 sources"),
        ({"data": {"path": "v", "random_resize_scale": (1.0,)}}, "random_resize_scale=(1.0,) must have 2 entries"),
        ({"optim": {"accumulate": 3}}, "batch_size=4 is not divisible by optim.accumulate=3"),
        ({"optim": {"schedule": "cosin"}}, "is not one of constant, cosine, linear, wsd; did you mean 'cosine'"),
        ({"optim": {"schedule": "wsd"}}, "needs optim.decay_steps"),
        ({"optim": {"warmup_steps": 11}}, "optim.warmup_steps=11 + optim.decay_steps=0 exceed steps=10"),
        ({"ema": {"end": 1.5}}, "must lie in [0, 1]"),
        ({"masks": {"groups": ()}}, "masks.groups is empty"),
        ({"masks": {"groups": ({"kind": "tubes"},)}}, "masks.groups[0].kind='tubes' is not one of"),
        ({"masks": {"groups": ({"kind": "tube", "ratio": 1.0},)}}, "masks.groups[0].ratio=1.0 must lie strictly"),
        ({"masks": {"groups": ({"unit": "feet"},)}}, "masks.groups[0].unit='feet'"),
        ({"masks": {"groups": ({"context": 2000, "target": 100},)}}, "exceed the 2048 tokens of a clip"),
        ({"model": {"predictor": {"num_heads": 5}}}, "model.predictor.embed_dim=384 is not divisible by"),
    ],
)
def test_each_mistake_is_one_line_that_names_the_key(changes, message):
    with pytest.raises(ConfigError) as caught:
        build(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_differences_name_what_may_not_change_in_a_continued_run():
    saved = config_lib.to_dict(build())
    assert config_lib.differences(saved, config_lib.to_dict(build(log={"every_steps": 1}))) == []
    assert config_lib.differences(saved, config_lib.to_dict(build(mesh={"fsdp": 2}))) == []
    older = {key: value for key, value in saved.items() if key != "loss"}  # saved before the key existed
    assert config_lib.differences(older, config_lib.to_dict(build())) == []
    changed = config_lib.differences(saved, config_lib.to_dict(build(optim={"lr": 1e-2})))
    assert changed == ["optim.lr: 0.000525 -> 0.01"]

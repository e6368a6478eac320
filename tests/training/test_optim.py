"""Schedules and weight-decay masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vjepa_jax import config as config_lib
from vjepa_jax.config import ConfigError
from vjepa_jax.objectives.vjepa2 import VJEPA2
from vjepa_jax.training import optim


def run_of(steps=100, **values):
    return config_lib.from_config_dict({"steps": steps, "batch_size": 1, "data": {"path": "v"}, "optim": values})


def lr(step, steps=100, **values):
    return float(optim.learning_rate(run_of(steps, **values))(jnp.int32(step)))


def test_warm_up_counts_the_first_update_as_one():
    values = {"start_lr": 1.0, "lr": 2.0, "warmup_steps": 10}
    assert lr(0, **values) == pytest.approx(1.1)
    assert lr(8, **values) == pytest.approx(1.9)
    assert lr(9, **values) == lr(99, **values) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("schedule", "extra", "middle"),
    [("cosine", {}, 1.5), ("linear", {}, 1.5), ("wsd", {"decay_steps": 20}, 2.0), ("constant", {}, 2.0)],
)
def test_schedules(schedule, extra, middle):
    values = {"start_lr": 0.5, "lr": 2.0, "final_lr": 1.0, "warmup_steps": 20, "schedule": schedule} | extra
    assert lr(59, **values) == pytest.approx(middle)
    assert lr(99, **values) == pytest.approx(2.0 if schedule == "constant" else 1.0)
    if schedule == "wsd":
        assert lr(79, **values) == pytest.approx(2.0) and lr(89, **values) == pytest.approx(1.5)


def test_weight_decay_is_constant_or_a_cosine():
    assert float(optim.weight_decay(run_of(weight_decay=0.1))(50)) == pytest.approx(0.1)
    ramp = optim.weight_decay(run_of(weight_decay=0.0, final_weight_decay=0.4))
    assert float(ramp(49)) == pytest.approx(0.2) and float(ramp(99)) == pytest.approx(0.4)


def test_a_horizon_stretches_the_schedules_and_cuts_them_off():
    """The released cooldown: 12,000 of 15,000 steps leave a fifth of the peak (ipe_scale 1.25)."""
    values = {"start_lr": 5.25e-4, "lr": 5.25e-4, "final_lr": 1e-6, "schedule": "linear", "horizon": 1.25}
    assert lr(11_999, steps=12_000, **values) == pytest.approx(1.058e-4, rel=1e-3)
    ramp = optim.weight_decay(run_of(weight_decay=0.0, final_weight_decay=0.4, horizon=2.0))
    assert float(ramp(99)) == pytest.approx(0.2)
    run = config_lib.from_config_dict(
        {
            "steps": 100,
            "batch_size": 1,
            "data": {"path": "v"},
            "optim": {"horizon": 1.25},
            "ema": {"start": 0.9, "end": 1},
        }
    )
    assert float(VJEPA2(run).momentum(jnp.int32(100))) == pytest.approx(0.98)
    with pytest.raises(ConfigError, match=r"optim.horizon=0.5 must be at least 1"):
        run_of(horizon=0.5)


def test_every_parameter_must_be_in_exactly_one_list():
    params = {"fc1": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    mask = optim.decay_mask(params, run_of().optim)
    assert mask == {"fc1": {"kernel": True, "bias": False}, "norm": {"scale": False}}
    with pytest.raises(ConfigError, match="parameter fc1/table matches neither"):
        optim.decay_mask({"fc1": {"table": jnp.ones(2)}}, run_of().optim)
    with pytest.raises(ConfigError, match="parameter fc1/bias matches both"):
        optim.decay_mask(params, run_of(decay=("kernel$", "fc1/bias")).optim)


def test_update_equals_optax_adamw_and_clips():
    rng = np.random.default_rng(0)
    params = {"a": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}}
    grads = jax.tree.map(lambda p: 10.0 * p + 1.0, params)
    run = run_of(lr=1e-2, weight_decay=0.3, clip_norm=1.0)
    ours, theirs = optim.make_optimizer(run), optax.adamw(1e-2, weight_decay=0.3)
    state, other = ours.init(params), theirs.init(params)
    clipped = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())[0]
    for _ in range(3):
        updates, state = ours.update(grads, state, params)
        expected, other = theirs.update(clipped, other, params)
        np.testing.assert_allclose(updates["a"]["kernel"], expected["a"]["kernel"], rtol=1e-6)

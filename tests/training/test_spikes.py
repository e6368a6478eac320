"""Skipped loss spikes against a plain loop over the losses and against ordinary steps on the accepted batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vjepa_jax import config as config_lib
from vjepa_jax.config import ConfigError
from vjepa_jax.training import spikes
from vjepa_jax.training.checkpoint import Checkpoints
from vjepa_jax.training.optim import learning_rate, make_optimizer
from vjepa_jax.training.state import abstract_state, init_state
from vjepa_jax.training.step import make_train_step

# a jump at 1 (too early to count as one), spikes at 9 and from 13 to 15
LOSSES = [1.0, 9.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.1, 1.0, 5.0, 1.1, 0.9, 1.2, 7.0, 6.0, 5.0, 1.3, 1.0, 1.4, 1.2, 1.5, 1.4]
SPIKES = {"skip_spikes": 3.0, "spike_window": 6, "spike_after": 4}


class FedLoss:
    """An objective whose loss is what the batch says and whose gradient is the batch's `slope`."""

    def init(self, rng):
        return {"part": {"kernel": jax.random.normal(rng, (3,))}}, {"target": jnp.zeros(3)}

    def loss(self, params, aux, batch, rng, step):
        kernel = params["part"]["kernel"]
        pull = (batch["slope"] * (kernel - jax.lax.stop_gradient(kernel))).sum(-1)
        loss = (batch["loss"] + pull).mean()
        return loss, {"loss": loss}

    def after_update(self, params, aux, step):
        return {"target": 0.9 * aux["target"] + 0.1 * params["part"]["kernel"]}


def run_of(steps=40, **values):
    raw = {"lr": 0.1, "start_lr": 0.1, "weight_decay": 0.1, "clip_norm": 2.0} | values
    return config_lib.from_config_dict({"steps": steps, "batch_size": 2, "data": {"path": "v"}, "optim": raw})


def batches():
    """Two rows a batch, far apart, whose mean is the loss of the step."""
    rng = np.random.default_rng(0)
    rows = [np.array([loss + 30.0, loss - 30.0], np.float32) for loss in LOSSES]
    return [{"loss": row, "slope": rng.normal(size=(2, 3)).astype(np.float32)} for row in rows]


def start(run):
    optimizer = make_optimizer(run)
    step = jax.jit(make_train_step(FedLoss(), optimizer, run))
    return step, init_state(FedLoss(), optimizer, run.seed)


def expected_skips(k, window, after):
    """The rule in numpy, as lists: which steps are skipped, and the losses remembered at the end."""
    accepted, skips = [], []
    for step, loss in enumerate(LOSSES):
        last = accepted[-window:]
        full = 2 * len(last) >= window
        skips.append(bool(step >= after and full and loss > np.mean(last) + k * np.std(last)))
        if not skips[-1]:
            accepted.append(loss)
    return skips, accepted[-window:]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_spike_leaves_everything_as_it_was(accumulate):
    skips, remembered = expected_skips(*SPIKES.values())
    assert [i for i, skip in enumerate(skips) if skip] == [9, 13, 14, 15]  # and not 1
    step, state = start(run_of(accumulate=accumulate, **SPIKES))
    plain_step, plain = start(run_of(accumulate=accumulate))
    in_row = 0
    for batch, skip in zip(batches(), skips, strict=True):
        before = state
        state, metrics = step(state, batch)
        in_row = in_row + 1 if skip else 0
        assert (float(metrics["skipped"]), float(metrics["skipped_in_row"])) == (float(skip), float(in_row))
        if skip:
            for part in ("params", "aux"):
                jax.tree.map(np.testing.assert_array_equal, state[part], before[part])
            assert float(metrics["update_norm"]) == 0.0 and float(metrics["grad_norm"]) > 0.0
        else:
            plain, _ = plain_step(plain, batch)
    assert int(state["step"]) == len(LOSSES) and int(plain["step"]) == skips.count(False)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(close, (state["params"], state["aux"]), (plain["params"], plain["aux"]))
    adam = lambda opt: next(s for s in opt if isinstance(s, optax.ScaleByAdamState))
    jax.tree.map(close, adam(state["opt"]), adam(plain["opt"]))
    np.testing.assert_allclose(sorted(state["opt"][-1].losses), sorted(remembered), atol=1e-5)
    assert step._cache_size() == 1


def test_spike_after_and_the_half_filled_window_hold_back():
    for values in ({"spike_after": 10}, {"spike_window": 20, "spike_after": 0, "skip_spikes": 1.5}):
        values = SPIKES | values
        skips, _ = expected_skips(*(values[k] for k in SPIKES))
        assert not skips[9] and any(skips)
        step, state = start(run_of(**values))
        seen = []
        for batch in batches():
            state, metrics = step(state, batch)
            seen.append(bool(metrics["skipped"]))
        assert seen == skips


def test_schedules_follow_the_step_of_the_run():
    run = run_of(start_lr=0.0, warmup_steps=40, weight_decay=0.0, clip_norm=None, **SPIKES)
    step, state = start(run)
    for i, loss in enumerate(LOSSES[:11]):
        batch = {"loss": np.full(2, loss, np.float32), "slope": np.ones((2, 3), np.float32)}
        state, metrics = step(state, batch)
        # with a constant gradient Adam moves every parameter by the learning rate
        expected = 0.0 if i == 9 else float(learning_rate(run)(i)) * 3**0.5
        assert float(metrics["update_norm"]) == pytest.approx(expected, rel=1e-4)


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    run = run_of(**SPIKES)
    step, state = start(run)
    for i, batch in enumerate(batches()):
        if i == 14:  # in a row of skips
            checkpoints = Checkpoints(tmp_path)
            assert checkpoints.save(i, state) is None and checkpoints.wait() is None
            device = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), state)
            resumed = checkpoints.restore(abstract_state(FedLoss(), make_optimizer(run), device))
            checkpoints.close()
        state, metrics = step(state, batch)
        if i >= 14:
            resumed, again = step(resumed, batch)
            assert jax.tree.map(float, again) == jax.tree.map(float, metrics)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


def test_an_ordinary_state_has_nothing_of_it():
    shapes = lambda run: jax.tree_util.tree_flatten_with_path(abstract_state(FedLoss(), make_optimizer(run)))[0]
    plain, more = (
        {jax.tree_util.keystr(path): x.shape for path, x in shapes(run)} for run in (run_of(), run_of(**SPIKES))
    )
    assert not any("losses" in name or "in_row" in name for name in plain)
    assert plain.items() < more.items() and len(more) == len(plain) + 3
    _, metrics = start(run_of())[0](start(run_of())[1], batches()[0])
    assert not any("skip" in name for name in metrics)


def test_too_many_skips_in_a_row_are_one_line():
    spikes.check({"loss": 1.0}, 5)
    spikes.check({"loss": 1.0, "skipped_in_row": 10.0}, 5)
    with pytest.raises(
        spikes.LossSpikeError, match=r"the loss is 7\.5 at step 31, the 11th in a row .* lower optim\.lr"
    ):
        spikes.check({"loss": 7.5, "skipped_in_row": 11.0}, 31)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"skip_spikes": 0.0}, "optim.skip_spikes=0.0 must be positive"),
        ({"skip_spikes": 3.0, "spike_window": 1, "spike_after": 0}, "optim.spike_window=1 must be at least 2"),
        ({"skip_spikes": 3.0, "spike_after": -1}, r"optim.spike_after=-1 must lie in \[0, steps=40\)"),
        ({"skip_spikes": 3.0}, "optim.spike_after=15300 must lie in .* never acts"),
    ],
)
def test_settings_that_cannot_work(values, message):
    with pytest.raises(ConfigError, match=message):
        run_of(**values)

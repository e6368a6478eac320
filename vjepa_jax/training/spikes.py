"""Steps whose loss jumps are skipped (loss regulation of V-JEPA 2.1, arXiv 2603.14482; app/vjepa_2_1/train.py).

All is decided on the device from the mean loss of the whole batch: the step stays one program, the same on every host.
Unlike the released code, which goes on to blend the target encoder, a skipped step leaves that as it was too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vjepa_jax.config import OptimConfig

MAX_IN_ROW = 10


class LossSpikeError(ValueError):
    """More than MAX_IN_ROW steps in a row were skipped. The message is one line and says what to do."""


class SpikeState(NamedTuple):
    """losses: float32 [window], a ring of the last accepted ones; accepted: int32, how many there ever were; in_row:
    int32, steps skipped since the last accepted one (above 0: this step was)."""

    losses: jax.Array
    accepted: jax.Array
    in_row: jax.Array


def skip_spikes(inner: optax.GradientTransformation, c: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """`inner`, except that a step with loss > mean + skip_spikes * std of the last accepted losses changes nothing.

    The mean and the population std are over the ring of `spike_window` losses; they bind once half of it is filled and
    `spike_after` steps are done. A skipped step has updates of 0 and leaves Adam's moments and step count; schedules,
    which follow the step of the run, go on.

    `init` returns the state of `inner`, which must be a chain, with a SpikeState behind it. `update` takes two more
    keywords: loss, float32 scalar, and step, int32 scalar, the steps done before.
    """

    def init(params: Any) -> tuple[Any, ...]:
        zero = jnp.zeros([], jnp.int32)
        return (*inner.init(params), SpikeState(jnp.zeros(c.spike_window, jnp.float32), zero, zero))

    def update(grads: Any, state: tuple[Any, ...], params: Any = None, *, loss: jax.Array, step: jax.Array):
        before, spikes = state[:-1], state[-1]
        updates, after = inner.update(grads, before, params)
        skip = (step >= c.spike_after) & (loss > _bound(spikes, c.skip_spikes))
        updates = jax.tree.map(lambda u: jnp.where(skip, jnp.zeros_like(u), u), updates)
        is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)
        choose = lambda old, new: new if is_schedule(old) else jnp.where(skip, old, new)
        kept = jax.tree.map(choose, before, after, is_leaf=is_schedule)
        return updates, (*kept, _record(spikes, loss, skip))

    return optax.GradientTransformationExtraArgs(init, update)


def keep_if_skipped(spikes: SpikeState, old: Any, new: Any) -> Any:
    """`old` where the step was skipped, else `new`: trees of arrays."""
    return jax.tree.map(lambda a, b: jnp.where(spikes.in_row > 0, a, b), old, new)


def metrics(spikes: SpikeState) -> dict[str, jax.Array]:
    """skipped (1 where the step was) and skipped_in_row, float32 scalars."""
    return {
        "skipped": (spikes.in_row > 0).astype(jnp.float32),
        "skipped_in_row": spikes.in_row.astype(jnp.float32),
    }


def check(values: dict[str, float], step: int) -> None:
    """Raises LossSpikeError where the metrics of a step say that more than MAX_IN_ROW were skipped in a row."""
    in_row = int(values.get("skipped_in_row", 0))
    if in_row > MAX_IN_ROW:
        raise LossSpikeError(
            f"the loss is {values['loss']:.4g} at step {step}, the {in_row}th in a row above optim.skip_spikes "
            "standard deviations: look at the data, lower optim.lr or raise optim.skip_spikes, and start again"
        )


def _bound(spikes: SpikeState, num_std: float) -> jax.Array:
    """The largest loss that is accepted; infinite before half of the ring is filled."""
    window = len(spikes.losses)
    filled = jnp.minimum(spikes.accepted, window)
    is_filled, count = jnp.arange(window) < filled, jnp.maximum(filled, 1)
    mean = jnp.where(is_filled, spikes.losses, 0.0).sum() / count
    std = jnp.sqrt(jnp.where(is_filled, jnp.square(spikes.losses - mean), 0.0).sum() / count)
    return jnp.where(2 * filled >= window, mean + num_std * std, jnp.inf)


def _record(spikes: SpikeState, loss: jax.Array, skip: jax.Array) -> SpikeState:
    ring = spikes.losses.at[spikes.accepted % len(spikes.losses)].set(loss)
    return SpikeState(
        losses=jnp.where(skip, spikes.losses, ring),
        accepted=spikes.accepted + jnp.where(skip, 0, 1),
        in_row=jnp.where(skip, spikes.in_row + 1, 0),
    )

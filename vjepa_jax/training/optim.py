"""AdamW with schedules, and weight decay chosen by regular expressions over parameter names."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vjepa_jax.config import ConfigError, OptimConfig, RunConfig
from vjepa_jax.training.spikes import skip_spikes

Schedule = Callable[[jax.Array], jax.Array]


def learning_rate(run: RunConfig) -> Schedule:
    """Learning rate of update number `step` (from 0), as vjepa2 src/utils/schedulers.py counts: the first is step 1.

    Linear from start_lr to lr over warmup_steps, then by `schedule`: constant; cosine or linear to final_lr at the end
    of the run (of optim.horizon times its steps); wsd: constant, then linear to final_lr over the last decay_steps.
    """
    c, total = run.optim, run.schedule_steps

    def schedule(step: jax.Array) -> jax.Array:
        count = jnp.asarray(step, jnp.float32) + 1.0
        warm = c.start_lr + (c.lr - c.start_lr) * count / max(c.warmup_steps, 1)
        return jnp.where(count < c.warmup_steps, warm, _after_warmup(c, count, total))

    return schedule


def _after_warmup(c: OptimConfig, count: jax.Array, total: int) -> jax.Array:
    if c.schedule == "constant":
        return jnp.full_like(count, c.lr)
    start = total - c.decay_steps if c.schedule == "wsd" else c.warmup_steps
    progress = jnp.clip((count - start) / max(total - start, 1), 0.0, 1.0)
    if c.schedule == "cosine":
        return c.final_lr + (c.lr - c.final_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return c.lr + (c.final_lr - c.lr) * progress


def weight_decay(run: RunConfig) -> Schedule:
    """Weight decay of update number `step`: constant, or a cosine from weight_decay to final_weight_decay."""
    c = run.optim
    final = c.weight_decay if c.final_weight_decay is None else c.final_weight_decay

    def schedule(step: jax.Array) -> jax.Array:
        progress = jnp.minimum((jnp.asarray(step, jnp.float32) + 1.0) / run.schedule_steps, 1.0)
        return final + (c.weight_decay - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

    return schedule


def decay_mask(params: Any, c: OptimConfig) -> Any:
    """True for every parameter that is decayed. Raises ConfigError unless each matches exactly one of the two lists."""

    def decide(path, _):
        name = parameter_name(path)
        decayed = any(re.search(p, name) for p in c.decay)
        if decayed == any(re.search(p, name) for p in c.no_decay):
            how = "both" if decayed else "neither"
            raise ConfigError(f"parameter {name} matches {how} of optim.decay and optim.no_decay: it must match one")
        return decayed

    return jax.tree_util.tree_map_with_path(decide, params)


def parameter_name(path: tuple[Any, ...]) -> str:
    """A key path of jax.tree_util as "encoder/blocks/qkv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def make_optimizer(run: RunConfig) -> optax.GradientTransformation:
    """Optional clipping of the global norm, then AdamW with scheduled learning rate and weight decay; with skip_spikes
    wrapped so that a step whose loss jumps changes nothing.

    Moments are float32 like the parameters. Mask tokens are decayed, biases and norms are not, as in the released code.
    """
    c = run.optim
    clip = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm is not None else []
    adamw = optax.chain(
        *clip,
        optax.scale_by_adam(b1=c.beta1, b2=c.beta2, eps=c.eps),
        _scheduled_weight_decay(weight_decay(run), c),
        optax.scale_by_learning_rate(learning_rate(run)),
    )
    return adamw if c.skip_spikes is None else skip_spikes(adamw, c)


def _scheduled_weight_decay(schedule: Schedule, c: OptimConfig) -> optax.GradientTransformation:
    """Adds schedule(step) * parameter to the update of decayed parameters (optax takes only a constant)."""

    def init(params):
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params):
        rate = schedule(state.count)
        mask = decay_mask(params, c)
        decayed = jax.tree.map(lambda u, p, m: u + rate * p if m else u, updates, params, mask)
        return decayed, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)

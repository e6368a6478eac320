"""What jit sees: (state, batch) -> (state, metrics)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vjepa_jax.config import RunConfig
from vjepa_jax.training import optim, spikes
from vjepa_jax.training.state import State

Batch = dict[str, Any]
MODEL_KEYS = ("video", "masks", "streams")  # what the objective reads; labels and indices stay on the host


def make_train_step(
    objective: Any, optimizer: optax.GradientTransformation, run: RunConfig
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """The training step: gradients (accumulated over `optim.accumulate` micro-batches), update, EMA.

    Metrics are float32 scalars: the objective's, lr, weight_decay, ema, grad_norm (whole and for each part of the
    model), update_norm and param_norm; with optim.skip_spikes also skipped and skipped_in_row. A skipped step leaves
    params, aux and the moments as they were.
    """
    lr, decay = optim.learning_rate(run), optim.weight_decay(run)
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        step, params, aux = state["step"], state["params"], state["aux"]
        rng = jax.random.fold_in(jax.random.key(run.seed), step)
        grads, metrics = _gradients(objective, params, aux, batch, rng, step, run.optim.accumulate)
        # XLA would write the layers' gradients together, update and take norms in one kernel: slower than apart
        grads = jax.lax.optimization_barrier(grads)
        with jax.named_scope("optimizer"):
            updates, opt = optimizer.update(grads, state["opt"], params, loss=metrics["loss"], step=step)
            new_params = optax.apply_updates(params, updates)
        with jax.named_scope("ema"):
            new_aux = objective.after_update(new_params, aux, step)
        if run.optim.skip_spikes is not None:
            new_aux = spikes.keep_if_skipped(opt[-1], aux, new_aux)
            metrics |= spikes.metrics(opt[-1])
        metrics |= {
            "lr": lr(step),
            "weight_decay": decay(step),
            "grad_norm": optax.tree.norm(grads),
            **{f"grad_norm/{part}": optax.tree.norm(tree) for part, tree in grads.items()},
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(new_params),
        }
        if hasattr(objective, "momentum"):
            metrics["ema"] = objective.momentum(step)
        return {"step": step + 1, "params": new_params, "aux": new_aux, "opt": opt}, metrics

    return train_step


def _gradients(objective, params, aux, batch, rng, step, accumulate):
    """Mean gradients and metrics over the micro-batches."""
    grad_fn = jax.value_and_grad(objective.loss, has_aux=True)

    def one(micro, key):
        (_, metrics), grads = grad_fn(params, aux, micro, key, step)
        return grads, metrics

    if accumulate == 1:
        return one(batch, rng)
    # Micro-batch i takes rows i, i + A, ...: every device keeps its own rows of a batch sharded in contiguous parts.
    split = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

    def body(total, item):
        micro, index = item
        return jax.tree.map(jnp.add, total, one(micro, jax.random.fold_in(rng, index))), None

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, jax.tree.map(_first, split), rng))
    total, _ = jax.lax.scan(body, zeros, (split, jnp.arange(accumulate)))
    return jax.tree.map(lambda x: x / accumulate, total)


def _first(x):
    return x[0]

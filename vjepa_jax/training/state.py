"""The training state: a plain dict, so that a checkpoint is a nested dict of arrays and nothing else.

step    int32 scalar, updates done
params  what the optimiser trains
aux     what the objective carries beside it (for V-JEPA 2 the target encoder)
opt     optax state; with optim.skip_spikes its last entry is a training/spikes.py SpikeState
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

State = dict[str, Any]


def init_state(objective: Any, optimizer: optax.GradientTransformation, seed: int) -> State:
    """A fresh state. Traceable; `fresh_state` builds it in place on a mesh."""
    params, aux = objective.init(jax.random.key(seed))
    return {"step": jnp.zeros([], jnp.int32), "params": params, "aux": aux, "opt": optimizer.init(params)}


def fresh_state(objective: Any, optimizer: optax.GradientTransformation, seed: int, shardings: State) -> State:
    """`init_state`, every array made where its sharding puts it. Call it with the mesh set (partitioning.on_mesh)."""
    return jax.jit(lambda: init_state(objective, optimizer, seed), out_shardings=shardings)()


def abstract_state(objective: Any, optimizer: optax.GradientTransformation, shardings: State | None = None) -> State:
    """Shapes and dtypes of the state, with shardings where given. Allocates nothing."""
    abstract = jax.eval_shape(lambda: init_state(objective, optimizer, 0))
    if shardings is None:
        return abstract
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def num_parameters(tree: Any) -> int:
    """Number of values in a tree of arrays or shapes."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))

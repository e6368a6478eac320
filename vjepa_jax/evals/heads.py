"""Many attentive probes trained at once on batches of tokens that are not kept: a head a setting of the optimiser.

Heads do not know each other, so they lie divided over the local devices, and a device works through its own a few at a
time. Tokens are the same for all heads and lie on every device.

Shape suffixes: G heads, B videos of a batch, M micro-batches of b videos, N tokens, D embedding, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vjepa_jax.models.probe import Classifier, init_classifier

HEADS = "heads"  # the mesh axis
_adam = optax.scale_by_adam()
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


@dataclasses.dataclass(frozen=True)
class Setting:
    """AdamW of one head: every parameter is decayed; the rate warms up from `start_lr` and falls to 0 by a cosine."""

    lr: float
    weight_decay: float
    start_lr: float = 0.0
    warmup_steps: int = 0
    final_weight_decay: float | None = None  # None: constant; else a cosine

    def __str__(self) -> str:
        return f"lr={self.lr:g} wd={self.weight_decay:g}"

    def rates(self, step: int, steps: int) -> tuple[float, float]:
        """Learning rate and weight decay of update number `step` (from 0) of `steps`, as vjepa2
        src/utils/schedulers.py counts: the first is step 1."""
        count = step + 1
        final = self.weight_decay if self.final_weight_decay is None else self.final_weight_decay
        decay = final + (self.weight_decay - final) * _cosine(count / steps)
        if count < self.warmup_steps:
            return self.start_lr + (self.lr - self.start_lr) * count / self.warmup_steps, decay
        return self.lr * _cosine((count - self.warmup_steps) / max(steps - self.warmup_steps, 1)), decay


def _cosine(progress: float) -> float:
    """1 to 0 while progress goes from 0 to 1."""
    return 0.5 * (1.0 + float(np.cos(np.pi * min(progress, 1.0))))


class Heads:
    """The heads of one encoder.

    Args:
      model: of every head.
      settings: one a head; heads start from the same parameters.
      steps: updates in all, over which the schedules span.
      seed: of the initial parameters.
      at_once: heads that a device computes together, 0 for all of its own: memory against speed.
      micro: videos of one backward pass, 0 for the whole batch; must divide it.
      loss: of what the model returns and the labels, float [B].
    """

    def __init__(
        self,
        model: Classifier,
        settings: list[Setting],
        steps: int,
        seed: int,
        at_once: int,
        micro: int,
        loss: Callable[[Any, jax.Array], jax.Array] = cross_entropy,
    ):
        self.model, self.settings, self.steps, self.micro, self.loss = model, settings, steps, micro, loss
        devices = jax.local_devices()
        number = max(n for n in range(1, len(devices) + 1) if len(settings) % n == 0)
        self.mesh = Mesh(np.asarray(devices[:number]), (HEADS,))
        each = len(settings) // number
        self.at_once = each if at_once == 0 else min(at_once, each)
        self._seed, self._step, self._state = seed, 0, None

    def train(self, x_BND: Any, labels_B: np.ndarray, weight_GB: np.ndarray) -> None:
        """One update of every head on a batch; labels_B as the loss takes them (int32 or float32), weight_GB: what a
        video counts for a head, 0 or 1."""
        labels_B = np.asarray(labels_B)
        kind = np.float32 if np.issubdtype(labels_B.dtype, np.floating) else np.int32
        x_BND, labels_B = self._on_all(x_BND), self._on_all(labels_B.astype(kind))
        if self._state is None:
            self._state = self._fresh(x_BND)
        rates = [setting.rates(self._step, self.steps) for setting in self.settings]
        lr_G, decay_G = np.asarray(rates, np.float32).T
        micro = self.micro or len(labels_B)
        self._state = _update(
            *(self.model, self.loss, self.mesh, self.at_once, micro, *self._state),
            *(x_BND, labels_B, self._divided(weight_GB), self._divided(lr_G), self._divided(decay_G)),
        )
        self._step += 1

    def probabilities(self, x_BND: Any) -> jax.Array:
        """Softmax of every head, float32 [G, B, C]."""
        return self._apply(x_BND, jax.nn.softmax)

    def logits(self, x_BND: Any) -> Any:
        """What the model of every head returns, with a leading axis of heads."""
        return self._apply(x_BND, _as_it_is)

    def _apply(self, x_BND: Any, activation: Callable[[Any], Any]) -> Any:
        x_BND = self._on_all(x_BND)
        if self._state is None:
            self._state = self._fresh(x_BND)
        return _outputs(self.model, activation, self.mesh, self.at_once, self._state[0], x_BND)

    def parameters(self, head: int) -> Any:
        """The parameters of one head, as the model takes them."""
        return jax.tree.map(lambda leaf: np.asarray(leaf[head]), self._state[0])

    def _fresh(self, x_BND) -> tuple[Any, Any]:
        return _start(self.model, self._seed, x_BND.shape[1:], len(self.settings), self.mesh)

    def _on_all(self, array: Any) -> jax.Array:
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec()))

    def _divided(self, array: Any) -> jax.Array:
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec(HEADS)))


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _start(model, seed, shape_ND, count, mesh):
    """The same fresh parameters and optimiser state for every head, stacked on a leading axis."""
    key = jax.random.key(seed, impl="rbg")  # this generator compiles in a fifth of the time of the default one
    params = init_classifier(model, key, jnp.zeros((1, *shape_ND), jnp.float32))
    params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), params)
    divided = NamedSharding(mesh, PartitionSpec(HEADS))
    return jax.lax.with_sharding_constraint((params, jax.vmap(_adam.init)(params)), divided)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnums=(5, 6))
def _update(model, loss_of, mesh, at_once, micro, params, state, x_BND, labels_B, weight_GB, lr_G, decay_G):
    """AdamW on the weighted mean of the loss, gradients summed over micro-batches."""

    def one(head, x_MbND, labels_Mb):
        params, state, weight_B, lr, decay = head
        total = jnp.maximum(weight_B.sum(), 1.0)

        def loss(params, x_bND, labels_b, weight_b):
            loss_b = loss_of(model.apply({"params": params}, x_bND), labels_b)
            return (weight_b * loss_b).sum() / total

        def add(grads, part):
            return jax.tree.map(jnp.add, grads, jax.grad(loss)(params, *part)), None

        weight_Mb = weight_B.reshape(labels_Mb.shape[:2])
        zeros = jax.tree.map(jnp.zeros_like, params)
        grads, _ = jax.lax.scan(add, zeros, (x_MbND, labels_Mb, weight_Mb))
        updates, state = _adam.update(grads, state)
        return jax.tree.map(lambda p, u: p - lr * (u + decay * p), params, updates), state

    def local(heads, x_BND, labels_B):
        x_MbND = x_BND.reshape(-1, micro, *x_BND.shape[1:])
        each = functools.partial(one, x_MbND=x_MbND, labels_Mb=labels_B.reshape(-1, micro, *labels_B.shape[1:]))
        return _some_at_a_time(each, heads, at_once)

    heads = (params, state, weight_GB, lr_G, decay_G)
    return _over_devices(local, mesh)(heads, x_BND, labels_B)


def _as_it_is(outputs: Any) -> Any:
    return outputs


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _outputs(model, activation, mesh, at_once, params, x_BND):
    def local(params, x_BND, _):
        each = lambda head: activation(model.apply({"params": head}, x_BND))
        return _some_at_a_time(each, params, at_once)

    return _over_devices(local, mesh)(params, x_BND, None)


def _over_devices(local, mesh):
    """`local` with its first argument cut along the heads and the others whole."""
    cut, whole = PartitionSpec(HEADS), PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=(cut, whole, whole), out_specs=cut, check_vma=False)


def _some_at_a_time(function, heads, at_once: int):
    count = jax.tree.leaves(heads)[0].shape[0]
    if at_once >= count:
        return jax.vmap(function)(heads)
    return jax.lax.map(function, heads, batch_size=at_once if at_once > 1 else None)

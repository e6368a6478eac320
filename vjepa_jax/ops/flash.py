"""Attention for heads of 16 or 32 on NVIDIA GPUs: a Pallas kernel (Triton) that never holds queries x keys
(FlashAttention-2, arXiv 2307.08691).

cuDNN pads such heads to 64. Measured on an H100 at [24, 1584, 12, 32], forward and backward: 1.40 ms, cuDNN 1.84. For
heads of 64 cuDNN is faster.

Shape suffixes: B batch, N queries, M keys, H heads, K head size.
"""

import dataclasses
import functools
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

HEAD_DIMS = (16, 32)
_LOG2E = math.log2(math.e)  # exponentials are powers of two: the hardware has those
_NEVER = -1e30  # the score of a key that is not there
_UNSEEN = 1e30  # the log-sum of a query that is not there: its weights are 2 ** -1e30 = 0


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Queries and keys a block, warps, and stages of the pipeline of loads."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 3


# the fastest of 15, 24 and 24 sizes at [24, 1584, 12, 32] on an H100 with jax 0.11.2
FORWARD, KEYS_BACKWARD, QUERIES_BACKWARD = Blocks(64, 64, stages=4), Blocks(64, 64), Blocks(64, 64)


@functools.cache
def available() -> bool:
    """Whether this jax has Pallas on Triton."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def flash_attention(q_BNHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, interpret: bool = False) -> jax.Array:
    """Softmax attention of every query to every key, scale K**-0.5: [B, N, H, K] in the dtype of q.

    Args:
      q_BNHK, k_BMHK, v_BMHK: one dtype, K 16 or 32; any number of tokens.
      interpret: run without a GPU, slowly.
    """
    return _forward(q_BNHK, k_BMHK, v_BMHK, interpret)[0]


def _forward(q_BNHK, k_BMHK, v_BMHK, interpret):
    batch, queries, heads, _ = q_BNHK.shape
    log_sums = jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)
    out, log_sum_BHN = _call(
        _forward_kernel, FORWARD, "queries", (q_BNHK, k_BMHK, v_BMHK), (_like(q_BNHK), log_sums), interpret
    )
    return out, (q_BNHK, k_BMHK, v_BMHK, out, log_sum_BHN)


def _backward(interpret, kept, dy_BNHK):
    q_BNHK, k_BMHK, v_BMHK, out, log_sum_BHN = kept
    wide = out.astype(jnp.float32) * dy_BNHK.astype(jnp.float32)
    inputs = (q_BNHK, k_BMHK, v_BMHK, dy_BNHK, log_sum_BHN, wide.sum(-1).swapaxes(1, 2))
    dk, dv = _call(_keys_kernel, KEYS_BACKWARD, "keys", inputs, (_like(k_BMHK), _like(v_BMHK)), interpret)
    (dq,) = _call(_queries_kernel, QUERIES_BACKWARD, "queries", inputs, (_like(q_BNHK),), interpret)
    return dq, dk, dv


flash_attention.defvjp(_forward, _backward)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _call(kernel: Any, blocks: Blocks, over: str, inputs: tuple, outputs: tuple, interpret: bool) -> list[jax.Array]:
    """One program for every block of queries or of keys, row and head; each sees all tokens of its row and head."""
    from jax.experimental import pallas as pl  # only where it is used: experimental, and slow to import
    from jax.experimental.pallas import triton

    (batch, queries, heads, head_dim), keys = inputs[0].shape, inputs[1].shape[1]

    def spec(x):
        if x.ndim == 3:
            return pl.BlockSpec((None, None, x.shape[2]), lambda i, b, h: (b, h, 0))
        return pl.BlockSpec((None, x.shape[1], None, head_dim), lambda i, b, h: (b, 0, h, 0))

    programs = pl.cdiv(queries, blocks.queries) if over == "queries" else pl.cdiv(keys, blocks.keys)
    return pl.pallas_call(
        functools.partial(kernel, pl=pl, triton=triton, blocks=blocks, queries=queries, keys=keys),
        grid=(programs, batch, heads),
        in_specs=[spec(x) for x in inputs],
        out_specs=[spec(x) for x in outputs],
        out_shape=list(outputs),
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*inputs)


@dataclasses.dataclass(frozen=True)
class _Tile:
    """`size` rows of a reference from `start` on. Rows from `total` on are read as `other` and not written; `inside`
    says that there are none."""

    pl: Any
    triton: Any
    start: Any
    size: int
    total: int
    inside: bool = False

    @property
    def there(self) -> jax.Array:
        return self.start + jnp.arange(self.size) < self.total

    def _at(self, ref):
        rows = self.pl.ds(self.start, self.size)
        return (ref.at[rows, :], self.there[:, None]) if len(ref.shape) == 2 else (ref.at[rows], self.there)

    def load(self, ref, other: float = 0.0):
        at, there = self._at(ref)
        return self.triton.load(at) if self.inside else self.triton.load(at, mask=there, other=other)

    def store(self, ref, values):
        at, there = self._at(ref)
        self.triton.store(at, values.astype(ref.dtype), mask=there)


def _loop(pl, body: Any, carry: Any, size: int, total: int) -> Any:
    """body(block, carry, inside) for all blocks; only the last one may reach beyond the end."""
    carry = lax.fori_loop(0, total // size, lambda block, carry: body(block, carry, True), carry)
    if total % size:  # a start that is not static: one beyond the end would be refused
        carry = body(pl.program_id(0) * 0 + total // size, carry, False)
    return carry


def _scaled(x, scale: float):
    return (x.astype(jnp.float32) * scale).astype(x.dtype)


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, log_sum_ref, *, pl, triton, blocks, queries, keys):
    """The weighted values of one block of queries, and the base-2 logarithm of their sum of weights."""
    tile = functools.partial(_Tile, pl, triton)
    rows = tile(pl.program_id(0) * blocks.queries, blocks.queries, queries, queries % blocks.queries == 0)
    q = _scaled(rows.load(q_ref), _LOG2E * q_ref.shape[-1] ** -0.5)

    def body(block, carry, inside):
        total, largest, weight = carry
        columns = tile(block * blocks.keys, blocks.keys, keys, inside)
        scores = triton.dot(q, columns.load(k_ref).T)
        if not inside:
            scores = jnp.where(columns.there[None, :], scores, _NEVER)
        now = jnp.maximum(largest, scores.max(-1))
        shrink, weights = jnp.exp2(largest - now), jnp.exp2(scores - now[:, None])
        v = columns.load(v_ref)
        total = total * shrink[:, None] + triton.dot(weights.astype(v.dtype), v)
        return total, now, weight * shrink + weights.sum(-1)

    start = jnp.zeros(q.shape, jnp.float32), jnp.full(len(q), _NEVER, jnp.float32), jnp.zeros(len(q), jnp.float32)
    total, largest, weight = _loop(pl, body, start, blocks.keys, keys)
    rows.store(out_ref, total / weight[:, None])
    rows.store(log_sum_ref, largest + jnp.log2(weight))


def _keys_kernel(
    q_ref, k_ref, v_ref, dy_ref, log_sum_ref, mean_ref, dk_ref, dv_ref, *, pl, triton, blocks, queries, keys
):
    """The gradients of one block of keys and values. `mean_ref`: the sum of output times its gradient."""
    tile, scale = functools.partial(_Tile, pl, triton), q_ref.shape[-1] ** -0.5
    columns = tile(pl.program_id(0) * blocks.keys, blocks.keys, keys, keys % blocks.keys == 0)
    k, v = columns.load(k_ref), columns.load(v_ref)
    k_log2 = _scaled(k, _LOG2E * scale)

    def body(block, carry, inside):
        dk, dv = carry
        rows = tile(block * blocks.queries, blocks.queries, queries, inside)
        q, dy = rows.load(q_ref), rows.load(dy_ref)
        weights = jnp.exp2(triton.dot(k_log2, q.T) - rows.load(log_sum_ref, _UNSEEN)[None, :])  # keys x queries
        dv = dv + triton.dot(weights.astype(dy.dtype), dy)
        d_scores = weights * (triton.dot(v, dy.T) - rows.load(mean_ref)[None, :])
        return dk + triton.dot(d_scores.astype(q.dtype), q), dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = _loop(pl, body, (zeros, zeros), blocks.queries, queries)
    columns.store(dk_ref, dk * scale)
    columns.store(dv_ref, dv)


def _queries_kernel(q_ref, k_ref, v_ref, dy_ref, log_sum_ref, mean_ref, dq_ref, *, pl, triton, blocks, queries, keys):
    """The gradient of one block of queries."""
    tile, scale = functools.partial(_Tile, pl, triton), q_ref.shape[-1] ** -0.5
    rows = tile(pl.program_id(0) * blocks.queries, blocks.queries, queries, queries % blocks.queries == 0)
    q, dy = _scaled(rows.load(q_ref), _LOG2E * scale), rows.load(dy_ref)
    log_sum, mean = rows.load(log_sum_ref, _UNSEEN), rows.load(mean_ref)

    def body(block, dq, inside):
        columns = tile(block * blocks.keys, blocks.keys, keys, inside)
        k, v = columns.load(k_ref), columns.load(v_ref)
        weights = jnp.exp2(triton.dot(q, k.T) - log_sum[:, None])
        d_scores = weights * (triton.dot(dy, v.T) - mean[:, None])
        if not inside:
            d_scores = jnp.where(columns.there[None, :], d_scores, 0.0)
        return dq + triton.dot(d_scores.astype(k.dtype), k)

    dq = _loop(pl, body, jnp.zeros(q.shape, jnp.float32), blocks.keys, keys)
    rows.store(dq_ref, dq * scale)

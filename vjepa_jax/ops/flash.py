"""Attention for heads of 16, 32 and 64 on NVIDIA GPUs: a Pallas kernel (Triton) that never holds queries x keys
(FlashAttention-2, arXiv 2307.08691), of one sequence or of several that lie side by side.

The exponentials of the forward pass are taken of the scores as they are, without their maximum, which numbers with the
range of bfloat16 and float32 can hold; where a sum of weights leaves 2 ** +-60 that block of queries is done again with
a maximum. It saves a third of the instructions, of which, beside exponentials, such small heads consist.

Shape suffixes: B batch, N queries, M keys, H heads, K head size.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vjepa_jax.ops import instructions, rowwise
from vjepa_jax.ops.rowwise import available
from vjepa_jax.ops.tokens import Segments

HEAD_DIMS = (16, 32, 64)
LONG = 1800  # tokens: beyond, larger blocks are faster
_LOG2E = math.log2(math.e)  # exponentials are powers of two: the hardware has those
_NEVER = -1e30  # the score of a key that is not there
_EXTREME = 60.0  # sums of weights beyond 2 ** +-60 are taken relative to the largest weight
SMALLEST = 16  # rows of a tile: a product takes no fewer
_UNSEEN = 1e30  # the log-sum of a query that is not there: its weights are 2 ** -1e30 = 0


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Queries and keys a block, warps, and stages of the pipeline of loads."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 3


def _sizes(q_BNHK: jax.Array, segments: Segments) -> tuple[Blocks, Blocks, Blocks]:
    """For outputs, gradients of queries, and those of keys and values: the fastest of 20 to 30 each on an H200 with jax
    0.11.2. Tried at [24, 1584 + 1568, 12, 32] and [8, 6336 + 6272, 12, 32], [24, 528 + 128, 16, 64] and
    [24, 2048, 16, 64]."""
    longest = max(queries for queries, _ in segments or [q_BNHK.shape[1:3]])
    if q_BNHK.shape[-1] < 64:
        return Blocks(64, 64), Blocks(64 if longest <= LONG else 128, 64), Blocks(64, 128)
    if longest <= LONG:
        return Blocks(64, 64), Blocks(64, 64), Blocks(128, 64)
    return Blocks(128, 64), Blocks(128, 64), Blocks(64, 64)


def fits(head_dim: int, dtype: jnp.dtype) -> bool:
    """Whether the kernel has heads of this size, and numbers of this dtype hold its exponentials (float16 does not)."""
    return head_dim in HEAD_DIMS and dtype != jnp.float16


def takes(head_dim: int, dtype: jnp.dtype) -> bool:
    """Whether this is the fastest kernel on NVIDIA for such heads."""
    return fits(head_dim, dtype) and available()


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def flash_attention(
    q_BNHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, segments: Segments = (), interpret: bool = False
) -> jax.Array:
    """Softmax attention of every query to every key of its sequence, scale K**-0.5: [B, N, H, K] in the dtype of q.

    Args:
      q_BNHK, k_BMHK, v_BMHK: one dtype, K one of HEAD_DIMS; any number of tokens.
      segments: queries and keys of every sequence, which sum up to N and M; (): one sequence.
      interpret: run without a GPU, slowly.
    """
    return _forward(q_BNHK, k_BMHK, v_BMHK, segments, interpret)[0]


@rowwise.kernel("segments", "interpret")
def _forward(q_BNHK, k_BMHK, v_BMHK, segments, interpret):
    batch, queries, heads, _ = q_BNHK.shape
    log_sums = jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)
    outputs = _like(q_BNHK), log_sums
    blocks, *_ = _sizes(q_BNHK, segments)
    out, log_sum_BHN = _call(_forward_kernel, blocks, 0, (q_BNHK, k_BMHK, v_BMHK), outputs, segments, interpret)
    return out, (q_BNHK, k_BMHK, v_BMHK, out, log_sum_BHN)


def _backward(segments, interpret, kept, dy_BNHK):
    return _gradients(kept, dy_BNHK, segments, interpret)


@rowwise.kernel("segments", "interpret")
def _gradients(kept, dy_BNHK, segments, interpret):
    q_BNHK, k_BMHK, v_BMHK, out_BNHK, log_sum_BHN = kept
    _, *sizes = _sizes(q_BNHK, segments)
    inputs = q_BNHK, k_BMHK, v_BMHK, dy_BNHK, log_sum_BHN
    outputs = _like(q_BNHK), _like(log_sum_BHN)
    dq, mean_BHN = _call(_queries_kernel, sizes[0], 0, (*inputs, out_BNHK), outputs, segments, interpret)
    outputs = _like(k_BMHK), _like(v_BMHK)
    dk, dv = _call(_keys_kernel, sizes[1], 1, (*inputs, mean_BHN), outputs, segments, interpret)
    return dq, dk, dv


flash_attention.defvjp(_forward, _backward)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _call(
    kernel: Any, blocks: Blocks, over: int, inputs: tuple, outputs: tuple, segments: Segments, interpret: bool
) -> list[jax.Array]:
    """One program for every block of queries (over 0) or of keys (over 1) of a sequence, row and head; each sees all
    tokens of its row and head."""
    from jax.experimental import pallas as pl  # only where it is used: experimental, and slow to import
    from jax.experimental.pallas import triton

    exp2 = functools.partial(instructions.exp2, interpret=interpret)
    (batch, queries, heads, head_dim), keys = inputs[0].shape, inputs[1].shape[1]
    segments = segments or ((queries, keys),)
    starts = [tuple(sum(counts[:i]) for counts in zip(*segments, strict=True)) for i in range(len(segments))]
    size = (blocks.queries, blocks.keys)[over]
    programs = [pl.cdiv(counts[over], size) for counts in segments]

    def spec(x):
        if x.ndim == 3:
            return pl.BlockSpec((None, None, x.shape[2]), lambda i, b, h: (b, h, 0))
        return pl.BlockSpec((None, x.shape[1], None, head_dim), lambda i, b, h: (b, 0, h, 0))

    def body(*refs):
        block = pl.program_id(0)
        for i, (start, counts) in enumerate(zip(starts, segments, strict=True)):
            first, last = sum(programs[:i]), sum(programs[: i + 1])
            # starts that are not static: a block beyond the end would be refused
            tokens = [_Tokens(pl, triton, exp2, block * 0 + at, n) for at, n in zip(start, counts, strict=True)]
            work = functools.partial(kernel, block - first, *tokens, blocks, *refs)
            if len(segments) == 1:
                work()
            else:
                pl.when((block >= first) & (block < last))(work)

    return pl.pallas_call(
        body,
        grid=(sum(programs), batch, heads),
        in_specs=[spec(x) for x in inputs],
        out_specs=[spec(x) for x in outputs],
        out_shape=list(outputs),
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*inputs)


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """The queries, or the keys, of one sequence: `count` rows of a reference from `start` on."""

    pl: Any
    triton: Any
    exp2: Any
    start: Any
    count: int

    def tile(self, block: Any, size: int) -> "_Tile":
        return self._from(block * size, size, self.count % size == 0)

    def loop(self, body: Any, carry: Any, size: int) -> Any:
        """body(tile, carry) for all tiles; the last one is as small as it can be."""
        whole, rest = divmod(self.count, size)
        carry = lax.fori_loop(0, whole, lambda block, carry: body(self._from(block * size, size, True), carry), carry)
        small = max(SMALLEST, rowwise.power_of_two(rest))
        return body(self._from(whole * size, small, rest == small), carry) if rest else carry

    def _from(self, first: Any, size: int, inside: bool) -> "_Tile":
        return _Tile(self.pl, self.triton, self.start + first, size, self.start + self.count, inside)


@dataclasses.dataclass(frozen=True)
class _Tile:
    """`size` rows of a reference from `start` on. Rows from `end` on are read as `other` and not written; `inside`
    says that there are none."""

    pl: Any
    triton: Any
    start: Any
    size: int
    end: Any
    inside: bool

    @property
    def there(self) -> jax.Array:
        return self.start + jnp.arange(self.size) < self.end

    def _at(self, ref):
        rows = self.pl.ds(self.start, self.size)
        return (ref.at[rows, :], self.there[:, None]) if len(ref.shape) == 2 else (ref.at[rows], self.there)

    def load(self, ref, other: float = 0.0):
        at, there = self._at(ref)
        return self.triton.load(at) if self.inside else self.triton.load(at, mask=there, other=other)

    def store(self, ref, values):
        at, there = self._at(ref)
        self.triton.store(at, values.astype(ref.dtype), mask=there)


def _scaled(x, scale: float):
    return (x.astype(jnp.float32) * scale).astype(x.dtype)


def _forward_kernel(block, queries, keys, blocks, q_ref, k_ref, v_ref, out_ref, log_sum_ref):
    """The weighted values of one block of queries, and the base-2 logarithm of their sum of weights.

    The second way, with a maximum, has small tiles so that it takes no registers from the first.
    """
    rows, dot, exp2 = queries.tile(block, blocks.queries), queries.triton.dot, queries.exp2
    q = _scaled(rows.load(q_ref), _LOG2E * q_ref.shape[-1] ** -0.5)

    def score(columns):
        scores = dot(q, columns.load(k_ref).T)
        return scores if columns.inside else jnp.where(columns.there[None, :], scores, _NEVER)

    def add(columns, weights, total, sums):
        v = columns.load(v_ref)
        return total + dot(weights.astype(v.dtype), v), sums + weights.sum(-1)

    def careful(columns, carry):
        *totals, largest = carry
        scores = score(columns)
        now = jnp.maximum(largest, scores.max(-1))
        shrink = exp2(largest - now)
        total, sums = add(columns, exp2(scores - now[:, None]), totals[0] * shrink[:, None], totals[1] * shrink)
        return total, sums, now

    def write(total, sums, log_sum):
        rows.store(out_ref, total * (1.0 / sums)[:, None])
        rows.store(log_sum_ref, log_sum)

    nothing = jnp.zeros(q.shape, jnp.float32), jnp.zeros(len(q), jnp.float32)
    total, sums = keys.loop(lambda columns, carry: add(columns, exp2(score(columns)), *carry), nothing, blocks.keys)
    log_sum = jnp.log2(sums)
    write(total, sums, log_sum)

    @queries.pl.when(jnp.abs(log_sum).max() > _EXTREME)
    def _():
        never = jnp.full(len(q), _NEVER, jnp.float32)
        total, sums, largest = keys.loop(careful, (*nothing, never), SMALLEST)
        write(total, sums, largest + jnp.log2(sums))


def _keys_kernel(block, queries, keys, blocks, q_ref, k_ref, v_ref, dy_ref, log_sum_ref, mean_ref, dk_ref, dv_ref):
    """The gradients of one block of keys and values. `mean_ref`: the sum of output times its gradient."""
    columns, dot, exp2 = keys.tile(block, blocks.keys), keys.triton.dot, keys.exp2
    k, v, scale = columns.load(k_ref), columns.load(v_ref), q_ref.shape[-1] ** -0.5
    k_log2 = _scaled(k, _LOG2E * scale)

    def body(rows, carry):
        dk, dv = carry
        q, dy = rows.load(q_ref), rows.load(dy_ref)
        weights = exp2(dot(k_log2, q.T) - rows.load(log_sum_ref, _UNSEEN)[None, :])  # keys x queries
        dv = dv + dot(weights.astype(dy.dtype), dy)
        d_scores = weights * (dot(v, dy.T) - rows.load(mean_ref)[None, :])
        return dk + dot(d_scores.astype(q.dtype), q), dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = queries.loop(body, (zeros, zeros), blocks.queries)
    columns.store(dk_ref, dk * scale)
    columns.store(dv_ref, dv)


def _queries_kernel(block, queries, keys, blocks, q_ref, k_ref, v_ref, dy_ref, log_sum_ref, out_ref, dq_ref, mean_ref):
    """The gradient of one block of queries, and the sum of output times its gradient."""
    rows, dot, exp2 = queries.tile(block, blocks.queries), queries.triton.dot, queries.exp2
    scale = q_ref.shape[-1] ** -0.5
    q, dy = _scaled(rows.load(q_ref), _LOG2E * scale), rows.load(dy_ref)
    log_sum = rows.load(log_sum_ref, _UNSEEN)
    mean = (rows.load(out_ref).astype(jnp.float32) * dy.astype(jnp.float32)).sum(-1)
    rows.store(mean_ref, mean)

    def body(columns, dq):
        k, v = columns.load(k_ref), columns.load(v_ref)
        weights = exp2(dot(q, k.T) - log_sum[:, None])
        d_scores = weights * (dot(dy, v.T) - mean[:, None])
        if not columns.inside:
            d_scores = jnp.where(columns.there[None, :], d_scores, 0.0)
        return dq + dot(d_scores.astype(k.dtype), k)

    dq = keys.loop(body, jnp.zeros(q.shape, jnp.float32), blocks.keys)
    rows.store(dq_ref, dq * scale)

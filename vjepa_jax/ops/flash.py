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
from vjepa_jax.ops.e4m3 import E4M3, cut
from vjepa_jax.ops.rope import apply_rope, signed_tables
from vjepa_jax.ops.rowwise import available
from vjepa_jax.ops.tokens import Segments

HEAD_DIMS = (16, 32, 64)
LONG = 1800  # tokens: beyond, larger blocks are faster
_LOG2E = math.log2(math.e)  # exponentials are powers of two: the hardware has those
_NEVER = -1e30  # the score of a key that is not there
_EXTREME = 60.0  # sums of weights beyond 2 ** +-60 are taken relative to the largest weight
TIMES = 16.0  # outputs of E4M3 are so many times larger: averages of many values are small
SMALLEST = 16  # rows of a tile: a product takes no fewer
_APART = 8  # sums of weights of a query, one for every eighth key: no thread of a warp needs those of another
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
    [8, 2112 + 512, 16, 64], [24, 2048, 16, 64] and [8, 8192, 16, 64]."""
    longest = max(queries for queries, _ in segments or [q_BNHK.shape[1:3]])
    if q_BNHK.shape[-1] < 64:
        return Blocks(64, 64) if longest <= LONG else Blocks(128, 32), Blocks(64, 64), Blocks(64, 128)
    rows = 64 if longest <= LONG else 128
    return Blocks(rows, 64), Blocks(rows, 64), Blocks(64, 64)


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


def short_attention(q_BNHK, k_BMHK, v_BMHK, segments: Segments = (), interpret: bool = False) -> jax.Array:
    """TIMES `flash_attention`, as E4M3. It has no gradient."""
    return _forward(q_BNHK, k_BMHK, v_BMHK, segments, interpret, E4M3)[0]


@rowwise.kernel("segments", "interpret", "dtype")
def _forward(q_BNHK, k_BMHK, v_BMHK, segments, interpret, dtype=None):
    batch, queries, heads, _ = q_BNHK.shape
    log_sums = jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)
    outputs = jax.ShapeDtypeStruct(q_BNHK.shape, dtype or q_BNHK.dtype), log_sums
    blocks, *_ = _sizes(q_BNHK, segments)
    q_BNHK = _scaled(q_BNHK)
    out, log_sum_BHN = _call(_forward_kernel, blocks, 0, (q_BNHK, k_BMHK, v_BMHK), outputs, segments, interpret)
    return out, (q_BNHK, k_BMHK, v_BMHK, out, log_sum_BHN)


def _backward(segments, interpret, kept, dy_BNHK):
    return _gradients(kept, dy_BNHK, segments, interpret)


@rowwise.kernel("segments", "interpret")
def _gradients(kept, dy_BNHK, segments, interpret, tables=()):
    """Of queries, keys and values, or with the tables of a rotation one array of all three before it."""
    q_BNHK, k_BMHK, v_BMHK, out_BNHK, log_sum_BHN = kept
    (batch, tokens, *heads), (_, *sizes) = q_BNHK.shape, _sizes(q_BNHK, segments)
    inputs = q_BNHK, k_BMHK, v_BMHK, dy_BNHK, log_sum_BHN
    joint = jax.ShapeDtypeStruct((batch, tokens, 3, *heads), q_BNHK.dtype)
    outputs = joint if tables else _like(q_BNHK), _like(log_sum_BHN)
    dq, mean_BHN = _call(_queries_kernel, sizes[0], 0, (*inputs, out_BNHK, *tables), outputs, segments, interpret)
    if tables:  # the kernel before filled the place of the queries, this one does the others
        inputs = *inputs, mean_BHN, *tables, dq
        return _call(_keys_kernel, sizes[1], 1, inputs, (joint,), segments, interpret, filled=True)[0]
    outputs = _like(k_BMHK), _like(v_BMHK)
    return dq, *_call(_keys_kernel, sizes[1], 1, (*inputs, mean_BHN), outputs, segments, interpret)


flash_attention.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def rotated_attention(
    qkv_BN3HK: jax.Array, cos_BNK: jax.Array, sin_BNK: jax.Array, segments: Segments = (), interpret: bool = False
) -> jax.Array:
    """`flash_attention` of queries and keys after `rope.apply_rope`, which have their gradients turned back, and put
    beside those of the values, by the kernels that make them: a pass over memory less.

    Args:
      qkv_BN3HK: queries, keys and values.
      cos_BNK, sin_BNK: of `rope.rope_tables`, float32.
      segments, interpret: as for `flash_attention`.
    """
    return _rotated_forward(qkv_BN3HK, cos_BNK, sin_BNK, segments, interpret)[0]


def _rotated_forward(qkv_BN3HK, cos_BNK, sin_BNK, segments, interpret):
    q, k, v = (qkv_BN3HK[:, :, i] for i in range(3))
    q, k = (apply_rope(x, cos_BNK, sin_BNK) for x in (q, k))
    out, kept = _forward(q, k, v, segments, interpret)
    return out, (kept, cos_BNK, sin_BNK)


def _rotated_backward(segments, interpret, kept, dy_BNHK):
    kept, *tables = kept
    return _gradients(kept, dy_BNHK, segments, interpret, signed_tables(*tables, dy_BNHK.dtype)), None, None


rotated_attention.defvjp(_rotated_forward, _rotated_backward)


def _scaled(q_BNHK: jax.Array) -> jax.Array:
    """Queries whose products with keys are base-2 logarithms of weights. Not in the kernels: these multiply what they
    load as it is straight from shared memory; what they have changed they load into registers for every tile."""
    return (q_BNHK.astype(jnp.float32) * (_LOG2E * q_BNHK.shape[-1] ** -0.5)).astype(q_BNHK.dtype)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _call(
    kernel: Any,
    blocks: Blocks,
    over: int,
    inputs: tuple,
    outputs: tuple,
    segments: Segments,
    interpret: bool,
    filled: bool = False,
) -> list[jax.Array]:
    """One program for every block of queries (over 0) or of keys (over 1) of a sequence, row and head; each sees all
    tokens of its row and head. `filled`: the last input becomes the first output, and keeps what is not written."""
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
        if x.ndim == 5:
            return pl.BlockSpec((None, *x.shape[1:3], None, head_dim), lambda i, b, h: (b, 0, 0, h, 0))
        of_all = x.shape[2] == 1  # heads
        return pl.BlockSpec((None, x.shape[1], None, head_dim), lambda i, b, h: (b, 0, 0 if of_all else h, 0))

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
        input_output_aliases={len(inputs) - 1: 0} if filled else {},
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

    def _at(self, ref, part: int | None = None):
        rows = self.pl.ds(self.start, self.size)
        if len(ref.shape) == 1:
            return ref.at[rows], self.there
        # a number that is not static: the interpreter wants a shape of it
        return ref.at[rows, :] if part is None else ref.at[rows, self.start * 0 + part, :], self.there[:, None]

    def load(self, ref, other: float = 0.0):
        at, there = self._at(ref)
        return self.triton.load(at) if self.inside else self.triton.load(at, mask=there, other=other)

    def store(self, ref, values, part: int | None = None):
        """`part`: of a reference with several values a row."""
        at, there = self._at(ref, part)
        self.triton.store(at, values.astype(ref.dtype), mask=there)


def _turned_back(tile: _Tile, gradient, cos_ref, sin_ref):
    """The gradient of channels before `rope.apply_rope`. Their neighbours are swapped by a product."""
    cos, sin = tile.load(cos_ref), tile.load(sin_ref)
    channel = jnp.arange(gradient.shape[-1])
    swap = (channel[:, None] == (channel ^ 1)[None, :]).astype(cos.dtype)
    return gradient * cos + tile.triton.dot((gradient * sin).astype(cos.dtype), swap)


def _forward_kernel(block, queries, keys, blocks, q_ref, k_ref, v_ref, out_ref, log_sum_ref):
    """The weighted values of one block of queries (as `_scaled`), and the base-2 logarithm of their sum of weights.

    The second way, with a maximum, has small tiles so that it takes no registers from the first.
    """
    rows, dot, exp2 = queries.tile(block, blocks.queries), queries.triton.dot, queries.exp2
    q = rows.load(q_ref)

    def score(columns):
        scores = dot(q, columns.load(k_ref).T)
        return scores if columns.inside else jnp.where(columns.there[None, :], scores, _NEVER)

    def add(columns, weights, total, sums):
        v = columns.load(v_ref)
        return total + dot(weights.astype(v.dtype), v), sums + weights.reshape(len(q), -1, _APART).sum(1)

    def careful(columns, carry):
        *totals, largest = carry
        scores = score(columns)
        now = jnp.maximum(largest, scores.max(-1))
        shrink = exp2(largest - now)
        total, sums = add(columns, exp2(scores - now[:, None]), *(x * shrink[:, None] for x in totals))
        return total, sums, now

    def write(total, sums, largest=0.0):
        sums = sums.sum(-1)
        log_sum = largest + jnp.log2(sums)
        out = total * (1.0 / sums)[:, None]
        rows.store(out_ref, cut(TIMES * out) if out_ref.dtype == E4M3 else out)
        rows.store(log_sum_ref, log_sum)
        return log_sum

    nothing = jnp.zeros(q.shape, jnp.float32), jnp.zeros((len(q), _APART), jnp.float32)
    log_sum = write(*keys.loop(lambda columns, carry: add(columns, exp2(score(columns)), *carry), nothing, blocks.keys))

    @queries.pl.when(jnp.abs(log_sum).max() > _EXTREME)
    def _():
        never = jnp.full(len(q), _NEVER, jnp.float32)
        write(*keys.loop(careful, (*nothing, never), SMALLEST))


def _keys_kernel(block, queries, keys, blocks, q_ref, k_ref, v_ref, dy_ref, log_sum_ref, mean_ref, *rest):
    """The gradients of one block of keys and values; queries as `_scaled`. `mean_ref`: the sum of output times its
    gradient; `rest`: both gradients, or the tables of the rotation and twice the gradients of all three."""
    columns, dot, exp2 = keys.tile(block, blocks.keys), keys.triton.dot, keys.exp2
    k, v = columns.load(k_ref), columns.load(v_ref)

    def body(rows, carry):
        dk, dv = carry
        q, dy = rows.load(q_ref), rows.load(dy_ref)
        weights = exp2(dot(k, q.T) - rows.load(log_sum_ref, _UNSEEN)[None, :])  # keys x queries
        if k.shape[-1] < 64:  # this product first: it needs no exponentials, and runs while they are taken
            d_weights = dot(v, dy.T)
            dv = dv + dot(weights.astype(dy.dtype), dy)
        else:  # there are no registers for that
            dv = dv + dot(weights.astype(dy.dtype), dy)
            d_weights = dot(v, dy.T)
        d_scores = weights * (d_weights - rows.load(mean_ref)[None, :])
        return dk + dot(d_scores.astype(q.dtype), q), dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = queries.loop(body, (zeros, zeros), blocks.queries)
    dk = dk * (1 / _LOG2E)  # queries bring the scale
    if len(rest) == 2:
        columns.store(rest[0], dk)
        columns.store(rest[1], dv)
    else:
        columns.store(rest[3], _turned_back(columns, dk, *rest[:2]), 1)
        columns.store(rest[3], dv, 2)


def _queries_kernel(block, queries, keys, blocks, q_ref, k_ref, v_ref, dy_ref, log_sum_ref, out_ref, *rest):
    """The gradient of one block of queries, as they were before `_scaled`, and the sum of output times its gradient.
    `rest`: both, after the tables of the rotation if there are; with them the first is of all three."""
    *tables, dq_ref, mean_ref = rest
    rows, dot, exp2 = queries.tile(block, blocks.queries), queries.triton.dot, queries.exp2
    q, dy, scale = rows.load(q_ref), rows.load(dy_ref), q_ref.shape[-1] ** -0.5
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
    if tables:
        rows.store(dq_ref, _turned_back(rows, dq * scale, *tables), 0)
    else:
        rows.store(dq_ref, dq * scale)

"""One attention function; the kernel is chosen behind it.

On a mesh (parallel/partitioning.py) batch, queries and heads are divided among the devices; every device gets all keys
and values of its heads. Attention is not causal, so that all shares cost the same.

Shape suffixes: B batch, N query tokens, M key tokens, H heads, K head size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vjepa_jax.ops import flash
from vjepa_jax.ops.e4m3 import E4M3, cut
from vjepa_jax.ops.rope import apply_rope
from vjepa_jax.ops.shards import on_shards, platform
from vjepa_jax.ops.tokens import Segments, cuts_sequences, join_tokens, split_tokens

IMPLEMENTATIONS = ("xla", "cudnn", "triton", "splash")
SPLASH_LANES, SPLASH_BLOCKS = 128, (384, 512, 640)  # sizes of its blocks: multiples of the one
FORWARD_KERNELS = ("dot_product_attention_fwd", "pallas_call")  # names of the primitives of cuDNN and of the others
QUERIES = ("batch", "token", "heads", None)  # logical axes of queries and outputs
KEYS = ("batch", None, "heads", None)  # of keys and values


def resolve(implementation: str, dtype: jnp.dtype, head_dim: int) -> str:
    """The kernel that "auto" stands for: on NVIDIA ours (ops.flash) for bfloat16 and the head sizes that it takes, else
    cuDNN; on TPU splash; for 16-bit inputs of a head size that these take; else XLA."""
    if implementation != "auto":
        return implementation
    sixteen_bit = dtype in (jnp.bfloat16, jnp.float16)
    fits = head_dim % 8 == 0 and head_dim <= 128
    gpu = "triton" if flash.takes(head_dim, dtype) else "cudnn"
    return {"gpu": gpu, "tpu": "splash"}.get(platform(), "xla") if sixteen_bit and fits else "xla"


def attention(
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    *,
    valid_BM: jax.Array | None = None,
    mask_NM: jax.Array | None = None,
    implementation: str = "auto",
    segments: Segments = (),
    short: bool = False,
) -> jax.Array:
    """Softmax attention of every query to every key that it may see, scale K**-0.5.

    Args:
      q_BNHK, k_BMHK, v_BMHK: queries, keys and values, one dtype.
      valid_BM: bool; keys that may be attended to (False for padding). None: all.
      mask_NM: bool; which query may attend to which key, the same for all rows and heads. None: all to all.
      implementation: auto, xla (any device, and the oracle), cudnn (NVIDIA, 16-bit), triton (NVIDIA, heads of 16, 32
        and 64), splash (TPU). The last two are interpreted elsewhere, slowly. With a mask_NM, and for fewer than 128
        queries or keys, splash gives way to xla; with either mask, float16 or other heads, triton to cudnn or xla.
      segments: queries and keys of every sequence, where several lie side by side; each attends to itself alone.
      short: flash.TIMES the result as E4M3; no gradient is taken then.

    Returns:
      [B, N, H, K] in the dtype of q; the softmax is taken in float32.
    """
    y_BNHK = _attention(q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM, implementation, segments, short)
    return cut(flash.TIMES * y_BNHK) if short and y_BNHK.dtype != E4M3 else y_BNHK


def _attention(q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM, implementation, segments, short) -> jax.Array:
    """`attention`; `short` is a matter of the kernel that can."""
    segments = segments if len(segments) > 1 else ()
    kernel = resolve(implementation, q_BNHK.dtype, q_BNHK.shape[-1])
    if segments and (kernel != "triton" or cuts_sequences() or not _plain(q_BNHK, valid_BM, mask_NM)):
        alone = functools.partial(attention, implementation=kernel)
        call = lambda q, k, v, valid, mask: alone(q, k, v, valid_BM=valid, mask_NM=mask)
        return _each(call, segments, q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM)
    q_BNHK = nn.with_logical_constraint(q_BNHK, QUERIES)
    k_BMHK, v_BMHK = (nn.with_logical_constraint(x, KEYS) for x in (k_BMHK, v_BMHK))
    if kernel == "xla":
        return nn.with_logical_constraint(_xla(q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM), QUERIES)
    if kernel not in _KERNELS:
        raise ValueError(f"attention={implementation!r} is not one of auto, {', '.join(IMPLEMENTATIONS)}")
    own, other = _KERNELS[kernel], _xla
    if short and kernel == "triton":
        own = functools.partial(own, short=True)
    if segments:
        own, other = functools.partial(own, segments=segments), functools.partial(_each, _xla, segments)
    return on_shards(own, other, (q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM), _specs)


def self_attention(
    qkv_BN3HK: jax.Array,
    rope: tuple[jax.Array, jax.Array] | None,
    v_BNHK: jax.Array | None = None,
    *,
    implementation: str = "auto",
    **options: Any,
) -> jax.Array:
    """`attention` of queries and keys after `apply_rope`, [B, N, H, K].

    Args:
      qkv_BN3HK: queries, keys and values, or the first two.
      rope: the tables of `rope_tables`, [B or 1, N, K]; None: no rotation.
      v_BNHK: the values, where they are not with the others.
      options: as for `attention`; `short` where the values are apart.
    """
    segments, masks = options.get("segments", ()), (options.get("valid_BM"), options.get("mask_NM"))

    def apart(qkv_BN3HK, *rope):
        q, k = (apply_rope(qkv_BN3HK[:, :, i], *rope) if rope else qkv_BN3HK[:, :, i] for i in range(2))
        return attention(
            q, k, qkv_BN3HK[:, :, 2] if v_BNHK is None else v_BNHK, implementation=implementation, **options
        )

    joint = resolve(implementation, qkv_BN3HK.dtype, qkv_BN3HK.shape[-1]) == "triton" and _plain(qkv_BN3HK, *masks)
    if rope is None or v_BNHK is not None or not joint or cuts_sequences():
        return apart(qkv_BN3HK, *(rope or ()))
    own = lambda *arrays: flash.rotated_attention(*arrays, segments, platform() != "gpu")
    rope = [jnp.broadcast_to(table, (len(qkv_BN3HK), *table.shape[1:])) for table in rope]
    results = lambda places: PartitionSpec(*places[0][:2], *places[0][3:])
    return on_shards(own, apart, (qkv_BN3HK, *rope), _joint_specs, results)


def _joint_specs() -> tuple[PartitionSpec, ...]:
    """Places of queries, keys and values, and of the tables of their rotation."""
    batch, _, heads, _ = nn.logical_to_mesh_axes(KEYS)
    return PartitionSpec(batch, None, None, heads), PartitionSpec(batch), PartitionSpec(batch)


def block_causal_mask(num_blocks: int, block_size: int) -> jax.Array:
    """bool [N, N], N = num_blocks * block_size: a token sees all of its own block of the sequence and of those before
    (vjepa2 src/models/utils/modules.py, build_action_block_causal_attention_mask)."""
    block_N = jnp.arange(num_blocks * block_size) // block_size
    return block_N[:, None] >= block_N


def _allowed(valid_BM, mask_NM) -> jax.Array | None:
    """Both conditions in one, bool [B or 1, 1, N or 1, M]; None where there is none."""
    valid = None if valid_BM is None else valid_BM[:, None, None, :]
    if mask_NM is None:
        return valid
    return mask_NM[None, None] if valid is None else valid & mask_NM


def _each(call: Callable[..., jax.Array], segments: Segments, q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM) -> jax.Array:
    """`call`, one sequence after the other."""
    queries, keys = zip(*segments, strict=True)
    parts = zip(
        split_tokens(q_BNHK, queries), *(split_tokens(x, keys) for x in (k_BMHK, v_BMHK, valid_BM)), strict=True
    )
    return join_tokens([call(*part, mask_NM) for part in parts])


def _specs() -> tuple[PartitionSpec, ...]:
    """Places of queries, keys, values and both masks: every device has its own share of batch, queries and heads."""
    queries, keys = nn.logical_to_mesh_axes(QUERIES), nn.logical_to_mesh_axes(KEYS)
    return queries, keys, keys, PartitionSpec(queries[0]), PartitionSpec(queries[1])


def _cudnn(q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM):
    allowed = _allowed(valid_BM, mask_NM)
    if allowed is not None:
        allowed = jnp.broadcast_to(allowed, (len(allowed), 1, q_BNHK.shape[1], k_BMHK.shape[1]))
    return jax.nn.dot_product_attention(q_BNHK, k_BMHK, v_BMHK, mask=allowed, implementation="cudnn")


def _triton(q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM, segments=(), short=False):
    if _plain(q_BNHK, valid_BM, mask_NM):
        call = flash.short_attention if short else flash.flash_attention
        return call(q_BNHK, k_BMHK, v_BMHK, segments, platform() != "gpu")
    other = _cudnn if platform() == "gpu" else _xla
    return other(q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM)


def _plain(q_BNHK, valid_BM, mask_NM) -> bool:
    """Whether our kernel can: it has no masks, and not all heads and dtypes."""
    return valid_BM is None and mask_NM is None and flash.fits(q_BNHK.shape[-1], q_BNHK.dtype)


def _xla(q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM):
    scale = 1.0 / math.sqrt(q_BNHK.shape[-1])
    logits_BHNM = jnp.einsum("BNHK,BMHK->BHNM", q_BNHK * scale, k_BMHK, preferred_element_type=jnp.float32)
    allowed = _allowed(valid_BM, mask_NM)
    if allowed is not None:
        logits_BHNM = jnp.where(allowed, logits_BHNM, -1e30)
    weights_BHNM = jax.nn.softmax(logits_BHNM, axis=-1).astype(v_BMHK.dtype)
    if platform() == "cpu":  # XLA (of jax 0.10) would take exponentials again for every channel of the values
        weights_BHNM = jax.lax.optimization_barrier(weights_BHNM)
    return jnp.einsum("BHNM,BMHK->BNHK", weights_BHNM, v_BMHK)


def _splash(q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM):
    """Tokens are padded to whole blocks. Padding is a segment of its own among the keys, so that no query sees it, and
    what it asks for is cut off."""
    batch, num_queries, num_heads, head_dim = q_BNHK.shape
    num_keys = k_BMHK.shape[1]
    if mask_NM is not None or min(num_queries, num_keys) < SPLASH_LANES:
        return _xla(q_BNHK, k_BMHK, v_BMHK, valid_BM, mask_NM)
    from jax.experimental.pallas.ops.tpu import splash_attention  # only where it is used: 0.2 s, and experimental

    (block_q, all_queries), (block_k, all_keys) = splash_blocks(num_queries), splash_blocks(num_keys)
    segments = None
    if valid_BM is not None or all_keys > num_keys:
        valid_BM = jnp.ones((batch, num_keys), bool) if valid_BM is None else valid_BM
        valid_BM = jnp.pad(valid_BM, ((0, 0), (0, all_keys - num_keys)))
        ones = jnp.ones((batch, all_queries), jnp.int32)
        segments = splash_attention.SegmentIds(ones, valid_BM.astype(jnp.int32))
    heads_first = lambda x, count: jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, count - x.shape[1]), (0, 0)))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.FullMask((all_queries, all_keys))] * num_heads),
        block_sizes=splash_attention.BlockSizes(
            *(block_q, block_k, block_k), *(block_q, block_k, block_k), *(block_q, block_k)
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=platform() != "tpu",
    )
    q_BHNK = heads_first(q_BNHK * (1.0 / math.sqrt(head_dim)), all_queries)
    y_BHNK = jax.vmap(kernel)(q_BHNK, heads_first(k_BMHK, all_keys), heads_first(v_BMHK, all_keys), segments)
    return y_BHNK[:, :, :num_queries].swapaxes(1, 2)


def splash_blocks(tokens: int) -> tuple[int, int]:
    """Block size and padded count for so many tokens: one block where it holds them, else the size with the least
    padding, of equals the largest."""
    whole = -(-tokens // SPLASH_LANES) * SPLASH_LANES
    sizes = (whole,) if whole <= SPLASH_BLOCKS[0] else SPLASH_BLOCKS
    padded, block = min((-(-tokens // size) * size, -size) for size in sizes)
    return -block, padded


_KERNELS = {"cudnn": _cudnn, "triton": _triton, "splash": _splash}

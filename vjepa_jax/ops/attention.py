"""One attention function; the kernel is chosen behind it.

Shape suffixes: B batch, N query tokens, M key tokens, H heads, K head size.
"""

import math

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("xla", "cudnn")


def resolve(implementation: str, dtype: jnp.dtype, head_dim: int) -> str:
    """The kernel that "auto" stands for: cuDNN on NVIDIA for 16-bit inputs with a head size it takes, else XLA."""
    if implementation != "auto":
        return implementation
    sixteen_bit = dtype in (jnp.bfloat16, jnp.float16)
    fits = head_dim % 8 == 0 and head_dim <= 128
    return "cudnn" if jax.default_backend() == "gpu" and sixteen_bit and fits else "xla"


def attention(
    q_BNHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    *,
    valid_BM: jax.Array | None = None,
    mask_NM: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Softmax attention of every query to every key that it may see, scale K**-0.5.

    Args:
      q_BNHK, k_BMHK, v_BMHK: queries, keys and values, one dtype.
      valid_BM: bool; keys that may be attended to (False for padding). None: all.
      mask_NM: bool; which query may attend to which key, the same for all rows and heads. None: all to all.
      implementation: auto, xla (any device, and the oracle), cudnn (NVIDIA, 16-bit).

    Returns:
      [B, N, H, K] in the dtype of q; the softmax is taken in float32.
    """
    kernel = resolve(implementation, q_BNHK.dtype, q_BNHK.shape[-1])
    allowed = _allowed(valid_BM, mask_NM)
    if kernel == "xla":
        return _xla(q_BNHK, k_BMHK, v_BMHK, allowed)
    if kernel != "cudnn":
        raise ValueError(f"attention={implementation!r} is not one of auto, {', '.join(IMPLEMENTATIONS)}")
    if allowed is not None:
        allowed = jnp.broadcast_to(allowed, (len(allowed), 1, q_BNHK.shape[1], k_BMHK.shape[1]))
    return jax.nn.dot_product_attention(q_BNHK, k_BMHK, v_BMHK, mask=allowed, implementation="cudnn")


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


def _xla(q_BNHK, k_BMHK, v_BMHK, allowed):
    scale = 1.0 / math.sqrt(q_BNHK.shape[-1])
    logits_BHNM = jnp.einsum("BNHK,BMHK->BHNM", q_BNHK * scale, k_BMHK, preferred_element_type=jnp.float32)
    if allowed is not None:
        logits_BHNM = jnp.where(allowed, logits_BHNM, -1e30)
    weights_BHNM = jax.nn.softmax(logits_BHNM, axis=-1).astype(v_BMHK.dtype)
    return jnp.einsum("BHNM,BMHK->BNHK", weights_BHNM, v_BMHK)

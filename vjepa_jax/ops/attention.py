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
    implementation: str = "auto",
) -> jax.Array:
    """Full bidirectional softmax attention, scale K**-0.5.

    Args:
      q_BNHK, k_BMHK, v_BMHK: queries, keys and values, one dtype.
      valid_BM: bool; keys that may be attended to (False for padding).
      implementation: auto, xla (any device, and the oracle), cudnn (NVIDIA, 16-bit).

    Returns:
      [B, N, H, K] in the dtype of q; the softmax is taken in float32.
    """
    kernel = resolve(implementation, q_BNHK.dtype, q_BNHK.shape[-1])
    if kernel == "xla":
        return _xla(q_BNHK, k_BMHK, v_BMHK, valid_BM)
    if kernel != "cudnn":
        raise ValueError(f"attention={implementation!r} is not one of auto, {', '.join(IMPLEMENTATIONS)}")
    mask_B1NM = None
    if valid_BM is not None:
        batch, keys = valid_BM.shape
        mask_B1NM = jnp.broadcast_to(valid_BM[:, None, None, :], (batch, 1, q_BNHK.shape[1], keys))
    return jax.nn.dot_product_attention(q_BNHK, k_BMHK, v_BMHK, mask=mask_B1NM, implementation="cudnn")


def _xla(q_BNHK, k_BMHK, v_BMHK, valid_BM):
    scale = 1.0 / math.sqrt(q_BNHK.shape[-1])
    logits_BHNM = jnp.einsum("BNHK,BMHK->BHNM", q_BNHK * scale, k_BMHK, preferred_element_type=jnp.float32)
    if valid_BM is not None:
        logits_BHNM = jnp.where(valid_BM[:, None, None, :], logits_BHNM, -1e30)
    weights_BHNM = jax.nn.softmax(logits_BHNM, axis=-1).astype(v_BMHK.dtype)
    return jnp.einsum("BHNM,BMHK->BNHK", weights_BHNM, v_BMHK)

"""The Vision Transformer that encodes tubelets (vjepa2 src/models/vision_transformer.py), in Flax Linen.

Shape suffixes: B batch, N tokens, P values of one tubelet, D embedding, H heads, K head size.

Blocks are stacked on a leading axis of their parameters, whether the layers are scanned or unrolled. No position
parameters: tokens carry their ids, so that a masked or longer or non-square clip keeps its true positions.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vjepa_jax.config import ModelConfig
from vjepa_jax.models.variants import ViTSize, encoder_size
from vjepa_jax.ops.attention import attention
from vjepa_jax.ops.rope import Grid, apply_rope, rope_tables, sincos_table
from vjepa_jax.ops.tokens import all_ids

weight_init = nn.initializers.normal(0.02)
ROPE_MODES = {"rope_tiled": "tiled", "rope_interleaved": "interleaved"}
REMAT_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class Block(nn.Module):
    """Pre-norm transformer block: x + Attention(LN(x)), then x + MLP(LN(x)).

    `rope` is None or the pair (cos, sin) of `ops.rope.rope_tables`, [B, N, head_dim]; `valid` is None or bool [B, N],
    the tokens that may be attended to. Returns (x, None), the form that a scan over layers takes.
    """

    size: ViTSize
    dtype: Any = jnp.float32
    gelu: str = "erf"
    attention: str = "auto"
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x_BND, rope=None, valid_BN=None):
        dense = functools.partial(nn.DenseGeneral, dtype=self.dtype, kernel_init=weight_init)
        norm = functools.partial(nn.LayerNorm, epsilon=self.eps, dtype=jnp.float32, use_fast_variance=False)
        heads = (3, self.size.num_heads, self.size.head_dim)

        qkv = dense(features=heads, name="qkv")(norm(name="norm1")(x_BND))
        q_BNHK, k_BNHK, v_BNHK = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if rope is not None:
            q_BNHK, k_BNHK = apply_rope(q_BNHK, *rope), apply_rope(k_BNHK, *rope)
        y_BNHK = attention(q_BNHK, k_BNHK, v_BNHK, valid_BM=valid_BN, implementation=self.attention)
        x_BND = x_BND + dense(features=self.size.embed_dim, axis=(-2, -1), name="proj")(y_BNHK)

        hidden = dense(features=self.size.mlp_dim, name="fc1")(norm(name="norm2")(x_BND))
        hidden = nn.gelu(hidden, approximate=self.gelu == "tanh")
        x_BND = x_BND + dense(features=self.size.embed_dim, name="fc2")(hidden)
        return nn.with_logical_constraint(x_BND, ("batch", "token", None)), None


def stack_blocks(size: ViTSize, model: ModelConfig, eps: float = 1e-6) -> nn.Module:
    """`size.depth` blocks as one module named "blocks", scanned `model.unroll` layers at a time (0: all unrolled)."""
    block = Block
    if model.remat != "none":
        block = nn.remat(Block, prevent_cse=False, policy=REMAT_POLICIES[model.remat])
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast),
        length=size.depth,
        unroll=model.unroll or size.depth,
    )
    return scanned(
        size=size, dtype=jnp.dtype(model.dtype), gelu=model.gelu, attention=model.attention, eps=eps, name="blocks"
    )


def rescale_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """The published initialisation: proj and fc2 of block i (from 0) are divided by sqrt(2 (i + 1)).

    A block in the scan does not know its index, so this runs once on the fresh parameter tree (a dict with "blocks").
    """
    blocks = dict(params["blocks"])
    for name in ("proj", "fc2"):
        kernel = blocks[name]["kernel"]
        divisor = np.sqrt(2.0 * (np.arange(kernel.shape[0]) + 1)).astype(np.float32)
        scaled = kernel / divisor.reshape(-1, *[1] * (kernel.ndim - 1))
        blocks[name] = {**blocks[name], "kernel": scaled}
    return {**params, "blocks": blocks}


class Encoder(nn.Module):
    """Tubelets to features.

    __call__(patches_BNP, grid, ids_BN, valid_BN):
      patches_BNP: normalised tubelets (ops.patches); all of a clip, or the ones kept by a mask.
      grid: tokens along time, height and width of the whole clip.
      ids_BN: int32 ids of the given tokens in the whole clip; None for all, in order.
      valid_BN: bool, False for padding; None if there is none.
    Returns float32 [B, N, D] after the final LayerNorm.
    """

    model: ModelConfig

    @nn.compact
    def __call__(self, patches_BNP, grid: Grid, ids_BN=None, valid_BN=None):
        size, dtype = encoder_size(self.model), jnp.dtype(self.model.dtype)
        if ids_BN is None:
            ids_BN = all_ids(*patches_BNP.shape[:2])
        x_BND = nn.Dense(size.embed_dim, dtype=dtype, kernel_init=weight_init, name="patch_embed")(patches_BNP)
        rope = None
        if self.model.position == "sincos":
            x_BND = x_BND + jnp.asarray(sincos_table(size.embed_dim, grid), dtype)[ids_BN]
        else:
            rope = rope_tables(ids_BN, grid, size.head_dim, ROPE_MODES[self.model.position])
        x_BND, _ = stack_blocks(size, self.model)(x_BND, rope, valid_BN)
        return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name="norm")(x_BND)

"""The predictor: a narrow ViT over context tokens and mask tokens (vjepa2 src/models/predictor.py), in Flax Linen.

Shape suffixes: B batch, C context tokens, M target tokens, N = C + M, D encoder width, E predictor width.
"""

import flax.linen as nn
import jax.numpy as jnp

from vjepa_jax.config import ModelConfig
from vjepa_jax.models.variants import encoder_size, predictor_size
from vjepa_jax.models.vit import ROPE_MODES, stack_blocks, weight_init
from vjepa_jax.ops.rope import Grid, rope_tables, sincos_table


class Predictor(nn.Module):
    """Features of the context to features of the targets.

    __call__(context_BCD, context_ids_BC, target_ids_BM, grid, mask_index, context_valid_BC, target_valid_BM):
      mask_index: which learned mask token stands for the targets (taken modulo their number).
      *_valid: bool, False for padding; both or neither.
    Returns float32 [B, M, D].

    The published code sorts tokens by id and undoes it afterwards; with full attention and rotary positions that
    changes nothing, so it is left out.
    """

    model: ModelConfig

    @nn.compact
    def __call__(
        self,
        context_BCD,
        context_ids_BC,
        target_ids_BM,
        grid: Grid,
        mask_index: int = 0,
        context_valid_BC=None,
        target_valid_BM=None,
    ):
        size, dtype = predictor_size(self.model), jnp.dtype(self.model.dtype)
        cfg = self.model.predictor
        x_BCE = nn.Dense(size.embed_dim, dtype=dtype, kernel_init=weight_init, name="embed")(context_BCD)
        tokens = self.param("mask_tokens", nn.initializers.zeros, (cfg.num_mask_tokens, size.embed_dim), jnp.float32)
        query = tokens[mask_index % cfg.num_mask_tokens].astype(dtype)
        queries_BME = jnp.broadcast_to(query, (*target_ids_BM.shape, size.embed_dim))

        x_BNE = jnp.concatenate([x_BCE, queries_BME], axis=1)
        ids_BN = jnp.concatenate([context_ids_BC, target_ids_BM], axis=1)
        valid_BN = None
        if context_valid_BC is not None:
            valid_BN = jnp.concatenate([context_valid_BC, target_valid_BM], axis=1)
        rope = None
        if self.model.position == "sincos":
            x_BNE = x_BNE + jnp.asarray(sincos_table(size.embed_dim, grid), dtype)[ids_BN]
        else:
            rope = rope_tables(ids_BN, grid, size.head_dim, ROPE_MODES[self.model.position])
        x_BNE, _ = stack_blocks(size, self.model)(x_BNE, rope, valid_BN)
        x_BME = x_BNE[:, context_ids_BC.shape[1] :]
        x_BME = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name="norm")(x_BME)
        out = nn.Dense(encoder_size(self.model).embed_dim, dtype=dtype, kernel_init=weight_init, name="out")
        return out(x_BME).astype(jnp.float32)

"""The predictor: a narrow ViT over context tokens and mask tokens (vjepa2 src/models/predictor.py), in Flax Linen.

Shape suffixes: B batch, C context tokens, M target tokens, N = C + M, D channels of the encoder's features (of all its
levels), E predictor width, P predicted channels.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from vjepa_jax.config import ModelConfig
from vjepa_jax.models.blocks import CrossBlock, LayerNorm, TargetBlock, make_block, run_blocks
from vjepa_jax.models.dense import weight_init
from vjepa_jax.models.variants import encoder_size, feature_dim, predictor_levels, predictor_size
from vjepa_jax.models.vit import IMAGE, ROPE_MODES, SINCOS_AXES, VIDEO, modality_init
from vjepa_jax.ops.gelu import gelu
from vjepa_jax.ops.norms import TOKENS
from vjepa_jax.ops.rope import Grid, rope_tables, sincos_table
from vjepa_jax.ops.tokens import join_tokens, split_tokens

Group = tuple[int, int, int]  # of a mask group: context tokens, target tokens, mask token


class Predictor(nn.Module):
    """Features of the context to features of the targets.

    __call__(context_BCD, context_ids_BC, target_ids_BM, grid, mask_index, context_valid_BC, target_valid_BM, image,
        groups):
      mask_index: which learned mask token stands for the targets (taken modulo their number).
      *_valid: bool, False for padding; both or neither.
      image: the clip is a single frame (model.image_tokenizer).
      groups: several mask groups side by side, each predicted on its own: their (context tokens, target tokens,
        mask_index), in the order in which contexts and targets lie; (): there is one.
    Returns float32 ([B, M, P], and [B, C, P] or None for the context (model.predictor.predict_context)).

    The published code sorts tokens by id and undoes it afterwards; with full attention and rotary positions that
    changes nothing, so it is left out. Positions are not scaled here (model.rope_grid), as published.
    """

    model: ModelConfig
    float8: bool = False  # products of the forward passes

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
        image: bool = False,
        groups: tuple[Group, ...] = (),
    ):
        model, size = self.model, predictor_size(self.model)
        groups = groups or ((context_ids_BC.shape[1], target_ids_BM.shape[1], mask_index),)
        cfg, dtype = model.predictor, jnp.dtype(model.dtype)
        context_BCE = nn.with_logical_constraint(self._embed(context_BCD), TOKENS)
        tokens = self.param("mask_tokens", nn.initializers.zeros, (cfg.num_mask_tokens, size.embed_dim), jnp.float32)
        queries = [jnp.tile(tokens[index % cfg.num_mask_tokens], (count, 1)) for _, count, index in groups]
        queries_BME = jnp.broadcast_to(jnp.concatenate(queries).astype(dtype), (*target_ids_BM.shape, size.embed_dim))
        if model.image_tokenizer:
            embeds = self.param("modality_embed", modality_init, (2, size.embed_dim), jnp.float32).astype(dtype)
            embed = embeds[IMAGE if image else VIDEO]
            context_BCE, queries_BME = context_BCE + embed, queries_BME + embed
        if model.position in SINCOS_AXES:
            table = jnp.asarray(sincos_table(size.embed_dim, grid, SINCOS_AXES[model.position]), dtype)
            context_BCE, queries_BME = context_BCE + table[context_ids_BC], queries_BME + table[target_ids_BM]
        queries_BME = nn.with_logical_constraint(queries_BME, TOKENS)
        run = self._joint if cfg.kind == "joint" else self._cross
        context_BCE, queries_BME = run(
            context_BCE, queries_BME, context_ids_BC, target_ids_BM, grid, context_valid_BC, target_valid_BM, groups
        )
        dense = functools.partial(nn.Dense, feature_dim(model), dtype=dtype, kernel_init=weight_init)
        norm = LayerNorm(dtype=dtype, name="norm")
        targets_BMP = dense(name="out")(norm(queries_BME)).astype(jnp.float32)
        if not cfg.predict_context:
            return targets_BMP, None
        return targets_BMP, dense(name="out_context")(norm(context_BCE)).astype(jnp.float32)

    def _embed(self, context_BCD):
        """Features to the predictor's width; those of several levels are mixed in the encoder's width first."""
        dense = functools.partial(nn.Dense, dtype=jnp.dtype(self.model.dtype), kernel_init=weight_init)
        if predictor_levels(self.model) > 1:
            context_BCD = dense(encoder_size(self.model).embed_dim, name="embed_levels")(context_BCD)
            context_BCD = gelu(context_BCD, self.model.gelu)
        return dense(self.model.predictor.embed_dim, name="embed")(context_BCD)

    def _rope(self, ids_BN, grid: Grid):
        if self.model.position in SINCOS_AXES:
            return None
        ids_BN = nn.with_logical_constraint(ids_BN, ("batch", "token"))
        return rope_tables(ids_BN, grid, predictor_size(self.model).head_dim, ROPE_MODES[self.model.position])

    def _joint(self, context_BCE, queries_BME, context_ids, target_ids, grid, context_valid, target_valid, groups):
        """Self-attention over context and mask tokens together. What nobody asks for, the context after the last block,
        is not computed."""
        contexts, targets, _ = zip(*groups, strict=True)

        def interleave(of_context, of_targets):  # context and targets of one group, then of the next
            pairs = zip(split_tokens(of_context, contexts), split_tokens(of_targets, targets), strict=True)
            return join_tokens([part for pair in pairs for part in pair])

        x_BNE = nn.with_logical_constraint(interleave(context_BCE, queries_BME), TOKENS)
        rope = self._rope(interleave(context_ids, target_ids), grid)
        valid_BN = None if context_valid is None else interleave(context_valid, target_valid)
        make = functools.partial(make_block, predictor_size(self.model), self.model, float8=self.float8)
        block = make(segments=tuple((c + m, c + m) for c, m, _ in groups))
        if not self.model.predictor.predict_context:
            last = make(TargetBlock, segments=tuple((m, c + m) for c, m, _ in groups))
            return context_BCE, *run_blocks(self, block, self.model, x_BNE, rope, valid_BN, last=last)
        (x_BNE,) = run_blocks(self, block, self.model, x_BNE, rope, valid_BN)
        parts = split_tokens(x_BNE, tuple(n for c, m, _ in groups for n in (c, m)))
        return join_tokens(parts[::2]), join_tokens(parts[1::2])

    def _cross(self, context_BCE, queries_BME, context_ids, target_ids, grid, context_valid, target_valid, groups):
        """Mask tokens attend to the context; they do not see each other."""
        del target_valid  # a padded target is seen by nobody
        ropes = None
        if self.model.position in ROPE_MODES:
            ropes = (self._rope(target_ids, grid), self._rope(context_ids, grid))
        segments = tuple((m, c) for c, m, _ in groups)
        block = make_block(predictor_size(self.model), self.model, CrossBlock, segments=segments, float8=self.float8)
        (queries_BME,) = run_blocks(self, block, self.model, queries_BME, context_BCE, ropes, context_valid)
        return context_BCE, queries_BME


def predictor_flops(model: ModelConfig, context: int, target: int) -> float:
    """FLOPs of one forward pass on `context` and `target` tokens: blocks, embedding and output (2 per multiply-add)."""
    size, levels = predictor_size(model), predictor_levels(model)
    width, c, m = encoder_size(model).embed_dim, context, target
    d, e = width * levels, size.embed_dim
    mixing = 2.0 * c * d * width if levels > 1 else 0.0
    ends = mixing + 2.0 * c * (width if levels > 1 else d) * e
    ends += 2.0 * (m + (c if model.predictor.predict_context else 0)) * e * feature_dim(model)
    if model.predictor.kind == "joint":
        unasked = 0 if model.predictor.predict_context else c  # after the last block
        attention = 2 * e * e + 4 * (c + m) * e  # of a token, after keys and values
        return size.forward_flops(c + m) - unasked * (attention + 2 * size.mlp_linears * e * size.mlp_dim) + ends
    attention = 4 * m * e * e + 4 * c * e * e + 4 * m * c * e
    return size.depth * (attention + 2.0 * size.mlp_linears * m * e * size.mlp_dim) + ends

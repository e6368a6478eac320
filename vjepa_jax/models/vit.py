"""The Vision Transformer that encodes tubelets (vjepa2 src/models and app/vjepa_2_1/models), in Flax Linen.

Shape suffixes: B batch, N tokens, P values of one tubelet, D embedding, L levels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vjepa_jax.config import ConfigError, ModelConfig
from vjepa_jax.models.blocks import EPS, LayerNorm, make_block, run_blocks
from vjepa_jax.models.dense import weight_init
from vjepa_jax.models.variants import encoder_size
from vjepa_jax.ops.losses import layer_norm
from vjepa_jax.ops.norms import TOKENS
from vjepa_jax.ops.rope import Grid, append_unrotated, rope_tables, sincos_table
from vjepa_jax.ops.tokens import all_ids, join_tokens, split_tokens

IMAGE, VIDEO = 0, 1  # rows of the modality embeddings

modality_init = nn.initializers.normal(1e-6)
ROPE_MODES = {"rope_tiled": "tiled", "rope_interleaved": "interleaved"}
SINCOS_AXES = {"sincos": 3, "sincos2d": 2}


def check_layers(model: ModelConfig, layers: tuple[int, ...]) -> None:
    """Raises ConfigError unless these are blocks whose outputs have a norm, ascending, the last block among them."""
    depth = encoder_size(model).depth
    if layers and (layers[-1] != depth - 1 or layers[0] < 0 or list(layers) != sorted(set(layers))):
        raise ConfigError(
            f"layers={layers} must ascend from 0 on and end with the last of the {depth} blocks, {depth - 1}"
        )
    if layers and model.levels and not set(layers) <= set(model.levels):
        raise ConfigError(
            f"layers={layers}: this model has norms for the blocks {model.levels} only: choose among them"
        )


class LevelNorms(nn.Module):
    """A LayerNorm for every level. __call__(list of [B, N, D]) returns them normalised, float32, last `keep` ones."""

    @nn.compact
    def __call__(self, levels: list[jax.Array], keep: int) -> list[jax.Array]:
        shape = (len(levels), levels[0].shape[-1])
        scale_LD = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias_LD = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        chosen = range(len(levels) - keep, len(levels))
        return [layer_norm(levels[i], EPS) * scale_LD[i] + bias_LD[i] for i in chosen]


class Encoder(nn.Module):
    """Tubelets to features.

    __call__(patches_BNP, grid, ids_BN, valid_BN, image, every_level, counts):
      patches_BNP: normalised tubelets (ops.patches); all of a clip, or the ones kept by a mask.
      grid: tokens along time, height and width of the whole clip.
      ids_BN: int32 ids of the given tokens in the whole clip; None for all, in order.
      valid_BN: bool, False for padding; None if there is none.
      image: the patches are of single frames (model.image_tokenizer).
      every_level: all model.levels, concatenated (what V-JEPA 2.1 is trained on), instead of the last one.
      counts: tokens of each of several masked clips that lie side by side, each encoded on its own; (): there is one.
      layers: blocks, from 0 and ending with the last, whose outputs an evaluation reads; (): the features alone.
    Returns float32 [B, N, D] or [B, N, L*D] after the final LayerNorm (of each level); with layers [B, L, N, D], each
    after the final LayerNorm, or, in a model with levels, after that of its level (vjepa2 `out_layers`).
    """

    model: ModelConfig
    float8: bool = False  # products of the forward passes
    frozen: bool = False  # no gradient is taken

    @nn.compact
    def __call__(
        self,
        patches_BNP,
        grid: Grid,
        ids_BN=None,
        valid_BN=None,
        image: bool = False,
        every_level: bool = False,
        counts: tuple[int, ...] = (),
        layers: tuple[int, ...] = (),
    ):
        model, size = self.model, encoder_size(self.model)
        check_layers(model, layers)
        if ids_BN is None:
            ids_BN = all_ids(*patches_BNP.shape[:2])
        ids_BN = nn.with_logical_constraint(ids_BN, ("batch", "token"))
        x_BND = nn.with_logical_constraint(self._embed(patches_BNP, image), TOKENS)
        rope = None
        if model.position in SINCOS_AXES:
            table = sincos_table(size.embed_dim, grid, SINCOS_AXES[model.position], model.rope_grid)
            x_BND = x_BND + jnp.asarray(table, x_BND.dtype)[ids_BN]
        else:
            rope = rope_tables(ids_BN, grid, size.head_dim, ROPE_MODES[model.position], model.rope_grid)
        counts, special = counts or x_BND.shape[1:2], model.registers + model.cls_token
        if special:
            x_BND, rope, valid_BN = self._append_special(x_BND, rope, valid_BN, special, counts)
        segments = tuple((n + special, n + special) for n in counts)
        block = make_block(size, model, segments=segments, float8=self.float8, frozen=self.frozen)
        levels = run_blocks(self, block, model, x_BND, rope, valid_BN, levels=model.levels or layers)
        if special:
            lengths = tuple(n for count in counts for n in (count, special))
            levels = [join_tokens(split_tokens(x_BND, lengths)[::2]) for x_BND in levels]
        if not model.levels:
            norm = LayerNorm(name="norm")
            return jnp.stack([norm(x_BND) for x_BND in levels], axis=1) if layers else norm(levels[0])
        keep = len(levels) if every_level or layers else 1
        normed = LevelNorms(name="norms")(levels, keep)
        if layers:
            return jnp.stack([normed[model.levels.index(layer)] for layer in layers], axis=1)
        return jnp.concatenate(normed, axis=-1)

    def _embed(self, patches_BNP, image: bool):
        """Patches to tokens; with an image tokenizer, plus the embedding of the modality."""
        model, dtype = self.model, jnp.dtype(self.model.dtype)
        dim = encoder_size(model).embed_dim
        dense = functools.partial(nn.Dense, dim, dtype=dtype, kernel_init=weight_init)
        if not model.image_tokenizer:
            return dense(name="patch_embed")(patches_BNP)
        embeds = self.param("modality_embed", modality_init, (2, dim), jnp.float32)
        if self.is_initializing():  # a call sees one modality, the parameters of both must be made
            for name, frames in (("patch_embed", model.tubelet_size), ("image_patch_embed", 1)):
                x_BND = dense(name=name)(jnp.zeros((*patches_BNP.shape[:2], frames * model.patch_size**2 * 3)))
            return x_BND
        x_BND = dense(name="image_patch_embed" if image else "patch_embed")(patches_BNP)
        return x_BND + embeds[IMAGE if image else VIDEO].astype(dtype)

    def _append_special(self, x_BND, rope, valid_BN, special: int, counts: tuple[int, ...]):
        """CLS and register tokens; where they stand in a sequence changes nothing, so they come last."""
        batch, _, dim = x_BND.shape
        tokens = self.param("special_tokens", weight_init, (special, dim), jnp.float32).astype(x_BND.dtype)
        tokens = jnp.broadcast_to(tokens, (batch, special, dim))
        after_each = lambda x, append: join_tokens([append(part) for part in split_tokens(x, counts)])
        x_BND = after_each(x_BND, lambda x: jnp.concatenate([x, tokens], axis=1))
        if rope is not None:
            parts = zip(*(split_tokens(table, counts) for table in rope), strict=True)
            parts = [append_unrotated(part, special) for part in parts]
            rope = tuple(join_tokens(list(tables)) for tables in zip(*parts, strict=True))
        if valid_BN is not None:
            valid_BN = after_each(valid_BN, lambda x: jnp.pad(x, ((0, 0), (0, special)), constant_values=True))
        return x_BND, rope, valid_BN

"""The action-conditioned predictor of V-JEPA 2-AC (vjepa2 src/models/ac_predictor.py), in Flax Linen.

Shape suffixes: B batch, T time steps, P patches of one step, C conditioning tokens of one step, K = C + P, N = T * P,
L = T * K, A action values, S state values, X extrinsics values, D encoder width, E predictor width.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from vjepa_jax.config import ConfigError, ModelConfig
from vjepa_jax.models.blocks import LayerNorm, Rope, make_block, run_blocks
from vjepa_jax.models.dense import weight_init
from vjepa_jax.models.variants import encoder_size, predictor_size
from vjepa_jax.models.vit import ROPE_MODES
from vjepa_jax.ops.attention import block_causal_mask
from vjepa_jax.ops.rope import Grid, axis_channels, rope_tables


class ACPredictor(nn.Module):
    """Features of each step, the action taken there and the state of the arm to features of the step after it.

    Every step is a block [action, state, (extrinsics,) patches] of the sequence; a token sees its own block and those
    before it. The released model is 24 blocks of width 1024 with 16 heads (`model.predictor`) on ViT-g features, each
    frame encoded by itself (arXiv 2506.09985, section 3).

    __call__(frames_BND, actions_BTA, states_BTS, grid, extrinsics_BTX):
      frames_BND: features of the frames, step after step.
      actions_BTA, states_BTS, extrinsics_BTX: one row a step, of any size; the released model has 7, 7 and 6 values
        (position, rotation, gripper; camera position and rotation). Extrinsics with `use_extrinsics` only.
      grid: steps, rows and columns of `frames_BND`.
    Returns float32 [B, N, D]: at the patches of step t, what is predicted for step t + 1. The released model compares
    and feeds back outputs after an affine-free LayerNorm (`ops.losses.layer_norm`).

    Raises ConfigError for arrays that do not fit together. Initialisation: `vit.rescale_blocks` on the fresh tree.
    """

    model: ModelConfig
    use_extrinsics: bool = False
    side: int | None = None  # rows and columns are scaled as if the grid had this many of each; None: its rows
    extrinsics_dim: int = 6  # of the layer, which the released weights hold whether it is used or not

    @nn.compact
    def __call__(self, frames_BND, actions_BTA, states_BTS, grid: Grid, extrinsics_BTX=None):
        model, size = self.model, predictor_size(self.model)
        self._check(frames_BND, actions_BTA, states_BTS, grid, extrinsics_BTX)
        dense = functools.partial(nn.Dense, dtype=jnp.dtype(model.dtype), kernel_init=weight_init)
        condition = [
            dense(size.embed_dim, name="action_encoder")(actions_BTA),
            dense(size.embed_dim, name="state_encoder")(states_BTS),
        ]
        extrinsics_encoder = dense(size.embed_dim, name="extrinsics_encoder")
        if self.use_extrinsics:
            condition.append(extrinsics_encoder(extrinsics_BTX))
        elif self.is_initializing():
            extrinsics_encoder(jnp.zeros((1, self.extrinsics_dim)))

        count, (batch, steps, _) = len(condition), actions_BTA.shape
        condition_BTCE = jnp.stack(condition, axis=2)
        frames_BTPE = dense(size.embed_dim, name="embed")(frames_BND).reshape(batch, steps, -1, size.embed_dim)
        x_BTKE = jnp.concatenate([condition_BTCE, frames_BTPE], axis=2)
        x_BLE = x_BTKE.reshape(batch, -1, size.embed_dim)
        mask_LL = block_causal_mask(steps, x_BTKE.shape[2])
        (x_BLE,) = run_blocks(self, make_block(size, model), model, x_BLE, self._rope(grid, count), None, mask_LL)

        x_BNE = x_BLE.reshape(x_BTKE.shape)[:, :, count:].reshape(batch, -1, size.embed_dim)
        x_BNE = LayerNorm(dtype=jnp.dtype(model.dtype), name="norm")(x_BNE)
        return dense(encoder_size(model).embed_dim, name="out")(x_BNE).astype(jnp.float32)

    def _rope(self, grid: Grid, count: int) -> Rope:
        """Tables of the sequence, [1, L, head_dim]: rows and columns times side / their number. Conditioning tokens
        turn in the time channels alone, which is what a patch in row 0 and column 0 does."""
        steps, height, width = grid
        patches = height * width
        places = jnp.concatenate([jnp.zeros(count, jnp.int32), jnp.arange(patches, dtype=jnp.int32)])
        ids = (jnp.arange(steps, dtype=jnp.int32)[:, None] * patches + places).reshape(1, -1)
        head_dim, side = predictor_size(self.model).head_dim, self.side or height
        spans = [1 + (n - 1) * side / n for n in (height, width)]  # n positions, side / n apart
        of_rows, of_columns = (rope_tables(ids, grid, head_dim, ROPE_MODES[self.model.position], s) for s in spans)
        is_column = jnp.arange(head_dim) >= 2 * axis_channels(head_dim)
        return tuple(jnp.where(is_column, c, r) for r, c in zip(of_rows, of_columns, strict=True))

    def _check(self, frames_BND, actions_BTA, states_BTS, grid, extrinsics_BTX) -> None:
        if self.model.position not in ROPE_MODES:
            raise ConfigError(f"model.position={self.model.position!r}: actions need one of {', '.join(ROPE_MODES)}")
        batch, tokens, _ = frames_BND.shape
        steps, height, width = grid
        if tokens != steps * height * width:
            raise ConfigError(f"{tokens} frame tokens are not the {steps}x{height}x{width} of the grid")
        if self.use_extrinsics != (extrinsics_BTX is not None):
            given = "no extrinsics were" if extrinsics_BTX is None else "extrinsics were"
            raise ConfigError(f"use_extrinsics={self.use_extrinsics}, but {given} given: change one of them")
        rows = {"actions": actions_BTA, "states": states_BTS, "extrinsics": extrinsics_BTX}
        for name, values in rows.items():
            if values is not None and values.shape[:2] != (batch, steps):
                raise ConfigError(f"{name} of shape {values.shape} must be [{batch}, {steps}, ...], one row a step")

"""I-JEPA: predict the target encoder's features of several blocks of an image, each on its own (arXiv 2301.08243).

The machinery is that of V-JEPA on clips of one frame (data.num_frames=1, model.tubelet_size=1); what differs is that
the predictor runs once for every target block (mask kind "separate"), so that blocks do not see each other's positions.

Shape suffixes: B batch, P values of one tubelet, C context tokens, K target blocks, M target tokens of one block,
D embedding.
"""

import jax
import jax.numpy as jnp

from vjepa_jax.config import ConfigError, RunConfig
from vjepa_jax.objectives.vjepa2 import VJEPA2, GroupOutputs, Params
from vjepa_jax.ops.tokens import gather_tokens


class IJEPA(VJEPA2):
    """The objective (interface: objectives/__init__.py). params: {"encoder", "predictor"}; aux: {"target"}."""

    def __init__(self, run: RunConfig):
        super().__init__(run)
        if run.data.num_frames != 1 or run.model.tubelet_size != 1:
            raise ConfigError("objective='ijepa' trains on images: set data.num_frames=1 and model.tubelet_size=1")
        if run.all_streams:
            raise ConfigError("objective='ijepa' has one stream of images, in data: remove images and streams")
        if any(group.kind != "separate" for group in run.masks.groups):
            raise ConfigError("objective='ijepa' predicts blocks on their own: use masks.groups of kind 'separate'")
        if run.loss.context_weight or run.loss.spatial_coherence or run.loss.temporal_smoothness:
            raise ConfigError(
                "objective='ijepa' has no loss on the context and none between tokens, whose blocks overlap: "
                "set loss.context_weight, loss.spatial_coherence and loss.temporal_smoothness to 0"
            )

    def features(self, params: Params, video_BTYXC: jax.Array, layers: tuple[int, ...] = ()) -> jax.Array:
        """Features of every frame on its own: float32 [B, T, H', W', D]; with layers [B, L, T, H', W', D]."""
        frames = video_BTYXC.reshape(-1, 1, *video_BTYXC.shape[2:])
        features = super().features(params, frames, layers)
        shape = (*video_BTYXC.shape[:2], *self._grid(frames)[1:])
        if not layers:
            return features.reshape(*shape, -1)
        return jnp.swapaxes(features.reshape(*shape[:2], len(layers), *shape[2:], features.shape[-1]), 1, 2)

    def flops(self, budgets: list[tuple[int, int]], stream: RunConfig | None = None) -> dict[str, float]:
        """As for V-JEPA, with the context encoded once for all blocks of a group."""
        firsts, start = [], 0
        for group in self.run.masks.groups:
            firsts.append(budgets[start])
            start += group.num_blocks
        return super().flops(budgets, stream) | {"context": super().flops(firsts, stream)["context"]}

    def _groups(self, params, patches_BNP, targets_BND, grid, masks, image: bool) -> list[GroupOutputs]:
        group = lambda i, mask: self._group(params, patches_BNP, targets_BND, grid, mask, i, image)
        return [group(i, mask) for i, mask in enumerate(masks)]

    def _group(self, params, patches_BNP, targets_BND, grid, mask, index: int, image: bool) -> GroupOutputs:
        context_BC, target = mask["context"], mask["target"]
        blocks = self.run.masks.groups[index].num_blocks
        with jax.named_scope("context"):
            kept_BCP = gather_tokens(patches_BNP, context_BC)
            z_BCD = self._encode_levels(params["encoder"], kept_BCP, grid, context_BC, image=image, encoder=self.online)
        with jax.named_scope("predictor"):
            repeat = lambda x: jnp.repeat(x, blocks, axis=0)  # block k of clip b is row b * K + k
            target_BKM = target.reshape(-1, target.shape[1] // blocks)
            prediction, _ = self.online_predictor.apply(
                {"params": params["predictor"]}, repeat(z_BCD), repeat(context_BC), target_BKM, grid, 0, image=image
            )
        prediction = prediction.reshape(*target.shape, -1)
        chosen = gather_tokens(targets_BND, target)
        return GroupOutputs(context_BC, target, None, None, prediction, chosen, z_BCD, None, None)

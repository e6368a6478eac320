"""V-JEPA 2: predict the target encoder's features of masked tubelets from the visible ones (arXiv 2506.09985).

Shape suffixes: B batch, N tokens, P values of one tubelet, D embedding, C context tokens, M target tokens.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vjepa_jax.config import RunConfig
from vjepa_jax.models.predictor import Predictor
from vjepa_jax.models.variants import encoder_size, predictor_size
from vjepa_jax.models.vit import Encoder, rescale_blocks
from vjepa_jax.ops.losses import latent_regression, layer_norm
from vjepa_jax.ops.patches import normalize, patchify, token_grid
from vjepa_jax.ops.tokens import gather_tokens

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GroupOutputs:
    """One mask group: ids int32 [B, C] and [B, M], validity or None, prediction and target float32 [B, M, D]."""

    context_ids: jax.Array
    target_ids: jax.Array
    context_valid: jax.Array | None
    target_valid: jax.Array | None
    prediction: jax.Array
    target: jax.Array


@dataclasses.dataclass(frozen=True)
class Outputs:
    """`features`: the target encoder's output before its affine-free norm, float32 [B, N, D]; `groups`: one a mask."""

    features: jax.Array
    groups: list[GroupOutputs]


class VJEPA2:
    """The objective (interface: objectives/__init__.py). params: {"encoder", "predictor"}; aux: {"target"}."""

    def __init__(self, run: RunConfig):
        self.run = run
        self.encoder = Encoder(run.model)
        self.predictor = Predictor(run.model)
        # a width of zero channels or uneven heads is found here, before anything is built
        encoder_size(run.model), predictor_size(run.model)

    def init(self, rng: jax.Array) -> tuple[Params, Params]:
        """Fresh parameters with the published initialisation; the target starts as a copy of the encoder."""
        model, grid = self.run.model, self.run.grid
        values = model.tubelet_size * model.patch_size**2 * 3
        encoder_rng, predictor_rng = jax.random.split(rng)
        ids = jnp.zeros((1, 2), jnp.int32)
        patches = jnp.zeros((1, 2, values), jnp.float32)
        context = jnp.zeros((1, 2, encoder_size(model).embed_dim), jnp.float32)
        encoder = self.encoder.init(encoder_rng, patches, grid, ids)["params"]
        predictor = self.predictor.init(predictor_rng, context, ids, ids, grid)["params"]
        encoder, predictor = rescale_blocks(encoder), rescale_blocks(predictor)
        return {"encoder": encoder, "predictor": predictor}, {"target": jax.tree.map(jnp.copy, encoder)}

    def loss(self, params: Params, aux: Params, batch: Params, rng: jax.Array, step: jax.Array):
        """Mean over mask groups of the regression loss on the normalised target features."""
        del rng, step  # nothing is drawn on the device
        losses = [
            latent_regression(g.prediction, g.target, g.target_valid, self.run.loss.exponent)
            for g in self.outputs(params, aux, batch).groups
        ]
        loss = jnp.mean(jnp.stack(losses))
        return loss, {"loss": loss, **{f"loss/group{i}": value for i, value in enumerate(losses)}}

    def outputs(self, params: Params, aux: Params, batch: Params) -> Outputs:
        """Predictions and targets of every mask group."""
        patches_BNP, grid = self._patches(batch["video"])
        with jax.named_scope("target"):
            features_BND = jax.lax.stop_gradient(self._encode(aux["target"], patches_BNP, grid))
            targets_BND = layer_norm(features_BND)
        groups = [self._group(params, patches_BNP, targets_BND, grid, mask, i) for i, mask in enumerate(batch["masks"])]
        return Outputs(features_BND, groups)

    def _group(self, params, patches_BNP, targets_BND, grid, mask, index) -> GroupOutputs:
        context, target = mask["context"], mask["target"]
        context_valid, target_valid = mask.get("context_valid"), mask.get("target_valid")
        with jax.named_scope("context"):
            kept_BCP = gather_tokens(patches_BNP, context)
            z_BCD = self._encode(params["encoder"], kept_BCP, grid, context, context_valid)
        with jax.named_scope("predictor"):
            token = index if self.run.model.predictor.mask_token_per_group else 0
            predict = self.predictor.apply
            prediction = predict(
                {"params": params["predictor"]}, z_BCD, context, target, grid, token, context_valid, target_valid
            )
        chosen_BMD = gather_tokens(targets_BND, target)
        return GroupOutputs(context, target, context_valid, target_valid, prediction, chosen_BMD)

    def after_update(self, params: Params, aux: Params, step: jax.Array) -> Params:
        """EMA of every encoder parameter, in float32, with the momentum of this step."""
        momentum = self.momentum(step)
        blend = lambda old, new: momentum * old + (1.0 - momentum) * new
        return {"target": jax.tree.map(blend, aux["target"], params["encoder"])}

    def momentum(self, step: jax.Array) -> jax.Array:
        """EMA momentum after update number `step` (from 0): linear from ema.start to ema.end over the run."""
        ema = self.run.ema
        return ema.start + (ema.end - ema.start) * jnp.minimum(step / self.run.steps, 1.0)

    def eval_params(self, params: Params, aux: Params) -> Params:
        """The target encoder, as the published evaluations use, and the predictor."""
        return {"encoder": aux["target"], "predictor": params["predictor"]}

    def features(self, params: Params, video_BTYXC: jax.Array) -> jax.Array:
        """Features of whole clips, any size that divides into tubelets: float32 [B, T', H', W', D]."""
        patches_BNP, grid = self._patches(video_BTYXC)
        return self._encode(params["encoder"], patches_BNP, grid).reshape(video_BTYXC.shape[0], *grid, -1)

    def predict(
        self, params: Params, video_BTYXC: jax.Array, context_BC: jax.Array, target_BM: jax.Array, mask_index: int = 0
    ) -> jax.Array:
        """Predicted normalised features at `target_BM` from the tokens `context_BC`: float32 [B, M, D]."""
        patches_BNP, grid = self._patches(video_BTYXC)
        z_BCD = self._encode(params["encoder"], gather_tokens(patches_BNP, context_BC), grid, context_BC)
        return self.predictor.apply({"params": params["predictor"]}, z_BCD, context_BC, target_BM, grid, mask_index)

    def flops(self, budgets: list[tuple[int, int]]) -> dict[str, float]:
        """Analytic FLOPs of one training clip, by part; `budgets` are the (context, target) tokens of each mask group.

        The target is one forward pass, everything else forward and backward (3 forwards). No recomputation is counted.
        """
        model, (t, h, w) = self.run.model, self.run.grid
        size, predictor = encoder_size(model), predictor_size(model)
        values = model.tubelet_size * model.patch_size**2 * 3
        embed = lambda n: 2.0 * n * values * size.embed_dim
        tokens = t * h * w
        heads = lambda c, m: 2.0 * (c + m) * size.embed_dim * predictor.embed_dim
        return {
            "target": size.forward_flops(tokens) + embed(tokens),
            "context": 3.0 * sum(size.forward_flops(c) + embed(c) for c, _ in budgets),
            "predictor": 3.0 * sum(predictor.forward_flops(c + m) + heads(c, m) for c, m in budgets),
        }

    def _patches(self, video_BTYXC):
        model = self.run.model
        grid = token_grid(video_BTYXC.shape, model.tubelet_size, model.patch_size)
        video = normalize(video_BTYXC, jnp.dtype(model.dtype))
        return patchify(video, model.tubelet_size, model.patch_size), grid

    def _encode(self, params, patches_BNP, grid, ids_BN=None, valid_BN=None):
        return self.encoder.apply({"params": params}, patches_BNP, grid, ids_BN, valid_BN)

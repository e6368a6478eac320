"""V-JEPA 2 and 2.1: predict the target encoder's features of masked tubelets from the visible ones.

V-JEPA 2 (arXiv 2506.09985) predicts the last block's features of the masked tokens. V-JEPA 2.1 (arXiv 2603.14482) adds,
each by its own setting: features of several blocks (model.levels), a loss on the visible tokens too
(loss.context_weight), and images beside the videos (images), or any other streams (streams).

Shape suffixes: B batch, N tokens, P values of one tubelet, D embedding, L levels, C context tokens, M target tokens.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from vjepa_jax.config import RunConfig
from vjepa_jax.models.blocks import rescale_blocks
from vjepa_jax.models.predictor import Predictor, predictor_flops
from vjepa_jax.models.variants import encoder_flops, encoder_size, predictor_levels, predictor_size
from vjepa_jax.models.vit import Encoder
from vjepa_jax.ops import regularizers
from vjepa_jax.ops.losses import latent_regression, layer_norm
from vjepa_jax.ops.patches import normalize, patchify, token_grid
from vjepa_jax.ops.tokens import cuts_sequences, distance_to_nearest, gather_tokens, join_tokens, split_tokens

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GroupOutputs:
    """One mask group: ids int32 [B, C] and [B, M], validity or None, prediction and target float32 [B, M, L*D].

    `context` is the encoder's output for the visible tokens, [B, C, L*D]; `context_prediction` and `context_target` are
    the predictor's output for them and what it should be, or None (model.predictor.predict_context).
    """

    context_ids: jax.Array
    target_ids: jax.Array
    context_valid: jax.Array | None
    target_valid: jax.Array | None
    prediction: jax.Array
    target: jax.Array
    context: jax.Array
    context_prediction: jax.Array | None
    context_target: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Outputs:
    """`features`: the target encoder's last block after its norm, float32 [B, N, D]; `targets`: what is predicted, all
    levels normalised without parameters, [B, N, L*D]; `groups`: one a mask."""

    features: jax.Array
    targets: jax.Array
    groups: list[GroupOutputs]


class VJEPA2:
    """The objective (interface: objectives/__init__.py). params: {"encoder", "predictor"}; aux: {"target"}."""

    def __init__(self, run: RunConfig):
        self.run = run
        self.encoder, self.predictor = Encoder(run.model), Predictor(run.model)
        float8 = run.model.forward_dtype == "float8"  # in training alone
        self.online, self.online_predictor = Encoder(run.model, float8), Predictor(run.model, float8)
        self.target = Encoder(run.model, run.model.target_dtype == "float8", frozen=True)
        # a width of zero channels or uneven heads is found here, before anything is built
        encoder_size(run.model), predictor_size(run.model)

    def init(self, rng: jax.Array) -> tuple[Params, Params]:
        """Fresh parameters with the published initialisation; the target starts as a copy of the encoder."""
        model, grid = self.run.model, self.run.grid
        encoder_rng, predictor_rng = jax.random.split(rng)
        ids = jnp.zeros((1, 2), jnp.int32)
        context = jnp.zeros((1, 2, encoder_size(model).embed_dim * predictor_levels(model)), jnp.float32)
        encoder = self.fresh_encoder(self.encoder, self.run, encoder_rng)
        predictor = rescale_blocks(self.predictor.init(predictor_rng, context, ids, ids, grid)["params"])
        return {"encoder": encoder, "predictor": predictor}, {"target": jax.tree.map(jnp.copy, encoder)}

    @staticmethod
    def fresh_encoder(encoder: Encoder, run: RunConfig, rng: jax.Array) -> Params:
        """Parameters of an encoder with the published initialisation."""
        values = encoder.model.tubelet_size * encoder.model.patch_size**2 * 3
        patches, ids = jnp.zeros((1, 2, values), jnp.float32), jnp.zeros((1, 2), jnp.int32)
        return rescale_blocks(encoder.init(rng, patches, run.grid, ids)["params"])

    def loss(self, params: Params, aux: Params, batch: Params, rng: jax.Array, step: jax.Array):
        """The regression loss on the normalised target features, averaged over mask groups.

        With further streams, (videos + sum of weight * stream) / (1 + sum of weights): with images of weight 1 the
        published average over ranks.
        """
        loss, metrics = self._stream_loss(params, aux, batch, rng, step, self.run.loss.context_weight)
        if streams := self.run.all_streams:
            metrics |= {"videos/loss": loss}
            for name, stream in streams.items():
                own = self.run.loss.context_weight if stream.context_weight is None else stream.context_weight
                value, values = self._stream_loss(params, aux, batch["streams"][name], rng, step, own)
                metrics |= {f"{name}/{key}": metric for key, metric in values.items()}
                loss = loss + stream.weight * value
            loss = loss / (1.0 + sum(stream.weight for stream in streams.values()))
        return loss, metrics | {"loss": loss}

    def _stream_loss(self, params, aux, batch, rng, step, context_weight: float):
        """Loss and metrics of one stream of clips."""
        grid = self._grid(batch["video"])
        groups = self.outputs(params, aux, batch).groups
        losses = [self.regression(g.prediction, g.target, g.target_valid) for g in groups]
        loss = jnp.mean(jnp.stack(losses))
        metrics = {f"loss/group{i}": value for i, value in enumerate(losses)}
        if context_weight:
            context = jnp.mean(jnp.stack([self._context_loss(g, grid) for g in groups]))
            weight = context_weight * self._context_ramp(step)
            metrics |= {"loss/target": loss, "loss/context": context, "context_weight": weight}
            loss = loss + weight * context
        terms = self._optional_terms(groups, rng, grid)
        metrics |= {f"loss/{name}": value for name, value in terms.items()}
        loss = loss + regularizers.weighted_sum(self.run.loss, terms)
        return loss, metrics | {"loss": loss}

    def _optional_terms(self, groups, rng, grid) -> dict[str, jax.Array]:
        """Every term that has a coefficient, averaged over mask groups."""
        of_groups = [
            regularizers.terms(
                self.run.loss,
                jax.random.fold_in(rng, i),
                grid,
                prediction_BMD=g.prediction,
                target_ids_BM=g.target_ids,
                target_valid_BM=g.target_valid,
                context_BCD=g.context,
                context_valid_BC=g.context_valid,
            )
            for i, g in enumerate(groups)
        ]
        return jax.tree.map(lambda *values: jnp.mean(jnp.stack(values)), *of_groups)

    def _context_loss(self, group: GroupOutputs, grid) -> jax.Array:
        """The loss on visible tokens, each divided by sqrt(distance to the nearest target) (2.1, section 3.1)."""
        weight_BC = None
        if self.run.loss.context_distance:
            distance_BC = distance_to_nearest(group.context_ids, group.target_ids, grid, group.target_valid)
            # padding repeats a token, which may lie on a target: no division by zero where nothing is counted
            weight_BC = jax.lax.rsqrt(jnp.maximum(distance_BC, 1.0))
        prediction, target = group.context_prediction, group.context_target
        return self.regression(prediction, target, group.context_valid, weight_BC)

    def regression(self, prediction, target, valid=None, weight=None) -> jax.Array:
        """The distance of `loss` between predictions and targets; also what the health's baselines are measured in."""
        loss = self.run.loss
        return latent_regression(prediction, target, valid, loss.exponent, weight, loss.smooth_l1)

    def _context_ramp(self, step: jax.Array) -> jax.Array:
        """0 until the first step of loss.context_warmup, 1 from the second on, linear between."""
        start, end = self.run.loss.context_warmup
        return jnp.clip((step - start) / max(end - start, 1), 0.0, 1.0) if end else jnp.float32(1.0)

    def outputs(self, params: Params, aux: Params, batch: Params) -> Outputs:
        """Predictions and targets of every mask group of one stream of clips."""
        patches_BNP, grid = self._patches(batch["video"])
        image = self._is_image(batch["video"])
        with jax.named_scope("target"):
            features_BND, targets_BNX = self._targets(aux, patches_BNP, grid, image)
        groups = self._groups(params, patches_BNP, targets_BNX, grid, batch["masks"], image)
        return Outputs(features_BND, targets_BNX, groups)

    def _targets(self, aux, patches_BNP, grid, image: bool) -> tuple[jax.Array, jax.Array]:
        """Outputs.features and Outputs.targets, without gradients."""
        features_BNX = self._encode_levels(aux["target"], patches_BNP, grid, image=image, encoder=self.target)
        levels = jnp.split(jax.lax.stop_gradient(features_BNX), predictor_levels(self.run.model), axis=-1)
        return levels[-1], jnp.concatenate([layer_norm(x_BND) for x_BND in levels], axis=-1)

    def _groups(self, params, patches_BNP, targets_BNX, grid, masks, image: bool) -> list[GroupOutputs]:
        """All mask groups in one pass: their tokens lie side by side, so that dense layers see one large batch, and
        attention keeps to each group. Where the mesh cuts sequences, one group after the other."""
        indexed = list(enumerate(masks))
        passes = [[one] for one in indexed] if cuts_sequences() else [indexed]
        return [group for some in passes for group in self._pass(params, patches_BNP, targets_BNX, grid, some, image)]

    def _pass(self, params, patches_BNP, targets_BNX, grid, indexed_masks, image: bool) -> list[GroupOutputs]:
        indices, masks = zip(*indexed_masks, strict=True)
        joined = lambda key: join_tokens([mask[key] for mask in masks]) if key in masks[0] else None
        context, target = joined("context"), joined("target")
        context_valid, target_valid = joined("context_valid"), joined("target_valid")
        contexts, targets = (tuple(mask[key].shape[1] for mask in masks) for key in ("context", "target"))
        with jax.named_scope("context"):
            kept_BCP = gather_tokens(patches_BNP, context)
            masked = context, context_valid, image, contexts
            z_BCX = self._encode_levels(params["encoder"], kept_BCP, grid, *masked, encoder=self.online)
        with jax.named_scope("predictor"):
            tokens = indices if self.run.model.predictor.mask_token_per_group else [0] * len(masks)
            prediction, context_prediction = self.online_predictor.apply(
                {"params": params["predictor"]},
                *(z_BCX, context, target, grid, 0, context_valid, target_valid, image),
                groups=tuple(zip(contexts, targets, tokens, strict=True)),
            )
        chosen = gather_tokens(targets_BNX, target)
        seen = None if context_prediction is None else gather_tokens(targets_BNX, context)
        of_context = {"context_ids": context, "context_valid": context_valid, "context": z_BCX}
        of_context |= {"context_prediction": context_prediction, "context_target": seen}
        of_targets = {"target_ids": target, "target_valid": target_valid, "prediction": prediction, "target": chosen}
        parts = {name: split_tokens(x, contexts) for name, x in of_context.items()}
        parts |= {name: split_tokens(x, targets) for name, x in of_targets.items()}
        return [GroupOutputs(**{name: part[i] for name, part in parts.items()}) for i in range(len(masks))]

    def after_update(self, params: Params, aux: Params, step: jax.Array) -> Params:
        """EMA of every encoder parameter, in float32, with the momentum of this step."""
        momentum = self.momentum(step)
        blend = lambda old, new: momentum * old + (1.0 - momentum) * new
        return {"target": jax.tree.map(blend, aux["target"], params["encoder"])}

    def momentum(self, step: jax.Array) -> jax.Array:
        """EMA momentum after update number `step` (from 0): linear from ema.start to ema.end over the run."""
        ema = self.run.ema
        return ema.start + (ema.end - ema.start) * jnp.minimum(step / self.run.schedule_steps, 1.0)

    def eval_params(self, params: Params, aux: Params) -> Params:
        """The target encoder, as the published evaluations use, and the predictor."""
        return {"encoder": aux["target"], "predictor": params["predictor"]}

    def features(self, params: Params, video_BTYXC: jax.Array, layers: tuple[int, ...] = ()) -> jax.Array:
        """Features of whole clips, any size that divides into tubelets: float32 [B, T', H', W', D].

        With `layers`, blocks from 0 and ending with the last, the outputs of each, [B, L, T', H', W', D].
        """
        patches_BNP, grid = self._patches(video_BTYXC)
        image, encoder = self._is_image(video_BTYXC), {"params": params["encoder"]}
        features = self.encoder.apply(encoder, patches_BNP, grid, image=image, layers=layers)
        leading = (video_BTYXC.shape[0], len(layers)) if layers else (video_BTYXC.shape[0],)
        return features.reshape(*leading, *grid, -1)

    def predict(
        self, params: Params, video_BTYXC: jax.Array, context_BC: jax.Array, target_BM: jax.Array, mask_index: int = 0
    ) -> jax.Array:
        """Predicted normalised features at `target_BM` from the tokens `context_BC`: float32 [B, M, L*D]."""
        patches_BNP, grid = self._patches(video_BTYXC)
        image = self._is_image(video_BTYXC)
        kept_BCP = gather_tokens(patches_BNP, context_BC)
        z_BCX = self._encode_levels(params["encoder"], kept_BCP, grid, context_BC, image=image)
        variables = {"params": params["predictor"]}
        return self.predictor.apply(variables, z_BCX, context_BC, target_BM, grid, mask_index, image=image)[0]

    def flops(self, budgets: list[tuple[int, int]], stream: RunConfig | None = None) -> dict[str, float]:
        """Analytic FLOPs of one training clip, by part.

        The target is one forward pass, everything else forward and backward (3 forwards). No recomputation is counted.

        Args:
          budgets: (context, target) tokens of each mask group.
          stream: one of run.stream_runs, whose clip it is; None: the main stream.
        """
        model, image = self.run.model, self._counts_as_image(stream)
        context = sum(encoder_flops(model, c, image) for c, _ in budgets)
        return {
            "target": encoder_flops(model, math.prod((stream or self.run).grid), image),
            "context": 3.0 * context,
            "predictor": 3.0 * sum(predictor_flops(model, c, m) for c, m in budgets),
        }

    def _counts_as_image(self, stream: RunConfig | None) -> bool:
        """Whether clips of a stream have the patches of single frames."""
        return self.run.model.image_tokenizer and (stream or self.run).data.num_frames == 1

    def _is_image(self, video_BTYXC) -> bool:
        return self.run.model.image_tokenizer and video_BTYXC.shape[1] == 1

    def _tubelet(self, video_BTYXC) -> int:
        return 1 if self._is_image(video_BTYXC) else self.run.model.tubelet_size

    def _grid(self, video_BTYXC):
        return token_grid(video_BTYXC.shape, self._tubelet(video_BTYXC), self.run.model.patch_size)

    def _patches(self, video_BTYXC):
        video = normalize(video_BTYXC, jnp.dtype(self.run.model.dtype))
        patches_BNP = patchify(video, self._tubelet(video_BTYXC), self.run.model.patch_size)
        return patches_BNP, self._grid(video_BTYXC)

    def _encode_levels(
        self, params, patches_BNP, grid, ids_BN=None, valid_BN=None, image=False, counts=(), encoder=None
    ):
        """What the predictor reads and predicts: all levels of the encoder (None: as evaluated), or the last one."""
        every_level = predictor_levels(self.run.model) > 1
        encoder = encoder or self.encoder
        return encoder.apply({"params": params}, patches_BNP, grid, ids_BN, valid_BN, image, every_level, counts)

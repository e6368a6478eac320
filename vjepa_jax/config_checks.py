"""What can be wrong with a configuration before a device or a file is touched."""

import dataclasses
import re
from typing import Any

from vjepa_jax.config_augment import validate_augment
from vjepa_jax.config_build import ConfigError, flatten, hint
from vjepa_jax.config_eval import validate_eval

RunConfig = Any  # config.RunConfig, which knows this module

_CHOICES = {
    "model.position": ("rope_tiled", "rope_interleaved", "sincos", "sincos2d"),
    "model.mlp": ("gelu", "swiglu"),
    "model.gelu": ("erf", "tanh"),
    "model.predictor.kind": ("joint", "cross"),
    "model.dtype": ("bfloat16", "float32"),
    "model.target_dtype": ("same", "float8"),
    "model.forward_dtype": ("same", "float8"),
    "model.attention": ("auto", "xla", "cudnn", "triton", "splash"),
    "model.remat": ("none", "dots", "full"),
    "masks.policy": ("uniform", "first_k"),
    "optim.schedule": ("constant", "cosine", "linear", "wsd"),
    "init.weights": ("target", "all"),
    "data.pictures": ("skip", "repeat"),
}
_RESERVED_NAMES = ("images", "videos", "loss", "grad_norm")  # of streams: what metrics are called
MASK_KINDS = ("multiblock", "separate", "cuboid", "tube", "frame", "random", "causal")


def validate(c: RunConfig) -> None:
    """Check everything that can be known without a device or a file. Raises ConfigError."""
    flat = flatten(dataclasses.asdict(c))
    for key, allowed in _CHOICES.items():
        if flat[key] not in allowed:
            raise ConfigError(f"{key}={flat[key]!r} is not one of {', '.join(allowed)}{hint(flat[key], allowed)}")
    for key in ("steps", "batch_size", "data.num_frames", "data.clips_per_video", "model.patch_size",
                "model.tubelet_size", "optim.accumulate", "checkpoint.every_steps", "checkpoint.keep_last",
                "log.every_steps", "log.health_every_steps", "masks.truncation_group",
                "model.predictor.depth", "model.predictor.num_mask_tokens"):  # fmt: skip
        if flat[key] < 1:
            raise ConfigError(f"{key}={flat[key]} must be at least 1")
    if c.log.images_every_steps < 0:
        raise ConfigError(f"log.images_every_steps={c.log.images_every_steps} must not be negative (0: no pictures)")
    _validate_sizes(c)
    _validate_sampling(c)
    _validate_augmentation(c)
    _validate_masks(c)
    _validate_loss(c)
    _validate_streams(c)
    validate_eval(c.eval)
    if c.init.optimizer and c.init.weights != "all":
        raise ConfigError("init.optimizer=True needs init.weights='all': the moments belong to the online encoder")
    if not 0.0 <= c.ema.start <= 1.0 or not 0.0 <= c.ema.end <= 1.0:
        raise ConfigError(f"ema.start={c.ema.start} and ema.end={c.ema.end} must lie in [0, 1]")
    if c.optim.warmup_steps + c.optim.decay_steps > c.steps:
        raise ConfigError(
            f"optim.warmup_steps={c.optim.warmup_steps} + optim.decay_steps={c.optim.decay_steps} "
            f"exceed steps={c.steps}"
        )
    if c.optim.horizon < 1.0:
        raise ConfigError(f"optim.horizon={c.optim.horizon} must be at least 1: schedules end with the run or after it")
    if c.optim.schedule == "wsd" and c.optim.decay_steps < 1:
        raise ConfigError("optim.schedule='wsd' needs optim.decay_steps >= 1")
    _validate_spikes(c)


def _validate_streams(c: RunConfig) -> None:
    if c.images is not None and (not c.model.image_tokenizer or c.images.data.num_frames != 1):
        raise ConfigError("images needs model.image_tokenizer=True and images.data.num_frames=1")
    for name in c.streams:
        if name in _RESERVED_NAMES or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ConfigError(
                f"streams.{name}: a name must be letters, digits, '_' and '-', and none of {', '.join(_RESERVED_NAMES)}"
            )
    for name, run in c.stream_runs.items():
        key, weight = name if name == "images" else f"streams.{name}", c.all_streams[name].weight
        if weight <= 0:
            raise ConfigError(f"{key}.weight={weight} must be positive: leave {key} out to train without it")
        try:
            validate(run)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error


def _validate_sizes(c: RunConfig) -> None:
    if c.data.num_frames % c.model.tubelet_size and not (c.model.image_tokenizer and c.data.num_frames == 1):
        raise ConfigError(
            f"data.num_frames={c.data.num_frames} is not divisible by model.tubelet_size={c.model.tubelet_size}: "
            f"use a multiple of {c.model.tubelet_size}"
        )
    for pixels in c.data.size:
        if pixels % c.model.patch_size:
            raise ConfigError(
                f"data.resolution={c.data.resolution} is not divisible by model.patch_size={c.model.patch_size}: "
                f"use a multiple of {c.model.patch_size}"
            )
    if c.batch_size % c.optim.accumulate:
        raise ConfigError(f"batch_size={c.batch_size} is not divisible by optim.accumulate={c.optim.accumulate}")
    if c.data.fps <= 0 or (c.data.frame_step is not None and c.data.frame_step < 1):
        raise ConfigError(f"data.fps={c.data.fps} and data.frame_step={c.data.frame_step} must be positive")
    if c.model.predictor.kind == "cross" and c.model.predictor.predict_context:
        raise ConfigError(
            "model.predictor.predict_context needs model.predictor.kind='joint': cross leaves it as it is"
        )
    if c.model.predictor.embed_dim % c.model.predictor.num_heads:
        raise ConfigError(
            f"model.predictor.embed_dim={c.model.predictor.embed_dim} is not divisible by "
            f"model.predictor.num_heads={c.model.predictor.num_heads}"
        )


def _validate_sampling(c: RunConfig) -> None:
    data = c.data
    if data.weights and len(data.weights) != len(data.paths):
        raise ConfigError(f"data.weights has {len(data.weights)} entries, data.path names {len(data.paths)} sources")
    if data.cluster_mix and not data.cluster_weights:
        raise ConfigError("data.cluster_mix needs data.cluster_weights, a CSV file with the counts of every target set")
    if any(weight <= 0 for weight in data.cluster_mix):
        raise ConfigError(f"data.cluster_mix={data.cluster_mix} must be positive: remove target sets that do not count")
    if data.no_repeat_window < 0:
        raise ConfigError(f"data.no_repeat_window={data.no_repeat_window} must not be negative: 0 is no window")


def _validate_augmentation(c: RunConfig) -> None:
    low, high = c.data.random_resize_scale
    if not 0.0 < low <= high <= 1.0:
        raise ConfigError(f"data.random_resize_scale={(low, high)} must be (least, most) with 0 < least <= most <= 1")
    low, high = c.data.random_resize_aspect
    if not 0.0 < low <= high:
        raise ConfigError(f"data.random_resize_aspect={(low, high)} must be (least, most) with 0 < least <= most")
    validate_augment(c.data.augment)


def _validate_masks(c: RunConfig) -> None:
    if not c.masks.groups:
        raise ConfigError("masks.groups is empty: a clip needs at least one mask group")
    tokens = c.grid[0] * c.grid[1] * c.grid[2]
    for i, group in enumerate(c.masks.groups):
        name = f"masks.groups[{i}]"
        if group.kind not in MASK_KINDS:
            raise ConfigError(
                f"{name}.kind={group.kind!r} is not one of {', '.join(MASK_KINDS)}{hint(group.kind, MASK_KINDS)}"
            )
        if group.kind == "separate" and c.masks.policy != "uniform":
            raise ConfigError(f"{name}.kind='separate' needs masks.policy='uniform'")
        if group.unit not in ("tokens", "pixels"):
            raise ConfigError(f"{name}.unit={group.unit!r} is not one of tokens, pixels")
        if not 0.0 < group.ratio < 1.0:
            raise ConfigError(f"{name}.ratio={group.ratio} must lie strictly between 0 and 1")
        if (group.context or 0) + (group.target or 0) > tokens and c.masks.policy == "uniform":
            raise ConfigError(
                f"{name}: budgets context={group.context} + target={group.target} exceed the {tokens} tokens "
                "of a clip: lower one of them"
            )


def _validate_loss(c: RunConfig) -> None:
    if c.loss.context_weight < 0:
        raise ConfigError(f"loss.context_weight={c.loss.context_weight} must not be negative")
    if c.loss.context_weight and not c.model.predictor.predict_context:
        raise ConfigError("loss.context_weight needs model.predictor.predict_context=True, which predicts the context")
    _validate_regularizers(c)
    start, end = c.loss.context_warmup
    if not 0 <= start <= end:
        raise ConfigError(f"loss.context_warmup={(start, end)} must be (first, last) step with 0 <= first <= last")
    if list(c.model.levels) != sorted(set(c.model.levels)) or min(c.model.levels, default=0) < 0:
        raise ConfigError(f"model.levels={c.model.levels} must be ascending block numbers from 0")


def _validate_spikes(c: RunConfig) -> None:
    o = c.optim
    if o.skip_spikes is None:
        return
    if o.skip_spikes <= 0:
        raise ConfigError(f"optim.skip_spikes={o.skip_spikes} must be positive: leave it out to skip no step")
    if o.spike_window < 2:
        raise ConfigError(f"optim.spike_window={o.spike_window} must be at least 2 losses")
    if not 0 <= o.spike_after < c.steps:
        raise ConfigError(
            f"optim.spike_after={o.spike_after} must lie in [0, steps={c.steps}), else optim.skip_spikes never acts"
        )


def _validate_regularizers(c: RunConfig) -> None:
    """Coefficients of ops/regularizers.py. Smoothness is best served by constant features, so something must hold
    against these: a target that moves slowly, or a term that is large for them (the covariance of constants is 0)."""
    for name in ("spatial_coherence", "temporal_smoothness", "variance", "covariance", "sigreg"):
        if getattr(c.loss, name) < 0:
            raise ConfigError(f"loss.{name}={getattr(c.loss, name)} must not be negative")
    # With a momentum of 0 throughout, the target is the online encoder itself, one step behind.
    is_online = c.ema.start == c.ema.end == 0.0
    for name in ("spatial_coherence", "temporal_smoothness"):
        if getattr(c.loss, name) and is_online and not (c.loss.variance or c.loss.sigreg):
            raise ConfigError(
                f"loss.{name}={getattr(c.loss, name)} with ema.start=ema.end=0 leads to constant features: "
                "set loss.variance or loss.sigreg, or a momentum of the target"
            )

"""Run configuration: frozen dataclasses, built once and strictly from a config file.

Configs are written as flat `ml_collections` files under experiments/. `from_config_dict` turns one into a `RunConfig`;
from there on nothing in the library sees a ConfigDict. An unknown key, a missing key, a wrong type or a size that does
not divide raises `ConfigError` with one line that names the key and says what to do.

This module imports nothing heavy, so that data workers may import it without jax.
"""

import contextlib
import dataclasses
import json
import re
import zlib
from dataclasses import dataclass, field
from typing import Any

from vjepa_jax.config_augment import AugmentConfig as AugmentConfig
from vjepa_jax.config_augment import RandAugment as RandAugment
from vjepa_jax.config_build import ConfigError as ConfigError
from vjepa_jax.config_build import build, flatten
from vjepa_jax.config_checks import validate
from vjepa_jax.config_eval import EvalConfig as EvalConfig


@dataclass(frozen=True)
class PredictorConfig:
    """The predictor: a narrow ViT over context tokens and mask tokens (arXiv 2506.09985, section 2).

    kind:
      joint  self-attention over context and mask tokens together (published)
      cross  mask tokens attend to the context tokens, which stay as they are (fewer FLOPs)
    """

    kind: str = "joint"
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_mask_tokens: int = 2  # released V-JEPA 2 weights hold 10
    mask_token_per_group: bool = True  # False: every mask group shares token 0, as the released code does
    predict_context: bool = False  # V-JEPA 2.1: a second output for the context tokens (loss.context_weight)
    last_level_only: bool = False  # reads and predicts only the last of model.levels (the distilled models of 2.1)
    out_dim: int | None = None  # channels to predict; None: those of the encoder's features (else of a teacher's)


@dataclass(frozen=True)
class ModelConfig:
    """The encoder by name (models/variants.py), with optional overrides of its size.

    What differs within the V-JEPA family is data here: `position`, `rope_grid`, `levels` and `image_tokenizer` make the
    model of V-JEPA 1, 2 or 2.1.
    """

    variant: str = "vit_small"
    patch_size: int = 16
    tubelet_size: int = 2
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    position: str = "rope_tiled"  # rope_tiled (V-JEPA 2), rope_interleaved (2.1), sincos (V-JEPA 1), sincos2d (I-JEPA)
    rope_grid: int | None = None  # V-JEPA 2.1: the encoder's rows and columns are scaled to so many; None: not scaled
    levels: tuple[int, ...] = ()  # V-JEPA 2.1: blocks, from 0, whose outputs are features; (): the last one
    image_tokenizer: bool = False  # V-JEPA 2.1: own patches for single frames, learned embeddings for each modality
    cls_token: bool = False  # a learned token before the others; it carries no position
    registers: int = 0  # learned tokens after the others (arXiv 2309.16588)
    mlp: str = "gelu"  # gelu, or swiglu: fc3(silu(fc1 x) * fc2 x), two thirds as wide
    gelu: str = "erf"  # erf (published) or tanh (faster)
    dtype: str = "bfloat16"  # of matrix products; parameters, LayerNorm, softmax and loss stay float32
    target_dtype: str = "same"  # of products in the target or teacher: same as dtype, or float8 (H100 and later)
    forward_dtype: str = "same"  # of products in trained layers' forward passes: same, or float8; not of gradients
    attention: str = "auto"  # auto, xla, cudnn, triton, splash
    unroll: int = 1  # blocks per iteration of the layer scan; 0: no scan, faster on a GPU, compiles three times as long
    remat: str = "none"  # none, dots (keep results of matrix products and attention), full (keep block inputs only)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)


@dataclass(frozen=True)
class MaskGroupConfig:
    """One mask group: every clip is predicted once per group.

    kind:
      multiblock  union of `num_blocks` boxes is the target, the rest is context (V-JEPA 1 and 2)
      separate    each of `num_blocks` boxes is predicted on its own; context is one box of `context_scale` of the frame
                  without them (I-JEPA). The target budget is that of one box
      cuboid      contiguous boxes of size `block` = (frames, height, width) in `unit`s, added until `ratio` is masked
      tube        a random spatial mask of `ratio`, the same at all times (VideoMAE)
      frame       whole time steps, `ratio` of them, are the target
      random      `ratio` of the tokens, independent (MAE-ST)
      causal      the first (1 - ratio) of the time steps are context, all later ones are target
    """

    kind: str = "multiblock"
    num_blocks: int = 8
    spatial_scale: tuple[float, float] = (0.15, 0.15)
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    max_temporal_keep: float = 1.0  # context only from the first part of the clip, as a share of the time steps
    block: tuple[int, int, int] = (4, 16, 16)
    unit: str = "tokens"  # of `block`: tokens, or pixels (frames, pixels, pixels)
    ratio: float = 0.75
    context: int | None = None  # token budgets; None: chosen from 256 simulated draws (masking.budgets)
    target: int | None = None


@dataclass(frozen=True)
class MaskConfig:
    """Mask groups and what happens to the tokens beyond the static budgets.

    policy:
      uniform  surplus tokens dropped at random; a draw with too few is redrawn (no padding)
      first_k  the released code's truncation: the first K ids, K the minimum over `truncation_group` samples. Shorter
               rows are padded, and the batch carries `context_valid` and `target_valid`
    """

    groups: tuple[MaskGroupConfig, ...] = (
        MaskGroupConfig(num_blocks=8, spatial_scale=(0.15, 0.15)),
        MaskGroupConfig(num_blocks=2, spatial_scale=(0.7, 0.7)),
    )
    policy: str = "uniform"
    truncation_group: int = 24


@dataclass(frozen=True)
class DataConfig:
    """Videos and how clips are cut from them.

    path is a folder of videos, a CSV manifest or an ArrayRecord file; several are separated by commas and mixed by
    `weights` (equal if empty). Frames are spaced by `fps`, or by `frame_step` of the video's own frames where given.

    Clusters of a source are mixed by cluster_weights=FILE, a CSV with columns `cluster,weight`; or, with cluster_mix,
    `cluster` and for each target set how many of its videos lie there: w_c = sum_d w_d N_dc / N_d.
    """

    path: str
    weights: tuple[float, ...] = ()
    cluster_weights: str = ""  # "": every video of a source is drawn as often
    cluster_mix: tuple[float, ...] = ()  # w_d, weights of target sets
    no_repeat_window: int = 0  # no video twice in so many draws from its source; 0: epochs, free at their borders
    num_frames: int = 16
    fps: float = 4.0
    frame_step: int | None = None
    clips_per_video: int = 1
    resolution: int | tuple[int, int] = 256  # pixels, square or (height, width)
    random_resize_scale: tuple[float, float] = (0.3, 1.0)  # area of the crop box
    random_resize_aspect: tuple[float, float] = (0.75, 1.35)  # width / height of the crop box
    hflip: bool = True
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    split: str = ""  # keep only manifest rows with this value in their `split` column
    pictures: str = "skip"  # in folders, for clips of several frames: skip, or repeat (the frame); single frames: taken
    num_workers: int = 0  # worker processes; 0 decodes in threads of this process
    num_threads: int = 2  # decoding threads of this process when num_workers is 0
    buffer_size: int = 2  # batches prepared ahead (per worker)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a clip in pixels."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def paths(self) -> tuple[str, ...]:
        """The sources named by `path`."""
        return tuple(p.strip() for p in self.path.split(",") if p.strip())


@dataclass(frozen=True)
class StreamConfig:
    """A further stream of clips in every step, whose loss is the mean over streams by weight (1 for the main one)."""

    batch_size: int
    data: DataConfig
    masks: MaskConfig = field(default_factory=MaskConfig)
    weight: float = 1.0
    context_weight: float | None = None  # None: loss.context_weight


@dataclass(frozen=True)
class ImagesConfig(StreamConfig):
    """The stream of single images (V-JEPA 2.1), with data.num_frames=1; in folders, of pictures and videos."""

    masks: MaskConfig = field(
        default_factory=lambda: MaskConfig(groups=(MaskGroupConfig(num_blocks=10, spatial_scale=(0.15, 0.15)),))
    )


@dataclass(frozen=True)
class LossConfig:
    """Latent regression: mean |prediction - target|^exponent / exponent, averaged over the mask groups.

    V-JEPA 2.1 (arXiv 2603.14482) adds `context_weight` times the same on the context tokens, each divided by the square
    root of its distance on the grid to the nearest target token; the weight is 0 until the first step of
    `context_warmup` and whole from the second on.
    """

    exponent: float = 1.0
    smooth_l1: bool = False  # I-JEPA: squared below an error of 1, linear above, in place of the power
    context_weight: float = 0.0
    context_warmup: tuple[int, int] = (0, 0)
    context_distance: bool = True  # False: all context tokens weigh the same (the published cooldown)
    # Coefficients of optional terms (ops/regularizers.py); smoothness asks for an EMA target or an anti-collapse term
    spatial_coherence: float = 0.0  # predictions of neighbouring tokens
    temporal_smoothness: float = 0.0  # predictions of successive tubelets at one place
    variance: float = 0.0  # VICReg: std of the context features below 1
    covariance: float = 0.0  # VICReg: correlated channels
    sigreg: float = 0.0  # LeJEPA: distance to an isotropic normal distribution


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules. Steps count optimiser updates."""

    lr: float = 5.25e-4
    start_lr: float = 1e-4
    final_lr: float = 1e-6
    warmup_steps: int = 0
    schedule: str = "constant"  # after warm-up: constant, cosine, linear, wsd (constant, then linear over decay_steps)
    decay_steps: int = 0
    horizon: float = 1.0  # schedules, those of weight decay and EMA too, span so many times `steps` and are cut off
    weight_decay: float = 0.04
    final_weight_decay: float | None = None  # None: constant; else a cosine from weight_decay
    # regexes over parameter names; every parameter must match exactly one of the two lists
    no_decay: tuple[str, ...] = (r"bias$", r"scale$")
    decay: tuple[str, ...] = (r"kernel$", r"_tokens$", r"modality_embed$")
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None  # of the global gradient
    accumulate: int = 1  # micro-batches per update
    # V-JEPA 2.1: a step whose loss exceeds the mean of the last accepted ones by so many of their std is skipped
    skip_spikes: float | None = None  # None: never
    spike_window: int = 300  # accepted losses remembered; half of them must be there before a step is skipped
    spike_after: int = 15_300  # steps before the first that may be skipped (released: after epoch 50 of 300 steps)


@dataclass(frozen=True)
class EmaConfig:
    """Momentum of the target encoder, ramped linearly from `start` to `end` over the run."""

    start: float = 0.99925
    end: float = 0.99925


@dataclass(frozen=True)
class InitConfig:
    """What a run takes from the one it starts from (`init_from`); its step counter and schedules start anew.

    weights:
      target  the target encoder, as encoder and as target, and the predictor: what evaluations of that run read
      all     encoder, target encoder and predictor, each as it is (the published cooldown; every stage after the first)
    """

    weights: str = "target"
    optimizer: bool = False  # also Adam's moments and their step count (the published cooldown)
    stage: str = ""  # folder beside this run's to start from; a ladder of stages sets it


@dataclass(frozen=True)
class TeacherConfig:
    """A frozen encoder whose features are predicted in place of those of the EMA encoder (objective "distill")."""

    model: ModelConfig
    path: str = ""  # a run folder, an official checkpoint or a Hugging Face folder


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 (at most one axis) takes what is left. Slices lie along replica, then fsdp."""

    replica: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 1000
    keep_last: int = 2
    keep_every_steps: int | None = None  # these are never deleted


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 10
    health_every_steps: int = 100
    images_every_steps: int = 1000  # pictures of masks and features; 0: none
    report: bool = True  # write report.html at the end
    stuck_after: float = 900.0  # seconds without progress until all stacks are written down; 0: never


@dataclass(frozen=True)
class RunConfig:
    """Everything one training run needs."""

    steps: int
    batch_size: int  # clips a step, over all devices and hosts
    data: DataConfig
    seed: int = 0
    objective: str = "vjepa2"
    init_from: str = ""  # a run folder, official .pt or Hugging Face folder to start from
    init: InitConfig = field(default_factory=InitConfig)
    stages: tuple[dict, ...] = ()  # a ladder: {"name": "64f", "data.num_frames": 64, ...}, ... (config_stages.py)
    model: ModelConfig = field(default_factory=ModelConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    images: ImagesConfig | None = None
    streams: dict[str, StreamConfig] = field(default_factory=dict)  # by name, say of 64 frames beside 16
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    teacher: TeacherConfig | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width of a clip."""
        height, width = self.data.size
        p, frames = self.model.patch_size, self.data.num_frames
        steps = frames if self.model.image_tokenizer and frames == 1 else frames // self.model.tubelet_size
        return steps, height // p, width // p

    @property
    def schedule_steps(self) -> float:
        """Steps over which the schedules are laid out (the published `ipe_scale`)."""
        return self.steps * self.optim.horizon

    @property
    def all_streams(self) -> dict[str, StreamConfig]:
        """The streams beside the main one by name, sorted; that of images is "images"."""
        return dict(sorted((self.streams | ({"images": self.images} if self.images else {})).items()))

    @property
    def stream_runs(self) -> dict[str, "RunConfig"]:
        """For each of `all_streams` the run that would train on it alone."""
        runs = {}
        for name, stream in self.all_streams.items():
            seed = self.seed + (1 if name == "images" else zlib.crc32(name.encode()))
            own = {"data": stream.data, "masks": stream.masks, "batch_size": stream.batch_size, "seed": seed}
            runs[name] = dataclasses.replace(self, **own, images=None, streams={})
        return runs


# Keys that may differ when a run is continued in its folder: they change neither the numbers nor the data order.
RESUMABLE_KEYS = ("data.num_workers", "data.num_threads", "data.buffer_size", "mesh", "checkpoint", "log", "eval")


def from_config_dict(config: Any) -> RunConfig:
    """Build and validate a RunConfig from an ml_collections.ConfigDict or a plain nested dict.

    Raises:
      ConfigError: an unknown, missing or ill-typed key, sizes that do not fit together, or `stages`, which
        config_stages.expand takes apart.
    """
    raw = plain_dict(config)
    if raw.get("stages"):
        raise ConfigError("the config is a ladder of stages, and one run is wanted: give the config of a single stage")
    run = build(RunConfig, raw)
    validate(run)
    return run


def plain_dict(config: Any) -> dict[str, Any]:
    """An ml_collections.ConfigDict or nested dict as a dict of its own."""
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON-able data; `from_config_dict` reads it back unchanged."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Lines 'key: saved -> current' for keys that may not change when a run is continued."""
    with contextlib.suppress(ConfigError):  # keys that are newer than the run get their defaults
        saved = to_dict(from_config_dict(saved))
    a, b = flatten(saved), flatten(current)
    missing = "(absent)"
    return [
        f"{key}: {a.get(key, missing)} -> {b.get(key, missing)}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, missing) != b.get(key, missing)
        and not any(key == k or key.startswith(k + ".") for k in RESUMABLE_KEYS)
        and re.sub(r"^(images|streams\.[^.]+)\.", "", key) not in RESUMABLE_KEYS
    ]

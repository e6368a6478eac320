"""Fine-tuning of the whole encoder by VideoMAE's recipe (arXiv 2203.12602, run_class_finetuning of its repository).

The mean token, a LayerNorm, dropout and a linear layer on top; AdamW with a learning rate that falls by `layer_decay`
from block to block towards the input; mixup or cutmix, smoothed labels, repeated augmentation, stochastic depth. The
last weights are reported: nothing is chosen on the test videos. Softmax is averaged over clips and crops.

Stochastic depth drops a block for a whole micro-batch, as it was published (arXiv 1603.09382); VideoMAE draws for every
clip. Raw pixels have no weights and are left out.

Shape suffixes: B clips, C classes, D embedding, L blocks.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines import labelled, pipeline
from vjepa_jax.config import AugmentConfig, ConfigError, ModelConfig
from vjepa_jax.config_augment import validate_augment
from vjepa_jax.evals.clips import training_clips
from vjepa_jax.evals.scores import OnScore, Score, mean_interval, score
from vjepa_jax.models.variants import encoder_flops
from vjepa_jax.ops.losses import layer_norm
from vjepa_jax.ops.patches import normalize
from vjepa_jax.training.optim import parameter_name

METRIC = "top-1, fine-tuned"
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of UCF101; `lr` is for 256 clips and scales with the batch."""

    path: str = ""  # manifest with the columns path, label and split; one of the official splits
    name: str = ""  # of the benchmark in scores; "": that of the manifest's folder
    train: str = "train"
    test: str = "test"
    frames: int = 16
    frame_step: int = 4
    resolution: int = 224
    clips: int = 5  # of a test video
    views: int = 3  # crops of each
    epochs: int = 100
    warmup_epochs: float = 5.0
    batch_size: int = 128  # videos
    copies: int = 2  # clips of a video in a batch, augmented each on its own
    micro_batch: int = 0  # clips of one backward pass; 0: all of a batch
    lr: float = 5e-4
    final_lr: float = 1e-6  # of 256 clips too
    layer_decay: float = 0.7
    weight_decay: float = 0.05
    fc_drop: float = 0.5
    drop_path: float = 0.2  # of the last block; rising linearly from 0 of the first
    mixup: float = 0.8  # parameter of the beta distribution; 0: none
    cutmix: float = 1.0
    smoothing: float = 0.1
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    hflip: bool = True  # not for Something-Something
    rand_augment: str = "rand-m7-n4-mstd0.5-inc1"
    erase_prob: float = 0.25
    test_batch: int = 8  # videos
    seeds: int = 1
    num_workers: int = 0
    num_threads: int = 2


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """Accuracy of every encoder that has weights; random init is training from scratch by the same recipe.

    Raises:
      ConfigError, DataError: settings or data that cannot be used.
    """
    check(cfg)
    source, labels = labelled.open_labelled(cfg.path, cfg.train)
    test_labels = labelled.open_labelled(cfg.path, cfg.test)[1]
    classes = int(max(labels.max(), test_labels.max())) + 1
    scores = []
    for name, group in encoders.items():
        if not all(hasattr(encoder, "objective") for encoder in group):
            continue
        right = []
        for seed in range(cfg.seeds):
            tuned = train(group[seed % len(group)], cfg, source, classes, seed)
            right.append(_right(tuned, cfg))
        counts = ", ".join(str(int(r.sum())) for r in right)
        benchmark = cfg.name or PurePath(cfg.path).parent.name or PurePath(cfg.path).stem
        row = score(
            *(benchmark, METRIC, name, [100.0 * float(r.mean()) for r in right]),
            count=len(right[0]),
            interval=mean_interval(right[0], scale=100.0) if len(right) == 1 else None,
            chance=100.0 / len(np.unique(labels)),
            note=f"right: {counts} of {len(right[0])}; last weights; {cfg.path}",
        )
        scores.append(row)
        if on_score:
            on_score(row)
    if not scores:
        raise ConfigError(f"nothing to fine-tune: none of {', '.join(encoders)} has weights")
    return scores


def check(cfg: Config) -> None:
    """Raises ConfigError for settings that cannot be run."""
    if not cfg.path:
        raise ConfigError(
            "finetune.path is empty: give a manifest with the columns path,label,split (splits "
            f"{cfg.train} and {cfg.test}), e.g. --config.finetune.path=ucf101/split1.csv"
        )
    for key in ("frames", "frame_step", "clips", "views", "epochs", "batch_size", "copies", "test_batch", "seeds"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"finetune.{key}={getattr(cfg, key)} must be at least 1")
    total = cfg.batch_size * cfg.copies
    if cfg.micro_batch and total % cfg.micro_batch:
        raise ConfigError(f"finetune: {total} clips a batch are not divisible by micro_batch={cfg.micro_batch}")
    for key in ("fc_drop", "drop_path", "smoothing"):
        if not 0.0 <= getattr(cfg, key) < 1.0:
            raise ConfigError(f"finetune.{key}={getattr(cfg, key)} must lie in [0, 1)")
    if not 0.0 < cfg.layer_decay <= 1.0:
        raise ConfigError(f"finetune.layer_decay={cfg.layer_decay} must lie in (0, 1], e.g. 0.7")
    validate_augment(AugmentConfig(rand_augment=cfg.rand_augment, erase_prob=cfg.erase_prob))


# -------------------------------------------------------------------------------------------------------------- model


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A fine-tuned model: {"encoder", "norm", "head"}."""

    objective: Any
    params: Params

    def probabilities(self, video: Any) -> jax.Array:
        """Softmax of clips uint8 [B, T, H, W, 3], float32 [B, C]."""
        return _probabilities(self.objective.features, self.params, video)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(features, params, video):
    return jax.nn.softmax(_logits(features, params, video))


def _logits(features, params, video, keep_BD=None):
    """Logits of clips; keep_BD: what dropout leaves of the pooled features, scaled, or None."""
    tokens = features({"encoder": params["encoder"]}, video)
    x_BD = layer_norm(tokens.mean((1, 2, 3))) * params["norm"]["scale"] + params["norm"]["bias"]
    x_BD = x_BD if keep_BD is None else x_BD * keep_BD
    return x_BD @ params["head"]["kernel"] + params["head"]["bias"]


def fresh(encoder: Any, classes: int, seed: int) -> Params:
    """The encoder's weights with a new head, which starts near zero (VideoMAE: init_scale 0.001)."""
    weights = jax.tree.map(jnp.array, encoder.params["encoder"])
    dim = jax.eval_shape(encoder.objective.features, {"encoder": weights}, _one_clip(encoder)).shape[-1]
    kernel = 0.02 * 1e-3 * jax.random.truncated_normal(jax.random.key(seed), -2.0, 2.0, (dim, classes))
    return {
        "encoder": weights,
        "norm": {"scale": jnp.ones(dim), "bias": jnp.zeros(dim)},
        "head": {"kernel": kernel, "bias": jnp.zeros(classes)},
    }


def _one_clip(encoder: Any) -> jax.ShapeDtypeStruct:
    data = encoder.run.data
    return jax.ShapeDtypeStruct((1, max(data.num_frames, encoder.run.model.tubelet_size), *data.size, 3), jnp.uint8)


def drop_blocks(encoder: Params, keep_L: jax.Array) -> Params:
    """The encoder with the branches of every block scaled by keep_L: 0 drops a block, 1 / (1 - rate) keeps it."""
    blocks = dict(encoder["blocks"])
    last = "fc3" if "fc3" in blocks else "fc2"
    for name in ("proj", last):
        scale = lambda leaf: leaf * keep_L.reshape(-1, *[1] * (leaf.ndim - 1))
        blocks[name] = jax.tree.map(scale, blocks[name])
    return {**encoder, "blocks": blocks}


def rate_scales(params: Params, decay: float) -> Params:
    """What the learning rate of every parameter is multiplied by: 1 for the head and the norms after the last block,
    decay^(L - i) for block i of L, decay^(L + 1) for what comes before the first."""
    depth = jax.tree.leaves(params["encoder"]["blocks"])[0].shape[0]

    def scale(path, leaf):
        name = parameter_name(path)
        if name.startswith("encoder/blocks/"):
            return decay ** (depth - np.arange(depth, dtype=np.float32)).reshape(-1, *[1] * (leaf.ndim - 1))
        return np.float32(1.0 if name.startswith(("head/", "norm/", "encoder/norm")) else decay ** (depth + 1))

    return jax.tree_util.tree_map_with_path(scale, params)


# ----------------------------------------------------------------------------------------------------------- training


def train(encoder: Any, cfg: Config, source: Any, classes: int, seed: int) -> Tuned:
    """A copy of the encoder, fine-tuned on the videos of a source."""
    params, rng = fresh(encoder, classes, seed), np.random.default_rng([seed, 2])
    scales = rate_scales(params, cfg.layer_decay)
    steps, per_epoch = len(source) * cfg.epochs // cfg.batch_size, len(source) / cfg.batch_size
    state = _adam.init(params)
    for step, batch in enumerate(_training(cfg, source, seed)):
        video = batch["video"].reshape(-1, *batch["video"].shape[2:])
        labels = np.repeat(batch["label"], cfg.copies)
        total, size = None, cfg.micro_batch or len(video)
        for start in range(0, len(video), size):
            part = slice(start, start + size)
            weight_YX, share = mixing(rng, video.shape[2:4], cfg.mixup, cfg.cutmix)
            targets_BC = soft_labels(labels[part], share, classes, cfg.smoothing)
            noise = _noise(rng, cfg, params, size)
            grads = _gradients(encoder.objective.features, params, video[part], targets_BC, weight_YX, *noise)
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        lr = np.float32(learning_rate(cfg, step, steps, per_epoch))
        factor = np.float32(size / len(video))
        params, state = _apply(params, state, total, scales, factor, lr, np.float32(cfg.weight_decay))
    return Tuned(encoder.objective, params)


def learning_rate(cfg: Config, step: int, steps: int, per_epoch: float) -> float:
    """Of update `step` (from 0): linear from 0 over the warm-up, then a cosine to final_lr."""
    scale = cfg.batch_size * cfg.copies / 256
    warm = cfg.warmup_epochs * per_epoch
    if step < warm:
        return scale * cfg.lr * step / warm
    progress = (step - warm) / max(steps - warm, 1.0)
    return scale * (cfg.final_lr + (cfg.lr - cfg.final_lr) * 0.5 * (1.0 + float(np.cos(np.pi * progress))))


def mixing(rng: np.random.Generator, size: tuple[int, int], mixup: float, cutmix: float) -> tuple[np.ndarray, float]:
    """How a batch is mixed with itself in reverse: the share of the clip in every pixel, float32 [Y, X], and in the
    label. mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) are as likely, where both are asked for.
    """
    height, width = size
    ones = np.ones(size, np.float32)
    if not mixup and not cutmix:
        return ones, 1.0
    cuts = bool(cutmix) and (not mixup or rng.random() < 0.5)
    share = float(rng.beta(cutmix, cutmix) if cuts else rng.beta(mixup, mixup))
    if not cuts:
        return ones * np.float32(share), share
    half = np.sqrt(1.0 - share) / 2
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(y - int(height * half), 0), min(y + int(height * half), height)
    left, right = max(x - int(width * half), 0), min(x + int(width * half), width)
    ones[top:bottom, left:right] = 0.0
    return ones, float(ones.mean())


def soft_labels(labels_B: np.ndarray, share: float, classes: int, smoothing: float) -> np.ndarray:
    """Smoothed labels of a batch that is mixed with itself in reverse, float32 [B, C]."""
    one_BC = np.full((len(labels_B), classes), smoothing / classes, np.float32)
    one_BC[np.arange(len(labels_B)), labels_B] += 1.0 - smoothing
    return share * one_BC + (1.0 - share) * one_BC[::-1]


def _noise(rng: np.random.Generator, cfg: Config, params: Params, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What stochastic depth and dropout keep, scaled: float32 [L] and [B, D]."""
    depth = jax.tree.leaves(params["encoder"]["blocks"])[0].shape[0]
    dim = params["norm"]["bias"].shape[0]
    rates_L = cfg.drop_path * np.arange(depth) / max(depth - 1, 1)
    keep_L = (rng.random(depth) >= rates_L) / (1.0 - rates_L)
    keep_BD = (rng.random((size, dim)) >= cfg.fc_drop) / (1.0 - cfg.fc_drop)
    return keep_L.astype(np.float32), keep_BD.astype(np.float32)


_adam = optax.scale_by_adam(b1=0.9, b2=0.999)


@functools.partial(jax.jit, static_argnums=0)
def _gradients(features, params, video, targets_BC, weight_YX, keep_L, keep_BD):
    def loss(params):
        clip = normalize(video)
        clip = weight_YX[..., None] * clip + (1.0 - weight_YX[..., None]) * clip[::-1]
        dropped = {**params, "encoder": drop_blocks(params["encoder"], keep_L)}
        return optax.softmax_cross_entropy(_logits(features, dropped, clip, keep_BD), targets_BC).mean()

    return jax.grad(loss)(params)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _apply(params, state, grads, scales, factor, lr, weight_decay):
    """AdamW; biases and norms are not decayed."""
    updates, state = _adam.update(jax.tree.map(lambda g: factor * g, grads), state)

    def step(path, p, u, scale):
        decayed = weight_decay * p if parameter_name(path).endswith("kernel") else 0.0
        return p - lr * scale * (u + decayed)

    return jax.tree_util.tree_map_with_path(step, params, updates, scales), state


# ---------------------------------------------------------------------------------------------------------------- data


def _training(cfg: Config, source: Any, seed: int) -> Iterator[dict[str, np.ndarray]]:
    clips = training_clips(cfg, split=cfg.train, frame_step=cfg.frame_step, hflip=cfg.hflip)
    rows = range(len(source))
    options = {"batch_size": cfg.batch_size, "epochs": cfg.epochs, "seed": seed, "copies": cfg.copies}
    return labelled.training_batches(source, clips, rows=rows, **options)


def _right(tuned: Tuned, cfg: Config) -> np.ndarray:
    """Which test videos are right, bool [M]; one that cannot be decoded is wrong."""
    batches = pipeline.eval_batches(
        cfg.path,
        split=cfg.test,
        num_frames=cfg.frames,
        frame_step=cfg.frame_step,
        size=(cfg.resolution, cfg.resolution),
        batch_size=cfg.test_batch,
        segments=cfg.clips,
        views=cfg.views,
        num_workers=cfg.num_workers,
        num_threads=cfg.num_threads,
    )
    right = []
    for batch in batches:
        real = (batch["index"] >= 0) | (batch["substituted"] > 0)
        video = batch["video"].reshape(-1, *batch["video"].shape[-4:])
        each = np.asarray(tuned.probabilities(video)).reshape(cfg.test_batch, cfg.clips * cfg.views, -1)
        right.append((each.mean(1).argmax(-1) == batch["label"])[real])
    return np.concatenate(right)


# ---------------------------------------------------------------------------------------------------------------- cost


def flops(cfg: Config, model: ModelConfig, train: int, test: int) -> float:
    """FLOPs of fine-tuning one encoder with one seed: 3 forward passes a training clip, 1 a test view."""
    tokens = cfg.frames // model.tubelet_size * (cfg.resolution // model.patch_size) ** 2
    clips = 3.0 * cfg.epochs * cfg.copies * train + cfg.clips * cfg.views * test
    return clips * encoder_flops(model, tokens)

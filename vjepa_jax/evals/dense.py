"""Linear probes of dense prediction on frozen features: semantic segmentation (ADE20K) and monocular depth (NYUv2), or
both on scenes of the embedded world, whose ground truth is exact.

A picture fills one tubelet of a video encoder; an encoder that has an image tokenizer sees it as an image. A head is a
linear layer on the tokens, whose map is stretched bilinearly to the labels; heads with every learning rate and weight
decay are trained at once. V-JEPA 2.1 (arXiv 2603.14482, whose code for this is not released) says: rates and decays,
512 pixels for ADE20K, a learned BatchNorm for depth and none for segmentation. What it does not say is as in the code
of DINOv2 and DINOv3: steps, batch, cuts, windows, bins and loss of depth. Theirs has more that is left out here:
dropout of channels, changes of colour, rotations by up to 2.5 degrees.

The published number is that of the head that is best on the validation set. Beside it stands the head that is best on
held-out training pictures.

Shape suffixes: G heads, B pictures of a batch, M pictures that are scored, V windows, h, w rows and columns of tokens.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import dense as folders
from vjepa_jax.config import ConfigError, ModelConfig
from vjepa_jax.evals import dense_data
from vjepa_jax.evals.dense_data import Data
from vjepa_jax.evals.dense_reader import Reader, judged
from vjepa_jax.evals.dense_tasks import best
from vjepa_jax.evals.groups import group_bootstrap, held_out_rows
from vjepa_jax.evals.heads import Heads, Setting
from vjepa_jax.evals.scores import OnScore, Score, score
from vjepa_jax.evals.vos import at_size
from vjepa_jax.evals.worlds import Clip, clip_of
from vjepa_jax.models.variants import encoder_flops, encoder_size

BEST, CHOSEN = "best head on validation", "head chosen on held-out"
FRAMES, NORMS = ("tubelet", "clip"), ("none", "batch")


@dataclasses.dataclass(frozen=True)
class Config:
    """What both tasks share; the defaults are those of segmentation.

    frames: what a picture fills of a video encoder's clip: a tubelet, or the clip of its training, whose time steps are
      averaged. layers: blocks whose outputs lie side by side, from 0 and ending with the last; (): the features.
    interpolate: rows and columns are counted as in a clip of the trained size, instead of on beyond it.
    norm: batch: BatchNorm without a scale of its own, as the heads have one each.
    size: of a training cut, in pixels. shorter: pictures are resized to it, times a factor of `scale` in training; 0:
      not. whole: a picture that is scored is resized to it and seen at once; (0, 0): in windows of `size`, `stride`
      apart. mirrored: it is averaged with what its mirror image gives.
    together: pictures whose pixels share a loss, as those of one device in the released code.
    held_out: share of the training pictures that choose a head. worlds: scenes of the embedded world to train on and to
      score; world_size: their height and width, 0: as the encoder was trained.
    heads_at_once, micro_batch: that a device computes together; 0: all.
    """

    data: str = "ade20k"
    path: str = ""
    name: str = "ade20k"
    train: str = "training"
    test: str = "validation"
    frames: str = "tubelet"
    layers: tuple[int, ...] = ()
    interpolate: bool = False
    norm: str = "none"
    size: tuple[int, int] = (512, 512)
    shorter: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    hflip: bool = True
    whole: tuple[int, int] = (0, 0)
    stride: int = 341
    mirrored: bool = False
    steps: int = 40_000
    batch_size: int = 16
    together: int = 2
    lrs: tuple[float, ...] = (1.5e-3, 8e-4, 5e-4, 8e-5)
    weight_decays: tuple[float, ...] = (0.1, 0.01, 1e-4)
    warmup_steps: int = 1500
    held_out: float = 0.1
    worlds: tuple[int, int] = (512, 256)
    world_size: int = 0
    seeds: int = 1
    encode_batch: int = 16
    heads_at_once: int = 0
    micro_batch: int = 0
    num_workers: int = 0
    num_threads: int = 2


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(Config):
    """A folder as ADE20K's (data_pipelines.dense.SEGMENTATION_LAYOUT), or data="world"."""

    classes: int = 150


@dataclasses.dataclass(frozen=True)
class DepthConfig(Config):
    """A folder as NYU Depth v2's (data_pipelines.dense.DEPTH_LAYOUT), or data="world".

    depth: least and most, in metres. bins, upsample: models.dense_head.DepthMap. factor: units of a depth file in a
    metre. eigen_crop: depth counts only in the crop of 480 x 640 pixels that published numbers are of.
    """

    data: str = "nyuv2"
    name: str = "nyuv2"
    train: str = "nyu_train.txt"
    test: str = "nyu_test.txt"
    norm: str = "batch"
    size: tuple[int, int] = (416, 544)
    shorter: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    whole: tuple[int, int] = (480, 640)
    mirrored: bool = True
    steps: int = 38_400
    lrs: tuple[float, ...] = (1.5e-3, 1e-3, 8e-4, 3e-4, 1e-4, 8e-5, 3e-5)
    weight_decays: tuple[float, ...] = (1e-3, 1e-4)
    depth: tuple[float, float] = (1e-3, 10.0)
    bins: int = 256
    upsample: int = 4
    factor: float = 1000.0
    eigen_crop: bool = True


def run(
    encoders: Mapping[str, Sequence[Any]], cfg: SegmentationConfig | DepthConfig, on_score: OnScore | None = None
) -> list[Score]:
    """The metrics of every encoder by the best head on validation and by the one that held-out chooses, and those of
    the most frequent class or the mean depth everywhere. Seed s takes encoder s modulo their number.

    Raises:
      ConfigError, DataError: wrong settings, a wrong layout.
    """
    clip = clip_of(encoders, _group(cfg), least_steps=1)
    check(cfg, clip)
    if cfg.data == "world":
        size = (cfg.world_size, cfg.world_size) if cfg.world_size else clip.size
        data = dense_data.world_data(size, cfg, isinstance(cfg, DepthConfig))
    else:
        data = dense_data.folder_data(cfg)
    if len(data.groups) < 2 * cfg.together:
        raise ConfigError(
            f"{_group(cfg)} has {len(data.groups)} training pictures, it needs {2 * cfg.together} or more"
        )
    sized = at_size(encoders, cfg, _group(cfg))
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sized}
    for seed in range(cfg.seeds):
        readers = {name: Reader(group[seed % len(group)], cfg, clip) for name, group in sized.items()}
        found, guess = _one_seed(readers, cfg, data, seed)
        for name, outcome in found.items():
            outcomes[name].append(outcome)
    chance = data.task.values(guess)
    scores = [row for name, seeds in outcomes.items() for row in _scores(name, seeds, cfg, data, chance)]
    scores += _rows(data, data.task.chance, [guess], "", chance, "the same for every picture, of the training labels")
    for row in scores:
        if on_score:
            on_score(row)
    return scores


# --------------------------------------------------------------------------------------------------------- training


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One encoder, one seed: what the task keeps of every picture by every head, [G, M, ...], and the chosen head."""

    kept: np.ndarray
    chosen: int
    settings: list[Setting]


def _one_seed(
    readers: Mapping[str, Reader], cfg: Config, data: Data, seed: int
) -> tuple[dict[str, Outcome], np.ndarray]:
    """All encoders on the same batches; beside their outcomes what the task keeps of a guess without pictures."""
    keeps_out = held_out_rows(data.groups, cfg.held_out, seed)
    settings = [Setting(lr, wd, warmup_steps=cfg.warmup_steps) for lr in cfg.lrs for wd in cfg.weight_decays]
    model, task = data.task.model(), data.task
    # first the heads that choose, which do not see the held-out pictures, then those that are reported
    options = (settings * 2, cfg.steps, seed, cfg.heads_at_once, cfg.micro_batch, task.loss)
    heads = {name: Heads(model, *options) for name in readers}
    counts: Any = 0
    order = dense_data.order_of(keeps_out, cfg.together, cfg.steps * cfg.batch_size, seed)
    for batch in data.training(order, seed):
        items = lambda array: array.reshape(-1, cfg.together, *array.shape[1:])
        counts = counts + task.count(batch["label"])
        weight_GB = np.ones((2 * len(settings), cfg.batch_size // cfg.together), np.float32)
        weight_GB[: len(settings)] = ~items(keeps_out[batch["index"]]).any(1)
        for name, own in heads.items():
            own.train(items(readers[name](batch["image"], training=True)), items(batch["label"]), weight_GB)
    rows = np.flatnonzero(keeps_out)
    held = judged(readers, heads, data.rows(rows), data, slice(0, len(settings)), cfg.encode_batch)
    found = judged(readers, heads, data.test(), data, slice(len(settings), None), cfg.encode_batch)
    chosen = {name: best(task, [task.values(kept)[0] for kept in own]) for name, own in held.items()}
    guess = [task.judge(p["label"], task.guess(counts, p["label"].shape)[None])[0] for p in data.test()]
    return {name: Outcome(found[name], chosen[name], settings) for name in readers}, np.stack(guess)


# ----------------------------------------------------------------------------------------------------------- scores


def _scores(name: str, found: Sequence[Outcome], cfg: Config, data: Data, chance: Sequence[float]) -> Iterator[Score]:
    """Rows of one encoder by the best and by the chosen head of every seed."""
    for how in (BEST, CHOSEN):
        heads = [o.chosen for o in found]
        if how == BEST:
            heads = [best(data.task, [data.task.values(kept)[0] for kept in o.kept]) for o in found]
        settings = ", ".join(dict.fromkeys(str(o.settings[head]) for head, o in zip(heads, found, strict=True)))
        notes = [settings, f"{cfg.steps} steps of {cfg.batch_size}, norm {cfg.norm}"]
        notes += [f"layers {cfg.layers}"] if cfg.layers else []
        notes += ["positions interpolated"] if cfg.interpolate else []
        kept = [o.kept[head] for head, o in zip(heads, found, strict=True)]
        yield from _rows(data, name, kept, f", {how}", chance, "; ".join(notes))


def _rows(
    data: Data, name: str, kept: Sequence[np.ndarray], how: str, chance: Sequence[float], note: str
) -> Iterator[Score]:
    """A score a metric. Seeds give the interval, of one seed the pictures do, those of a scene together."""
    values = np.array([data.task.values(own) for own in kept])
    for i, metric in enumerate(data.task.metrics):
        interval = None
        if len(kept) == 1:
            drawn = lambda rows, i=i, scale=metric.scale: scale * data.task.values(kept[0][rows])[i]
            interval = group_bootstrap(drawn, data.test_groups, resamples=200)
        yield score(
            *(data.name, metric.name + how, name),
            (metric.scale * values[:, i]).tolist(),
            count=len(kept[0]),
            interval=interval,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            chance=metric.scale * chance[i],
            note=note,
        )


# ----------------------------------------------------------------------------------------------------------- checks


def _group(cfg: Config) -> str:
    return "depth" if isinstance(cfg, DepthConfig) else "segmentation"


def check(cfg: SegmentationConfig | DepthConfig, clip: Clip) -> None:
    """Raises ConfigError for settings that cannot be run."""
    group, known = _group(cfg), "nyuv2" if isinstance(cfg, DepthConfig) else "ade20k"
    for key, choices in (("data", (known, "world")), ("frames", FRAMES), ("norm", NORMS)):
        if getattr(cfg, key) not in choices:
            raise ConfigError(f"{group}.{key}={getattr(cfg, key)!r} is not one of {', '.join(choices)}")
    if cfg.data != "world" and not cfg.path:
        layout = folders.DEPTH_LAYOUT if known == "nyuv2" else folders.SEGMENTATION_LAYOUT
        fields = {key: getattr(cfg, key, None) for key in ("factor", "classes")}
        raise ConfigError(
            f"{group}.path is empty: give a folder with {layout.format(path='PATH', file=cfg.train, **fields)}"
        )
    for key in ("steps", "batch_size", "together", "seeds", "encode_batch", "stride"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"{group}.{key}={getattr(cfg, key)} must be at least 1")
    if cfg.batch_size % cfg.together or (cfg.micro_batch and cfg.batch_size // cfg.together % cfg.micro_batch):
        raise ConfigError(
            f"{group}.batch_size={cfg.batch_size} must be a multiple of together={cfg.together}, and their quotient "
            f"of micro_batch={cfg.micro_batch}"
        )
    if not 0.0 < cfg.held_out < 1.0 or not cfg.lrs or not cfg.weight_decays:
        raise ConfigError(f"{group}: held_out must lie between 0 and 1, and lrs and weight_decays hold a value")
    sizes = {"world_size": (cfg.world_size,)} if cfg.data == "world" else {"size": cfg.size, "whole": cfg.whole}
    for key, size in sizes.items():
        if any(n % clip.patch for n in size):
            raise ConfigError(f"{group}.{key}={getattr(cfg, key)} must be a multiple of the model's patch {clip.patch}")
    if cfg.data == "world" and min(cfg.worlds) < 2:
        raise ConfigError(f"{group}.worlds={cfg.worlds} must hold at least two scenes each")
    if cfg.data != "world" and not any(cfg.whole) and cfg.shorter < min(cfg.size):
        raise ConfigError(
            f"{group}.shorter={cfg.shorter} is less than a window of size={cfg.size}: raise it, or set whole"
        )


def flops(cfg: SegmentationConfig | DepthConfig, model: ModelConfig, train: int, test: int) -> float:
    """FLOPs of the whole protocol for one encoder and one seed without controls, 2 a multiply-add.

    The encoder sees every cut once, every held-out and scored picture in its windows (two each of a picture of the
    usual 4:3 shape where there are windows); a head, twice the grid of them, costs 3 forwards in training.
    """
    tokens = lambda size: size[0] // model.patch_size * (size[1] // model.patch_size)
    whole, windows = (cfg.whole, 1 + cfg.mirrored) if any(cfg.whole) else (cfg.size, 2 * (1 + cfg.mirrored))
    cuts, scored = cfg.steps * cfg.batch_size, windows * (cfg.held_out * train + test)
    encode = lambda size: encoder_flops(model, tokens(size), model.image_tokenizer)
    channels = cfg.bins if isinstance(cfg, DepthConfig) else cfg.classes
    head = 2.0 * encoder_size(model).embed_dim * max(1, len(cfg.layers)) * channels
    heads = 2 * len(cfg.lrs) * len(cfg.weight_decays)
    probed = 3.0 * cuts * tokens(cfg.size) + scored * tokens(whole)
    return cuts * encode(cfg.size) + scored * encode(whole) + heads * head * probed

"""The frozen attentive probe of V-JEPA 2 (vjepa2 evals/video_classification_frozen, arXiv 2506.09985 section 4).

Every head of a grid of learning rates and weight decays is trained on the same features of freshly cut and augmented
clips, which are never kept. A video is S segments, encoded each on its own; all their tokens, of several blocks of the
encoder where `layers` names some, are one sequence for the probe. At test time the softmax is averaged over V crops.

The published number is the best head on the test videos, which choose it: an optimistic one. Beside it stands the head
that held-out training videos choose.

Shape suffixes: G heads, B videos, S segments, V views, N tokens, D embedding, C classes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import ml_dtypes
import numpy as np

from data_pipelines import labelled, pipeline
from data_pipelines.sources import Source
from vjepa_jax.config import AugmentConfig, ConfigError, DataConfig, ModelConfig
from vjepa_jax.config_augment import validate_augment
from vjepa_jax.config_build import hint
from vjepa_jax.evals import controls
from vjepa_jax.evals.attentive import PUBLISHED_LRS, PUBLISHED_WEIGHT_DECAYS
from vjepa_jax.evals.features import held_out
from vjepa_jax.evals.heads import Heads, Setting
from vjepa_jax.evals.scores import OnScore, Score, mean_interval, score
from vjepa_jax.evals.sequences import Control, Reader
from vjepa_jax.models.probe import AttentiveClassifier
from vjepa_jax.models.variants import ViTSize, encoder_flops, encoder_size

BEST, CHOSEN = "top-1, best head on test", "top-1, head chosen on held-out"
CONTROLS: dict[str, Callable[[Any], Any]] = {
    "single frame": controls.single_frame,
    "shuffled frames": controls.shuffled_frames,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of Something-Something v2; other data sets differ in a few (experiments/evals)."""

    path: str = ""  # manifest with the columns path, label and split, or a folder with a subfolder a class
    test_path: str = ""  # "": the split `test` of `path`
    name: str = ""  # of the benchmark in scores; "": that of the manifest's folder
    train: str = "train"
    test: str = "test"
    frames: int = 16
    frame_step: int = 4
    resolution: int = 256
    segments: int = 2  # of training and test videos alike
    views: int = 3  # crops of a test video
    layers: tuple[int, ...] = ()  # blocks of the encoder, from 0 and ending with the last; (): the features alone
    epochs: int = 20
    batch_size: int = 256
    lrs: tuple[float, ...] = PUBLISHED_LRS
    weight_decays: tuple[float, ...] = PUBLISHED_WEIGHT_DECAYS
    start_lr: float = 0.0  # of a warm-up over warmup_epochs
    warmup_epochs: float = 0.0
    extra_heads: tuple[tuple[float, float, float], ...] = ()  # (lr, weight decay, final weight decay), no warm-up
    depth: int = 4  # self-attention blocks + 1
    num_heads: int = 16
    mlp_ratio: float = 4.0
    dtype: str = "bfloat16"  # of matrix products of the heads
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    hflip: bool = False  # no data set is flipped
    rand_augment: str = "rand-m7-n4-mstd0.5-inc1"
    erase_prob: float = 0.25
    standardize: int = 0  # training batches that give each channel's mean and deviation; 0: features as they are
    held_out: float = 0.1  # share of the training videos that choose a head
    retrain: bool = True  # reported heads see the held-out videos too: twice the heads. False: no head sees them
    cache: bool = False  # cheap mode: middle clips without augmentation, encoded once. Not the published protocol
    cache_gib: float = 16.0  # that it may take
    seeds: int = 1
    controls: tuple[str, ...] = ("single frame", "shuffled frames")
    encode_batch: int = 64  # clips of one call of the encoder
    heads_at_once: int = 0  # heads that a device computes together; 0: all of its own
    micro_batch: int = 0  # videos of one backward pass of the heads; 0: the whole batch
    num_workers: int = 0
    num_threads: int = 2


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """Accuracy of every encoder by the best head on test and by the head that held-out videos choose.

    Args:
      encoders: as evals.controls.encoders gives them; of several for a name, seed s takes number s modulo their count.

    Returns:
      Two scores an encoder and control. "note" names the heads, the exact count of each seed, the data and the mode.

    Raises:
      ConfigError, DataError: settings or data that cannot be used.
    """
    check(cfg)
    data = _open(cfg)
    named = {name: list(group) for name, group in encoders.items()}
    for control in cfg.controls:
        named[control] = [Control(CONTROLS[control], encoder) for encoder in named[controls.TRAINED]]
    outcomes: dict[str, list[_Outcome]] = {name: [] for name in named}
    for seed in range(cfg.seeds):
        chosen = {name: group[seed % len(group)] for name, group in named.items()}
        for name, outcome in _one_seed(chosen, cfg, data, seed).items():
            outcomes[name].append(outcome)
    scores = [row for name, runs in outcomes.items() for row in _scores(name, runs, cfg, data)]
    for row in scores:
        if on_score:
            on_score(row)
    return scores


# ------------------------------------------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class _Data:
    """Training videos with their labels, and the labels of the test videos."""

    source: Source
    labels: np.ndarray
    test_labels: np.ndarray

    @property
    def num_classes(self) -> int:
        return int(max(self.labels.max(), self.test_labels.max())) + 1


def check(cfg: Config) -> None:
    """Raises ConfigError for settings that cannot be run."""
    if not cfg.path:
        raise ConfigError(
            "classification.path is empty: give a manifest with the columns path,label,split (splits "
            f"{cfg.train} and {cfg.test}), e.g. --config.classification.path=ssv2/manifest.csv"
        )
    for name in cfg.controls:
        if name not in CONTROLS:
            raise ConfigError(
                f"classification.controls: {name!r} is not one of {', '.join(CONTROLS)}{hint(name, CONTROLS)}"
            )
    if not 0.0 < cfg.held_out < 1.0:
        raise ConfigError(f"classification.held_out={cfg.held_out} must lie between 0 and 1, e.g. 0.1")
    for key in ("frames", "frame_step", "segments", "views", "epochs", "batch_size", "depth", "seeds", "encode_batch"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"classification.{key}={getattr(cfg, key)} must be at least 1")
    if cfg.micro_batch and cfg.batch_size % cfg.micro_batch:
        raise ConfigError(
            f"classification.batch_size={cfg.batch_size} is not divisible by micro_batch={cfg.micro_batch}"
        )
    if not head_settings(cfg, 1):
        raise ConfigError("classification has no head: give lrs and weight_decays, or extra_heads")
    validate_augment(AugmentConfig(rand_augment=cfg.rand_augment, erase_prob=cfg.erase_prob))


def _open(cfg: Config) -> _Data:
    source, labels = labelled.open_labelled(cfg.path, cfg.train)
    test_source, test_labels = labelled.open_labelled(*_test(cfg))
    names, test_names = source.class_names, test_source.class_names
    if names and test_names and names != test_names:
        odd = sorted(set(names) ^ set(test_names))[:3]
        raise ConfigError(
            f"{cfg.path} and {_test(cfg)[0]} have different classes ({', '.join(odd)}, ...), so that a label means two "
            "things: put both into one manifest with a `split` column"
        )
    if len(np.unique(labels)) < 2:
        raise ConfigError(f"the training videos of {cfg.path} have one class only: nothing is to be learnt")
    return _Data(source, labels, test_labels)


def _test(cfg: Config) -> tuple[str, str]:
    """Path and split of the test videos."""
    return cfg.test_path or cfg.path, cfg.test


def _training(cfg: Config, data: _Data, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Freshly cut and augmented training videos, "video" uint8 [B, S, T, H, W, 3]."""
    clips = DataConfig(
        path=cfg.path,
        split=cfg.train,
        num_frames=cfg.frames,
        frame_step=cfg.frame_step,
        clips_per_video=cfg.segments,
        resolution=cfg.resolution,
        random_resize_scale=cfg.crop_scale,
        random_resize_aspect=cfg.crop_aspect,
        hflip=cfg.hflip,
        augment=AugmentConfig(rand_augment=cfg.rand_augment, erase_prob=cfg.erase_prob),
        num_workers=cfg.num_workers,
        num_threads=cfg.num_threads,
    )
    everything = range(len(data.labels))
    return labelled.training_batches(
        data.source, clips, rows=everything, batch_size=cfg.batch_size, epochs=cfg.epochs, seed=seed
    )


def _middle(cfg: Config, path: str, split: str, views: int, rows: Sequence[int] | None = None, batch: int = 0):
    """Videos in order, the middle clip of every segment, "video" uint8 [B, S, V, T, H, W, 3]."""
    batch = batch or max(1, cfg.encode_batch // (cfg.segments * views))
    batches = pipeline.eval_batches(
        path,
        split=split,
        num_frames=cfg.frames,
        frame_step=cfg.frame_step,
        size=(cfg.resolution, cfg.resolution),
        batch_size=batch,
        segments=cfg.segments,
        views=views,
        num_workers=cfg.num_workers,
        num_threads=cfg.num_threads,
        rows=rows,
        pictures=True,
    )
    for found in batches:
        video = found["video"]
        yield found | {"video": video.reshape(batch, cfg.segments, views, *video.shape[-4:])}


# --------------------------------------------------------------------------------------------------------- training


def head_settings(cfg: Config, steps_per_epoch: int) -> list[Setting]:
    """A setting a head: the grid, then the extra ones."""
    warm = round(cfg.warmup_epochs * steps_per_epoch)
    grid = [Setting(lr, wd, cfg.start_lr, warm) for lr in cfg.lrs for wd in cfg.weight_decays]
    return grid + [Setting(lr, wd, final_weight_decay=final) for lr, wd, final in cfg.extra_heads]


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """One encoder, one seed: which test videos every head has right, and what the held-out videos chose."""

    right_GM: np.ndarray
    chosen: int
    settings: list[Setting]


def _one_seed(encoders: Mapping[str, Any], cfg: Config, data: _Data, seed: int) -> dict[str, _Outcome]:
    """All encoders on the same batches, so that every video is decoded once."""
    keeps_out = held_out(data.labels, np.random.default_rng(seed), cfg.held_out)
    steps = len(data.labels) * cfg.epochs // cfg.batch_size
    settings = head_settings(cfg, max(len(data.labels) // cfg.batch_size, 1))
    model = AttentiveClassifier(
        data.num_classes, cfg.num_heads, cfg.depth, cfg.mlp_ratio, dtype=jax.numpy.dtype(cfg.dtype)
    )
    copies = 2 if cfg.retrain else 1  # first the heads that choose, then those that are reported
    make = lambda: Heads(model, settings * copies, steps, seed, cfg.heads_at_once, cfg.micro_batch)
    heads = {name: make() for name in encoders}
    reader = Reader(encoders, cfg.layers, cfg.dtype, cfg.encode_batch)
    if cfg.standardize:
        reader.fit(itertools.islice(_training(cfg, data, seed), cfg.standardize))
    if cfg.cache:
        batches = _cached_batches(_cache(reader, cfg, data), cfg, seed)
    else:
        batches = _streamed(reader, cfg, data, seed)
    for rows, tokens in batches:
        weight_GB = np.ones((len(settings) * copies, len(rows)), np.float32)
        weight_GB[: len(settings)] = ~keeps_out[rows]
        for name, own in heads.items():
            own.train(tokens(name), data.labels[rows], weight_GB)

    chooses, reported = slice(0, len(settings)), slice(len(settings) * (copies - 1), None)
    rows = np.flatnonzero(keeps_out)
    on_held_out = _right(reader, heads, _middle(cfg, cfg.path, cfg.train, 1, rows))
    on_test = _right(reader, heads, _middle(cfg, *_test(cfg), cfg.views))
    return {
        name: _Outcome(on_test[name][reported], int(on_held_out[name][chooses].sum(1).argmax()), settings)
        for name in encoders
    }


def _streamed(reader: Reader, cfg: Config, data: _Data, seed: int):
    """Rows of every batch and a function from an encoder's name to its tokens."""
    for batch in _training(cfg, data, seed):
        yield batch["index"], functools.partial(reader, video=batch["video"])


def _right(reader: Reader, heads: Mapping[str, Heads], batches) -> dict[str, np.ndarray]:
    """Which videos every head has right, bool [G, M], its softmax averaged over views; an undecodable one is wrong."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in heads}
    for batch in batches:
        real = (batch["index"] >= 0) | (batch["substituted"] > 0)
        video, labels = batch["video"], np.asarray(batch["label"])
        for name, own in heads.items():
            views = [own.probabilities(reader(name, video[:, :, v])) for v in range(video.shape[2])]
            classes_GB = np.asarray(sum(views)).argmax(-1)
            found[name].append((classes_GB == labels)[:, real])
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


@dataclasses.dataclass(frozen=True)
class _Cache:
    """Tokens of training videos by encoder, bfloat16 [M, N, D], and their rows, int [M], without undecodable ones."""

    tokens: dict[str, np.ndarray]
    rows: np.ndarray


def _cache(reader: Reader, cfg: Config, data: _Data) -> _Cache:
    """The middle clips of all training videos, encoded once."""
    kept, rows = {name: [] for name in reader.encoders}, []
    for batch in _middle(cfg, cfg.path, cfg.train, 1):
        real = batch["index"] >= 0
        rows.append(batch["index"][real])
        for name, parts in kept.items():
            parts.append(np.asarray(reader(name, batch["video"][:, :, 0])[real]).astype(ml_dtypes.bfloat16))
        if len(rows) == 1:
            _check_memory(cfg, len(data.labels), sum(parts[0][:1].nbytes for parts in kept.values()))
    return _Cache({name: np.concatenate(parts) for name, parts in kept.items()}, np.concatenate(rows))


def _check_memory(cfg: Config, videos: int, size: int) -> None:
    need = videos * size / 2**30
    if need > cfg.cache_gib:
        raise ConfigError(
            f"classification.cache would take {need:.1f} GiB for all encoders and controls, more than "
            f"cache_gib={cfg.cache_gib:g}: raise it, lower segments or controls, or leave cache=False"
        )


def _cached_batches(cached: _Cache, cfg: Config, seed: int):
    rng = np.random.default_rng([seed, 1])
    order = np.concatenate([rng.permutation(len(cached.rows)) for _ in range(cfg.epochs)])
    if len(order) < cfg.batch_size:
        raise ConfigError(
            f"{len(order)} training videos are fewer than classification.batch_size={cfg.batch_size}: lower it"
        )
    for start in range(0, len(order) - cfg.batch_size + 1, cfg.batch_size):
        places = order[start : start + cfg.batch_size]
        yield cached.rows[places], lambda name, at=places: jax.numpy.asarray(cached.tokens[name][at], cfg.dtype)


def _scores(name: str, runs: Sequence[_Outcome], cfg: Config, data: _Data) -> Iterator[Score]:
    """The two rows of an encoder: seeds give the interval, of one seed the test videos do."""
    benchmark = cfg.name or PurePath(cfg.path).parent.name or PurePath(cfg.path).stem
    for metric in (BEST, CHOSEN):
        picked = [int(o.right_GM.sum(1).argmax()) if metric == BEST else o.chosen for o in runs]
        right = [o.right_GM[head] for o, head in zip(runs, picked, strict=True)]
        how = ", ".join(dict.fromkeys(str(o.settings[head]) for o, head in zip(runs, picked, strict=True)))
        counts = ", ".join(str(int(r.sum())) for r in right)
        notes = [f"{how}; right: {counts} of {len(right[0])}; {cfg.path}"]
        notes += ["heads did not see the held-out videos"] if not cfg.retrain else []
        notes += ["features standardised"] if cfg.standardize else []
        notes += ["cheap mode: training clips encoded once, without augmentation"] if cfg.cache else []
        yield score(
            *(benchmark, metric + (", cached features" if cfg.cache else ""), name),
            [100.0 * float(r.mean()) for r in right],
            count=len(right[0]),
            interval=mean_interval(right[0], scale=100.0) if len(runs) == 1 else None,
            chance=100.0 / len(np.unique(data.labels)),
            note="; ".join(notes),
        )


# ------------------------------------------------------------------------------------------------------------- cost


def flops(cfg: Config, model: ModelConfig, train: int, test: int) -> float:
    """FLOPs of the whole protocol for one encoder and one seed without controls, 2 a multiply-add.

    The encoder sees every clip once (forward), every head every training video (3 forwards) and every test view.
    """
    grid = cfg.frames // model.tubelet_size * (cfg.resolution // model.patch_size) ** 2
    own = cfg.segments * grid * max(1, len(cfg.layers))
    heads = len(head_settings(cfg, 1)) * (2 if cfg.retrain else 1)
    chooses = cfg.held_out * train
    encoded = cfg.segments * ((1 if cfg.cache else cfg.epochs) * train + chooses + cfg.views * test)
    probed = 3.0 * cfg.epochs * train + chooses + cfg.views * test
    return encoded * encoder_flops(model, grid) + heads * probed * head_flops(cfg, encoder_size(model).embed_dim, own)


def head_flops(cfg: Config, dim: int, tokens: int) -> float:
    """FLOPs of one forward pass of a head; the cross-attention is that of models.probe.CrossAttentionBlock."""
    blocks = ViTSize(dim, cfg.depth - 1, cfg.num_heads, int(dim * cfg.mlp_ratio)).forward_flops(tokens)
    return blocks + 4.0 * tokens * dim * cfg.num_heads

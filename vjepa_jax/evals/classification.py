"""The frozen attentive probe of V-JEPA 2 (vjepa2 evals/video_classification_frozen, arXiv 2506.09985 section 4).

Every head of a grid of learning rates and weight decays is trained on the same features of freshly cut and augmented
clips, which are never kept. A video is S segments, encoded each on its own; all their tokens, of several blocks of the
encoder where `layers` names some, are one sequence for the probe. At test time the softmax is averaged over V crops.

The published number is the best head on the test videos, which choose it: an optimistic one. Beside it stands the head
that held-out training videos choose. With `folds`, a small set is cross-validated over whole groups of videos (scenes),
of which the held-out videos are taken too: a head is chosen in each fold, and intervals resample groups.

Shape suffixes: G heads, B videos, S segments, V views, N tokens, D embedding, C classes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import numpy as np

from vjepa_jax.config import AugmentConfig, ConfigError, ModelConfig
from vjepa_jax.config_augment import validate_augment
from vjepa_jax.config_build import hint
from vjepa_jax.evals import controls, token_cache
from vjepa_jax.evals.attentive import PUBLISHED_LRS, PUBLISHED_WEIGHT_DECAYS
from vjepa_jax.evals.classification_data import (
    Data,
    fitted,
    middle,
    open_folds,
    open_splits,
    test_of,
    train_of,
    training,
)
from vjepa_jax.evals.features import held_out
from vjepa_jax.evals.groups import group_bootstrap, hold_out_groups
from vjepa_jax.evals.heads import Heads, Setting
from vjepa_jax.evals.scores import OnScore, Score, mean_interval, score
from vjepa_jax.evals.sequences import Control, Reader
from vjepa_jax.evals.token_cache import TokenCache
from vjepa_jax.models.probe import AttentiveClassifier
from vjepa_jax.models.variants import ViTSize, encoder_flops, encoder_size

BEST, CHOSEN = "top-1, best head on test", "top-1, head chosen on held-out"


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of Something-Something v2; other data sets differ in a few (experiments/evals)."""

    path: str = ""  # manifest with the columns path, label and split, or a folder with a subfolder a class
    test_path: str = ""  # "": the split `test` of `path`
    name: str = ""  # of the benchmark in scores; "": that of the manifest's folder
    train: str = "train"
    test: str = "test"
    folds: int = 0  # of whole groups (column scene or group) of `test`, or of all videos if there are no splits
    frames: int = 16  # 0: as the trained encoder's clips
    frame_step: int = 4
    seconds: float = 0.0  # that a clip spans, at any frame rate; 0: frame_step
    resolution: int = 256  # 0: the trained encoder's
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
    controls: tuple[str, ...] = tuple(controls.FRAMES)
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
    cfg = fitted(cfg, encoders)
    parts = open_folds(cfg) if cfg.folds else [open_splits(cfg)]
    named = {name: list(group) for name, group in encoders.items()}
    for control in cfg.controls:
        named[control] = [Control(controls.FRAMES[control], encoder) for encoder in named[controls.TRAINED]]
    outcomes: dict[str, list[_Outcome]] = {name: [] for name in named}
    for seed in range(cfg.seeds):
        chosen = {name: group[seed % len(group)] for name, group in named.items()}
        cached = _encoded_once(chosen, cfg, parts) if cfg.cache else None
        folds = [_one_seed(chosen, cfg, data, seed, cached) for data in parts]
        for name in named:
            outcomes[name].append(_joined([fold[name] for fold in folds]))
    scores = [row for name, runs in outcomes.items() for row in _scores(name, runs, cfg, parts)]
    for row in scores:
        if on_score:
            on_score(row)
    return scores


def check(cfg: Config) -> None:
    """Raises ConfigError for settings that cannot be run."""
    if not cfg.path:
        raise ConfigError(
            "classification.path is empty: give a manifest with the columns "
            + ("path,label,scene" if cfg.folds else f"path,label,split (splits {cfg.train} and {cfg.test})")
            + ", e.g. --config.classification.path=ssv2/manifest.csv"
        )
    if cfg.folds and cfg.test_path:
        raise ConfigError("classification.folds divides the videos of path: leave test_path empty")
    if min(cfg.folds, cfg.frames, cfg.resolution, cfg.seconds) < 0:
        raise ConfigError("classification.folds, frames, resolution and seconds must not be negative")
    for name in cfg.controls:
        if name not in controls.FRAMES:
            known = ", ".join(controls.FRAMES) + hint(name, controls.FRAMES)
            raise ConfigError(f"classification.controls: {name!r} is not one of {known}")
    if not 0.0 < cfg.held_out < 1.0:
        raise ConfigError(f"classification.held_out={cfg.held_out} must lie between 0 and 1, e.g. 0.1")
    for key in ("frame_step", "segments", "views", "epochs", "batch_size", "depth", "seeds", "encode_batch"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"classification.{key}={getattr(cfg, key)} must be at least 1")
    if cfg.micro_batch and cfg.batch_size % cfg.micro_batch:
        raise ConfigError(
            f"classification.batch_size={cfg.batch_size} is not divisible by micro_batch={cfg.micro_batch}"
        )
    if not head_settings(cfg, 1):
        raise ConfigError("classification has no head: give lrs and weight_decays, or extra_heads")
    validate_augment(AugmentConfig(rand_augment=cfg.rand_augment, erase_prob=cfg.erase_prob))


# --------------------------------------------------------------------------------------------------------- training


def head_settings(cfg: Config, steps_per_epoch: int) -> list[Setting]:
    """A setting a head: the grid, then the extra ones."""
    warm = round(cfg.warmup_epochs * steps_per_epoch)
    grid = [Setting(lr, wd, cfg.start_lr, warm) for lr in cfg.lrs for wd in cfg.weight_decays]
    return grid + [Setting(lr, wd, final_weight_decay=final) for lr, wd, final in cfg.extra_heads]


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """One encoder, one seed: which test videos every head has right, which the chosen one, and who that is in each
    fold."""

    right_GM: np.ndarray
    right_M: np.ndarray
    chosen: tuple[int, ...]
    settings: list[Setting]


def _joined(folds: Sequence[_Outcome]) -> _Outcome:
    """Folds one after the other."""
    right_GM, right_M = (np.concatenate([getattr(o, key) for o in folds], -1) for key in ("right_GM", "right_M"))
    return _Outcome(right_GM, right_M, tuple(head for o in folds for head in o.chosen), folds[0].settings)


def _kept_out(cfg: Config, data: Data, seed: int) -> np.ndarray:
    """The training videos that choose, bool of all rows."""
    rng, labels, out = np.random.default_rng(seed), data.labels[data.rows], np.zeros(len(data.labels), bool)
    if data.groups is None:
        out[data.rows] = held_out(labels, rng, cfg.held_out)
    else:
        out[data.rows] = hold_out_groups(labels, data.groups[data.rows], rng, cfg.held_out)
    return out


def _encoded_once(encoders: Mapping[str, Any], cfg: Config, parts: Sequence[Data]) -> TokenCache:
    """Tokens of every video that trains in some part."""
    rows = np.unique(np.concatenate([part.rows for part in parts]))
    reader = Reader(encoders, cfg.layers, cfg.dtype, cfg.encode_batch)
    return token_cache.fill(reader, middle(cfg, *train_of(cfg), 1, rows), len(rows), cfg.cache_gib)


def _one_seed(
    encoders: Mapping[str, Any], cfg: Config, data: Data, seed: int, cached: TokenCache | None
) -> dict[str, _Outcome]:
    """All encoders on the same batches, so that every video is decoded once."""
    keeps_out = _kept_out(cfg, data, seed)
    steps = len(data.rows) * cfg.epochs // cfg.batch_size
    settings = head_settings(cfg, max(len(data.rows) // cfg.batch_size, 1))
    model = AttentiveClassifier(
        data.num_classes, cfg.num_heads, cfg.depth, cfg.mlp_ratio, dtype=jax.numpy.dtype(cfg.dtype)
    )
    copies = 2 if cfg.retrain else 1  # first the heads that choose, then those that are reported
    make = lambda: Heads(model, settings * copies, steps, seed, cfg.heads_at_once, cfg.micro_batch)
    heads = {name: make() for name in encoders}
    reader = Reader(encoders, cfg.layers, cfg.dtype, cfg.encode_batch)
    for rows, tokens in _training(reader, cfg, data, seed, cached):
        weight_GB = np.ones((len(settings) * copies, len(rows)), np.float32)
        weight_GB[: len(settings)] = ~keeps_out[rows]
        for name, own in heads.items():
            own.train(tokens(name), data.labels[rows], weight_GB)

    chooses, reported = slice(0, len(settings)), slice(len(settings) * (copies - 1), None)
    rows = np.flatnonzero(keeps_out)
    if cached:
        chosen_by = _from_cache(reader, cfg, data, cached, rows)
    else:
        chosen_by = _from_clips(reader, middle(cfg, *train_of(cfg), 1, rows))
    if cached and cfg.folds and cfg.views == 1:  # the videos of a fold train in another one
        tested = _from_cache(reader, cfg, data, cached, data.test_rows)
    else:
        tested = _from_clips(reader, middle(cfg, *test_of(cfg), cfg.views, data.test_rows))
    on_held_out, on_test = _right(heads, chosen_by), _right(heads, tested)
    outcomes = {}
    for name in encoders:
        right_GM, head = on_test[name][reported], int(on_held_out[name][chooses].sum(1).argmax())
        outcomes[name] = _Outcome(right_GM, right_GM[head], (head,), settings)
    return outcomes


def _training(reader: Reader, cfg: Config, data: Data, seed: int, cached: TokenCache | None):
    """Rows of every training batch and a function from an encoder's name to its tokens. What `reader` subtracts and
    divides by comes from the first batches, which are trained on too: workers that make them start once."""
    if cached:
        batches = token_cache.batches_of(cached, data.rows, cfg.epochs, cfg.batch_size, seed, cfg.dtype)
    else:
        clips = training(cfg, data, seed)
        batches = ((batch["index"], functools.partial(reader.raw, video=batch["video"])) for batch in clips)
    first = list(itertools.islice(batches, cfg.standardize))
    reader.fit(tokens for _, tokens in first)
    for rows, tokens in itertools.chain(first, batches):
        yield rows, lambda name, tokens=tokens: reader.standardised(name, tokens(name))


# labels of videos, which of them are no padding, and for every view a function from an encoder's name to its tokens
_Batch = tuple[np.ndarray, np.ndarray, list[Callable[[str], Any]]]


def _from_clips(reader: Reader, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[_Batch]:
    for batch in batches:
        video, real = batch["video"], (batch["index"] >= 0) | (batch["substituted"] > 0)
        views = [functools.partial(reader, video=video[:, :, v]) for v in range(video.shape[2])]
        yield np.asarray(batch["label"]), real, views


def _from_cache(reader: Reader, cfg: Config, data: Data, cached: TokenCache, rows: np.ndarray) -> Iterator[_Batch]:
    """Of the videos `rows`; of an undecodable one the tokens are another's and the label is no class."""
    size = max(1, cfg.encode_batch // cfg.segments)
    for start in range(0, len(rows), size):
        filled = np.resize(rows[start : start + size], size)
        places, there = cached.places(filled)
        read = lambda name, at=places: reader.standardised(name, cached.read(name, at, cfg.dtype))
        yield np.where(there, data.labels[filled], -1), start + np.arange(size) < len(rows), [read]


def _right(heads: Mapping[str, Heads], batches: Iterable[_Batch]) -> dict[str, np.ndarray]:
    """Which videos every head has right, bool [G, M], its softmax averaged over views; an undecodable one is wrong."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in heads}
    for labels, real, views in batches:
        for name, own in heads.items():
            classes_GB = np.asarray(sum(own.probabilities(tokens(name)) for tokens in views)).argmax(-1)
            found[name].append((classes_GB == labels)[:, real])
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}


def _scores(name: str, runs: Sequence[_Outcome], cfg: Config, parts: Sequence[Data]) -> Iterator[Score]:
    """The two rows of an encoder: seeds give the interval, of one seed the test videos do, of folds their groups."""
    benchmark = cfg.name or PurePath(cfg.path).parent.name or PurePath(cfg.path).stem
    for metric in (BEST, CHOSEN):
        heads = [(int(o.right_GM.sum(1).argmax()),) if metric == BEST else o.chosen for o in runs]
        right = [o.right_GM[own[0]] if metric == BEST else o.right_M for o, own in zip(runs, heads, strict=True)]
        how = ", ".join(dict.fromkeys(str(runs[0].settings[head]) for own in heads for head in own))
        counts = ", ".join(str(int(r.sum())) for r in right)
        notes = [f"{how}; right: {counts} of {len(right[0])}; {cfg.path}"]
        groups = np.concatenate([p.groups[p.test_rows] for p in parts]) if cfg.folds else None
        notes += [f"{cfg.folds} folds of {len(set(groups.tolist()))} groups"] if cfg.folds else []
        notes += ["heads did not see the held-out videos"] if not cfg.retrain else []
        notes += ["features standardised"] if cfg.standardize else []
        notes += ["cheap mode: training clips encoded once, without augmentation"] if cfg.cache else []
        interval = mean_interval(right[0], scale=100.0) if len(runs) == 1 else None
        if cfg.folds:
            share_M = 100.0 * np.mean(right, axis=0)
            interval = group_bootstrap(lambda rows, share_M=share_M: float(share_M[rows].mean()), groups)
        yield score(
            *(benchmark, metric + (", cached features" if cfg.cache else ""), name),
            [100.0 * float(r.mean()) for r in right],
            count=len(right[0]),
            interval=interval,
            chance=100.0 / len(np.unique(parts[0].labels)),
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

"""Action anticipation with a frozen encoder and its predictor (vjepa2 evals/action_anticipation_frozen, arXiv
2506.09985 section 5): EPIC-Kitchens-100, or the embedded world.

The probe reads the encoder's tokens of what is seen and, behind them, the tokens that the predictor gives for the time
of the action. It has a query each for verb, noun and action, and is trained by a focal loss with many settings of the
optimiser at once (heads.py). The score is class-mean recall@5 among the classes of the validation set; its actions
whose verb and noun never meet in training are left out.

The published number is that of the head that is best on the validation set. Beside it stands the head that is best on
held-out training videos. Each of verb, noun and action has its own best head.

Shape suffixes: G heads, B videos, M videos of validation, N tokens, D embedding, C classes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import epic
from vjepa_jax.config import ConfigError
from vjepa_jax.evals import controls
from vjepa_jax.evals.anticipation_data import Batches, Data, ek100_data, world_data
from vjepa_jax.evals.attentive import PUBLISHED_LRS
from vjepa_jax.evals.groups import held_out_rows
from vjepa_jax.evals.heads import Heads, Setting
from vjepa_jax.evals.scores import OnScore, Score, bootstrap, score
from vjepa_jax.evals.sequences import affines
from vjepa_jax.evals.temporal_metrics import class_mean_recall
from vjepa_jax.evals.worlds import clip_of
from vjepa_jax.models.probe import MultiTaskClassifier
from vjepa_jax.ops.losses import focal

TASKS = ("verb", "noun", "action")
TOKENS = ("both", "encoder", "predictor")
BEST, CHOSEN = "best head on validation", "head chosen on held-out"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are V-JEPA 2's for EPIC-Kitchens-100."""

    data: str = "ek100"  # a folder `path` (data_pipelines.epic.LAYOUT); or world
    path: str = ""
    frames: int = 32  # of a clip, at `fps` and `resolution`; of the world, those of the encoder's training
    fps: float = 8.0
    resolution: int = 256
    ahead: float = 1.0  # seconds between the clip and the action
    train_ahead: tuple[float, float] = (0.25, 1.75)
    point: float = 0.0  # of the action that is anticipated, by either reading (data_pipelines.epic)
    train_point: tuple[float, float] = (0.0, 0.25)
    reading: str = "code"
    tokens: tuple[str, ...] = ("both",)  # what the probe reads: the first of all encoders, others of the trained one
    steps_ahead: int = 1  # time steps that are predicted
    k: int = 5  # of recall
    epochs: int = 20
    batch_size: int = 128
    lrs: tuple[float, ...] = PUBLISHED_LRS
    weight_decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    depth: int = 4
    num_heads: int = 16
    mlp_ratio: float = 4.0
    dtype: str = "bfloat16"
    rand_augment: str = "rand-m7-n4-mstd0.5-inc1"
    erase_prob: float = 0.25
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    standardize: int = 0  # training batches that give each channel's mean and deviation; 0: tokens as they are
    held_out: float = 0.1  # share of the training actions that choose a head
    frame_controls: bool = True  # beside the trained encoder, the same on stills and on shuffled frames
    worlds: tuple[int, int] = (384, 256)  # videos of the world to train on and to score
    seeds: int = 1
    heads_at_once: int = 0  # that a device computes together; 0: all
    micro_batch: int = 0  # videos of one backward pass of the heads; 0: the whole batch
    num_workers: int = 0
    num_threads: int = 2


def run(encoders: Mapping[str, Sequence[Any]], cfg: Config, on_score: OnScore | None = None) -> list[Score]:
    """Class-mean recall of verb, noun and action, by the best head on validation and by the one that held-out chooses.

    Seed s takes encoder s modulo their number. An encoder without `predict` is read by its own tokens.

    Raises:
      ConfigError, DataError: wrong settings, a wrong layout.
    """
    check(cfg, encoders)
    clip = clip_of(encoders, "anticipation")
    data = world_data(clip, cfg) if cfg.data == "world" else ek100_data(cfg)
    size = clip.size if cfg.data == "world" else (cfg.resolution, cfg.resolution)
    places = size[0] // clip.patch * (size[1] // clip.patch)
    make = lambda encoder, kind, wrap=None: Tokens(encoder, kind, wrap, cfg, clip.tubelet, places)
    named = {name: [make(encoder, cfg.tokens[0]) for encoder in group] for name, group in encoders.items()}
    trained = encoders[controls.TRAINED][0]
    for kind in cfg.tokens[1:]:
        named[f"{controls.TRAINED}, tokens: {kind}"] = [make(trained, kind)]
    if cfg.frame_controls:
        for name, wrap in controls.FRAMES.items():
            named[name] = [make(trained, cfg.tokens[0], wrap)]
    outcomes: dict[str, list[Outcome]] = {name: [] for name in named}
    for seed in range(cfg.seeds):
        chosen = {name: group[seed % len(group)] for name, group in named.items()}
        for name, outcome in _one_seed(chosen, cfg, data, seed).items():
            outcomes[name].append(outcome)
    scores = [row for name, found in outcomes.items() for row in _scores(name, found, cfg, data)]
    for row in scores:
        if on_score:
            on_score(row)
    return scores


# ----------------------------------------------------------------------------------------------------------- tokens


class Tokens:
    """What the probe reads of clips: the encoder's tokens, those that the predictor gives for later, or both."""

    def __init__(self, encoder: Any, kind: str, wrap: Any, cfg: Config, tubelet: int, places: int):
        self.encoder, self.wrap, self.cfg, self.tubelet, self.places = encoder, wrap, cfg, tubelet, places
        self.kind = kind if hasattr(encoder, "predict") else "encoder"
        self.affine: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, video: np.ndarray, ahead: np.ndarray) -> jax.Array:
        """[B, N, D] of uint8 [B, T, H, W, 3] whose action begins `ahead` seconds later, float [B]."""
        parts = []
        if self.kind != "predictor":
            features = jnp.asarray(self._shown(self.encoder, video))
            parts.append(features.reshape(len(video), -1, features.shape[-1]))
        if self.kind != "encoder":
            context, target = self.ids(video, ahead)
            predicted = jnp.asarray(self._shown(lambda clip: self.encoder.predict(clip, context, target), video))
            parts.append(predicted[..., -self._width(predicted) :])
        x_BND = jnp.concatenate(parts, axis=1)
        if self.affine is not None:
            x_BND = (x_BND - self.affine[0]) * self.affine[1]
        return x_BND.astype(self.cfg.dtype)

    def ids(self, video: np.ndarray, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of what is seen and of what is asked for, int32 [B, N] and [B, steps_ahead * places]: whole time
        steps behind the clip, floor(ahead * fps / tubelet) of them left out (as the released code counts)."""
        count = video.shape[1] // self.tubelet * self.places
        left_out = (np.asarray(ahead, np.float64) * self.cfg.fps / self.tubelet + 1e-6).astype(np.int32)
        target = count + self.places * left_out[:, None] + np.arange(self.cfg.steps_ahead * self.places)
        return np.tile(np.arange(count, dtype=np.int32), (len(video), 1)), target.astype(np.int32)

    def _shown(self, function: Callable[[Any], Any], video: np.ndarray) -> Any:
        return (self.wrap(function) if self.wrap else function)(video)

    def _width(self, predicted: Any) -> int:
        """Channels of the last of the levels that are predicted."""
        model = self.encoder.run.model
        levels = () if model.predictor.last_level_only else model.levels
        return predicted.shape[-1] // max(len(levels), 1)


# --------------------------------------------------------------------------------------------------------- training


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One encoder, one seed: logits of every head on validation, by task [G, M, C], and the head of held-out videos."""

    logits: dict[str, np.ndarray]
    chosen: dict[str, int]
    settings: list[Setting]


def loss(logits: Mapping[str, jax.Array], labels_B3: jax.Array) -> jax.Array:
    """Sum of the focal losses of all classes of the three tasks, [B]."""
    return sum(
        focal(logits[task], jax.nn.one_hot(labels_B3[:, i], logits[task].shape[-1])).sum(-1)
        for i, task in enumerate(TASKS)
    )


def _one_seed(readers: Mapping[str, Tokens], cfg: Config, data: Data, seed: int) -> dict[str, Outcome]:
    """All encoders on the same batches, so that every video is decoded once."""
    keeps_out = held_out_rows(data.groups, cfg.held_out, seed)
    settings = [Setting(lr, decay) for lr in cfg.lrs for decay in cfg.weight_decays]
    tasks = tuple(zip(TASKS, data.classes, strict=True))
    model = MultiTaskClassifier(tasks, cfg.num_heads, cfg.depth, cfg.mlp_ratio, dtype=jnp.dtype(cfg.dtype))
    steps = len(data.labels) * cfg.epochs // cfg.batch_size
    # first the heads that choose, which do not see the held-out videos, then those that are reported
    make = lambda: Heads(model, settings * 2, steps, seed, cfg.heads_at_once, cfg.micro_batch, loss)
    heads = {name: make() for name in readers}
    batches = iter(data.training(seed))
    first = list(itertools.islice(batches, cfg.standardize))  # trained on too: workers that make them start once
    _fit(readers, first)
    for batch in itertools.chain(first, batches):
        weight_GB = np.ones((2 * len(settings), len(batch["index"])), np.float32)
        weight_GB[: len(settings)] = ~keeps_out[batch["index"]]
        for name, own in heads.items():
            own.train(readers[name](batch["video"], batch["ahead"]), data.labels[batch["index"]], weight_GB)
    rows = np.flatnonzero(keeps_out)
    held = _logits(readers, heads, data.rows(rows), data.labels[rows], slice(0, len(settings)))
    test = _logits(readers, heads, data.test(), data.test_labels, slice(len(settings), None))
    best = lambda name, task: int(recalls(held[name][task], data.labels[rows, TASKS.index(task)], cfg.k).argmax())
    return {name: Outcome(test[name], {task: best(name, task) for task in TASKS}, settings) for name in readers}


def _fit(readers: Mapping[str, Tokens], batches: Batches) -> None:
    """Standardises the tokens of every encoder by the statistics of some batches; of none: leaves them as they are."""
    for reader in readers.values():
        reader.affine = None
    found = affines(readers, (lambda name, b=b: readers[name](b["video"], b["ahead"]) for b in batches))
    for name, reader in readers.items():
        reader.affine = found.get(name)


def _logits(
    readers: Mapping[str, Tokens], heads: Mapping[str, Heads], batches: Batches, labels: np.ndarray, which: slice
) -> dict[str, dict[str, np.ndarray]]:
    """Logits of some heads by name and task, float32 [G, M, C]; a video that cannot be decoded never has its class."""
    parts: dict[str, dict[str, list[np.ndarray]]] = {name: {task: [] for task in TASKS} for name in readers}
    for batch in batches:
        real = batch["index"] >= 0
        failed = np.flatnonzero(batch["failed"][real])
        own_labels = labels[batch["index"][real]]
        for name, reader in readers.items():
            found = heads[name].logits(reader(batch["video"], batch["ahead"]))
            for i, task in enumerate(TASKS):
                logits = np.array(found[task], np.float32)[which][:, real]
                logits[:, failed, own_labels[failed, i]] = -np.inf
                parts[name][task].append(logits)
    return {name: {task: np.concatenate(p, axis=1) for task, p in own.items()} for name, own in parts.items()}


def recalls(logits_GMC: np.ndarray, labels_M: np.ndarray, k: int) -> np.ndarray:
    """Class-mean recall of every head among the classes that the labels hold, float [G], in %."""
    valid = np.unique(labels_M)
    return np.array([class_mean_recall(logits, labels_M, k, valid) for logits in logits_GMC])


def _scores(name: str, found: Sequence[Outcome], cfg: Config, data: Data) -> Iterator[Score]:
    """Two rows a task. Seeds give the interval, of one seed the validation actions do."""
    for i, task in enumerate(TASKS):
        labels = data.test_labels[:, i]
        classes = len(np.unique(labels))
        every = [recalls(outcome.logits[task], labels, cfg.k) for outcome in found]
        for how in (BEST, CHOSEN):
            picked = [e.argmax() if how == BEST else o.chosen[task] for e, o in zip(every, found, strict=True)]
            interval = None
            if len(found) == 1:
                own = found[0].logits[task][[picked[0]]]
                drawn = lambda rows, own=own, labels=labels: float(recalls(own[:, rows], labels[rows], cfg.k)[0])
                interval = bootstrap(drawn, len(labels), resamples=100)
            settings = ", ".join(dict.fromkeys(str(o.settings[g]) for g, o in zip(picked, found, strict=True)))
            notes = [settings, f"{classes} classes"]
            notes += [f"{cfg.ahead:g} s ahead, reading: {cfg.reading}"] if cfg.data == "ek100" else []
            notes += ["tokens standardised"] if cfg.standardize else []
            yield score(
                *(data.name, f"{task} recall@{cfg.k}, {how}", name),
                [float(e[g]) for e, g in zip(every, picked, strict=True)],
                count=len(labels),
                interval=interval,
                chance=100.0 * min(1.0, cfg.k / classes),
                note="; ".join(notes),
            )


def check(cfg: Config, encoders: Mapping[str, Sequence[Any]]) -> None:
    """Raises ConfigError for settings that cannot be run."""
    if cfg.data not in ("ek100", "world"):
        raise ConfigError(f"anticipation.data={cfg.data!r} is not one of ek100, world")
    if cfg.data == "ek100" and not cfg.path:
        raise ConfigError(f"anticipation.path is empty: give a folder with {epic.LAYOUT.format(path='PATH')}")
    if cfg.reading not in epic.READINGS:
        raise ConfigError(f"anticipation.reading={cfg.reading!r} is not one of {', '.join(epic.READINGS)}")
    for kind in cfg.tokens or ("",):
        if kind not in TOKENS:
            raise ConfigError(f"anticipation.tokens: {kind!r} is not one of {', '.join(TOKENS)}")
    model = encoders[controls.TRAINED][0].run.model
    if set(cfg.tokens) != {"encoder"} and not model.position.startswith("rope"):
        raise ConfigError(
            f"anticipation.tokens={cfg.tokens}: a predictor with positions of a table ({model.position}) cannot be "
            "asked for times after its clip: set anticipation.tokens=('encoder',)"
        )
    for key in ("frames", "steps_ahead", "k", "epochs", "batch_size", "depth", "seeds"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"anticipation.{key}={getattr(cfg, key)} must be at least 1")
    if cfg.micro_batch and cfg.batch_size % cfg.micro_batch:
        raise ConfigError(f"anticipation.batch_size={cfg.batch_size} is not divisible by micro_batch={cfg.micro_batch}")
    if not 0.0 < cfg.held_out < 1.0 or not cfg.lrs or not cfg.weight_decays:
        raise ConfigError("anticipation: held_out must lie between 0 and 1, and lrs and weight_decays hold a value")
    if cfg.data == "world" and (min(cfg.worlds) < 2 or cfg.worlds[0] < cfg.batch_size):
        raise ConfigError(
            f"anticipation.worlds={cfg.worlds} must hold at least two videos each, and a batch to train on"
        )

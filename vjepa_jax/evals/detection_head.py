"""Training a detector of actions (models.detector) on frozen features, and what it detects.

A point of the pyramid is positive where it lies near the centre of an action whose size is one of its level's; it
learns the action's class by a focal loss and its start and end by DIoU. Shapes never change in training: sequences are
cut or filled up to `length` steps, actions to the largest number that a video has.

Shape suffixes: B batch, S steps, D channels, P points, G actions of a video, C classes.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from vjepa_jax.evals.suppression import nms, soft_nms, vote
from vjepa_jax.models.detector import Detector, points
from vjepa_jax.ops.losses import focal

NEAR = 1.5  # a positive point is at most so many points of its level away from the centre
_adam = optax.scale_by_adam()
_FIRST_RANGE = 4.0  # steps; level l > 0 has distances from 4 * 2^(l - 1) to 4 * 2^l, the last one all above


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The detector and its training; the defaults are ActionFormer's for THUMOS14 (arXiv 2202.07925)."""

    dim: int = 512
    num_heads: int = 4
    levels: int = 6
    stem: int = 2
    reach: int = 9  # of attention, to either side
    length: int = 2304  # steps of a training sequence
    epochs: int = 35
    warmup_epochs: int = 5
    batch_size: int = 2
    lr: float = 1e-4
    weight_decay: float = 0.05  # of kernels
    clip_norm: float = 1.0
    ema: float = 0.999  # of the parameters that detect
    normalizer: float = 100.0  # the number of positive points that losses are divided by, at first; then a mean
    most: int = 200  # detections of a video
    candidates: int = 2000  # points with classes that are looked at
    least_score: float = 0.001
    suppression: str = "soft"  # or "hard"
    sigma: float = 0.5  # of soft-NMS
    threshold: float = 0.5  # of hard NMS
    voting: float = 0.7  # 0: none


@dataclasses.dataclass(frozen=True)
class Track:
    """Features float32 [S, D] of a video; actions by start and end in steps, float [n, 2], and class, int [n]."""

    features: np.ndarray
    segments: np.ndarray
    labels: np.ndarray


def train_detector(videos: Sequence[Track], num_classes: int, cfg: HeadConfig, seed: int) -> "Trained":
    """AdamW with a linear warm-up and a cosine to 0. Features are standardised by the training videos' statistics.

    Raises:
      ValueError: no video.
    """
    everything = np.concatenate([video.features for video in videos])
    mean, scale = everything.mean(0), 1.0 / np.maximum(everything.std(0), 1e-6)
    scale = np.where(everything.std(0) > 1e-6, scale, 0.0).astype(np.float32)  # a constant channel says nothing
    model = Detector(num_classes, cfg.dim, cfg.num_heads, cfg.levels, cfg.stem, cfg.reach)
    most = max(1, max(len(video.labels) for video in videos))
    length = padded_length(cfg.length, cfg.levels)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(videos)) for _ in range(cfg.epochs)])
    if len(order) < cfg.batch_size:
        order = np.resize(order, cfg.batch_size)
    batches = order[: len(order) // cfg.batch_size * cfg.batch_size].reshape(-1, cfg.batch_size)
    lrs = schedule(len(batches), round(len(batches) * cfg.warmup_epochs / cfg.epochs)) * cfg.lr

    shape = (length, everything.shape[1])
    state = _start(model, cfg.normalizer, seed, shape)
    for lr, rows in zip(lrs, batches, strict=True):
        parts = [cut(videos[row], length, most, rng) for row in rows]
        x, mask, segments, labels = (np.stack(part) for part in zip(*parts, strict=True))
        rates = np.float32([lr, cfg.weight_decay, cfg.clip_norm, cfg.ema])
        state = _step(model, state, (x - mean) * scale, mask, segments, labels, rates)
    return Trained(model, cfg, _layout(model, shape)[0](state["ema"]), mean, scale)


def schedule(steps: int, warmup: int) -> np.ndarray:
    """Shares of the learning rate, float32 [steps]."""
    at = np.arange(steps)
    cosine = 0.5 * (1.0 + np.cos(np.pi * np.clip((at - warmup) / max(steps - warmup, 1), 0.0, 1.0)))
    return np.where(at < warmup, (at + 1) / max(warmup, 1), cosine).astype(np.float32)


def padded_length(steps: int, levels: int) -> int:
    """The next length that every level divides."""
    return -(-steps // 2 ** (levels - 1)) * 2 ** (levels - 1)


def cut(
    video: Track, length: int, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A video at `length` steps: features, mask bool [S], segments [G, 2] and labels [G], -1 for none.

    Of a longer video, a random part; actions of which less than half lies in it are left out, others are cut off.
    """
    steps = len(video.features)
    start = int(rng.integers(steps - length + 1)) if steps > length else 0
    part = video.features[start : start + length]
    features = np.zeros((length, part.shape[1]), np.float32)
    features[: len(part)] = part
    inside = np.clip(video.segments - start, -0.5, len(part) - 0.5)  # a step reaches half a step to either side
    duration = video.segments[:, 1] - video.segments[:, 0]
    kept = inside[:, 1] - inside[:, 0] >= 0.5 * np.maximum(duration, 1e-6)
    segments, labels = np.zeros((most, 2), np.float32), np.full(most, -1, np.int32)
    segments[: kept.sum()], labels[: kept.sum()] = inside[kept], video.labels[kept]
    return features, np.arange(length) < len(part), segments, labels


def targets(at_P: Any, level_P: Any, segments_BG2: Any, labels_BG: Any, levels: int) -> tuple[Any, Any]:
    """What every point learns: its class, int [B, P] (-1: no action), and distances in steps, [B, P, 2].

    Of several actions that a point could stand for it takes the shortest.
    """
    start, end = segments_BG2[:, None, :, 0], segments_BG2[:, None, :, 1]
    at = at_P[None, :, None]
    left, right = at - start, end - at
    centre, stride = (start + end) / 2, (2.0**level_P)[None, :, None]
    near = (abs(at - centre) <= NEAR * stride) & (left >= 0) & (right >= 0)
    low = jnp.where(level_P == 0, 0.0, _FIRST_RANGE * 2.0 ** (level_P - 1.0))[None, :, None]
    high = jnp.where(level_P == levels - 1, jnp.inf, _FIRST_RANGE * 2.0**level_P)[None, :, None]
    farthest = jnp.maximum(left, right)
    fits = near & (farthest >= low) & (farthest < high) & (labels_BG >= 0)[:, None]
    length = jnp.where(fits, end - start, jnp.inf)
    best = length.argmin(-1)
    pick = lambda a: jnp.take_along_axis(jnp.broadcast_to(a, fits.shape), best[..., None], -1)[..., 0]
    labels = jnp.where(fits.any(-1), pick(labels_BG[:, None]), -1)
    return labels, jnp.stack([pick(left), pick(right)], -1)


def diou(found: Any, true: Any) -> Any:
    """1 - overlap + (distance of the centres / length of the hull)^2 of segments around a point, given by distances to
    start and end, [..., 2] each (arXiv 1911.08287 along time); 0 for equal ones."""
    shared = jnp.minimum(found, true).sum(-1)
    union = found.sum(-1) + true.sum(-1) - shared
    hull = jnp.maximum(found, true).sum(-1)
    offset = ((found[..., 1] - found[..., 0]) - (true[..., 1] - true[..., 0])) / 2
    return 1 - shared / jnp.maximum(union, 1e-6) + (offset / jnp.maximum(hull, 1e-6)) ** 2


def _layout(model: Detector, shape_SD: tuple[int, int]) -> tuple[Any, np.ndarray]:
    """A function from one vector of all parameters to their tree, and which of them are decayed (kernels), float32.

    The optimiser works on the vector: one operation in place of one a parameter, which compiles in half of the time.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape_SD)), jnp.ones((1, shape_SD[0]), bool))
    shapes = shapes["params"]
    decayed = [np.full(leaf.size, leaf.ndim > 1, np.float32) for leaf in jax.tree.leaves(shapes)]
    unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))[1]
    return unravel, np.concatenate(decayed)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _start(model, normalizer, seed, shape_SD):
    x_BSD = jnp.zeros((1, *shape_SD), jnp.float32)
    # This generator compiles in a fifth of the time of the default one.
    params = model.init(jax.random.key(seed, impl="rbg"), x_BSD, jnp.ones((1, shape_SD[0]), bool))["params"]
    flat = ravel_pytree(params)[0]
    return {"params": flat, "ema": flat, "adam": _adam.init(flat), "normalizer": jnp.float32(normalizer)}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(model, state, x_BSD, mask_BS, segments_BG2, labels_BG, rates):
    """rates: of learning, of decay, the largest norm of a gradient, and the share of the mean that is kept."""
    unravel, decayed = _layout(model, x_BSD.shape[1:])
    at_P, level_P = (jnp.asarray(a) for a in points(x_BSD.shape[1], model.levels))
    labels_BP, distances_BP2 = targets(at_P, level_P, segments_BG2, labels_BG, model.levels)

    def loss(flat):
        logits_BPC, found_BP2, seen_BP = model.apply({"params": unravel(flat)}, x_BSD, mask_BS)
        positive_BP = (labels_BP >= 0) & seen_BP
        normalizer = 0.9 * state["normalizer"] + 0.1 * jnp.maximum(positive_BP.sum(), 1)
        truth_BPC = jax.nn.one_hot(labels_BP, model.num_classes)
        classes = (focal(logits_BPC, truth_BPC).sum(-1) * seen_BP).sum()
        bounds = jnp.where(positive_BP, diou(found_BP2, distances_BP2), 0.0).sum()
        return (classes + bounds) / normalizer, normalizer

    lr, decay, clip_norm, kept = rates
    grads, normalizer = jax.grad(loss, has_aux=True)(state["params"])
    grads = grads * jnp.minimum(1.0, clip_norm / jnp.maximum(jnp.linalg.norm(grads), 1e-12))
    updates, adam = _adam.update(grads, state["adam"])
    flat = state["params"] - lr * (updates + decay * decayed * state["params"])
    ema = kept * state["ema"] + (1 - kept) * flat
    return {"params": flat, "ema": ema, "adam": adam, "normalizer": normalizer}


@functools.partial(jax.jit, static_argnums=0)
def _detect(model, params, x_SD, mask_S):
    logits, distances, seen = model.apply({"params": params}, x_SD[None], mask_S[None])
    return jnp.where(seen[0][:, None], jax.nn.sigmoid(logits[0]), 0.0), distances[0]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained detector with the statistics of its features."""

    model: Detector
    cfg: HeadConfig
    params: Any
    mean: np.ndarray
    scale: np.ndarray

    def __call__(self, features_SD: np.ndarray) -> dict[str, np.ndarray]:
        """Detections of a video, best first: "segments" float [n, 2] in steps (some may reach beyond it), "labels" int
        [n], "scores" float [n]."""
        steps = len(features_SD)
        # lengths grow by doubling, so that few are compiled
        length = padded_length(self.cfg.length, self.cfg.levels)
        while length < steps:
            length *= 2
        x_SD = np.zeros((length, features_SD.shape[1]), np.float32)
        x_SD[:steps] = (features_SD - self.mean) * self.scale
        scores, distances = _detect(self.model, self.params, x_SD, np.arange(length) < steps)
        at, _ = points(length, self.model.levels)
        return decode(np.asarray(scores), np.asarray(distances), at, self.cfg)


def decode(scores_PC: np.ndarray, distances_P2: np.ndarray, at_P: np.ndarray, cfg: HeadConfig) -> dict:
    """Detections from what all points say: the best candidates, each class suppressed by itself."""
    best = np.argsort(-scores_PC, axis=None, kind="stable")[: cfg.candidates]
    best = best[scores_PC.reshape(-1)[best] > cfg.least_score]
    point, labels = np.divmod(best, scores_PC.shape[1])
    segments = np.stack([at_P[point] - distances_P2[point, 0], at_P[point] + distances_P2[point, 1]], 1)
    scores = scores_PC.reshape(-1)[best].astype(np.float64)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for label in np.unique(labels):
        own, own_scores = segments[labels == label], scores[labels == label]
        if cfg.suppression == "soft":
            rows, values = soft_nms(own, own_scores, cfg.sigma, cfg.least_score, cfg.most)
        else:
            rows = nms(own, own_scores, cfg.threshold)
            values = own_scores[rows]
        kept = vote(own[rows], own, own_scores, cfg.voting) if cfg.voting else own[rows]
        found.append((kept, np.full(len(rows), label), values))
    if not found:
        return {"segments": np.zeros((0, 2)), "labels": np.zeros(0, np.int64), "scores": np.zeros(0)}
    kept, classes, values = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(-values, kind="stable")[: cfg.most]
    return {"segments": kept[order], "labels": classes[order], "scores": values[order]}

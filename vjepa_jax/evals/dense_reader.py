"""Features of pictures as linear heads read them, and what the heads make of whole pictures. `cfg`: dense.Config.

Shape suffixes: G heads, B pictures of a batch, M pictures that are scored, V windows, h, w rows and columns of tokens.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjepa_jax.evals.dense_data import Batches, Data, View
from vjepa_jax.evals.heads import Heads
from vjepa_jax.evals.sequences import outputs
from vjepa_jax.evals.windows import padded
from vjepa_jax.evals.worlds import Clip

_EPS, _MOMENTUM = 1e-5, 0.1  # of BatchNorm


class Reader:
    """Maps of features of pictures by one encoder, as heads read them."""

    def __init__(self, encoder: Any, cfg: Any, clip: Clip):
        self.encoder, self.cfg = encoder, cfg
        model = getattr(getattr(encoder, "run", None), "model", None)
        still = 1 if model is not None and model.image_tokenizer else clip.tubelet
        self.frames = clip.frames if cfg.frames == "clip" else still
        self.moments: tuple[np.ndarray, np.ndarray] | None = None  # running mean and variance

    def __call__(self, images: np.ndarray, training: bool = False) -> jax.Array:
        """uint8 [B, H, W, 3] to float32 [B, h, w, L * D]. In training a batch is normalised by its own mean and
        variance, which move the running ones that serve else (torch.nn.BatchNorm2d)."""
        at_once, parts = self.cfg.encode_batch, []
        for start in range(0, len(images), at_once):
            part = images[start : start + at_once]
            clips = np.repeat(padded(part, at_once)[:, None], self.frames, axis=1)
            parts.append(_as_map(outputs(self.encoder, clips, self.cfg.layers))[: len(part)])
        x_BhwD = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        if self.cfg.norm == "none":
            return x_BhwD
        if training:
            moments = _moments(x_BhwD)
            self._move(moments, x_BhwD.size // x_BhwD.shape[-1])
            return _normalised(x_BhwD, moments)
        return _normalised(x_BhwD, self.moments)

    def _move(self, moments: tuple[jax.Array, jax.Array], count: int) -> None:
        mean, variance = (np.asarray(moment, np.float32) for moment in moments)
        fresh = (mean, variance * count / max(count - 1, 1))
        old = self.moments or (np.zeros_like(mean), np.ones_like(variance))
        self.moments = tuple((1 - _MOMENTUM) * o + _MOMENTUM * f for o, f in zip(old, fresh, strict=True))


@jax.jit
def _as_map(features: jax.Array) -> jax.Array:
    """The mean over time of [B, T', h, w, D], or of [B, L, T', h, w, D] with its layers side by side."""
    x = jnp.asarray(features, jnp.float32).mean(-4)
    return x if x.ndim == 4 else jnp.moveaxis(x, 1, 3).reshape(x.shape[0], *x.shape[2:4], -1)


@jax.jit
def _moments(x_BhwD: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x_BhwD.mean((0, 1, 2)), x_BhwD.var((0, 1, 2))


@jax.jit
def _normalised(x_BhwD: jax.Array, moments: tuple[Any, Any]) -> jax.Array:
    return (x_BhwD - moments[0]) * jax.lax.rsqrt(moments[1] + _EPS)


def judged(
    readers: Mapping[str, Reader],
    heads: Mapping[str, Heads],
    pictures: Batches,
    data: Data,
    which: slice,
    at_once: int,
) -> dict[str, np.ndarray]:
    """What the task keeps of every picture by some of the heads, [G, M, ...]. `at_once`: windows encoded together."""
    kept: dict[str, list[np.ndarray]] = {name: [] for name in readers}
    for group in _enough(pictures, data, at_once):
        windows = np.concatenate([view.windows(picture["image"]) for picture, view in group])
        ends = np.cumsum([len(view.tops) * len(view.lefts) * (1 + view.mirrored) for _, view in group])[:-1]
        for name, reader in readers.items():
            maps = []
            for start in range(0, len(windows), at_once):
                part = windows[start : start + at_once]
                found = heads[name].logits(reader(padded(part, at_once))[:, None])
                maps.append(np.asarray(found[which, : len(part), 0]))
            for (picture, view), own in zip(group, np.split(np.concatenate(maps, 1), ends, axis=1), strict=True):
                label = picture["label"]
                kept[name].append(data.task.judge(label, predictions(own, view, label.shape, data.task.final)))
    return {name: np.stack(parts, axis=1) for name, parts in kept.items()}


def _enough(pictures: Batches, data: Data, at_once: int) -> Iterator[list[tuple[dict[str, np.ndarray], View]]]:
    """Pictures in groups of about `at_once` windows, with how each is seen."""
    group, windows = [], 0
    for picture in pictures:
        view = data.view(picture["image"].shape[:2])
        group.append((picture, view))
        windows += len(view.tops) * len(view.lefts) * (1 + view.mirrored)
        if windows >= at_once:
            yield group
            group, windows = [], 0
    if group:
        yield group


def predictions(
    maps_GVhwC: np.ndarray, view: View, shape: tuple[int, int], final: Callable[[jax.Array], jax.Array]
) -> np.ndarray:
    """Predictions of every head [G, H, W] from the maps of a picture's windows."""
    rows, columns = view.placement(shape, maps_GVhwC.shape[2:4])
    # labels of many sizes share few compiled programs
    filled = [-(-n // 128) * 128 if n > 128 else n for n in shape]
    rows, columns = (
        np.pad(matrix, [(0, 0), (0, n - matrix.shape[1]), (0, 0)])
        for matrix, n in zip((rows, columns), filled, strict=True)
    )
    return np.asarray(_assembled(maps_GVhwC, rows, columns, final))[:, : shape[0], : shape[1]]


@functools.partial(jax.jit, static_argnames="final")
def _assembled(maps_GVhwC, rows_VYh, columns_VXw, final):
    def one(maps_VhwC):
        return final(jnp.einsum("VYh,VhwC,VXw->YXC", rows_VYh, maps_VhwC, columns_VXw, precision="highest"))

    return jax.lax.map(one, maps_GVhwC)

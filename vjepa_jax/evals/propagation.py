"""Labels of objects carried on through a video by the likeness of features, in the published ways.

dino: arXiv 2104.14294, eval_video_segmentation.py. crw: RVM's rvm_evaluation_demo (arXiv 2512.13684), after Contrastive
Random Walks (arXiv 2006.14613). vjepa21: what V-JEPA 2.1 (arXiv 2603.14482) found best in its search; its code is not
published, and what the paper does not tell is as in dino.

Shape suffixes: F frames, N tokens of a frame (rows x columns), D channels, K context frames, C labels with background.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

_FLAT = 1e-6  # labels that differ by less over a frame are the same everywhere


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to carry labels on.

    title: as names of metrics tell it.
    context: frames before the present one, besides those in which objects are given. primed: at the start these are
    copies of the first frame, instead of missing.
    radius: in tokens, how far a token looks. square: up to and with it in rows and columns; else less than it in
    distance. anywhere: but without bounds in frames in which objects are given.
    top, temperature: so many most similar tokens count, by exp(cosine / temperature).
    stretch: each object's labels are stretched to 0 ... 1 before the largest wins.
    soft: given labels are interpolated to tokens, instead of taken from the nearest pixel.
    """

    title: str
    context: int
    radius: int
    top: int
    temperature: float
    primed: bool = False
    square: bool = True
    anywhere: bool = False
    stretch: bool = True
    soft: bool = False

    def settings(self) -> str:
        """What a search chooses, in words."""
        shape = "square" if self.square else "circle"
        return f"context {self.context}, {shape} {self.radius}, top {self.top}, T {self.temperature:g}"


METHODS = {
    "dino": Method("DINO protocol", context=7, radius=12, top=5, temperature=0.1),
    "crw": Method(
        *("CRW protocol", 20, 20, 7, 0.7), primed=True, square=False, anywhere=True, stretch=False, soft=True
    ),
    "vjepa21": Method("as V-JEPA 2.1", context=15, radius=12, top=5, temperature=0.2, square=False),
}
# the settings that V-JEPA 2.1 tried
SEARCH = tuple(
    Method("as V-JEPA 2.1, searched", context, radius, top, temperature, square=square)
    for context, radius, square, top, temperature in itertools.product(
        (4, 7, 10, 15), (12, 24, 36), (False, True), (3, 5, 10), (0.01, 0.1, 0.2, 0.7)
    )
)


def propagate(
    features_FND: np.ndarray, grid: tuple[int, int], given: Mapping[int, np.ndarray], method: Method
) -> np.ndarray:
    """Soft labels of every frame.

    Args:
      features_FND: of each frame's tokens, any length (they are normalised).
      grid: rows and columns of tokens.
      given: by frame, labels [N, C] (`token_labels`). Those of frame 0 sum to 1 in every token. Those of later frames
        are of the objects that appear there; they replace what was carried to their tokens, and the frame is context
        for good, as the first one is.

    Returns:
      float32 [F, N, C]; the first frame's are those given.

    Raises:
      ValueError: features, grid and labels that do not fit together.
    """
    frames, tokens, _ = features_FND.shape
    if tokens != grid[0] * grid[1] or any(len(labels_NC) != tokens for labels_NC in given.values()):
        sizes = [len(labels_NC) for labels_NC in given.values()]
        raise ValueError(f"{tokens} features, {sizes} labels and a grid of {grid} must be of the same tokens")
    features = jnp.asarray(features_FND, jnp.float32)
    features /= jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    near_NN = jnp.asarray(neighbourhood(grid, method))
    out = np.zeros((frames, *given[0].shape), np.float32)
    out[0] = given[0]
    unbounded = len(given) if method.anywhere else 0
    for frame in range(1, frames):
        ids, there = _context(frame, sorted(given), method)
        context = features[ids], jnp.asarray(out[ids]), jnp.asarray(there)
        out[frame] = _carry(features[frame], *context, near_NN, method.temperature, method.top, unbounded)
        if frame in given:
            out[frame] = out[frame] * (1.0 - given[frame].sum(-1, keepdims=True)) + given[frame]
    return out


def _context(frame: int, given: list[int], method: Method) -> tuple[np.ndarray, np.ndarray]:
    """Frames that `frame` looks at, and whether each is there: as many for every frame, so that nothing recompiles."""
    known = [g for g in given if g < frame]
    before = np.arange(frame - method.context, frame)
    # a frame that is there for good does not count twice, but where copies fill up the start
    there = np.full(len(before), True) if method.primed else (before > 0) & ~np.isin(before, known)
    missing = len(given) - len(known)
    ids = np.concatenate([known, np.zeros(missing, int), np.maximum(before, 0)])
    return ids, np.concatenate([np.arange(len(given)) < len(known), there])


@functools.partial(jax.jit, static_argnames=("top", "unbounded"))
def _carry(query_ND, context_KND, labels_KNC, there_K, near_NN, temperature, top: int, unbounded: int) -> jax.Array:
    likeness_NKM = jnp.einsum("nd,kmd->nkm", query_ND, context_KND, precision="highest")
    near_NKM = jnp.broadcast_to(near_NN[:, None], likeness_NKM.shape).at[:, :unbounded].set(True)
    likeness_NKM = jnp.where(near_NKM & there_K[None, :, None], likeness_NKM, -jnp.inf)
    largest, where = jax.lax.top_k(likeness_NKM.reshape(len(query_ND), -1), top)
    weights = jax.nn.softmax(largest / temperature, axis=-1)
    labels = labels_KNC.reshape(-1, labels_KNC.shape[-1])[where]
    return jnp.einsum("nt,ntc->nc", weights, labels, precision="highest")


def neighbourhood(grid: tuple[int, int], method: Method) -> np.ndarray:
    """bool [N, N]: which token of another frame a token may look at."""
    rows, columns = (axis.reshape(-1) for axis in np.mgrid[: grid[0], : grid[1]])
    down, across = rows[:, None] - rows, columns[:, None] - columns
    if method.square:
        return (abs(down) <= method.radius) & (abs(across) <= method.radius)
    return down**2 + across**2 < method.radius**2


def token_labels(
    mask: np.ndarray, grid: tuple[int, int], inner: tuple[int, int], count: int, method: Method
) -> np.ndarray:
    """Labels of tokens from object numbers of pixels: float32 [N, count].

    Args:
      mask: uint8 [H, W], numbers below `count`.
      inner: height and width of the encoder's input. Soft labels are taken there from the pixel that lies at or before
        (OpenCV's nearest, as the published code has it), and then interpolated between the centres of tokens.
    """
    one_hot = np.eye(count, dtype=np.float32)
    if not method.soft:
        return one_hot[nearest(mask, grid)].reshape(-1, count)
    pixels = jnp.asarray(one_hot[nearest(mask, inner, offset=0.0)])
    return np.asarray(jax.image.resize(pixels, (*grid, count), "bilinear", antialias=False)).reshape(-1, count)


def nearest(mask: np.ndarray, size: tuple[int, int], offset: float = 0.5) -> np.ndarray:
    """A mask at another size, by its nearest pixels; `offset` is where in a pixel its place is taken to be."""
    rows, columns = (
        np.floor((np.arange(n) + offset) * m / n).astype(int) for n, m in zip(size, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def to_masks(
    soft_FNC: np.ndarray, grid: tuple[int, int], inner: tuple[int, int], size: tuple[int, int], method: Method
) -> np.ndarray:
    """Soft labels of tokens to the label of every pixel, uint8 [F, H, W].

    Bilinear to `inner`, the size of the encoder's input, where the largest wins; from there the nearest pixel.
    """
    masks = [_largest(jnp.asarray(soft_NC.reshape(*grid, -1)), inner, method.stretch) for soft_NC in soft_FNC]
    return np.stack([nearest(np.asarray(mask), size) for mask in masks])


@functools.partial(jax.jit, static_argnames=("size", "stretch"))
def _largest(soft_YXC: jax.Array, size: tuple[int, int], stretch: bool) -> jax.Array:
    soft_YXC = jax.image.resize(soft_YXC, (*size, soft_YXC.shape[-1]), "bilinear")
    if stretch:
        low, high = soft_YXC.min((0, 1)), soft_YXC.max((0, 1))
        spread = high - low > _FLAT  # the published code divides by zero where it is not
        soft_YXC = jnp.where(spread, (soft_YXC - low) / jnp.where(spread, high - low, 1.0), soft_YXC)
    return soft_YXC.argmax(-1).astype(jnp.uint8)

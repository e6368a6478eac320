"""Labels of a video's first frame carried on by the likeness of features, in the two published ways.

dino: arXiv 2104.14294, eval_video_segmentation.py. crw: RVM and Contrastive Random Walks (arXiv 2006.14613).

Shape suffixes: F frames, N tokens of a frame (rows x columns), D channels, K context frames, C labels with background.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to carry labels on.

    context: frames before the present one, besides the first. primed: at the start these are copies of the first
    frame, instead of missing.
    radius: in tokens, how far a token looks. square: up to and with it in rows and columns; else less than it in
    distance, and anywhere in the first frame.
    top, temperature: so many most similar tokens count, by exp(cosine / temperature).
    stretch: each object's labels are stretched to 0 ... 1 before the largest wins.
    """

    context: int
    primed: bool
    radius: int
    square: bool
    top: int
    temperature: float
    stretch: bool


METHODS = {
    "dino": Method(context=7, primed=False, radius=12, square=True, top=5, temperature=0.1, stretch=True),
    "crw": Method(context=20, primed=True, radius=20, square=False, top=7, temperature=0.7, stretch=False),
}


def propagate(features_FND: np.ndarray, grid: tuple[int, int], labels_NC: np.ndarray, method: Method) -> np.ndarray:
    """Soft labels of every frame.

    Args:
      features_FND: of each frame's tokens, any length (they are normalised).
      grid: rows and columns of tokens.
      labels_NC: of the first frame, one-hot.

    Returns:
      float32 [F, N, C]; the first frame's are those given.

    Raises:
      ValueError: features, grid and labels that do not fit together.
    """
    frames, tokens, _ = features_FND.shape
    if tokens != grid[0] * grid[1] or len(labels_NC) != tokens:
        raise ValueError(f"{tokens} features, {len(labels_NC)} labels and a grid of {grid} must be of the same tokens")
    features = jnp.asarray(features_FND, jnp.float32)
    features /= jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    near_NN = jnp.asarray(neighbourhood(grid, method))
    out = np.zeros((frames, tokens, labels_NC.shape[1]), np.float32)
    out[0] = labels_NC
    for frame in range(1, frames):
        before = np.arange(frame - method.context, frame)
        present = (before >= 0) | method.primed
        if not method.primed:
            present &= before > 0  # the first frame is there anyway
        ids = np.concatenate([[0], np.maximum(before, 0)])
        there = np.concatenate([[True], present])
        out[frame] = _carry(features[frame], features[ids], jnp.asarray(out[ids]), jnp.asarray(there), near_NN, method)
    return out


@functools.partial(jax.jit, static_argnames="method")
def _carry(query_ND, context_KND, labels_KNC, there_K, near_NN, method: Method) -> jax.Array:
    likeness_NKM = jnp.einsum("nd,kmd->nkm", query_ND, context_KND, precision="highest")
    near_NKM = jnp.broadcast_to(near_NN[:, None], likeness_NKM.shape)
    if not method.square:
        near_NKM = near_NKM.at[:, 0].set(True)
    likeness_NKM = jnp.where(near_NKM & there_K[None, :, None], likeness_NKM, -jnp.inf)
    largest, where = jax.lax.top_k(likeness_NKM.reshape(len(query_ND), -1), method.top)
    weights = jax.nn.softmax(largest / method.temperature, axis=-1)
    labels = labels_KNC.reshape(-1, labels_KNC.shape[-1])[where]
    return jnp.einsum("nt,ntc->nc", weights, labels, precision="highest")


def neighbourhood(grid: tuple[int, int], method: Method) -> np.ndarray:
    """bool [N, N]: which token of another frame a token may look at."""
    rows, columns = (axis.reshape(-1) for axis in np.mgrid[: grid[0], : grid[1]])
    down, across = rows[:, None] - rows, columns[:, None] - columns
    if method.square:
        return (abs(down) <= method.radius) & (abs(across) <= method.radius)
    return down**2 + across**2 < method.radius**2


def to_masks(soft_FNC: np.ndarray, grid: tuple[int, int], size: tuple[int, int], method: Method) -> np.ndarray:
    """Soft labels of tokens to the label of every pixel, uint8 [F, H, W]: bilinear, then the largest."""
    resize = jax.jit(lambda soft: jax.image.resize(soft, (*size, soft.shape[-1]), "bilinear"))
    masks = np.empty((len(soft_FNC), *size), np.uint8)
    for frame, soft_NC in enumerate(soft_FNC):
        soft = np.array(resize(jnp.asarray(soft_NC.reshape(*grid, -1))))
        if method.stretch:
            low, high = soft.min((0, 1)), soft.max((0, 1))
            spread = high > np.maximum(low, 0)
            soft[..., spread] = (soft[..., spread] - low[spread]) / (high - low)[spread]
        masks[frame] = soft.argmax(-1)
    return masks

"""Video to tubelets.

Shape suffixes: B batch, T frames, Y and X pixels, C colours, N tokens, P values of one tubelet.
"""

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(video_BTYXC: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """uint8 video to ImageNet-normalised values of `dtype`. Other dtypes are taken as already normalised."""
    if video_BTYXC.dtype != jnp.uint8:
        return video_BTYXC.astype(dtype)
    scale, shift = 1.0 / (255.0 * IMAGENET_STD), -IMAGENET_MEAN / IMAGENET_STD
    return (video_BTYXC.astype(jnp.float32) * scale + shift).astype(dtype)


def patchify(video_BTYXC: jax.Array, tubelet_size: int, patch_size: int) -> jax.Array:
    """Cut into tubelets: [B, T, Y, X, C] to [B, N, tubelet*patch*patch*C].

    Values of a tubelet are ordered (frame, row, column, colour), so that a matrix product with a reshaped DHWIO kernel
    equals the strided 3D convolution of the published model. Tokens are ordered time, row, column.
    """
    b, c = video_BTYXC.shape[0], video_BTYXC.shape[-1]
    grid = token_grid(video_BTYXC.shape, tubelet_size, patch_size)
    split = video_BTYXC.reshape(b, grid[0], tubelet_size, grid[1], patch_size, grid[2], patch_size, c)
    return split.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, grid[0] * grid[1] * grid[2], -1)


def token_grid(shape_BTYXC: tuple[int, ...], tubelet_size: int, patch_size: int) -> tuple[int, int, int]:
    """Tokens along time, height and width. Raises ValueError where the clip does not divide."""
    _, t, y, x, _ = shape_BTYXC
    if t % tubelet_size or y % patch_size or x % patch_size:
        raise ValueError(
            f"a clip of {t} frames of {y}x{x} pixels does not divide into tubelets of {tubelet_size} frames and "
            f"{patch_size}x{patch_size} pixels: resize or cut it to multiples of these"
        )
    return t // tubelet_size, y // patch_size, x // patch_size

"""Rotary position over time, height and width, and the fixed sin-cos table (vjepa2 src/models/utils/modules.py).

Shape suffixes: B batch, N tokens, H heads, K head size, S channels rotated for one axis, D embedding.
"""

import jax
import jax.numpy as jnp
import numpy as np

Grid = tuple[int, int, int]


def axis_channels(head_dim: int) -> int:
    """Channels rotated for each of the three axes: 2 * ((head_dim // 3) // 2). The rest pass through."""
    return 2 * ((head_dim // 3) // 2)


def token_positions(ids: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Time, row and column of flat token ids t*H'*W' + h*W' + w. Shapes as ids, int32."""
    _, height, width = grid
    return ids // (height * width), ids // width % height, ids % width


def rope_tables(
    ids_BN: jax.Array, grid: Grid, head_dim: int, mode: str, side: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines that `apply_rope` multiplies with, float32 [B, N, head_dim].

    mode "tiled" is what V-JEPA 2 was trained with: channels 2j and 2j+1 of an axis get the angles of frequencies 2j and
    2j+1 modulo half, not a shared one. "interleaved" is a true rotation (V-JEPA 2.1). Pass-through channels have
    cosine 1 and sine 0.

    side: rows and columns are scaled so that they span 0 to side - 1 whatever the grid (V-JEPA 2.1: 16, the grid of
    256 px; app/vjepa_2_1/models/utils/modules.py). A grid of one row or column stays at 0, where the published code
    divides by zero.
    """
    channels = axis_channels(head_dim)
    half = channels // 2
    omega = jnp.asarray(10000.0 ** (-np.arange(half) / half), jnp.float32)
    angles = []
    for position_BN, scale in zip(token_positions(ids_BN, grid), _scales(grid, side), strict=True):
        angle = (position_BN[..., None].astype(jnp.float32) * scale) * omega
        if mode == "tiled":
            angles.append(jnp.concatenate([angle, angle], axis=-1))
        elif mode == "interleaved":
            angles.append(jnp.repeat(angle, 2, axis=-1))
        else:
            raise ValueError(f"rope mode {mode!r} is not one of tiled, interleaved")
    rest = jnp.zeros((*ids_BN.shape, head_dim - 3 * channels), jnp.float32)
    angle_BNK = jnp.concatenate([*angles, rest], axis=-1)
    return jnp.cos(angle_BNK), jnp.sin(angle_BNK)


def _scales(grid: Grid, side: int | None) -> list[float]:
    """What positions along time, height and width are multiplied by, for `side` of `rope_tables`."""
    return [1.0] + [1.0 if side is None else (side - 1) / max(n - 1, 1) for n in grid[1:]]


def append_unrotated(rope: tuple[jax.Array, jax.Array], count: int) -> tuple[jax.Array, jax.Array]:
    """The tables with `count` more tokens that carry no position (CLS, registers)."""
    widths = ((0, 0), (0, count), (0, 0))
    return jnp.pad(rope[0], widths, constant_values=1.0), jnp.pad(rope[1], widths)


def apply_rope(x_BNHK: jax.Array, cos_BNK: jax.Array, sin_BNK: jax.Array) -> jax.Array:
    """x * cos + rotate(x) * sin with rotate mapping adjacent channels (a, b) to (-b, a). Keeps x's dtype.

    The sign goes into the sines, so that the rest is one swap of neighbours, which XLA reads in place.
    """
    swapped = x_BNHK.reshape(*x_BNHK.shape[:-1], -1, 2)[..., ::-1].reshape(x_BNHK.shape)
    cos, sin = signed_tables(cos_BNK, sin_BNK, x_BNHK.dtype)
    return x_BNHK * cos + swapped * sin


def signed_tables(cos_BNK: jax.Array, sin_BNK: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """What channels, and what their swapped neighbours are multiplied with, [B, N, 1, K]."""
    sign_K = jnp.tile(jnp.asarray([-1.0, 1.0]), sin_BNK.shape[-1] // 2)
    return tuple(t[:, :, None, :].astype(dtype) for t in (cos_BNK, sin_BNK * sign_K))


def sincos_table(dim: int, grid: Grid, axes: int = 3, side: int | None = None) -> np.ndarray:
    """Fixed sin-cos position embedding of every token, float32 [N, dim].

    An axis of d channels gets [sin | cos] of position * 10000**(-j/(d/2)).
      axes 3: equal channels for time, row and column, 2*ceil(dim/6) each ("uniform_power"), cut to `dim` (V-JEPA 1;
        vjepa2 src/models/utils/pos_embs.py).
      axes 2: half of the channels for the column, then half for the row (MAE and I-JEPA); time is not told.
      side: as for `rope_tables`; the published codes resample the trained table instead, bicubic.
    """
    places = [scale * np.arange(n, dtype=np.float64) for n, scale in zip(grid, _scales(grid, side), strict=True)]
    time, row, column = np.meshgrid(*places, indexing="ij")
    positions = (time, row, column) if axes == 3 else (column, row)
    per_axis = 2 * int(np.ceil(dim / (2 * axes)))
    omega = 10000.0 ** (-np.arange(per_axis // 2) / (per_axis / 2.0))
    parts = []
    for position in positions:
        angle = position.reshape(-1, 1) * omega
        parts.append(np.concatenate([np.sin(angle), np.cos(angle)], axis=1))
    return np.concatenate(parts, axis=1)[:, :dim].astype(np.float32)

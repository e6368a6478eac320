"""Pictures of a run, with numpy and Pillow only: masks on real frames, PCA feature maps, and their files.

Legend: T, H, W frames and pixels of a clip; T', H', W' its token grid; D feature width.
"""

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vjepa_jax.training.files import write_bytes

_GAP = 3  # pixels between cells
_GAP_COLOUR = 127  # readable on light and dark pages
_TARGET_TINT = np.array([38, 84, 190], np.float32)  # blue, for both a dark frame and colour-blind eyes


def _fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[H,W,3] resized to (height, width): exact pixels when enlarged, averaged when reduced."""
    height, width = size
    if frame.shape[:2] == (height, width):
        return frame
    method = Image.Resampling.LANCZOS if height < frame.shape[0] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(frame).resize((width, height), method))


def _cell_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Size of a cell: small frames grow by a whole factor, so that their pixels stay square and equal."""
    scale = longest / max(height, width)
    if scale >= 1:
        scale = max(int(scale), 1)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def tile(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of equally large uint8[h,w,3] pictures as one picture with gaps between them."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    canvas = np.full(shape, _GAP_COLOUR, np.uint8)
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            top, left = r * (height + _GAP), c * (width + _GAP)
            canvas[top : top + height, left : left + width] = cell
    return canvas


def _token_states(group: Mapping[str, np.ndarray], grid: tuple[int, int, int]) -> np.ndarray:
    """int8[T',H',W']: 0 neither, 1 context, 2 target. Padded ids (`*_valid` False) count for nothing."""
    states = np.zeros(int(np.prod(grid)), np.int8)
    for value, name in ((1, "context"), (2, "target")):
        ids = np.asarray(group[name])
        if ids.ndim != 1:
            raise ValueError(f"masks of one clip are expected: {name!r} has shape {ids.shape}, not (tokens,)")
        valid = group.get(f"{name}_valid")
        ids = ids if valid is None else ids[np.asarray(valid, bool)]
        if ids.size and (ids.min() < 0 or ids.max() >= states.size):
            raise ValueError(f"{name} ids {ids.min()}..{ids.max()} leave the {states.size} tokens of grid {grid}")
        states[ids] = value
    return states.reshape(grid)


def _paint(frame: np.ndarray, states: np.ndarray) -> np.ndarray:
    """A frame uint8[H,W,3] with the token states int8[H',W'] on it."""
    height, width = frame.shape[:2]
    rows = np.arange(height) * states.shape[0] // height
    columns = np.arange(width) * states.shape[1] // width
    state = states[rows][:, columns][..., None]
    pixels = frame.astype(np.float32)
    luminance = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    target = 0.26 * luminance[..., None] + 0.5 * _TARGET_TINT
    neither = 0.3 * luminance[..., None] + 80.0
    return np.where(state == 1, pixels, np.where(state == 2, target, neither)).round().clip(0, 255).astype(np.uint8)


def mask_picture(
    video: np.ndarray,
    masks: Sequence[Mapping[str, np.ndarray]],
    grid: tuple[int, int, int],
    *,
    cell: int = 128,
    max_columns: int = 16,
) -> np.ndarray:
    """Masks of one clip drawn on its frames.

    The first row shows the first frame of each tubelet, then follows a row for each mask group: context as it is,
    target dark blue, tokens in neither (beyond the budgets) grey.

    Args:
      video: uint8[T,H,W,3].
      masks: a dict for each group: int[Kc] `context` and int[Kt] `target` token ids of this clip, optionally
        bool[Kc] `context_valid` and bool[Kt] `target_valid`.
      grid: (T', H', W').
      cell: longest side of a frame in the picture, in pixels.
      max_columns: of longer clips, this many tubelets spread evenly.

    Returns:
      uint8[h,w,3].

    Raises:
      ValueError: ids outside of the grid, or masks of a whole batch.
    """
    video = np.asarray(video)
    tubelet = max(video.shape[0] // grid[0], 1)
    times = np.unique(np.linspace(0, grid[0] - 1, min(grid[0], max_columns)).round().astype(int))
    size = _cell_size(*video.shape[1:3], cell)
    # Paint before fitting when the frame shrinks and after it when it grows: token borders stay sharp both ways.
    frames = [video[t * tubelet] if size[0] <= video.shape[1] else _fit(video[t * tubelet], size) for t in times]
    rows = [[_fit(frame, size) for frame in frames]]
    for group in masks:
        states = _token_states(group, grid)
        rows.append([_fit(_paint(frame, states[t]), size) for frame, t in zip(frames, times, strict=True)])
    return tile(rows)


def _principal_colours(features: np.ndarray) -> np.ndarray:
    """uint8[T',H',W',3] from [T',H',W',D]: the first three principal components, stretched to their 1-99 % range."""
    tokens = np.nan_to_num(np.asarray(features, np.float64).reshape(-1, features.shape[-1]), posinf=0.0, neginf=0.0)
    size = float(np.abs(tokens).max())
    tokens = tokens - tokens.mean(axis=0)
    _, axes = np.linalg.eigh(tokens.T @ tokens)
    axes = axes[:, ::-1][:, :3]
    # The sign of an axis is arbitrary: fix it, so that pictures of successive steps do not flip their colours for that.
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    projected = tokens @ axes
    low, high = np.percentile(projected, [1, 99], axis=0)
    # Components far weaker than the first one stay pale, and a collapsed encoder is grey: no amplified noise.
    floor = max(0.1 * float((high - low)[0]), 1e-6 * size, 1e-12)
    scaled = 0.5 + (projected - (low + high) / 2) / np.maximum(high - low, floor)
    colours = np.full((len(tokens), 3), 0.5)
    colours[:, : scaled.shape[1]] = scaled
    return (colours.clip(0, 1) * 255).round().astype(np.uint8).reshape(*features.shape[:3], 3)


def pca_frames(features: np.ndarray, video: np.ndarray, *, cell: int = 224, smooth: bool = False) -> list[np.ndarray]:
    """Feature maps over time beside the frames: one picture a video frame, [frame | feature map].

    The first three principal components over all tokens of the clip become red, green and blue.

    Args:
      features: float[T',H',W',D] of one clip.
      video: uint8[T,H,W,3].
      cell: longest side of a frame in the picture, in pixels.
      smooth: interpolate between tokens instead of showing them as squares.

    Returns:
      T pictures uint8[h,w,3], for `animation`.
    """
    features, video = np.asarray(features), np.asarray(video)
    if features.ndim != 4 or video.ndim != 4:
        raise ValueError(f"one clip is expected: features {features.shape} must be [T',H',W',D], video [T,H,W,3]")
    colours = _principal_colours(features)
    size = _cell_size(*video.shape[1:3], cell)
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    maps = [np.asarray(Image.fromarray(c).resize(size[::-1], method)) for c in colours]
    times = np.arange(len(video)) * len(maps) // len(video)
    return [tile([[_fit(frame, size), maps[t]]]) for frame, t in zip(video, times, strict=True)]


# ----------------------------------------------------------------------------------------------------------- files


def png(image: np.ndarray) -> bytes:
    """uint8[h,w,3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def animation(images: Sequence[np.ndarray], *, fps: float = 6.0, form: str = "webp") -> bytes:
    """An endless animation of uint8[h,w,3] pictures. form: webp (small), gif (256 colours) or png (APNG, lossless)."""
    if form not in ("webp", "gif", "png"):
        raise ValueError(f"form={form!r} is not one of webp, gif, png")
    frames = [Image.fromarray(image) for image in images]
    options = {"webp": {"quality": 82, "method": 4}, "gif": {}, "png": {}}[form]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, form.upper(), save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, **options
    )
    return buffer.getvalue()


def still(data: bytes) -> bytes:
    """The first frame of a picture file as PNG, for readers who ask for less motion."""
    with Image.open(io.BytesIO(data)) as image:
        return png(np.asarray(image.convert("RGB")))


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of a picture file. Raises OSError if it is none."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def mime_type(data: bytes) -> str:
    """MIME type of PNG, WebP or GIF bytes. Raises ValueError for anything else."""
    for start, mime in ((b"\x89PNG\r\n", "image/png"), (b"GIF8", "image/gif")):
        if data.startswith(start):
            return mime
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise ValueError("neither PNG, WebP nor GIF")


def data_uri(data: bytes) -> str:
    """Picture bytes as a base64 data URI."""
    return f"data:{mime_type(data)};base64,{base64.b64encode(data).decode('ascii')}"


@dataclass(frozen=True)
class SavedPicture:
    """A file of workdir/pictures: what it shows (`masks`, `pca`, ...) at which step."""

    kind: str
    step: int | None
    path: Path


def save_picture(workdir: str | os.PathLike[str], kind: str, step: int, data: bytes) -> Path:
    """Write picture bytes to workdir/pictures/<kind>_<step>.<png|webp|gif>, atomically; the report finds them there."""
    folder = Path(workdir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}_{step:08d}.{mime_type(data).removeprefix('image/')}"
    write_bytes(path, data)
    return path


def saved_pictures(workdir: str | os.PathLike[str]) -> list[SavedPicture]:
    """Pictures of a run by kind, then step. A file that is not named <kind>_<step> has step None."""
    found = []
    for path in sorted((Path(workdir) / "pictures").glob("*")):
        if path.suffix.lower() not in (".png", ".webp", ".gif"):
            continue
        match = re.fullmatch(r"(.+)_(\d+)", path.stem)
        kind, step = (match[1], int(match[2])) if match else (path.stem, None)
        found.append(SavedPicture(kind, step, path))
    return sorted(found, key=lambda p: (p.kind, -1 if p.step is None else p.step))

"""Pictures of the embedded world: shapes, colours, backgrounds, and which pixel belongs to what."""

import math
from dataclasses import dataclass

import numpy as np

from data_pipelines.world_physics import LOOK, NOISE, SHAPE, Scene, balanced, generator
from data_pipelines.world_spec import OCCLUDER_ID, SHAPES, WorldSpec

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_WAVES = 6  # plane waves of a texture, with up to _CYCLES periods along the frame
_CYCLES = 5


@dataclass(frozen=True)
class Look:
    """Colours are float32[3] in [0, 1]; shapes are indices into SHAPES. Each object has a second look for `change`.

    shape: int[2, O]; colour: float32[2, O, 3]; angle: float[O] in radians.
    """

    shape: np.ndarray
    colour: np.ndarray
    angle: np.ndarray
    background: np.ndarray
    occluder: np.ndarray


@dataclass(frozen=True)
class Picture:
    """video: uint8[T, H, W, 3]; masks: uint8[T, H, W] (0 background, 1.. objects, OCCLUDER_ID); per object and frame,
    int[T, O]: pixels of the whole object, of its part inside the frame, and of what can be seen of it."""

    video: np.ndarray
    masks: np.ndarray
    whole: np.ndarray
    inside: np.ndarray
    seen: np.ndarray


def draw_look(spec: WorldSpec, seed: int, group: int, objects: int) -> Look:
    """Appearance of a group's videos, independent of how its objects move."""
    rng = generator(seed, LOOK, group)
    low, high = (0.25, 0.6) if spec.palette == "random" else (0.15, 0.15)
    background = rng.uniform(low, high, 3).astype(np.float32)
    first = balanced(seed, SHAPE, group, len(spec.shapes))
    choice = rng.integers(len(spec.shapes), size=objects)
    choice[0] = first
    other = (choice + rng.integers(1, max(2, len(spec.shapes)), objects)) % len(spec.shapes)
    names = np.array([SHAPES.index(name) for name in spec.shapes])
    colours: list[np.ndarray] = []
    for _ in range(2 * objects + 1):
        colours.append(_contrasting(rng, background, colours, 0.0 if spec.palette == "random" else 0.5))
    return Look(
        shape=names[np.stack([choice, other])],
        colour=np.stack(colours[:-1]).reshape(2, objects, 3),
        angle=rng.uniform(0, 2 * math.pi, objects),
        background=background,
        occluder=colours[-1],
    )


def backdrop(spec: WorldSpec, seed: int, group: int, look: Look) -> np.ndarray:
    """uint8[T, H, W, 3]: colour, texture, and noise that is new in every frame."""
    rng = generator(seed, NOISE, group)
    shape = (spec.num_frames, spec.height, spec.width)
    light = np.zeros(shape, np.float32)
    if spec.background != "plain":
        light += _texture(spec, rng)
    if spec.noise:
        light += spec.noise * rng.standard_normal(shape, np.float32)
    video = (255 * look.background + np.float32(0.5)) + 255 * light[..., None]
    return np.clip(video, 0, 255, out=video).astype(np.uint8)


def paint(spec: WorldSpec, scene: Scene, look: Look, behind: np.ndarray) -> Picture:
    """Draw a scene's objects and occluder over `behind` (not changed), object 0 in front of the others."""
    video = behind.copy()
    frames, objects = scene.present.shape
    masks = np.zeros(video.shape[:3], np.uint8)
    whole, inside = np.zeros((2, frames, objects), int)
    for i in reversed(range(objects)):
        for second in (False, True):
            times = np.flatnonzero(scene.present[:, i] & (scene.altered[:, i] == second))
            if len(times):
                whole[times, i], inside[times, i] = _draw(spec, scene, look, video, masks, i, times, int(second))
    if scene.occluder is not None:
        hidden = _occluded(spec, scene)
        video[:, hidden] = _bytes(look.occluder)
        masks[:, hidden] = OCCLUDER_ID
    flat = masks.reshape(frames, -1)
    seen = np.stack([(flat == i + 1).sum(1) for i in range(objects)], 1)
    return Picture(video, masks, whole, inside, seen)


def _draw(spec, scene, look, video, masks, i, times, second) -> tuple[np.ndarray, np.ndarray]:
    """Draw object i into video and masks in the frames `times`; its pixels in all and inside the frame there."""
    alpha, rows, columns = _raster(
        SHAPES[look.shape[second, i]], scene.position[times, i], scene.radius[i], look.angle[i]
    )
    if scene.period is not None:
        columns, rows = columns % int(scene.period[0]), rows % int(scene.period[1])
    where = (alpha > 0) & (rows >= 0) & (rows < spec.height) & (columns >= 0) & (columns < spec.width)
    k, r, c = np.nonzero(where)
    t, y, x, a = times[k], rows[k, r, 0], columns[k, 0, c], alpha[where]
    below = video[t, y, x] / np.float32(255)
    video[t, y, x] = _bytes(below + a[:, None] * (look.colour[second, i] - below))
    solid = a >= 0.5
    masks[t[solid], y[solid], x[solid]] = i + 1
    return (alpha >= 0.5).sum((1, 2)), np.bincount(k[solid], minlength=len(times))


def _bytes(colour: np.ndarray) -> np.ndarray:
    return (colour * 255 + 0.5).astype(np.uint8)


def _contrasting(
    rng: np.random.Generator, background: np.ndarray, others: list[np.ndarray], darkest: float
) -> np.ndarray:
    """A random colour, no channel below `darkest`, unlike the background in luminance and unlike the others in any way.

    Chroma alone does not survive 4:2:0 subsampling at 32 pixels.
    """
    colours = rng.uniform(darkest, 1, (64, 3)).astype(np.float32)
    score = np.abs((colours - background) @ _LUMA) / 0.25
    for other in others:
        score = np.minimum(score, np.linalg.norm(colours - other, axis=1) / 0.4)
    clear = np.flatnonzero(score >= 1)
    return colours[clear[0] if len(clear) else score.argmax()]


def _texture(spec: WorldSpec, rng: np.random.Generator) -> np.ndarray:
    """float32[T or 1, H, W]: a few plane waves, periodic in the frame; background 'moving' drifts as a whole."""
    cycles = rng.integers(-_CYCLES, _CYCLES + 1, (2, _WAVES))
    phase = rng.uniform(0, 2 * math.pi, _WAVES)
    heading = rng.uniform(0, 2 * math.pi)
    drift = rng.uniform(0.5, max(spec.speeds)) * np.array([math.cos(heading), math.sin(heading)])
    times = np.arange(spec.num_frames if spec.background == "moving" else 1)
    step = cycles[0] * drift[0] / spec.width + cycles[1] * drift[1] / spec.height
    along_t = np.exp(1j * (phase - 2 * math.pi * times[:, None] * step))
    along_x = np.exp(2j * math.pi * cycles[0][:, None] * np.arange(spec.width) / spec.width)
    along_y = np.exp(2j * math.pi * cycles[1] * np.arange(spec.height)[:, None] / spec.height)
    waves = (along_t[:, None, :] * along_y).astype(np.complex64) @ along_x.astype(np.complex64)
    return (spec.texture * math.sqrt(2 / _WAVES)) * waves.real


def _raster(shape: str, centre: np.ndarray, radius: float, angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage float32[T, K, K] of the pixels around each centre, their rows [T, K, 1] and columns [T, 1, K]."""
    reach = math.ceil(radius) + 1
    corner = np.floor(centre).astype(int)
    offset = np.arange(-reach, reach + 1)
    columns, rows = (corner[:, axis, None] + offset for axis in (0, 1))
    x = ((columns + 0.5 - centre[:, :1]) / radius).astype(np.float32)[:, None, :]
    y = ((rows + 0.5 - centre[:, 1:]) / radius).astype(np.float32)[:, :, None]
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    distance = _distance(shape, cos * x + sin * y, cos * y - sin * x) * np.float32(radius)
    return np.clip(0.5 - distance, 0, 1), rows[:, :, None], columns[:, None, :]


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) to the edge of a shape whose farthest points lie on the unit circle."""
    if shape == "plus":
        long, short = 0.93, 0.37
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - long, ay - short), np.maximum(ax - short, ay - long))
    rho = np.hypot(x, y)
    if shape == "circle":
        return rho - 1
    if shape == "ring":
        return np.abs(rho - 0.75) - 0.25
    sides, inner = {"triangle": (3, 0.5), "square": (4, math.sqrt(0.5)), "star": (5, 0.5)}[shape]
    # Fold the plane into one half of a sector: there the edge is one line, from the outer corner at angle 0 to the
    # inner point at angle pi / sides (for regular polygons the middle of a side).
    sector = 2 * math.pi / sides
    theta = np.arctan2(y, x)
    theta = np.abs(theta - sector * np.round(theta / sector))
    corner = np.array([inner * math.cos(sector / 2) - 1, inner * math.sin(sector / 2)])
    normal = np.array([corner[1], -corner[0]]) / np.hypot(*corner)
    return (np.float32(normal[0]) * (rho * np.cos(theta) - 1) + np.float32(normal[1]) * (rho * np.sin(theta))).astype(
        np.float32
    )


def _occluded(spec: WorldSpec, scene: Scene) -> np.ndarray:
    """bool[H, W]: pixels of the occluder."""
    x, y, half_x, half_y = scene.occluder
    dx, dy = np.arange(spec.width) + 0.5 - x, np.arange(spec.height) + 0.5 - y
    if scene.period is not None:
        dx, dy = (d - p * np.round(d / p) for d, p in zip((dx, dy), scene.period, strict=True))
    return (np.abs(dy) <= half_y)[:, None] & (np.abs(dx) <= half_x)

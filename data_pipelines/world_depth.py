"""Scenes of the embedded world in depth: objects of one true size, so that how large each looks says how far it is.

Depth is exact: an object at depth d looks `largest radius / d` large, hides what lies behind it, and moves 1 / d as
fast (motion parallax) on the torus; a wall closes the scene. Looks, background and noise are those of a world of the
same spec (world_render.py).
"""

import dataclasses
import math

import numpy as np

from data_pipelines import world_physics, world_render
from data_pipelines.world_physics import DEPTH, generator
from data_pipelines.world_spec import WorldSpec, demo_spec

NEAREST = 1.0  # depth of the largest object; depths are in this unit
_BEHIND = 1.25  # the wall lies so much farther than any object can


def scene_spec(size: int, num_frames: int = 2, noise: float = 0.05) -> WorldSpec:
    """Three to five bright objects whose radii, and so depths, span a factor of 2."""
    radius = (3.0 * size / 32, 6.0 * size / 32)
    return dataclasses.replace(demo_spec(size, num_frames, noise), objects=(3, 5), radius=radius)


def depth_range(spec: WorldSpec) -> tuple[float, float]:
    """The least and the greatest depth of an object."""
    return NEAREST, NEAREST * spec.radius[1] / spec.radius[0]


def render_scene(spec: WorldSpec, seed: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scene `index` of a world, which depends on (spec, seed, index) only.

    Returns:
      video uint8 [T, H, W, 3]; classes int32 [T, H, W], 0 for background, else 1 + an index into SHAPES;
      depth float32 [T, H, W].
    """
    rng = generator(seed, DEPTH, index)
    count = int(rng.integers(spec.objects[0], spec.objects[1] + 1))
    look = world_render.draw_look(spec, seed, index, count)
    # Lower-numbered objects are painted in front. Shapes are balanced over the first object of a world: here over a
    # random one, for the nearest would have them all.
    depth = np.sort(rng.uniform(*depth_range(spec), count))
    order = rng.permutation(count)
    look = dataclasses.replace(look, shape=look.shape[:, order], colour=look.colour[:, order], angle=look.angle[order])
    scene = _scene(spec, rng, NEAREST * spec.radius[1] / depth, depth)
    picture = world_render.paint(spec, scene, look, world_render.backdrop(spec, seed, index, look))
    classes = np.concatenate([[0], 1 + look.shape[0]]).astype(np.int32)
    depths = np.concatenate([[_BEHIND * depth_range(spec)[1]], depth]).astype(np.float32)
    return picture.video, classes[picture.masks], depths[picture.masks]


def _scene(spec: WorldSpec, rng: np.random.Generator, radius: np.ndarray, depth: np.ndarray) -> world_physics.Scene:
    """Straight motion from random places in random directions, the slower the farther."""
    count, size = len(depth), world_physics.box(spec)
    angle = rng.uniform(0, 2 * math.pi, count)
    velocity = max(spec.speeds) * np.stack([np.cos(angle), np.sin(angle)], -1) / depth[:, None]
    start = rng.uniform(0, 1, (count, 2)) * size
    position = start + np.arange(spec.num_frames)[:, None, None] * velocity
    present = np.ones((spec.num_frames, count), bool)
    return world_physics.Scene(
        motion="depth",
        direction=-1,
        speed=float(max(spec.speeds)),
        radius=radius,
        mass=radius**2,
        position=position % size,
        velocity=np.broadcast_to(velocity, position.shape),
        present=present,
        altered=~present,
        period=size,
    )

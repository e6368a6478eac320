"""Videos of the embedded world in which one object changes what it does, at exact frames, and nothing else changes.

Looks, background and noise are those of a world of the same spec (world_render.py); the object moves on the torus. A
plan is a list of (behaviour, frames). Frame t shows the step from frame t - 1 by the behaviour of frame t, so that the
first frame of a behaviour is the first that differs from what would have come without it.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from data_pipelines import world_physics, world_render
from data_pipelines.world_physics import BEHAVIOUR, generator
from data_pipelines.world_spec import WorldError, WorldSpec

# drift: slow and straight. dash: fast and straight. orbit: on a circle. shake: to and fro. still: not at all.
BEHAVIOURS = ("drift", "dash", "orbit", "shake", "still")
# Pixels a frame in a frame of 32 pixels; radians a frame.
_SPEED = {"drift": 0.75, "dash": 3.0, "orbit": 2.0, "shake": 2.5, "still": 0.0}
_SPIN = 0.5
_SHAKE = 2 * math.pi / 6

Plan = Sequence[tuple[str, int]]


def render_behaviours(spec: WorldSpec, seed: int, index: int, plan: Plan) -> tuple[np.ndarray, str]:
    """Video `index` of a world whose object follows a plan: uint8 [T, H, W, 3], T the plan's frames, and its shape.

    It depends on (spec, seed, index, plan) only; the looks do not depend on the plan.

    Raises:
      WorldError: an unknown behaviour, or one of no frames.
    """
    for behaviour, frames in plan:
        if behaviour not in BEHAVIOURS or frames < 1:
            raise WorldError(f"world: {behaviour!r} of {frames} frames: behaviours are {', '.join(BEHAVIOURS)}, 1 up")
    spec = dataclasses.replace(spec, num_frames=sum(frames for _, frames in plan), edges="wrap")
    look = world_render.draw_look(spec, seed, index, 1)
    rng = generator(seed, BEHAVIOUR, index)
    radius = rng.uniform(*spec.radius, 1)
    size = world_physics.box(spec)
    start = rng.uniform(0, 1, 2) * size
    velocity = np.concatenate([_velocity(rng, *part) for part in plan]) * min(spec.height, spec.width) / 32
    position = start + np.concatenate([np.zeros((1, 2)), np.cumsum(velocity[1:], axis=0)])
    present = np.ones((spec.num_frames, 1), bool)
    scene = world_physics.Scene(
        motion="behaviours",
        direction=-1,
        speed=0.0,
        radius=radius,
        mass=radius**2,
        position=(position % size)[:, None],
        velocity=velocity[:, None],
        present=present,
        altered=~present,
        period=size,
    )
    picture = world_render.paint(spec, scene, look, world_render.backdrop(spec, seed, index, look))
    return picture.video, world_render.SHAPES[look.shape[0, 0]]


def segments(plan: Plan) -> list[tuple[str, int, int]]:
    """(behaviour, first frame, frame after the last) of every part of a plan."""
    ends = np.cumsum([0, *(frames for _, frames in plan)]).tolist()
    return [(behaviour, *ends[i : i + 2]) for i, (behaviour, _) in enumerate(plan)]


def _velocity(rng: np.random.Generator, behaviour: str, frames: int) -> np.ndarray:
    """float64 [frames, 2], in a random direction and phase."""
    angle, phase, turn = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi), rng.choice([-1.0, 1.0])
    times = np.arange(frames)
    headings = angle + turn * _SPIN * times if behaviour == "orbit" else np.full(frames, angle)
    speed = _SPEED[behaviour] * (np.cos(_SHAKE * times + phase) if behaviour == "shake" else np.ones(frames))
    return speed[:, None] * np.stack([np.cos(headings), np.sin(headings)], 1)

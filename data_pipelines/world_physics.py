"""Motion of the embedded world: where every object is in every frame, and what happens when.

Positions are (x, y) in pixels in the frame, x right and y down; pixel (row i, column j) covers [j, j+1) x [i, i+1).
Times are in frames. Objects are discs for walls and collisions.
"""

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.world_spec import DIRECTIONS, VIOLATIONS, WorldError, WorldSpec

# Streams of random numbers, so that no draw depends on how many numbers another one took.
DIRECTION, MOTION, SPEED, SHAPE, VIOLATION, SCENE, TWIN, LOOK, NOISE, BEHAVIOUR, DEPTH = range(11)
_TRIES = 500


@dataclass(frozen=True)
class Event:
    """kind: a name of world_spec.EVENTS; time: in frames; second: the other object, or -1 (wall, occluder, nothing)."""

    kind: str
    time: float
    first: int
    second: int = -1


@dataclass(frozen=True)
class Scene:
    """The motion of one video of T frames and O objects. Object 0 is the one that labels are about.

    position, velocity: float64[T, O, 2] (position on the torus is already wrapped); present: bool[T, O], False where an
    object does not exist; altered: bool[T, O], True where it has its second look; occluder: centre and half sizes
    (x, y, hx, hy) or None; period: size (x, y) of the torus or None; break_time: frames, -1 in a possible video.
    """

    motion: str
    direction: int
    speed: float
    radius: np.ndarray
    mass: np.ndarray
    position: np.ndarray
    velocity: np.ndarray
    present: np.ndarray
    altered: np.ndarray
    occluder: tuple[float, float, float, float] | None = None
    period: np.ndarray | None = None
    events: tuple[Event, ...] = field(default_factory=tuple)
    violation: str = ""
    break_time: float = -1.0
    crossing_time: float = -1.0  # motion occlude: object 0 is at the occluder's centre


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """The random numbers of one stream of one video; independent of every other stream and video."""
    return np.random.default_rng([seed, stream, index])


def balanced(seed: int, stream: int, index: int, count: int) -> int:
    """A number below `count`; every `count` consecutive indices (from a multiple of `count`) hold each once."""
    block, place = divmod(index, count)
    return int(generator(seed, stream, block).permutation(count)[place])


def build(spec: WorldSpec, seed: int, group: int) -> Scene:
    """The possible scene of a group (of the pair, or of the single video).

    Raises:
      WorldError: the objects find no room in the frame.
    """
    rng = generator(seed, SCENE, group)
    direction = balanced(seed, DIRECTION, group, len(DIRECTIONS))
    speed = spec.speeds[balanced(seed, SPEED, group, len(spec.speeds))]
    violation = violation_of(spec, seed, group)
    motion = VIOLATIONS[violation] if violation else spec.motions[balanced(seed, MOTION, group, len(spec.motions))]
    n = int(rng.integers(spec.objects[0], spec.objects[1] + 1))
    n = max(n, 2) if motion == "collide" else n
    radius = rng.uniform(*spec.radius, n)
    velocity = _velocities(spec, rng, n, direction, speed, common=spec.common_motion and motion != "collide")
    moves = {"translate": _translate, "bounce": _bounce, "orbit": _orbit, "collide": _collide, "occlude": _occlude}
    moved = moves[motion](spec, rng, radius, velocity)
    shape = (spec.num_frames, n)
    scene = Scene(
        motion=motion,
        direction=direction,
        speed=speed,
        radius=radius,
        mass=radius**2,
        present=np.ones(shape, bool),
        altered=np.zeros(shape, bool),
        **moved,
    )
    if spec.occluder and scene.occluder is None:
        scene = dataclasses.replace(scene, occluder=_any_occluder(spec, rng))
    if violation == "appear":
        scene.present[:, 0] = False
    return _wrapped(spec, scene)


def violation_of(spec: WorldSpec, seed: int, group: int) -> str:
    """The violation of a pair, "" in a world without violations."""
    return spec.violations[balanced(seed, VIOLATION, group, len(spec.violations))] if spec.violations else ""


def violate(spec: WorldSpec, seed: int, group: int, scene: Scene) -> Scene:
    """The impossible twin of a scene: the same up to `break_time`, when its violation happens to object 0."""
    rng = generator(seed, TWIN, group)
    kind = violation_of(spec, seed, group)
    position, velocity = scene.position.copy(), scene.velocity.copy()
    present, altered = scene.present.copy(), scene.altered.copy()
    frames = np.arange(spec.num_frames)
    events = scene.events
    if kind in ("vanish", "appear", "change"):
        time = scene.crossing_time
        after = frames > time
        if kind == "change":
            altered[after, 0] = True
        else:
            present[after, 0] = kind == "appear"
    elif kind == "pass_through":
        time = next(e.time for e in events if e.kind == "collision" and (e.first, e.second) == (0, 1))
        start = (scene.position[0], scene.velocity[0])
        position, velocity, events = discs(*start, scene.radius, scene.mass, box(spec), spec.num_frames, ignore=(0, 1))
    else:
        time = float(rng.integers(max(1, spec.num_frames // 3), max(2, 2 * spec.num_frames // 3)))
        after = frames > time
        if kind == "reverse":
            position[after, 0] -= 2 * velocity[after, 0] * (frames[after] - time)[:, None]
            velocity[after, 0] *= -1
        else:
            position[after, 0] += _jump(spec, rng, scene, after)
    events = tuple(sorted((*events, Event("violation", time, 0)), key=lambda e: e.time))
    changed = dict(position=position, velocity=velocity, present=present, altered=altered, events=events)
    return dataclasses.replace(scene, violation=kind, break_time=time, **changed)


def box(spec: WorldSpec) -> np.ndarray:
    """Width and height of the frame."""
    return np.array([spec.width, spec.height], float)


def margin(spec: WorldSpec) -> float:
    """How far beyond the frame an object is when it goes round the torus: it cannot be seen there."""
    return math.ceil(spec.radius[1]) + 1.0 if spec.edges == "leave" else 0.0


def occluder_half(radius: float, speed: float) -> float:
    """Half the side of an occluder that hides an object of this radius for at least two frames."""
    return radius + speed


def _period(spec: WorldSpec) -> np.ndarray | None:
    return None if spec.edges == "inside" else box(spec) + 2 * margin(spec)


def _wrapped(spec: WorldSpec, scene: Scene) -> Scene:
    if scene.period is None:
        return scene
    m = margin(spec)
    return dataclasses.replace(scene, position=(scene.position + m) % scene.period - m)


def _unit(angle: np.ndarray | float) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _velocities(spec: WorldSpec, rng, n: int, direction: int, speed: float, common: bool) -> np.ndarray:
    """float64[n, 2]; object 0 has the labelled direction and speed."""
    directions, speeds = np.full(n, direction), np.full(n, speed)
    if not common:
        directions[1:] = rng.integers(len(DIRECTIONS), size=n - 1)
        speeds[1:] = rng.choice(spec.speeds, n - 1)
    jitter = np.radians(spec.angle_jitter) * rng.uniform(-1, 1, 1 if common else n)
    return speeds[:, None] * _unit(directions * (math.pi / 4) + jitter)


def _place(rng, low, high, radius, period=None, apart=True, fixed=None) -> np.ndarray:
    """float64[n, 2]: points uniform in [low, high] ([n, 2] each), discs around them disjoint where `apart`."""
    points = [] if fixed is None else [fixed]
    for i in range(len(points), len(radius)):
        for _ in range(_TRIES):
            point = rng.uniform(low[i], high[i])
            if not apart or not points or _clear(point, radius[i], np.stack(points), radius[:i], period):
                points.append(point)
                break
        else:
            raise WorldError(f"world: no room for {len(radius)} objects: ask for fewer or smaller objects")
    return np.stack(points)


def _clear(point, radius, others, other_radius, period) -> bool:
    gap = others - point
    if period is not None:
        gap -= period * np.round(gap / period)
    return bool((np.hypot(*gap.T) > radius + other_radius + 1.0).all())


def _region(spec: WorldSpec, radius: np.ndarray, travel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where straight paths of `travel` ([n, 2]) may start."""
    if spec.edges != "inside":
        low = np.full((len(radius), 2), -margin(spec))
        return low, low + _period(spec)
    return radius[:, None] - np.minimum(travel, 0), box(spec) - radius[:, None] - np.maximum(travel, 0)


def _straight(start: np.ndarray, velocity: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    times = np.arange(frames)[:, None, None]
    return {"position": start + velocity * times, "velocity": np.repeat(velocity[None], frames, 0)}


def _translate(spec: WorldSpec, rng, radius, velocity) -> dict:
    low, high = _region(spec, radius, velocity * (spec.num_frames - 1))
    period = _period(spec)
    start = _place(rng, low, high, radius, period, apart=spec.common_motion)
    return _straight(start, velocity, spec.num_frames) | {"period": period}


def _orbit(spec: WorldSpec, rng, radius, velocity) -> dict:
    """Circles of constant radius; at frame 0 the velocity is the given one."""
    n = len(radius)
    size = 1 if spec.common_motion else n
    orbit = rng.uniform(0.15, 0.3, size) * box(spec).min() * np.ones(n)
    spin = rng.choice([-1.0, 1.0], size) * np.ones(n)
    low, high = _region(spec, radius + orbit, np.zeros((n, 2)))
    period = _period(spec)
    centre = _place(rng, low, high, radius, period, apart=spec.common_motion)
    speed = np.hypot(*velocity.T)
    angle = np.arctan2(velocity[:, 1], velocity[:, 0]) - spin * math.pi / 2
    angle = angle + (spin * speed / orbit) * np.arange(spec.num_frames)[:, None]
    position = centre + orbit[:, None] * _unit(angle)
    turn = _unit(angle + spin * math.pi / 2)
    return {"position": position, "velocity": speed[:, None] * turn, "period": period}


def _bounce(spec: WorldSpec, rng, radius, velocity) -> dict:
    edge = np.repeat(radius[:, None], 2, 1)
    start = _place(rng, edge, box(spec) - edge, radius)
    position, velocity, events = discs(start, velocity, radius, radius**2, box(spec), spec.num_frames)
    return {"position": position, "velocity": velocity, "events": events}


def _collide(spec: WorldSpec, rng, radius, velocity) -> dict:
    """Objects 0 and 1 meet in the middle third of the clip; nothing touches either before."""
    size, steps = box(spec), spec.num_frames - 1
    speeds = np.hypot(*velocity.T)
    for _ in range(_TRIES):
        time = rng.uniform(0.3, 0.6) * steps
        velocity[1:] = speeds[1:, None] * _unit(rng.integers(len(DIRECTIONS), size=len(radius) - 1) * (math.pi / 4))
        closing = velocity[0] - velocity[1]
        if np.hypot(*closing) < 0.5 * speeds[0]:
            continue
        normal = _unit(math.atan2(closing[1], closing[0]) + rng.uniform(-0.25, 0.25) * math.pi)
        contact = rng.uniform(0, 1, 2) * size
        met = np.stack([contact - normal * radius[0], contact + normal * radius[1]])
        pair = met - velocity[:2] * time
        edge = radius[:2, None]
        if not all(((edge <= p) & (p <= size - edge)).all() for p in (met, pair)):
            continue
        others = rng.uniform(radius[2:, None], size - radius[2:, None], (len(radius) - 2, 2))
        start = np.concatenate([pair, others])
        if any(not _clear(start[i], radius[i], start[:i], radius[:i], None) for i in range(1, len(radius))):
            continue
        position, moved, events = discs(start, velocity, radius, radius**2, size, spec.num_frames)
        first = next((e for e in events if {e.first, e.second} & {0, 1}), None)
        if first is not None and (first.first, first.second) == (0, 1) and abs(first.time - time) < 1e-6:
            return {"position": position, "velocity": moved, "events": events}
    raise WorldError("world: no room for a collision: ask for fewer or smaller objects, or another number of frames")


def _occlude(spec: WorldSpec, rng, radius, velocity) -> dict:
    """Object 0 starts in view, is fully hidden at `crossing_time`, and is at least half in view again at the end."""
    steps, period = spec.num_frames - 1, _period(spec)
    half = occluder_half(radius[0], float(np.hypot(*velocity[0])))
    leading = np.abs(velocity[0]).max()  # a square hides along the faster of the two axes
    time = rng.uniform((half + radius[0]) / leading, steps - half / leading)
    low, high = _region(spec, radius, velocity * steps)
    if spec.edges == "inside":
        first = rng.uniform(low[0], high[0])
    else:
        first = rng.uniform(radius[0], box(spec) - radius[0]) - velocity[0] * time
    start = _place(rng, low, high, radius, period, apart=spec.common_motion, fixed=first)
    centre = start[0] + velocity[0] * time
    moved = _straight(start, velocity, spec.num_frames)
    return moved | {"period": period, "occluder": (*centre, half, half), "crossing_time": time}


def _any_occluder(spec: WorldSpec, rng) -> tuple[float, float, float, float]:
    half = spec.radius[1] * rng.uniform(1.0, 1.8, 2)
    return (*rng.uniform(0, 1, 2) * box(spec), *half)


def _jump(spec: WorldSpec, rng, scene: Scene, after: np.ndarray) -> np.ndarray:
    """A displacement that keeps the rest of object 0's path in the frame and shows clearly."""
    rest, r = scene.position[after, 0], scene.radius[0]
    low, high = r - rest.min(0), box(spec) - r - rest.max(0)
    candidates = rng.uniform(low, high, (64, 2))
    length = np.hypot(*candidates.T)
    far = candidates[length >= 3 * r]
    return far[0] if len(far) else candidates[length.argmax()]


def discs(
    position: np.ndarray,
    velocity: np.ndarray,
    radius: np.ndarray,
    mass: np.ndarray,
    size: np.ndarray,
    frames: int,
    ignore: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[Event, ...]]:
    """Elastic discs in a box, exact from event to event.

    Args:
      position, velocity: float[n, 2] at frame 0; radius, mass: float[n]; size: width and height of the box.
      ignore: a pair that does not collide.

    Returns:
      position, velocity: float64[frames, n, 2]; events: bounces and collisions in order of time.
    """
    p, v = np.array(position, float), np.array(velocity, float)
    positions, velocities = np.empty((2, frames, *p.shape))
    events: list[Event] = []
    time, frame = 0.0, 0
    while True:
        wait, i, j, axis = _next_contact(p, v, radius, size, ignore)
        while frame < frames and frame <= time + wait:
            positions[frame], velocities[frame] = p + v * (frame - time), v
            frame += 1
        if frame == frames:
            return positions, velocities, tuple(events)
        p, time = p + v * wait, time + wait
        if j < 0:
            v[i, axis] *= -1
            events.append(Event("bounce", time, i))
        else:
            normal = (p[j] - p[i]) / np.hypot(*(p[j] - p[i]))
            push = 2 * ((v[i] - v[j]) @ normal) / (1 / mass[i] + 1 / mass[j]) * normal
            v[i], v[j] = v[i] - push / mass[i], v[j] + push / mass[j]
            events.append(Event("collision", time, i, j))


def _next_contact(p, v, radius, size, ignore) -> tuple[float, int, int, int]:
    """Time to the next contact, the disc, the other disc (-1: a wall), and the wall's axis."""
    best = (math.inf, 0, -1, 0)
    points, speeds = p.tolist(), v.tolist()
    for i, (point, speed) in enumerate(zip(points, speeds, strict=True)):
        for axis in (0, 1):
            if speed[axis]:
                wall = size[axis] - radius[i] if speed[axis] > 0 else radius[i]
                wait = max(0.0, (wall - point[axis]) / speed[axis])
                best = min(best, (wait, i, -1, axis))
        for j in range(i + 1, len(points)):
            if (i, j) != ignore:
                gap = [points[j][k] - point[k] for k in (0, 1)]
                drift = [speeds[j][k] - speed[k] for k in (0, 1)]
                best = min(best, (_contact_time(gap, drift, radius[i] + radius[j]), i, j, 0))
    return best


def _contact_time(gap, drift, reach) -> float:
    """First time when two discs touch: |gap + drift * t| = reach; infinite when they do not."""
    approach = gap[0] * drift[0] + gap[1] * drift[1]
    if approach >= 0:
        return math.inf
    speed2 = drift[0] ** 2 + drift[1] ** 2
    root = approach**2 - speed2 * (gap[0] ** 2 + gap[1] ** 2 - reach**2)
    return math.inf if root < 0 else max(0.0, (-approach - math.sqrt(root)) / speed2)

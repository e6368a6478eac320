"""One video of the embedded world with its ground truth: `render` puts motion and pictures together."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from data_pipelines import world_physics, world_render
from data_pipelines.world_spec import EVENTS, SHAPES, WorldSpec


@dataclass(frozen=True)
class Truth:
    """Ground truth of one video of T frames and O objects; pixels and frames are the units, x right and y down.

    Object 0 is the one that `shape`, `direction` (of its first frame, index into DIRECTIONS) and `speed` are about.
    """

    index: int
    group: int  # a pair of possible and impossible video shares it
    motion: str
    shape: str
    direction: int
    speed: float
    violation: str  # "" in a possible video
    break_frame: int  # first frame that differs from the possible twin; -1 in a possible video
    tracks: np.ndarray  # float32[T, O, 2]: centre (x, y); pixel (i, j) covers [j, j+1) x [i, i+1)
    velocity: np.ndarray  # float32[T, O, 2]
    visible: np.ndarray  # bool[T, O]: any pixel can be seen
    visible_fraction: np.ndarray  # float32[T, O]: seen pixels of those of the whole object
    present: np.ndarray  # bool[T, O]: False where the object does not exist (violations vanish and appear)
    shapes: np.ndarray  # int32[T, O], index into SHAPES
    radius: np.ndarray  # float32[O], of the circle around the shape
    mass: np.ndarray  # float32[O]
    masks: np.ndarray  # uint8[T, H, W]: 0 background, 1 + object, OCCLUDER_ID
    event_kind: np.ndarray  # int32[E], index into EVENTS, in order of time
    event_time: np.ndarray  # float32[E]
    event_frame: np.ndarray  # int32[E]: first frame at or after the event
    event_objects: np.ndarray  # int32[E, 2], second -1: wall, occluder or nothing


def render(spec: WorldSpec, seed: int, index: int) -> tuple[np.ndarray, Truth]:
    """Video `index` of a world: uint8[T, H, W, 3] and its ground truth.

    Raises:
      WorldError: the objects find no room in the frame.
    """
    group, member = divmod(index, spec.videos_per_group)
    return render_group(spec, seed, group)[member]


def render_group(spec: WorldSpec, seed: int, group: int) -> list[tuple[np.ndarray, Truth]]:
    """All videos of a group: one, or a possible video and its impossible twin over the same background."""
    scene = world_physics.build(spec, seed, group)
    look = world_render.draw_look(spec, seed, group, len(scene.radius))
    behind = world_render.backdrop(spec, seed, group, look)
    picture = world_render.paint(spec, scene, look, behind)
    first = spec.videos_per_group * group
    videos = [(picture.video, _truth(spec, scene, look, picture, first, group, -1))]
    if spec.violations:
        broken = world_physics.violate(spec, seed, group, scene)
        twin = world_render.paint(spec, broken, look, behind)
        differs = (twin.video != picture.video).any((1, 2, 3))
        break_frame = int(differs.argmax()) if differs.any() else -1
        videos.append((twin.video, _truth(spec, broken, look, twin, first + 1, group, break_frame)))
    return videos


def _truth(spec, scene, look, picture, index: int, group: int, break_frame: int) -> Truth:
    events = sorted((*scene.events, *_occlusions(picture, scene.present)), key=lambda e: e.time)
    events = [e for e in events if e.time <= spec.num_frames - 1]
    return Truth(
        index=index,
        group=group,
        motion=scene.motion,
        shape=SHAPES[look.shape[0, 0]],
        direction=scene.direction,
        speed=scene.speed,
        violation=scene.violation,
        break_frame=break_frame,
        tracks=scene.position.astype(np.float32),
        velocity=scene.velocity.astype(np.float32),
        visible=picture.seen > 0,
        visible_fraction=(picture.seen / np.maximum(picture.whole, 1)).astype(np.float32),
        present=scene.present,
        shapes=np.where(scene.altered, look.shape[1], look.shape[0]).astype(np.int32),
        radius=scene.radius.astype(np.float32),
        mass=scene.mass.astype(np.float32),
        masks=picture.masks,
        event_kind=np.array([EVENTS.index(e.kind) for e in events], np.int32),
        event_time=np.array([e.time for e in events], np.float32),
        event_frame=np.array([np.ceil(e.time) for e in events], np.int32),
        event_objects=np.array([(e.first, e.second) for e in events], np.int32).reshape(-1, 2),
    )


def _occlusions(picture: world_render.Picture, present: np.ndarray) -> Iterator[world_physics.Event]:
    """First frames in which part of an object is covered (by the occluder or another object), and is no longer."""
    covered = picture.seen < picture.inside
    for i in range(covered.shape[1]):
        for frame in range(1, len(covered)):
            if covered[frame, i] != covered[frame - 1, i] and present[frame - 1 : frame + 1, i].all():
                kind = "occlusion_start" if covered[frame, i] else "occlusion_end"
                yield world_physics.Event(kind, float(frame), i)


def stack(truths: list[Truth], objects: int) -> dict[str, np.ndarray]:
    """Truths of videos as arrays with a leading axis of videos (world.read_truth says how), padded to `objects`."""
    arrays = {"num_objects": np.array([len(t.radius) for t in truths], np.int32)}
    for field in fields(Truth):
        values = [getattr(t, field.name) for t in truths]
        if field.name.startswith("event_"):
            arrays[field.name] = np.concatenate(values)
        elif field.name in ("tracks", "velocity", "visible", "visible_fraction", "present", "shapes", "radius", "mass"):
            axis = 0 if field.name in ("radius", "mass") else 1
            arrays[field.name] = _padded(values, objects, axis, -1 if field.name == "shapes" else 0)
        else:
            arrays[field.name] = np.array(values)
    counts = [len(t.event_kind) for t in truths]
    arrays["event_video"] = np.repeat(np.arange(len(truths), dtype=np.int32), counts)
    return arrays


def rows(arrays: dict[str, np.ndarray], first: int, last: int) -> dict[str, np.ndarray]:
    """Videos [first, last) of stacked truths, their events renumbered."""
    first, last = max(first, 0), min(last, len(arrays["index"]))
    kept = (arrays["event_video"] >= first) & (arrays["event_video"] < last)
    cut = {k: v[kept] if k.startswith("event_") else v[first:last] for k, v in arrays.items()}
    return cut | {"event_video": cut["event_video"] - np.int32(first)}


def concatenate(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Several stacks of truths as one."""
    offsets = np.cumsum([0] + [len(piece["index"]) for piece in pieces])
    moved = [
        piece | {"event_video": piece["event_video"] + np.int32(offset)}
        for piece, offset in zip(pieces, offsets[:-1], strict=True)
    ]
    return {key: np.concatenate([piece[key] for piece in moved]) for key in moved[0]}


def _padded(values: list[np.ndarray], objects: int, axis: int, fill: int) -> np.ndarray:
    """Stack arrays whose `axis` holds up to `objects` entries."""
    shape = list(values[0].shape)
    shape[axis] = objects
    stacked = np.full((len(values), *shape), fill, values[0].dtype)
    for row, value in zip(stacked, values, strict=True):
        row[(slice(None),) * axis + (slice(value.shape[axis]),)] = value
    return stacked

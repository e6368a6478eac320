"""The embedded world: its ground truth against its pixels and against physics written out by other means."""

import dataclasses
import math

import numpy as np
import pytest

from data_pipelines import world_physics
from data_pipelines.world import (
    DIRECTIONS,
    EVENTS,
    MOTIONS,
    OCCLUDER_ID,
    PRESETS,
    SHAPES,
    VIOLATIONS,
    WorldError,
    WorldSpec,
    demo_spec,
    motions_spec,
    render,
    render_group,
    violation_spec,
)

CLEAN = WorldSpec(size=48, num_frames=12, radius=(5.0, 7.0), speeds=(1.5, 2.5), noise=0.0)
UNITS = np.stack([np.cos(np.arange(8) * math.pi / 4), np.sin(np.arange(8) * math.pi / 4)], 1)


def truths(spec, count, seed=0):
    return [render(spec, seed, i)[1] for i in range(count)]


def events(truth, kind):
    return truth.event_time[truth.event_kind == EVENTS.index(kind)]


def shortest(steps, period):
    """Displacements on a torus."""
    return steps - period * np.round(steps / period)


def grown(masks):
    """Masks with the rim of antialiased pixels around them; two pixels, for the tips of stars."""
    for axis in (1, 2):
        masks = np.any([np.roll(masks, step, axis) for step in range(-2, 3)], 0)
    return masks


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [32, 64])
def test_videos_depend_on_spec_seed_and_index_only(preset, size):
    spec = PRESETS[preset](size)
    video, truth = render(spec, 3, 11)
    render(spec, 3, 12)
    again, truth_again = render(spec, 3, 11)
    assert video.dtype == np.uint8 and video.shape == (spec.num_frames, size, size, 3)
    assert video.tobytes() == again.tobytes()
    for field in dataclasses.fields(truth):
        np.testing.assert_array_equal(getattr(truth, field.name), getattr(truth_again, field.name))
    assert (render(spec, 4, 11)[0] != video).any() and (render(spec, 3, 13)[0] != video).any()


def test_height_and_width_may_differ():
    video, truth = render(dataclasses.replace(CLEAN, size=(32, 64), radius=(4.0, 5.0)), 0, 0)
    assert video.shape == (12, 32, 64, 3) and truth.masks.shape == (12, 32, 64)


def test_labels_are_balanced():
    spec = dataclasses.replace(motions_spec(32), speeds=(2.5, 3.0))
    found = truths(spec, 40)
    for block in range(5):
        assert sorted(t.direction for t in found[8 * block : 8 * block + 8]) == list(range(8))
    assert all(sorted(t.motion for t in found[5 * b : 5 * b + 5]) == sorted(MOTIONS) for b in range(8))
    assert all(sorted(t.shape for t in found[6 * b : 6 * b + 6]) == sorted(SHAPES) for b in range(6))
    assert all({t.speed for t in found[2 * b : 2 * b + 2]} == {2.5, 3.0} for b in range(20))


@pytest.mark.parametrize("edges", ["wrap", "leave", "inside"])
def test_translation_has_the_labelled_direction_and_speed(edges):
    spec = dataclasses.replace(CLEAN, edges=edges, objects=(1, 2))
    period = 48.0 if edges != "leave" else 48.0 + 2 * 8
    for truth in truths(spec, 24):
        steps = np.diff(truth.tracks, axis=0)
        steps = shortest(steps, period) if edges != "inside" else steps
        expected = truth.speed * UNITS[truth.direction]
        np.testing.assert_allclose(steps, np.broadcast_to(expected, steps.shape), atol=1e-4)
        np.testing.assert_allclose(truth.velocity, np.broadcast_to(expected, truth.velocity.shape), atol=1e-5)
        if edges == "inside":
            assert truth.visible_fraction.min() == 1.0


def test_jitter_keeps_the_nearest_direction():
    spec = dataclasses.replace(CLEAN, angle_jitter=20.0, common_motion=False, objects=(2, 2))
    angles = [math.atan2(*t.velocity[0, 0, ::-1]) - t.direction * math.pi / 4 for t in truths(spec, 32)]
    angles = np.degrees((np.array(angles) + math.pi) % (2 * math.pi) - math.pi)
    assert 10 < np.abs(angles).max() <= 20 and np.abs(angles).std() > 3


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_centroids_are_the_tracks(shape):
    spec = dataclasses.replace(CLEAN, shapes=(shape,), edges="inside")
    for truth in truths(spec, 12):
        assert truth.shape == shape
        for mask, track in zip(truth.masks, truth.tracks, strict=True):
            rows, columns = np.nonzero(mask == 1)
            assert len(rows) > 15
            np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], track[0], atol=0.45)
            reach = np.hypot(columns + 0.5 - track[0, 0], rows + 0.5 - track[0, 1]).max()
            assert truth.radius[0] - 1.5 < reach < truth.radius[0] + 0.5


def test_masks_and_visibility_agree_in_crowded_videos():
    spec = dataclasses.replace(PRESETS["tracking"](64), noise=0.0)
    shared = 0
    for truth in truths(spec, 24):
        for i in range(truth.tracks.shape[1]):
            seen = (truth.masks == i + 1).sum((1, 2))
            np.testing.assert_array_equal(truth.visible[:, i], seen > 0)
            gone = (truth.tracks[:, i] < -truth.radius[i] - 1).any(1) | (truth.tracks[:, i] > 65 + truth.radius[i]).any(
                1
            )
            assert not truth.visible[gone, i].any()
        assert set(np.unique(truth.masks)) <= {0, OCCLUDER_ID, *range(1, 1 + len(truth.radius))}
        occluder = truth.masks == OCCLUDER_ID
        assert (occluder == occluder[0]).all()
        shared += (truth.visible_fraction < 1).any()
    assert shared > 12  # objects are covered or leave


def test_objects_are_painted_where_the_masks_are():
    spec = dataclasses.replace(CLEAN, objects=(2, 2), occluder=True)
    for i in range(8):
        video, truth = render(spec, 0, i)
        plain = video[truth.masks == 0]
        background = np.median(plain, 0)
        off = np.abs(video.astype(int) - background).sum(-1) > 12
        assert off[truth.masks > 0].all()
        assert not (off & ~grown(truth.masks > 0)).any()


def test_bounces_reflect():
    """Against the path of a free particle, folded at the walls."""
    spec = dataclasses.replace(CLEAN, motions=("bounce",), num_frames=24)
    bounces = 0
    for truth in truths(spec, 24):
        r = truth.radius[0]
        length = 48 - 2 * r
        free = truth.tracks[0, 0] - r + truth.velocity[0, 0] * np.arange(24)[:, None]
        folded = r + length - np.abs(free % (2 * length) - length)
        np.testing.assert_allclose(truth.tracks[:, 0], folded, atol=1e-3)
        np.testing.assert_allclose(np.abs(truth.velocity[:, 0]), np.abs(truth.velocity[:1, 0]).repeat(24, 0), atol=1e-4)
        walls = [n for n in range(1, 8) for axis in (0, 1) for n in _crossings(free[:, axis], length)]
        times = events(truth, "bounce")
        assert len(times) == len(walls) // 7
        frames = truth.event_frame[truth.event_kind == EVENTS.index("bounce")]
        np.testing.assert_array_equal(frames, np.ceil(times))
        for time in times:
            before, after = math.floor(time), math.floor(time) + 1
            assert (truth.velocity[before, 0] * truth.velocity[min(after, 23), 0]).min() < 0 or after > 23
        bounces += len(times)
    assert bounces > 24


def _crossings(path, length):
    """Walls that a free coordinate passes."""
    low, high = sorted((path[0], path[-1]))
    return [n for n in range(-8, 9) if low < n * length <= high]


def test_collisions_keep_energy_and_momentum():
    spec = dataclasses.replace(CLEAN, motions=("collide",), objects=(2, 3), radius=(4.0, 6.0), num_frames=16)
    for truth in truths(spec, 24):
        times = events(truth, "collision")
        assert 0.3 * 15 - 1e-4 <= times[0] <= 0.6 * 15 + 1e-4
        energy = (truth.mass * (truth.velocity**2).sum(-1)).sum(1)
        np.testing.assert_allclose(energy, energy[0], rtol=1e-4)
        momentum = (truth.mass[:, None] * truth.velocity).sum(1)
        walls = events(truth, "bounce")
        for frame in range(15):
            if not ((walls > frame - 1e-4) & (walls < frame + 1 + 1e-4)).any():
                np.testing.assert_allclose(momentum[frame + 1], momentum[frame], atol=1e-3 * energy[0])
        for i in range(len(truth.radius)):
            for j in range(i):
                gap = np.hypot(*(truth.tracks[:, i] - truth.tracks[:, j]).T)
                assert gap.min() > truth.radius[i] + truth.radius[j] - 1e-3
        first = math.floor(times[0])
        assert (truth.velocity[first] != truth.velocity[first + 1]).any()
        np.testing.assert_allclose(truth.velocity[: first + 1, 0], truth.velocity[:1, 0].repeat(first + 1, 0))


def test_equal_discs_head_on_swap_velocities():
    start = np.array([[10.0, 20.0], [30.0, 20.0]])
    motion = np.array([[2.0, 0.0], [-1.0, 0.0]])
    size = np.array([100.0, 100.0])
    position, velocity, found = world_physics.discs(start, motion, np.full(2, 4.0), np.ones(2), size, 8)
    assert [(e.kind, e.first, e.second) for e in found] == [("collision", 0, 1)] and found[0].time == pytest.approx(4.0)
    np.testing.assert_allclose(velocity[5:], np.broadcast_to(motion[::-1], (3, 2, 2)))
    np.testing.assert_allclose(position[7], [[18 - 3, 20], [26 + 6, 20]])
    position, velocity, found = world_physics.discs(start, motion, np.full(2, 4.0), np.ones(2), size, 8, ignore=(0, 1))
    assert not found
    np.testing.assert_allclose(position[7], start + 7 * motion)


@pytest.mark.parametrize("edges", ["wrap", "inside"])
def test_orbits_are_circles(edges):
    spec = dataclasses.replace(CLEAN, motions=("orbit",), edges=edges, radius=(4.0, 5.0))
    spins = set()
    for truth in truths(spec, 16):
        steps = np.diff(truth.tracks[:, 0].astype(float), axis=0)
        path = np.concatenate([np.zeros((1, 2)), np.cumsum(shortest(steps, 48.0), 0)])
        # Circle through all points by least squares: |p|^2 = 2 p.c + k.
        solution, *_ = np.linalg.lstsq(np.c_[2 * path, np.ones(len(path))], (path**2).sum(1), rcond=None)
        distance = np.hypot(*(path - solution[:2]).T)
        np.testing.assert_allclose(distance, distance[0], atol=1e-3)
        assert 0.15 * 48 - 0.01 < distance[0] < 0.3 * 48 + 0.01
        np.testing.assert_allclose(truth.velocity[0, 0], truth.speed * UNITS[truth.direction], atol=1e-5)
        np.testing.assert_allclose(np.hypot(*truth.velocity[:, 0].T), truth.speed, rtol=1e-5)
        np.testing.assert_allclose(((path - solution[:2]) * truth.velocity[:, 0]).sum(1), 0, atol=0.05)
        (ax, ay), (bx, by) = truth.velocity[:2, 0]
        spins.add(np.sign(ax * by - ay * bx))
    assert spins == {-1.0, 1.0}


@pytest.mark.parametrize("edges", ["wrap", "inside"])
def test_occlusion_hides_and_shows_again(edges):
    spec = dataclasses.replace(violation_spec(64), violations=(), motions=("occlude",), edges=edges, objects=(1, 1))
    for truth in truths(spec, 24):
        fraction = truth.visible_fraction[:, 0]
        assert fraction[0] == 1.0 and fraction[-1] >= 0.35
        assert (~truth.visible[:, 0]).sum() >= 2
        covered = np.flatnonzero(fraction < 1)
        starts, ends = events(truth, "occlusion_start"), events(truth, "occlusion_end")
        assert starts.tolist() == [covered[0]]
        assert ends.tolist() == ([covered[-1] + 1] if covered[-1] < 15 else [])


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_impossible_twins_break_physics_once(kind):
    spec = dataclasses.replace(violation_spec(64), violations=(kind,), noise=0.1)
    for group in range(6):
        (video, truth), (broken, twin) = render_group(spec, 1, group)
        assert np.array_equal(render(spec, 1, 2 * group + 1)[0], broken)
        assert (truth.index, twin.index, truth.group, twin.group) == (2 * group, 2 * group + 1, group, group)
        assert (truth.violation, twin.violation, truth.break_frame) == ("", kind, -1)
        assert truth.motion == twin.motion == VIOLATIONS[kind]
        b = twin.break_frame
        assert 1 <= b < spec.num_frames - 1
        assert np.array_equal(video[:b], broken[:b]) and (video[b] != broken[b]).any()
        (time,) = events(twin, "violation")
        assert time < b and not len(events(truth, "violation"))
        before, after = slice(0, math.floor(time) + 1), slice(math.floor(time) + 1, None)
        np.testing.assert_array_equal(truth.tracks[before], twin.tracks[before])
        _check_violation(kind, truth, twin, before, after)


def _check_violation(kind, truth, twin, before, after):
    step = np.hypot(*np.diff(twin.tracks[:, 0], axis=0).T)
    if kind == "vanish":
        assert truth.visible[after, 0].any() and twin.visible[before, 0].any() and not twin.visible[after, 0].any()
    elif kind == "appear":
        assert not truth.visible[:, 0].any() and not twin.visible[before, 0].any() and twin.visible[after, 0].any()
    elif kind == "change":
        assert (truth.shapes[:, 0] == truth.shapes[0, 0]).all()
        assert (twin.shapes[before] == truth.shapes[before]).all() and (
            twin.shapes[after, 0] != truth.shapes[0, 0]
        ).all()
    elif kind == "teleport":
        assert step.max() > 2 * truth.radius[0] - truth.speed and np.sum(step > truth.speed + 0.01) <= 1
        assert twin.tracks.min() > 0 and twin.tracks.max() < 64
    elif kind == "reverse":
        np.testing.assert_allclose(twin.velocity[after, 0], -truth.velocity[after, 0])
        np.testing.assert_allclose(step, truth.speed, atol=1e-4)
    elif kind == "pass_through":
        walls = twin.event_time[(twin.event_kind == EVENTS.index("bounce"))]
        free = slice(0, math.floor(walls.min()) if len(walls) else None)
        np.testing.assert_allclose(twin.velocity[free], np.broadcast_to(twin.velocity[0], twin.velocity[free].shape))


def test_every_violation_is_as_frequent():
    found = [render(violation_spec(32), 0, i)[1].violation for i in range(1, 24, 2)]
    assert all(sorted(found[6 * b : 6 * b + 6]) == sorted(VIOLATIONS) for b in range(2))


@pytest.mark.parametrize("background", ["plain", "static", "moving"])
def test_backgrounds(background):
    spec = dataclasses.replace(CLEAN, background=background, texture=0.1)
    for i in range(4):
        video, truth = render(spec, 0, i)
        behind = ~grown(truth.masks > 0).any(0)
        pixels = video[:, behind].astype(float)
        assert (np.ptp(pixels, axis=1).max() > 0) == (background != "plain")
        assert (np.ptp(pixels, axis=0).max() > 0) == (background == "moving")


def test_noise_has_its_sigma_and_cannot_be_predicted():
    video, truth = render(dataclasses.replace(CLEAN, noise=0.05, num_frames=16), 0, 0)
    behind = video[truth.masks == 0][:, 1]
    middle = behind[np.abs(behind - np.median(behind)) < 60]
    assert middle.std() == pytest.approx(0.05 * 255, rel=0.1)
    empty = ~grown(truth.masks > 0).any(0)
    frames = video[:, empty, 1].astype(float)
    assert abs(np.corrcoef(frames[0], frames[1])[0, 1]) < 0.12


ERRORS = [
    (dict(shapes=("blob",)), "shapes 'blob'"),
    (dict(motions=("fly",)), "motions 'fly'"),
    (dict(motions=()), "at least one"),
    (dict(speeds=(1.0, 1.0)), "twice"),
    (dict(background="stars"), "background 'stars'"),
    (dict(edges="open"), "edges 'open'"),
    (dict(size=33), "height=33"),
    (dict(size=(32, 14)), "width=14"),
    (dict(num_frames=1), "num_frames=1"),
    (dict(objects=(2, 1)), r"objects=\(2, 1\)"),
    (dict(motions=("collide",)), "needs two objects"),
    (dict(radius=(1.0, 2.0)), "radius="),
    (dict(radius=(5.0, 40.0)), "radius="),
    (dict(speeds=(0.0,)), "speeds="),
    (dict(angle_jitter=30.0), "angle_jitter"),
    (dict(noise=2.0), "noise=2.0"),
    (dict(edges="inside", speeds=(9.0,)), "lower speeds"),
    (dict(motions=("occlude",), speeds=(0.5,)), "does not fit into"),
    (dict(violations=("reverse",)), "edges='inside'"),
    (dict(violations=("vanish",)), "add it to motions"),
    (dict(violations=("melt",)), "violations 'melt'"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_bad_specs_are_one_line(changes, message):
    with pytest.raises(WorldError, match=message) as caught:
        dataclasses.replace(CLEAN, **changes)
    assert "\n" not in str(caught.value)


def test_no_room_for_objects_is_one_line():
    crowded = WorldSpec(size=32, objects=(8, 8), radius=(6.0, 6.4), speeds=(1.0,))
    with pytest.raises(WorldError, match="no room for 8 objects"):
        render(crowded, 0, 0)
    with pytest.raises(WorldError, match="no room for a collision"):
        render(dataclasses.replace(crowded, motions=("collide",)), 0, 0)


def test_directions_are_named_clockwise_from_right():
    names = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
    for name, unit in zip(DIRECTIONS, UNITS, strict=True):
        np.testing.assert_array_equal(np.sum([names[part] for part in name.split("_")], 0), np.round(unit))


def test_demo_fits_the_smallest_models():
    video, truth = render(demo_spec(), 0, 0)
    assert video.shape == (8, 32, 32, 3) and truth.motion == "translate" and len(truth.radius) == 1

"""Scenes in depth: what looks large is near, hides what is behind it, and moves fast."""

import dataclasses

import numpy as np

from data_pipelines.world_depth import depth_range, render_scene, scene_spec

SPEC = scene_spec(64, num_frames=4, noise=0.0)


def test_a_scene_is_the_same_every_time_and_no_other():
    first, again = render_scene(SPEC, 0, 3), render_scene(SPEC, 0, 3)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (render_scene(SPEC, 0, 4)[0] != first[0]).any() and (render_scene(SPEC, 1, 3)[0] != first[0]).any()
    video, classes, depth = first
    assert video.shape == (4, 64, 64, 3) and video.dtype == np.uint8
    assert classes.shape == depth.shape == (4, 64, 64) and classes.dtype == np.int32 and depth.dtype == np.float32


def test_depth_says_how_large_an_object_is():
    """Of single circles, whose pixels are pi radius^2 of them."""
    spec = dataclasses.replace(SPEC, objects=(1, 1), shapes=("circle",))
    for index in range(20):
        _, classes, depth = render_scene(spec, 0, index)
        (far,) = set(np.unique(depth[classes > 0]))
        near, farthest = depth_range(spec)
        assert near <= far <= farthest and depth[classes == 0].min() > farthest
        radius = np.sqrt((classes[0] > 0).sum() / np.pi)
        assert abs(radius - spec.radius[1] / far) < 0.35


def test_the_nearer_object_hides_the_other():
    overlaps = 0
    for index in range(60):
        _, classes, depth = render_scene(SPEC, 0, index)
        for frame in range(SPEC.num_frames):
            found = np.unique(depth[frame][classes[frame] > 0])
            radius = SPEC.radius[1] / found
            seen = np.array([(depth[frame] == d).sum() for d in found])
            overlaps += (seen[1:] < 0.2 * radius[1:] ** 2).sum()  # hardly visible for its size: it is behind
            assert seen[0] > 0.6 * radius[0] ** 2  # nothing hides the nearest, whatever its shape
    assert overlaps > 0


def test_objects_move_the_slower_the_farther():
    spec = dataclasses.replace(SPEC, objects=(1, 1), shapes=("circle",), speeds=(4.0,))
    for index in range(20):
        _, classes, depth = render_scene(spec, 0, index)
        turn = np.exp(2j * np.pi * np.arange(64) / 64)
        centres = np.stack([np.angle((classes > 0).sum(axis) @ turn) for axis in (1, 2)], -1) * 64 / (2 * np.pi)
        steps = np.hypot(*((np.diff(centres, axis=0) + 32) % 64 - 32).T)
        np.testing.assert_allclose(steps, 4.0 / depth[classes > 0][0], atol=0.25)


def test_every_shape_is_seen_and_every_depth():
    classes, depths = [], []
    for index in range(60):
        _, found, depth = render_scene(SPEC, 0, index)
        classes.append(np.bincount(found[0].ravel(), minlength=7))
        depths.append(depth[0][found[0] > 0].mean())
    share = np.sum(classes, 0) / np.sum(classes)
    assert (share[1:] > 0.005).all() and 0.5 < share[0] < 0.95 and np.ptp(depths) > 0.3

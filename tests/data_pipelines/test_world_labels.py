"""The direction label cannot be read from one frame of the world, and can be read from motion."""

import dataclasses
import math

import numpy as np
import pytest

from data_pipelines import world_physics
from data_pipelines.world import demo_spec, motions_spec, render

CHANCE = 1 / 8
LUMA = np.array([0.299, 0.587, 0.114])


def ridge_accuracy(features, labels, train):
    """Accuracy on the rest of a linear classifier fitted to the first `train` rows, ridge chosen for the best result:
    an optimistic choice, so that a bound from above is safe."""
    mean, std = features[:train].mean(0), features[:train].std(0) + 1e-6
    x = np.c_[(features - mean) / std, np.ones(len(features))]
    targets = np.eye(8)[labels[:train]] - CHANCE
    gram, cross = x[:train].T @ x[:train], x[:train].T @ targets
    best = 0.0
    for penalty in (1.0, 100.0, 10_000.0):
        weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), cross)
        best = max(best, ((x[train:] @ weights).argmax(1) == labels[train:]).mean())
    return best


def centroid_accuracy(features, labels, train):
    """Accuracy of the nearest class mean."""
    means = np.stack([features[:train][labels[:train] == k].mean(0) for k in range(8)])
    distance = ((features[train:, None] - means) ** 2).sum(-1)
    return (distance.argmin(1) == labels[train:]).mean()


def upper_bound(count):
    """Four standard errors above chance."""
    return CHANCE + 4 * math.sqrt(CHANCE * (1 - CHANCE) / count)


def where(position, spec):
    """Features of a position: itself, its squares, and low Fourier terms of the frame."""
    angle = 2 * math.pi * position / np.array([spec.width, spec.height])
    waves = [f(k * angle) for k in (1, 2) for f in (np.sin, np.cos)]
    products = [np.sin(angle[:, :1]) * np.cos(angle[:, 1:]), np.cos(angle[:, :1]) * np.sin(angle[:, 1:])]
    return np.concatenate([position, position**2, position.prod(1, keepdims=True), *waves, *products], 1)


def pixel_centres(video):
    """The object's centre in every frame, from pixels alone; circular, since it may lie across an edge."""
    gray = video @ LUMA
    weight = np.abs(gray - np.median(gray, axis=(1, 2), keepdims=True))
    weight = weight * (weight > 0.16 * 255)  # three sigma of the noise
    centres = []
    for axis in (2, 1):
        size = video.shape[axis]
        wave = np.exp(2j * math.pi * (np.arange(size) + 0.5) / size)
        centres.append(np.angle(weight.sum(3 - axis) @ wave) * size / (2 * math.pi))
    return np.stack(centres, 1)


def test_demo_direction_needs_motion():
    spec, count, train = demo_spec(), 1600, 800
    rendered = [render(spec, 5, i) for i in range(count)]
    videos = np.stack([video for video, _ in rendered])
    labels = np.array([truth.direction for _, truth in rendered])
    tracks = np.stack([truth.tracks[:, 0] for _, truth in rendered])
    bound = upper_bound(count - train)
    for frame in (0, 4, 7):
        gray = (videos[:, frame] @ LUMA).reshape(count, 16, 2, 16, 2).mean((2, 4))
        pixels = np.abs(gray - np.median(gray, (1, 2), keepdims=True)).reshape(count, -1)
        for features in (pixels, where(tracks[:, frame], spec)):
            assert ridge_accuracy(features, labels, train) < bound
            assert centroid_accuracy(features, labels, train) < bound

    moved = []
    for video in videos[:400]:
        step = np.diff(pixel_centres(video), axis=0)
        moved.append(np.median(step - 32 * np.round(step / 32), axis=0))
    moved = np.array(moved)
    guess = np.round(np.arctan2(moved[:, 1], moved[:, 0]) / (math.pi / 4)).astype(int) % 8
    assert (guess == labels[:400]).mean() > 0.97


@pytest.mark.parametrize("motion", ["translate", "orbit"])
@pytest.mark.parametrize("edges", ["wrap", "leave"])
def test_positions_say_nothing_about_direction(motion, edges):
    spec = dataclasses.replace(motions_spec(), motions=(motion,), edges=edges, angle_jitter=5.0)
    scenes = [world_physics.build(spec, 1, i) for i in range(1600)]
    labels = np.array([scene.direction for scene in scenes])
    position = np.stack([scene.position[:, 0] for scene in scenes])
    for frame in (0, 8, 15):
        assert ridge_accuracy(where(position[:, frame], spec), labels, 800) < upper_bound(800)


def test_first_frames_of_bounces_say_nothing_about_direction():
    spec = dataclasses.replace(motions_spec(), motions=("bounce",), objects=(1, 1))
    scenes = [world_physics.build(spec, 1, i) for i in range(1600)]
    labels = np.array([scene.direction for scene in scenes])
    position = np.stack([scene.position[0, 0] for scene in scenes])
    assert ridge_accuracy(where(position, spec), labels, 800) < upper_bound(800)


def test_the_position_probe_finds_a_leak_where_there_is_one():
    """Paths that stay inside the frame begin opposite to where they go: edges "inside" is not for direction labels."""
    spec = dataclasses.replace(demo_spec(), edges="inside")
    scenes = [world_physics.build(spec, 1, i) for i in range(1600)]
    labels = np.array([scene.direction for scene in scenes])
    position = np.stack([scene.position[0, 0] for scene in scenes])
    assert ridge_accuracy(where(position, spec), labels, 800) > 2 * CHANCE

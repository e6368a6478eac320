"""RandAugment: each operation as timm's own code makes it (tests/peers/make_randaugment.py), and drawn as often."""

import itertools

import numpy as np
import pytest
from PIL import Image

from data_pipelines import randaugment
from data_pipelines.decode import VideoReader
from vjepa_jax.config import AugmentConfig

PUBLISHED = AugmentConfig(rand_augment="rand-m7-n4-mstd0.5-inc1").policy
# Lowest and highest argument at levels 5.5 to 8.5, three standard deviations around 7; both signs where there are two.
RANGES = {
    "Rotate": (16.5, 25.5), "ShearX": (0.165, 0.255), "ShearY": (0.165, 0.255), "TranslateX": (0.2475, 0.3825),
    "TranslateY": (0.2475, 0.3825), "Color": (0.495, 0.765), "Contrast": (0.495, 0.765), "Brightness": (0.495, 0.765),
    "Sharpness": (0.495, 0.765), "Posterize": (1, 2), "Solarize": (39, 116), "SolarizeAdd": (60, 93),
}  # fmt: skip


def test_operations_are_those_of_timm(fixture_npz):
    expected = fixture_npz("randaugment.npz")
    frame = expected.pop("frame")
    assert {key.split()[0] for key in expected} == set(randaugment.OPERATIONS)
    for key, image in expected.items():
        name, level, sign, increasing = key.split()
        value = randaugment.argument(name, float(level) / 10, int(sign), increasing == "1")
        (result,) = randaugment.apply([(name, value)], [frame])
        np.testing.assert_array_equal(result, image, err_msg=key)


def test_operations_differ_on_the_frame_of_the_fixture(fixture_npz):
    """Guards the test above: what an operation does, its level and its sign show on that small frame."""
    images = fixture_npz("randaugment.npz")
    frame = images.pop("frame")
    assert len({image.tobytes() for image in images.values()}) == len(images) == 56
    assert all((image != frame).any() for image in images.values())


def test_draws_follow_the_policy():
    rng = np.random.default_rng(0)
    drawn = [randaugment.draw(PUBLISHED, rng) for _ in range(6000)]
    sizes = np.bincount([len(operations) for operations in drawn], minlength=5) / len(drawn)
    np.testing.assert_allclose(sizes, np.array([1, 4, 6, 4, 1]) / 16, atol=0.02)  # each of 4 is used half the time
    values = {name: [] for name in randaugment.OPERATIONS}
    for name, value in itertools.chain.from_iterable(drawn):
        values[name].append(value)
    for name, found in values.items():
        assert abs(len(found) / (6000 * 4 / 2 / 15) - 1) < 0.2, name
        if name in RANGES:
            signed = np.array(found) - (name in ("Color", "Contrast", "Brightness", "Sharpness"))
            inside = (np.abs(signed) >= RANGES[name][0]) & (np.abs(signed) <= RANGES[name][1])
            assert inside.mean() > 0.98, name
            if name not in ("Posterize", "Solarize", "SolarizeAdd"):
                assert abs((signed > 0).mean() - 0.5) < 0.1, name


def test_levels_stay_within_0_and_10():
    rng = np.random.default_rng(1)
    policy = AugmentConfig(rand_augment="rand-m10-n9-mstd9-inc1").policy
    rotations = [abs(v) for _ in range(300) for name, v in randaugment.draw(policy, rng) if name == "Rotate"]
    assert max(rotations) == 30.0 and min(rotations) == 0.0


def test_all_frames_of_a_clip_get_the_same_and_repeats_are_not_computed_again():
    first, second = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    operations = [("Rotate", 20.0), ("Invert", 0.0)]
    frames = list(randaugment.apply(operations, iter([first, first, second])))
    assert frames[0] is frames[1]
    for frame, source in ((frames[0], first), (frames[2], second)):
        turned = Image.fromarray(source).rotate(20, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
        np.testing.assert_array_equal(frame, 255 - np.asarray(turned))
    assert next(randaugment.apply([], [first])) is first


def test_the_same_generator_draws_the_same():
    a, b, c = (randaugment.draw(PUBLISHED, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert a == b != c


def test_a_sheet_of_all_operations(shared_data, tmp_path):
    """To look at: a row for each operation, with real frames, at the highest level. Each visibly changes them."""
    path = sorted((shared_data / "clips" / "mixed").glob("*.mp4"))[0]
    with VideoReader(path) as reader:
        frames = [
            np.asarray(Image.fromarray(frame).resize((96, 72)))
            for frame in reader.frames(np.linspace(0, reader.num_frames - 1, 6).astype(int))
        ]
    rows = [np.concatenate(frames, 1)]
    for name in randaugment.OPERATIONS:
        value = randaugment.argument(name, 1.0 if name != "Posterize" else 0.8, 1, True)
        rows.append(np.concatenate(list(randaugment.apply([(name, value)], frames)), 1))
        assert np.abs(rows[-1].astype(int) - rows[0]).mean() > 1, name
    Image.fromarray(np.concatenate(rows)).save(tmp_path / "randaugment.png")


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 2)])
def test_tiny_frames(shape):
    frame = np.full((*shape, 3), 77, np.uint8)
    for name in randaugment.OPERATIONS:
        value = randaugment.argument(name, 0.7, -1, True)
        assert next(randaugment.apply([(name, value)], [frame])).shape == frame.shape

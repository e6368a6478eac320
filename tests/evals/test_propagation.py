"""Label propagation against plain loops, labels of tokens and of pixels against answers by hand."""

import dataclasses

import numpy as np
import pytest

from vjepa_jax.evals import propagation
from vjepa_jax.evals.propagation import METHODS, SEARCH, nearest, propagate, to_masks, token_labels


def looped(features, grid, given, method):
    """Label propagation token by token."""
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    tokens = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    out = [given[0].astype(np.float64)]
    for frame in range(1, len(features)):
        known = [f for f in sorted(given) if f < frame]
        recent = range(frame - method.context, frame)
        queue = [max(f, 0) for f in recent] if method.primed else [f for f in recent if f > 0 and f not in known]
        carried = np.zeros_like(out[0])
        for n, (row, column) in enumerate(tokens):
            found = []
            for slot, other in enumerate(known + queue):
                for m, (r, c) in enumerate(tokens):
                    far = max(abs(r - row), abs(c - column)) > method.radius
                    if not method.square:
                        far = (r - row) ** 2 + (c - column) ** 2 >= method.radius**2
                    if not far or (method.anywhere and slot < len(known)):
                        found.append((float(unit[frame, n] @ unit[other, m]), other, m))
            found = sorted(found, key=lambda f: -f[0])[: method.top]
            weights = np.exp(np.array([f[0] for f in found]) / method.temperature)
            for weight, (_, other, m) in zip(weights / weights.sum(), found, strict=True):
                carried[n] += weight * out[other][m]
        if frame in given:
            new = given[frame].sum(-1) > 0
            carried[new] = given[frame][new]
        out.append(carried)
    return np.stack(out)


@pytest.mark.parametrize("later", [(), (2,), (1, 4)])
@pytest.mark.parametrize("name", METHODS)
def test_propagation_is_that_of_plain_loops(name, later):
    method = dataclasses.replace(METHODS[name], context=2, radius=2, top=3)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(7, 12, 6)).astype(np.float32)
    given = {0: np.eye(5)[rng.integers(0, 3, 12)]}
    for number, frame in enumerate(later, start=3):
        given[frame] = np.zeros((12, 5))
        given[frame][rng.permutation(12)[:4], number] = 1.0
    got = propagate(features, (3, 4), given, method)
    np.testing.assert_allclose(got, looped(features, (3, 4), given, method), atol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-5)
    for frame, labels in given.items():
        assert (got[frame][labels.sum(-1) > 0] == labels[labels.sum(-1) > 0]).all()
    with pytest.raises(ValueError, match="same tokens"):
        propagate(features, (3, 3), given, method)


def test_the_published_settings():
    """DINO's command line, RVM's default arguments, and the best of V-JEPA 2.1's search."""
    told = {
        name: (m.title, m.context, m.radius, m.square, m.anywhere, m.top, m.temperature, m.primed, m.stretch, m.soft)
        for name, m in METHODS.items()
    }
    assert told == {
        "dino": ("DINO protocol", 7, 12, True, False, 5, 0.1, False, True, False),
        "crw": ("CRW protocol", 20, 20, False, True, 7, 0.7, True, False, True),
        "vjepa21": ("as V-JEPA 2.1", 15, 12, False, False, 5, 0.2, False, True, False),
    }


def test_the_search_of_vjepa21():
    """4 contexts, 3 radii, 2 shapes, 3 tops and 4 temperatures, what was found best among them."""
    assert len(set(SEARCH)) == 288 and {m.title for m in SEARCH} == {"as V-JEPA 2.1, searched"}
    assert METHODS["vjepa21"] in [dataclasses.replace(m, title="as V-JEPA 2.1") for m in SEARCH]
    assert METHODS["vjepa21"].settings() == "context 15, circle 12, top 5, T 0.2"


def test_a_long_video_compiles_once():
    method = dataclasses.replace(METHODS["dino"], top=2)
    rng = np.random.default_rng(0)
    sizes = [function._cache_size() for function in (propagation._carry, propagation._largest)]
    for frames in (3, 9):
        features, given = rng.normal(size=(frames, 6, 3)), {0: np.eye(7)[:6], 2: np.zeros((6, 7))}
        to_masks(propagate(features, (2, 3), given, method), (2, 3), (8, 12), (5, 5), method)
    after = [function._cache_size() for function in (propagation._carry, propagation._largest)]
    assert [b - a for a, b in zip(sizes, after, strict=True)] == [1, 1]


def test_soft_labels_become_the_largest_one():
    soft = np.zeros((1, 4, 2), np.float32)
    soft[0, :, 0] = [0.9, 0.9, 0.9, 0.9]
    soft[0, :, 1] = [0.1, 0.1, 0.1, 0.4]
    plain = to_masks(soft, (2, 2), (2, 2), (2, 2), METHODS["crw"])
    assert not plain.any()
    stretched = to_masks(soft, (2, 2), (2, 2), (2, 2), METHODS["dino"])[0]  # the object's highest counts as whole
    np.testing.assert_array_equal(stretched, [[0, 0], [0, 1]])
    soft[0, :, 1] = 0.1  # an object that is as likely everywhere is nowhere
    assert not to_masks(soft, (2, 2), (2, 2), (2, 2), METHODS["dino"]).any()


def test_the_largest_label_is_chosen_at_the_size_of_the_input():
    """Two tokens over four columns: an object's share is 0, .25, .75 and 1 of it; .7 of that is .525 and .7. Chosen at
    four columns and then doubled, the edge lies at column 4; by way of eight columns it would lie at column 5."""
    soft = np.array([[[1.0, 0.0], [0.3, 0.7]]], np.float32)
    got = to_masks(soft, (1, 2), (1, 4), (1, 8), METHODS["crw"])
    np.testing.assert_array_equal(got, [[[0, 0, 0, 0, 1, 1, 1, 1]]])
    straight = to_masks(soft, (1, 2), (1, 8), (1, 8), METHODS["crw"])
    np.testing.assert_array_equal(straight, [[[0, 0, 0, 0, 0, 1, 1, 1]]])


def test_labels_of_tokens():
    """Eight columns, an object in the last two, two tokens: the nearest pixels are columns 2 and 6; interpolated,
    each is the mean of its two middle ones, 1 and 2, 5 and 6."""
    mask = np.array([[0, 0, 0, 0, 0, 0, 1, 1]], np.uint8)
    hard = token_labels(mask, (1, 2), (1, 8), 2, METHODS["dino"])
    np.testing.assert_array_equal(hard, [[1, 0], [0, 1]])
    soft = token_labels(mask, (1, 2), (1, 8), 2, METHODS["crw"])
    np.testing.assert_allclose(soft, [[1, 0], [0.5, 0.5]])
    # by way of an input of four columns, which are columns 0, 2, 4 and 6
    np.testing.assert_allclose(token_labels(mask, (1, 2), (1, 4), 2, METHODS["crw"]), [[1, 0], [0.5, 0.5]])


def test_nearest_pixels():
    row = np.arange(6, dtype=np.uint8)[None]
    np.testing.assert_array_equal(nearest(row, (1, 3)), [[1, 3, 5]])
    np.testing.assert_array_equal(nearest(row, (1, 3), offset=0.0), [[0, 2, 4]])
    np.testing.assert_array_equal(nearest(row, (2, 12))[0], np.repeat(np.arange(6), 2))

"""The detector of actions: what its points stand for, its losses by hand, padding, and a task that it must solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax.evals import detection_head
from vjepa_jax.evals.detection_head import HeadConfig, Track, cut, decode, diou, targets, train_detector
from vjepa_jax.evals.temporal_metrics import detection_map
from vjepa_jax.models.detector import Detector, LocalAttention, points
from vjepa_jax.ops.losses import focal

SMALL = HeadConfig(
    dim=32, num_heads=2, levels=3, stem=0, reach=4, length=64, epochs=40, warmup_epochs=5, batch_size=8,
    lr=2e-3, ema=0.95, normalizer=20.0, candidates=300, most=50,
)  # fmt: skip


def test_points_of_the_pyramid():
    at, level = points(8, 3)
    assert at.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4, 6, 0, 4]
    assert level.tolist() == [0] * 8 + [1] * 4 + [2] * 2


def test_local_attention_is_full_attention_under_a_band():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 21, 8)), jnp.float32)
    mask = np.arange(21) < np.array([[21], [13]])
    layer = LocalAttention(2, 4)
    params = layer.init(jax.random.key(0), x, mask)
    heads = lambda name: np.einsum("bsd,dhk->bshk", x, params["params"][name]["kernel"])
    logits = np.einsum("bshk,bthk->bhst", heads("query"), heads("key")) / 2.0
    allowed = (abs(np.arange(21)[:, None] - np.arange(21)) <= 4) & mask[:, None, None]
    logits = np.where(allowed, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True, where=allowed, initial=-50.0))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    y = np.einsum("bhst,bthk->bshk", weights, heads("value")).reshape(2, 21, 8) @ params["params"]["out"]["kernel"]
    found = np.asarray(layer.apply(params, x, mask))
    np.testing.assert_allclose(found[mask], np.asarray(y)[mask], atol=1e-4)


def test_padding_changes_no_answer():
    model = Detector(3, dim=16, num_heads=2, levels=3, stem=1, reach=3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 5)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), x, jnp.ones((1, 32), bool))
    apply = jax.jit(model.apply)
    short = apply(params, x[:, :16], jnp.ones((1, 16), bool))
    long = apply(params, x.at[:, 16:].set(7.0), jnp.arange(32)[None] < 16)
    same = np.isin(points(32, 3)[0], np.arange(16))
    assert (np.asarray(long[2][0]) == same).all()
    for a, b in zip(short[:2], long[:2], strict=True):
        np.testing.assert_allclose(a[0], b[0][same], atol=1e-5)


def test_what_points_stand_for_by_hand():
    """An action from 2 to 6, one from 0 to 14, and none: levels 0 (distances below 4), 1 (4 to 8), 2 (above)."""
    at, level = points(16, 3)
    segments = np.array([[[2.0, 6.0], [0.0, 14.0], [0.0, 0.0]]])
    labels, distances = targets(at, level, segments, np.array([[5, 7, -1]]), 3)
    labels, distances = np.asarray(labels[0]), np.asarray(distances[0])
    found = {(int(l), int(a)): int(label) for a, l, label in zip(at, level, labels, strict=True) if label >= 0}
    # The short one: 3 to 5 are near its centre 4 and less than 4 from its ends; on level 1, 2 and 6 are just 4 away.
    # The long one: of those near its centre 7, only points of level 2 may be 8 or more away from an end.
    assert found == {(0, 3): 5, (0, 4): 5, (0, 5): 5, (1, 2): 5, (1, 6): 5, (2, 4): 7, (2, 8): 7, (2, 12): 7}
    row = {(int(l), int(a)): i for i, (a, l) in enumerate(zip(at, level, strict=True))}
    np.testing.assert_allclose(distances[row[0, 3]], [1, 3])
    np.testing.assert_allclose(distances[row[2, 4]], [4, 10])


def test_the_shortest_action_wins_a_point():
    at, level = points(8, 1)
    labels, _ = targets(at, level, np.array([[[0.0, 7.0], [3.0, 4.5]]]), np.array([[0, 1]]), 1)
    assert int(labels[0][4]) == 1 and int(labels[0][2]) == 0


def test_focal_loss_by_hand():
    logit = jnp.log(jnp.float32(0.8 / 0.2))
    np.testing.assert_allclose(focal(logit, 1.0), 0.25 * 0.2**2 * -np.log(0.8), rtol=1e-5)
    np.testing.assert_allclose(focal(logit, 0.0), 0.75 * 0.8**2 * -np.log(0.2), rtol=1e-5)


def test_diou_by_hand():
    assert float(diou(jnp.array([2.0, 3.0]), jnp.array([2.0, 3.0]))) == 0.0
    # [8, 14] and [6, 12] around 10: 4 shared of 8; centres 2 apart in a hull of 8
    np.testing.assert_allclose(diou(jnp.array([2.0, 4.0]), jnp.array([4.0, 2.0])), 1 - 4 / 8 + (2 / 8) ** 2)


def test_cuts_hold_what_lies_in_them():
    rng = np.random.default_rng(0)
    video = Track(np.arange(20.0)[:, None], np.array([[0.0, 4.0], [8.0, 12.0]]), np.array([3, 4]))
    x, mask, segments, labels = cut(video, 32, 3, rng)
    assert mask.sum() == 20 and labels.tolist() == [3, 4, -1] and x[19] == 19 and x[20] == 0
    for _ in range(20):
        x, mask, segments, labels = cut(video, 10, 3, rng)
        start = x[0, 0]
        expected = [(s - start, e - start, c) for s, e, c in ((0, 4, 3), (8, 12, 4))]
        expected = [(max(s, -0.5), min(e, 9.5), c) for s, e, c in expected if min(e, 9.5) - max(s, -0.5) >= 2]
        found = [(*s, c) for s, c in zip(segments.tolist(), labels.tolist(), strict=True) if c >= 0]
        assert mask.all() and found == expected


def test_decoding_by_hand():
    scores, distances = np.zeros((4, 2)), np.ones((4, 2))
    scores[1, 1], scores[2, 1], scores[3, 0] = 0.9, 0.8, 0.5
    distances[3] = 9.0
    cfg = HeadConfig(voting=0.0, suppression="hard", threshold=0.3)
    found = decode(scores, distances, np.array([0.0, 10, 10.5, 4]), cfg)
    assert found["labels"].tolist() == [1, 0] and found["segments"].tolist() == [[9, 11], [-5, 13]]
    soft = decode(scores, distances, np.array([0.0, 10, 10.5, 4]), HeadConfig(voting=0.0))
    assert soft["labels"].tolist() == [1, 0, 1] and soft["scores"][2] < 0.8
    none = decode(np.zeros((4, 2)), distances, np.zeros(4), cfg)
    assert len(none["segments"]) == len(none["scores"]) == 0


def tracks(seed, count, informative=True):
    """Sequences of noise where actions of two classes shift one channel each."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        steps = int(rng.integers(40, 80))
        x = rng.normal(size=(steps, 6)).astype(np.float32)
        starts = np.cumsum(rng.integers(6, 14, 3)) + np.arange(3) * 10
        segments = np.array([[s, s + rng.integers(4, 14)] for s in starts if s + 14 < steps], np.float64).reshape(-1, 2)
        labels = rng.integers(0, 2, len(segments))
        if informative:
            for (start, end), label in zip(segments.astype(int), labels, strict=True):
                x[start:end, label] += 4.0
        else:
            x[:] = 1.0
        yield Track(x, segments, labels)


def average_map(informative):
    train, test = list(tracks(0, 48, informative)), list(tracks(1, 24, informative))
    trained = train_detector(train, 2, SMALL, 0)
    truth = {str(i): {"segments": t.segments, "labels": t.labels} for i, t in enumerate(test)}
    found = {str(i): trained(t.features) for i, t in enumerate(test)}
    return detection_map(truth, found).mean()


def test_actions_in_noise_are_found_and_in_constant_features_not():
    before = detection_head._step._cache_size()
    assert average_map(True) > 0.75
    assert detection_head._step._cache_size() == before + 1  # nothing is compiled twice
    assert average_map(False) < 0.2


@pytest.mark.parametrize("levels", [1, 3])
def test_lengths_divide(levels):
    assert detection_head.padded_length(9, levels) % 2 ** (levels - 1) == 0

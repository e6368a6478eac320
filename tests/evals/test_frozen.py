"""Features of labelled videos, label subsets, and the table of frozen probes."""

import ml_dtypes
import numpy as np
import pytest

from vjepa_jax.config import ConfigError, EvalConfig
from vjepa_jax.evals import heads, knn, linear
from vjepa_jax.evals.attentive import AttentiveConfig
from vjepa_jax.evals.features import balanced_subset, extract, extract_all, held_out, pixel_features
from vjepa_jax.evals.frozen import format_table, probe_rows

CLASSES, BATCH = 4, 32
SMALL = AttentiveConfig(lrs=(1e-2, 1e-3), steps=25, batch_size=32, num_heads=2)
CFG = EvalConfig(num_labels=(40, 160), seeds=2)


def batches(seed, count, shuffled=False):
    """Clips whose class shows in the colour of one quarter, in batches of 32 with the last one padded."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    video = rng.integers(0, 120, (count, 4, 4, 4, 3)).astype(np.uint8)
    colours = np.array([[90, 0, 0], [0, 90, 0], [0, 0, 90], [60, 60, 0]], np.uint8)
    video[:, :, :2, :2] += colours[labels][:, None, None, None]
    if shuffled:
        labels = rng.permutation(labels)
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        pad = [(0, BATCH - size)]
        yield {
            "video": np.pad(video[start : start + size], pad + [(0, 0)] * 4),
            "label": np.pad(labels[start : start + size], pad, constant_values=-1),
            "index": np.pad(np.arange(start, start + size), pad, constant_values=-1),
        }


def pixels(video):
    return pixel_features(video, 2, 2)


def random_encoder(seed):
    weight = np.random.default_rng(seed).normal(size=(24, 24)).astype(np.float32)
    return lambda video: np.tanh(pixels(video) @ weight)


ENCODERS = {"pixels": pixels, "random": [random_encoder(0), random_encoder(1)]}


@pytest.fixture(scope="module")
def rows():
    return probe_rows(ENCODERS, lambda: batches(0, 160), lambda: batches(1, 100), CFG, attentive=SMALL)


def test_padded_rows_are_dropped():
    features = extract(pixels, batches(0, 50))
    assert features.tokens.shape == (50, 2, 2, 2, 24) and features.tokens.dtype == np.float32
    assert features.labels.dtype == np.int32 and (features.labels >= 0).all()
    np.testing.assert_array_equal(features.index, np.arange(50))
    assert features.pooled("mean").shape == (50, 24) and features.pooled("time").shape == (50, 48)


def test_pixel_features_are_the_tubelets():
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 8, 3)).astype(np.uint8)
    features = pixel_features(video, 2, 2)
    assert features.shape == (2, 2, 3, 4, 24)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (video[1, 2:4, 2:4, 6:8] / 255.0 - mean) / std
    np.testing.assert_allclose(features[1, 1, 1, 3], expected.reshape(-1), atol=1e-5)


def test_one_pass_for_all_encoders_and_pooled_features_alone():
    passes = []

    def counted():
        passes.append(1)
        yield from batches(0, 50)

    whole, other = extract_all([pixels, random_encoder(0)], counted())
    assert len(passes) == 1 and not np.allclose(whole.tokens, other.tokens)
    small = extract(pixels, batches(0, 50), keep_space=False)
    assert small.tokens.shape == (50, 2, 1, 1, 24)
    for pooling in ("mean", "time"):
        np.testing.assert_allclose(small.pooled(pooling), whole.pooled(pooling), atol=1e-5)


def test_bfloat16_tokens_are_kept_and_pooled_in_float32():
    features = extract(lambda video: pixels(video).astype(ml_dtypes.bfloat16), batches(0, 40))
    assert features.tokens.dtype == ml_dtypes.bfloat16 and features.pooled().dtype == np.float32
    np.testing.assert_allclose(features.pooled(), extract(pixels, batches(0, 40)).pooled(), atol=2e-2)


def test_segments_are_joined_in_time():
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 4, 3)).astype(np.uint8)
    batch = {"video": video, "label": np.zeros(3, np.int32), "index": np.arange(3)}
    tokens = extract(pixels, [batch]).tokens
    assert tokens.shape == (3, 4, 2, 2, 24)
    np.testing.assert_array_equal(tokens[1, 2:], pixels(video[1:2, 1])[0])


def test_nothing_to_probe_and_unlabelled_videos_are_refused():
    with pytest.raises(ConfigError, match=r"no videos to probe: check eval\.path"):
        extract(pixels, [])
    batch = {"video": np.zeros((2, 4, 4, 4, 3), np.uint8), "label": np.array([0, -1]), "index": np.array([4, 7])}
    with pytest.raises(ConfigError, match=r"1 of 2 videos to probe have no label \(first: row 7\)"):
        extract(pixels, [batch])
    with pytest.raises(ConfigError, match="pooling 'max' is not one of mean, time"):
        extract(pixels, batches(0, 8)).pooled("max")


def test_subsets_are_balanced_and_exact():
    labels = np.repeat(np.arange(4), (50, 30, 10, 2))
    subset = balanced_subset(labels, 42, np.random.default_rng(0))
    assert len(np.unique(subset)) == 42
    counts = np.bincount(labels[subset])
    assert counts[3] == 2 and counts[2] == 10 and counts[0] == counts[1] == 15
    assert (balanced_subset(labels, 42, np.random.default_rng(1)) != subset).any()
    with pytest.raises(ConfigError, match=r"eval\.num_labels=93 exceeds the 92 labelled training videos"):
        balanced_subset(labels, 93, np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"must be at least 8, two a class"):
        balanced_subset(labels, 7, np.random.default_rng(0))


def test_held_out_takes_a_fifth_of_every_class():
    labels = np.repeat(np.arange(3), (100, 50, 1))
    chosen = held_out(labels, np.random.default_rng(0))
    counts = np.bincount(labels[chosen], minlength=3)
    assert chosen.sum() == 30 and abs(counts[0] - 20) <= 1 and counts[2] == 0
    pairs = np.repeat(np.arange(5), 2)
    chosen = held_out(pairs, np.random.default_rng(0))
    assert chosen.sum() == 2 and set(pairs[~chosen]) == set(range(5))


def test_rows_are_complete(rows):
    names = [(r["num_labels"], r["probe"], r["encoder"], r["selected"]) for r in rows]
    assert len(set(names)) == len(names) == 2 * 2 * 4  # budgets, encoders, probes with two ways to choose attentive
    for row in rows:
        assert row["seeds"] == 2 and row["num_test"] == 100 and row["chance"] == 25.0
        assert len(row["correct"]) == len(row["settings"]) == 2
        assert all(isinstance(c, int) for c in row["correct"])
        assert row["accuracy_mean"] == pytest.approx(np.mean(row["correct"]))
        assert row["accuracy_std"] == pytest.approx(np.std(row["correct"], ddof=1))
    by_name = {(r["encoder"], r["probe"], r["num_labels"], r["selected"]): r for r in rows}
    for encoder in ENCODERS:
        chosen = by_name[encoder, "attentive", 160, "held-out 20 %"]
        assert by_name[encoder, "attentive", 160, "best on test"]["accuracy_mean"] >= chosen["accuracy_mean"]
    assert by_name["pixels", "linear", 160, "held-out 20 %"]["accuracy_mean"] > 80


def test_rows_are_deterministic_and_nothing_compiles_again(rows):
    compiled = (linear._solve, knn._search, heads._update, heads._outputs, heads._start)
    before = [f._cache_size() for f in compiled]
    seen = []
    again = probe_rows(
        ENCODERS, lambda: batches(0, 160), lambda: batches(1, 100), CFG, attentive=SMALL, on_row=seen.append
    )
    assert again == rows and seen == rows
    assert [f._cache_size() for f in compiled] == before


def test_test_labels_choose_nothing(rows):
    shuffled = probe_rows(
        ENCODERS, lambda: batches(0, 160), lambda: batches(1, 100, shuffled=True), CFG, attentive=SMALL
    )
    honest = [(a, b) for a, b in zip(rows, shuffled, strict=True) if a["selected"] != "best on test"]
    assert [a["settings"] for a, _ in honest] == [b["settings"] for _, b in honest]
    assert all(abs(b["accuracy_mean"] - 25.0) < 15 for _, b in honest)


def test_all_labels_by_default_other_poolings_and_the_table():
    cfg = EvalConfig(probes=("linear_time", "knn_time", "knn_centred"), seeds=1)
    first_step = {"pixels": lambda video: pixels(video)[:, :1]}
    rows = probe_rows(first_step, lambda: batches(0, 160), lambda: batches(1, 100), cfg)
    assert [(r["probe"], r["pooling"], r["num_labels"], r["accuracy_std"]) for r in rows] == [
        ("linear_time", "time", 160, 0.0),
        ("knn_time", "time", 160, 0.0),
        ("knn_centred", "mean", 160, 0.0),
    ]
    lines = format_table(rows).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert lines[0].startswith("| encoder | probe") and set(lines[1]) <= set("|-: ")
    assert f"{rows[0]['accuracy_mean']:.1f} ± 0.0" in lines[2] and "leave-one-out: k=" in lines[3]


def test_unknown_probes_and_seeds_are_refused():
    for cfg, message in (
        (EvalConfig(probes=("atentive",)), "did you mean 'attentive'"),
        (EvalConfig(seeds=0), r"eval\.seeds=0 must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            probe_rows({"pixels": pixels}, lambda: batches(0, 8), lambda: batches(1, 8), cfg)

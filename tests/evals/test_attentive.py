"""Training of the attentive probe on tokens."""

import ml_dtypes
import numpy as np

from vjepa_jax.evals import heads
from vjepa_jax.evals.attentive import PUBLISHED_LRS, PUBLISHED_WEIGHT_DECAYS, AttentiveConfig, train_attentive
from vjepa_jax.evals.features import held_out

# The shapes of test_frozen.py, so that both compile the same functions once.
CLASSES, TOKENS, DIM = 4, 8, 24
SMALL = AttentiveConfig(lrs=(1e-2, 1e-6), weight_decays=(0.1,), steps=60, batch_size=32, num_heads=2)


def videos(seed, rows, strength=3.0):
    """One token of a video, at a random place, carries the class: the mean over tokens hardly shows it."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(CLASSES, DIM))
    labels = rng.integers(0, CLASSES, rows).astype(np.int32)
    x = rng.normal(size=(rows, TOKENS, DIM))
    x[np.arange(rows), rng.integers(0, TOKENS, rows)] += strength * directions[labels]
    return x.astype(np.float32), labels


def fit(x, labels, rows=None, config=SMALL, seed=0):
    rows = np.arange(len(labels)) if rows is None else rows
    chooses = held_out(labels[rows], np.random.default_rng(seed))
    return train_attentive(x, labels, rows, chooses, CLASSES, config, seed)


def test_finds_the_telling_token_and_rejects_the_useless_rate():
    x, labels = videos(0, 300)
    test_x, test_labels = videos(1, 200)
    probe = fit(x, labels)
    accuracy = (probe.predict(test_x) == test_labels).mean(1)
    assert probe.chosen == 0 and accuracy[0] > 0.95
    assert accuracy[1] < 0.7  # a learning rate of 1e-6 leaves the probe as it was


def test_shuffled_labels_are_not_learned():
    x, labels = videos(0, 300)
    test_x, test_labels = videos(1, 300)
    probe = fit(x, np.random.default_rng(2).permutation(labels))
    accuracy = (probe.predict(test_x) == test_labels)[0].mean()
    assert abs(accuracy - 1 / CLASSES) < 0.12


def test_held_out_rows_weigh_nothing_in_the_choice():
    x, labels = videos(0, 300)
    rows = np.arange(300)
    chooses = held_out(labels, np.random.default_rng(0))
    # The rows to choose by carry wrong labels: heads that had seen them would still fit the others, but the score of a
    # good head on them must be poor.
    wrong = labels.copy()
    wrong[chooses] = (labels[chooses] + 1) % CLASSES
    probe = train_attentive(x, wrong, rows, chooses, CLASSES, SMALL, 0)
    assert probe.chosen == 1  # the untrained head, right by chance, beats the one that learned the rule


def test_no_compilation_for_other_subsets_and_seeds():
    x, labels = videos(0, 300)
    fit(x, labels)
    compiled = (heads._update, heads._outputs, heads._start)
    before = [function._cache_size() for function in compiled]
    fit(x, labels, rows=np.arange(40), seed=1)
    assert [function._cache_size() for function in compiled] == before


def test_same_seed_same_probe_and_another_seed_another():
    x, labels = videos(0, 300, strength=1.0)
    test_x, _ = videos(1, 200, strength=1.0)
    first, again, other = (fit(x, labels, seed=s).predict(test_x) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_deeper_probe_on_bfloat16_tokens():
    x, labels = videos(0, 300)
    test_x, test_labels = videos(1, 100)
    config = AttentiveConfig(lrs=(3e-3,), steps=60, batch_size=32, depth=2, num_heads=2)
    probe = fit(x.astype(ml_dtypes.bfloat16), labels, config=config)
    accuracy = (probe.predict(test_x.astype(ml_dtypes.bfloat16)) == test_labels).mean()
    assert probe.heads.parameters(1)["pooler"]["blocks"]["qkv"]["kernel"].shape[0] == 1
    assert accuracy > 0.8


def test_the_published_grid_has_twenty_heads():
    assert len(AttentiveConfig(lrs=PUBLISHED_LRS, weight_decays=PUBLISHED_WEIGHT_DECAYS).grid) == 20

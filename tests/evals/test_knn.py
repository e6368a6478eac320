"""k nearest neighbours against a plain loop, and the choice of k."""

import numpy as np
import pytest

from vjepa_jax.evals import knn
from vjepa_jax.evals.knn import train_knn

CLASSES, DIM = 4, 6


def clusters(seed, rows, spread):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, DIM))
    labels = rng.integers(0, CLASSES, rows).astype(np.int32)
    return (centres[labels] + spread * rng.normal(size=(rows, DIM))).astype(np.float32), labels


def slow(train, labels, query, k):
    """The class of one query: the k largest cosines vote with exp(cosine / T)."""
    cosine = train @ query / (np.linalg.norm(train, axis=1) * np.linalg.norm(query))
    votes = np.zeros(CLASSES)
    for row in np.argsort(-cosine)[:k]:
        votes[labels[row]] += np.exp(cosine[row] / 0.07)
    return votes.argmax()


@pytest.mark.parametrize("center", [False, True])
def test_agrees_with_a_loop(center):
    x, labels = clusters(0, 90, 1.5)
    test_x, _ = clusters(1, 40, 1.5)
    shift = x.mean(0) if center else 0.0
    for k in (1, 5, 20):
        probe = train_knn(x, labels, CLASSES, k_grid=(k,), center=center)
        expected = [slow(x - shift, labels, q, k) for q in test_x - shift]
        np.testing.assert_array_equal(probe.predict(test_x), expected)


def test_k_is_chosen_by_leave_one_out():
    x, labels = clusters(0, 120, 1.5)
    correct = {
        k: sum(slow(np.delete(x, i, 0), np.delete(labels, i), x[i], k) == labels[i] for i in range(len(x)))
        for k in knn.K_GRID
    }
    probe = train_knn(x, labels, CLASSES)
    assert probe.k == max(correct, key=lambda k: (correct[k], -k))
    assert len(set(correct.values())) > 1


def test_separable_classes_are_learned_and_shuffled_labels_are_not():
    x, labels = clusters(0, 200, 0.2)
    test_x, test_labels = clusters(1, 400, 0.2)
    assert (train_knn(x, labels, CLASSES).predict(test_x) == test_labels).mean() > 0.99
    shuffled = np.random.default_rng(2).permutation(labels)
    assert abs((train_knn(x, shuffled, CLASSES).predict(test_x) == test_labels).mean() - 1 / CLASSES) < 0.12


def test_a_single_neighbour_is_the_row_itself():
    x, labels = clusters(0, 60, 2.0)
    probe = train_knn(x, labels, CLASSES, k_grid=(1,))
    np.testing.assert_array_equal(probe.predict(x), labels)


def test_few_rows_and_padding():
    x, labels = clusters(0, 8, 0.2)
    test_x, _ = clusters(1, 30, 0.2)
    bare, padded = train_knn(x, labels, CLASSES), train_knn(x, labels, CLASSES, pad_to=64)
    assert bare.k == padded.k and bare.k in (1, 5)  # larger k than rows are not tried
    np.testing.assert_array_equal(bare.predict(test_x), padded.predict(test_x))


def test_other_subsets_do_not_compile_again():
    x, labels = clusters(0, 64, 1.0)
    train_knn(x, labels, CLASSES, pad_to=64).predict(x)
    before = knn._search._cache_size()
    train_knn(x[:20], labels[:20], CLASSES, pad_to=64).predict(x)
    assert knn._search._cache_size() == before


def test_many_queries_are_searched_in_chunks(monkeypatch):
    x, labels = clusters(0, 64, 1.0)
    test_x, _ = clusters(1, 50, 1.0)
    whole = train_knn(x, labels, CLASSES).predict(test_x)
    monkeypatch.setattr(knn, "CHUNK", 16)
    np.testing.assert_array_equal(train_knn(x, labels, CLASSES).predict(test_x), whole)

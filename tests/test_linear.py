"""The linear models over n-grams that are fitted at once, and how they are added to a classifier."""

import numpy as np
import pytest

from rheme import calibration
from rheme.models.classifier import ClassifierConfig, TextClassifier, pad_bags
from rheme.models.linear import fit_naive_bayes, fit_support_vectors, score_bags
from rheme.text.features import Features


def test_support_vectors_are_those_of_liblinear(rng: np.random.Generator) -> None:
    """The same scores as scikit-learn's LinearSVC on n-grams multiplied with the scales of each label."""
    svm = pytest.importorskip("sklearn.svm")
    texts = [" ".join(rng.choice(["good", "bad", "food", "mood", "never", "always", "a"], 5)) for _ in range(120)]
    has = np.stack([["good" in text for text in texts], ["never" in text for text in texts]], axis=1)
    has[rng.random(has.shape) < 0.1] ^= True  # no score separates them
    features = Features.train(texts, min_count=1, char_ngrams=(0, 0))
    bags, size = features.encode(texts), len(features)
    dense = np.zeros((len(texts), size))
    for row, (ids, weights) in zip(dense, bags, strict=True):
        row[ids] = weights
    importance = np.array([3.0, 1.0], np.float32)
    weights, bias = fit_support_vectors(bags, has, size, 0.5, importance, passes=200, tolerance=1e-2)
    present = dense > 0
    for k in range(2):
        p, q = (present[has[:, k] == there].sum(axis=0) + 1.0 for there in (True, False))
        scaled = dense * np.sqrt(np.abs(np.log(p / p.sum()) - np.log(q / q.sum())))
        model = svm.LinearSVC(C=0.5, tol=1e-7, max_iter=100_000, class_weight={True: float(importance[k])})
        wanted = model.fit(scaled, has[:, k]).decision_function(scaled)
        assert dense @ weights[:, k] + bias[k] == pytest.approx(wanted, abs=2e-2)


def test_naive_bayes_is_that_of_plain_numpy(rng: np.random.Generator) -> None:
    """Expectation maximisation in float64, a text at a time."""
    features, bags = 9, []
    for _ in range(30):
        rows = np.sort(rng.choice(np.arange(1, 9), rng.integers(1, 5), replace=False)).astype(np.int32)
        bags.append((rows, rng.uniform(0.2, 1.0, len(rows)).astype(np.float32)))
    targets = np.zeros((30, 3), np.uint8)
    targets[np.arange(6), np.arange(6) % 3] = 1
    posterior = targets.astype(float)
    for number in range(5):
        counts = np.full((features, 3), 0.1)
        for (rows, values), p in zip(bags, posterior, strict=True):
            counts[rows] += values[:, None] * p
        wanted = np.log(counts / counts.sum(axis=0))
        if number < 4:
            prior = np.log(posterior.sum(axis=0) + 1.0)
            for text in range(6, 30):
                rows, values = bags[text]
                score = np.exp(3.0 * (values[:, None] * wanted[rows]).sum(axis=0) + prior)
                posterior[text] = score / score.sum()
    assert fit_naive_bayes(bags, targets, features, rounds=4) == pytest.approx(wanted, abs=1e-4)


def test_a_share_of_a_second_model(rng: np.random.Generator) -> None:
    """What tells the labels is taken up, what tells nothing is not."""
    targets = np.eye(3, dtype=np.uint8)[rng.integers(0, 3, 400)]
    noise = rng.standard_normal((400, 3)).astype(np.float32)
    good = (targets + 0.8 * rng.standard_normal((400, 3))).astype(np.float32)
    assert calibration.fit_share(noise, good, targets) > 8
    assert calibration.fit_share(good, noise, targets) < 0.2
    assert calibration.fit_share(good, np.zeros_like(good), targets) == 0.0


def test_a_linear_model_is_added(rng: np.random.Generator) -> None:
    model = TextClassifier(ClassifierConfig(embedding_size=4, hidden_size=3, bag_scale=5.0), 6, 7, 2)
    model.eval()
    ids, lengths = np.array([[3, 4], [5, 0]]), np.array([2, 1])
    bags = [(np.array([1, 4], np.int32), np.array([0.6, 0.8], np.float32)), (np.zeros(0, np.int32), np.zeros(0, np.float32))]
    weights, bias = rng.standard_normal((7, 2)).astype(np.float32), np.array([0.5, -1.0], np.float32)
    before = model(ids, lengths, *pad_bags(bags)).numpy()
    assert score_bags(weights, bags) == pytest.approx(np.stack([0.6 * weights[1] + 0.8 * weights[4], [0, 0]]), abs=1e-6)
    model.add_linear(weights, bias)
    after = model(ids, lengths, *pad_bags(bags)).numpy()
    assert after - before == pytest.approx(score_bags(weights, bags) + bias, abs=1e-5)

"""Linear models over bags of n-grams, fitted at once: a support vector machine, and naive Bayes that learns without labels too.

The support vector machine, one label against the others, has L2-regularised squared hinge loss and is found by coordinate
descent in the dual (Hsieh et al. 2008, algorithm 1), with every label's step on a text taken at once. It converges in a dozen
passes where a stochastic gradient is far from done: a rare n-gram gets its weight from the few texts that hold it. As in the
NBSVM (Wang and Manning 2012), an n-gram counts the more for a label the more often it stands with it than with the others.

Naive Bayes with texts whose labels are latent (Nigam et al. 2000) is the semi-supervised VAE with a bag of n-grams for a
decoder: there the posterior of the label is exact, and the bound is maximised by EM instead of by gradients.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import ops
from rheme.models.classifier import pad_bags
from rheme.text.features import Bag

Array = NDArray[Any]

_STREAM = 1 << 43
_PART = 256  # texts at once
_SMOOTHING = 1.0  # added to each count of texts
_ALPHA = 0.1  # added to each sum of weights
_EVIDENCE = 3.0  # what an n-gram's evidence counts beside the prior of a label


def score_bags(weights: Array, bags: Sequence[Bag]) -> Array:
    """The scores (N, labels) of bags of n-grams by weights (features, labels)."""
    scores = np.zeros((len(bags), weights.shape[1]), weights.dtype)
    for start in range(0, len(bags), _PART):
        rows, values = pad_bags(bags[start : start + _PART])
        scores[start : start + _PART] = ops.sum(ops.mul(ops.embedding(rows, weights), values[:, :, None]), axis=0)
    return scores


def label_scales(rows: Sequence[Array], has: Array, features: int, power: float) -> Array:
    """float32 (features, labels): what each n-gram is multiplied with for each label, this power of |log(p / q)|.

    p and q: the n-gram's share of the n-grams in the texts that have the label, and in those that have not.
    rows: of the n-grams of each text; has: bool (N, labels).
    """
    with_label = np.zeros((features, has.shape[1]), np.int64)
    everywhere = np.zeros(features, np.int64)
    for row, labels in zip(rows, has, strict=True):
        everywhere[row] += 1  # an n-gram stands in a bag once
        with_label[np.ix_(row, np.flatnonzero(labels))] += 1

    def log_shares(counts: Array) -> Array:
        smoothed = counts.astype(np.float32) + np.float32(_SMOOTHING)
        return ops.sub(ops.log(smoothed), ops.log(ops.sum(smoothed, axis=0, keepdims=True)))

    ratio = np.abs(ops.sub(log_shares(with_label), log_shares(everywhere[:, None] - with_label)))
    return ops.exp(ops.mul(ops.log(ratio + np.float32(1e-9)), power))


def fit_support_vectors(
    bags: Sequence[Bag],
    targets: Array,
    features: int,
    penalty: float = 1.0,
    power: float = 0.5,
    importance: Array | None = None,
    passes: int = 30,
    tolerance: float = 0.1,
) -> tuple[Array, Array]:
    """Weights float32 (features, labels) and biases (labels,) of the scores x w + b of texts with these bags.

    targets (N, labels): above 0 where a text has the label. With s = `label_scales` (1 for a power of 0) and w = s v it
    minimises for each label (|v|^2 + b^2) / 2 + penalty * sum over texts of max(0, 1 - y (x w + b))^2, y = 1 or -1; a text that
    has the label counts importance (labels,) times. Ends after a pass in which the projected gradients lie within `tolerance`
    of each other, over all labels, as liblinear does, or after so many passes.
    """
    has = np.asarray(targets) > 0
    signs = np.where(has, np.float32(1), np.float32(-1))
    table = ops.zeros((features + 1, has.shape[1]))  # the last row is the bias: a feature that each text has
    scales = np.ones_like(table)
    if power:
        scales[:features] = label_scales([ids for ids, _ in bags], has, features, power)
    rows = [np.append(ids, features).astype(np.int64) for ids, _ in bags]
    values = [np.append(weights, np.float32(1)).astype(np.float32)[:, None] for _, weights in bags]
    damping = np.full(has.shape, np.float32(0.5 / penalty))
    if importance is not None:
        damping = np.where(has, damping / importance.astype(np.float32), damping)

    def scaled(text: int) -> Array:
        """Its n-grams' values (K, labels), or (K, 1) where all labels scale alike."""
        return scales[rows[text]] * values[text] if power else values[text]

    steepness = np.zeros_like(damping)  # the second derivative of each text's step
    for text in range(len(bags)):
        x = scaled(text)
        steepness[text] = ops.sum(x * x, axis=0) + damping[text]
    alphas = np.zeros_like(signs)
    for number in range(passes):
        order = np.argsort(ops.random_bits(0, _STREAM + number, 0, len(bags)), kind="stable")
        highest, lowest = -math.inf, math.inf
        for text in order.tolist():
            row, sign, alpha, held = rows[text], signs[text], alphas[text], table[rows[text]]
            x = scaled(text)
            gradient = sign * ops.sum(x * held, axis=0) - np.float32(1) + damping[text] * alpha
            projected = np.where(alpha > 0, gradient, np.minimum(gradient, 0))
            highest, lowest = max(highest, float(projected.max())), min(lowest, float(projected.min()))
            if not projected.any():
                continue
            updated = np.maximum(alpha - gradient / steepness[text], 0)
            table[row] = held + x * ((updated - alpha) * sign)
            alphas[text] = updated
        if highest - lowest <= tolerance:
            break
    weights = scales * table
    return weights[:features], weights[features]


def fit_naive_bayes(bags: Sequence[Bag], targets: Array, features: int, rounds: int = 8) -> Array:
    """Weights float32 (features, labels), log p(n-gram | label), by expectation maximisation.

    targets (N, labels): one above 0 a text, or none where the label is not known. An n-gram counts by its weight in its bag, of
    norm 1 for words and for characters (Rennie et al. 2003), so that long texts are not surer than short ones by far.
    """
    posterior = (np.asarray(targets) > 0).astype(np.float32)
    latent = np.flatnonzero(~posterior.any(axis=1))
    some = [bags[text] for text in latent.tolist()]
    weights = np.zeros((features, posterior.shape[1]), np.float32)
    for number in range(rounds + 1):
        counts = ops.zeros(weights.shape)
        for start in range(0, len(bags), _PART):
            rows, values = pad_bags(bags[start : start + _PART])
            shares = ops.mul(values[:, :, None], posterior[start : start + _PART])
            counts = ops.add(counts, ops.embedding_backward(shares, rows, features))
        smoothed = ops.add(counts, _ALPHA)
        weights = ops.sub(ops.log(smoothed), ops.log(ops.sum(smoothed, axis=0, keepdims=True)))
        if number < rounds and len(latent):
            prior = ops.log(ops.add(ops.sum(posterior, axis=0), 1.0))
            posterior[latent] = ops.softmax(ops.add(ops.mul(score_bags(weights, some), _EVIDENCE), prior))
    return weights

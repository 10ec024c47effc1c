"""Linear models beside a trained classifier: which of them is added to its logits, and how much of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rheme import calibration, ops
from rheme.models.linear import fit_naive_bayes, fit_support_vectors, score_bags
from rheme.plugins.semantic_analysis.config import SemanticAnalysisConfig
from rheme.text.features import Bag, Features, PiecesAndFeatures

Array = NDArray[Any]

# Of the scales of the support vector machine's n-grams, which help where labels are few and hurt where they are many: accuracy
# on held-out parts of the training texts of SST-2, TREC and ChnSentiCorp 80.5, 84.9 and 89.1 with a power of 0, 81.2, 86.2 and
# 89.9 with 0.5; of Banking77 and CLINC150 90.8 and 95.9 with 0, 90.5 and 95.3 with 0.5.
POWERS = (0.0, 0.5)


class Labelled(NamedTuple):
    """Texts, and their targets uint8 (N, labels)."""

    texts: Sequence[str]
    targets: Array

    def __add__(self, other: Any) -> "Labelled":
        return Labelled([*self.texts, *other.texts], np.concatenate((self.targets, other.targets)))


class Addition(NamedTuple):
    """Weights (features, labels) and bias (labels,) to add to the logits: so much of a linear model; and the loss of the
    validation texts with them."""

    loss: float
    share: float
    weights: Array
    bias: Array


class SupportVectors(NamedTuple):
    """A support vector machine to add: how it reads a text, the power of the scales of n-grams, and what the texts of each
    label (labels,) count."""

    addition: Addition
    tokenizer: PiecesAndFeatures
    power: float
    importance: Array | None


def support_vectors(
    config: SemanticAnalysisConfig,
    tokenizer: PiecesAndFeatures,
    train: Labelled,
    valid: Labelled,
    logits: Array,
    importance: Array | None,
) -> SupportVectors:
    """The likeliest of some, for a classifier with these logits (N, labels) of the validation texts.

    They differ by how n-grams are scaled, and by whether they see how a text opens.
    """

    def fit(reading: PiecesAndFeatures, power: float) -> SupportVectors:
        bags = reading.bags(train.texts)
        weights, _ = fit_support_vectors(bags, train.targets, reading.rows, config.margin_penalty, power, importance)
        addition = _fit_share(config, weights, bags, reading.bags(valid.texts), logits, valid.targets)
        return SupportVectors(addition, reading, power, importance)

    best = min((fit(tokenizer, power) for power in POWERS), key=lambda found: found.addition.loss)
    if config.opening_words:
        openings = Features.train(train.texts, config.max_features, config.min_count, 0, (0, 0), config.opening_words)
        more = fit(PiecesAndFeatures(tokenizer.pieces, tokenizer.features, openings), best.power)
        best = min(best, more, key=lambda found: found.addition.loss)
    return best


def refit(config: SemanticAnalysisConfig, found: SupportVectors, texts: Labelled) -> tuple[Array, Array]:
    """What makes of a support vector machine that was added the one fitted to these texts: weights and bias to add."""
    bags, old = found.tokenizer.bags(texts.texts), found.addition
    settings = config.margin_penalty, found.power, found.importance
    weights, _ = fit_support_vectors(bags, texts.targets, found.tokenizer.rows, *settings)
    return ops.sub(ops.mul(weights, old.share), old.weights), ops.sub(ops.mul(_bias(weights, bags), old.share), old.bias)


def group_vectors(
    config: SemanticAnalysisConfig, found: SupportVectors, train: Labelled, valid: Labelled, logits: Array
) -> Addition:
    """A support vector machine that tells groups of labels: its score of a group is added to the logits of each label in it.

    What the labels of a group share it learns from all their texts. logits: with `found` added.
    """
    places = {label: k for k, label in enumerate(config.labels)}
    members = [[places[label] for label in labels] for labels in config.groups.values()]
    has = np.stack([train.targets[:, places].any(axis=1) for places in members], axis=1)
    bags = found.tokenizer.bags(train.texts)
    scores, _ = fit_support_vectors(bags, has, found.tokenizer.rows, config.margin_penalty, found.power)
    weights = ops.zeros((len(scores), len(config.labels)))
    for k, labels in enumerate(members):
        weights[:, labels] += scores[:, k : k + 1]
    return _fit_share(config, weights, bags, found.tokenizer.bags(valid.texts), logits, valid.targets)


def naive_bayes(
    config: SemanticAnalysisConfig, tokenizer: PiecesAndFeatures, train: Labelled, valid: Labelled, logits: Array
) -> Addition:
    """Naive Bayes for a classifier with these logits (N, labels) of the validation texts. Training texts may have no label."""
    bags = tokenizer.bags(train.texts)
    weights = fit_naive_bayes(bags, train.targets, tokenizer.rows)
    return _fit_share(config, weights, bags, tokenizer.bags(valid.texts), logits, valid.targets)


def _fit_share(
    config: SemanticAnalysisConfig, weights: Array, bags: Sequence[Bag], others: Sequence[Bag], logits: Array, targets: Array
) -> Addition:
    """As much of a linear model as makes the validation texts likeliest.

    weights (features, labels): fitted to the texts of `bags`; others: the bags of the validation texts, whose logits and
    targets (N, labels) are given.
    """
    bias = _bias(weights, bags)
    scores = ops.add(score_bags(weights, others), bias)
    share, loss = calibration.fit_share(logits, scores, targets, config.multi_label)
    return Addition(loss, share, ops.mul(weights, share), ops.mul(bias, share))


def _bias(weights: Array, bags: Sequence[Bag]) -> Array:
    """Scores of mean 0 over the texts it was fitted to: how frequent the labels are the classifier knows already."""
    return ops.neg(ops.mean(score_bags(weights, bags), axis=0))

"""Linear models beside a trained classifier: which of them is added to its logits, and how much of it."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from rheme import calibration, ops
from rheme.models.linear import score_bags
from rheme.text.features import Bag

Array = NDArray[Any]

# Of the scales of the support vector machine's n-grams, which help where labels are few and hurt where they are many: accuracy
# on held-out parts of the training texts of SST-2, TREC and ChnSentiCorp 80.5, 84.9 and 89.1 with a power of 0, 81.2, 86.2 and
# 89.9 with 0.5; of Banking77 and CLINC150 90.8 and 95.9 with 0, 90.5 and 95.3 with 0.5.
POWERS = (0.0, 0.5)


def likeliest(
    models: Sequence[Array], bags: Sequence[Bag], others: Sequence[Bag], logits: Array, targets: Array, multi_label: bool
) -> tuple[Array, Array]:
    """Weights (features, labels) and bias (labels,) to add to the logits.

    models: weights fitted to the texts of `bags`; others: the bags of the validation texts, whose logits and targets
    (N, labels) are given.
    """
    found: list[tuple[float, int, Array, Array]] = []
    for weights in models:
        bias = ops.neg(ops.mean(score_bags(weights, bags), axis=0))  # how frequent the labels are the classifier knows already
        scores = ops.add(score_bags(weights, others), bias)
        share, loss = calibration.fit_share(logits, scores, targets, multi_label)
        found.append((loss, len(found), ops.mul(weights, share), ops.mul(bias, share)))
    _, _, weights, bias = min(found)
    return weights, bias

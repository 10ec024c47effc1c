"""From logits to probabilities that mean what they say, and to decisions: temperature, thresholds, abstaining.

All of it is fitted on validation examples and kept in the model's config; nothing here touches the weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import ops

Array = NDArray[Any]

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def _minimum(f: Callable[[float], float], low: float, high: float, steps: int = 40) -> float:
    """Where a function of one valley is least, by golden-section search (Kiefer 1953)."""
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    fa, fb = f(a), f(b)
    for _ in range(steps):
        if fa <= fb:
            high, b, fb = b, a, fa
            a = high - _GOLDEN * (high - low)
            fa = f(a)
        else:
            low, a, fa = a, b, fb
            b = low + _GOLDEN * (high - low)
            fb = f(b)
    return 0.5 * (low + high)


def probabilities(logits: Array, temperature: float = 1.0, multi_label: bool = False) -> Array:
    """logits (N, C) -> softmax over C of logits / temperature, or the sigmoid of each."""
    scaled = ops.div(logits, float(temperature))
    return ops.sigmoid(scaled) if multi_label else ops.softmax(scaled)


def negative_log_likelihood(logits: Array, targets: Array, temperature: float = 1.0, multi_label: bool = False) -> float:
    """Mean over texts (nats). targets uint8 (N, C): one 1 a row, or any number with multi_label."""
    if not len(logits):
        return math.nan
    wanted = targets.astype(logits.dtype)
    scaled = ops.div(logits, float(temperature))
    if multi_label:
        # log(1 + exp(x)) - x y, as max(x, 0) - x y + log(1 + exp(-|x|))
        log1p = ops.log(ops.add(ops.exp(ops.neg(np.abs(scaled))), 1.0))
        loss = ops.add(ops.sub(ops.relu(scaled), ops.mul(scaled, wanted)), log1p)
    else:
        log_p = ops.log_softmax(scaled)
        loss = ops.neg(ops.mul(np.where(targets > 0, log_p, logits.dtype.type(0)), wanted))
    return float(ops.sum(loss)) / len(logits)


def fit_temperature(logits: Array, targets: Array, multi_label: bool = False) -> float:
    """The temperature, from 1/8 to 8, of the least negative log-likelihood (Guo et al. 2017)."""
    if not len(logits):
        return 1.0

    def loss(log_t: float) -> float:
        return negative_log_likelihood(logits, targets, math.exp(log_t), multi_label)

    return math.exp(_minimum(loss, math.log(0.125), math.log(8.0)))


def fit_share(logits: Array, others: Array, targets: Array, multi_label: bool = False) -> tuple[float, float]:
    """The share s, 0 or from 1/8 to 64, for which logits + s others, at their best temperature, are likeliest; and their loss.

    logits and others (N, C): of two models, of which the first alone may be the better one.
    """

    def loss(share: float) -> float:
        both = ops.add(logits, ops.mul(others, share))
        return negative_log_likelihood(both, targets, fit_temperature(both, targets, multi_label), multi_label)

    best = math.exp(_minimum(lambda log_s: loss(math.exp(log_s)), math.log(0.125), math.log(64.0), 12))
    least, share = min((loss(share), share) for share in (0.0, best))
    return share, least


def best_threshold(scores: Sequence[float], wanted: Sequence[bool], prior: float = 0.0) -> tuple[float, float]:
    """The threshold of the largest F1 when scores at or above it count as yes, and that F1.

    It lies half-way between two scores. prior: what is wanted is counted half by the labels and half by the scores themselves,
    as probabilities (expected F1: Lipton et al. 2014), where so many are wanted; the fewer, the more by the scores, so that a
    label of few examples gets no threshold that fits them alone. 0.5 where nothing is wanted.
    """
    total = sum(map(bool, wanted))
    if not total:
        return 0.5, 0.0
    trust = total / (total + prior)
    every = trust * total + (1.0 - trust) * math.fsum(scores)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    best, threshold, right = -1.0, 0.5, 0.0
    for place, index in enumerate(order):
        right += trust * bool(wanted[index]) + (1.0 - trust) * scores[index]
        last = place + 1 == len(order)
        following = 0.0 if last else scores[order[place + 1]]
        if following == scores[index] and not last:
            continue
        f1 = 2.0 * right / (place + 1 + every)
        if f1 > best:
            best, threshold = f1, 0.5 * (scores[index] + following)
    return threshold, best


def confidence_for_accuracy(confidences: Sequence[float], right: Sequence[bool], accuracy: float) -> float:
    """The least confidence such that the answers at or above it are right in at least this share; 1.01 if none does."""
    order = sorted(range(len(confidences)), key=lambda i: -confidences[i])
    found, correct = 1.01, 0
    for place, index in enumerate(order, 1):
        correct += bool(right[index])
        last = place == len(order) or confidences[order[place]] < confidences[index]
        if last and correct >= accuracy * place:
            found = confidences[index]
    return found

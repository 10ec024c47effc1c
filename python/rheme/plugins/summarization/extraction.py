"""Choosing sentences of a document by their codes: the extractive summary, and the first pass over a long document.

A sentence says much of what the document says when its code is near the mean of all its sentences' codes; one whose code is
near that of a sentence already chosen adds little (maximal marginal relevance: Carbonell and Goldstein 1998).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import ops
from rheme.text.sentences import split_sentences

Array = NDArray[Any]

_NOVELTY = 0.5  # weight of being unlike what is chosen, against that of being like the document
_FIRST = 0.1  # bonus of the first sentence, falling with the position's inverse: documents begin with their subject


@dataclass(frozen=True, slots=True)
class Sentence:
    """text == document[start:end]. ids: its pieces."""

    text: str
    start: int
    end: int
    ids: list[int]


def find_sentences(document: str, encode: Callable[[Sequence[str]], list[list[int]]]) -> list[Sentence]:
    """The sentences of a document that hold anything, in order. encode: texts -> their pieces."""
    spans, position = [], 0
    for part in split_sentences(document):
        start = position + len(part) - len(part.lstrip())
        end = start + len(part.strip())
        position += len(part)
        if end > start:
            spans.append((start, end))
    pieces = encode([document[start:end] for start, end in spans])
    return [Sentence(document[s:e], s, e, ids) for (s, e), ids in zip(spans, pieces, strict=True) if ids]


def rank(codes: Array, sizes: Sequence[int], count: int, budget: float = math.inf) -> list[int]:
    """The indices of up to `count` sentences that together fit into the budget, the best first.

    codes F (n, C), a row a sentence; sizes: what each takes of the budget. The first choice is taken in any case.
    """
    lengths = [math.sqrt(float(x)) or 1.0 for x in ops.sum(ops.mul(codes, codes), axis=1)]
    unit = ops.div(codes, np.array(lengths, codes.dtype)[:, None])
    centre = ops.mean(unit, axis=0, keepdims=True)
    length = math.sqrt(float(ops.sum(ops.mul(centre, centre)))) or 1.0
    likeness = ops.matmul(unit, centre, transpose_b=True)
    relevance = [float(x) / length + _FIRST / (1 + i) for i, x in enumerate(likeness[:, 0])]
    chosen: list[int] = []
    nearest = [0.0] * len(relevance)
    left = set(range(len(relevance)))
    while left and len(chosen) < count:
        fitting = [i for i in left if sizes[i] <= budget] or ([] if chosen else list(left))
        if not fitting:
            break
        best = max(fitting, key=lambda i: ((1 - _NOVELTY) * relevance[i] - _NOVELTY * nearest[i], -i))
        chosen.append(best)
        left.remove(best)
        budget -= sizes[best]
        near = ops.matmul(unit, ops.contiguous(unit[best : best + 1]), transpose_b=True)
        nearest = [max(old, float(new)) for old, new in zip(nearest, near[:, 0], strict=True)]
    return chosen

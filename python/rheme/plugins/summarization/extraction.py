"""Choosing sentences of a document: the extractive summary, and the first pass over a long document.

What a sentence is worth is how much the model looks at it while it writes its own summary: the weights of the attention that
copies, dot products of the decoder's states with the codes of what stands in the document. A sentence whose code is near that
of one already chosen adds little (maximal marginal relevance: Carbonell and Goldstein 1998).

A document longer than the model reads at once is read in windows; the better half of each is read again, side by side, until
all that is left fits into one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import ops
from rheme.models.pointer_generator import PointerGenerator
from rheme.text import batches
from rheme.text.sentences import split_sentences

Array = NDArray[Any]

_NOVELTY = 0.3  # weight of being unlike what is chosen, against that of being looked at
_STEPS = 24  # pieces of the summary that is written to see where the model looks
_BATCH_TOKENS, _BATCH_ROWS = 4096, 32


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


def rank(model: PointerGenerator, sentences: Sequence[Sequence[int]], limit: int) -> list[int]:
    """All sentences (their ids) of a document, by number, the most telling first. limit: pieces that are read at once."""
    cut = [list(ids[: max(1, limit // 2)]) for ids in sentences]  # so that two fit into a window
    left, passed = list(range(len(cut))), list[int]()
    while sum(len(cut[i]) for i in left) > limit:
        windows = _windows(cut, left, limit)
        kept: list[int] = []
        dropped: list[tuple[float, int]] = []
        for window, (worth, _) in zip(windows, read(model, [[cut[i] for i in window] for window in windows]), strict=True):
            room = sum(len(cut[i]) for i in window) // 2
            for number, (negative, i) in enumerate(sorted((-w, i) for w, i in zip(worth, window, strict=True))):
                room -= len(cut[i])
                if number == 0 or room >= 0:
                    kept.append(i)
                else:
                    dropped.append((negative, i))
        left = sorted(kept)
        passed = [i for _, i in sorted(dropped)] + passed
    if left:
        [(worth, codes)] = read(model, [[cut[i] for i in left]])
        left = [left[k] for k in _diverse(worth, codes)]
    return left + passed


def fitting(order: Sequence[int], sizes: Sequence[int], count: int, budget: int | None = None) -> list[int]:
    """Up to `count` sentences, the first ones of the order that fit into the budget together, as they stand in the document.

    The very first is taken in any case.
    """
    chosen, room = list[int](), math.inf if budget is None else budget
    for i in order:
        if len(chosen) < count and (not chosen or sizes[i] <= room):
            chosen.append(i)
            room -= sizes[i]
    return sorted(chosen)


def _windows(cut: Sequence[Sequence[int]], left: Sequence[int], limit: int) -> list[list[int]]:
    """Neighbours together, as many as fit."""
    windows: list[list[int]] = [[]]
    size = 0
    for i in left:
        if size + len(cut[i]) > limit:
            windows.append([])
            size = 0
        windows[-1].append(i)
        size += len(cut[i])
    return windows


def read(model: PointerGenerator, windows: Sequence[Sequence[Sequence[int]]]) -> list[tuple[list[float], Array]]:
    """For each window (sentences, their ids): how much each sentence is looked at, and its code F (n, C).

    The attention is summed over a summary written greedily, and divided by the square root of the sentence's length: neither
    long sentences nor short ones are favoured. A code is the mean of what the encoder found in the sentence.
    """
    found: dict[int, tuple[list[float], Array]] = {}
    step = model.captured().step
    sizes = [sum(map(len, window)) for window in windows]
    for batch in batches.length_batches(sizes, _BATCH_TOKENS, _BATCH_ROWS):
        source, lengths = batches.pad([[index for ids in windows[w] for index in ids] for w in batch], model.config.pad_id)
        state = model.start(model.encode(source, lengths))
        values = ops.to_host(state.memory.values)
        looked, done = ops.zeros((len(batch), source.shape[0])), np.zeros(len(batch), bool)
        ids = np.full(len(batch), model.config.bos_id, np.int64)
        for _ in range(_STEPS):
            logits, state = step(ids, state)
            assert state.attention is not None
            weights = ops.contiguous(ops.to_host(state.attention[0]))
            weights[done] = 0
            looked = ops.add(looked, weights)
            ids = ops.to_host(ops.max(logits, axis=1)[1])
            done |= ids == model.config.eos_id
            if done.all():
                break
        for row, w in enumerate(batch):
            ends = np.cumsum([len(ids) for ids in windows[w]]).tolist()  # integers
            spans = [slice(end - len(ids), end) for end, ids in zip(ends, windows[w], strict=True)]
            worth = [float(ops.sum(looked[row, span])) / math.sqrt(span.stop - span.start) for span in spans]
            codes = ops.zeros((len(spans), values.shape[2]))
            for k, span in enumerate(spans):
                codes[k] = ops.mean(ops.contiguous(values[span, row]), axis=0)
            found[w] = worth, codes
    return [found[w] for w in range(len(windows))]


def _diverse(worth: Sequence[float], codes: Array) -> list[int]:
    """An order of sentences by worth and by unlikeness to those before; codes F (n, C) are compared about their mean."""
    apart = ops.sub(codes, ops.mean(codes, axis=0, keepdims=True))
    lengths = [math.sqrt(float(x)) or 1.0 for x in ops.sum(ops.mul(apart, apart), axis=1)]
    unit = ops.div(apart, np.array(lengths, codes.dtype)[:, None])
    likeness = ops.matmul(unit, unit, transpose_b=True).tolist()
    most = max(worth) or 1.0
    order, left, nearest = list[int](), list(range(len(worth))), [0.0] * len(worth)
    while left:
        best = max(left, key=lambda i: ((1 - _NOVELTY) * worth[i] / most - _NOVELTY * nearest[i], -i))
        order.append(best)
        left.remove(best)
        nearest = [max(old, new) for old, new in zip(nearest, likeness[best], strict=True)]
    return order

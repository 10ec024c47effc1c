"""Windows: what the reader reads at once, a part of a context and the questions about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rheme import ops
from rheme.models.span_reader import ReaderBatch
from rheme.plugins.question_answering.lexicon import FEATURES, SCALES, WIDTH, Lexicon
from rheme.text import batches
from rheme.text.words import find_words

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """A question about a window: its words, the features of the window's words, and the right spans (O, 2)."""

    words: NDArray[np.int32]
    features: NDArray[np.uint8]
    spans: Ids


@dataclass(frozen=True)
class Window:
    """A window of a context with the questions about it, and where in it their answers may begin."""

    passage: NDArray[np.int32]
    asked: list[Asked]
    starts: tuple[int, int]


def split(length: int, window: int, max_span: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Windows (first word, end) of so many words that cover a context of `length`, each half over the next, or as much more as
    spans of up to max_span words need.

    With each of them, counted from its first word, where answers may begin: the middle of an overlap divides, or what is before
    it where a span would not end within the window, so that every span is read once, and short ones not at an edge.
    """
    begins, step = [0], min(window // 2, window - max_span + 1)
    while begins[-1] + window < length:
        begins.append(min(begins[-1] + step, length - window))
    ends = [min(begin + window, length) for begin in begins]
    middles = [(begin + end) // 2 for begin, end in zip(begins[1:], ends, strict=False)]
    cuts = [0, *(min(middle, end - max_span + 1) for middle, end in zip(middles, ends, strict=False)), length]
    return [((b, e), (cuts[k] - b, min(cuts[k + 1], e) - b)) for k, (b, e) in enumerate(zip(begins, ends, strict=True))]


def words_of(context: str, lexicon: Lexicon) -> tuple[NDArray[np.int32], Ids]:
    """The numbers of a text's words, and their spans in characters."""
    words, places = find_words(context)
    return lexicon.ids(words), places


def batch_of(windows: Sequence[Window], lexicon: Lexicon) -> ReaderBatch:
    """Windows and their questions as padded arrays."""
    passages, passage_lengths = batches.pad([window.passage.astype(np.int64) for window in windows])
    asked = [(owner, asked) for owner, window in enumerate(windows) for asked in window.asked]
    questions, question_lengths = batches.pad([one.words.astype(np.int64) for _, one in asked])
    every = np.concatenate([passages.reshape(passages.size), questions.reshape(questions.size)])
    used, places = np.unique(every, return_inverse=True)
    features = np.zeros((len(asked), passages.shape[0], FEATURES), np.float32)
    for row, (_, one) in zip(features, asked, strict=True):
        row[: len(one.features)] = one.features
    chars = np.frombuffer(b"".join(lexicon.chars[index] for index in used.tolist()), np.uint8)
    return ReaderBatch(
        words=np.ascontiguousarray(lexicon.table[used, 0]),
        chars=chars.reshape(len(used), WIDTH).astype(np.int64),
        passages=places[: passages.size].reshape(passages.shape),
        passage_lengths=passage_lengths,
        questions=places[passages.size :].reshape(questions.shape),
        question_lengths=question_lengths,
        owner=np.array([owner for owner, _ in asked], np.int64),
        features=ops.mul(ops.contiguous(features.transpose(1, 0, 2)), SCALES),
        starts=np.array([window.starts for window in windows], np.int64),
    )

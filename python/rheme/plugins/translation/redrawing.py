"""Other numbers and names for the pairs that a translation model trains on, so that it learns to copy what it has never read.

Sentence pairs hold few numbers, and ever the same few names; a model learns those, and spells others as it likes. So the digits
of numbers that stand on both sides of a pair are put for others, and a name and its counterpart for a made-up name. Short texts
are each as rare as long ones, yet are what is asked for first: their pairs can come more often.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from rheme import ops
from rheme.plugins.translation.names import candidates, counterparts
from rheme.text.tokenizer import Tokenizer

Pair = tuple[NDArray[np.int32], NDArray[np.int32]]  # the pieces of both sides

_MADE_OF = re.compile(r"\b[a-zß-ÿ]{5,}\b")
_PARTS = 2, 3, 4  # letters of a made-up name's beginning, and of its end
_DIGIT_STREAM, _NAME_STREAM = 1 << 44, (1 << 44) + 1  # the Philox streams, under a step's seed
_SHORT = 20  # characters on either side of a short pair, at most
_END = re.compile(r"(?<![.!?。！？…])\s*[.!。！]$")
_DRAWS = 4  # bits for a pair: whether, which name, the two words that the new one is made of


def short_pairs(examples: Sequence[tuple[str, str]], times: int) -> Iterator[tuple[str, str]]:
    """The pairs of short texts, each this often: every other time with the other mark of full stop and exclamation mark at the
    end of the first text, and the same at the end of the second.
    """
    usual: list[dict[bool, str]] = [{}, {}]  # how each language writes either mark: French with a space before it
    for side, marks in enumerate(usual):
        ends = Counter(end for pair in examples if (end := _end(pair[side])))
        marks.update((_loud(end), end) for end, _ in reversed(ends.most_common()))
    for pair in examples:
        if max(map(len, pair)) > _SHORT:
            continue
        other, (end, second) = pair, map(_end, pair)
        if end and second:
            loud = not _loud(end)
            ended = pair[0].removesuffix(end) + usual[0].get(loud, end)
            other = ended, pair[1].removesuffix(second) + usual[1].get(loud, second)
        for time in range(times):
            yield pair if time % 2 else other


def _end(text: str) -> str:
    """The full stop or exclamation mark at the end, with the space before it."""
    found = _END.search(text)
    return found[0] if found else ""


def _loud(end: str) -> bool:
    return end[-1] in "!！"


class Redrawing:
    """Redraws numbers and names in pairs of a tokenizer's pieces.

    examples: what the pairs are from; their words lend their letters to made-up names.
    """

    def __init__(self, tokenizer: Tokenizer, examples: Sequence[tuple[str, str]]) -> None:
        self._tokenizer = tokenizer
        self._digits = np.array([ids[-1] for ids in tokenizer.encode(list("0123456789"))], np.int32)
        self._is_digit = np.zeros(len(tokenizer), bool)
        self._is_digit[self._digits] = True
        self._words = sorted({word for pair in examples for text in pair for word in _MADE_OF.findall(text)})
        known = counterparts(examples)
        self._counterparts = {other: name for name, other in known.items()} | known

    def _numbers(self, ids: NDArray[np.int32]) -> list[tuple[int, ...]]:
        """The runs of digits, sorted."""
        runs = groupby(ids.tolist(), key=lambda index: bool(self._is_digit[index]))
        return sorted(tuple(run) for digit, run in runs if digit)

    def numbered(self, pair: Pair) -> bool:
        """Whether both sides hold numbers, and the same ones."""
        return all(self._is_digit[side].any() for side in pair) and self._numbers(pair[0]) == self._numbers(pair[1])

    def numbers(self, pairs: Sequence[Pair], seed: int) -> list[Pair]:
        """The pairs, in those that are numbered each digit put for another one (or itself), the same on both sides."""
        bits = ops.random_bits(seed, _DIGIT_STREAM, 0, len(pairs) * len(self._digits)).reshape(len(pairs), -1)
        drawn: list[Pair] = []
        for pair, row in zip(pairs, bits, strict=True):
            if self.numbered(pair):
                other = np.arange(len(self._is_digit), dtype=np.int32)
                other[self._digits] = self._digits[np.argsort(row, kind="stable")]
                pair = other[pair[0]], other[pair[1]]
            drawn.append(pair)
        return drawn

    def names(self, pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
        """The pairs, in a share of those with a name and its counterpart (once each) both put for a made-up name."""
        bits = ops.random_bits(seed, _NAME_STREAM, 0, len(pairs) * _DRAWS).reshape(len(pairs), _DRAWS)
        chosen = [row for row in range(len(pairs)) if bits[row, 0] < share * 2.0**64 and self._words]
        drawn = list(pairs)
        texts = iter(self._tokenizer.decode([side for row in chosen for side in pairs[row]]))
        for row in chosen:
            source, target = next(texts), next(texts)
            found = dict.fromkeys(candidates(target))
            both = [
                (name, other)
                for name in dict.fromkeys(candidates(source))
                for other in (name, self._counterparts.get(name, ""))
            ]
            once = [pair for pair in both if pair[1] in found and source.count(pair[0]) == target.count(pair[1]) == 1]
            if once:
                name, other = once[int(bits[row, 1] % len(once))]
                new = self._made_up(*map(int, bits[row, 2:]))
                cut = self._tokenizer.encode([source.replace(name, new), target.replace(other, new)])
                drawn[row] = np.array(cut[0], np.int32), np.array(cut[1], np.int32)
        return drawn

    def _made_up(self, first: int, second: int) -> str:
        """The beginning of one word and the end of another, with a capital."""
        head, tail = self._words[first % len(self._words)], self._words[second % len(self._words)]
        sizes = (_PARTS[(bits >> 40) % len(_PARTS)] for bits in (first, second))
        return (head[: next(sizes)] + tail[-next(sizes) :]).capitalize()

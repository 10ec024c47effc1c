"""Counting words, and keeping a summary to a number of them."""

import copy
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme.decoding.constraints import Forbidden
from rheme.text.words import ALONE

_WORD = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")


def count_words(text: str) -> int:
    """Words are divided by spaces; a character of a script without spaces is one."""
    return len(_WORD.findall(text))


def cut_words(text: str, limit: int | None) -> str:
    """The text up to the end of its last permitted word."""
    if limit is None:
        return text
    for number, match in enumerate(_WORD.finditer(text)):
        if number == limit:
            return text[: match.start()].rstrip()
    return text


class WordLimit(Forbidden):
    """Besides forbidden phrases: after so many words no further one is begun, so that the search looks for an end before that.

    A piece counts as the words that it begins when it comes after a whole word. The last word goes on only as it does in the
    document: otherwise the model, kept from beginning a new one, would add to it whatever else is left.
    """

    def __init__(self, limit: int, texts: Sequence[str], tokenizer: Any) -> None:
        super().__init__(texts, tokenizer)
        self._limit, self._eos = limit, tokenizer.eos_id
        self._costs = [_begun(surface.decode("utf-8", "replace")) for surface in tokenizer.surfaces]
        self._beyond: dict[int, NDArray[np.int64]] = {}
        self._after: dict[int, set[int]] = {}  # a piece -> those that come after it in the document

    def within(self, document: Sequence[int]) -> "WordLimit":
        """The same limit, for a summary of this document (its pieces)."""
        other = copy.copy(self)
        other._after = {}
        for before, after in pairwise(document):
            other._after.setdefault(before, set()).add(after)
        return other

    def banned(self, ids: Sequence[int], strict: bool = False) -> NDArray[np.int64]:
        """The ids that must not come after these."""
        left = self._limit - sum(self._costs[index] for index in ids)
        if left not in self._beyond:
            beyond = [index for index, cost in enumerate(self._costs) if cost > left and cost > 0]
            self._beyond[left] = np.array(beyond, np.int64)
        banned = self._beyond[left]
        if left <= 0 and ids:
            going_on = {index for index in self._after.get(ids[-1], ()) if self._costs[index] <= 0}
            banned = np.setdiff1d(np.arange(len(self._costs)), [*going_on, self._eos])
        forbidden = super().banned(ids, strict)
        return np.union1d(forbidden, banned) if len(forbidden) else banned


def _begun(surface: str) -> int:
    """The words that a piece begins: after a space (a space alone begins what the next bytes spell), and sole characters."""
    if not surface.strip():
        return int(surface.startswith(" "))
    words = _WORD.findall(surface)
    joined = not surface[0].isspace() and not re.match(rf"[{ALONE}]", surface)
    return len(words) - joined

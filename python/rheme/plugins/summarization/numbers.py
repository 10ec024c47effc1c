"""Numbers that hold: a summary writes no number that its document lacks.

The tokenizer writes a number digit by digit, so that a model may lose its place in one, and a wrong figure is worse than none.
Here every number must be one of the document's: each digit has to go on with one of them, and none may end halfway. A point or
a comma between two digits belongs to the number, and two numbers stand side by side (1914-18, 9:30) only as they do there. A
text has each number once.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme.decoding import Model

Array = NDArray[Any]
Ids = NDArray[np.int64]

_POINTS = ".,-–/:"
_NUMBER = r"[0-9]+(?:[.,][0-9]+)*"
_NUMBERS = re.compile(_NUMBER), re.compile(rf"{_NUMBER}(?:[-–/:]{_NUMBER})+")


def numbers_of(text: str) -> set[str]:
    """The numbers in a text (as the tokenizer normalises it), such as 7, 2.5 and 10,000, and rows: 1914-18, 9:30."""
    return {number for form in _NUMBERS for number in form.findall(text)}


class Digits:
    """The pieces that write a digit, or a point (a sign such as . or - that may stand between two).

    spaced: those after a space; joined: those directly after what stands before them. all: the digits. repeatable: both.
    """

    def __init__(self, surfaces: Sequence[bytes]) -> None:
        self.written: list[str] = []  # by piece: what it writes, where that is one of these, else ""
        self.joined: dict[str, list[int]] = {}
        self.spaced: dict[str, list[int]] = {}
        for index, surface in enumerate(surfaces):
            text = surface.decode("utf-8", "replace")
            digit = text.strip()
            if len(digit) != 1 or not ((digit in "0123456789" and len(surface) <= 2) or text in _POINTS):
                self.written.append("")
                continue
            self.written.append(text)
            (self.spaced if surface[:1] == b" " else self.joined).setdefault(digit, []).append(index)
        self.all = [index for index, text in enumerate(self.written) if text and text not in _POINTS]
        self.repeatable = frozenset(index for index, text in enumerate(self.written) if text)  # 2020 and 1.1.1 are numbers


@dataclass(frozen=True)
class _State:
    """The model's state, and by row: the number that is being written, and those that may be yet."""

    inner: Any
    runs: list[str]
    numbers: list[Collection[str]]

    @property
    def attention(self) -> Any:
        return self.inner.attention

    def select(self, indices: Any) -> "_State":
        rows = np.asarray(indices, np.int64).tolist()
        runs, numbers = [self.runs[row] for row in rows], [self.numbers[row] for row in rows]
        return _State(self.inner.select(indices), runs, numbers)


class FaithfulNumbers:
    """A model whose texts hold no number but the given ones."""

    def __init__(self, model: Model, digits: Digits) -> None:
        self._model, self._digits = model, digits

    def start(self, state: Any, numbers: Sequence[Collection[str]]) -> _State:
        """numbers: for each row of the model's state, those it may write."""
        return _State(state, [""] * len(numbers), list(numbers))

    def step(self, ids: Ids, state: _State) -> tuple[Array, _State]:
        """As the model's step; what would write another number is impossible (-inf)."""
        logits, inner = self._model.step(ids, state.inner)
        texts = [self._digits.written[index] for index in ids.tolist()]
        runs = [self._run(run, text) for run, text in zip(state.runs, texts, strict=True)]
        left = [  # a number that is written to its end is not written again
            set(numbers) - {before.rstrip(_POINTS)} if before and (not run or text[:1] == " ") else numbers
            for numbers, before, run, text in zip(state.numbers, state.runs, runs, texts, strict=True)
        ]
        for row, (run, numbers) in enumerate(zip(runs, left, strict=True)):
            first = {number[0] for number in numbers}
            following = {number[len(run)] for number in numbers if len(number) > len(run) and number.startswith(run)}
            joined = [index for digit in (following if run else first) for index in self._digits.joined.get(digit, [])]
            whole = not run or run.rstrip(_POINTS) in numbers
            spaced = [index for digit in first for index in self._digits.spaced.get(digit, [])] if whole else []
            allowed = joined + spaced
            kept = logits[row, allowed]
            logits[row, self._digits.all if whole else slice(None)] = -np.inf
            logits[row, allowed] = kept
        return logits, _State(inner, runs, left)

    @staticmethod
    def _run(run: str, text: str) -> str:
        """The number that is being written, after a piece that wrote `text`."""
        if text[:1] == " ":
            return text[1:]
        if text and text in _POINTS:
            return run + text if run and run[-1] not in _POINTS else ""
        return run + text if text else ""

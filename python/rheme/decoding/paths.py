"""A text while it is written: its pieces and scores, its guards against repetition, and the part of the source it has read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rheme import ops
from rheme.decoding.constraints import Constraints, Progress
from rheme.decoding.options import GenerationOptions

Array = NDArray[Any]

_NEVER_READ = 1e-6  # the least attention that counts in the coverage penalty, whose logarithm would be infinite at 0


class State(Protocol):
    """What a model remembers of B rows between two steps.

    A model that attends to a source may also give its states `attention`: the weights of the last step F (B, S), and how many
    source positions each row has, int64 (B,); the coverage penalty asks for it.
    """

    def select(self, indices: Any) -> "State":
        """Rows reordered, repeated or dropped: indices int64 (B',) into the rows."""
        ...


class Model(Protocol):
    def step(self, ids: Any, state: Any) -> tuple[Array, Any]: ...


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One text.

    ids: what was written, without the end. score: the sum of `token_scores`, the log-probabilities (nats) of the pieces, and of
    the end if finished. normalized_score: what beams are ranked by. finished: it ended by itself. repeating: it fell into a
    loop and was cut after the first round.
    """

    ids: list[int]
    score: float
    normalized_score: float
    finished: bool
    repeating: bool = False
    token_scores: tuple[float, ...] = ()

    @property
    def confidence(self) -> float:
        """exp of the mean log-probability of a piece (the end is one), in (0, 1]."""
        return math.exp(min(0.0, self.score / max(len(self.token_scores), 1)))


@dataclass(slots=True)
class Path:
    """A text being written, for one input. covered: the attention that each source position has had, F (S,), if it counts."""

    source: int
    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    score: float = 0.0
    progress: Progress | None = None
    covered: Array | None = None

    def extended(self, token: int, score: float) -> "Path":
        progress = self.progress and self.progress.after(token)
        return Path(self.source, [*self.ids, token], [*self.scores, score], self.score + score, progress, self.covered)

    def ended(self, score: float) -> "Path":
        """With the end of the text, which is scored but not written."""
        return Path(self.source, self.ids, [*self.scores, score], self.score + score, self.progress, self.covered)

    @property
    def bound(self) -> bool:
        """Whether required texts are still to be written."""
        return self.progress is not None and not self.progress.met

    def forced(self, constraints: Constraints) -> int | None:
        """The id that must come next, if the text has a prefix that is not yet written."""
        if constraints.prefixes is None:
            return None
        prefix, written = constraints.prefixes[self.source], len(self.ids)
        return int(prefix[written]) if written < len(prefix) else None

    def stopped(self, constraints: Constraints) -> bool:
        """Whether the text is to end with its last piece; what its prefix holds ends none."""
        if constraints.stopped is None or self.bound:
            return False
        start = len(constraints.prefixes[self.source]) if constraints.prefixes is not None else 0
        return len(self.ids) > start and constraints.stopped(self.ids[start:])

    def hypothesis(self, options: GenerationOptions, finished: bool, constraints: Constraints) -> Hypothesis:
        """The text as it stands; one that ended in a loop is cut, and one cut off does not end with a forbidden word."""
        ids, scores, score = self.ids, self.scores, self.score
        surplus = 0 if finished else loop(ids)
        repeating = surplus > 0
        if constraints.phrases is not None and not finished:
            surplus += constraints.phrases.surplus(ids[: len(ids) - surplus])
        if surplus:
            ids, scores = ids[:-surplus], scores[:-surplus]
            score = math.fsum(scores)
        normalized = score / max(len(scores), 1) ** options.length_penalty
        if self.covered is not None:
            normalized += options.coverage_penalty * coverage(self.covered, options.coverage)
        return Hypothesis(ids, score, normalized, finished, repeating, tuple(scores))


def loop(ids: list[int]) -> int:
    """How many last ids only repeat the 1 to 8 before them, if they do so 3 times and for 12 ids at least; else 0."""
    for period in range(1, 9):
        length = max(4 * period, 12)
        if len(ids) >= length and ids[-length:-period] == ids[-length + period :]:
            return length - period
    return 0


def coverage(covered: Array, kind: str = "all") -> float:
    """The sum over source positions of log(min(attention received, 1)), at most 0 (Wu et al. 2016, equation 14).

    Of the kind "once" it is minus what they received beyond 1 (akin to the coverage loss of See et al. 2017).
    """
    if kind == "once":
        return -float(ops.sum(ops.sub(np.clip(covered, 1, None), 1.0)))
    return float(ops.sum(ops.log(np.clip(covered, _NEVER_READ, 1))))


def guard(scores: Array, paths: Sequence[Path], options: GenerationOptions, constraints: Constraints, eos: int) -> None:
    """Raise, lower or forbid (-inf) entries of scores F (B, V), in place, for what each row has written."""
    if constraints.favoured is not None:
        for row, path in enumerate(paths):
            favoured = constraints.favoured[path.source]
            if gaining := favoured.gaining(path.ids):
                scores[row, gaining] = ops.add(ops.contiguous(scores[row, gaining]), favoured.bonus)
    if options.repetition_penalty != 1.0:
        for row, path in enumerate(paths):
            if path.ids:
                seen = np.unique(np.array(path.ids, np.int64))
                old = ops.contiguous(scores[row, seen])
                lower = ops.mul(old, options.repetition_penalty), ops.div(old, options.repetition_penalty)
                scores[row, seen] = np.where(old < 0, *lower)
    size = options.no_repeat_ngram_size
    if size > 0:
        for row, path in enumerate(paths):
            ids = path.ids
            head = ids[len(ids) - size + 1 :] if size > 1 else []
            last = [ids[i + size - 1] for i in range(len(ids) - size + 1) if ids[i : i + size - 1] == head]
            banned = [index for index in last if index not in constraints.repeatable]
            if banned:
                scores[row, banned] = -np.inf
    if len(constraints.forbid):
        scores[:, list(constraints.forbid)] = -np.inf
    if constraints.reserved is not None:
        for row, path in enumerate(paths):
            if constraints.reserved[path.source]:
                scores[row, list(constraints.reserved[path.source])] = -np.inf
    if constraints.phrases is not None:
        for row, path in enumerate(paths):
            scores[row, constraints.phrases.banned(path.ids, path.bound)] = -np.inf
    for row, path in enumerate(paths):
        if len(path.ids) < options.min_new_tokens:
            end = float(scores[row, eos])
            scores[row, eos] = -np.inf
            if not (scores[row] > -np.inf).any():
                scores[row, eos] = end  # nothing else may be written

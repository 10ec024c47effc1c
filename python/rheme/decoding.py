"""From a model's steps to texts: greedy, sampling and beam search, with guards against repetition.

The model is anything with `step(ids int64 (B,), state) -> (logits F (B, V), state)` and states with `select(indices)`. An
answer is a function of its own row alone: of its state, the options and its stream of random bits, whatever stands beside it.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import ops
from rheme.errors import InputError

Array = NDArray[Any]
Stopped = Callable[[list[int]], bool]

# The Philox stream of a sampled sequence is this, plus 2^20 times the caller's number for the input, plus the sequence's index.
_SAMPLE_STREAM = 1 << 42


class State(Protocol):
    """What a model remembers of B rows between two steps."""

    def select(self, indices: Any) -> "State":
        """Rows reordered, repeated or dropped: indices int64 (B',) into the rows."""
        ...


class Model(Protocol):
    def step(self, ids: Any, state: Any) -> tuple[Array, Any]: ...


class GenerationOptions(msgspec.Struct, kw_only=True, frozen=True):
    """How to write a text; the names are Hugging Face's.

    num_beams 1 is greedy, or sampling with do_sample. temperature, top_k (0: all), top_p and min_p shape what is sampled from.
    repetition_penalty (Keskar et al. 2019) lowers pieces that were already written, no_repeat_ngram_size n forbids a piece that
    would complete n pieces a second time. length_penalty p: beams are ranked by score / length**p. early_stopping: end a beam
    search with the first num_beams finished texts. stop: strings at which to end (the task looks for them).
    """

    max_new_tokens: int = 128
    num_beams: int = 1
    num_return_sequences: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    early_stopping: bool = False
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = {
            "max_new_tokens": 1,
            "num_beams": 1,
            "num_return_sequences": 1,
            "top_k": 0,
            "no_repeat_ngram_size": 0,
            "seed": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least {low}")
        for name, fits in (
            ("temperature", 0 <= self.temperature < math.inf),
            ("top_p", 0 < self.top_p <= 1),
            ("min_p", 0 <= self.min_p <= 1),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf),
            ("length_penalty", math.isfinite(self.length_penalty)),
            ("seed", self.seed < 2**64),
        ):
            if not fits:
                raise InputError(f"{name} = {getattr(self, name)}: out of its range")
        if self.do_sample and self.num_beams > 1:
            raise InputError("do_sample and num_beams > 1 exclude each other: give one of them")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise InputError(f"num_return_sequences = {self.num_return_sequences} needs do_sample or as many beams as that")

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Options from plain values, strings allowed. InputError for a wrong value, or an unknown name with the nearest one."""
        names = cls.__struct_fields__
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise InputError(f"unknown generation option {name!r}{hint}; there are: {', '.join(names)}")
            values[name] = [value] if name == "stop" and isinstance(value, str) else value
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as error:
            raise InputError(f"generation options: {str(error).replace('$.', '')}") from None


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


@dataclass(slots=True)
class _Path:
    """A text being written, for one input."""

    source: int
    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    score: float = 0.0

    def extended(self, token: int, score: float) -> "_Path":
        return _Path(self.source, [*self.ids, token], [*self.scores, score], self.score + score)

    def hypothesis(self, length_penalty: float, finished: bool) -> Hypothesis:
        """The text as it stands; one that ended in a loop is cut."""
        ids, scores, score = self.ids, self.scores, self.score
        surplus = 0 if finished else _loop(ids)
        if surplus:
            ids, scores = ids[:-surplus], scores[:-surplus]
            score = math.fsum(scores)
        normalized = score / max(len(scores), 1) ** length_penalty
        return Hypothesis(ids, score, normalized, finished, surplus > 0, tuple(scores))


def _loop(ids: list[int]) -> int:
    """How many last ids only repeat the 1 to 8 before them, if they do so 3 times and for 12 ids at least; else 0."""
    for period in range(1, 9):
        length = max(4 * period, 12)
        if len(ids) >= length and ids[-length:-period] == ids[-length + period :]:
            return length - period
    return 0


@dataclass(frozen=True)
class Constraints:
    """What a text must keep to.

    forbid: ids never written. prefixes: per input, ids that its text begins with. max_new_tokens: per input, at most the
    option's. stopped: whether a text (its ids) is to end here; called after each piece.
    """

    forbid: Sequence[int] = ()
    prefixes: Sequence[Sequence[int]] | None = None
    max_new_tokens: Sequence[int] | None = None
    stopped: Stopped | None = None

    def forced(self, path: _Path) -> int | None:
        """The id that must come next, if one must."""
        if self.prefixes is None:
            return None
        prefix, written = self.prefixes[path.source], len(path.ids)
        return int(prefix[written]) if written < len(prefix) else None


def generate(
    model: Model,
    state: Any,
    batch_size: int,
    options: GenerationOptions,
    bos: int,
    eos: int,
    constraints: Constraints | None = None,
    streams: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """For each of the state's batch_size rows, `num_return_sequences` texts (a beam search may find fewer), best first.

    streams: a number per input from which its random bits are drawn, beside the seed; all 0 if not given, so that equal inputs
    get equal answers wherever they stand.
    """
    constraints = constraints or Constraints()
    if batch_size == 0:
        return []
    limits = [options.max_new_tokens] * batch_size
    if constraints.max_new_tokens is not None:
        limits = [min(options.max_new_tokens, int(n)) for n in constraints.max_new_tokens]
    if options.num_beams > 1:
        return _beam_search(model, state, options, bos, eos, constraints, limits)
    return _single_paths(model, state, options, bos, eos, constraints, limits, streams or [0] * batch_size)


def _single_paths(
    model: Model,
    state: Any,
    options: GenerationOptions,
    bos: int,
    eos: int,
    constraints: Constraints,
    limits: list[int],
    streams: Sequence[int],
) -> list[list[Hypothesis]]:
    """Greedy, or sampling `num_return_sequences` texts per input; each row is one path."""
    inputs, returns = len(limits), options.num_return_sequences
    paths = [_Path(source) for _ in range(returns) for source in range(inputs)]
    if returns > 1:
        state = state.select(np.tile(np.arange(inputs), returns))
    bits = np.zeros((len(paths), max(limits)), np.uint64)
    if options.do_sample:
        for row, path in enumerate(paths):
            stream = _SAMPLE_STREAM + (int(streams[path.source]) << 20) + row // inputs
            bits[row] = ops.random_bits(options.seed, stream, 0, bits.shape[1])
    temperature = options.temperature if options.do_sample else 0.0
    done: dict[int, Hypothesis] = {}
    rows = list(range(len(paths)))  # the path of each row of the state
    ids = np.full(len(rows), bos, np.int64)
    for step in range(max(limits)):
        logits, state = model.step(ids, state)
        scores = ops.log_softmax(logits)
        _guard(logits, [paths[p].ids for p in rows], options, constraints.forbid)
        ids = ops.sample(logits, bits[rows, step], temperature, options.top_k, options.top_p, options.min_p)
        for row, p in enumerate(rows):
            path = paths[p]
            if p in done:
                continue
            forced = constraints.forced(path)
            if forced is not None:
                ids[row] = forced
            token = int(ids[row])
            path.scores.append(float(scores[row, token]))
            path.score += path.scores[-1]
            if token == eos:
                done[p] = path.hypothesis(options.length_penalty, True)
                continue
            path.ids.append(token)
            if constraints.stopped is not None and constraints.stopped(path.ids):
                done[p] = path.hypothesis(options.length_penalty, True)
            elif len(path.ids) >= limits[path.source] or (forced is None and _loop(path.ids)):
                done[p] = path.hypothesis(options.length_penalty, False)
        live = [row for row, p in enumerate(rows) if p not in done]
        if not live:
            break
        if 4 * len(live) <= 3 * len(rows):  # dropping rows copies what is kept, so not for each one
            state, ids, rows = state.select(live), ids[live], [rows[row] for row in live]
    answers: list[list[Hypothesis]] = [[] for _ in range(inputs)]
    for p, path in enumerate(paths):
        answers[path.source].append(done[p])
    return answers


def _beam_search(
    model: Model,
    state: Any,
    options: GenerationOptions,
    bos: int,
    eos: int,
    constraints: Constraints,
    limits: list[int],
) -> list[list[Hypothesis]]:
    """Beam search as in Hugging Face's transformers: of the 2 B best continuations, ends within the first B are finished texts.

    Candidates are ordered by (score, beam, id). Looping texts leave the beam and are answered only where nothing else is found.
    """
    beams, penalty = options.num_beams, options.length_penalty
    live: dict[int, list[_Path]] = {source: [_Path(source)] for source in range(len(limits))}
    finished: list[list[Hypothesis]] = [[] for _ in limits]
    looping: list[list[Hypothesis]] = [[] for _ in limits]
    paths = [live[source][0] for source in live]
    ids = np.full(len(paths), bos, np.int64)
    while paths:
        logits, state = model.step(ids, state)
        scores = ops.log_softmax(logits)
        _guard(scores, [path.ids for path in paths], options, constraints.forbid)
        values, tokens = (array.tolist() for array in ops.top_k(scores, min(2 * beams, scores.shape[1])))
        candidates: dict[int, list[tuple[float, int, int, int, float]]] = {source: [] for source in live}
        beam_of = dict.fromkeys(live, 0)
        for row, path in enumerate(paths):
            beam, beam_of[path.source] = beam_of[path.source], beam_of[path.source] + 1
            forced = constraints.forced(path)
            if forced is not None:
                pairs = [(float(scores[row, forced]), forced)]
            else:
                pairs = list(zip(values[row], tokens[row], strict=True))
            candidates[path.source] += [(-(path.score + v), beam, t, row, v) for v, t in pairs if v > -math.inf]
        chosen: dict[int, list[tuple[int, _Path]]] = {}
        for source, found in candidates.items():
            kept: list[tuple[int, _Path]] = []
            for rank, (_, _, token, row, value) in enumerate(sorted(found)[: 2 * beams]):
                if token == eos:
                    if rank < beams:
                        path = paths[row]
                        ended = _Path(source, path.ids, [*path.scores, value], path.score + value)
                        finished[source].append(ended.hypothesis(penalty, True))
                    continue
                path = paths[row].extended(token, value)
                if constraints.stopped is not None and constraints.stopped(path.ids):
                    finished[source].append(path.hypothesis(penalty, True))
                elif constraints.prefixes is None and _loop(path.ids):
                    looping[source].append(path.hypothesis(penalty, False))
                else:
                    kept.append((row, path))
                if len(kept) == beams:
                    break
            finished[source] = _best(finished[source], beams)
            if kept and not _settled(finished[source], kept[0][1], options):
                if len(kept[0][1].ids) < limits[source]:
                    chosen[source] = kept
                    continue
                # At the limit: what is still being written is answered only after what is finished.
                looping[source] += [path.hypothesis(penalty, False) for _, path in kept]
        # Rows stand beam by beam, each over all inputs: see Seq2SeqState.
        order = [kept[beam] for beam in range(beams) for kept in chosen.values() if beam < len(kept)]
        live = {source: [path for _, path in kept] for source, kept in chosen.items()}
        paths = [path for _, path in order]
        if paths:
            state = state.select([row for row, _ in order])
            ids = np.array([path.ids[-1] for path in paths], np.int64)
    returns = options.num_return_sequences
    answers = []
    for done, rest in zip(finished, looping, strict=True):
        rest = sorted(rest, key=lambda h: (h.repeating, -h.normalized_score, h.ids))
        answers.append([*done, *_distinct(rest)][:returns])
    return answers


def _best(hypotheses: list[Hypothesis], count: int) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda h: (-h.normalized_score, h.ids))[:count]


def _distinct(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    """Without the texts that became equal when their loops were cut."""
    return list({tuple(h.ids): h for h in reversed(hypotheses)}.values())[::-1]


def _settled(finished: list[Hypothesis], best: _Path, options: GenerationOptions) -> bool:
    """Whether an input's search can end: enough texts, none of which the best live one can still beat at its present length."""
    if len(finished) < options.num_beams:
        return False
    if options.early_stopping:
        return True
    attainable: float = best.score / len(best.scores) ** options.length_penalty
    return finished[-1].normalized_score >= attainable


def _guard(scores: Array, written: list[list[int]], options: GenerationOptions, forbid: Sequence[int]) -> None:
    """Lower or forbid (-inf) entries of scores F (B, V), in place, for what each row has written."""
    if options.repetition_penalty != 1.0:
        for row, ids in enumerate(written):
            if ids:
                seen = np.unique(np.array(ids, np.int64))
                old = np.ascontiguousarray(scores[row, seen])
                lower = ops.mul(old, options.repetition_penalty), ops.div(old, options.repetition_penalty)
                scores[row, seen] = np.where(old < 0, *lower)
    size = options.no_repeat_ngram_size
    if size > 0:
        for row, ids in enumerate(written):
            head = ids[len(ids) - size + 1 :] if size > 1 else []
            banned = [ids[i + size - 1] for i in range(len(ids) - size + 1) if ids[i : i + size - 1] == head]
            if banned:
                scores[row, banned] = -np.inf
    if len(forbid):
        scores[:, list(forbid)] = -np.inf

"""Beam search, with room in the beam for what a text must hold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rheme import ops
from rheme.decoding.constraints import Constraints
from rheme.decoding.options import GenerationOptions
from rheme.decoding.paths import Array, Hypothesis, Model, Path, guard, loop

_WIDEST = 24  # places of a beam with required texts, at most

Candidate = tuple[float, int, int, int, float]  # minus the path's score with it, beam, id, row, its own score


def beam_search(
    model: Model,
    state: Any,
    options: GenerationOptions,
    bos: int,
    eos: int,
    constraints: Constraints,
    limits: Sequence[int],
) -> list[list[Hypothesis]]:
    """Beam search as in Hugging Face's transformers: of the 2 B best continuations, ends within the first B are finished texts.

    Candidates are ordered by (score, beam, id). Looping texts leave the beam and are answered only where nothing else is found.
    Where texts are required, the beam's places are shared out among the paths that have written as much of them (dynamic beam
    allocation, Post and Vilar 2018), it has more places, and a path ends only with all of them; so `limits` must leave room.
    """
    live: dict[int, list[Path]] = {source: [_start(source, constraints)] for source in range(len(limits))}
    finished: list[list[Hypothesis]] = [[] for _ in limits]
    rest: list[list[Hypothesis]] = [[] for _ in limits]  # in a loop, or cut off
    paths = [live[source][0] for source in live]
    widths = [_width(path, options.num_beams) for path in paths]
    ids = np.full(len(paths), bos, np.int64)
    while paths:
        logits, state = model.step(ids, state)
        if options.coverage_penalty:
            _cover(paths, getattr(state, "attention", None))
        scores = ops.log_softmax(logits)
        forced = [_forced(path, scores[row], constraints, limits[path.source]) for row, path in enumerate(paths)]
        guard(scores, paths, options, constraints, eos)
        for row, path in enumerate(paths):
            if path.progress is not None:
                if path.progress.closing and constraints.joins is not None:
                    scores[row, constraints.joins] = -np.inf
                if path.bound:
                    scores[row, eos] = -np.inf
        values, tokens = (
            array.tolist() for array in ops.top_k(scores, min(2 * max(widths[path.source] for path in paths), scores.shape[1]))
        )
        candidates: dict[int, list[Candidate]] = {source: [] for source in live}
        beam_of = dict.fromkeys(live, 0)
        for row, path in enumerate(paths):
            beam, beam_of[path.source] = beam_of[path.source], beam_of[path.source] + 1
            only, more = forced[row]
            most = 2 * widths[path.source]
            pairs = more if only else {**dict(zip(tokens[row][:most], values[row][:most], strict=True)), **more}
            candidates[path.source] += [(-(path.score + v), beam, t, row, v) for t, v in pairs.items() if v > -math.inf]
        chosen: dict[int, list[tuple[int, Path]]] = {}
        for source, found in candidates.items():
            beams = widths[source]
            kept: list[tuple[int, Path]] = []
            for rank, (_, _, token, row, value) in _ranked(found, paths, beams):
                if token == eos:
                    if rank < beams:
                        finished[source].append(paths[row].ended(value).hypothesis(options, True, constraints))
                    continue
                path = paths[row].extended(token, value)
                if path.bound and path.progress.missing > limits[source] - len(path.ids):  # type: ignore[union-attr]
                    continue  # no room for what is required
                if path.stopped(constraints):
                    finished[source].append(path.hypothesis(options, True, constraints))
                elif not forced[row][0] and not path.bound and loop(path.ids):
                    rest[source].append(path.hypothesis(options, False, constraints))
                else:
                    kept.append((row, path))
                if len(kept) == beams:
                    break
            finished[source] = sorted(finished[source], key=_order)[: options.num_beams]
            if kept and not _settled(finished[source], [path for _, path in kept], options):
                if len(kept[0][1].ids) < limits[source]:
                    chosen[source] = kept
                    continue
                # At the limit: what is still being written is answered only after what is finished.
                rest[source] += [path.hypothesis(options, False, constraints) for _, path in kept]
        # Rows stand beam by beam, each over all inputs: see Seq2SeqState.
        order = [kept[beam] for beam in range(max(widths)) for kept in chosen.values() if beam < len(kept)]
        live = {source: [path for _, path in kept] for source, kept in chosen.items()}
        paths = [path for _, path in order]
        if paths:
            state = state.select([row for row, _ in order])
            ids = np.array([path.ids[-1] for path in paths], np.int64)
    answers = []
    for done, others in zip(finished, rest, strict=True):
        others = sorted(others, key=lambda h: (h.repeating, *_order(h)))
        answers.append(_distinct([*done, *others])[: options.num_return_sequences])
    return answers


def _width(path: Path, beams: int) -> int:
    """The places of an input's beam: as many for each required text as without any."""
    return beams if path.progress is None else min(beams * (1 + len(path.progress.texts)), max(beams, _WIDEST))


def _start(source: int, constraints: Constraints) -> Path:
    return Path(source, progress=constraints.require[source] if constraints.require is not None else None)


def _cover(paths: Sequence[Path], attention: tuple[Array, Array] | None) -> None:
    """Add the attention of the last step to what each path's source has had."""
    if attention is None:
        return
    weights, lengths = ops.to_host(attention[0]), attention[1]
    for path, row, length in zip(paths, weights, lengths.tolist(), strict=True):
        now = ops.contiguous(row[:length])
        path.covered = now if path.covered is None else ops.add(path.covered, now)


def _forced(path: Path, scores: Array, constraints: Constraints, limit: int) -> tuple[bool, dict[int, float]]:
    """Ids that are candidates whatever the guards say, with their scores, and whether nothing else is.

    A prefix's next id stands alone. Required texts add the ids that go on with them, which stand alone when the room left is
    just enough for them, the path is in a loop, or it would leave one in the middle that holds reserved ids.
    """
    token = path.forced(constraints)
    if token is not None:
        return True, {token: float(scores[token])}
    if path.progress is None or path.progress.met:
        return False, {}
    only = limit - len(path.ids) <= path.progress.missing or loop(path.ids) > 0
    if constraints.reserved is not None:
        only = only or path.progress.written(constraints.reserved[path.source])
    wanted = path.progress.wanted()
    if constraints.phrases is not None:
        banned = set(constraints.phrases.banned(path.ids, strict=True).tolist())
        wanted = [token for token in wanted if token not in banned] or (wanted if only else [])
    return only, {token: float(scores[token]) for token in wanted}


def _ranked(found: list[Candidate], paths: Sequence[Path], beams: int) -> list[tuple[int, Candidate]]:
    """The candidates to look at, in order, each with its rank.

    With required texts: in turn the best of each bank, the fullest first, so that each has its share of the beam's places and
    what one does not need goes to the others.
    """
    found = sorted(found)
    if not found or paths[found[0][3]].progress is None:
        return list(enumerate(found[: 2 * beams]))
    banks: dict[int, list[Candidate]] = {}
    for candidate in found:
        progress = paths[candidate[3]].progress
        if progress is not None:
            banks.setdefault(progress.after(candidate[2]).bank, []).append(candidate)
    rows = [banks[bank] for bank in sorted(banks, reverse=True)]
    return [(rank, row[rank]) for rank in range(max(map(len, rows))) for row in rows if rank < len(row)]


def _order(hypothesis: Hypothesis) -> tuple[float, list[int]]:
    return -hypothesis.normalized_score, hypothesis.ids


def _distinct(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    """Without the texts that became equal to one before them when their loops were cut."""
    found: dict[tuple[int, ...], Hypothesis] = {}
    for hypothesis in hypotheses:
        found.setdefault(tuple(hypothesis.ids), hypothesis)
    return list(found.values())


def _settled(finished: list[Hypothesis], kept: list[Path], options: GenerationOptions) -> bool:
    """Whether an input's search can end: enough texts, none of which the best live one can still beat at its present length.

    With a coverage penalty a live text may still read all of its source, so that it loses nothing.
    """
    if len(finished) < options.num_beams:
        return False
    if options.early_stopping:
        return True
    attainable: float = max(path.score for path in kept) / len(kept[0].scores) ** options.length_penalty
    return finished[-1].normalized_score >= attainable

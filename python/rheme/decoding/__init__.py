"""From a model's steps to texts: greedy, sampling and beam search, with constraints and guards against repetition.

The model is anything with `step(ids int64 (B,), state) -> (logits F (B, V), state)` and states with `select(indices)`. An
answer is a function of its own row alone: of its state, the options and its stream of random bits, whatever stands beside it.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from rheme import nn, ops
from rheme.decoding.beam import beam_search
from rheme.decoding.constraints import Constraints, Favoured, Forbidden, Stopped, word_kinds
from rheme.decoding.options import GenerationOptions
from rheme.decoding.paths import Hypothesis, Model, Path, State, guard, loop
from rheme.errors import InputError

__all__ = [
    "REQUIRED_BEAMS",
    "Constraints",
    "Favoured",
    "Forbidden",
    "GenerationOptions",
    "Hypothesis",
    "Model",
    "State",
    "Stopped",
    "generate",
    "word_kinds",
]

# The Philox stream of a sampled sequence is this, plus 2^20 times the caller's number for the input, plus the sequence's index.
_SAMPLE_STREAM = 1 << 42
REQUIRED_BEAMS = 4  # of the search for an input with required texts, where one path was asked for


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
    get equal answers wherever they stand. InputError for a required text in sampling.
    """
    constraints = constraints or Constraints()
    if batch_size == 0:
        return []
    required = constraints.require or [None] * batch_size
    if options.num_beams == 1 and any(required):
        if options.do_sample:
            raise InputError("required texts need a beam search: leave do_sample out")
        answers: list[list[Hypothesis]] = [[] for _ in range(batch_size)]
        for bound, beams in ((True, REQUIRED_BEAMS), (False, 1)):
            rows = [row for row in range(batch_size) if bool(required[row]) == bound]
            if rows:
                few = msgspec.structs.replace(options, num_beams=beams)
                found = generate(model, state.select(rows), len(rows), few, bos, eos, constraints.of_rows(rows))
                for row, hypotheses in zip(rows, found, strict=True):
                    answers[row] = hypotheses
        return answers
    if isinstance(model, nn.Module):
        model = model.captured()
    limits = [options.max_new_tokens] * batch_size
    if constraints.max_new_tokens is not None:
        limits = [min(options.max_new_tokens, int(n)) for n in constraints.max_new_tokens]
    if options.num_beams > 1:
        return beam_search(model, state, options, bos, eos, constraints, limits)
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
    paths = [Path(source) for _ in range(returns) for source in range(inputs)]
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
        guard(logits, [paths[p] for p in rows], options, constraints, eos)
        ids = ops.to_host(ops.sample(logits, bits[rows, step], temperature, options.top_k, options.top_p, options.min_p))
        prefixed = [None if p in done else paths[p].forced(constraints) for p in rows]
        for row, forced in enumerate(prefixed):
            if forced is not None:
                ids[row] = forced
        written = ops.to_host(scores[np.arange(len(ids)), ids])
        for row, p in enumerate(rows):
            path = paths[p]
            if p in done:
                continue
            forced = prefixed[row]
            token = int(ids[row])
            path.scores.append(float(written[row]))
            path.score += path.scores[-1]
            if token == eos:
                done[p] = path.hypothesis(options, True, constraints)
                continue
            path.ids.append(token)
            if path.stopped(constraints):
                done[p] = path.hypothesis(options, True, constraints)
            elif len(path.ids) >= limits[path.source] or (forced is None and loop(path.ids)):
                done[p] = path.hypothesis(options, False, constraints)
        live = [row for row, p in enumerate(rows) if p not in done]
        if not live:
            break
        if 4 * len(live) <= 3 * len(rows):  # dropping rows copies what is kept, so not for each one
            state, ids, rows = state.select(live), ids[live], [rows[row] for row in live]
    answers: list[list[Hypothesis]] = [[] for _ in range(inputs)]
    for p, path in enumerate(paths):
        answers[path.source].append(done[p])
    return [sorted(mine, key=lambda h: -h.normalized_score) for mine in answers]

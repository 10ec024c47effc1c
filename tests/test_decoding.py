"""Decoding: beam search against brute force, guards, options, and answers that no neighbour changes."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from rheme import _core, nn, ops
from rheme.decoding import Constraints, GenerationOptions, Hypothesis, generate
from rheme.errors import InputError
from rheme.models.seq2seq import Seq2Seq, Seq2SeqConfig
from rheme.text.batches import pad

BOS, EOS = 1, 2


@dataclass(frozen=True)
class History:
    """All that each row has read; which of the model's tables it is on."""

    tables: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]

    def select(self, indices: Any) -> "History":
        return History(tuple(self.tables[i] for i in indices), tuple(self.ids[i] for i in indices))


class Toy:
    """Logits that are a function of the table, the last two ids and how many there are."""

    def __init__(self, vocab: int, seed: int = 0, sharpness: float = 2.0) -> None:
        self.vocab, self.seed, self.sharpness = vocab, seed, sharpness

    def row(self, table: int, ids: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([self.seed, table, len(ids), *ids[-2:]])
        logits = self.sharpness * rng.standard_normal(self.vocab)
        logits[BOS] = -30.0
        return logits.astype(np.float32)

    def start(self, *tables: int) -> History:
        return History(tables, ((),) * len(tables))

    def step(self, ids: np.ndarray, state: History) -> tuple[np.ndarray, History]:
        after = History(state.tables, tuple((*read, int(i)) for read, i in zip(state.ids, ids, strict=True)))
        return np.stack([self.row(t, read) for t, read in zip(after.tables, after.ids, strict=True)]), after


def log_probabilities(model: Toy, table: int, ids: tuple[int, ...]) -> list[float]:
    return ops.log_softmax(model.row(table, (BOS, *ids))[None])[0].tolist()


def run(model: Any, state: Any, size: int, constraints: Constraints | None = None, streams: Any = None, **options: Any) -> Any:
    return generate(model, state, size, GenerationOptions(**options), BOS, EOS, constraints, streams)


# Beam search -----------------------------------------------------------------------------------------------------------------


def all_texts(model: Toy, table: int, longest: int, penalty: float) -> list[tuple[float, list[int]]]:
    """Every finished text of at most `longest` steps (the end is one), best first."""
    found = []
    for length in range(longest):
        for ids in itertools.product([i for i in range(model.vocab) if i != EOS], repeat=length):
            score = sum(log_probabilities(model, table, ids[:k])[ids[k]] for k in range(length))
            score += log_probabilities(model, table, ids)[EOS]
            found.append((score / (length + 1) ** penalty, list(ids)))
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_what_brute_force_finds(seed: int, penalty: float) -> None:
    model = Toy(5, seed)
    expected = all_texts(model, 7, 4, penalty)
    # 4 * 4 * 4 * 5 continuations at most: nothing is ever cut, and the search cannot end before it has seen them.
    [found] = run(model, model.start(7), 1, num_beams=400, num_return_sequences=10, max_new_tokens=4, length_penalty=penalty)
    assert [h.ids for h in found] == [ids for _, ids in expected[:10]]
    assert [h.normalized_score for h in found] == pytest.approx([score for score, _ in expected[:10]], rel=1e-12)
    assert all(h.finished and not h.repeating for h in found)


def plain_beam_search(model: Toy, table: int, beams: int, longest: int, penalty: float) -> list[tuple[float, list[int]]]:
    """transformers' algorithm for one input, written down naively."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, longest + 1):
        candidates = []
        for beam, (score, ids) in enumerate(live):
            scores = log_probabilities(model, table, tuple(ids))
            candidates += [(-(score + s), beam, token) for token, s in enumerate(scores)]
        candidates.sort()
        kept = []
        for rank, (negative, beam, token) in enumerate(candidates[: 2 * beams]):
            if token == EOS:
                if rank < beams:
                    finished.append((-negative / length**penalty, live[beam][1]))
            elif len(kept) < beams:
                kept.append((-negative, [*live[beam][1], token]))
        finished = sorted(finished, key=lambda f: (-f[0], f[1]))[:beams]
        live = kept
        if len(finished) == beams and finished[-1][0] >= live[0][0] / length**penalty:
            break
    return finished


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_a_narrow_beam_is_the_textbook_one(beams: int) -> None:
    model = Toy(9, seed=3)
    tables = range(12)
    found = run(model, model.start(*tables), 12, num_beams=beams, num_return_sequences=beams, max_new_tokens=8)
    for table, hypotheses in zip(tables, found, strict=True):
        expected = plain_beam_search(model, table, beams, 8, 1.0)
        finished = [h for h in hypotheses if h.finished]
        assert [h.ids for h in finished] == [ids for _, ids in expected]
        assert [h.normalized_score for h in finished] == pytest.approx([score for score, _ in expected], rel=1e-12)


def test_scores_add_up() -> None:
    model = Toy(9, seed=1)
    for options in ({"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True, "num_return_sequences": 3}, {}):
        for table, found in enumerate(run(model, model.start(0, 1, 2), 3, max_new_tokens=20, **options)):
            for h in found:
                steps = [*h.ids, EOS] if h.finished else h.ids
                each = [log_probabilities(model, table, tuple(steps[:k]))[token] for k, token in enumerate(steps)]
                assert list(h.token_scores) == each
                assert h.score == pytest.approx(math.fsum(each), rel=1e-12)
                assert h.normalized_score == pytest.approx(h.score / len(steps), rel=1e-12)


def test_what_is_not_finished_comes_after_what_is() -> None:
    class Endless(Toy):
        def row(self, table: int, ids: tuple[int, ...]) -> np.ndarray:
            logits = super().row(table, ids)
            logits[EOS] = 3.0 if table == 0 and len(ids) == 3 else -50.0
            return logits

    model = Endless(8)
    some, none = run(model, model.start(0, 1), 2, num_beams=3, num_return_sequences=3, max_new_tokens=6)
    assert [h.finished for h in none] == [False] * 3
    assert [len(h.ids) for h in none] == [6] * 3
    assert len({tuple(h.ids) for h in none}) == 3
    assert some[0].finished
    assert len(some[0].ids) == 2


# Single paths ----------------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_likeliest() -> None:
    model = Toy(9, seed=5)
    for table, [found] in enumerate(run(model, model.start(*range(6)), 6, max_new_tokens=10)):
        ids: list[int] = []
        while len(ids) < 10 and (token := int(np.argmax(log_probabilities(model, table, tuple(ids))))) != EOS:
            ids.append(token)
        assert found.ids == ids
        assert found.finished == (len(ids) < 10)


def test_sampling_draws_by_seed_and_stream() -> None:
    model = Toy(30, seed=1, sharpness=0.5)

    def drawn(**options: Any) -> list[list[int]]:
        found = run(model, model.start(0), 1, do_sample=True, num_return_sequences=4, max_new_tokens=12, **options)
        return [h.ids for h in found[0]]

    first = drawn(seed=1)
    assert first == drawn(seed=1)
    scores = [h.normalized_score for h in run(model, model.start(0), 1, do_sample=True, num_return_sequences=9, seed=1)[0]]
    assert scores == sorted(scores, reverse=True), "best first"
    assert len({tuple(ids) for ids in first}) == 4
    assert first != drawn(seed=2)
    assert first != drawn(seed=1, streams=[1])
    assert (
        drawn(seed=1, temperature=0.0)
        == drawn(seed=9, top_k=1)
        == [run(model, model.start(0), 1, max_new_tokens=12)[0][0].ids] * 4
    )


def test_sampling_keeps_to_the_distribution() -> None:
    model = Toy(6, seed=2, sharpness=1.0)
    found = run(model, model.start(3), 1, do_sample=True, num_return_sequences=4000, max_new_tokens=1)[0]
    counts = np.bincount([h.ids[0] if h.ids else EOS for h in found], minlength=6) / 4000
    # 4 standard deviations of a share of 4,000 draws are at most 0.032
    np.testing.assert_allclose(counts, np.exp(log_probabilities(model, 3, ())), atol=0.032)


# Guards and constraints ------------------------------------------------------------------------------------------------------


class Stuck(Toy):
    """Likes to say 5 6 5 6 for ever, then perhaps 7."""

    def row(self, table: int, ids: tuple[int, ...]) -> np.ndarray:
        logits = np.zeros(9, np.float32)
        logits[6 if ids[-1] == 5 else 5] = 6.0
        logits[7], logits[EOS], logits[BOS] = 4.0, 1.0, -30.0
        return logits


def test_a_loop_is_cut_and_flagged() -> None:
    model = Stuck(9)
    [[greedy]] = run(model, model.start(0), 1, max_new_tokens=100)
    assert greedy.ids == [5, 6]
    assert greedy.repeating
    assert not greedy.finished
    assert len(greedy.token_scores) == 2
    assert greedy.score == math.fsum(greedy.token_scores)
    [[beam]] = run(model, model.start(0), 1, num_beams=3, max_new_tokens=100)
    assert not beam.repeating


class Chorus(Toy):
    """Says 5 once and ends, or says it for ever."""

    def row(self, table: int, ids: tuple[int, ...]) -> np.ndarray:
        logits = np.full(9, -np.inf, np.float32)
        logits[5] = 5.0
        logits[EOS] = 5.0 if ids.count(5) == 1 else -np.inf
        return logits


@pytest.mark.parametrize("beams", [2, 3, 4])
def test_a_cut_loop_is_no_second_answer(beams: int) -> None:
    model = Chorus(9)
    [found] = run(model, model.start(0), 1, num_beams=beams, num_return_sequences=beams, max_new_tokens=40)
    texts = [tuple(h.ids) for h in found]
    assert (5,) in texts
    assert len(set(texts)) == len(texts)


def test_no_repeat_ngram_size() -> None:
    model = Stuck(9)
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "top_k": 3}):
        for size in (1, 2, 3):
            [[found]] = run(model, model.start(0), 1, max_new_tokens=30, no_repeat_ngram_size=size, **options)
            ngrams = [tuple(found.ids[i : i + size]) for i in range(len(found.ids) - size + 1)]
            assert len(ngrams) == len(set(ngrams)) > 0
    # 5 and 6 may come again: the loop that the model is in
    free = Constraints(repeatable=frozenset([5, 6]))
    [[found]] = run(model, model.start(0), 1, constraints=free, max_new_tokens=6, no_repeat_ngram_size=2)
    assert found.ids == [5, 6, 5, 6, 5, 6]


def test_min_new_tokens() -> None:
    model = Toy(9, seed=5)
    for options in ({}, {"num_beams": 3}, {"do_sample": True}):
        free = run(model, model.start(*range(12)), 12, max_new_tokens=12, **options)
        held = run(model, model.start(*range(12)), 12, max_new_tokens=12, min_new_tokens=6, **options)
        assert min(len(row[0].ids) for row in free) < 6
        assert all(len(row[0].ids) >= 6 or row[0].repeating for row in held)
        for before, after in zip(free, held, strict=True):
            assert before == after or len(before[0].ids) < 6 or options  # greedy
    # where nothing but the end may be written, it is
    alone = Constraints(forbid=[index for index in range(9) if index != EOS])
    [[found]] = run(model, model.start(0), 1, constraints=alone, max_new_tokens=12, min_new_tokens=6)
    assert (found.ids, found.finished) == ([], True)
    with pytest.raises(InputError, match="more than max_new_tokens"):
        GenerationOptions(max_new_tokens=3, min_new_tokens=4)


def test_repetition_penalty_is_that_of_transformers() -> None:
    model = Stuck(9)
    # 5, 6; then 5 has 6.0 / 2 = 3 and 7 has 4: 7; then 5 (3.0) again
    [[found]] = run(model, model.start(0), 1, max_new_tokens=4, repetition_penalty=2.0)
    assert found.ids == [5, 6, 7, 5]


def test_constraints() -> None:
    model = Toy(9, seed=5)
    state = model.start(*range(5))
    prefixes = [[], [3], [3, 4, 5], [8, 8], [7]]
    for options in ({}, {"num_beams": 3}, {"do_sample": True}):
        found = run(
            model, state, 5, Constraints(prefixes=prefixes, max_new_tokens=[3, 4, 5, 6, 7]), max_new_tokens=6, **options
        )
        for prefix, limit, [h] in zip(prefixes, [3, 4, 5, 6, 6], found, strict=True):
            assert h.ids[: len(prefix)] == prefix
            assert len(h.ids) <= limit
        found = run(model, state, 5, Constraints(forbid=[3, 4, 5, EOS]), max_new_tokens=6, **options)
        assert all(h.ids and not {3, 4, 5} & set(h.ids) and not h.finished for [h] in found)
        found = run(model, state, 5, Constraints(stopped=lambda ids: ids[-1] in (6, 7)), max_new_tokens=30, **options)
        assert all(h.finished and not {6, 7} & set(h.ids[:-1]) for [h] in found)


def test_a_prefix_equals_reading_it() -> None:
    """What follows a required prefix is what the model writes after it."""
    model = Toy(9, seed=5)
    [[whole]] = run(model, model.start(0), 1, max_new_tokens=10)
    assert len(whole.ids) >= 2
    [[forced]] = run(model, model.start(0), 1, Constraints(prefixes=[whole.ids[:2]]), max_new_tokens=10)
    assert forced == whole


# Options ---------------------------------------------------------------------------------------------------------------------


def test_options_from_plain_values() -> None:
    parsed = GenerationOptions.parse({"num_beams": "4", "temperature": 1, "stop": "\n", "do_sample": False})
    assert parsed == GenerationOptions(num_beams=4, temperature=1.0, stop=("\n",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beam": 3}, r"'num_beam' \(did you mean 'num_beams'\?\)"),
        ({"max_length": 3}, "unknown generation option 'max_length'"),
        ({"num_beams": "many"}, "num_beams"),
        ({"num_beams": 0}, "num_beams = 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": -1.0}, "temperature"),
        ({"do_sample": True, "num_beams": 2}, "exclude each other"),
        ({"num_return_sequences": 2}, "do_sample or as many beams"),
        ({"length_penalty": -500.0}, "length_penalty = -500.0: out of its range"),
        ({"stop": ("",)}, "stop: an empty text"),
        ({"max_new_tokens": 10**12}, "max_new_tokens = 1000000000000: out of its range"),
        ({"max_new_tokens": 10**25}, "max_new_tokens"),
        ({"top_k": 2**31}, "top_k = 2147483648: out of its range"),
        ({"forbid": "a\ud800"}, r"forbid: 'a\\ud800' holds a lone surrogate"),
        ({"prefix": "\udfff"}, "prefix: .* lone surrogate"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GenerationOptions.parse(options)


def test_options_of_sampling_are_not_passed_over() -> None:
    with pytest.raises(InputError, match="temperature, top_k: for sampling alone; set do_sample=true, and num_beams=1"):
        GenerationOptions(temperature=0.7, top_k=9).check_sampling()
    with pytest.raises(InputError, match=r"^top_p: for sampling alone"):
        GenerationOptions(temperature=0.0, top_p=0.5).check_sampling()
    for options in ({"temperature": 0.0}, {"do_sample": True, "top_p": 0.5}, {"num_beams": 4}):
        GenerationOptions.parse(options).check_sampling()


# A whole model: neighbours, order and threads --------------------------------------------------------------------------------

MODES: list[dict[str, Any]] = [
    {},
    {"num_beams": 4, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 2, "top_p": 0.9, "temperature": 1.3},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("options", MODES, ids=["greedy", "beam", "sampling", "guarded"])
def test_the_same_bits_in_any_company(options: dict[str, Any], rng: np.random.Generator, restored: None) -> None:
    with nn.init_scope(2):
        model = Seq2Seq(Seq2SeqConfig(vocab_size=40, embedding_size=8, encoder_size=9, decoder_size=17)).eval()
    for parameter in model.parameters():
        parameter.data *= 3  # a fresh model hardly looks at its source
    model.output.vocabulary.bias.data[EOS] = 4.0
    sources = [rng.integers(4, 40, rng.integers(1, 12)).tolist() for _ in range(20)]

    def answers(indices: Any) -> list[list[Hypothesis]]:
        state = model.start(model.encode(*pad([sources[i] for i in indices])))
        return run(model, state, len(indices), max_new_tokens=15, **options)

    together = answers(range(20))
    assert len({len(h.ids) for hs in together for h in hs}) > 3
    for i in range(20):
        assert answers([i]) == [together[i]]
    order = rng.permutation(20)
    assert answers(order) == [together[i] for i in order]
    _core.set_num_threads(n=1 if _core.num_threads() > 1 else 2)
    assert answers(range(20)) == together


def test_no_rows() -> None:
    model = Toy(5)
    assert run(model, model.start(), 0) == []

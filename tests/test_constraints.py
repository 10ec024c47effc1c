"""Constraints of decoding: forbidden and required texts, prefixes, the coverage penalty."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheme.decoding import Constraints, GenerationOptions, Hypothesis, generate
from rheme.decoding.constraints import Favoured, Forbidden, Progress, Required, Way
from rheme.errors import InputError
from rheme.text.tokenizer import Tokenizer

LINES = [
    "The cat sat on the mat.", "A category of cats and a New York cat.", "New York is a city, not a cat!",
    "The scattered cats concatenate.", "Is the cat's mat new?", "cat", "mats", "北京是一个城市。", "我在北京大学。",
    "你好，北京！", "naïve café", "The old man and the sea.", "Yorkshire cats",
] * 3  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(LINES, 420, normalization="identity")


@dataclass(frozen=True)
class History:
    """All that each row has read."""

    seeds: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]

    def select(self, indices: Any) -> "History":
        return History(tuple(self.seeds[i] for i in indices), tuple(self.ids[i] for i in indices))


class Writer:
    """Logits that are a function of the seed and the last two ids, of a model that loves some ids."""

    def __init__(self, vocab: int, eos: int, loved: Sequence[int] = (), love: float = 4.0) -> None:
        self.vocab, self.eos, self.loved, self.love = vocab, eos, list(loved), love

    def start(self, *seeds: int) -> History:
        return History(seeds, ((),) * len(seeds))

    def row(self, seed: int, ids: tuple[int, ...]) -> np.ndarray:
        logits = np.random.default_rng([seed, len(ids), *ids[-2:]]).standard_normal(self.vocab)
        logits[self.loved] += self.love
        logits[self.eos] += 0.7 * len(ids) - 2
        return logits.astype(np.float32)

    def step(self, ids: np.ndarray, state: History) -> tuple[np.ndarray, History]:
        after = History(state.seeds, tuple((*read, int(i)) for read, i in zip(state.ids, ids, strict=True)))
        return np.stack([self.row(s, read) for s, read in zip(after.seeds, after.ids, strict=True)]), after


MODES: list[dict[str, Any]] = [{}, {"num_beams": 4, "num_return_sequences": 4}, {"do_sample": True, "num_return_sequences": 3}]


def write(model: Writer, seeds: Sequence[int], tokenizer: Any, constraints: Constraints, **options: Any) -> Any:
    chosen = GenerationOptions(**{"max_new_tokens": 12} | options)
    return generate(model, model.start(*seeds), len(seeds), chosen, tokenizer.bos_id, tokenizer.eos_id, constraints)


# Forbidden -------------------------------------------------------------------------------------------------------------------


def holds(text: str, phrase: str) -> bool:
    """Whether a text holds a phrase as words of its own, in whatever case."""
    letter = "[^\\W_\u4e00-\u9fff]"  # of a word that spaces divide from others
    left = f"(?<!{letter})" if re.match(letter, phrase[0]) else ""
    right = f"(?!{letter})" if re.match(letter, phrase[-1]) else ""
    pattern = left + re.escape(phrase) + right
    return re.search(pattern, " ".join(text.split()), re.IGNORECASE) is not None


class Speller(Writer):
    """A writer that wants to write the phrases: it loves each piece that goes on with one of them, in any case."""

    def __init__(self, tokenizer: Tokenizer, phrases: Sequence[str]) -> None:
        super().__init__(len(tokenizer), tokenizer.eos_id)
        writable = sorted(set(range(len(tokenizer))) - set(tokenizer.unwritable))
        self.pieces = [(i, tokenizer.surfaces[i].lower()) for i in writable if tokenizer.surfaces[i]]
        self.spelt = dict(self.pieces)
        self.phrases = [f" {phrase.lower()}".encode() for phrase in phrases]

    def row(self, seed: int, ids: tuple[int, ...]) -> np.ndarray:
        logits = super().row(seed, ids)
        text = b"".join(self.spelt.get(i, b"") for i in ids)
        phrase = self.phrases[seed % len(self.phrases)]
        size = max(k for k in range(len(phrase)) if text.endswith(phrase[:k]))
        logits[[i for i, surface in self.pieces if phrase[size:].startswith(surface)]] += 6
        return logits


@pytest.mark.parametrize("phrases", [("cat",), ("Cat", "the"), ("New York",), ("北京",), ("cat", "mat", "a", "new york", "京")])
@pytest.mark.parametrize("options", MODES, ids=["greedy", "beam", "sampling"])
def test_a_forbidden_text_is_never_written(tokenizer: Tokenizer, phrases: tuple[str, ...], options: dict[str, Any]) -> None:
    """By a model that writes little else, piece by piece in every way of cutting it."""
    model = Speller(tokenizer, phrases)
    free = Constraints(forbid=tokenizer.unwritable)
    bound = Constraints.of_texts(
        GenerationOptions(max_new_tokens=12, forbid=phrases), tokenizer, 12, forbid=tokenizer.unwritable
    )
    before = tokenizer.decode([h.ids for hs in write(model, range(12), tokenizer, free, **options) for h in hs])
    assert any(holds(text, phrase) for text in before for phrase in phrases)
    after = tokenizer.decode([h.ids for hs in write(model, range(12), tokenizer, bound, **options) for h in hs])
    assert not [text for text in after for phrase in phrases if holds(text, phrase)]
    assert len(set(after)) > 4


def test_a_part_of_a_word_is_not_the_word(tokenizer: Tokenizer) -> None:
    forbidden = Forbidden(("cat", "New York"), tokenizer)
    for text in ("A category.", "scattered concatenate", "York is new", "cats", "anew york", "a bobcat"):
        assert not forbidden.stands_in(text)
        [ids] = tokenizer.encode([text])
        ids.append(tokenizer.eos_id)
        assert not [k for k in range(len(ids)) if ids[k] in forbidden.banned(ids[:k])], text
    for text in ("cat", "A CAT!", "the cat's", "in new  york", "(Cat)"):
        assert forbidden.stands_in(text)
        [ids] = tokenizer.encode([text])
        ids.append(tokenizer.eos_id)
        assert [k for k in range(len(ids)) if ids[k] in forbidden.banned(ids[:k])], text


@given(st.lists(st.sampled_from([*"catCAT ne'wyor.k北京a", " cat", " new york", "é", "😀"]), max_size=14).map("".join))
@settings(max_examples=150, deadline=None)
def test_forbidding_agrees_with_reading_the_text(tokenizer: Tokenizer, text: str) -> None:
    phrases = ("cat", "new york", "北京")
    forbidden = Forbidden(phrases, tokenizer)
    [ids] = tokenizer.encode([text])
    ids.append(tokenizer.eos_id)
    refused = any(ids[k] in forbidden.banned(ids[:k]) for k in range(len(ids)))
    plain = " ".join(text.split())
    assert refused == any(holds(plain, phrase) for phrase in phrases) == forbidden.stands_in(text)


# Required --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("texts", [("cat",), ("New York", "cat"), ("北京",), ("old man", "sea", "mat"), ("the the", "the")])
def test_a_required_text_is_always_written(tokenizer: Tokenizer, texts: tuple[str, ...], beams: int) -> None:
    model = Writer(len(tokenizer), tokenizer.eos_id)
    needed = Constraints.of_texts(GenerationOptions(require=texts), tokenizer, 1).require[0].missing  # type: ignore[index, union-attr]
    for limit in (needed, needed + 1, 12, 30):
        options = {"max_new_tokens": limit, "num_beams": beams}
        bound = Constraints.of_texts(GenerationOptions(require=texts, **options), tokenizer, 12, forbid=tokenizer.unwritable)
        found = write(model, range(12), tokenizer, bound, **options)
        written = tokenizer.decode([hypotheses[0].ids for hypotheses in found])
        assert not [text for text in written for required in texts if not holds(text, required)]
        assert limit < 12 or len(set(written)) > 4
        assert limit < 30 or sum(hypotheses[0].finished for hypotheses in found) > 5


def test_a_wide_beam_finds_the_best_text_that_holds_it() -> None:
    """Among all texts of a small vocabulary, by brute force."""
    eos, vocab, longest = 1, 5, 5
    need = (Required((Way((2, 3)),)), Required((Way((4,)), Way((3, 4)))))

    @dataclass
    class Ids:
        bos_id, eos_id = 0, eos

    for seed in range(2):
        model = Writer(vocab, eos)
        found = []
        for length in range(longest + 1):
            for ids in itertools.product([0, 2, 3, 4], repeat=length):
                progress = Progress(need)
                for token in ids:
                    progress = progress.after(token)
                if not progress.met:
                    continue
                score = 0.0
                for k, token in enumerate((*ids, eos)):
                    row = model.row(seed, (0, *ids[:k])).astype(np.float64)
                    score += row[token] - np.log(np.exp(row).sum())
                found.append((score / (length + 1), list(ids)))
        best = sorted(found, key=lambda pair: -pair[0])[:3]
        constraints = Constraints(require=[Progress(need)])
        options = {"num_beams": 500, "num_return_sequences": 3, "max_new_tokens": longest + 1}
        [hypotheses] = write(model, [seed], Ids(), constraints, **options)
        hypotheses = [h for h in hypotheses if len(h.ids) <= longest]
        assert [h.ids for h in hypotheses] == [ids for _, ids in best][: len(hypotheses)]
        assert [h.normalized_score for h in hypotheses] == pytest.approx([s for s, _ in best][: len(hypotheses)], rel=1e-5)
        assert hypotheses


def test_progress_starts_anew_where_it_was_left() -> None:
    progress = Progress((Required((Way((5, 6, 7)),)), Required((Way((5, 8)),), word=True)))
    assert progress.wanted() == [5]
    assert progress.missing == 5
    begun = progress.after(5)
    assert begun.wanted() == [6, 8]
    assert begun.bank == 1
    assert begun.missing == 4
    assert begun.after(9).begun == ()
    assert begun.after(5).begun == begun.begun
    second = begun.after(8)
    assert second.done == {1}
    assert second.closing
    assert second.missing == 3
    assert second.after(5).after(6).after(7).met


def test_a_text_required_twice_is_written_twice(tokenizer: Tokenizer) -> None:
    model = Writer(len(tokenizer), tokenizer.eos_id)
    options = GenerationOptions(num_beams=3, max_new_tokens=20)
    for texts in (["4", "4"], ["cat", "5", "cat"], ["北京", "北京"]):
        bound = Constraints.of_texts(options, tokenizer, 6, forbid=tokenizer.unwritable, require=[texts] * 6)
        found = write(model, range(6), tokenizer, bound, num_beams=3, max_new_tokens=20)
        for text in tokenizer.decode([hypotheses[0].ids for hypotheses in found]):
            assert all(len(re.findall(rf"(?<![a-z0-9]){wanted}|北京", text)) >= texts.count(wanted) for wanted in texts), text


def test_a_required_word_is_not_gone_on_with(tokenizer: Tokenizer) -> None:
    """No "cats" where "cat" is required, even from a model that would."""
    joining = [i for i, surface in enumerate(tokenizer.surfaces) if surface[:1].isalpha()]
    model = Writer(len(tokenizer), tokenizer.eos_id, joining, love=8.0)
    bound = Constraints.of_texts(GenerationOptions(require=("cat",)), tokenizer, 10, forbid=tokenizer.unwritable)
    found = write(model, range(10), tokenizer, bound, num_beams=4, max_new_tokens=20)
    assert all(holds(text, "cat") for text in tokenizer.decode([hypotheses[0].ids for hypotheses in found]))


def test_required_texts_are_each_inputs_own(tokenizer: Tokenizer) -> None:
    """And an input without any is answered as if the others had none; greedy and with beams."""
    model = Writer(len(tokenizer), tokenizer.eos_id)
    wanted: list[Sequence[str]] = [("cat",), (), ("mat", "sea"), ()]
    for beams in (1, 3):
        options = GenerationOptions(num_beams=beams, max_new_tokens=12)
        bound = Constraints.of_texts(options, tokenizer, 4, forbid=tokenizer.unwritable, require=wanted)
        together = write(model, range(4), tokenizer, bound, num_beams=beams)
        for row in range(4):
            alone = Constraints.of_texts(options, tokenizer, 1, forbid=tokenizer.unwritable, require=[wanted[row]])
            assert write(model, [row], tokenizer, alone, num_beams=beams) == [together[row]]
            text = tokenizer.decode([together[row][0].ids])[0]
            assert all(holds(text, required) for required in wanted[row])


def test_a_capital_only_at_the_start(tokenizer: Tokenizer) -> None:
    bound = Constraints.of_texts(GenerationOptions(require=("the sea",)), tokenizer, 1)
    assert bound.require is not None
    [start] = bound.require
    assert start is not None
    lower, upper = (tuple(ids) for ids in tokenizer.encode(["the sea", "The sea"]))
    assert start.texts[0].ways[0] == Way(lower)
    assert start.texts[0].ways[-1] == Way(upper, first=True)
    for before, written in (((), True), ((9,), False)):
        progress = start
        for token in (*before, *upper):
            progress = progress.after(token)
        assert progress.met == written


def test_what_cannot_be_asked_for(tokenizer: Tokenizer) -> None:
    for options, message in (
        ({"require": ("the cat",), "forbid": ("Cat",)}, "'the cat' is required, but"),
        ({"prefix": "A cat", "forbid": ("Cat",)}, "'A cat' is required, but"),
        ({"require": ("the old man and the sea",), "max_new_tokens": 3}, "max_new_tokens = 3: what is required has"),
        ({"prefix": "the old man and the sea", "max_new_tokens": 3}, "max_new_tokens = 3: what is required has"),
    ):
        with pytest.raises(InputError, match=message):
            Constraints.of_texts(GenerationOptions(**options), tokenizer, 2)
    with pytest.raises(InputError, match="an empty text"):
        GenerationOptions(forbid=(" ",))
    wide = Tokenizer.train(LINES, 420)  # whose normalisation leaves nothing of a space without width
    with pytest.raises(InputError, match=r"require: '\\u200b' has nothing that can be written"):
        Constraints.of_texts(GenerationOptions(require=("\u200b",)), wide, 1)
    bound = Constraints.of_texts(GenerationOptions(require=("cat",)), tokenizer, 1)
    with pytest.raises(InputError, match="beam search"):
        write(Writer(len(tokenizer), tokenizer.eos_id), [0], tokenizer, bound, do_sample=True)


def test_spellings_of_a_forbidden_text_are_one(tokenizer: Tokenizer) -> None:
    for phrase, text in (("l'été", "L’E\u0301TE\u0301"), ("l’e\u0301te\u0301", "l'été")):
        assert Forbidden((phrase,), tokenizer).stands_in(text)


def test_what_is_asked_of_some_inputs(tokenizer: Tokenizer) -> None:
    options = GenerationOptions(prefix="The", require=("cat",))
    bound = Constraints.of_texts(options, tokenizer, 3, asked=[True, False, True])
    assert bound.prefixes == [tokenizer.encode(["The"])[0], [], tokenizer.encode(["The"])[0]]
    assert bound.require is not None
    assert [progress is not None for progress in bound.require] == [True, False, True]


def test_a_text_ends_with_a_stop_string(tokenizer: Tokenizer) -> None:
    """However it is cut into pieces; with the piece that completes it."""
    model = Speller(tokenizer, ("cat", "mat"))
    for beams in (1, 4):
        free = write(model, range(6), tokenizer, Constraints(tokenizer.unwritable), num_beams=beams, max_new_tokens=25)
        bound = Constraints.of_texts(GenerationOptions(stop=("cat", "at m")), tokenizer, 6, forbid=tokenizer.unwritable)
        found = write(model, range(6), tokenizer, bound, num_beams=beams, max_new_tokens=25)
        ended = [tokenizer.decode([hypotheses[0].ids])[0] for hypotheses in found]
        assert any("cat" in text for text in ended)
        for before, after, text in zip(free, found, ended, strict=True):
            places = [text.find(stop) for stop in ("cat", "at m") if stop in text]
            if places:
                assert after[0].finished
                head = tokenizer.decode([after[0].ids[:-1]])[0]
                assert "cat" not in head
                assert "at m" not in head
            elif beams == 1:
                assert after[0].ids == before[0].ids


def test_a_prefix_holds_no_stop_string(tokenizer: Tokenizer) -> None:
    model = Speller(tokenizer, ("cat", "mat"))
    for beams in (1, 4):
        plain = GenerationOptions(prefix="The old cat")
        free = Constraints.of_texts(plain, tokenizer, 6, forbid=tokenizer.unwritable)
        bound = Constraints.of_texts(
            GenerationOptions(prefix="The old cat", stop=("old", "cat")), tokenizer, 6, forbid=tokenizer.unwritable
        )
        size = len(tokenizer.encode(["The old cat"])[0])
        before_and_after = [
            write(model, range(6), tokenizer, some, num_beams=beams, max_new_tokens=25) for some in (free, bound)
        ]
        for [before, *_], [after, *_] in zip(*before_and_after, strict=True):
            assert len(after.ids) > size or after == before
            head, rest = (tokenizer.decode([ids])[0] for ids in (after.ids[size:-1], before.ids[size:]))
            assert "cat" not in head
            if "cat" not in rest and beams == 1:
                assert after == before


def test_a_prefix_then_the_rest(tokenizer: Tokenizer) -> None:
    options = {"prefix": "The old man", "require": ("sea",), "forbid": ("cat", "mat")}
    model = Speller(tokenizer, ("cat", "mat"))
    for beams in (1, 4):
        bound = Constraints.of_texts(GenerationOptions(**options), tokenizer, 6, forbid=tokenizer.unwritable)
        found = write(model, range(6), tokenizer, bound, num_beams=beams, max_new_tokens=25)
        for text in tokenizer.decode([hypotheses[0].ids for hypotheses in found]):
            assert text.startswith("The old man")
            assert holds(text, "sea")
            assert not holds(text, "cat")


# Coverage --------------------------------------------------------------------------------------------------------------------


class Reader:
    """Writes 2 (reading source position 0) or 3 (reading position 1) or the end; the likeliest text never reads position 1."""

    @dataclass(frozen=True)
    class State:
        last: np.ndarray

        @property
        def attention(self) -> tuple[np.ndarray, np.ndarray]:
            """Two source positions, and a third that is padding."""
            weights = np.full((len(self.last), 3), 0.01, np.float32)
            weights[np.arange(len(self.last)), np.where(self.last == 3, 1, 0)] = 0.98
            return weights, np.full(len(self.last), 2, np.int64)

        def select(self, indices: Any) -> "Reader.State":
            return Reader.State(self.last[np.asarray(indices)])

    def step(self, ids: np.ndarray, state: "Reader.State") -> tuple[np.ndarray, "Reader.State"]:
        logits = np.full((len(ids), 4), -20, np.float32)
        logits[ids == 0] = [-20, -20, 2, 0]
        logits[ids == 2] = [-20, 2, -20, 1.5]
        logits[ids == 3] = [-20, 3, -20, -20]
        return logits, Reader.State(ids)


def test_the_coverage_penalty_wants_the_source_read() -> None:
    def best(penalty: float) -> Hypothesis:
        options = GenerationOptions(num_beams=3, num_return_sequences=2, coverage_penalty=penalty, max_new_tokens=5)
        [[first, *_]] = generate(Reader(), Reader.State(np.zeros(1, np.int64)), 1, options, 0, 1)
        return first

    assert best(0.0).ids == [2]
    first = best(0.5)
    assert first.ids == [2, 3]
    # The first state reads position 0, so do 2 and 3 their own; in all 1.97 and 1.0 of positions 0 and 1.
    assert first.normalized_score == pytest.approx(first.score / 3 + 0.5 * min(0.0, np.log(1.0)), rel=1e-6)
    options = GenerationOptions(num_beams=3, num_return_sequences=3, coverage_penalty=0.5, max_new_tokens=5)
    [found] = generate(Reader(), Reader.State(np.zeros(1, np.int64)), 1, options, 0, 1)
    [lazy] = [h for h in found if h.ids == [2]]
    assert lazy.normalized_score == pytest.approx(lazy.score / 2 + 0.5 * np.log(0.02), rel=1e-5)


# Favoured -------------------------------------------------------------------------------------------------------------------


def test_favoured_words_gain_as_often_as_the_source_has_them(tokenizer: Tokenizer) -> None:
    source = tokenizer.encode(["The cat and the CAT, 北京 ☂!"])[0]
    favoured = Favoured(source, 2.0, tokenizer)
    spelt = [surface.lower() for surface in tokenizer.surfaces]
    words = [any(char.isalnum() or char == "\ufffd" for char in text.decode("utf-8", "replace")) for text in spelt]
    assert any(tokenizer.is_byte(index) for index in source)
    for written in ([], source[:3], source, [*source, *source], tokenizer.encode(["The the the cats"])[0]):
        left = Counter(spelt[index] for index in source)
        left.subtract(spelt[index] for index in written)
        expected = [index for index, text in enumerate(spelt) if words[index] and left[text] > 0]
        assert sorted(favoured.gaining(written)) == expected
    assert favoured.gaining(source) == []


@pytest.mark.parametrize("beams", [1, 4])
def test_what_a_bonus_does_to_a_search(tokenizer: Tokenizer, beams: int) -> None:
    """Each input has its own; the scores of a beam search are the model's and the bonus of each piece."""
    model = Writer(len(tokenizer), tokenizer.eos_id)
    sources = tokenizer.encode(["The cat sat on the mat.", "The old man and the sea."])
    free = Constraints(forbid=tokenizer.unwritable)
    options = {"num_beams": beams, "max_new_tokens": 20, "length_penalty": 0.0}

    def run(rows: Sequence[int], bonus: float) -> list[Hypothesis]:
        bound = free.favouring([Favoured(source, bonus, tokenizer) for source in sources]).of_rows(rows)
        return [best for best, *_ in write(model, rows, tokenizer, bound, **options)]

    both = run([0, 1], 6.0)
    assert both == [run([0], 6.0)[0], run([1], 6.0)[0]]
    assert run([0, 1], 0.0) == [best for best, *_ in write(model, [0, 1], tokenizer, free, **options)]
    for row, best in enumerate(both):
        bonus = Favoured(sources[row], 6.0, tokenizer)
        gained = sum(index in bonus.gaining(best.ids[:place]) for place, index in enumerate(best.ids))
        assert gained >= 5, tokenizer.decode([best.ids])
        total, ends = 0.0, [tokenizer.eos_id] * best.finished
        for place, index in enumerate([*best.ids, *ends]):
            logits = model.row(row, (tokenizer.bos_id, *best.ids[:place])).astype(np.float64)
            total += logits[index] - np.log(np.exp(logits).sum())
        assert best.score == pytest.approx(total + 6.0 * gained * (beams > 1), rel=1e-5)

"""What a text must keep to: words it must not hold, words it must, how it begins and how long it may be.

Forbidden texts are matched on the characters that the pieces spell, so that no other way of cutting a word into pieces gets
around them. Required texts are sequences of pieces; the beam search makes room for them (`beam.py`).
"""

import codecs
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rheme.decoding.options import GenerationOptions
from rheme.errors import InputError

Stopped = Callable[[list[int]], bool]


class Tokenizer(Protocol):
    """What this file asks of `rheme.text.tokenizer.Tokenizer`."""

    eos_id: int

    @property
    def surfaces(self) -> Sequence[bytes]: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...


def _is_word(char: str) -> bool:
    """Whether a character is part of a word that spaces divide from the next: a letter or digit, but no Chinese one."""
    return char.isalnum() and not "\u2e80" <= char <= "\u9fff" and not "\uac00" <= char <= "\ud7a3" and char < "\U00020000"


def _folded(text: str) -> str:
    """The form in which two spellings of a phrase are one: NFC, no capitals, plain apostrophes."""
    return unicodedata.normalize("NFC", text).casefold().replace("’", "'")


def _first(surface: bytes) -> str:
    return surface[:4].decode("utf-8", "replace")[:1]


def _last(surface: bytes) -> str:
    """The last character; U+FFFD, which is no part of a word, for a byte of one."""
    return surface[-4:].decode("utf-8", "replace")[-1:]


@lru_cache(maxsize=16)
def _word_edges(surfaces: tuple[bytes, ...]) -> tuple[NDArray[np.int64], frozenset[int]]:
    """The ids that begin with a letter, and those that end with one; a byte of a character may be one."""
    ends = [[char == "\ufffd" or _is_word(char) for char in (_first(surface), _last(surface))] for surface in surfaces]
    first = np.array([index for index, (word, _) in enumerate(ends) if word], np.int64)
    return first, frozenset(index for index, (_, word) in enumerate(ends) if word)


class Forbidden:
    """Words and phrases that a text must not hold, in any case, with any apostrophe, and however they are cut into pieces.

    A phrase that begins (or ends) with a letter counts only where a word begins (or ends), so "cat" does not forbid
    "category"; in Chinese and Japanese, which write no spaces, it counts anywhere.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        plain = dict.fromkeys(_folded(" ".join(text.split())) for text in texts)
        self._phrases = [(text.encode(), _is_word(text[0]), _is_word(text[-1])) for text in plain]
        self._surfaces = [_folded(surface.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
                          for surface in tokenizer.surfaces]  # fmt: skip
        self._eos = tokenizer.eos_id
        self._longest = max((len(phrase) for phrase, _, _ in self._phrases), default=0) + 4
        self._always = sorted(
            index
            for index, surface in enumerate(self._surfaces)
            if any(
                self._inside(surface, start, *phrase)
                for phrase in self._phrases
                if phrase[0] in surface
                for start in range(1, len(surface))
            )
        )
        self._completing: dict[tuple[int, int, bool], list[int]] = {}
        self._rows: dict[tuple[bytes, bytes, bool], NDArray[np.int64]] = {}

    @staticmethod
    def _inside(surface: bytes, start: int, phrase: bytes, left: bool, right: bool) -> bool:
        """Whether the phrase stands in the surface at `start` (> 0), with the ends of words that it needs."""
        end = start + len(phrase)
        if surface[start:end] != phrase or (left and _is_word(_last(surface[:start]))):
            return False
        return not right or (end < len(surface) and not _is_word(_first(surface[end:])))

    def _tails(self, ids: Sequence[int]) -> tuple[bytes, bytes]:
        """The last bytes of a text (shorter than `_longest` only at its start), and those of a character just begun.

        Bytes that form no character are left out, as they are when the text is decoded.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        text = decoder.decode(b"".join(self._surfaces[index] for index in ids[-self._longest :]))
        return text.encode()[-self._longest :], decoder.getstate()[0]

    def _open(self, tail: bytes) -> list[tuple[int, int]]:
        """(phrase, bytes of it that are written) for each one that the tail may be in the middle of, or before."""
        found = []
        for number, (phrase, left, _) in enumerate(self._phrases):
            for size in range(min(len(phrase), len(tail)) + 1):
                before = tail[: len(tail) - size]
                if tail.endswith(phrase[:size]) and not (left and before and _is_word(_last(before))):
                    found.append((number, size))
        return found

    def _completes(self, number: int, size: int, strict: bool) -> list[int]:
        """The pieces after which phrase `number`, of which `size` bytes are written, stands in the text for good.

        strict: it stands there as soon as it is written, whatever may follow.
        """
        key = (number, size, strict)
        if key not in self._completing:
            phrase, _, right = self._phrases[number]
            right = right and not (strict and size < len(phrase))
            rest = phrase[size:]
            found = [
                index
                for index, surface in enumerate(self._surfaces)
                if surface.startswith(rest)
                and surface
                and (not right or (len(surface) > len(rest) and not _is_word(_first(surface[len(rest) :]))))
            ]
            self._completing[key] = found + [self._eos] * (not rest)
        return self._completing[key]

    def banned(self, ids: Sequence[int], strict: bool = False) -> NDArray[np.int64]:
        """The ids that must not come after these. strict: nor those that write a phrase which may yet become another word."""
        tail, begun = self._tails(ids)
        key = (tail, begun, strict)
        if key not in self._rows:
            places = {*self._open(tail), *(self._open(tail + begun) if begun else ())}
            found = set(self._always).union(*(self._completes(number, size, strict) for number, size in places))
            self._rows[key] = np.array(sorted(found), np.int64)
        return self._rows[key]

    def stands_in(self, text: str) -> bool:
        """Whether a text holds one of the phrases."""
        plain = f" {_folded(' '.join(text.split()))} ".encode("utf-8", "replace")
        return any(self._inside(plain, start, *phrase) for phrase in self._phrases for start in range(1, len(plain)))

    def surplus(self, ids: Sequence[int]) -> int:
        """How many last ids must go from a text that was cut off here, so that it does not end with a forbidden word."""
        count = 0
        while count < len(ids) and self._eos in self.banned(ids[: len(ids) - count]):
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class Way:
    """One way of writing a required text. first: only at the start of a text. tight: only where no word is before it."""

    ids: tuple[int, ...]
    first: bool = False
    tight: bool = False


@dataclass(frozen=True, slots=True)
class Required:
    """A text that must be written. word: it ends with a letter, so the next piece must not go on with the word."""

    ways: tuple[Way, ...]
    word: bool = False


def required(text: str, tokenizer: Tokenizer) -> Required:
    """How a tokenizer writes a required text: after a space, or right after what is no word; at the start, with a capital.

    InputError for one of which nothing is left, such as a space of no width.
    """
    plain = " ".join(text.split())
    ways = [Way(tuple(tokenizer.encode([plain])[0]))]
    ids = tokenizer.encode(["." + plain])[0]  # behind a full stop nothing is merged with what follows, and no space comes first
    spelt = [tokenizer.surfaces[index] for index in ids]
    start = next((k for k in range(1, len(ids)) if b"".join(spelt[:k]).strip() == b"."), 0)
    if start and tuple(ids[start:]) != ways[0].ids:
        ways.append(Way(tuple(ids[start:]), tight=_is_word(plain.lstrip("-")[:1])))  # -5 is not to become 5-5
    if plain[:1].islower():
        ways.append(Way(tuple(tokenizer.encode([plain[0].upper() + plain[1:]])[0]), first=True))
    ways = [way for way in ways if b"".join(tokenizer.surfaces[index] for index in way.ids).strip()]
    if not ways:
        raise InputError(f"require: {text!r} has nothing that can be written")
    return Required(tuple(ways), _is_word(plain[-1]))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a text has come with what it must hold.

    done: the texts (by number) that are written. begun: (text, way, pieces written of it). words: the ids that end with a
    letter. started: anything is written. inside: the last piece ends with a letter. closing: a word has just been completed.
    """

    texts: tuple[Required, ...]
    words: frozenset[int] = frozenset()
    done: frozenset[int] = frozenset()
    begun: tuple[tuple[int, int, int], ...] = ()
    started: bool = False
    inside: bool = False
    closing: bool = False

    @property
    def met(self) -> bool:
        return len(self.done) == len(self.texts)

    @property
    def bank(self) -> int:
        """How many pieces of what is required are written: paths of one bank compete with each other (Post and Vilar 2018)."""
        whole = sum(max(len(way.ids) for way in self.texts[t].ways) for t in self.done)
        return whole + max((size for _, _, size in self.begun), default=0)

    @property
    def missing(self) -> int:
        """How many pieces are still to be written, at most, by going on with what is begun."""
        todo = {t: len(text.ways[0].ids) for t, text in enumerate(self.texts) if t not in self.done}
        if self.begun:
            left = {t: len(self.texts[t].ways[way].ids) - size for t, way, size in self.begun}
            return max(sum(todo.values()) - todo[t] + rest for t, rest in left.items())
        return sum(todo.values())

    def _open(self) -> list[tuple[int, int]]:
        """The (text, way) that may begin now; of equal texts, one."""
        todo = {text: t for t, text in reversed(list(enumerate(self.texts))) if t not in self.done}
        return [
            (t, number)
            for text, t in todo.items()
            for number, way in enumerate(text.ways)
            if not (way.first and self.started) and not (way.tight and self.inside)
        ]

    def wanted(self) -> list[int]:
        """The ids that bring the path further: those that go on with what is begun, or else begin something."""
        if self.begun:
            return sorted({self.texts[t].ways[way].ids[size] for t, way, size in self.begun})
        return sorted({self.texts[t].ways[way].ids[0] for t, way in self._open()})

    def written(self, ids: frozenset[int]) -> bool:
        """Whether the written part of what is begun holds one of these ids."""
        return any(not ids.isdisjoint(self.texts[t].ways[way].ids[:size]) for t, way, size in self.begun)

    def after(self, token: int) -> "Progress":
        """The progress when `token` is written; what was begun and not gone on with starts anew."""
        begun = [(t, way, size + 1) for t, way, size in self.begun if self.texts[t].ways[way].ids[size] == token]
        if not begun:
            begun = [(t, way, 1) for t, way in self._open() if self.texts[t].ways[way].ids[0] == token]
        whole = {t for t, way, size in begun if size == len(self.texts[t].ways[way].ids)}
        rest = {
            "begun": () if whole else tuple(begun),
            "started": True,
            "inside": token in self.words,
            "closing": any(self.texts[t].word for t in whole),
        }
        return Progress(self.texts, self.words, self.done | whole, **rest)  # type: ignore[arg-type]


@lru_cache(maxsize=16)
def word_kinds(surfaces: tuple[bytes, ...]) -> tuple[str | None, ...]:
    """For each id what it spells, in lower case, and None where that holds no letter or digit. A byte of a character is one."""
    spelt = [surface.decode("utf-8", "surrogateescape").casefold() for surface in surfaces]
    return tuple(text if any(char.isalnum() or "\udc80" <= char <= "\udcff" for char in text) else None for text in spelt)


class Favoured:
    """Words of a source that a text gains by writing: `bonus` nats for each of their pieces, as often as the source has it.

    Pieces that differ in case alone count as one, those without a letter or digit do not count. The bonus is part of the scores
    that a search ranks by and returns.
    """

    def __init__(self, source: Sequence[int], bonus: float, tokenizer: Tokenizer) -> None:
        self.bonus = bonus
        self._kinds = word_kinds(tuple(tokenizer.surfaces))
        self._counts = Counter(kind for kind in (self._kinds[index] for index in source) if kind is not None)
        self._ids: dict[str, list[int]] = {kind: [] for kind in self._counts}
        for index, kind in enumerate(self._kinds):
            if kind in self._ids:
                self._ids[kind].append(index)

    def gaining(self, ids: Sequence[int]) -> list[int]:
        """The ids that gain the bonus after these."""
        left = self._counts - Counter(kind for kind in (self._kinds[index] for index in ids) if kind is not None)
        return [index for kind in left for index in self._ids[kind]]


def _stopping(texts: Sequence[str], tokenizer: Tokenizer) -> Stopped:
    """Whether the last piece of a text completes one of some strings."""
    surfaces, wanted = tokenizer.surfaces, [text.encode() for text in texts]
    longest = max(map(len, wanted))

    def stopped(ids: list[int]) -> bool:
        tail, position = surfaces[ids[-1]], len(ids) - 1
        room = len(tail) + longest
        while position and len(tail) < room:
            position -= 1
            tail = surfaces[ids[position]] + tail
        return any(text in tail for text in wanted)

    return stopped


@dataclass(frozen=True)
class Constraints:
    """What a text must keep to.

    forbid: ids never written. prefixes: per input, ids that its text begins with. max_new_tokens: per input, at most the
    option's. stopped: whether a text (its ids after its prefix) is to end here; called after each piece. phrases: words and
    phrases that must not stand in it. require: per input, what of texts that must is written at the start (nothing). joins: the
    ids that would go on with the word before them. repeatable: ids that no_repeat_ngram_size never forbids, such as digits.
    favoured: per input, the words that its text gains by writing. reserved: per input, ids that its text holds only in what is
    required, and which it does not leave in the middle.
    """

    forbid: Sequence[int] = ()
    prefixes: Sequence[Sequence[int]] | None = None
    max_new_tokens: Sequence[int] | None = None
    stopped: Stopped | None = None
    phrases: Forbidden | None = None
    require: Sequence[Progress | None] | None = None
    joins: NDArray[np.int64] | None = None
    repeatable: frozenset[int] = frozenset()
    favoured: Sequence[Favoured] | None = None
    reserved: Sequence[frozenset[int]] | None = None

    def of_rows(self, rows: Sequence[int]) -> "Constraints":
        """The constraints of some inputs."""
        each = self.prefixes, self.require, self.favoured, self.reserved
        some = [None if values is None else [values[row] for row in rows] for values in each]
        limits = None if self.max_new_tokens is None else [self.max_new_tokens[row] for row in rows]
        bound = {"prefixes": some[0], "require": some[1], "favoured": some[2], "reserved": some[3]}
        return replace(self, max_new_tokens=limits, **bound)  # type: ignore[arg-type]

    def favouring(self, favoured: Sequence[Favoured]) -> "Constraints":
        """With words that the text of each input gains by writing."""
        return replace(self, favoured=favoured)

    @classmethod
    def of_texts(
        cls,
        options: GenerationOptions,
        tokenizer: Tokenizer,
        inputs: int,
        *,
        forbid: Sequence[int] = (),
        require: Sequence[Sequence[str]] | None = None,
        max_new_tokens: Sequence[int] | None = None,
        asked: Sequence[bool] | None = None,
    ) -> "Constraints":
        """The options' `forbid`, `require`, `prefix` and `stop`, for so many inputs, as a tokenizer writes them.

        require: more required texts, per input (such as a glossary's entries for the words of a source), each as often as it
        is to be written. A required text stands as a word of its own, in the case given (or with a capital, first of all).
        asked: per input, whether the options' `require` and `prefix` are for it (by default for all). InputError for a text
        that holds what is forbidden, or where all that must be written is longer than max_new_tokens; where only several
        together hold what is forbidden, what is required comes first.
        """
        forbidden = Forbidden(options.forbid, tokenizer) if options.forbid else None
        for_all = asked or [True] * inputs
        own = [(*dict.fromkeys(options.require),) if mine else () for mine in for_all]
        texts = [(*some, *more) for some, more in zip(own, require or [()] * inputs, strict=True)]
        ways = {text: required(text, tokenizer) for row in texts for text in row}
        for text in (*ways, options.prefix):
            if forbidden is not None and forbidden.stands_in(text):
                raise InputError(f"{text!r} is required, but holds what is forbidden: {', '.join(map(repr, options.forbid))}")
        joins: NDArray[np.int64] | None = None
        words: frozenset[int] = frozenset()
        if ways:
            joins, words = _word_edges(tuple(tokenizer.surfaces))
        rows = [Progress(tuple(ways[text] for text in row), words) if row else None for row in texts]
        prefix = tokenizer.encode([options.prefix])[0] if options.prefix.strip() else []
        prefixes = [prefix if mine else [] for mine in for_all]
        limits = [min(options.max_new_tokens, n) for n in (max_new_tokens or [options.max_new_tokens] * inputs)]
        for begin, row, limit in zip(prefixes, rows, limits, strict=True):
            if (needed := len(begin) + (row.missing if row else 0)) > limit:
                raise InputError(f"max_new_tokens = {limit}: what is required has {needed} pieces")
        return cls(
            forbid,
            prefixes if prefix else None,
            max_new_tokens,
            _stopping(options.stop, tokenizer) if options.stop else None,
            forbidden,
            rows if any(rows) else None,
            joins,
        )

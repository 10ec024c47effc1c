"""Bags of n-grams: the words, pairs of words and runs of characters of a text, each with its inverse document frequency.

What a linear model over TF-IDF sees. An n-gram is known by a 32-bit hash, so that a vocabulary takes 6 bytes a feature and
needs no strings; an n-gram that was not kept in training counts for nothing.
"""

import functools
import math
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme.errors import InputError
from rheme.text.tokenizer import Tokenizer

Array = NDArray[Any]

_TOKENS = re.compile(r"\w+|[^\w\s]")
_SPACE = 32
_PRIME = np.uint32(16777619)
_PAIR = np.uint32(2654435761)
_CHUNK = 512  # texts whose n-grams are held at once
_IDF_UNIT = 256  # idf is kept as an integer, so that sums over a text are exact

Bag = tuple[Array, Array]


class _Stored(msgspec.Struct, kw_only=True):
    word_ngrams: int
    char_ngrams: tuple[int, int]
    hashes: bytes
    idf: bytes


def tokens(text: str) -> list[str]:
    """Words and marks of a text, in lower case (NFKC, case-folded)."""
    return _TOKENS.findall(unicodedata.normalize("NFKC", text).casefold())


class Features:
    """The n-grams kept from a training text, by hash.

    word_ngrams: 1 for words, 2 for pairs of neighbours too, and so on (0: none). char_ngrams: shortest and longest run of
    characters within a word and its two borders ((0, 0): none). Row 0 is that of no n-gram.
    """

    def __init__(self, hashes: Array, idf: Array, word_ngrams: int, char_ngrams: tuple[int, int]) -> None:
        self.hashes = hashes
        self.idf = idf
        self.word_ngrams = word_ngrams
        self.char_ngrams = char_ngrams
        self._by_hash: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self.hashes) + 1

    @classmethod
    def train(
        cls,
        texts: Sequence[str],
        max_features: int = 50_000,
        min_count: int = 2,
        word_ngrams: int = 2,
        char_ngrams: tuple[int, int] = (2, 5),
    ) -> "Features":
        """The n-grams that stand in at least min_count texts, the most frequent max_features of them; ties by hash."""
        new = cls(np.zeros(0, np.uint32), np.zeros(0, np.uint16), word_ngrams, char_ngrams)
        found: dict[int, int] = {}
        for _, _, hashes in new._hashed(texts):
            values, counts = np.unique(hashes, return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                found[value] = found.get(value, 0) + count
        kept = sorted((hash_ for hash_, count in found.items() if count >= min_count), key=lambda h: (-found[h], h))
        kept = sorted(kept[:max_features])
        idf = [round(_IDF_UNIT * (math.log((1 + len(texts)) / (1 + found[hash_])) + 1.0)) for hash_ in kept]
        return cls(np.array(kept, np.uint32), np.array(idf, np.uint16), word_ngrams, char_ngrams)

    @functools.cached_property
    def unseen_idf(self) -> int:
        """The idf of an n-gram that was not kept: that of the rarest."""
        return int(self.idf.max(initial=_IDF_UNIT))

    def _hashed(self, texts: Sequence[str]) -> Iterator[tuple[Array, Array, Array]]:
        """For some texts at a time: text, kind (0 words, 1 characters) and hash of each n-gram, once a text."""
        for start in range(0, len(texts), _CHUNK):
            rows, kinds, hashes = [], [], []
            cut = [tokens(text) for text in texts[start : start + _CHUNK]]
            for row, hash_ in self._words(cut):
                rows.append(row)
                hashes.append(hash_)
                kinds.append(np.zeros(len(row), np.uint8))
            for row, hash_ in self._runs(cut):
                rows.append(row)
                hashes.append(hash_)
                kinds.append(np.ones(len(row), np.uint8))
            if not rows:
                continue
            key = (np.concatenate(rows).astype(np.uint64) << np.uint64(32)) | np.concatenate(hashes)
            key, first = np.unique(key, return_index=True)
            row = (key >> np.uint64(32)).astype(np.int64) + start
            yield row, np.concatenate(kinds)[first], key.astype(np.uint32)

    def _words(self, cut: Sequence[list[str]]) -> Iterator[tuple[Array, Array]]:
        """Text and hash of the words and of each run of neighbours."""
        if self.word_ngrams < 1:
            return
        row = np.repeat(np.arange(len(cut)), [len(words) for words in cut])
        single = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for words in cut for word in words], np.uint32)
        hashes = single
        yield row, hashes
        for n in range(2, self.word_ngrams + 1):
            if len(single) < n:
                return
            hashes = (hashes[:-1] ^ (hashes[:-1] >> np.uint32(15))) * _PAIR + single[n - 1 :]
            same = row[: len(hashes)] == row[n - 1 :]
            yield row[: len(hashes)][same], hashes[same]

    def _runs(self, cut: Sequence[list[str]]) -> Iterator[tuple[Array, Array]]:
        """Text and hash of each run of characters that holds no space but at its ends."""
        shortest, longest = self.char_ngrams
        if longest < 1:
            return
        lines = [f" {' '.join(words)} " for words in cut]
        row = np.repeat(np.arange(len(lines)), [len(line) for line in lines])
        text = np.frombuffer("".join(lines).encode("utf-32-le", "surrogatepass"), np.uint32)
        space = text == _SPACE
        hashes = text
        inside = np.zeros(len(text), bool)  # whether a space stands between the ends
        for n in range(1, longest + 1):
            if n > 1:
                hashes = hashes[:-1] * _PRIME + text[n - 1 :]
                inside = inside[:-1] | space[n - 2 : -1] if n > 2 else inside[:-1]
            if n < max(1, shortest):
                continue
            kept = ~space if n == 1 else ~(space[:-1] & space[1:]) if n == 2 else ~inside
            mixed = hashes[kept] + np.uint32(n)
            mixed = (mixed ^ (mixed >> np.uint32(16))) * _PAIR
            yield row[: len(hashes)][kept], mixed ^ (mixed >> np.uint32(13))

    def encode(self, texts: Sequence[str]) -> list[Bag]:
        """Per text: rows int32 (K,) of its n-grams, ascending, and their weights float32 (K,).

        A weight is the idf, divided by the norm of those of its kind (words or characters), so that both have norm 1.
        """
        bags: list[Bag] = [(np.zeros(0, np.int32), np.zeros(0, np.float32))] * len(texts)
        if not len(self.hashes):
            return bags
        for row, kind, hashes in self._hashed(texts):
            place = np.searchsorted(self.hashes, hashes)
            place[place == len(self.hashes)] = 0
            kept = self.hashes[place] == hashes
            row, kind, place = row[kept], kind[kept], place[kept]
            if not len(row):
                continue
            idf = self.idf[place].astype(np.int64)
            group = 2 * (row - row[0]) + kind
            squares = np.zeros(int(group.max()) + 1, np.int64)
            np.add.at(squares, group, idf * idf)  # integers
            norms = np.array([math.sqrt(value) for value in squares.tolist()], np.float32)
            weights = idf.astype(np.float32) / norms[group]
            ends = np.flatnonzero(row[1:] != row[:-1]) + 1
            starts = np.concatenate(([0], ends))
            for begin, end in zip(starts.tolist(), [*ends.tolist(), len(row)], strict=True):
                bags[int(row[begin])] = ((place[begin:end] + 1).astype(np.int32), weights[begin:end])
        return bags

    def rarity(self, words: Sequence[str]) -> list[float]:
        """The idf of single words; of an unknown one that of the rarest n-gram."""
        if self._by_hash is None:
            self._by_hash = dict(zip(self.hashes.tolist(), self.idf.tolist(), strict=True))
        unseen = self.unseen_idf
        return [self._by_hash.get(zlib.crc32(word.encode("utf-8", "surrogatepass")), unseen) / _IDF_UNIT for word in words]

    def to_bytes(self) -> bytes:
        stored = _Stored(
            word_ngrams=self.word_ngrams,
            char_ngrams=self.char_ngrams,
            hashes=self.hashes.astype("<u4").tobytes(),
            idf=self.idf.astype("<u2").tobytes(),
        )
        return msgspec.msgpack.encode(stored)

    @classmethod
    def load(cls, data: bytes) -> "Features":
        """From `to_bytes`. InputError for anything else."""
        try:
            stored = msgspec.msgpack.decode(data, type=_Stored)
            hashes, idf = np.frombuffer(stored.hashes, "<u4"), np.frombuffer(stored.idf, "<u2")
        except (msgspec.DecodeError, ValueError) as error:
            raise InputError(f"the list of n-grams is damaged: {error}") from None
        if len(hashes) != len(idf) or np.any(hashes[1:] <= hashes[:-1]):
            raise InputError("the list of n-grams is damaged: hashes out of order")
        return cls(hashes.astype(np.uint32), idf.astype(np.uint16), stored.word_ngrams, stored.char_ngrams)


class _StoredInputs(msgspec.Struct, kw_only=True):
    pieces: bytes
    features: bytes


class PiecesAndFeatures:
    """A text as a classifier reads it: its pieces in order and its bag of n-grams. One file holds both vocabularies."""

    def __init__(self, pieces: Tokenizer, features: Features) -> None:
        self.pieces = pieces
        self.features = features

    def encode(self, texts: Sequence[str], max_length: int) -> list[tuple[Array, Bag]]:
        """Per text: ids int32 of its first pieces, after the one that begins a text (max_length in all), and its bag."""
        bos = self.pieces.bos_id
        bags = self.features.encode(texts)
        ids = self.pieces.encode(texts)
        return [(np.array([bos, *row[: max_length - 1]], np.int32), bag) for row, bag in zip(ids, bags, strict=True)]

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(_StoredInputs(pieces=self.pieces.to_bytes(), features=self.features.to_bytes()))

    @classmethod
    def load(cls, data: bytes) -> "PiecesAndFeatures":
        """From `to_bytes`. InputError for anything else."""
        try:
            stored = msgspec.msgpack.decode(data, type=_StoredInputs)
        except msgspec.DecodeError as error:
            raise InputError(f"tokenizer.model is damaged, or not of a classifier: {error}") from None
        return cls(Tokenizer.load(stored.pieces), Features.load(stored.features))

"""What the reader is told of words: their place in the vocabulary, their bytes, and how a passage matches a question."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rheme.text.vocabulary import Vocabulary
from rheme.text.words import stem

WIDTH = 20  # bytes of a word that the model sees, with its begin and end; of a longer one the first ten and the last eight
FEATURES = 8
# What one unit of each feature is worth, all powers of two.
SCALES = np.array([[1, 1, 1, 1, 1 / 16, 1 / 16, 1 / 64, 1 / 64]], np.float32)
_NEAR = (4, 16)  # words to either side in which matches are counted


class Lexicon:
    """The different words met so far, each with what the model and the features need of it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.index: dict[str, int] = {}
        self.lower: dict[str, int] = {}
        self.stems: dict[str, int] = {}
        self.table = np.zeros((1024, 4), np.int64)  # vocabulary id, lower-cased form, stem, level of rarity
        self.chars: list[bytes] = []

    def ids(self, words: Sequence[str]) -> NDArray[np.int32]:
        """The number of each word; new ones are added."""
        index = self.index
        return np.array([index[word] if word in index else self._add(word) for word in words], np.int32)

    def _add(self, word: str) -> int:
        number = self.index[word] = len(self.index)
        if number == len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        small = word.lower().replace("’", "'")
        entry = self.vocabulary.piece_id(small)
        common = entry if entry != self.vocabulary.unk_id else len(self.vocabulary)
        stemmed = stem(small)
        self.table[number] = (
            entry,
            self.lower.setdefault(small, len(self.lower)),
            self.stems.setdefault(stemmed, len(self.stems)),
            common.bit_length() if any(map(str.isalnum, word)) else 0,
        )
        spelled = word.encode("utf-8", "replace")
        if len(spelled) > WIDTH - 2:
            spelled = spelled[:10] + spelled[-8:]
        self.chars.append((b"\1" + bytes(byte + 3 for byte in spelled) + b"\2").ljust(WIDTH, b"\0"))
        return number

    def strange(self, words: Sequence[str]) -> bool:
        """Whether training knew less than half of these words (the different ones, without numbers and signs)."""
        ids = self.ids([word for word in dict.fromkeys(words) if word[0].isalpha()])
        return 2 * int(np.count_nonzero(self.table[ids, 0] == self.vocabulary.unk_id)) > len(ids)

    def features(self, question: NDArray[np.int32], passage: NDArray[np.int32]) -> NDArray[np.uint8]:
        """uint8 (T, 8) in units of `SCALES`: how the words of a passage match those of a question, and where matches gather.

        Same word; same but for capitals; same stem; a match within a run of matches; the rarity of the word, and of a match;
        and the rarities of the matches nearby, added up.
        """
        asked, given = self.table[question], self.table[passage]
        same_stem = given[:, 2:3] == asked[:, 2]
        runs = same_stem[:-1, :-1] & same_stem[1:, 1:]
        run = runs.any(axis=1)
        out = np.zeros((len(passage), FEATURES), np.int64)
        out[:, 0] = (passage[:, None] == question).any(axis=1)
        out[:, 1] = (given[:, 1:2] == asked[:, 1]).any(axis=1)
        out[:, 2] = same_stem.any(axis=1)
        out[:-1, 3] = run
        out[1:, 3] |= run
        out[:, 4] = given[:, 3]
        out[:, 5] = given[:, 3] * out[:, 2]
        before = np.concatenate([[0], np.cumsum(out[:, 5])])  # integers
        place = np.arange(len(passage))
        for column, reach in zip((6, 7), _NEAR, strict=True):
            end, start = np.minimum(place + reach + 1, len(passage)), np.maximum(place - reach, 0)
            out[:, column] = before[end] - before[start]
        return np.minimum(out, 255).astype(np.uint8)

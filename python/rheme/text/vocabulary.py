"""A closed list of words, one a line: for word-level models and benchmarks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rheme.errors import InputError
from rheme.text import readers

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"


class Vocabulary:
    """Words and their ids. Has the Tokenizer's interface; a text is split at white space.

    The first four are always <pad> 0, <unk> 1, <s> 2 and </s> 3.
    """

    pad_id, unk_id, bos_id, eos_id = 0, 1, 2, 3

    def __init__(self, words: Iterable[str]) -> None:
        special = (PAD, UNK, BOS, EOS)
        self.words = list(special) + [word for word in dict.fromkeys(words) if word not in special]
        self._ids = {word: index for index, word in enumerate(self.words)}

    @classmethod
    def train(cls, lines: Iterable[str], max_size: int | None = None, min_count: int = 1) -> "Vocabulary":
        """The most frequent words of the lines, the more frequent first, ties in alphabetical order."""
        counts = Counter(word for line in lines for word in line.split())
        words = sorted((word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word))
        return cls(words if max_size is None else words[: max(0, max_size - 4)])

    @classmethod
    def load(cls, source: str | Path | bytes) -> "Vocabulary":
        """From a file of words, or from its bytes. InputError for a word that stands twice or is no word."""
        name = "vocabulary" if isinstance(source, bytes) else str(source)
        words = source.decode("utf-8").split("\n") if isinstance(source, bytes) else readers.read_lines(source)
        if words and not words[-1]:
            words.pop()
        seen: dict[str, int] = {}
        for number, word in enumerate(words, 1):
            if not word or word.split() != [word]:
                raise InputError(f"{name}:{number}:1: one word a line is expected, not {word!r}")
            if word in seen:
                raise InputError(f"{name}:{number}:1: {word!r} stands in line {seen[word]} already")
            seen[word] = number
        return cls(words)

    def to_bytes(self) -> bytes:
        return ("\n".join(self.words) + "\n").encode()

    def __len__(self) -> int:
        return len(self.words)

    @property
    def surfaces(self) -> list[bytes]:
        """What each id adds to a text: nothing, or a space and the word."""
        silent = (self.pad_id, self.bos_id, self.eos_id)
        return [b"" if index in silent else b" " + word.encode() for index, word in enumerate(self.words)]

    @property
    def unwritable(self) -> list[int]:
        """Ids that no text is made of: padding, unknown and begin."""
        return [self.pad_id, self.unk_id, self.bos_id]

    def piece_id(self, word: str) -> int:
        return self._ids.get(word, self.unk_id)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text's words, without bos or eos."""
        return [[self._ids.get(word, self.unk_id) for word in text.split()] for text in texts]

    def decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Words joined by spaces; padding, bos and eos are left out."""
        silent = (self.pad_id, self.bos_id, self.eos_id)
        return [" ".join(self.words[index] for index in ids if index not in silent) for ids in sequences]

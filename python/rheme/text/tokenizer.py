"""Subword pieces: sentencepiece BPE with byte fallback.

Training is deterministic: a fixed number of threads, sentences in the order given. Any text can be encoded: characters that
were never seen become bytes.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
from numpy.typing import NDArray

from rheme.errors import InputError

_MAX_LINES = 2_000_000  # what training holds in memory at most; it learns from the first ones
_FEW = 12  # fewer texts than this one by one: sentencepiece starts a thread for a list, which costs as much as a dozen of them
_MAX_BYTES = 16_384  # a longer line is cut for training the tokenizer: sentencepiece would skip it


class Tokenizer:
    """Pieces and their ids: pad 0, unk 1, bos 2, eos 3, then the special pieces, then bytes and pieces.

    characters: those that have a piece of their own; any other one is written as bytes.
    """

    pad_id, unk_id, bos_id, eos_id = 0, 1, 2, 3

    def __init__(self, data: bytes) -> None:
        self._data = data
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise InputError(f"tokenizer.model is damaged or no sentencepiece model ({error})") from None
        ids = [self._processor.pad_id(), self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id()]
        if ids != [0, 1, 2, 3]:
            raise InputError(f"tokenizer.model has pad, unk, bos, eos at {ids}; rheme needs 0, 1, 2, 3")
        every = list(range(len(self)))
        self._byte_ids = frozenset(index for index, byte in enumerate(self._processor.is_byte(every)) if byte)
        self.characters = frozenset(piece for piece in self._processor.id_to_piece(every) if len(piece) == 1)

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        vocab_size: int = 8000,
        specials: Sequence[str] = (),
        *,
        character_coverage: float | None = None,
        normalization: str = "nmt_nfkc",
    ) -> "Tokenizer":
        """Learn pieces from lines of text.

        vocab_size: at most so many pieces in all (a small text gives fewer). specials: pieces of their own, such as ``<2fr>``,
        that no text can write. character_coverage: share of the text's characters that get a piece of their own (the rest are
        bytes); by default all of them for an alphabet, 0.9995 where there are more than 1,000 different ones.
        """
        texts = list(_cut(lines))
        if not texts:
            raise InputError("the tokenizer needs at least one line of text")
        # sentencepiece refuses a vocabulary smaller than the pieces it must have, and one that the text cannot fill.
        alphabet = set().union(*texts)
        needed = 4 + len(specials) + 256 + len(alphabet)
        if character_coverage is None:
            character_coverage = 1.0 if len(alphabet) <= 1000 else 0.9995
        size = vocab_size
        while True:
            model = io.BytesIO()
            try:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(texts),
                    model_writer=model,
                    model_type="bpe",
                    vocab_size=size,
                    byte_fallback=True,
                    character_coverage=character_coverage,
                    normalization_rule_name=normalization,
                    control_symbols=list(specials),
                    split_digits=True,
                    pad_id=cls.pad_id,
                    unk_id=cls.unk_id,
                    bos_id=cls.bos_id,
                    eos_id=cls.eos_id,
                    input_sentence_size=_MAX_LINES,
                    shuffle_input_sentence=False,
                    max_sentence_length=4 * _MAX_BYTES,
                    num_threads=1,
                    minloglevel=2,
                )
                return cls(model.getvalue())
            except (RuntimeError, ValueError) as error:  # a ValueError: it is no int of C
                smaller = _largest_possible(str(error), size)
                if smaller is None:
                    raise InputError(
                        f"no tokenizer of {vocab_size} pieces can be made of this text (at least {needed}): {error}"
                    ) from None
                size = smaller

    @classmethod
    def load(cls, source: str | Path | bytes) -> "Tokenizer":
        """From a file, or from its bytes."""
        if isinstance(source, bytes):
            return cls(source)
        try:
            return cls(Path(source).read_bytes())
        except OSError as error:
            raise InputError(f"{source}: {error.strerror}") from None

    def to_bytes(self) -> bytes:
        """The file ``tokenizer.model``."""
        return self._data

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    def piece_id(self, piece: str) -> int:
        """The id of a piece such as ``<2fr>``; KeyError if there is none."""
        index = int(self._processor.piece_to_id(piece))
        if index == self.unk_id:
            raise KeyError(piece)
        return index

    @property
    def unwritable(self) -> list[int]:
        """Ids that no text is made of: padding, unknown, begin, the special pieces, and control characters."""
        control = {f"<0x{byte:02X}>" for byte in (*range(32), 127)}
        ids = range(len(self))
        special = [index for index in ids if self._processor.is_control(index) and index != self.eos_id]
        bytes_ = [index for index in sorted(self._byte_ids) if self._processor.id_to_piece(index) in control]
        return sorted({self.pad_id, self.unk_id, self.bos_id, *special, *bytes_})

    def normalize(self, text: str) -> str:
        """The text as the pieces see it: normalised, with ▁ for spaces (and one at the start)."""
        return str(self._processor.normalize(whole_characters(text)))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [str(piece) for piece in self._processor.id_to_piece([int(index) for index in ids])]

    @cached_property
    def surfaces(self) -> tuple[bytes, ...]:
        """What each piece writes, in UTF-8: " cat" for ▁cat, one byte for a byte, nothing for the special pieces."""
        spelt = []
        for index in range(len(self)):
            piece = str(self._processor.id_to_piece(index))
            if index in self._byte_ids:
                spelt.append(bytes([int(piece[3:-1], 16)]))
            elif self._processor.is_control(index) or index == self.unk_id:
                spelt.append(b"")
            else:
                spelt.append(piece.replace("▁", " ").encode())
        return tuple(spelt)

    def is_byte(self, index: int) -> bool:
        """Whether a piece is a byte of a character that has no piece of its own."""
        return index in self._byte_ids

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text's pieces, without bos or eos; a lone surrogate is read as a question mark."""
        try:
            if len(texts) < _FEW:
                return [self._processor.encode(text) for text in texts]
            return self._processor.encode(list(texts), num_threads=1)
        except (RuntimeError, TypeError):  # what pybind11 makes of a text that is no UTF-8
            plain = [whole_characters(text) if isinstance(text, str) else text for text in texts]
            if plain == list(texts):
                raise
            return self.encode(plain)

    def resample(self, sequences: Sequence[Sequence[int] | NDArray[Any]], dropout: float, seed: int) -> list[list[int]]:
        """The same texts in other pieces: each merge of two pieces is left out with probability `dropout` (BPE-dropout,
        Provilkov et al. 2020). The seed alone decides, together with the order of the sequences.
        """
        plain = [[int(index) for index in ids] for ids in sequences]
        texts = self._processor.decode(plain, num_threads=1)
        # sentencepiece seeds a generator once for each thread, and takes a new thread for each list.
        sentencepiece.set_random_generator_seed(seed % 0xFFFFFFFF)
        cut: list[list[int]] = self._processor.encode(texts, enable_sampling=True, alpha=dropout, nbest_size=-1, num_threads=1)
        return cut

    def decode(self, sequences: Sequence[Sequence[int] | NDArray[Any]]) -> list[str]:
        """Text, with its capitals and spaces; pad, bos and eos are left out, and bytes that form no character."""
        silent = (self.pad_id, self.bos_id, self.eos_id)
        plain = [[int(index) for index in ids if index not in silent] for ids in sequences]
        few = len(plain) < _FEW
        texts = map(self._processor.decode, plain) if few else self._processor.decode(plain, num_threads=1)
        return [text.replace("\ufffd", "").strip() for text in texts]


def whole_characters(text: str) -> str:
    """The text with a question mark for each lone surrogate, which is no character and has no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _cut(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if line.strip():
            # sentencepiece takes a sentence without NUL and tab; both mean nothing to it.
            text = whole_characters(line).replace("\0", " ").replace("\t", " ")
            yield text if len(text) <= _MAX_BYTES else text[:_MAX_BYTES]


def _largest_possible(message: str, size: int) -> int | None:
    """sentencepiece says of a text too small: "... Please set it to a value <= 123." """
    head, _, tail = message.partition("value <= ")
    digits = tail.split(".")[0].strip()
    return int(digits) if head and digits.isdigit() and int(digits) < size else None

"""Summarization: a short text, such as a title or a subject line, for a longer one."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import decoding
from rheme.errors import InputError
from rheme.models.pointer_generator import PointerGenerator, PointerGeneratorConfig
from rheme.tasks import Task
from rheme.text import batches, readers
from rheme.text.casing import sentence_case, word_forms
from rheme.text.tokenizer import Tokenizer

log = logging.getLogger("rheme")

Item = tuple[NDArray[np.int32], NDArray[np.int32]]  # the document's pieces, the summary's

_TOKENIZER_CHARACTERS = 16_000_000  # of text to learn the tokenizer from
_FORMS_CHARACTERS = 40_000_000  # of text to learn from where words have capitals


class SummarizationConfig(msgspec.Struct, kw_only=True):
    """vocab_size: pieces. max_source_length: of a document so many pieces are read in training (the first ones).

    max_train_length: pairs with a longer summary (in pieces) are left out of training. sentence_case: learn summaries with each
    word as it stands inside a sentence. Set by training: capitalized, whether summaries begin with a capital.
    """

    languages: list[str] = msgspec.field(default_factory=lambda: ["en"])
    vocab_size: int = 8000
    normalization: str = "nmt_nfkc"
    max_source_length: int = 160
    max_train_length: int = 60
    sentence_case: bool = True
    capitalized: bool = False
    model: PointerGeneratorConfig = msgspec.field(default_factory=PointerGeneratorConfig)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_source_length", "max_train_length"):
            if getattr(self, name) < 4:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 4")


class Summarization(Task):
    """Write a short text for a longer one, in the style of the summaries it was trained on."""

    name: ClassVar[str] = "summarization"
    Config: ClassVar[type[msgspec.Struct]] = SummarizationConfig
    fields: ClassVar[tuple[str, ...]] = ("document", "summary")
    sides: ClassVar[int] = 2
    pipeline_tag: ClassVar[str] = "summarization"
    pipeline_key: ClassVar[str] = "summary_text"

    config: SummarizationConfig
    model: PointerGenerator
    tokenizer: Tokenizer

    def __init__(self, config: SummarizationConfig | None = None) -> None:
        super().__init__(config)
        self.options = {"num_beams": 4, "max_new_tokens": 64}

    # Data ------------------------------------------------------------------------------------------------------------------

    def read(self, paths: Any, fields: Sequence[str] | None = None) -> list[tuple[str, str]]:
        """Pairs (document, summary), each once. fields: columns or keys of the two, such as abstract,title."""
        if fields is not None and len(fields) != 2:
            raise InputError(f"summarization reads two fields, the document and its summary, not {len(fields)}")
        rows = readers.read_records(paths, fields or self.fields, given=fields is not None)
        return list(dict.fromkeys(rows))  # type: ignore[arg-type]

    def setup(self, examples: Sequence[tuple[str, str]]) -> None:
        """Train the tokenizer on documents and summaries, then build the model."""
        capital = sum(summary[:1].isupper() for _, summary in examples)
        self.config.capitalized = 2 * capital > len(examples)
        some = _some(examples, _TOKENIZER_CHARACTERS)
        lines = [text for pair in zip((document for document, _ in some), self._summaries(some), strict=True) for text in pair]
        self.tokenizer = Tokenizer.train(lines, self.config.vocab_size, normalization=self.config.normalization)
        self.build()

    def build(self) -> None:
        """The model, with as many pieces as the tokenizer has."""
        ids = {"vocab_size": len(self.tokenizer), "pad_id": self.tokenizer.pad_id}
        ids |= {"bos_id": self.tokenizer.bos_id, "eos_id": self.tokenizer.eos_id}
        self.config.model = msgspec.structs.replace(self.config.model, **ids)
        self._constraints = decoding.Constraints(forbid=self.tokenizer.unwritable)
        self.model = PointerGenerator(self.config.model)

    def _summaries(self, examples: Sequence[tuple[str, str]]) -> list[str]:
        """The summaries as they are learned."""
        if not self.config.sentence_case:
            return [summary for _, summary in examples]
        forms = word_forms(document for document, _ in _some(examples, _FORMS_CHARACTERS))
        return [sentence_case(summary, document, forms) for document, summary in examples]

    def encode(self, example: tuple[str, str]) -> list[Item]:
        """The item of one pair (none where its summary is too long)."""
        return self.encode_all([example])

    def encode_all(self, examples: Sequence[tuple[str, str]]) -> list[Item]:
        """Pairs whose summary has 1 to max_train_length pieces; documents are cut at max_source_length."""
        longest, limit = self.config.max_source_length, self.config.max_train_length
        # a piece of a usual text has four characters; cutting well above that keeps long documents from costing time
        documents = [document[: 16 * longest] for document, _ in examples]
        sources = [np.array(ids[:longest], np.int32) for ids in self.tokenizer.encode(documents)]
        targets = [np.array(ids, np.int32) for ids in self.tokenizer.encode(self._summaries(examples))]
        items = [(s, t) for s, t in zip(sources, targets, strict=True) if len(s) and 0 < len(t) <= limit]
        if len(items) < len(examples):
            left = len(examples) - len(items)
            log.warning(
                "%d of %d pairs left out: a side is empty or the summary longer than %d pieces", left, len(examples), limit
            )
        return items

    def size(self, item: Item) -> int:
        """Pieces of the document and the summary, with its end."""
        return len(item[0]) + len(item[1]) + 1

    def loss(self, items: Sequence[Item], step_seed: int) -> tuple[Any, int, dict[str, float]]:
        """Summed cross-entropy of the summaries' pieces and their ends."""
        bos, eos, pad = [self.tokenizer.bos_id], [self.tokenizer.eos_id], self.tokenizer.pad_id
        source, lengths = batches.pad([np.asarray(document, np.int64) for document, _ in items], pad)
        target_in, _ = batches.pad([np.concatenate((bos, ids)) for _, ids in items], pad)
        target_out, _ = batches.pad([np.concatenate((ids, eos)) for _, ids in items], -1)
        return self.model.loss(source, lengths, target_in, target_out, seed=step_seed)


def _some(examples: Sequence[tuple[str, str]], characters: int) -> list[tuple[str, str]]:
    """Every n-th example, so many that they have about that many characters in all."""
    total = sum(len(document) for document, _ in examples)
    return list(examples[:: max(1, -(-total // characters))])

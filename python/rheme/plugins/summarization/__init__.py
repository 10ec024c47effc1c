"""Summarization: a short text, such as a title or a subject line, for a longer one."""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import decoding, metrics
from rheme.decoding.constraints import Forbidden
from rheme.errors import InputError
from rheme.models.pointer_generator import PointerGenerator, PointerGeneratorConfig
from rheme.plugins.summarization.extraction import Sentence, find_sentences, fitting, rank
from rheme.plugins.summarization.numbers import Digits, FaithfulNumbers, numbers_of
from rheme.plugins.summarization.picture import draw
from rheme.plugins.summarization.words import WordLimit, count_words, cut_words
from rheme.tasks import Result, Task, nearest
from rheme.text import batches, readers
from rheme.text.casing import capitalize, sentence_case, word_forms
from rheme.text.language import identify
from rheme.text.tokenizer import Tokenizer
from rheme.text.words import plain_words

log = logging.getLogger("rheme")

Item = tuple[NDArray[np.int32], NDArray[np.int32]]  # the document's pieces, the summary's

_TOKENIZER_CHARACTERS = 16_000_000  # of text to learn the tokenizer from
_FORMS_CHARACTERS = 40_000_000  # of text to learn from where words have capitals
_BATCH_TOKENS, _BATCH_ROWS = 4096, 32  # of one decoding batch: source pieces, documents
_SHORT = 5  # a text of so many words is its own summary
_LOW = 0.15  # a confidence below which a summary is doubtful


class SummarizationConfig(msgspec.Struct, kw_only=True):
    """vocab_size: pieces. max_source_length: of a document so many pieces are read in training (the first ones).

    max_input_length: so many are read in use; of a longer document the sentences that say most. max_train_length: pairs with a
    longer summary (in pieces) are left out of training. sentence_case: learn summaries with each word as it stands inside a
    sentence. Set by training: capitalized, whether summaries begin with a capital.
    """

    languages: list[str] = msgspec.field(default_factory=lambda: ["en"])
    vocab_size: int = 8000
    normalization: str = "nmt_nfkc"
    max_source_length: int = 160
    max_input_length: int = 320
    max_train_length: int = 60
    sentence_case: bool = True
    capitalized: bool = False
    model: PointerGeneratorConfig = msgspec.field(default_factory=PointerGeneratorConfig)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_source_length", "max_input_length", "max_train_length"):
            if getattr(self, name) < 4:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 4")


@dataclass(frozen=True)
class _Document:
    """What is read of an input: ids, none where `text` itself is the answer.

    foreign: much of it has no pieces of its own. read: the offsets of the sentences read, where they are not all of it.
    """

    ids: list[int]
    text: str
    foreign: bool = False
    read: list[tuple[int, int]] = field(default_factory=list)


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
        """Pairs (document, summary). fields: columns or keys of the two, such as abstract,title."""
        if fields is not None and len(fields) != 2:
            raise InputError(f"summarization reads two fields, the document and its summary, not {len(fields)}")
        return readers.read_records(paths, fields or self.fields, given=fields is not None)  # type: ignore[return-value]

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
        self._unwritable, self._digits = self.tokenizer.unwritable, Digits(self.tokenizer.surfaces)
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
        bos, eos, pad = self.tokenizer.bos_id, self.tokenizer.eos_id, self.tokenizer.pad_id
        source, lengths = batches.pad([np.asarray(document, np.int64) for document, _ in items], pad)
        target_in, target_out, _ = batches.shifted([ids for _, ids in items], bos, eos, pad)
        return self.model.loss(source, lengths, target_in, target_out, seed=step_seed)

    # Use -------------------------------------------------------------------------------------------------------------------

    def answer(
        self, inputs: Sequence[str], max_words: int | None = None, extract: int | None = None, **options: Any
    ) -> list[Result]:
        """Summaries, in order.

        max_words: no longer than that (a Chinese or Japanese character counts as a word). extract: instead of writing, choose
        so many sentences of the document; max_words and forbid hold for them, too. options: of decoding (num_beams, forbid,
        require, coverage_penalty, ...). InputError where no summary is found that holds what require and prefix ask for.

        A text of a few words is its own summary; of one in another language, or mostly of characters unknown to the model, the
        first sentence without a forbidden phrase is returned. `extra` has "read", the offsets of the sentences that were read
        of a document too long to be read whole, or with extract "sentences", those chosen.
        """
        for text in inputs:
            if not isinstance(text, str):
                raise InputError(f"a text to summarize must be a str, not {type(text).__name__}")
        known = ("max_words", "extract", *decoding.GenerationOptions.__struct_fields__)
        for name in options:
            if name not in known:
                raise InputError(f"unknown option {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
        merged = {"coverage": "once"} | self.options | options
        defaults = merged.pop("max_words", None), merged.pop("extract", None)
        max_words = _whole("max_words", defaults[0] if max_words is None else max_words)
        extract = _whole("extract", defaults[1] if extract is None else extract)
        if extract is not None:
            unfit = [name for name in merged if name in ("require", "prefix") or (name in options and name != "forbid")]
            if unfit:
                raise InputError(f"extract takes sentences as they stand: leave {', '.join(unfit)} out")
        settings = decoding.GenerationOptions.parse(merged)
        settings.check_sampling()
        if extract is not None:
            return [self._extracted(text, extract, max_words, settings) for text in inputs]
        documents = [self._document(text, settings) for text in inputs]
        constraints = decoding.Constraints.of_texts(settings, self.tokenizer, 1, forbid=self._unwritable)
        constraints = replace(constraints, repeatable=self._digits.repeatable)
        limit = None if max_words is None else WordLimit(max_words, settings.forbid, self.tokenizer)
        faithful = FaithfulNumbers(self.model.captured(), self._digits)
        wanted = {number for text in self._as_written(*settings.require, settings.prefix) for number in numbers_of(text)}
        unwanted = set(self._as_written(*settings.forbid))  # of a longer phrase the numbers may stand elsewhere
        jobs = [i for i, document in enumerate(documents) if document.ids]
        found: dict[int, list[decoding.Hypothesis]] = {}
        together = _BATCH_ROWS if limit is None else 1  # the limit knows the document
        for batch in batches.length_batches([len(documents[i].ids) for i in jobs], _BATCH_TOKENS, together):
            source, lengths = batches.pad([documents[jobs[k]].ids for k in batch], self.tokenizer.pad_id)
            state = self.model.start(self.model.encode(source, lengths))
            bos, eos, rows = self.tokenizer.bos_id, self.tokenizer.eos_id, constraints.of_rows([0] * len(batch))
            if limit is not None:
                rows = replace(rows, phrases=limit.within(documents[jobs[batch[0]]].ids))
            texts = self.tokenizer.decode([documents[jobs[k]].ids for k in batch])
            numbers = [numbers_of(text) - unwanted | wanted for text in texts]
            answers = decoding.generate(faithful, faithful.start(state, numbers), len(batch), settings, bos, eos, rows)
            for k, hypotheses in zip(batch, answers, strict=True):
                found[jobs[k]] = hypotheses
        return [self._result(document, found.get(i, []), max_words, settings) for i, document in enumerate(documents)]

    def _document(self, text: str, settings: decoding.GenerationOptions) -> _Document:
        """What the model reads of a text: all of it, or of a long one the sentences that say most."""
        limit = self.config.max_input_length
        body = text.strip()
        start, whole = body[: 16 * limit], len(body) <= 16 * limit
        ids = self._pieces([start])[0]
        foreign = sum(self.tokenizer.is_byte(index) for index in ids)
        language = identify(start) if count_words(start) > 2 * _SHORT else None  # a few words may mislead
        empty = not ids and (whole or not self._pieces([body])[0])
        if empty or 2 * foreign > len(ids) or language not in (None, *self.config.languages):
            if body and (settings.require or settings.prefix):
                raise InputError(
                    f"{body[:40]!r} is in no language of this model ({', '.join(self.config.languages)}): a sentence "
                    "of it is taken as it stands; leave require and prefix out"
                )
            sentences = find_sentences(start, self._pieces) or [Sentence(body, 0, len(body), [])]
            permitted = self._permitted(sentences, settings)
            return _Document([], permitted[0].text if permitted else "", foreign=bool(body))
        domain = 8 * foreign <= len(ids)
        short = whole and count_words(start) <= _SHORT and len(ids) <= 8 * _SHORT
        if short and not (settings.forbid or settings.require or settings.prefix):
            return _Document([], " ".join(text.split()), foreign=not domain)
        if whole and len(ids) <= limit:
            return _Document(ids, text, foreign=not domain)
        sentences = find_sentences(text, self._pieces)
        order = rank(self.model, [sentence.ids for sentence in sentences], limit)
        chosen = fitting(order, [min(len(s.ids), limit) for s in sentences], len(sentences), limit)
        ids = [index for i in chosen for index in sentences[i].ids[:limit]]
        return _Document(ids, text, foreign=not domain, read=[(sentences[i].start, sentences[i].end) for i in chosen])

    def _as_written(self, *texts: str) -> list[str]:
        """Texts as the tokenizer's pieces write them (normalised: CO₂ is CO2)."""
        return self.tokenizer.decode(self.tokenizer.encode(texts))

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The pieces of texts, without symbols (such as emoji) that the tokenizer does not know."""
        known = self.tokenizer.characters
        plain = ["".join(c for c in text if c in known or unicodedata.category(c) != "So") for text in texts]
        return self.tokenizer.encode(plain)

    def _permitted(self, sentences: list[Sentence], settings: decoding.GenerationOptions) -> list[Sentence]:
        """Those that hold no forbidden phrase."""
        if not settings.forbid:
            return sentences
        forbidden = Forbidden(settings.forbid, self.tokenizer)
        return [sentence for sentence in sentences if not forbidden.stands_in(sentence.text)]

    def _extracted(self, text: str, count: int, max_words: int | None, settings: decoding.GenerationOptions) -> Result:
        """The `count` sentences that say most, in their order; none that holds a forbidden phrase."""
        sentences = self._permitted(find_sentences(text, self._pieces), settings)
        if not sentences:
            return Result("", extra={"sentences": []})
        order = rank(self.model, [sentence.ids for sentence in sentences], self.config.max_input_length)
        chosen = fitting(order, [count_words(sentence.text) for sentence in sentences], count, max_words)
        whole = " ".join(" ".join(sentences[i].text.split()) for i in chosen)
        summary = cut_words(whole, max_words)
        spans = [{"text": sentences[i].text, "start": sentences[i].start, "end": sentences[i].end} for i in chosen]
        return Result(summary, warnings=("truncated",) if summary != whole else (), extra={"sentences": spans})

    def _result(
        self,
        document: _Document,
        found: list[decoding.Hypothesis],
        max_words: int | None,
        settings: decoding.GenerationOptions,
    ) -> Result:
        extra = {"read": [list(span) for span in document.read]} if document.read else {}
        texts = self.tokenizer.decode([hypothesis.ids for hypothesis in found])
        if self.config.capitalized and not settings.prefix:
            texts = [capitalize(text) for text in texts]
        written = [(cut_words(text, max_words), hypothesis) for text, hypothesis in zip(texts, found, strict=True)]
        if settings.require or settings.prefix:  # which may stand in what is cut off
            written = [pair for pair, text in zip(written, texts, strict=True) if pair[0] == text]
        if not settings.do_sample:  # of those of a search that became equal, the best one
            kept: dict[str, decoding.Hypothesis] = {}
            for text, hypothesis in written:
                kept.setdefault(text, hypothesis)
            written = list(kept.items())
        asked = [name for name in ("require", "prefix", "forbid") if getattr(settings, name)]
        if document.ids and asked and not written:
            limits = f"max_words = {max_words}, max_new_tokens = {settings.max_new_tokens}"
            raise InputError(f"no summary found that keeps to {', '.join(asked)} within {limits}: ask for less, or allow more")
        if not written:
            text = cut_words(document.text, max_words)
            given = [("out_of_domain", document.foreign), ("truncated", text != document.text)]
            return Result(text, warnings=tuple(name for name, is_so in given if is_so))
        (first, best), *others = written
        warnings = (
            ("repetition", best.repeating),
            ("length_ratio", count_words(first) > count_words(document.text)),
            ("out_of_domain", document.foreign),
            ("truncated", not (best.finished or best.repeating)),
            ("low_confidence", best.confidence < _LOW),
        )
        alternatives = tuple(Result(text, h.confidence) for text, h in others)
        return Result(first, best.confidence, alternatives, tuple(name for name, is_so in warnings if is_so), extra)

    def pipe(
        self,
        inputs: Any,
        *,
        max_length: int | None = None,
        min_length: int | None = None,
        truncation: Any = None,
        clean_up_tokenization_spaces: Any = None,
        **options: Any,
    ) -> Any:
        """As transformers' pipeline: ``[{"summary_text": ...}]``, for one text or a list of them.

        max_length, min_length: of a summary, in pieces (our names for them: max_new_tokens, min_new_tokens). truncation
        and clean_up_tokenization_spaces change nothing: of a long text the sentences that say most are read.
        """
        lengths = {"max_new_tokens": max_length, "min_new_tokens": min_length}
        return super().pipe(inputs, **{name: value for name, value in lengths.items() if value is not None} | options)

    # Measuring -------------------------------------------------------------------------------------------------------------

    def evaluate(
        self, examples: Sequence[tuple[str, str]], plot: str | Path | None = None, **options: Any
    ) -> dict[str, float | str]:
        """ROUGE-1, 2 and L (F1, words in lower case) against the examples' summaries; for English also with stemmed words.

        rouge1 is without stemming (rouge_score's default), rouge1_stemmed with Porter's stemmer (ROUGE-1.5.5 with option -m,
        which pyrouge always gives, so that much published work is stemmed): compare figures of one kind only.
        Beside it that of the document's first sentence (lead), of its first words, as many as a summary has on average
        (lead_words), and of the one sentence that says most (extract). In English words are runs of a-z and 0-9, as published,
        in Chinese and Japanese all characters, elsewhere `text.words.plain_words`.
        plot: a picture file of how good the summaries are, the surest first, beside those.
        """
        documents = [document for document, _ in examples]
        references = [[summary] for _, summary in examples]
        length = round(sum(count_words(summary) for _, summary in examples) / max(len(examples), 1))
        first = [next((s.text for s in find_sentences(text, self._pieces)), "") for text in documents]
        results = self.answer(documents, **options)
        answers = {
            "": [result.text for result in results],
            "lead_": first,
            "lead_words_": [cut_words(text, max(length, 1)) for text in documents],
            "extract_": [result.text for result in self.answer(documents, extract=1)],
        }
        sole = not {"zh", "ja"}.isdisjoint(self.config.languages)
        english = self.config.languages == ["en"]
        words = (lambda text: [c for c in text if not c.isspace()]) if sole else metrics.rouge_words if english else plain_words
        cuts = {"": words} | ({"_stemmed": metrics.rouge_stems} if english else {})
        figures: dict[str, float | str] = {"pairs": len(examples)}
        for prefix, texts in answers.items():
            for suffix, cut in cuts.items():
                found = metrics.rouge(texts, references, cut)
                figures |= {prefix + name + suffix: value for name, value in found.items()}
        if plot is not None:
            rouge = {
                prefix.rstrip("_").replace("_", " ") or "the model": [
                    metrics.rouge([text], [wanted], words)["rougeL"] for text, wanted in zip(texts, references, strict=True)
                ]
                for prefix, texts in answers.items()
            }
            draw(plot, [result.score for result in results], rouge)
        return figures


def _whole(name: str, value: Any) -> int | None:
    """A number of words or sentences, from Python or as a string of --set."""
    if value is None:
        return None
    try:
        number = int(value)
        is_whole = number == float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: of infinity, or of an int beyond all floats
        is_whole = False
    if not is_whole or number < 1:
        raise InputError(f"{name} = {value}: must be a whole number of at least 1")
    return number


def _some(examples: Sequence[tuple[str, str]], characters: int) -> list[tuple[str, str]]:
    """Every n-th example, so many that they have about that many characters in all."""
    total = sum(len(document) for document, _ in examples)
    return list(examples[:: max(1, -(-total // characters))])

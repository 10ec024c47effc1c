"""Question answering: the span of a context that answers a question, or none.

A context of any length is read in overlapping windows, each once for all of its questions. The model's scores are made to be
comparable between windows and contexts: in training, some questions get a passage without their answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import metrics, ops
from rheme.errors import InputError
from rheme.models.span_reader import SpanReader, SpanReaderConfig
from rheme.plugins.question_answering import picture
from rheme.plugins.question_answering.lexicon import FEATURES, Lexicon
from rheme.plugins.question_answering.windows import Asked, Window, batch_of, split, words_of
from rheme.storage import write_json
from rheme.tasks import Result, Task, configure, nearest
from rheme.text import batches
from rheme.text.squad import QuestionExample, read_questions, squad_json
from rheme.text.vectors import read_vectors
from rheme.text.vocabulary import Vocabulary
from rheme.text.words import UNSPACED, find_words

Ids = NDArray[np.int64]

_MAX_RIGHT = 8  # places of an answer that training takes for right
_BATCH_WORDS, _BATCH_QUESTIONS = 1024, 8  # of one batch of answering: padded words of windows; questions of one window
_CANDIDATES = 24  # spans of each window that alternatives are picked from
_LOW = 0.2  # a score below it is told as low_confidence
_UNUSED = ("doc_stride", "max_seq_len", "max_question_len", "padding", "align_to_words")  # of transformers' pipeline
_NEGATIVE_STREAM = 1 << 42  # Philox stream of the choice of passages without the answer


class QuestionAnsweringConfig(msgspec.Struct, kw_only=True):
    """languages: for the card. vocab_size: words with a vector of their own; min_count: how often training must see one.

    window: words read at once; a longer context is read in windows that overlap by half (by more where model.max_span is above
    half of it). max_questions: of one passage trained on together. negatives: share of the questions that are also asked of
    another passage of the same article. vectors: a text file of word vectors to begin with (a word and model.word_size numbers
    a line).
    """

    languages: list[str] = msgspec.field(default_factory=lambda: ["en"])
    vocab_size: int = 16000
    min_count: int = 3
    window: int = 320
    max_questions: int = 5
    negatives: float = 0.15
    vectors: str = ""
    model: SpanReaderConfig = msgspec.field(default_factory=SpanReaderConfig)

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 4), ("min_count", 1), ("window", 32), ("max_questions", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least {least}")
        if not 0 <= self.negatives <= 1:
            raise InputError(f"negatives = {self.negatives}: must be from 0 to 1")
        if self.model.max_span >= self.window:
            raise InputError(f"model.max_span = {self.model.max_span}: must be below window = {self.window}")


class AnswerOptions(msgspec.Struct, kw_only=True):
    """The options of an answer; see `QuestionAnswering.answer`."""

    top_k: int = 1
    no_answer_threshold: float = 0.0
    max_answer_words: int | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} = {value}: must be at least 1")
        if not 0 <= self.no_answer_threshold <= 1:
            raise InputError(f"no_answer_threshold = {self.no_answer_threshold}: must be from 0 to 1")


@dataclass(frozen=True)
class _Span:
    """A candidate: the model's score, which context, and its characters there."""

    logit: Any  # a float32 scalar
    document: int
    start: int
    end: int

    def overlaps(self, other: "_Span") -> bool:
        return self.document == other.document and self.start < other.end and other.start < self.end


class QuestionAnswering(Task):
    """Find the answer to a question in a context."""

    name: ClassVar[str] = "question-answering"
    Config: ClassVar[type[msgspec.Struct]] = QuestionAnsweringConfig
    fields: ClassVar[tuple[str, ...]] = ("question", "context", "answer")
    suffix: ClassVar[str] = ".json"
    pipeline_tag: ClassVar[str] = "question-answering"
    pipeline_key: ClassVar[str] = "answer"

    config: QuestionAnsweringConfig
    model: SpanReader
    tokenizer: Vocabulary

    # Data ------------------------------------------------------------------------------------------------------------------

    def read(self, paths: Any, fields: Sequence[str] | None = None) -> list[QuestionExample]:
        """Examples of SQuAD JSON, or rows question, context, answer of JSON lines or TSV. Split by article."""
        return read_questions(paths, fields)

    def write_examples(self, path: Path, examples: Sequence[QuestionExample]) -> None:
        write_json(path, squad_json(examples))

    @classmethod
    def samples(cls) -> list[QuestionExample]:
        """Who keeps what where: two questions a context."""
        found: list[QuestionExample] = []
        for number, who in enumerate(("Anna", "Boris", "Chen", "Dana", "Emil", "Farid")):
            for what, where in (("a boat", "the harbour"), ("two goats", "a small barn"), ("old maps", "the attic")):
                context = f"{who} keeps {what} in {where}. Nobody else has been there for {number + 2} years."
                for question, answer in ((f"What does {who} keep?", what), (f"Where does {who} keep {what}?", where)):
                    answers = ((answer, context.index(answer)),)
                    found.append(QuestionExample(context, question, context, answers, str(len(found))))
        return found

    def inputs(self, examples: Sequence[QuestionExample]) -> list[tuple[str, str]]:
        """(question, context)."""
        return [(example.question, example.context) for example in examples]

    def setup(self, examples: Sequence[QuestionExample]) -> None:
        """Take the most frequent words of contexts and questions as the vocabulary, then build the model."""
        texts = [*dict.fromkeys(example.context for example in examples), *(example.question for example in examples)]
        lines = (" ".join(find_words(text.lower().replace("’", "'"))[0]) for text in texts)
        self.tokenizer = Vocabulary.train(lines, self.config.vocab_size, self.config.min_count)
        self.build()
        if self.config.vectors:
            ids = {word: index for index, word in enumerate(self.tokenizer.words)}
            rows, vectors = read_vectors(self.config.vectors, ids, self.config.model.word_size)
            self.model.words.weight.data[rows] = vectors
            self.config.vectors = ""  # the model holds them now; the path means nothing elsewhere

    def build(self) -> None:
        """The model, with as many words as the vocabulary has."""
        sizes = {"vocab_size": len(self.tokenizer), "features": FEATURES}
        self.config.model = msgspec.structs.replace(self.config.model, **sizes)
        self.model = SpanReader(self.config.model)
        self.lexicon = Lexicon(self.tokenizer)

    def read_tokenizer(self, data: bytes) -> Vocabulary:
        return Vocabulary.load(data)

    def encode(self, example: QuestionExample) -> Window:
        """The window of one example that holds its answer."""
        return self.encode_all([example])[0]

    def encode_all(self, examples: Sequence[QuestionExample]) -> list[Window]:
        """Windows with up to max_questions questions each. Left out: answers too long, or nowhere whole."""
        by_context: dict[str, list[QuestionExample]] = {}
        by_article: dict[str, dict[str, None]] = {}
        for example in examples:
            by_context.setdefault(example.context, []).append(example)
            by_article.setdefault(example.article, {})[example.context] = None
        encoded = {context: words_of(context, self.lexicon) for context in by_context}
        questions: dict[tuple[str, int], list[tuple[NDArray[np.int32], Ids]]] = {}
        bits = ops.random_bits(0, _NEGATIVE_STREAM, 0, max(len(examples), 1))
        limit = int(self.config.negatives * 2**32)
        number = 0
        for context, asked in by_context.items():
            ids, places = encoded[context]
            for example in asked:
                words = self.lexicon.ids(find_words(example.question)[0])
                if not len(words) or not len(ids):
                    continue
                spans = self._spans(example.answers, context, places)
                window = self._window_of(spans, len(ids)) if len(spans) or not example.answers else None
                if window is not None:
                    start, stop = window
                    inside = (spans[:, 0] >= start) & (spans[:, 1] < stop)
                    questions.setdefault((context, start), []).append((words, spans[inside][:_MAX_RIGHT] - start))
                draw = int(bits[number])
                number += 1
                others = [other for other in by_article[example.article] if other != context]
                if draw >> 32 < limit and others and example.answers:
                    other = others[(draw & 0xFFFFFFFF) % len(others)]
                    if not any(text.lower() in other.lower() for text, _ in example.answers) and len(encoded[other][0]):
                        questions.setdefault((other, 0), []).append((words, np.zeros((0, 2), np.int64)))
        groups, most = [], self.config.max_questions
        for (context, start), rows in questions.items():
            passage = encoded[context][0][start : start + self.config.window]
            made = [Asked(words, self.lexicon.features(words, passage), spans) for words, spans in rows]
            parts = -(-len(made) // most)
            groups += [Window(passage, made[part::parts], (0, len(passage))) for part in range(parts)]
        return groups

    def _split(self, length: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        return split(length, self.config.window, self.config.model.max_span)

    def _window_of(self, spans: Ids, length: int) -> tuple[int, int] | None:
        """The first window that holds a right span whole; the first of all where there is no answer."""
        windows = [window for window, _ in self._split(length)]
        if not len(spans):
            return windows[0]
        for start, stop in windows:
            fits = (spans[:, 0] >= start) & (spans[:, 1] < stop) & (spans[:, 1] - spans[:, 0] < self.config.model.max_span)
            if fits.any():
                return start, stop
        return None

    def _spans(self, answers: Sequence[tuple[str, int]], context: str, places: Ids) -> Ids:
        """First and last word of each place of each answer, those that the references give first.

        Other places of the same text count as right, too, where they are whole words.
        """
        begins, ends = places[:, 0], places[:, 1]
        found: dict[tuple[int, int], None] = {}
        for text, given in dict.fromkeys(answer for answer in answers if answer[1] >= 0):
            first = int(np.searchsorted(ends, given, "right"))
            last = int(np.searchsorted(begins, given + len(text), "left")) - 1
            if first <= last:
                found[first, last] = None
        for text in dict.fromkeys(text for text, _ in answers):
            start = context.find(text)
            while start >= 0 and len(found) < 4 * _MAX_RIGHT:
                first, last = int(np.searchsorted(begins, start)), int(np.searchsorted(ends, start + len(text)))
                if first < len(begins) and last < len(ends) and begins[first] == start and ends[last] == start + len(text):
                    found[first, last] = None
                start = context.find(text, start + 1)
        most = self.config.model.max_span
        return np.array([span for span in found if span[1] - span[0] < most], np.int64).reshape(-1, 2)

    # Training --------------------------------------------------------------------------------------------------------------

    def size(self, item: Window) -> int:
        return len(item.passage)

    def loss(self, items: Sequence[Window], step_seed: int) -> tuple[Any, int, dict[str, float]]:
        """Summed negative log-likelihood of the right spans of the questions."""
        batch = batch_of(items, self.lexicon)
        spans = [asked.spans for group in items for asked in group.asked]
        counts = np.array([len(found) for found in spans], np.int64)
        right = np.zeros((len(spans), max(int(counts.max(initial=0)), 1), 2), np.int64)
        for row, found in zip(right, spans, strict=True):
            row[: len(found)] = found
        return self.model.loss(batch, right, counts, seed=step_seed)

    # Use -------------------------------------------------------------------------------------------------------------------

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """One (question, context) or mapping -> a Result; a list of them -> a list of Results."""
        return self.answer(inputs, **options) if isinstance(inputs, list) else self.answer([inputs], **options)[0]

    def answer(
        self,
        inputs: Sequence[Any],
        top_k: int | None = None,
        no_answer_threshold: float | None = None,
        max_answer_words: int | None = None,
        **unknown: Any,
    ) -> list[Result]:
        """Answers, in order. An input: (question, context) or a mapping with these keys; the context is a text or several.

        top_k: answers given, by default one, the others as alternatives (none overlaps another). no_answer_threshold: no answer
        (an empty text) where the probability that there is one is below it; 0: always answer; None: as calibrated on the
        validation examples. max_answer_words: of the longest answer.

        A Result's score is the probability of its span among all spans of all contexts and "no answer", that of no answer
        1 - answerable. extra holds start and end in characters of the context, context (its number) and answerable: the
        probability that there is an answer as the surest window has it by itself, which is what the threshold is calibrated
        for. The two do not add up: a refusal may have a lower score than its alternatives.
        """
        given = {"top_k": top_k, "no_answer_threshold": no_answer_threshold, "max_answer_words": max_answer_words}
        merged = self.options | {name: value for name, value in given.items() if value is not None} | unknown
        settings: AnswerOptions = configure(AnswerOptions, merged, "options")
        asked = [_question(given) for given in inputs]
        lexicon = Lexicon(self.tokenizer)
        read = {context: find_words(context) for _, contexts in asked for context in contexts}
        spans, odds = self._candidates(asked, read, settings.top_k, settings.max_answer_words, lexicon)
        strange = {context: lexicon.strange(words) for context, (words, _) in read.items()}
        results = []
        for (_, contexts), found, log_odds in zip(asked, spans, odds, strict=True):
            result = self._result(contexts, found, log_odds, settings.top_k, settings.no_answer_threshold)
            if any(strange[context] for context in contexts):
                result = replace(result, warnings=("out_of_domain", *result.warnings))
            results.append(result)
        return results

    def _candidates(
        self,
        asked: Sequence[tuple[str, list[str]]],
        read: Mapping[str, tuple[list[str], Ids]],
        top_k: int,
        max_words: int | None,
        lexicon: Lexicon,
    ) -> tuple[list[list[_Span]], list[list[Any]]]:
        """For each question its best spans of each window of its contexts, and each window's log-odds of an answer.

        read: the words of each context and their places, as `find_words` gives them.
        """
        by_context: dict[str, dict[int, list[int]]] = {}  # context -> question -> under which numbers it has this context
        for row, (_, contexts) in enumerate(asked):
            for document, context in enumerate(contexts):
                by_context.setdefault(context, {}).setdefault(row, []).append(document)
        questions = [lexicon.ids(find_words(question)[0]) for question, _ in asked]
        groups: list[Window] = []
        origin: list[tuple[Ids, int, list[tuple[int, int]]]] = []  # places of the words, the window's first, (row, document)
        for context, rows in by_context.items():
            words_read, places = read[context]
            ids = lexicon.ids(words_read)
            pairs = [(row, documents[0]) for row, documents in rows.items() if len(questions[row])]
            if not len(ids):
                continue
            for (start, stop), starts in self._split(len(ids)):
                for first in range(0, len(pairs), _BATCH_QUESTIONS):
                    part, passage = pairs[first : first + _BATCH_QUESTIONS], ids[start:stop]
                    words = [questions[row] for row, _ in part]
                    made = [Asked(w, lexicon.features(w, passage), np.zeros((0, 2), np.int64)) for w in words]
                    groups.append(Window(passage, made, starts))
                    origin.append((places, start, part))
        spans: list[list[_Span]] = [[] for _ in asked]
        odds: list[list[Any]] = [[] for _ in asked]
        for numbers in batches.length_batches([len(group.passage) for group in groups], _BATCH_WORDS):
            scores, mask, log_odds = self.model.read(batch_of([groups[number] for number in numbers], lexicon), max_words)
            steps = scores.shape[1]
            flat = ops.reshape(scores, (len(scores), steps * steps))
            values, at = _best(flat, mask.reshape(flat.shape), 1 if top_k == 1 else _CANDIDATES * top_k)
            n = 0
            for number in numbers:
                places, begin, part = origin[number]
                for row, document in part:
                    odds[row].append(log_odds[n])
                    for value, place in zip(values[n], at[n].tolist(), strict=True):
                        if value > -np.inf:
                            first, last = divmod(place, steps)
                            start, end = int(places[begin + first, 0]), int(places[begin + last, 1])
                            spans[row].append(_Span(value, document, start, end))
                    n += 1
        return spans, odds

    def _result(self, contexts: Sequence[str], spans: list[_Span], odds: Sequence[Any], top_k: int, threshold: float) -> Result:
        spans = sorted(spans, key=lambda span: (-span.logit, span.document, span.start, span.end))
        picked: list[_Span] = []
        for span in spans:
            if len(picked) < top_k and not any(span.overlaps(other) for other in picked):
                picked.append(span)
        if not picked:
            return Result("", 0.0, extra={"start": 0, "end": 0, "context": 0, "answerable": 0.0})
        total = ops.logsumexp(
            np.array([*sorted(odds), 0], np.float32)
        )  # sorted, so that the order of the contexts is no matter
        scores = ops.exp(ops.sub(np.array([span.logit for span in picked], np.float32), total.reshape(1)))
        answerable = float(ops.sigmoid(np.array([max(odds)], np.float32))[0])
        results = [
            Result(
                contexts[span.document][span.start : span.end],
                float(score),
                warnings=("low_confidence",) if score < _LOW else (),
                extra={"start": span.start, "end": span.end, "context": span.document, "answerable": answerable},
            )
            for span, score in zip(picked, scores, strict=True)
        ]
        if answerable < threshold:
            nothing = {"start": 0, "end": 0, "context": 0, "answerable": answerable}
            doubt: tuple[str, ...] = ("low_confidence",) if 1.0 - answerable < _LOW else ()
            return Result("", 1.0 - answerable, tuple(results), doubt, nothing)
        return replace(results[0], alternatives=tuple(results[1:]))

    def pipe(
        self,
        inputs: Any = None,
        context: Any = None,
        *,
        question: Any = None,
        top_k: int = 1,
        handle_impossible_answer: bool = False,
        max_answer_len: int | None = None,
        **others: Any,
    ) -> Any:
        """As transformers' pipeline: ``{"score", "start", "end", "answer"}`` of a question; a list of them for several.

        inputs: ``{"question": ..., "context": ...}`` or a list of such; or question and context, by keyword or in this order,
        texts or lists. top_k: above 1, a list for each question. handle_impossible_answer: may give the empty answer.
        max_answer_len: in words. doc_stride, max_seq_len, max_question_len, padding and align_to_words change nothing: a text
        of any length is read whole.
        """
        for name in others:
            if name not in _UNUSED:
                known = ("question", "context", "top_k", "handle_impossible_answer", "max_answer_len", *_UNUSED)
                raise InputError(f"unknown option {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
        if context is not None and question is None:
            question, inputs = inputs, None
        if inputs is None:
            if question is None or context is None:
                raise InputError("give question= and context=")
            if isinstance(question, list):
                contexts = context if isinstance(context, list) else [context] * len(question)
                if len(contexts) != len(question):
                    raise InputError(f"{len(question)} questions, but {len(contexts)} contexts")
                inputs = list(zip(question, contexts, strict=True))
            else:
                inputs = (question, context)
        several = isinstance(inputs, list)
        threshold = None if handle_impossible_answer else 0.0
        results = self.answer(
            inputs if several else [inputs], top_k=top_k, no_answer_threshold=threshold, max_answer_words=max_answer_len
        )
        shaped = [[_record(one) for one in (result, *result.alternatives)][:top_k] for result in results]
        flat = shaped if top_k > 1 else [records[0] for records in shaped]
        return flat if several else flat[0]

    def calibrate(self, examples: Sequence[QuestionExample]) -> None:
        """Set no_answer_threshold where the mean F1 is best (a refusal counts 100 if there is no answer, else 0: SQuAD 2.0).

        Over these questions, and, unless some of them have no answer, each once more of another passage of its article.
        """
        answerable, refusals = [e for e in examples if e.answers], [e for e in examples if not e.answers]
        if not refusals:
            refusals = self.elsewhere(answerable)
        if not answerable or not refusals:
            return
        asked = [*answerable, *refusals]
        results = self.answer([(example.question, example.context) for example in asked], no_answer_threshold=0.0)
        gains = [
            metrics.answer_f1([r.text], [[t for t, _ in e.answers]], self._cut)
            for r, e in zip(results, answerable, strict=False)
        ]
        # Each side weighs half: raising the threshold past a question loses its F1, or wins a refusal.
        rows = [(r.extra["answerable"], -gain / len(gains)) for r, gain in zip(results, gains, strict=False)]
        rows += [(r.extra["answerable"], 100.0 / len(refusals)) for r in results[len(answerable) :]]
        best, total, threshold = 0.0, 0.0, 0.0
        for probability, gain in sorted(rows):
            total += gain
            if total > best:
                best, threshold = total, probability
        self.options["no_answer_threshold"] = min(1.0, (int(threshold * 1e4) + 1) / 1e4) if best else 0.0

    def elsewhere(self, examples: Sequence[QuestionExample]) -> list[QuestionExample]:
        """Each question with the next passage of its article that does not hold its answer."""
        passages: dict[str, list[str]] = {}
        for article, context in dict.fromkeys((example.article, example.context) for example in examples):
            passages.setdefault(article, []).append(context)
        found = []
        for example in examples:
            others = passages[example.article]
            at = others.index(example.context)
            for context in others[at + 1 :] + others[:at]:
                if not any(text.lower() in context.lower() for text, _ in example.answers):
                    found.append(example._replace(context=context, answers=()))
                    break
        return found

    def _cut(self, answer: str) -> list[str]:
        """The words that F1 counts: SQuAD's; where the language has no spaces, those of `find_words`, its characters."""
        return find_words(answer)[0] if not set(UNSPACED).isdisjoint(self.config.languages) else answer.split()

    def evaluate(
        self, examples: Sequence[QuestionExample], plot: str | Path | None = None, **options: Any
    ) -> dict[str, float | str]:
        """exact_match and f1 as SQuAD's scripts have them, and how many questions.

        Where all questions have an answer (SQuAD 1.1) the reader must give one. Otherwise (2.0) it may refuse, as calibrated,
        and F1 is also given for the questions with and without an answer apart. plot: a picture of how far to trust scores.
        """
        if not examples:
            raise InputError("there are no examples to evaluate on")
        answerable = [bool(example.answers) for example in examples]
        if all(answerable):
            options = {"no_answer_threshold": 0.0} | options
        results = self.answer([(example.question, example.context) for example in examples], **options)
        found = [result.text for result in results]
        wanted = [[text for text, _ in example.answers] or [""] for example in examples]
        figures: dict[str, float | str] = {
            "exact_match": metrics.exact_match(found, wanted),
            "f1": metrics.answer_f1(found, wanted, self._cut),
            "questions": len(examples),
        }
        if plot is not None:
            f1 = [metrics.answer_f1([text], [right], self._cut) for text, right in zip(found, wanted, strict=True)]
            exact = [metrics.exact_match([text], [right]) for text, right in zip(found, wanted, strict=True)]
            picture.draw(plot, [result.score for result in results], f1, exact)
        if not all(answerable):
            for name, kept in (("has_answer", True), ("no_answer", False)):
                rows = [n for n, has in enumerate(answerable) if has == kept]
                figures[f"{name}_f1"] = metrics.answer_f1([found[n] for n in rows], [wanted[n] for n in rows], self._cut)
                figures[f"{name}_questions"] = len(rows)
        return figures


def _record(result: Result) -> dict[str, Any]:
    place = {"start": result.extra["start"], "end": result.extra["end"]}
    return {"score": result.score, **place, "answer": result.text}


def _question(given: Any) -> tuple[str, list[str]]:
    """(question, contexts) of one input. InputError for anything else."""
    if isinstance(given, Mapping):
        if "question" not in given or "context" not in given:
            raise InputError(f"a question needs the keys question and context, not: {', '.join(map(str, given))}")
        question, context = given["question"], given["context"]
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        question, context = given
    else:
        raise InputError(f"give (question, context) or {{'question': ..., 'context': ...}}, not {type(given).__name__}")
    contexts = [context] if isinstance(context, str) else context
    if not isinstance(question, str) or not isinstance(contexts, (list, tuple)) or not contexts:
        raise InputError("the question must be a text, and the context a text or a list of texts")
    if not all(isinstance(text, str) for text in contexts):
        raise InputError("each context must be a text")
    return question, list(contexts)


def _best(scores: Any, mask: NDArray[np.bool_], k: int) -> tuple[Any, Ids]:
    """The k best allowed entries of each row: values (-inf where there are fewer) and positions, F and int64 (N, k)."""
    if k == 1:
        values, at = ops.max(scores, axis=1, keepdims=True, mask=mask)
        return values, at
    return ops.top_k(np.where(mask, scores, np.float32(-np.inf)), min(k, scores.shape[1]))

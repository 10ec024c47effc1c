"""Questions with a passage and answers: SQuAD's JSON (versions 1.1 and 2.0), JSON lines and TSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from rheme.errors import InputError
from rheme.text import readers


class QuestionExample(NamedTuple):
    """A question about a context. article: what examples of one source share; the context itself where none is named.

    answers: (text, start in characters) of each reference, -1 for one that does not stand in the context in these words; none
    when the context does not hold the answer.
    """

    article: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    id: str = ""


class _Answer(msgspec.Struct):
    text: str
    answer_start: int = -1


class _Question(msgspec.Struct):
    question: str
    id: str | int = ""
    answers: list[_Answer] = []
    is_impossible: bool = False


class _Paragraph(msgspec.Struct):
    context: str
    qas: list[_Question]


class _Article(msgspec.Struct):
    paragraphs: list[_Paragraph]
    title: str = ""


class _File(msgspec.Struct):
    data: list[_Article]


def read_questions(paths: readers.Paths, fields: Sequence[str] | None = None) -> list[QuestionExample]:
    """Examples of SQuAD JSON files (an object with ``data``), or rows question, context, answer of JSON lines or TSV.

    An answer is looked for in its context where the file does not say where it stands, or is wrong about it. InputError when
    more than one answer in ten does not stand in its context.
    """
    names = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not names:
        raise InputError("no file given")
    examples: list[QuestionExample] = []
    for name in names:
        if fields is None and str(name).lower().removesuffix(".gz").endswith(".json"):
            examples += _read_json(name)
            continue
        rows = readers.read_records(name, fields or ("question", "context", "answer"), given=fields is not None)
        if len(rows[0]) != 3:
            raise InputError(f"{name}: three fields are needed: the question, the context and the answer")
        for number, (question, context, answer) in enumerate(rows, 1):
            answers = _locate([_Answer(answer)], context)
            examples.append(QuestionExample(context, question, context, answers, str(number)))
    lost = [(example, text) for example in examples for text, start in example.answers if start < 0]
    total = sum(len(example.answers) for example in examples)
    if 10 * len(lost) > total:
        example, text = lost[0]
        raise InputError(
            f"{names[0]}: {len(lost)} of {total} answers do not stand in their contexts; "
            f"the first: question {example.id}, answer {text[:60]!r}"
        )
    if not examples:
        raise InputError(f"{names[0]}: no questions in it")
    return examples


def _read_json(name: str | Path) -> list[QuestionExample]:
    text = readers.read_text(name)
    try:
        file = msgspec.json.decode(text, type=_File)
    except msgspec.ValidationError as error:
        raise InputError(f"{name}: not SQuAD's JSON: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{name}: not JSON: {error}") from None
    return [
        QuestionExample(
            article.title or paragraph.context,
            question.question,
            paragraph.context,
            () if question.is_impossible else _locate(question.answers, paragraph.context),
            str(question.id),
        )
        for article in file.data
        for paragraph in article.paragraphs
        for question in paragraph.qas
    ]


def _locate(answers: Sequence[_Answer], context: str) -> tuple[tuple[str, int], ...]:
    found = []
    for answer in answers:
        text, start = answer.text, answer.answer_start
        if start < 0 or context[start : start + len(text)] != text:
            text = text.strip()
            start = context.find(text) if start < 0 else _nearest(context, text, start)
        if text:
            found.append((text, start))
    return tuple(found)


def _nearest(context: str, text: str, start: int) -> int:
    """The occurrence of the text that is nearest to `start`, or -1."""
    after = context.find(text, max(start, 0))
    before = context.rfind(text, 0, max(start, 0) + len(text))
    if before < 0 or (after >= 0 and after - start < start - before):
        return after
    return before


def squad_json(examples: Sequence[QuestionExample]) -> dict[str, Any]:
    """Examples as SQuAD's JSON (version 2.0 where a question has no answer)."""
    articles: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for number, example in enumerate(examples):
        qas = articles.setdefault(example.article, {}).setdefault(example.context, [])
        record: dict[str, Any] = {"id": example.id or str(number), "question": example.question}
        record["answers"] = [{"text": text, "answer_start": start} for text, start in example.answers]
        if not example.answers:
            record["is_impossible"] = True
        qas.append(record)
    data = [
        {"title": title, "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs.items()]}
        for title, paragraphs in articles.items()
    ]
    return {"version": "2.0" if any(not example.answers for example in examples) else "1.1", "data": data}

"""``rheme answer``."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from rheme.cli.writing import TEXT, chosen, model_options, open_task, stdin_batches
from rheme.errors import InputError


def questions_of(questions: tuple[str, ...], contexts: tuple[str, ...]) -> Iterator[list[str]]:
    """The questions of the command line, or stdin's lines for ``-``; empty lines stay, so that answers keep their places."""
    if not questions:
        raise InputError("no question given; write it after the options, or - for stdin, a question a line")
    if contexts.count("-") + questions.count("-") > 1:
        raise InputError("stdin (-) can be the context or the questions, not both, and only once")
    if questions == ("-",):
        yield from stdin_batches()
    elif "-" in questions:
        raise InputError("- stands alone: the questions are on the command line or on stdin")
    else:
        yield list(questions)


def _record(result: Any, contexts: tuple[str, ...]) -> dict[str, Any]:
    """A Result as JSON: where it stands, in which file, and the probability that there is an answer at all."""
    place = {name: result.extra[name] for name in ("start", "end", "answerable")}
    return {
        "answer": result.text,
        "score": result.score,
        **place,
        "file": contexts[result.extra["context"]] if result.text else None,
    }


@click.command("answer")
@click.argument("questions", nargs=-1, type=TEXT, metavar="QUESTION…|-")
@click.option("--context", "contexts", multiple=True, required=True, metavar="FILE|-", help="A text; may be given again.")
@click.option("--top-k", type=click.IntRange(min=1), help="Answers shown, the best first.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="No answer below this probability that there is one; 0: always.")
@click.option(
    "--set", "settings", multiple=True, type=TEXT, metavar="NAME=VALUE", help="Any other option, such as max_answer_words=5."
)
@model_options
def answer_command(
    questions: tuple[str, ...],
    contexts: tuple[str, ...],
    top_k: int | None,
    threshold: float | None,
    settings: tuple[str, ...],
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Answer questions from texts."""
    from rheme.text.readers import read_text

    options = chosen(settings, top_k=top_k, no_answer_threshold=threshold)
    rows = questions_of(questions, contexts)
    if not questions or "-" in contexts:
        rows = iter([next(rows)])
    texts = [read_text(name, line_ends=True) for name in contexts]
    for name, text in zip(contexts, texts, strict=True):
        if not text.strip():
            raise InputError(f"{name}: no text in it")
    task = open_task("question-answering", model, threads, device)
    for batch in rows:
        for question, result in zip(batch, task([(question, texts) for question in batch], **options), strict=True):
            if as_json:
                record = {"question": question, **_record(result, contexts)}
                if result.alternatives:
                    record["alternatives"] = [_record(other, contexts) for other in result.alternatives]
                click.echo(json.dumps(record | {"warnings": list(result.warnings)}, ensure_ascii=False))
                continue
            for shown in (result, *result.alternatives) if result.text else (result,):
                click.echo(" ".join(shown.text.split()))
            if questions != ("-",):
                told = (*(() if result.text else ("no answer found",)), *result.warnings)
                if told:
                    click.echo(f"rheme: warning: {', '.join(told)}", err=True)
        sys.stdout.flush()

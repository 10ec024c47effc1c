"""``rheme summarize``."""

import json
import sys
from collections.abc import Iterator

import click

from rheme.cli.writing import chosen, constraint_options, decoding_options, model_options, open_task, stdin_batches
from rheme.errors import InputError

_ROWS = 256  # documents of a file answered together


def _documents(sources: tuple[str, ...], lines: bool | None) -> Iterator[list[tuple[str, str]]]:
    """(name, text) of the documents, in batches: a file is one, or each of its lines; of stdin each line, unless told."""
    from rheme.text import readers

    for source in sources:
        if source == "-" and lines is not False:
            number = 0
            for texts in stdin_batches():
                yield [(f"-:{number + k}", text) for k, text in enumerate(texts, 1)]
                number += len(texts)
            continue
        text = readers.read_text(source)
        if not text.strip():
            raise InputError(f"{source}:1: the file is empty")
        rows = [(source, text)]
        if lines:
            rows = [(f"{source}:{k}", line) for k, line in enumerate(text.removesuffix("\n").split("\n"), 1)]
        for start in range(0, len(rows), _ROWS):
            yield rows[start : start + _ROWS]


@click.command("summarize")
@click.argument("sources", nargs=-1, metavar="FILE…|-")
@click.option("--max-words", type=click.IntRange(min=1), help="Words of a summary, at most.")
@click.option("--extract", type=click.IntRange(min=1), metavar="N", help="Choose N sentences instead of writing.")
@constraint_options
@click.option("--coverage-penalty", type=click.FloatRange(min=0), help="How much a summary loses for what it reads twice.")
@click.option("--num-return-sequences", type=click.IntRange(min=1), help="Alternatives shown with --json.")
@click.option("--lines/--whole", "lines", default=None, help="A document a line (as with -), or a file (as with FILE).")
@decoding_options
@model_options
def summarize_command(
    sources: tuple[str, ...],
    max_words: int | None,
    extract: int | None,
    forbid: tuple[str, ...],
    require: tuple[str, ...],
    coverage_penalty: float | None,
    num_return_sequences: int | None,
    lines: bool | None,
    num_beams: int | None,
    max_new_tokens: int | None,
    temperature: float | None,
    settings: tuple[str, ...],
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Summarize documents: a summary a line."""
    if not sources:
        raise InputError("no document given; name a file, or - for stdin, a document a line")
    options = chosen(
        settings,
        max_words=max_words,
        extract=extract,
        forbid=forbid or None,
        require=require or None,
        coverage_penalty=coverage_penalty,
        num_return_sequences=num_return_sequences,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    task = open_task("summarization", model, threads, device)
    for batch in _documents(sources, lines):
        for (name, _), result in zip(batch, task([text for _, text in batch], **options), strict=True):
            if as_json:
                click.echo(json.dumps({"source": name, **result.to_dict()}, ensure_ascii=False))
                continue
            click.echo(" ".join(result.text.split()))
            if result.warnings and "-" not in sources:
                click.echo(f"rheme: warning: {name}: {', '.join(result.warnings)}", err=True)
        sys.stdout.flush()

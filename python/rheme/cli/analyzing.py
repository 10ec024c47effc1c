"""``rheme analyze``."""

import json
import sys
from typing import Any

import click

from rheme.cli.writing import TEXT, inputs, model_options, open_task
from rheme.errors import InputError


@click.command("analyze")
@click.argument("texts", nargs=-1, type=TEXT, metavar="TEXT…|-")
@click.option("--similar", is_flag=True, help="How similar two texts are: give A and B, or - for stdin, A TAB B a line.")
@click.option("--neighbours", type=click.Path(), metavar="FILE", help="The lines of a file nearest to each text.")
@click.option("--n", "count", type=click.IntRange(min=1), default=5, show_default=True, help="How many neighbours.")
@click.option("--top-k", type=click.IntRange(min=0), help="Labels shown with --json.")
@click.option("--min-confidence", type=click.FloatRange(0, 1), help="Give no label below this probability.")
@model_options
def analyze_command(
    texts: tuple[str, ...],
    similar: bool,
    neighbours: str | None,
    count: int,
    top_k: int | None,
    min_confidence: float | None,
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Find sentiment, emotions, keywords and language of texts, or similar texts."""
    if similar and neighbours is not None:
        raise InputError("--similar and --neighbours exclude each other")
    if not texts:
        raise InputError("no text given; write it after the options, or - for stdin, a line a text")
    if similar and texts != ("-",) and len(texts) != 2:
        raise InputError(f"--similar compares two texts, not {len(texts)}; write both in quotation marks")
    asked = {"objective": "similarity"} if model is None and (similar or neighbours is not None) else {}
    task = open_task("semantic-analysis", model, threads, device, **asked)
    if similar:
        _compare(task, texts, as_json)
    elif neighbours is not None:
        _search(task, texts, neighbours, count, as_json)
    else:
        options = {name: value for name, value in (("top_k", top_k), ("min_confidence", min_confidence)) if value is not None}
        for batch in inputs(texts):
            for text, result in zip(batch, task(batch, **options), strict=True):
                click.echo(json.dumps({"source": text, **result.to_dict()}, ensure_ascii=False) if as_json else _line(result))
                if result.warnings and not as_json and texts != ("-",):
                    click.echo(f"rheme: warning: {', '.join(result.warnings)}", err=True)
            sys.stdout.flush()


def _line(result: Any) -> str:
    """The group, then the labels, each with its probability, the keywords and the language, divided by tabs."""
    extra = result.extra
    groups = [value for name, value in extra.items() if isinstance(value, dict) and name != "labels"]
    cells = [f"{group['label']} {group['score']:.2f}" if group["label"] else "(none)" for group in groups]
    others = [other.text for other in result.alternatives]
    labels = [f"{label} {value:.2f}" for label, value in extra["labels"].items() if label not in others]
    cells += [", ".join(labels) or result.text or "(no label)", ", ".join(extra["keywords"]), extra["language"] or "?"]
    return "\t".join(cells)


def _compare(task: Any, texts: tuple[str, ...], as_json: bool) -> None:
    number = 0
    for batch in inputs(texts) if texts == ("-",) else [["\t".join(t.replace("\t", " ") for t in texts)]]:
        pairs = []
        for line in batch:
            number += 1
            first, tab, second = line.partition("\t")
            if not tab:
                raise InputError(f"-:{number}:{len(line) + 1}: two texts divided by a tab are expected")
            pairs.append((first, second))
        for (first, second), score in zip(pairs, task.similarity(pairs), strict=True):
            row = {"text_a": first, "text_b": second, "similarity": score}
            click.echo(json.dumps(row, ensure_ascii=False) if as_json else f"{score:.3f}")


def _search(task: Any, texts: tuple[str, ...], path: str, count: int, as_json: bool) -> None:
    from rheme.text import readers

    lines = [line.strip() for line in readers.read_lines(path)]
    lines = [line for line in dict.fromkeys(lines) if line]
    if not lines:
        raise InputError(f"{path}:1: the file is empty")
    index = task.index(lines)
    for batch in inputs(texts):
        for text, found in zip(batch, index(batch, count), strict=True):
            if as_json:
                near = [{"text": lines[place], "similarity": score} for place, score in found]
                click.echo(json.dumps({"source": text, "neighbours": near}, ensure_ascii=False))
            else:
                for place, score in found:
                    click.echo(f"{score:.3f}\t{lines[place]}")
        sys.stdout.flush()

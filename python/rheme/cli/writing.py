"""``rheme translate`` and ``rheme generate``."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from rheme.errors import InputError

_ROWS = 512  # lines of stdin answered together, at most
_GIVEN = ("self", "inputs", "examples")  # arguments of a task's methods that are no options


class _Text(click.types.StringParamType):
    """Arguments and options that are text: a byte that is not UTF-8 becomes a question mark."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value).encode("utf-8", "replace").decode("utf-8")


TEXT = _Text()


threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="Threads (default: what the machine grants).")


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that runs a model."""
    for option in (
        threads_option,
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option("--json", "as_json", is_flag=True, help="A JSON object a line."),
        click.option("--model", type=click.Path(), help="A model folder instead of the bundled model."),
    ):
        command = option(command)
    return command


def decoding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of decoding that are set often, and --set for the others."""
    for option in (
        click.option("--set", "settings", multiple=True, type=TEXT, metavar="NAME=VALUE", help="Any other option of decoding."),
        click.option("--temperature", type=float, help="0: the most probable piece at each step."),
        click.option("--max-new-tokens", type=click.IntRange(min=1), help="Pieces of an answer, at most."),
        click.option("--num-beams", type=click.IntRange(min=1), help="Hypotheses kept side by side."),
    ):
        command = option(command)
    return command


def constraint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Words that a text must not hold, or must."""
    for option in (
        click.option("--require", multiple=True, type=TEXT, help="A word or phrase that must be; may be given again."),
        click.option("--forbid", multiple=True, type=TEXT, help="A word or phrase not to be written; may be given again."),
    ):
        command = option(command)
    return command


def open_task(name: str | None, model: str | None, threads: int | None, device: str, **options: Any) -> Any:
    """The task with its model, on its device. name None: whatever the model's folder is for."""
    from rheme import tasks

    if threads is not None:
        from rheme import _core

        _core.set_num_threads(n=threads)
    task = tasks.load(name, model, **options)
    if device != "cpu":
        task.model.to(device)
    return task


def chosen(settings: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """Decoding options that were given: the named ones, and those of --set (values read as JSON where they are).

    InputError for what the command has an option of its own for, other than the named ones, or gives the task itself, and for a
    named one that is given both ways.
    """
    flags = {p.name: p.opts[0] for p in click.get_current_context().command.params if isinstance(p, click.Option)}
    own = {name: flag for name, flag in flags.items() if name not in options}
    found = {name: value for name, value in options.items() if value is not None}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise InputError(f"--set {setting}: the form is NAME=VALUE")
        if name in own:
            raise InputError(f"--set {name}: give it as {own[name]}")
        if name in _GIVEN:
            raise InputError(f"--set {name}: no option; the command gives it itself")
        if options.get(name) is not None:
            raise InputError(f"--set {name}: given already, by {flags.get(name, 'an option of its own')}")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def json_of_figures(figures: dict[str, Any]) -> str:
    """A line of JSON, which has no NaN and no infinity: null stands for them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(figures), ensure_ascii=False)


def stdin_batches() -> Iterator[list[str]]:
    """Lines of stdin as they come: what one read gave, at most _ROWS at a time."""
    stream: Any = sys.stdin.buffer
    parts: list[bytes] = []  # of a line that has not ended: joined once, as a long line comes in many
    number = 0
    while True:
        data = stream.read1(1 << 16)
        parts.append(data)
        if data and b"\n" not in data:
            continue
        lines = b"".join(parts).split(b"\n")
        parts = [lines.pop()] if data or not lines[-1] else []
        texts = []
        for line in lines:
            number += 1
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            try:
                texts.append(line.removesuffix(b"\r").decode("utf-8"))
            except UnicodeDecodeError as error:
                if texts:
                    yield texts
                column = len(line[: error.start].decode("utf-8")) + 1
                raise InputError(f"-:{number}:{column}: byte 0x{line[error.start]:02x} is not UTF-8") from None
        for start in range(0, len(texts), _ROWS):
            yield texts[start : start + _ROWS]
        if not data:
            return


def inputs(texts: tuple[str, ...]) -> Iterator[list[str]]:
    """The texts of the command line, or stdin's lines for ``-``."""
    if not texts:
        raise InputError("no text given; write it after the options, or - for stdin, a line a text")
    if texts == ("-",):
        yield from stdin_batches()
    else:
        yield list(texts)


@click.command("translate")
@click.argument("texts", nargs=-1, type=TEXT, metavar="TEXT…|-")
@click.option("--to", help="Language to translate into, such as fr.")
@click.option("--from", "from_", help="Language of the texts (default: found for each one).")
@click.option("--num-return-sequences", type=click.IntRange(min=1), help="Alternatives shown with --json.")
@click.option("--glossary", metavar="FILE", help="TSV: a term, and what a translation of a text with it must hold.")
@constraint_options
@click.option("--prefix", type=TEXT, help="How each translation begins.")
@decoding_options
@model_options
def translate_command(
    texts: tuple[str, ...],
    to: str | None,
    from_: str | None,
    num_return_sequences: int | None,
    glossary: str | None,
    forbid: tuple[str, ...],
    require: tuple[str, ...],
    prefix: str | None,
    num_beams: int | None,
    max_new_tokens: int | None,
    temperature: float | None,
    settings: tuple[str, ...],
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Translate texts."""
    options = chosen(
        settings,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        num_return_sequences=num_return_sequences,
        forbid=forbid or None,
        require=require or None,
        prefix=prefix,
    )
    rows = inputs(texts)
    if not texts:
        next(rows)
    if glossary is not None:
        from rheme.text import readers

        options["glossary"] = {row[0]: row[1] for row in readers.read_tsv(glossary, [0, 1])}
    # A bundled model for the target finds the way from another source language itself.
    task = open_task("translation", model, threads, device, to=to, from_=from_ if model or not to else None)
    task.route("", to, from_)
    for batch in rows:
        for text, result in zip(batch, task(batch, to=to, from_=from_, **options), strict=True):
            if as_json:
                click.echo(json.dumps({"source": text, **result.to_dict()}, ensure_ascii=False))
            else:
                click.echo(" ".join(result.text.splitlines()) if texts == ("-",) else result.text)
                if result.warnings and texts != ("-",):
                    click.echo(f"rheme: warning: {', '.join(result.warnings)}", err=True)
        sys.stdout.flush()


@click.command("generate")
@click.option("--n", "count", type=click.IntRange(min=1), default=5, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed, the same sentences.")
@click.option("--prompt", type=TEXT, help="How each sentence begins.")
@constraint_options
@click.option("--like", type=TEXT, help="Variations of a sentence; --temperature says how far from it (default 1).")
@decoding_options
@model_options
def generate_command(
    count: int,
    seed: int,
    prompt: str | None,
    like: str | None,
    forbid: tuple[str, ...],
    require: tuple[str, ...],
    num_beams: int | None,
    max_new_tokens: int | None,
    temperature: float | None,
    settings: tuple[str, ...],
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Write new sentences."""
    options = chosen(
        settings,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        forbid=list(forbid) or None,
        require=list(require) or None,
    )
    task = open_task("generation", model, threads, device)
    results = task.generate(count, seed=seed, prompt=prompt, like=like, **options)
    for result in results:
        click.echo(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else result.text)
    if like is not None and not as_json and any("out_of_domain" in result.warnings for result in results):
        click.echo("rheme: warning: out_of_domain: the model never saw a text like this one", err=True)

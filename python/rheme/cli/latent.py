"""``rheme latent`` and ``rheme doctor``."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import click

from rheme.cli.writing import TEXT, inputs, json_of_figures, model_options, open_task, threads_option
from rheme.errors import InputError


def _space(model: str | None, threads: int | None, device: str) -> Any:
    """The latent space of the model; InputError where the task has none."""
    task = open_task("generation", model, threads, device)
    return task.latent


def _say(as_json: bool, text: str, **fields: Any) -> None:
    click.echo(json.dumps({"text": text, **fields}, ensure_ascii=False) if as_json else text)


def _lines(path: str) -> list[str]:
    from rheme.text import readers

    texts = [line for line in readers.read_lines(path) if line.strip()]
    if not texts:
        raise InputError(f"{path}: no text in it")
    return texts


def _plain(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values]


def _given(texts: tuple[str, ...]) -> list[list[str]]:
    """The texts of the command line or of stdin, in batches. InputError for an empty one, counted over all of them."""
    rows, number = list(inputs(texts)), 0
    for batch in rows:
        for text in batch:
            number += 1
            if not text.strip():
                place = f"-:{number}" if texts == ("-",) else f"text {number}"
                raise InputError(f"{place}: an empty text: there is nothing to encode")
    return rows


@click.group("latent")
def latent_command() -> None:
    """Work in the latent space of a text VAE."""


@latent_command.command("encode")
@click.argument("texts", nargs=-1, type=TEXT, metavar="TEXT…|-")
@click.option("--samples", type=click.IntRange(min=0), default=0, show_default=True, help="Draws instead of the mean.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@model_options
def encode(
    texts: tuple[str, ...],
    samples: int,
    seed: int,
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Codes of texts, a JSON object a line: text, mu and logvar, or z for draws."""
    rows = _given(texts)
    space = _space(model, threads, device)
    for batch in rows:
        if samples:
            for text in batch:
                for z in space.sample(text, samples, seed):
                    click.echo(json.dumps({"text": text, "z": _plain(z)}, ensure_ascii=False))
            continue
        for text, mu, logvar in zip(batch, *space.encode(batch), strict=True):
            click.echo(json.dumps({"text": text, "mu": _plain(mu), "logvar": _plain(logvar)}, ensure_ascii=False))


def _codes(path: str) -> Iterator[list[float]]:
    """Codes of a file of JSON lines: a list of numbers, or an object with z or mu, as `encode` writes it."""
    from rheme.text import readers

    for number, line in enumerate(readers.read_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from None
        if isinstance(value, dict):
            value = value.get("z", value.get("mu"))
        if not isinstance(value, list) or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
            raise InputError(f"{path}:{number}: expected a list of numbers, or an object with z or mu")
        yield value


@latent_command.command("decode")
@click.argument("file", metavar="FILE|-")
@model_options
def decode(file: str, model: str | None, as_json: bool, device: str, threads: int | None) -> None:
    """Sentences of codes, as `encode` writes them."""
    codes = list(_codes(file))
    space = _space(model, threads, device)
    for number, code in enumerate(codes, 1):
        if len(code) != space.size:
            raise InputError(f"{file}: code {number} has {len(code)} numbers, this model's have {space.size}")
    for text in space.decode(codes) if codes else []:
        _say(as_json, text)


@latent_command.command("mix")
@click.argument("first", type=TEXT, metavar="A")
@click.argument("second", type=TEXT, metavar="B")
@click.option("--steps", type=click.IntRange(min=2), default=7, show_default=True, help="Sentences, both ends included.")
@click.option("--spherical", is_flag=True, help="Along the great circle instead of the straight line.")
@model_options
def mix(
    first: str,
    second: str,
    steps: int,
    spherical: bool,
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Sentences on the way from A to B."""
    for number, text in enumerate(_space(model, threads, device).mix(first, second, steps, spherical)):
        _say(as_json, text, at=number / (steps - 1))


@latent_command.command("walk")
@click.argument("text", type=TEXT)
@click.option("--dim", type=click.IntRange(min=0), required=True, help="The dimension that changes.")
@click.option("--steps", type=click.IntRange(min=2), default=7, show_default=True)
@click.option("--reach", type=float, default=2.0, show_default=True, help="From minus this to this.")
@model_options
def walk(
    text: str,
    dim: int,
    steps: int,
    reach: float,
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """A text's sentence with one dimension of its code changed."""
    for value, written in _space(model, threads, device).walk(text, dim, steps, reach):
        _say(as_json, written if as_json else f"{value:+.2f}  {written}", **({"value": value} if as_json else {}))


@latent_command.command("neighbours")
@click.argument("text", type=TEXT)
@click.option("--in", "file", required=True, metavar="FILE", help="Texts to look in, one a line.")
@click.option("--n", "count", type=click.IntRange(min=1), default=5, show_default=True)
@model_options
def neighbours(
    text: str,
    file: str,
    count: int,
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """The texts of a file whose codes are nearest to a text's."""
    among = _lines(file)
    for cosine, other in _space(model, threads, device).neighbours(text, among, count):
        _say(as_json, other if as_json else f"{cosine:.3f}  {other}", **({"cosine": cosine} if as_json else {}))


@latent_command.command("direction")
@click.argument("texts", nargs=-1, type=TEXT, metavar="[TEXT…|-]")
@click.option("--from", "from_file", required=True, metavar="FILE", help="Texts without the attribute, one a line.")
@click.option("--to", "to_file", required=True, metavar="FILE", help="Texts with it, one a line.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="How far; 1: from mean to mean.")
@click.option(
    "--keep",
    type=float,
    show_default="3",
    help="What keeping the words is worth, in nats a piece; 0: decode the moved code alone.",
)
@model_options
def direction(
    texts: tuple[str, ...],
    from_file: str,
    to_file: str,
    strength: float,
    keep: float | None,
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """An attribute as a direction, from two files: printed, or applied to texts, whose words are kept."""
    files = _lines(from_file), _lines(to_file)
    rows = _given(texts) if texts else []
    space = _space(model, threads, device)
    found = space.direction(*files)
    given = {} if keep is None else {"keep": keep}
    if not texts:
        click.echo(json.dumps(_plain(found)))
    for batch in rows:
        for text, written in zip(batch, space.shift(batch, found, strength, **given), strict=True):
            _say(as_json, written, **({"source": text} if as_json else {}))


@latent_command.command("map")
@click.argument("file", metavar="FILE")
@click.option("--out", required=True, type=click.Path(), help="The picture, such as map.png or map.svg.")
@click.option("--fields", help="Columns or keys of text and label, such as text,label; labels colour the points.")
@model_options
def map_(
    file: str,
    out: str,
    fields: str | None,
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """A picture of a file's texts on their two principal axes."""
    from rheme.text import readers

    labels = None
    if fields:
        names = [name.strip() for name in fields.split(",")]
        if len(names) != 2:
            raise InputError(f"--fields {fields}: give two, the text's and the label's")
        rows = readers.read_records(file, names, given=True)
        texts, labels = [row[0] for row in rows], [row[1] for row in rows]
    else:
        texts = _lines(file)
    path = _space(model, threads, device).picture(texts, out, labels)
    _say(as_json, str(path))


@latent_command.command("score")
@click.argument("texts", nargs=-1, type=TEXT, metavar="TEXT…|-")
@model_options
def score(texts: tuple[str, ...], model: str | None, as_json: bool, device: str, threads: int | None) -> None:
    """How usual texts are to the model: nats, the share of validation sentences that are less so, and a flag."""
    rows = inputs(texts)
    if not texts:
        next(rows)
    task = open_task("generation", model, threads, device)
    for batch in rows:
        for result in task.confidence(batch):
            if as_json:
                click.echo(json.dumps(result.to_dict(), ensure_ascii=False))
            else:
                flag = "  out_of_domain" if result.warnings else ""
                click.echo(f"{result.extra['nats']:.2f} nats  {result.score:.2f}{flag}  {result.text}")


@click.command("doctor")
@click.argument("model_folder", required=False, metavar="[MODEL]")
@click.option("--data", "data_files", multiple=True, metavar="FILE", help="Sentences to examine it on.")
@click.option("--plot", type=click.Path(), help="A picture of the training's figures (of its metrics.jsonl).")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="A JSON object.")
def doctor_command(
    model_folder: str | None, data_files: tuple[str, ...], plot: str | None, threads: int | None, as_json: bool
) -> None:
    """Say whether a text VAE uses its latent code."""
    from pathlib import Path

    from rheme import doctor
    from rheme.training.progress import Journal

    task = open_task(None if model_folder else "generation", model_folder, threads, "cpu")
    examine = getattr(task, "examine", None)
    if examine is None:
        raise InputError(f"{model_folder}: a model for {task.name!r} has no latent code of sentences to examine")
    journal = Path(model_folder or "") / "metrics.jsonl"
    if plot and not (model_folder and journal.exists()):
        raise InputError(f"{journal}: no figures of a training to draw")
    figures, diagnosis = examine(task.read(list(data_files)) if data_files else None)
    if plot and doctor.draw(Journal(journal).validations(), plot) is None:
        raise InputError(f"{plot}: nothing drawn: there are no figures of a code, or matplotlib is missing (rheme[plot])")
    if as_json:
        plain = {"state": diagnosis.state, "cause": diagnosis.cause, "remedy": diagnosis.remedy}
        click.echo(json_of_figures({**figures, **plain}))
    else:
        click.echo(doctor.report(figures, diagnosis))

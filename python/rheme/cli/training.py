"""``rheme train`` and ``rheme evaluate``."""

from typing import Any

import click

from rheme.cli.writing import TEXT, chosen, decoding_options, json_of_figures, model_options, open_task, threads_option
from rheme.errors import InputError


def settings_tables(settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """``--set train.max_epochs=3`` as tables; deeper names (``task.model.dropout``) as tables within."""
    tables: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        parts = name.split(".")
        if not equals or len(parts) < 2 or parts[0] not in ("task", "train", "card") or not all(parts):
            raise InputError(f"--set {setting}: the form is task.NAME=VALUE, train.NAME=VALUE or card.NAME=VALUE")
        table: dict[str, Any] = tables
        for part in parts[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise InputError(f"--set {setting}: {part} has a value already")
        table[parts[-1]] = value
    return tables


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables in tables; what stands above wins."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


@click.command("train")
@click.argument("task")
@click.option("--train", "train_files", multiple=True, required=True, metavar="FILE", help="Examples; may be given again.")
@click.option("--valid", "valid_files", multiple=True, metavar="FILE", help="Validation examples (default: a share held out).")
@click.option("--out", required=True, type=click.Path(), help="Folder of the new model.")
@click.option("--from", "from_", help="Translation: language of the first column.")
@click.option("--to", help="Translation: language of the second column.")
@click.option("--fields", help="Columns or keys, separated by commas, such as source,target.")
@click.option("--init", metavar="bundled|DIR", help="Fine-tune the bundled model or one of your own.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option("--finish", is_flag=True, help="End the training in --out at its last checkpoint: the best weights so far.")
@click.option("--config", "config_file", type=click.Path(), help="TOML file with tables task, train and card.")
@click.option("--set", "settings", multiple=True, type=TEXT, metavar="A.B=C", help="One setting, such as train.max_epochs=3.")
@click.option("--valid-share", type=float, help="Share held out without --valid (default: the task's, mostly 0.02).")
@click.option("--test-share", type=float, default=0.0, show_default=True, help="Share cut off as test.tsv.")
@click.option("--clean", is_flag=True, help="Leave out the rows that the data check finds doubtful.")
@click.option("--seed", type=click.IntRange(min=0), help="The same seed, the same weights.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@threads_option
def train_command(
    task: str,
    train_files: tuple[str, ...],
    valid_files: tuple[str, ...],
    out: str,
    from_: str | None,
    to: str | None,
    fields: str | None,
    init: str | None,
    resume: bool,
    finish: bool,
    config_file: str | None,
    settings: tuple[str, ...],
    valid_share: float | None,
    test_share: float,
    clean: bool,
    seed: int | None,
    device: str,
    threads: int | None,
) -> None:
    """Train a model on your own text."""
    from rheme import _core
    from rheme.training import files

    if threads is not None:
        _core.set_num_threads(n=threads)
    if (from_ is None) != (to is None):
        raise InputError("--from and --to belong together: the languages of the first and the second column")
    above = settings_tables(settings)
    if from_ and to:
        above.setdefault("task", {})["languages"] = [from_, to]
    if seed is not None:
        above.setdefault("train", {})["seed"] = seed
    files.train(
        task,
        list(train_files),
        list(valid_files) or None,
        out=out,
        init=init,
        resume=resume,
        finish=finish,
        config=merge(files.read_config(config_file), above),
        fields=[field.strip() for field in fields.split(",")] if fields else None,
        valid_share=valid_share,
        test_share=test_share,
        clean=clean,
        device=device,
    )


@click.command("evaluate")
@click.argument("task")
@click.option("--data", "data_files", multiple=True, required=True, metavar="FILE", help="Labelled examples.")
@click.option("--fields", help="Columns or keys, separated by commas.")
@click.option("--to", help="Translation: one direction only.")
@click.option("--from", "from_", help="Translation: language of the source.")
@click.option("--plot", type=click.Path(), help="A picture of the figures, where the task draws one.")
@click.option("--against", metavar="FILE", help="Translation: another system's output, a line an example, to score beside.")
@decoding_options
@model_options
def evaluate_command(
    task: str,
    data_files: tuple[str, ...],
    fields: str | None,
    to: str | None,
    from_: str | None,
    plot: str | None,
    against: str | None,
    num_beams: int | None,
    max_new_tokens: int | None,
    temperature: float | None,
    settings: tuple[str, ...],
    model: str | None,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Measure a model on labelled data."""
    options = chosen(settings, num_beams=num_beams, max_new_tokens=max_new_tokens, temperature=temperature, to=to, from_=from_)
    options |= {"plot": plot} if plot else {}
    if against:
        from rheme.text import readers

        options["against"] = readers.read_lines(against)
    direction = {name: value for name, value in (("to", to), ("from_", from_)) if value}
    bound = open_task(task, model, threads, device, **direction)
    names = [field.strip() for field in fields.split(",")] if fields else None
    examples = bound.read(list(data_files), names) if names else bound.read(list(data_files))
    figures = bound.evaluate(examples, **options)
    if as_json:
        click.echo(json_of_figures(figures))
    else:
        for name, value in figures.items():
            click.echo(f"{name}: {value}")

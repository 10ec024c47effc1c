"""``rheme plugins new`` and ``rheme plugins check``."""

import json
import keyword
import re
from pathlib import Path
from string import Template

import click

from rheme.cli.writing import TEXT
from rheme.errors import InputError

# what the new module defines and imports: a class of such a name would hide it
_TAKEN = {"Config", "InputError", "Model", "Result", "Task", "Tensor"}


@click.group("plugins")
def plugins_command() -> None:
    """Begin a task of your own, or check an installed one."""


@plugins_command.command("new")
@click.argument("name")
@click.option("--out", type=click.Path(), help="Folder of the new package (default: rheme-NAME).")
def new_command(name: str, out: str | None) -> None:
    """Write a package with a task of your own: it installs, trains and passes `rheme plugins check`."""
    from rheme.cli import skeleton
    from rheme.tasks import list_tasks

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise InputError(f"{name!r} is no name for a task: small letters and digits, words joined by -, such as topic-labels")
    package, known = f"rheme-{name}", list_tasks().get(name)
    if known is not None and known.distribution != package:
        raise InputError(
            f"{known.distribution} has a task {name!r} already, and two of one name cannot be loaded: choose another"
        )
    module = f"rheme_{name.replace('-', '_')}"
    class_name = "".join(part.capitalize() for part in name.split("-"))
    if keyword.iskeyword(class_name) or class_name in _TAKEN:
        class_name += "Task"
    folder = Path(out or f"rheme-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; give another folder (--out)")
    values = {"name": name, "module": module, "class_name": class_name, "package": package}
    for path, text in skeleton.FILES.items():
        target = folder / Template(path).substitute(values)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(text).substitute(values), encoding="utf-8")
    click.echo(f"{folder}: a package with the task {name!r}. Next:")
    click.echo(f"  pip install -e {folder}\n  rheme plugins check {name}")
    click.echo(f"  rheme train {name} --train {folder}/examples.tsv --out my-model")


@plugins_command.command("check")
@click.argument("name")
@click.option("--data", type=click.Path(), help="Examples to try it on (default: the task's samples).")
@click.option("--steps", type=click.IntRange(min=2), default=40, show_default=True, help="Steps of training.")
@click.option(
    "--set", "settings", multiple=True, type=TEXT, metavar="A.B=C", help="A setting, such as task.model.hidden_size=32."
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def check_command(name: str, data: str | None, steps: int, settings: tuple[str, ...], as_json: bool) -> None:
    """Try every promise of a task on an installed one."""
    from rheme import conformance
    from rheme.cli.training import settings_tables
    from rheme.tasks import list_tasks, nearest

    if name not in (known := list_tasks()):
        raise InputError(f"no task is called {name!r}{nearest(name, known)}; installed: {', '.join(known) or 'none'}")
    if data is not None and not Path(data).exists():
        raise InputError(f"{data}: no such file")

    def echo(item: conformance.Check) -> None:
        if as_json:
            click.echo(json.dumps({"check": item.name, "ok": item.ok, "note": item.note}, ensure_ascii=False))
        else:
            click.echo(f"{'ok  ' if item.ok else 'FAIL'}  {item.name}: {' '.join(item.note.split())}")

    found = conformance.check(name, data, settings_tables(settings), steps, echo)
    failed = sum(not item.ok for item in found)
    if not as_json:
        click.echo(f"{len(found) - failed} of {len(found)} hold" + (f", {failed} fail" if failed else ""))
    if failed:
        raise click.exceptions.Exit(1)

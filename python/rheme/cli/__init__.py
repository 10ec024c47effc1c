"""The command line. Nothing but click and the standard library is imported before a command runs.

The verbs are the entry points of the group ``rheme.commands`` (name: the verb, value: a click command), ours like a
stranger's; ``rheme --help`` lists them from metadata alone.
"""

import errno
import importlib
import io
import os
import sys
from typing import Any

import click

from rheme.errors import InputError, RhemeError

GROUP = "rheme.commands"

# the short help of our own verbs, so that --help need not import them; a test compares them with the commands' docstrings
HELP = {
    "analyze": "Find sentiment, emotions, keywords and language of texts, or similar texts.",
    "answer": "Answer questions from texts.",
    "doctor": "Say whether a text VAE uses its latent code.",
    "evaluate": "Measure a model on labelled data.",
    "generate": "Write new sentences.",
    "info": "Show version, instruction set, threads, device and bundled models.",
    "latent": "Work in the latent space of a text VAE.",
    "plugins": "Begin a task of your own, or check an installed one.",
    "summarize": "Summarize documents: a summary a line.",
    "tasks": "List the installed tasks.",
    "train": "Train a model on your own text.",
    "translate": "Translate texts.",
}

# command -> the module that holds it
_COMMANDS = {
    "analyze_command": "analyzing",
    "answer_command": "answering",
    "doctor_command": "latent",
    "evaluate_command": "training",
    "generate_command": "writing",
    "info_command": "about",
    "latent_command": "latent",
    "plugins_command": "plugins",
    "summarize_command": "summarizing",
    "tasks_command": "about",
    "train_command": "training",
    "translate_command": "writing",
}


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        return getattr(importlib.import_module(f"rheme.cli.{_COMMANDS[name]}"), name)
    raise AttributeError(f"module 'rheme.cli' has no attribute {name!r}")


class Verbs(click.Group):
    """The commands by entry point; each is imported when it runs."""

    def points(self) -> dict[str, list[Any]]:
        """Verb -> its entry points (more than one is a clash)."""
        from importlib import metadata

        found: dict[str, list[Any]] = {}
        for point in metadata.entry_points(group=GROUP):
            claims = found.setdefault(point.name, [])
            if all(other.value != point.value for other in claims):
                claims.append(point)
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.points())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        claims = self.points().get(name, [])
        if not claims:
            return None
        if len(claims) > 1:
            packages = ", ".join(_distribution(point) for point in claims)
            raise RhemeError(f"the command {name!r} is claimed by more than one package: {packages}; uninstall all but one")
        try:
            command = claims[0].load()
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises on import
            message = " ".join(f"{type(error).__name__}: {error}".split())
            raise RhemeError(f"the command {name!r} of {_distribution(claims[0])} cannot be loaded: {message}") from error
        if not isinstance(command, click.Command):
            raise RhemeError(f"the command {name!r} of {_distribution(claims[0])} is no click command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            import difflib

            close = difflib.get_close_matches(args[0], self.points(), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise click.UsageError(f"no command is called {args[0]!r}{hint}; see: rheme --help") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name, claims in sorted(self.points().items()):
            own = any(point.value.startswith("rheme.cli:") for point in claims)
            rows.append((name, HELP.get(name, "") if own else f"(from {', '.join(map(_distribution, claims))})"))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def _distribution(point: Any) -> str:
    return str(point.dist.name) if point.dist else "an unknown package"


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option("--version", is_flag=True, help="Show the version.")
@click.pass_context
def rheme(ctx: click.Context, version: bool) -> None:
    """Train small text models and run them on an ordinary CPU."""
    if version:
        from importlib import metadata

        click.echo(f"rheme {metadata.version('rheme')}")
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: list[str] | None = None) -> int:
    """Run a command line. 0: done; 1: failed; 2: the user's mistake, told in one line on stderr."""
    _prepare_streams()
    stdout = sys.stdout
    try:
        code = rheme.main(args=args, prog_name="rheme", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 1)
    except InputError as error:
        return _fail(str(error), 2)
    except RhemeError as error:
        return _fail(str(error), 1)
    except (BrokenPipeError, SystemExit) as error:
        # The reader has enough (such as head). Click tells of it by replacing sys.stdout and exiting with 1.
        if isinstance(error, SystemExit) and sys.stdout is stdout:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what Python still holds for it goes nowhere
        return 0
    except ImportError as error:
        if not str(error).startswith("RHEME_"):
            raise
        return _fail(str(error), 2)  # the core, which cannot have the instruction set or the threads asked for
    except OSError as error:
        if error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        user = error.errno in (errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EROFS)
        return _fail(f"{place}{error.strerror}", 2 if user else 1)
    except MemoryError:
        return _fail("out of memory; smaller batches or a smaller model need less", 1)


def _prepare_streams() -> None:
    """A closed stream (``<&-``) is an empty one; output is UTF-8, as all input is, whatever the locale says."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # a file's name may be no UTF-8


def _fail(message: str, code: int) -> int:
    """One line, whatever the message holds."""
    click.echo("rheme: " + " ".join(str(message).split()), err=True)
    return code

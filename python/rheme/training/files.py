"""``rheme.train``: from files and settings to a model folder. The command line calls the same function."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rheme import ops
from rheme.errors import InputError
from rheme.storage import Card
from rheme.tasks import Task, configure, find_bundled, get_task, nearest
from rheme.text import readers
from rheme.training import TrainingConfig, check_begun, check_new, curves, out_folder
from rheme.training import train as run
from rheme.training.checkpoints import locked, writing
from rheme.training.progress import Echo, to_stderr

TABLES = ("task", "train", "card")


def train(
    task: str,
    train: readers.Paths,
    valid: readers.Paths | None = None,
    *,
    out: str | Path,
    init: str | Path | None = None,
    resume: bool = False,
    finish: bool = False,
    config: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    fields: Sequence[str] | None = None,
    valid_share: float | None = None,
    test_share: float = 0.0,
    clean: bool = False,
    device: str = "cpu",
    echo: Echo | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train a task on files and leave a model folder in ``out``; returns its final figures.

    train, valid: a file or several. Without ``valid`` a share of the training examples (the task's own, unless given) is held
    out by a hash of their first text; ``out/valid.tsv`` (or .json, as the task writes examples) holds it, ``out/test.tsv`` a
    test share. Examples that share a text with a held-out one are dropped. init: a model folder to fine-tune, or ``bundled``.
    config: tables ``task``, ``train`` and ``card``, or a TOML file of them. settings: single ones by name, such as
    ``max_epochs=3`` or ``vocab_size=4000``. fields: columns or keys.

    Raises InputError for a mistake in a file, a setting or the folder; Interrupted after Ctrl-C: go on with ``resume=True``, or
    end the training there with ``finish=True``.
    """
    cls, out = get_task(task), out_folder(out)
    tell = echo or to_stderr
    tables = read_config(config)
    for name, value in settings.items():
        tables[_table_of(name, cls)][name] = value
    training = configure(TrainingConfig, {**cls.training, **tables["train"]}, "train")
    described = msgspec.to_builtins(configure(Card, tables["card"], "card"))
    valid_share = cls.valid_share if valid_share is None else valid_share
    for name, share in (("valid_share", valid_share), ("test_share", test_share)):
        if not 0 <= share <= 0.5:
            raise InputError(f"{name} = {share}: must be from 0 to 0.5")
    ops.check_device(device)
    resume = resume or finish
    if resume:
        check_begun(out)
    else:
        shares = {"valid": 0.0 if valid is not None else valid_share, "test": test_share}
        check_new(out, [*cls.writes, *(f"{name}{cls.suffix}" for name, share in shares.items() if share)])
    if init is not None:
        instance, fields = _start_from(cls, init, tables["task"], fields)
    else:
        instance = cls(configure(cls.Config, tables["task"], "task"))

    examples, found = instance.read_checked(train, fields, clean)
    for line in found:
        tell(line)
    read = len(examples)
    held: dict[str, list[Any]] = {}
    if test_share:
        examples, held["test"] = instance.split(examples, test_share, salt="test")
    if valid is not None:
        held_out = instance.read(valid, fields) if fields else instance.read(valid)
        examples = readers.drop_shared(examples, held_out, instance.sides)
    else:
        examples, held_out = instance.split(examples, valid_share)
        if held_out:
            held["valid"] = held_out
    told = f"{len(examples)} to train on, {len(held_out)} to validate on"
    if test_share:
        told += f", {len(held['test'])} to test on"
    dropped = read - len(examples) - sum(map(len, held.values()))
    tell(f"{read} examples read: {told}, {dropped} dropped as they share a text with those held out")
    if not examples:
        hint = "give others for validation" if valid is not None else "give more, a file for validation, or a share of 0"
        raise InputError(f"of the {read} examples read none is left to train on: {hint}")
    card = {"split": _split_rule(valid, valid_share, test_share, instance.sides)} | described
    paths = {name: out / f"{name}{instance.suffix}" for name in held}
    with locked(out):
        if not resume:
            check_new(out, [*cls.writes, *(path.name for path in paths.values())])  # another training may have come first
        try:
            for name, rows in held.items():
                _write_held_out(instance, paths[name], rows, resume)
            figures = run(
                instance, examples, held_out, out, training, resume, finish, echo=echo, card=card, device=device, locked=True
            )
        except BaseException:
            if not (out / "training.json").exists():  # it never began
                for path in paths.values():
                    path.unlink(missing_ok=True)
            raise
    with contextlib.suppress(InputError):  # without matplotlib there is no picture
        tell(f"learning curves: {curves.draw(out)}")
    return figures


def read_config(config: str | Path | Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """The tables task, train and card, from a TOML file or from dicts."""
    if config is None:
        found: Any = {}
    elif isinstance(config, (str, Path)):
        try:
            found = msgspec.toml.decode(readers.read_text(config))
        except msgspec.DecodeError as error:
            raise InputError(f"{config}: not TOML: {error}") from None
    else:
        found = config
    for name, table in found.items():
        if name not in TABLES:
            raise InputError(f"config: unknown table {name!r}{nearest(name, TABLES)}; there are: {', '.join(TABLES)}")
        if not isinstance(table, Mapping):
            raise InputError(f"config: {name} must be a table")
    return {name: dict(found.get(name, {})) for name in TABLES}


def _table_of(name: str, cls: type[Task]) -> str:
    """The table that a single setting belongs to."""
    training = [info.name for info in msgspec.structs.fields(TrainingConfig)]
    own = [info.name for info in msgspec.structs.fields(cls.Config)]
    if name in training:
        return "train"
    if name in own:
        return "task"
    raise InputError(f"unknown setting {name!r}{nearest(name, training + own)}; there are: {', '.join(training + own)}")


def _start_from(
    cls: type[Task], init: str | Path, settings: Mapping[str, Any], fields: Sequence[str] | None
) -> tuple[Task, Sequence[str] | None]:
    """The task of the model to fine-tune, its config as it was but for what is adaptable or tunable, and the columns' order."""
    wanted = msgspec.to_builtins(configure(cls.Config, settings, "task"))
    languages = wanted.get("languages") if "languages" in settings else None
    if str(init) == "bundled":
        init = find_bundled(cls.name, **({"from_": languages[0], "to": languages[1]} if languages else {}))
    instance = cls.restore(init)
    has = msgspec.to_builtins(instance.config)

    def tune(config: msgspec.Struct, given: Mapping[str, Any], wanted: Any, has: Any, above: str = "") -> None:
        for name, value in given.items():
            part, path = getattr(config, name), above + name
            if isinstance(part, msgspec.Struct) and isinstance(value, Mapping):
                tune(part, value, wanted[name], has[name], f"{path}.")
            elif path in cls.tunable:
                setattr(config, name, wanted[name])
            elif wanted[name] != has[name]:
                raise InputError(f"task.{path} cannot be changed to {wanted[name]}: the model in {init} has {has[name]}")

    fixed = {name: value for name, value in settings.items() if name not in cls.adaptable}
    if languages and sorted(languages) == sorted(has["languages"]):
        fields = fields or (languages if fixed.pop("languages") != has["languages"] else None)
    tune(instance.config, fixed, wanted, has)
    for name in cls.adaptable:  # a table keeps what is not given anew; anything else is what was given, or the default
        table = isinstance(has[name], Mapping) and isinstance(getattr(instance.config, name), msgspec.Struct)
        value = {**has[name], **settings.get(name, {})} if table else wanted[name]
        kind = type(getattr(instance.config, name))
        setattr(instance.config, name, configure(kind, value, f"task.{name}") if table else value)
    return instance, fields


def _split_rule(valid: Any, valid_share: float, test_share: float, sides: int) -> str:
    held = (
        "a validation file of its own"
        if valid is not None
        else f"validation: {valid_share:.3g} of the examples, by a hash of the"
    )
    rule = held if valid is not None else f"{held} first text (NFKC, lower case)"
    if test_share:
        rule += f"; test: {test_share:.3g}, by another hash of it"
    return f"{rule}; training examples that share {'either text' if sides == 2 else 'a text'} with those are dropped"


def _write_held_out(task: Task, path: Path, rows: list[Any], resume: bool) -> None:
    """Write the held-out examples; on resuming, only compare them: other files or shares would be another training."""
    new = path.with_name(f".{path.name}.tmp")
    with writing(path.parent):
        try:
            task.write_examples(new, rows)
            if not resume:
                new.replace(path)
            elif path.exists() and path.read_bytes() != new.read_bytes():
                raise InputError(f"{path}: other examples are held out than before; give the same files and shares")
        finally:
            new.unlink(missing_ok=True)

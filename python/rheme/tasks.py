"""Tasks: what a plugin implements, how an installed one is found, and how a trained one is loaded.

A task says how to read examples, how to build its model from a config, the loss of a batch, how to answer and how good the
answers are. Tasks are found through the entry-point group ``rheme.tasks``; listing them imports none of them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from rheme import ops, storage
from rheme.errors import InputError, RhemeError

GROUP = "rheme.tasks"
WARNINGS = ("repetition", "length_ratio", "out_of_domain", "wrong_script", "truncated", "low_confidence")


class PluginError(RhemeError):
    """A plugin that cannot be used: it fails to import, is no Task, or shares its name with another one."""


@dataclass(frozen=True, slots=True)
class Result:
    """One answer. ``str(result)`` is its text.

    score: how sure the model is, in (0, 1] (for generated text: exp of the mean log-probability of a token); nan if unknown.
    alternatives: other answers, best first. warnings: from the closed list ``tasks.WARNINGS``. extra: fields of the task's own.
    """

    text: str
    score: float = math.nan
    alternatives: tuple["Result", ...] = ()
    warnings: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in self.warnings if name not in WARNINGS]
        if unknown:
            raise ValueError(f"unknown warning {unknown[0]!r}; the list is: {', '.join(WARNINGS)}")

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: text, score (None if unknown), alternatives, warnings and the task's own fields."""
        out: dict[str, Any] = {"text": self.text, "score": None if math.isnan(self.score) else self.score}
        if self.alternatives:
            out["alternatives"] = [{"text": other.text, "score": other.score} for other in self.alternatives]
        if self.warnings:
            out["warnings"] = list(self.warnings)
        return out | dict(self.extra)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a task finds out about its model at a validation.

    figures: for metrics.jsonl. shown: a row of the panel, heading -> text. note: a line to tell. keep: whether these
    weights may count as the best so far. change: is called before training goes on; it changes how, so that what was best
    before no longer counts. stop: end the training here.
    """

    figures: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    keep: bool = True
    change: Callable[[], None] | None = None
    stop: bool = False


class Task:
    """One instance is a task bound to one model: new (from a config) or loaded from a folder.

    A plugin sets ``name`` and ``Config`` and writes ``build``, ``encode``, ``loss`` and ``answer``; the rest has defaults.
    Training calls, in this order: read, split, setup (or adapt), then encode_all once, then size and loss for each batch.
    """

    name: ClassVar[str]
    Config: ClassVar[type[msgspec.Struct]]  # the model's sizes and the data's settings, all with defaults
    fields: ClassVar[tuple[str, ...]] = ("text",)  # columns of a TSV, by name or in order, or keys of a JSON line
    suffix: ClassVar[str] = ".tsv"  # of the files that write_examples writes
    writes: ClassVar[tuple[str, ...]] = ()  # files that `conclude` may write beside a model
    sides: ClassVar[int] = 1  # how many of an example's first texts must not stand in both training and validation
    adaptable: ClassVar[tuple[str, ...]] = ()  # settings that a training from another model does not take from it
    tunable: ClassVar[tuple[str, ...]] = ()  # and those that it takes unless they are given anew, such as model.dropout
    training: ClassVar[Mapping[str, Any]] = {}  # settings of training that suit the task, where none are given
    valid_share: ClassVar[float] = 0.02  # of the examples, to validate on where no file is given
    pipeline_tag: ClassVar[str] = ""  # the hub's name for this kind of task, for the model card
    pipeline_key: ClassVar[str] = "text"  # the key of the text in the results of rheme.pipeline()

    config: Any
    model: Any  # an nn.Module
    tokenizer: Any

    def __init__(self, config: msgspec.Struct | None = None) -> None:
        self.config = self.Config() if config is None else config
        self.model = None
        self.tokenizer = None
        self.options: dict[str, Any] = {}  # defaults of answer(): generation_config.json, then what load() was given

    # Data ------------------------------------------------------------------------------------------------------------------

    def read(self, paths: Any, fields: Sequence[str] | None = None) -> list[Any]:
        """Examples from one file or several: tuples of strings, one for each of ``self.fields``; plain strings if it is one."""
        from rheme.text import readers

        rows = readers.read_records(paths, fields or self.fields, given=fields is not None)
        return [row[0] for row in rows] if len(fields or self.fields) == 1 else rows

    def read_checked(self, paths: Any, fields: Sequence[str] | None = None, clean: bool = False) -> tuple[list[Any], list[str]]:
        """Examples to train on, and a line to tell of each kind of bad row among them. clean: leave out the doubtful ones.

        By default nothing is checked.
        """
        return (self.read(paths, fields) if fields else self.read(paths)), []

    def split(self, examples: Sequence[Any], share: float, salt: str = "") -> tuple[list[Any], list[Any]]:
        """(train, held out), by a hash of the first text; no text of the first ``sides`` stands in both."""
        from rheme.text import readers

        return readers.split_by_hash(examples, share, self.sides, salt)

    @classmethod
    def samples(cls) -> list[Any]:
        """Some invented examples, as ``read`` gives them: what `rheme plugins check` trains on. By default none."""
        return []

    def inputs(self, examples: Sequence[Any]) -> list[Any]:
        """What ``answer`` is asked for these examples. By default the first text of each."""
        return [example if isinstance(example, str) else example[0] for example in examples]

    def needed_options(self) -> dict[str, Any]:
        """Options that ``answer`` asks for and has no default of, with values it can do: `rheme plugins check` gives them."""
        return {}

    def write_examples(self, path: Path, examples: Sequence[Any]) -> None:
        """Write examples (such as the held-out ones) as a file that ``read`` takes: TSV, a line an example."""
        from rheme.text import readers

        readers.write_tsv(path, [(row,) if isinstance(row, str) else row for row in examples])

    # Training --------------------------------------------------------------------------------------------------------------

    def setup(self, examples: Sequence[Any]) -> None:
        """Prepare a new training from its examples: train a tokenizer, fill in ``self.config``, then ``build``."""
        self.build()

    def adapt(self, examples: Sequence[Any]) -> None:
        """Fit a restored model to the examples it is to be fine-tuned on (new labels, say). By default it stays as it is."""

    def build(self) -> None:
        """Make ``self.model`` from ``self.config`` (and the tokenizer). Called by setup and on loading."""
        raise NotImplementedError

    def encode(self, example: Any) -> Any:
        """The numbers of one example, ready for ``loss``."""
        raise NotImplementedError

    def encode_all(self, examples: Sequence[Any]) -> list[Any]:
        """The items of examples. By default one an example; a task may give more (translation: two directions)."""
        return [self.encode(example) for example in examples]

    def training_items(self, examples: Sequence[Any]) -> list[Any]:
        """The items to train on; called once. By default those that validation would have."""
        return self.encode_all(examples)

    def size(self, item: Any) -> int:
        """The length of an encoded item, for batches of nearly equal lengths."""
        return len(item)

    def loss(self, items: Sequence[Any], step_seed: int) -> tuple[Any, int, dict[str, float]]:
        """Summed loss of a batch (a scalar Tensor), how many units (tokens, examples) it sums over, and figures to log."""
        raise NotImplementedError

    def finish(self, train: Sequence[Any], valid: Sequence[Any]) -> None:
        """After training, with the final weights: add what is fitted at once and not step by step. Assigns new arrays."""

    def calibrate(self, examples: Sequence[Any]) -> None:
        """Then: set ``self.options`` (such as a threshold) by the validation examples."""

    def inspect(
        self, items: Sequence[Any], history: Sequence[Mapping[str, Any]], step: int, total_steps: int
    ) -> Inspection | None:
        """Figures beyond the loss at a validation, after so many steps; history: the entries of those before, oldest first."""
        return None

    def training_state(self) -> dict[str, Any]:
        """What `inspect` has changed, as plain values: kept in the checkpoints."""
        return {}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `training_state` gave, on resuming."""

    def conclude(self, out: Path, examples: Sequence[Any], history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """At the end, with the best weights: figures that need the training examples or the history; may draw into `out`."""
        return {}

    # Use -------------------------------------------------------------------------------------------------------------------

    def answer(self, inputs: Sequence[Any], **options: Any) -> list[Result]:
        """One Result an input, in order; an answer does not depend on the inputs beside it."""
        raise NotImplementedError

    def evaluate(self, examples: Sequence[Any], **options: Any) -> dict[str, float | str]:
        """Figures by name on labelled examples; the metric's signature where it has one. By default InputError: none."""
        raise InputError(f"the task {self.name!r} has no figures to measure a model by")

    def pipe(self, inputs: Any, **options: Any) -> Any:
        """Answers in the shape of transformers' pipelines: by default a list of ``{pipeline_key: text}``."""
        results = self(inputs if isinstance(inputs, list) else [inputs], **options)
        return [{self.pipeline_key: result.text} for result in results]

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """One input -> a Result; a list -> a list of Results, the same ones as for each input alone."""
        if isinstance(inputs, (list, tuple)):
            return self.answer(list(inputs), **options)
        return self.answer([inputs], **options)[0]

    # Folders ---------------------------------------------------------------------------------------------------------------

    @classmethod
    def serves(cls, config: Mapping[str, Any], **options: Any) -> bool:
        """Whether a stored model with this config can do what load() was asked for (such as ``to="fr"``)."""
        return True

    def languages(self) -> list[str]:
        """Language codes, for the model card."""
        return list(getattr(self.config, "languages", []))

    def save(
        self,
        folder: str | Path,
        *,
        dtype: str = "float32",
        metrics: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the model folder, atomically. dtype: float32, float16 or int8. state: other weights than the model's."""
        return storage.save(
            folder,
            task=self.name,
            config=msgspec.to_builtins(self.config),
            state={name: ops.to_host(a) for name, a in (self.model.state_dict() if state is None else state).items()},
            tokenizer=self.tokenizer.to_bytes() if self.tokenizer is not None else None,
            generation=self.options,
            metrics=metrics,
            training=training,
            card={"pipeline_tag": self.pipeline_tag, "languages": self.languages(), **(card or {})},
            dtype=dtype,
        )

    @classmethod
    def restore(cls, folder: str | Path) -> "Task":
        """The task of a model folder, float32, to go on training. InputError when it is missing, damaged, or another task's."""
        return cls.from_stored(storage.load(folder))

    @classmethod
    def from_stored(cls, stored: storage.StoredModel, precision: str = "float32") -> "Task":
        """precision: float32, or for inference float16 or int8 (see ``rheme.quantization``)."""
        if stored.task != cls.name:
            raise InputError(f"{stored.folder} holds a model for {stored.task!r}, not for {cls.name!r}")
        task = cls(configure(cls.Config, stored.config, where=f"{stored.folder}/config.json"))
        task.options = dict(stored.generation)
        from rheme import nn, quantization  # not before a model is loaded: they import NumPy

        try:
            if stored.tokenizer is not None:
                task.tokenizer = task.read_tokenizer(stored.tokenizer)
            with nn.uninitialized():
                task.build()
        except MemoryError:
            raise InputError(f"{stored.folder}: no memory for a model of the sizes in config.json") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            message = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{stored.folder}: damaged, or of another version: no model can be built of it ({message})"
            ) from error
        try:
            quantization.load(task.model, stored.arrays, precision)
        except (ValueError, KeyError) as error:
            raise InputError(f"{stored.folder}: the weights do not fit the config: {error}") from None
        task.model.eval()
        return task

    def read_tokenizer(self, data: bytes) -> Any:
        """The tokenizer of the file tokenizer.model. By default a sentencepiece model."""
        from rheme.text.tokenizer import Tokenizer

        return Tokenizer.load(data)


# Finding tasks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as its package's metadata tell of it. clash: the other packages that claim the same name."""

    name: str
    module: str  # "package.module:Class"
    distribution: str
    version: str
    clash: tuple[str, ...] = ()


def list_tasks() -> dict[str, TaskInfo]:
    """Installed tasks by name, from metadata alone: no plugin is imported."""
    found: dict[str, TaskInfo] = {}
    packages: dict[int, tuple[str, str]] = {}  # a distribution parses its metadata anew each time that it is asked
    for point in metadata.entry_points(group=GROUP):
        dist = point.dist
        if id(dist) not in packages:
            packages[id(dist)] = (dist.name, dist.version) if dist else ("unknown", "")
        info = TaskInfo(point.name, point.value, *packages[id(dist)])
        other = found.get(point.name)
        if other is None:
            found[point.name] = info
        elif (other.module, other.distribution) != (info.module, info.distribution):
            found[point.name] = TaskInfo(
                other.name, other.module, other.distribution, other.version, (*other.clash, info.distribution)
            )
    return dict(sorted(found.items()))


def get_task(name: str) -> type[Task]:
    """The class of a task; imports its plugin.

    Raises InputError for an unknown name, PluginError for a plugin that fails to import or a name that two packages claim.
    """
    tasks = list_tasks()
    info = tasks.get(name)
    if info is None:
        raise InputError(f"no task is called {name!r}{nearest(name, tasks)}; installed: {', '.join(tasks) or 'none'}")
    if info.clash:
        packages = ", ".join((info.distribution, *info.clash))
        raise PluginError(f"the task {name!r} is claimed by more than one package: {packages}; uninstall all but one")
    try:
        cls = metadata.EntryPoint(name, info.module, GROUP).load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises on import
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"the plugin {name!r} of {info.distribution} cannot be loaded ({info.module}): {message}") from error
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        wrong = "must be a subclass of rheme.Task"
    elif getattr(cls, "name", None) != name:
        wrong = f"must have the name {name!r} of its entry point, not {getattr(cls, 'name', None)!r}"
    elif not (isinstance(config := getattr(cls, "Config", None), type) and issubclass(config, msgspec.Struct)):
        wrong = "must have a Config, a subclass of msgspec.Struct"
    elif isinstance(cls.fields, str):
        wrong = f"must have a tuple of fields, not {cls.fields!r}"
    else:
        return cls
    raise PluginError(f"the plugin {name!r} of {info.distribution} is no task: {info.module} {wrong}")


def bundled() -> dict[str, Path]:
    """The models that came with the package, by folder name (such as ``translation-en-fr``)."""
    folder = Path(__file__).parent / "pretrained"
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def find_bundled(name: str, **options: Any) -> Path:
    """The bundled model's folder for a task and what is asked of it (such as ``to="fr"``); InputError lists what there is."""
    return _bundled_for(get_task(name), **options)


def _bundled_for(cls: type[Task], **options: Any) -> Path:
    name, models = cls.name, bundled()
    for path in models.values():
        header = storage.read_config(path)
        if header.get("task") == name and cls.serves(header.get("config", {}), **options):
            return path
    asked = ", ".join(f"{key}={value}" for key, value in options.items() if value is not None)
    raise InputError(
        f"no bundled model for {name}{f' with {asked}' if asked else ''}; bundled: {', '.join(models) or 'none'}; "
        "give a folder of your own (model=, --model)"
    )


def load(task: str | None = None, model: str | Path | None = None, *, precision: str | None = None, **options: Any) -> Task:
    """A task with its model, ready to be called.

    task: its name (may be left out when a folder is given). model: a folder; without it the bundled model that serves the
    options. precision: float32, float16 or int8, how weights are held and computed on; by default what the model's config says,
    as a rule what they are stored in. options: defaults for each call, such as ``to="fr"`` or ``num_beams=5``.
    """
    cls = None if task is None else get_task(task)
    if model is None:
        if cls is None:
            raise InputError("load() needs the name of a task or a model's folder")
        model = _bundled_for(cls, **options)
    stored = storage.load(model)
    if task is not None and task != stored.task:
        raise InputError(f"{model} holds a model for {stored.task!r}, not for {task!r}")
    cls = cls or get_task(stored.task)
    if not cls.serves(stored.config, **options):
        asked = ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)
        languages = ", ".join(map(str, stored.config.get("languages", [])))
        raise InputError(f"the model in {model} cannot do {asked}{f'; its languages: {languages}' if languages else ''}")
    loaded = cls.from_stored(stored, precision or stored.precision)
    loaded.options.update({key: value for key, value in options.items() if value is not None})
    return loaded


# transformers' names of pipelines -> ours
PIPELINES = {"text-generation": "generation", "summarization": "summarization", "question-answering": "question-answering"}


def pipeline(name: str, model: str | Path | None = None, **options: Any) -> Callable[..., Any]:
    """What transformers' ``pipeline`` gave for this name: a function from a text or a list to ``[{"translation_text": ...}]``.

    Names: ``translation_XX_to_YY``, or a task's own name.
    """
    task_name = PIPELINES.get(name, name)
    if name.startswith("translation_"):
        parts = name.split("_")
        if len(parts) != 4 or parts[2] != "to":
            raise InputError(f"{name!r} is no pipeline; the form is translation_en_to_fr")
        task_name, options = "translation", {"from_": parts[1], "to": parts[3], **options}
    return load(task_name, model, **options).pipe


# Configs -------------------------------------------------------------------------------------------------------------------


def nearest(name: str, names: Iterable[str]) -> str:
    """ " (did you mean 'x'?)", or nothing."""
    import difflib  # only mistakes need it

    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def configure(struct: type[msgspec.Struct], values: Mapping[str, Any], where: str = "config") -> Any:
    """A config from plain values (of JSON, TOML or --set, where all are strings). InputError names an unknown or wrong one."""
    types = {info.name: info for info in msgspec.structs.fields(struct)}
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            hint = nearest(name, types)
            raise InputError(f"{where}: unknown setting {name!r}{hint}; there are: {', '.join(types)}")
        kind = types[name].type
        if isinstance(value, str) and getattr(kind, "__origin__", kind) in (list, tuple):
            value = [part.strip() for part in value.split(",") if part.strip()]
        nested = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        plain[name] = configure(kind, value, f"{where}.{name}") if nested and isinstance(value, Mapping) else value
    try:
        return msgspec.convert(plain, struct, strict=False, from_attributes=True)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {str(error).replace('$.', '')}") from None

"""What every task must keep to, tried on an installed one: `rheme plugins check NAME`, or `check(name)` from a plugin's tests.

Each check stands for a promise of the house: examples are read, training makes the loss fall and is a function of its seed, an
answer has the same bits alone and in a batch, a saved model answers as before, bad input gets an InputError, the card is whole.
"""

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rheme import storage, tasks
from rheme.autograd import no_grad
from rheme.errors import InputError, RhemeError
from rheme.training import TrainingConfig, train

_WORDS = "the a small old red green house river dog teacher sees finds likes opens near under every good".split()
_ODD = ("", " ", "x", "😀 🇫🇷", "中文文本", "word " * 400, "tab\tand\nline", "\u200b\ufeff", "ÀÉÎõü ß İ")


@dataclass(frozen=True)
class Check:
    """One promise: whether it holds, and what was seen."""

    name: str
    ok: bool
    note: str


class _BrokenError(Exception):
    """A promise that does not hold."""


def _ensure(condition: bool, message: str) -> None:
    if not condition:
        raise _BrokenError(message)


def check(
    name: str,
    data: str | Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    steps: int = 40,
    echo: Callable[[Check], None] | None = None,
) -> list[Check]:
    """Try every promise on the installed task; one that fails does not keep the others from being tried.

    data: a file of examples; without it the task's own `samples()`, or invented ones. settings: tables ``task`` and ``train``,
    such as a smaller model. steps: of training.
    """
    found: list[Check] = []

    def tell(item: Check) -> None:
        found.append(item)
        if echo is not None:
            echo(item)

    with tempfile.TemporaryDirectory(prefix="rheme-check-") as folder:
        trial = _Trial(name, data, settings or {}, steps, Path(folder))
        for promise, needs, method in trial.promises():
            if missing := [other for other in needs if not any(c.name == other and c.ok for c in found)]:
                tell(Check(promise, False, f"not tried: {missing[0]} failed"))
                continue
            try:
                tell(Check(promise, True, method()))
            except _BrokenError as error:
                tell(Check(promise, False, str(error)))
            except RhemeError as error:
                tell(Check(promise, False, f"{type(error).__name__}: {error}"))
            except Exception as error:  # whatever a stranger's code raises
                tell(Check(promise, False, f"{type(error).__name__}: {error}"))
    return found


class _Trial:
    """A task being tried: each method keeps a promise or raises, and returns what to tell."""

    def __init__(self, name: str, data: Any, settings: Mapping[str, Mapping[str, Any]], steps: int, folder: Path) -> None:
        self.name, self.data, self.settings, self.steps, self.folder = (name, data, settings, steps, folder)

    def promises(self) -> list[tuple[str, tuple[str, ...], Callable[[], str]]]:
        """Name, what must hold before it can be tried, and how it is tried."""
        return [
            ("found", (), self.found),
            ("config", ("found",), self.config),
            ("examples", ("found",), self.read),
            ("split", ("examples",), self.split),
            ("loss falls", ("examples",), self.learns),
            ("same seed, same weights", ("loss falls",), self.repeats),
            ("same bits batched and single", ("loss falls",), self.batches),
            ("save and load", ("loss falls",), self.restores),
            ("evaluate", ("loss falls",), self.measures),
            ("bad input", ("loss falls",), self.refuses),
            ("odd input", ("loss falls",), self.survives),
            ("card", ("save and load",), self.card),
        ]

    def _new(self) -> Any:
        return self.cls(tasks.configure(self.cls.Config, self.settings.get("task", {}), "task"))

    def found(self) -> str:
        self.cls = tasks.get_task(self.name)
        info = tasks.list_tasks()[self.name]
        _ensure(self.cls.name == self.name, f"its class calls itself {self.cls.name!r}: the entry point and `name` must agree")
        return f"{info.module} of {info.distribution} {info.version}"

    def config(self) -> str:
        default = self.cls.Config()
        again = tasks.configure(self.cls.Config, msgspec.to_builtins(default))
        _ensure(default == again, "Config() does not come back the same from plain values")
        with suppress(InputError):
            tasks.configure(self.cls.Config, {"no_such_setting": 1})
            raise _BrokenError("an unknown setting is taken without a word")
        return f"{len(msgspec.structs.fields(self.cls.Config))} settings, all with defaults"

    def read(self) -> str:
        task = self._new()
        if self.data is not None:
            self.examples = task.read(self.data)
            source = str(self.data)
        else:
            rows = list(self.cls.samples()) or _invented(self.cls.fields)
            path = self.folder / f"examples{self.cls.suffix}"
            task.write_examples(path, rows)
            self.examples, source = (task.read(path), "its samples()" if self.cls.samples() else "invented ones")
            _ensure(len(self.examples) > 0, "none of the examples written by write_examples is read again")
        again = self.folder / f"again{self.cls.suffix}"
        task.write_examples(again, self.examples)
        _ensure(task.read(again) == self.examples, "write_examples and read do not give the same examples again")
        _ensure(len(self.examples) >= 8, f"{len(self.examples)} examples: at least 8 are needed to try the rest")
        return f"{len(self.examples)} from {source}"

    def split(self) -> str:
        rest, held = self._new().split(self.examples, 0.3)
        first = {_texts(row)[0] for row in rest} & {_texts(row)[0] for row in held}
        _ensure(not first, f"{len(first)} texts stand both in training and in validation")
        _ensure(len(rest) + len(held) <= len(self.examples), "a split makes examples that were not there")
        _ensure(self._new().split(self.examples, 0.3) == (rest, held), "the same examples are split another way")
        return f"{len(rest)} and {len(held)}"

    def _train(self, folder: Path, steps: int) -> Any:
        task = self._new()
        given: dict[str, Any] = {
            "max_steps": steps,
            "warmup_steps": 2,
            "learning_rate": 5e-3,
            "batch_tokens": 200,
            "log_every": max(1, steps // 2),
            "evaluate": False,
            "save_dtype": "float32",
            **self.settings.get("train", {}),
        }
        train(task, self.examples, [], folder, tasks.configure(TrainingConfig, given, "train"), echo=lambda line: None)
        return self.cls.restore(folder)

    def learns(self) -> str:
        before = self._train(self.folder / "short", 1)
        self.task = self._train(self.folder / "model", self.steps)
        losses = []
        for task in (before, self.task):
            total, units = 0.0, 0
            with no_grad():
                for item in task.encode_all(self.examples):
                    loss, count, _ = task.loss([item], 0)
                    total, units = total + loss.item(), units + count
            losses.append(total / max(units, 1))
        _ensure(all(np.isfinite(losses)), f"the loss is not finite: {losses}")
        _ensure(losses[1] < losses[0], f"after {self.steps} steps the loss is {losses[1]:.4g}, after 1 it was {losses[0]:.4g}")
        return f"from {losses[0]:.4g} to {losses[1]:.4g} in {self.steps} steps"

    def repeats(self) -> str:
        first, second = (self._train(self.folder / part, 3).model.state_dict() for part in ("one", "two"))
        different = [key for key in first if not np.array_equal(first[key], second[key])]
        _ensure(
            not different, f"two trainings with the same seed differ in {', '.join(different[:3])}: is there randomness in it?"
        )
        return f"{len(first)} arrays"

    def _inputs(self) -> list[Any]:
        return list(self.task.inputs(self.examples[:24]))

    def _answers(self, inputs: list[Any], task: Any = None) -> list[Any]:
        """Plain values, of the trained task or of another one."""
        task = task or self.task
        return _plain(task.answer(inputs, **task.needed_options()))

    def batches(self) -> str:
        inputs = self._inputs()
        together = self._answers(inputs)
        _ensure(len(together) == len(inputs), f"{len(together)} answers to {len(inputs)} inputs")
        for number, (value, one) in enumerate(zip(inputs, together, strict=True)):
            alone = self._answers([value])[0]
            _ensure(alone == one, f"input {number} is answered {str(one)[:120]} in a batch, but {str(alone)[:120]} alone")
        _ensure(self._answers(inputs[::-1])[::-1] == together, "answers depend on the order of the inputs")
        _ensure(self._answers([]) == [], "no inputs must give no answers")
        return f"{len(inputs)} inputs"

    def restores(self) -> str:
        inputs = self._inputs()
        self.saved = self.task.save(self.folder / "saved", metrics={"check": 1.0})
        loaded = tasks.load(self.name, model=self.saved)
        _ensure(self._answers(inputs, loaded) == self._answers(inputs), "the loaded model answers otherwise")
        size = sum(file.stat().st_size for file in self.saved.iterdir())
        damaged = self.folder / "damaged"
        damaged.mkdir()
        for file in self.saved.iterdir():
            (damaged / file.name).write_bytes(file.read_bytes())
        weights = bytearray((damaged / storage.WEIGHTS).read_bytes())
        weights[-1] ^= 1
        (damaged / storage.WEIGHTS).write_bytes(weights)
        with suppress(InputError):
            tasks.load(self.name, model=damaged)
            raise _BrokenError("a model with one bit changed is loaded")
        return f"{size / 1000:.0f} kB"

    def measures(self) -> str:
        figures = self.task.evaluate(self.examples)
        _ensure(isinstance(figures, dict) and len(figures) > 0, "evaluate gives no figures")
        for key, value in figures.items():
            _ensure(
                isinstance(key, str) and isinstance(value, int | float | str), f"the figure {key!r} is {type(value).__name__}"
            )
        return ", ".join(f"{key} {value:.3g}" for key, value in figures.items() if not isinstance(value, str))[:100]

    def refuses(self) -> str:
        tried = 0
        for wrong in ([3], [None], [b"bytes"]):
            with suppress(InputError):
                self.task.answer(wrong, **self.task.needed_options())
                raise _BrokenError(f"answer({wrong}) is answered; an InputError is expected")
            tried += 1
        with suppress(InputError):
            self.task.answer(self._inputs()[:1], **self.task.needed_options(), no_such_option=1)
            raise _BrokenError("an unknown option is taken without a word")
        with suppress(InputError):
            self.task.read(self.folder / "no-such-file.tsv")
            raise _BrokenError("a file that is not there is read")
        return f"{tried + 2} mistakes, each with an InputError"

    def survives(self) -> str:
        inputs = self._inputs()
        if not isinstance(inputs[0], str):
            return "not tried: inputs are no plain texts"
        answers = self.task.answer(list(_ODD), **self.task.needed_options())
        _ensure(all(isinstance(one, tasks.Result) for one in answers), "an answer is no Result")
        _ensure(_plain(answers) == [self._answers([text])[0] for text in _ODD], "odd texts: other bits in a batch")
        return f"{len(_ODD)} texts: empty, long, other scripts, emoji"

    def card(self) -> str:
        text = (self.saved / storage.CARD).read_text(encoding="utf-8")
        _, head, body = text.split("---\n", 2)
        _ensure("library_name: rheme" in head, "the header lacks library_name")
        _ensure("pipeline_tag:" in head, "the header lacks pipeline_tag: set `pipeline_tag` to the hub's name for the task")
        _ensure("| check | 1 |" in body, "the figures are not in the card")
        return "header and figures"


def _plain(results: Sequence[tasks.Result]) -> list[Any]:
    return [msgspec.json.encode(result.to_dict()) for result in results]


def _texts(row: Any) -> Sequence[Any]:
    return (row,) if isinstance(row, str) else row


def _invented(fields: Sequence[str]) -> list[Any]:
    """Examples for a task that has none of its own: sentences, and for a field called label one of three."""
    draw = random.Random(0)
    rows = []
    for number in range(60):
        words = draw.choices(_WORDS, k=draw.randint(4, 9))
        text = " ".join(words).capitalize() + "."
        row = tuple(
            f"label{number % 3}" if "label" in field else text if k == 0 else " ".join(words[:4])
            for k, field in enumerate(fields)
        )
        rows.append(row if len(fields) > 1 else row[0])
    return list(dict.fromkeys(rows))

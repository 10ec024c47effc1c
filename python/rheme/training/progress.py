"""What a training tells: a progress bar on a terminal, plain lines elsewhere, and metrics.jsonl."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from rheme.errors import InputError
from rheme.training.checkpoints import writing

Echo = Callable[[str], None]

_PANEL_ROWS = 8  # validations in view


def to_stderr(line: str) -> None:
    """Tell a line. Where nobody reads it (`2>&1 | head`, `2>&-`), training goes on in silence."""
    if sys.stderr is None:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # what Python still holds for it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes, such as "1.3 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"


class Display:
    """Lines, and on a terminal a bar below them. A context manager."""

    def __init__(self, total_steps: int, echo: Echo | None) -> None:
        self._total = total_steps
        self._echo = echo
        self._bar: Any = None
        self._live: Any = None
        self._task: Any = None
        self._rows: list[tuple[int, Mapping[str, str]]] = []
        self._note = ""

    def __enter__(self) -> Self:
        if self._echo is None and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[speed]} tokens/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._live = Live(get_renderable=self._panel, console=self._bar.console, refresh_per_second=4)
            self._live.start()
            self._task = self._bar.add_task("", total=self._total, epoch=1, loss="-", speed="-")
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def _panel(self) -> Any:
        """The bar, below what the task found at the last validations."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not self._rows:
            return self._bar
        table = Table("step", *self._rows[-1][1], expand=False)
        for step, row in self._rows[-_PANEL_ROWS:]:
            table.add_row(str(step), *row.values())
        parts = [table, Text(self._note)] if self._note else [table]
        return Group(*parts, self._bar)

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            (self._echo or to_stderr)(text)

    def inspection(self, step: int, shown: Mapping[str, str], note: str) -> None:
        """What the task found at a validation: a row of the panel; off a terminal a line."""
        if shown and self._bar is not None:
            self._rows.append((step, shown))
        elif shown:
            self.line(f"validation at step {step}: " + ", ".join(f"{name} {value}" for name, value in shown.items()))
        if note and self._bar is None:
            self.line(note)
        self._note = note

    def step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def window(self, figures: Mapping[str, Any], seconds_left: float) -> None:
        """The figures of a window of steps."""
        if self._bar is not None:
            fields = {
                "epoch": figures["epoch"],
                "loss": f"{figures['loss']:.3f}",
                "speed": f"{figures['tokens_per_second']:.0f}",
            }
            self._bar.update(self._task, completed=figures["step"], **fields)
            return
        parts = [f"step {figures['step']}/{self._total}", f"epoch {figures['epoch']}", f"loss {figures['loss']:.4f}"]
        parts += [f"{figures['tokens_per_second']:.0f} tokens/s", f"{duration(seconds_left)} left"]
        self.line(", ".join(parts))


class Journal:
    """metrics.jsonl: one JSON object a line. A line is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate(self, step: int, validated: int) -> None:
        """Forget what was written after these steps, and a torn last line: the training goes on from there."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                entry = msgspec.json.decode(line)
            except msgspec.DecodeError:
                break
            if entry.get("step", 0) <= (validated if "valid_loss" in entry else step):
                kept.append(line)
        with writing(self.path):
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_bytes(b"".join(kept))
            os.replace(temporary, self.path)

    def validations(self) -> list[dict[str, Any]]:
        """The entries of validations, oldest first, without a last line that was not written to its end.

        InputError for another line that is no JSON object, and for a validation that does not tell its step.
        """
        found, lines = [], self.path.read_bytes().split(b"\n") if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                if number == len(lines):
                    break
                raise InputError(f"{self.path}:{number}: not JSON: {error}") from None
            if not isinstance(entry, dict):
                raise InputError(f"{self.path}:{number}: expected a JSON object")
            if "valid_loss" not in entry:
                continue
            if not isinstance(entry.get("step"), int):
                raise InputError(f"{self.path}:{number}: a validation without its step")
            found.append(entry)
        return found

    def write(self, entry: Mapping[str, Any]) -> None:
        line = msgspec.json.encode(entry) + b"\n"
        with writing(self.path):
            before = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("ab") as file:
                    file.write(line)
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, before)
                raise


class Clock:
    """Seconds since the last call; for what is shown, never for what is computed."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return max(seconds, 1e-9)

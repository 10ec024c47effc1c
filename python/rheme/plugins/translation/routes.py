"""Ways between languages through the bundled models: straight where one pairs them, else by one language between."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rheme import storage, tasks
from rheme.errors import InputError
from rheme.tasks import Result
from rheme.text import language

_SURE = 3.0  # nats by which another language must be likelier than the one expected: one word of a sentence at most


class Routes:
    """pairs: where the model from a source into a target lies. profiles: what the languages' writing looks like, by code."""

    def __init__(self, pairs: Mapping[tuple[str, str], Path], profiles: Mapping[str, str]) -> None:
        self.pairs, self.profiles = pairs, profiles

    @classmethod
    def bundled(cls, task: str) -> "Routes":
        """Through the bundled models of a task; of two with one pair, the first."""
        headers = ((path, storage.read_config(path)) for path in tasks.bundled().values())
        configs = [(path, header["config"]) for path, header in headers if header.get("task") == task]
        profiles: dict[str, str] = {}
        for _, config in configs:
            profiles = config.get("profiles", {}) | profiles
        return cls({pair: path for path, config in reversed(configs) for pair in _directions(config)}, profiles)

    def path(self, source: str, target: str) -> tuple[str, ...] | None:
        """The languages from source to target, at most one between them; one only where they are the same."""
        if source == target:
            return (target,)
        if (source, target) in self.pairs:
            return source, target
        through = sorted({b for a, b in self.pairs if a == source} & {a for a, b in self.pairs if b == target})
        return (source, through[0], target) if through else None

    def detect(self, text: str, target: str, own: str) -> str:
        """The language of a text that is to be brought into target; own: what the asking model would take it for, or ""."""
        sources = {code: grams for code, grams in self.profiles.items() if self.path(code, target)}
        only = own if sum(to == target for _, to in self.pairs) == 1 else ""
        return language.Languages(sources).detect(text, only, _SURE) or own or target

    def find(self, source: str, target: str) -> tuple[str, ...]:
        """`path`, or an InputError that says what there is."""
        path = self.path(source, target)
        if path is None:
            names = ", ".join(f"{first} to {second}" for first, second in sorted(self.pairs))
            raise InputError(f"no bundled model translates from {source} to {target}; there are: {names}")
        return path


def both(first: Result, second: Result) -> Result:
    """The second of two translations of which one went into the other."""
    noticed = tuple(dict.fromkeys((*first.warnings, *second.warnings)))
    return replace(second, score=first.score * second.score, warnings=noticed)


def _directions(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (source, target) codes of a stored config."""
    first, second = config["languages"]
    each = {"forward": [(first, second)], "backward": [(second, first)]}
    return each.get(config.get("directions", "both"), [(first, second), (second, first)])

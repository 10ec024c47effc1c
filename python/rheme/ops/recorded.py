"""A step of decoding, recorded once for each shape of its state and then run as one: by the core, or as a CUDA graph."""

import dataclasses
import functools
import operator
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rheme import _core
from rheme.ops.arrays import Array, _cuda, empty, on_gpu

Step = Callable[[Any, Any], tuple[Array, Any]]


class Recorder(Protocol):
    """What a device records with."""

    def patience(self, rows: int) -> int:
        """How many times a shape must have come before, so that it pays to record it."""
        ...

    def record(self, step: Callable[..., Any], arrays: Sequence[Array]) -> tuple[list[Array], Any, Callable[[], None]]:
        """Calls step with copies of the arrays: the copies, what came of them, and what makes it anew of their contents."""
        ...

    def assign(self, target: Array, value: Array) -> None: ...


class OnCpu:
    """By the core: the kernels are called again on the same arrays."""

    def patience(self, rows: int) -> int:
        return 1 + rows // 4  # what is saved is Python's time, the same for any number of rows; what it costs grows with them

    def record(self, step: Callable[..., Any], arrays: Sequence[Array]) -> tuple[list[Array], Any, Callable[[], None]]:
        copies = [empty(array.shape, array.dtype) for array in arrays]
        for copy, array in zip(copies, arrays, strict=True):
            copy[...] = array
        recording = _core.Recording()
        recording.begin()
        try:
            result = step(*copies)
        finally:
            recording.end()
        return copies, result, recording.run

    def assign(self, target: Array, value: Array) -> None:
        target[...] = value


@functools.cache
def _fields(kind: Any, every: bool) -> tuple[str, ...]:
    """The fields of a state: every one, or those that a step reads."""
    return tuple(field.name for field in dataclasses.fields(kind) if every or field.metadata.get("read", True))


def _flatten(value: Any, leaves: list[Any], every: bool = False) -> Any:
    """The arrays in a state, in order, appended to leaves; returns what the state is beside them."""
    kind: Any = type(value)
    if kind is np.ndarray or on_gpu(value):
        leaves.append(value)
        return "array", value.shape, value.dtype.char
    if kind is tuple or kind is list:
        return kind, tuple([_flatten(item, leaves, every) for item in value])
    if hasattr(kind, "__dataclass_fields__"):
        names = _fields(kind, every)
        return kind, names, tuple([_flatten(getattr(value, name), leaves, every) for name in names])
    return "constant", value


def _rebuild(spec: Any, leaves: list[Any]) -> Any:
    """The state of a spec with other arrays; leaves is used up from its front."""
    kind, *parts = spec
    if kind == "array":
        return leaves.pop(0)
    if kind == "constant":
        return parts[0]
    if kind is tuple or kind is list:
        return kind(_rebuild(item, leaves) for item in parts[0])
    return kind(**{name: _rebuild(item, leaves) for name, item in zip(*parts, strict=True)})


class _Recorded:
    """One recording, with the arrays that it reads and writes, for arguments of one shape."""

    def __init__(self, step: Step, recorder: Recorder, spec: Any, ids: Array, leaves: Sequence[Array]) -> None:
        def called(ids: Array, *arrays: Array) -> tuple[Array, Any]:
            return step(ids, _rebuild(spec, list(arrays)))

        (self.ids, *self.inputs), (self.logits, after), self.run = recorder.record(called, [ids, *leaves])
        self.last: list[Any] = [*leaves]  # what the inputs were last copied from
        numbers = {id(array): index for index, array in enumerate(self.inputs)}
        results: list[Array] = []
        self._spec = _flatten(after, results, every=True)
        self._results = [numbers.get(id(array), array) for array in results]  # an array, or the number of the input that it is
        self._after: tuple[list[Array], Any] | None = None
        self.written = {id(array) for array in results if id(array) not in numbers}
        # Where the state after it can be given to it again as it stands: what is then to be copied where.
        again: list[Array] = []
        same = _flatten(after, again) == spec
        pairs = list(zip(self.inputs, again, strict=True)) if same else []
        self.links = [pair for pair in pairs if id(pair[1]) not in numbers]
        self.closed = same and all(target is source for target, source in pairs if id(source) in numbers)

    def after(self, leaves: Sequence[Array]) -> Any:
        """The state after it, where it was given these: the very one of the last time, where it has the same arrays."""
        results = [leaves[item] if isinstance(item, int) else item for item in self._results]
        if self._after is None or any(map(operator.is_not, results, self._after[0])):
            self._after = results, _rebuild(self._spec, [*results])
        return self._after[1]


_MOST = 16  # shapes, each with memory for its state
_kept = threading.local()  # its recordings are written by one thread at a time


class Captured:
    """step(ids, state) -> (logits, state) of a model whose step is nothing but ops, as recordings.

    A shape is recorded when it comes again; those that have not come for longest are forgotten. What a call returns holds until
    the next one: copy what is to be kept, as `select` does. A field of a state that the step only writes says so:
    `field(metadata={"read": False})`. The weights must not change while it is in use.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self._step, self._recorder = step, recorder
        self._seen: dict[Any, _Recorded | int] = {}  # or how often it came; what came last stands last
        self._written: set[int] = set()  # arrays that recordings write, whose contents change under the same identity
        self._latest: tuple[_Recorded, Any] | None = None  # what was run last, if it can be given the state after it again

    def step(self, ids: Any, state: Any) -> tuple[Array, Any]:
        latest, assign = self._latest, self._recorder.assign
        if latest is not None and latest[1] is state and len(ids) == len(latest[0].ids):
            recorded = latest[0]
            for target, source in recorded.links:
                assign(target, source)
            assign(recorded.ids, ids)
            recorded.run()
            return recorded.logits, state
        leaves: list[Any] = []
        spec = _flatten(state, leaves)
        key = (len(ids), spec)
        found = self._seen.pop(key, 0)
        if isinstance(found, _Recorded):
            recorded = found
            for index, leaf in enumerate(leaves):
                if leaf is not recorded.last[index]:
                    assign(recorded.inputs[index], leaf)
            assign(recorded.ids, ids)
            recorded.run()
        elif found < self._recorder.patience(len(ids)):
            self._seen[key] = found + 1
            if len(self._seen) > _MOST:
                del self._seen[next(iter(self._seen))]
            return self._step(ids, state)
        else:
            recorded = _Recorded(self._step, self._recorder, spec, np.ascontiguousarray(ids, np.int64), leaves)
        self._seen[key] = recorded
        if recorded is not found:
            others = [other for other in self._seen.values() if isinstance(other, _Recorded)]
            self._written = {number for other in others for number in other.written}
        recorded.last = [None if id(leaf) in self._written else leaf for leaf in leaves]
        after = recorded.after(leaves)
        self._latest = (recorded, after) if recorded.closed else None
        return recorded.logits, after


class OfModel(NamedTuple):
    """A model with its recordings, which do not keep it alive themselves."""

    model: Any
    recordings: Captured

    def step(self, ids: Any, state: Any) -> tuple[Array, Any]:
        return self.recordings.step(ids, state)


def captured(model: Any, weights: list[tuple[Array, int]]) -> OfModel:
    """A model's `step` as this thread's recordings, made anew where a weight, (array, version), is another one than before."""
    known = _kept.__dict__.setdefault("models", weakref.WeakKeyDictionary())
    before, recordings = known.get(model, ((), None))
    if [(id(array), version) for array, version in before] != [(id(array), version) for array, version in weights]:
        step = weakref.WeakMethod(model.step)
        recorder = _cuda().Graphs() if any(on_gpu(array) for array, _ in weights) else OnCpu()
        recordings = Captured(lambda ids, state: step()(ids, state), recorder)  # type: ignore[misc]
        known[model] = weights, recordings
    return OfModel(model, recordings)

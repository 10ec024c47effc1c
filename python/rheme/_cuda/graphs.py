"""A step of decoding as a CUDA graph: recorded once for each shape of its state, then launched as one."""

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rheme._cuda.device import Array, cupy, explained, upload

Step = Callable[[Any, Any], tuple[Array, Any]]


def _flatten(value: Any, leaves: list[Any]) -> Any:
    """The arrays in a state, in order, appended to leaves; returns what the state is beside them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value), tuple((name, _flatten(item, leaves)) for name, item in fields.items())
    if isinstance(value, tuple | list):
        return type(value), tuple(_flatten(item, leaves) for item in value)
    if isinstance(value, np.ndarray) or type(value).__module__.startswith("cupy"):
        leaves.append(value)
        return "array", value.shape, value.dtype.str
    return "constant", value


def _rebuild(spec: Any, leaves: list[Any]) -> Any:
    """The state of a spec with other arrays; leaves is used up from its front."""
    if spec[0] == "array":
        return leaves.pop(0)
    if spec[0] == "constant":
        return spec[1]
    if issubclass(spec[0], tuple | list):
        return spec[0](_rebuild(item, leaves) for item in spec[1])
    return spec[0](**{name: _rebuild(item, leaves) for name, item in spec[1]})


class _Recorded:
    """One graph, with the arrays that it reads and writes."""

    def __init__(self, ids: Array, inputs: list[Array]) -> None:
        self.ids, self.inputs = ids, inputs
        self.last: list[Any] = [None] * len(inputs)  # what the inputs were last copied from
        self.graph: Any = None
        self.logits: Any = None
        self.spec: Any = None
        self.outputs: list[Any] = []  # of the state after it: an array, or the number of the input that it is


_MOST = 16  # shapes, each with memory for its state
_kept = threading.local()  # its graphs are written by one thread at a time


class OfModel(NamedTuple):
    """A model with its graphs, which do not keep it alive themselves."""

    model: Any
    graphs: "Captured"

    def step(self, ids: Any, state: Any) -> tuple[Array, Any]:
        return self.graphs.step(ids, state)


def captured(model: Any, weights: list[tuple[Any, int]]) -> OfModel:
    """A model's `step` as this thread's graphs; made anew where a weight, (array, version), is not that of the last call."""
    known = _kept.__dict__.setdefault("models", weakref.WeakKeyDictionary())
    before, graphs = known.get(model, ((), None))
    if [(id(array), version) for array, version in before] != [(id(array), version) for array, version in weights]:
        step = weakref.WeakMethod(model.step)
        graphs = Captured(lambda ids, state: step()(ids, state))  # type: ignore[misc]
        known[model] = weights, graphs
    return OfModel(model, graphs)


class Captured:
    """step(ids, state) -> (logits, state) of a model whose step stays on the device, as graphs.

    A shape is recorded when it comes for the second time; those that have not come for longest are forgotten. What a call
    returns holds until the next one: copy what is to be kept, as `select` does. The weights must not change while it is in use.
    Memory is its own, and freed with it.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._seen: dict[Any, _Recorded | None] = {}  # what came last stands last
        self._written: set[int] = set()  # arrays that graphs write, whose contents change under the same identity
        self._pool = cupy().cuda.MemoryPool()
        self._stream = cupy().cuda.Stream(non_blocking=True)

    def step(self, ids: Any, state: Any) -> tuple[Array, Any]:
        leaves: list[Any] = []
        spec = _flatten(state, leaves)
        key = (len(ids), spec)
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _MOST:
                del self._seen[next(iter(self._seen))]
            return self._step(ids, state)
        recorded = self._seen.pop(key)
        if recorded is None:
            recorded = self._record(ids, spec, leaves)
        self._seen[key] = recorded
        recorded.ids.set(np.ascontiguousarray(ids, np.int64))
        for index, leaf in enumerate(leaves):
            if leaf is not recorded.last[index]:
                recorded.inputs[index][...] = upload(leaf) if isinstance(leaf, np.ndarray) else leaf
                recorded.last[index] = None if id(leaf) in self._written else leaf
        recorded.graph.launch()
        outputs = [leaves[item] if isinstance(item, int) else item for item in recorded.outputs]
        return recorded.logits, _rebuild(recorded.spec, outputs)

    def _record(self, ids: Any, spec: Any, leaves: Sequence[Any]) -> _Recorded:
        module = cupy()
        self._stream.wait_event(module.cuda.get_current_stream().record())  # what is read here, and this pool's last users
        with explained(), module.cuda.using_allocator(self._pool.malloc), self._stream:
            inputs = [upload(leaf) if isinstance(leaf, np.ndarray) else leaf.copy() for leaf in leaves]
            recorded = _Recorded(upload(np.ascontiguousarray(ids, np.int64)), inputs)
            state = _rebuild(spec, list(recorded.inputs))
            for _ in range(2):  # kernels are compiled, cuBLAS has its workspace, the pool has its blocks
                self._step(recorded.ids, state)
            self._stream.synchronize()
            self._stream.begin_capture()
            try:
                logits, after = self._step(recorded.ids, state)
            except BaseException:
                with contextlib.suppress(Exception):  # a capture that was cut short tells of nothing but that
                    self._stream.end_capture()
                raise
            graph = self._stream.end_capture()
        outputs: list[Any] = []
        recorded.spec = _flatten(after, outputs)
        numbers = {id(array): index for index, array in enumerate(recorded.inputs)}
        recorded.outputs = [numbers.get(id(array), array) for array in outputs]
        recorded.graph, recorded.logits = graph, logits
        graphs = [recorded, *(other for other in self._seen.values() if other)]
        self._written = {id(item) for other in graphs for item in other.outputs if not isinstance(item, int)}
        return recorded

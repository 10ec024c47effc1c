"""A step of decoding as a CUDA graph: recorded once for each shape of its state, then launched as one."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

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


class Captured:
    """step(ids, state) -> (logits, state) of a model whose step stays on the device, as graphs.

    A shape is recorded when it comes for the second time. What a call returns holds until the next one: copy what is to be
    kept, as `select` does. The weights must not change while it is in use. Memory is its own, and freed with it.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._seen: dict[Any, _Recorded | None] = {}
        self._pool = cupy().cuda.MemoryPool()
        self._stream = cupy().cuda.Stream(non_blocking=True)

    def step(self, ids: Any, state: Any) -> tuple[Array, Any]:
        leaves: list[Any] = []
        spec = _flatten(state, leaves)
        key = (len(ids), spec)
        if key not in self._seen:
            self._seen[key] = None
            return self._step(ids, state)
        recorded = self._seen[key]
        if recorded is None:
            recorded = self._seen[key] = self._record(ids, spec, leaves)
        recorded.ids.set(np.ascontiguousarray(ids, np.int64))
        for index, leaf in enumerate(leaves):
            if leaf is not recorded.last[index]:
                recorded.inputs[index][...] = upload(leaf) if isinstance(leaf, np.ndarray) else leaf
                recorded.last[index] = leaf
        recorded.graph.launch()
        outputs = [leaves[item] if isinstance(item, int) else item for item in recorded.outputs]
        # A graph's own outputs come back as inputs with the same identity, but with other contents each time.
        recorded.last = [None if any(leaf is item for item in recorded.outputs) else leaf for leaf in recorded.last]
        return recorded.logits, _rebuild(recorded.spec, outputs)

    def _record(self, ids: Any, spec: Any, leaves: Sequence[Any]) -> _Recorded:
        module = cupy()
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
            finally:
                graph = self._stream.end_capture()
        outputs: list[Any] = []
        recorded.spec = _flatten(after, outputs)
        numbers = {id(array): index for index, array in enumerate(recorded.inputs)}
        recorded.outputs = [numbers.get(id(array), array) for array in outputs]
        recorded.graph, recorded.logits = graph, logits
        return recorded

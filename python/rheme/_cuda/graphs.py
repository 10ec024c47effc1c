"""A step of decoding as a CUDA graph: recorded once, then launched as one. See `rheme.ops.recorded`."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rheme._cuda.blas import cublas_room
from rheme._cuda.device import Array, cupy, explained, upload


class Graphs:
    """Records graphs. Their memory is their own, and freed with them."""

    def __init__(self) -> None:
        self._pool = cupy().cuda.MemoryPool()
        self._stream = cupy().cuda.Stream(non_blocking=True)

    def patience(self, rows: int) -> int:
        """How many times a shape must have come before: see `rheme.ops.recorded.Recorder`."""
        return 1

    def record(self, step: Callable[..., Any], arrays: Sequence[Any]) -> tuple[list[Array], Any, Callable[[], None]]:
        """Calls step with copies of the arrays on the device: the copies, what came of them, and the graph's launch."""
        module = cupy()
        cublas_room()  # taken now: of no graph's memory
        self._stream.wait_event(module.cuda.get_current_stream().record())  # what is read here, and this pool's last users
        with explained(), module.cuda.using_allocator(self._pool.malloc), self._stream:
            copies = [upload(array) if isinstance(array, np.ndarray) else array.copy() for array in arrays]
            for _ in range(2):  # kernels are compiled, cuBLAS has its workspace, the pool has its blocks
                step(*copies)
            self._stream.synchronize()
            self._stream.begin_capture()
            try:
                result = step(*copies)
            except BaseException:
                with contextlib.suppress(Exception):  # a capture that was cut short tells of nothing but that
                    self._stream.end_capture()
                raise
            graph = self._stream.end_capture()
        graph.launch()
        return copies, result, graph.launch

    def assign(self, target: Array, value: Any) -> None:
        """Copy to an array of the device."""
        if isinstance(value, np.ndarray):
            target.set(np.ascontiguousarray(value, target.dtype))
        else:
            target[...] = value

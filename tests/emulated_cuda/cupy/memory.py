"""Memory of the emulated device: pools that hand freed blocks out again, guards around each block."""

import os
import weakref
from typing import Any

import numpy

GUARD = 64
_live: "weakref.WeakSet[Block]" = weakref.WeakSet()


class OutOfMemoryError(MemoryError):
    pass


OutOfMemoryError.__module__ = "cupy.cuda.memory"


class Pool:
    """Freed blocks by size, as CuPy's pool: rounded up to 512 bytes."""

    def __init__(self) -> None:
        self.free: dict[int, list[numpy.ndarray]] = {}
        self.bytes = 0

    def malloc(self, size: int) -> "Block":
        return Block(self, size)

    def total_bytes(self) -> int:
        return self.bytes


class Block:
    """One piece of memory; it goes back to its pool when the last array on it is gone."""

    def __init__(self, pool: Pool, size: int) -> None:
        from . import cuda

        self.pool, self.size = pool, size
        self.room = max(512, -(-size // 512) * 512)
        spare = pool.free.get(self.room)
        if spare:
            self.memory = spare.pop()
        else:
            if cuda.capturing is not None:
                raise RuntimeError("cudaErrorStreamCaptureUnsupported: cudaMalloc while a stream is captured")
            limit = int(os.environ.get("RHEME_EMULATED_MEMORY", 1 << 34))
            if pool.bytes + self.room > limit:
                raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (allocated so far: {pool.bytes:,} bytes).")
            pool.bytes += self.room
            raw = numpy.empty(self.room + 2 * GUARD + 256, numpy.uint8)
            start = -raw.ctypes.data % 256
            self.memory = raw[start : start + self.room + 2 * GUARD]
        # What a graph's arrays leave, its other arrays get: then neither fill nor guard would stand.
        self.guards = (self.memory[:GUARD], self.memory[GUARD + size :]) if cuda.capturing is None else ()
        if cuda.capturing is None:
            self.memory[...] = 0xFF
        for guard in self.guards:
            guard[...] = 0xA5
        self.bytes = self.memory[GUARD : GUARD + size]
        _live.add(self)

    def intact(self) -> bool:
        return all((guard == 0xA5).all() for guard in self.guards)

    def __del__(self) -> None:
        if hasattr(self, "memory"):
            self.pool.free.setdefault(self.room, []).append(self.memory)


def allocate(shape: Any, dtype: numpy.dtype) -> tuple[numpy.ndarray, Block]:
    from . import cuda

    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = int(numpy.prod(shape, dtype=numpy.int64)) * dtype.itemsize
    block = cuda.allocator(size)
    return block.bytes.view(dtype).reshape(shape) if size else numpy.empty(shape, dtype), block


def covers(pointer: int, size: int) -> bool:
    """Whether [pointer, pointer + size) lies in one live block."""
    return any(
        block.bytes.ctypes.data <= pointer and pointer + size <= block.bytes.ctypes.data + block.size for block in list(_live)
    )

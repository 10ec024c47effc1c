"""cupy.cuda: the device, streams, graphs, events, and what it tells of itself."""

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from . import memory
from .memory import Pool

module: Any = None  # cupy itself
capturing: list[Callable[[], Any]] | None = None  # what the stream under capture is to do

default_pool = Pool()
allocator: Callable[[int], Any] = default_pool.malloc
MemoryPool = Pool


def do(action: Callable[[], Any]) -> None:
    """Work of the device: at once, or, while a stream is captured, when its graph is launched."""
    if capturing is None:
        action()
    else:
        capturing.append(action)


@contextlib.contextmanager
def using_allocator(malloc: Callable[[int], Any]) -> Iterator[None]:
    global allocator
    before, allocator = allocator, malloc
    try:
        yield
    finally:
        allocator = before


class Graph:
    def __init__(self, actions: list[Callable[[], Any]]) -> None:
        self.actions = actions

    def launch(self, stream: Any = None) -> None:
        module.counts["graph"] += 1
        for action in self.actions:
            action()


class Stream:
    ptr = 0

    def __init__(self, non_blocking: bool = False) -> None:
        self.non_blocking = non_blocking

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def begin_capture(self) -> None:
        global capturing
        if not self.non_blocking:
            raise RuntimeError("cudaErrorStreamCaptureImplicit: a blocking stream")
        capturing = []

    def end_capture(self) -> Graph:
        global capturing
        assert capturing is not None
        graph, capturing = Graph(capturing), None
        return graph

    def is_capturing(self) -> bool:
        return capturing is not None

    def synchronize(self) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record(self, event: Any = None) -> Any:
        return event or Event()


class Event:
    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass


def get_current_stream() -> Stream:
    return Stream()


def get_elapsed_time(start: Event, stop: Event) -> float:
    return 1e3 * (stop.time - start.time)


class Device:
    id = 0
    compute_capability = os.environ.get("RHEME_EMULATED_CAPABILITY", "90")

    def __init__(self, number: int = 0) -> None:
        pass

    def synchronize(self) -> None:
        pass


class CUDARuntimeError(RuntimeError):
    pass


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


def _device_count() -> int:
    fault = os.environ.get("RHEME_EMULATED_FAULT")
    if fault == "driver":
        raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")
    if fault == "device":
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return 1


def _memory_info() -> tuple[int, int]:
    total = int(os.environ.get("RHEME_EMULATED_MEMORY", 1 << 34))
    return total - default_pool.bytes, total


runtime = SimpleNamespace(
    getDeviceCount=_device_count,
    getDeviceProperties=lambda number: {
        "name": b"emulated device",
        "multiProcessorCount": resident_blocks(),
        "sharedMemPerBlockOptin": int(os.environ.get("RHEME_EMULATED_SHARED", 227 << 10)),
    },
    memGetInfo=_memory_info,
    runtimeGetVersion=lambda: 13000,
    driverGetVersion=lambda: 13000,
    CUDARuntimeError=CUDARuntimeError,
)
device = SimpleNamespace(get_cublas_handle=lambda: 1)
sys.modules.setdefault("cupy.cuda.memory", memory)


def resident_blocks() -> int:
    return int(os.environ.get("RHEME_EMULATED_MULTIPROCESSORS", "4"))


def _set_attribute(function: Any, attribute: int, value: int) -> None:
    assert (attribute, value) == (14, 1)  # clusters of more than 8 blocks
    module.compiling.by_pointer[function].most_blocks = 16


driver = SimpleNamespace(
    funcSetAttribute=_set_attribute,
    occupancyMaxActiveBlocksPerMultiprocessor=lambda function, threads, shared: 1,
)


def _active_clusters(count: Any, function: Any, config: Any) -> int:
    """cuOccupancyMaxActiveClusters: asked for one cluster, of a size that its attribute tells."""
    given = config._obj
    attribute = given.attributes[0]
    assert (ctypes.sizeof(given), ctypes.sizeof(attribute)) == (56, 72)
    assert given.count == 1
    assert attribute.id == 4
    assert list(attribute.cluster) == list(given.grid)
    count._obj.value = int(os.environ.get("RHEME_EMULATED_CLUSTERS", "2"))
    return 0


def _library(name: str, *arguments: Any, **keywords: Any) -> Any:
    if name == "libcuda.so.1":
        return SimpleNamespace(cuOccupancyMaxActiveClusters=_active_clusters)
    if name == "libcublas.so.13":
        if os.environ.get("RHEME_EMULATED_FAULT") == "cublas":
            raise OSError("libcublas.so.13: cannot open shared object file")
        return module.cublas.itself
    return CDLL(name, *arguments, **keywords)


CDLL, ctypes.CDLL = ctypes.CDLL, _library  # type: ignore[misc, assignment]

"""The device: CuPy found, kernels compiled and launched, memory, and what is said when one of these fails.

CuPy is imported when the first array of it appears, or is asked for; never before.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rheme import _core
from rheme.errors import RhemeError

Array = Any  # a cupy.ndarray

EXTRAS = "pip install 'rheme[cuda13]' (or 'rheme[cuda12]' for a driver of CUDA 12)"
_OLDEST = (14, 2)

# CuPy adds -ftz=true and the architecture. Nothing is contracted, so that what is said in the kernels is what is computed.
OPTIONS = ("-fmad=false", "-std=c++17")
THREADS = 256
_NULL = np.uint64(0)  # CuPy passes None as an argument that isn't there, not as a null pointer


# CuPy ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def cupy() -> Any:
    """The module, with a device that answers. RhemeError, in one line, for whatever stands in the way."""
    try:
        module = importlib.import_module("cupy")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise RhemeError(f"device 'cuda' needs CuPy: {EXTRAS}") from None
        raise RhemeError(f"CuPy cannot be loaded ({one_line(error)}): {EXTRAS}") from None
    version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
    if version < _OLDEST:
        raise RhemeError(f"CuPy {module.__version__} is too old, {'.'.join(map(str, _OLDEST))} is needed: {EXTRAS}")
    try:
        count = module.cuda.runtime.getDeviceCount()
    except Exception as error:  # CUDARuntimeError, or what a missing library raises
        raise RhemeError(_no_device(module, error)) from None
    if count == 0:
        raise RhemeError("device 'cuda': the driver shows no GPU (is CUDA_VISIBLE_DEVICES empty?)")
    return module


def one_line(error: BaseException) -> str:
    """What an exception says, in one line of bearable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _no_device(module: Any, error: Exception) -> str:
    text = str(error)
    if "insufficient" in text.lower():
        return (
            f"the NVIDIA driver is too old for this CuPy {module.__version__}, or there is none: update the driver, "
            f"or install the CuPy of its CUDA version: {EXTRAS}"
        )
    if "NoDevice" in text or "no CUDA-capable" in text:
        return "device 'cuda': the driver finds no GPU"
    return (
        f"device 'cuda' does not answer ({one_line(error)}); is an NVIDIA driver installed, and CuPy's CUDA libraries: {EXTRAS}"
    )


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """CuPy's errors of memory and of the compiler become one line."""
    try:
        yield
    except RhemeError:
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise RhemeError(out_of_memory(error)) from None
        if type(error).__name__ == "CompileException":
            raise RhemeError(f"a CUDA kernel of rheme does not compile here: {one_line(error)}") from None
        if isinstance(error, ImportError | OSError | RuntimeError) and "nvrtc" in str(error).lower():
            raise RhemeError(f"CuPy finds no NVRTC, which compiles the kernels ({one_line(error)}): {EXTRAS}") from None
        raise


def out_of_memory(error: Exception) -> str:
    """The line for an allocation that failed."""
    try:
        free, total = cupy().cuda.runtime.memGetInfo()
        held = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    except Exception:
        held = one_line(error)
    return f"the GPU is out of memory ({held}): lower train.batch_tokens, or shorten the texts"


# Kernels ------------------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where the kernels' text is: beside the compiled core."""
    return Path(_core.__file__).parent / "cuda"


@functools.cache
def source(name: str) -> str:
    """The text of a kernel file with its own headers in it: CuPy's cache looks at the text alone."""
    seen: set[str] = set()

    def read(part: str) -> Iterator[str]:
        for line in (folder() / part).read_text(encoding="utf-8").splitlines():
            included = re.match(r'#include "([^"]+)"', line)
            if included and included[1] not in seen:
                seen.add(included[1])
                yield from read(included[1])
            elif not included and line.strip() != "#pragma once":
                yield line

    return "\n".join(read(f"{name}.cu")) + "\n"


@functools.cache
def kernel_of(name: str, kernel: str, dtype: str, defines: tuple[str, ...] = (), cooperative: bool = False) -> Any:
    """A kernel of a file. cooperative: all blocks of a launch run at once, or it is refused."""
    module = _module(name, dtype, defines, cooperative)
    with explained():
        return module.get_function(kernel)


@functools.cache
def _module(name: str, dtype: str, defines: tuple[str, ...], cooperative: bool) -> Any:
    """A kernel file, compiled for one floating type. The first time on a machine takes a second, and says so."""
    options = (*OPTIONS, f"-DRHEME_FLOAT={'double' if dtype == 'float64' else 'float'}", *defines)
    with explained():
        module = cupy().RawModule(code=source(name), options=options, enable_cooperative_groups=cooperative)
    marker = _marker(source(name), options)
    if marker is not None and not marker.exists():
        print(f"rheme: compiling {name} kernels for {isa()} (once; kept in {marker.parent})", file=sys.stderr, flush=True)
    with explained():
        module.compile()
    if marker is not None:
        with contextlib.suppress(OSError):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(f"{name} {dtype} {isa()}\n")
    compiled.append(f"{name} ({dtype})")
    return module


compiled: list[str] = []  # in this process, or taken from the cache


def _marker(text: str, options: Sequence[str]) -> Path | None:
    """A file beside CuPy's own that says: this text has been compiled before, for this GPU by this CuPy."""
    if os.environ.get("CUPY_CACHE_IN_MEMORY", "0") not in ("", "0"):
        return None
    key = hashlib.sha256("\0".join((text, *options, isa(), cupy().__version__)).encode()).hexdigest()
    return cache() / f"rheme-{key[:32]}"


def cache() -> Path:
    """CuPy's folder of compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


def kept() -> list[str]:
    """What stands compiled in CuPy's cache for this device, by file and type."""
    found = [path.read_text().split() for path in cache().glob("rheme-*") if path.is_file()]
    return sorted({f"{words[0]} ({words[1]})" for words in found if words[2:] == [isa()]})


def launch(
    name: str, kernel: str, dtype: Any, grid: int | tuple[int, int], block: int, *arguments: Any, shared: int = 0
) -> None:
    """Start a kernel of a file on the current stream.

    Arguments: arrays, None for a null pointer, ints (int64_t), floats (double), and NumPy scalars as what they are.
    """
    blocks = grid if isinstance(grid, tuple) else (grid, 1)
    if 0 in blocks:
        return
    function = kernel_of(name, kernel, dtype_name(dtype))
    allow_shared(function, shared)
    function(blocks, (block,), given(arguments), shared_mem=shared)


def prepared(name: str, kernel: str, dtype: str, n: int) -> Callable[..., None]:
    """`launch` for n elements, to be called many times: each time with its first arguments, and the rest as `given`."""
    function, grid = kernel_of(name, kernel, dtype), (each(n), 1)
    return (lambda first, rest: function(grid, (THREADS,), (*first, *rest))) if n else (lambda first, rest: None)


def allow_shared(function: Any, shared: int) -> None:
    """Let a kernel have so many bytes of dynamic shared memory; a little less than 48 KB, its own beside it, every one has."""
    if shared > 40 << 10:
        function.max_dynamic_shared_size_bytes = shared


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, of the cluster's dimensions."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("cluster", ctypes.c_uint * 3), ("rest", ctypes.c_uint * 13))


_CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint), ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)), ("count", ctypes.c_uint),
    )  # fmt: skip


def active_clusters(function: Any, blocks: int, threads: int, shared: int) -> int:
    """How many clusters of a kernel compiled for clusters can run at once; 0 where the driver does not tell.

    A small GPU, or one that is shared out, may have no room for a large one. CuPy does not hand the driver's function on.
    """
    try:
        ask = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1").cuOccupancyMaxActiveClusters
    except (OSError, AttributeError):
        return 0
    size, three = (blocks, 1, 1), ctypes.c_uint * 3
    attribute = _LaunchAttribute(_CLUSTER_DIMENSION, 0, three(*size))
    config = _LaunchConfig(three(*size), three(threads, 1, 1), shared, None, ctypes.pointer(attribute), 1)
    count = ctypes.c_int(0)
    failed = ask(ctypes.byref(count), ctypes.c_void_p(function.kernel.ptr), ctypes.byref(config))
    return 0 if failed else count.value


def given(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments as CuPy wants them."""
    return tuple(_NULL if a is None else a for a in arguments)


def each(n: int) -> int:
    """Blocks of THREADS for n elements: every thread one, up to what fills any GPU, then more."""
    return min(-(-n // THREADS), 8192)


def row_threads(columns: int) -> int:
    """Threads of a block that takes a row: enough to have a few elements each."""
    return 256 if columns > 512 else 128 if columns > 128 else 32


# Arrays -------------------------------------------------------------------------------------------------------------------


@functools.cache
def dtype_name(dtype: Any) -> str:
    return np.dtype(dtype).name  # NumPy takes 2 us to find it


def empty(*, shape: Sequence[int], dtype: str) -> Array:
    try:
        return cupy().empty(tuple(shape), dtype)
    except Exception:
        with explained():
            raise


def zeros(*, shape: Sequence[int], dtype: str) -> Array:
    try:
        return cupy().zeros(tuple(shape), dtype)
    except Exception:
        with explained():
            raise


def contiguous(*, x: Array) -> Array:
    copy = empty(shape=x.shape, dtype=x.dtype)
    copy[...] = x
    return copy


def concat(*, arrays: Sequence[Array], axis: int) -> Array:
    sizes = [x.shape[axis] for x in arrays]
    shape = arrays[0].shape
    out = empty(shape=(*shape[:axis], sum(sizes), *shape[axis + 1 :]), dtype=arrays[0].dtype)
    lead, start = (slice(None),) * axis, 0
    for x, size in zip(arrays, sizes, strict=True):
        out[(*lead, slice(start, start + size))] = x
        start += size
    return out


def upload(array: Any) -> Array:
    """A NumPy array on the device; CuPy takes it through pinned memory, so that the call does not wait for the device."""
    with explained():
        return cupy().asarray(np.asarray(array, order="C"))


def from_dlpack(array: Any) -> Array:
    """An array of another library, such as PyTorch's, on the device: the same memory where it is there already."""
    with explained():
        return cupy().from_dlpack(array)


_FLOATS = ("float32", "float64")


def refuse(name: str, what: str) -> None:
    raise ValueError(f"{name}: {what}")


def floating(array: Any, name: str, ndim: int) -> str:
    """The dtype's name of the array that decides it; it must be float32 or float64, with that many axes."""
    kind = dtype_name(array.dtype) if hasattr(array, "dtype") else type(array).__name__
    if kind not in _FLOATS:
        refuse(name, f"dtype {kind}, wanted float32 or float64")
    if array.ndim != ndim:
        refuse(name, f"{array.ndim} axes, wanted {ndim}")
    return kind


def check(array: Any, name: str, dtype: str, shape: Sequence[int | None] | None, optional: bool = False) -> None:
    """Refuse an array of another dtype, layout, shape (None: any size) or device, with the name of the argument."""
    if array is None and optional:
        return
    if not type(array).__module__.startswith("cupy"):
        raise TypeError(f"{name}: expected a CuPy array, got {type(array).__name__}")
    if array.dtype != dtype:
        refuse(name, f"dtype {array.dtype}, wanted {dtype}")
    if shape is not None and (
        array.ndim != len(shape) or any(w is not None and w != n for n, w in zip(array.shape, shape, strict=True))
    ):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        refuse(name, f"shape {array.shape}, wanted ({wanted}{',' if len(shape) == 1 else ''})")
    if not array.flags.c_contiguous:
        refuse(name, "not C-contiguous")


@functools.cache
def fault() -> Array:
    """Where kernels note the first id out of range: (position + 1, id), int64; 0: none. See `raise_fault`."""
    return zeros(shape=(2,), dtype="int64")


def raise_fault(position: float, value: float) -> None:
    """IndexError for what a kernel noted. Ids that come from the host are checked there, before they are sent."""
    if position:
        raise IndexError(f"an id on the GPU is out of range: {int(value)} at position {int(position) - 1}")


# The machine --------------------------------------------------------------------------------------------------------------


@functools.cache
def isa() -> str:
    """The architecture that kernels are compiled for, such as sm_90."""
    return f"sm_{cupy().cuda.Device().compute_capability}"


def available_isas() -> list[str]:
    return [isa()]


def set_isa(*, name: str) -> None:
    if name != isa():
        refuse("name", f"{name!r} is not available; available: {isa()}")


def _properties() -> Any:
    return cupy().cuda.runtime.getDeviceProperties(cupy().cuda.Device().id)


@functools.cache
def most_shared() -> int:
    """Bytes of shared memory that a block can have."""
    return int(_properties()["sharedMemPerBlockOptin"])


@functools.cache
def device_name() -> str:
    name = _properties()["name"]
    return str(name.decode() if isinstance(name, bytes) else name)


def num_threads() -> int:
    """Multiprocessors."""
    return int(_properties()["multiProcessorCount"])


def set_num_threads(*, n: int) -> None:
    if n != num_threads():
        refuse("n", f"{n}: a GPU has the multiprocessors that it has, {num_threads()}")


def build_info() -> dict[str, str]:
    """The device, its memory, versions, and the kernel files in use."""
    module = cupy()
    free, total = module.cuda.runtime.memGetInfo()
    return {
        "device": f"{device_name()} ({isa()}, {num_threads()} multiprocessors)",
        "memory": f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
        "cupy": str(module.__version__),
        "cuda": _version(module.cuda.runtime.runtimeGetVersion()),
        "driver": _version(module.cuda.runtime.driverGetVersion()),
        "compiled": ", ".join(compiled) or "nothing yet",
        "calibrated": _calibrated(),
        "kept": ", ".join(kept()) or "nothing yet",
    }


def _calibrated() -> str:
    from rheme._cuda import calibration

    try:
        return f"by {calibration.path()}" if calibration.own() else "no table of this device: the plain ways"
    except RhemeError as error:
        return str(error)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def arena_bytes() -> int:
    """What CuPy's pool holds."""
    return int(cupy().get_default_memory_pool().total_bytes())


def fma_peak(*, dtype: str, iterations: int) -> float:
    """Multiply-adds a second, times two, of a grid that fills the device."""
    module, blocks = cupy(), 8 * num_threads()
    y = empty(shape=(blocks * THREADS,), dtype=dtype)
    start, stop = module.cuda.Event(), module.cuda.Event()
    launch("optim", "fma_chain", dtype, blocks, THREADS, 1, 1.0, y)
    start.record()
    launch("optim", "fma_chain", dtype, blocks, THREADS, iterations, 1.0, y)
    stop.record()
    stop.synchronize()
    seconds = module.cuda.get_elapsed_time(start, stop) / 1e3
    return 2.0 * 16 * iterations * blocks * THREADS / max(seconds, math.ulp(1.0))

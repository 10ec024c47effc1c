"""A stand-in for CuPy on a machine without a GPU: what `rheme._cuda` and the package use of it, and no more.

Arrays are memory of the host that only kernels, cuBLAS and the functions here touch: NumPy must not take one by itself, nor
one NumPy's array, as with CuPy. Kernels are the text that CuPy would be given, compiled as C++ (`compiling.py`). Copies between
host and device are counted in `counts`. Fresh memory is filled with not-a-numbers and stands between guards that are looked at
after each kernel. What CuPy is asked for that stands in no list here is an AttributeError.

RHEME_EMULATED_ORDER: the order in which threads take turns, 0, 1 or 2. RHEME_EMULATED_MEMORY: bytes of the device.
RHEME_EMULATED_MULTIPROCESSORS: of them, with a block on each; RHEME_EMULATED_RESIDENT: blocks of a cooperative launch that run
at once whatever was asked for, as if another program held the rest; RHEME_EMULATED_CLUSTERS: clusters that fit.
RHEME_EMULATED_FAULT: driver, device, compiler or cublas.
"""

import os
import sys
from collections import Counter
from typing import Any

import numpy

from . import compiling, cublas, cuda
from .memory import Block, allocate

__version__ = os.environ.get("RHEME_EMULATED_VERSION", "14.2.0")

counts: Counter[str] = Counter()  # "to host", "to device", "launch", "gemm"; bytes: "bytes to host", ...

sys.modules["cupy_backends.cuda.libs.cublas"] = cublas


class _Flags:
    def __init__(self, flags: Any) -> None:
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous


class _Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


def _count(what: str, array: Any) -> None:
    if cuda.capturing is not None:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: a copy {what} while a stream is captured")
    counts[what] += 1
    counts[f"bytes {what}"] += array.nbytes


def _operand(value: Any, what: str) -> Any:
    """An operand as the host's memory: arrays of the device, and scalars."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, numpy.ndarray) and value.ndim:
        raise TypeError(f"{what}: unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        raise TypeError(f"{what}: unsupported type {type(value)}")
    return value


class ndarray:  # noqa: N801
    __array_priority__ = 100

    def __init__(self, host: numpy.ndarray, block: Block) -> None:
        self._host, self._block = host, block

    # What it is
    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: _Flags(self._host.flags))
    data = property(lambda self: _Pointer(self._host.ctypes.data))
    T = property(lambda self: self.transpose())

    def __len__(self) -> int:
        return len(self._host)

    def __repr__(self) -> str:
        return repr(self._host)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    # Copies
    def get(self) -> numpy.ndarray:
        _count("to host", self)
        return self._host.copy()

    def set(self, array: numpy.ndarray) -> None:
        if not isinstance(array, numpy.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError("Shape or dtype mismatch")
        _count("to device", array)
        self._host[...] = array

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return self.get().__index__()

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    # Views and copies on the device
    def _view(self, host: numpy.ndarray) -> "ndarray":
        return ndarray(host, self._block)

    def reshape(self, *shape: Any) -> "ndarray":
        shape = shape[0] if len(shape) == 1 else shape
        view = self._host.reshape(shape)
        return self._view(view) if numpy.shares_memory(view, self._host) or not view.size else _new(view)

    def transpose(self, *axes: Any) -> "ndarray":
        return self._view(self._host.transpose(*axes))

    def view(self, dtype: Any) -> "ndarray":
        return self._view(self._host.view(dtype))

    def astype(self, dtype: Any) -> "ndarray":
        out = empty(self.shape, dtype)
        to, host = out._host, self._host
        cuda.do(lambda: numpy.copyto(to, host, casting="unsafe"))
        return out

    def copy(self) -> "ndarray":
        return self.astype(self.dtype)

    def fill(self, value: Any) -> None:
        host = self._host
        cuda.do(lambda: host.fill(value))

    def _index(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        plain = []
        for part in parts:
            if isinstance(part, ndarray):
                if part.dtype == bool:
                    _count("to host", part)  # how many there are decides the shape
                plain.append(part._host)
            elif isinstance(part, numpy.ndarray | list) and numpy.ndim(part):
                _count("to device", numpy.asarray(part))
                plain.append(numpy.asarray(part, numpy.int64) if not numpy.size(part) else numpy.asarray(part))
            else:
                plain.append(part)
        return tuple(plain)

    def __getitem__(self, index: Any) -> "ndarray":
        advanced = any(isinstance(p, ndarray | numpy.ndarray | list) for p in (index if isinstance(index, tuple) else (index,)))
        plain = self._index(index)
        if not advanced:
            view = self._host[(*plain, Ellipsis)] if Ellipsis not in plain else self._host[plain]
            return self._view(view)
        host = self._host
        out = empty(host[plain].shape, self.dtype)
        to = out._host
        cuda.do(lambda: to.__setitem__(Ellipsis, host[plain]))
        return out

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, ndarray) and index.dtype == bool and not isinstance(value, ndarray):
            mask, host = index._host, self._host
            cuda.do(lambda: host.__setitem__(mask, value))
            return
        plain, given, host = self._index(index), _operand(value, "__setitem__"), self._host
        cuda.do(lambda: host.__setitem__(plain, given))

    # Comparisons
    def _compare(self, name: str, other: Any) -> "ndarray":
        given = _operand(other, name)
        out = empty(numpy.broadcast_shapes(self.shape, numpy.shape(given)), bool)
        to, host = out._host, self._host
        cuda.do(lambda: to.__setitem__(Ellipsis, getattr(numpy, name)(host, given)))
        return out

    def __eq__(self, other: Any) -> Any:
        return self._compare("equal", other)

    def __ne__(self, other: Any) -> Any:
        return self._compare("not_equal", other)

    def __lt__(self, other: Any) -> Any:
        return self._compare("less", other)

    def __le__(self, other: Any) -> Any:
        return self._compare("less_equal", other)

    def __gt__(self, other: Any) -> Any:
        return self._compare("greater", other)

    def __ge__(self, other: Any) -> Any:
        return self._compare("greater_equal", other)

    __hash__ = object.__hash__

    # NumPy's functions that CuPy takes over
    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = function.__name__
        if name == "broadcast_to":
            return args[0]._view(numpy.broadcast_to(args[0]._host, *args[1:]))
        if name not in ("where", "count_nonzero", "zeros_like"):
            return NotImplemented
        given = [_operand(a, name) for a in args]
        return _new(getattr(numpy, name)(*given, **kwargs), lambda: getattr(numpy, name)(*given, **kwargs))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or ufunc.__name__ not in ("maximum", "minimum") or kwargs:
            return NotImplemented
        given = [_operand(a, ufunc.__name__) for a in inputs]
        return _new(ufunc(*given), lambda: ufunc(*given))


ndarray.__module__ = "cupy"


def _new(like: Any, compute: Any = None) -> ndarray:
    """A new array of the device with what compute gives, of the shape and dtype of `like`."""
    like = numpy.asarray(like)
    out = empty(like.shape, like.dtype)
    to = out._host
    cuda.do(lambda: to.__setitem__(Ellipsis, like if compute is None else compute()))
    return out


def empty(shape: Any, dtype: Any = float) -> ndarray:
    host, block = allocate(shape, numpy.dtype(dtype))
    return ndarray(host, block)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    out = empty(shape, dtype)
    out.fill(0)
    return out


def asarray(value: Any) -> ndarray:
    if isinstance(value, ndarray):
        return value
    value = numpy.asarray(value)
    out = empty(value.shape, value.dtype)
    out.set(value)
    return out


def from_dlpack(value: Any) -> ndarray:
    return asarray(numpy.from_dlpack(value))


def argsort(array: ndarray) -> ndarray:
    host = array._host
    counts["argsort"] += 1
    return _new(numpy.empty(array.shape, numpy.int64), lambda: numpy.argsort(host, kind="stable"))


def get_default_memory_pool() -> Any:
    return cuda.default_pool


class RawModule:
    def __init__(self, *, code: str, options: tuple[str, ...], enable_cooperative_groups: bool = False) -> None:
        self._code, self._options, self._library = code, options, None
        self._cooperative = enable_cooperative_groups
        if os.environ.get("RHEME_EMULATED_FAULT") == "compiler":
            raise ImportError("libnvrtc.so: cannot open shared object file")

    def compile(self) -> None:
        self._library = compiling.library(self._code, self._options)

    def get_function(self, name: str) -> Any:
        if self._library is None:
            self.compile()
        return compiling.Kernel(self._library, name, self._cooperative)


cuda.module = sys.modules[__name__]

"""Products by cuBLAS, through CuPy or, while a stream is captured, where CuPy refuses, by itself; and sums of columns."""

import ctypes
import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rheme._cuda.device import EXTRAS, THREADS, Array, cupy, dtype_name, empty, launch, one_line
from rheme.errors import RhemeError

_TYPES = {"float32": (0, 68), "float64": (1, 70)}  # CUDA_R_32F, CUBLAS_COMPUTE_32F; CUDA_R_64F, CUBLAS_COMPUTE_64F
_ONE = {name: np.ones(1, name) for name in _TYPES}
_ZERO = {name: np.zeros(1, name) for name in _TYPES}
_AT = {(name, add): array[name].ctypes.data for add, array in ((False, _ZERO), (True, _ONE)) for name in _TYPES}


@functools.cache
def _cublas() -> Any:
    try:
        return importlib.import_module("cupy_backends.cuda.libs.cublas")
    except (ImportError, OSError, RuntimeError) as error:
        raise RhemeError(f"CuPy finds no cuBLAS ({one_line(error)}): {EXTRAS}") from None


class Matrix:
    """Rows of an array as cuBLAS takes them: where they begin, how far they are apart, and how far batches are."""

    __slots__ = ("array", "ld", "offset", "stride", "transposed")

    def __init__(self, array: Array, ld: int, transposed: bool = False, offset: int = 0, stride: int = 0) -> None:
        self.array, self.ld, self.transposed, self.offset, self.stride = array, ld, transposed, offset, stride


def product(m: int, n: int, k: int, a: Matrix, b: Matrix, c: Matrix, add: bool = False, batch: int = 1) -> None:
    """c (m, n) = a (m, k) b (k, n), or c += with `add`; `transposed` where a is stored (k, m), b (n, k). Row-major, batched."""
    prepared_product(m, n, k, a, b, c, add, batch)()


def prepared_product(
    m: int, n: int, k: int, a: Matrix, b: Matrix, c: Matrix, add: bool = False, batch: int = 1
) -> Callable[[], None]:
    """`product`, to be called many times, each time with the offsets and strides that the matrices have by then."""
    if m == 0 or n == 0 or batch == 0:
        return lambda: None
    if k == 0:
        return (lambda: None) if add else (lambda: c.array.fill(0))
    name = dtype_name(c.array.dtype)
    kind, compute = _TYPES[name]
    called = "gemmEx" if batch == 1 else "gemmStridedBatchedEx"
    blas = getattr(_cublas(), called)
    # cuBLAS is column-major: it is asked for c^T = b^T a^T.
    shape = (cupy().cuda.device.get_cublas_handle(), int(b.transposed), int(a.transposed), n, m, k, _AT[name, True])
    beta, size = _AT[name, add], c.array.itemsize
    left, right, out = (int(x.array.data.ptr) for x in (b, a, c))

    def run() -> None:
        p, q, r = left + b.offset * size, right + a.offset * size, out + c.offset * size
        arguments: tuple[int, ...]
        if batch == 1:
            arguments = (*shape, p, kind, b.ld, q, kind, a.ld, beta, r, kind, c.ld, compute, -1)
        else:
            operands = (p, kind, b.ld, b.stride, q, kind, a.ld, a.stride)
            arguments = (*shape, *operands, beta, r, kind, c.ld, c.stride, batch, compute, -1)
        try:
            blas(*arguments)
        except NotImplementedError:  # CuPy calls no cuBLAS while a stream is captured; cuBLAS itself may be
            _while_captured(called, arguments)

    return run


@functools.cache
def _cublas_itself() -> Any:
    """The library that CuPy has loaded, with the types of what is called."""
    major = cupy().cuda.runtime.runtimeGetVersion() // 1000
    try:
        library = ctypes.CDLL(f"cublas64_{major}.dll" if os.name == "nt" else f"libcublas.so.{major}")
    except OSError as error:
        raise RhemeError(f"cuBLAS {major} is nowhere to be found ({one_line(error)}): {EXTRAS}") from None
    whole, pointer = ctypes.c_int, ctypes.c_void_p
    sizes, strided = (pointer, *(whole,) * 5, pointer), (pointer, whole, whole, ctypes.c_longlong)
    library.cublasSetStream_v2.argtypes = (pointer, pointer)
    library.cublasSetWorkspace_v2.argtypes = (pointer, pointer, ctypes.c_size_t)
    library.cublasGemmEx.argtypes = (*sizes, *(pointer, whole, whole) * 2, pointer, pointer, *(whole,) * 4)
    library.cublasGemmStridedBatchedEx.argtypes = (*sizes, *strided * 2, pointer, *strided, *(whole,) * 3)
    return library


@functools.cache
def cublas_room() -> Array:
    """What cuBLAS works in within graphs; its own would be taken anew for each, and kept."""
    return empty(shape=(32 << 20,), dtype="uint8")


def _while_captured(called: str, arguments: Sequence[int]) -> None:
    library, handle, room = _cublas_itself(), arguments[0], cublas_room()
    failed = (
        library.cublasSetStream_v2(handle, cupy().cuda.get_current_stream().ptr)
        or library.cublasSetWorkspace_v2(handle, room.data.ptr, room.nbytes)  # after the stream, which forgets it
        or getattr(library, f"cublas{called[0].upper()}{called[1:]}")(*arguments)
    )
    if failed:
        raise RuntimeError(f"cuBLAS' {called} while a stream is captured: status {failed}")


def column_sums(x: Array, out: Array) -> None:
    """out (C,) = the sums of the columns of x (M, C): blocks of 512 rows, then the blocks."""
    m, c = x.shape
    blocks = -(-m // 512)
    strips = -(-c // 32)
    if blocks <= 1:
        launch("gemm", "column_sums", x.dtype, (strips, 1), THREADS, m, c, max(m, 1), x, out)
        return
    partial = empty(shape=(blocks, c), dtype=x.dtype.name)
    launch("gemm", "column_sums", x.dtype, (strips, blocks), THREADS, m, c, 512, x, partial)
    launch("gemm", "column_sums", x.dtype, (strips, 1), THREADS, blocks, c, blocks, partial, out)

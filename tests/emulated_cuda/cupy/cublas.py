"""cupy_backends.cuda.libs.cublas: gemm alone, with cuBLAS' checks, by plain loops (`gemm.cc`); and cuBLAS itself.

CuPy refuses to call cuBLAS while a stream is captured. `itself` is what `ctypes` finds: it may then be called, on the stream
and in the memory that it was told.
"""

import ctypes
import functools
from types import SimpleNamespace
from typing import Any

from . import compiling, cuda
from .memory import covers

_KINDS = {0: ("gemm_f32", 4, 68), 1: ("gemm_f64", 8, 70)}
_LONG = ctypes.c_long


@functools.cache
def _library() -> Any:
    return compiling.build((compiling.HERE / "gemm.cc").read_text(), ("-O2",))


def gemmEx(  # noqa: N802
    handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, lda: int, b: int, b_type: int,
    ldb: int, beta: int, c: int, c_type: int, ldc: int, compute: int, algo: int,
) -> None:  # fmt: skip
    gemmStridedBatchedEx(
        handle, ta, tb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, compute, algo
    )


def gemmStridedBatchedEx(  # noqa: N802
    handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, lda: int, sa: int, b: int,
    b_type: int, ldb: int, sb: int, beta: int, c: int, c_type: int, ldc: int, sc: int, batch: int, compute: int, algo: int,
) -> None:  # fmt: skip
    if cuda.capturing is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    _product(
        handle, ta, tb, m, n, k, alpha, a, a_type, lda, sa, b, b_type, ldb, sb, beta, c, c_type, ldc, sc, batch, compute, algo
    )


def _product(
    handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, a: int, a_type: int, lda: int, sa: int, b: int,
    b_type: int, ldb: int, sb: int, beta: int, c: int, c_type: int, ldc: int, sc: int, batch: int, compute: int, algo: int,
) -> None:  # fmt: skip
    name, size, wanted = _KINDS[c_type]
    rows_a, columns_a = (k, m) if ta else (m, k)
    rows_b, columns_b = (n, k) if tb else (k, n)
    if (a_type, b_type, compute, algo) != (c_type, c_type, wanted, -1) or handle != 1:
        raise ValueError("CUBLAS_STATUS_NOT_SUPPORTED")
    if min(m, n, k, batch) < 1 or min(sa, sb, sc) < 0 or lda < rows_a or ldb < rows_b or ldc < m:
        raise ValueError(f"CUBLAS_STATUS_INVALID_VALUE: {(ta, tb, m, n, k, lda, sa, ldb, sb, ldc, sc, batch)}")
    for pointer, rows, columns, ld, stride in (
        (a, rows_a, columns_a, lda, sa), (b, rows_b, columns_b, ldb, sb), (c, m, n, ldc, sc)
    ):  # fmt: skip
        if not covers(pointer, size * ((batch - 1) * stride + (columns - 1) * ld + rows)):
            raise ValueError("gemm reaches beyond an array")
    numbers = (ta, tb, m, n, k)
    function = getattr(_library(), name)
    pointer = ctypes.c_void_p
    given = (
        *map(_LONG, numbers), pointer(alpha), pointer(a), _LONG(lda), _LONG(sa), pointer(b), _LONG(ldb), _LONG(sb),
        pointer(beta), pointer(c), _LONG(ldc), _LONG(sc), _LONG(batch),
    )  # fmt: skip
    cuda.module.counts["gemm"] += 1
    cuda.do(lambda: function(*given))


_told: dict[str, Any] = {}


def _set_stream(handle: int, stream: int) -> int:
    _told.clear()
    _told["stream"] = stream
    return 0


def _set_workspace(handle: int, room: int, size: int) -> int:
    assert covers(room, size)
    _told["room"] = room
    return 0


def _strided(*given: int) -> int:
    assert set(_told) == {"stream", "room"}
    assert _told["stream"] == cuda.get_current_stream().ptr
    _product(*given)
    return 0


def _plain(*given: int) -> int:
    handle_to_lda, b_to_ldb, beta_to_ldc, rest = given[:10], given[10:13], given[13:17], given[17:]
    return _strided(*handle_to_lda, 0, *b_to_ldb, 0, *beta_to_ldc, 0, 1, *rest)


itself = SimpleNamespace(
    cublasSetStream_v2=_set_stream,
    cublasSetWorkspace_v2=_set_workspace,
    cublasGemmEx=_plain,
    cublasGemmStridedBatchedEx=_strided,
)

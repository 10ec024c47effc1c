"""The LSTM whose recurrent weights stay in the chip (`lstm_persistent*.cu`), and when it is used instead of the plain one.

Two precisions: fp32 is that of the plain version; bf16 has bfloat16 products with sums and state in float, so that its answers
differ by that rounding. Until they have been measured on a GPU the plain version is the default: TABLE names the cases where
fp32 is ahead of it. RHEME_CUDA_LSTM=plain, fp32 or bf16 forces one; a forced one that does not fit raises.
"""

import os
from typing import Any, NamedTuple

from rheme._cuda.device import Array, cupy, empty, explained, given, isa, kernel_of
from rheme.errors import RhemeError

# (architecture, hidden size) -> the least number of steps from which the persistent version in fp32 is ahead there. Filled by
# benchmarks/peers/cuda.py --calibrate on the GPU at hand; empty: nothing has been measured.
TABLE: dict[tuple[str, int], int] = {}

_ROWS = 8  # of the batch to a cluster
_SHARED = 227 << 10  # bytes of a block, at most
_NON_PORTABLE_CLUSTER = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: clusters of more than 8 blocks
_FILES = {"bf16": "lstm_persistent", "fp32": "lstm_persistent_f32"}


class Shape(NamedTuple):
    """How a hidden size is cut: blocks of a cluster, threads of a block, bytes of shared memory forward and backward."""

    precision: str
    hidden: int
    blocks: int
    threads: int
    forward: int
    backward: int


def shape_of(hidden: int, precision: str) -> Shape | None:
    """The cut of a hidden size; None where there is none. The numbers are those of lstm_persistent.cu and ..._f32.cu."""
    for blocks in (4, 8, 16):
        units = hidden // blocks
        if hidden % (4 * blocks) or units % 8 or hidden % 16 or (units > 32 and blocks < 16):
            continue
        if precision == "fp32":
            forward = 4 * (2 * hidden * _ROWS + 16 * units * _ROWS + units * _ROWS)
            backward = 4 * (2 * hidden * _ROWS + 4 * units * _ROWS + 16 * units * _ROWS)
            # A quarter of a row in registers; at 512 threads there are 128.
            return Shape(precision, hidden, blocks, 16 * units, forward, backward) if hidden <= 384 else None
        threads, tiles = 8 * units, hidden // 16
        in_shared = max(0, tiles - (32 if threads <= 256 else 24)) * (units // 4) * 512
        forward = 2 * _ROWS * (hidden + 8) * 2 + _ROWS * units * 2 + in_shared
        backward = 2 * hidden * _ROWS * 4 + _ROWS * (4 * units + 8) * 2 + in_shared
        if threads <= 512 and max(forward, backward) <= _SHARED:
            return Shape(precision, hidden, blocks, threads, forward, backward)
    return None


def chosen(hidden: int, steps: int, dtype: str) -> Shape | None:
    """The cut where the persistent version is to be used; None: the plain one."""
    wanted = os.environ.get("RHEME_CUDA_LSTM", "")
    if wanted not in ("", "plain", *_FILES):
        raise RhemeError(f"RHEME_CUDA_LSTM={wanted}: give plain, fp32 or bf16")
    if wanted == "":
        ahead = dtype == "float32" and TABLE.get((isa(), hidden), steps + 1) <= steps
        return shape_of(hidden, "fp32") if ahead else None
    if wanted == "plain":
        return None
    shape = shape_of(hidden, wanted) if dtype == "float32" and int(isa().removeprefix("sm_")) >= 90 else None
    if shape is None:
        raise RhemeError(f"RHEME_CUDA_LSTM={wanted}: not for a hidden size of {hidden} in {dtype} on {isa()}")
    return shape


def _launch(kernel: str, shape: Shape, shared: int, clusters: int, *arguments: Any) -> None:
    defines = (f"-DRHEME_HIDDEN={shape.hidden}", f"-DRHEME_CTAS={shape.blocks}")
    function = kernel_of(_FILES[shape.precision], kernel, "float32", defines)
    if shared > 48 << 10:
        function.max_dynamic_shared_size_bytes = shared
    if shape.blocks > 8:
        cupy().cuda.driver.funcSetAttribute(function.kernel.ptr, _NON_PORTABLE_CLUSTER, 1)
    function((clusters * shape.blocks, 1), (shape.threads,), given(arguments), shared_mem=shared)


def _order(lengths: Array | None) -> Array | None:
    """Rows by length, so that a cluster's are alike and it ends with them."""
    if lengths is None:
        return None
    with explained():
        return cupy().argsort(lengths)


def forward(
    shape: Shape,
    gates: Array,
    cells: Array | None,
    recurrent: Array,
    bias: Array,
    start: tuple[Array | None, Array | None],
    lengths: Array | None,
    reverse: bool,
) -> tuple[Array, Array, Array]:
    """y, h_n and c_n from gates (R, T, N, 4H) that hold W_ih x, as `lstm_steps`; recurrent (R, 4H, H), bias (R, 4H)."""
    directions, time, batch, columns = gates.shape
    hidden = columns // 4
    y = empty(shape=(time, batch, directions * hidden), dtype="float32")
    h_n, c_n = (empty(shape=(directions, batch, hidden), dtype="float32") for _ in range(2))
    if batch:
        _launch(
            "lstm_persistent", shape, shape.forward, directions * -(-batch // _ROWS),
            time, batch, directions, int(reverse), lengths, _order(lengths), recurrent, bias, *start, gates, cells, h_n, c_n, y,
        )  # fmt: skip
    return y, h_n, c_n


def backward(
    shape: Shape,
    dy: Array,
    gates: Array,
    cells: Array,
    recurrent: Array,
    c0: Array | None,
    dgates: Array,
    dh: Array,
    dc: Array,
    lengths: Array | None,
    reverse: bool,
) -> None:
    """Fills dgates (R, T, N, 4H); dh and dc (R, N, H), of the last state, become those of the first."""
    directions, time, batch, _ = gates.shape
    if batch:
        _launch(
            "lstm_persistent_backward", shape, shape.backward, directions * -(-batch // _ROWS),
            time, batch, directions, int(reverse), lengths, _order(lengths), recurrent, dy, gates, cells, c0, dgates, dh, dc,
        )  # fmt: skip

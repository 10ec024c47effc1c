"""The LSTM whose recurrent weights stay in the chip, and when it is used instead of the plain one.

Two designs: `cluster` (`lstm_persistent*.cu`, compute capability 9.0), where a cluster of blocks holds the weights and runs 8
rows; `grid` (`lstm_grid.cu`), where blocks on all multiprocessors do, for the sizes that no cluster holds. Two precisions: fp32
is that of the plain version; bf16 has bfloat16 products with sums and state in float, so that its answers differ by that
rounding.

By default fp32 is used where it was measured to be ahead of the plain version (`calibration.py`): for sequences, not single
steps, and as long as few groups of rows have to take turns on the blocks. RHEME_CUDA_LSTM=plain, fp32 or bf16 forces
one; a forced one that does not fit, or that the device has no room for, raises. RHEME_CUDA_SPINS=N makes debug builds: a wait
for another block gives up after N looks, and the call raises.
"""

import functools
import os
from typing import Any, Literal, NamedTuple

from rheme._cuda import calibration
from rheme._cuda.device import (
    Array,
    active_clusters,
    allow_shared,
    cupy,
    empty,
    explained,
    given,
    isa,
    kernel_of,
    num_threads,
    zeros,
)
from rheme.errors import RhemeError

_ROWS = 8  # of the batch: a group
_SHARED = 227 << 10  # bytes of a block, at most
_NON_PORTABLE_CLUSTER = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: clusters of more than 8 blocks
_GRID_THREADS = 256
_LEAST_STEPS = 8  # below, holding the weights does not pay


class Shape(NamedTuple):
    """How a hidden size is cut: blocks that hold its weights, threads of a block, bytes of shared memory each way."""

    design: Literal["cluster", "grid"]
    precision: str
    hidden: int
    blocks: int
    threads: int
    forward: int
    backward: int

    @property
    def file(self) -> str:
        return "lstm_grid" if self.design == "grid" else "lstm_persistent" + "_f32" * (self.precision == "fp32")

    def defines(self) -> tuple[str, ...]:
        """What its file is compiled with."""
        chosen = [f"-DRHEME_HIDDEN={self.hidden}", f"-DRHEME_CTAS={self.blocks}"]
        if self.design == "grid":
            chosen += ["-DRHEME_BF16"] * (self.precision == "bf16")
            chosen += [f"-DRHEME_SPINS={_spins()}"] * (_spins() > 0)
        return tuple(chosen)


def _spins() -> int:
    value = os.environ.get("RHEME_CUDA_SPINS", "0")
    if not value.isdigit():
        raise RhemeError(f"RHEME_CUDA_SPINS={value}: give a number of looks, such as 4000000, or 0 for no limit")
    return int(value)


@functools.cache
def shape_of(hidden: int, precision: str, clusters: bool = True) -> Shape | None:
    """The cut of a hidden size; None where there is none. The numbers are those of the kernel files."""
    for blocks in (4, 8, 16) if clusters else ():
        units = hidden // blocks
        if hidden % (4 * blocks) or units % 8 or hidden % 16 or (units > 32 and blocks < 16):
            continue
        if precision == "fp32":
            if hidden > 384:  # a quarter of a row in registers; at 512 threads there are 128
                break
            forward = 4 * (2 * hidden * _ROWS + 16 * units * _ROWS + units * _ROWS)
            backward = 4 * (2 * hidden * _ROWS + 4 * units * _ROWS + 16 * units * _ROWS)
            return Shape("cluster", precision, hidden, blocks, 16 * units, forward, backward)
        threads, tiles = 8 * units, hidden // 16
        in_shared = max(0, tiles - (32 if threads <= 256 else 24)) * (units // 4) * 512
        forward = 2 * _ROWS * (hidden + 8) * 2 + _ROWS * units * 2 + in_shared
        backward = 2 * hidden * _ROWS * 4 + _ROWS * (4 * units + 8) * 2 + in_shared
        if threads <= 512 and max(forward, backward) <= _SHARED:
            return Shape("cluster", precision, hidden, blocks, threads, forward, backward)
    if hidden % 32 or not 64 <= hidden <= 1024:
        return None
    units = 16 if precision == "bf16" else 8  # at 1,024 a thread has 128 words of weights

    def room(rows: int, columns: int) -> int:  # of Product<rows, columns>: its operand, the parts of its sums, more weights
        if precision == "fp32":
            parts = _GRID_THREADS // rows
            return 4 * _ROWS * (columns + parts + parts * rows)
        parts = _GRID_THREADS // 32 // (rows // 16)
        in_shared = max(0, columns // 16 // parts - 28) * _GRID_THREADS * 16
        return 2 * _ROWS * (columns + 8) + 4 * _ROWS * parts * rows + in_shared

    forward, backward = room(4 * units, hidden), room(units, 4 * hidden)
    return Shape("grid", precision, hidden, hidden // units, _GRID_THREADS, forward, backward)


def chosen(hidden: int, steps: int, rows: int, dtype: str) -> Shape | None:
    """The cut where the persistent version is to be used; None: the plain one. rows: of all directions together."""
    wanted = os.environ.get("RHEME_CUDA_LSTM", "")
    if wanted not in ("", "plain", "fp32", "bf16"):
        raise RhemeError(f"RHEME_CUDA_LSTM={wanted}: give plain, fp32 or bf16")
    most = 0
    if wanted == "" and dtype == "float32" and steps >= _LEAST_STEPS:
        most = calibration.most_turns(hidden)
    if wanted == "plain" or (wanted == "" and most == 0):
        return None
    capability = int(isa().removeprefix("sm_"))
    shape = shape_of(hidden, wanted or "fp32", capability >= 90) if dtype == "float32" and capability >= 80 else None
    held = 0 if shape is None else _sets(shape)
    if shape is not None and held and (wanted or rows <= most * _ROWS * held):
        return shape
    if wanted == "":
        return None
    if shape is None:
        raise RhemeError(f"RHEME_CUDA_LSTM={wanted}: not for a hidden size of {hidden} in {dtype} on {isa()}")
    raise RhemeError(f"RHEME_CUDA_LSTM={wanted}: {isa()} has no room for the {shape.blocks} blocks that must run at once")


def rows_at_once(hidden: int) -> int:
    """How many rows of a batch, of all directions together, run at once in fp32; 0: the size does not fit."""
    shape = shape_of(hidden, "fp32", int(isa().removeprefix("sm_")) >= 90)
    return 0 if shape is None else _ROWS * _sets(shape)


# Launches -------------------------------------------------------------------------------------------------------------------


def _prepared(shape: Shape, name: str, shared: int) -> Any:
    """The kernel, allowed what it needs."""
    function = kernel_of(shape.file, name, "float32", shape.defines(), shape.design == "grid")
    allow_shared(function, shared)
    if shape.design == "cluster" and shape.blocks > 8:
        cupy().cuda.driver.funcSetAttribute(function.kernel.ptr, _NON_PORTABLE_CLUSTER, 1)
    return function


@functools.cache
def _sets(shape: Shape) -> int:
    """How many times the blocks that hold the weights can run at once, forward and backward; 0: not at all.

    A GPU that is shared out (MIG, a limit of MPS) or a small one may have no room for a set whose blocks wait for each other.
    """
    most = []
    for name, shared in (("lstm_persistent", shape.forward), ("lstm_persistent_backward", shape.backward)):
        with explained():
            function = _prepared(shape, name, shared)
            if shape.design == "cluster":
                most.append(active_clusters(function, shape.blocks, shape.threads, shared))
            else:
                ask = cupy().cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
                most.append(int(ask(function.kernel.ptr, shape.threads, shared)) * num_threads() // shape.blocks)
    return min(most)


def _launch(name: str, shape: Shape, shared: int, directions: int, batch: int, *arguments: Any) -> None:
    """Start a kernel for all rows of all directions."""
    function, groups = _prepared(shape, name, shared), -(-batch // _ROWS)
    if shape.design == "cluster":
        function((directions * groups * shape.blocks, 1), (shape.threads,), given(arguments), shared_mem=shared)
        return
    # Sets of blocks, as many as run at once: first to have both directions, then to share the groups of a direction.
    at_once = min(directions, _sets(shape))
    shards = min(groups, _sets(shape) // at_once)
    columns = shape.hidden * (4 if name.endswith("backward") else 1)
    words = directions * groups * 2 * _ROWS * columns // (2 if shape.precision == "bf16" else 1)
    exchange, stuck = empty(shape=(words,), dtype="uint32"), zeros(shape=(2,), dtype="int64")
    for first in range(0, directions, at_once):
        blocks = at_once * shards * shape.blocks
        flags = zeros(shape=(blocks,), dtype="uint32")
        function((blocks, 1), (shape.threads,), given((*arguments, first, shards, exchange, flags, stuck)), shared_mem=shared)
    if _spins():
        block, step = stuck.tolist()
        if block:
            raise RhemeError(
                f"{name}: block {block - 1} of {shape.blocks} did not answer after step {step}, {_spins()} looks: a deadlock, "
                "or another program holds the GPU; RHEME_CUDA_LSTM=plain does without waiting"
            )


def _order(lengths: Array | None) -> Array | None:
    """Rows by length, so that a group's are alike and it ends with them."""
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
            "lstm_persistent", shape, shape.forward, directions, batch,
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
            "lstm_persistent_backward", shape, shape.backward, directions, batch,
            time, batch, directions, int(reverse), lengths, _order(lengths), recurrent, dy, gates, cells, c0, dgates, dh, dc,
        )  # fmt: skip

"""Weights stored small, int8 or float16: kernels of our own for int8, with the CPU's bits; float16 is widened, then cuBLAS'."""

from collections.abc import Callable, Sequence

from rheme._cuda.device import (
    THREADS,
    Array,
    check,
    cupy,
    each,
    empty,
    explained,
    fault,
    floating,
    launch,
    refuse,
    row_threads,
)
from rheme._cuda.products import linear, lstm, lstm_steps

_TILE = 32


class Quantized:
    """A weight (C, K) on the device, as int8 in rows of whole words or as float16."""

    def __init__(self, array: Array, scale: Array | None, columns: int, gates: bool) -> None:
        self.array, self.scale, self.gates = array, scale, gates
        self._shape = (int(array.shape[0]), columns)

    @property
    def nbytes(self) -> int:
        return int(self.array.nbytes) + (0 if self.scale is None else int(self.scale.nbytes))

    @property
    def dtype(self) -> str:
        return "float16" if self.scale is None else "int8"

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape


def int8_instruction() -> str:
    return "dp4a"


def pack_quantized(*, weight: Array, scale: Array | None, gates: bool) -> Quantized:
    if weight.ndim != 2:
        refuse("weight", f"{weight.ndim} axes, wanted 2")
    c, k = weight.shape
    if gates and c % 4:
        refuse("weight", f"{c} rows, wanted four of each gate")
    if weight.dtype == "float16":
        check(weight, "weight", "float16", None)
        if scale is not None:
            refuse("scale", "only int8 weights have one")
        return Quantized(weight.copy().view("uint8").reshape(c, 2 * k), None, k, gates)
    if weight.dtype != "int8":
        refuse("weight", f"dtype {weight.dtype}, wanted int8 or float16")
    if scale is None:
        raise ValueError("scale: an int8 weight needs one")
    if k > 65535:
        refuse("weight", f"{k} columns, at most 65535: their products must fit int32")
    check(weight, "weight", "int8", None)
    check(scale, "scale", "float32", (c,))
    with explained():
        padded = cupy().zeros((c, -(-k // 4) * 4), "int8")
        padded[:, :k] = weight
        return Quantized(padded.view("uint8"), scale.copy(), k, gates)


def _unpack(weight: Quantized, ids: Array | None, rows: int) -> Array:
    (v, k), pitch = weight.shape, weight.array.shape[1] // (2 if weight.scale is None else 1)
    y = empty(shape=(rows, k), dtype="float32")
    launch(
        "quantized", "unpack", "float32", each(y.size), THREADS,
        rows, k, pitch, v, ids, weight.array, weight.scale, fault(), y,
    )  # fmt: skip
    return y


def unpack_quantized(*, weight: Quantized) -> Array:
    return _unpack(weight, None, weight.shape[0])


def quantized_embedding(*, ids: Array, weight: Quantized) -> Array:
    check(ids, "ids", "int64", (None,))
    return _unpack(weight, ids, int(ids.size))


def _quantized_rows(x: Array, unit: bool) -> tuple[Array, Array]:
    """Rows of x (M, K) as int8, four to a word, and their scales."""
    m, k = x.shape
    words = -(-k // 4)
    q, scale = empty(shape=(m, words), dtype="uint32"), empty(shape=(m,), dtype="float32")
    launch("quantized", "quantize_rows", "float32", m, row_threads(k), k, words, int(unit), x, q, scale)
    return q, scale


def _product(q: Array, scale: Array, weight: Quantized, bias: Array | None, add: bool, y: Array) -> None:
    """y (M, C) = bias + x weight^T, or y += with `add`."""
    (m, words), c = q.shape, weight.shape[0]
    grid = (-(-m // _TILE), -(-c // _TILE))
    launch(
        "quantized", "quantized_product", "float32", grid, THREADS,
        m, c, words, q, scale, weight.array.view("uint32"), weight.scale, bias, int(add), y,
    )  # fmt: skip


def quantized_linear(*, x: Array, weight: Quantized, bias: Array | None) -> Array:
    if floating(x, "x", 2) != "float32":
        refuse("x", "dtype float64, wanted float32")
    m, c = x.shape[0], weight.shape[0]
    check(x, "x", "float32", (m, weight.shape[1]))
    check(bias, "bias", "float32", (c,), optional=True)
    if weight.gates:
        refuse("weight", "packed as the gates of an LSTM")
    if weight.scale is None:
        return linear(x=x, weight=unpack_quantized(weight=weight), bias=bias, packed=None)
    y = empty(shape=(m, c), dtype="float32")
    _product(*_quantized_rows(x, False), weight, bias, False, y)
    return y


def quantized_lstm(
    *,
    x: Array,
    lengths: Array | None,
    h0: Array | None,
    c0: Array | None,
    w_ih: Sequence[Quantized],
    w_hh: Sequence[Quantized],
    bias: Sequence[Array],
    reverse: bool,
) -> tuple[Array, Array, Array]:
    weights, directions = [*w_ih, *w_hh], len(w_ih)
    if len({w.dtype for w in weights}) != 1 or not all(w.gates for w in weights):
        refuse("w_ih", "wanted weights of one kind, packed as gates")
    if len(bias) != directions:
        refuse("bias", f"{len(bias)} arrays, wanted {directions}")
    if reverse and directions == 2:
        refuse("reverse", "only for one direction")
    if weights[0].scale is None:
        wide = [[unpack_quantized(weight=w) for w in ws] for ws in (w_ih, w_hh)]
        y, h_n, c_n, _, _ = lstm(
            x=x, lengths=lengths, h0=h0, c0=c0, w_ih=wide[0], w_hh=wide[1], bias=bias, packed=None, reverse=reverse, save=False
        )
        return y, h_n, c_n
    if floating(x, "x", 3) != "float32":
        refuse("x", "dtype float64, wanted float32")
    check(x, "x", "float32", None)
    time, batch, inputs = x.shape
    hidden = w_hh[0].shape[1]
    for name, ws, k in (("w_ih", w_ih, inputs), ("w_hh", w_hh, hidden)):
        for w in ws:
            if w.shape != (4 * hidden, k) or len(ws) != directions:
                refuse(name, f"shape {w.shape}, wanted {(4 * hidden, k)}")
    for name, array, shape in (
        ("lengths", lengths, (batch,)), ("h0", h0, (directions, batch, hidden)), ("c0", c0, (directions, batch, hidden))
    ):  # fmt: skip
        check(array, name, "int64" if name == "lengths" else "float32", shape, optional=True)
    for b in bias:
        check(b, "bias", "float32", (4 * hidden,))
    gates = empty(shape=(directions, time, batch, 4 * hidden), dtype="float32")
    q, scale = _quantized_rows(x.reshape(time * batch, inputs), False)
    for r in range(directions):
        _product(q, scale, w_ih[r], bias[r], False, gates[r].reshape(time * batch, 4 * hidden))

    def recurrence(h: Array) -> Callable[[int], None]:
        def add_to(s: int) -> None:
            for r in range(directions if s or h0 is not None else 0):
                t = time - 1 - s if reverse or r else s
                _product(*_quantized_rows(h[r], True), w_hh[r], None, True, gates[r, t])

        return add_to

    return lstm_steps(recurrence, None, gates, None, (h0, c0), lengths, reverse)

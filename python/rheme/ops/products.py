# mypy: disable-error-code="no-any-return"
"""Where the multiplications are: LSTM, linear layers and their quantized kin, embedding, attention."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rheme import _core
from rheme.ops.arrays import Array, _cuda, as_rows, backend, broadcast_shapes, contiguous, integers, lengths_of
from rheme.ops.reductions import reduce_to


def pack_lstm(w_ih: Sequence[Array], w_hh: Sequence[Array]) -> Any:
    """One layer's weights in the kernels' order, for `lstm(..., packed=)`. Make it anew after the weights change."""
    return backend(w_ih[0]).pack_lstm(w_ih=[contiguous(w) for w in w_ih], w_hh=[contiguous(w) for w in w_hh])


def lstm(
    x: Array,
    w_ih: Sequence[Array],
    w_hh: Sequence[Array],
    bias: Sequence[Array],
    lengths: Any = None,
    h0: Array | None = None,
    c0: Array | None = None,
    packed: Any = None,
    reverse: bool = False,
    save: bool = False,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """One LSTM layer over a whole sequence, one or two directions (Hochreiter and Schmidhuber 1997; forget gate, no peepholes).

    x (T, N, I); per direction w_ih (4H, I), w_hh (4H, H), bias (4H,), gates in the order i f g o; lengths int64 (N,), 0..T;
    h0, c0 (R, N, H). Returns y (T, N, R*H), zero past a row's length, h_n and c_n (R, N, H), and with `save` the gates and
    cells that `lstm_backward` needs (else None). `reverse`, with one direction: from the last valid step to the first.
    """
    if packed is None:
        w_ih, w_hh, bias = ([contiguous(w) for w in each] for each in (w_ih, w_hh, bias))
    return backend(x).lstm(
        x=contiguous(x),
        lengths=lengths_of(lengths, x, len(x)),
        h0=None if h0 is None else contiguous(h0),
        c0=None if c0 is None else contiguous(c0),
        w_ih=w_ih,
        w_hh=w_hh,
        bias=bias,
        packed=packed,
        reverse=reverse,
        save=save,
    )


def lstm_backward(
    dy: Array,
    dh_n: Array | None,
    dc_n: Array | None,
    x: Array,
    lengths: Any,
    h0: Array | None,
    c0: Array | None,
    w_ih: Sequence[Array],
    w_hh: Sequence[Array],
    y: Array,
    gates: Array,
    cells: Array,
    reverse: bool = False,
    need_dx: bool = True,
) -> tuple[Array | None, Array, Array, list[Array], list[Array], list[Array]]:
    """dx (T, N, I) or None, dh0 and dc0 (R, N, H), then per direction dw_ih, dw_hh, dbias."""
    return backend(x).lstm_backward(
        dy=contiguous(dy),
        dh_n=None if dh_n is None else contiguous(dh_n),
        dc_n=None if dc_n is None else contiguous(dc_n),
        x=contiguous(x),
        lengths=lengths_of(lengths, x, len(x)),
        h0=None if h0 is None else contiguous(h0),
        c0=None if c0 is None else contiguous(c0),
        w_ih=[contiguous(w) for w in w_ih],
        w_hh=[contiguous(w) for w in w_hh],
        y=y,
        gates=gates,
        cells=cells,
        reverse=reverse,
        need_dx=need_dx,
    )


def pack_linear(weight: Array) -> Any:
    """A weight (C, K) in the kernels' order, for `linear(..., packed=)`. Make it anew after the weight changes."""
    return backend(weight).pack_linear(weight=contiguous(weight))


def linear(x: Array, weight: Array, bias: Array | None = None, packed: Any = None) -> Array:
    """x (..., K), weight (C, K), bias (C,) -> (..., C)."""
    y = backend(x).linear(
        x=as_rows(x), weight=contiguous(weight), bias=None if bias is None else contiguous(bias), packed=packed
    )
    return y if x.ndim == 2 else y.reshape((*x.shape[:-1], y.shape[1]))


def linear_backward(
    dy: Array, x: Array, weight: Array, need_dx: bool = True, need_dweight: bool = True, need_dbias: bool = True
) -> tuple[Array | None, Array | None, Array | None]:
    """dx (..., K), dweight (C, K), dbias (C,); None for what is not needed."""
    dx, dweight, dbias = backend(x).linear_backward(
        dy=as_rows(dy, "dy"),
        x=as_rows(x),
        weight=contiguous(weight),
        need_dx=need_dx,
        need_dweight=need_dweight,
        need_dbias=need_dbias,
    )
    return None if dx is None else dx.reshape(x.shape), dweight, dbias


def pack_quantized(weight: Array, scale: Array | None = None, gates: bool = False) -> Any:
    """A weight (C, K) stored small, for the ops below: int8 with scale (C,), or float16. gates: w_ih or w_hh of an LSTM."""
    return backend(weight).pack_quantized(weight=weight, scale=scale, gates=gates)


def _holder(weight: Any) -> Any:
    """The backend that packed a weight."""
    return _core if isinstance(weight, _core.Quantized) else _cuda()


def unpack_quantized(weight: Any) -> Array:
    """float32 (C, K): float16 exactly, int8 times its row's scale."""
    return _holder(weight).unpack_quantized(weight=weight)


def quantized_linear(x: Array, weight: Any, bias: Array | None = None) -> Array:
    """x (..., K), weight (C, K) from `pack_quantized`, bias (C,) -> (..., C).

    With int8, each row of x is rounded to int8 by a scale of its own, and the sums are exact (Jacob et al. 2018).
    """
    y = _holder(weight).quantized_linear(x=as_rows(x), weight=weight, bias=None if bias is None else contiguous(bias))
    return y if x.ndim == 2 else y.reshape((*x.shape[:-1], y.shape[1]))


def quantized_embedding(ids: Any, weight: Any) -> Array:
    """ids int64 (...), weight (V, C) from `pack_quantized` -> (..., C). IndexError for an id outside 0..V-1."""
    holder = _holder(weight)
    ids = integers(ids, None if holder is _core else weight.array, "ids", weight.shape[0])
    y = holder.quantized_embedding(ids=ids if ids.ndim == 1 else ids.reshape(ids.size), weight=weight)
    return y if ids.ndim == 1 else y.reshape((*ids.shape, y.shape[1]))


def quantized_lstm(
    x: Array,
    w_ih: Sequence[Any],
    w_hh: Sequence[Any],
    bias: Sequence[Array],
    lengths: Any = None,
    h0: Array | None = None,
    c0: Array | None = None,
    reverse: bool = False,
) -> tuple[Array, Array, Array]:
    """`lstm` for inference, w_ih and w_hh from `pack_quantized(..., gates=True)`: y, h_n, c_n."""
    return _holder(w_ih[0]).quantized_lstm(
        x=contiguous(x),
        lengths=lengths_of(lengths, x, len(x)),
        h0=None if h0 is None else contiguous(h0),
        c0=None if c0 is None else contiguous(c0),
        w_ih=w_ih,
        w_hh=w_hh,
        bias=bias,
        reverse=reverse,
    )


def matmul(a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    """a (..., M, K), b (..., K, C), either with its last two axes swapped -> (..., M, C). Leading axes broadcast."""
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"matmul: expected at least two axes, got a of shape {a.shape} and b of shape {b.shape}")
    lead = a.shape[:-2]
    if lead != b.shape[:-2]:
        lead = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        a, b = np.broadcast_to(a, lead + a.shape[-2:]), np.broadcast_to(b, lead + b.shape[-2:])
    batch = math.prod(lead)
    y = backend(a).matmul(
        a=contiguous(a).reshape((batch, *a.shape[-2:])),
        b=contiguous(b).reshape((batch, *b.shape[-2:])),
        transpose_a=transpose_a,
        transpose_b=transpose_b,
    )
    return y.reshape(lead + y.shape[1:])


def matmul_backward(dy: Array, a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> tuple[Array, Array]:
    """da and db, shaped like a and b."""
    if transpose_a:
        da = matmul(b, dy, transpose_b, True)
    else:
        da = matmul(dy, b, False, not transpose_b)
    if transpose_b:
        db = matmul(dy, a, True, transpose_a)
    else:
        db = matmul(a, dy, not transpose_a, False)
    return reduce_to(da, a.shape), reduce_to(db, b.shape)


def embedding(ids: Any, weight: Array) -> Array:
    """ids int64 (...), weight (V, C) -> (..., C). IndexError for an id outside 0..V-1."""
    ids = integers(ids, weight, "ids", weight.shape[0])
    y = backend(weight).embedding(ids=ids if ids.ndim == 1 else ids.reshape(ids.size), weight=contiguous(weight))
    return y if ids.ndim == 1 else y.reshape((*ids.shape, weight.shape[1]))


def embedding_backward(dy: Array, ids: Any, num_embeddings: int, order: Any = None) -> Array:
    """dy (..., C) -> (V, C); rows of the same id are added in the order of their position.

    order int64 (ids.size,): what a stable argsort of the ids gives, for ids that come again and again.
    """
    ids = integers(ids, dy, "ids")
    order = None if order is None else integers(order, dy, "order")
    return backend(dy).embedding_backward(
        dy=as_rows(dy, "dy"), ids=ids.reshape(ids.size), num_embeddings=num_embeddings, order=order
    )


def attention(query: Array, key: Array, value: Array, lengths: Any = None, scale: float = 1.0) -> tuple[Array, Array]:
    """Dot-product attention (Luong et al. 2015), softmax over S.

    query (T, N, H), key (S, N, H), value (S, N, C) -> context (T, N, C), weights (N, T, S). Keys at s >= lengths[n] are
    hidden; a row of length 0 gets a context of zeros.
    """
    return backend(query).attention(
        query=contiguous(query),
        key=contiguous(key),
        value=contiguous(value),
        lengths=lengths_of(lengths, query, len(key)),
        scale=float(scale),
    )


def attention_backward(
    dcontext: Array, dweights: Array | None, query: Array, key: Array, value: Array, weights: Array, scale: float = 1.0
) -> tuple[Array, Array, Array]:
    """dquery, dkey, dvalue, shaped like what they differentiate."""
    return backend(query).attention_backward(
        dcontext=contiguous(dcontext),
        dweights=None if dweights is None else contiguous(dweights),
        query=contiguous(query),
        key=contiguous(key),
        value=contiguous(value),
        weights=weights,
        scale=float(scale),
    )

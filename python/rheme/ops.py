# mypy: disable-error-code="no-any-return"
"""Arrays in, arrays out: every op of the core and its backward, with shapes, defaults and broadcasting done here.

Names are those of `_core.pyi`, where the shape letters are declared; "..." stands for leading axes, flattened on the way
in and restored on the way out. All floating arrays of one call share a dtype, float32 or float64. NumPy arrays go to the
compiled core, CuPy arrays to its twin. The core raises ValueError or TypeError with the name of a wrong argument.

No float arithmetic happens in this file: NumPy only indexes, copies, compares and counts, so that the bits are the core's.
"""

import builtins
import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import _core
from rheme.errors import InputError, RhemeError

Array = NDArray[Any]
Axis = int | tuple[int, ...] | None

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@functools.cache
def _cuda() -> Any:
    try:
        return importlib.import_module("rheme._cuda")
    except ImportError as error:
        raise RhemeError(f"this array is on a GPU, and the GPU backend cannot be loaded: {error}") from error


def backend(array: Any) -> Any:
    """The module that computes on this kind of array. TypeError for anything but a NumPy or CuPy array."""
    if isinstance(array, np.ndarray):
        return _core
    if on_gpu(array):
        return _cuda()
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}")


def on_gpu(array: Any) -> bool:
    """Whether it is an array of a CUDA device."""
    return type(array).__module__.startswith("cupy")


def to_host(array: Any) -> Array:
    """The array in the host's memory: itself, or a copy of a GPU's, which waits for what is under way there."""
    return array.get() if on_gpu(array) else array


def check_device(device: str) -> None:
    """InputError for a device that is neither "cpu" nor "cuda"; RhemeError, in one line, where "cuda" is out of reach here."""
    if device not in ("cpu", "cuda"):
        raise InputError(f"unknown device {device!r}: give 'cpu' or 'cuda'")
    if device == "cuda":
        _cuda().isa()


def captured(model: Any, like: Array) -> Any:
    """The model, its `step` recorded as CUDA graphs where it says `capturable` and `like`, a weight, is on a GPU."""
    return _cuda().Captured(model.step) if on_gpu(like) and getattr(model, "capturable", False) else model


def to_device(array: Array, device: str) -> Array:
    """The array on "cpu" or "cuda" (the current device). RhemeError says what is missing for a GPU."""
    if device == "cpu":
        return to_host(array)
    return array if on_gpu(array) else _cuda().upload(array)


# Making arrays --------------------------------------------------------------------------------------------------------


@functools.cache
def _name(dtype: Any) -> str:
    return np.dtype(dtype).name  # NumPy takes 2 us to find it


def empty(shape: Sequence[int], dtype: Any = "float32", like: Array | None = None) -> Array:
    """An uninitialised array; floats come from the core's arena. `like` gives the device."""
    name = _name(dtype)
    core = _core if like is None else backend(like)
    if core is _core and name not in ("float32", "float64"):
        return np.empty(tuple(shape), name)
    return core.empty(shape=tuple(shape), dtype=name)


def zeros(shape: Sequence[int], dtype: Any = "float32", like: Array | None = None) -> Array:
    """An array of zeros; floats come from the core's arena. `like` gives the device."""
    name = _name(dtype)
    core = _core if like is None else backend(like)
    if core is _core and name not in ("float32", "float64"):
        return np.zeros(tuple(shape), name)
    return core.zeros(shape=tuple(shape), dtype=name)


def asarray(value: Any, dtype: Any = None, like: Array | None = None) -> Array:
    """`value` as an array the core takes: contiguous; integers become int64, floats float32 unless they are float64 arrays.

    An array that already is one comes back as it is, not copied. dtype, if given, holds instead; `like` gives the device, and
    the dtype of Python floats.
    """
    if type(value) is np.ndarray and dtype is None and like is None and value.dtype in _FLOATS and value.flags.c_contiguous:
        return value
    if isinstance(value, np.ndarray | np.generic) or on_gpu(value):
        array = np.asarray(value) if isinstance(value, np.generic) else value
    else:
        array = np.asarray(value)
        if dtype is None and array.dtype.kind == "f":
            dtype = np.float32 if like is None else like.dtype
    if dtype is None:
        kind = array.dtype.kind
        if kind == "f":
            dtype = np.float64 if array.dtype.itemsize == 8 else np.float32
        elif kind == "i" or (kind == "u" and array.dtype.itemsize not in (1, 8)):
            dtype = np.int64
        else:
            dtype = array.dtype
    if array.dtype != dtype:
        array = array.astype(dtype)
    if like is not None and on_gpu(array) != on_gpu(like):
        return to_device(array, "cuda" if on_gpu(like) else "cpu")
    return contiguous(array)


def contiguous(x: Array) -> Array:
    """x itself where it is C-contiguous, else a copy that is."""
    if x.flags.c_contiguous:
        return x
    copy = empty(x.shape, x.dtype, x)
    copy[...] = x
    return copy


def integers(x: Any, like: Array, name: str, size: int | None = None) -> Array:
    """x as int64, on the device of `like`. size: ids are looked at before they go to a GPU, whose kernels can't raise."""
    if not (hasattr(x, "dtype") and hasattr(x, "flags")):
        x = np.asarray(x)
        if x.size == 0:
            x = x.astype(np.int64)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {x.dtype}")
    if size is not None and on_gpu(like) and not on_gpu(x) and x.size and (x.min() < 0 or x.max() >= size):
        wrong = int(np.flatnonzero((x < 0) | (x >= size))[0])
        raise IndexError(f"{name}: {x.reshape(-1)[wrong]} at position {wrong}, wanted 0..{size - 1}")
    return asarray(x, np.int64, like)


def lengths_of(lengths: Any, like: Array) -> Array | None:
    return None if lengths is None else integers(lengths, like, "lengths")


def mask_of(mask: Any, x: Array) -> Array | None:
    """A mask as uint8 of the shape of x; a mask of a smaller shape is broadcast."""
    if mask is None:
        return None
    mask = asarray(mask, like=x)
    if mask.dtype == np.bool_:
        mask = mask.view(np.uint8)
    elif mask.dtype != np.uint8:
        raise TypeError(f"mask: expected bool or uint8, got {mask.dtype}")
    if mask.shape == x.shape:
        return mask
    try:
        return contiguous(np.broadcast_to(mask, x.shape))
    except ValueError:
        raise ValueError(f"mask: shape {mask.shape} does not fit x of shape {x.shape}") from None


def as_rows(x: Array, name: str = "x") -> Array:
    """x (..., C) as (M, C)."""
    shape = x.shape
    if len(shape) == 2:
        return x if x.flags.c_contiguous else contiguous(x)
    if not shape:
        raise ValueError(f"{name}: expected at least one axis, got a scalar")
    return contiguous(x).reshape(math.prod(shape[:-1]), shape[-1])


def broadcast_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise ValueError(f"shapes {a} and {b} do not broadcast together") from None


def expand(x: Array, shape: tuple[int, ...]) -> Array:
    out = empty(shape, x.dtype, x)
    out[...] = x
    return out


# Random numbers: Philox4x32-10, functions of (seed, stream, position) alone -------------------------------------------


def random_bits(seed: int, stream: int, position: int, n: int) -> Array:
    """uint64 (n,)."""
    return _core.random_bits(seed=seed, stream=stream, position=position, n=n)


def _drawn_by(like: Array | None) -> Any:
    return _core if like is None else backend(like)


def random_uniform(
    seed: int, stream: int, position: int, shape: Sequence[int], dtype: Any = "float32", like: Array | None = None
) -> Array:
    """F `shape`, uniform in [0, 1). `like` gives the device; the numbers are the same on each."""
    name = _name(dtype)
    return _drawn_by(like).random_uniform(seed=seed, stream=stream, position=position, shape=tuple(shape), dtype=name)


def random_normal(
    seed: int, stream: int, position: int, shape: Sequence[int], dtype: Any = "float32", like: Array | None = None
) -> Array:
    """F `shape`, standard normal (Box and Muller). `like` gives the device; float32 numbers are the same on each."""
    name = _name(dtype)
    return _drawn_by(like).random_normal(seed=seed, stream=stream, position=position, shape=tuple(shape), dtype=name)


# Recurrence and products ------------------------------------------------------------------------------------------------


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
    return backend(x).lstm(
        x=contiguous(x),
        lengths=lengths_of(lengths, x),
        h0=None if h0 is None else contiguous(h0),
        c0=None if c0 is None else contiguous(c0),
        w_ih=[contiguous(w) for w in w_ih],
        w_hh=[contiguous(w) for w in w_hh],
        bias=[contiguous(b) for b in bias],
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
        lengths=lengths_of(lengths, x),
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
    ids = np.ascontiguousarray(ids, np.int64) if holder is _core else integers(ids, weight.array, "ids", weight.shape[0])
    y = holder.quantized_embedding(ids=ids.reshape(ids.size), weight=weight)
    return y.reshape((*ids.shape, y.shape[1]))


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
        lengths=lengths_of(lengths, x),
        h0=None if h0 is None else contiguous(h0),
        c0=None if c0 is None else contiguous(c0),
        w_ih=w_ih,
        w_hh=w_hh,
        bias=[contiguous(b) for b in bias],
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
    y = backend(weight).embedding(ids=ids.reshape(ids.size), weight=contiguous(weight))
    return y.reshape((*ids.shape, weight.shape[1]))


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
        lengths=lengths_of(lengths, query),
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


# Softmax and what stands on it ------------------------------------------------------------------------------------------


def softmax(x: Array, mask: Any = None) -> Array:
    """x (..., C), mask bool or uint8 (1 keeps) -> (..., C), over the last axis. A row with nothing kept is all zeros."""
    return backend(x).softmax(x=as_rows(x), mask=_row_mask(mask, x)).reshape(x.shape)


def softmax_backward(dy: Array, y: Array) -> Array:
    return backend(y).softmax_backward(dy=as_rows(dy, "dy"), y=as_rows(y, "y")).reshape(y.shape)


def log_softmax(x: Array, mask: Any = None) -> Array:
    """x (..., C), mask bool or uint8 (1 keeps) -> (..., C), over the last axis. Hidden entries are -inf."""
    return backend(x).log_softmax(x=as_rows(x), mask=_row_mask(mask, x)).reshape(x.shape)


def log_softmax_backward(dy: Array, y: Array) -> Array:
    return backend(y).log_softmax_backward(dy=as_rows(dy, "dy"), y=as_rows(y, "y")).reshape(y.shape)


def _row_mask(mask: Any, x: Array) -> Array | None:
    return None if mask is None else as_rows(mask_of(mask, x), "mask")  # type: ignore[arg-type]


def cross_entropy(logits: Array, targets: Any, ignore_index: int = -1, label_smoothing: float = 0.0, save: bool = False) -> Any:
    """Cross-entropy of given logits (..., V) -> loss (...); targets, ignored ones and smoothing as in `linear_cross_entropy`.

    With `save`: loss and lse, as `cross_entropy_backward` needs it.
    """
    targets = integers(targets, logits, "targets")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets: shape {targets.shape} does not fit logits of shape {logits.shape}")
    loss, lse = backend(logits).cross_entropy(
        logits=as_rows(logits, "logits"),
        targets=targets.reshape(targets.size),
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
    )
    loss = loss.reshape(targets.shape)
    return (loss, lse) if save else loss


def cross_entropy_backward(
    dloss: Array, logits: Array, targets: Any, lse: Array, ignore_index: int = -1, label_smoothing: float = 0.0
) -> Array:
    """dlogits (..., V)."""
    targets = integers(targets, logits, "targets")
    dlogits = backend(logits).cross_entropy_backward(
        dloss=contiguous(dloss).reshape(dloss.size),
        logits=as_rows(logits, "logits"),
        targets=targets.reshape(targets.size),
        lse=lse,
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
    )
    return dlogits.reshape(logits.shape)


def linear_cross_entropy(
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Any,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
    save: bool = False,
) -> Any:
    """Cross-entropy of the logits x weight^T + bias, never kept whole when they are large.

    x (..., K), weight (V, K), bias (V,) or None, targets int64 (...) -> loss (...), 0 where the target is ignore_index.
    loss = (1 - s) (lse - logit[target]) + s (lse - mean of the logits), s = label_smoothing (Szegedy et al. 2016).
    With `save`: loss, lse and logits (or None), as `linear_cross_entropy_backward` needs them.
    """
    targets = integers(targets, x, "targets")
    if targets.shape != x.shape[:-1]:
        raise ValueError(f"targets: shape {targets.shape} does not fit x of shape {x.shape}")
    loss, lse, logits = backend(x).linear_cross_entropy(
        x=as_rows(x),
        weight=contiguous(weight),
        bias=None if bias is None else contiguous(bias),
        targets=targets.reshape(targets.size),
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
        save=save,
    )
    loss = loss.reshape(targets.shape)
    return (loss, lse, logits) if save else loss


def linear_cross_entropy_backward(
    dloss: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Any,
    lse: Array,
    logits: Array | None,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
) -> tuple[Array, Array, Array | None]:
    """dx (..., K), dweight (V, K), dbias (V,) or None."""
    targets = integers(targets, x, "targets")
    dx, dweight, dbias = backend(x).linear_cross_entropy_backward(
        dloss=contiguous(dloss).reshape(dloss.size),
        x=as_rows(x),
        weight=contiguous(weight),
        bias=None if bias is None else contiguous(bias),
        targets=targets.reshape(targets.size),
        lse=lse,
        logits=logits,
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
    )
    return dx.reshape(x.shape), dweight, dbias


def sample(
    logits: Array, bits: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Array:
    """logits (N, V), bits uint64 (N,) -> ids int64 (N,). temperature 0 is argmax.

    top_k keeps the k largest (0: all), then top_p the smallest prefix that reaches top_p of them (Holtzman et al. 2020), then
    min_p those at least min_p times as likely as the likeliest. By integer weights: equal logits and bits draw equal ids on any
    machine.
    """
    bits = asarray(bits, like=logits)
    return backend(logits).sample(
        logits=contiguous(logits),
        bits=bits,
        temperature=float(temperature),
        top_k=int(top_k),
        top_p=float(top_p),
        min_p=float(min_p),
    )


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """x (..., V) -> values (..., k) and ids int64 (..., k), largest first, equal ones by ascending id."""
    values, ids = backend(x).top_k(x=as_rows(x), k=int(k))
    shape = (*x.shape[:-1], k)
    return values.reshape(shape), ids.reshape(shape)


def gaussian_kl(
    mu: Array, logvar: Array, eps: Array, free_bits: float = 0.0, free_bits_over: str = "sample"
) -> tuple[Array, Array]:
    """z = mu + exp(logvar / 2) * eps, and KL(N(mu, exp(logvar)) || N(0, 1)) per dimension (Kingma and Welling 2014).

    mu, logvar, eps (..., D) -> z, kl (..., D). A kl below free_bits is set to free_bits and gets no gradient: each by itself
    (free_bits_over "sample"), or a whole column by its mean ("batch"; Kingma et al. 2016).
    """
    z, kl = backend(mu).gaussian_kl(
        mu=as_rows(mu, "mu"),
        logvar=as_rows(logvar, "logvar"),
        eps=as_rows(asarray(eps, like=mu), "eps"),
        free_bits=float(free_bits),
        free_bits_over=free_bits_over,
    )
    return (z, kl) if mu.ndim == 2 else (z.reshape(mu.shape), kl.reshape(mu.shape))


def gaussian_kl_backward(
    dz: Array, dkl: Array, mu: Array, logvar: Array, eps: Array, free_bits: float = 0.0, free_bits_over: str = "sample"
) -> tuple[Array, Array]:
    """dmu, dlogvar (..., D)."""
    dmu, dlogvar = backend(mu).gaussian_kl_backward(
        dz=as_rows(dz, "dz"),
        dkl=as_rows(dkl, "dkl"),
        mu=as_rows(mu, "mu"),
        logvar=as_rows(logvar, "logvar"),
        eps=as_rows(asarray(eps, like=mu), "eps"),
        free_bits=float(free_bits),
        free_bits_over=free_bits_over,
    )
    return (dmu, dlogvar) if mu.ndim == 2 else (dmu.reshape(mu.shape), dlogvar.reshape(mu.shape))


# Elementwise ------------------------------------------------------------------------------------------------------------


def _fill(shape: tuple[int, ...], value: Any, like: Array) -> Array:
    filled = empty(shape, like.dtype, like)
    filled[...] = value
    return filled


def _binary(name: str, a: Any, b: Any) -> Array:
    """Run a binary op: the core takes a (M, C) with b (M, C), (1, C), (M, 1) or (1, 1)."""
    if isinstance(a, int | float | np.generic):
        a = _fill((1,) * b.ndim, a, b)
    elif isinstance(b, int | float | np.generic):
        b = _fill((1, 1), b, a)
        return getattr(backend(a), name)(a=_at_least_2d(a), b=b).reshape(a.shape)
    op = getattr(backend(a), name)
    shape = a.shape
    if shape == b.shape:
        return op(a=_at_least_2d(a), b=_at_least_2d(b)).reshape(shape)
    shape = broadcast_shapes(shape, b.shape)
    if a.shape != shape and b.shape == shape and name in ("add", "mul"):
        a, b = b, a
    if a.shape != shape:
        a = expand(a, shape)
    padded = (1,) * (len(shape) - b.ndim) + b.shape
    # The split where b repeats along everything before (a row) or after (a column).
    row = next((i for i, n in enumerate(padded) if n != 1), len(shape))
    column = len(shape) - next((i for i, n in enumerate(padded[::-1]) if n != 1), len(shape))
    a, b = contiguous(a), contiguous(b)
    if padded[row:] == shape[row:]:
        columns = math.prod(shape[row:])
        y = op(a=a.reshape(math.prod(shape[:row]), columns), b=b.reshape(1, columns))
    elif padded[:column] == shape[:column]:
        rows = math.prod(shape[:column])
        y = op(a=a.reshape(rows, math.prod(shape[column:])), b=b.reshape(rows, 1))
    else:
        y = op(a=_at_least_2d(a), b=_at_least_2d(expand(b, shape)))
    return y.reshape(shape)


def _at_least_2d(x: Array) -> Array:
    return as_rows(x) if x.ndim else contiguous(x).reshape(1, 1)


def add(a: Any, b: Any) -> Array:
    """a + b; shapes broadcast as NumPy's do, and either may be a Python number. So for `sub`, `mul`, `div`."""
    return _binary("add", a, b)


def sub(a: Any, b: Any) -> Array:
    return _binary("sub", a, b)


def mul(a: Any, b: Any) -> Array:
    return _binary("mul", a, b)


def div(a: Any, b: Any) -> Array:
    return _binary("div", a, b)


def add_backward(dy: Array, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> tuple[Array, Array]:
    return reduce_to(dy, a_shape), reduce_to(dy, b_shape)


def sub_backward(dy: Array, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> tuple[Array, Array]:
    return reduce_to(dy, a_shape), neg(reduce_to(dy, b_shape))


def mul_backward(dy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    return reduce_to(mul(dy, b), a.shape), reduce_to(mul(dy, a), b.shape)


def div_backward(dy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    da = div(dy, b)
    return reduce_to(da, a.shape), neg(reduce_to(mul(da, div(a, b)), b.shape))


def _unary(name: str, x: Array) -> Array:
    return getattr(backend(x), name)(x=contiguous(x))


def neg(x: Array) -> Array:
    return _unary("neg", x)


def exp(x: Array) -> Array:
    return _unary("exp", x)


def log(x: Array) -> Array:
    return _unary("log", x)


def tanh(x: Array) -> Array:
    return _unary("tanh", x)


def sigmoid(x: Array) -> Array:
    return _unary("sigmoid", x)


def relu(x: Array) -> Array:
    return _unary("relu", x)


def exp_backward(dy: Array, y: Array) -> Array:
    return backend(y).exp_backward(dy=contiguous(dy), y=contiguous(y))


def log_backward(dy: Array, x: Array) -> Array:
    return backend(x).log_backward(dy=contiguous(dy), x=contiguous(x))


def tanh_backward(dy: Array, y: Array) -> Array:
    return backend(y).tanh_backward(dy=contiguous(dy), y=contiguous(y))


def sigmoid_backward(dy: Array, y: Array) -> Array:
    return backend(y).sigmoid_backward(dy=contiguous(dy), y=contiguous(y))


def relu_backward(dy: Array, y: Array) -> Array:
    return backend(y).relu_backward(dy=contiguous(dy), y=contiguous(y))


def dropout(x: Array, p: float, seed: int, stream: int, period: int = 0) -> Array:
    """x of any shape, each element 0 with probability p, else scaled by 1 / (1 - p) (Srivastava et al. 2014).

    The mask is a function of (seed, stream) and the element's index, modulo `period` if that is not 0. Its own backward.
    """
    return backend(x).dropout(x=contiguous(x), p=float(p), seed=seed, stream=stream, period=period)


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float = 1e-5) -> tuple[Array, Array, Array]:
    """x (..., C), weight and bias (C,) -> y (..., C), mean and rstd (M,), M being all the rows (Ba et al. 2016)."""
    y, mean, rstd = backend(x).layer_norm(
        x=as_rows(x), weight=contiguous(weight), bias=contiguous(bias), epsilon=float(epsilon)
    )
    return y.reshape(x.shape), mean, rstd


def layer_norm_backward(dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """dx (..., C), dweight and dbias (C,)."""
    dx, dweight, dbias = backend(x).layer_norm_backward(
        dy=as_rows(dy, "dy"), x=as_rows(x), weight=contiguous(weight), mean=mean, rstd=rstd
    )
    return dx.reshape(x.shape), dweight, dbias


# Reductions -------------------------------------------------------------------------------------------------------------


class _Reduction:
    """How x is folded to (A, K, C), K being the reduced axes together."""

    def __init__(self, shape: tuple[int, ...], axis: Axis, keepdims: bool) -> None:
        rank = len(shape)
        axes = tuple(range(rank)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        for i in axes:
            if not -rank <= i < rank:
                raise ValueError(f"axis: {i} is not an axis of an array of shape {shape}")
        axes = tuple(sorted({i % rank for i in axes})) if rank else ()
        self.shape = shape
        first, last = (axes[0], axes[-1] + 1) if axes else (rank, rank)
        self.permutation: tuple[int, ...] | None = None
        if last - first != len(axes):  # not neighbours: bring them together at the end
            self.permutation = tuple(i for i in range(rank) if i not in axes) + axes
            first, last, shape = rank - len(axes), rank, tuple(shape[i] for i in self.permutation)
        self.permuted = shape
        self.folded = (math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:]))
        if keepdims:
            self.out = tuple(1 if i in axes else n for i, n in enumerate(self.shape))
        else:
            self.out = tuple(n for i, n in enumerate(self.shape) if i not in axes)

    def fold(self, x: Array) -> Array:
        x = x if self.permutation is None else x.transpose(self.permutation)
        return contiguous(x).reshape(self.folded)

    def fold_mask(self, mask: Any, x: Array) -> Array | None:
        return None if mask is None else self.fold(mask_of(mask, x))  # type: ignore[arg-type]

    def unfold(self, x: Array) -> Array:
        """(A, K, C) back to the shape of the input."""
        x = x.reshape(self.permuted)
        if self.permutation is None:
            return x
        inverse = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        return contiguous(x.transpose(inverse))

    def spread(self, dy: Array, mask: Array | None) -> Array:
        """dy (A, C) to (A, K, C): the same for each k, 0 where hidden."""
        a, _, c = self.folded
        out = expand(dy.reshape(a, 1, c), self.folded)
        if mask is not None:
            out[mask == 0] = 0
        return out


def sum(x: Array, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> Array:
    """x summed over `axis` (an int, several, or None: all); mask bool or uint8 (1 keeps), broadcast to x. Nothing kept: 0."""
    fold = _Reduction(x.shape, axis, keepdims)
    return backend(x).sum(x=fold.fold(x), mask=fold.fold_mask(mask, x)).reshape(fold.out)


def sum_backward(dy: Array, x: Array, axis: Axis = None, mask: Any = None) -> Array:
    fold = _Reduction(x.shape, axis, False)
    return fold.unfold(fold.spread(contiguous(dy), fold.fold_mask(mask, x)))


def mean(x: Array, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> Array:
    """As `sum`, divided by how many are kept. Nothing kept: 0."""
    fold = _Reduction(x.shape, axis, keepdims)
    return backend(x).mean(x=fold.fold(x), mask=fold.fold_mask(mask, x)).reshape(fold.out)


def mean_backward(dy: Array, x: Array, axis: Axis = None, mask: Any = None) -> Array:
    fold = _Reduction(x.shape, axis, False)
    a, k, c = fold.folded
    kept = fold.fold_mask(mask, x)
    count = empty((a, c), dy.dtype, dy)
    count[...] = builtins.max(k, 1) if kept is None else np.maximum(np.count_nonzero(kept, axis=1), 1)
    each = backend(dy).div(a=contiguous(dy).reshape(a, c), b=count)
    return fold.unfold(fold.spread(each, kept))


def max(x: Array, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> tuple[Array, Array]:
    """Values and int64 positions along the reduced axes (flattened), the first among equals; nothing kept: -inf and -1."""
    fold = _Reduction(x.shape, axis, keepdims)
    values, positions = backend(x).max(x=fold.fold(x), mask=fold.fold_mask(mask, x))
    return values.reshape(fold.out), positions.reshape(fold.out)


def max_backward(dy: Array, positions: Array, x: Array, axis: Axis = None) -> Array:
    fold = _Reduction(x.shape, axis, False)
    a, _, c = fold.folded
    positions, dy = positions.reshape(a, c), contiguous(dy).reshape(a, c)
    dx = zeros(fold.folded, dy.dtype, dy)
    if dx.size:
        kept = positions >= 0
        rows, columns = (integers(i, dy, "positions") for i in (np.arange(a)[:, None], np.arange(c)[None]))
        dx[rows, np.where(kept, positions, 0), columns] = np.where(kept, dy, np.zeros_like(dy))
    return fold.unfold(dx)


def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> Array:
    """log(sum(exp(x))) over `axis`, as `sum` takes it. Nothing kept: -inf."""
    fold = _Reduction(x.shape, axis, keepdims)
    return backend(x).logsumexp(x=fold.fold(x), mask=fold.fold_mask(mask, x)).reshape(fold.out)


def logsumexp_backward(dy: Array, x: Array, y: Array, axis: Axis = None, mask: Any = None) -> Array:
    fold = _Reduction(x.shape, axis, False)
    a, k, c = fold.folded
    kept = fold.fold_mask(mask, x)
    dy, y = contiguous(dy).reshape(a, c), contiguous(y).reshape(a, c)
    dy, y = np.where(y == -np.inf, np.zeros_like(dy), dy), np.where(y == -np.inf, np.zeros_like(y), y)
    core, flat = backend(x), (a, k * c)
    below = core.sub(a=fold.fold(x).reshape(flat), b=fold.spread(y, None).reshape(flat))
    dx = core.mul(a=core.exp(x=below), b=fold.spread(dy, None).reshape(flat)).reshape(fold.folded)
    if kept is not None:
        dx[kept == 0] = 0
    return fold.unfold(dx)


def reduce_to(dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum dy over the axes along which an operand of this shape was broadcast."""
    if dy.shape == shape:
        return dy
    padded = (1,) * (dy.ndim - len(shape)) + shape
    axes = tuple(i for i, (n, m) in enumerate(zip(padded, dy.shape, strict=True)) if n == 1 and m != 1)
    return (sum(dy, axes) if axes else dy).reshape(shape)


# Shape ----------------------------------------------------------------------------------------------------------------


def concat(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Arrays of one shape but for `axis`, joined along it, on a GPU where one of them is."""
    first = next((x for x in arrays if type(x) is not np.ndarray and on_gpu(x)), arrays[0])
    if type(first) is not np.ndarray:
        arrays = [asarray(x, like=first) for x in arrays]
    axis = axis % builtins.max(first.ndim, 1)
    shape = [*first.shape]
    shape[axis] = 0
    for x in arrays:
        if x.dtype is not first.dtype and x.dtype != first.dtype:
            raise TypeError(f"concat: dtypes {first.dtype} and {x.dtype} differ")
        size = x.shape[axis] if x.ndim == first.ndim else -1
        shape[axis] += size
        if size < 0 or (*first.shape[:axis], size, *first.shape[axis + 1 :]) != x.shape:
            raise ValueError(f"concat: shapes {first.shape} and {x.shape} differ elsewhere than on axis {axis}")
    out = empty(shape, first.dtype, first)
    if type(out) is np.ndarray:
        return np.concatenate(arrays, axis, out=out)
    lead, start = (builtins.slice(None),) * axis, 0
    for x in arrays:
        out[(*lead, builtins.slice(start, start + x.shape[axis]))] = x
        start += x.shape[axis]
    return out


def concat_backward(dy: Array, sizes: Sequence[int], axis: int = 0) -> list[Array]:
    """The parts of dy, of these sizes along `axis`."""
    lead, start, parts = (builtins.slice(None),) * (axis % dy.ndim), 0, []
    for size in sizes:
        parts.append(contiguous(dy[(*lead, builtins.slice(start, start + size))]))
        start += size
    return parts


def slice(x: Array, index: Any) -> Array:
    """x[index] for an index of integers, slices, None and Ellipsis; contiguous, and a view of x where it can be."""
    part = x[index]
    return contiguous(part) if hasattr(part, "flags") and part.shape else asarray(part, x.dtype, x)


def slice_backward(dy: Array, x: Array, index: Any) -> Array:
    dx = zeros(x.shape, dy.dtype, dy)
    dx[index] = dy
    return dx


def reshape(x: Array, shape: Sequence[int]) -> Array:
    """x with another shape (one -1 is worked out); the same memory where x is contiguous."""
    return contiguous(x).reshape(tuple(shape))


def transpose(x: Array, axes: Sequence[int] | None = None) -> Array:
    """x with its axes in this order (None: reversed), copied to be contiguous."""
    return contiguous(x.transpose(axes))


# Optimisers: they update their arrays in place --------------------------------------------------------------------------


def global_norm(arrays: Sequence[Array]) -> float:
    """The Euclidean norm of all the arrays' elements together."""
    return backend(arrays[0]).global_norm(arrays=[contiguous(a) for a in arrays]) if arrays else 0.0


def adamw(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    step: int = 1,
    grad_scale: float = 1.0,
) -> None:
    """One AdamW update (Loshchilov and Hutter 2019) of param, m and v, in place; grad is first multiplied by grad_scale."""
    backend(param).adamw(
        param=param,
        grad=contiguous(grad),
        m=m,
        v=v,
        learning_rate=float(learning_rate),
        beta1=float(beta1),
        beta2=float(beta2),
        epsilon=float(epsilon),
        weight_decay=float(weight_decay),
        step=int(step),
        grad_scale=float(grad_scale),
    )


def sgd(
    param: Array,
    grad: Array,
    momentum_buffer: Array | None,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """One update by gradient descent with momentum, in place; the gradient is first multiplied by grad_scale."""
    backend(param).sgd(
        param=param,
        grad=contiguous(grad),
        momentum_buffer=momentum_buffer,
        learning_rate=float(learning_rate),
        momentum=float(momentum),
        weight_decay=float(weight_decay),
        grad_scale=float(grad_scale),
    )

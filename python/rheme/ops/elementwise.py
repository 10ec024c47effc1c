# mypy: disable-error-code="no-any-return"
"""One element, or one row, at a time: arithmetic with broadcasting, functions, dropout, layer norm."""

import math
from typing import Any

import numpy as np

from rheme.ops.arrays import Array, as_rows, backend, broadcast_shapes, check_words, contiguous, empty, expand
from rheme.ops.reductions import reduce_to

_NUMBERS = (int, float, np.generic)


def _fill(shape: tuple[int, ...], value: Any, like: Array) -> Array:
    filled = empty(shape, like.dtype, like)
    filled[...] = value
    return filled


def _binary(name: str, a: Any, b: Any) -> Array:
    """Run a binary op: the core takes a (M, C) with b (M, C), (1, C), (M, 1) or (1, 1)."""
    if isinstance(a, _NUMBERS):
        a = _fill((1,) * b.ndim, a, b)
    elif isinstance(b, _NUMBERS):
        b = np.array(b, a.dtype, ndmin=2) if type(a) is np.ndarray else _fill((1, 1), b, a)
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
    check_words(seed=seed, stream=stream)
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

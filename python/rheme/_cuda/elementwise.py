"""Elementwise ops, reductions, layer normalisation, random numbers and optimisers: one kernel each."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from rheme._cuda.blas import column_sums
from rheme._cuda.device import (
    THREADS,
    Array,
    check,
    each,
    empty,
    fault,
    floating,
    launch,
    raise_fault,
    refuse,
    row_threads,
)

# Elementwise ----------------------------------------------------------------------------------------------------------------


def _binary(name: str, a: Array, b: Array) -> Array:
    dtype = floating(a, "a", 2)
    check(a, "a", dtype, None)
    m, c = a.shape
    floating(b, "b", 2)
    check(b, "b", dtype, (1 if b.shape[0] == 1 else m, 1 if b.shape[1] == 1 else c))
    y = empty(shape=a.shape, dtype=dtype)
    b_rows, b_columns = int(b.shape[0] == m), int(b.shape[1] == c)
    launch("elementwise", f"map_{name}", dtype, each(a.size), THREADS, m, c, a, b, b_rows, b_columns, y)
    return y


def add(*, a: Array, b: Array) -> Array:
    return _binary("add", a, b)


def sub(*, a: Array, b: Array) -> Array:
    return _binary("sub", a, b)


def mul(*, a: Array, b: Array) -> Array:
    return _binary("mul", a, b)


def div(*, a: Array, b: Array) -> Array:
    return _binary("div", a, b)


def _unary(name: str, x: Array) -> Array:
    dtype = floating(x, "x", getattr(x, "ndim", 0))
    check(x, "x", dtype, None)
    y = empty(shape=x.shape, dtype=dtype)
    launch("elementwise", f"map_{name}", dtype, each(x.size), THREADS, x.size, x, y)
    return y


def neg(*, x: Array) -> Array:
    return _unary("neg", x)


def exp(*, x: Array) -> Array:
    return _unary("exp", x)


def log(*, x: Array) -> Array:
    return _unary("log", x)


def tanh(*, x: Array) -> Array:
    return _unary("tanh", x)


def sigmoid(*, x: Array) -> Array:
    return _unary("sigmoid", x)


def relu(*, x: Array) -> Array:
    return _unary("relu", x)


def _backward(name: str, dy: Array, saved: Array, saved_name: str = "y") -> Array:
    dtype = floating(saved, saved_name, getattr(saved, "ndim", 0))
    check(saved, saved_name, dtype, None)
    check(dy, "dy", dtype, saved.shape)
    dx = empty(shape=saved.shape, dtype=dtype)
    launch("elementwise", f"map_{name}_backward", dtype, each(dy.size), THREADS, dy.size, dy, saved, dx)
    return dx


def exp_backward(*, dy: Array, y: Array) -> Array:
    return _backward("exp", dy, y)


def log_backward(*, dy: Array, x: Array) -> Array:
    return _backward("log", dy, x, "x")


def tanh_backward(*, dy: Array, y: Array) -> Array:
    return _backward("tanh", dy, y)


def sigmoid_backward(*, dy: Array, y: Array) -> Array:
    return _backward("sigmoid", dy, y)


def relu_backward(*, dy: Array, y: Array) -> Array:
    return _backward("relu", dy, y)


def dropout(*, x: Array, p: float, seed: int, stream: int, period: int) -> Array:
    dtype = floating(x, "x", getattr(x, "ndim", 0))
    check(x, "x", dtype, None)
    if not 0 <= p <= 1:
        refuse("p", f"{p}, wanted 0..1")
    if period < 0:
        refuse("period", f"{period}, wanted 0 or more")
    y = empty(shape=x.shape, dtype=dtype)
    threshold, scale = math.ceil(p * 2**24), 1.0 / (1.0 - p) if p < 1 else 0.0
    launch(
        "elementwise", "dropout", dtype, each(-(-x.size // 4)), THREADS,
        x.size, x, threshold, scale, _word(seed), _word(stream), period, y,
    )  # fmt: skip
    return y


def layer_norm(*, x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    dtype = floating(x, "x", 2)
    m, c = x.shape
    check(x, "x", dtype, None)
    check(weight, "weight", dtype, (c,))
    check(bias, "bias", dtype, (c,))
    y, mean_, rstd = empty(shape=x.shape, dtype=dtype), empty(shape=(m,), dtype=dtype), empty(shape=(m,), dtype=dtype)
    launch("layer_norm", "layer_norm", dtype, m, row_threads(c), c, x, weight, bias, float(epsilon), y, mean_, rstd)
    return y, mean_, rstd


def layer_norm_backward(*, dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    dtype = floating(x, "x", 2)
    m, c = x.shape
    check(x, "x", dtype, None)
    check(dy, "dy", dtype, x.shape)
    check(weight, "weight", dtype, (c,))
    check(mean, "mean", dtype, (m,))
    check(rstd, "rstd", dtype, (m,))
    dx, products = empty(shape=x.shape, dtype=dtype), empty(shape=x.shape, dtype=dtype)
    dweight, dbias = empty(shape=(c,), dtype=dtype), empty(shape=(c,), dtype=dtype)
    launch("layer_norm", "layer_norm_backward", dtype, m, row_threads(c), c, dy, x, weight, mean, rstd, dx, products)
    column_sums(products, dweight)
    column_sums(dy, dbias)
    return dx, dweight, dbias


# Reductions -----------------------------------------------------------------------------------------------------------------


def _reduced(x: Array, mask: Array | None, run: Callable[[str, int, tuple[int, int, int], Array], None]) -> Array:
    """y (A, C) of x (A, K, C): run(dtype, blocks, (K, C, columns of a block), y)."""
    dtype = floating(x, "x", 3)
    check(x, "x", dtype, None)
    check(mask, "mask", "uint8", x.shape, optional=True)
    a, k, c = x.shape
    y = empty(shape=(a, c), dtype=dtype)
    width = min(32, 1 << (c - 1).bit_length()) if c else 1
    run(dtype, a * -(-c // width), (k, c, width), y)
    return y


def sum(*, x: Array, mask: Array | None) -> Array:
    return _reduced(x, mask, lambda t, blocks, s, y: launch("reduce", "sum", t, blocks, THREADS, *s, x, mask, 0, y))


def mean(*, x: Array, mask: Array | None) -> Array:
    return _reduced(x, mask, lambda t, blocks, s, y: launch("reduce", "sum", t, blocks, THREADS, *s, x, mask, 1, y))


def logsumexp(*, x: Array, mask: Array | None) -> Array:
    return _reduced(x, mask, lambda t, blocks, s, y: launch("reduce", "logsumexp", t, blocks, THREADS, *s, x, mask, y))


def max(*, x: Array, mask: Array | None) -> tuple[Array, Array]:
    floating(x, "x", 3)
    positions = empty(shape=(x.shape[0], x.shape[2]), dtype="int64")
    y = _reduced(
        x, mask, lambda t, blocks, s, y: launch("reduce", "max_of_columns", t, blocks, THREADS, *s, x, mask, y, positions)
    )
    return y, positions


# Random numbers -------------------------------------------------------------------------------------------------------------


def _word(number: int) -> np.uint64:
    return np.uint64(number)


def philox(*, counter: Sequence[int], key: Sequence[int]) -> list[int]:
    if len(counter) != 4 or len(key) != 2:
        refuse("counter", f"{len(counter)} and {len(key)} words, wanted 4 of the counter and 2 of the key")
    y = empty(shape=(4,), dtype="uint32")
    position, stream, seed = (_word(low | high << 32) for low, high in (counter[:2], counter[2:], key))
    launch("random", "philox_words", "float32", 1, 1, seed, stream, position, y)
    return [int(word) for word in y.get()]


def _random(kernel: str, seed: int, stream: int, position: int, y: Array, per_counter: int, dtype: str) -> Array:
    counters = -(-y.size // per_counter)
    launch("random", kernel, dtype, each(counters), THREADS, _word(seed), _word(stream), _word(position), y.size, y)
    return y


def random_bits(*, seed: int, stream: int, position: int, n: int) -> Array:
    return _random("random_bits", seed, stream, position, empty(shape=(n,), dtype="uint64"), 2, "float32")


def random_uniform(*, seed: int, stream: int, position: int, shape: Sequence[int], dtype: str) -> Array:
    per = 4 if dtype == "float32" else 2
    return _random("random_uniform", seed, stream, position, empty(shape=shape, dtype=dtype), per, dtype)


def random_normal(*, seed: int, stream: int, position: int, shape: Sequence[int], dtype: str) -> Array:
    per = 4 if dtype == "float32" else 2
    return _random("random_normal", seed, stream, position, empty(shape=shape, dtype=dtype), per, dtype)


# Optimisers -----------------------------------------------------------------------------------------------------------------


def global_norm(*, arrays: Sequence[Array]) -> float:
    """The one place in a training step that waits for the device: the host decides by this number."""
    if not arrays:
        return 0.0
    for array in arrays:
        check(array, "arrays", floating(array, "arrays", array.ndim), None)
    blocks = [min(-(-array.size // 4096), 1024) for array in arrays]
    partial, out = empty(shape=(_total(blocks),), dtype="float64"), empty(shape=(3,), dtype="float64")
    first = 0
    for array, count in zip(arrays, blocks, strict=True):
        launch("optim", "sum_of_squares", array.dtype, count, THREADS, array.size, array, partial[first : first + count])
        first += count
    launch("optim", "norm_and_fault", "float32", 1, THREADS, first, partial, fault(), out)
    norm, position, value = (float(number) for number in out.get())
    raise_fault(position, value)
    return norm


def _total(numbers: Sequence[int]) -> int:
    total = 0
    for number in numbers:
        total += number
    return total


def adamw(
    *,
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
) -> None:
    if step < 1:
        refuse("step", f"{step}, wanted 1 or more")
    dtype = floating(param, "param", param.ndim)
    check(param, "param", dtype, None)
    for name, array in (("grad", grad), ("m", m), ("v", v)):
        check(array, name, dtype, param.shape)
    step_size = learning_rate / (1.0 - math.pow(beta1, step))
    root_correction = 1.0 / math.sqrt(1.0 - math.pow(beta2, step))
    launch(
        "optim", "adamw", dtype, each(param.size), THREADS,
        param.size, param, grad, m, v, float(grad_scale), float(beta1), float(beta2), 1.0 - learning_rate * weight_decay,
        step_size, root_correction, float(epsilon),
    )  # fmt: skip


def sgd(
    *,
    param: Array,
    grad: Array,
    momentum_buffer: Array | None,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    grad_scale: float,
) -> None:
    dtype = floating(param, "param", param.ndim)
    check(param, "param", dtype, None)
    check(grad, "grad", dtype, param.shape)
    check(momentum_buffer, "momentum_buffer", dtype, param.shape, optional=True)
    launch(
        "optim", "sgd", dtype, each(param.size), THREADS,
        param.size, param, grad, momentum_buffer, float(learning_rate), float(momentum), float(weight_decay), float(grad_scale),
    )  # fmt: skip

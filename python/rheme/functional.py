"""The ops of `ops` on tensors, under the same names: each runs the op and records its backward.

Wherever a tensor is taken, a plain array will do (a constant). Shapes are those of `ops`. This is the whole list of
differentiable ops; a plugin adds its own with `autograd.record`.
"""

from collections.abc import Sequence
from typing import Any

from rheme import ops
from rheme.autograd import (
    Tensor,
    add,
    as_tensor,
    div,
    grad_enabled,
    max,
    mean,
    mul,
    neg,
    record,
    reshape,
    slice,
    sub,
    sum,
    transpose,
)
from rheme.errors import InputError
from rheme.ops import Array, Axis

__all__ = [
    "add",
    "as_tensor",
    "attention",
    "concat",
    "cross_entropy",
    "div",
    "dropout",
    "embedding",
    "exp",
    "gaussian_kl",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log",
    "log_softmax",
    "logsumexp",
    "lstm",
    "matmul",
    "max",
    "mean",
    "mul",
    "neg",
    "relu",
    "reshape",
    "sigmoid",
    "slice",
    "softmax",
    "sub",
    "sum",
    "tanh",
    "transpose",
]

Direction = Sequence[Any]  # w_ih, w_hh, b_ih, b_hh


def _optional(value: Any, like: Tensor | None = None) -> Tensor | None:
    return None if value is None else as_tensor(value) if like is None else beside(value, like)


def beside(value: Any, other: Tensor) -> Tensor:
    """value as a tensor on the device of `other`, a weight or another operand."""
    if other.packed is not None:
        return as_tensor(value)
    if isinstance(value, Tensor):
        if value.requires_grad or ops.on_gpu(value.data) == ops.on_gpu(other.data):
            return value
        value = value.data
    return as_tensor(value, other)


def _data(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else tensor.data


def _recording(*tensors: Tensor | None) -> bool:
    return grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _zeros_if_none(grad: Array | None, like: Array) -> Array:
    return ops.zeros(like.shape, like.dtype, like) if grad is None else grad


# Recurrence and products ------------------------------------------------------------------------------------------------------


def lstm(
    x: Any,
    weights: Sequence[Direction],
    lengths: Any = None,
    h0: Any = None,
    c0: Any = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer over a whole sequence, one or two directions.

    x (T, N, I); weights: per direction w_ih (4H, I), w_hh (4H, H), b_ih (4H,), b_hh (4H,), gates i f g o;
    lengths (N,), 0..T, in any order; h0, c0 (R, N, H). Returns y (T, N, R*H), zero past a row's length, and h_n, c_n (R, N, H).
    """
    directions = [tuple(as_tensor(w) for w in direction) for direction in weights]
    if not directions or any(len(direction) != 4 for direction in directions):
        raise InputError("lstm: weights must hold w_ih, w_hh, b_ih and b_hh for each of one or two directions")
    x = beside(x, directions[0][2])
    h0, c0 = _optional(h0, x), _optional(c0, x)
    if directions[0][0].packed is not None and not _recording(x, h0, c0):
        small = ([d[0].packed for d in directions], [d[1].packed for d in directions])
        bias = [ops.add(d[2].data, d[3].data) for d in directions]
        y, h_n, c_n = ops.quantized_lstm(x.data, *small, bias, lengths, _data(h0), _data(c0), reverse)
        return Tensor(y), Tensor(h_n), Tensor(c_n)
    w_ih, w_hh = [d[0].data for d in directions], [d[1].data for d in directions]
    bias = [ops.add(d[2].data, d[3].data) for d in directions]
    inputs = (x, h0, c0, *(w for d in directions for w in d))
    start = (_data(h0), _data(c0))
    save = _recording(*inputs)
    y, h_n, c_n, gates, cells = ops.lstm(x.data, w_ih, w_hh, bias, lengths, *start, reverse=reverse, save=save)

    def backward(dy: Array | None, dh_n: Array | None, dc_n: Array | None) -> list[Array | None]:
        assert gates is not None
        assert cells is not None
        dx, dh0, dc0, dw_ih, dw_hh, dbias = ops.lstm_backward(
            _zeros_if_none(dy, y), dh_n, dc_n, x.data, lengths, *start, w_ih, w_hh, y, gates, cells, reverse, x.requires_grad
        )
        grads: list[Array | None] = [dx, dh0, dc0]
        for r in range(len(directions)):
            grads += [dw_ih[r], dw_hh[r], dbias[r], dbias[r]]
        return grads

    return record((y, h_n, c_n), inputs, backward)  # type: ignore[return-value]


def linear(x: Any, weight: Any, bias: Any = None) -> Tensor:
    """x (..., K), weight (C, K), bias (C,) or None -> (..., C)."""
    weight, bias = as_tensor(weight), _optional(bias)
    x = beside(x, weight)
    if weight.packed is not None and not _recording(x, bias):
        return Tensor(ops.quantized_linear(x.data, weight.packed, _data(bias)))

    def backward(dy: Array) -> Sequence[Array | None]:
        need_dbias = bias is not None and bias.requires_grad
        return ops.linear_backward(dy, x.data, weight.data, x.requires_grad, weight.requires_grad, need_dbias)

    return record(ops.linear(x.data, weight.data, _data(bias)), (x, weight, bias), backward)


def matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """a (..., M, K), b (..., K, C), either with its last two axes swapped -> (..., M, C). Leading axes broadcast."""
    a = as_tensor(a, b if isinstance(b, Tensor) else None)
    b = beside(b, a)
    y = ops.matmul(a.data, b.data, transpose_a, transpose_b)
    return record(y, (a, b), lambda dy: ops.matmul_backward(dy, a.data, b.data, transpose_a, transpose_b))


def embedding(ids: Any, weight: Any) -> Tensor:
    """ids int64 (...), weight (V, C) -> (..., C). IndexError for an id outside 0..V-1."""
    weight = as_tensor(weight)
    if isinstance(ids, Tensor):
        ids = ids.data
    if weight.packed is not None:
        return Tensor(ops.quantized_embedding(ids, weight.packed))
    y = ops.embedding(ids, weight.data)
    return record(y, (weight,), lambda dy: (ops.embedding_backward(dy, ids, weight.shape[0]),))


def attention(query: Any, key: Any, value: Any, lengths: Any = None, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Dot-product attention: query (T, N, H), key (S, N, H), value (S, N, C) -> context (T, N, C), weights (N, T, S).

    Keys at s >= lengths[n] are hidden; a row of length 0 gets a context of zeros.
    """
    query = as_tensor(query)
    key, value = beside(key, query), beside(value, query)
    context, weights = ops.attention(query.data, key.data, value.data, lengths, scale)

    def backward(dcontext: Array | None, dweights: Array | None) -> Sequence[Array | None]:
        dcontext = _zeros_if_none(dcontext, context)
        return ops.attention_backward(dcontext, dweights, query.data, key.data, value.data, weights, scale)

    return record((context, weights), (query, key, value), backward)  # type: ignore[return-value]


# Softmax and what stands on it ------------------------------------------------------------------------------------------------


def softmax(x: Any, mask: Any = None) -> Tensor:
    """Over the last axis; mask bool or uint8 (1 keeps), broadcast to x. A row with nothing kept is all zeros."""
    x = as_tensor(x)
    y = ops.softmax(x.data, mask)
    return record(y, (x,), lambda dy: (ops.softmax_backward(dy, y),))


def log_softmax(x: Any, mask: Any = None) -> Tensor:
    """Over the last axis; mask bool or uint8 (1 keeps), broadcast to x. Hidden entries are -inf, and get no gradient."""
    x = as_tensor(x)
    y = ops.log_softmax(x.data, mask)
    return record(y, (x,), lambda dy: (ops.log_softmax_backward(dy, y),))


def cross_entropy(logits: Any, targets: Any, ignore_index: int = -1, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of given logits (..., V), targets (...) -> loss (...), 0 where the target is ignore_index."""
    logits = as_tensor(logits)
    rest = (ignore_index, label_smoothing)
    if not _recording(logits):
        return Tensor(ops.cross_entropy(logits.data, targets, *rest))
    loss, saved = ops.cross_entropy(logits.data, targets, *rest, save=True)
    return record(loss, (logits,), lambda dloss: (ops.cross_entropy_backward(dloss, logits.data, targets, saved, *rest),))


def linear_cross_entropy(
    x: Any, weight: Any, bias: Any, targets: Any, ignore_index: int = -1, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of the logits x weight^T + bias: x (..., K), weight (V, K), bias (V,) or None, targets (...) -> loss (...).

    The loss is 0 where the target is ignore_index. Label smoothing as in `ops.linear_cross_entropy`.
    """
    weight, bias = as_tensor(weight), _optional(bias)
    x = beside(x, weight)
    rest = (ignore_index, label_smoothing)
    if not _recording(x, weight, bias):
        return Tensor(ops.linear_cross_entropy(x.data, weight.data, _data(bias), targets, *rest))
    loss, lse, logits = ops.linear_cross_entropy(x.data, weight.data, _data(bias), targets, *rest, save=True)

    def backward(dloss: Array) -> Sequence[Array | None]:
        return ops.linear_cross_entropy_backward(dloss, x.data, weight.data, _data(bias), targets, lse, logits, *rest)

    return record(loss, (x, weight, bias), backward)


def gaussian_kl(
    mu: Any, logvar: Any, eps: Any, free_bits: float = 0.0, free_bits_over: str = "sample"
) -> tuple[Tensor, Tensor]:
    """z = mu + exp(logvar / 2) * eps, and KL(N(mu, exp(logvar)) || N(0, 1)) per dimension; all (..., D).

    eps is a constant: it gets no gradient. Free bits as in `ops.gaussian_kl`.
    """
    mu, logvar = as_tensor(mu), as_tensor(logvar)
    noise = beside(eps, mu).data
    rest = (free_bits, free_bits_over)
    z, kl = ops.gaussian_kl(mu.data, logvar.data, noise, *rest)

    def backward(dz: Array | None, dkl: Array | None) -> Sequence[Array | None]:
        return ops.gaussian_kl_backward(_zeros_if_none(dz, z), _zeros_if_none(dkl, kl), mu.data, logvar.data, noise, *rest)

    return record((z, kl), (mu, logvar), backward)  # type: ignore[return-value]


# Elementwise ------------------------------------------------------------------------------------------------------------------


def exp(x: Any) -> Tensor:
    x = as_tensor(x)
    y = ops.exp(x.data)
    return record(y, (x,), lambda dy: (ops.exp_backward(dy, y),))


def log(x: Any) -> Tensor:
    x = as_tensor(x)
    return record(ops.log(x.data), (x,), lambda dy: (ops.log_backward(dy, x.data),))


def tanh(x: Any) -> Tensor:
    x = as_tensor(x)
    y = ops.tanh(x.data)
    return record(y, (x,), lambda dy: (ops.tanh_backward(dy, y),))


def sigmoid(x: Any) -> Tensor:
    x = as_tensor(x)
    y = ops.sigmoid(x.data)
    return record(y, (x,), lambda dy: (ops.sigmoid_backward(dy, y),))


def relu(x: Any) -> Tensor:
    x = as_tensor(x)
    y = ops.relu(x.data)
    return record(y, (x,), lambda dy: (ops.relu_backward(dy, y),))


def dropout(x: Any, p: float, seed: int, stream: int, period: int = 0) -> Tensor:
    """Each element 0 with probability p, else scaled by 1 / (1 - p), by (seed, stream, index modulo period) alone."""
    x = as_tensor(x)
    if p == 0:
        return x
    y = ops.dropout(x.data, p, seed, stream, period)
    return record(y, (x,), lambda dy: (ops.dropout(dy, p, seed, stream, period),))


def layer_norm(x: Any, weight: Any, bias: Any, epsilon: float = 1e-5) -> Tensor:
    """x (..., C), weight and bias (C,) -> (..., C)."""
    weight, bias = as_tensor(weight), as_tensor(bias)
    x = beside(x, weight)
    y, mean_, rstd = ops.layer_norm(x.data, weight.data, bias.data, epsilon)
    return record(y, (x, weight, bias), lambda dy: ops.layer_norm_backward(dy, x.data, weight.data, mean_, rstd))


# Reductions and shape ---------------------------------------------------------------------------------------------------------


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> Tensor:
    """Over `axis` (an int, several, or None: all); mask bool or uint8 (1 keeps), broadcast to x. Nothing kept: -inf."""
    x = as_tensor(x)
    y = ops.logsumexp(x.data, axis, keepdims, mask)
    return record(y, (x,), lambda dy: (ops.logsumexp_backward(dy, x.data, y, axis, mask),))


def concat(tensors: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors of one shape but for `axis`, joined along it."""
    parts = [as_tensor(tensor) for tensor in tensors]
    y = ops.concat([part.data for part in parts], axis)
    return record(y, parts, lambda dy: ops.concat_backward(dy, [part.shape[axis] for part in parts], axis))

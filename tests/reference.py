"""Every op of the core in the plainest float64 NumPy: the truth that the tests hold the kernels to.

Names and keywords are those of `rheme/_core.pyi`. Forward and backward are written from the formulas, not from the kernels.
float32 inputs are computed in float64 and the outputs cast back, so that this file can also stand in for the compiled core.
"""

import builtins
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray


def _map_floats(value: Any, convert: Callable[[Array], Array]) -> Any:
    if isinstance(value, np.ndarray):
        return convert(value) if value.dtype.kind == "f" else value
    if isinstance(value, list | tuple):
        return type(value)(_map_floats(v, convert) for v in value)
    return value


def _float_dtype(value: Any) -> np.dtype | None:
    if isinstance(value, np.ndarray):
        return value.dtype if value.dtype.kind == "f" else None
    if isinstance(value, list | tuple):
        return next((d for d in map(_float_dtype, value) if d is not None), None)
    return None


def in_float64(op: Callable[..., Any]) -> Callable[..., Any]:
    """Run `op` on float64 copies of its floating arrays and cast what it returns back to their dtype."""

    @functools.wraps(op)
    def call(**arguments: Any) -> Any:
        dtype = _float_dtype(list(arguments.values()))
        wide = {name: _map_floats(value, lambda a: a.astype(np.float64)) for name, value in arguments.items()}
        with np.errstate(all="ignore"):
            result = op(**wide)
        return _map_floats(result, lambda a: np.asarray(a, dtype=dtype, order="C"))

    return call


class Packed:
    """Weights in the kernels' order; here just the weights."""

    def __init__(self, *arrays: Array) -> None:
        self.nbytes = builtins.sum(a.nbytes for a in arrays)


class Quantized:
    """A weight stored small; here its numbers in float64, and a scale a row where they are integers."""

    def __init__(self, weight: Array, scale: Array | None) -> None:
        self.weight, self.scale = weight.astype(np.float64), None if scale is None else scale.astype(np.float64)
        self.nbytes, self.shape, self.dtype = weight.nbytes, weight.shape, weight.dtype.name


# The machine ------------------------------------------------------------------------------------------------------------

_threads = 1


def isa() -> str:
    return "reference"


def available_isas() -> list[str]:
    return ["reference"]


def set_isa(*, name: str) -> None:
    if name != "reference":
        raise ValueError(f"name: {name!r} is not available; available: reference")


def num_threads() -> int:
    return _threads


def set_num_threads(*, n: int) -> None:
    global _threads
    if n < 1:
        raise ValueError(f"n: {n} is not a number of threads")
    _threads = n


def build_info() -> dict[str, str]:
    return {"compiler": "none: tests/reference.py"}


def arena_bytes() -> int:
    return 0


def fma_peak(*, dtype: str, iterations: int) -> float:
    return 0.0


def int8_instruction() -> str:
    return "reference"


def empty(*, shape: Sequence[int], dtype: str) -> Array:
    return np.empty(tuple(shape), dtype)


def zeros(*, shape: Sequence[int], dtype: str) -> Array:
    return np.zeros(tuple(shape), dtype)


def contiguous(*, x: Array) -> Array:
    return np.array(x, order="C")


def concat(*, arrays: Sequence[Array], axis: int) -> Array:
    return np.concatenate(arrays, axis)


# Random numbers: Philox4x32-10 (Salmon et al. 2011) ---------------------------------------------------------------------

_M0, _M1, _W0, _W1, _LOW = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF


def philox(*, counter: Sequence[int], key: Sequence[int]) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return [c0, c1, c2, c3]


def _words(seed: int, stream: int, position: int, blocks: int) -> Array:
    """uint64 (blocks, 4): the words at counters position, position + 1, ... (`philox`, on whole arrays)."""
    low = np.uint64(_LOW)
    shift = np.uint64(32)
    at = np.uint64(position) + np.arange(blocks, dtype=np.uint64)
    c0, c1 = at & low, at >> shift
    c2 = np.full(blocks, stream & _LOW, np.uint64)
    c3 = np.full(blocks, stream >> 32, np.uint64)
    k0, k1 = seed & _LOW, seed >> 32
    for _ in range(10):
        p0, p1 = np.uint64(_M0) * c0, np.uint64(_M1) * c2
        c0, c1 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.stack([c0, c1, c2, c3], axis=1)


def random_bits(*, seed: int, stream: int, position: int, n: int) -> Array:
    w = _words(seed, stream, position, (n + 1) // 2)
    return np.ascontiguousarray((w[:, 0::2] | (w[:, 1::2] << np.uint64(32))).reshape(-1)[:n])


def random_uniform(*, seed: int, stream: int, position: int, shape: Sequence[int], dtype: str) -> Array:
    n = int(np.prod(shape, dtype=np.int64))
    if np.dtype(dtype) == np.float64:
        u = (random_bits(seed=seed, stream=stream, position=position, n=n) >> np.uint64(11)) * 2.0**-53
    else:
        u = (_words(seed, stream, position, (n + 3) // 4).reshape(-1)[:n] >> np.uint64(8)) * 2.0**-24
    return u.astype(dtype).reshape(tuple(shape))


def random_normal(*, seed: int, stream: int, position: int, shape: Sequence[int], dtype: str) -> Array:
    """Box and Muller: two uniforms make two normals."""
    n = int(np.prod(shape, dtype=np.int64))
    if np.dtype(dtype) == np.float64:
        pairs = random_bits(seed=seed, stream=stream, position=position, n=n + n % 2).reshape(-1, 2) >> np.uint64(11)
        u1, u2 = (pairs[:, 0] + np.uint64(1)) * 2.0**-53, pairs[:, 1] * 2.0**-53
    else:
        pairs = _words(seed, stream, position, (n + 3) // 4).reshape(-1, 2) >> np.uint64(8)
        u1, u2 = (pairs[:, 0] + np.uint64(1)) * 2.0**-24, pairs[:, 1] * 2.0**-24
    r = np.sqrt(-2.0 * np.log(u1))
    z = np.stack([r * np.cos(2 * np.pi * u2), r * np.sin(2 * np.pi * u2)], axis=1)
    return z.reshape(-1)[:n].astype(dtype).reshape(tuple(shape))


# Recurrence and products ------------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def pack_lstm(*, w_ih: Sequence[Array], w_hh: Sequence[Array]) -> Packed:
    return Packed(*w_ih, *w_hh)


def _steps(direction: int, directions: int, reverse: bool, time: int) -> list[int]:
    """The order in which a direction visits the time steps."""
    backwards = direction == 1 or (directions == 1 and reverse)
    return list(range(time))[::-1] if backwards else list(range(time))


@in_float64
def lstm(
    *,
    x: Array,
    lengths: Array | None,
    h0: Array | None,
    c0: Array | None,
    w_ih: Sequence[Array],
    w_hh: Sequence[Array],
    bias: Sequence[Array],
    packed: Packed | None,
    reverse: bool,
    save: bool,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    (T, N, _), R, H = x.shape, len(w_ih), w_hh[0].shape[1]
    lengths = np.full(N, T) if lengths is None else lengths
    y = np.zeros((T, N, R * H))
    h_n = np.zeros((R, N, H)) if h0 is None else h0.copy()
    c_n = np.zeros((R, N, H)) if c0 is None else c0.copy()
    gates, cells = np.zeros((R, T, N, 4 * H)), np.zeros((R, T, N, H))
    for r in range(R):
        h, c = h_n[r], c_n[r]
        for t in _steps(r, R, reverse, T):
            live = (t < lengths)[:, None]  # a row past its length keeps its state
            a = x[t] @ w_ih[r].T + h @ w_hh[r].T + bias[r]
            i, f, g, o = _sigmoid(a[:, :H]), _sigmoid(a[:, H : 2 * H]), np.tanh(a[:, 2 * H : 3 * H]), _sigmoid(a[:, 3 * H :])
            c = np.where(live, f * c + i * g, c)
            h = np.where(live, o * np.tanh(c), h)
            y[t, :, r * H : (r + 1) * H] = np.where(live, h, 0.0)
            gates[r, t], cells[r, t] = np.concatenate([i, f, g, o], axis=1), c
        h_n[r], c_n[r] = h, c
    return y, h_n, c_n, gates if save else None, cells if save else None


@in_float64
def lstm_backward(
    *,
    dy: Array,
    dh_n: Array | None,
    dc_n: Array | None,
    x: Array,
    lengths: Array | None,
    h0: Array | None,
    c0: Array | None,
    w_ih: Sequence[Array],
    w_hh: Sequence[Array],
    y: Array,
    gates: Array,
    cells: Array,
    reverse: bool,
    need_dx: bool,
) -> tuple[Array | None, Array, Array, list[Array], list[Array], list[Array]]:
    (T, N, _), R, H = x.shape, len(w_ih), w_hh[0].shape[1]
    lengths = np.full(N, T) if lengths is None else lengths
    zeros = np.zeros((R, N, H))
    h0, c0 = zeros if h0 is None else h0, zeros if c0 is None else c0
    dh0, dc0 = (zeros if dh_n is None else dh_n).copy(), (zeros if dc_n is None else dc_n).copy()
    dx = np.zeros_like(x)
    dw_ih, dw_hh = [np.zeros_like(w) for w in w_ih], [np.zeros_like(w) for w in w_hh]
    dbias = [np.zeros(4 * H) for _ in range(R)]
    for r in range(R):
        dh, dc = dh0[r], dc0[r]
        order = _steps(r, R, reverse, T)
        step = 1 if order == list(range(T)) else -1
        for t in order[::-1]:
            live = (t < lengths)[:, None]
            # The state before this step: the neighbour's, or the initial one at the row's first step.
            before = t - step
            first = np.full((N, 1), before < 0) | (before >= lengths)[:, None]
            inside = min(builtins.max(before, 0), T - 1)
            h_before = np.where(first, h0[r], y[inside, :, r * H : (r + 1) * H])
            c_before = np.where(first, c0[r], cells[r, inside])
            i, f, g, o = np.split(gates[r, t], 4, axis=1)
            tc = np.tanh(cells[r, t])
            dh_all = dh + dy[t, :, r * H : (r + 1) * H]
            dc_all = dc + dh_all * o * (1 - tc**2)
            da = np.concatenate(
                [
                    dc_all * g * i * (1 - i),
                    dc_all * c_before * f * (1 - f),
                    dc_all * i * (1 - g**2),
                    dh_all * tc * o * (1 - o),
                ],
                axis=1,
            )
            da = np.where(live, da, 0.0)
            dx[t] += da @ w_ih[r]
            dw_ih[r] += da.T @ x[t]
            dw_hh[r] += da.T @ np.where(live, h_before, 0.0)
            dbias[r] += da.sum(axis=0)
            dh = np.where(live, da @ w_hh[r], dh)
            dc = np.where(live, dc_all * f, dc)
        dh0[r], dc0[r] = dh, dc
    return dx if need_dx else None, dh0, dc0, dw_ih, dw_hh, dbias


def pack_linear(*, weight: Array) -> Packed:
    return Packed(weight)


@in_float64
def linear(*, x: Array, weight: Array, bias: Array | None, packed: Packed | None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


@in_float64
def linear_backward(
    *, dy: Array, x: Array, weight: Array, need_dx: bool, need_dweight: bool, need_dbias: bool
) -> tuple[Array | None, Array | None, Array | None]:
    return (
        dy @ weight if need_dx else None,
        dy.T @ x if need_dweight else None,
        dy.sum(axis=0) if need_dbias else None,
    )


def pack_quantized(*, weight: Array, scale: Array | None, gates: bool) -> Quantized:
    return Quantized(weight, scale)


def unpack_quantized(*, weight: Quantized) -> Array:
    return (weight.weight if weight.scale is None else weight.weight * weight.scale[:, None]).astype(np.float32)


def _rounded(x: Array, unit: bool = False) -> tuple[Array, Array]:
    """Rows of x as integers and what one of them is worth (`unit`: 1 / 127 unless a row passes 1); roundings as in float32."""
    x, most = x.astype(np.float32), np.float32(127)
    largest = np.abs(x).max(axis=-1, initial=0.0, keepdims=True)
    zero = largest <= np.float32(1e-30)
    inverse, scale = most / np.where(zero, most, largest), np.where(zero, np.float32(0), largest / most)
    if unit:
        inverse, scale = np.where(largest <= 1, most, inverse), np.where(largest <= 1, 1 / most, scale)
    return np.rint(x * inverse).astype(np.float64), scale.astype(np.float64)


def _quantized_product(x: Array, w: Quantized, unit: bool = False) -> Array:
    if w.scale is None:
        return x @ w.weight.T
    q, scale = _rounded(x, unit)
    return (q @ w.weight.T) * (scale * w.scale)


@in_float64
def quantized_linear(*, x: Array, weight: Quantized, bias: Array | None) -> Array:
    return _quantized_product(x, weight) + (0 if bias is None else bias)


def quantized_embedding(*, ids: Array, weight: Quantized) -> Array:
    return unpack_quantized(weight=weight)[ids]


@in_float64
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
    (T, N, _), R, H = x.shape, len(w_ih), w_hh[0].shape[1]
    lengths = np.full(N, T) if lengths is None else lengths
    y = np.zeros((T, N, R * H))
    h_n = np.zeros((R, N, H)) if h0 is None else h0.copy()
    c_n = np.zeros((R, N, H)) if c0 is None else c0.copy()
    for r in range(R):
        for t in _steps(r, R, reverse, T):
            live = (t < lengths)[:, None]
            a = bias[r] + _quantized_product(x[t], w_ih[r]) + _quantized_product(h_n[r], w_hh[r], unit=True)
            i, f, g, o = _sigmoid(a[:, :H]), _sigmoid(a[:, H : 2 * H]), np.tanh(a[:, 2 * H : 3 * H]), _sigmoid(a[:, 3 * H :])
            c_n[r] = np.where(live, f * c_n[r] + i * g, c_n[r])
            h_n[r] = np.where(live, o * np.tanh(c_n[r]), h_n[r])
            y[t, :, r * H : (r + 1) * H] = np.where(live, h_n[r], 0.0)
    return y, h_n, c_n


@in_float64
def matmul(*, a: Array, b: Array, transpose_a: bool, transpose_b: bool) -> Array:
    return (a.swapaxes(1, 2) if transpose_a else a) @ (b.swapaxes(1, 2) if transpose_b else b)


def _check_ids(ids: Array, size: int, name: str) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise IndexError(f"{name}: an id is outside 0..{size - 1}")


@in_float64
def embedding(*, ids: Array, weight: Array) -> Array:
    _check_ids(ids, weight.shape[0], "ids")
    return weight[ids]


@in_float64
def embedding_backward(*, dy: Array, ids: Array, num_embeddings: int, order: Array | None) -> Array:
    _check_ids(ids, num_embeddings, "ids")
    assert order is None or order.tolist() == np.argsort(ids, kind="stable").tolist()
    dweight = np.zeros((num_embeddings, dy.shape[1]))
    for row, id_ in zip(dy, ids, strict=True):
        dweight[id_] += row
    return dweight


@in_float64
def attention(*, query: Array, key: Array, value: Array, lengths: Array | None, scale: float) -> tuple[Array, Array]:
    (T, N, _), S = query.shape, key.shape[0]
    scores = np.einsum("tnh,snh->nts", query, key) * scale
    kept = np.ones((N, T, S), np.uint8) if lengths is None else _mask_of(lengths, T, S)
    weights = softmax(x=scores.reshape(N * T, S), mask=kept.reshape(N * T, S)).reshape(N, T, S)
    return np.einsum("nts,snc->tnc", weights, value), weights


def _mask_of(lengths: Array, T: int, S: int) -> Array:
    kept = np.arange(S)[None, None, :] < lengths[:, None, None]
    return np.broadcast_to(kept, (len(lengths), T, S)).astype(np.uint8)


@in_float64
def attention_backward(
    *, dcontext: Array, dweights: Array | None, query: Array, key: Array, value: Array, weights: Array, scale: float
) -> tuple[Array, Array, Array]:
    dw = np.einsum("tnc,snc->nts", dcontext, value)
    dw = dw if dweights is None else dw + dweights
    dscores = weights * (dw - (weights * dw).sum(axis=2, keepdims=True)) * scale
    return (
        np.einsum("nts,snh->tnh", dscores, key),
        np.einsum("nts,tnh->snh", dscores, query),
        np.einsum("nts,tnc->snc", weights, dcontext),
    )


# Softmax and what stands on it ------------------------------------------------------------------------------------------


def _kept(x: Array, mask: Array | None) -> Array:
    """x with the hidden entries at -inf."""
    return x if mask is None else np.where(mask != 0, x, -np.inf)


def _logsumexp(x: Array, axis: int) -> Array:
    """log(sum(exp(x))), keeping the axis; -inf where every entry is -inf."""
    top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    safe = np.where(np.isfinite(top), top, 0.0)
    return np.log(np.exp(x - safe).sum(axis=axis, keepdims=True)) + safe


@in_float64
def softmax(*, x: Array, mask: Array | None) -> Array:
    x = _kept(x, mask)
    lse = _logsumexp(x, 1)
    return np.where(lse == -np.inf, 0.0, np.exp(x - lse))


@in_float64
def softmax_backward(*, dy: Array, y: Array) -> Array:
    return y * (dy - (dy * y).sum(axis=1, keepdims=True))


@in_float64
def log_softmax(*, x: Array, mask: Array | None) -> Array:
    x = _kept(x, mask)
    lse = _logsumexp(x, 1)
    return np.where(lse == -np.inf, -np.inf, x - lse)


@in_float64
def log_softmax_backward(*, dy: Array, y: Array) -> Array:
    """An entry at -inf (hidden) neither gives nor gets a gradient."""
    dy = np.where(y == -np.inf, 0.0, dy)
    return dy - np.exp(y) * dy.sum(axis=1, keepdims=True)


@in_float64
def cross_entropy(
    *, logits: Array, targets: Array, ignore_index: int, label_smoothing: float, save: bool
) -> tuple[Array, Array | None]:
    used = targets != ignore_index
    _check_ids(targets[used], logits.shape[1], "targets")
    lse = _logsumexp(logits, 1)[:, 0]
    at_target = logits[np.arange(len(logits)), np.where(used, targets, 0)]
    loss = lse - at_target
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (lse - logits.mean(axis=1))
    return np.where(used, loss, 0.0), lse if save else None


@in_float64
def cross_entropy_backward(
    *, dloss: Array, logits: Array, targets: Array, saved: Array, ignore_index: int, label_smoothing: float
) -> Array:
    used = targets != ignore_index
    dlogits = np.exp(logits - saved[:, None]) - label_smoothing / logits.shape[1]
    dlogits[np.arange(len(logits))[used], targets[used]] -= 1 - label_smoothing
    return dlogits * np.where(used, dloss, 0.0)[:, None]


@in_float64
def linear_cross_entropy(
    *,
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    ignore_index: int,
    label_smoothing: float,
    save: bool,
) -> tuple[Array, Array, Array | None]:
    logits = x @ weight.T if bias is None else x @ weight.T + bias
    rest = {"targets": targets, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    loss, lse = cross_entropy(logits=logits, **rest, save=True)
    return loss, lse, logits if save else None


@in_float64
def linear_cross_entropy_backward(
    *,
    dloss: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    lse: Array,
    logits: Array | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Array, Array, Array | None]:
    if logits is None:
        logits = x @ weight.T if bias is None else x @ weight.T + bias
    rest = {"targets": targets, "saved": lse, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    dlogits = cross_entropy_backward(dloss=dloss, logits=logits, **rest)
    return dlogits @ weight, dlogits.T @ x, None if bias is None else dlogits.sum(axis=0)


def sampling_weights(z: Array, top_k: int, top_p: float, min_p: float) -> list[int]:
    """The integer weights of one row of scaled logits z (V,), 0 where an id is not kept. Python integers: no rounding."""
    p = np.exp(z - z.max())
    weights = [int(w) for w in np.floor(p * 2.0**44)]
    order = sorted(range(len(z)), key=lambda v: (-z[v], v))
    if top_k > 0:
        order = order[:top_k]
    total, running, prefix = builtins.sum(weights[v] for v in order), 0, []
    for v in order:
        if prefix and running >= top_p * total:
            break
        prefix.append(v)
        running += weights[v]
    kept = {v for v in prefix if p[v] >= min_p}
    return [w if v in kept else 0 for v, w in enumerate(weights)]


def sample(*, logits: Array, bits: Array, temperature: float, top_k: int, top_p: float, min_p: float) -> Array:
    ids = np.empty(len(logits), np.int64)
    for n, row in enumerate(logits.astype(np.float64)):
        ids[n] = np.argmax(row)
        if temperature == 0 or not np.isfinite(row.max()):
            continue
        weights = sampling_weights(row / temperature, top_k, top_p, min_p)
        threshold, running = (int(bits[n]) * builtins.sum(weights)) >> 64, 0
        for v, w in enumerate(weights):
            running += w
            if running > threshold:
                ids[n] = v
                break
    return ids


def top_k(*, x: Array, k: int) -> tuple[Array, Array]:
    ids = np.argsort(-x, axis=1, kind="stable")[:, :k].astype(np.int64)
    return np.take_along_axis(x, ids, axis=1), np.ascontiguousarray(ids)


def _gate(kl: Array, free_bits: float, free_bits_over: str) -> Array:
    """Where the KL term is at or above its free bits (Kingma et al. 2016) and so keeps its value and its gradient."""
    if free_bits_over == "sample":
        return kl >= free_bits
    if free_bits_over == "batch":
        return np.broadcast_to(kl.mean(axis=0, keepdims=True) >= free_bits, kl.shape) if len(kl) else kl >= 0
    raise ValueError(f"free_bits_over: {free_bits_over!r} is neither 'sample' nor 'batch'")


@in_float64
def gaussian_kl(*, mu: Array, logvar: Array, eps: Array, free_bits: float, free_bits_over: str) -> tuple[Array, Array]:
    kl = 0.5 * (mu**2 + np.expm1(logvar) - logvar)
    return mu + np.exp(0.5 * logvar) * eps, np.where(_gate(kl, free_bits, free_bits_over), kl, free_bits)


@in_float64
def gaussian_kl_backward(
    *, dz: Array, dkl: Array, mu: Array, logvar: Array, eps: Array, free_bits: float, free_bits_over: str
) -> tuple[Array, Array]:
    kl = 0.5 * (mu**2 + np.expm1(logvar) - logvar)
    dkl = np.where(_gate(kl, free_bits, free_bits_over), dkl, 0.0)
    return dz + dkl * mu, dz * eps * 0.5 * np.exp(0.5 * logvar) + dkl * 0.5 * np.expm1(logvar)


# Elementwise ------------------------------------------------------------------------------------------------------------


@in_float64
def add(*, a: Array, b: Array) -> Array:
    return a + b


@in_float64
def sub(*, a: Array, b: Array) -> Array:
    return a - b


@in_float64
def mul(*, a: Array, b: Array) -> Array:
    return a * b


@in_float64
def div(*, a: Array, b: Array) -> Array:
    return a / b


@in_float64
def neg(*, x: Array) -> Array:
    return -x


@in_float64
def exp(*, x: Array) -> Array:
    return np.exp(x)


@in_float64
def log(*, x: Array) -> Array:
    return np.log(x)


@in_float64
def tanh(*, x: Array) -> Array:
    return np.tanh(x)


@in_float64
def sigmoid(*, x: Array) -> Array:
    return np.where(x >= 0, 1.0 / (1.0 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1.0 + np.exp(-np.abs(x))))


@in_float64
def relu(*, x: Array) -> Array:
    return np.where(x > 0, x, 0.0)


@in_float64
def exp_backward(*, dy: Array, y: Array) -> Array:
    return dy * y


@in_float64
def log_backward(*, dy: Array, x: Array) -> Array:
    return dy / x


@in_float64
def tanh_backward(*, dy: Array, y: Array) -> Array:
    return dy * (1.0 - y**2)


@in_float64
def sigmoid_backward(*, dy: Array, y: Array) -> Array:
    return dy * y * (1.0 - y)


@in_float64
def relu_backward(*, dy: Array, y: Array) -> Array:
    return np.where(y > 0, dy, 0.0)


def dropout(*, x: Array, p: float, seed: int, stream: int, period: int) -> Array:
    element = np.arange(x.size) % period if period else np.arange(x.size)
    words = _words(seed, stream, 0, int(element.max(initial=0)) // 4 + 1).reshape(-1)
    kept = ((words[element] >> np.uint64(8)) * 2.0**-24 >= p).reshape(x.shape)
    scale = x.dtype.type(1.0 / (1.0 - p)) if p < 1 else x.dtype.type(0.0)
    return np.where(kept, x * scale, x.dtype.type(0.0))


@in_float64
def layer_norm(*, x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    mean = x.mean(axis=1)
    rstd = 1.0 / np.sqrt(((x - mean[:, None]) ** 2).mean(axis=1) + epsilon)
    return (x - mean[:, None]) * rstd[:, None] * weight + bias, mean, rstd


@in_float64
def layer_norm_backward(*, dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    xhat = (x - mean[:, None]) * rstd[:, None]
    g = dy * weight
    dx = rstd[:, None] * (g - g.mean(axis=1, keepdims=True) - xhat * (g * xhat).mean(axis=1, keepdims=True))
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)


# Reductions over the middle axis ----------------------------------------------------------------------------------------


@in_float64
def sum(*, x: Array, mask: Array | None) -> Array:
    return (x if mask is None else np.where(mask != 0, x, 0.0)).sum(axis=1)


@in_float64
def mean(*, x: Array, mask: Array | None) -> Array:
    count = np.full((x.shape[0], x.shape[2]), x.shape[1]) if mask is None else (mask != 0).sum(axis=1)
    return np.where(count > 0, sum(x=x, mask=mask) / np.maximum(count, 1), 0.0)


@in_float64
def max(*, x: Array, mask: Array | None) -> tuple[Array, Array]:
    A, K, C = x.shape
    kept = np.ones(x.shape, bool) if mask is None else mask != 0
    values, positions = np.full((A, C), -np.inf), np.full((A, C), -1, np.int64)
    for k in range(K):
        better = kept[:, k] & ((positions < 0) | (x[:, k] > values))
        values, positions = np.where(better, x[:, k], values), np.where(better, k, positions)
    return values, positions


@in_float64
def logsumexp(*, x: Array, mask: Array | None) -> Array:
    return _logsumexp(_kept(x, mask), 1)[:, 0]


# Optimisers -------------------------------------------------------------------------------------------------------------


def global_norm(*, arrays: Sequence[Array]) -> float:
    return float(np.sqrt(np.sum([np.sum(a.astype(np.float64) ** 2) for a in arrays])))


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
    """Loshchilov and Hutter 2019, algorithm 2; the bias corrections stand where PyTorch puts them."""
    g = grad.astype(np.float64) * grad_scale
    new_m = beta1 * m.astype(np.float64) + (1 - beta1) * g
    new_v = beta2 * v.astype(np.float64) + (1 - beta2) * g * g
    denominator = np.sqrt(new_v / (1 - beta2**step)) + epsilon
    new_param = param.astype(np.float64) * (1 - learning_rate * weight_decay)
    param[...] = new_param - learning_rate * (new_m / (1 - beta1**step)) / denominator
    m[...], v[...] = new_m, new_v


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
    g = grad.astype(np.float64) * grad_scale + weight_decay * param.astype(np.float64)
    if momentum_buffer is not None:
        g = momentum * momentum_buffer.astype(np.float64) + g
        momentum_buffer[...] = g
    param[...] = param.astype(np.float64) - learning_rate * g

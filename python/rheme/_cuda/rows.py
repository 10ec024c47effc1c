"""Softmax and what stands on it: cross-entropy, sampling, the k largest; the Gaussian latent."""

import functools
import os
from typing import Any

import numpy as np

from rheme._cuda import calibration
from rheme._cuda.blas import Matrix, column_sums, product
from rheme._cuda.device import (
    THREADS,
    Array,
    active_clusters,
    allow_shared,
    check,
    each,
    empty,
    fault,
    floating,
    given,
    isa,
    kernel_of,
    launch,
    most_shared,
    refuse,
    row_threads,
    zeros,
)
from rheme.errors import RhemeError


def _rows(kernel: str, x: Array, *arguments: object) -> None:
    """Start a kernel that takes a row of x (M, C) to a block."""
    m, c = x.shape
    launch("softmax", kernel, x.dtype, m if c else 0, row_threads(c), c, *arguments)


def softmax(*, x: Array, mask: Array | None) -> Array:
    return _softmax("softmax", x, mask)


def log_softmax(*, x: Array, mask: Array | None) -> Array:
    return _softmax("log_softmax", x, mask)


def _softmax(kernel: str, x: Array, mask: Array | None) -> Array:
    dtype = floating(x, "x", 2)
    check(x, "x", dtype, None)
    check(mask, "mask", "uint8", x.shape, optional=True)
    y = empty(shape=x.shape, dtype=dtype)
    _rows(kernel, x, x, mask, y)
    return y


def softmax_backward(*, dy: Array, y: Array) -> Array:
    return _softmax_backward("softmax_backward", dy, y)


def log_softmax_backward(*, dy: Array, y: Array) -> Array:
    return _softmax_backward("log_softmax_backward", dy, y)


def _softmax_backward(kernel: str, dy: Array, y: Array) -> Array:
    dtype = floating(y, "y", 2)
    check(y, "y", dtype, None)
    check(dy, "dy", dtype, y.shape)
    dx = empty(shape=y.shape, dtype=dtype)
    _rows(kernel, y, dy, y, dx)
    return dx


# Cross-entropy --------------------------------------------------------------------------------------------------------------

# Logits are made, used and forgotten this many bytes at a time: large enough for cuBLAS, small enough to stay in the L2 cache
# of a large GPU. Below _KEPT bytes the backward gets them from the forward.
_CHUNK = 32 << 20
_KEPT = 256 << 20


def _chunk_rows(rows: int, vocabulary: int, itemsize: int) -> int:
    """How many rows of logits are made at a time: whole blocks of 64."""
    return min(rows, max(64, _CHUNK // max(1, vocabulary * itemsize) // 64 * 64))


def _check_targets(targets: Array, m: int, label_smoothing: float) -> None:
    check(targets, "targets", "int64", (m,))
    if not 0 <= label_smoothing <= 1:
        refuse("label_smoothing", f"{label_smoothing}, wanted 0..1")


def _check_cross_entropy(
    x: Array, weight: Array, bias: Array | None, targets: Array, label_smoothing: float
) -> tuple[str, int, int, int]:
    dtype = floating(x, "x", 2)
    floating(weight, "weight", 2)
    (m, k), v = x.shape, weight.shape[0]
    check(x, "x", dtype, None)
    check(weight, "weight", dtype, (v, k))
    check(bias, "bias", dtype, (v,), optional=True)
    _check_targets(targets, m, label_smoothing)
    return dtype, m, k, v


def _check_logits(logits: Array, targets: Array, label_smoothing: float) -> tuple[str, int, int]:
    dtype = floating(logits, "logits", 2)
    m, v = logits.shape
    check(logits, "logits", dtype, None)
    _check_targets(targets, m, label_smoothing)
    return dtype, m, v


def cross_entropy(
    *, logits: Array, targets: Array, ignore_index: int, label_smoothing: float, save: bool
) -> tuple[Array, Array | None]:
    dtype, m, v = _check_logits(logits, targets, label_smoothing)
    loss, lse = empty(shape=(m,), dtype=dtype), empty(shape=(m,), dtype=dtype)
    launch(
        "cross_entropy", "cross_entropy", dtype, m, row_threads(v),
        v, 0, logits, None, targets, ignore_index, float(label_smoothing), fault(), loss, lse,
    )  # fmt: skip
    return loss, lse if save else None


def cross_entropy_backward(
    *, dloss: Array, logits: Array, targets: Array, saved: Array, ignore_index: int, label_smoothing: float
) -> Array:
    dtype, m, v = _check_logits(logits, targets, label_smoothing)
    check(dloss, "dloss", dtype, (m,))
    check(saved, "saved", dtype, (m,))
    dlogits = empty(shape=(m, v), dtype=dtype)
    launch(
        "cross_entropy", "cross_entropy_backward", dtype, m, row_threads(v),
        v, 0, logits, None, targets, ignore_index, float(label_smoothing), dloss, saved, dlogits,
    )  # fmt: skip
    return dlogits


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
    dtype, m, k, v = _check_cross_entropy(x, weight, bias, targets, label_smoothing)
    loss, lse = empty(shape=(m,), dtype=dtype), empty(shape=(m,), dtype=dtype)
    keep = save and m * v * x.itemsize <= _KEPT
    step = m if keep else _chunk_rows(m, v, x.itemsize)
    logits = empty(shape=(step, v), dtype=dtype)
    for first in range(0, m, max(step, 1)):
        rows = min(step, m - first)
        product(rows, v, k, Matrix(x, k, offset=first * k), Matrix(weight, k, True), Matrix(logits, v))
        launch(
            "cross_entropy", "cross_entropy", dtype, rows, row_threads(v),
            v, first, logits, bias, targets, ignore_index, float(label_smoothing), fault(), loss, lse,
        )  # fmt: skip
    return loss, lse, logits if keep else None


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
    dtype, m, k, v = _check_cross_entropy(x, weight, bias, targets, label_smoothing)
    check(dloss, "dloss", dtype, (m,))
    check(lse, "lse", dtype, (m,))
    check(logits, "logits", dtype, (m, v), optional=True)
    dx, dweight = empty(shape=(m, k), dtype=dtype), empty(shape=(v, k), dtype=dtype)
    step = _chunk_rows(m, v, x.itemsize) if logits is None else m
    gradient = empty(shape=(step, v), dtype=dtype)
    chunks = range(0, m, max(step, 1))
    sums = None if bias is None else zeros(shape=(max(len(chunks), 1), v), dtype=dtype)
    if m == 0:
        dweight.fill(0)
    for index, first in enumerate(chunks):
        rows = min(step, m - first)
        part = Matrix(x, k, offset=first * k)
        if logits is None:
            product(rows, v, k, part, Matrix(weight, k, True), Matrix(gradient, v))
        launch(
            "cross_entropy", "cross_entropy_backward", dtype, rows, row_threads(v),
            v, first, gradient if logits is None else logits, bias if logits is None else None, targets, ignore_index,
            float(label_smoothing), dloss, lse, gradient,
        )  # fmt: skip
        product(rows, k, v, Matrix(gradient, v), Matrix(weight, k), Matrix(dx, k, offset=first * k))
        product(v, k, rows, Matrix(gradient, v, True), part, Matrix(dweight, k), add=index > 0)
        if sums is not None:
            column_sums(gradient[:rows], sums[index])
    if sums is None:
        return dx, dweight, None
    dbias = empty(shape=(v,), dtype=dtype)
    column_sums(sums, dbias)
    return dx, dweight, dbias


# Sampling -------------------------------------------------------------------------------------------------------------------


def sample(*, logits: Array, bits: Array, temperature: float, top_k: int, top_p: float, min_p: float) -> Array:
    dtype = floating(logits, "logits", 2)
    n, v = logits.shape
    if v == 0:
        refuse("logits", "no columns")
    for name, value, fits in (
        ("temperature", temperature, temperature >= 0),
        ("top_k", top_k, top_k >= 0),
        ("top_p", top_p, 0 <= top_p <= 1),
        ("min_p", min_p, 0 <= min_p <= 1),
    ):
        if not fits:
            refuse(name, f"{value}, out of its range")
    check(logits, "logits", dtype, None)
    check(bits, "bits", "uint64", (n,))
    ids = empty(shape=(n,), dtype="int64")
    kind = np.dtype(dtype).type
    least = kind(min_p)  # not below min_p
    if float(least) < min_p:
        least = np.nextafter(least, kind(2))
    if n == 0:
        return ids
    arguments = v, logits, bits, float(temperature), int(top_k), float(top_p), float(least)
    if _by_clusters(v, dtype):
        shared, staged = _sampling_room(v, logits.itemsize, _TEAM)
        _sampler(dtype, shared)((n * _TEAM, 1), (_TEAM_THREADS,), given((*arguments, staged, ids)), shared_mem=shared)
    else:
        shared, staged = _sampling_room(v, logits.itemsize, 1)
        launch("sample", "sample", dtype, n, _sampling_threads(v), *arguments, staged, ids, shared=shared)
    return ids


_TEAM, _TEAM_THREADS = 8, 512  # blocks of a cluster that takes a row, threads of each


def _sampling_room(v: int, itemsize: int, blocks: int) -> tuple[int, int]:
    """Bytes of shared memory of a block, and whether they hold its part of a row; the numbers of sample.cu."""
    bins = 2048
    room = 12 * bins + 256 + (8 * bins if blocks > 1 else 16)
    stretch = 32 * -(-v // (32 * bins))
    part = -(-v // (stretch * blocks)) * stretch * itemsize if blocks > 1 else v * itemsize
    return (room + part, 1) if room + part <= most_shared() - 1024 else (room, 0)  # 688 bytes are the kernel's own


def _sampling_threads(v: int) -> int:
    return 512 if v > 4096 else THREADS


def _by_clusters(v: int, dtype: str) -> bool:
    """Whether a cluster of blocks is to take a row: where the table says that it is faster, or as RHEME_CUDA_SAMPLER forces."""
    wanted = os.environ.get("RHEME_CUDA_SAMPLER", "")
    if wanted not in ("", "block", "cluster"):
        raise RhemeError(f"RHEME_CUDA_SAMPLER={wanted}: give block or cluster")
    if wanted == "block" or (wanted == "" and v < calibration.least_vocabulary(v + 1)):
        return False
    shared, _ = _sampling_room(v, np.dtype(dtype).itemsize, _TEAM)
    fits = int(isa().removeprefix("sm_")) >= 90 and _clusters(dtype, shared) > 0
    if wanted and not fits:
        raise RhemeError(f"RHEME_CUDA_SAMPLER=cluster: {isa()} has no room for a cluster of {_TEAM} blocks")
    return fits


def _sampler(dtype: str, shared: int) -> Any:
    function = kernel_of("sample", "sample", dtype, (f"-DRHEME_CTAS={_TEAM}",))
    allow_shared(function, shared)
    return function


@functools.cache
def _clusters(dtype: str, shared: int) -> int:
    return active_clusters(_sampler(dtype, shared), _TEAM, _TEAM_THREADS, shared)


def top_k(*, x: Array, k: int) -> tuple[Array, Array]:
    dtype = floating(x, "x", 2)
    check(x, "x", dtype, None)
    n, v = x.shape
    if not 0 <= k <= v:
        refuse("k", f"{k}, wanted 0..{v}")
    values, ids = empty(shape=(n, k), dtype=dtype), empty(shape=(n, k), dtype="int64")
    if n and k:
        room = 1 << (k - 1).bit_length()
        keys, positions = empty(shape=(n, room), dtype="uint64"), empty(shape=(n, room), dtype="int64")
        shared, staged = _sampling_room(v, x.itemsize, 1)
        launch(
            "sample", "top_k", dtype, n, _sampling_threads(v),
            v, k, room, staged, x, keys, positions, values, ids, shared=shared,
        )  # fmt: skip
    return values, ids


# Gaussian latent ------------------------------------------------------------------------------------------------------------


def _over_batch(free_bits_over: str) -> bool:
    if free_bits_over not in ("sample", "batch"):
        refuse("free_bits_over", f"{free_bits_over!r}, wanted 'sample' or 'batch'")
    return free_bits_over == "batch"


def gaussian_kl(*, mu: Array, logvar: Array, eps: Array, free_bits: float, free_bits_over: str) -> tuple[Array, Array]:
    dtype = floating(mu, "mu", 2)
    batch = _over_batch(free_bits_over)
    check(mu, "mu", dtype, None)
    check(logvar, "logvar", dtype, mu.shape)
    check(eps, "eps", dtype, mu.shape)
    (n, d), size = mu.shape, mu.size
    z, kl = empty(shape=mu.shape, dtype=dtype), empty(shape=mu.shape, dtype=dtype)
    launch(
        "gaussian", "gaussian_kl", dtype, each(size), THREADS, size, mu, logvar, eps, float(free_bits), int(not batch), z, kl
    )
    if batch and size:
        sums = empty(shape=(d,), dtype=dtype)
        column_sums(kl, sums)
        launch("gaussian", "gaussian_floor", dtype, each(size), THREADS, n, d, sums, float(free_bits), kl)
    return z, kl


def gaussian_kl_backward(
    *, dz: Array, dkl: Array, mu: Array, logvar: Array, eps: Array, free_bits: float, free_bits_over: str
) -> tuple[Array, Array]:
    dtype = floating(mu, "mu", 2)
    batch = _over_batch(free_bits_over)
    check(mu, "mu", dtype, None)
    for name, array in (("logvar", logvar), ("eps", eps), ("dz", dz), ("dkl", dkl)):
        check(array, name, dtype, mu.shape)
    (n, d), size = mu.shape, mu.size
    dmu, dlogvar = empty(shape=mu.shape, dtype=dtype), empty(shape=mu.shape, dtype=dtype)
    sums = None
    if batch and size:
        kl, sums = empty(shape=mu.shape, dtype=dtype), empty(shape=(d,), dtype=dtype)
        launch("gaussian", "gaussian_kl", dtype, each(size), THREADS, size, mu, logvar, None, 0.0, 0, None, kl)
        column_sums(kl, sums)
    launch(
        "gaussian", "gaussian_kl_backward", dtype, each(size), THREADS,
        n, d, dz, dkl, mu, logvar, eps, sums, float(free_bits), dmu, dlogvar,
    )  # fmt: skip
    return dmu, dlogvar

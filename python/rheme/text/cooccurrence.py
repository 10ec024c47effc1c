"""Vectors of pieces from the company they keep: positive pointwise mutual information, factored.

A low-rank factor of this matrix is as good as skip-gram (Levy, Goldberg and Dagan 2015), needs no training loop, and takes
seconds for millions of words of unlabelled text.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import ops

Array = NDArray[Any]

_CHUNK = 1_000_000  # pieces counted at once
_EXTRA = 16  # directions followed besides those kept: they speed up the convergence of the last ones
_FIRST = 4  # ids below are no pieces of a text: pad, unk, bos, eos
_STREAM = 1 << 42


def count_neighbours(sequences: Sequence[Sequence[int]], size: int, window: int = 5) -> Array:
    """float32 (size, size): how often each two pieces stand within `window` of each other, counting 1 / their distance."""
    counts = np.zeros(size * size, np.float32)
    end = np.array([-1], np.int64)
    ids = np.concatenate([part for row in sequences for part in (np.asarray(row, np.int64), end)] or [end])
    text = np.repeat(np.arange(len(sequences)), [len(row) + 1 for row in sequences])
    for start in range(0, len(ids), _CHUNK):
        for distance in range(1, window + 1):
            left = slice(start, min(start + _CHUNK, len(ids) - distance))
            right = slice(start + distance, left.stop + distance)
            if left.stop <= left.start:
                break
            kept = (text[left] == text[right]) & (ids[left] >= _FIRST) & (ids[right] >= _FIRST)
            pairs, often = np.unique(ids[left][kept] * size + ids[right][kept], return_counts=True)
            counts[pairs] += often.astype(np.float32) / np.float32(distance)
    square = counts.reshape(size, size)
    return ops.add(square, ops.contiguous(square.T))


def _information(counts: Array, smoothing: float) -> Array:
    """max(0, log p(a, b) / (p(a) p'(b))), p'(b) ~ count(b)^smoothing, written over `counts`."""
    rows = ops.sum(counts, axis=1)
    seen = rows > 0
    safe = np.where(seen, rows, np.float32(1))
    total = float(ops.sum(rows)) or 1.0
    log_row = ops.log(ops.div(safe, total))
    powered = np.where(seen, ops.exp(ops.mul(ops.log(safe), smoothing)), np.float32(0))
    log_column = ops.log(ops.div(np.where(seen, powered, np.float32(1)), float(ops.sum(powered)) or 1.0))
    for start in range(0, len(counts), 512):
        part = counts[start : start + 512]
        there = part > 0
        value = ops.sub(ops.log(ops.div(np.where(there, part, np.float32(1)), total)), log_row[start : start + 512, None])
        value = ops.relu(ops.sub(value, log_column[None, :]))
        counts[start : start + 512] = np.where(there, value, np.float32(0))
    return counts


def _orthonormal(columns: Array) -> Array:
    """Columns (V, K) made orthonormal, one after another (Gram-Schmidt, each projected twice)."""
    rows = ops.contiguous(columns.T)
    for k in range(len(rows)):
        row = rows[k : k + 1]
        for _ in range(2 if k else 0):
            before = rows[:k]
            row = ops.sub(row, ops.matmul(ops.matmul(row, before, transpose_b=True), before))
        norm = ops.global_norm([ops.contiguous(row)])
        rows[k : k + 1] = ops.mul(row, 1.0 / norm if norm > 1e-12 else 0.0)
    return ops.contiguous(rows.T)


def piece_vectors(
    sequences: Sequence[Sequence[int]], size: int, width: int, window: int = 5, smoothing: float = 0.75, rounds: int = 6
) -> Array:
    """float32 (size, width): vectors of the pieces of some texts (ids of each), of mean squared norm 1.

    The leading left singular vectors of the information matrix, each times the root of its singular value, by orthogonal
    iteration. Pieces that stand alone, or nowhere, get 0.
    """
    matrix = _information(count_neighbours(sequences, size, window), smoothing)
    wide = min(width + _EXTRA, size)
    q = _orthonormal(ops.random_normal(0, _STREAM, 0, (size, wide)))
    transposed = ops.contiguous(matrix.T)
    for _ in range(rounds):
        q = _orthonormal(ops.matmul(matrix, ops.matmul(transposed, q)))
    across = ops.contiguous(ops.matmul(transposed, q).T)
    strengths = [ops.global_norm([across[k : k + 1]]) for k in range(wide)]
    roots = np.array([math.sqrt(value) for value in strengths[:width]], np.float32)
    vectors = np.zeros((size, width), np.float32)
    vectors[:, : len(roots)] = ops.mul(ops.contiguous(q[:, :width]), roots[None, :])
    norm = ops.global_norm([vectors])
    return ops.mul(vectors, math.sqrt(size) / norm) if norm else vectors

# mypy: disable-error-code="no-any-return"
"""Sums, means, maxima and log-sum-exps over axes."""

import builtins
import math
from typing import Any

import numpy as np

from rheme.ops.arrays import Array, Axis, axis_of, backend, contiguous, empty, expand, integers, mask_of, zeros


class _Reduction:
    """How x is folded to (A, K, C), K being the reduced axes together."""

    def __init__(self, shape: tuple[int, ...], axis: Axis, keepdims: bool) -> None:
        rank = len(shape)
        axes = tuple(range(rank)) if axis is None else (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
        axes = tuple(sorted({axis_of(i, shape) for i in axes}))
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

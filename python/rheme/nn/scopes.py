"""What random numbers parameters start from and dropout draws: functions of a seed, never of what ran before."""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from rheme import ops
from rheme.ops import Array

# A seed's streams: 0.. for parameters; dropout's have the top bit set, then the step, then the call within the step.
_DROPOUT = 1 << 63
_CALLS = 1 << 20


class _Scopes(threading.local):
    """The innermost (seed, counter) of each kind in this thread; outside of any scope the seed is 0 and the count goes on."""

    def __init__(self) -> None:
        self.init: tuple[int, Iterator[int]] = (0, itertools.count())
        self.dropout: tuple[int, int, Iterator[int]] = (0, 0, itertools.count())
        self.blank = False


_scopes = _Scopes()


@contextlib.contextmanager
def init_scope(seed: int = 0) -> Iterator[None]:
    """Parameters made within it are functions of the seed, their order of creation and their shape alone."""
    before, _scopes.init = _scopes.init, (seed, itertools.count())
    try:
        yield
    finally:
        _scopes.init = before


@contextlib.contextmanager
def dropout_scope(seed: int, step: int) -> Iterator[None]:
    """Dropout within it is a function of the seed, the step, the call's number within the scope, and the shape alone."""
    before, _scopes.dropout = _scopes.dropout, (seed, step, itertools.count())
    try:
        yield
    finally:
        _scopes.dropout = before


@contextlib.contextmanager
def uninitialized() -> Iterator[None]:
    """Parameters made within it hold nothing in particular, at no cost: for a module that is about to load its weights."""
    before, _scopes.blank = _scopes.blank, True
    try:
        yield
    finally:
        _scopes.blank = before


def uniform(shape: Sequence[int], bound: float) -> Array:
    """The next parameter's start, uniform in +-bound."""
    if _scopes.blank:
        return ops.empty(shape)
    seed, streams = _scopes.init
    u = ops.random_uniform(seed, next(streams), 0, shape, np.float32)
    return ops.mul(ops.sub(u, 0.5), 2.0 * bound)


def normal(shape: Sequence[int], deviation: float) -> Array:
    """The next parameter's start, normal around 0."""
    if _scopes.blank:
        return ops.empty(shape)
    seed, streams = _scopes.init
    return ops.mul(ops.random_normal(seed, next(streams), 0, shape, np.float32), deviation)


def dropout_stream() -> tuple[int, int]:
    """The seed and the stream of the scope's next call of dropout."""
    seed, step, calls = _scopes.dropout
    return seed, _DROPOUT | (step * _CALLS + next(calls)) % _DROPOUT

"""Batches: examples of nearly equal length together, and padding to arrays."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import ops

# Philox streams of the shuffles; far from the small stream numbers of weights and dropout under the same seed.
_SHUFFLE_STREAM = 1 << 40


def pad(sequences: Sequence[Sequence[int] | NDArray[np.int64]], value: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """N sequences -> ids int64 (T, N), filled with ``value`` past each end, and lengths int64 (N,)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    ids = np.full((len(sequences), int(lengths.max(initial=0))), value, np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return np.ascontiguousarray(ids.T), lengths


def shifted(
    sequences: Sequence[Sequence[int] | NDArray[Any]], bos: int, eos: int, pad_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """What a decoder reads and what it is to write of N sequences, and the lengths (N,) of both, one more than the sequences'.

    Read, int64 (T, N): begins with bos, then the sequence, then pad_id; to write: the sequence, eos, then -1.
    """
    rows = [np.asarray(ids, np.int64) for ids in sequences]  # an empty list alone would be float64
    read, lengths = pad([np.concatenate(([bos], ids)) for ids in rows], pad_id)
    wanted, _ = pad([np.concatenate((ids, [eos])) for ids in rows], -1)
    return read, wanted, lengths


def _shuffled(n: int, seed: int, stream: int) -> NDArray[np.int64]:
    bits = ops.random_bits(seed=seed, stream=_SHUFFLE_STREAM + stream, position=0, n=n)
    return np.argsort(bits, kind="stable")


def token_batches(
    sizes: Sequence[int] | NDArray[np.int64], batch_tokens: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """One epoch: every example once, as arrays of indices into ``sizes``, in an order that (seed, epoch) alone decides.

    Neighbours in length stand together; largest size in a batch times its number of rows is at most ``batch_tokens``
    (a single longer example is a batch of its own).
    """
    size = np.asarray(sizes, np.int64)
    order = _shuffled(len(size), seed, 2 * epoch)
    order = order[np.argsort(size[order], kind="stable")]
    batches, start = [], 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or int(size[order[stop]]) * (stop + 1 - start) > batch_tokens:
            batches.append(order[start:stop])
            start = stop
    return [batches[index] for index in _shuffled(len(batches), seed, 2 * epoch + 1)]


def length_batches(sizes: Sequence[int], batch_tokens: int, max_rows: int = 256) -> Iterator[list[int]]:
    """For inference: indices, longest first (ties by index), so that rows of a batch are of nearly equal length."""
    batch: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if batch and (len(batch) >= max_rows or sizes[batch[0]] * (len(batch) + 1) > batch_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch

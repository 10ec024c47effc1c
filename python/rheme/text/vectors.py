"""Word vectors in text files: a word and its numbers a line, separated by spaces (word2vec, GloVe and fastText write it)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme.errors import InputError
from rheme.text import readers


def read_vectors(path: str | Path, ids: Mapping[str, int], size: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The words of `ids` that the file has: their ids int64 (M,) and vectors float32 (M, size); of one told twice the first.

    A first line with two numbers (rows and size) is passed over. InputError for a line of another size, or no known word.
    """
    found: dict[int, NDArray[Any]] = {}
    for number, line in enumerate(readers.read_lines(path), 1):
        word, _, rest = line.rstrip().partition(" ")
        if number == 1 and rest.isdigit() and word.isdigit() and size != 1:
            continue
        index = ids.get(word)
        if index is None or index in found:
            continue
        numbers = rest.split(" ")
        if len(numbers) != size:
            raise InputError(f"{path}:{number}:1: {len(numbers)} numbers, {size} are needed (word_size)")
        try:
            found[index] = np.array(numbers, np.float32)
        except ValueError:
            raise InputError(f"{path}:{number}:{len(word) + 2}: not a line of numbers") from None
        if not np.isfinite(found[index]).all():
            raise InputError(f"{path}:{number}:{len(word) + 2}: a number that is not finite")
    if not found:
        raise InputError(f"{path}: none of its words is in the vocabulary")
    return np.array(list(found), np.int64), np.stack(list(found.values()))

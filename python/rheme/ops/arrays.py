# mypy: disable-error-code="no-any-return"
"""Arrays on a device: made, checked, brought to the form the core takes, joined and cut; and random numbers."""

import builtins
import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import _core
from rheme.errors import InputError, RhemeError

Array = NDArray[Any]
Axis = int | tuple[int, ...] | None

_KEPT = "".join(np.dtype(name).char for name in ("float32", "float64", "int64", "uint64"))


@functools.cache
def _cuda() -> Any:
    try:
        return importlib.import_module("rheme._cuda")
    except ImportError as error:
        raise RhemeError(f"this array is on a GPU, and the GPU backend cannot be loaded: {error}") from error


def backend(array: Any) -> Any:
    """The module that computes on this kind of array. TypeError for anything but a NumPy or CuPy array."""
    if isinstance(array, np.ndarray):
        return _core
    if on_gpu(array):
        return _cuda()
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}")


def on_gpu(array: Any) -> bool:
    """Whether it is an array of a CUDA device."""
    return type(array).__module__.startswith("cupy")


def to_host(array: Any) -> Array:
    """The array in the host's memory: itself, or a copy of a GPU's, which waits for what is under way there."""
    return array.get() if on_gpu(array) else array


def check_device(device: str) -> None:
    """InputError for a device that is neither "cpu" nor "cuda"; RhemeError, in one line, where "cuda" is out of reach here."""
    if device not in ("cpu", "cuda"):
        raise InputError(f"unknown device {device!r}: give 'cpu' or 'cuda'")
    if device == "cuda":
        _cuda().isa()


def to_device(array: Array, device: str) -> Array:
    """The array on "cpu" or "cuda" (the current device). RhemeError says what is missing for a GPU."""
    if device == "cpu":
        return to_host(array)
    return array if on_gpu(array) else _cuda().upload(array)


# Making arrays --------------------------------------------------------------------------------------------------------


@functools.cache
def _name(dtype: Any) -> str:
    return np.dtype(dtype).name  # NumPy takes 2 us to find it


def empty(shape: Sequence[int], dtype: Any = "float32", like: Array | None = None) -> Array:
    """An uninitialised array; floats come from the core's arena. `like` gives the device."""
    name = _name(dtype)
    core = _core if like is None else backend(like)
    if core is _core and name not in ("float32", "float64"):
        return np.empty(tuple(shape), name)
    return core.empty(shape=tuple(shape), dtype=name)


def zeros(shape: Sequence[int], dtype: Any = "float32", like: Array | None = None) -> Array:
    """An array of zeros; floats come from the core's arena. `like` gives the device."""
    name = _name(dtype)
    core = _core if like is None else backend(like)
    if core is _core and name not in ("float32", "float64"):
        return np.zeros(tuple(shape), name)
    return core.zeros(shape=tuple(shape), dtype=name)


def asarray(value: Any, dtype: Any = None, like: Array | None = None) -> Array:
    """`value` as an array the core takes: contiguous; integers become int64, floats float32 unless they are float64 arrays.

    An array that already is one comes back as it is, not copied. dtype, if given, holds instead; `like` gives the device, and
    the dtype of Python floats.
    """
    if type(value) is np.ndarray and dtype is None and (like is None or type(like) is np.ndarray):
        kind = value.dtype
        if kind.char in _KEPT and kind.isnative and value.flags.c_contiguous:
            return value
    if isinstance(value, np.ndarray | np.generic) or on_gpu(value):
        array = np.asarray(value) if isinstance(value, np.generic) else value
    else:
        array = np.asarray(value)
        if dtype is None and array.dtype.kind == "f":
            dtype = np.float32 if like is None else like.dtype
    if dtype is None:
        kind = array.dtype.kind
        if kind == "f":
            dtype = np.float64 if array.dtype.itemsize == 8 else np.float32
        elif kind == "i" or (kind == "u" and array.dtype.itemsize not in (1, 8)):
            dtype = np.int64
        else:
            dtype = array.dtype if array.dtype.isnative else array.dtype.newbyteorder()
    if array.dtype != dtype:
        array = array.astype(dtype)
    if like is not None and on_gpu(array) != on_gpu(like):
        return to_device(array, "cuda" if on_gpu(like) else "cpu")
    return contiguous(array)


def contiguous(x: Array) -> Array:
    """x itself where it is C-contiguous, else a copy that is."""
    return x if x.flags.c_contiguous else backend(x).contiguous(x=x)


def integers(x: Any, like: Array | None, name: str, size: int | None = None) -> Array:
    """x as int64, on the device of `like`, or the CPU. size: ids are looked at before they go to a GPU, which can't raise."""
    if type(x) is np.ndarray and x.dtype == np.int64 and (like is None or type(like) is np.ndarray):
        return contiguous(x)
    if not (hasattr(x, "dtype") and hasattr(x, "flags")):
        x = np.asarray(x)
        if x.size == 0:
            x = x.astype(np.int64)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {x.dtype}")
    if size is not None and on_gpu(like) and not on_gpu(x) and x.size and (x.min() < 0 or x.max() >= size):
        wrong = int(np.flatnonzero((x < 0) | (x >= size))[0])
        raise IndexError(f"{name}: {x.reshape(-1)[wrong]} at position {wrong}, wanted 0..{size - 1}")
    return asarray(x, np.int64, like)


def lengths_of(lengths: Any, like: Array, most: int) -> Array | None:
    """How many of `most` steps or keys each row has, as `integers`."""
    if lengths is None:
        return None
    if on_gpu(like) and not on_gpu(lengths):
        given = np.asarray(lengths)
        for row in np.flatnonzero((given < 0) | (given > most))[:1]:
            raise ValueError(f"lengths: {given[row]} at row {row}, wanted 0..{most}")
    return integers(lengths, like, "lengths")


def mask_of(mask: Any, x: Array) -> Array | None:
    """A mask as uint8 of the shape of x; a mask of a smaller shape is broadcast."""
    if mask is None:
        return None
    mask = asarray(mask, like=x)
    if mask.dtype == np.bool_:
        mask = mask.view(np.uint8)
    elif mask.dtype != np.uint8:
        raise TypeError(f"mask: expected bool or uint8, got {mask.dtype}")
    if mask.shape == x.shape:
        return mask
    try:
        return contiguous(np.broadcast_to(mask, x.shape))
    except ValueError:
        raise ValueError(f"mask: shape {mask.shape} does not fit x of shape {x.shape}") from None


def as_rows(x: Array, name: str = "x") -> Array:
    """x (..., C) as (M, C)."""
    shape = x.shape
    if len(shape) == 2:
        return x if x.flags.c_contiguous else contiguous(x)
    if not shape:
        raise ValueError(f"{name}: expected at least one axis, got a scalar")
    return contiguous(x).reshape(math.prod(shape[:-1]), shape[-1])


def axis_of(axis: int, shape: tuple[int, ...]) -> int:
    """The axis, counted from the front."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis: {axis} is not an axis of an array of shape {shape}")
    return axis % len(shape)


def broadcast_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise ValueError(f"shapes {a} and {b} do not broadcast together") from None


def expand(x: Array, shape: tuple[int, ...]) -> Array:
    out = empty(shape, x.dtype, x)
    out[...] = x
    return out


# Shape ----------------------------------------------------------------------------------------------------------------


def concat(arrays: Sequence[Array], axis: int = 0) -> Array:
    """Arrays of one shape but for `axis`, joined along it, on a GPU where one of them is."""
    if not len(arrays):
        raise InputError("concat: there are no arrays to join")
    first = arrays[0]
    for x in arrays:
        if type(x) is not np.ndarray and on_gpu(x):
            first = x
    if type(first) is not np.ndarray:
        arrays = [asarray(x, like=first) for x in arrays]
    ndim = first.ndim
    axis = axis_of(axis, first.shape)
    before, behind = first.shape[:axis], first.shape[axis + 1 :]
    for x in arrays:
        if x.dtype is not first.dtype and x.dtype != first.dtype:
            raise TypeError(f"concat: dtypes {first.dtype} and {x.dtype} differ")
        shape = x.shape
        if x.ndim != ndim or shape[:axis] != before or shape[axis + 1 :] != behind:
            raise ValueError(f"concat: shapes {first.shape} and {shape} differ elsewhere than on axis {axis}")
    return backend(first).concat(arrays=[contiguous(x) for x in arrays], axis=axis)


def concat_backward(dy: Array, sizes: Sequence[int], axis: int = 0) -> list[Array]:
    """The parts of dy, of these sizes along `axis`."""
    lead, start, parts = (builtins.slice(None),) * axis_of(axis, dy.shape), 0, []
    for size in sizes:
        parts.append(contiguous(dy[(*lead, builtins.slice(start, start + size))]))
        start += size
    return parts


def slice(x: Array, index: Any) -> Array:
    """x[index] for an index of integers, slices, None and Ellipsis; contiguous, and a view of x where it can be."""
    part = x[index]
    return contiguous(part) if hasattr(part, "flags") and part.shape else asarray(part, x.dtype, x)


def slice_backward(dy: Array, x: Array, index: Any) -> Array:
    dx = zeros(x.shape, dy.dtype, dy)
    dx[index] = dy
    return dx


def reshape(x: Array, shape: Sequence[int]) -> Array:
    """x with another shape (one -1 is worked out); the same memory where x is contiguous."""
    return contiguous(x).reshape(tuple(shape))


def transpose(x: Array, axes: Sequence[int] | None = None) -> Array:
    """x with its axes in this order (None: reversed), copied to be contiguous."""
    return contiguous(x.transpose(axes))


# Random numbers: Philox4x32-10, functions of (seed, stream, position) alone -------------------------------------------


def check_words(**words: int) -> None:
    """ValueError for a part of a counter that is no uint64."""
    for name, word in words.items():
        if not 0 <= word < 2**64:
            raise ValueError(f"{name}: {word}, wanted 0..2**64-1")


def random_bits(seed: int, stream: int, position: int, n: int) -> Array:
    """uint64 (n,)."""
    check_words(seed=seed, stream=stream, position=position)
    return _core.random_bits(seed=seed, stream=stream, position=position, n=n)


def _drawn_by(like: Array | None) -> Any:
    return _core if like is None else backend(like)


def random_uniform(
    seed: int, stream: int, position: int, shape: Sequence[int], dtype: Any = "float32", like: Array | None = None
) -> Array:
    """F `shape`, uniform in [0, 1). `like` gives the device; the numbers are the same on each."""
    check_words(seed=seed, stream=stream, position=position)
    name = _name(dtype)
    return _drawn_by(like).random_uniform(seed=seed, stream=stream, position=position, shape=tuple(shape), dtype=name)


def random_normal(
    seed: int, stream: int, position: int, shape: Sequence[int], dtype: Any = "float32", like: Array | None = None
) -> Array:
    """F `shape`, standard normal (Box and Muller). `like` gives the device; float32 numbers are the same on each."""
    check_words(seed=seed, stream=stream, position=position)
    name = _name(dtype)
    return _drawn_by(like).random_normal(seed=seed, stream=stream, position=position, shape=tuple(shape), dtype=name)

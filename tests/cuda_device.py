"""The device that tests of `rheme._cuda` run on: a GPU through CuPy, or the stand-in of `emulated_cuda`."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

EMULATED = Path(__file__).parent / "emulated_cuda"
_OURS = ("cupy", "cupy_backends", "cupyx")


def _forget() -> dict[str, Any]:
    """As if no CuPy had been imported yet; returns its modules."""
    modules = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in _OURS}
    from rheme import nn, ops
    from rheme._cuda import blas, calibration, device, persistent, rows

    for module in (device, blas, calibration, persistent, rows, ops, nn):
        for value in vars(module).values():
            if callable(getattr(value, "cache_clear", None)):
                value.cache_clear()
    return modules


@contextlib.contextmanager
def emulated(**settings: str) -> Iterator[Any]:
    """Within it `import cupy` finds the stand-in; yields that. settings: of its environment, such as ORDER="1"."""
    before, library = dict(os.environ), ctypes.CDLL
    os.environ.update({f"RHEME_EMULATED_{name}": value for name, value in settings.items()})
    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"
    modules = _forget()
    sys.path.insert(0, str(EMULATED))
    try:
        import cupy

        yield cupy
    finally:
        sys.path.remove(str(EMULATED))
        _forget()
        sys.modules.update(modules)
        ctypes.CDLL = library  # type: ignore[misc]
        os.environ.clear()
        os.environ.update(before)


def up(value: Any) -> Any:
    """The NumPy arrays in value on the device."""
    if isinstance(value, dict):
        return {key: up(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(up(item) for item in value)
    if not isinstance(value, np.ndarray):
        return value
    from rheme import _cuda

    return _cuda.upload(value)


def down(value: Any) -> Any:
    """The arrays of the device in value as NumPy's."""
    if isinstance(value, list | tuple):
        return type(value)(down(item) for item in value)
    return value.get() if type(value).__module__.startswith("cupy") else value

"""Which LSTM is faster where, as measured on the device at hand by `benchmarks/peers/cuda.py --calibrate`.

A JSON file beside CuPy's compiled kernels, or where RHEME_CUDA_TABLE says: {"version": 1, "devices": {NAME: {"256": 8, ...}}},
by hidden size the least number of steps from which the persistent LSTM in fp32 is ahead of the plain one. A device that it does
not name, and every device where there is no file, gets the plain one.
"""

import functools
import json
import os
from pathlib import Path

from rheme._cuda import device
from rheme.errors import RhemeError

VERSION = 1  # of the file and of the kernels that were timed: what an older one says no longer holds


def path() -> Path:
    return Path(os.environ.get("RHEME_CUDA_TABLE") or device.cache() / "rheme-lstm.json")


def read(file: Path) -> dict[str, dict[str, int]]:
    """By device, by hidden size. Empty where there is no file, or one of another version; RhemeError where it is no table."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RhemeError(f"{file}: not a table of --calibrate ({error}): measure again, or remove it") from None
    devices = content.get("devices") if isinstance(content, dict) else None
    if not isinstance(devices, dict) or not all(
        isinstance(table, dict) and all(h.isdigit() and isinstance(steps, int) and steps > 0 for h, steps in table.items())
        for table in devices.values()
    ):
        raise RhemeError(f"{file}: not a table of --calibrate: measure again, or remove it")
    return devices if content.get("version") == VERSION else {}


def write(file: Path, name: str, table: dict[int, int]) -> None:
    """Put a device's figures into the file, beside those of others."""
    try:
        devices = read(file)
    except RhemeError:
        devices = {}
    devices[name] = {str(hidden): steps for hidden, steps in sorted(table.items())}
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(json.dumps({"version": VERSION, "devices": devices}, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, file)


@functools.cache
def _table(file: Path, name: str) -> dict[str, int]:
    return read(file).get(name, {})


def table() -> dict[str, int]:
    """Of the device at hand."""
    return _table(path(), device.device_name())


def least_steps(hidden: int, otherwise: int) -> int:
    return table().get(str(hidden), otherwise)

"""Which way is faster where, as measured on the device at hand by `benchmarks/peers/gpu.py --calibrate`.

A JSON file beside CuPy's compiled kernels, or where RHEME_CUDA_TABLE says: {"version": 2, "devices": {NAME: {"lstm": {"256": 4,
...}, "sample": 65536}}}. lstm: by hidden size how many turns the persistent LSTM in fp32 may take, where a batch has more rows
than run at once, and still be ahead of the plain one; sample: the least vocabulary from which a cluster of blocks for each row
is ahead of one block. What a device's table does not name is done the plain way. A device without a table has what an H100
showed if it is one of that architecture, else the plain ways.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

from rheme._cuda import device
from rheme.errors import RhemeError

VERSION = 2  # of the file and of the kernels that were timed: what an older one says no longer holds


def path() -> Path:
    return Path(os.environ.get("RHEME_CUDA_TABLE") or device.cache() / "rheme-lstm.json")


def _sound(table: Any) -> bool:
    if not isinstance(table, dict) or not isinstance(table.get("lstm", {}), dict):
        return False
    numbers = [*table.get("lstm", {}).values(), table.get("sample", 1)]
    return all(h.isdigit() for h in table.get("lstm", {})) and all(isinstance(n, int) and n > 0 for n in numbers)


def read(file: Path) -> dict[str, Any]:
    """The table of each device. Empty where there is no file, or one of another version; RhemeError where it is no table."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RhemeError(f"{file}: not a table of --calibrate ({error}): measure again, or remove it") from None
    devices = content.get("devices") if isinstance(content, dict) else None
    if not isinstance(devices, dict) or not all(map(_sound, devices.values())):
        raise RhemeError(f"{file}: not a table of --calibrate: measure again, or remove it")
    return devices if content.get("version") == VERSION else {}


def write(file: Path, name: str, lstm: dict[int, int], sample: int | None) -> None:
    """Put a device's figures into the file, beside those of others."""
    try:
        devices = read(file)
    except RhemeError:
        devices = {}
    table: dict[str, Any] = {"lstm": {str(hidden): steps for hidden, steps in sorted(lstm.items())}}
    devices[name] = table | ({} if sample is None else {"sample": sample})
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(json.dumps({"version": VERSION, "devices": devices}, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, file)


_MEASURED: dict[str, tuple[int, int]] = {"sm_90": (3, 65536)}  # turns for any hidden size, vocabulary


@functools.cache
def _table(file: str | None, folder: str | None, name: str) -> dict[str, Any]:
    """file, folder: what the environment says, by which `path` decides."""
    return read(path()).get(name, {})


def own() -> dict[str, Any]:
    """Of the device at hand."""
    return _table(os.environ.get("RHEME_CUDA_TABLE"), os.environ.get("CUPY_CACHE_DIR"), device.device_name())


def most_turns(hidden: int) -> int:
    """0: the persistent LSTM is not to be used."""
    table = own()
    return int(table["lstm"].get(str(hidden), 0)) if table else _MEASURED.get(device.isa(), (0, 0))[0]


def least_vocabulary(otherwise: int) -> int:
    table = own()
    return int(table.get("sample", otherwise) if table else _MEASURED.get(device.isa(), (0, otherwise))[1])

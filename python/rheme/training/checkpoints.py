"""Checkpoints: the whole state of a training, written so that a kill at any moment leaves an older one intact.

A checkpoint is a folder `checkpoint-<step>` with `state.safetensors` (arrays) and `state.json` (numbers, and the hash of the
arrays). It is written under another name, synced, then renamed; one whose hash does not fit is passed over.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rheme.errors import InputError

Arrays = dict[str, NDArray[Any]]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A write that fails (a full disk, a folder without permission) becomes one InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {error.filename or folder}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"cannot write to {folder}: {error}") from error


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder `out`, made where it is missing, for one training at a time; at the latest the process' end lets go.

    A folder that it made is gone again after an exception, unless a training has begun in it.
    """
    with writing(out):
        try:
            out.mkdir(parents=True)
            created = True
        except FileExistsError:
            created = False
        handle = os.open(out, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another training is writing to {out}; let it end first, or give another folder") from None
        try:
            yield
        except BaseException:
            if created and not (out / "training.json").exists():
                shutil.rmtree(out, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes) -> None:
    """Replace a small file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _found(out: Path) -> list[tuple[int, Path]]:
    """Checkpoints by name, the newest first."""
    found = []
    for path in out.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isdecimal() and path.is_dir():
            found.append((int(step), path))
    return sorted(found, reverse=True)


def save(out: Path, step: int, arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any], keep: int = 2) -> Path:
    """Write `out/checkpoint-<step>` and remove all but the newest `keep`. InputError when the disk does not take it."""
    final, temporary = out / f"checkpoint-{step}", out / f".checkpoint-{step}.tmp"
    if _header(final) is not None:
        return final  # the state after a step is always the same
    with writing(out):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            save_file(dict(arrays), temporary / "state.safetensors")
            sync(temporary / "state.safetensors")
            header = {"sha256": _hash(temporary / "state.safetensors"), "numbers": dict(numbers)}
            (temporary / "state.json").write_bytes(msgspec.json.encode(header))
            sync(temporary / "state.json")
            sync(temporary)
            shutil.rmtree(final, ignore_errors=True)  # a damaged one
            os.rename(temporary, final)
            sync(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    for _, path in _found(out)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    return final


def _header(path: Path) -> dict[str, Any] | None:
    """state.json of a checkpoint, None unless it is whole."""
    try:
        header = msgspec.json.decode((path / "state.json").read_bytes())
        whole = _hash(path / "state.safetensors") == header["sha256"]
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return None
    return header if whole else None


def load(out: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """Arrays and numbers of the newest whole checkpoint; None when there is none."""
    for _, path in _found(out):
        header = _header(path)
        if header is not None:
            return load_file(path / "state.safetensors"), header["numbers"]
    return None


def clear(out: Path) -> None:
    """Remove every checkpoint, whole or torn."""
    for path in [*out.glob("checkpoint-*"), *out.glob(".checkpoint-*.tmp")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)

"""Model folders: save, load, verify. Plain files only, no pickle.

A folder holds ``config.json model.safetensors tokenizer.model generation_config.json metrics.json README.md``. config.json is
its manifest: the size and SHA-256 of the weights and the tokenizer. It is written last, so a folder is whole or refused.
"""

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from rheme.errors import InputError

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.model"
GENERATION, METRICS, CARD = "generation_config.json", "metrics.json", "README.md"
DTYPES = ("float32", "float16", "int8")
SCALE = ".scale"  # beside an int8 matrix "w": "w.scale" float32, one a row

_ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U8": 1, "BOOL": 1}
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16"}
_NAMES |= {"I8": "int8", "U64": "uint64", "U8": "uint8", "BOOL": "bool"}
_MAX_HEADER = 100_000_000  # safetensors' own limit, in bytes


@dataclass(frozen=True)
class StoredModel:
    """A model folder in memory. arrays: as they are stored (see ``compress``); precision: at which to compute on them."""

    folder: Path
    task: str
    config: dict[str, Any]
    arrays: dict[str, Any]
    precision: str = "float32"
    tokenizer: bytes | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, Any]:
        """The weights by name, float32."""
        return expand(self.arrays)


# Arrays in a file ------------------------------------------------------------------------------------------------------------


def write_arrays(path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays as safetensors, through to the disk. Not atomic: write into an ``atomic_folder``."""
    import numpy as np
    from safetensors.numpy import save

    plain = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}  # () would be (1,)
    for name, array in plain.items():
        if array.dtype.name not in _NAMES.values():
            raise InputError(f"the array {name!r} is {array.dtype}, which is not stored: one of {', '.join(_NAMES.values())}")
    _write(Path(path), save(plain, metadata=dict(metadata or {})))


def check_arrays(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes of a safetensors file, from its header alone. InputError unless they fill the file exactly."""
    path = Path(path)
    wrong = f"{path}: damaged or no safetensors file"
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > min(_MAX_HEADER, size - 8):
                raise InputError(f"{wrong}: {size} bytes, cut off within the header")
            header = msgspec.json.decode(file.read(length))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InputError(f"{wrong}: its header is not JSON") from None
    if not isinstance(header, dict):
        raise InputError(f"{wrong}: its header is no object")
    header.pop("__metadata__", None)
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            item = _ITEM_SIZES[dtype]
            sizes = [begin, end, *shape]
            if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in sizes):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{wrong}: bad entry for {name!r}") from None
        expected = item
        for value in shape:
            expected *= value
        if end - begin != expected:
            raise InputError(f"{wrong}: {name!r} {dtype} {list(shape)} takes {expected} bytes, not {end - begin}")
        spans.append((begin, end))
        found[name] = (_NAMES[dtype], shape)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise InputError(f"{wrong}: arrays overlap or leave a gap at byte {position}")
        position = end
    if position != size - 8 - length:
        raise InputError(f"{wrong}: {size - 8 - length} bytes of data, {position} expected (cut off?)")
    return found


def read_arrays(path: str | Path) -> dict[str, Any]:
    """The arrays of a safetensors file, checked first (``check_arrays``)."""
    check_arrays(path)
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise InputError(f"{path}: damaged or no safetensors file: {error}") from None


# Smaller weights -------------------------------------------------------------------------------------------------------------


def compress(state: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Weights as they are stored. float16: rounded. int8: matrices as int8 with a float32 scale a row, the rest float16.

    The scale is max |row| / 127, the values are rounded to the nearest (even among equals).
    """
    import numpy as np

    from rheme import ops

    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: one of {', '.join(DTYPES)}")
    out: dict[str, Any] = {}
    for name, array in state.items():
        if hasattr(array, "get"):  # a CuPy array
            array = array.get()
        if array.dtype.kind != "f" or dtype == "float32":
            out[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        elif dtype == "float16" or array.ndim != 2:
            if np.any(np.abs(array) > 65504):
                raise InputError(f"the weight {name!r} is too large for float16")
            out[name] = array.astype(np.float16)
        else:
            weight = np.ascontiguousarray(array, np.float32)
            largest = np.abs(weight).max(axis=1, keepdims=True, initial=0)
            if not np.isfinite(largest).all():
                raise InputError(f"the weight {name!r} holds numbers that are not finite: int8 has none for them")
            scale = ops.div(np.where(largest > 0, largest, np.float32(1)), np.full((1, 1), 127, np.float32))
            out[name] = np.rint(ops.div(weight, scale)).astype(np.int8)
            out[name + SCALE] = np.ascontiguousarray(scale[:, 0])
    return out


def expand(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Stored weights as float32: float16 exactly, int8 times its row's scale."""
    import numpy as np

    from rheme import ops

    out: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in arrays:
            continue
        if array.dtype == np.int8:
            out[name] = ops.mul(array.astype(np.float32), np.ascontiguousarray(scale_of(arrays, name)[:, None]))
        else:
            out[name] = array.astype(np.float32) if array.dtype == np.float16 else array
    return out


def scale_of(arrays: Mapping[str, Any], name: str) -> Any:
    """The scale of each row of an int8 matrix. InputError when there is none."""
    array, scale = arrays[name], arrays.get(name + SCALE)
    if scale is None or scale.shape != array.shape[:1] or scale.dtype.name != "float32" or array.ndim != 2:
        raise InputError(f"the int8 weight {name!r} has no float32 scale for each of its rows")
    return scale


# Folders ---------------------------------------------------------------------------------------------------------------------


class _File(msgspec.Struct):
    size: int
    sha256: str


class _Manifest(msgspec.Struct):
    """The types of what is read from config.json."""

    files: dict[str, _File]
    weights: dict[str, tuple[str, list[int]]]
    config: dict[str, Any] = {}
    training: dict[str, Any] = {}
    dtype: str = "float32"
    precision: str = "float32"


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a model folder. InputError when it is none."""
    path = Path(folder) / CONFIG
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; a model is a folder with {CONFIG} and {WEIGHTS}")
    if not path.is_file():
        raise InputError(f"{folder}: no model folder, {CONFIG} is missing (an unfinished training?)")
    config = _read_json(path)
    if config.get("library") != "rheme" or not isinstance(config.get("task"), str):
        raise InputError(f"{path}: not a model of rheme")
    if config.get("format") != FORMAT:
        raise InputError(f"{path}: format {config.get('format')!r}, but this rheme reads {FORMAT}; install another version")
    try:
        msgspec.convert(config, _Manifest)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: damaged: {error}") from None
    return config


def verify(folder: str | Path) -> dict[str, Any]:
    """Check a model folder against its manifest, without loading it: sizes, hashes, the weights' header. Returns its config."""
    folder = Path(folder)
    config = read_config(folder)
    manifest = msgspec.convert(config, _Manifest)
    if WEIGHTS not in manifest.files:
        raise InputError(f"{folder / CONFIG}: {WEIGHTS} is missing from its list of files")
    for name, expected in manifest.files.items():
        if name not in (WEIGHTS, TOKENIZER):
            raise InputError(f"{folder / CONFIG}: unknown file {name!r}")
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing")
        if path.stat().st_size != expected.size:
            raise InputError(f"{path}: {path.stat().st_size} bytes, {expected.size} expected; copy the folder again")
        if name == WEIGHTS:
            found = {key: (dtype, list(shape)) for key, (dtype, shape) in check_arrays(path).items()}
            if found != manifest.weights:
                raise InputError(f"{path}: its arrays are not those that {CONFIG} lists")
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
                raise InputError(f"{path}: changed since it was written (SHA-256 differs); copy the folder again")
    return config


def load(folder: str | Path) -> StoredModel:
    """A model folder, checked and in memory. InputError for a missing, cut off, changed or foreign one."""
    folder = Path(folder)
    config = verify(folder)
    tokenizer = folder / TOKENIZER
    return StoredModel(
        folder=folder,
        task=config["task"],
        config=config.get("config", {}),
        arrays=read_arrays(folder / WEIGHTS),
        precision=config.get("precision", config.get("dtype", "float32")),
        tokenizer=tokenizer.read_bytes() if TOKENIZER in config["files"] else None,
        generation=_read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {},
        metrics=_read_json(folder / METRICS) if (folder / METRICS).is_file() else {},
        training=config.get("training", {}),
    )


def save(
    folder: str | Path,
    *,
    task: str,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    tokenizer: bytes | None = None,
    generation: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    precision: str | None = None,
) -> Path:
    """Write a model folder. A new one appears at once (rename); in an existing one each file is replaced, config.json last.

    state: weights by name. card: what the model card says besides (see ``model_card``). dtype: float32, float16 or int8.
    precision: at which the model is computed by default (the same three); dtype itself if not given.
    """
    from importlib import metadata

    folder = Path(folder)
    _check_finite(config, "config")
    _check_finite(generation or {}, "generation")
    with atomic_folder(folder) as new:
        arrays = compress(state, dtype)
        write_arrays(new / WEIGHTS, arrays)
        if tokenizer is not None:
            _write(new / TOKENIZER, tokenizer)
        files = {}
        for path in (new / WEIGHTS, new / TOKENIZER):
            if path.exists():
                with open(path, "rb") as file:
                    files[path.name] = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        manifest = {
            "library": "rheme",
            "format": FORMAT,
            "rheme_version": metadata.version("rheme"),
            "task": task,
            "config": dict(config),
            "training": dict(training or {}),
            "dtype": dtype,
            "precision": precision or dtype,
            "parameters": sum(int(array.size) for array in state.values()),
            "files": files,
            "weights": {name: [array.dtype.name, list(array.shape)] for name, array in sorted(arrays.items())},
        }
        write_json(new / GENERATION, dict(generation or {}))
        write_json(new / METRICS, dict(metrics or {}))
        _write(new / CARD, model_card(manifest, dict(metrics or {}), dict(card or {})).encode())
        write_json(new / CONFIG, manifest)
    return folder


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A new folder beside ``folder`` to write into; at the end it takes that name. After an exception nothing is left of it.

    If ``folder`` exists, the new files replace those of the same name one by one, config.json last; others stay.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        _sync(new)
        if folder.exists():
            for path in sorted(new.iterdir(), key=lambda path: (path.name == CONFIG, path.name)):
                os.replace(path, folder / path.name)
            _sync(folder)
        else:
            os.replace(new, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, through to the disk; NumPy's numbers as plain ones."""
    _write(path, msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2) + b"\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise NotImplementedError


def _check_finite(value: Any, name: str) -> None:
    """InputError for a number in a model's settings that JSON cannot hold, so that the model could not be read again."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_finite(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_finite(part, name)
    elif isinstance(number := value.item() if hasattr(value, "item") else value, float) and not math.isfinite(number):
        raise InputError(f"{name} = {value}: a model is stored with finite numbers alone")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder last through a power failure (where the system lets a folder be opened)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# The card --------------------------------------------------------------------------------------------------------------------


class Card(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What can be said of a model besides its figures and settings.

    datasets: names. data: where the text is from. split: how validation was cut. metrics: names for the header. limits: what
    it cannot do.
    """

    pipeline_tag: str = ""
    languages: list[str] = []
    title: str = ""
    description: str = ""
    license: str = ""
    datasets: list[str] = []
    data: str = ""
    attribution: str = ""
    split: str = ""
    metrics: list[str] = []
    limits: str = ""


def model_card(manifest: Mapping[str, Any], metrics: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """README.md with the hub's YAML header. card: fields of `Card`."""
    task = manifest["task"]
    head: list[str] = ["---", "library_name: rheme"]

    def entry(name: str, value: Any) -> None:
        if isinstance(value, str) and value:
            head.append(f"{name}: {_yaml(value)}")
        elif value:
            head.append(f"{name}:")
            head.extend(f"- {_yaml(str(part))}" for part in value)

    entry("pipeline_tag", card.get("pipeline_tag", ""))
    entry("language", card.get("languages", []))
    entry("license", card.get("license", ""))
    entry("datasets", card.get("datasets", []))
    entry("metrics", card.get("metrics", []))
    head.append("---")

    body = [f"# {card.get('title') or f'rheme {task} model'}", ""]
    body += [str(card.get("description") or f"A model for the task `{task}`, trained with `rheme train {task}`."), ""]
    body += [f"{manifest['parameters']:,} parameters, stored as {manifest['dtype']}.", ""]
    lines = [f"- {name}: {card[key]}" for name, key in _CARD_LINES if card.get(key)]
    if lines:
        body += ["## Data", "", *lines, ""]
    if card.get("limits"):
        body += ["## Limits", "", str(card["limits"]), ""]
    if metrics:
        body += ["## Figures", "", "| metric | value |", "|---|---|"]
        body += [f"| {name} | {_figure(value)} |" for name, value in metrics.items()] + [""]
    if manifest["training"]:
        settings = msgspec.json.format(msgspec.json.encode(manifest["training"]), indent=2).decode()
        body += ["## Training", "", "```json", settings, "```", ""]
    body += ["## Use", "", "```python", "import rheme", f'task = rheme.load("{task}", model="path/to/this/folder")', "```", ""]
    return "\n".join([*head, "", *body])


_CARD_LINES = (("Text", "data"), ("Licence", "license"), ("Attribution", "attribution"), ("Split", "split"))


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _yaml(text: str) -> str:
    """A YAML scalar; quoted (as JSON, which YAML contains) when it would mean something else, as the language code ``no``."""
    plain = text.replace("-", "").replace("_", "").replace(".", "").replace("/", "").isalnum() and not text[0].isdigit()
    if plain and text.lower() not in ("no", "yes", "on", "off", "true", "false", "null", "y", "n"):
        return text
    return msgspec.json.encode(text).decode()

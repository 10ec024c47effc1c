"""Model folders: what is saved comes back, and anything damaged is refused before it is used."""

import hashlib
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rheme import storage
from rheme.errors import InputError

STATE = {
    "weight": np.linspace(-3, 3, 35, dtype=np.float32).reshape(7, 5),
    "bias": np.array([0.5, -0.25, 1e-3], np.float32),
    "zeros": np.zeros((2, 4), np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def save(folder: Path, **options: Any) -> Path:
    defaults: dict[str, Any] = {
        "task": "demo",
        "config": {"size": 3},
        "state": STATE,
        "tokenizer": b"tok",
        "generation": {"num_beams": 4},
    }
    return storage.save(folder, **defaults | options)


def test_round_trip(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", metrics={"bleu": 38.1}, training={"seed": 3})
    names = {"config.json", "model.safetensors", "tokenizer.model", "generation_config.json", "metrics.json", "README.md"}
    assert set(os.listdir(folder)) == names
    assert os.listdir(tmp_path) == ["m"], "nothing is left beside it"
    stored = storage.load(folder)
    assert (stored.task, stored.config, stored.tokenizer) == ("demo", {"size": 3}, b"tok")
    assert (stored.generation, stored.metrics, stored.training) == ({"num_beams": 4}, {"bleu": 38.1}, {"seed": 3})
    assert set(stored.state) == set(STATE)
    for name, array in STATE.items():
        np.testing.assert_array_equal(stored.state[name], array)
        assert stored.state[name].dtype == np.float32


def test_half_precision(tmp_path: Path) -> None:
    state = storage.load(save(tmp_path / "m", dtype="float16")).state
    for name, array in STATE.items():
        np.testing.assert_array_equal(state[name], array.astype(np.float16).astype(np.float32))
    with pytest.raises(InputError, match="too large for float16"):
        save(tmp_path / "n", state={"w": np.full(3, 1e6, np.float32)}, dtype="float16")
    assert not (tmp_path / "n").exists()


def test_int8(tmp_path: Path) -> None:
    state = storage.load(save(tmp_path / "m", dtype="int8")).state
    scale = np.abs(STATE["weight"]).max(axis=1, keepdims=True) / 127
    assert (np.abs(state["weight"] - STATE["weight"]) <= 0.5001 * scale).all()
    np.testing.assert_array_equal(state["bias"], STATE["bias"].astype(np.float16))
    np.testing.assert_array_equal(state["zeros"], STATE["zeros"])
    assert set(state) == set(STATE)
    again = storage.load(save(tmp_path / "n", state=state, dtype="int8")).state
    np.testing.assert_allclose(again["weight"], state["weight"], rtol=1e-6)
    state = {"w": np.ones((100, 100), np.float32)}
    sizes = [
        save(tmp_path / kind, state=state, dtype=kind).joinpath("model.safetensors").stat().st_size for kind in storage.DTYPES
    ]
    assert sizes[0] > 1.9 * sizes[1] > 3.4 * sizes[2]


def test_int8_of_no_columns_and_of_no_numbers(tmp_path: Path) -> None:
    state = storage.load(save(tmp_path / "m", state={"w": np.zeros((3, 0), np.float32)}, dtype="int8")).state
    assert state["w"].shape == (3, 0)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match=r"the weight 'w' holds numbers that are not finite"):
            storage.compress({"w": np.array([[1, 2], [value, 3]], np.float32)}, "int8")


def test_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float32, float16, int8"):
        save(tmp_path / "m", dtype="int4")


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path / "m")
    for name in ("model.safetensors", "tokenizer.model", "config.json"):
        path = folder / name
        whole = path.read_bytes()
        for length in {0, 1, 8, 9, len(whole) // 2, len(whole) - 2} & set(range(len(whole))):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=str(folder)):
                storage.load(folder)
        path.write_bytes(whole)
    storage.load(folder)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path / "m")
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    for position in range(0, len(whole), 3):
        whole[position] ^= 0x41
        path.write_bytes(whole)
        with pytest.raises(InputError):
            storage.load(folder)
        whole[position] ^= 0x41


def lying(header: dict[str, Any] | bytes, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "data",
    [
        lying({"w": ENTRY | {"shape": [2**40]}}),
        lying({"w": ENTRY | {"shape": [2**62, 4]}}),
        lying({"w": ENTRY | {"shape": [-4]}}),
        lying({"w": ENTRY | {"shape": [4.0]}}),
        lying({"w": ENTRY | {"dtype": "F99"}}),
        lying({"w": ENTRY | {"data_offsets": [0, 8]}}),
        lying({"w": ENTRY | {"data_offsets": [16, 32]}}),
        lying({"w": ENTRY, "v": ENTRY}),
        lying({"w": ENTRY}, b"\0" * 20),
        lying({"w": ENTRY}, length=2**63),
        lying({"w": ENTRY}, length=2**40),
        lying({"w": None}),
        lying([1]),  # type: ignore[arg-type]
        lying(b"\xff\xfe"),
        b"",
        b"PK\x03\x04 a zip file of another library",
        b"\x80\x04\x95 a pickle",
    ],
)
def test_lying_headers(tmp_path: Path, data: bytes) -> None:
    """Refused by the header alone, even where the manifest agrees with the file."""
    folder = save(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(data)
    config = json.loads((folder / "config.json").read_bytes())
    config["files"]["model.safetensors"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="damaged or no safetensors file"):
        storage.load(folder)


def test_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        storage.load(tmp_path / "nothing")
    (tmp_path / "m").mkdir()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        storage.load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="not a model of rheme"):
        storage.load(tmp_path / "m")
    folder = save(tmp_path / "n")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: missing"):
        storage.load(folder)
    config = json.loads((save(tmp_path / "o") / "config.json").read_bytes()) | {"format": 99}
    (tmp_path / "o" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="format 99"):
        storage.load(tmp_path / "o")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"files": {"model.safetensors": 5}}, "Expected `object`, got `int`"),
        ({"files": None}, "Expected `object`, got `null`"),
        ({"files": {}}, r"model\.safetensors is missing"),
        ({"files": {"model.safetensors": {"size": "1", "sha256": ""}}}, "Expected `int`, got `str`"),
        ({"weights": [1]}, "Expected `object`, got `array`"),
        ({"config": []}, "Expected `object`, got `array`"),
    ],
)
def test_a_damaged_config(tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    folder = save(tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_bytes()) | damage))
    with pytest.raises(InputError, match=message):
        storage.load(folder)


def test_json_too_deep_to_read(tmp_path: Path) -> None:
    folder, deep = save(tmp_path / "m"), "[" * 100_000
    (folder / "config.json").write_text('{"a": ' + deep)
    with pytest.raises(InputError, match=r"config\.json: not JSON"):
        storage.load(folder)
    (tmp_path / "x").write_bytes(lying(deep.encode()))
    with pytest.raises(InputError, match="its header is not JSON"):
        storage.check_arrays(tmp_path / "x")


def test_settings_that_json_cannot_hold(tmp_path: Path) -> None:
    for name, settings in (
        ("config.part.limits = inf", {"config": {"part": {"limits": [1.0, math.inf]}}}),
        ("generation.threshold = nan", {"generation": {"threshold": np.float32("nan")}}),
    ):
        with pytest.raises(InputError, match=f"{name}: a model is stored with finite numbers alone"):
            save(tmp_path / "m", **settings)
        assert not list(tmp_path.iterdir())
    folder = save(tmp_path / "m", generation={"threshold": np.float32(0.5)}, metrics={"loss": math.nan})
    assert storage.load(folder).generation == {"threshold": 0.5}


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "m")
    (folder / "valid.tsv").write_text("kept")
    with pytest.raises(InputError):
        save(folder, state={"w": np.full(3, 1e6, np.float32)}, dtype="float16")
    assert storage.load(folder).config == {"size": 3}
    save(folder, config={"size": 4})
    assert storage.load(folder).config == {"size": 4}
    assert (folder / "valid.tsv").read_text() == "kept"


def test_card(tmp_path: Path) -> None:
    card = {
        "pipeline_tag": "translation",
        "languages": ["en", "no"],
        "license": "cc-by-2.0",
        "datasets": ["tatoeba"],
        "data": "Tatoeba",
    }
    card |= {"attribution": "tatoeba.org", "split": "2 % by hash", "metrics": ["bleu"], "title": "English: Norwegian"}
    folder = save(tmp_path / "m", metrics={"bleu": 38.123456, "signature": "a|b"}, card=card, training={"seed": 1})
    text = (folder / "README.md").read_text()
    head = text.split("---\n")[1].splitlines()
    assert head[:6] == ["library_name: rheme", "pipeline_tag: translation", "language:", "- en", '- "no"', "license: cc-by-2.0"]
    assert "- tatoeba" in head
    for part in (
        "# English: Norwegian",
        "- Attribution: tatoeba.org",
        "| bleu | 38.12 |",
        r"| signature | a\|b |",
        '"seed": 1',
    ):
        assert part in text


def test_arrays_in_a_file(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6).reshape(2, 3),
        "b": np.array([1.5], np.float64),
        "c": np.array([True, False]),
        "d": np.array(2.5),
    }
    storage.write_arrays(tmp_path / "x", arrays, {"note": "n"})
    assert storage.check_arrays(tmp_path / "x")["a"] == ("int64", (2, 3))
    for name, array in storage.read_arrays(tmp_path / "x").items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "complex64"])
def test_arrays_that_would_not_be_read_are_not_written(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"the array 'a' is {dtype}, which is not stored: one of float64, .*, bool$"):
        storage.write_arrays(tmp_path / "x", {"a": np.ones(3, dtype)})
    assert not (tmp_path / "x").exists()

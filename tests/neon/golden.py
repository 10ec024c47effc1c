"""Writes the golden file of rheme_check: cases, the bits that the core of this machine makes of them, the reference's values.

    python tests/neon/golden.py FILE [quantized]     (quantized: only the ops on small weights)

with tests/ on the path; RHEME_ISA says which instruction set's bits.

The format is told in check.cc.
"""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import op_cases
import reference
from rheme import _core
from test_ops import lstm_cases
from test_quantized import KINDS as PRECISIONS
from test_quantized import linear_cases, stored

KINDS = {"float32": "f", "float64": "d", "int64": "l", "uint64": "u", "uint8": "b", "int8": "c", "float16": "h"}

# The names of the outputs in check.cc; "y" where there is one and nothing else is said.
OUTPUTS = {
    "linear_backward": ["dx", "dweight", "dbias"],
    "attention": ["context", "weights"],
    "attention_backward": ["dquery", "dkey", "dvalue"],
    "softmax_backward": ["dx"],
    "log_softmax_backward": ["dx"],
    "linear_cross_entropy": ["loss", "lse", "logits"],
    "linear_cross_entropy_backward": ["dx", "dweight", "dbias"],
    "sample": ["ids"],
    "top_k": ["values", "ids"],
    "gaussian_kl": ["z", "kl"],
    "gaussian_kl_backward": ["dmu", "dlogvar"],
    "exp_backward": ["dx"],
    "log_backward": ["dx"],
    "tanh_backward": ["dx"],
    "sigmoid_backward": ["dx"],
    "relu_backward": ["dx"],
    "layer_norm": ["y", "mean", "rstd"],
    "layer_norm_backward": ["dx", "dweight", "dbias"],
    "max": ["y", "positions"],
}
# dropout's scale and threshold, and global_norm's root, are made in the bindings: sum_of_squares stands for the latter.
NOT_HERE = {"dropout", "global_norm"}
LARGEST = 40_000  # elements of a case: an emulator runs them

Entries = list[tuple[str, str, Any, float]]


def as_array(value: Any) -> np.ndarray:
    if isinstance(value, bool | int):
        return np.array(value, np.int64 if -(2**63) <= value < 2**63 else np.uint64)
    return np.array(value, np.float64) if isinstance(value, float) else np.asarray(value)


def inputs(arguments: dict[str, Any]) -> Entries:
    entries: Entries = []
    for name, value in arguments.items():
        if value is None or name == "packed":
            continue
        if name == "free_bits_over":
            entries.append(("over_batch", "i", int(value == "batch"), 0.0))
        elif isinstance(value, list | tuple):
            entries.extend((f"{name}.{i}", "i", item, 0.0) for i, item in enumerate(value))
        else:
            entries.append((name, "i", value, 0.0))
    return entries


def tolerance(want: np.ndarray, k: int) -> float:
    """Four times what test_ops.py allows, where the precision is judged: here the bits count."""
    return float(16 * np.ceil(np.log2(max(k, 2))) * 2.0**-23 * max(1e-30, np.abs(want[np.isfinite(want)]).max(initial=0.0)))


def outputs(names: list[str], got: Any, want: Any, k: int, role: str = "o") -> Entries:
    """Bits of the core beside the values of the reference, which is given the same arguments in float64."""
    entries: Entries = []
    for name, g, w in zip(names, got, want, strict=True):
        if g is None:
            continue
        entries.append((name, role, g, 0.0))
        if w is not None and g.dtype.kind == "f":
            entries.append((name, "r", np.asarray(w, np.float64), tolerance(w, k)))
    return entries


def generator() -> np.random.Generator:
    return np.random.default_rng(20240229)


def plain_ops() -> Iterator[tuple[str, Entries]]:
    for op, cases in op_cases.CASES.items():
        if op in NOT_HERE:
            continue
        for _, arguments, k in cases(generator()):
            arrays = {name: np.asarray(value) if isinstance(value, np.generic) else value for name, value in arguments.items()}
            given = op_cases.cast(arrays, "float32")
            if sum(np.size(value) for value in given.values() if value is not None) > LARGEST:
                continue
            got, want = getattr(_core, op)(**given), getattr(reference, op)(**op_cases.cast(given, "float64"))
            names = OUTPUTS.get(op, ["y"])
            several = isinstance(got, tuple)
            entries = outputs(names, got if several else [got], want if several else [want], k)
            if op == "linear":
                entries.append(("packed y", "o", got, 0.0))
            yield op, inputs(given) + entries


def lstm_ops(rng: np.random.Generator, dtype: str) -> Iterator[tuple[str, Entries]]:
    """double calls libm, whose bits are another machine's own: there only the values count."""
    role = "o" if dtype == "float32" else "s"
    for _, arguments, k in lstm_cases(rng):
        given = op_cases.cast(arguments, dtype)
        wide = op_cases.cast(given, "float64")
        y, h_n, c_n, gates, cells = _core.lstm(**given, packed=None, save=True)
        wanted = reference.lstm(**wide, packed=None, save=True)
        entries = outputs(["y", "h_n", "c_n"], (y, h_n, c_n), wanted[:3], k, role)
        # Of these two only the steps within a row's length are written; what stands past it must not matter.
        for n, length in enumerate([] if given["lengths"] is None else given["lengths"]):
            gates[:, length:, n], cells[:, length:, n] = 0, 0
        entries += [("gates", "s", gates, 0.0), ("cells", "s", cells, 0.0)]
        yield "lstm", inputs(given) + entries

        kept = {name: value for name, value in given.items() if name != "bias"}
        grads = {name: op_cases.cast(rng.normal(size=a.shape), dtype) for name, a in (("dy", y), ("dh_n", h_n), ("dc_n", c_n))}
        back = _core.lstm_backward(**kept, **grads, y=y, gates=gates, cells=cells, need_dx=True)
        wide = {name: value for name, value in wide.items() if name != "bias"} | op_cases.cast(grads, "float64")
        want = reference.lstm_backward(**wide, y=wanted[0], gates=wanted[3], cells=wanted[4], need_dx=True)
        names = ["dx", "dh0", "dc0"] + [f"{name}.{d}" for name in ("dw_ih", "dw_hh", "dbias") for d in range(len(kept["w_ih"]))]

        def flat(value: Any) -> list[Any]:
            return [*value[:3], *(item for group in value[3:] for item in group)]

        entries = outputs(names, flat(back), flat(want), k, role)
        yield "lstm_backward", inputs(kept | grads | {"y": y, "gates": gates, "cells": cells}) + entries


def cross_entropy(rng: np.random.Generator) -> Iterator[tuple[str, Entries]]:
    for m, k, v in ((1, 1, 1), (3, 5, 17), (8, 33, 100), (17, 300, 257), (5, 600, 31)):
        for smoothing in (0.0, 0.1):
            for save in (True, False):
                targets = rng.integers(0, v, m)
                targets[::4] = -1
                given = op_cases.cast(
                    {
                        "x": rng.normal(size=(m, k)),
                        "weight": rng.normal(size=(v, k)) / np.sqrt(k),
                        "bias": rng.normal(size=v) if smoothing else None,
                        "targets": targets,
                        "ignore_index": -1,
                        "label_smoothing": smoothing,
                    },
                    "float32",
                )
                wide = op_cases.cast(given, "float64")
                loss, lse, logits = _core.linear_cross_entropy(**given, save=save)
                want = reference.linear_cross_entropy(**wide, save=True)
                kept = want if save else (want[0], want[1], None)
                yield "linear_cross_entropy", inputs(given) + outputs(["loss", "lse", "logits"], (loss, lse, logits), kept, k)
                more = {"dloss": rng.normal(size=m).astype(np.float32), "lse": lse, "logits": logits}
                back = _core.linear_cross_entropy_backward(**given, **more)
                wide |= {"dloss": more["dloss"].astype(np.float64), "lse": want[1], "logits": want[2]}
                expected = reference.linear_cross_entropy_backward(**wide)
                entries = outputs(OUTPUTS["linear_cross_entropy_backward"], back, expected, max(k, m, v))
                yield "linear_cross_entropy_backward", inputs(given | more) + entries


def sampler(rng: np.random.Generator) -> Iterator[tuple[str, Entries]]:
    """Logits of few values too, so that ties are many."""
    for v in (1, 2, 15, 16, 17, 100, 1000):
        for number, (temperature, top_k, top_p, min_p) in enumerate(
            (
                (1.0, 0, 1.0, 0.0),
                (0.0, 0, 1.0, 0.0),
                (0.7, 5, 1.0, 0.0),
                (1.3, 0, 0.9, 0.0),
                (1.0, 0, 1.0, 0.05),
                (0.8, 40, 0.8, 0.01),
            )
        ):
            logits = (rng.normal(size=(6, v)) * 3).astype(np.float32)
            logits = np.round(logits) if number % 2 else logits
            given = {
                "logits": logits,
                "bits": rng.integers(0, 2**64, 6, dtype=np.uint64),
                "temperature": temperature,
                "top_k": min(top_k, v),
                "top_p": top_p,
                "min_p": min_p,
            }
            yield "sample", inputs(given) + outputs(["ids"], [_core.sample(**given)], [None], 1)


def optimisers(rng: np.random.Generator) -> Iterator[tuple[str, Entries]]:
    """The constants as the bindings make them: in double, rounded once."""
    f = np.float32
    for n in (1, 3, 4, 5, 16, 17, 33, 1000):
        param, grad, m = rng.normal(size=(3, n)).astype(f)
        v = (rng.random(n) * 0.1).astype(f)
        given = {
            "learning_rate": 1e-2,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "weight_decay": 0.01,
            "step": 3,
            "grad_scale": 0.5,
        }
        constants = {
            "grad_scale": f(0.5),
            "beta1": f(0.9),
            "one_minus_beta1": f(1 - 0.9),
            "beta2": f(0.999),
            "one_minus_beta2": f(1 - 0.999),
            "decay": f(1 - 1e-2 * 0.01),
            "step_size": f(1e-2 / (1 - 0.9**3)),
            "root_correction": f(1 / np.sqrt(1 - 0.999**3)),
            "epsilon": f(1e-8),
        }
        arrays = {"param": param, "m": m, "v": v}
        after, truth = {k: a.copy() for k, a in arrays.items()}, {k: a.astype(np.float64) for k, a in arrays.items()}
        _core.adamw(**after, grad=grad, **given)
        reference.adamw(**truth, grad=grad.astype(np.float64), **given)
        yield "adamw", inputs(arrays | {"grad": grad} | constants) + outputs(list(arrays), after.values(), truth.values(), 4)

        for momentum in (0.0, 0.9):
            given = {"learning_rate": 1e-2, "momentum": momentum, "weight_decay": 0.01, "grad_scale": 0.5}
            arrays = {"param": param} | ({"momentum_buffer": m} if momentum else {})
            after, truth = {k: a.copy() for k, a in arrays.items()}, {k: a.astype(np.float64) for k, a in arrays.items()}
            none = {} if momentum else {"momentum_buffer": None}
            _core.sgd(**after, **none, grad=grad, **given)
            reference.sgd(**truth, **none, grad=grad.astype(np.float64), **given)
            constants = {name: f(value) for name, value in given.items()}
            yield "sgd", inputs(arrays | {"grad": grad} | constants) + outputs(list(arrays), after.values(), truth.values(), 4)

        norm = _core.global_norm(arrays=[grad])
        squares: Entries = [("sum", "s", np.zeros(()), 0.0), ("sum", "r", np.array(norm**2), 1e-14 * norm**2)]
        yield "sum_of_squares", inputs({"x": grad}) + squares


def quantized_ops(rng: np.random.Generator) -> Iterator[tuple[str, Entries]]:
    """Bits alone: what int8 rounds is not continuous, so that test_quantized.py, not a tolerance here, holds the values."""

    def small(name: str, weight: np.ndarray, kind: str, gates: bool) -> tuple[Any, Entries]:
        array, scale = stored(weight, kind)
        entries = inputs({name: array, f"scale of {name}": scale})
        return _core.pack_quantized(weight=array, scale=scale, gates=gates), entries

    for kind in PRECISIONS:
        for _, given, _ in linear_cases(rng):
            given = op_cases.cast(given, "float32")
            if given["x"].size + given["weight"].size > LARGEST:
                continue
            weight, entries = small("weight", given.pop("weight"), kind, False)
            y = _core.quantized_linear(**given, weight=weight)
            yield "quantized_linear", inputs(given) + entries + [("y", "o", y, 0.0)]
        for c, k, gates in ((70, 33, False), (4 * 19, 6, True)):
            weight, entries = small("weight", rng.normal(size=(c, k)), kind, gates)
            y = _core.unpack_quantized(weight=weight)
            yield "unpack_quantized", inputs({"gates": gates}) + entries + [("y", "o", y, 0.0)]
        weight, entries = small("weight", rng.normal(size=(70, 33)), kind, False)
        ids = rng.integers(0, 70, 100)
        y = _core.quantized_embedding(ids=ids, weight=weight)
        yield "quantized_embedding", inputs({"ids": ids}) + entries + [("y", "o", y, 0.0)]
        for _, given, _ in lstm_cases(rng):
            given = op_cases.cast(given, "float32")
            packed: dict[str, list[Any]] = {"w_ih": [], "w_hh": []}
            entries = []
            for name, made in packed.items():
                for d, matrix in enumerate(given.pop(name)):
                    weight, more = small(f"{name}.{d}", matrix, kind, True)
                    made.append(weight)
                    entries += more
            got = _core.quantized_lstm(**given, **packed)
            yield "quantized_lstm", inputs(given) + entries + outputs(["y", "h_n", "c_n"], got, [None] * 3, 1)


def random_numbers() -> Iterator[tuple[str, Entries]]:
    for n in (1, 5, 64, 1001):
        for seed, stream, position in ((0, 0, 0), (2**40 + 7, 2**63 + 5, 2**32 - 3)):
            where = {"seed": seed, "stream": stream, "position": position}
            words = {name: np.array(value, np.uint64) for name, value in where.items()}
            bits = _core.random_bits(**where, n=n)
            yield "random_bits", [*inputs(words | {"one": np.float32(1)}), ("y", "o", bits, 0.0)]
            for op in ("random_uniform", "random_normal"):
                got, want = (getattr(core, op)(**where, shape=(n,), dtype="float32") for core in (_core, reference))
                yield op, inputs(words | {"one": np.float32(1)}) + outputs(["y"], [got], [want], 4)


def everything() -> Iterator[tuple[str, Entries]]:
    yield from plain_ops()
    yield from lstm_ops(generator(), "float32")
    yield from lstm_ops(generator(), "float64")
    yield from cross_entropy(generator())
    yield from sampler(generator())
    yield from optimisers(generator())
    yield from random_numbers()
    yield from quantized_ops(generator())


def write(file: BinaryIO, op: str, entries: Entries) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<i", len(value)) + value.encode()

    file.write(text(op) + struct.pack("<i", len(entries)))
    for name, role, value, allowed in entries:
        array = as_array(value)
        header = struct.pack(
            f"<ccdi{array.ndim}q", role.encode(), KINDS[array.dtype.name].encode(), allowed, array.ndim, *array.shape
        )
        file.write(text(name) + header + (b"" if role == "s" else array.tobytes()))


def main(path: str, part: str = "") -> None:
    count: dict[str, int] = {}
    with Path(path).open("wb") as file:
        for op, entries in everything() if part != "quantized" else quantized_ops(generator()):
            write(file, op, entries)
            count[op] = count.get(op, 0) + 1
    print(f"{_core.isa()}: {sum(count.values())} records of {len(count)} ops, {Path(path).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Every op of the core on every instruction set, at a size that models use: `pytest benchmarks/bench_ops.py`.

Each benchmark checks its answer against tests/reference.py (on a part of the rows where the whole would take NumPy long)
before it is timed. Groups are ops, rows are instruction sets; one thread unless RHEME_NUM_THREADS says more.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import reference
from rheme import _core

Arguments = dict[str, Any]
rng = np.random.default_rng(7)


def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def ids(high: int, *shape: int) -> np.ndarray:
    return rng.integers(0, high, shape)


def lstm_arguments(time: int, batch: int, size: int) -> Arguments:
    return {
        "x": floats(time, batch, size),
        "lengths": ids(time, batch) + 1,
        "h0": None,
        "c0": None,
        "w_ih": [floats(4 * size, size, scale=0.05)],
        "w_hh": [floats(4 * size, size, scale=0.05)],
    }


def with_saved(core: Any, arguments: Arguments) -> Arguments:
    """The arguments of lstm_backward, after a forward pass by `core`."""
    bias = [np.zeros(len(arguments["w_hh"][0]), np.float32)]
    y, _, _, gates, cells = core.lstm(**arguments, bias=bias, packed=None, reverse=False, save=True)
    rest = {"dh_n": None, "dc_n": None, "y": y, "gates": gates, "cells": cells, "reverse": False, "need_dx": True}
    return {**arguments, **rest, "dy": np.ones_like(y)}


def cross_entropy_arguments(m: int, k: int, v: int) -> Arguments:
    return {
        "x": floats(m, k),
        "weight": floats(v, k, scale=0.1),
        "bias": floats(v),
        "targets": ids(v, m),
        "ignore_index": -1,
        "label_smoothing": 0.1,
    }


def with_lse(core: Any, arguments: Arguments) -> Arguments:
    loss, lse, logits = core.linear_cross_entropy(**arguments, save=True)
    return {**arguments, "dloss": np.ones_like(loss), "lse": lse, "logits": logits}


def same(core: Any, arguments: Arguments) -> Arguments:
    return arguments


Prepare = Callable[[Any, Arguments], Arguments]
LSTM = lstm_arguments(20, 16, 128)
ENTROPY = cross_entropy_arguments(256, 128, 2000)
ROWS, COLUMNS = 256, 1024
X, DY = floats(ROWS, COLUMNS), floats(ROWS, COLUMNS)
ATTENTION = {"query": floats(20, 16, 128), "key": floats(24, 16, 128, scale=0.1), "value": floats(24, 16, 128)}
WEIGHTS = reference.attention(**ATTENTION, lengths=None, scale=1.0)[1]
GAUSSIAN = {"mu": X, "logvar": DY, "eps": X, "free_bits": 0.1, "free_bits_over": "batch"}
LAYER_NORM = {"x": X, "weight": floats(COLUMNS)}
MOMENTS = reference.layer_norm(**LAYER_NORM, bias=floats(COLUMNS), epsilon=1e-5)[1:]
REDUCED = {"x": floats(16, 64, 256), "mask": None}

# op: how its arguments are made ready (by the same core that is timed), and the arguments.
CASES: dict[str, tuple[Prepare, Arguments]] = {
    "lstm": (same, {**LSTM, "bias": [floats(512)], "packed": None, "reverse": False, "save": False}),
    "lstm_backward": (with_saved, LSTM),
    "linear": (same, {"x": floats(256, 256), "weight": floats(512, 256), "bias": floats(512), "packed": None}),
    "linear_backward": (
        same,
        {
            "dy": floats(256, 512),
            "x": floats(256, 256),
            "weight": floats(512, 256),
            "need_dx": True,
            "need_dweight": True,
            "need_dbias": True,
        },
    ),
    "matmul": (same, {"a": floats(8, 64, 128), "b": floats(8, 128, 64), "transpose_a": False, "transpose_b": False}),
    "embedding": (same, {"ids": ids(8000, 1000), "weight": floats(8000, 256)}),
    "embedding_backward": (same, {"dy": floats(1000, 256), "ids": ids(8000, 1000), "num_embeddings": 8000, "order": None}),
    "attention": (same, {**ATTENTION, "lengths": ids(24, 16) + 1, "scale": 1.0}),
    "attention_backward": (
        same,
        {**ATTENTION, "weights": WEIGHTS, "scale": 1.0, "dcontext": floats(20, 16, 128), "dweights": None},
    ),
    "softmax": (same, {"x": X, "mask": None}),
    "softmax_backward": (same, {"dy": DY, "y": reference.softmax(x=X, mask=None)}),
    "log_softmax": (same, {"x": X, "mask": None}),
    "log_softmax_backward": (same, {"dy": DY, "y": reference.log_softmax(x=X, mask=None)}),
    "linear_cross_entropy": (same, {**ENTROPY, "save": False}),
    "linear_cross_entropy_backward": (with_lse, ENTROPY),
    "sample": (
        same,
        {
            "logits": floats(32, 10000, scale=3.0),
            "bits": rng.integers(0, 2**63, 32).astype(np.uint64) * np.uint64(2),
            "temperature": 0.8,
            "top_k": 50,
            "top_p": 0.9,
            "min_p": 0.0,
        },
    ),
    "top_k": (same, {"x": floats(32, 10000), "k": 10}),
    "gaussian_kl": (same, GAUSSIAN),
    "gaussian_kl_backward": (same, {**GAUSSIAN, "dz": X, "dkl": DY}),
    **{op: (same, {"a": X, "b": DY}) for op in ("add", "sub", "mul", "div")},
    **{op: (same, {"x": X}) for op in ("neg", "exp", "tanh", "sigmoid", "relu")},
    "log": (same, {"x": np.abs(X) + np.float32(0.1)}),
    **{f"{op}_backward": (same, {"dy": DY, "y": X}) for op in ("exp", "tanh", "sigmoid", "relu")},
    "log_backward": (same, {"dy": DY, "x": np.abs(X) + np.float32(0.1)}),
    "dropout": (same, {"x": X, "p": 0.3, "seed": 1, "stream": 2, "period": 0}),
    "layer_norm": (same, {**LAYER_NORM, "bias": floats(COLUMNS), "epsilon": 1e-5}),
    "layer_norm_backward": (same, {**LAYER_NORM, "dy": DY, "mean": MOMENTS[0], "rstd": MOMENTS[1]}),
    **dict.fromkeys(("sum", "mean", "max", "logsumexp"), (same, REDUCED)),
    "global_norm": (same, {"arrays": [X, DY]}),
    "random_bits": (same, {"seed": 1, "stream": 2, "position": 3, "n": 100000}),
    "random_uniform": (same, {"seed": 1, "stream": 2, "position": 0, "shape": (256, 1024), "dtype": "float32"}),
    "random_normal": (same, {"seed": 1, "stream": 2, "position": 0, "shape": (256, 1024), "dtype": "float32"}),
}
STEP = {"learning_rate": 1e-3, "weight_decay": 0.01, "grad_scale": 1.0}
UPDATES: dict[str, Arguments] = {  # they change their arguments, so that checking and timing take copies
    "adamw": {
        "param": X,
        "grad": DY,
        "m": X,
        "v": np.abs(DY),
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "step": 3,
        **STEP,
    },
    "sgd": {"param": X, "grad": DY, "momentum_buffer": X, "momentum": 0.9, **STEP},
}


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield np.asarray(value)


def check(got: Any, want: Any) -> None:
    for g, w in zip(leaves(got), leaves(want), strict=True):
        if w.dtype.kind == "f":
            np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-3 * max(1e-6, float(np.abs(w[np.isfinite(w)]).max(initial=0))))
        else:
            assert (g == w).mean() > 0.99  # a tie in float32 may be none in float64


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before, threads = _core.isa(), _core.num_threads()
    _core.set_isa(name=request.param)
    _core.set_num_threads(n=int(os.environ.get("RHEME_NUM_THREADS", "1")))
    yield request.param
    _core.set_isa(name=before)
    _core.set_num_threads(n=threads)


@pytest.mark.parametrize("op", CASES)
def test_op(op: str, isa: str, benchmark: Any) -> None:
    prepare, arguments = CASES[op]
    answer = getattr(_core, op)(**prepare(_core, arguments))
    want = getattr(reference, op)(**prepare(reference, arguments))
    # lstm hands opaque arrays to its backward: the first three outputs are what a caller sees.
    check(answer[:3] if op == "lstm" else answer, want[:3] if op == "lstm" else want)
    benchmark.group = op
    benchmark.extra_info["isa"] = isa
    ready = prepare(_core, arguments)
    benchmark(lambda: getattr(_core, op)(**ready))


@pytest.mark.parametrize("op", UPDATES)
def test_update(op: str, isa: str, benchmark: Any) -> None:
    def copy() -> Arguments:
        return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in UPDATES[op].items()}

    got, want = copy(), copy()
    getattr(_core, op)(**got)
    getattr(reference, op)(**want)
    check([got[name] for name in got if name != "grad"], [want[name] for name in want if name != "grad"])
    benchmark.group = op
    benchmark.extra_info["isa"] = isa
    benchmark(lambda: getattr(_core, op)(**got))


def test_every_op_is_here() -> None:
    """A new op joins the benchmarks."""
    machine = {
        "isa", "available_isas", "set_isa", "num_threads", "set_num_threads", "build_info", "arena_bytes", "fma_peak",
        "empty", "zeros", "philox", "pack_lstm", "pack_linear",
    }  # fmt: skip
    ops = {name for name in dir(_core) if not name.startswith("_") and name != "Packed"} - machine
    assert ops == set(CASES) | set(UPDATES)

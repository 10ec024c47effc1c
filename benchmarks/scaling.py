"""How time grows with length, batch, width, vocabulary and threads: `python benchmarks/scaling.py [--out scaling.json]`.

One size moves at a time, the others stay at T 50, N 16, H 256, V 10,000. Per-token medians to standard output, JSON and a plot.
Last, a neighbour: the same work on two threads while another process keeps one core busy, against one thread beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import rheme
from rheme import autograd, nn, ops
from rheme import functional as F

rng = np.random.default_rng(0)
AXES = {"T": (1, 5, 20, 50, 100, 200), "N": (1, 2, 4, 8, 16, 32, 64), "H": (64, 128, 256, 512, 1024)}
VOCABULARIES = (1_000, 3_000, 10_000, 30_000, 100_000)


def floats(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * np.float32(0.05)


def seconds(call: Callable[[], Any], budget: float = 0.4) -> float:
    """The median of at least 5 calls."""
    call()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < 5 or (time.perf_counter() - begin < budget and len(taken) < 200):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return median(taken)


def lstm_calls(T: int, N: int, H: int) -> dict[str, tuple[Callable[[], Any], int]]:
    module, x = nn.LSTM(H, H), rheme.Tensor(floats(T, N, H), requires_grad=True)
    dy = floats(T, N, H)

    def inference() -> None:
        with autograd.no_grad():
            module(x)

    def training() -> None:
        module(x)[0].backward(dy)
        x.grad = None
        module.zero_grad()

    return {"LSTM, inference": (inference, T * N), "LSTM, training": (training, T * N)}


def vocabulary_calls(V: int, N: int = 64, H: int = 256) -> dict[str, tuple[Callable[[], Any], int]]:
    logits, bits = floats(N, V) * 60, ops.random_bits(0, 0, 0, N)
    x, weight = rheme.Tensor(floats(N, H), requires_grad=True), rheme.Tensor(floats(V, H), requires_grad=True)
    targets = rng.integers(0, V, N)

    def loss() -> None:
        F.sum(F.linear_cross_entropy(x, weight, None, targets)).backward()
        x.grad = weight.grad = None

    return {
        "sampling": (lambda: ops.sample(logits, bits, temperature=0.8), N),
        "sampling, top-p 0.9": (lambda: ops.sample(logits, bits, temperature=0.8, top_p=0.9), N),
        "linear and cross-entropy": (loss, N),
    }


def neighbour() -> dict[str, float]:
    """Microseconds per token of LSTM training, quiet and beside a process that never rests."""
    call, tokens = lstm_calls(50, 16, 256)["LSTM, training"]
    found = {}
    for busy in (False, True):
        child = None
        if busy:
            child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})
            time.sleep(0.2)
        try:
            for threads in (1, 2):
                rheme.set_num_threads(threads)
                name = f"{threads} thread{'s' * (threads > 1)}, {'beside a busy process' if busy else 'alone'}"
                found[name] = seconds(call, 2.0) / tokens * 1e6
        finally:
            if child:
                child.kill()
                child.wait()
    return found


def plot(table: dict[str, dict[str, dict[str, dict[str, float]]]], path: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    figure, axes = pyplot.subplots(1, len(table), figsize=(4 * len(table), 3.6), sharey=True)
    for ax, (axis, lines) in zip(axes, table.items(), strict=True):
        for index, (work, by_threads) in enumerate(lines.items()):
            for threads, points in by_threads.items():
                style = {"1": "-", "2": "--"}.get(threads, ":")
                label = f"{work}, {threads} thread{'s' * (threads != '1')}"
                ax.plot([float(x) for x in points], list(points.values()), style, color=f"C{index}", marker=".", label=label)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xlabel(axis)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=6)
    axes[0].set_ylabel("microseconds per token")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scaling.json"))
    arguments = parser.parse_args()
    base = {"T": 50, "N": 16, "H": 256}
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for axis, values in [*AXES.items(), ("V", VOCABULARIES)]:
        for value in values:
            calls = vocabulary_calls(value) if axis == "V" else lstm_calls(**{**base, axis: value})
            for work, (call, tokens) in calls.items():
                for threads in (1, 2):
                    rheme.set_num_threads(threads)
                    taken = seconds(call) / tokens * 1e6
                    table.setdefault(axis, {}).setdefault(work, {}).setdefault(str(threads), {})[str(value)] = taken
                    print(f"{axis} {value}, {work}, {threads} threads: {taken:.2f} us per token", flush=True)
    beside = neighbour()
    for name, taken in beside.items():
        print(f"{name}: {taken:.2f} us per token")
    arguments.out.write_text(json.dumps({"table": table, "neighbour": beside}, indent=1))
    plot(table, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()

"""How time grows with length, batch, width, vocabulary and threads: `python benchmarks/scaling.py [--out scaling.json]`.

One size moves at a time, the others stay at T 50, N 16, H 256, V 10,000. Per-token medians to standard output, JSON and a plot.
Then the two ways to share out an LSTM among two threads, rows and hidden units, each forced, beside the one that is chosen.
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
Table = dict[str, dict[str, dict[str, dict[str, float]]]]  # axis, work, threads, size: microseconds per token
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


def plan_times() -> dict[str, float]:
    """Microseconds a call on two threads, by the plan that the environment forces, or the one chosen."""
    rheme.set_num_threads(2)
    found = {}
    for H in (256, 512, 650, 1024):
        for N in (1, 2, 4, 8, 12, 20, 32):
            for work, (call, _) in lstm_calls(20, N, H).items():
                found[f"{work}, T20 N{N} H{H}"] = seconds(call, 0.03) * 1e6
    return found


def plans(rounds: int = 3) -> dict[str, dict[str, float]]:
    """Of each plan, in processes that take turns: medians."""
    taken: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for plan in ("rows", "units", "chosen"):
            env = {**os.environ, "RHEME_LSTM_PLAN": plan} if plan != "chosen" else None
            done = subprocess.run(
                [sys.executable, __file__, "--plan-times"], env=env, check=True, capture_output=True, text=True
            )
            for case, value in json.loads(done.stdout).items():
                taken.setdefault(case, {}).setdefault(plan, []).append(value)
    return {case: {plan: median(values) for plan, values in of.items()} for case, of in taken.items()}


def neighbour() -> dict[str, float]:
    """Microseconds per token, quiet and beside a process that never rests: rows shared out, then hidden units."""
    return {
        f"{work}, {name}": taken
        for work, calls in (
            ("training N16 H256", lstm_calls(50, 16, 256)["LSTM, training"]),
            ("inference N1 H512", lstm_calls(50, 1, 512)["LSTM, inference"]),
        )
        for name, taken in beside_neighbour(*calls).items()
    }


def beside_neighbour(call: Callable[[], Any], tokens: int) -> dict[str, float]:
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
                found[name] = seconds(call, 1.5) / tokens * 1e6
        finally:
            if child:
                child.kill()
                child.wait()
    return found


def plot(table: Table, path: Path) -> None:
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


def print_plans(found: dict[str, dict[str, float]]) -> None:
    for case, of in found.items():
        slower = "" if of["chosen"] <= 1.1 * min(of["rows"], of["units"]) else "  <- not the faster"
        print(f"{case}: rows {of['rows']:.0f} us, units {of['units']:.0f} us, chosen {of['chosen']:.0f} us{slower}")


def sizes() -> Table:
    base = {"T": 50, "N": 16, "H": 256}
    table: Table = {}
    for axis, values in [*AXES.items(), ("V", VOCABULARIES)]:
        for value in values:
            calls = vocabulary_calls(value) if axis == "V" else lstm_calls(**{**base, axis: value})
            for work, (call, tokens) in calls.items():
                for threads in (1, 2):
                    rheme.set_num_threads(threads)
                    taken = seconds(call) / tokens * 1e6
                    table.setdefault(axis, {}).setdefault(work, {}).setdefault(str(threads), {})[str(value)] = taken
                    print(f"{axis} {value}, {work}, {threads} threads: {taken:.2f} us per token", flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scaling.json"))
    parser.add_argument("--only", default="sizes,plans,neighbour", help="parts, by comma")
    parser.add_argument("--plan-times", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan_times:
        print(json.dumps(plan_times()))
        return
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for part in arguments.only.split(","):
        found[part] = {"sizes": sizes, "plans": plans, "neighbour": neighbour}[part]()
        arguments.out.write_text(json.dumps(found, indent=1))
    if "plans" in found:
        print_plans(found["plans"])
    for name, taken in found.get("neighbour", {}).items():
        print(f"{name}: {taken:.2f} us per token")
    if "sizes" in found:
        plot(found["sizes"], arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()

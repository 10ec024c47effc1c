"""What `gpu.py` times, and the least time that a device's limits allow for it. Numbers alone: neither CuPy nor a GPU is needed.

Works and inputs are those of `works.py` where it has them, at the sizes of a GPU. A precision is not a case's: it is how one of
the ways computes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import works
from works import Case

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
HIDDEN = (64, 128, 256, 384, 512, 640, 768, 1024)


@dataclass(frozen=True)
class Limits:
    """Measured in the same run: bytes/s of a copy, read and written; floating-point operations/s of products by precision."""

    bandwidth: float
    flops: dict[str, float]


def lstm_cases(work: str) -> Iterator[Case]:
    """T 64, B 64, H 512 and what becomes of it with another of each; and the corners that the bars name."""
    sizes = [(64, 64, h, 1, 1, False) for h in HIDDEN]
    sizes += [(t, 64, 512, 1, 1, False) for t in (16, 256)]
    sizes += [(64, b, 512, 1, 1, False) for b in (1, 8, 16, 128, 256)]
    sizes += [(64, 64, h, 1, r, mixed) for h in (256, 512) for r in (1, 2) for mixed in (False, True) if r == 2 or mixed]
    sizes += [(64, 64, 512, 2, 2, mixed) for mixed in (False, True)]
    sizes += [(6, 9, 64, 2, 2, True), (5, 3, 64, 1, 1, False)]  # of --quick
    for t, b, h, layers, r, mixed in sizes:
        size = {"T": t, "B": b, "I": h, "H": h, "layers": layers, "R": r} | ({"mixed": True} if mixed else {})
        name = f"T {t} B {b} H {h} {layers} layer{'s' * (layers > 1)} {'bi' if r == 2 else 'uni'}directional"
        yield Case(work, f"{name} {f'lengths 5..{t}' if mixed else 'equal lengths'}", size, t < 16)


def sampling_cases(work: str) -> Iterator[Case]:
    for b, v in ((1, 131072), (64, 131072), (128, 131072), (512, 131072), (128, 32768), (4, 300)):
        for name, k, p in (("all", 0, 1.0), ("top-k 50", 50, 1.0), ("top-p 0.9", 0, 0.9), ("top-k 50, top-p 0.9", 50, 0.9)):
            yield Case(work, f"B {b} V {v} {name}", {"B": b, "V": v, "top_k": k, "top_p": p}, v == 300)


def kl_cases(work: str) -> Iterator[Case]:
    for n, d in ((1 << 20, 64), (65536, 128), (64, 64)):
        yield Case(work, f"({n}, {d})", {"N": n, "D": d}, n == 64)


def adamw_cases(work: str) -> Iterator[Case]:
    for n in (1 << 26, 1 << 23, 1 << 12):
        yield Case(work, f"{n} parameters", {"N": n}, n == 1 << 12)


def cross_entropy_cases(work: str) -> Iterator[Case]:
    for n, v in ((16384, 10_000), (4096, 32_000), (20, 50)):
        yield Case(work, f"N {n} V {v}", {"N": n, "V": v}, n == 20)


def linear_cross_entropy_cases(work: str) -> Iterator[Case]:
    for n, v, h in ((4096, 10_000, 512), (4096, 32_000, 512), (4096, 128_000, 512), (20, 50, 8)):
        yield Case(work, f"N {n} V {v} H {h}", {"N": n, "V": v, "H": h}, n == 20)


def train_cases(work: str) -> Iterator[Case]:
    for t, b, h in ((30, 128, 512), (50, 32, 512), (30, 128, 1024), (3, 4, 32)):
        yield Case(work, f"T {t} B {b} H {h} V {works.VOCABULARY}", {"T": t, "B": b, "H": h}, h == 32)


def decode_cases(work: str) -> Iterator[Case]:
    for b, h in ((1, 512), (32, 512), (1, 32)):
        yield Case(work, f"B {b} H {h}", {"B": b, "H": h}, h == 32)


def whole_cases(work: str) -> Iterator[Case]:
    """What is run as a user runs it; the bundled translation model one sentence at a time, a training from the command line."""
    yield Case(work, {"translation": "bundled en-fr, batch 1", "generation": "a text VAE on lines of words"}[work], {}, False)


WORKS = {
    "lstm": lstm_cases,
    "lstm_train": lstm_cases,
    "sampling": sampling_cases,
    "kl": kl_cases,
    "adamw": adamw_cases,
    "cross_entropy": cross_entropy_cases,
    "linear_cross_entropy": linear_cross_entropy_cases,
    "train_step": train_cases,
    "decode_greedy": decode_cases,
    "translation": whole_cases,
    "generation": whole_cases,
}


def cases(work: str, quick: bool = False, containing: str = "") -> list[Case]:
    """A work's cases whose names contain a text."""
    return [case for case in WORKS[work](work) if case.quick == quick and containing in case.name]


def inputs(case: Case) -> works.Arrays:
    return {} if case.work in ("adamw", "translation", "generation") else works.inputs(case)


def arithmetic(case: Case, arrays: works.Arrays, precision: str) -> tuple[float, float]:
    """Floating-point operations of the products, and bytes that device memory must give or take, once each."""
    size = 2.0 if precision in ("bf16", "fp16") else 4.0
    work = case.work
    if work.startswith("lstm"):
        train = work == "lstm_train"
        rows = float(np.sum(arrays["lengths"])) if "lengths" in arrays else float(case.T * case.B)
        widths = [case.I] + [case.H * case.R] * (case.layers - 1)
        weights = sum(case.R * 4 * case.H * (width + case.H) for width in widths)
        moved = weights + rows * sum(width + case.R * case.H for width in widths)  # each weight, each input and output
        if train:  # and their gradients, and gates and cells to the backward and back
            moved = 2 * moved + rows * len(widths) * case.R * 2 * 5 * case.H
        return 2.0 * rows * weights * (3 if train else 1), size * moved
    if work == "sampling":
        return 0.0, 4.0 * case.B * case.V
    if work == "kl":  # mu, logvar and eps read, z and kl written
        return 0.0, 20.0 * case.N * case.D
    if work == "adamw":  # p, m and v read and written, g read
        return 0.0, 28.0 * case.N
    if work == "cross_entropy":  # logits read by the forward and by the backward, which writes their gradients
        return 0.0, 12.0 * case.N * case.V
    if work == "linear_cross_entropy":
        return 6.0 * case.N * case.V * case.H, 2 * size * (case.N + case.V) * case.H
    return 0.0, 0.0


def least_seconds(case: Case, arrays: works.Arrays, precision: str, limits: Limits) -> float | None:
    """The roofline: the greater of products at their peak and bytes at the bandwidth. None: no limit is known for it."""
    peak = limits.flops.get(precision)
    if case.work in ("train_step", "decode_greedy"):
        if peak is None:
            return None
        levels = dict.fromkeys(("DRAM", "copy", "L2", "L3"), limits.bandwidth) | {"L2_bytes": 0.0, "L3_bytes": 0.0}
        seconds, _ = works.floor_seconds(case, arrays, levels | {"fma": peak, "int8": peak}, 1)
        return seconds * (works.STEPS if case.work == "decode_greedy" else 1)
    flops, moved = arithmetic(case, arrays, precision)
    if (flops and peak is None) or not moved:
        return None
    return max(flops / peak if peak else 0.0, moved / limits.bandwidth)


def table(names: list[str], containing: str = "") -> str:
    """All cases, with the arithmetic and the traffic in fp32 that none of the ways can do without."""
    lines = ["| work | case | GFLOP | MB |", "|---|---|---|---|"]
    for work in names:
        for case in cases(work, containing=containing):
            # what the traffic of mixed lengths is depends on the lengths; nothing else on the numbers
            arrays: dict[str, Any] = inputs(case) if "mixed" in case.size else {}
            flops, moved = arithmetic(case, arrays, "fp32")
            figures = [f"{figure:.4g}" if figure else "" for figure in (flops / 1e9, moved / 1e6)]
            lines.append(f"| {work} | {case.name} | {figures[0]} | {figures[1]} |")
    return "\n".join(lines)

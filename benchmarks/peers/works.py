"""The grid: what is timed, on which numbers, and how much arithmetic and memory traffic it cannot do without.

A work is a kind of job (a function of that name in each `with_*.py`), a case one size of it. Inputs are functions of the
case's name alone, so that every process makes the same ones.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, Any]

LATENT, EMBEDDING, VOCABULARY = 32, 256, 10_000
TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 0.9


@dataclass(frozen=True)
class Case:
    work: str
    name: str
    size: dict[str, Any] = field(compare=False, hash=False)
    quick: bool = False

    def __getattr__(self, name: str) -> Any:
        try:
            return self.size[name]
        except KeyError:
            raise AttributeError(name) from None

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(self.name.encode()))


LSTM_SIZES = [
    (1, 1, 256, 256),
    (1, 1, 512, 512),
    (50, 1, 256, 256),
    (50, 1, 512, 512),
    (50, 16, 256, 256),
    (35, 20, 650, 650),
    (50, 32, 512, 512),
    (100, 64, 256, 256),
    (50, 64, 512, 512),
    (30, 128, 512, 512),
    (50, 32, 1024, 1024),
]
QUICK_LSTM = {(1, 1, 256, 256), (50, 1, 256, 256), (50, 1, 512, 512), (50, 16, 256, 256), (50, 32, 512, 512)}


def lstm_cases(work: str) -> Iterator[Case]:
    for size in LSTM_SIZES:
        t, b, i, h = size
        yield Case(work, f"T{t} B{b} I{i} H{h}", {"T": t, "B": b, "I": i, "H": h, "layers": 1, "R": 1}, size in QUICK_LSTM)
    for b, h in ((1, 256), (32, 256), (32, 512)):
        size = {"T": 50, "B": b, "I": h, "H": h, "layers": 2, "R": 2}
        yield Case(work, f"T50 B{b} I{h} H{h}, 2 layers, both ways", size, (b, h) == (32, 256))


def mixed_cases(work: str) -> Iterator[Case]:
    for t, b, h in ((50, 32, 256), (50, 64, 512), (100, 64, 256)):
        size = {"T": t, "B": b, "I": h, "H": h, "layers": 1, "R": 1, "mixed": True}
        yield Case(work, f"T{t} B{b} I{h} H{h}, lengths 5..{t}", size, (t, b) == (50, 32))


def sampling_cases(work: str) -> Iterator[Case]:
    for filters in ("temperature", "top-k", "top-p", "both"):
        for b in (1, 32, 256):
            for v in (10_000, 32_000, 128_256):
                size = {"B": b, "V": v, "top_k": TOP_K if filters in ("top-k", "both") else 0}
                size["top_p"] = TOP_P if filters in ("top-p", "both") else 1.0
                yield Case(work, f"{filters} B{b} V{v}", size, b <= 32 and v == 32_000)


def cross_entropy_cases(work: str) -> Iterator[Case]:
    for n in (512, 2048):
        for v in (10_000, 32_000):
            if work == "cross_entropy":
                yield Case(work, f"N{n} V{v}", {"N": n, "V": v}, n == 512)
            else:
                for h in (256, 512):
                    yield Case(work, f"N{n} V{v} H{h}", {"N": n, "V": v, "H": h}, n == 512 and h == 256)


def kl_cases(work: str) -> Iterator[Case]:
    for n, d in ((32, 32), (256, 64), (4096, 128), (65536, 128)):
        yield Case(work, f"({n}, {d})", {"N": n, "D": d}, True)


def train_cases(work: str) -> Iterator[Case]:
    for h in (256, 512):
        for t in (35, 50):
            yield Case(work, f"T{t} B32 H{h}", {"T": t, "B": 32, "H": h}, (h, t) == (256, 35))


def decode_cases(work: str) -> Iterator[Case]:
    for h in (256, 512):
        for b in (1, 32):
            yield Case(work, f"B{b} H{h}", {"B": b, "H": h}, True)


WORKS = {
    "lstm": lstm_cases,
    "lstm_train": lstm_cases,
    "lstm_int8": lstm_cases,
    "lstm_mixed": mixed_cases,
    "lstm_mixed_train": mixed_cases,
    "sampling": sampling_cases,
    "cross_entropy": cross_entropy_cases,
    "linear_cross_entropy": cross_entropy_cases,
    "kl": kl_cases,
    "train_step": train_cases,
    "decode_greedy": decode_cases,
    "decode_sampled": decode_cases,
    "decode_greedy_int8": decode_cases,
    "decode_sampled_int8": decode_cases,
}

TITLES = {
    "lstm": "LSTM, inference",
    "lstm_train": "LSTM, forward and backward (gradients of the input and of all weights)",
    "lstm_int8": "LSTM, inference, int8 weights (peers: theirs)",
    "lstm_mixed": "LSTM, inference, rows of mixed lengths",
    "lstm_mixed_train": "LSTM, forward and backward, rows of mixed lengths",
    "sampling": "Sampling from logits",
    "cross_entropy": "Cross-entropy of given logits, forward and backward",
    "linear_cross_entropy": "Linear layer and cross-entropy, forward and backward",
    "kl": "Gaussian KL and reparametrised draw, forward and backward",
    "train_step": "A whole training step of the text VAE (AdamW, clipping)",
    "decode_greedy": "A decoder step, greedy",
    "decode_sampled": "A decoder step, sampled at temperature 0.8",
    "decode_greedy_int8": "A decoder step, greedy, int8 weights (peers: float32)",
    "decode_sampled_int8": "A decoder step, sampled at temperature 0.8, int8 weights (peers: float32)",
}

STEPS = 20  # of a decode measurement; the time of one is reported


def cases(work: str) -> list[Case]:
    return list(WORKS[work](work))


# Inputs -----------------------------------------------------------------------------------------------------------------------


def lstm_weights(rng: np.random.Generator, inputs: int, hidden: int, layers: int = 1, directions: int = 1) -> Arrays:
    """By PyTorch's names and shapes."""
    bound = hidden**-0.5
    weights = {}
    for layer in range(layers):
        for suffix in ("", "_reverse")[:directions]:
            width = inputs if layer == 0 else hidden * directions
            for name, shape in (
                ("weight_ih", (4 * hidden, width)),
                ("weight_hh", (4 * hidden, hidden)),
                ("bias_ih", (4 * hidden,)),
                ("bias_hh", (4 * hidden,)),
            ):
                weights[f"{name}_l{layer}{suffix}"] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return weights


def vae_weights(rng: np.random.Generator, hidden: int) -> Arrays:
    """By the names of `rheme.models.text_vae.TextVAE`."""

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-(hidden**-0.5), hidden**-0.5, shape).astype(np.float32)

    weights = {"embedding.weight": (rng.standard_normal((VOCABULARY, EMBEDDING)) / 16).astype(np.float32)}
    for part, width in (("encoder", EMBEDDING), ("decoder", EMBEDDING + LATENT)):
        weights |= {f"{part}.{name}": w for name, w in lstm_weights(rng, width, hidden).items()}
    for part, out, width in (
        ("posterior.mu", LATENT, hidden),
        ("posterior.logvar", LATENT, hidden),
        ("bridge", 2 * hidden, LATENT),
        ("output.projection", EMBEDDING, hidden),
    ):
        weights[f"{part}.weight"], weights[f"{part}.bias"] = uniform(out, width), uniform(out)
    weights["output.vocabulary.bias"] = np.zeros(VOCABULARY, np.float32)
    return weights


def inputs(case: Case) -> Arrays:
    rng, work = case.rng(), case.work

    def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    if work.startswith("lstm"):
        arrays: Arrays = {
            "weights": lstm_weights(rng, case.I, case.H, case.layers, case.R),
            "x": floats(case.T, case.B, case.I),
        }
        arrays["dy"] = floats(case.T, case.B, case.R * case.H)
        if "mixed" in case.size:
            arrays["lengths"] = rng.integers(5, case.T + 1, case.B)
            arrays["lengths"][0] = case.T
            for row, length in enumerate(arrays["lengths"]):
                arrays["dy"][length:, row] = 0
        return arrays
    if work == "sampling":
        return {"logits": floats(case.B, case.V, scale=3.0)}
    if work == "cross_entropy":
        return {"logits": floats(case.N, case.V), "targets": rng.integers(0, case.V, case.N)}
    if work == "linear_cross_entropy":
        scale = case.H**-0.5
        arrays = {"x": floats(case.N, case.H), "weight": floats(case.V, case.H, scale=scale), "bias": floats(case.V)}
        return arrays | {"targets": rng.integers(0, case.V, case.N)}
    if work == "kl":
        names = ("mu", "logvar", "eps", "dz", "dkl")
        return {name: floats(case.N, case.D) for name in names}
    if work == "train_step":
        ids = rng.integers(4, VOCABULARY, (case.T, case.B))
        shifted = np.concatenate([np.ones((1, case.B), np.int64), ids[:-1]])
        return {"weights": vae_weights(rng, case.H), "ids_in": shifted, "ids_out": ids, "eps": floats(case.B, LATENT)}
    return {
        "weights": vae_weights(rng, case.H),
        "ids": rng.integers(4, VOCABULARY, case.B),
        "z": floats(case.B, LATENT),
        "h": floats(1, case.B, case.H, scale=0.5),
        "c": floats(1, case.B, case.H, scale=0.5),
    }


# What cannot be done without -------------------------------------------------------------------------------------------------


def _lstm_flops(case: Case, arrays: Arrays) -> float:
    steps = float(np.sum(arrays["lengths"])) if "lengths" in arrays else case.T * case.B
    widths = [case.I] + [case.H * case.R] * (case.layers - 1)
    return sum(2.0 * steps * case.R * 4 * case.H * (width + case.H) for width in widths)


def floor_seconds(case: Case, arrays: Arrays, limits: dict[str, float], threads: int) -> tuple[float, str]:
    """The least time by the limits measured in the same run, and which of them binds.

    Multiply-adds at the FMA peak; bytes at the bandwidth of the smallest cache level that holds what is read again and again.
    """
    peak, work = limits["int8" if case.work.endswith("int8") else "fma"], case.work
    size_of = 1.0 if work.endswith("int8") else 4.0

    def level(size: float) -> str:
        """The smallest that holds this much next to everything else."""
        if size <= 0.75 * threads * limits["L2_bytes"]:
            return "L2"
        return "L3" if size <= 0.75 * limits["L3_bytes"] else "DRAM"

    if work.startswith("lstm"):
        flops = _lstm_flops(case, arrays) * (3 if work.endswith("train") else 1)
        recurrent = size_of * 4 * case.H * case.H * case.R * case.layers
        weights = size_of * sum(w.size for w in arrays["weights"].values())
        where = level(weights if case.T == 1 else recurrent / case.layers)
        bytes_read = case.T * recurrent * (2 if work.endswith("train") else 1) if case.T > 1 else weights
        candidates = [(flops / peak, "int8" if work.endswith("int8") else "FMA"), (bytes_read / limits[where], where)]
        return max(candidates)
    if work == "sampling":
        size = 4.0 * case.B * case.V
        return size / limits[level(size)], level(size)
    if work == "cross_entropy":
        size = 4.0 * case.N * case.V
        return 2 * size / limits["copy"], "copy"
    if work == "linear_cross_entropy":
        return 6.0 * case.N * case.V * case.H / peak, "FMA"
    if work == "kl":
        size = 4.0 * case.N * case.D
        where = level(7 * size)
        return 10 * size / (limits["copy"] if where == "DRAM" else limits[where]), "copy" if where == "DRAM" else where
    weights = arrays["weights"]
    parameters = sum(w.size for w in weights.values())
    matrices = sum(w.size for name, w in weights.items() if w.ndim == 2 and name != "embedding.weight")
    read = VOCABULARY * EMBEDDING + matrices
    if work == "train_step":
        return 6.0 * case.T * case.B * read / peak + 28.0 * parameters / limits["DRAM"], "FMA + AdamW"
    step = (
        read
        - weights["encoder.weight_ih_l0"].size
        - weights["encoder.weight_hh_l0"].size
        - 2 * LATENT * case.H
        - weights["bridge.weight"].size
    )
    size, unit = size_of * step, "int8" if work.endswith("int8") else "FMA"
    return max((2.0 * case.B * step / peak, unit), (size / limits[level(size)], level(size)))

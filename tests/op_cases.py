"""Arguments for every op of the core that is a plain function of its arguments, small and awkward on purpose.

`CASES[op]` yields (what is special, keywords, K): K is the length of the longest sum behind an element of the answer, and sets
the tolerance. Arrays are float64 here; `cast` makes them what a test wants. Ops that pass opaque arrays from forward to
backward (lstm, linear_cross_entropy) have tests of their own.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import reference

Case = tuple[str, dict[str, Any], int]
Cases = Callable[[np.random.Generator], Iterator[Case]]

# Around the number of lanes of every instruction set (2, 4, 8, 16), and odd.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33)
# Around the blocks of 512 in which products are summed.
LONG = (511, 512, 513, 1025)
# Rows whose largest element is infinite, or that hold nothing else.
INFINITE = np.array([[np.inf, 0, 1], [np.inf, -np.inf, 2], [0, np.inf, np.inf], [-np.inf, 3, 1], [-np.inf, -np.inf, -np.inf]])

CASES: dict[str, Cases] = {}


def cases(*names: str) -> Callable[[Callable[..., Iterator[Case]]], Callable[..., Iterator[Case]]]:
    def register(make: Callable[..., Iterator[Case]]) -> Callable[..., Iterator[Case]]:
        for name in names:
            CASES[name] = (lambda rng, name=name: make(rng, name)) if len(names) > 1 else make
        return make

    return register


def cast(value: Any, dtype: str) -> Any:
    """The floating arrays in value as dtype, contiguous."""
    if isinstance(value, dict):
        return {key: cast(item, dtype) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(cast(item, dtype) for item in value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(dtype, order="C")
    return value


def _mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """About a third hidden, and the first row (or column of a reduction) wholly."""
    mask = (rng.random(shape) > 0.3).astype(np.uint8)
    mask[:1] = 0
    return mask


# Products ---------------------------------------------------------------------------------------------------------------------


def _products() -> Iterator[tuple[int, int, int]]:
    for n in SIZES:
        yield from ((n, 5, 3), (3, n, 5), (5, 3, n))
    for k in LONG:
        yield 7, k, 19
    yield from ((0, 3, 5), (37, 300, 70))


@cases("linear")
def linear(rng: np.random.Generator) -> Iterator[Case]:
    for m, k, c in _products():
        x, weight, bias = rng.normal(size=(m, k)), rng.normal(size=(c, k)), rng.normal(size=c)
        yield f"{m} {k} {c}", {"x": x, "weight": weight, "bias": bias if m % 2 else None, "packed": None}, k


@cases("linear_backward")
def linear_backward(rng: np.random.Generator) -> Iterator[Case]:
    for m, k, c in _products():
        x, weight, dy = rng.normal(size=(m, k)), rng.normal(size=(c, k)), rng.normal(size=(m, c))
        needs = {"need_dx": k != 7, "need_dweight": k != 8, "need_dbias": k != 9}
        yield f"{m} {k} {c}", {"dy": dy, "x": x, "weight": weight, **needs}, max(m, c)
    for m in LONG:
        x, weight, dy = rng.normal(size=(m, 9)), rng.normal(size=(17, 9)), rng.normal(size=(m, 17))
        yield f"{m} 9 17", {"dy": dy, "x": x, "weight": weight, "need_dx": True, "need_dweight": True, "need_dbias": True}, m


@cases("matmul")
def matmul(rng: np.random.Generator) -> Iterator[Case]:
    for transpose_a in (False, True):
        for transpose_b in (False, True):
            for m, k, c in _products():
                a, b = (
                    rng.normal(size=(2, k, m) if transpose_a else (2, m, k)),
                    rng.normal(size=(2, c, k) if transpose_b else (2, k, c)),
                )
                yield f"{m} {k} {c}", {"a": a, "b": b, "transpose_a": transpose_a, "transpose_b": transpose_b}, k


@cases("embedding")
def embedding(rng: np.random.Generator) -> Iterator[Case]:
    for c in SIZES:
        yield f"{c}", {"ids": rng.integers(0, 6, 11), "weight": rng.normal(size=(6, c))}, 1
    yield "no ids", {"ids": np.zeros(0, np.int64), "weight": rng.normal(size=(6, 3))}, 1


@cases("embedding_backward")
def embedding_backward(rng: np.random.Generator) -> Iterator[Case]:
    for c in SIZES:
        ids = rng.integers(0, 6, 11)
        given = {"dy": rng.normal(size=(11, c)), "ids": ids, "num_embeddings": 6}
        yield f"{c}", given | {"order": None}, 11
        yield f"{c}, order known", given | {"order": np.argsort(ids, kind="stable")}, 11
    yield "no ids", {"dy": np.zeros((0, 3)), "ids": np.zeros(0, np.int64), "num_embeddings": 6, "order": None}, 1
    yield "one id", {"dy": rng.normal(size=(700, 5)), "ids": np.full(700, 2), "num_embeddings": 4, "order": None}, 700
    ids = rng.integers(0, 40_000, 900)
    order = np.argsort(ids, kind="stable")
    yield "many rows", {"dy": rng.normal(size=(900, 1)), "ids": ids, "num_embeddings": 40_000, "order": order}, 900


def _attention(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any], int]]:
    for n in SIZES:
        for t, rows, s, h, c in ((2, 3, n, 4, 5), (2, 3, 4, n, 5), (n, 3, 4, 5, n), (2, n, 3, 4, 5)):
            query, key, value = rng.normal(size=(t, rows, h)), rng.normal(size=(s, rows, h)), rng.normal(size=(s, rows, c))
            yield f"{t} {rows} {s} {h} {c}", {"query": query, "key": key, "value": value, "scale": 0.5}, max(s, h, c, t)
    query, key, value = rng.normal(size=(3, 2, 513)), rng.normal(size=(5, 2, 513)), rng.normal(size=(5, 2, 3))
    yield "long", {"query": query, "key": key, "value": value, "scale": 0.04}, 513
    yield "no rows", {"query": query[:, :0], "key": key[:, :0], "value": value[:, :0], "scale": 0.04}, 1
    yield "no steps", {"query": query[:0], "key": key, "value": value, "scale": 0.04}, 1


@cases("attention")
def attention(rng: np.random.Generator) -> Iterator[Case]:
    for label, case, k in _attention(rng):
        yield label, case | {"lengths": None}, k
        s, n = case["key"].shape[:2]
        yield label + " lengths", case | {"lengths": np.arange(n) % (s + 1)}, k


@cases("attention_backward")
def attention_backward(rng: np.random.Generator) -> Iterator[Case]:
    for label, case, k in _attention(rng):
        s, n = case["key"].shape[:2]
        lengths = np.arange(n) % (s + 1)
        context, weights = reference.attention(**case, lengths=lengths)
        grads = {"dcontext": rng.normal(size=context.shape), "dweights": rng.normal(size=weights.shape) if k % 2 else None}
        yield label, case | grads | {"weights": weights}, k


# Softmax and what stands on it ------------------------------------------------------------------------------------------------


@cases("softmax", "log_softmax")
def softmax(rng: np.random.Generator, name: str) -> Iterator[Case]:
    for c in (*SIZES, 513, 1025):
        x = rng.normal(size=(3, c)) * 3
        yield f"{c}", {"x": x, "mask": None}, c
        yield f"{c} masked", {"x": x, "mask": _mask(rng, x.shape)}, c
    x[0], x[1, ::2] = -np.inf, -np.inf
    yield "-inf", {"x": x, "mask": None}, 1025
    yield "inf", {"x": INFINITE, "mask": None}, 3
    yield "large", {"x": np.array([[1e30, 0.0, -1e30], [1000.0, 999.0, -1000.0]]), "mask": None}, 3
    yield "no rows", {"x": np.zeros((0, 5)), "mask": None}, 5


@cases("softmax_backward", "log_softmax_backward")
def softmax_backward(rng: np.random.Generator, name: str) -> Iterator[Case]:
    for _, case, c in softmax(rng, name):
        if np.all(np.abs(case["x"]) < 100):
            y = getattr(reference, name.removesuffix("_backward"))(**case)
            yield f"{c} masked {case['mask'] is not None}", {"dy": rng.normal(size=y.shape), "y": y}, c


@cases("top_k")
def top_k(rng: np.random.Generator) -> Iterator[Case]:
    for v in (*SIZES, 1000):
        x = rng.normal(size=(3, v))
        for k in sorted({1, (v + 1) // 2, v, min(v, 10)}):
            yield f"{v} {k}", {"x": x, "k": k}, 1
            yield f"{v} {k} ties", {"x": np.round(x), "k": k}, 1
    x[:, ::3] = -np.inf
    yield "-inf", {"x": x, "k": 900}, 1
    yield "no rows", {"x": np.zeros((0, 5)), "k": 2}, 1


@cases("gaussian_kl")
def gaussian_kl(rng: np.random.Generator) -> Iterator[Case]:
    for n, d in ((1, 1), (0, 3), (600, 5), *((3, d) for d in SIZES)):
        for free_bits, over in ((0.0, "sample"), (0.5, "sample"), (0.8, "batch")):
            mu, logvar, eps = rng.normal(size=(3, n, d))
            yield (
                f"{n} {d} {over} {free_bits}",
                {"mu": mu, "logvar": logvar, "eps": eps, "free_bits": free_bits, "free_bits_over": over},
                2,
            )
    near = rng.normal(size=(3, 5)) * 1e-4  # exp(v) - 1 - v cancels here
    yield "near the prior", {"mu": near, "logvar": near, "eps": near, "free_bits": 0.0, "free_bits_over": "sample"}, 2


@cases("gaussian_kl_backward")
def gaussian_kl_backward(rng: np.random.Generator) -> Iterator[Case]:
    for label, case, k in gaussian_kl(rng):
        yield label, {"dz": rng.normal(size=case["mu"].shape), "dkl": rng.normal(size=case["mu"].shape)} | case, k


# Elementwise ------------------------------------------------------------------------------------------------------------------


@cases("add", "sub", "mul", "div")
def binary(rng: np.random.Generator, name: str) -> Iterator[Case]:
    for m, c in (*((3, c) for c in SIZES), (33, 1), (0, 4), (70, 1000)):
        for shape in ((m, c), (1, c), (m, 1), (1, 1)):
            yield f"{m} {c} with {shape}", {"a": rng.normal(size=(m, c)), "b": rng.normal(size=shape) + 3}, 1


@cases("neg", "exp", "log", "tanh", "sigmoid", "relu")
def unary(rng: np.random.Generator, name: str) -> Iterator[Case]:
    for shape in (*((n,) for n in SIZES), (3, 11), (2, 3, 5), (0,), ()):
        x = np.asarray(rng.normal(size=shape))
        yield f"{shape}", {"x": np.asarray(np.exp(3 * x)) if name == "log" else np.asarray(5 * x)}, 1
    if name != "log":
        yield "far", {"x": np.array([0.0, 1e-8, -1e-8, 30.0, -30.0, 80.0, -80.0, 700.0 if name != "exp" else 80.0, -700.0])}, 1


@cases("exp_backward", "log_backward", "tanh_backward", "sigmoid_backward", "relu_backward")
def unary_backward(rng: np.random.Generator, name: str) -> Iterator[Case]:
    for shape in (*((n,) for n in SIZES), (3, 11), (2, 3, 5), (0,)):
        x, dy = rng.normal(size=shape), rng.normal(size=shape)
        if name == "log_backward":
            yield f"{shape}", {"dy": dy, "x": np.exp(x)}, 1
        else:
            yield f"{shape}", {"dy": dy, "y": getattr(reference, name.removesuffix("_backward"))(x=x)}, 1


@cases("dropout")
def dropout(rng: np.random.Generator) -> Iterator[Case]:
    for shape in (*((n,) for n in SIZES), (3, 11), (2, 3, 5), (0,), (5000,)):
        for p, period in ((0.3, 0), (0.5, 3), (0.0, 0), (0.9, 7), (1.0, 0)):
            yield (
                f"{shape} {p} {period}",
                {"x": rng.normal(size=shape), "p": p, "seed": 2**40 + 7, "stream": 2**63 + 5, "period": period},
                1,
            )


@cases("layer_norm")
def layer_norm(rng: np.random.Generator) -> Iterator[Case]:
    for c in (*SIZES, 513, 1025):
        x = rng.normal(size=(3, c)) + 2
        yield f"{c}", {"x": x, "weight": rng.normal(size=c), "bias": rng.normal(size=c), "epsilon": 1e-5}, c
    yield "no rows", {"x": np.zeros((0, 5)), "weight": np.ones(5), "bias": np.ones(5), "epsilon": 1e-5}, 5


@cases("layer_norm_backward")
def layer_norm_backward(rng: np.random.Generator) -> Iterator[Case]:
    for m, c in (*((3, c) for c in SIZES), (3, 513), (600, 5), (0, 5)):
        x, weight = rng.normal(size=(m, c)), rng.normal(size=c)
        # rstd of order 1, also where a row of one element has no variance
        _, mean, rstd = reference.layer_norm(x=x, weight=weight, bias=weight, epsilon=0.1)
        yield f"{m} {c}", {"dy": rng.normal(size=x.shape), "x": x, "weight": weight, "mean": mean, "rstd": rstd}, max(m, c)


# Reductions and optimisers ----------------------------------------------------------------------------------------------------


@cases("sum", "mean", "max", "logsumexp")
def reductions(rng: np.random.Generator, name: str) -> Iterator[Case]:
    shapes = [shape for n in SIZES for shape in ((2, n, 3), (3, 4, n), (n, 5, 1))]
    for shape in (*shapes, (2, 513, 1), (1, 1025, 17), (2, 5000, 3), (0, 4, 3), (2, 0, 3), (3, 4, 0)):
        x = rng.normal(size=shape)
        if name == "max":
            x = np.round(x)  # so that there are equal ones
        yield f"{shape}", {"x": x, "mask": None}, max(2, shape[1])
        yield f"{shape} masked", {"x": x, "mask": _mask(rng, shape)}, max(2, shape[1])
    yield "-inf", {"x": np.full((2, 3, 4), -np.inf) if name in ("max", "logsumexp") else np.zeros((2, 3, 4)), "mask": None}, 3
    if name == "logsumexp":
        yield "inf", {"x": INFINITE[..., None], "mask": None}, 3
        yield "inf in columns", {"x": INFINITE.T[None].copy(), "mask": None}, 3


@cases("global_norm")
def global_norm(rng: np.random.Generator) -> Iterator[Case]:
    yield "several", {"arrays": [rng.normal(size=shape) for shape in ((5,), (1,), (70, 33), (0,), (2, 3, 4))]}, 2400
    yield "none", {"arrays": []}, 1

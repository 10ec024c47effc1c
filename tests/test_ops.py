"""Every op of the core, on every instruction set and in both dtypes, against tests/reference.py; then its bits and borders."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import reference
from op_cases import CASES, SIZES, cast
from rheme import _core, ops
from rheme import functional as F

# One IEEE operation, or none, per element: equal to the last bit.
EXACT = {
    "embedding",
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "relu",
    "relu_backward",
    "exp_backward",
    "log_backward",
    "dropout",
    "top_k",
    "max",
}
ALL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # of the sampler: draw from all ids
FMA = [name for name in _core.available_isas() if name != "baseline"]


def flat(value: Any) -> Iterator[Any]:
    """The leaves of nested tuples and lists."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    else:
        yield value


def close(label: str, got: Any, want: Any, dtype: str, k: int, floor: float = 0.0) -> None:
    """float64 to 1e-12, float32 to 4 ceil(log2 K) eps of the natural magnitude; integers and infinities exactly.

    The natural magnitude is that of the answer's largest element, or floor, where the answer is what large terms leave over.
    """
    got, want = list(flat(got)), list(flat(want))
    assert len(got) == len(want), label
    for position, (g, w) in enumerate(zip(got, want, strict=True)):
        where = f"{label}, output {position}"
        if w is None:
            assert g is None, where
            continue
        if not isinstance(w, np.ndarray):
            g, w = np.array(g), np.array(w)
        assert g.shape == w.shape, f"{where}: {g.shape} is not {w.shape}"
        if w.dtype.kind != "f":
            np.testing.assert_array_equal(g, w, where)
            continue
        finite = np.isfinite(w)
        np.testing.assert_array_equal(g[~finite], w[~finite], where)
        scale = max(1e-30, floor, np.abs(w[finite]).max(initial=0.0))
        eps = 1e-12 if dtype == "float64" else 4 * np.ceil(np.log2(max(k, 2))) * 2.0**-23
        error = np.abs(g[finite].astype(np.float64) - w[finite]).max(initial=0.0) / scale
        assert error <= eps, f"{where}: error {error:.3g} of the natural magnitude, allowed {eps:.3g}"


def cancelled(op: str, given: dict[str, Any]) -> float:
    """The magnitude of the terms that cancel in an op's answer."""
    if op == "softmax_backward":
        return float(np.abs(given["dy"]).max(initial=0.0))
    if op == "attention_backward":  # softmax_backward within: where one key is left, nothing is
        return float(np.abs(given["dcontext"]).max(initial=0.0))
    return 0.0


@pytest.mark.parametrize("op", CASES)
def test_op_equals_reference(op: str, isa: str, dtype: str, rng: np.random.Generator) -> None:
    for what, arguments, k in CASES[op](rng):
        given = cast(arguments, dtype)
        got = getattr(_core, op)(**given)
        if op in EXACT:
            for g, w in zip(flat(got), flat(getattr(reference, op)(**given)), strict=True):
                np.testing.assert_array_equal(g, w, f"{op} {what}")
        else:
            close(f"{op} {what}", got, getattr(reference, op)(**cast(given, "float64")), dtype, k, cancelled(op, given))


@pytest.mark.parametrize("op", ["exp", "log", "tanh", "sigmoid"])
def test_relative_error_of_each_element(op: str, isa: str, rng: np.random.Generator) -> None:
    """Near 0 and in the tails too; in units of the last place, against float64. Bounds of the published polynomials."""
    x = np.concatenate([rng.uniform(-87, 88, 20000), rng.normal(size=20000), 10.0 ** rng.uniform(-30, 1, 10000)]).astype(
        np.float32
    )
    x = np.abs(x) + np.float32(1e-37) if op == "log" else x
    x = np.maximum(x, np.float32(-85)) if op == "sigmoid" else x
    want = getattr(reference, op)(x=x.astype(np.float64))
    got = getattr(_core, op)(x=x).astype(np.float64)
    ulp = np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    worst = int(ulp.argmax())
    assert ulp[worst] <= {"exp": 2.5, "log": 3, "tanh": 5, "sigmoid": 4.5}[op], f"{ulp[worst]} at {x[worst]!r}"


@pytest.mark.parametrize("op", ["exp", "log", "tanh", "sigmoid", "relu"])
def test_special_values(op: str, isa: str, dtype: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], dtype)
    if op == "log":
        x = np.array([np.inf, 0.0, np.nan, -1.0, 1.0], dtype)
    x = x[[0, 1, 3, 4]] if op == "relu" else x  # of NaN it makes NaN or 0: not said
    want = getattr(reference, op)(x=x.astype(np.float64)).astype(dtype)
    np.testing.assert_array_equal(getattr(_core, op)(x=x), want)


# LSTM and cross-entropy: what backward needs is opaque, so forward and backward go together ----------------------------


def lstm_arguments(
    rng: np.random.Generator, t: int, n: int, i: int, h: int, r: int, lengths: Any, state: bool
) -> dict[str, Any]:
    return {
        "x": rng.normal(size=(t, n, i)),
        "lengths": lengths,
        "h0": rng.normal(size=(r, n, h)) if state else None,
        "c0": rng.normal(size=(r, n, h)) if state else None,
        "w_ih": [rng.normal(size=(4 * h, i)) / np.sqrt(i) for _ in range(r)],
        "w_hh": [rng.normal(size=(4 * h, h)) / np.sqrt(h) for _ in range(r)],
        "bias": [rng.normal(size=4 * h) for _ in range(r)],
        "reverse": False,
    }


def lstm_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any], int]]:
    for n in SIZES:
        for t, rows, i, h in ((3, n, 3, 4), (3, 2, n, 3), (3, 2, 3, n), (n, 2, 3, 2)):
            r = 1 + n % 2
            lengths = np.array([(3 * row) % (t + 1) for row in range(rows)])  # 0 and 1 among them, in no order
            arguments = lstm_arguments(rng, t, rows, i, h, r, lengths if n % 3 else None, n % 4 != 0)
            yield f"{t} {rows} {i} {h} {r}", arguments, i + h + t
            if r == 1:
                yield f"{t} {rows} {i} {h} reverse", arguments | {"reverse": True}, i + h + t
    yield "all empty", lstm_arguments(rng, 3, 4, 3, 5, 2, np.zeros(4, np.int64), True), 8
    yield "no rows", lstm_arguments(rng, 3, 0, 3, 5, 2, np.zeros(0, np.int64), True), 8
    yield "no steps", lstm_arguments(rng, 0, 3, 3, 5, 2, None, True), 8
    yield "long", lstm_arguments(rng, 5, 7, 520, 19, 2, np.array([5, 0, 1, 4, 2, 5, 3]), False), 600
    yield "wide", lstm_arguments(rng, 4, 9, 40, 130, 1, None, False), 300


def run_lstm(core: Any, given: dict[str, Any], grads: dict[str, Any], pack: bool, need_dx: bool) -> tuple[Any, Any]:
    packed = core.pack_lstm(w_ih=given["w_ih"], w_hh=given["w_hh"]) if pack else None
    *forward, gates, cells = core.lstm(**given, packed=packed, save=True)
    kept = {name: value for name, value in given.items() if name != "bias"}
    return forward, core.lstm_backward(**kept, **grads, y=forward[0], gates=gates, cells=cells, need_dx=need_dx)


def test_lstm_equals_reference(isa: str, dtype: str, rng: np.random.Generator) -> None:
    for number, (what, arguments, k) in enumerate(lstm_cases(rng)):
        given = cast(arguments, dtype)
        (t, n, _), r, h = given["x"].shape, len(given["w_ih"]), given["w_hh"][0].shape[1]
        grads = {
            "dy": rng.normal(size=(t, n, r * h)),
            "dh_n": rng.normal(size=(r, n, h)) if number % 2 else None,
            "dc_n": rng.normal(size=(r, n, h)) if number % 3 else None,
        }
        grads = cast(grads, dtype)
        pack, need_dx = number % 2 == 0, number % 5 != 0
        forward, backward = run_lstm(_core, given, grads, pack, need_dx)
        wide = cast({**given, **grads}, "float64")
        want, want_back = run_lstm(
            reference, {name: wide[name] for name in given}, {name: wide[name] for name in grads}, pack, need_dx
        )
        close(f"lstm {what}", forward, want, dtype, k)
        close(f"lstm_backward {what}", backward, want_back, dtype, k * 8)
        plain = _core.lstm(**given, packed=None, save=False)
        assert plain[3] is None
        assert plain[4] is None
        for a, b in zip(plain[:3], forward, strict=True):
            np.testing.assert_array_equal(a, b, f"lstm {what}: packed and saved, or not")


def cross_entropy_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any], int]]:
    for n in SIZES:
        for m, v, k in ((n, 11, 3), (3, n, 5), (3, 11, n)):
            yield f"{m} {v} {k}", {"m": m, "v": v, "k": k}, max(m, v, k)
    for m, v, k in ((3, 1025, 7), (3, 50, 513), (150, 70, 5), (0, 5, 3)):
        yield f"{m} {v} {k}", {"m": m, "v": v, "k": k}, max(m, v, k)


def run_cross_entropy(core: Any, given: dict[str, Any], dloss: Any) -> tuple[Any, Any]:
    loss, lse, logits = core.linear_cross_entropy(**given, save=True)
    return (loss, lse), core.linear_cross_entropy_backward(**given, dloss=dloss, lse=lse, logits=logits)


def test_linear_cross_entropy_equals_reference(isa: str, dtype: str, rng: np.random.Generator) -> None:
    for number, (what, sizes, k) in enumerate(cross_entropy_cases(rng)):
        m, v, width = sizes["m"], sizes["v"], sizes["k"]
        targets = rng.integers(0, v, m)
        targets[1::4] = -7
        given = {
            "x": rng.normal(size=(m, width)),
            "weight": rng.normal(size=(v, width)),
            "bias": rng.normal(size=v) if number % 2 else None,
            "targets": targets,
            "ignore_index": -7,
            "label_smoothing": (0.0, 0.1)[number % 3 != 0],
        }
        given, dloss = cast(given, dtype), cast(rng.normal(size=m), dtype)
        forward, backward = run_cross_entropy(_core, given, dloss)
        want, want_back = run_cross_entropy(reference, cast(given, "float64"), cast(dloss, "float64"))
        used = targets != -7  # the lse of an ignored row is nobody's business
        close(f"loss {what}", [forward[0], forward[1][used]], [want[0], want[1][used]], dtype, k)
        close(f"backward {what}", backward, want_back, dtype, k)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_optimisers_equal_reference(decay: float, isa: str, dtype: str, rng: np.random.Generator) -> None:
    for n in (*SIZES, 1000):
        param, grad, m, v = cast(list(rng.normal(size=(4, n))), dtype)
        common = {"learning_rate": 0.01, "weight_decay": decay, "grad_scale": 0.5}
        adam = {"m": m, "v": np.abs(v), "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-8, "step": 3}
        for op, rest, names in (
            ("adamw", adam, ("m", "v")),
            ("sgd", {"momentum_buffer": m, "momentum": 0.9}, ("momentum_buffer",)),
            ("sgd", {"momentum_buffer": None, "momentum": 0.0}, ()),
        ):
            ours = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in rest.items()}
            theirs = cast({**rest}, "float64")
            theirs = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in theirs.items()}
            p, q = param.copy(), param.astype(np.float64)
            getattr(_core, op)(param=p, grad=grad, **ours, **common)
            getattr(reference, op)(param=q, grad=grad.astype(np.float64), **theirs, **common)
            close(f"{op} {n}", [p, *(ours[name] for name in names)], [q, *(theirs[name] for name in names)], dtype, 2)


# Bits -------------------------------------------------------------------------------------------------------------------------


def big_cases(rng: np.random.Generator, dtype: str) -> Iterator[tuple[str, Any]]:
    """Large enough to be shared out among threads."""

    def lstm(n: int, i: int, lengths: Any) -> Any:
        given = cast(lstm_arguments(np.random.default_rng(n), 6, n, i, 40, 2, lengths, True), dtype)
        t = 6
        grads = cast({"dy": np.ones((t, n, 2 * given["w_hh"][0].shape[1])), "dh_n": None, "dc_n": None}, dtype)
        return run_lstm(_core, given, grads, False, True)

    yield "lstm", lambda: lstm(29, 70, np.arange(29) * 5 % 7)
    yield "lstm 1 row", lambda: lstm(1, 70, None)
    sizes = {"x": rng.normal(size=(150, 40)), "weight": rng.normal(size=(1200, 40)), "bias": rng.normal(size=1200)}
    given = cast(sizes | {"targets": rng.integers(0, 1200, 150), "ignore_index": -1, "label_smoothing": 0.1}, dtype)
    yield "linear_cross_entropy", lambda: run_cross_entropy(_core, given, cast(np.linspace(0, 1, 150), dtype))
    products = cast({"x": rng.normal(size=(130, 1025)), "weight": rng.normal(size=(70, 1025))}, dtype)
    yield "linear", lambda: _core.linear(**products, bias=None, packed=None)
    packed = _core.pack_linear(weight=products["weight"])
    yield "linear packed", lambda: _core.linear(**products, bias=None, packed=packed)
    dy = cast(rng.normal(size=(130, 70)), dtype)
    yield "linear_backward", lambda: _core.linear_backward(dy=dy, **products, need_dx=True, need_dweight=True, need_dbias=True)
    x = cast(rng.normal(size=(300, 700)), dtype)
    for op in ("softmax", "log_softmax"):
        yield op, lambda op=op: getattr(_core, op)(x=x, mask=None)
    for op in ("exp", "log", "tanh", "sigmoid"):
        yield op, lambda op=op: getattr(_core, op)(x=np.abs(x))
    for op in ("sum", "mean", "max", "logsumexp"):
        yield (
            op,
            lambda op=op: [getattr(_core, op)(x=x.reshape(shape), mask=None) for shape in ((1, 210000, 1), (2, 1000, 105))],
        )
    yield "layer_norm", lambda: _core.layer_norm(x=x, weight=x[0], bias=x[1], epsilon=1e-5)
    yield "add", lambda: _core.add(a=x, b=np.ascontiguousarray(x[:, :1]))
    yield "embedding_backward", lambda: ops.embedding_backward(x, np.arange(300) ** 2 % 50, 50)
    yield "dropout", lambda: _core.dropout(x=x, p=0.3, seed=3, stream=5, period=0)
    yield "global_norm", lambda: _core.global_norm(arrays=[x, x[0]])
    yield "random_normal", lambda: _core.random_normal(seed=3, stream=5, position=0, shape=(70001,), dtype=dtype)
    for op, make in CASES.items():
        cases = [cast(arguments, dtype) for _, arguments, _ in list(make(rng))[::3]]
        yield f"{op}, small", lambda op=op, cases=cases: [getattr(_core, op)(**given) for given in cases]


def bits(value: Any) -> list[bytes]:
    return [np.asarray(item).tobytes() for item in flat(value) if item is not None]


def test_same_bits_for_any_number_of_threads(isa: str, dtype: str, rng: np.random.Generator, restored: None) -> None:
    for what, run in big_cases(rng, dtype):
        seen = {}
        for threads in (1, 2, 3, 7):
            _core.set_num_threads(n=threads)
            seen[threads] = bits(run())
        assert all(value == seen[1] for value in seen.values()), what


def test_same_bits_on_every_instruction_set_with_fma(dtype: str, rng: np.random.Generator, restored: None) -> None:
    for what, run in big_cases(rng, dtype):
        seen = {}
        for name in FMA:
            _core.set_isa(name=name)
            seen[name] = bits(run())
        assert all(value == seen[FMA[0]] for value in seen.values()), what


@pytest.mark.parametrize("rows", [2, 7, 33])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(rows: int, isa: str, dtype: str, rng: np.random.Generator) -> None:
    def each(op: str, whole: Any, alone: Any) -> None:
        for n in range(rows):
            for a, b in zip(whole(n), alone(n), strict=True):
                np.testing.assert_array_equal(a, b, f"{op}, row {n}")

    x, weight, bias = cast([rng.normal(size=(rows, 70)), rng.normal(size=(50, 70)), rng.normal(size=50)], dtype)
    for packed in (None, _core.pack_linear(weight=weight)):
        y = _core.linear(x=x, weight=weight, bias=bias, packed=packed)
        each(
            "linear", lambda n, y=y: [y[n]], lambda n: [_core.linear(x=x[n : n + 1], weight=weight, bias=bias, packed=None)[0]]
        )

    given = {"weight": weight, "bias": bias, "ignore_index": -1, "label_smoothing": 0.1}
    targets, dloss = rng.integers(0, 50, rows), cast(rng.normal(size=rows), dtype)

    def cross_entropy(part: slice) -> list[Any]:
        forward, backward = run_cross_entropy(_core, given | {"x": x[part], "targets": targets[part]}, dloss[part])
        return [*forward, backward[0]]

    whole = cross_entropy(slice(None))
    each("linear_cross_entropy", lambda n: [a[n] for a in whole], lambda n: [a[0] for a in cross_entropy(slice(n, n + 1))])
    for op in ("softmax", "log_softmax"):
        y = getattr(_core, op)(x=x, mask=None)
        each(op, lambda n, y=y: [y[n]], lambda n, op=op: [getattr(_core, op)(x=x[n : n + 1], mask=None)[0]])

    query, key, value = cast([rng.normal(size=(t, rows, 19)) for t in (3, 9, 9)], dtype)
    lengths = np.arange(rows) % 10
    context, weights = _core.attention(query=query, key=key, value=value, lengths=lengths, scale=0.3)

    def attention(n: int) -> list[Any]:
        # the keys cut at the row's length: what padding there is must not show either
        q, k, v = (np.ascontiguousarray(a[:, n : n + 1]) for a in (query, key[: lengths[n]], value[: lengths[n]]))
        c, w = _core.attention(query=q, key=k, value=v, lengths=None, scale=0.3)
        return [c[:, 0], w[0]]

    each("attention", lambda n: [context[:, n], weights[n, :, : lengths[n]]], attention)

    given = cast(lstm_arguments(rng, 9, rows, 19, 21, 2, lengths, True), dtype)
    grads = cast({"dy": rng.normal(size=(9, rows, 42)), "dh_n": rng.normal(size=(2, rows, 21)), "dc_n": None}, dtype)
    forward, backward = run_lstm(_core, given, grads, False, True)

    def lstm(n: int) -> list[Any]:
        t = lengths[n]
        part = {name: np.ascontiguousarray(given[name][:, n : n + 1]) for name in ("h0", "c0")}
        x = np.ascontiguousarray(given["x"][:t, n : n + 1])
        some = {"dy": np.ascontiguousarray(grads["dy"][:t, n : n + 1]), "dc_n": None}
        some["dh_n"] = np.ascontiguousarray(grads["dh_n"][:, n : n + 1])
        (y, h, c), (dx, dh0, dc0, *_) = run_lstm(_core, given | part | {"x": x, "lengths": None}, some, True, True)
        return [y[:, 0], h[:, 0], c[:, 0], dx[:, 0], dh0[:, 0], dc0[:, 0]]

    def in_batch(n: int) -> list[Any]:
        t, (y, h, c), (dx, dh0, dc0, *_) = lengths[n], forward, backward
        return [y[:t, n], h[:, n], c[:, n], dx[:t, n], dh0[:, n], dc0[:, n]]

    each("lstm", in_batch, lstm)


# The border -------------------------------------------------------------------------------------------------------------------


def refused(op: str, given: dict[str, Any], name: str | None) -> bool:
    """Whether the call is refused, with the name of the argument (None: of any array)."""
    names = [name] if name else [key for key, value in given.items() if isinstance(value, np.ndarray | list)]
    message = None
    try:
        getattr(_core, op)(**given)
    except (ValueError, TypeError) as error:
        message = str(error)
    assert message is None or any(key in message for key in names), f"{op}: {message} names none of {names}"
    return message is not None


def array_arguments(given: dict[str, Any]) -> list[str]:
    return [name for name, value in given.items() if isinstance(value, np.ndarray)]


def border_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    for op, make in CASES.items():
        for _, given, _ in make(rng):
            given = cast(given, "float32")
            if op != "global_norm" and all(min(given[name].shape) > 1 for name in array_arguments(given)):
                yield op, given
                break
    yield (
        "lstm",
        cast(lstm_arguments(rng, 3, 4, 5, 6, 2, np.array([1, 2, 3, 0]), True) | {"packed": None, "save": False}, "float32"),
    )
    logits = rng.normal(size=(3, 7)).astype(np.float32)
    yield "sample", {"logits": logits, "bits": np.arange(3, dtype=np.uint64), **ALL}
    yield (
        "linear_cross_entropy",
        {
            "x": logits,
            "weight": logits.copy(),
            "bias": logits[:, 0].copy(),
            "targets": np.arange(3),
            "ignore_index": -1,
            "label_smoothing": 0.0,
            "save": False,
        },
    )
    yield (
        "sgd",
        dict.fromkeys(("param", "grad", "momentum_buffer"), logits)
        | {
            "learning_rate": 0.1,
            "momentum": 0.5,
            "weight_decay": 0.0,
            "grad_scale": 1.0,
        },
    )


def test_the_border_refuses_a_wrong_dtype_layout_and_shape(rng: np.random.Generator) -> None:
    seen = set()
    for op, given in border_cases(rng):
        seen.add(op)
        names = array_arguments(given)
        for name in names:
            array = given[name]
            for wrong in (np.complex64, np.float16, np.int32):
                assert refused(op, given | {name: array.astype(wrong)}, name), f"{op} takes {name} as {wrong.__name__}"
            if array.dtype.kind == "f" and len([n for n in names if given[n].dtype.kind == "f"]) > 1:
                assert refused(op, given | {name: array.astype(np.float64)}, None), f"{op} takes one of two dtypes"
            strided = np.repeat(array, 2, axis=-1)[..., ::2]
            assert refused(op, given | {name: strided}, name), f"{op} takes a strided {name}"
            assert refused(op, given | {name: array.astype(array.dtype.newbyteorder())}, name)
            if op not in ("dropout", "neg", "exp", "log", "tanh", "sigmoid", "relu", "sgd") and not op.endswith("_backward"):
                assert refused(op, given | {name: array[None]}, name), f"{op} takes {name} with one axis more"
        for name in names if len(names) > 1 and op != "embedding" else []:
            doubled = [np.concatenate([given[name], given[name]], axis=axis) for axis in range(given[name].ndim)]
            refusals = [refused(op, given | {name: array}, None) for array in doubled]
            assert any(refusals), f"{op} takes any shape for {name}"
    assert seen >= CASES.keys() - {"global_norm"}


def test_the_border_refuses_wrong_numbers(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4)).astype(np.float32)
    bits = np.zeros(3, np.uint64)
    with pytest.raises(IndexError, match="ids"):
        _core.embedding(ids=np.array([0, 3]), weight=x)
    with pytest.raises(IndexError, match="ids"):
        _core.embedding(ids=np.array([-1]), weight=x)
    for order in ([0, 1, 2], [2, 1, 0], [1, 1, 0], [1, 2, 3], [1, 2, -1]):
        with pytest.raises(ValueError, match="wanted a stable order of ids"):
            ops.embedding_backward(x, np.array([5, 2, 2]), 9, np.array(order))
    with pytest.raises(IndexError, match="targets"):
        ops.linear_cross_entropy(x, x, None, [0, 1, 3])
    for name, value in (("temperature", -1.0), ("top_p", -0.1), ("min_p", 1.5), ("top_k", -1), ("temperature", float("nan"))):
        with pytest.raises(ValueError, match=name):
            _core.sample(logits=x, bits=bits, **(ALL | {name: value}))
    with pytest.raises(ValueError, match="k"):
        _core.top_k(x=x, k=5)
    with pytest.raises(ValueError, match="free_bits_over"):
        _core.gaussian_kl(mu=x, logvar=x, eps=x, free_bits=0.0, free_bits_over="row")
    with pytest.raises(ValueError, match="lengths"):
        _core.attention(query=x[None], key=x[None], value=x[None], lengths=np.array([0, 2, 1]), scale=1.0)
    for wrong in ([0, 4], [-1, 0]):
        given = cast(lstm_arguments(rng, 3, 2, 5, 6, 1, np.array(wrong), False), "float32")
        with pytest.raises(ValueError, match="lengths"):
            _core.lstm(**given, packed=None, save=False)
    with pytest.raises(ValueError, match="p"):
        _core.dropout(x=x, p=1.5, seed=0, stream=0, period=0)
    other = _core.pack_linear(weight=np.ones((7, 9), np.float32))
    with pytest.raises(ValueError, match="packed"):
        _core.linear(x=x, weight=x, bias=None, packed=other)
    with pytest.raises(ValueError, match="sse9"):
        _core.set_isa(name="sse9")
    with pytest.raises(ValueError, match="n"):
        _core.set_num_threads(n=0)


# The layer above: rheme.ops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4,)),
        ((4,), (3, 4)),
        ((2, 3, 4), (3, 1)),
        ((2, 3, 4), (2, 1, 1)),
        ((2, 1, 4), (1, 3, 1)),
        ((2, 3, 4), (2, 1, 4)),
        ((), (2, 3)),
        ((2, 3), ()),
        ((0, 3), (1, 3)),
        ((1, 1), (5,)),
        ((5, 1), (1,)),
    ],
    ids=str,
)
def test_binary_ops_broadcast_as_numpy_does(a: tuple[int, ...], b: tuple[int, ...], rng: np.random.Generator) -> None:
    x, y = np.asarray(rng.normal(size=a)), np.asarray(rng.normal(size=b) + 3)
    for op, numpy in ((ops.add, np.add), (ops.sub, np.subtract), (ops.mul, np.multiply), (ops.div, np.divide)):
        np.testing.assert_array_equal(op(x, y), numpy(x, y))
        np.testing.assert_array_equal(op(y, x), numpy(y, x))
        np.testing.assert_array_equal(op(2.5, y), numpy(2.5, y))
        np.testing.assert_array_equal(op(y, 2), numpy(y, 2))
    dy = rng.normal(size=np.broadcast_shapes(a, b))
    for grad, shape in zip(ops.add_backward(dy, a, b), (a, b), strict=True):
        assert grad.shape == shape
        np.testing.assert_allclose(grad.sum(), dy.sum(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("axis", [None, 0, 1, -1, np.int64(1), (0, 1), (0, 2), (2, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions_take_any_axes(axis: Any, keepdims: bool, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4, 5))
    mask = rng.random((4, 1)) > 0.4
    mask[0] = True
    hidden = np.where(mask, x, np.nan)
    np.testing.assert_allclose(ops.sum(x, axis, keepdims), x.sum(axis, keepdims=keepdims), rtol=1e-12)
    np.testing.assert_allclose(ops.mean(x, axis, keepdims), x.mean(axis, keepdims=keepdims), rtol=1e-12)
    np.testing.assert_array_equal(ops.max(x, axis, keepdims)[0], x.max(axis, keepdims=keepdims))
    np.testing.assert_allclose(
        ops.logsumexp(x, axis, keepdims), np.log(np.exp(x).sum(axis, keepdims=keepdims)), rtol=1e-12, atol=1e-14
    )
    if axis is None or 1 in np.atleast_1d(axis):
        np.testing.assert_allclose(ops.mean(x, axis, keepdims, mask), np.nanmean(hidden, axis, keepdims=keepdims), rtol=1e-12)
        np.testing.assert_array_equal(ops.max(x, axis, keepdims, mask)[0], np.nanmax(hidden, axis, keepdims=keepdims))


def test_leading_axes_are_kept(rng: np.random.Generator) -> None:
    x, weight = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4))
    assert ops.linear(x, weight).shape == (2, 3, 5)
    assert ops.linear(x[0, 0], weight).shape == (5,)
    assert ops.softmax(x, mask=[True, False, True, True]).shape == (2, 3, 4)
    assert ops.top_k(x, 2)[1].shape == (2, 3, 2)
    assert ops.embedding([[1, 0], [4, 4]], weight).shape == (2, 2, 4)
    assert ops.linear_cross_entropy(x, weight, None, [[0, 1, 4], [-1, 0, 0]]).shape == (2, 3)
    assert ops.matmul(x, weight, transpose_b=True).shape == (2, 3, 5)
    assert ops.layer_norm(x, np.ones(4), np.zeros(4))[0].shape == x.shape
    np.testing.assert_array_equal(ops.linear(x.transpose(1, 0, 2), weight), ops.linear(x, weight).transpose(1, 0, 2))


def test_shape_ops(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(ops.concat([x, x[:, :2]], 1), np.concatenate([x, x[:, :2]], 1))
    np.testing.assert_array_equal(ops.transpose(x, (2, 0, 1)), x.transpose(2, 0, 1))
    np.testing.assert_array_equal(ops.reshape(x, (5, -1)), x.reshape(5, -1))
    np.testing.assert_array_equal(ops.slice(x, (Ellipsis, slice(1, None, 2))), x[..., 1::2])
    assert all(a.flags.c_contiguous for a in (ops.transpose(x), ops.slice(x, (slice(None), 1))))
    with pytest.raises(ValueError, match="concat"):
        ops.concat([x, x[:2]], 1)
    for axis in (3, 5, -4):
        with pytest.raises(ValueError, match=f"axis: {axis} is not an axis"):
            ops.concat([x, x], axis)
        with pytest.raises(ValueError, match=f"axis: {axis} is not an axis"):
            F.concat([x, x], axis)
        with pytest.raises(ValueError, match=f"axis: {axis} is not an axis"):
            ops.concat_backward(x, [3], axis)
        with pytest.raises(ValueError, match=f"axis: {axis} is not an axis"):
            F.transpose(x, (0, axis, 1))
    with pytest.raises(ValueError, match=r"axis: 0 is not an axis of an array of shape \(\)"):
        F.concat([np.float32(1), np.float32(2)])
    with pytest.raises(ValueError, match="axes"):
        F.transpose(x, (0, 1))


def test_ops_say_what_is_wrong() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match="list"):
        ops.linear([[1.0]], x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ids: expected integers"):
        ops.embedding(np.ones(2), x)
    with pytest.raises(ValueError, match="do not broadcast"):
        ops.add(x, np.zeros((4,), np.float32))
    with pytest.raises(ValueError, match="mask"):
        ops.softmax(x, mask=np.ones((2, 4), bool))
    with pytest.raises(ValueError, match="axis"):
        ops.sum(x, 2)
    with pytest.raises(ValueError, match="targets"):
        ops.linear_cross_entropy(x, x, None, [1])
    rows, folded = np.zeros((6, 3), np.float32), np.zeros((2, 3, 3), np.float32)
    for others, name in (((rows, folded), "logvar"), ((folded, rows), "eps")):
        with pytest.raises(ValueError, match=rf"^{name}: expected shape \(2, 3, 3\), that of mu, got \(6, 3\)$"):
            ops.gaussian_kl(folded, *others)
    for draw in (ops.random_uniform, ops.random_normal):
        with pytest.raises(ValueError, match=r"^stream: -1, wanted 0\.\.2\*\*64-1$"):
            draw(0, -1, 0, (3,))
    with pytest.raises(ValueError, match=r"^seed: -1, wanted"):
        ops.dropout(x, 0.5, -1, 0)
    with pytest.raises(ValueError, match=r"^position: 18446744073709551616, wanted"):
        ops.random_bits(0, 0, 2**64, 3)
    objects = np.array([[{}, {}], [{}, {}]], object)
    for copy in (lambda: ops.asarray(objects.T), lambda: ops.contiguous(objects.T), lambda: ops.concat([objects, objects])):
        with pytest.raises(TypeError, match=r"dtype object, wanted numbers$"):
            copy()


def test_arena_arrays_outlive_their_call_and_are_aligned(dtype: str) -> None:
    arrays = [ops.empty((n,), dtype) for n in (1, 7, 1000, 100000)]
    for value, array in enumerate(arrays):
        array[...] = value
    assert all((array == value).all() for value, array in enumerate(arrays))
    assert all(array.ctypes.data % 64 == 0 for array in arrays) or _core.isa() == "reference"
    assert not ops.zeros((1000,), dtype).any()

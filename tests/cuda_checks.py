"""What holds for `rheme._cuda` on any device: test_cuda.py runs it on the emulated one, test_gpu.py on a GPU."""

from collections.abc import Iterator
from typing import Any

import numpy as np

import reference
from cuda_device import down, up
from op_cases import CASES, INFINITE, cast
from rheme import _core, _cuda
from test_ops import EXACT, cancelled, close, cross_entropy_cases, flat, lstm_arguments, lstm_cases, run_cross_entropy, run_lstm


class Device:
    """`_cuda` behind the core's border: NumPy arrays in and out, opaque ones as they are."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(_cuda, name)
        return lambda **given: down(function(**up(given)))


DEVICE = Device()


def op_equals_reference(op: str, dtype: str, rng: np.random.Generator) -> None:
    for what, arguments, k in CASES[op](rng):
        given = cast(arguments, dtype)
        got = getattr(DEVICE, op)(**given)
        if op in EXACT:
            for g, w in zip(flat(got), flat(getattr(reference, op)(**given)), strict=True):
                np.testing.assert_array_equal(g, w, f"{op} {what}")
        else:
            close(f"{op} {what}", got, getattr(reference, op)(**cast(given, "float64")), dtype, k, cancelled(op, given))


# What is one formula to an element, or a fixed count of them, has the CPU's bits on every device.
SAME_BITS = (
    "exp log tanh sigmoid neg relu add sub mul div exp_backward log_backward tanh_backward sigmoid_backward relu_backward "
    "dropout gaussian_kl gaussian_kl_backward embedding embedding_backward top_k max"
).split()


def op_has_the_bits_of_the_cpu(op: str, rng: np.random.Generator) -> None:
    for what, arguments, _ in CASES[op](rng):
        given = cast(arguments, "float32")
        if given.get("free_bits_over") == "batch":
            continue  # the mean that decides is summed in another order
        for g, w in zip(flat(getattr(DEVICE, op)(**given)), flat(getattr(_core, op)(**given)), strict=True):
            np.testing.assert_array_equal(g, w, f"{op} {what}")


def lstm_equals_reference(dtype: str, rng: np.random.Generator) -> None:
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
        forward, backward = map(down, run_lstm(_cuda, up(given), up(grads), pack, need_dx))
        wide = cast({**given, **grads}, "float64")
        want, want_back = run_lstm(
            reference, {name: wide[name] for name in given}, {name: wide[name] for name in grads}, pack, need_dx
        )
        close(f"lstm {what}", forward, want, dtype, k)
        close(f"lstm_backward {what}", backward, want_back, dtype, k * 8)
        plain = _cuda.lstm(**up(given), packed=None, save=False)
        assert plain[3] is None
        assert plain[4] is None
        for a, b in zip(down(plain[:3]), forward, strict=True):
            np.testing.assert_array_equal(a, b, f"lstm {what}: packed and saved, or not")


def lstm_does_not_see_the_padding(rng: np.random.Generator) -> None:
    lengths = np.array([3, 0, 5, 1])
    given = cast(lstm_arguments(rng, 5, 4, 6, 7, 2, lengths, True), "float32")
    grads = cast({"dy": rng.normal(size=(5, 4, 14)), "dh_n": None, "dc_n": None}, "float32")
    clean = map(down, run_lstm(_cuda, up(given), up(grads), True, True))
    dirty = given | {"x": given["x"].copy()}
    dirty["x"][np.arange(5)[:, None] >= lengths] = np.nan
    for a, b in zip(flat(list(clean)), flat(list(map(down, run_lstm(_cuda, up(dirty), up(grads), True, True)))), strict=True):
        np.testing.assert_array_equal(a, b)


def cross_entropy_equals_reference(dtype: str, rng: np.random.Generator) -> None:
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
        forward, backward = map(down, run_cross_entropy(_cuda, up(given), up(dloss)))
        want, want_back = run_cross_entropy(reference, cast(given, "float64"), cast(dloss, "float64"))
        used = targets != -7
        close(f"loss {what}", [forward[0], forward[1][used]], [want[0], want[1][used]], dtype, k)
        close(f"backward {what}", backward, want_back, dtype, k)
        logits = cast(rng.normal(size=(m, v)), dtype)
        rest = {"targets": targets, "ignore_index": -7, "label_smoothing": given["label_smoothing"]}
        loss, saved = _cuda.cross_entropy(logits=up(logits), **up(rest), save=True)
        back = _cuda.cross_entropy_backward(dloss=up(dloss), logits=up(logits), saved=saved, **up(rest))
        wide = rest | {"logits": cast(logits, "float64")}
        want, want_saved = reference.cross_entropy(**wide, save=True)
        want_back = reference.cross_entropy_backward(**wide, dloss=cast(dloss, "float64"), saved=want_saved)
        close(f"loss of logits {what}", [down(loss)], [want], dtype, k)
        close(f"dlogits {what}", [down(back)], [want_back], dtype, k)
    given = {"logits": INFINITE[:4], "targets": np.array([1, 2, 0, 1]), "ignore_index": -1, "label_smoothing": 0.0}
    loss, saved = _cuda.cross_entropy(**up(cast(given, dtype)), save=True)
    close("infinite logits", [down(loss), down(saved)], reference.cross_entropy(**given, save=True), dtype, 3)


def optimisers_equal_the_cpu(rng: np.random.Generator) -> None:
    for n in (1, 7, 1000):
        for decay in (0.0, 0.1):
            param, grad, m, v = cast(list(rng.normal(size=(4, n))), "float32")
            common = {"learning_rate": 0.01, "weight_decay": decay, "grad_scale": 0.5}
            adam = {"m": m, "v": np.abs(v), "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-8, "step": 3}
            for op, rest in (
                ("adamw", adam),
                ("sgd", {"momentum_buffer": m, "momentum": 0.9}),
                ("sgd", {"momentum_buffer": None, "momentum": 0.0}),
            ):
                ours = {"param": param.copy()} | {k: x.copy() if isinstance(x, np.ndarray) else x for k, x in rest.items()}
                there = up(ours)
                getattr(_core, op)(grad=grad, **ours, **common)
                getattr(_cuda, op)(grad=up(grad), **there, **common)
                for name, value in ours.items():
                    if isinstance(value, np.ndarray):
                        np.testing.assert_array_equal(down(there[name]), value, f"{op} {n} {name}")


def random_numbers_equal_the_cpu() -> None:
    seed, stream = 2**64 - 3, 2**63 + 5
    assert _cuda.philox(counter=[1, 2, 3, 4], key=[5, 6]) == _core.philox(counter=[1, 2, 3, 4], key=[5, 6])
    for n in (0, 1, 2, 3, 5, 8, 1001):
        given = {"seed": seed, "stream": stream, "position": 2**40 + 1}
        np.testing.assert_array_equal(down(_cuda.random_bits(**given, n=n)), _core.random_bits(**given, n=n))
        for dtype in ("float32", "float64"):
            for op in ("random_uniform", "random_normal"):
                got = down(getattr(_cuda, op)(**given, shape=(n,), dtype=dtype))
                want = getattr(_core, op)(**given, shape=(n,), dtype=dtype)
                if dtype == "float32" or op == "random_uniform":
                    np.testing.assert_array_equal(got, want)
                else:  # sin, cos and log of another library
                    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)


def sampling_cases(
    rng: np.random.Generator, sizes: tuple[int, ...] = (1, 2, 31, 33, 300, 5000)
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    every = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    options = (
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 5},
        {"top_k": 1},
        {"top_p": 0.9},
        {"top_p": 0.0},
        {"min_p": 0.1},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.8, "min_p": 0.01},
        {"top_k": 3, "top_p": 0.999999},
    )
    for v in sizes:
        logits = rng.normal(size=(4, v)) * 3
        logits[1] = np.round(logits[1])  # ties
        logits[2, ::3] = -np.inf
        for chosen in options:
            yield f"{v} {chosen}", logits, every | chosen
    strange = np.zeros((6, 40))
    strange[1] = -np.inf
    strange[2] = np.nan
    strange[3, ::2] = np.nan
    strange[4, 7] = np.inf
    strange[5, ::2] = -0.0
    for chosen in options:
        yield f"strange {chosen}", strange, every | chosen


def sampler_draws_what_the_cpu_draws(
    dtype: str, rng: np.random.Generator, rows: int = 6, sizes: tuple[int, ...] = (1, 2, 31, 33, 300, 5000)
) -> None:
    """rows: at most so many of the rows of each case, taking turns."""
    for number, (what, logits, options) in enumerate(sampling_cases(rng, sizes)):
        logits = cast(np.roll(logits, number, axis=0)[:rows], dtype)
        for bits in (
            rng.integers(0, 2**64, len(logits), np.uint64),
            np.zeros(len(logits), np.uint64),
            np.full(len(logits), 2**64 - 1, np.uint64),
        ):
            got, want = DEVICE.sample(logits=logits, bits=bits, **options), _core.sample(logits=logits, bits=bits, **options)
            np.testing.assert_array_equal(got, want, f"sample {what} {dtype}")


def bf16(x: np.ndarray) -> np.ndarray:
    """x rounded to bfloat16, to the nearest, even among equals."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(x.dtype)


def lstm_in_bf16(given: dict[str, Any], grads: dict[str, Any]) -> list[np.ndarray]:
    """y, h_n, c_n, dh0, dc0 of `lstm_persistent.cu` in float64 but for what it rounds: weights, h and dgates in products."""
    x, lengths = given["x"], given["lengths"]
    (T, N, _), R, H = x.shape, len(given["w_ih"]), given["w_hh"][0].shape[1]
    lengths = np.full(N, T) if lengths is None else lengths
    y, last = np.zeros((T, N, R * H)), {name: np.zeros((R, N, H)) for name in ("h", "c", "dh", "dc")}
    for r in range(R):
        w_ih, w_hh, bias = given["w_ih"][r], bf16(given["w_hh"][r]), given["bias"][r]
        h, c = (np.zeros((N, H)) if given[name] is None else given[name][r] for name in ("h0", "c0"))
        order = range(T)[::-1] if r == 1 or given["reverse"] else range(T)
        saved = []
        for t in order:
            live = (t < lengths)[:, None]
            i, f, g, o = np.split(x[t] @ w_ih.T + bias + bf16(h) @ w_hh.T, 4, axis=1)
            i, f, g, o = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), np.tanh(g), 1 / (1 + np.exp(-o))
            new = f * c + i * g
            saved.append((t, live, i, f, g, o, c, new))
            c, h = np.where(live, new, c), np.where(live, o * np.tanh(new), h)
            y[t, :, r * H : (r + 1) * H] = np.where(live, h, 0)
        last["h"][r], last["c"][r] = h, c
        dh, dc = grads["dh_n"][r], grads["dc_n"][r]
        for t, live, i, f, g, o, before, after in saved[::-1]:
            total, tanh = grads["dy"][t, :, r * H : (r + 1) * H] + dh, np.tanh(after)
            cell = dc + total * o * (1 - tanh**2)
            gates = np.concatenate(
                [cell * g * i * (1 - i), cell * before * f * (1 - f), cell * i * (1 - g**2), total * tanh * o * (1 - o)], 1
            )
            gates = np.where(live, gates, 0)
            dc = np.where(live, cell * f, dc)
            dh = np.where(live, 0, dh) + bf16(gates) @ w_hh
        last["dh"][r], last["dc"][r] = dh, dc
    return [y, *last.values()]


def persistent_cases(hidden: int, rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for t, n, r, reverse, lengths, state in (
        (5, 11, 2, False, True, True),
        (3, 8, 1, True, True, False),
        (1, 1, 1, False, False, True),
        (4, 9, 1, False, False, False),
    ):
        size = rng.integers(0, t + 1, n) if lengths else None
        given = cast(lstm_arguments(rng, t, n, 6, hidden, r, size, state), "float32") | {"reverse": reverse}
        grads = {name: rng.normal(size=(r, n, hidden)) for name in ("dh_n", "dc_n")}
        yield given, cast(grads | {"dy": rng.normal(size=(t, n, r * hidden))}, "float32")


def persistent_lstm_is_the_rounded_one(hidden: int, rng: np.random.Generator, half: float = 1e-6) -> None:
    """RHEME_CUDA_LSTM=bf16. half: what half of the errors are below.

    In the first step nothing has been rounded but what is given: it is equal. From the second a state that was rounded the
    other way, near a tie, is 2^-9 off, and reaches all its row; the more the larger the model and the error of its sums.
    """
    for given, grads in persistent_cases(hidden, rng):
        (y, h, c), (_, dh, dc, *_) = map(down, run_lstm(_cuda, up(given), up(grads), True, True))
        wanted = lstm_in_bf16(cast(given, "float64"), cast(grads, "float64"))
        for name, got, want in zip(("y", "h", "c", "dh", "dc"), (y, h, c, dh, dc), wanted, strict=True):
            error = np.abs(got - want) / max(1e-3, np.abs(want).max(initial=0))
            first = len(y) == 1 and name in ("y", "h", "c")
            assert error.max(initial=0) < (1e-5 if first else 5e-3), f"{name} is off by {error.max():.2g}"
            assert np.median(error) < half, f"half of the errors of {name} are above {np.median(error):.2g}"
    empty = cast(lstm_arguments(rng, 3, 0, 6, hidden, 1, None, True), "float32")
    assert _cuda.lstm(**up(empty), packed=None, save=False)[0].shape == (3, 0, hidden)


def persistent_lstm_equals_reference(hidden: int, rng: np.random.Generator) -> None:
    """RHEME_CUDA_LSTM=fp32, to the bounds of the plain version."""
    for given, grads in persistent_cases(hidden, rng):
        forward, backward = map(down, run_lstm(_cuda, up(given), up(grads), True, True))
        want, want_back = run_lstm(reference, cast(given, "float64"), cast(grads, "float64"), True, True)
        close(f"lstm {hidden}", forward, want, "float32", hidden + 6)
        close(f"lstm_backward {hidden}", backward, want_back, "float32", 8 * hidden)


def quantized_has_the_bits_of_the_cpu(rng: np.random.Generator) -> None:
    """int8 sums are exact; of float16 the widening is, its products are cuBLAS'."""
    for m, k, c in ((1, 1, 4), (3, 7, 8), (5, 33, 36), (40, 130, 44), (0, 5, 4)):
        x = rng.normal(size=(m, k)).astype(np.float32)
        x[:1] = 0
        bias, scale = rng.normal(size=(2, c)).astype(np.float32)
        whole, half = rng.integers(-127, 128, (c, k)).astype(np.int8), rng.normal(size=(c, k)).astype(np.float16)
        ids = rng.integers(0, c, 9)
        for weight, factor in ((whole, scale), (half, None)):
            ours, theirs = (core.pack_quantized(weight=w, scale=f, gates=False) for core, w, f in both(weight, factor))
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            np.testing.assert_array_equal(down(_cuda.unpack_quantized(weight=ours)), _core.unpack_quantized(weight=theirs))
            got = down(_cuda.quantized_embedding(ids=up(ids), weight=ours))
            np.testing.assert_array_equal(got, _core.quantized_embedding(ids=ids, weight=theirs))
            for b in (None, bias):
                got = down(_cuda.quantized_linear(x=up(x), weight=ours, bias=up(b)))
                want = _core.quantized_linear(x=x, weight=theirs, bias=b)
                if factor is None:
                    close("quantized_linear", got, want.astype(np.float64), "float32", max(k, 2))
                else:
                    np.testing.assert_array_equal(got, want)
    every = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(256, 256)
    ours, theirs = (core.pack_quantized(weight=w, scale=None, gates=False) for core, w, _ in both(every, None))
    np.testing.assert_array_equal(down(_cuda.unpack_quantized(weight=ours)), _core.unpack_quantized(weight=theirs))


def both(weight: np.ndarray, scale: np.ndarray | None) -> Iterator[tuple[Any, Any, Any]]:
    yield _cuda, up(weight), up(scale)
    yield _core, weight, scale


def quantized_lstm_has_the_bits_of_the_cpu(rng: np.random.Generator) -> None:
    for t, n, i, h, r, reverse in (
        (4, 3, 5, 6, 1, False),
        (5, 4, 9, 7, 2, False),
        (3, 2, 4, 4, 1, True),
        (1, 1, 3, 2, 1, False),
    ):
        given = {"x": rng.normal(size=(t, n, i)), "bias": [rng.normal(size=4 * h) for _ in range(r)]}
        given = cast(given, "float32") | {"lengths": np.arange(n) % (t + 1), "reverse": reverse}
        state = cast({"h0": rng.normal(size=(r, n, h)), "c0": rng.normal(size=(r, n, h))}, "float32")
        for kind in (np.int8, np.float16):
            for start in ({"h0": None, "c0": None}, state):
                packed: dict[Any, dict[str, list[Any]]] = {_cuda: {"w_ih": [], "w_hh": []}, _core: {"w_ih": [], "w_hh": []}}
                for name, k in (("w_ih", i), ("w_hh", h)):
                    for _ in range(r):
                        weight = rng.integers(-99, 99, (4 * h, k)).astype(kind)
                        scale = (rng.random(4 * h) / 500).astype(np.float32)
                        for core, w, s in both(weight if kind is np.int8 else weight / np.float16(300), scale):
                            s = s if kind is np.int8 else None
                            packed[core][name].append(core.pack_quantized(weight=w, scale=s, gates=True))
                got = down(_cuda.quantized_lstm(**up(given | start), **packed[_cuda]))
                want = _core.quantized_lstm(**given, **start, **packed[_core])
                for a, b in zip(got, want, strict=True):
                    if kind is np.int8:
                        np.testing.assert_array_equal(a, b)
                    else:
                        close("quantized_lstm", a, b.astype(np.float64), "float32", 2 * h)


def every_result(rng: np.random.Generator) -> Iterator[tuple[str, list[bytes]]]:
    """Bits of one run of everything, to compare with another run's."""
    for op, make in CASES.items():
        for what, arguments, _ in list(make(rng))[::9]:
            result = getattr(DEVICE, op)(**cast(arguments, "float32"))
            yield f"{op} {what}", [np.asarray(item).tobytes() for item in flat(result) if item is not None]
    for what, arguments, _ in list(lstm_cases(rng))[::5]:
        given = cast(arguments, "float32")
        (t, n, _), r, h = given["x"].shape, len(given["w_ih"]), given["w_hh"][0].shape[1]
        grads = cast({"dy": rng.normal(size=(t, n, r * h)), "dh_n": None, "dc_n": None}, "float32")
        result = map(down, run_lstm(_cuda, up(given), up(grads), True, True))
        yield f"lstm {what}", [np.asarray(item).tobytes() for item in flat(list(result)) if item is not None]
    for what, logits, options in list(sampling_cases(rng))[::7]:
        bits = np.arange(len(logits), dtype=np.uint64) << np.uint64(61)
        yield f"sample {what}", [DEVICE.sample(logits=cast(logits, "float32"), bits=bits, **options).tobytes()]

"""Weights stored as int8 or float16: the ops that compute on them, and models that are loaded so."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import reference
from op_cases import SIZES, cast
from rheme import _core, nn, ops, quantization, storage
from rheme.errors import InputError
from test_ops import close, lstm_cases

KINDS = ("int8", "float16")


def stored(weight: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A weight as `storage.compress` leaves it."""
    made = storage.compress({"w": weight.astype(np.float32)}, kind)
    return made["w"], made.get("w.scale")


def packed(core: Any, weight: np.ndarray, kind: str, gates: bool = False) -> Any:
    array, scale = stored(weight, kind)
    return core.pack_quantized(weight=array, scale=scale, gates=gates)


def linear_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any], int]]:
    for n in (*SIZES, 63, 64, 65, 130):
        for m, k, c in ((n, 5, 3), (3, n, 5), (5, 3, n)):
            yield f"{m} {k} {c}", {"x": rng.normal(size=(m, k)), "weight": rng.normal(size=(c, k)), "bias": None}, k
    for k in (511, 512, 513, 1025):
        bias = rng.normal(size=19)
        yield f"7 {k} 19", {"x": rng.normal(size=(7, k)), "weight": rng.normal(size=(19, k)), "bias": bias}, k
    yield "no rows", {"x": np.zeros((0, 3)), "weight": rng.normal(size=(5, 3)), "bias": rng.normal(size=5)}, 3
    x = rng.normal(size=(200, 40)) * 10.0 ** rng.integers(-20, 20, size=(200, 1))
    x[3], x[5, 7] = 0, 1e-35
    yield "rows of all magnitudes", {"x": x, "weight": rng.normal(size=(300, 40)), "bias": None}, 40


@pytest.mark.parametrize("kind", KINDS)
def test_linear_equals_reference(kind: str, int8_isa: str, rng: np.random.Generator) -> None:
    for what, given, k in linear_cases(rng):
        given = cast(given, "float32")
        weight = given.pop("weight")
        got = _core.quantized_linear(**given, weight=packed(_core, weight, kind))
        want = reference.quantized_linear(**cast(given, "float64"), weight=packed(reference, weight, kind))
        for row in range(len(got)):  # each by its own magnitude
            close(f"{what}, row {row}", got[row], want[row], "float32", k)


def near_tie(y: np.ndarray) -> bool:
    """Whether an h stands where a unit in its last place decides to which int8 it is rounded."""
    return bool(np.abs(np.abs(np.modf(y.astype(np.float64) * 127)[0]) - 0.5).min(initial=1.0) < 3e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_lstm_equals_reference(kind: str, int8_isa: str, rng: np.random.Generator) -> None:
    exempt = total = 0
    for what, given, k in lstm_cases(rng):
        given = cast(given, "float32")
        weights = {name: given.pop(name) for name in ("w_ih", "w_hh")}
        if total % 2 and given["h0"] is not None:
            given["h0"] = np.tanh(given["h0"])  # as a state of an LSTM is; the others pass 1
        small, plain = (
            {name: [packed(core, w, kind, True) for w in arrays] for name, arrays in weights.items()}
            for core in (_core, reference)
        )
        want = reference.quantized_lstm(**cast(given, "float64"), **plain)
        total += 1
        if kind == "int8" and near_tie(want[0]):
            exempt += 1
            continue
        close(f"quantized_lstm {what}", _core.quantized_lstm(**given, **small), want, "float32", k)
    assert exempt < total / 10


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_float16_has_the_bits_of_float32(threads: int, isa: str, rng: np.random.Generator, restored: None) -> None:
    _core.set_num_threads(n=threads)
    for _, given, _ in linear_cases(rng):
        given = cast(given, "float32")
        half = given["weight"].astype(np.float16)
        given["weight"] = half.astype(np.float32)
        want = _core.linear(**given, packed=None)
        got = _core.quantized_linear(**given | {"weight": _core.pack_quantized(weight=half, scale=None, gates=False)})
        np.testing.assert_array_equal(got, want)
    for _, given, _ in lstm_cases(rng):
        given = cast(given, "float32")
        half = {name: [w.astype(np.float16) for w in given[name]] for name in ("w_ih", "w_hh")}
        wide = {name: [w.astype(np.float32) for w in weights] for name, weights in half.items()}
        small = {n: [_core.pack_quantized(weight=w, scale=None, gates=True) for w in ws] for n, ws in half.items()}
        want = _core.lstm(**given | wide, packed=None, save=False)[:3]
        for a, b in zip(_core.quantized_lstm(**given | small), want, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_and_unpacking_are_exact(kind: str, int8_isa: str, rng: np.random.Generator) -> None:
    for c, k in [(c, k) for c in (1, 4, 63, 64, 65, 128) for k in (1, 3, 4, 5, 16, 17, 31)]:
        array, scale = stored(rng.normal(size=(c, k)), kind)
        want = storage.expand({"w": array} if scale is None else {"w": array, "w.scale": scale})["w"]
        plain = _core.pack_quantized(weight=array, scale=scale, gates=False)
        np.testing.assert_array_equal(_core.unpack_quantized(weight=plain), want)
        ids = rng.integers(0, c, 70)
        np.testing.assert_array_equal(_core.quantized_embedding(ids=ids, weight=plain), want[ids])
        if c % 4 == 0:
            gates = _core.pack_quantized(weight=array, scale=scale, gates=True)
            np.testing.assert_array_equal(_core.unpack_quantized(weight=gates), want)
        assert (plain.shape, plain.dtype) == ((c, k), kind)


@pytest.mark.skipif("avx2" not in _core.available_isas(), reason="this CPU has no AVX2")
def test_embedding_keeps_the_shape_of_its_ids() -> None:
    weight = ops.pack_quantized(np.arange(12, dtype=np.float16).reshape(4, 3))
    for ids in (2, np.int64(2), [2, 0], [[1], [3]], np.array([1, 2], np.uint8), []):
        got = ops.quantized_embedding(ids, weight)
        np.testing.assert_array_equal(got, np.arange(12.0).reshape(4, 3)[np.asarray(ids, int)])


def test_wide_float16(rng: np.random.Generator) -> None:
    """Only int8 has a limit: that of its sums."""
    weight, x = rng.normal(size=(2, 70_000)).astype(np.float16), rng.normal(size=(3, 70_000)).astype(np.float32)
    got = ops.quantized_linear(x, ops.pack_quantized(weight))
    np.testing.assert_array_equal(got, ops.linear(x, weight.astype(np.float32)))


def test_every_half_is_widened_alike(restored: None) -> None:
    """All 65,536 of them: by instruction, and by hand where there is none."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    weight = _core.pack_quantized(weight=every, scale=None, gates=False)
    with np.errstate(invalid="ignore"):
        want = every.astype(np.float32)
    for isa in _core.available_isas():
        _core.set_isa(name=isa)
        np.testing.assert_array_equal(_core.unpack_quantized(weight=weight), want, isa)


def quantized_answers(rng: np.random.Generator, batch: int, order: np.ndarray | None = None) -> list[np.ndarray]:
    """A linear layer and both kinds of LSTM on `batch` rows, which may be reordered."""
    steps, hidden = (40, 384) if batch == 1 else (5, 240)  # enough for one row to be shared out among threads
    x = rng.normal(size=(steps, batch, 96)).astype(np.float32)
    lengths = rng.integers(0, steps + 1, batch)
    lengths[0] = steps
    linear, bias = rng.normal(size=(9000, 96)), rng.normal(size=9000).astype(np.float32)
    shapes = ((4 * hidden, 96), (4 * hidden, hidden))
    w_ih, w_hh = ([rng.normal(size=shape) / 8 for _ in range(2)] for shape in shapes)
    gates = [rng.normal(size=4 * hidden).astype(np.float32) for _ in range(2)]
    order = np.arange(batch) if order is None else order
    x, lengths = np.ascontiguousarray(x[:, order]), lengths[order]
    answers = []
    for kind in KINDS:
        answers.append(_core.quantized_linear(x=x[0], weight=packed(_core, linear, kind), bias=bias)[None])
        small = {n: [packed(_core, w, kind, True) for w in ws] for n, ws in (("w_ih", w_ih), ("w_hh", w_hh))}
        state = {"lengths": lengths, "h0": None, "c0": None, "reverse": False}
        answers += _core.quantized_lstm(x=x, **small, bias=gates, **state)
        one = {"w_ih": small["w_ih"][:1], "w_hh": small["w_hh"][:1], "bias": gates[:1]}
        answers += _core.quantized_lstm(x=x, **one, **state | {"reverse": True})
    return answers


@pytest.mark.parametrize("batch", [1, 2, 7, 40])
def test_same_bits_on_every_instruction_set_and_thread_count(batch: int, restored: None) -> None:
    want = None
    for isa in _core.available_isas():
        if isa == "baseline":
            continue
        for threads in (1, 2, 3, 7):
            _core.set_isa(name=isa)
            _core.set_num_threads(n=threads)
            got = quantized_answers(np.random.default_rng(5), batch)
            want = want or got
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b, f"{isa}, {threads} threads")


def test_same_bits_in_any_company(int8_isa: str, restored: None) -> None:
    want = quantized_answers(np.random.default_rng(6), 33)
    orders = [np.random.default_rng(0).permutation(33), *(np.array([row]) for row in (0, 13, 32))]
    for order in orders:
        got = quantized_answers(np.random.default_rng(6), 33, order)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b[:, order])


def test_a_sequence_is_its_steps(int8_isa: str, rng: np.random.Generator) -> None:
    """Decoding goes step by step: h comes back as float32 and is rounded as it was inside."""
    x = rng.normal(size=(6, 3, 20)).astype(np.float32)
    weights = {"w_ih": [packed(_core, rng.normal(size=(4 * 33, 20)), "int8", True)]}
    weights["w_hh"] = [packed(_core, rng.normal(size=(4 * 33, 33)), "int8", True)]
    rest = {"lengths": None, "bias": [rng.normal(size=4 * 33).astype(np.float32)], "reverse": False}
    y, *_ = _core.quantized_lstm(x=x, h0=None, c0=None, **weights, **rest)
    h = c = None
    for t in range(6):
        out, h, c = _core.quantized_lstm(x=x[t : t + 1], h0=h, c0=c, **weights, **rest)
        np.testing.assert_array_equal(out[0], y[t])


def test_what_is_no_number_shows(int8_isa: str, rng: np.random.Generator) -> None:
    weight = packed(_core, rng.normal(size=(70, 20)), "int8")
    x = rng.normal(size=(4, 20)).astype(np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = x.copy()
        spoilt[2, 7] = bad
        got = _core.quantized_linear(x=spoilt, weight=weight, bias=None)
        assert np.isnan(got[2]).all()
        np.testing.assert_array_equal(got[[0, 1, 3]], _core.quantized_linear(x=x, weight=weight, bias=None)[[0, 1, 3]])


def test_the_extremes_of_int8_sum_exactly(int8_isa: str) -> None:
    """The longest rows, all at the ends of the range: products of pairs pass int16, sums of them come near int32's end."""
    for k in (1024, 65535):
        weight = np.full((64, k), -127, np.int8)
        weight[1], weight[2, ::2] = 127, 127
        small = _core.pack_quantized(weight=weight, scale=np.ones(64, np.float32), gates=False)
        x = np.ones((1, k), np.float32)
        x[:, ::3] = -1
        got = _core.quantized_linear(x=x, weight=small, bias=None)
        sums = (127 * x.astype(np.int64)) @ weight.T.astype(np.int64)
        want = sums.astype(np.float32) * (np.float32(1) / np.float32(127))
        np.testing.assert_allclose(got, want, rtol=2e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.ones((4, 3), np.float32)}, "weight: dtype float32, wanted int8 or float16"),
        ({"weight": np.ones((4, 3), np.int8), "scale": None}, "scale: an int8 weight needs one"),
        ({"weight": np.ones((4, 3), np.float16)}, "scale: only int8 weights have one"),
        ({"weight": np.ones((4, 3), ">f2"), "scale": None}, "weight: dtype >f2, wanted int8 or float16"),
        ({"scale": np.ones(3, np.float32)}, r"scale: shape \(3,\), wanted \(4,\)"),
        ({"weight": np.ones((6, 3), np.int8), "scale": np.ones(6, np.float32), "gates": True}, "four of each gate"),
        ({"weight": np.ones((1, 65536), np.int8), "scale": np.ones(1, np.float32)}, "at most 65535"),
    ],
)
def test_packing_refuses(change: dict[str, Any], message: str) -> None:
    given = {"weight": np.ones((4, 3), np.int8), "scale": np.ones(4, np.float32), "gates": False} | change
    with pytest.raises(ValueError, match=message):
        _core.pack_quantized(**given)


def test_ops_refuse_what_does_not_fit() -> None:
    plain = _core.pack_quantized(weight=np.ones((8, 3), np.float16), scale=None, gates=False)
    gates = _core.pack_quantized(weight=np.ones((8, 3), np.float16), scale=None, gates=True)
    with pytest.raises(ValueError, match=r"x: shape \(2, 4\), wanted \(any, 3\)"):
        ops.quantized_linear(np.ones((2, 4), np.float32), plain)
    with pytest.raises(ValueError, match="weight: packed for an LSTM"):
        ops.quantized_linear(np.ones((2, 3), np.float32), gates)
    with pytest.raises(IndexError, match="ids: 8 at position 1"):
        ops.quantized_embedding([0, 8], plain)
    with pytest.raises(TypeError, match="ids: expected integers"):
        ops.quantized_embedding([1.7], plain)
    with pytest.raises(ValueError, match="not packed for an LSTM"):
        ops.quantized_lstm(np.ones((1, 1, 3), np.float32), [plain], [plain], [np.ones(8, np.float32)])
    with pytest.raises(ValueError, match=r"w_ih: shape \(8, 3\), wanted \(12, 3\)"):
        ops.quantized_lstm(np.ones((1, 1, 3), np.float32), [gates], [gates], [np.ones(8, np.float32)])


# Models -----------------------------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """Tied embedding and output, a stacked bidirectional LSTM, and a parameter that has no kernel for small weights."""

    def __init__(self) -> None:
        self.embedding = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, bidirectional=True)
        self.middle = nn.Linear(48, 16)
        self.output = nn.Linear(16, 50)
        self.output.weight = self.embedding.weight
        self.extra = nn.Parameter(np.ones((2, 16), np.float32) / 3)

    def forward(self, ids: np.ndarray, lengths: Any = None) -> Any:
        y, _ = self.lstm(self.embedding(ids), lengths=lengths)
        return self.output(self.middle(y) * self.extra[:1])


@pytest.fixture
def tagger() -> Tagger:
    with nn.init_scope(3):
        return Tagger().eval()


def loaded(state: dict[str, Any], dtype: str, precision: str) -> Tagger:
    with nn.uninitialized():
        module = Tagger().eval()
    quantization.load(module, storage.compress(state, dtype), precision)
    return module


@pytest.mark.parametrize("dtype", storage.DTYPES)
@pytest.mark.parametrize("precision", storage.DTYPES)
def test_a_model_at_each_precision(tagger: Tagger, dtype: str, precision: str) -> None:
    ids, lengths = np.random.default_rng(1).integers(0, 50, (7, 5)), np.array([7, 0, 3, 5, 6])
    state = tagger.state_dict()
    small = loaded(state, dtype, precision)
    want = tagger(ids, lengths).data
    error = np.abs(small(ids, lengths).data - want).max() / np.abs(want).max()
    rounds = "int8" in (dtype, precision)
    assert error < (0.05 if rounds else 1e-3 if "float16" in (dtype, precision) else 1e-9)
    assert small.num_parameters() == tagger.num_parameters()
    assert [p.requires_grad for p in small.parameters()] == [precision == "float32"] * len(state)
    for (name, parameter), array in zip(small.named_parameters(), state.values(), strict=True):
        assert (parameter.shape, parameter.ndim, parameter.dtype) == (array.shape, array.ndim, np.float32), name
        bound = np.abs(array).max() * (0.0045 if rounds else 5e-4)
        assert np.abs(parameter.data - array).max(initial=0.0) <= bound, name
        assert (parameter.packed is not None) == (precision != "float32" and array.ndim == 2 and name != "extra"), name


def test_stored_weights_are_not_rounded_again(tagger: Tagger) -> None:
    kept = storage.compress(tagger.state_dict(), "int8")
    small = Tagger()
    quantization.load(small, kept, "int8")
    want = storage.expand(kept)
    for name, parameter in small.named_parameters():
        np.testing.assert_array_equal(parameter.data, want[name], name)


def test_small_weights_stay_small() -> None:
    for precision, share in (("float16", 2), ("int8", 4)):
        for module in (nn.LSTM(256, 320), nn.Linear(256, 8000)):
            quantization.load(module, storage.compress(module.state_dict(), precision), precision)
            small = [parameter for parameter in module.parameters() if parameter.packed is not None]
            size = sum(parameter.size for parameter in small)
            assert sum(parameter.packed.nbytes for parameter in small) < 1.06 * 4 * size / share


def test_tied_weights_stay_tied(tagger: Tagger) -> None:
    small = loaded(tagger.state_dict(), "int8", "int8")
    assert small.output.weight is small.embedding.weight


def test_setting_data_makes_float32_again(tagger: Tagger) -> None:
    """As moving to a GPU, or loading other weights, does."""
    small = loaded(tagger.state_dict(), "int8", "int8")
    small.to("cpu")
    assert all(parameter.packed is None for parameter in small.parameters())
    small = loaded(tagger.state_dict(), "int8", "int8")
    small.load_state_dict(tagger.state_dict())
    ids = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(small(ids).data, tagger(ids).data)


def test_a_gradient_through_small_weights_is_that_of_their_values(tagger: Tagger) -> None:
    """What asks for a gradient of its input gets one, through the same weights in float32."""
    small, wide = loaded(tagger.state_dict(), "int8", "int8"), loaded(tagger.state_dict(), "int8", "float32")
    grads = []
    for module in (small, wide):
        x = nn.Parameter(np.linspace(-1, 1, 96, dtype=np.float32).reshape(2, 3, 16))
        y, _ = module.lstm(x)
        module.middle(y).sum().backward()
        grads.append(x.grad)
    np.testing.assert_array_equal(*grads)


def test_loading_refuses(tagger: Tagger) -> None:
    state = tagger.state_dict()
    with pytest.raises(InputError, match="precision 'int4': one of float32, float16, int8"):
        loaded(state, "int8", "int4")
    kept = storage.compress(state, "int8")
    del kept["middle.weight.scale"], kept["extra"]
    with pytest.raises(InputError, match="extra is missing"):
        quantization.load(Tagger(), kept, "int8")
    kept["extra"] = np.ones((3, 16), np.float16)
    with pytest.raises(InputError, match=r"extra has shape \(3, 16\), not \(2, 16\)"):
        quantization.load(Tagger(), kept, "int8")
    kept["extra"] = np.ones((2, 16), np.float16)
    with pytest.raises(InputError, match=r"the int8 weight 'middle.weight' has no float32 scale"):
        quantization.load(Tagger(), kept, "int8")

"""The tape, and the backward of every functional op against central differences in float64."""

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rheme import functional as F
from rheme import nn, ops, optim
from rheme.autograd import Tensor, gradcheck, no_grad, record
from rheme.errors import InputError, RhemeError

LENGTHS = np.array([4, 0, 1, 3])
IDS = np.array([[0, 2, 2], [4, 0, 2]])
MASK = np.arange(12).reshape(3, 4) % 3 != 0

# op -> (function of tensors, shapes of its inputs)
CHECKS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "add": (lambda a, b: (a + b, 2 + a, a + 2.5), [(2, 3, 4), (3, 1)]),
    "sub": (lambda a, b: (a - b, 2 - a, a - 2.5), [(2, 1, 4), (3, 1)]),
    "mul": (lambda a, b: (a * b, 2 * a, a * a), [(3, 4), (4,)]),
    "div": (lambda a, b: (a / (b * b + 1), 2 / (b * b + 1), a / 2), [(4,), (3, 4)]),
    "neg": (lambda a: -a, [(3, 4)]),
    "exp": (F.exp, [(3, 4)]),
    "log": (lambda a: F.log(a * a + 1), [(3, 4)]),
    "tanh": (F.tanh, [(3, 4)]),
    "sigmoid": (F.sigmoid, [(3, 4)]),
    "relu": (F.relu, [(3, 4)]),
    "dropout": (lambda a: (F.dropout(a, 0.4, 7, 3), F.dropout(a, 0.4, 7, 3, period=4)), [(3, 4)]),
    "sum": (lambda a: (a.sum(), a.sum(1), a.sum((0, 2), keepdims=True), F.sum(a, 1, mask=MASK[:, :, None])), [(3, 4, 2)]),
    "mean": (lambda a: (a.mean(), a.mean(-1), F.mean(a, (0, 1), mask=MASK[:, :, None])), [(3, 4, 2)]),
    "max": (lambda a: (a.max(), a.max(1, keepdims=True), a.max((0, 2)), F.max(a, 1, mask=MASK[:, :, None])), [(3, 4, 2)]),
    "logsumexp": (lambda a: (F.logsumexp(a), F.logsumexp(a, 1), F.logsumexp(a, (0, 2)), F.logsumexp(a, 0)), [(3, 4, 2)]),
    "logsumexp_masked": (lambda a: F.logsumexp(a, 1, mask=MASK), [(3, 4)]),
    "softmax": (lambda a: (F.softmax(a), F.softmax(a, MASK)), [(2, 3, 4)]),
    "log_softmax": (lambda a: F.log_softmax(a), [(2, 3, 4)]),
    "linear": (F.linear, [(2, 3, 4), (5, 4), (5,)]),
    "linear_no_bias": (F.linear, [(4,), (5, 4)]),
    "matmul": (lambda a, b: F.matmul(a, b), [(2, 3, 4), (2, 4, 5)]),
    "matmul_ta": (lambda a, b: F.matmul(a, b, transpose_a=True), [(2, 4, 3), (4, 5)]),
    "matmul_tb": (lambda a, b: F.matmul(a, b, transpose_b=True), [(3, 4), (2, 5, 4)]),
    "matmul_tatb": (lambda a, b: F.matmul(a, b, True, True), [(2, 4, 3), (2, 5, 4)]),
    "embedding": (lambda w: F.embedding(IDS, w), [(5, 3)]),
    "attention": (lambda q, k, v: F.attention(q, k, v, LENGTHS, 0.7), [(3, 4, 5), (4, 4, 5), (4, 4, 2)]),
    "attention_context": (lambda q, k, v: F.attention(q, k, v)[0], [(3, 4, 5), (4, 4, 5), (4, 4, 2)]),
    "attention_weights": (lambda q, k, v: F.attention(q, k, v)[1], [(3, 4, 5), (4, 4, 5), (4, 4, 2)]),
    "cross_entropy": (lambda a: F.cross_entropy(a, [[0, 6], [-1, 3]]), [(2, 2, 7)]),
    "cross_entropy_smooth": (lambda a: F.cross_entropy(a, [0, 9, 6], 9, label_smoothing=0.2), [(3, 7)]),
    "linear_cross_entropy": (lambda x, w, b: F.linear_cross_entropy(x, w, b, [[0, 6], [-1, 3]]), [(2, 2, 3), (7, 3), (7,)]),
    "linear_cross_entropy_smooth": (
        lambda x, w: F.linear_cross_entropy(x, w, None, [0, 9, 6], 9, label_smoothing=0.2),
        [(3, 4), (7, 4)],
    ),
    "gaussian_kl": (lambda m, v: F.gaussian_kl(m, v, np.linspace(-1, 1, 12).reshape(3, 4)), [(3, 4), (3, 4)]),
    "gaussian_kl_free_bits": (lambda m, v: F.gaussian_kl(m, v, np.ones((3, 4)), 0.6), [(3, 4), (3, 4)]),
    "gaussian_kl_batch": (lambda m, v: F.gaussian_kl(m, v, np.ones((3, 4)), 0.8, "batch")[1], [(3, 4), (3, 4)]),
    "layer_norm": (F.layer_norm, [(2, 3, 5), (5,), (5,)]),
    "concat": (lambda a, b: (F.concat([a, b, a], 1), F.concat([a, a], -2)), [(2, 3, 2), (2, 1, 2)]),
    "slice": (lambda a: (a[1], a[:, 1:3], a[..., ::-1], a[None, 0, 1:, 1]), [(2, 4, 3)]),
    "reshape": (lambda a: (a.reshape(4, -1), F.reshape(a, (-1,))), [(2, 4, 3)]),
    "transpose": (lambda a: (a.transpose(), a.transpose(2, 0, 1), F.transpose(a, (0, -1, 1))), [(2, 4, 3)]),
    "lstm": (
        lambda x, h, c, *w: F.lstm(x, [w[:4], w[4:]], LENGTHS, h, c),
        [(4, 4, 3), (2, 4, 2), (2, 4, 2), *[(8, 3), (8, 2), (8,), (8,)] * 2],
    ),
    "lstm_reverse": (
        lambda x, h, c, *w: F.lstm(x, [w], LENGTHS, h, c, reverse=True),
        [(4, 4, 3), (1, 4, 2), (1, 4, 2), (8, 3), (8, 2), (8,), (8,)],
    ),
    "lstm_last_state": (lambda x, *w: F.lstm(x, [w], LENGTHS)[1], [(4, 4, 3), (8, 3), (8, 2), (8,), (8,)]),
    "lstm_cell_state": (lambda x, *w: F.lstm(x, [w])[2], [(4, 2, 3), (8, 3), (8, 2), (8,), (8,)]),
}


@pytest.mark.parametrize("op", CHECKS)
def test_gradcheck(op: str, rng: np.random.Generator) -> None:
    fn, shapes = CHECKS[op]
    assert gradcheck(fn, [rng.normal(size=shape) for shape in shapes])


def test_every_functional_op_is_checked() -> None:
    assert set(F.__all__) - {"as_tensor"} <= {name.removesuffix("_no_bias") for name in CHECKS}


@pytest.mark.parametrize("isa_op", ["lstm", "linear", "attention", "linear_cross_entropy", "layer_norm"])
def test_gradcheck_on_each_instruction_set(isa_op: str, isa: str, rng: np.random.Generator) -> None:
    fn, shapes = CHECKS[isa_op]
    assert gradcheck(fn, [rng.normal(size=shape) for shape in shapes])


def test_gradcheck_of_three_bidirectional_layers_with_dropout(rng: np.random.Generator) -> None:
    with nn.init_scope(3):
        lstm = nn.LSTM(2, 2, num_layers=3, bidirectional=True, dropout=0.3).astype(np.float64)
    parameters = dict(lstm.named_parameters())

    def run(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        for name, weight in zip(parameters, weights, strict=True):
            setattr(lstm, name, weight)
        with nn.dropout_scope(seed=5, step=2):
            y, (h_n, c_n) = lstm(x, (h, c), LENGTHS)
        return y, h_n, c_n

    states = [rng.normal(size=(6, 4, 2)) for _ in range(2)]
    assert gradcheck(run, [rng.normal(size=(4, 4, 2)), *states, *(p.data for p in parameters.values())])


def test_gradcheck_finds_a_wrong_backward() -> None:
    def wrong(x: Tensor) -> Tensor:
        return record(ops.mul(x.data, x.data), (x,), lambda dy: (ops.mul(dy, x.data),))  # the factor 2 is missing

    with pytest.raises(AssertionError, match="input 0 at"):
        gradcheck(wrong, [np.array([1.0, 2.0])])
    with pytest.raises(TypeError, match="float32"):
        gradcheck(F.exp, [np.ones(2, np.float32)])


# The tape ---------------------------------------------------------------------------------------------------------------------


def test_gradients_add_up_over_uses_and_over_backwards() -> None:
    x = Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    y = x * x
    (y + y * x).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * x.data + 3 * x.data**2)
    first = x.grad
    (x * 2).sum().backward()
    np.testing.assert_allclose(x.grad, first + 2)


def test_a_leaf_can_be_the_root() -> None:
    x = Tensor(np.array([3.0]), requires_grad=True)
    x.backward()
    np.testing.assert_array_equal(x.grad, [1.0])


def test_backward_takes_a_gradient_of_its_shape() -> None:
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    (x * 2).backward(np.full((2, 3), 4.0))
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 8.0))
    with pytest.raises(ValueError, match="shape"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RhemeError, match="single element"):
        (x * 2).backward()


def test_the_tape_works_once_and_is_freed() -> None:
    x = Tensor(np.ones(3), requires_grad=True)
    middle = x * 2
    gone = weakref.ref(middle)
    total = (middle * middle).sum()
    shared = middle.sum()
    del middle
    total.backward()
    with pytest.raises(RhemeError, match="freed"):
        total.backward()
    with pytest.raises(RhemeError, match="freed"):
        shared.backward()
    del total, shared
    gc.collect()
    assert gone() is None


def test_backward_refuses_what_was_updated_since(rng: np.random.Generator) -> None:
    weight, x = nn.Parameter(rng.normal(size=(2, 3))), Tensor(rng.normal(size=(4, 3)), requires_grad=True)
    early = F.linear(x, weight).sum()
    F.linear(x, weight).sum().backward()
    optim.SGD([weight], 1.0).step()
    x.grad = None
    with pytest.raises(RhemeError, match="updated in place"):
        early.backward()
    assert x.grad is None
    F.linear(x, weight).sum().backward()
    np.testing.assert_allclose(x.grad, np.broadcast_to(weight.data.sum(axis=0), (4, 3)), rtol=1e-12)


def test_no_grad_records_nothing_and_is_per_thread() -> None:
    x = Tensor(np.ones(3), requires_grad=True)
    seen = []
    with no_grad():
        assert not (x * 2).requires_grad
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
        with pytest.raises(ZeroDivisionError), no_grad():
            _ = 1 // 0
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    assert seen == [True]
    assert not (x.detach() * 2).requires_grad
    with pytest.raises(RhemeError, match="requires a gradient"):
        (x.detach() * 2).sum().backward()


def test_no_grad_within_itself_ends_with_the_outer_one() -> None:
    x = Tensor(np.ones(3), requires_grad=True)
    off = no_grad()
    with off:
        with off:
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_record_gives_none_for_an_unused_output_and_checks_what_comes_back() -> None:
    x = Tensor(np.ones(3), requires_grad=True)
    seen: list[Any] = []

    def backward(*grads: Any) -> list[Any]:
        seen.extend(grads)
        return [grads[1], None]

    first, second = record((x.data + 0, x.data + 1), (x, None), backward)
    assert first.requires_grad
    second.sum().backward()
    assert seen[0] is None
    np.testing.assert_array_equal(x.grad, np.ones(3))
    with pytest.raises(RhemeError, match="2 gradients for 1 inputs"):
        record(x.data + 0, (x,), lambda dy: (dy, dy)).sum().backward()
    with pytest.raises(RhemeError, match=r"float64 \(1,\)"):
        record(x.data + 0, (x,), lambda dy: (dy[:1],)).sum().backward()
    wrong: list[tuple[Any, str]] = [(None, "a NoneType, not a tuple"), (x.data, "a ndarray, not a tuple")]
    wrong += [(([1.0, 1.0, 1.0],), "a list for a gradient"), ((Tensor(x.data),), "a Tensor for a gradient")]
    for given, message in wrong:
        with pytest.raises(RhemeError, match=f"backward of a recorded op gave {message}"):
            record(x.data + 0, (x,), lambda _, given=given: given).sum().backward()


def test_a_long_chain_needs_no_recursion() -> None:
    x = Tensor(np.ones(1), requires_grad=True)
    y = x
    for _ in range(5000):
        y = y + 1
    y.backward()
    np.testing.assert_array_equal(x.grad, [1.0])
    for _ in range(5000):  # and can be thrown away unused
        x = x + 1
    del x


def test_tensors_mix_with_arrays_numbers_and_lists() -> None:
    x = Tensor([[1.0, 2.0]], requires_grad=True)
    assert x.dtype == np.float32
    for y in (np.ones((2, 1), np.float32) + x, np.float64(1) + x, 1 - x, np.ones(2, np.float32) * x / 2):
        assert isinstance(y, Tensor)
        assert y.dtype == np.float32
    assert F.linear(np.ones((3, 2), np.float32), x).shape == (3, 1)
    assert x.sum().item() == 3.0
    assert x.numpy() is x.data
    assert (len(x), x.shape, x.ndim, x.size) == (1, (1, 2), 2, 2)
    assert "requires_grad" in repr(x)
    with pytest.raises(TypeError, match="embedding"):
        _ = x[np.array([0])]
    with pytest.raises(TypeError, match="int64"):
        Tensor([1, 2], requires_grad=True)


def test_ops_without_a_tensor_or_a_weight_are_refused() -> None:
    for op in (F.add, F.sub, F.mul, F.div):
        with pytest.raises(InputError, match="one of them must be a tensor"):
            op(1, np.float32(2))
    with pytest.raises(InputError, match="no arrays to join"):
        F.concat([])
    for weights in ([], [[np.ones((4, 1))] * 3]):
        with pytest.raises(InputError, match="lstm: weights must hold"):
            F.lstm(np.ones((2, 1, 1)), weights)


def test_linear_skips_the_gradients_that_nobody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    backward = ops.linear_backward
    monkeypatch.setattr(ops, "linear_backward", lambda *a: calls.append(a[3:]) or backward(*a))
    weight = Tensor(np.ones((2, 3)), requires_grad=True)
    F.linear(np.ones((4, 3)), weight, np.ones(2)).sum().backward()
    assert calls == [(False, True, False)]

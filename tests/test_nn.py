"""Modules, and layers and optimisers against PyTorch, the oracle."""

from typing import Any

import numpy as np
import pytest

import reference
from rheme import _core, nn, ops, optim
from rheme import functional as F
from rheme.autograd import Tensor, gradcheck, no_grad
from rheme.errors import InputError

LENGTHS = [4, 7, 0, 1, 7, 2]


def near(got: Any, want: Any, dtype: str, what: str = "") -> None:
    want = want.detach().numpy()
    tolerance = 1e-11 if dtype == "float64" else 2e-5  # of the largest element; measured: 3e-15 and 2e-6
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1e-6, np.abs(want).max(initial=0.0)), err_msg=what)


def same_weights(torch: Any, module: nn.Module, theirs: Any, dtype: str) -> None:
    """Draw weights for ours and give them to theirs, and the same to both."""
    module.astype(dtype)
    theirs.to(getattr(torch, dtype))
    theirs.load_state_dict({name: torch.tensor(array) for name, array in module.state_dict().items()})


def compare_gradients(module: nn.Module, theirs: Any, dtype: str) -> None:
    named = dict(theirs.named_parameters())
    for name, parameter in module.named_parameters():
        near(parameter.grad, named[name].grad, dtype, name)


# Against PyTorch --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "bidirectional", "state"), [(1, False, True), (1, True, False), (3, True, True), (2, False, False)]
)
def test_lstm_equals_torch(
    layers: int, bidirectional: bool, state: bool, isa: str, dtype: str, torch: Any, rng: np.random.Generator
) -> None:
    """Rows of any length in any order, packed on their side; outputs and every gradient."""
    directions, size, hidden, n, steps = 1 + bidirectional, 5, 9, len(LENGTHS), max(LENGTHS)
    ours = nn.LSTM(size, hidden, layers, bidirectional)
    theirs = torch.nn.LSTM(size, hidden, layers, bidirectional=bidirectional)
    same_weights(torch, ours, theirs, dtype)
    used = [row for row, length in enumerate(LENGTHS) if length]  # PyTorch refuses rows of length 0
    x = rng.normal(size=(steps, n, size)).astype(dtype)
    start = rng.normal(size=(2, layers * directions, n, hidden)).astype(dtype)
    weights = rng.normal(size=(steps, n, directions * hidden)).astype(dtype)
    last = rng.normal(size=(2, layers * directions, n, hidden)).astype(dtype)

    tx = Tensor(x, requires_grad=True)
    th, tc = (Tensor(s, requires_grad=True) for s in start)
    y, (h, c) = ours(tx, (th, tc) if state else None, LENGTHS)
    ((y * weights).sum() + (h * last[0]).sum() + (c * last[1]).sum()).backward()

    px = torch.tensor(x[:, used], requires_grad=True)
    ph, pc = (torch.tensor(s[:, used], requires_grad=True) for s in start)
    packed = torch.nn.utils.rnn.pack_padded_sequence(px, torch.tensor(LENGTHS)[used], enforce_sorted=False)
    py, (phn, pcn) = theirs(packed, (ph, pc) if state else None)
    py, _ = torch.nn.utils.rnn.pad_packed_sequence(py, total_length=steps)
    t_last = torch.tensor(last[:, :, used])
    # their rows of length 0 add what reaches the initial state alone: nothing that a weight sees
    ((py * torch.tensor(weights[:, used])).sum() + (phn * t_last[0]).sum() + (pcn * t_last[1]).sum()).backward()

    near(y.data[:, used], py, dtype, "y")
    near(h.data[:, used], phn, dtype, "h")
    near(c.data[:, used], pcn, dtype, "c")
    assert not y.data[:, 2].any()
    np.testing.assert_array_equal(h.data[:, 2], start[0][:, 2] if state else 0)
    near(tx.grad[:, used], px.grad, dtype, "dx")
    assert not tx.grad[:, 2].any()
    if state:
        near(th.grad[:, used], ph.grad, dtype, "dh")
        near(tc.grad[:, used], pc.grad, dtype, "dc")
        np.testing.assert_array_equal(th.grad[:, 2], last[0][:, 2])
    compare_gradients(ours, theirs, dtype)


def test_lstm_without_lengths_equals_torch(dtype: str, torch: Any, rng: np.random.Generator) -> None:
    ours, theirs = nn.LSTM(5, 17, 2, True), torch.nn.LSTM(5, 17, 2, bidirectional=True)
    same_weights(torch, ours, theirs, dtype)
    x = rng.normal(size=(9, 4, 5)).astype(dtype)
    with no_grad():
        y, (h, c) = ours(x)
    py, (ph, pc) = theirs(torch.tensor(x))
    near(y.data, py, dtype)
    near(h.data, ph, dtype)
    near(c.data, pc, dtype)


@pytest.mark.parametrize("kind", ["linear", "layer_norm", "embedding"])
def test_layers_equal_torch(kind: str, isa: str, dtype: str, torch: Any, rng: np.random.Generator) -> None:
    make = {
        "linear": (lambda m: m.Linear(19, 11), (3, 5, 19)),
        "layer_norm": (lambda m: m.LayerNorm(19), (3, 5, 19)),
        "embedding": (lambda m: m.Embedding(7, 11), None),
    }
    build, shape = make[kind]
    ours, theirs = build(nn), build(torch.nn)
    same_weights(torch, ours, theirs, dtype)
    x = rng.integers(0, 7, (3, 5)) if shape is None else rng.normal(size=shape).astype(dtype)
    tx = x if shape is None else Tensor(x, requires_grad=True)
    px = torch.tensor(x, requires_grad=shape is not None)
    y, py = ours(tx), theirs(px)
    near(y.data, py, dtype)
    weights = rng.normal(size=y.shape).astype(dtype)
    (y * weights).sum().backward()
    (py * torch.tensor(weights)).sum().backward()
    compare_gradients(ours, theirs, dtype)
    if shape is not None:
        near(tx.grad, px.grad, dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(smoothing: float, dtype: str, torch: Any, rng: np.random.Generator) -> None:
    x, weight, bias = (rng.normal(size=shape).astype(dtype) for shape in ((6, 9), (13, 9), (13,)))
    targets = np.array([0, 12, -1, 5, 5, -1])
    ours = [Tensor(a, requires_grad=True) for a in (x, weight, bias)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    loss = F.linear_cross_entropy(*ours, targets, label_smoothing=smoothing)
    logits = torch.nn.functional.linear(*theirs)
    want = torch.nn.functional.cross_entropy(
        logits, torch.tensor(targets), ignore_index=-1, label_smoothing=smoothing, reduction="none"
    )
    near(loss.data, want, dtype)
    loss.sum().backward()
    want.sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        near(a.grad, b.grad, dtype)


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_optimisers_equal_torch(kind: str, max_norm: float | None, dtype: str, torch: Any, rng: np.random.Generator) -> None:
    arrays = [rng.normal(size=shape).astype(dtype) for shape in ((5, 3), (7,), (1,))]
    ours, theirs = [nn.Parameter(a.copy()) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    if kind == "adamw":
        a = optim.AdamW(ours, 0.01, (0.8, 0.95), 1e-7, 0.1)
        b = torch.optim.AdamW(theirs, 0.01, (0.8, 0.95), 1e-7, 0.1)
    else:
        a, b = optim.SGD(ours, 0.01, 0.9, 0.1), torch.optim.SGD(theirs, 0.01, momentum=0.9, weight_decay=0.1)
    for step in range(6):
        for p, q in zip(ours, theirs, strict=True):
            grad = rng.normal(size=p.shape).astype(dtype)
            p.grad, q.grad = grad, torch.tensor(grad)
        if step == 3:
            ours[1].grad, theirs[1].grad = ours[1].grad * 0, theirs[1].grad * 0
        norm = torch.nn.utils.get_total_norm([q.grad for q in theirs]).item()
        assert a.step(max_norm) == pytest.approx(norm, rel=1e-6)
        if max_norm is not None and norm > max_norm:
            for q in theirs:  # clip_grad_norm_ divides by norm + 1e-6
                q.grad *= max_norm / norm
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        near(p.data, q, dtype)
        assert p.version == 6


def test_from_keras_keeps_the_gates(rng: np.random.Generator) -> None:
    """By Keras' own formulas (keras/src/layers/rnn/lstm.py): z = x kernel + h recurrent + bias, split into i f c o."""
    kernel, recurrent, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 20), (5, 20), (20,)))
    lstm = nn.LSTM.from_keras(kernel, recurrent, bias)
    x = rng.normal(size=(4, 2, 3)).astype(np.float32)
    h = c = np.zeros((2, 5))
    for step in x.astype(np.float64):
        zi, zf, zc, zo = np.split(step @ kernel + h @ recurrent + bias, 4, axis=1)
        c = reference.sigmoid(x=zf) * c + reference.sigmoid(x=zi) * np.tanh(zc)
        h = reference.sigmoid(x=zo) * np.tanh(c)
    y, (h_n, c_n) = lstm(x)
    np.testing.assert_allclose(y.data[-1], h, rtol=0, atol=1e-6)
    np.testing.assert_allclose(h_n.data[0], h, rtol=0, atol=1e-6)
    np.testing.assert_allclose(c_n.data[0], c, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="from_keras"):
        nn.LSTM.from_keras(recurrent, kernel, bias)
    with pytest.raises(InputError, match="from_keras"):
        nn.LSTM.from_keras(kernel, np.float32(1), bias)


# Modules ----------------------------------------------------------------------------------------------------------------------


class Stack(nn.Module):
    def __init__(self) -> None:
        self.first = nn.Linear(3, 4)
        self.rest = [nn.Linear(4, 4), nn.Dropout(0.5)]
        self.scale = nn.Parameter(np.ones(4, np.float32))
        self.tied = self.first
        self.sizes = [1, 2]

    def forward(self, x: Any) -> Tensor:
        x = self.first(x)
        for layer in self.rest:
            x = layer(x)
        return x * self.scale


def test_parameters_are_found_in_order_and_once() -> None:
    stack = Stack()
    assert list(stack.state_dict()) == ["first.weight", "first.bias", "rest.0.weight", "rest.0.bias", "scale"]
    assert stack.num_parameters() == 12 + 4 + 16 + 4 + 4
    assert len(list(stack.parameters())) == 5
    assert list(nn.LSTM(2, 3, 2, True).state_dict())[4:9] == [
        "weight_ih_l0_reverse",
        "weight_hh_l0_reverse",
        "bias_ih_l0_reverse",
        "bias_hh_l0_reverse",
        "weight_ih_l1",
    ]


def test_train_and_eval_reach_every_module() -> None:
    stack, x = Stack(), np.ones((5, 3), np.float32)
    assert stack.eval() is stack
    assert not any(module.training for module in stack.modules())
    np.testing.assert_array_equal(stack(x).data, stack(x).data)
    stack.train()
    assert all(module.training for module in stack.modules())
    assert (stack(x).data == 0).any()
    stack(x).sum().backward()
    assert stack.scale.grad is not None
    stack.zero_grad()
    assert all(parameter.grad is None for parameter in stack.parameters())


def test_load_state_dict_names_everything_that_is_wrong() -> None:
    stack, other = Stack(), Stack()
    stack.load_state_dict(other.state_dict())
    for a, b in zip(stack.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
        assert a.data is not b.data
        assert a.version == 1
    state: dict[str, Any] = dict(other.state_dict())
    del state["scale"]
    state |= {"extra": np.ones(1), "first.bias": np.ones(5, np.float32), "rest.0.bias": np.ones(4)}
    before = stack.first.weight.data.copy()
    state["first.weight"] = before + 1
    with pytest.raises(InputError) as error:
        stack.load_state_dict(state)
    for part in (
        "scale is missing",
        "extra is unknown",
        "first.bias has shape (5,), not (4,)",
        "rest.0.bias is float64, not float32",
    ):
        assert part in str(error.value)
    np.testing.assert_array_equal(stack.first.weight.data, before)


def test_initial_weights_are_functions_of_the_seed_and_the_order(restored: None) -> None:
    def build(seed: int) -> list[Any]:
        with nn.init_scope(seed):
            return [p.data for p in (*nn.LSTM(3, 4).parameters(), *Stack().parameters(), *nn.Embedding(5, 3).parameters())]

    first = build(1)
    _core.set_num_threads(n=3)
    nn.Linear(2, 2)  # outside of the scope: no matter
    for a, b in zip(first, build(1), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, build(2), strict=True))
    with nn.init_scope(1):
        a, b = nn.Linear(30, 40), nn.Linear(30, 40)
    assert (a.weight.data != b.weight.data).all()
    assert np.abs(a.weight.data).max() <= 30**-0.5
    assert nn.Embedding(500, 16).weight.data.std() == pytest.approx(0.25, rel=0.05)


def test_dropout_is_a_function_of_seed_step_and_call() -> None:
    drop, x = nn.Dropout(0.5), np.ones((50, 20), np.float32)

    def draw(seed: int, step: int) -> list[Any]:
        with nn.dropout_scope(seed, step):
            return [drop(x).data, drop(x).data]

    first = draw(1, 1)
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(first, draw(1, 1))
    assert all((first[0] != other[0]).any() for other in (draw(2, 1), draw(1, 2)))
    assert set(np.unique(first)) == {0.0, 2.0}
    assert np.mean(first) == pytest.approx(1.0, abs=0.1)
    assert drop.eval()(x).data is x
    with pytest.raises(InputError, match="dropout"):
        nn.Dropout(1.0)


@pytest.mark.parametrize("kind", ["linear", "lstm"])
def test_packed_weights_follow_the_parameters(kind: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Packed once without gradients; anew after an update, a load, a replacement; never with gradients."""
    module = nn.Linear(6, 5) if kind == "linear" else nn.LSTM(6, 5, 1, True)
    x = rng.normal(size=(3, 2, 6)).astype(np.float32)
    packs, pack = [], getattr(ops, f"pack_{kind}")
    monkeypatch.setattr(ops, f"pack_{kind}", lambda *a: packs.append(1) or pack(*a))

    def run() -> Any:
        y = module(x)
        return (y if kind == "linear" else y[0]).data

    def both() -> None:
        with no_grad():
            packed = run()
        np.testing.assert_array_equal(packed, run())

    both()
    both()
    assert len(packs) == 1
    y = module(x)
    (y if kind == "linear" else y[0]).sum().backward()
    optim.SGD(module.parameters(), 0.5).step()
    both()
    assert len(packs) == 2
    module.load_state_dict({name: ops.neg(array) for name, array in module.state_dict().items()})
    both()
    assert len(packs) == 3
    for parameter in module.parameters():
        parameter.data = ops.mul(parameter.data, 0.5)
    both()
    assert len(packs) == 4


def test_lstm_says_what_shape_it_wants() -> None:
    lstm = nn.LSTM(3, 4, 2)
    with pytest.raises(ValueError, match=r"x: expected shape \(T, N, 3\)"):
        lstm(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"expected h and c of shape \(2, 1, 4\)"):
        lstm(np.ones((2, 1, 3), np.float32), (np.ones((1, 1, 4), np.float32),) * 2)
    with pytest.raises(InputError, match="at least 1"):
        nn.LSTM(3, 0)
    for sizes in ((0, 0), (3, 0), (-1, 2)):
        with pytest.raises(InputError, match="Embedding: num_embeddings must be"):
            nn.Embedding(*sizes)


def test_attention_and_latent_layers(rng: np.random.Generator) -> None:
    attention = nn.Attention(4, 6, attention_size=5).astype(np.float64)
    query, memory = rng.normal(size=(2, 3, 4)), rng.normal(size=(7, 3, 6))
    context, weights = attention(query, *attention.project(memory), lengths=[7, 0, 2])
    q, k = query @ attention.query.weight.data.T, memory @ attention.key.weight.data.T
    scores = np.einsum("tnh,snh->nts", q, k) * 5**-0.5
    scores[2, :, 2:] = -np.inf
    want = np.exp(scores - scores.max(2, keepdims=True))
    want /= want.sum(2, keepdims=True)
    want[1] = 0
    np.testing.assert_allclose(weights.data, want, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(context.data, np.einsum("nts,snc->tnc", want, memory), rtol=1e-10, atol=1e-13)
    assert nn.Attention(4, 6, 2)(query.astype(np.float32), *nn.Attention(4, 6, 2).project(memory.astype(np.float32)))[
        0
    ].shape == (2, 3, 2)

    latent = nn.GaussianLatent(4, 3).astype(np.float64)
    eps = rng.normal(size=(3, 3))
    z, kl, mu, logvar = latent(query[0], eps)
    np.testing.assert_allclose(z.data, mu.data + np.exp(logvar.data / 2) * eps, rtol=1e-12)
    np.testing.assert_allclose(kl.data, 0.5 * (mu.data**2 + np.exp(logvar.data) - 1 - logvar.data), rtol=1e-9)
    assert latent(query[0], eps, free_bits=50.0)[1].data.min() == 50.0


# Optimisers and schedules -----------------------------------------------------------------------------------------------------


def test_optimiser_state_continues_to_the_same_weights(rng: np.random.Generator) -> None:
    start, grads = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=(6, 4, 5)).astype(np.float32)

    def advance(optimiser: optim.AdamW, some: Any) -> None:
        for grad in some:
            optimiser.params[0].grad = grad
            optimiser.step(1.0)

    whole = optim.AdamW([nn.Parameter(start.copy())], weight_decay=0.1)
    advance(whole, grads)
    first = optim.AdamW([nn.Parameter(start.copy())], weight_decay=0.1)
    advance(first, grads[:3])
    second = optim.AdamW([nn.Parameter(first.params[0].data.copy())], weight_decay=0.1)
    second.load_state_dict({name: array.copy() for name, array in first.state_dict().items()})
    advance(second, grads[3:])
    np.testing.assert_array_equal(whole.params[0].data, second.params[0].data)
    assert second.step_count == 6
    with pytest.raises(InputError, match=r"m.0 is missing.*x is unknown.*v.0 is float32 \(2,\)"):
        second.load_state_dict({"step": 1, "x": start, "v.0": np.zeros(2, np.float32)})


def test_a_norm_that_is_not_finite_changes_nothing() -> None:
    parameter = nn.Parameter(np.ones(3, np.float32))
    optimiser = optim.AdamW([parameter])
    parameter.grad = np.array([1, np.nan, 1], np.float32)
    assert not np.isfinite(optimiser.step(1.0))
    np.testing.assert_array_equal(parameter.data, np.ones(3))
    assert (optimiser.step_count, parameter.version) == (0, 0)
    with pytest.raises(InputError, match="no parameters"):
        optim.AdamW([])


def test_an_optimiser_refuses_numbers_below_zero() -> None:
    parameter = nn.Parameter(np.ones(3, np.float32))
    parameter.grad = np.ones(3, np.float32)
    for bad in (-1.0, np.nan):
        with pytest.raises(InputError, match="max_norm must be at least 0"):
            optim.SGD([parameter], 0.1).step(bad)
        with pytest.raises(InputError, match="momentum must be at least 0"):
            optim.SGD([parameter], 0.1, momentum=bad)
        with pytest.raises(InputError, match="epsilon must be at least 0"):
            optim.AdamW([parameter], epsilon=bad)
    np.testing.assert_array_equal(parameter.data, np.ones(3))


def test_schedules() -> None:
    assert [optim.constant()(step) for step in (1, 100)] == [1, 1]
    assert [optim.linear(4, 8)(step) for step in (1, 4, 6, 8, 9)] == [0.25, 1, 0.5, 0, 0]
    assert [optim.cosine(4, 8, 0.5)(step) for step in (2, 4, 8, 20)] == [0.5, 1, 0.5, 0.5]
    assert optim.cosine(0, 8)(4) == pytest.approx(0.5)
    assert [optim.inverse_sqrt(4)(step) for step in (2, 4, 16)] == [0.5, 1, 0.5]


def test_batch_norm(rng: np.random.Generator) -> None:
    norm = nn.BatchNorm(3, deviation=0.6)
    norm.bias.data[...] = [0.5, 0.0, -1.0]
    batches = [rng.standard_normal((40, 3)).astype(np.float32) * [3.0, 1.0, 0.1] + [5.0, 0.0, -2.0] for _ in range(300)]
    batches = [batch.astype(np.float32) for batch in batches]
    np.testing.assert_allclose(norm.eval()(batches[0]).numpy(), 0.6 * batches[0] + norm.bias.data, rtol=1e-6), "nothing seen"
    y = norm.train()(batches[0]).numpy()
    np.testing.assert_allclose(y.mean(axis=0), norm.bias.data, atol=1e-6)
    np.testing.assert_allclose(y.std(axis=0), 0.6, rtol=1e-3)
    for batch in batches:
        norm(batch)
        norm.update()
    norm.eval()
    expected = np.array([[8.0, 1.0, -1.9]], np.float32)  # one deviation above the mean
    np.testing.assert_allclose(norm(expected).numpy() - norm.bias.data, 0.6, rtol=0.1)
    before = norm.running_mean.data.copy()
    norm(batches[0])
    norm.update()
    np.testing.assert_array_equal(norm.running_mean.data, before), "evaluation takes nothing in"


def test_batch_norm_of_one_row_takes_nothing_in(rng: np.random.Generator) -> None:
    norm = nn.BatchNorm(3)
    norm(rng.standard_normal((7, 3)).astype(np.float32))  # such as the batches that training only measures its speed by
    norm(rng.standard_normal((1, 3)).astype(np.float32))
    norm.update()
    assert norm.running_weight.item() == 0


def test_batch_norm_gradient(rng: np.random.Generator) -> None:
    norm = nn.BatchNorm(3, deviation=0.6).astype(np.float64)
    weight = rng.standard_normal((7, 3))
    assert gradcheck(lambda x: F.sum(F.mul(norm(x), weight)), [rng.standard_normal((7, 3))])

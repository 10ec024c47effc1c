"""The span reader: its loss by brute force, its gradients, and what padding and company may not change."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rheme import _core, nn, optim
from rheme.autograd import Tensor
from rheme.errors import InputError
from rheme.models.span_reader import BYTES, ReaderBatch, SpanReader, SpanReaderConfig

SMALL = {"vocab_size": 9, "word_size": 5, "char_size": 3, "char_filters": 4, "char_width": 2, "embedding_size": 6}
SMALL |= {"hidden_size": 4, "features": 2, "pair_size": 3, "max_span": 3}


def reader(seed: int = 0, **settings: Any) -> SpanReader:
    with nn.init_scope(seed):
        model = SpanReader(SpanReaderConfig(**SMALL | settings))
    model.length_bias.data[:, 0] = np.linspace(-1, 1, len(model.length_bias.data))
    return model


def some(
    rng: np.random.Generator, lengths: list[int], asked: list[int], longest: int = 0, dtype: Any = np.float32
) -> ReaderBatch:
    """Passages of these lengths, and how many questions of each; padded to `longest` words."""
    steps, owner = max(longest, *lengths), np.repeat(np.arange(len(asked)), asked)
    question_lengths = rng.integers(1, 5, len(owner))
    features = rng.integers(0, 4, (steps, len(owner), 2)).astype(dtype)
    return ReaderBatch(
        words=rng.integers(0, 9, 12),
        chars=rng.integers(0, BYTES, (12, 6)),
        passages=rng.integers(0, 12, (steps, len(lengths))),
        passage_lengths=np.array(lengths),
        questions=rng.integers(0, 12, (int(question_lengths.max()) + 1, len(owner))),
        question_lengths=question_lengths,
        owner=owner,
        features=features,
    )


def right(rows: list[list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([len(row) for row in rows])
    spans = np.zeros((len(rows), max(1, counts.max()), 2), np.int64)
    for n, row in enumerate(rows):
        spans[n, : len(row)] = np.array(row).reshape(-1, 2)
    return spans, counts


SPANS = [[(0, 0), (2, 4)], [(1, 2)], []]  # of three questions: two places, one, no answer


def test_the_loss_by_brute_force(rng: np.random.Generator) -> None:
    model = reader().astype(np.float64).eval()
    batch = some(rng, [5, 4], [2, 1], dtype=np.float64)
    scores, expected = model.scores(batch).data, 0.0
    for n, (length, spans) in enumerate(zip((5, 5, 4), SPANS, strict=True)):
        allowed = {(i, j): np.exp(scores[n, i, j]) for i in range(length) for j in range(i, min(i + 3, length))}
        expected += np.log(1 + sum(allowed.values())) - np.log(sum(allowed[span] for span in spans) if spans else 1.0)
    total, count, _ = model.loss(batch, *right(SPANS))
    assert count == 3
    assert total.item() == pytest.approx(expected, rel=1e-12)


def test_starts_restrict_where_an_answer_begins(rng: np.random.Generator) -> None:
    model = reader()
    batch = replace(some(rng, [6, 4], [1, 1]), starts=np.array([[2, 4], [0, 4]]))
    mask = model.mask(batch)
    assert sorted({int(i) for i in np.nonzero(mask[0])[0]}) == [2, 3]
    assert mask[0, 3, 5]
    assert not model.mask(batch, max_span=2)[0, 3, 5]


def test_gradients_end_to_end(rng: np.random.Generator) -> None:
    """Along random directions of each parameter, in float64, with dropout at work."""
    model = reader(dropout=0.2, word_dropout=0.3).astype(np.float64).train()
    batch = some(rng, [5, 4], [2, 1], dtype=np.float64)

    def loss() -> Tensor:
        with nn.dropout_scope(3, 1):
            return model.loss(batch, *right(SPANS), seed=4)[0]

    loss().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        start, epsilon = parameter.data.copy(), 1e-6
        direction = rng.standard_normal(start.shape)
        ends = []
        for sign in (1, -1):
            parameter.data[...] = start + sign * epsilon * direction
            ends.append(loss().item())
        parameter.data[...] = start
        expected, found = (ends[0] - ends[1]) / (2 * epsilon), float((parameter.grad * direction).sum())
        assert found == pytest.approx(expected, rel=1e-6, abs=5e-8), name  # the differences' own error is about 1e-15 / 1e-6


def test_a_tiny_batch_is_learned(rng: np.random.Generator) -> None:
    model = reader(dropout=0.0, word_dropout=0.0, hidden_size=8).train()
    batch = some(rng, [5, 4], [2, 1])
    optimizer = optim.AdamW(list(model.parameters()), 0.02)
    for _ in range(150):
        total, count, _ = model.loss(batch, *right(SPANS))
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert total.item() / count < 0.05
    scores, mask, log_odds = model.eval().read(batch)
    best = [divmod(int(np.where(mask[n], scores[n], -np.inf).argmax()), 5) for n in range(3)]
    assert best[0] in SPANS[0]
    assert best[1] == (1, 2)
    assert log_odds[0] > 2
    assert log_odds[2] < -2


def test_padding_and_company_do_not_change_a_bit(rng: np.random.Generator) -> None:
    model = reader(hidden_size=8).eval()
    batch = some(rng, [37, 5, 20], [2, 3, 1])
    scores, _, log_odds = model.read(batch)
    for n, owner in enumerate(batch.owner):
        length, asked = int(batch.passage_lengths[owner]), int(batch.question_lengths[n])
        alone = replace(
            batch,
            passages=batch.passages[:length, [owner]],
            passage_lengths=batch.passage_lengths[[owner]],
            questions=batch.questions[:asked, [n]],
            question_lengths=batch.question_lengths[[n]],
            owner=np.array([0]),
            features=np.ascontiguousarray(batch.features[:length, [n]]),
        )
        found, _, odds = model.read(alone)
        assert np.array_equal(found[0], scores[n, :length, :length])
        assert odds[0] == log_odds[n]


def test_op_calls_do_not_grow_with_time(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(op: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return op(**arguments)

        return call

    model = reader().train()
    for name in dir(_core):
        if callable(getattr(_core, name)) and name.islower() and not name.startswith("_"):
            monkeypatch.setattr(_core, name, counted(getattr(_core, name)))
    found = []
    for longest in (5, 60):
        batch, calls = some(rng, [longest, 4], [2, 1]), 0
        model.zero_grad()
        model.loss(batch, *right(SPANS))[0].backward()
        found.append(calls)
    assert found[0] == found[1]
    assert found[0] < 300


@pytest.mark.parametrize(("name", "value"), [("hidden_size", 0), ("max_span", 0), ("dropout", 1.0), ("word_dropout", -0.1)])
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        SpanReaderConfig(**{name: value})

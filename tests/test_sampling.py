"""Random numbers and draws: Philox, the distributions made of it, and the sampler against its sorted reference."""

from typing import Any

import numpy as np
import pytest

import reference
from op_cases import cast
from rheme import _core


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's known answers
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, words: str) -> None:
    numbers = [[int(word, 16) for word in text.split()] for text in (counter, key, words)]
    for core in (_core, reference):
        assert list(core.philox(counter=numbers[0], key=numbers[1])) == numbers[2]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 17, 1000])
def test_random_numbers_equal_reference(n: int, isa: str, dtype: str) -> None:
    for seed, stream, position in ((0, 0, 0), (2**63 + 5, 2**64 - 1, 2**32 - 3), (7, 2**33, 10**12)):
        where = {"seed": seed, "stream": stream, "position": position}
        np.testing.assert_array_equal(_core.random_bits(**where, n=n), reference.random_bits(**where, n=n))
        for name in ("random_uniform", "random_normal"):
            got, want = (getattr(core, name)(**where, shape=(n, 3), dtype=dtype) for core in (_core, reference))
            assert got.shape == (n, 3)
            assert got.dtype == dtype
            if name == "random_uniform":
                np.testing.assert_array_equal(got, want)
            else:  # measured: float32 3e-7
                np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 if dtype == "float32" else 1e-13)


OPTIONS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.9},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.4},
    {"top_p": 0.93},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 7, "top_p": 0.8, "min_p": 0.05, "temperature": 0.9},
]
ALL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def spread_bits(n: int) -> np.ndarray:
    """The middles of n equal parts of the 64-bit range."""
    return np.array([(2 * i + 1) * 2**64 // (2 * n) for i in range(n)], np.uint64)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sample_gives_each_kept_id_its_exact_share(
    options: dict[str, Any], isa: str, dtype: str, rng: np.random.Generator
) -> None:
    """Against the sorted reference: bits spread evenly draw each id as often as its weight says, and a hidden one never."""
    options, draws = ALL | options, 2000
    for v in (1, 2, 9, 17, 40):
        row = cast(rng.normal(size=v) * 2, dtype)
        row[::4] = row[0]  # ties
        ids = _core.sample(logits=np.tile(row, (draws, 1)), bits=spread_bits(draws), **options)
        rest = (options["top_k"], options["top_p"], options["min_p"])
        weights = np.array(reference.sampling_weights(row.astype(np.float64) / options["temperature"], *rest), np.float64)
        counts = np.bincount(ids, minlength=v)
        assert not counts[weights == 0].any(), f"{v}: drew {np.flatnonzero(counts)}, kept {np.flatnonzero(weights)}"
        assert np.abs(counts - draws * weights / weights.sum()).max() <= 1.01, f"{v}: {counts}"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("v", [100, 5003])
def test_sample_draws_what_the_reference_draws(
    v: int, options: dict[str, Any], isa: str, dtype: str, rng: np.random.Generator
) -> None:
    logits = cast(rng.normal(size=(20, v)) * 3, dtype)
    logits[:, ::7] = -np.inf
    bits = _core.random_bits(seed=5, stream=1, position=0, n=20)
    options = ALL | options
    got = _core.sample(logits=logits, bits=bits, **options)
    for row, id_, b in zip(logits.astype(np.float64), got, bits, strict=True):
        weights = reference.sampling_weights(row / options["temperature"], options["top_k"], options["top_p"], options["min_p"])
        total, before = sum(weights), sum(weights[:id_])
        # A float32 exp may be 2 units in the last place off, so that a boundary may lie that much elsewhere.
        slack = total * (1e-6 if dtype == "float32" else 1e-13)
        point = (int(b) * total) >> 64
        assert weights[id_] > 0
        assert before - slack <= point < before + weights[id_] + slack
    alone = [_core.sample(logits=logits[n : n + 1], bits=bits[n : n + 1], **options)[0] for n in range(20)]
    np.testing.assert_array_equal(got, alone)


@pytest.mark.parametrize("size", [1, 15, 64, 65, 200, 1000])
def test_greedy_takes_the_first_of_the_largest(size: int, isa: str, dtype: str) -> None:
    rng = np.random.default_rng(size)
    logits = rng.integers(0, 5, (200, size)).astype(dtype)
    logits[50:][rng.random((150, size)) < 0.5] = np.nan
    logits[100:][rng.random((100, size)) < 0.9] = -np.inf
    logits[199] = np.nan
    got = _core.sample(logits=logits, bits=np.zeros(200, np.uint64), **(ALL | {"temperature": 0.0}))
    np.testing.assert_array_equal(got, np.argmax(np.where(np.isnan(logits), -np.inf, logits), axis=1))


def test_sample_edges(isa: str, dtype: str) -> None:
    def draw(logits: Any, bits: Any, **options: Any) -> list[int]:
        logits = np.atleast_2d(np.array(logits, dtype))
        bits = np.array(bits, np.uint64)
        return _core.sample(logits=np.repeat(logits, len(bits), axis=0), bits=bits, **(ALL | options)).tolist()

    first, last = 0, 2**64 - 1
    inf = np.inf
    assert draw([0, 3, 3, 1], [first, last], temperature=0.0) == [1, 1]  # the lowest id among equals
    assert draw([0, 0, 0, 0], [first, last]) == [0, 3]
    assert draw([0] * 8, [first, last], top_k=3) == [0, 2]  # ties at the threshold: by ascending id
    assert draw([0] * 8, [first, last], top_p=0.5) == [0, 3]
    assert draw([1e30] * 100, [first, last], top_k=30) == [0, 29]  # nothing stands between equals that outgrow 1
    assert draw([1e30] * 100, [first, last], top_p=0.5) == [0, 49]
    assert draw([0, 1, 0, 1], [first, last], top_k=2) == [1, 3]
    assert draw([0, 1, 0, 1], [first, last], top_k=3) == [0, 3]
    assert draw([0, 1, 5, 1], [first, last], top_p=1e-9) == [2, 2]  # at least one survives
    assert draw([0, 5, 1, 5], [first, last], min_p=1.0) == [1, 3]
    assert draw([-inf, 2, -inf, 1, -inf], [first, last]) == [1, 3]  # never an id without weight
    assert draw([-inf, 2, -inf, 1, -inf], [first, last], top_k=4) == [1, 3]
    assert draw([-inf, -inf, -5.0], [first, last]) == [2, 2]
    assert draw([-inf, -inf, -inf], [first, last]) == [0, 0]  # as argmax has it
    assert draw([1e4, 0, -1e4], [first, last]) == [0, 0]
    assert draw([7.0], [first, last], top_k=50) == [0, 0]
    assert _core.sample(logits=np.zeros((0, 5), dtype), bits=np.zeros(0, np.uint64), **ALL).shape == (0,)


def test_sample_frequencies_by_chi_square(isa: str, rng: np.random.Generator) -> None:
    """20 000 draws with Philox bits over 50 ids: the statistic is below its 99.99 % quantile (49 degrees: 94.9)."""
    row = (rng.normal(size=50)).astype(np.float32)
    draws = 20000
    ids = _core.sample(logits=np.tile(row, (draws, 1)), bits=_core.random_bits(seed=1, stream=2, position=3, n=draws), **ALL)
    expected = draws * np.exp(row - np.log(np.exp(row).sum()))
    assert expected.min() > 5
    assert ((np.bincount(ids, minlength=50) - expected) ** 2 / expected).sum() < 94.9

"""The tutorials' encoder-decoder: TensorFlow's weights, and from them the same losses while both train."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rheme import nn


@pytest.fixture(scope="module")
def tutorial() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "keras_model.py"
    spec = importlib.util.spec_from_file_location("keras_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_equal_losses_from_equal_weights(tutorial: Any) -> None:
    pytest.importorskip("tensorflow")
    found = tutorial.losses(8, vocabulary=300, size=32, length=6, rows=8)
    np.testing.assert_allclose(found["rheme"], found["keras"], rtol=1e-5)  # measured: 2e-7
    assert found["rheme"][-1] < found["rheme"][0] - 0.01, "they learn"


def test_what_is_sometimes_printed_cannot_run() -> None:
    """The encoder's last output, of two axes, into a second LSTM."""
    encoder, decoder = nn.LSTM(4, 6), nn.LSTM(6, 10)
    y, _ = encoder(np.zeros((5, 3, 4), np.float32))
    with pytest.raises(ValueError, match=r"expected shape \(T, N, 6\), got \(3, 6\)"):
        decoder(y[-1])


def test_the_model_learns_to_write_its_source(tutorial: Any) -> None:
    from rheme import optim

    model, rng = tutorial.Tutorial(20, 16), np.random.default_rng(0)
    data, optimizer = tutorial.batch(rng, 20, 5, 16), optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        loss = model(*data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

"""The corpus-level language model of the benchmarks: every word counts once, and the state runs through."""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rheme import nn


@pytest.fixture(scope="module")
def script() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "corpus_lm.py"
    spec = importlib.util.spec_from_file_location("corpus_lm", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["corpus_lm"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_chunks_run_side_by_side_in_order(script: Any) -> None:
    ids = np.arange(23)
    parts = script.chunks(ids, 3, 4)
    inputs, targets = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    np.testing.assert_array_equal(inputs.T, np.arange(21).reshape(3, 7))
    np.testing.assert_array_equal(targets, inputs + 1)


def test_perplexity_is_that_of_the_whole_sequence(script: Any) -> None:
    with nn.init_scope(2):
        model = script.LanguageModel(12, script.RECIPES["test"])
    ids = np.random.default_rng(0).integers(0, 12, 1203)
    whole = np.concatenate([[3], ids])
    loss, _ = model.eval().loss(whole[:-1, None], whole[1:, None], None, 0)
    assert script.perplexity(model, ids, 3) == pytest.approx(math.exp(loss.item()), rel=1e-5)


def test_it_learns_and_goes_on(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.txt").write_text("the cat sees the dog\nthe dog sees the cat\n" * 60)
    files = [part for name in ("train", "valid", "test") for part in (f"--{name}", str(tmp_path / "x.txt"))]
    monkeypatch.setattr(sys, "argv", ["corpus_lm", *files, "--out", str(tmp_path / "m"), "--size", "test"])
    script.main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert float(last.split("test ")[1].split(",")[0]) < 4.0  # six words to choose from
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--resume"])
    script.main()
    assert capsys.readouterr().out.splitlines()[-1] == last

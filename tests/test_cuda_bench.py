"""benchmarks/peers/gpu.py without a GPU: its cases and their arithmetic, what it says when there is nothing to run on, and, on
the emulated device and PyTorch's CPU, that all ways give the same answers."""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuda_device import EMULATED, emulated

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the benchmark, under the names that they have when it runs as a script."""
    monkeypatch.syspath_prepend(str(PEERS))
    names = ("works", "gpu_cases", "gpu")
    yield [importlib.import_module(name) for name in names][-1]
    for name in (*names, "with_rheme", "gpu_torch", "with_torch"):
        sys.modules.pop(name, None)


def test_no_file_hides_a_package_that_cupy_imports() -> None:
    """A script's folder comes first on the path, and CuPy looks for `cuda.pathfinder` there."""
    assert not {path.stem for path in PEERS.iterdir()} & {"cuda", "cupy", "cupyx", "cupy_backends", "nvidia", "fastrlock"}


def test_cases_hold_the_bars(bench: Any) -> None:
    cases = bench.gpu_cases
    assert set(cases.WORKS) - {"translation", "generation"} <= set(vars(bench))
    for work in cases.WORKS:
        names = [case.name for case in cases.WORKS[work](work)]
        assert len(set(names)) == len(names), work
    sizes = [case.size for case in cases.cases("lstm_train")]
    assert {"T": 64, "B": 16, "I": 512, "H": 512, "layers": 1, "R": 1} in sizes
    assert {"T": 64, "B": 64, "I": 512, "H": 512, "layers": 2, "R": 2, "mixed": True} in sizes
    assert {"T": 64, "B": 64, "I": 256, "H": 256, "layers": 1, "R": 1} in sizes
    assert {64, 1024} <= {size["H"] for size in sizes}
    assert {(64, 131072), (128, 131072), (512, 131072)} <= {(c.B, c.V) for c in cases.cases("sampling")}
    assert any((c.B, c.H) == (128, 512) for c in cases.cases("train_step"))


def test_the_command_of_each_bar_has_cases(bench: Any) -> None:
    told = (PEERS.parent / "RESULTS.md").read_text(encoding="utf-8")
    commands = re.findall(r'`gpu.py --only ([\w,]+)(?: --case "(.*?)")?`', told)
    assert len(commands) >= 11
    for works, containing in commands:
        for work in works.split(","):
            assert bench.gpu_cases.cases(work, containing=containing), (work, containing)


def test_roofline(bench: Any) -> None:
    """By hand: the greater of the products at their peak and the bytes at the bandwidth."""
    cases, works = bench.gpu_cases, bench.works
    limits = cases.Limits(bandwidth=1e12, flops={"fp32": 1e13, "bf16": 1e14})
    case = works.Case("lstm", "a", {"T": 10, "B": 4, "I": 8, "H": 16, "layers": 1, "R": 2})
    weights, rows = 2 * 4 * 16 * (8 + 16), 40
    assert cases.arithmetic(case, {}, "fp32") == (2 * rows * weights, 4 * (weights + rows * (8 + 32)))
    assert cases.arithmetic(case, {}, "bf16")[1] == 2 * (weights + rows * (8 + 32))
    train = works.Case("lstm_train", "a", case.size)
    assert cases.arithmetic(train, {}, "fp32") == (
        6 * rows * weights,
        4 * (2 * (weights + rows * 40) + rows * 2 * 2 * 5 * 16),
    )
    assert cases.arithmetic(case, {"lengths": [10, 1, 2, 3]}, "fp32")[0] == 2 * 16 * weights
    large = works.Case("lstm", "b", {"T": 100, "B": 100, "I": 1024, "H": 1024, "layers": 1, "R": 1})
    assert cases.least_seconds(large, {}, "fp32", limits) == pytest.approx(2e4 * 4 * 1024 * 2048 / 1e13)
    assert cases.least_seconds(large, {}, "bf16", limits) == pytest.approx(2e4 * 4 * 1024 * 2048 / 1e14)
    assert cases.least_seconds(large, {}, "fp16", limits) is None, "its peak was not measured"
    sampling = works.Case("sampling", "c", {"B": 64, "V": 131072, "top_k": 0, "top_p": 1.0})
    assert cases.least_seconds(sampling, {}, "fp32", limits) == pytest.approx(64 * 131072 * 4 / 1e12)
    adamw = works.Case("adamw", "d", {"N": 1000})
    assert cases.least_seconds(adamw, {}, "fp32", limits) == pytest.approx(28e3 / 1e12)


def test_what_is_missing_is_one_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PEERS / "gpu.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    listed = run("--list", "--only", "sampling,adamw")
    assert listed.returncode == 0, listed.stderr
    assert "| adamw | 67108864 parameters |  | 1879 |" in listed.stdout
    unknown = run("--only", "lstm,speed")
    assert unknown.returncode == 2
    assert "no work is called speed" in unknown.stderr
    nowhere = run("--list", "--only", "kl", "--case", "B 3 H 3")
    assert nowhere.returncode == 2
    assert "no case of kl has 'B 3 H 3' in its name" in nowhere.stderr
    if importlib.util.find_spec("cupy") is None:
        without = run()
        assert without.returncode == 2
        assert without.stderr.startswith("gpu.py: device 'cuda' needs CuPy: pip install")
        assert without.stderr.count("\n") == 1


def test_all_ways_give_the_same_answers(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, torch: Any
) -> None:
    gpu_torch = importlib.import_module("gpu_torch")
    monkeypatch.setattr(gpu_torch, "DEVICE", "cpu")
    monkeypatch.setattr(bench.works, "VOCABULARY", 300)
    monkeypatch.setattr(bench.works, "EMBEDDING", 16)
    monkeypatch.setenv("RHEME_CUDA_TABLE", str(tmp_path / "table.json"))
    with emulated(MULTIPROCESSORS="132"):
        works = [name for name in bench.gpu_cases.WORKS if name not in ("translation", "generation")]
        rows = bench.main(["--quick", "--only", ",".join(works), "--out", str(tmp_path / "out")])
        captured = capsys.readouterr()
        assert not captured.err, captured.err  # an answer that is off, or a way that cannot run, is told there
        ways = {work: {row["way"] for row in rows if row["work"] == work} for work in works}
        ours = {"rheme plain fp32", "rheme persistent fp32", "rheme persistent bf16"}
        packed, padded = ({f"torch {kind} {p}" for p in bench.gpu_cases.PRECISIONS} for kind in ("packed", "padded"))
        assert ways["lstm"] == ways["lstm_train"] == ours | packed | padded
        assert ways["sampling"] == {"rheme block fp32", "rheme cluster fp32", "torch sort fp32"}
        assert ways["train_step"] == ours | {"torch fp32", "torch tf32", "torch bf16"}
        assert {"rheme fp32", "torch fused fp32"} <= ways["adamw"]
        for work in ("kl", "cross_entropy", "linear_cross_entropy", "decode_greedy"):
            assert len(ways[work]) > 1, work
        kept = json.loads((tmp_path / "out").read_text())
        assert kept["rows"] == rows
        assert all(row["us a step"] > 0 and row["of the limit"] > 0 for row in rows if row["way"] == "rheme plain fp32"
                   and row["work"].startswith("lstm"))  # fmt: skip
        assert "| work | case | way | ms |" in captured.out


@pytest.mark.slow
def test_works_as_a_user_runs_them(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EMULATED))  # of the training's process
    with emulated():
        rows = bench.main(["--quick", "--no-torch", "--only", "translation,generation"])
    assert [(row["work"], row["way"]) for row in rows] == [
        (work, f"rheme {device} fp32") for work in ("translation", "generation") for device in ("cpu", "cuda")
    ]
    assert all(row.get("pieces/s", row.get("tokens/s")) > 0 for row in rows)


def test_calibration_writes_the_table_that_is_read(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.json"
    monkeypatch.setenv("RHEME_CUDA_TABLE", str(table))
    for faster in (True, False):
        monkeypatch.setattr(bench.Bench, "_faster", lambda self, plain, other, faster=faster: other is not None and faster)
        with emulated(MULTIPROCESSORS="132"):
            bench.main(["--quick", "--calibrate"])
        assert f"written: {table}" in capsys.readouterr().out
        read = bench.calibration.read(table)["emulated device"]
        assert read == ({"lstm": {"64": 1}, "sample": 300} if faster else {"lstm": {}})

"""Fixtures, and skips that become failures.

RHEME_REQUIRE=torch,cupy: a test skipped for want of one of these modules fails instead.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import reference` from any test

from rheme import _core

REQUIRED = [name for name in os.environ.get("RHEME_REQUIRE", "").split(",") if name]


def _fail_if_required(report: Any) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    missing = [name for name in REQUIRED if f"'{name}'" in reason]
    if missing:
        report.outcome = "failed"
        report.longrepr = f"RHEME_REQUIRE names {missing[0]}: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    report = yield
    _fail_if_required(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: Any) -> Any:
    report = yield
    _fail_if_required(report)
    return report


def _in_turn(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _core.isa()
    _core.set_isa(name=request.param)
    yield request.param
    _core.set_isa(name=before)


@pytest.fixture(params=[name for name in _core.available_isas() if "_" not in name])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn, but for those that differ in their products of int8 alone."""
    yield from _in_turn(request)


@pytest.fixture(params=_core.available_isas())
def int8_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Those, too (`avx512_vnni`: AVX-512 with VNNI)."""
    yield from _in_turn(request)


@pytest.fixture
def restored() -> Iterator[None]:
    """The test changes the instruction set or the number of threads; put both back."""
    isa, threads = _core.isa(), _core.num_threads()
    yield
    _core.set_isa(name=isa)
    _core.set_num_threads(n=threads)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, an oracle that only tests use. One thread: its pool and ours would fight for a small machine's cores."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module

"""What goes another way than the other sizes and numbers: results past the caches, one step of one row, infinite logits,
foreign byte orders."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import reference
from op_cases import INFINITE, cast
from rheme import _core, ops
from test_ops import close, lstm_arguments, run_cross_entropy, run_lstm


def test_cross_entropy_equals_reference(isa: str, dtype: str, rng: np.random.Generator) -> None:
    """The largest is streamed past the caches, but where rows begin between vectors; a row alone has the same bits."""
    for m, v, smoothing in ((0, 5, 0.0), (3, 1, 0.0), (7, 70, 0.1), (150, 1025, 0.0), (4, 1_200_000, 0.1), (264, 16_001, 0.0)):
        targets = rng.integers(0, v, m)
        targets[1::4] = -7
        given = {"logits": rng.normal(size=(m, v)), "targets": targets, "ignore_index": -7, "label_smoothing": smoothing}
        given, dloss = cast(given, dtype), cast(rng.normal(size=m), dtype)
        loss, saved = _core.cross_entropy(**given, save=True)
        plain, nothing = _core.cross_entropy(**given, save=False)
        assert nothing is None
        np.testing.assert_array_equal(plain, loss)
        dlogits = _core.cross_entropy_backward(**given, dloss=dloss, saved=saved)
        wide = cast(given, "float64")
        want, want_saved = reference.cross_entropy(**wide, save=True)
        want_back = reference.cross_entropy_backward(**wide, dloss=cast(dloss, "float64"), saved=want_saved)
        close(f"loss {m} {v}", [loss], [want], dtype, v)
        close(f"dlogits {m} {v}", [dlogits], [want_back], dtype, v)
        ones = np.ones(m, dtype)
        want_back = reference.cross_entropy_backward(**wide, dloss=cast(ones, "float64"), saved=want_saved)
        close(f"of the sum {m} {v}", [_core.cross_entropy_backward(**given, dloss=ones, saved=saved)], [want_back], dtype, v)
        for row in range(0, m, 50):
            part = given | {"logits": given["logits"][row : row + 1], "targets": targets[row : row + 1]}
            alone_loss, alone_saved = _core.cross_entropy(**part, save=True)
            np.testing.assert_array_equal(alone_loss[0], loss[row])
            alone = _core.cross_entropy_backward(**part, dloss=dloss[row : row + 1], saved=alone_saved)
            np.testing.assert_array_equal(alone[0], dlogits[row])


@pytest.mark.parametrize("v", [40, 1000, 4096])
def test_top_k_where_few_are_numbers(v: int, isa: str, dtype: str, rng: np.random.Generator) -> None:
    x = np.full((4, v), np.nan, dtype)
    for row, count in enumerate((0, 2, 3, 30)):
        x[row, rng.permutation(v)[:count]] = rng.normal(size=count)
    for k in (1, 4, 20):
        for got, want in zip(_core.top_k(x=x, k=k), reference.top_k(x=x, k=k), strict=True):
            np.testing.assert_array_equal(got, want)


def test_cross_entropy_of_infinite_logits(isa: str, dtype: str) -> None:
    given = {"logits": INFINITE[:4], "targets": np.array([1, 2, 0, 1]), "ignore_index": -1, "label_smoothing": 0.0}
    loss, dlogits = _core.cross_entropy(**cast(given, dtype), save=True)
    want, lse = reference.cross_entropy(**given, save=True)
    close("loss", loss, want, dtype, 3)
    close("dlogits", dlogits, reference.cross_entropy_backward(**given, dloss=np.ones(4), saved=lse), dtype, 3)


def test_no_columns_or_no_units(isa: str, dtype: str, rng: np.random.Generator) -> None:
    given: dict[str, Any] = {"x": np.ones((2, 0)), "weight": np.ones((3, 0)), "bias": rng.normal(size=3)}
    given = cast(given | {"targets": np.array([1, 2]), "ignore_index": -1, "label_smoothing": 0.1}, dtype)
    forward, backward = run_cross_entropy(_core, given, np.ones(2, dtype))
    wide = cast(given, "float64")
    want, want_back = run_cross_entropy(reference, wide, np.ones(2))
    close("loss", forward, want, dtype, 3)
    close("backward", backward, want_back, dtype, 3)
    for steps in (1, 2):
        given = cast(lstm_arguments(rng, steps, 1, 5, 0, 1, None, True), dtype)
        grads = {name: np.ones((n, 1, 0), dtype) for name, n in (("dy", steps), ("dh_n", 1), ("dc_n", 1))}
        np.testing.assert_array_equal(run_lstm(_core, given, grads, False, True)[1][0], np.zeros((steps, 1, 5)))


@pytest.mark.parametrize("directions", [1, 2])
def test_one_step_of_one_row_has_the_bits_of_a_batch(directions: int, isa: str, dtype: str, rng: np.random.Generator) -> None:
    """It goes another way: weights are packed nowhere."""
    for inputs, hidden, start in ((5, 3, True), (70, 40, True), (16, 144, False), (530, 600, True)):
        given = cast(lstm_arguments(rng, 1, 2, inputs, hidden, directions, None, start), dtype)
        grads = cast({name: rng.normal(size=(directions, 2, hidden)) for name in ("dh_n", "dc_n")}, dtype)
        grads["dy"] = cast(rng.normal(size=(1, 2, directions * hidden)), dtype)
        whole, back = run_lstm(_core, given, grads, False, True)
        for row in (0, 1):
            part = {
                name: given[name][:, row : row + 1].copy() if given[name] is not None else None for name in ("x", "h0", "c0")
            }
            alone, alone_back = run_lstm(
                _core, given | part, {name: g[:, row : row + 1].copy() for name, g in grads.items()}, False, True
            )
            for a, b in zip([*alone, *alone_back[:3]], [*whole, *back[:3]], strict=True):
                np.testing.assert_array_equal(a, b[:, row : row + 1])
            rows = [
                given | part | {"packed": _core.pack_lstm(w_ih=given["w_ih"], w_hh=given["w_hh"]), "save": False},
                given | part,
            ]
            packed, plain = (_core.lstm(**{"packed": None, "save": False, "reverse": False} | r) for r in rows)
            for a, b in zip(packed[:3], plain[:3], strict=True):
                np.testing.assert_array_equal(a, b)
        twice = {name: np.repeat(g[:, :1], 2, 1) for name, g in grads.items()}
        same = {name: None if given[name] is None else np.repeat(given[name][:, :1], 2, 1) for name in ("x", "h0", "c0")}
        once = {name: None if given[name] is None else given[name][:, :1].copy() for name in ("x", "h0", "c0")}
        for name in ("dy", "dh_n", "dc_n"):
            twice[name][:, 1] = 0
        pair = run_lstm(_core, given | same, twice, False, True)[1][3:]
        single = run_lstm(_core, given | once, {name: g[:, :1].copy() for name, g in twice.items()}, False, True)[1][3:]
        for a, b in zip(pair, single, strict=True):
            np.testing.assert_array_equal(a, b)


def test_asarray_turns_the_bytes_of_foreign_numbers(rng: np.random.Generator) -> None:
    for dtype in ("float32", "float64", "int64", "uint64"):
        given = rng.integers(0, 9, 3).astype(dtype)
        taken = ops.asarray(given.astype(given.dtype.newbyteorder(">")))
        assert taken.dtype == dtype
        assert taken.dtype.isnative
        np.testing.assert_array_equal(taken, given)


def test_gaussian_kl_streamed_has_the_bits_of_a_part(isa: str, rng: np.random.Generator) -> None:
    mu, logvar, eps, dz, dkl = rng.standard_normal((5, 40_000, 128), np.float32)
    rest = {"free_bits": 0.1, "free_bits_over": "sample"}

    def both(part: slice) -> list[Any]:
        given = {"mu": mu[part], "logvar": logvar[part], "eps": eps[part]}
        return [
            *_core.gaussian_kl(**given, **rest),
            *_core.gaussian_kl_backward(dz=dz[part], dkl=dkl[part], **given, **rest),
        ]

    part = slice(12_345, 12_400)
    for whole, few in zip(both(slice(None)), both(part), strict=True):
        np.testing.assert_array_equal(whole[part], few)


PLANS = """
import hashlib
import numpy as np
from rheme import _core, ops

rng = np.random.default_rng(0)
_core.set_num_threads(n=THREADS)
digest = hashlib.sha256()
for directions, reverse in ((1, False), (1, True), (2, False)):
    x, (w_ih, w_hh) = rng.standard_normal((6, 5, 40), np.float32), rng.standard_normal((2, directions, 520, 130), np.float32)
    w_ih, bias = w_ih[:, :, :40].copy(), [rng.standard_normal(520, np.float32)] * directions
    lengths = np.array([3, 6, 0, 6, 1])
    y, h, c, gates, cells = ops.lstm(x, list(w_ih), list(w_hh), bias, lengths, None, None, reverse=reverse, save=True)
    dy = rng.standard_normal(y.shape, np.float32)
    back = ops.lstm_backward(dy, h, c, x, lengths, None, None, list(w_ih), list(w_hh), y, gates, cells, reverse)
    for array in (y, h, c, back[0], back[1], back[2], *back[3], *back[4], *back[5]):
        digest.update(array.tobytes())
print(digest.hexdigest())
"""


def test_either_plan_has_the_same_bits() -> None:
    """Rows or hidden units shared out, three threads, forward and back; a process reads the plan once."""

    def digest(threads: int, plan: str) -> str:
        env = {**os.environ, "RHEME_LSTM_PLAN": plan}
        program = PLANS.replace("THREADS", str(threads))
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert len({digest(1, "rows"), digest(3, "rows"), digest(3, "units"), digest(2, "units")}) == 1


def test_a_worker_is_moved_off_its_callers_core() -> None:
    """Both are put on one core; the worker alone is sent to the others."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    code = (
        "import os, time, numpy as np\n"
        "from rheme import _core\n"
        "_core.set_num_threads(n=2)\n"
        "a = np.ones((4, 100, 100), np.float32)\n"
        "before, cores = set(os.listdir('/proc/self/task')), os.sched_getaffinity(0)\n"
        "_core.matmul(a=a, b=a, transpose_a=False, transpose_b=False)\n"
        "(worker,) = map(int, set(os.listdir('/proc/self/task')) - before)\n"
        "one, end = {min(cores)}, time.monotonic() + 30\n"
        "os.sched_setaffinity(0, one)\n"
        "os.sched_setaffinity(worker, one)\n"
        "while os.sched_getaffinity(worker) == one and time.monotonic() < end:\n"
        "    _core.matmul(a=a, b=a, transpose_a=False, transpose_b=False)\n"
        "assert os.sched_getaffinity(worker) == cores - one, os.sched_getaffinity(worker)\n"
        "assert os.sched_getaffinity(0) == one\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60, env=dict(os.environ))

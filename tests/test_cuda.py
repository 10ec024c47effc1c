"""The GPU backend without a GPU: its kernels compiled as C++ and run on an emulated device, its Python path.

`emulated_cuda/` says how. What needs a real device is in test_gpu.py; how the kernels compile is in test_nvrtc.py.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuda_checks as checks
from cuda_device import down, emulated, up
from op_cases import CASES, cast
from rheme import _core, _cuda, ops
from rheme.errors import RhemeError
from test_ops import ALL, array_arguments, border_cases, lstm_arguments, run_lstm

CPP = Path(__file__).parents[1] / "cpp"


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    if not shutil.which("c++"):
        pytest.fail("the emulated device needs a C++ compiler, as building rheme does")


@pytest.fixture
def cupy() -> Iterator[Any]:
    with emulated() as module:
        yield module


# The package ------------------------------------------------------------------------------------------------------------------


def test_importing_it_imports_no_cupy() -> None:
    code = "import sys, rheme._cuda; assert not [m for m in sys.modules if m.startswith('cupy')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_kernel_file_has_its_twin() -> None:
    cuda, cpu = {p.stem for p in CPP.glob("*.cu")}, {p.stem for p in CPP.glob("*.cc")} - {"dispatch", "threads", "memory"}
    assert cpu - cuda == {"lstm_backward", "quantized_lstm"}  # in lstm.cu and quantized.cu


def test_the_kernels_are_package_data() -> None:
    from rheme._cuda.device import folder

    assert {p.name for p in CPP.glob("*.cu")} | {"device.h", "formulas.h"} <= {p.name for p in folder().iterdir()}


# Ops ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", CASES)
def test_op_equals_reference(op: str, dtype: str, rng: np.random.Generator, cupy: Any) -> None:
    checks.op_equals_reference(op, dtype, rng)


@pytest.mark.parametrize("op", checks.SAME_BITS)
def test_op_has_the_bits_of_the_cpu(op: str, rng: np.random.Generator, cupy: Any) -> None:
    checks.op_has_the_bits_of_the_cpu(op, rng)


def test_lstm_equals_reference(dtype: str, rng: np.random.Generator, cupy: Any) -> None:
    checks.lstm_equals_reference(dtype, rng)


def test_lstm_does_not_see_the_padding(rng: np.random.Generator, cupy: Any) -> None:
    checks.lstm_does_not_see_the_padding(rng)


def test_cross_entropy_equals_reference(dtype: str, rng: np.random.Generator, cupy: Any) -> None:
    checks.cross_entropy_equals_reference(dtype, rng)


def test_cross_entropy_in_chunks(rng: np.random.Generator, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rheme._cuda import rows

    monkeypatch.setattr(rows, "_KEPT", 0)
    monkeypatch.setattr(rows, "_CHUNK", 1)
    checks.cross_entropy_equals_reference("float32", rng)
    assert cupy.counts["gemm"]


def test_optimisers_equal_the_cpu(rng: np.random.Generator, cupy: Any) -> None:
    checks.optimisers_equal_the_cpu(rng)


def test_random_numbers_equal_the_cpu(cupy: Any) -> None:
    checks.random_numbers_equal_the_cpu()


def test_sampler_draws_what_the_cpu_draws(dtype: str, rng: np.random.Generator, cupy: Any) -> None:
    checks.sampler_draws_what_the_cpu_draws(dtype, rng)


def test_sampler_where_a_row_does_not_fit_in_shared_memory(rng: np.random.Generator) -> None:
    with emulated(SHARED=str(26 << 10)):
        checks.sampler_draws_what_the_cpu_draws("float32", rng)
        checks.op_equals_reference("top_k", "float32", rng)


@pytest.mark.parametrize("order", ["0", "1"])
def test_sampler_of_clusters_draws_what_the_cpu_draws(
    order: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rheme._cuda import rows

    monkeypatch.setenv("RHEME_CUDA_SAMPLER", "cluster")
    monkeypatch.setattr(rows, "_TEAM_THREADS", 32)  # of 512: they take turns on one processor
    with emulated(ORDER=order) as cupy:
        checks.sampler_draws_what_the_cpu_draws("float32", rng, rows=2, sizes=(2, 33, 300))
        assert cupy.counts["launch sample"] > 30
    with emulated(SHARED=str(41 << 10)):  # its part of a row does not fit
        checks.sampler_draws_what_the_cpu_draws("float64", rng, rows=1, sizes=(300,))


def test_sampler_of_clusters_reads_a_large_vocabulary_once(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """131,072 ids, peaked as a language model's, with ties: eight blocks hold the row, and draw what the CPU draws."""
    from rheme._cuda.rows import _sampling_room

    monkeypatch.setenv("RHEME_CUDA_SAMPLER", "cluster")
    logits = np.round(rng.normal(size=(1, 131072)) * 3, 2).astype(np.float32)
    given = {"temperature": 0.8, "top_k": 1000, "top_p": 0.9, "min_p": 0.001}
    with emulated():
        assert _sampling_room(131072, 4, 8) == (41216 + 65536, 1)
        assert _sampling_room(131072, 4, 1)[1] == 0
        bits = rng.integers(0, 2**64, 1, np.uint64)
        got = checks.DEVICE.sample(logits=logits, bits=bits, **given)
        np.testing.assert_array_equal(got, _core.sample(logits=logits, bits=bits, **given))


def test_which_sampler_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rheme._cuda import calibration
    from rheme._cuda.rows import _by_clusters

    monkeypatch.setenv("RHEME_CUDA_TABLE", str(tmp_path / "table.json"))
    with emulated(CAPABILITY="100"):
        assert not _by_clusters(10**6, "float32"), "nothing has been measured"
    with emulated():  # as on an H100
        assert _by_clusters(65536, "float32")
        assert not _by_clusters(65535, "float32")
    calibration.write(tmp_path / "table.json", "emulated device", {}, 50_000)
    with emulated():
        assert _by_clusters(50_000, "float32")
        assert not _by_clusters(49_999, "float32")
    for settings in ({"CLUSTERS": "0"}, {"CAPABILITY": "80"}):
        with emulated(**settings):
            assert not _by_clusters(50_000, "float32")
        monkeypatch.setenv("RHEME_CUDA_SAMPLER", "cluster")
        with emulated(**settings), pytest.raises(RhemeError, match="has no room for a cluster of 8 blocks"):
            _by_clusters(50_000, "float32")
        monkeypatch.delenv("RHEME_CUDA_SAMPLER")
    monkeypatch.setenv("RHEME_CUDA_SAMPLER", "fast")
    with emulated(), pytest.raises(RhemeError, match="give block or cluster"):
        _by_clusters(1, "float32")


def test_quantized_has_the_bits_of_the_cpu(rng: np.random.Generator, cupy: Any) -> None:
    checks.quantized_has_the_bits_of_the_cpu(rng)


def test_quantized_lstm_has_the_bits_of_the_cpu(rng: np.random.Generator, cupy: Any) -> None:
    checks.quantized_lstm_has_the_bits_of_the_cpu(rng)


LARGE = [pytest.param(h, marks=pytest.mark.slow) for h in (128, 256, 384, 512, 768, 800, 1024)]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("order", ["0", "1"])
@pytest.mark.parametrize("hidden", [64, 160, *LARGE])
def test_persistent_lstm(
    hidden: int, order: str, precision: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rheme._cuda.persistent import shape_of

    monkeypatch.setenv("RHEME_CUDA_LSTM", precision)
    shape = shape_of(hidden, precision)
    assert shape is not None
    with emulated(ORDER=order, MULTIPROCESSORS="132") as cupy:
        if precision == "bf16":
            checks.persistent_lstm_is_the_rounded_one(hidden, rng)
        else:
            checks.persistent_lstm_equals_reference(hidden, rng)
        # Two directions of one of the four cases: at once where there is room for both.
        launches = 4 + (shape.design == "grid" and 2 * shape.blocks > 132)
        assert cupy.counts["launch lstm_persistent"] == cupy.counts["launch lstm_persistent_backward"] == launches
        assert not cupy.counts["launch lstm_step"]


def test_persistent_lstm_on_a_grid_does_not_see_how_it_is_shared_out(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One set of blocks for all, a set to a direction, several to a direction: the same bits."""
    monkeypatch.setenv("RHEME_CUDA_LSTM", "fp32")
    given, grads = next(checks.persistent_cases(160, rng))
    seen = []
    for multiprocessors in ("20", "41", "85"):
        with emulated(MULTIPROCESSORS=multiprocessors):
            result = map(down, checks.run_lstm(_cuda, up(given), up(grads), True, True))
            seen.append([np.asarray(array).tobytes() for array in checks.flat(list(result))])
    assert seen[0] == seen[1] == seen[2]


def test_a_wait_that_never_ends_is_an_error(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer blocks run than were said to fit, as when another program takes the GPU: the debug build says so."""
    monkeypatch.setenv("RHEME_CUDA_LSTM", "fp32")
    monkeypatch.setenv("RHEME_CUDA_SPINS", "50")
    ((given, grads),) = list(checks.persistent_cases(160, rng))[3:]
    with emulated(MULTIPROCESSORS="132") as cupy:
        checks.run_lstm(_cuda, up(given), up(grads), True, True)  # enough looks where nothing is amiss
        assert cupy.counts["launch lstm_persistent_backward"] == 1
    with emulated(MULTIPROCESSORS="132", RESIDENT="30"):
        with pytest.raises(RhemeError, match=r"lstm_persistent: block 1\d of 20 did not answer after step 0, 50 looks"):
            _cuda.lstm(**up(given), packed=None, save=False)
        monkeypatch.delenv("RHEME_CUDA_SPINS")
        with pytest.raises(RuntimeError, match="a deadlock"):  # of the emulator: the plain build waits for ever
            _cuda.lstm(**up(given), packed=None, save=False)
    monkeypatch.setenv("RHEME_CUDA_SPINS", "many")
    with pytest.raises(RhemeError, match="RHEME_CUDA_SPINS=many: give a number"), emulated(MULTIPROCESSORS="132"):
        _cuda.lstm(**up(given), packed=None, save=False)


def test_persistent_lstm_is_chosen_by_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rheme._cuda import calibration
    from rheme._cuda.persistent import chosen, rows_at_once, shape_of

    table = tmp_path / "table" / "lstm.json"
    monkeypatch.setenv("RHEME_CUDA_TABLE", str(table))
    with emulated(CAPABILITY="80", MULTIPROCESSORS="132"):
        assert chosen(256, 10**6, 8, "float32") is None, "nothing has been measured"
    with emulated(MULTIPROCESSORS="132"):  # as on an H100: up to three turns of the two clusters that fit, of 8 rows each
        assert rows_at_once(256) == 16
        assert chosen(256, 8, 48, "float32") == shape_of(256, "fp32")
        assert chosen(256, 8, 49, "float32") is None
        assert chosen(256, 7, 1, "float32") is None, "too few steps"
        calibration.write(table, "another device", {256: 2}, 40)
        calibration.write(table, "emulated device", {64: 3, 256: 9}, 40)
        calibration.write(table, "emulated device", {256: 2, 512: 1}, None)
        assert calibration.read(table) == {
            "another device": {"lstm": {"256": 2}, "sample": 40},
            "emulated device": {"lstm": {"256": 2, "512": 1}},
        }
    with emulated(MULTIPROCESSORS="132"):
        assert chosen(256, 8, 33, "float32") is None
        assert chosen(256, 8, 32, "float32") == shape_of(256, "fp32")
        assert chosen(512, 8, 16, "float32") == shape_of(512, "fp32")
        assert chosen(64, 8, 1, "float32") is None
        assert chosen(256, 8, 1, "float64") is None
    with monkeypatch.context() as patch, emulated(MULTIPROCESSORS="132"):
        patch.setenv("RHEME_CUDA_LSTM", "plain")
        assert chosen(256, 8, 1, "float32") is None
    with emulated(MULTIPROCESSORS="63"):
        assert chosen(512, 8, 1, "float32") is None, "64 blocks wait for each other: they must all run"
    with emulated(CAPABILITY="80", MULTIPROCESSORS="132"):
        assert chosen(256, 8, 1, "float32") == shape_of(256, "fp32", clusters=False), "no clusters before 9.0"
    with emulated(CLUSTERS="0", MULTIPROCESSORS="132"):
        assert chosen(256, 8, 1, "float32") is None
    table.write_text(table.read_text().replace('"version": 2', '"version": 1'))
    with emulated(MULTIPROCESSORS="132"):
        assert calibration.own() == {}, "measured with other kernels"
    tables = ('{"a": {"lstm": {"x": 1}}}', '{"a": {"lstm": {"64": 0}}}', '{"a": {"sample": "8"}}', '{"a": {"lstm": []}}', "{")
    for broken in ("{", "[]", *(f'{{"version": 1, "devices": {devices}}}' for devices in tables)):
        table.write_text(broken)
        with emulated(), pytest.raises(RhemeError, match="not a table of --calibrate"):
            chosen(256, 8, 8, "float32")


def test_a_persistent_lstm_that_is_asked_for_and_does_not_fit_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    from rheme._cuda.persistent import chosen, shape_of

    for hidden in range(64, 1025, 32):
        for precision in ("bf16", "fp32"):
            for clusters in (True, False):
                assert shape_of(hidden, precision, clusters), "H from 64 to 1,024"
    assert [h for h in range(32, 1025, 32) if getattr(shape_of(h, "bf16"), "design", "") == "cluster"] == [
        32, 64, 96, 128, 192, 256, 384, 512, 640, 768,
    ]  # fmt: skip
    with emulated(MULTIPROCESSORS="132"):
        for precision, hidden, dtype in (("bf16", 100, "float32"), ("bf16", 256, "float64"), ("fp32", 1056, "float32")):
            monkeypatch.setenv("RHEME_CUDA_LSTM", precision)
            with pytest.raises(RhemeError, match=f"RHEME_CUDA_LSTM={precision}: not for a hidden size of"):
                chosen(hidden, 8, 8, dtype)
        monkeypatch.setenv("RHEME_CUDA_LSTM", "fast")
        with pytest.raises(RhemeError, match="give plain, fp32 or bf16"):
            chosen(256, 8, 8, "float32")
    monkeypatch.setenv("RHEME_CUDA_LSTM", "fp32")
    for settings, hidden in (({"MULTIPROCESSORS": "63"}, 512), ({"CLUSTERS": "0"}, 256)):
        with emulated(**settings), pytest.raises(RhemeError, match="has no room for the"):
            chosen(hidden, 8, 8, "float32")


def test_the_order_of_the_threads_does_not_show() -> None:
    """Whoever reads what another thread writes without waiting for it gets something else when they take turns otherwise."""
    seen = {}
    for order in ("0", "1", "2"):
        with emulated(ORDER=order):
            seen[order] = dict(checks.every_result(np.random.default_rng(7)))
    assert len(seen["0"]) > 100
    for order in ("1", "2"):
        assert not [what for what, bits in seen[order].items() if bits != seen["0"][what]]


# The border -----------------------------------------------------------------------------------------------------------------


def test_the_border_refuses_a_wrong_dtype_layout_shape_and_device(rng: np.random.Generator, cupy: Any) -> None:
    for op, given in border_cases(rng):
        function = getattr(_cuda, op)
        for name in array_arguments(given):
            array = given[name]
            strided = up(np.repeat(array, 2, axis=-1))[..., ::2]
            wrong: list[Any] = [up(array.astype(np.float16)), up(array.astype(np.int32)), strided, array]
            for value in wrong:
                with pytest.raises((ValueError, TypeError), match=r"\w+: |CuPy"):
                    function(**up(given) | {name: value})


def test_the_border_refuses_wrong_numbers(rng: np.random.Generator, cupy: Any) -> None:
    x, bits = up(rng.normal(size=(3, 4)).astype(np.float32)), up(np.zeros(3, np.uint64))
    for name, value in (("temperature", -1.0), ("top_p", -0.1), ("min_p", 1.5), ("top_k", -1), ("temperature", float("nan"))):
        with pytest.raises(ValueError, match=name):
            _cuda.sample(logits=x, bits=bits, **(ALL | {name: value}))
    with pytest.raises(ValueError, match="k"):
        _cuda.top_k(x=x, k=5)
    with pytest.raises(ValueError, match="free_bits_over"):
        _cuda.gaussian_kl(mu=x, logvar=x, eps=x, free_bits=0.0, free_bits_over="row")
    with pytest.raises(ValueError, match="p"):
        _cuda.dropout(x=x, p=1.5, seed=0, stream=0, period=0)
    for draw in (lambda: ops.dropout(x, 0.5, -1, 0), lambda: ops.random_normal(-1, 0, 0, (3,), like=x)):
        with pytest.raises(ValueError, match=r"^seed: -1, wanted 0\.\.2\*\*64-1$"):
            draw()
    with pytest.raises(ValueError, match="packed"):
        _cuda.linear(x=x, weight=x, bias=None, packed=_cuda.pack_linear(weight=up(np.ones((7, 9), np.float32))))
    with pytest.raises(ValueError, match="sm_90"):
        _cuda.set_isa(name="avx2")


def test_lengths_out_of_range(rng: np.random.Generator, cupy: Any) -> None:
    """Those of the host are refused, as on the CPU; those of the device count as the nearest that are in range."""
    given = cast(lstm_arguments(rng, 3, 2, 4, 5, 2, None, True), "float32")
    query, grads = given["x"], cast({"dy": rng.normal(size=(3, 2, 10)), "dh_n": None, "dc_n": None}, "float32")
    on_device = up(given)
    names = ("x", "w_ih", "w_hh", "bias")
    for wrong in ([1, 4], [-1, 3]):
        row = int(wrong[0] == 1)
        with pytest.raises(ValueError, match=rf"^lengths: {wrong[row]} at row {row}, wanted 0\.\.3$"):
            ops.lstm(*(on_device[name] for name in names), lengths=wrong)
        with pytest.raises(ValueError, match=rf"^lengths: {wrong[row]} at row {row}, wanted 0\.\.3$"):
            ops.attention(*(up(query),) * 3, lengths=np.array(wrong))
    wild, near = np.array([1 << 40, -7]), np.array([3, 0])
    for a, b in zip(
        checks.flat(run_lstm(_cuda, up(given | {"lengths": wild}), up(grads), False, True)),
        checks.flat(run_lstm(_cuda, up(given | {"lengths": near}), up(grads), False, True)),
        strict=True,
    ):
        np.testing.assert_array_equal(down(a), down(b))
    for a, b in zip(*(ops.attention(*(up(query),) * 3, lengths=up(n)) for n in (wild, near)), strict=True):
        np.testing.assert_array_equal(down(a), down(b))


def test_quantized_lstm_refuses_what_the_cpu_refuses(cupy: Any) -> None:
    x, w, bias = np.ones((2, 1, 3), np.float32), np.ones((12, 3), np.float16), np.ones(12, np.float32)
    small = {np.float16: (w, None), np.int8: (w.astype(np.int8), np.ones(12, np.float32))}
    for weight, scale in small.values():
        for place in (up, lambda array: array):
            packed = [ops.pack_quantized(place(weight), None if scale is None else place(scale), gates=True)] * 2
            with pytest.raises(ValueError, match=r"^reverse: only for one direction"):
                ops.quantized_lstm(place(x), packed, packed, [place(bias)] * 2, reverse=True)
            with pytest.raises(ValueError, match=r"^bias: "):
                ops.quantized_lstm(place(x), packed, packed, [place(bias)])


def test_an_id_out_of_range_is_told_at_the_next_norm(cupy: Any) -> None:
    weight = up(np.ones((3, 2), np.float32))
    y = down(_cuda.embedding(ids=up(np.array([0, 5, 2])), weight=weight))
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), [False, True, False])
    with pytest.raises(IndexError, match="5 at position 1"):
        _cuda.global_norm(arrays=[weight])
    assert _cuda.global_norm(arrays=[weight]) == pytest.approx(np.sqrt(6))  # told once


# The device -----------------------------------------------------------------------------------------------------------------


def test_machine_functions(cupy: Any) -> None:
    assert _cuda.isa() == "sm_90"
    assert _cuda.available_isas() == ["sm_90"]
    assert _cuda.num_threads() == 4
    _cuda.set_num_threads(n=4)
    with pytest.raises(ValueError, match="n"):
        _cuda.set_num_threads(n=1)
    assert _cuda.fma_peak(dtype="float32", iterations=2) > 0
    array = _cuda.zeros(shape=(3, 4), dtype="float32")
    assert _cuda.arena_bytes() >= array.nbytes
    info = _cuda.build_info()
    assert "emulated device (sm_90, 4 multiprocessors)" in info["device"]
    assert "GiB free" in info["memory"]
    assert "optim (float32)" in info["compiled"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"FAULT": "driver"}, "driver is too old for this CuPy"),
        ({"FAULT": "device"}, "the driver finds no GPU"),
        ({"VERSION": "13.4.0"}, "CuPy 13.4.0 is too old, 14.2 is needed"),
        ({"MEMORY": "4096"}, "the GPU is out of memory"),
        ({"FAULT": "compiler"}, "CuPy finds no NVRTC, which compiles the kernels"),
    ],
)
def test_what_stands_in_the_way_is_said_in_one_line(settings: dict[str, str], line: str) -> None:
    with emulated(**settings), pytest.raises(RhemeError, match=line) as raised:
        _cuda.neg(x=_cuda.zeros(shape=(10_000,), dtype="float32"))
    assert "\n" not in str(raised.value)


def test_a_graph_without_cublas_is_one_line() -> None:
    with emulated(FAULT="cublas"):
        weight = up(np.ones((4, 4), np.float32))
        with pytest.raises(RhemeError, match="cuBLAS 13 is nowhere to be found"):
            _cuda.Graphs().record(lambda x: _cuda.linear(x=x, weight=weight, bias=None, packed=None), [weight])


def test_a_kernels_own_shared_memory_counts(rng: np.random.Generator, cupy: Any) -> None:
    """6,000 ids and the counts are just below the 48 KB that every kernel has, 51,800 just below all that there is."""
    for columns in (6000, 51_800):
        logits, bits = rng.normal(size=(1, columns)).astype(np.float32), rng.integers(0, 2**64, 1, np.uint64)
        given = {"logits": logits, "bits": bits, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        np.testing.assert_array_equal(checks.DEVICE.sample(**given), _core.sample(**given))


def test_without_cupy_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from rheme._cuda import device

    monkeypatch.setitem(sys.modules, "cupy", None)
    device.cupy.cache_clear()
    with pytest.raises(RhemeError, match=r"pip install 'rheme\[cuda13\]'"):
        _cuda.zeros(shape=(1,), dtype="float32")


def test_first_compilation_is_told_once(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for expected in (1, 0):  # the second process finds it compiled
        with emulated():
            monkeypatch.delenv("CUPY_CACHE_IN_MEMORY")
            monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
            _cuda.neg(x=up(np.ones(3, np.float32)))
            _cuda.neg(x=up(np.ones(3, np.float32)))
        assert capfd.readouterr().err.count("compiling elementwise kernels for sm_90") == expected


def test_the_emulator_sees_a_write_beyond_an_array(cupy: Any) -> None:
    from rheme._cuda.device import launch

    x = _cuda.zeros(shape=(4,), dtype="float32")
    with pytest.raises(RuntimeError, match="beyond an array"):
        launch("elementwise", "map_neg", "float32", 1, 32, 5, x, x)


def test_the_emulator_sees_a_barrier_that_not_all_reach(cupy: Any) -> None:
    code = """extern "C" __global__ void half(int64_t n) { if (threadIdx.x < 16) __syncthreads(); }"""
    with pytest.raises(RuntimeError, match="deadlock"):
        cupy.RawModule(code=code, options=()).get_function("half")((1,), (32,), (1,))


def test_the_emulator_takes_no_array_of_numpy(cupy: Any) -> None:
    array = up(np.ones(3, np.float32))
    with pytest.raises(TypeError):
        np.asarray(array)
    with pytest.raises(TypeError):
        array[...] = np.ones(3, np.float32)
    kernel = cupy.RawModule(code='extern "C" __global__ void f(const float* x) {}', options=()).get_function("f")
    with pytest.raises(TypeError, match="argument"):
        kernel((1,), (32,), (np.ones(3, np.float32),))

"""Every CUDA kernel compiled by NVRTC, as CuPy would, for each generation of GPUs; its registers and spills held to budgets.

Needs the NVRTC wheel of the test group, and no GPU. CI may not skip it: tests/allowed_skips.txt does not name it.
"""

import ctypes
import functools
import re
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import pytest

from rheme._cuda.device import OPTIONS, folder, source
from rheme._cuda.persistent import shape_of

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

# What CuPy adds of its own.
CUPY = ("-ftz=true", "--device-as-default-execution-space")

# Kernels by their registers a thread, at most, for float; none may spill. A block of 256 threads then leaves room for several
# on a multiprocessor of 65,536 registers.
BUDGET: dict[str, int] = {}
MOST = 64
# Of double, which serves gradient checks, the trigonometry's argument reduction may use a little memory.
MOST_DOUBLE, STACK_DOUBLE = 128, 128


@functools.cache
def nvrtc() -> Any:
    try:
        files = metadata.files("nvidia-cuda-nvrtc") or []
    except metadata.PackageNotFoundError:
        pytest.skip("could not import 'nvidia-cuda-nvrtc': pip install --group test")
    path = next(file for file in files if re.fullmatch(r"libnvrtc\.so\.\d+", file.name))
    return ctypes.CDLL(str(path.locate()))


def compiled(name: str, architecture: str, floating: str, *defines: str) -> tuple[int, str]:
    """NVRTC's result and its log, with what ptxas tells of each kernel."""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    text = source(name).encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None) == 0
    options = (*OPTIONS, f"-DRHEME_FLOAT={floating}", f"-arch={architecture}", *CUPY, "--ptxas-options=-v", *defines)
    result = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options)))
    assert library.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert library.nvrtcGetProgramLog(program, log) == 0
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return result, log.value.decode()


_REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def kernels_of(name: str) -> set[str]:
    """The kernels that a file defines, as far as its text shows; macros make more."""
    return set(
        re.findall(r'extern "C" __global__ void (?:__\w+__\([^)]*\) |RHEME_CLUSTER\(\w+\) |RHEME_TEAM )*(\w+)\(', source(name))
    )


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.cu") if path.stem not in BY_SIZE)


# Compiled for one size; its weights are meant to fill the registers.
BY_SIZE = {"lstm_persistent", "lstm_persistent_f32", "lstm_grid"}


@pytest.mark.parametrize("name", names())
def test_kernels_compile_within_their_budgets(name: str) -> None:
    nvrtc()
    jobs: list[tuple[str, ...]] = [(name, architecture, "float") for architecture in ARCHITECTURES]
    jobs.append((name, "sm_90", "double"))
    if name == "sample":  # a cluster of blocks to a row
        jobs += [(name, architecture, "float", "-DRHEME_CTAS=8") for architecture in ARCHITECTURES[1:]]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: compiled(*job), jobs))
    wrong = []
    for (_, architecture, floating, *defines), (result, log) in zip(jobs, results, strict=True):
        where = " ".join((name, architecture, floating, *defines))
        assert result == 0, f"{where}: {log}"
        assert "warning" not in log, f"{where}: {log}"
        found = {kernel: tuple(map(int, rest)) for kernel, *rest in _REPORT.findall(log)}
        assert kernels_of(name) - ({"top_k"} if defines else set()) <= found.keys(), (
            f"{where}: the log tells of {sorted(found)}"
        )
        for kernel, (stack, stores, loads, registers) in found.items():
            most = MOST_DOUBLE if floating == "double" else BUDGET.get(kernel, MOST)
            allowed = STACK_DOUBLE if floating == "double" else 0
            if stores or loads or stack > allowed or registers > most:
                wrong.append(f"{where}: {kernel}: {registers} registers, {stack} bytes of stack, {stores + loads} spilled")
    assert not wrong, "\n".join(wrong)


SIZES = [("bf16", 64), ("bf16", 512), ("bf16", 768), ("bf16", 1024), ("fp32", 256), ("fp32", 384), ("fp32", 1024)]
MORE = [("bf16", h) for h in (32, 96, 128, 160, 192, 256, 384, 640, 896)]
MORE += [("fp32", h) for h in (32, 64, 96, 128, 160, 192, 512, 768)]


@pytest.mark.parametrize(("precision", "hidden"), [*SIZES, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE)])
def test_persistent_lstm_compiles_within_its_budget(precision: str, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All registers that a block of its threads can have, no spills, and shared memory that a block can have."""
    nvrtc()
    shape = shape_of(hidden, precision)
    assert shape is not None
    assert max(shape.forward, shape.backward) <= 227 << 10
    jobs = [(a, shape.defines()) for a in ARCHITECTURES if a != "sm_80" or shape.design == "grid"]
    if shape.design == "grid":
        monkeypatch.setenv("RHEME_CUDA_SPINS", "1000")  # and the debug build
        jobs.append(("sm_90", shape.defines()))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: compiled(shape.file, job[0], "float", *job[1]), jobs))
    for result, log in results:
        assert result == 0, log
        assert "warning" not in log, log
        found = _REPORT.findall(log)
        assert {kernel for kernel, *_ in found} == {"lstm_persistent", "lstm_persistent_backward"}
        for kernel, *numbers in found:
            stack, stores, loads, registers = map(int, numbers)
            assert stack == stores == loads == 0, f"{kernel}: {stack} bytes of stack, {stores + loads} spilled"
            assert registers <= min(255, 65536 // shape.threads // 8 * 8), f"{kernel}: {registers} registers"


def test_a_spill_would_be_seen() -> None:
    """The log of a kernel that has to spill is read as such."""
    code = """extern "C" __global__ void __launch_bounds__(1024) spills(float* x) {
      float a[256];
      for (int i = 0; i < 256; ++i) a[i] = x[i * 1024 + threadIdx.x];
      __syncthreads();
      for (int i = 0; i < 256; ++i) x[i * 1024 + threadIdx.x] = a[i] * a[255 - i];
    }"""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"spills", 0, None, None) == 0
    options = [b"-arch=sm_90", b"--ptxas-options=-v"]
    assert library.nvrtcCompileProgram(program, 2, (ctypes.c_char_p * 2)(*options)) == 0
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    ((kernel, stack, stores, loads, registers),) = _REPORT.findall(log.value.decode())
    assert kernel == "spills"
    assert int(stack) + int(stores) + int(loads) > 0
    assert int(registers) <= 64

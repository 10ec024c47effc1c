"""The kernels for 64-bit Arm: cross-compiled, run under an emulator, and held to the bits that AVX2 makes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rheme import _core

ROOT = Path(__file__).parents[1]
COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")


def write_golden(path: Path, isa: str, *part: str) -> Path:
    environment = os.environ | {"RHEME_ISA": isa, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, ROOT / "tests" / "neon" / "golden.py", path, *part]
    written = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith(f"{isa}: ")
    return path


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "avx2" not in _core.available_isas():
        pytest.skip("this CPU has no AVX2, whose bits are the golden ones")
    return write_golden(tmp_path_factory.mktemp("golden") / "avx2.bin", "avx2")


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs rheme_check for 64-bit Arm."""
    for tool in (COMPILER, "cmake"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if not emulator:
        pytest.skip("qemu-aarch64 is not installed")
    build = tmp_path_factory.mktemp("aarch64")
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}")
    for command in (["cmake", "-S", ROOT, "-B", build, "-DRHEME_CHECK=ON", *target], ["cmake", "--build", build, "-j2"]):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    return [emulator, str(build / "rheme_check")]


@pytest.mark.parametrize("isa", [name for name in _core.available_isas() if name not in ("avx2", "baseline")])
def test_every_instruction_set_writes_the_same_file_as_avx2(isa: str, golden: Path, tmp_path: Path) -> None:
    assert write_golden(tmp_path / "other.bin", isa).read_bytes() == golden.read_bytes()


@pytest.mark.timeout(900)
def test_neon_makes_the_bits_of_avx2(check: list[str], golden: Path) -> None:
    ops = checked(check, golden, "neon")
    named = "lstm lstm_backward linear linear_cross_entropy attention softmax gaussian_kl adamw sample exp tanh log sigmoid"
    assert set(named.split()) <= ops
    assert set(QUANTIZED) <= ops


def test_neon_with_dot_products_makes_them_too(check: list[str], golden: Path, tmp_path: Path) -> None:
    assert golden.exists()
    assert checked(check, write_golden(tmp_path / "small.bin", "avx2", "quantized"), "neon_dotprod") == set(QUANTIZED)


QUANTIZED = ("quantized_linear", "quantized_lstm", "quantized_embedding", "unpack_quantized")


def checked(check: list[str], golden: Path, isa: str) -> set[str]:
    """The ops of the file, all of whose bits an instruction set of 64-bit Arm makes."""
    run = subprocess.run(
        [*check, golden, "1", "3"], env=os.environ | {"RHEME_ISA": isa}, capture_output=True, text=True, check=False
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = run.stdout.splitlines()[-1]
    found = re.fullmatch(rf"{isa}: (\d+) records, (\d+) elements, 0 wrong", summary)
    assert found, summary
    assert int(found[1]) > 200
    return {line.split()[0] for line in run.stdout.splitlines()[:-1]}


def test_the_check_sees_a_wrong_bit(check: list[str], golden: Path, tmp_path: Path) -> None:
    """The file ends with a value of the reference: a bit flipped there, and an end cut off, are noticed."""
    data = bytearray(golden.read_bytes())
    data[-2] ^= 0x40
    spoilt = tmp_path / "spoilt.bin"
    spoilt.write_bytes(data)
    assert subprocess.run([*check, spoilt, "1"], capture_output=True, check=False).returncode == 1
    spoilt.write_bytes(data[:-9])
    assert subprocess.run([*check, spoilt, "1"], capture_output=True, check=False).returncode == 2

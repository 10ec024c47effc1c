"""This machine's limits, measured in the run that they are compared with: `limits.cc`, compiled here."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

UNITS = {"fma": "GFLOP/s", "fma_avx2": "GFLOP/s", "int8": "GOP/s", "L1": "GB/s", "L2": "GB/s", "L3": "GB/s", "DRAM": "GB/s"}


@functools.cache
def _program() -> str:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise SystemExit("the limits are measured by a C++ program, and there is no c++, g++ or clang++ on the PATH")
    source = Path(__file__).with_name("limits.cc")
    program = Path(tempfile.mkdtemp(prefix="limits-")) / "limits"
    subprocess.run([compiler, "-O3", "-march=native", "-pthread", "-o", str(program), str(source)], check=True)
    return str(program)


def measure(threads: int) -> dict[str, float]:
    """FLOP/s, OP/s, bytes/s of all threads together; and the sizes of the caches of one core (L2) and of all (L3)."""
    lines = subprocess.run([_program(), str(threads)], check=True, capture_output=True, text=True).stdout.splitlines()
    values = {name: float(value) for name, value in (line.split() for line in lines)}
    return {name: value if name.endswith("_bytes") else value * 1e9 for name, value in values.items()}

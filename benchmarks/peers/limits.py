"""This machine's limits, measured in the run that they are compared with: `limits.cc`, compiled here."""

import functools
import shutil
import subprocess
import tempfile
import time
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


def _run(threads: int, *only: str) -> dict[str, float]:
    lines = subprocess.run([_program(), str(threads), *only], check=True, capture_output=True, text=True).stdout.splitlines()
    values = {name: float(value) for name, value in (line.split() for line in lines)}
    return {name: value if name.endswith("_bytes") else value * 1e9 for name, value in values.items()}


@functools.cache
def _one_thread() -> float:
    return max(_run(1, "fma")["fma"] for _ in range(3))


def cores_there(threads: int) -> bool:
    """Whether each thread has a core of its own just now: other work may hold one, or two of a virtual machine be one."""
    return threads == 1 or _run(threads, "fma")["fma"] >= 0.85 * threads * _one_thread()


def wait_for_cores(threads: int, seconds: float = 30.0) -> bool:
    """Until each thread has a core; False where that does not happen within the time."""
    end = time.perf_counter() + seconds
    while not cores_there(threads):
        if time.perf_counter() > end:
            return False
        time.sleep(0.5)
    return True


def measure(threads: int) -> dict[str, float]:
    """FLOP/s, OP/s, bytes/s of all threads together; and the sizes of the caches of one core (L2) and of all (L3)."""
    for _ in range(5):
        if wait_for_cores(threads):
            found = _run(threads)
            if cores_there(threads):
                return found
    raise SystemExit(f"{threads} threads do not get as many cores here: their limits cannot be measured")

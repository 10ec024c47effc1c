"""Kernels as C++: the text that NVRTC would get, behind `block.h`, with a function for each kernel that launches it."""

import ctypes
import functools
import hashlib
import os
import re
import subprocess
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy

from . import cuda, memory

HERE = Path(__file__).parents[1]
FLAGS = (
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-w",
)


class CompileException(Exception):  # noqa: N818 (CuPy's name)
    pass


def build(text: str, flags: tuple[str, ...] = ("-O1",)) -> Any:
    """The library of a C++ text, kept in a folder of the system's temporary one."""
    key = hashlib.sha256("\0".join((text, *FLAGS, *flags)).encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"rheme-emulated-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    path = folder / f"{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as room:
            source, out = Path(room) / "source.cc", Path(room) / "out.so"
            source.write_text(text)
            run = subprocess.run(["c++", *FLAGS, *flags, "-o", out, source], capture_output=True, text=True, check=False)
            if run.returncode:
                raise CompileException(run.stderr)
            os.replace(out, path)
    return ctypes.CDLL(str(path))


def preprocessed(code: str, options: tuple[str, ...]) -> str:
    defines = [option for option in options if option.startswith("-D")]
    text = f'#include "{HERE / "block.h"}"\n{code}'
    command = ["c++", "-std=c++17", "-fno-exceptions", "-E", "-P", *defines, "-x", "c++", "-"]
    run = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if run.returncode:
        raise CompileException(run.stderr)
    return run.stdout


_SIGNATURE = re.compile(r'extern "C"\s+void\s+((?:__attribute__\s*\(\(\w+\(.*?\)\)\)\s*)*)(\w+)\s*\(([^)]*)\)\s*\{')
ATTRIBUTE = re.compile(r"rheme_(\w+)\(\(?([^()]*)\)")


@functools.cache
def library(code: str, options: tuple[str, ...]) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The compiled text, and for each kernel its arguments' types, its cluster and its bounds."""
    text, kernels, launchers = preprocessed(code, options), {}, []
    for attributes, name, parameters in _SIGNATURE.findall(text):
        types = [" ".join(part.split()[:-1]) + ("*" if "*" in part.split()[-1] else "") for part in parameters.split(",")]
        facts = {"bounds": "1024", "cluster": "1"} | dict(ATTRIBUTE.findall(attributes))
        kernels[name] = {"types": types}
        for kind in ("bounds", "cluster"):  # constants of the text: the compiler knows their values
            launchers.append(f'extern "C" unsigned {kind}_{name}() {{ return {facts[kind].split(",")[0]}; }}')
        arguments = ", ".join(f"*static_cast<__typeof__({kind})*>(a[{i}])" for i, kind in enumerate(types))
        launchers.append(
            f'extern "C" int launch_{name}(const emulated::Launch* l, void** a) {{ '
            f"return emulated::run(*l, [&] {{ {name}({arguments}); }}); }}"
        )
    floating = "double" if "-DRHEME_FLOAT=double" in options else "float"
    for kernel in kernels.values():
        kernel["types"] = [re.sub(r"\bT\b", floating, kind) for kind in kernel["types"]]
    return build("\n".join((text, *launchers))), kernels


class Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("cluster", ctypes.c_uint),
        ("together", ctypes.c_uint),
        ("order", ctypes.c_int),
    )


NAMES = {"float": "float32", "double": "float64", "int64_t": "int64", "uint64_t": "uint64", "uint32_t": "uint32",
         "uint8_t": "uint8", "int32_t": "int32", "uint16_t": "uint16"}  # fmt: skip


by_pointer: "weakref.WeakValueDictionary[int, Kernel]" = weakref.WeakValueDictionary()


class Kernel:
    """What CuPy's get_function gives: kernel(grid, block, arguments, shared_mem=0)."""

    def __init__(self, library: Any, name: str, cooperative: bool = False) -> None:
        binary, kernels = library
        self.cooperative = cooperative
        if name not in kernels:
            raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        self.name, self.function = name, getattr(binary, f"launch_{name}")
        self.facts = kernels[name] | {kind: getattr(binary, f"{kind}_{name}")() for kind in ("bounds", "cluster")}
        self.max_dynamic_shared_size_bytes, self.most_blocks = 47 << 10, 8  # the kernel has some of the 48 for itself
        self.kernel = SimpleNamespace(ptr=id(self))  # as a RawKernel has it
        by_pointer[id(self)] = self

    def __call__(self, grid: Any, block: Any, arguments: Any, *, shared_mem: int = 0) -> None:
        types, cluster = self.facts["types"], self.facts["cluster"]
        threads = int(numpy.prod(block))
        if len(arguments) != len(types):
            raise TypeError(f"{self.name}: {len(arguments)} arguments for {len(types)} parameters")
        if not 0 < threads <= self.facts["bounds"] or min(grid) < 1 or grid[0] % cluster:
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: {self.name}: grid {grid}, block {block}")
        if any(n > 65535 for n in grid[1:]) or grid[0] > 2**31 - 1:
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: {self.name}: grid {grid}")
        if cluster > self.most_blocks:
            raise RuntimeError(f"CUDA_ERROR_INVALID_CLUSTER_SIZE: {self.name}: {cluster} blocks")
        if shared_mem > min(self.max_dynamic_shared_size_bytes, 226 << 10):
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: {self.name}: {shared_mem} bytes of shared memory")
        together = cluster
        if self.cooperative:
            if cluster > 1:
                raise RuntimeError(f"CUDA_ERROR_INVALID_CLUSTER_SIZE: {self.name}: a cooperative launch of clusters")
            together = int(numpy.prod(grid))
            if together > cuda.resident_blocks():
                raise RuntimeError(f"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE: {self.name}: {together} blocks")
            together = min(together, int(os.environ.get("RHEME_EMULATED_RESIDENT", together)))
        held, blocks = [], []
        for position, (kind, argument) in enumerate(zip(types, arguments, strict=True)):
            value, owner = self._argument(position, kind, argument)
            held.append(value)
            if owner is not None and cuda.capturing is None:  # a graph holds addresses, not arrays
                blocks.append(owner)
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
        order = int(os.environ.get("RHEME_EMULATED_ORDER", "0"))
        launch = Launch((ctypes.c_uint * 3)(*(*grid, 1, 1)[:3]), threads, shared_mem, cluster, together, order)
        cuda.module.counts["launch"] += 1
        cuda.module.counts[f"launch {self.name}"] += 1

        def run() -> None:
            if self.function(ctypes.byref(launch), pointers) or held is None:
                raise RuntimeError(f"{self.name}: a deadlock: some threads wait where others never come")
            broken = [block for block in blocks if not block.intact()]
            if broken:
                raise RuntimeError(f"{self.name} wrote beyond an array")

        cuda.do(run)

    def _argument(self, position: int, kind: str, argument: Any) -> tuple[Any, Any]:
        where = f"{self.name}, argument {position} ({kind})"
        plain = kind.replace("const ", "").replace(" ", "")
        if plain.endswith("*"):
            if isinstance(argument, cuda.module.ndarray):
                if argument.dtype != NAMES[plain[:-1]]:
                    raise TypeError(f"{where}: an array of {argument.dtype}")
                return ctypes.c_void_p(argument.data.ptr), argument._block
            if isinstance(argument, numpy.uint64) and argument == 0:
                return ctypes.c_void_p(0), None
            raise TypeError(f"{where}: {type(argument)}")
        if plain == "int64_t" and isinstance(argument, int):
            return ctypes.c_int64(argument), None
        if plain == "double" and isinstance(argument, float):
            return ctypes.c_double(argument), None
        if plain == "uint64_t" and isinstance(argument, numpy.uint64):
            return ctypes.c_uint64(int(argument)), None
        raise TypeError(f"{where}: {type(argument)}")


__all__ = ["HERE", "CompileException", "Kernel", "build", "library", "memory"]

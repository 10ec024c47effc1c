"""The rules of the house: who may use whom, where things may stand, and what the README says of it."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "rheme"
CPP = ROOT / "cpp"

# Python ---------------------------------------------------------------------------------------------------------------------

# Module or folder of python/rheme -> what it may import from there. Arrays (`ops`) are open to all that stand on them, errors
# to all. Nobody may import plugins: they are found by their entry points.
ARRAYS = {"ops"}
TENSORS = ARRAYS | {"autograd", "functional"}
LAYERS = TENSORS | {"nn"}
LOOPS = LAYERS | {"optim", "text", "storage", "decoding"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "pictures": {"errors"},
    "_cuda": {"_core"},
    "ops": {"_core", "_cuda"},
    "autograd": ARRAYS,
    "functional": ARRAYS | {"autograd"},
    "optim": ARRAYS | {"autograd"},
    "nn": TENSORS,
    "text": ARRAYS,
    "storage": ARRAYS,
    "models": LAYERS | {"text"},
    "decoding": LOOPS,
    "evaluation": LOOPS,
    "calibration": ARRAYS,
    "conformance": {"tasks", "training", "storage", "autograd"},
    "sklearn": {"tasks", "training", "latent"},
    "metrics": ARRAYS | {"text"},
    "training": LOOPS | {"tasks", "pictures"},
    "transfer": LOOPS,
    "latent": LOOPS | {"pictures", "transfer"},
    "doctor": LOOPS | {"pictures"},
    "quantization": LAYERS | {"storage"},
    "tasks": ARRAYS | {"storage", "text", "nn", "autograd", "quantization"},
    "plugins": LOOPS | {"models", "tasks", "training", "evaluation", "metrics", "calibration", "latent", "doctor", "pictures"},
    "cli": {"conformance", "tasks", "training", "storage", "text", "ops", "latent", "doctor", "_core", "_cuda"},
    "__init__": {"tasks", "training", "storage", "nn", "ops", "optim", "functional", "autograd", "models", "decoding", "_core"},
    "__main__": {"cli"},
}

# Sums and functions of floating numbers go through the core, so that an answer has the same bits everywhere. Where one of these
# is used on integers, say so on the line: `# integers`.
NUMPY_ARITHMETIC = set(
    "matmul dot vdot inner outer tensordot einsum linalg exp exp2 expm1 log log2 log10 log1p tanh sinh cosh sin cos tan sum "
    "nansum mean nanmean average std var sqrt cbrt power float_power prod cumsum cumprod logaddexp logaddexp2 convolve "
    "correlate add subtract multiply divide true_divide hypot reciprocal square interp polyval fft random".split()
)
ARRAY_METHODS = {"dot", "std", "var", "cumsum", "cumprod", "prod"}  # sum and mean are methods of Tensor, too


def python_files(folder: Path = PACKAGE) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def room(path: Path) -> str:
    """The module, or the folder, that a file of python/rheme belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and first part below `rheme` of everything that a file imports from the package, also inside functions."""
    package = ("rheme", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "rheme":
                    yield node.lineno, [*alias.name.split("."), "__init__"][1]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            parts = base + (node.module.split(".") if node.module else [])
            if parts == ["rheme"]:
                for alias in node.names:
                    known = alias.name == "_core" or any((PACKAGE / f"{alias.name}{end}").exists() for end in ("", ".py"))
                    yield node.lineno, alias.name if known else "__init__"
            elif parts[:1] == ["rheme"]:
                yield node.lineno, parts[1]


def test_python_arrows() -> None:
    wrong = []
    for path in python_files():
        name = room(path)
        assert name in MAY_IMPORT, f"{path.relative_to(ROOT)}: a new room; say in tests/test_layout.py whom it may import"
        for line, used in imports(path):
            if used != name and used not in MAY_IMPORT[name] | {"errors"}:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name} may not import {used}")
    assert not wrong, "\n".join(wrong)


def test_arrows_have_no_cycle() -> None:
    done: set[str] = set()
    rooms = {**MAY_IMPORT, "_core": set()}
    while len(done) < len(rooms):
        free = {name for name, uses in rooms.items() if name not in done and uses - {name} <= done}
        assert free, f"a cycle among {sorted(set(rooms) - done)}"
        done |= free


def numpy_arithmetic(path: Path) -> Iterator[str]:
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    tree = ast.parse(source)
    numpy_names = {"numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            numpy_names |= {alias.asname for alias in node.names if alias.name == "numpy" and alias.asname}
    for node in ast.walk(tree):
        found = ""
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            found = "@"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in numpy_names:
            found = f"numpy.{node.attr}" if node.attr in NUMPY_ARITHMETIC else ""
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numpy":
            found = ", ".join(f"numpy.{a.name}" for a in node.names if a.name in NUMPY_ARITHMETIC)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ARRAY_METHODS:
            is_module = isinstance(node.func.value, ast.Name) and node.func.value.id in {
                "math",
                "ops",
                "F",
                "functional",
                *numpy_names,
            }
            found = "" if is_module else f".{node.func.attr}()"
        if found and "# integers" not in lines[node.lineno - 1]:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {found}"


def test_numpy_does_no_arithmetic() -> None:
    """Indexing, comparison and work on integers are NumPy's; floating arithmetic is the core's."""
    wrong = [line for path in python_files() if path.name != "_cuda.py" for line in numpy_arithmetic(path)]
    assert not wrong, "\n".join(wrong)


def test_the_arithmetic_check_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "x.py"
    path.write_text("import numpy as np\nimport math\ny = np.exp(a @ b)\nz = a.dot(b)\nw = math.exp(math.prod((1, 2)))\n"
                    "n = np.sum(lengths)  # integers\nfrom numpy import tanh\n")  # fmt: skip
    assert sorted(numpy_arithmetic(path)) == ["x.py:3: @", "x.py:3: numpy.exp", "x.py:4: .dot()", "x.py:7: numpy.tanh"]


# C++ ------------------------------------------------------------------------------------------------------------------------

KERNEL_HEADERS = {path.name for path in CPP.glob("*.h")} - {"device.h", "cluster.h", "persistent.h"}
SYSTEM_C = {"stddef.h", "stdint.h", "time.h", "immintrin.h", "arm_neon.h"}  # no C++ library in a file compiled once per ISA
MAY_INCLUDE: dict[str, set[str]] = {
    "formulas.h": set(),
    "kernels.h": set(),
    "threads.h": set(),
    "memory.h": set(),
    "simd.h": {"formulas.h"},
    "gemm.h": {"simd.h", "kernels.h", "threads.h", "memory.h", "transpose.h"},
    "transpose.h": {"simd.h"},
    "quantized.h": {"gemm.h"},
    "random_optim.cc": {"arrays.h", "formulas.h"},  # Philox of one counter is not worth a place in the table
    "dispatch.cc": {"kernels.h"},
    "threads.cc": {"threads.h"},
    "memory.cc": {"memory.h"},
    "device.h": {"formulas.h"},
    "cluster.h": {"device.h"},
    "persistent.h": {"cluster.h"},
}
RUNTIME = {"dispatch.cc", "threads.cc", "memory.cc"}


def cpp_files() -> list[Path]:
    return sorted(p for p in CPP.rglob("*") if p.suffix in {".h", ".cc", ".cu"})


def includes(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, name without folders, and whether it is ours."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := re.match(r'\s*#\s*include\s*(["<])([^">]+)', line):
            yield number, match[2].split("/")[-1] if match[1] == '"' else match[2], match[1] == '"'


def kernel_names() -> list[str]:
    match = re.search(r"set\(RHEME_KERNELS\s([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    assert match, "CMakeLists.txt sets RHEME_KERNELS"
    return match[1].split()


def test_cpp_arrows() -> None:
    wrong = []
    for path in cpp_files():
        bindings = path.parent.name == "bindings"
        usual = {"kernels.h", "memory.h", "threads.h", "arrays.h"} if bindings else KERNEL_HEADERS
        allowed = MAY_INCLUDE.get(path.name, {"device.h", "cluster.h", "persistent.h"} if path.suffix == ".cu" else usual)
        for line, name, ours in includes(path):
            where = f"{path.relative_to(ROOT)}:{line}"
            if ours and name not in allowed:
                wrong.append(f"{where}: may not include {name}")
            if not ours and not bindings and path.name not in RUNTIME and name not in SYSTEM_C:
                wrong.append(f"{where}: <{name}> in a file that is compiled once per ISA, or shared by such files")
            if not ours and path.name == "formulas.h":
                wrong.append(f"{where}: formulas.h includes nothing")
            if name.startswith("pybind11") and not bindings:
                wrong.append(f"{where}: pybind11 belongs to cpp/bindings")
    assert not wrong, "\n".join(wrong)


def test_one_cpuid() -> None:
    asks = re.compile(r"cpuid|__builtin_cpu_|getauxval|hwcap", re.IGNORECASE)
    files = [p.name for p in cpp_files() if asks.search(re.sub(r"//.*", "", p.read_text()))]
    assert files == ["dispatch.cc"]


def test_every_kernel_file_is_built() -> None:
    files = {p.stem for p in CPP.glob("*.cc") if p.name not in RUNTIME}
    assert sorted(kernel_names()) == sorted(files)
    header, dispatch = (CPP / "kernels.h").read_text(), (CPP / "dispatch.cc").read_text()
    assert not [n for n in files if f"void fill_{n}(Kernels&)" not in header or f"ns::fill_{n}(k)" not in dispatch]


@pytest.fixture(scope="module")
def core_objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build tree with the objects of the kernels: the one that RHEME_BUILD names, or a new one."""
    if given := os.environ.get("RHEME_BUILD"):
        return Path(given)
    for tool in ("cmake", "c++", "nm"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    build = tmp_path_factory.mktemp("objects")
    for command in (["cmake", "-S", ROOT, "-B", build, "-DRHEME_CHECK=ON"], ["cmake", "--build", build, "-j2"]):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    return build


def test_each_object_exports_one_symbol(core_objects: Path) -> None:
    """No weak symbol, which the linker could take from an object of a wider ISA; nothing but the fill function."""
    seen = set()
    objects = core_objects.rglob("rheme_*.dir/**/*.o")
    for path in sorted(path for path in objects if "rheme_check.dir" not in path.parts):
        isa, kernel = re.search(r"rheme_(\w+)\.dir", str(path))[1], path.name.split(".")[0]  # type: ignore[index]
        table = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=2)[1:] for line in table.splitlines()]
        exported = [name for kind, name in rows if kind.isupper() or kind in "uvw"]
        assert exported == [f"rheme::{isa}::fill_{kernel}(rheme::Kernels&)"], path
        seen.add((isa, kernel))
    assert {kernel for _, kernel in seen} == set(kernel_names())


# The tree -------------------------------------------------------------------------------------------------------------------

LONGEST = 600
# Longer files, each with its own bound and the reason.
LONG_FILES = {
    "tests/reference.py": (800, "every op in one file is what makes it the reference"),
}
SOURCES = {".py", ".pyi", ".cc", ".cu", ".h", ".toml", ".txt", ".md", ".yaml", ".yml", ".cmake"}
NOT_OURS = {"__pycache__", "build", "pretrained", ".git"}
FOLDERS = (".ci", "cpp", "python", "tests", "benchmarks")


def tree() -> list[Path]:
    inside = (p for folder in FOLDERS for p in (ROOT / folder).rglob("*"))
    return sorted(
        p
        for p in (*(p for p in ROOT.iterdir() if p.is_file()), *inside)
        if p.is_file() and not any(part in NOT_OURS or part.endswith("_cache") for part in p.relative_to(ROOT).parts)
    )


def test_file_lengths() -> None:
    wrong = []
    for path in tree():
        name = path.relative_to(ROOT).as_posix()
        bound, _ = LONG_FILES.get(name, (LONGEST, ""))
        if path.suffix in {".py", ".pyi", ".cc", ".cu", ".h"} and (length := len(path.read_text().splitlines())) > bound:
            wrong.append(f"{name}: {length} lines, at most {bound}: split it into a folder of the same name")
    assert not wrong, "\n".join(wrong)


def test_no_room_for_leftovers() -> None:
    forbidden = {"utils", "util", "base", "helpers", "common", "misc"}
    assert not [str(p.relative_to(ROOT)) for p in tree() if p.stem in forbidden or forbidden & set(p.relative_to(ROOT).parts)]


def test_no_machine_paths_or_registries() -> None:
    """The tree names no absolute path of somebody's machine and no host of a package registry."""
    patterns = [
        r"(?<![\w.])/(?:root|work|home/\w+|Users/\w+)/",
        *(re.escape(host) for host in ("py" + "pi.org", "python" + "hosted.org", "deb." + "debian.org", "npm" + "js.org")),
    ]
    wrong = []
    for path in tree():
        if path.suffix in SOURCES or path.suffix == "" or path.name.startswith("."):
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if re.search("|".join(patterns), line) and path != Path(__file__).resolve():
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


# The README -----------------------------------------------------------------------------------------------------------------

READMES = [name for name in ("README.md", "README.zh-CN.md") if (ROOT / name).exists()]
BUNDLED = (PACKAGE / "pretrained").is_dir() and any((PACKAGE / "pretrained").glob("*/config.json"))
ROOT_FILES = {p.name for p in ROOT.iterdir()}


def blocks(text: str) -> Iterator[tuple[int, str, str, bool]]:
    """Line, language and text of each fenced block, and whether `<!-- not run: why -->` stands right before it."""
    lines = text.splitlines()
    start, language = None, ""
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if start is None:
                start, language = number, line[3:].strip()
            else:
                before = next((previous for previous in reversed(lines[:start]) if previous.strip()), "")
                yield start + 1, language, "\n".join(lines[start + 1 : number]), before.startswith("<!-- not run:")
                start = None


def expand_braces(path: str) -> list[str]:
    match = re.search(r"\{([^}]*)\}", path)
    if not match:
        return [path]
    return [
        x for part in match[1].split(",") for x in expand_braces(path[: match.start()] + part.strip() + path[match.end() :])
    ]


def named_paths(text: str) -> Iterator[str]:
    """Paths of this tree in the running text, and in blocks that draw the tree: `folder/`, then its files indented."""
    for match in re.finditer(r"(?<![\w./-])((?:cpp|python|tests|benchmarks|\.ci)/[\w./{},*-]*[\w}/*])", text):
        yield match[1]
    for _, language, block, _ in blocks(text):
        if language not in ("", "text"):
            continue
        folder = ""
        for line in block.splitlines():
            names = re.split(r"\s{2,}", line.strip(), maxsplit=1)[0].split()
            if not line.startswith(" "):
                folder = names[0] if names and re.fullmatch(r"[\w.]+(/[\w.]+)*/", names[0]) else ""
                if folder:
                    yield folder
            elif folder and names and all(re.fullmatch(r"[\w.*{},-]+/?", n) and re.search(r"[./]", n) for n in names):
                yield from (folder + name for name in names)


@pytest.mark.parametrize("name", READMES)
def test_readme_paths_exist(name: str) -> None:
    paths = {p for found in named_paths((ROOT / name).read_text()) for p in expand_braces(found)}
    missing = sorted(p for p in paths if not (any(ROOT.glob(p)) if "*" in p else (ROOT / p).exists()))
    assert not missing, f"{name} names paths that do not exist: {missing}"


@pytest.mark.parametrize("name", READMES)
def test_readme_code_runs(name: str, tmp_path: Path) -> None:
    """Each ```python block, and each line `$ rheme ...` of a ```console block, in one folder from top to bottom."""
    text = (ROOT / name).read_text()
    found = [b for b in blocks(text) if b[1] in ("python", "console") and not b[3]]
    if found and not BUNDLED:
        pytest.skip("no bundled model in the tree")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    for line, language, block, _ in found:
        if language == "python":
            commands: list[list[str]] = [[sys.executable, "-W", "error::DeprecationWarning", "-c", block]]
        else:
            lines = block.replace("\\\n", " ").splitlines()
            commands = [["bash", "-euo", "pipefail", "-c", x[2:]] for x in lines if re.match(r"\$ (?:.*\| )?rheme ", x)]
        for command in commands:
            run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
            assert run.returncode == 0, f"{name}:{line}: {command[-1]}\n{run.stdout}{run.stderr}"


def test_readmes_show_the_same_code() -> None:
    """The Chinese README is a twin: the same blocks to run, but for their comments."""
    if len(READMES) < 2:
        pytest.skip("no Chinese README in the tree")

    def code(name: str) -> list[str]:
        shown = (b for b in blocks((ROOT / name).read_text()) if b[1] in ("python", "console", "bash", "sh"))
        return [
            re.sub(r"\s*#.*", "", line)
            for b in shown
            for line in b[2].splitlines()
            if b[1] != "console" or line.startswith("$")
        ]

    assert code(READMES[0]) == code(READMES[1])

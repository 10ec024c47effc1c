"""What .ci/run does, one part at a time: `nox -s lint`, `nox -s tests -- tests/test_ops.py`."""

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, *groups: str) -> None:
    """The package as a wheel, and groups of pyproject.toml."""
    session.install("pip>=25.1")
    session.run("pip", "install", "--quiet", ".[eval]", *(part for group in groups for part in ("--group", group)))


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """The whole suite; tests that need PyTorch skip unless it is installed: `nox -s oracle`."""
    install(session, "test", "cross")
    session.run("pytest", *session.posargs)


@nox.session(python="3.11")
def oracle(session: nox.Session) -> None:
    """The tests that compare with PyTorch, which may not be missing."""
    install(session, "test", "oracle")
    session.run("pytest", *(session.posargs or ["tests/test_nn.py", "tests/test_ops.py"]), env={"RHEME_REQUIRE": "torch"})


@nox.session(python="3.11")
def isa(session: nox.Session) -> None:
    """The ops on each instruction set of this machine, forced."""
    install(session, "test")
    code = "from rheme import _core; print(*_core.available_isas())"
    names = str(session.run("python", "-c", code, silent=True)).split()
    for name in names:
        chosen = " and ".join(f"not {other}" for other in names if other != name)
        selection = ["-k", chosen] if chosen else []
        session.run("pytest", "tests/test_ops.py", "tests/test_nn.py", *selection, *session.posargs, env={"RHEME_ISA": name})


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Format, lint and types."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = str(session.run("git", "ls-files", "*.cc", "*.h", "*.cu", external=True, silent=True)).split()
    session.run("clang-format", "--dry-run", "-Werror", *sources)
    session.run("mypy")


@nox.session(python="3.11")
def stubs(session: nox.Session) -> None:
    """Names and keywords of the compiled core against python/rheme/_core.pyi."""
    install(session, "test")
    session.run("pytest", "tests/test_stubs.py")


@nox.session(python="3.11")
def neon(session: nox.Session) -> None:
    """The kernels for 64-bit Arm, cross-compiled and emulated: needs Debian's g++-aarch64-linux-gnu and qemu-user."""
    install(session, "test", "cross")
    session.run("pytest", "tests/test_neon.py", *session.posargs)


@nox.session(python="3.11")
def bench(session: nox.Session) -> None:
    """The benchmarks; each checks its answer before it times."""
    install(session, "test")
    session.run("pytest", "benchmarks/bench_ops.py", "--benchmark-only", *session.posargs)


@nox.session(venv_backend="none")
def sanitize(session: nox.Session) -> None:
    """The op suite on a GPU under compute-sanitizer, which comes with the CUDA toolkit: no wrong access, no race."""
    environment = {"RHEME_REQUIRE": "cupy", "CUPY_CACHE_IN_MEMORY": "1"}
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", "--target-processes", "all"]
        chosen = ["-k", "op or lstm or sampler or entropy or optimisers or random or quantized"]
        session.run(*command, "python", "-m", "pytest", "-q", "tests/test_gpu.py", *chosen, env=environment, external=True)

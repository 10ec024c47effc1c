"""One name per op, and one list of keywords, in `_core.pyi`, the compiled core, `_cuda`, `rheme.ops` and `reference.py`."""

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import reference
from rheme import _core, functional, ops

STUB = Path(__file__).parents[1] / "python" / "rheme" / "_core.pyi"

# What concerns the machine is asked of the core itself, or wrapped by `ops` under the same name where a model needs it.
MACHINE = {
    "isa",
    "available_isas",
    "set_isa",
    "num_threads",
    "set_num_threads",
    "build_info",
    "arena_bytes",
    "fma_peak",
    "int8_instruction",
    "philox",
}

# On Tensors these are operators or methods, written in autograd.py.
OPERATORS = {"add", "sub", "mul", "div", "neg", "sum", "mean", "max"}
# No gradient goes through these.
NOT_DIFFERENTIABLE = {"sample", "top_k", "adamw", "sgd", "global_norm", "empty", "zeros", "contiguous"}


def stub_functions() -> dict[str, list[str]]:
    """Name -> keywords in order, '?' after one that may be None."""
    found = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            assert not node.args.posonlyargs + node.args.args, f"{node.name}: every argument is passed by keyword"
            found[node.name] = [a.arg + "?" * ast.unparse(a.annotation or a).endswith("| None") for a in node.args.kwonlyargs]
    return found


def split_arguments(text: str) -> list[str]:
    """'a: X[b, c], d: Y' -> ['a: X[b, c]', 'd: Y']."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def compiled_functions(module: ModuleType) -> dict[str, list[str]]:
    """The same of the compiled module, from the signatures that pybind11 writes as the first line of each docstring."""
    found = {}
    for name, function in vars(module).items():
        if name.startswith("_") or isinstance(function, type) or not callable(function):
            continue
        signature = (function.__doc__ or "").splitlines()[0]
        assert signature.startswith(f"{name}("), f"{name}: overloaded, or without a signature: {signature!r}"
        arguments = split_arguments(signature[len(name) + 1 : signature.rindex(") -> ")])
        if arguments:
            assert arguments.pop(0) == "*", f"{name}: arguments may be passed by position: {signature}"
        found[name] = []
        for argument in arguments:
            keyword, _, kind = argument.partition(":")
            assert "=" not in kind, f"{name}: {keyword} has a default; defaults belong to rheme.ops"
            # A pointer to a class of ours may be None, and pybind11 does not write it.
            found[name].append(keyword + "?" * kind.endswith(("| None", "Packed")))
    return found


@pytest.fixture(scope="module")
def stub() -> dict[str, list[str]]:
    functions = stub_functions()
    assert len(functions) > 50
    return functions


def test_compiled_core_is_what_the_stub_says(stub: dict[str, list[str]]) -> None:
    if getattr(_core, "__file__", "").endswith(".py"):
        pytest.fail("rheme._core is not compiled")
    compiled = compiled_functions(_core)
    assert sorted(compiled) == sorted(stub), "functions of the compiled core and of _core.pyi"
    wrong = {name: (compiled[name], stub[name]) for name in stub if compiled[name] != stub[name]}
    assert not wrong, "keywords: compiled core, _core.pyi"
    classes = {node.name for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)}
    assert {name for name, value in vars(_core).items() if isinstance(value, type)} == classes


def test_reference_has_every_op_with_the_same_keywords(stub: dict[str, list[str]]) -> None:
    wrong = {}
    for name, keywords in stub.items():
        function = getattr(reference, name, None)
        if function is None:
            wrong[name] = "missing"
            continue
        parameters = inspect.signature(function).parameters
        if [k.removesuffix("?") for k in keywords] != list(parameters):
            wrong[name] = f"{list(parameters)}, wanted {keywords}"
    assert not wrong


def test_ops_has_every_op_under_its_name(stub: dict[str, list[str]]) -> None:
    assert not sorted(name for name in stub if name not in MACHINE and not callable(getattr(ops, name, None)))


def test_ops_adds_no_name_for_the_same_thing(stub: dict[str, list[str]]) -> None:
    """A backward in ops belongs to an op of the core, or to one of the four that only move elements."""
    moving = {"concat", "slice", "reshape", "transpose"}
    backwards = {name for name in vars(ops) if name.endswith("_backward") and not name.startswith("_")}
    assert not {name for name in backwards if name.removesuffix("_backward") not in set(stub) | moving}


def test_functional_has_every_differentiable_op_under_its_name(stub: dict[str, list[str]]) -> None:
    wanted = {
        name
        for name in stub
        if not name.startswith(("pack_", "unpack_", "quantized_", "random_"))
        and not name.endswith("_backward")
        and name not in MACHINE | NOT_DIFFERENTIABLE
    }
    missing = {name for name in wanted - OPERATORS if not callable(getattr(functional, name, None))}
    assert not missing
    from rheme.autograd import Tensor

    methods = {"add": "__add__", "sub": "__sub__", "mul": "__mul__", "div": "__truediv__", "neg": "__neg__"}
    assert not {name for name in OPERATORS if not hasattr(Tensor, methods.get(name, name))}


# Of `_cuda` alone: what brings arrays in, and graphs; of the core alone: recordings.
BEYOND = {"upload", "from_dlpack", "Graphs"}
HOSTS = {"Recording"}


def test_cuda_has_every_function_with_the_same_keywords(stub: dict[str, list[str]]) -> None:
    """Without a GPU, and without CuPy: the module needs neither to be imported."""
    from rheme import _cuda

    wrong = {}
    for name, keywords in stub.items():
        function = getattr(_cuda, name, None)
        if function is None:
            wrong[name] = "missing"
            continue
        parameters = inspect.signature(function).parameters.values()
        given = [p.name + "?" * str(p.annotation).endswith("None") for p in parameters]
        if given != keywords or any(p.kind is not p.KEYWORD_ONLY or p.default is not p.empty for p in parameters):
            wrong[name] = f"{given}, wanted {keywords}"
    assert not wrong
    classes = {node.name for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)}
    assert set(_cuda.__all__) - BEYOND == (set(stub) | classes) - HOSTS

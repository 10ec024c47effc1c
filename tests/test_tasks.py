"""Tasks: finding them, a stranger's plugin, and the two built-in ones on models too small to be any good."""

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import msgspec
import pytest

import rheme
from rheme import nn, tasks
from rheme.errors import InputError
from rheme.tasks import PluginError, Result, Task

HERE = Path(__file__).parent

# Results and configs ---------------------------------------------------------------------------------------------------------


def test_result() -> None:
    result = Result("Salut !", 0.5, (Result("Bonjour !", 0.25),), ("out_of_domain",), {"source": "Hi."})
    assert str(result) == "Salut !"
    assert result.to_dict() == {
        "text": "Salut !",
        "score": 0.5,
        "alternatives": [{"text": "Bonjour !", "score": 0.25}],
        "warnings": ["out_of_domain"],
        "source": "Hi.",
    }
    assert Result("x").to_dict() == {"text": "x", "score": None}
    with pytest.raises(AttributeError):
        result.text = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="unknown warning 'odd'"):
        Result("x", warnings=("odd",))


class Inner(msgspec.Struct):
    size: int = 3


class Outer(msgspec.Struct):
    names: list[str] = []
    rate: float = 0.5
    on: bool = False
    inner: Inner = msgspec.field(default_factory=Inner)


def test_configure() -> None:
    config = tasks.configure(Outer, {"names": "a, b", "rate": "1e-3", "on": "true", "inner": {"size": "7"}})
    assert config == Outer(["a", "b"], 1e-3, True, Inner(7))
    with pytest.raises(InputError, match=r"task: unknown setting 'rat' \(did you mean 'rate'\?\); there are: names, rate"):
        tasks.configure(Outer, {"rat": 1}, "task")
    with pytest.raises(InputError, match=r"task\.inner: Expected `int`, got `str` - at `size`"):
        tasks.configure(Outer, {"inner": {"size": "many"}}, "task")


# Finding them ----------------------------------------------------------------------------------------------------------------


def distribution(folder: Path, name: str, entry_points: str, module: str = "") -> None:
    """A package as an installer leaves it."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    if module:
        (folder / f"{name.replace('-', '_')}.py").write_text(module)


def test_listing_imports_no_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = "[rheme.tasks]\nbroken = broken_one:Broken\n"
    distribution(tmp_path, "broken-one", point, "raise RuntimeError('at import')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = rheme.list_tasks()
    assert found["broken"] == tasks.TaskInfo("broken", "broken_one:Broken", "broken-one", "1.0")
    assert found["translation"].module == "rheme.plugins.translation:Translation"
    assert found["translation"].distribution == "rheme"
    assert "broken_one" not in sys.modules


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("raise RuntimeError('at import')", "cannot be loaded .* RuntimeError: at import"),
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("def Broken(): pass", "is no task: broken_one:Broken must be a subclass of rheme.Task"),
        ("x = (", "SyntaxError"),
        ("raise SystemExit('bye,\\n  all')", "cannot be loaded .* SystemExit: bye, all$"),
        ("import rheme\nclass Broken(rheme.Task): pass", "must have the name 'broken' of its entry point, not None"),
        ("import rheme\nclass Broken(rheme.Task): name = 'other'", "must have the name 'broken' .* not 'other'"),
        ("import rheme\nclass Broken(rheme.Task): name = 'broken'", "must have a Config"),
        ("import rheme\nclass Broken(rheme.Task): name, Config = 'broken', dict", "must have a Config"),
        (
            "import msgspec, rheme\nclass Broken(rheme.Task): name, Config, fields = 'broken', msgspec.Struct, 'text'",
            "must have a tuple of fields, not 'text'",
        ),
    ],
)
def test_a_broken_plugin_breaks_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, message: str) -> None:
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)
    distribution(tmp_path, "broken-one", "[rheme.tasks]\nbroken = broken_one:Broken\n", module)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=f"'broken' of broken-one .*{message}"):
        tasks.get_task("broken")
    assert tasks.get_task("translation").name == "translation"


def test_a_name_clash_names_both_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first-one", "second-one"):
        distribution(tmp_path / name, name, f"[rheme.tasks]\nsame = {name.replace('-', '_')}:Same\n", "raise RuntimeError")
        monkeypatch.syspath_prepend(str(tmp_path / name))
    assert set(tasks.list_tasks()) >= {"same", "translation"}
    with pytest.raises(
        PluginError, match=r"'same' is claimed by more than one package: (first-one, second|second-one, first)-one"
    ):
        tasks.get_task("same")
    assert tasks.get_task("translation").name == "translation"


def test_unknown_task() -> None:
    with pytest.raises(InputError, match=r"no task is called 'translaton' \(did you mean 'translation'\?\); installed: "):
        tasks.get_task("translaton")


# A stranger's package --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment that sees this one's packages, with the example plugin installed."""
    folder = tmp_path_factory.mktemp("stranger")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    here = sysconfig.get_path("purelib")
    Path(site, "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    shutil.copytree(HERE / "example_plugin", folder / "source")  # a build leaves files in the source tree
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, "--no-build-isolation", folder / "source"], check=True)
    return python


def run(python: Path, *command: str, cwd: Path) -> str:
    done = subprocess.run([python, *command], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def invented(path: Path, rows: int) -> Path:
    """Words of two invented languages whose letters overlap."""
    chance = random.Random(5)

    def text(consonants: str, vowels: str) -> str:
        return " ".join(
            "".join(chance.choice(consonants) + chance.choice(vowels) for _ in range(chance.randint(1, 3))) for _ in "ab"
        )

    kinds = [("north", "ptkmnl", "aeiou"), ("south", "ptkszr", "aioey")]
    lines = [
        f"{text(consonants, vowels)}\t{label}\n" for label, consonants, vowels in (chance.choice(kinds) for _ in range(rows))
    ]
    path.write_text("".join(lines))
    return path


def test_a_strangers_task(stranger: Path, tmp_path: Path) -> None:
    code = "import rheme, sys; print(rheme.list_tasks()['language'].distribution, 'rheme_language' in sys.modules)"
    assert run(stranger, "-c", code, cwd=tmp_path).split() == ["rheme-language", "False"]
    data = invented(tmp_path / "data.tsv", 600)
    settings = ["--set", "train.max_epochs=6", "--set", "train.batch_tokens=500", "--set", "train.learning_rate=0.03"]
    out = tmp_path / "model"
    run(
        stranger,
        "-m",
        "rheme",
        "train",
        "language",
        "--train",
        str(data),
        "--out",
        str(out),
        "--valid-share",
        "0.2",
        *settings,
        cwd=tmp_path,
    )
    command = ["-m", "rheme", "evaluate", "language", "--model", str(out), "--data", str(out / "valid.tsv"), "--json"]
    figures = json.loads(run(stranger, *command, cwd=tmp_path))
    assert figures["accuracy"] > 0.85, "chance is 0.5"
    code = f"import rheme; print(*rheme.load('language', {str(out)!r})(['pakima lunu', 'zyro suzara']))"
    assert run(stranger, "-c", code, cwd=tmp_path).split() == ["north", "south"]


def test_the_example_is_short() -> None:
    files = sorted(path for path in (HERE / "example_plugin").iterdir() if path.is_file())
    assert [path.name for path in files] == ["pyproject.toml", "rheme_language.py"]
    lines = [line for path in files for line in path.read_text().splitlines() if line.strip() and not line.startswith('"""')]
    assert len(lines) <= 40


# Generation ------------------------------------------------------------------------------------------------------------------


def _same(first: list[Result], second: list[Result]) -> bool:
    return [repr(result) for result in first] == [repr(result) for result in second]  # nan is not equal to itself


SENTENCES = [f"The {a} is {b}." for a in ("cat", "dog", "house") for b in ("big", "small", "near the station, here")] * 3


@pytest.fixture(scope="module")
def writer() -> Task:
    cls = tasks.get_task("generation")
    settings = {"vocab_size": 300, "model": {"embedding_size": 8, "encoder_size": 8, "decoder_size": 8, "latent_size": 4}}
    task: Any = cls(tasks.configure(cls.Config, settings))
    with nn.init_scope(1):
        task.setup(SENTENCES)
    task.model.eval()
    task.options["max_new_tokens"] = 8
    return task


def test_generation_is_a_function_of_the_seed(writer: Any) -> None:
    first = writer.generate(4, seed=1)
    assert _same(first, writer.generate(4, seed=1))
    assert _same(first[:2], writer.generate(2, seed=1)), "fewer are the first ones"
    assert not _same(first, writer.generate(4, seed=2))
    assert len({result.text for result in first}) == 4
    sampled = writer.generate(4, seed=1, temperature=1.0)
    assert _same(sampled, writer.generate(4, seed=1, temperature=1.0))
    assert not _same(first, sampled)


def test_generation_from_a_prompt(writer: Any) -> None:
    assert all(result.text.startswith("The cat") for result in writer.generate(3, prompt="The cat"))
    long = "The cat is big. " * 9
    [result] = writer.generate(1, prompt=long, max_new_tokens=2)
    assert result.text.startswith(long.strip())
    assert len(writer.tokenizer.encode([result.text])[0]) <= len(writer.tokenizer.encode([long])[0]) + 2
    result = writer("The dog", n=2, seed=4)
    assert result.text.startswith("The dog")
    assert len(result.alternatives) == 1
    with pytest.raises(InputError, match="at least 1"):
        writer.generate(0)


def test_generation_without_and_with_words(writer: Any) -> None:
    plain = writer.generate(5, seed=1)
    words = {word for result in plain for word in result.text.lower().split()}
    word = max(sorted(words), key=len)
    assert not any(word in result.text.lower().split() for result in writer.generate(5, seed=1, forbid=[word]))
    assert all("fish" in result.text for result in writer.generate(2, seed=1, require=["fish"], max_new_tokens=20))
    with pytest.raises(InputError, match="forbidden"):
        writer.generate(1, forbid=["fish"], require=["fish"])


def test_generation_round_trip(writer: Any, tmp_path: Path) -> None:
    loaded: Any = rheme.load("generation", writer.save(tmp_path / "m"))
    assert _same(loaded.generate(3, seed=5), writer.generate(3, seed=5))
    figures = loaded.evaluate(SENTENCES[:9])
    assert {"neg_elbo", "kl", "active_units", "distinct_of_20"} <= set(figures)
    for draws in ("foo", -3, 1.5):
        with pytest.raises(InputError, match="importance_samples must be 0 or a whole number above"):
            loaded.evaluate(SENTENCES[:9], importance_samples=draws)


def _without_a_tokenizer(stored: dict[str, Any]) -> None:
    del stored["files"]["tokenizer.model"]


def _as_characters(stored: dict[str, Any]) -> None:
    stored["config"]["unit"] = "word"


def _of_size(stored: dict[str, Any], size: int) -> None:
    stored["config"]["model"]["decoder_size"] = size


@pytest.mark.parametrize(
    "damage",
    [_without_a_tokenizer, _as_characters, lambda stored: _of_size(stored, 10**18), lambda stored: _of_size(stored, 10**30)],
)
def test_a_config_that_no_model_can_be_built_of(writer: Any, tmp_path: Path, damage: Any) -> None:
    path = writer.save(tmp_path / "m") / "config.json"
    stored = json.loads(path.read_bytes())
    damage(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"damaged|no memory for a model of the sizes in config\.json"):
        rheme.load(model=path.parent)


def test_generation_reads_lines_and_columns(writer: Any, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("One.\n\nTwo.\nOne.\n")
    (tmp_path / "x.tsv").write_text("Hi.\tSalut !\nHi.\tBonjour !\n")
    assert writer.read(tmp_path / "x.txt") == ["One.", "Two."]
    assert writer.read(tmp_path / "x.tsv") == ["Hi."]
    assert writer.read(tmp_path / "x.tsv", ["2"]) == ["Salut !", "Bonjour !"]
    with pytest.raises(InputError, match="one field"):
        writer.read(tmp_path / "x.tsv", ["1", "2"])


def test_generation_from_a_list_of_words(tmp_path: Path) -> None:
    """Words of a file, in its order; others are unknown, and a fixed split is read as it stands."""
    (tmp_path / "words.txt").write_text("cat\n<unk>\nthe\nsees\n")
    (tmp_path / "x.txt").write_text("the cat sees the dog\nthe cat\nthe cat\n")
    cls = tasks.get_task("generation")
    model = {"embedding_size": 8, "encoder_size": 8, "decoder_size": 8, "latent_size": 4}
    settings = {"unit": "word", "word_list": str(tmp_path / "words.txt"), "fixed_splits": True, "model": model}
    task: Any = cls(tasks.configure(cls.Config, settings))
    texts = task.read(tmp_path / "x.txt")
    assert len(texts) == 3
    assert task.sides == 0
    task.setup(texts)
    assert task.encode(texts[0]).tolist() == [5, 4, 6, 5, 1]
    loaded: Any = rheme.load("generation", task.save(tmp_path / "m"))
    assert loaded.tokenizer.words == ["<pad>", "<unk>", "<s>", "</s>", "cat", "the", "sees"]
    assert str(tmp_path) not in (tmp_path / "m" / "config.json").read_text()
    assert all(word in ("cat", "the", "sees") for result in loaded.generate(2, temperature=1.0) for word in result.text.split())
    with pytest.raises(InputError, match="word_list needs unit"):
        tasks.configure(cls.Config, {"word_list": "x"})


def test_nothing_heavy_is_imported_to_list_tasks() -> None:
    code = "import rheme, sys; rheme.list_tasks(); print([m for m in sys.modules if m.startswith('rheme.plugins')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"

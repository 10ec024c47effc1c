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
    ],
)
def test_a_broken_plugin_breaks_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, message: str) -> None:
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)
    distribution(tmp_path, "broken-one", "[rheme.tasks]\nbroken = broken_one:Broken\n", module)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=f"'broken' of broken-one .*{message}|'broken' of broken-one {message}"):
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


# Translation -----------------------------------------------------------------------------------------------------------------

PAIRS = [(f"The {a} is {b}.", f"{c} est {d} !") for a, c in (("cat", "Le chat"), ("dog", "Le chien"), ("house", "La maison"))
         for b, d in (("big", "grand"), ("small", "petit"), ("near the station, here", "près, ici"))] * 3  # fmt: skip
PAIRS.append(
    (
        'The quick "brown" fox - it jumps over the lazy dog with vim.',
        "Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes.",
    )
)
SMALL = {"embedding_size": 12, "encoder_size": 8, "decoder_size": 12}


@pytest.fixture(scope="module")
def translator() -> Any:
    cls = tasks.get_task("translation")
    task: Any = cls(tasks.configure(cls.Config, {"vocab_size": 330, "max_source_length": 12, "model": SMALL}))
    with nn.init_scope(1):
        task.setup(PAIRS)
    task.model.eval()
    task.options["max_new_tokens"] = 6
    return task


@pytest.fixture(scope="module")
def folder(translator: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return translator.save(tmp_path_factory.mktemp("models") / "translation-en-fr", dtype="float16")


TEXTS = ["The cat is big.", "", "dog", "The house is near the station, here.", "  ", "The cat is big.", "😀 The dog 😀", "你好"]


@pytest.mark.parametrize("options", [{}, {"num_beams": 1}, {"num_beams": 1, "do_sample": True, "seed": 3}])
def test_a_list_is_answered_as_one_by_one(translator: Any, options: dict[str, Any]) -> None:
    together = translator(TEXTS, to="fr", **options)
    assert _same(together, [translator(text, to="fr", **options) for text in TEXTS])
    order = list(range(len(TEXTS)))
    random.Random(1).shuffle(order)
    shuffled = translator([TEXTS[i] for i in order], to="fr", **options)
    assert _same([shuffled[order.index(i)] for i in range(len(TEXTS))], together)


def _same(first: list[Result], second: list[Result]) -> bool:
    return [repr(result) for result in first] == [repr(result) for result in second]  # nan is not equal to itself


def test_nothing_to_translate_needs_no_model(translator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator.model, "encode", None)
    assert [result.text for result in translator(["", " \n\t ", "\u200b"], to="fr")] == ["", "", ""]
    assert translator([], to="fr") == []
    result = translator("你好 😀", to="fr")
    assert (result.text, result.warnings) == ("你好 😀", ("out_of_domain",))


def test_unknown_characters_are_copied(translator: Any) -> None:
    for text in ("😀 The cat", "The cat 😀", "The cat 😀😀 is"):
        result = translator(text, to="fr")
        assert "😀" in result.text
        assert "out_of_domain" in result.warnings
    assert "out_of_domain" not in translator("The cat", to="fr").warnings
    assert "Łódź" in translator("The dog, Łódź.", to="fr").text, "a word with an unknown letter is copied whole"
    parts = translator._parts("The “cat” is bïg—here")
    assert len(parts) == 1, "quotes, dashes and accents are written plainer rather than copied"


@pytest.mark.parametrize(
    "text", ["word " * 3000, "The cat is big. " * 400, "a" * 3000, "The dog, the cat, " * 200 + "\n\nThe house."]
)
def test_long_texts_are_cut_and_nothing_is_dropped(translator: Any, text: str) -> None:
    parts = translator._parts(text)
    assert all(len(part.ids) <= translator.config.max_source_length + 3 for part in parts), "a full stop may be added"
    assert "".join("".join(part.text for part in parts).split()) == "".join(text.split())
    for part in parts:
        written = "".join(translator.tokenizer.decode([part.ids])).lower().rstrip(".")
        assert not part.ids or written == part.text.strip().lower().rstrip(".")
    assert "truncated" in translator(text[:2000], to="fr", max_new_tokens=2, num_beams=1).warnings


def test_sentences_are_cut_at_their_ends(translator: Any) -> None:
    text = "The cat is big. The dog is small!\n\nThe house is near the station. The dog, the cat, the house are big and small."
    parts = translator._parts(text)
    sentences = [translator.tokenizer.decode([part.ids])[0] for part in parts if part.ids]
    assert sentences[:2] == ["The cat is big.", "The dog is small!"]
    assert any(part.text == "\n\n" for part in parts)
    assert sum(sentence.endswith(",") for sentence in sentences) >= 1, "a long sentence is cut after a comma"


def test_directions(translator: Any, folder: Path) -> None:
    assert translator("dog", from_="en") == translator("dog", to="fr")
    with pytest.raises(InputError, match=r"say into which language .* en to fr, fr to en"):
        translator("dog")
    with pytest.raises(InputError, match="cannot translate to de; it can: en to fr, fr to en"):
        translator("dog", to="de")
    loaded = rheme.load("translation", folder, to="fr")
    assert loaded("dog").text == translator("dog", to="fr").text
    assert loaded("Le chat", to="en") == rheme.load(model=folder, to="en")("Le chat")
    with pytest.raises(InputError, match="cannot do to=de; its languages: en, fr"):
        rheme.load("translation", folder, to="de")


def test_options_are_checked(translator: Any) -> None:
    with pytest.raises(InputError, match="did you mean 'num_beams'"):
        translator("dog", to="fr", num_beam=3)
    with pytest.raises(InputError, match="must be a str, not int"):
        translator([3], to="fr")


def test_alternatives(translator: Any) -> None:
    result = translator("The cat is big.", to="fr", num_beams=4, num_return_sequences=3)
    assert len(result.alternatives) == 2
    assert 0 < result.alternatives[0].score <= 1
    assert 0 < result.score <= 1


def test_folder_round_trip(translator: Any, folder: Path) -> None:
    loaded = rheme.load("translation", folder)
    assert loaded.config == translator.config
    assert _same(loaded(TEXTS, to="fr"), rheme.load("translation", folder)(TEXTS, to="fr"))
    with pytest.raises(InputError, match="holds a model for 'translation', not for 'generation'"):
        rheme.load("generation", folder)


def test_bundled_models_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "bundled", lambda: {folder.name: folder})
    assert rheme.load("translation", to="en")("Le chat").text == rheme.load("translation", folder, to="en")("Le chat").text
    with pytest.raises(InputError, match=r"no bundled model for translation with to=de; bundled: translation-en-fr; give"):
        rheme.load("translation", to="de")
    run_pipeline = rheme.pipeline("translation_en_to_fr")
    text = rheme.load("translation", folder, to="fr")("The cat").text
    assert run_pipeline("The cat") == [{"translation_text": text}]
    assert run_pipeline(["The cat", "The cat"]) == [{"translation_text": text}] * 2
    with pytest.raises(InputError, match="the form is translation_en_to_fr"):
        rheme.pipeline("translation_en_fr")
    monkeypatch.setattr(tasks, "bundled", dict)
    with pytest.raises(InputError, match="bundled: none"):
        rheme.load("translation", to="fr")


def test_training_items(translator: Any) -> None:
    items = translator.encode_all([*PAIRS[:2], ("word " * 200, "mot"), ("a", "")])
    assert len(items) == 4, "two directions; pairs too long or empty are left out"
    tags = [translator.tokenizer.piece_id(f"<2{code}>") for code in ("fr", "en")]
    assert [item[0] for item in items] == [tags[0]] * 2 + [tags[1]] * 2
    loss, count, _ = translator.loss(items, 0)
    assert count == sum(len(target) + 1 for _, _, target in items)
    alone = [translator.loss([item], 0)[0].item() for item in items]
    assert loss.item() == pytest.approx(sum(alone), rel=1e-5)


def test_reading_pairs(translator: Any, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("Hi.\tSalut !\nHi.\tSalut !\nHi.\tBonjour !\n")
    assert translator.read(tmp_path / "x.tsv") == [("Hi.", "Salut !"), ("Hi.", "Bonjour !")]
    (tmp_path / "y.tsv").write_text("Salut !\tHi.\n")
    assert translator.read(tmp_path / "y.tsv", ["fr", "en"]) == [("Hi.", "Salut !")]
    (tmp_path / "x.jsonl").write_text('{"en": "Hi.", "fr": "Salut !"}\n')
    (tmp_path / "y.jsonl").write_text('{"source": "Hi.", "target": "Salut !"}\n')
    assert translator.read(tmp_path / "x.jsonl") == translator.read(tmp_path / "y.jsonl") == [("Hi.", "Salut !")]


def test_config_mistakes() -> None:
    cls = tasks.get_task("translation")
    for values, message in (
        ({"languages": "en"}, "two different codes"),
        ({"languages": "en,en"}, "two different codes"),
        ({"directions": "up"}, "both, forward, backward"),
        ({"model": {"dropout": 2}}, "dropout"),
        ({"vocab_size": 0}, "at least 4"),
    ):
        with pytest.raises(InputError, match=message):
            tasks.configure(cls.Config, values, "task")


def test_evaluation(translator: Any) -> None:
    pytest.importorskip("sacrebleu")
    figures = translator.evaluate(PAIRS[:3], to="fr", num_beams=1)
    assert set(figures) >= {"pairs", "bleu_en-fr", "chrf_en-fr", "bleu_signature_en-fr"}
    assert "tok:13a" in figures["bleu_signature_en-fr"]
    assert "case:mixed" in figures["bleu_signature_en-fr"]
    assert {name.rpartition("_")[2] for name in translator.evaluate(PAIRS[:2], num_beams=1)} == {"pairs", "en-fr", "fr-en"}


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("a b c", 1),
        ("no no", 1),
        ("no no no", 3),
        ("very very very very good", 4),
        ("a b a b a b", 3),
        ("", 1),
        ("hahahahaha", 5),
    ],
)
def test_repeats(text: str, times: int) -> None:
    from rheme.plugins import translation

    assert translation._repeats(text) == times


def test_scripts() -> None:
    from rheme.plugins import translation

    assert translation._in_script("Où est la gare ?", "fr")
    assert not translation._in_script("Где вокзал?", "fr")
    assert translation._in_script("Где вокзал?", "ru")
    assert translation._in_script("车站在哪里？", "zh")
    assert not translation._in_script("Where is it?", "zh")
    assert translation._in_script("123 !", "zh")


# Generation ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer() -> Task:
    cls = tasks.get_task("generation")
    settings = {"vocab_size": 300, "model": {"embedding_size": 8, "encoder_size": 8, "decoder_size": 8, "latent_size": 4}}
    task: Any = cls(tasks.configure(cls.Config, settings))
    with nn.init_scope(1):
        task.setup([english for english, _ in PAIRS])
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
    result = writer("The dog", n=2, seed=4)
    assert result.text.startswith("The dog")
    assert len(result.alternatives) == 1
    with pytest.raises(InputError, match="at least 1"):
        writer.generate(0)


def test_generation_round_trip(writer: Any, tmp_path: Path) -> None:
    loaded: Any = rheme.load("generation", writer.save(tmp_path / "m"))
    assert _same(loaded.generate(3, seed=5), writer.generate(3, seed=5))
    figures = loaded.evaluate([english for english, _ in PAIRS[:9]])
    assert {"neg_elbo", "kl", "active_units", "distinct_of_20"} <= set(figures)


def test_generation_reads_lines_and_columns(writer: Any, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("One.\n\nTwo.\nOne.\n")
    (tmp_path / "x.tsv").write_text("Hi.\tSalut !\nHi.\tBonjour !\n")
    assert writer.read(tmp_path / "x.txt") == ["One.", "Two."]
    assert writer.read(tmp_path / "x.tsv") == ["Hi."]
    assert writer.read(tmp_path / "x.tsv", ["2"]) == ["Salut !", "Bonjour !"]
    with pytest.raises(InputError, match="one field"):
        writer.read(tmp_path / "x.tsv", ["1", "2"])


def test_nothing_heavy_is_imported_to_list_tasks() -> None:
    code = "import rheme, sys; rheme.list_tasks(); print([m for m in sys.modules if m.startswith('rheme.plugins')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"

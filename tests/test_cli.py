"""The command line: what is printed where, exit codes, one line for each mistake, streaming, resuming."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from rheme import cli, nn, tasks
from rheme.cli import analyzing, main, writing
from rheme.cli import training as training_commands

SMALL = ["--set", "task.vocab_size=330", "--set", "task.model.embedding_size=8", "--set", "task.model.encoder_size=8"]
SMALL += ["--set", "task.model.decoder_size=8", "--set", "train.max_epochs=1", "--set", "train.batch_tokens=300"]
WORDS = ("cat", "chat"), ("dog", "chien"), ("bird", "oiseau"), ("house", "maison"), ("tree", "arbre"), ("river", "fleuve")


def pairs() -> list[tuple[str, str]]:
    return [(f"The {a} and the {b}.", f"Le {x} et le {y}.") for a, x in WORDS for b, y in WORDS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "eng-fra.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in pairs()))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translation model that was never trained."""
    cls = tasks.get_task("translation")
    sizes = {"embedding_size": 8, "encoder_size": 8, "decoder_size": 8}
    task: Any = cls(tasks.configure(cls.Config, {"vocab_size": 330, "model": sizes}))
    with nn.init_scope(1):
        task.setup(pairs())
    task.options = {"num_beams": 2, "max_new_tokens": 5}
    return task.save(tmp_path_factory.mktemp("models") / "m")


Captured = pytest.CaptureFixture[str]


def fails(capsys: Captured, code: int, *args: str) -> str:
    """Run; the exit code must be `code`, the last line on stderr says why, and stdout stays empty. Returns that line."""
    assert main([str(arg) for arg in args]) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert [line for line in lines if line.startswith(("rheme: ", "Traceback"))] == lines[-1:], captured.err
    assert not captured.out
    return lines[-1]


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


# The command itself ----------------------------------------------------------------------------------------------------------


def test_help_and_version(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, line in cli.HELP.items():
        assert f"  {name} " in out
        assert line[:40] in " ".join(out.split())
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rheme 0.")
    assert main([]) == 0
    assert "Usage" in capsys.readouterr().out


def test_short_help_is_that_of_the_commands() -> None:
    for name, command in cli.Verbs("x").points().items():
        if command[0].value.startswith("rheme.cli:"):
            assert command[0].load().help == cli.HELP[name]


@pytest.mark.parametrize("verb", sorted(cli.HELP))
def test_help_of_each_command(verb: str, capsys: Captured) -> None:
    assert main([verb, "--help"]) == 0
    assert cli.HELP[verb] in " ".join(capsys.readouterr().out.split())


def test_help_is_quick_and_imports_no_numpy() -> None:
    code = "import sys; from rheme.cli import main; main(['--help']); print('numpy' in sys.modules, 'msgspec' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "False"]
    assert time.perf_counter() - started < 5, "0.15 s on an idle machine"


def test_mistakes_in_the_command(capsys: Captured, model: Path) -> None:
    assert "did you mean 'translate'" in fails(capsys, 2, "translat")
    assert "No such option" in fails(capsys, 2, "translate", "--nonsense")
    assert "no text given" in fails(capsys, 2, "translate", "--to", "fr")
    assert "no bundled model for translation with to=xx" in fails(capsys, 2, "translate", "--to", "xx", "a")
    assert "no such folder" in fails(capsys, 2, "translate", "--model", "/nothing", "--to", "fr", "a")
    assert "cannot do to=de" in fails(capsys, 2, "translate", "--model", str(model), "--to", "de", "a")
    assert "say into which language" in fails(capsys, 2, "translate", "--model", str(model), "a")
    assert "did you mean 'top_k'" in fails(capsys, 2, "translate", "--model", str(model), "--to", "fr", "--set", "topk=1", "a")
    deep = "top_k=" + "[" * 30_000
    assert "at `top_k`" in fails(capsys, 2, "translate", "--model", str(model), "--to", "fr", "--set", deep, "a")
    assert "NAME=VALUE" in fails(capsys, 2, "translate", "--model", str(model), "--to", "fr", "--set", "topk", "a")
    for name, option in (("to", "--to"), ("from_", "--from"), ("glossary", "--glossary")):
        said = fails(capsys, 2, "translate", "--model", str(model), "--to", "fr", "--set", f"{name}=de", "a")
        assert said == f"rheme: --set {name}: give it as {option}"
    assert "give it as --seed" in fails(capsys, 2, "generate", "--set", "seed=5")
    both = ["--max-new-tokens", "3", "--forbid", "a", "--set"]
    assert "max_new_tokens: given already, by --max-new-tokens" in fails(capsys, 2, "generate", *both, "max_new_tokens=2")
    assert "forbid: given already, by --forbid" in fails(capsys, 2, "generate", *both, "forbid=b")
    assert "no_answer_threshold: given already" in fails(
        capsys, 2, "answer", "--context", "-", "--threshold", "0.5", "--set", "no_answer_threshold=0.1", "Who?"
    )
    assert "give it as --prompt" in fails(capsys, 2, "generate", "--set", "prompt=I")
    for verb, name in (("translate", "inputs"), ("summarize", "inputs"), ("translate", "self")):
        assert f"--set {name}: no option" in fails(capsys, 2, verb, "--set", f"{name}=x", "a")
    assert "--set examples: no option" in fails(capsys, 2, "evaluate", "x", "--data", "f", "--set", "examples=x")
    assert "no task is called 'x'" in fails(capsys, 2, "evaluate", "x", "--data", "f", "--model", str(model))


def test_figures_that_are_no_numbers_are_null(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    task = SimpleNamespace(read=lambda *_: [], evaluate=lambda *_: {"loss": float("nan"), "accuracy": 0.5, "signature": "x"})
    monkeypatch.setattr(training_commands, "open_task", lambda *_: task)
    assert main(["evaluate", "x", "--data", "f", "--json"]) == 0
    assert capsys.readouterr().out == '{"loss": null, "accuracy": 0.5, "signature": "x"}\n'


def test_a_strangers_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    info = tmp_path / "shout-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rheme.commands]\nshout = shout_it:shout\nbroken = shout_it:nothing\ninfo = shout_it:shout\n"
    )
    (tmp_path / "shout_it.py").write_text("import click\n@click.command()\ndef shout():\n    click.echo('HI')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["--help"]) == 0
    assert "(from shout)" in capsys.readouterr().out
    assert "shout_it" not in sys.modules
    assert main(["shout"]) == 0
    assert capsys.readouterr().out == "HI\n"
    assert "the command 'broken' of shout cannot be loaded: AttributeError" in fails(capsys, 1, "broken")
    line = fails(capsys, 1, "info")
    assert "claimed by more than one package" in line
    assert "rheme" in line
    assert "shout" in line


def test_tasks_and_info(capsys: Captured) -> None:
    assert main(["tasks", "--check"]) == 0
    assert "translation" in capsys.readouterr().out
    assert main(["tasks", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"]: row["package"] for row in rows}["generation"] == "rheme"
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"rheme", "numpy", "isa", "isas available", "threads", "device", "bundled models"} <= set(facts)
    assert main(["info"]) == 0
    assert "threads:" in capsys.readouterr().out


# Translating -----------------------------------------------------------------------------------------------------------------


def test_translate(capsys: Captured, model: Path) -> None:
    assert main(["translate", "--model", str(model), "--to", "fr", "The cat.", "", "😀", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in rows] == ["The cat.", "", "😀"]
    assert [row["text"] for row in rows[1:]] == ["", "😀"]
    assert rows[2]["warnings"] == ["out_of_domain"]
    assert main(["translate", "--model", str(model), "--to", "fr", "The cat.", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == rows[0]["text"] + "\n"
    assert captured.err.startswith("rheme: warning: ")


def test_pairs_of_stdin_are_counted(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["a\tb"] * 1100 + ["no pair"]
    stdin(monkeypatch, "\n".join(lines).encode())
    fake = SimpleNamespace(similarity=lambda pairs: [0.5] * len(pairs))
    monkeypatch.setattr(analyzing, "open_task", lambda *args, **options: fake)
    assert main(["analyze", "--similar", "-"]) == 2
    assert capsys.readouterr().err == "rheme: -:1101:8: two texts divided by a tab are expected\n"


def test_bytes_that_are_no_utf8(capsys: Captured, model: Path) -> None:
    """In arguments and in options: each becomes a question mark."""
    command = ["translate", "--model", str(model), "--to", "fr", "--json"]
    assert main([*command, "--forbid", "x\udcff", "--prefix", "Le \udcff", "The \udcff."]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "The ?."
    assert main(["latent", "mix", "--steps", "2", "\udcff", "b"]) == 0
    for option in ("--prompt", "--like", "--require"):
        assert main(["generate", "--n", "1", "--max-new-tokens", "3", option, "\udcff"]) == 0


def test_numbers_out_of_range(capsys: Captured, data: Path, tmp_path: Path) -> None:
    huge = "99999999999999999999"
    for command in (["translate", "--to", "fr", "a"], train(data, tmp_path / "m"), ["doctor"]):
        assert "--threads" in fails(capsys, 2, *command, "--threads", huge)
    assert "--seed" in fails(capsys, 2, "latent", "encode", "a", "--samples", "1", "--seed", huge)
    assert f"no tokenizer of {huge}" in fails(capsys, 2, *train(data, tmp_path / "m", "--set", f"task.vocab_size={huge}"))


def test_translate_stdin(capsys: Captured, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"The {word}." for word, _ in WORDS] * 20
    lines[3] = ""
    command = ["translate", "--model", str(model), "--to", "fr", "--num-beams", "1", "--max-new-tokens", "3", "-"]
    stdin(monkeypatch, "\ufeff".encode() + "\r\n".join(lines).encode())
    assert main(command) == 0
    captured = capsys.readouterr()
    answers = captured.out.split("\n")[:-1]
    assert len(answers) == len(lines)
    assert answers[3] == ""
    assert answers[6:12] == answers[12:18] == answers[-6:]
    assert not captured.err
    stdin(monkeypatch, b"")
    assert main(command) == 0
    assert capsys.readouterr().out == ""
    stdin(monkeypatch, b"The cat.\nThe d\xe9g.\nThe tree.\n")
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.err == "rheme: -:2:6: byte 0xe9 is not UTF-8\n"
    assert captured.out.count("\n") == 1, "the lines before it are answered"


def test_lines_are_answered_as_they_come(model: Path) -> None:
    command = [sys.executable, "-m", "rheme", "translate", "--model", str(model), "--to", "fr", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            process.stdin.write(b"The cat.\n")
            process.stdin.flush()
            assert process.stdout.readline().endswith(b"\n")
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_long_line_of_stdin_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined at each read, 32 MB take 8 s of the CPU, not 0.1 s."""
    line = "x" * (32 << 20)
    stdin(monkeypatch, f"a\n{line}\nb".encode())
    started = time.process_time()
    assert [text for batch in writing.stdin_batches() for text in batch] == ["a", line, "b"]
    assert time.process_time() - started < 2


def test_a_reader_that_leaves(model: Path) -> None:
    rheme = f"{sys.executable} -m rheme translate --model {model} --to fr --max-new-tokens 2 -"
    script = f"yes 'The cat.' | head -3000 | {rheme} 2>err | head -1; cat err"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=model.parent, check=True)
    assert done.stdout.count("\n") == 1
    assert not done.stderr


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash with `rheme` in it."""
    rheme = f'rheme() {{ {sys.executable} -m rheme "$@"; }}; '
    return subprocess.run(["bash", "-c", rheme + script], capture_output=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("command", ["tasks", "--help", "info --help"])
def test_a_reader_that_leaves_early_is_no_failure(command: str) -> None:
    done = shell(f"(sleep 0.1; rheme {command}; echo $? >&2) | true")
    assert done.stderr == b"0\n"


def test_closed_streams(model: Path) -> None:
    done = shell(f"rheme translate --model {model} --to fr - <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = shell(f"rheme train generation --train - --out {model}-new <&-")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, b"rheme: -:1: the file is empty")
    done = shell("rheme --version >&-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert shell("rheme tasks nonsense 2>&-").returncode == 2


def test_output_is_utf8_in_every_locale(model: Path) -> None:
    done = shell(f"rheme translate --model {model} --to fr 你好", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert "你好" in done.stdout.decode()


@pytest.mark.parametrize("command", ["info", "tasks --check", "translate --to fr a"])
def test_an_instruction_set_that_is_not_there(command: str) -> None:
    done = shell(f"rheme {command}", RHEME_ISA="bogus")
    assert done.returncode == 2
    assert done.stderr.startswith(b"rheme: RHEME_ISA=bogus can't be had here")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("value", ["abc", "0", "-2", "1.5", "2x", "99999999999"])
def test_a_number_of_threads_that_is_none(value: str) -> None:
    done = shell("rheme info", RHEME_NUM_THREADS=value)
    assert (done.returncode, done.stderr) == (
        2,
        f"rheme: RHEME_NUM_THREADS={value} is no whole number from 1 to 1024\n".encode(),
    )
    assert shell("rheme info", RHEME_NUM_THREADS="").returncode == 0


def test_interrupted_before_it_began(tmp_path: Path) -> None:
    """A click whose import is interrupted stands in for Ctrl-C while the command line is imported."""
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    done = shell("rheme tasks", PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


# Training and evaluating -----------------------------------------------------------------------------------------------------


def train(data: Path, out: Path, *more: str) -> list[str]:
    languages = ["--from", "en", "--to", "fr"]
    return ["train", "translation", "--train", str(data), *languages, "--out", str(out), "--valid-share", "0.2", *SMALL, *more]


def test_train_and_use(capsys: Captured, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    card = ["--set", "card.license=cc-by-2.0", "--set", "card.data=made up"]
    assert main(train(data, out, "--test-share", "0.1", "--seed", "3", *card)) == 0
    assert "36 examples read: " in capsys.readouterr().err
    held = [(out / name).read_text().splitlines() for name in ("valid.tsv", "test.tsv")]
    assert held[0]
    assert held[1]
    assert not set(held[0]) & set(held[1])
    settings = json.loads((out / "config.json").read_text())
    assert settings["config"]["languages"] == ["en", "fr"]
    assert settings["training"]["seed"] == 3
    assert "license: cc-by-2.0" in (out / "README.md").read_text()
    assert not list(tmp_path.glob(".*"))
    command = ["evaluate", "translation", "--model", str(out), "--data", str(out / "valid.tsv"), "--to", "fr", "--json"]
    assert main([*command, "--num-beams", "1", "--max-new-tokens", "4"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["pairs"] == len(held[0])
    assert "tok:13a" in figures["bleu_signature_en-fr"]
    assert "already holds a model" in fails(capsys, 2, *train(data, out))
    # Fine-tune it on a file with its columns the other way round.
    turned = tmp_path / "fra-eng.tsv"
    turned.write_text("".join(f"{b}\t{a}\n" for a, b in pairs()))
    tuned = tmp_path / "n"
    command = [
        "train",
        "translation",
        "--train",
        str(turned),
        "--from",
        "fr",
        "--to",
        "en",
        "--out",
        str(tuned),
        "--init",
        str(out),
    ]
    changed = {"dropout": 0.3, "word_dropout": 0.1}
    settings = ["--set=train.max_epochs=1", *(f"--set=task.model.{name}={value}" for name, value in changed.items())]
    assert main([*command, *settings, "--valid-share", "0.2"]) == 0
    models = [json.loads((folder / "config.json").read_text())["config"]["model"] for folder in (out, tuned)]
    assert models[1] == models[0] | changed
    assert (tuned / "tokenizer.model").read_bytes() == (out / "tokenizer.model").read_bytes()
    assert (tuned / "valid.tsv").read_text().startswith("The ")
    capsys.readouterr()
    command = [*command[:-3], str(tmp_path / "o"), "--init", str(out)]
    assert "task.vocab_size cannot be changed" in fails(capsys, 2, *command, "--set", "task.vocab_size=99")
    message = fails(capsys, 2, *command, "--set", "task.model.decoder_size=99")
    assert "task.model.decoder_size cannot be changed to 99" in message


def test_a_validation_file_of_ones_own(capsys: Captured, data: Path, tmp_path: Path) -> None:
    valid = tmp_path / "dev.tsv"
    valid.write_text("THE CAT and the dog.\tLe lapin.\nA cow.\tLe oiseau et le fleuve.\n")
    assert main(train(data, tmp_path / "m", "--valid", str(valid), "--set", "train.evaluate=false")) == 0
    assert "36 examples read: 34 to train on, 2 to validate on, 2 dropped" in capsys.readouterr().err
    assert not (tmp_path / "m" / "valid.tsv").exists()


def test_same_seed_same_weights(data: Path, tmp_path: Path, capsys: Captured) -> None:
    fast = ["--set", "train.evaluate=false", "--set", "train.save_dtype=float32"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(train(data, tmp_path / name, "--seed", seed, *fast)) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"The cat.\tLe chat.\nThe dog.\n", "x.tsv:2:9: 1 of 2 columns"),
        (b"The cat.\tLe chat.\nThe caf\xe9.\tLe caf\xe9.\n", "x.tsv:2:8: byte 0xe9 is not UTF-8"),
        (b"", "x.tsv:1: the file is empty"),
    ],
)
def test_mistakes_in_the_data(capsys: Captured, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.tsv").write_bytes(content)
    assert message in fails(capsys, 2, *train(tmp_path / "x.tsv", tmp_path / "m"))
    assert os.listdir(tmp_path) == ["x.tsv"], "nothing half-written"


def test_a_row_with_an_empty_side_is_named_and_left_out(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("The cat.\tLe chat.\nThe dog.\t\nThe house.\tLa maison.\n")
    assert main(train(tmp_path / "x.tsv", tmp_path / "m")) == 0
    told = capsys.readouterr().err
    assert f"data check: 1 row with an empty side (left out): {tmp_path}/x.tsv:2:10" in told
    assert "2 examples read" in told


def test_mistakes_in_the_settings(capsys: Captured, data: Path, tmp_path: Path) -> None:
    def failing(*more: str) -> str:
        line = fails(capsys, 2, *train(data, tmp_path / "m", *more))
        assert not (tmp_path / "m").exists()
        return line

    assert "train: unknown setting 'epochs'" in failing("--set", "train.epochs=3")
    assert "train: unknown setting 'max_epoch' (did you mean 'max_epochs'?)" in failing("--set", "train.max_epoch=3")
    assert "the form is task.NAME=VALUE" in failing("--set", "max_epochs=3")
    assert "max_epochs" in failing("--set", "train.max_epochs=many")
    assert "two different codes" in failing("--to", "en")
    assert "valid_share" in failing("--valid-share", "0.9")
    assert "none is left to train on: give others for validation" in failing("--valid", str(data))
    assert "no training to resume" in failing("--resume")
    assert "c.toml: No such file" in failing("--config", str(tmp_path / "c.toml"))
    (tmp_path / "c.toml").write_text("[training]\nseed = 3\n")
    assert "unknown table 'training' (did you mean 'train'?)" in failing("--config", str(tmp_path / "c.toml"))
    (tmp_path / "c.toml").write_text("seed = = 3\n")
    assert "not TOML" in failing("--config", str(tmp_path / "c.toml"))
    assert "--from and --to belong together" in fails(
        capsys, 2, "train", "translation", "--train", str(data), "--out", "m", "--to", "fr"
    )
    assert "no task is called" in fails(capsys, 2, "train", "translating", "--train", str(data), "--out", str(tmp_path / "m"))


def test_config_file(capsys: Captured, data: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[task.model]\ndropout = 0.5\n[train]\nseed = 5\nevaluate = false\n[card]\nlicense = "mit"\n'
    )
    assert main(train(data, tmp_path / "m", "--config", str(tmp_path / "c.toml"), "--seed", "6")) == 0
    settings = msgspec.json.decode((tmp_path / "m" / "config.json").read_bytes())
    assert (settings["training"]["seed"], settings["config"]["model"]["dropout"]) == (6, 0.5)
    assert settings["config"]["model"]["encoder_size"] == 8
    assert "license: mit" in (tmp_path / "m" / "README.md").read_text()


def test_a_full_disk(capsys: Captured, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(train(data, tmp_path / "m")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("rheme: ")
    assert "No space left on device" in last
    assert os.listdir(tmp_path) == []


def test_interrupted_and_resumed(data: Path, tmp_path: Path, capsys: Captured) -> None:
    """Ctrl-C leaves a checkpoint, and --resume ends in the very same weights."""
    settings = ["--set", "train.max_epochs=40", "--set", "train.evaluate=false", "--set", "train.save_dtype=float32"]
    settings += ["--set", "train.patience=0", "--set", "train.log_every=5"]
    command = train(data, tmp_path / "a", *settings)
    with subprocess.Popen([sys.executable, "-m", "rheme", *command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(60) == 1, rest
    assert rest.splitlines()[-1].startswith("rheme: interrupted after step ")
    assert "--resume" in rest.splitlines()[-1]
    changed = tmp_path / "other.tsv"
    changed.write_text(data.read_text().replace("cat", "cow"))
    assert "give the same files and shares" in fails(capsys, 2, *train(changed, tmp_path / "a", *settings, "--resume"))
    assert main([*command, "--resume"]) == 0
    assert main(train(data, tmp_path / "b", *settings)) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert not list((tmp_path / "a").glob("checkpoint-*"))


def test_generate(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("".join(f"{a}\n" for a, _ in pairs()))
    command = ["train", "generation", "--train", str(tmp_path / "x.txt"), "--out", str(tmp_path / "m"), *SMALL]
    assert main([*command, "--set", "task.model.latent_size=4"]) == 0
    capsys.readouterr()
    outputs = []
    for seed in ("1", "1", "2"):
        assert main(["generate", "--model", str(tmp_path / "m"), "--n", "3", "--seed", seed, "--max-new-tokens", "6"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert len(set(outputs[0].splitlines())) == 3
    assert main(["generate", "--model", str(tmp_path / "m"), "--n", "1", "--prompt", "The cat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith("The cat")

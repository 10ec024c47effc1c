"""The folder that a training writes into: what it finds there stays, and one training at a time writes to it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rheme
from rheme.errors import InputError
from rheme.training.checkpoints import locked

SMALL: dict[str, Any] = {
    "task": {"vocab_size": 300, "model": {"embedding_size": 8, "encoder_size": 8, "decoder_size": 8, "latent_size": 2}},
    "train": {"max_steps": 2, "evaluate": False, "batch_tokens": 300},
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"The {a} saw the {b}.\n" for a in ("cat", "dog", "bird", "cow") for b in ("tree", "house", "sky")))
    return path


def train(texts: Path, out: str | Path, **options: Any) -> dict[str, Any]:
    options = {"valid_share": 0.3, "config": SMALL, "echo": lambda line: None} | options
    return rheme.train("generation", texts, out=out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is there ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["README.md", "valid.tsv", "test.tsv", "metrics.json", "training.png", "initial/notes", "checkpoint-7/notes"]
)
def test_files_that_were_there_are_not_overwritten(texts: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    before = contents(out)
    with pytest.raises(InputError, match=rf"{name.split('/')[0]}: the training would overwrite it"):
        train(texts, out, test_share=0.2)
    assert contents(out) == before


def test_other_files_stay(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "valid.tsv").write_text("The cow saw the sky.\n")
    (out / "notes").write_text("mine")
    train(texts, out, valid=out / "valid.tsv")
    assert (out / "valid.tsv").read_text() == "The cow saw the sky.\n"
    assert (out / "notes").read_text() == "mine"


def test_an_empty_name_is_no_folder(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match="out is empty"):
        train(texts, "")
    assert not contents(Path())


def test_a_refused_training_leaves_no_held_out_rows(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="no training to resume"):
        train(texts, out, resume=True)
    with pytest.raises(InputError, match="start_share"):
        train(texts, out, start_share=0.5)
    assert not contents(out)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"license": 5}, "card: Expected `str`, got `int`"),
        ({"licence": "MIT"}, r"unknown setting 'licence' \(did you mean 'lic"),
    ],
)
def test_mistakes_in_the_card_are_found_before_training(texts: Path, tmp_path: Path, card: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(texts, tmp_path / "out", config=SMALL | {"card": card})
    with pytest.raises(InputError, match=message):
        rheme.training.train(None, [], [], tmp_path / "out", card=card)
    assert not (tmp_path / "out").exists()


# One at a time ---------------------------------------------------------------------------------------------------------------


def test_one_training_at_a_time_writes_to_a_folder(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out):
        (out / "training.json").write_text("{}")
        for options in ({"resume": True}, {"finish": True}):
            with pytest.raises(InputError, match="another training is writing to"):
                train(texts, out, **options)
    assert contents(out) == {"training.json": b"{}"}
    with locked(out):
        pass  # free again


def test_a_folder_in_which_nothing_began_is_gone(tmp_path: Path) -> None:
    def fail() -> None:
        raise InputError("mistake")

    with pytest.raises(InputError), locked(tmp_path / "out"):
        fail()
    assert not (tmp_path / "out").exists()


# Who listens -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redirection", ["2>&1 >&3 | head -1 >&3", "2>&-"])
def test_a_training_that_nobody_listens_to_goes_on(texts: Path, tmp_path: Path, redirection: str) -> None:
    settings = "task.vocab_size=300 task.model.encoder_size=8 task.model.decoder_size=8 train.max_steps=20 train.log_every=1"
    command = f"{sys.executable} -m rheme train generation --train {texts} --out out --valid-share 0.3"
    command += "".join(f" --set {setting}" for setting in settings.split())
    script = f"set -o pipefail; exec 3>&1; {command} {redirection}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert (tmp_path / "out" / "config.json").exists()
    assert done.stdout.count("\n") == redirection.count("head")

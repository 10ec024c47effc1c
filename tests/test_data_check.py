"""The look at training data, chats as pairs, learning curves, and another system's output scored beside ours."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import rheme
from rheme import nn, tasks
from rheme.cli.training import evaluate_command
from rheme.errors import InputError
from rheme.text import readers
from rheme.training import curves
from rheme.training.files import train

GOOD = [(f"The {a} is {b} today.", f"{c} est {d} aujourd'hui.")
        for a, c in (("cat", "Le chat"), ("dog", "Le chien"), ("house", "La maison"), ("teacher", "Le prof"))
        for b, d in (("big", "grand"), ("small", "petit"), ("near the station", "près de la gare"),
                     ("very happy", "heureux"))]  # fmt: skip
BAD = [
    GOOD[3],  # 17: twice
    ("Where is the station?", ""),  # 18
    ("Le professeur est heureux près de la gare aujourd'hui.", "The teacher is very happy near the station today."),  # 19
    ("Tom Boston Tokyo Paris", "Tom Boston Tokyo Paris"),  # 20
    ("Привет, где вокзал?", "Bonjour, où est la gare ?"),  # 21
    ("The dog.", "Le chien est grand et le chat est petit, " * 12),  # 22
    ("", "Le chat."),  # 23
]
SMALL = {"vocab_size": 330, "model": {"embedding_size": 8, "encoder_size": 8, "decoder_size": 8}}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in GOOD + BAD), encoding="utf-8")
    return path


def task() -> Any:
    cls = tasks.get_task("translation")
    return cls(tasks.configure(cls.Config, SMALL))


def test_bad_rows_are_named_and_counted(pairs: Path) -> None:
    kept, told = task().read_checked([pairs])
    assert told == [
        f"data check: 2 rows with an empty side (left out): {pairs}:18:23, {pairs}:23:1",
        f"data check: 1 row duplicated (left out): {pairs}:17 ({GOOD[3][0]} | {GOOD[3][1]})",
        f"data check: 3 rows in the wrong language (kept; --clean leaves them out): {pairs}:19 ({BAD[2][0][:39]}… | "
        f"{BAD[2][1][:39]}…), {pairs}:20 ({BAD[3][0]} | {BAD[3][1]}), {pairs}:21 ({BAD[4][0]} | {BAD[4][1]})",
        f"data check: 1 row of unlike lengths (kept; --clean leaves them out): {pairs}:22 (The dog. | {BAD[5][1][:39]}…)",
    ]
    assert kept == [*GOOD, *BAD[2:6]] or kept == [*GOOD, *(tuple(t.strip() for t in row) for row in BAD[2:6])]
    clean, told = task().read_checked([pairs], clean=True)
    assert clean == GOOD
    assert [line.split("(")[1].split(")")[0] for line in told] == ["left out"] * 4
    with pytest.raises(InputError, match=":18:23: column 2 is empty"):
        task().read([pairs])  # to measure on, every row must be whole


def test_good_data_has_nothing_to_tell(pairs: Path) -> None:
    pairs.write_text("".join(f"{a}\t{b}\n" for a, b in GOOD), encoding="utf-8")
    assert task().read_checked([pairs]) == (GOOD, [])


def test_each_format_names_its_rows(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("The cat.\n\nThe dog.\n")
    (tmp_path / "a.fr").write_text("Le chat.\nLa maison.\nLe chien.\n")
    notes = readers.Notes()
    rows = readers.read_records([tmp_path / "a.en", tmp_path / "a.fr"], ["en", "fr"], notes=notes)
    assert rows == [("The cat.", "Le chat."), ("The dog.", "Le chien.")]
    assert notes == readers.Notes([f"{tmp_path}/a.en:1", f"{tmp_path}/a.en:3"], [f"{tmp_path}/a.en:2:1"])
    records = [{"en": "The cat.", "fr": "Le chat."}, {"en": " ", "fr": "x"}, {"messages": [{"role": "user", "content": "x"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    notes = readers.Notes()
    assert readers.read_records(tmp_path / "a.jsonl", ["en", "fr"], notes=notes) == [("The cat.", "Le chat.")]
    assert notes == readers.Notes([f"{tmp_path}/a.jsonl:1"], [f"{tmp_path}/a.jsonl:2:1", f"{tmp_path}/a.jsonl:3:1"])


def chat(question: str, reply: str) -> str:
    messages = [{"role": "system", "content": "You translate."}, {"role": "user", "content": question}]
    return json.dumps({"messages": [*messages, {"role": "assistant", "content": reply}]})


def test_chats_are_pairs_without_their_instruction(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(chat(f"Translate into French:\n{a}", b) for a, b in GOOD))
    assert task().read([path]) == GOOD
    path.write_text("\n".join(chat(a, b) for a, b in GOOD))
    assert task().read([path]) == GOOD, "that all begin with The is no instruction"
    path.write_text("\n".join([chat("Translate: The cat.", "Le chat."), chat("Translate:", "Quoi ?")]))
    assert task().read([path])[0] == ("Translate: The cat.", "Le chat.")


def test_a_training_tells_of_bad_rows_and_draws_its_curves(pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    told: list[str] = []
    settings = {"task": SMALL, "train": {"max_steps": 4, "log_every": 1, "valid_every_steps": 2, "evaluate": False}}
    train("translation", pairs, out=tmp_path / "m", config=settings, valid_share=0.2, clean=True, echo=told.append)
    assert sum(line.startswith("data check: ") for line in told) == 4
    assert told[-1] == f"learning curves: {tmp_path / 'm' / curves.NAME}"
    picture = (tmp_path / "m" / curves.NAME).read_bytes()
    assert picture.startswith(b"\x89PNG")
    (tmp_path / "m" / curves.NAME).unlink()
    (tmp_path / "m" / curves.NAME).mkdir()
    with pytest.raises(InputError, match="cannot be written"):  # as on a full disk: a finished training must not fail by it
        curves.draw(tmp_path / "m")
    (tmp_path / "m" / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="no learning curve to draw"):
        curves.draw(tmp_path / "m")
    rheme.load("translation", tmp_path / "m", to="fr")("The cat is big.")


def test_another_systems_output_is_scored_beside(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    model = task()
    with nn.init_scope(1):
        model.setup(GOOD)
    model.options["max_new_tokens"] = 5
    folder = model.save(tmp_path / "m")
    readers.write_tsv(tmp_path / "test.tsv", GOOD[:6])
    (tmp_path / "other.txt").write_text("".join(f"{b}\n" for _, b in GOOD[:6]))
    command = ["evaluate", "translation", "--model", str(folder), "--data", str(tmp_path / "test.tsv"), "--num-beams", "1"]
    run = CliRunner().invoke(evaluate_command, [*command[1:], "--to", "fr", "--against", str(tmp_path / "other.txt"), "--json"])
    figures = json.loads(run.stdout)
    assert figures["against_bleu_en-fr"] == pytest.approx(100)
    assert figures["bleu_en-fr"] < 10
    assert (figures["better"], figures["against_better"]) == (0.0, 1.0)
    assert figures["against_bleu_signature_en-fr"] == figures["bleu_signature_en-fr"]
    with pytest.raises(InputError, match=r"say into which language"):
        model.evaluate(GOOD[:6], against=["x"] * 6)
    with pytest.raises(InputError, match="5 translations to compare with, but 6 examples"):
        model.evaluate(GOOD[:6], against=["x"] * 5, to="fr")

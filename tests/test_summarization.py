"""Summarization on a small model that was taught one pattern: it copies, keeps to what it is told, and takes any text."""

import io
import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import rheme
from rheme import training
from rheme.cli import main
from rheme.decoding import Constraints, GenerationOptions, Hypothesis, generate
from rheme.errors import InputError
from rheme.plugins.summarization import Summarization, SummarizationConfig, _Document
from rheme.plugins.summarization.extraction import find_sentences, fitting, rank
from rheme.plugins.summarization.numbers import Digits, FaithfulNumbers, numbers_of
from rheme.plugins.summarization.words import WordLimit, count_words, cut_words
from rheme.tasks import Result
from rheme.text.casing import capitalize, sentence_case, word_forms

KINDS, TOPICS = ("tool", "method", "library"), ("plants", "old maps", "music", "weather data", "rivers")
FILLERS = (
    "It runs on any machine.",
    "We tried it in three towns.",
    "Nobody has done this before.",
    "The code is free, and so is the data.",
    "Our users like it.",
)


def name(draw: random.Random) -> str:
    return "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(3)).capitalize()


def example(draw: random.Random) -> tuple[str, str]:
    """A document and its headline, which holds a name that stands nowhere else."""
    who, kind, topic = name(draw), draw.choice(KINDS), draw.choice(TOPICS)
    first, second = draw.sample(FILLERS, 2)
    return f"{first} We present {who}, a {kind} for {topic}. {second}", f"{who}: A {kind.title()} for {topic.title()}"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(1)
    sizes = {"embedding_size": 32, "encoder_size": 32, "decoder_size": 48, "copy_size": 32, "dropout": 0.0}
    values = {"vocab_size": 420, "max_input_length": 120, "model": sizes}
    task = Summarization(msgspec.convert(values, SummarizationConfig))
    settings = training.TrainingConfig(
        batch_tokens=2000, max_steps=420, learning_rate=8e-3, warmup_steps=40, evaluate=False, betas=(0.9, 0.98)
    )
    folder = tmp_path_factory.mktemp("models") / "m"
    training.train(task, [example(draw) for _ in range(2000)], [], folder, settings, echo=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def summarize(taught: Path) -> Any:
    return rheme.load("summarization", taught)


@pytest.fixture(scope="module")
def unseen() -> list[tuple[str, str]]:
    draw = random.Random(2)
    return [example(draw) for _ in range(40)]


# What it writes --------------------------------------------------------------------------------------------------------------


def test_names_it_never_saw_are_copied(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    results = summarize([document for document, _ in unseen])
    right = [result.text.lower() == headline.lower() for result, (_, headline) in zip(results, unseen, strict=True)]
    assert sum(right) >= 36  # measured: 40
    who, rest = unseen[0][1].split(":")
    assert results[0].text == f"{who}:{rest.lower()}"  # in the case in which words stand inside a sentence
    assert results[0].score > 0.9
    assert results[0].warnings == ()


def test_the_same_bits_alone_and_in_company(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    texts = [document for document, _ in unseen[:9]]
    texts += [texts[0] * 9, "", texts[1][:40], " ".join(texts)]
    together = summarize(texts)
    assert [summarize(text) for text in texts] == together
    assert summarize(texts[::-1]) == together[::-1]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_max_words(summarize: Any, unseen: list[tuple[str, str]], num_beams: int) -> None:
    for document, headline in unseen[:5]:
        words = headline.split()
        for limit in range(1, 9):
            text = summarize(document, max_words=limit, num_beams=num_beams).text
            assert 1 <= count_words(text) <= limit
            if limit >= len(words):
                assert text.lower() == headline.lower()


def test_forbid(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    for document, headline in unseen[:10]:
        kind = headline.split()[2].lower()
        assert kind in summarize(document).text.split()
        assert kind not in summarize(document, forbid=[kind]).text.split()
        assert kind not in summarize(document, forbid=kind, max_words=4).text.split()


def test_require(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    for document, _ in unseen[:5]:
        results = summarize(document, require=["free data"], num_beams=6, num_return_sequences=2, max_new_tokens=30)
        assert all("free data" in result.text.lower() for result in (results, *results.alternatives))
    with pytest.raises(InputError, match="required, but"):
        summarize(unseen[0][0], require="data", forbid="data")


def test_what_cannot_be_met_is_told(summarize: Any, unseen: list[tuple[str, str]], taught: Path, tmp_path: Path) -> None:
    document = unseen[0][0]
    for options in (
        {"require": "free data for all", "max_words": 2},
        {"require": "free data for all", "max_words": 2, "max_new_tokens": 12},  # the search must write it at last
        {"prefix": "on the data of", "max_words": 3},
        {"prefix": "on the data of", "max_words": 3, "num_beams": 1},
    ):
        with pytest.raises(InputError, match=r"no summary found .* max_words = [23]"):
            summarize(document, **options)
    (tmp_path / "one.txt").write_text(document)
    command = ["summarize", "--model", str(taught), str(tmp_path / "one.txt"), "--max-words", "2"]
    assert main([*command, "--require", "free data for all"]) == 2


def test_a_prefix_is_kept_as_it_is_given(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    assert summarize(unseen[0][0]).text[0].isupper()
    for num_beams in (1, 4):
        assert summarize(unseen[0][0], prefix="on the", num_beams=num_beams).text.startswith("on the")


def test_texts_that_became_equal_are_given_once(summarize: Any) -> None:
    ids = summarize.tokenizer.encode(["a tool for music", "A tool for music", "A tool for music and maps", "A tool for maps"])
    found = [Hypothesis(row, -n, -n, True) for n, row in enumerate(ids, 1)]
    document = _Document([1], "Of our tools this one is for music.")
    for max_words, wanted in (
        (None, ["A tool for music", "A tool for music and maps", "A tool for maps"]),
        (4, ["A tool for music", "A tool for maps"]),
    ):
        result = summarize._result(document, found, max_words, GenerationOptions())
        assert [one.text for one in (result, *result.alternatives)] == wanted
        assert result.score == found[0].confidence
    sampled = summarize._result(document, found, 4, GenerationOptions(do_sample=True))
    assert len(sampled.alternatives) == 3


def test_coverage_keeps_from_reading_twice(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    """With a penalty far above any probability the chosen text copies no more than the others that were found."""
    document = unseen[0][0]
    free = summarize(document, num_beams=4, num_return_sequences=4)
    strict = summarize(document, num_beams=4, num_return_sequences=4, coverage_penalty=1000.0)
    assert {free.text, *(a.text for a in free.alternatives)} != {strict.text}
    assert len(strict.text) <= max(len(r.text) for r in (free, *free.alternatives))


# Choosing sentences ----------------------------------------------------------------------------------------------------------


def test_extract(summarize: Any, unseen: list[tuple[str, str]], taught: Path) -> None:
    document = unseen[0][0]
    for count in (1, 2, 3, 7):
        result = summarize(document, extract=count)
        spans = result.extra["sentences"]
        assert len(spans) == min(count, 3)
        assert all(document[span["start"] : span["end"]] == span["text"] for span in spans)
        assert [span["start"] for span in spans] == sorted(span["start"] for span in spans)
        assert result.text == " ".join(span["text"] for span in spans)
    words = [count_words(span["text"]) for span in summarize(document, extract=3).extra["sentences"]]
    some = summarize(document, extract=3, max_words=sum(words) - 1)
    assert len(some.extra["sentences"]) == 2
    cut = summarize(document, extract=1, max_words=2)
    assert count_words(cut.text) == 2
    assert cut.warnings == ("truncated",)
    assert "present" not in summarize(document, extract=3, forbid="present").text
    for options in ({"require": "x"}, {"prefix": "The"}, {"num_return_sequences": 2}, {"do_sample": True}):
        with pytest.raises(InputError, match=f"as they stand: leave {next(iter(options))} out"):
            summarize(document, extract=1, **options)
    with pytest.raises(InputError, match="leave prefix out"):
        rheme.load("summarization", taught, prefix="The")(document, extract=1)
    assert summarize("", extract=2).to_dict() == {"text": "", "score": None, "sentences": []}


def test_it_looks_at_the_sentence_with_the_name(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    found = [summarize(document, extract=1).text for document, _ in unseen[:10]]
    assert sum("We present" in text for text in found) >= 9  # measured: 10
    long = " ".join([*FILLERS * 20, unseen[0][0], *FILLERS * 20])  # read in windows, and again
    assert "We present" in summarize(long, extract=1).text


def test_rank_is_an_order_of_all_sentences(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    sentences = find_sentences(" ".join(document for document, _ in unseen), summarize.tokenizer.encode)
    ids = [sentence.ids for sentence in sentences]
    for some in (ids[:1], ids[:2], ids[:7], ids, [ids[0] * 50, ids[1], ids[2] * 90], [[5]] * 300):
        assert sorted(rank(summarize.model, some, 60)) == list(range(len(some)))
    assert rank(summarize.model, ids, 60) == rank(summarize.model, ids, 60)
    assert rank(summarize.model, [], 60) == []


def test_fitting() -> None:
    assert fitting([2, 0, 1], [3, 4, 5], 2) == [0, 2]
    assert fitting([2, 0, 1], [3, 4, 5], 3, budget=9) == [0, 2]
    assert fitting([2, 0, 1], [1, 4, 5], 3, budget=4) == [2]  # in any case the first
    assert fitting([], [], 3, budget=4) == []


def test_equal_sentences_are_not_chosen_twice(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    first, present, last = [s.text for s in find_sentences(unseen[0][0], summarize.tokenizer.encode)]
    texts = [s["text"] for s in summarize(" ".join([present, first, present, last]), extract=2).extra["sentences"]]
    assert len(set(texts)) == 2


def test_long_documents_are_read_in_part(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    document = " ".join([unseen[0][0]] + list(FILLERS) * 30)
    result = summarize(document)
    pieces = summarize.tokenizer.encode([document[start:end] for start, end in result.extra["read"]])
    assert 60 < sum(map(len, pieces)) <= 120
    assert count_words(result.text) <= 12
    assert "read" not in summarize(unseen[0][0]).extra
    assert summarize("word " * 4000).extra["read"] == [[0, 19999]]  # one endless sentence: its beginning


def test_what_is_blank_is_not_read(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    document = unseen[0][0]
    wanted, blank = summarize(document), " \n" * 1000
    assert summarize(blank + document) == summarize(document + blank) == wanted
    for head in ("Report" + blank, "🎉" * 2000 + "\n"):
        result = summarize(head + document)
        assert "out_of_domain" not in result.warnings
        assert count_words(result.text) <= 12
        assert any("We present" in (head + document)[start:end] for start, end in result.extra["read"])
    assert summarize("Report" + blank).text == "Report"
    assert summarize("🎉" * 3000).warnings == ("out_of_domain",)


@pytest.mark.parametrize(
    "text", ["  One. Two!\n\nThree?  Four", "", " \n ", "今天天气很好。我们去公园。", "Dr. Who et al. came. They left."]
)
def test_sentences_are_slices(text: str) -> None:
    found = find_sentences(text, lambda texts: [[1]] * len(texts))
    assert [text[s.start : s.end] for s in found] == [s.text for s in found]
    assert "".join(s.text for s in found).split() == text.split() or " ".join(s.text for s in found).split() == text.split()


# Any text --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "warnings"),
    [
        ("", "", ()),
        ("  \n\t ", "", ()),
        ("our tool", "our tool", ()),
        ("🙂", "🙂", ("out_of_domain",)),
        ("今天天气很好。我们去公园玩。", "今天天气很好。", ("out_of_domain",)),
        (
            "Voici un texte en français. Il parle de la ville et de ses musées.",
            "Voici un texte en français.",
            ("out_of_domain",),
        ),
        ("مرحبا بالعالم كيف حالك اليوم يا صديقي", "مرحبا بالعالم كيف حالك اليوم يا صديقي", ("out_of_domain",)),
    ],
)
def test_texts_that_are_their_own_summary(summarize: Any, text: str, expected: str, warnings: tuple[str, ...]) -> None:
    result = summarize(text)
    assert (result.text, result.warnings) == (expected, warnings)
    assert count_words(summarize(text, max_words=2).text) <= 2


def test_constraints_on_a_text_in_another_language(summarize: Any) -> None:
    text = "Voici un texte en français. Il parle de la ville et de ses musées."
    assert summarize(text, forbid="voici").text == "Il parle de la ville et de ses musées."
    assert summarize(text, forbid=["voici", "ville"]).text == ""
    assert summarize("🙂", forbid="🙂").text == ""
    for options in ({"require": "ville"}, {"prefix": "Voici"}):
        with pytest.raises(InputError, match=r"'Voici un texte.*no language of this model \(en\)"):
            summarize([text], **options)
        assert summarize("", **options).text == ""


@pytest.mark.parametrize(
    "text", ["\0\1\x7f", "a" * 5000, "🙂 " * 500, "\ufeffx\u2028y", "e\u0301" * 300, "今天" * 3000, "<b>" * 99]
)
def test_odd_texts(summarize: Any, text: str) -> None:
    for result in (summarize(text), summarize(text, max_words=3), summarize(text, extract=1)):
        assert isinstance(result.text, str)
        json.dumps(result.to_dict())


def test_symbols_without_pieces_are_passed_over(summarize: Any, unseen: list[tuple[str, str]]) -> None:
    document, headline = unseen[3]
    assert summarize(document.replace("We present", "🎉🎉 We present")).text.lower() == headline.lower()


def test_mistakes(summarize: Any) -> None:
    for options, message in (
        ({"max_words": 0}, "max_words = 0"),
        ({"max_words": math.inf}, "max_words = inf"),
        ({"max_words": 10**400}, "max_words = 1000"),
        ({"extract": 1.5}, "extract = 1.5"),
        ({"max_word": 3}, "did you mean"),
    ):
        with pytest.raises(InputError, match=message):
            summarize("Some text that is long enough to be read.", **options)
    with pytest.raises(InputError, match="must be a str, not int"):
        summarize(["x", 3])


# Words and capitals ----------------------------------------------------------------------------------------------------------


def test_counting_and_cutting_words() -> None:
    text = "Two words, 今天 and e-mail"
    assert count_words(text) == 6
    assert cut_words(text, 3) == "Two words, 今"
    assert cut_words(text, 4) == "Two words, 今天"
    assert cut_words(text, 99) == cut_words(text, None) == text
    assert count_words("") == 0


def test_the_limit_counts_as_the_text_does(summarize: Any) -> None:
    """Whatever pieces a text has, none that would begin a word too many is allowed after so many words."""
    tokenizer = summarize.tokenizer
    for text in ("We present it", "the tool: (x) y", "data, data; data"):
        ids = tokenizer.encode([text])[0]
        total = count_words(tokenizer.decode([ids])[0])
        assert not np.isin(ids, WordLimit(total, [], tokenizer).banned([])).all()
        tight = WordLimit(total - 1, [], tokenizer)
        assert any(piece in tight.banned(ids[:k]) for k, piece in enumerate(ids))
        loose = WordLimit(total, [], tokenizer)
        assert not any(piece in loose.banned(ids[:k]) for k, piece in enumerate(ids) if k < len(ids) - 1)


def test_the_last_word_goes_on_as_in_the_document(summarize: Any) -> None:
    tokenizer = summarize.tokenizer
    name, other = (tokenizer.encode([text])[0] for text in ("Zubado", "Zufapa"))
    assert len(name) > 2
    limit = WordLimit(1, [], tokenizer).within(name)
    for size in range(1, len(name)):
        allowed = set(range(len(tokenizer))) - set(limit.banned(name[:size]).tolist())
        assert allowed == {name[size], tokenizer.eos_id}
    assert tokenizer.eos_id not in limit.banned(name)
    assert other[-1] in limit.banned(name[:1])


def test_sentence_case() -> None:
    forms = word_forms(["In Paris the LSTM of Mary is, as Bayesian methods are, good.", "It is the Paris of old."])
    assert forms["paris"] == "Paris"
    assert forms["the"] == "the"
    document = "We study the neural machine of Paris in R with NASA's help."
    assert sentence_case("Neural Machine In Paris", document, forms) == "neural machine in Paris"
    assert sentence_case("A Bayesian View", document, forms) == "A Bayesian View"  # words that nothing is known of stay
    assert sentence_case("R and NASA", document, forms) == "R and NASA"
    assert sentence_case("THE LSTM MACHINE", document, forms) == "the LSTM machine"
    assert sentence_case("", document, forms) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [("deep", "Deep"), ("iPhone", "iPhone"), ("“the”", "“The”"), ("3D maps", "3D maps"), ("", ""), ("é", "É")],
)
def test_capitalize(text: str, expected: str) -> None:
    assert capitalize(text) == expected


# Data, measures and the command ----------------------------------------------------------------------------------------------


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("id\tA title\tA text.\n")
    assert Summarization().read(path, ["3", "2"]) == [("A text.", "A title")]
    lines = tmp_path / "pairs.jsonl"
    lines.write_text('{"document": "A text.", "summary": "A title"}\n')
    assert Summarization().read(lines) == [("A text.", "A title")]
    with pytest.raises(InputError, match="two fields"):
        Summarization().read(path, ["1"])


def test_long_summaries_are_left_out(summarize: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert len(summarize.encode_all([("A text.", "A title"), ("A text.", "word " * 100)])) == 1
    assert "1 of 2 pairs left out" in caplog.text


def test_evaluate(summarize: Any, unseen: list[tuple[str, str]], tmp_path: Path) -> None:
    figures = summarize.evaluate(unseen[:10])
    assert figures["pairs"] == 10
    assert figures["rougeL"] > 90
    assert figures["lead_rougeL"] < 30
    summarize.evaluate([*unseen[:3], ("Hi", "Hi")], plot=tmp_path / "picture.png")  # of the last one no score is known
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="cannot be written"):
        summarize.evaluate(unseen[:2], plot=tmp_path / "none" / "picture.png")
    assert {f"{a}rouge{b}{c}" for a in ("", "lead_", "lead_words_", "extract_") for b in "12L" for c in ("", "_stemmed")} < set(
        figures
    )


def test_evaluate_in_another_script(summarize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summarize.config, "languages", ["ru"])
    monkeypatch.setattr(summarize, "answer", lambda texts, **_: [Result(text) for text in texts])
    figures = summarize.evaluate([("Москва — столица.", "Москва, столица")])
    assert figures["rouge2"] == 100
    assert "rouge2_stemmed" not in figures


def test_pipeline(taught: Path, unseen: list[tuple[str, str]]) -> None:
    run = rheme.pipeline("summarization", taught)
    found = run([unseen[0][0], unseen[1][0]], max_words=3)
    assert [list(row) for row in found] == [["summary_text"], ["summary_text"]]
    [short] = run(unseen[0][0], max_length=3, do_sample=False, truncation=True, clean_up_tokenization_spaces=True)
    [usual] = run(unseen[0][0])
    [long] = run(unseen[0][0], max_length=40, min_length=40)
    assert len(short["summary_text"]) < len(usual["summary_text"]) < len(long["summary_text"])


def test_command(
    taught: Path, unseen: list[tuple[str, str]], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, headline = unseen[0]
    one, many = tmp_path / "one.txt", tmp_path / "many.txt"
    one.write_text(document.replace(". ", ".\n"))
    many.write_text(document + "\n\n" + document + "\n")
    model = ["--model", str(taught)]
    assert main(["summarize", *model, str(one)]) == 0
    assert capsys.readouterr().out.lower() == headline.lower() + "\n"
    assert main(["summarize", *model, "--lines", "--json", str(many)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in rows] == [f"{many}:{n}" for n in (1, 2, 3)]
    assert [row["text"].lower() for row in rows] == [headline.lower(), "", headline.lower()]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{document}\n{document}\n".encode())))
    assert main(["summarize", *model, "-", "--max-words", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["summarize", *model, str(one), "--extract", "2", "--forbid", "present"]) == 0
    assert "present" not in capsys.readouterr().out
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    for arguments, message in (
        ([str(empty)], "the file is empty"),
        ([str(tmp_path / "none.txt")], "No such file"),
        ([], "no document given"),
        ([str(one), "--set", "max_word=2"], "did you mean"),
        ([str(one), "--extract", "1", "--require", "x"], "leave require out"),
    ):
        assert main(["summarize", *model, *arguments]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert not captured.out


# Numbers ---------------------------------------------------------------------------------------------------------------------


class Scribbler:
    """A model that likes digits best, a random one each time, then anything else."""

    def __init__(self, size: int, digits: list[int], eos: int) -> None:
        self.size, self.digits, self.eos, self.rng = size, digits, eos, np.random.default_rng(3)

    def step(self, ids: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        logits = self.rng.standard_normal((len(ids), self.size)).astype(np.float32)
        logits[:, self.digits] += 3
        logits[:, self.eos] += 3
        return np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)), state


class Nothing:
    attention = None

    def select(self, indices: Any) -> "Nothing":
        return self


@pytest.mark.parametrize("num_beams", [1, 4])
def test_every_number_is_one_of_those_given(summarize: Any, num_beams: int) -> None:
    tokenizer = summarize.tokenizer
    digits = Digits(tokenizer.surfaces)
    eos = tokenizer.eos_id
    model = FaithfulNumbers(Scribbler(len(tokenizer), [*digits.all, *(digits.joined[c][0] for c in ".,-")], eos), digits)
    given = [{"2017", "20", "3"}, {"441"}, set(), {"2.55", "1,000", "1914-18"}] * 4
    options = GenerationOptions(num_beams=num_beams, max_new_tokens=30)
    written = set()
    for _ in range(5):
        state = model.start(Nothing(), given)
        found = generate(model, state, len(given), options, tokenizer.bos_id, eos, Constraints(forbid=tokenizer.unwritable))
        for numbers, (best, *_) in zip(given, found, strict=True):
            if best.finished:
                text = "".join(tokenizer.surfaces[i].decode("utf-8", "replace") for i in best.ids)
                runs = re.findall(r"[0-9]+(?:[.,-][0-9]+)*", text)
                assert set(runs) <= numbers
                assert len(runs) == len(set(runs))
                written |= set(runs)
    assert {"441", "2.55", "1914-18"} < written


def test_digits_of_a_tokenizer(summarize: Any) -> None:
    digits = Digits([b"", b" 1", b"1", b"12", b" x", b"2", "٣".encode(), b" ", b".", b" .", "–".encode()])
    assert (digits.all, digits.repeatable) == ([1, 2, 5], {1, 2, 5, 8, 10})
    assert (digits.spaced, digits.joined) == ({"1": [1]}, {"1": [2], "2": [5], ".": [8], "–": [10]})
    found = Digits(summarize.tokenizer.surfaces)
    assert set(found.joined) | set(found.spaced) >= set("0123456789.,-/:")  # where the text had none, as bytes
    assert numbers_of("In 2017, 3,450 of H2O; 1.5. Or 1867.1903,") == {"2017", "3,450", "2", "1.5", "1867.1903"}
    assert numbers_of("1914-18, 9:30, GPT-3, 3-SAT") == {"1914", "18", "1914-18", "9", "30", "9:30", "3"}


@pytest.mark.parametrize(("given", "written"), [("CO₂", "CO2"), ("１２", "12"), ("①", "1"), ("½", "1⁄2")])
def test_required_numbers_in_other_digits(summarize: Any, unseen: list[tuple[str, str]], given: str, written: str) -> None:
    for num_beams in (1, 3):
        result = summarize(unseen[0][0], prefix=given, num_beams=num_beams)
        assert result.text.startswith(written)
        assert result.score > 0
    assert written in summarize(unseen[0][0], require=given).text


@pytest.mark.parametrize(
    ("forbid", "left"),
    [("top 10", {"10", "12", "2019"}), ("12", {"10", "2019"}), ("１２", {"10", "2019"}), (["10", "of 2019"], {"12", "2019"})],
)
def test_numbers_of_forbidden_phrases(
    summarize: Any, monkeypatch: pytest.MonkeyPatch, forbid: str | list[str], left: set[str]
) -> None:
    """Only a phrase that is itself a number takes it away."""
    told: list[set[str]] = []
    start = FaithfulNumbers.start
    monkeypatch.setattr(FaithfulNumbers, "start", lambda self, *given: told.extend(given[1]) or start(self, *given))
    summarize("Our top 10 tools of 2019. We tried them in 12 towns, and 10 of them run on any machine.", forbid=forbid)
    assert told == [left]

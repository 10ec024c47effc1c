"""Question answering: words and their places, files, windows, answers whose offsets hold, calibration, the command line."""

import io
import json
import string
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import rheme
from rheme import nn, tasks
from rheme.cli import main
from rheme.errors import InputError
from rheme.plugins.question_answering import QuestionAnswering, QuestionAnsweringConfig, _Span
from rheme.plugins.question_answering.lexicon import Lexicon
from rheme.plugins.question_answering.windows import split
from rheme.tasks import Result
from rheme.text.squad import QuestionExample, read_questions, squad_json
from rheme.text.vocabulary import Vocabulary
from rheme.text.words import find_words, stem

SIZES = {"word_size": 16, "char_size": 4, "char_filters": 8, "embedding_size": 16, "hidden_size": 16, "pair_size": 4}
PEOPLE, PLACES = "Tom Mary Ann Bob Eve Max Ida Leo".split(), "Paris Oslo Rome Lima Cairo Delhi Quito Seoul".split()


def facts(count: int, seed: int = 0) -> list[QuestionExample]:
    """Made-up passages, two an article: where a person lives, and how old the person is."""
    chance, examples = np.random.default_rng(seed), []
    for number in range(count):
        who, other = chance.choice(PEOPLE, 2, replace=False)
        place, age = chance.choice(PLACES), str(chance.integers(20, 90))
        context = f"{who} is {age} years old and lives in {place}. {other} is a friend, but far away."
        for question, answer in ((f"Where does {who} live?", place), (f"How old is {who}?", age)):
            examples.append(
                QuestionExample(f"a{number // 2}", question, context, ((answer, context.index(answer)),), f"{number}")
            )
    return examples


def new_task(**options: Any) -> Any:
    return QuestionAnswering(tasks.configure(QuestionAnsweringConfig, {"min_count": 1, "model": SIZES} | options))


@pytest.fixture(scope="module")
def untrained() -> Any:
    """A reader that was never trained, with windows of 32 words."""
    task = new_task(window=32)
    with nn.init_scope(1):
        task.setup(facts(20))
    task.model.eval()
    return task


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained on made-up passages by `rheme.train`."""
    folder = tmp_path_factory.mktemp("qa")
    (folder / "train.json").write_text(json.dumps(squad_json(facts(300))))
    config = {"task": {"min_count": 1, "model": SIZES, "negatives": 0.5, "window": 32}, "card": {"license": "CC0-1.0"}}
    sizes = {"batch_tokens": 300, "learning_rate": 0.01, "max_epochs": 12, "warmup_steps": 20}
    rheme.train("question-answering", folder / "train.json", out=folder / "m", config=config, valid_share=0.1, **sizes)
    return folder / "m"


# Words ------------------------------------------------------------------------------------------------------------------------


@given(st.text())
def test_words_are_the_text_but_for_white_space(text: str) -> None:
    words, places = find_words(text)
    assert [text[start:end] for start, end in places.tolist()] == words
    edges = [0, *places.ravel().tolist(), len(text)]
    assert edges == sorted(edges)
    assert all(not text[edges[i] : edges[i + 1]].strip() for i in range(0, len(edges), 2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tesla's 1,234.5 km/h in the 1980s.", ["Tesla", "'s", "1,234.5", "km", "/", "h", "in", "the", "1980", "s", "."]),
        ("d\u2019 e\u0301te\u0301 1754\u20131763", ["d", "\u2019", "e\u0301te\u0301", "1754", "\u2013", "1763"]),
        ("他住在北京, ok", ["他", "住", "在", "北", "京", ",", "ok"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("", []),
    ],
)
def test_words_by_hand(text: str, expected: list[str]) -> None:
    assert find_words(text)[0] == expected


def test_stems_agree_for_forms_of_a_word() -> None:
    for forms in (("Name", "named", "names", "naming"), ("city", "cities"), ("run", "running", "runs"), ("killed", "kills")):
        assert len({stem(form) for form in forms}) == 1, forms
    assert stem("is") == "is"
    assert stem("北京") == "北京"


def test_features_by_hand() -> None:
    lexicon = Lexicon(Vocabulary(["the", "old", "bridge", "of"]))
    question = lexicon.ids(["the", "Old", "bridges"])
    found = lexicon.features(question, lexicon.ids(["an", "old", "bridge", ".", "The"]))
    assert found[:, 0].tolist() == [0, 0, 0, 0, 0]  # the same word
    assert found[:, 1].tolist() == [0, 1, 0, 0, 1]  # but for capitals
    assert found[:, 2].tolist() == [0, 1, 1, 0, 1]  # the same stem
    assert found[:, 3].tolist() == [0, 1, 1, 0, 0]  # in a run of matches
    assert found[:, 4].tolist() == [4, 3, 3, 0, 3]  # rarity: bits of the place in the vocabulary (5, 6 and 4; 8 if unknown)
    assert found[:, 5].tolist() == [0, 3, 3, 0, 3]
    assert found[:, 6].tolist() == found[:, 7].tolist() == [9, 9, 9, 9, 9]


# Files ------------------------------------------------------------------------------------------------------------------------


def squad(qas: list[dict[str, Any]], context: str = "Tom lives in Paris.", **more: Any) -> dict[str, Any]:
    return {"version": "x", "data": [{"title": "T", "paragraphs": [{"context": context, "qas": qas}], **more}]}


def test_reads_squad(tmp_path: Path) -> None:
    qas = [
        {
            "id": "1",
            "question": "Where?",
            "answers": [{"text": "Paris", "answer_start": 13}, {"text": "Paris", "answer_start": 13}],
        },
        {
            "id": 2,
            "question": "Why?",
            "answers": [],
            "is_impossible": True,
            "plausible_answers": [{"text": "Tom", "answer_start": 0}],
        },
        {"id": "3", "question": "Who?", "answers": [{"text": "Tom ", "answer_start": 1}]},  # off by a space
    ]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(squad(qas)), encoding="utf-8-sig")
    found = read_questions(path)
    assert [(e.article, e.question, e.answers) for e in found] == [
        ("T", "Where?", (("Paris", 13), ("Paris", 13))),
        ("T", "Why?", ()),
        ("T", "Who?", (("Tom", 0),)),
    ]
    (tmp_path / "again.json").write_text(json.dumps(squad_json(found)))
    assert read_questions(tmp_path / "again.json") == found


def test_reads_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"context": "他住在北京。", "question": "他住在哪里？", "answer": "北京"}\n')
    (tmp_path / "x.tsv").write_text("Where?\tIn Rome.\tRome\n")
    assert read_questions(tmp_path / "x.jsonl")[0].answers == (("北京", 3),)
    assert read_questions(tmp_path / "x.tsv")[0] == QuestionExample("In Rome.", "Where?", "In Rome.", (("Rome", 3),), "1")


def test_an_answer_in_other_words_is_for_evaluation_only() -> None:
    task = new_task()
    examples = [QuestionExample("a", "Where?", "Tom lives in Paris.", (("Paris", 13), ("Paris, France", -1))),
                QuestionExample("a", "Who?", "Tom lives in Paris.", (("Thomas", -1),)),
                QuestionExample("a", "Why?", "Tom lives in Paris.", ())]  # fmt: skip
    with nn.init_scope(0):
        task.setup(examples)
    (group,) = task.encode_all(examples)
    assert [asked.spans.tolist() for asked in group.asked] == [[[3, 3]], []]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "not JSON"),
        ("x.json", '{"x": ' + "[" * 100_000, "not JSON"),
        ("x.json", '{"data": [{"paragraphs": [{"context": 1, "qas": []}]}]}', "not SQuAD's JSON.*context"),
        ("x.json", '{"data": []}', "no questions"),
        ("x.json", json.dumps(squad([{"id": "7", "question": "?", "answers": [{"text": "Rome"}]}])), "1 of 1.*7.*'Rome'"),
        ("x.tsv", "Where?\tIn Rome.\tOslo\n", "1 of 1 answers.*'Oslo'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_questions(tmp_path / name)


def test_chinese_answers_are_measured_by_characters() -> None:
    task, found = new_task(languages=["zh"]), Result("北京市")
    task.answer = lambda *_, **__: [found]
    assert task.evaluate([QuestionExample("a", "q", "c", (("北京", 0),))])["f1"] == pytest.approx(80)


def test_splits_by_article() -> None:
    train, held = QuestionAnswering().split(facts(200), 0.2)
    assert held
    assert not {e.article for e in train} & {e.article for e in held}


# Windows and spans ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.sampled_from([1, 8, 9, 16, 17, 20, 31]))
@example(60, 20)
def test_windows_read_every_span_once(length: int, max_span: int) -> None:
    starts: list[int] = []
    for (begin, end), (first, last) in split(length, 32, max_span):
        assert 0 <= begin < end <= length
        assert end - begin <= 32
        assert 0 <= first < last <= end - begin
        assert begin + last - 1 + max_span <= end or end == length  # the longest span ends within the window
        assert begin + first == 0 or first >= 8 or max_span > 8  # words before it to be read in, but at the beginning
        starts += range(begin + first, begin + last)
    assert starts == list(range(length))


def test_every_place_of_an_answer_counts_as_right() -> None:
    task, context = new_task(), "In 1990 he left; in 1990s style he came back in 1990."
    _, places = find_words(context)
    spans = task._spans([("1990", 3)], context, places)
    assert [context[places[i, 0] : places[j, 1]] for i, j in spans.tolist()] == ["1990", "1990", "1990"]
    assert task._spans([("left; in", 11)], context, places).tolist() == [[3, 5]]
    assert task._spans([("99", 4)], context, places).tolist() == [[1, 1]]  # within a word: the whole word


def test_negatives_ask_another_passage_of_the_article() -> None:
    task = new_task(negatives=1.0)
    examples = [QuestionExample("a", f"Who is {x}?", f"It is {x} who came.", ((x, 6),)) for x in "Ann Bob Eve".split()]
    with nn.init_scope(0):
        task.setup(examples)
    groups = task.encode_all(examples)
    assert sum(len(group.asked) for group in groups) == 6
    assert sum(len(asked.spans) == 0 for group in groups for asked in group.asked) == 3


def test_begins_with_given_vectors(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("2 16\nparis " + " ".join(["0.5"] * 16) + "\nzebra 1 2\nlives " + " ".join(["-1"] * 16) + "\n")
    task = new_task(vectors=str(path))
    with nn.init_scope(0):
        task.setup(facts(20))
    weight = task.model.words.weight.data
    assert (weight[task.tokenizer.piece_id("paris")] == 0.5).all()
    assert (weight[task.tokenizer.piece_id("lives")] == -1).all()
    assert np.ptp(weight[task.tokenizer.piece_id("oslo")]) > 0
    assert task.config.vectors == ""  # no path in the stored model
    for text, message in (
        ("paris 1 2\n", "1:1: 2 numbers, 16"),
        ("zebra 1\n", "none"),
        ("paris" + " x" * 16, "1:7: not a line"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            new_task(vectors=str(path)).setup(facts(20))


# Answers ----------------------------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=300) | st.text(st.sampled_from("aB1 .,\n\t你好é\u0301😀ก็हि"), max_size=300)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), max_size=4), st.integers(1, 3))
def test_offsets_hold(untrained: Any, inputs: list[tuple[str, list[str]]], top_k: int) -> None:
    """context[start:end] is the answer, in any script; answers are the same bits alone and together."""
    together = untrained.answer(inputs, top_k=top_k, no_answer_threshold=0.0)
    assert together == [untrained.answer([one], top_k=top_k, no_answer_threshold=0.0)[0] for one in inputs]
    for (question, contexts), result in zip(inputs, together, strict=True):
        found = [result, *result.alternatives]
        assert len(found) <= top_k
        for one in found:
            place = one.extra
            assert contexts[place["context"]][place["start"] : place["end"]] == one.text
            assert 0 <= one.score <= 1
        if find_words(question)[0] and any(find_words(context)[0] for context in contexts):
            assert result.text
        else:
            assert (result.text, result.score) == ("", 0.0)


def test_learns_and_answers(model: Path) -> None:
    task = rheme.load("question-answering", model)
    figures = task.evaluate(facts(50, seed=9))
    assert figures["exact_match"] > 95
    assert 0 < task.options["no_answer_threshold"] < 1
    context = "Zoe is 44 years old and lives in Lima. Bob is a friend, but far away."
    results = task([("How old is Zoe?", context), ("Where does Zoe live?", context)], no_answer_threshold=0.0)
    assert [str(result) for result in results] == ["44", "Lima"]


def test_learns_chinese_by_characters(tmp_path: Path) -> None:
    chance, examples = np.random.default_rng(0), []
    names, places = "王伟 李娜 张敏 刘洋 陈静 杨光".split(), "北京市 上海市 巴黎 东京都 成都市 罗马".split()
    for number in range(240):
        who, place, age = chance.choice(names), chance.choice(places), str(chance.integers(20, 90))
        context = f"{who}今年{age}岁，住在{place}，喜欢读书。"
        for question, answer in ((f"{who}住在哪里？", place), (f"{who}今年多大？", f"{age}岁")):
            examples.append(QuestionExample(str(number), question, context, ((answer, context.index(answer)),), f"{number}"))
    (tmp_path / "train.json").write_text(json.dumps(squad_json(examples)))
    config = {"task": {"min_count": 1, "model": SIZES, "languages": ["zh"]}}
    sizes = {"batch_tokens": 300, "learning_rate": 0.01, "max_epochs": 8, "warmup_steps": 20}
    out = tmp_path / "m"
    figures = rheme.train("question-answering", tmp_path / "train.json", out=out, config=config, valid_share=0.1, **sizes)
    assert figures["f1"] > 90


def test_finds_the_answer_in_a_long_context_and_among_several(model: Path) -> None:
    task = rheme.load("question-answering", model)
    filler = " ".join(example.context for example in facts(80, seed=5) if "Eve" not in example.context)
    needle = "Eve is 31 years old and lives in Oslo. Max is a friend, but far away."
    long = f"{filler} {needle} {filler}"
    assert len(find_words(long)[0]) > 3 * task.config.window
    result = task(("Where does Eve live?", long), no_answer_threshold=0.0)
    assert (result.text, result.extra["start"]) == ("Oslo", long.index(needle) + needle.index("Oslo"))
    several = task(("Where does Eve live?", [filler, needle, filler]), no_answer_threshold=0.0)
    assert (several.text, several.extra["context"]) == ("Oslo", 1)
    shuffled = task(("Where does Eve live?", [needle, filler, filler]), no_answer_threshold=0.0)
    assert (shuffled.text, shuffled.score) == (several.text, several.score)


def test_warns_of_a_language_it_never_saw(model: Path) -> None:
    task = rheme.load("question-answering", model)
    assert "out_of_domain" in task(("Where does 张敏 live?", "张敏今年三十岁，住在成都市，喜欢读书。")).warnings
    assert "out_of_domain" not in task(("Where does Ida live?", facts(1)[0].context)).warnings


def test_answering_leaves_the_training_items_alone(untrained: Any) -> None:
    """An answer in the middle of a training adds no words to those that its items count on."""
    items = untrained.encode_all(facts(10))
    before = untrained.loss(items, 0)[0].item()
    untrained.answer([("Completely other words?", "None of these was ever there.")])
    assert untrained.loss(items, 0)[0].item() == before


def test_a_threshold_refuses(untrained: Any) -> None:
    result = untrained(("Who?", "Tom and Mary."), no_answer_threshold=1.0)
    assert result.text == ""
    assert result.alternatives[0].text
    assert result.score == pytest.approx(1 - result.extra["answerable"])


@pytest.mark.parametrize(("log_odds", "warnings"), [(3.0, ("low_confidence",)), (1.0, ())])
def test_a_refusal_says_how_sure_it_is(untrained: Any, log_odds: float, warnings: tuple[str, ...]) -> None:
    span = _Span(np.float32(0), 0, 0, 3)
    result = untrained._result(["Tom and Mary."], [span], [np.float32(log_odds)], 1, 1.0)
    assert (result.text, result.warnings) == ("", warnings)


def test_calibrates_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answerable 0.9 (right) and 0.3 (wrong), no answer 0.5 and 0.4: the best is to refuse the three lowest."""
    task = new_task()
    examples = [QuestionExample("a", "q", "x y", answers) for answers in ((("x", 0),), (("x", 0),), (), ())]
    told = [("x", 0.9), ("y", 0.3), ("x", 0.5), ("x", 0.4)]
    monkeypatch.setattr(task, "answer", lambda *_, **__: [Result(text, 0.5, extra={"answerable": p}) for text, p in told])
    task.calibrate(examples)
    assert 0.5 < task.options["no_answer_threshold"] <= 0.5001
    told[2] = ("x", 0.95)  # refusing this one would cost the right answer, and win as much: not better
    task.calibrate(examples)
    assert 0.4 < task.options["no_answer_threshold"] <= 0.4001


def test_evaluates_as_the_official_script(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens(text: str) -> list[str]:
        plain = "".join(char for char in text.lower() if char not in string.punctuation)
        return [word for word in plain.split() if word not in ("a", "an", "the")]

    def f1(found: str, wanted: str) -> float:
        a, b = tokens(found), tokens(wanted)
        same = sum((Counter(a) & Counter(b)).values())
        if not a or not b:
            return float(a == b)
        return 2 * same / (len(a) + len(b)) if same else 0.0

    rows = [
        ("The old Bridge!", ["old bridge", "bridge"]),
        ("in Paris", ["Paris, France"]),
        ("", []),
        ("Tom", []),
        ("", ["Ann"]),
    ]
    answers = [tuple((text, 0) for text in wanted) for _, wanted in rows]
    examples = [QuestionExample("a", "q", "c", wanted, str(n)) for n, wanted in enumerate(answers)]
    monkeypatch.setattr(untrained, "answer", lambda *_, **__: [Result(text) for text, _ in rows])
    figures = untrained.evaluate(examples)
    best = [max(f1(found, one) for one in wanted or [""]) for found, wanted in rows]
    assert figures["f1"] == pytest.approx(100 * sum(best) / 5)
    assert figures["exact_match"] == pytest.approx(100 * 2 / 5)
    assert figures["no_answer_f1"] == pytest.approx(50)
    assert figures["has_answer_f1"] == pytest.approx(100 * (best[0] + best[1] + best[4]) / 3)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("Who?", {}, "give .question, context"),
        ({"question": "Who?"}, {}, "keys question and context"),
        (("Who?", []), {}, "the context a text or a list"),
        (("Who?", [1]), {}, "each context"),
        (("Who?", "x"), {"topk": 2}, "did you mean 'top_k'"),
        (("Who?", "x"), {"top_k": 0}, "at least 1"),
        (("Who?", "x"), {"no_answer_threshold": 2}, "from 0 to 1"),
        (("Who?", "x"), {"max_answer_words": 0}, "at least 1"),
        (("Who?", "x"), {"max_answer_words": 1.5}, "Expected `int.*max_answer_words"),
        (("Who?", "x"), {"max_answer_words": "abc"}, "Expected `int.*max_answer_words"),
        (("Who?", "x"), {"top_k": "abc"}, "Expected `int`.*top_k"),
        (("Who?", "x"), {"no_answer_threshold": "abc"}, "Expected `float`.*no_answer_threshold"),
    ],
)
def test_a_wrong_question_is_told(untrained: Any, given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        untrained.answer([given], **options)


def test_options_of_load_are_those_of_each_call(model: Path) -> None:
    asked = "Where does Ida live?", "Ida is 50 years old and lives in Rome. Bob is a friend, but far away."
    task = rheme.load("question-answering", model, top_k=2, no_answer_threshold=0.0)
    assert task(asked) == rheme.load("question-answering", model)(asked, top_k=2, no_answer_threshold=0.0)
    assert len(task(asked).alternatives) == 1
    assert not task(asked, top_k=1).alternatives


def test_pipeline_has_transformers_shapes(model: Path) -> None:
    answer = rheme.pipeline("question-answering", model)
    context = "Ida is 50 years old and lives in Rome. Bob is a friend, but far away."
    one = answer(question="Where does Ida live?", context=context)
    assert set(one) == {"score", "start", "end", "answer"}
    assert (one["answer"], context[one["start"] : one["end"]]) == ("Rome", "Rome")
    asked = {"question": "Where does Ida live?", "context": context}
    assert answer(asked) == one
    assert answer([asked, asked]) == [one, one]
    assert answer(question=["Where does Ida live?"], context=context) == [one]
    assert [len(records) for records in answer([asked], top_k=3)] == [3]
    assert answer(asked, top_k=3)[0] == one
    assert answer("Where does Ida live?", context) == one
    assert answer(asked, doc_stride=128, max_seq_len=384, padding="longest") == one
    with pytest.raises(InputError, match="did you mean 'top_k'"):
        answer(asked, topk=2)
    with pytest.raises(InputError, match="question="):
        answer(question="Who?")


# The command line -------------------------------------------------------------------------------------------------------------


def test_answers_from_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Leo is 27 years old\r\nand lives in Seoul. Ann is a friend, but far away."
    (tmp_path / "leo.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "empty.txt").write_text(" \n")
    base = ["answer", "--model", str(model), "--threshold", "0", "--context", str(tmp_path / "leo.txt")]
    assert main([*base, "Where does Leo live?", "How old is Leo?"]) == 0
    assert capsys.readouterr().out == "Seoul\n27\n"
    assert main([*base, "Where does Leo live?", "--json", "--top-k", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["answer"], record["file"]) == ("Seoul", str(tmp_path / "leo.txt"))
    assert text[record["start"] : record["end"]] == "Seoul"  # in the text as the file has it, line ends and all
    other = record["alternatives"][0]
    assert text[other["start"] : other["end"]] == other["answer"]

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"How old is Leo?\n\nWhere does Leo live?\n")))
    assert main([*base, "-"]) == 0
    assert capsys.readouterr().out == "27\n\nSeoul\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["answer", "--model", str(model), "--threshold", "0", "--context", "-", "How old is Leo?"]) == 0
    assert capsys.readouterr().out == "27\n"

    for arguments, message in (
        ([*base], "no question given"),
        ([*base, "--context", "-", "-"], "not both"),
        (["answer", "--model", str(model), "--context", str(tmp_path / "none.txt"), "Who?"], "No such file"),
        (["answer", "--model", str(model), "--context", str(tmp_path / "empty.txt"), "Who?"], "no text in it"),
        ([*base, "--set", "max_answer_words=abc", "Who?"], "max_answer_words"),
        ([*base, "--set", "inputs=x", "Who?"], "--set inputs: no option"),
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert not captured.out


def test_held_out_questions_are_a_file_to_evaluate_on(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "question-answering", "--model", str(model), "--data", str(model / "valid.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] > 20


def test_draws_when_to_trust_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    data = ["evaluate", "question-answering", "--model", str(model), "--data", str(model / "valid.json")]
    assert main([*data, "--plot", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main([*data, "--plot", str(tmp_path / "none" / "x.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err

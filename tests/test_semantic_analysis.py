"""Semantic analysis: n-grams, languages, calibration, and the task on models too small to be any good."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rheme
from rheme import _core, calibration, metrics, ops
from rheme.autograd import gradcheck
from rheme.cli import main
from rheme.errors import InputError
from rheme.models.classifier import ClassifierConfig, TextClassifier, pad_bags, softplus
from rheme.models.semi_supervised import SemiSupervisedClassifier
from rheme.tasks import get_task
from rheme.text import language, readers
from rheme.text.features import Features, PiecesAndFeatures, tokens

# N-grams ---------------------------------------------------------------------------------------------------------------------

TEXTS = ["Good food, good mood!", "bad FOOD", "", "中文很好。中文不难。", "a 😀 smile", "good food"]


def test_features_are_those_of_plain_counting() -> None:
    """The words and the runs of characters are told apart and counted as plain Python does it."""
    features = Features.train(TEXTS, min_count=1)

    def ngrams(text: str) -> set[Any]:
        words = tokens(text)
        line = f" {' '.join(words)} "
        runs = {line[i : i + n] for n in range(2, 6) for i in range(len(line) - n + 1)}
        runs = {run for run in runs if " " not in run[1:-1] and run.strip()}
        return {("word", *words[i : i + n]) for n in (1, 2) for i in range(len(words) - n + 1)} | runs

    counted = [len(rows) for rows, _ in features.encode(TEXTS)]
    assert counted == [len(ngrams(text)) for text in TEXTS]
    assert len(features) == 1 + len(set().union(*map(ngrams, TEXTS)))


def test_features_weights() -> None:
    features = Features.train(TEXTS, min_count=1, word_ngrams=1, char_ngrams=(0, 0))
    rows, weights = features.encode(["good smile"])[0]
    idf = {word: round(256 * (math.log((1 + len(TEXTS)) / (1 + n)) + 1)) for word, n in (("good", 2), ("smile", 1))}
    norm = math.sqrt(sum(value**2 for value in idf.values()))
    assert sorted(weights.tolist()) == pytest.approx(sorted(value / norm for value in idf.values()), rel=1e-6)
    assert len(rows) == 2
    assert features.encode(["unheard of"])[0][0].size == 0


def test_features_of_openings() -> None:
    """The first words of a text, taken together, are told from the same words elsewhere."""
    texts = ["What is it? What is", "what is this", "Who is it", "is it", "", "what"]
    features = Features.train(texts, min_count=1, word_ngrams=0, char_ngrams=(0, 0), opening_words=3)
    found = [rows.tolist() for rows, _ in features.encode(texts)]
    assert [len(rows) for rows in found] == [3, 3, 3, 2, 0, 1]
    assert len(features) == 1 + len({tuple(tokens(text)[:n]) for text in texts for n in (1, 2, 3) if len(tokens(text)) >= n})
    assert len(set(found[0]) & set(found[1])) == 2  # what; what is
    assert set(found[5]) < set(found[0])
    assert not set(found[0]) & set(found[2])
    for _, weights in features.encode(texts[:4]):
        assert float((weights.astype(float) ** 2).sum()) == pytest.approx(1.0, rel=1e-6)
    again = Features.load(features.to_bytes())
    assert [rows.tolist() for rows, _ in again.encode(texts)] == found
    words = Features.train(texts, min_count=1, word_ngrams=3, char_ngrams=(0, 0))
    assert not set(words.hashes.tolist()) & set(features.hashes.tolist())


def test_features_do_not_depend_on_the_texts_beside() -> None:
    features = Features.train(TEXTS, min_count=1, opening_words=4)
    many = features.encode(TEXTS * 300)
    for text, (rows, weights) in zip(TEXTS * 300, many, strict=True):
        alone = features.encode([text])[0]
        assert np.array_equal(rows, alone[0])
        assert np.array_equal(weights, alone[1])


def test_features_keep_the_most_frequent() -> None:
    features = Features.train(["a b", "a c", "a b"], max_features=2, min_count=1, word_ngrams=1, char_ngrams=(0, 0))
    assert [len(rows) for rows, _ in features.encode(["a", "b", "c"])] == [1, 1, 0]
    assert len(Features.load(features.to_bytes())) == 3
    with pytest.raises(InputError, match="damaged"):
        Features.load(features.to_bytes()[:-9])
    with pytest.raises(InputError, match=r"tokenizer\.model is damaged"):
        PiecesAndFeatures.load(b"nonsense")


# Languages -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "I don't know what you want from me."),
        ("fr", "Je ne sais pas ce que tu veux."),
        ("de", "Ich weiß nicht, was du von mir willst."),
        ("es", "No sé qué quieres de mí."),
        ("it", "Non so che cosa vuoi da me."),
        ("nl", "Ik weet niet wat je van mij wilt."),
        ("zh", "我不知道你想要什么。"),
        ("ja", "何が欲しいのか分かりません。"),
        ("ko", "무엇을 원하는지 모르겠어요."),
        ("ru", "Я не знаю, чего ты хочешь."),
        ("uk", "Я не знаю, чого ти хочеш і що це."),
        (None, "12345 !!! 😀"),
        (None, ""),
        (None, "xyzzy plugh"),
    ],
)
def test_language(code: str | None, text: str) -> None:
    assert language.identify(text) == code


# Calibration and metrics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
def test_temperature_is_found_again(rng: np.random.Generator, multi_label: bool) -> None:
    """Labels drawn from softmax(x), logits 3 x: the temperature is 3."""
    x = rng.normal(size=(4000, 5)) * 2
    if multi_label:
        targets = (rng.random(x.shape) < 1 / (1 + np.exp(-x))).astype(np.uint8)
    else:
        p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        targets = np.eye(5, dtype=np.uint8)[[rng.choice(5, p=row) for row in p]]
    assert calibration.fit_temperature((3 * x).astype(np.float32), targets, multi_label) == pytest.approx(3, rel=0.05)


def test_likelihood_is_that_of_plain_numpy(rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 4)) * 30
    y = np.eye(4, dtype=np.uint8)[rng.integers(0, 4, 50)]
    wanted = np.where(y, np.logaddexp(0, -x), np.logaddexp(0, x)).sum() / 50
    assert calibration.negative_log_likelihood(x, y, 1.0, True) == pytest.approx(wanted, rel=1e-9)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    assert calibration.negative_log_likelihood(x, y) == pytest.approx(-(log_p * y).sum() / 50, rel=1e-12)


def test_thresholds() -> None:
    assert calibration.best_threshold([0.9, 0.8, 0.3, 0.1], [True, True, False, True]) == (0.05, pytest.approx(6 / 7))
    assert calibration.best_threshold([0.9, 0.8, 0.3, 0.1], [True, True, False, False]) == (0.55, pytest.approx(1))
    assert calibration.best_threshold([0.5, 0.5], [True, False]) == (0.25, pytest.approx(2 / 3))
    assert calibration.best_threshold([0.5], [False]) == (0.5, 0.0)
    assert calibration.best_threshold([0.0, 0.0], [True, False]) == (0.0, pytest.approx(2 / 3))
    assert calibration.confidence_for_accuracy([0.9, 0.8, 0.7, 0.6], [True, True, False, True], 0.75) == 0.6
    assert calibration.confidence_for_accuracy([0.9, 0.8, 0.7, 0.6], [True, True, False, True], 0.9) == 0.8
    assert calibration.confidence_for_accuracy([0.9], [False], 0.9) > 1


def test_metrics_are_those_of_scikit_learn(rng: np.random.Generator) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    found, wanted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    confusion = metrics.Confusion.count([str(v) for v in found], [str(v) for v in wanted])
    assert np.array_equal(confusion.counts, sklearn.confusion_matrix(wanted, found))
    scores, yes = rng.integers(0, 20, 200) / 20, rng.random(200) < 0.3
    assert metrics.auroc(scores.tolist(), yes.tolist()) == pytest.approx(100 * sklearn.roc_auc_score(yes, scores))
    p, y = rng.random((100, 6)) < 0.3, rng.random((100, 6)) < 0.3
    sets = [[np.flatnonzero(row).tolist() for row in side] for side in (p, y)]
    assert metrics.micro_f1(*sets) == pytest.approx(100 * sklearn.f1_score(y, p, average="micro"))
    a, b = rng.normal(size=50), rng.normal(size=50)
    assert metrics.pearson(a.tolist(), b.tolist()) == pytest.approx(np.corrcoef(a, b)[0, 1])
    ranks = [sorted(side.tolist()).index(v) for side in (a, b) for v in side]
    assert metrics.spearman(a.tolist(), b.tolist()) == pytest.approx(np.corrcoef(ranks[:50], ranks[50:])[0, 1])


def test_calibration_error() -> None:
    assert metrics.calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    assert metrics.calibration_error([1.0, 1.0, 0.1, 0.1], [True, False, False, False]) == pytest.approx(0.3)


def test_confusion_is_written(tmp_path: Path) -> None:
    confusion = metrics.Confusion.count(["a", "b", "b"], ["a", "a", "b"])
    confusion.write(tmp_path / "c.tsv")
    assert (tmp_path / "c.tsv").read_text() == "wanted \\ found\ta\tb\na\t1\t1\nb\t0\t1\n"
    pytest.importorskip("matplotlib")
    confusion.write(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="No such file"):
        confusion.write(tmp_path / "nowhere" / "c.tsv")


# The model -------------------------------------------------------------------------------------------------------------------


def test_softplus(rng: np.random.Generator) -> None:
    x = np.concatenate((rng.normal(size=20), [50.0, -50.0, 0.5]))
    assert np.allclose(softplus(x).numpy(), np.logaddexp(0, x), rtol=1e-14)
    assert softplus(np.array([1e4, -1e4], np.float32)).numpy().tolist() == [1e4, 0.0]
    assert gradcheck(softplus, [x[:20]])


def test_gradients_of_the_model(rng: np.random.Generator) -> None:
    config = ClassifierConfig(embedding_size=3, hidden_size=2, code_size=2, dropout=0, piece_dropout=0, bag_dropout=0)
    model = TextClassifier(config, 7, 6, 3).astype(np.float64)
    named = dict(model.named_parameters())
    ids, lengths = rng.integers(0, 7, (4, 3)), np.array([4, 1, 3])
    bags = [(np.array([1, 4]), np.array([0.5, 1.0])), (np.array([], np.int64), np.array([])), (np.array([2]), np.array([1.0]))]
    rows, weights = pad_bags(bags)

    def logits(*arrays: Any) -> Any:
        for parameter, array in zip(named, arrays, strict=True):
            module, _, leaf = parameter.rpartition(".")
            setattr(getattr(model, module) if module else model, leaf, array)
        return model(ids, lengths, rows, weights.astype(np.float64))

    assert gradcheck(logits, [rng.normal(size=p.shape) for p in named.values()])


# The task --------------------------------------------------------------------------------------------------------------------

WORDS = {
    "billing": "invoice charge refund payment card",
    "login": "password account locked reset code",
    "praise": "thanks great",
}


def tickets(count: int, labels: tuple[str, ...] = ("billing", "login", "praise"), seed: int = 0) -> list[tuple[str, str]]:
    """Invented texts; the label decides their words."""
    draw = random.Random(seed)
    rows = []
    for n in range(count):
        label = labels[n % len(labels)]
        words = draw.choices("the my with a problem please today".split(), k=4) + draw.choices(WORDS[label].split(), k=2)
        draw.shuffle(words)
        rows.append((f"{' '.join(words)} {n}", label))
    return rows


def small(folder: Path, rows: list[tuple[str, ...]], name: str = "m", **settings: Any) -> dict[str, Any]:
    path = folder / f"{name}.tsv"
    readers.write_tsv(path, rows)
    options = {
        "vocab_size": 400,
        "max_epochs": 6,
        "batch_tokens": 200,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "max_features": 800,
    }
    config = {"task": {"model": {"embedding_size": 12, "hidden_size": 8}}}
    config["task"] |= settings.pop("task", {})
    return rheme.train(
        "semantic-analysis",
        path,
        out=folder / name,
        config=config,
        valid_share=0.3,
        echo=lambda line: None,
        **options | settings,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of tickets."""
    path = tmp_path_factory.mktemp("classifier")
    figures = small(path, tickets(240))
    assert figures["accuracy"] > 90
    return path / "m"


@pytest.fixture(scope="module")
def analyze(folder: Path) -> Any:
    return rheme.load(model=folder)


def test_answers(analyze: Any) -> None:
    result = analyze("please refund my invoice")
    assert str(result) == "billing"
    assert result.score == pytest.approx(result.extra["labels"]["billing"])
    assert sum(result.extra["labels"].values()) == pytest.approx(1, abs=1e-5)
    assert {"refund", "invoice"} <= set(result.extra["keywords"]) <= {"refund", "invoice", "please"}
    assert result.extra["language"] == "en"
    assert not result.warnings
    assert json.loads(json.dumps(result.to_dict()))["text"] == "billing"


def test_keywords_are_told_once_as_they_stand_first(analyze: Any) -> None:
    assert analyze.keywords("My Refund: refund, REFUND or Invoice!") == ["Refund", "Invoice"]


LONG = "password " * 5000


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bits_batched_and_alone(analyze: Any, threads: int, restored: None) -> None:
    _core.set_num_threads(n=threads)
    texts = [text for text, _ in tickets(70, seed=1)] + ["", "x", LONG, "中文", "😀 " * 40, "password\0\tlocked"]
    together = analyze(texts)
    assert [r.to_dict() for r in together] == [analyze(text).to_dict() for text in texts]
    backwards = analyze(texts[::-1])[::-1]
    assert [r.to_dict() for r in together] == [r.to_dict() for r in backwards]
    assert np.array_equal(analyze.predict_proba(texts), np.concatenate([analyze.predict_proba([text]) for text in texts]))


def test_the_same_bits_on_each_instruction_set(analyze: Any, restored: None) -> None:
    texts = [text for text, _ in tickets(40, seed=2)]
    found = []
    for name in _core.available_isas():
        if name != "baseline":
            _core.set_isa(name=name)
            found.append(analyze.predict_proba(texts))
    assert all(np.array_equal(found[0], other) for other in found)


def test_warnings(analyze: Any) -> None:
    assert analyze("").to_dict()["warnings"] == ["low_confidence"]
    assert "truncated" in analyze(LONG).warnings
    assert "out_of_domain" in analyze("Ich weiß nicht, was das ist.").warnings
    assert "out_of_domain" in analyze("今天天气很好").warnings
    nothing = analyze("my problem", min_confidence=1.0)
    assert (nothing.text, nothing.warnings) == ("", ("low_confidence",))


def test_mistakes(analyze: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown setting 'topk' \(did you mean 'top_k'\?\)"):
        analyze("x", topk=3)
    with pytest.raises(InputError, match="min_confidence = 2"):
        analyze("x", min_confidence=2)
    with pytest.raises(InputError, match="a text must be a str, not int"):
        analyze([3])
    with pytest.raises(InputError, match="one trained on pairs"):
        analyze.similarity([("a", "b")])
    with pytest.raises(InputError, match=r"1 label in \d+ examples \(praise\): 2 are needed"):
        small(tmp_path, tickets(10, ("praise",)), "one")
    with pytest.raises(InputError, match=r"different labels in \d+ examples.*--fields"):
        small(tmp_path, [(text, text[::-1]) for text, _ in tickets(100)], "swapped")
    assert not (tmp_path / "swapped").exists()


def test_evaluate(analyze: Any, tmp_path: Path) -> None:
    rows = tickets(60, seed=3)
    figures = analyze.evaluate([*rows, ("strange", "unknown")], confusion=str(tmp_path / "c.tsv"))
    right = sum(str(r) == label for r, (_, label) in zip(analyze([text for text, _ in rows]), rows, strict=True))
    assert figures["accuracy"] == pytest.approx(100 * right / 61)
    assert 0 <= figures["calibration_error"] <= 0.3
    assert (tmp_path / "c.tsv").read_text().splitlines()[-1].startswith("unknown\t")


def test_evaluating_on_other_labels(analyze: Any) -> None:
    with pytest.raises(InputError, match=r"no example has a label of this model \(billing, login, praise.*'DESC'"):
        analyze.evaluate([("text", "DESC"), ("more", "HUM")])


def test_reading(analyze: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n')
    assert analyze.read(path) == [("a", "b")]
    path.write_text('{"text": "a", "label": ["b", "c"]}\n')
    with pytest.raises(InputError, match="the field 'label' is not text"):
        analyze.read(path)
    path = tmp_path / "x.tsv"
    path.write_text("label\ttext\nyes\tgood\nno\tbad\n")
    assert analyze.read(path, ["text", "label"]) == [("good", "yes"), ("bad", "no")]
    assert analyze.read([path, path], ["2", "1"])[-1] == ("bad", "no")
    path = tmp_path / "x.jsonl"
    cls = get_task("semantic-analysis")
    assert cls(cls.Config(multi_label=True, separator=";")).read(path) == [("a", "b;c")]
    with pytest.raises(InputError, match="2 fields are needed"):
        analyze.read(path, ["text"])


def test_several_labels(tmp_path: Path) -> None:
    """Labels of two kinds at once, with groups; the thresholds are found, the file restores all of it."""
    rows = [(f"{a} {b}", f"{x}, {y}") for a, x in tickets(150) for b, y in tickets(2, ("praise",), len(a))]
    groups = {"good": ["praise"], "bad": ["billing", "login"]}
    figures = small(tmp_path, rows, task={"multi_label": True, "groups": groups}, max_epochs=4)
    assert figures["macro_f1"] > 80
    task = rheme.load("semantic-analysis", model=tmp_path / "m")
    assert len(task.config.calibration.thresholds) == 5
    result = task("my refund and payment, great thanks")
    assert set(str(result).split(", ")) == {"billing", "praise"}
    assert result.extra["sentiment"]["scores"].keys() == groups.keys()
    texts = [text for text, _ in rows[:40]]
    assert [r.to_dict() for r in task(texts)] == [task(text).to_dict() for text in texts]


def test_class_weights_favour_the_rare(tmp_path: Path) -> None:
    rows = [(text, "rare" if n % 10 == 0 else "often") for n, (text, _) in enumerate(tickets(200))]
    found = []
    for name, weight in (("plain", 0.0), ("weighted", 1.0)):
        small(tmp_path, rows, name, task={"class_weights": weight}, max_epochs=4)
        task = rheme.load(model=tmp_path / name)
        found.append(float(task.predict_proba([text for text, _ in rows])[:, 1].mean()))
    assert task.config.weights == pytest.approx([0.55, 5.0], rel=0.2)
    assert found[1] > 2 * found[0]


def test_out_of_scope(tmp_path: Path) -> None:
    draw = random.Random(3)
    strange = [("".join(draw.choices("bcdfg aeiou", k=20)).strip() + str(n), "oos") for n in range(60)]
    figures = small(tmp_path, tickets(180) + strange, task={"out_of_scope": "oos"})
    assert figures["out_of_scope_auroc"] > 90
    task = rheme.load(model=tmp_path / "m")
    assert task.config.labels == ["billing", "login", "praise"]
    found = [result for result in task([text for text, _ in strange]) if str(result) == "oos"]
    assert len(found) > 40
    assert all("out_of_domain" in result.warnings for result in found)


def test_similarity(tmp_path: Path) -> None:
    rows = []
    for n, ((a, x), (b, y)) in enumerate(zip(tickets(200), tickets(200, ("billing", "login"), 5), strict=True)):
        rows.append((a, b, f"{4.0 if x == y else 1.0 + n % 2 / 10}"))
    figures = small(tmp_path, rows, task={"objective": "similarity"})
    assert figures["pearson"] > 0.8
    task = rheme.load(model=tmp_path / "m")
    same, other = task.similarity([("reset my password", "account locked"), ("reset my password", "refund the invoice")])
    assert same > other
    lines = ["the invoice", "a password", "payment please"]
    assert [place for place, _ in task.neighbours("account code", lines, 1)] == [1]
    codes = task.codes(lines)
    assert np.allclose((codes**2).sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(codes[1], task.codes([lines[1]])[0])
    with pytest.raises(InputError, match="trained on pairs"):
        task("x")
    readers.write_tsv(tmp_path / "bad.tsv", [("a", "b", "high")])
    with pytest.raises(InputError, match="the score of a pair must be a number, not 'high'"):
        task.read(tmp_path / "bad.tsv")


def test_paraphrases(tmp_path: Path) -> None:
    rows = [(a, b) for (a, _), (b, _) in zip(tickets(200), tickets(200, seed=4), strict=True)]
    assert small(tmp_path, rows, task={"objective": "paraphrases"}, max_epochs=2)["nearest_of_100"] > 3


def test_fine_tuning_with_other_labels(folder: Path, tmp_path: Path) -> None:
    rows = [(text, "yes" if label == "praise" else "no") for text, label in tickets(200, seed=6)]
    small(tmp_path, rows, "new", init=folder, max_epochs=3)
    task, before = rheme.load(model=tmp_path / "new"), rheme.load(model=folder)
    assert task.config.labels == ["no", "yes"]
    assert len(task.tokenizer.pieces) == len(before.tokenizer.pieces)
    assert str(task("great thanks")) == "yes"


# The command line ------------------------------------------------------------------------------------------------------------


def test_analyze_command(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["analyze", "--model", str(folder), "refund my invoice"]) == 0
    cells = capsys.readouterr().out.rstrip("\n").split("\t")
    assert cells[0].startswith("billing ")
    assert cells[1:] == ["refund, invoice", "en"] or cells[1:] == ["invoice, refund", "en"]
    assert main(["analyze", "--model", str(folder), "--json", "--top-k", "1", "great"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["source"], list(row["labels"])) == ("great", ["praise"])
    data = tmp_path / "d.tsv"
    readers.write_tsv(data, tickets(30))
    picture = tmp_path / "c.tsv"
    command = ["evaluate", "semantic-analysis", "--model", str(folder), "--data", str(data), "--set", f"confusion={picture}"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 30
    assert picture.exists()
    for wrong, message in (
        ([], "no text given"),
        (["--similar", "a"], "--similar compares two texts, not 1"),
        (["--similar", "a", "b"], "one trained on pairs"),
        (["--similar", "--neighbours", "f", "a", "b"], "exclude each other"),
    ):
        assert main(["analyze", "--model", str(folder), *wrong]) == 2
        assert message in capsys.readouterr().err


# The bundled model -----------------------------------------------------------------------------------------------------------

COMMENTS = {
    "Thank you so much, you made my day!": ("gratitude", "positive"),
    "This is the worst service I have ever had.": ("disgust", "negative"),
    "What time does the shop open?": ("curiosity", "ambiguous"),
    "I'm so sorry for your loss.": ("sadness", "negative"),
    "I love this song.": ("love", "positive"),
    "The meeting is on Tuesday.": ("neutral", "neutral"),
}


@pytest.fixture(scope="module")
def emotions() -> Any:
    return rheme.load("semantic-analysis")


def test_the_bundled_model_tells_emotions(emotions: Any) -> None:
    for text, (emotion, sentiment) in COMMENTS.items():
        result = emotions(text)
        assert emotion in str(result).split(", "), text
        assert result.extra["sentiment"]["label"] == sentiment, text
    assert len(emotions.config.labels) == 28


def test_the_parts_of_an_answer_agree(emotions: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the most probable label misses its threshold, or one that is chosen is not among the first three."""
    texts = ["Maybe, well.", "Interesting. Tell me more?", *COMMENTS]
    assert [str(result) for result in emotions(texts[:2])] == ["approval", "curiosity, excitement"]
    for result in emotions(texts):
        chosen, others, labels = str(result).split(", "), [other.text for other in result.alternatives], result.extra["labels"]
        assert result.score == labels[chosen[0]]
        assert sorted(chosen + others) == sorted(labels)
        assert list(labels.values()) == sorted(labels.values(), reverse=True)
    assert str(emotions(texts[1], min_confidence=0.5)) == "curiosity"
    assert main(["analyze", texts[1], ""]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert re.fullmatch(r"curiosity 0\.\d\d, excitement 0\.\d\d", rows[0][1])
    assert rows[1] == ["(none)", "(no label)", "", "?"]


def test_the_bundled_model_has_the_same_bits_everywhere(emotions: Any, restored: None) -> None:
    texts = [*COMMENTS, *(f"{a} {b}" for a in COMMENTS for b in COMMENTS), "", "😀 " * 300]
    wanted = [result.to_dict() for result in emotions(texts)]
    assert wanted == [emotions(text).to_dict() for text in texts]
    for name in _core.available_isas():
        if name != "baseline":
            _core.set_isa(name=name)
            for threads in (1, 2):
                _core.set_num_threads(n=threads)
                assert [result.to_dict() for result in emotions(texts[::-1])[::-1]] == wanted


# Texts without labels --------------------------------------------------------------------------------------------------------


def test_a_text_without_a_label_costs_the_mean_over_labels(rng: np.random.Generator) -> None:
    """The bound, and its gradient, against the same sum made label by label."""
    sizes = {"embedding_size": 3, "hidden_size": 2, "latent_size": 2, "decoder_size": 3}
    config = ClassifierConfig(**sizes, dropout=0, piece_dropout=0, bag_dropout=0, word_dropout=0)
    model = SemiSupervisedClassifier(config, 8, 5, 3, 1, 3).astype(np.float64)
    ids, lengths = rng.integers(4, 8, (5, 4)), np.array([5, 2, 3, 1])
    rows, weights = rng.integers(0, 5, (2, 4)), rng.random((2, 4))
    none = np.zeros((4, 3))

    def bound(targets: Any) -> tuple[float, float]:
        first, second = model.terms(ids, lengths, rows, weights, targets, seed=7)
        return first.item(), second.item()

    q = np.exp(ops.log_softmax(model(ids, lengths, rows, weights).data))
    kl = None
    wanted = 0.0
    for label in range(3):
        for text in range(4):
            one = none.copy()
            one[text, label] = 1
            costs = bound(one)[1] - bound(none)[1]  # what knowing this label changes
            wanted += q[text, label] * (costs + np.log(q[text, label]))
            kl = costs if kl is None else kl
    # Knowing the label y of one text replaces sum q (cost + log q) by cost(y): so cost(y) - sum q (cost + log q) = costs, and
    # its mean under q plus the entropy's share is zero for each text.
    assert wanted == pytest.approx(0, abs=1e-8)
    assert bound(np.eye(3)[[0, 1, 2, 0]])[0] == pytest.approx(-np.log(q[range(4), [0, 1, 2, 0]]).sum())

    named = dict(model.named_parameters())

    def loss(*arrays: Any) -> Any:
        for parameter, array in zip(named, arrays, strict=True):
            owner: Any = model
            *path, leaf = parameter.split(".")
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, leaf, array)
        model.vocabulary.vocabulary.weight = model.embedding.weight
        mixed = none.copy()
        mixed[1, 2] = 1
        return model.terms(ids, lengths, rows, weights, mixed, seed=7)

    assert gradcheck(loss, [rng.normal(size=p.shape) * 0.5 for p in named.values()])


def test_training_with_texts_without_labels(tmp_path: Path) -> None:
    rows = [(text, label if n % 5 == 0 else "?") for n, (text, label) in enumerate(tickets(240, ("billing", "login")))]
    readers.write_tsv(tmp_path / "valid.tsv", tickets(40, ("billing", "login"), 9))
    model = {"embedding_size": 12, "hidden_size": 8, "latent_size": 4, "decoder_size": 8}
    figures = small(tmp_path, rows, task={"model": model}, valid=tmp_path / "valid.tsv", max_epochs=3)
    assert figures["texts"] == 40
    assert figures["accuracy"] > 60
    task = rheme.load(model=tmp_path / "m")
    assert task.config.labels == ["billing", "login"]
    texts = [text for text, _ in rows[:30]]
    assert [r.to_dict() for r in task(texts)] == [task(text).to_dict() for text in texts]
    with pytest.raises(InputError, match="takes one label a text"):
        small(tmp_path, tickets(60), "many", task={"model": model, "multi_label": True})


def test_the_bundled_sentence_codes(emotions: Any) -> None:
    codes = rheme.load("semantic-analysis", objective="similarity")
    near, far = codes.similarity(
        [("I am really hungry.", "I'm famished."), ("I am really hungry.", "The train leaves at ten.")]
    )
    assert near > far + 0.3
    lines = ["The train leaves at ten.", "I feel hungry.", "He plays the guitar."]
    assert codes.neighbours("I want to eat.", lines, 1)[0][0] == 1
    assert emotions.config.objective == "labels"  # what is loaded when nothing is asked for

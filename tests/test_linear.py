"""The linear models over n-grams that are fitted at once, and how they are added to a classifier."""

import random
from pathlib import Path

import numpy as np
import pytest

import rheme
from rheme import calibration
from rheme.models.classifier import ClassifierConfig, TextClassifier, pad_bags
from rheme.models.linear import fit_naive_bayes, fit_support_vectors, score_bags
from rheme.text import readers
from rheme.text.features import Features


def test_support_vectors_are_those_of_liblinear(rng: np.random.Generator) -> None:
    """The same scores as scikit-learn's LinearSVC on n-grams multiplied with the scales of each label."""
    svm = pytest.importorskip("sklearn.svm")
    texts = [" ".join(rng.choice(["good", "bad", "food", "mood", "never", "always", "a"], 5)) for _ in range(120)]
    has = np.stack([["good" in text for text in texts], ["never" in text for text in texts]], axis=1)
    has[rng.random(has.shape) < 0.1] ^= True  # no score separates them
    features = Features.train(texts, min_count=1, char_ngrams=(0, 0))
    bags, size = features.encode(texts), len(features)
    dense = np.zeros((len(texts), size))
    for row, (ids, weights) in zip(dense, bags, strict=True):
        row[ids] = weights
    importance = np.array([3.0, 1.0], np.float32)
    weights, bias = fit_support_vectors(bags, has, size, 0.5, 0.5, importance, passes=60, tolerance=2e-2)
    present = dense > 0
    for k in range(2):
        p, q = (present[has[:, k] == there].sum(axis=0) + 1.0 for there in (True, False))
        scaled = dense * np.sqrt(np.abs(np.log(p / p.sum()) - np.log(q / q.sum())))
        model = svm.LinearSVC(C=0.5, tol=1e-7, max_iter=100_000, class_weight={True: float(importance[k])})
        wanted = model.fit(scaled, has[:, k]).decision_function(scaled)
        assert dense @ weights[:, k] + bias[k] == pytest.approx(wanted, abs=4e-2)


def test_naive_bayes_is_that_of_plain_numpy(rng: np.random.Generator) -> None:
    """Expectation maximisation in float64, a text at a time."""
    features, bags = 9, []
    for _ in range(30):
        rows = np.sort(rng.choice(np.arange(1, 9), rng.integers(1, 5), replace=False)).astype(np.int32)
        bags.append((rows, rng.uniform(0.2, 1.0, len(rows)).astype(np.float32)))
    targets = np.zeros((30, 3), np.uint8)
    targets[np.arange(6), np.arange(6) % 3] = 1
    posterior = targets.astype(float)
    for number in range(5):
        counts = np.full((features, 3), 0.1)
        for (rows, values), p in zip(bags, posterior, strict=True):
            counts[rows] += values[:, None] * p
        wanted = np.log(counts / counts.sum(axis=0))
        if number < 4:
            prior = np.log(posterior.sum(axis=0) + 1.0)
            for text in range(6, 30):
                rows, values = bags[text]
                score = np.exp(3.0 * (values[:, None] * wanted[rows]).sum(axis=0) + prior)
                posterior[text] = score / score.sum()
    assert fit_naive_bayes(bags, targets, features, rounds=4) == pytest.approx(wanted, abs=1e-4)


def test_a_share_of_a_second_model(rng: np.random.Generator) -> None:
    """What tells the labels is taken up, what tells nothing is not."""
    targets = np.eye(3, dtype=np.uint8)[rng.integers(0, 3, 400)]
    noise = rng.standard_normal((400, 3)).astype(np.float32)
    good = (targets + 0.8 * rng.standard_normal((400, 3))).astype(np.float32)
    assert calibration.fit_share(noise, good, targets)[0] > 8
    assert calibration.fit_share(good, noise, targets)[0] < 0.2
    assert calibration.fit_share(good, np.zeros_like(good), targets)[0] == 0.0


def test_a_linear_model_is_added(rng: np.random.Generator) -> None:
    model = TextClassifier(ClassifierConfig(embedding_size=4, hidden_size=3, bag_scale=5.0), 6, 7, 2)
    model.eval()
    ids, lengths = np.array([[3, 4], [5, 0]]), np.array([2, 1])
    bags = [(np.array([1, 4], np.int32), np.array([0.6, 0.8], np.float32)), (np.zeros(0, np.int32), np.zeros(0, np.float32))]
    weights, bias = rng.standard_normal((7, 2)).astype(np.float32), np.array([0.5, -1.0], np.float32)
    before = model(ids, lengths, *pad_bags(bags)).numpy()
    assert score_bags(weights, bags) == pytest.approx(np.stack([0.6 * weights[1] + 0.8 * weights[4], [0, 0]]), abs=1e-6)
    model.add_linear(weights, bias)
    after = model(ids, lengths, *pad_bags(bags)).numpy()
    assert after - before == pytest.approx(score_bags(weights, bags) + bias, abs=1e-5)


SMALL = {"min_count": 1, "vocab_size": 300, "model": {"embedding_size": 8, "hidden_size": 8}}
TOPICS = {"fruit": "apple pear plum cherry grape quince lemon fig", "animal": "horse goat sheep donkey duck mouse crow newt"}


def sentences(count: int, seed: int, first: int = 8) -> list[tuple[str, str]]:
    """Invented texts with two words of a topic, of its first so many, and its name."""
    draw, rows = random.Random(seed), []
    for topic in list(TOPICS) * (count // 2):
        one, other = draw.sample(TOPICS[topic].split()[:first], 2)
        rows.append((f"the {one} and {other} of {draw.choice(('today', 'old'))} {draw.randrange(10_000)}", topic))
    return rows


def test_texts_without_labels_help(tmp_path: Path) -> None:
    """Which words go together is learnt from them: labelled texts know but two words of each topic."""
    labelled, others = sentences(20, 0, first=2), [(text, "?") for text, _ in sentences(400, 1)]
    readers.write_tsv(tmp_path / "valid.tsv", sentences(20, 2))
    found = []
    for name, rows in (("alone", labelled), ("with", labelled + others)):
        readers.write_tsv(tmp_path / f"{name}.tsv", rows)
        rheme.train(
            "semantic-analysis",
            tmp_path / f"{name}.tsv",
            tmp_path / "valid.tsv",
            out=tmp_path / name,
            config={"task": SMALL | {"char_ngrams": [0, 0]}},
            max_epochs=3,
            echo=lambda line: None,
        )
        task = rheme.load(model=tmp_path / name)
        assert task.config.labels == ["animal", "fruit"]
        found.append(float(task.evaluate(sentences(200, 3))["accuracy"]))
    assert found[0] < 85
    assert found[1] > 93


def test_the_support_vectors_are_what_a_text_of_few_words_needs(tmp_path: Path) -> None:
    """After one step of training the linear model alone tells the topics; with a penalty of 0 there is none."""
    readers.write_tsv(tmp_path / "train.tsv", sentences(100, 0))
    found = []
    for penalty in (0.0, 1.0):
        out = tmp_path / f"m{penalty}"
        config = {
            "margin_penalty": penalty,
            "min_count": 1,
            "vocab_size": 300,
            "model": {"embedding_size": 8, "hidden_size": 8},
        }
        rheme.train(
            "semantic-analysis", tmp_path / "train.tsv", out=out, config={"task": config}, max_steps=1, echo=lambda line: None
        )
        found.append(float(rheme.load(model=out).evaluate(sentences(200, 3))["accuracy"]))
    assert found[0] < 80
    assert found[1] > 97


def test_how_a_text_opens_is_seen_where_it_tells(tmp_path: Path) -> None:
    """Of texts whose first word is the label and whose other words are the same, the machine tells them by openings alone."""
    draw, rows = random.Random(0), []
    for number in range(240):
        first, second = draw.sample(("where", "when"), 2)
        rows.append((f"{first} it was said {second} {number}", "place" if first == "where" else "time"))
    task = SMALL | {"char_ngrams": [0, 0], "word_ngrams": 1, "model": SMALL["model"] | {"bag_scale": 0.01}}
    found = []
    for name, words in (("with", 4), ("without", 0)):
        readers.write_tsv(tmp_path / "train.tsv", rows[:120])
        readers.write_tsv(tmp_path / "valid.tsv", rows[120:160])
        config, out = {"task": task | {"opening_words": words}}, tmp_path / name
        rheme.train(
            "semantic-analysis",
            tmp_path / "train.tsv",
            tmp_path / "valid.tsv",
            out=out,
            config=config,
            max_steps=1,
            echo=lambda line: None,
        )
        model = rheme.load(model=out)
        assert (model.tokenizer.openings is not None) == bool(words)
        texts = [text for text, _ in rows[160:]]
        assert np.array_equal(model.predict_proba(texts)[3:4], model.predict_proba(texts[3:4]))
        found.append(float(model.evaluate(rows[160:])["accuracy"]))
    assert found[0] > 97
    assert found[1] < 70


def test_refit_learns_from_the_validation_texts(tmp_path: Path) -> None:
    """A training text in four has the wrong label; the validation texts are right, and after it they count."""
    other = {"fruit": "animal", "animal": "fruit"}
    train = [(text, other[topic] if k % 8 < 2 else topic) for k, (text, topic) in enumerate(sentences(48, 0))]
    readers.write_tsv(tmp_path / "train.tsv", train)
    readers.write_tsv(tmp_path / "valid.tsv", sentences(120, 1))
    before, after = [], []
    for refit in (False, True):
        out, config = tmp_path / f"m{refit}", {"task": SMALL | {"char_ngrams": [0, 0], "refit": refit}}
        files = tmp_path / "train.tsv", tmp_path / "valid.tsv"
        figures = rheme.train("semantic-analysis", *files, out=out, config=config, max_steps=1, echo=lambda line: None)
        assert ("fitted_after_measuring" in figures) == refit
        before.append(figures["accuracy"])
        after.append(float(rheme.load(model=out).evaluate(sentences(400, 2))["accuracy"]))
    assert before[0] == before[1] < 95
    assert after[1] > 98 > after[0]


def test_groups_of_labels_share_their_words(tmp_path: Path) -> None:
    """What the labels of a group have in common tells the group of a text whose label it does not tell."""
    draw, rows = random.Random(0), []
    for topic, words in TOPICS.items():
        for label in range(6):
            for number in range(10):
                one, other = draw.sample(words.split(), 2)
                rows.append((f"the {one} and {other} number{draw.randrange(6)} {topic}-{label}-{number}", f"{topic}:{label}"))
    draw.shuffle(rows)
    labels = sorted({label for _, label in rows})
    groups = {topic: [label for label in labels if label.startswith(topic)] for topic in TOPICS}
    readers.write_tsv(
        tmp_path / "train.tsv", [(text.rsplit(" ", 1)[0] + f" {k}", label) for k, (text, label) in enumerate(rows)]
    )
    config = {"task": SMALL | {"char_ngrams": [0, 0], "groups": groups, "group_name": "topic"}}
    rheme.train(
        "semantic-analysis", tmp_path / "train.tsv", out=tmp_path / "m", config=config, max_steps=1, echo=lambda line: None
    )
    task = rheme.load(model=tmp_path / "m")
    held = [(text, f"{topic}:{k % 6}") for k, (text, topic) in enumerate(sentences(60, 5))]
    assert float(task.evaluate(held)["topic_accuracy"]) > 95
    result = task("the horse and goat of old 3")
    assert result.extra["topic"]["label"] == "animal"
    assert result.extra["topic"]["scores"]["animal"] == pytest.approx(
        sum(
            float(p)
            for p, label in zip(task.predict_proba(["the horse and goat of old 3"])[0], labels, strict=True)
            if "animal" in label
        ),
        abs=1e-5,
    )

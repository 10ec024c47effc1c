"""The plugin author's way: from an empty folder to an installed, checked task with an op of its own; scikit-learn's way."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rheme
from rheme import conformance, tasks
from rheme.cli import main
from rheme.errors import InputError

# rheme plugins ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new package, as `rheme plugins new` writes it."""
    folder = tmp_path_factory.mktemp("new") / "rheme-topic-labels"
    assert main(["plugins", "new", "topic-labels", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def environment(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a process that has the package, installed with pip into a folder of its own, beside ours."""
    pytest.importorskip("setuptools", minversion="70.1")  # the first one that builds a wheel by itself
    target = tmp_path_factory.mktemp("installed")
    shutil.copytree(package, target / "source")  # a build leaves files in the source tree
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(target / "site"),
    ]
    run([*pip, str(target / "source")])
    ours = Path(rheme.__file__).parents[1]
    paths = [str(target / "site"), str(ours), sysconfig.get_path("purelib")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(command: list[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rheme_(environment: dict[str, str], *args: str) -> str:
    return run([sys.executable, "-m", "rheme", *args], env=environment)


def test_a_new_package_keeps_every_promise(package: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Installed by pip, it is listed, passes the conformance suite and its own tests, trains, answers and is measured."""
    assert "topic-labels" in rheme_(environment, "tasks")
    told = rheme_(environment, "plugins", "check", "topic-labels")
    assert "12 of 12 hold" in told
    model = tmp_path / "model"
    data = str(package / "examples.tsv")
    train = [
        "train",
        "topic-labels",
        "--train",
        data,
        "--out",
        str(model),
        "--valid-share",
        "0.2",
        "--set",
        "train.max_steps=60",
    ]
    rheme_(environment, *train)
    figures = json.loads(rheme_(environment, "evaluate", "topic-labels", "--model", str(model), "--data", data, "--json"))
    assert figures["accuracy"] > 60
    assert "pipeline_tag: text-classification" in (model / "README.md").read_text()
    run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package / "tests")], env=environment, cwd=tmp_path)
    assert "batched" in run([sys.executable, str(package / "bench.py")], env=environment, cwd=tmp_path)


def test_names(capsys: pytest.CaptureFixture[str], tmp_path: Path, package: Path) -> None:
    for name in ("Topic", "3d", "a_b", "-x", "../x"):
        assert main(["plugins", "new", "--out", str(tmp_path / "x"), "--", name]) == 2
        assert "is no name for a task" in capsys.readouterr().err
    assert main(["plugins", "new", "other", "--out", str(package)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["plugins", "new", "translation", "--out", str(tmp_path / "x")]) == 2
    assert "rheme has a task 'translation' already" in capsys.readouterr().err
    assert main(["plugins", "check", "translatoin"]) == 2
    assert "no task is called 'translatoin' (did you mean 'translation'?)" in capsys.readouterr().err
    assert main(["plugins", "check", "translation", "--data", "nowhere.tsv"]) == 2


@pytest.mark.parametrize("name", ["model", "config", "result", "task", "tensor", "input-error", "none"])
def test_a_task_hides_no_name_of_its_module(name: str, tmp_path: Path) -> None:
    assert main(["plugins", "new", name, "--out", str(tmp_path)]) == 0
    tree = ast.parse((tmp_path / f"rheme_{name.replace('-', '_')}.py").read_text())
    names = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    names += [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(names) == len(set(names))


BROKEN = {
    "loss falls": ("scores = self.model(", "scores = 0.0 * self.model("),
    "same bits batched and single": ("float(row.max())) for row in rows]", "float(row.max()) / len(inputs)) for row in rows]"),
    "same seed, same weights": (
        "scores = self.model(",
        "self.model.output.bias.data[:] = np.random.rand(2); scores = self.model(",
    ),
    "bad input": ('raise InputError(f"a text must be a str', 'raise TypeError(f"a text must be a str'),
    "card": ('pipeline_tag = "text-classification"', 'pipeline_tag = ""'),
    "save and load": (
        "self.model = Model(self.config)",
        "self.model = Model(self.config); self.config.dropout *= 0.5; self.k = 1",
    ),
    "config": ("forbid_unknown_fields=True", "forbid_unknown_fields=False"),
}


@pytest.mark.parametrize(
    "promise", ["loss falls", "same bits batched and single", "same seed, same weights", "bad input", "card"]
)
def test_a_broken_promise_is_seen(promise: str, package: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """One line of the new task is broken, and the check of that name fails."""
    source = (package / "rheme_topic_labels.py").read_text()
    old, new = BROKEN[promise]
    assert old in source
    installed = Path(environment["PYTHONPATH"].split(os.pathsep)[0])
    shutil.copytree(installed, tmp_path / "site", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "site" / "rheme_topic_labels.py").write_text(source.replace(old, new))
    changed = {
        **environment,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *environment["PYTHONPATH"].split(os.pathsep)[1:]]),
    }
    command = [sys.executable, "-m", "rheme", "plugins", "check", "topic-labels", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=changed)
    assert done.returncode == 1, done.stderr
    rows = {row["check"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert not rows[promise]["ok"]


_NARROW = {"embedding_size": 8, "encoder_size": 8, "decoder_size": 8, "dropout": 0.0}
SMALL: dict[str, dict[str, Any]] = {
    "generation": {"vocab_size": 320, "model": {**_NARROW, "latent_size": 4}},
    "question-answering": {
        "vocab_size": 200,
        "model": {"word_size": 8, "char_size": 4, "char_filters": 8, "embedding_size": 8, "hidden_size": 8},
    },
    "semantic-analysis": {"vocab_size": 400, "max_features": 300, "model": {"hidden_size": 8, "embedding_size": 8}},
    "summarization": {"vocab_size": 320, "model": {**_NARROW, "copy_size": 8}},
    "translation": {"vocab_size": 320, "model": _NARROW},
}


_BUILT_IN = sorted(name for name, info in tasks.list_tasks().items() if info.distribution == "rheme")
_QUICK = ("semantic-analysis", "question-answering")


@pytest.mark.parametrize("name", [n if n in _QUICK else pytest.param(n, marks=pytest.mark.slow) for n in _BUILT_IN])
def test_built_in_tasks_keep_them_too(name: str) -> None:
    found = conformance.check(name, settings={"task": SMALL[name]})
    assert [item for item in found if not item.ok] == []


# scikit-learn ----------------------------------------------------------------------------------------------------------------

QUICK = {"hidden_size": 8, "embedding_size": 8, "vocab_size": 400, "max_features": 400, "max_epochs": 6, "learning_rate": 1e-2}
QUICK |= {"batch_tokens": 200, "random_state": 1}
FRUIT, ANIMALS = "apple pear plum cherry grape".split(), "horse goat sheep donkey duck".split()
X = [f"a {a} and {b}" for names in (FRUIT, ANIMALS) for a in names for b in names]
Y = np.repeat(["fruit", "animal"], 25)


@pytest.fixture(scope="module")
def learn() -> Any:
    pytest.importorskip("sklearn")
    from rheme import sklearn

    return sklearn


def test_classifier(learn: Any) -> None:
    model = learn.TextClassifier(**QUICK).fit(X, Y)
    assert model.classes_.tolist() == ["animal", "fruit"]
    assert model.score(X, Y) > 0.9
    probabilities = model.predict_proba(X)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (model.classes_[probabilities.argmax(axis=1)] == model.predict(X)).all()
    again = learn.TextClassifier(**QUICK).fit(X, Y)
    assert np.array_equal(again.predict_proba(X), probabilities)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), probabilities)
    numbers = learn.TextClassifier(**QUICK).fit(np.array(X), (Y == "fruit").astype(int) + 5)
    assert set(numbers.predict(X)) == {5, 6}


def test_classifier_in_a_pipeline_and_a_search(learn: Any) -> None:
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = learn.TextClassifier(**QUICK)
    copy = clone(model)
    assert copy is not model
    assert copy.get_params() == model.get_params()
    pipe = make_pipeline(FunctionTransformer(lambda texts: [text.upper() for text in texts]), clone(model))
    assert pipe.fit(X, Y).score(X, Y) > 0.9
    search = GridSearchCV(model, {"hidden_size": [4, 8], "max_epochs": [5]}, cv=2, error_score="raise").fit(X, Y)
    assert search.best_params_["hidden_size"] in (4, 8)
    assert cross_val_score(model, X, Y, cv=2, error_score="raise").mean() > 0.6


def test_parameters_of_numpy(learn: Any) -> None:
    """As a search over distributions draws them."""
    numbers = {name: np.asarray(value)[()] for name, value in QUICK.items()}
    assert {"max_epochs", "learning_rate"} <= numbers.keys()
    model = learn.TextClassifier(**QUICK | {"max_epochs": 1}).fit(X, Y)
    same = learn.TextClassifier(**numbers | {"max_epochs": np.int64(1), "char_ngrams": np.array([2, 5])}).fit(X, Y)
    assert np.array_equal(same.predict_proba(X), model.predict_proba(X))
    drawn = [
        learn.TextClassifier(**QUICK | {"max_epochs": 1, "random_state": np.random.RandomState(seed)}).fit(X, Y)
        for seed in (1, 1, 2)
    ]
    a, b, c = (model.predict_proba(X) for model in drawn)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_classifier_of_several_labels(learn: Any) -> None:
    texts = [f"{a} {b}" for a in FRUIT for b in ANIMALS] + FRUIT + ANIMALS
    target = np.array([[int(any(w in text.split() for w in names)) for names in (FRUIT, ANIMALS)] for text in texts])
    model = learn.TextClassifier(**QUICK | {"max_epochs": 12}).fit(texts, target)
    found = model.predict(texts)
    assert found.shape == target.shape
    assert (found == target).mean() > 0.8
    assert model.predict_proba(texts).shape == target.shape


def test_classifier_mistakes(learn: Any) -> None:
    from sklearn.exceptions import NotFittedError

    model = learn.TextClassifier(**QUICK)
    with pytest.raises(NotFittedError):
        model.predict(X)
    for texts, labels, message in (
        (["a"], ["x", "y"], "1 texts, but 2 labels"),
        ([1, 2], ["x", "y"], "X must hold texts, not int"),
        ("text", ["x"], "X is one text"),
        ([], [], "no text"),
        (["a", "b"], ["x", "x"], "two classes"),
        (["a", "b"], [0.5, 0.7], "Unknown label type"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(texts, labels)
    with pytest.raises(InputError, match=r"dropout = 2\.0: must be at least 0"):
        learn.TextClassifier(**QUICK | {"dropout": 2.0}).fit(X, Y)


def test_encoder(learn: Any) -> None:
    from sklearn.base import clone

    model = learn.TextEncoder(
        latent_size=4, hidden_size=16, embedding_size=12, vocab_size=330, free_bits=1.0, dropout=0.0, max_epochs=12,
        learning_rate=1e-2, batch_tokens=150, random_state=0,
    )  # fmt: skip
    model = clone(model).fit(X)
    codes = model.transform(X)
    assert codes.shape == (len(X), 4)
    texts = model.inverse_transform(codes)
    assert texts.shape == (len(X),)
    assert all(isinstance(text, str) for text in texts)
    assert np.isfinite(model.score(X))
    assert model.get_feature_names_out().tolist() == ["z0", "z1", "z2", "z3"]
    assert np.array_equal(pickle.loads(pickle.dumps(model)).transform(X), codes)
    with pytest.raises(ValueError, match=r"codes must be of shape \(N, 4\)"):
        model.inverse_transform(codes[:, :2])


def test_check_estimator(learn: Any) -> None:
    """scikit-learn's own checks of an estimator, those that apply to one that reads texts."""
    from sklearn.utils import estimator_checks

    for estimator in (learn.TextClassifier(**QUICK), learn.TextEncoder(latent_size=2, hidden_size=4)):
        for name in (
            "check_no_attributes_set_in_init",
            "check_parameters_default_constructible",
            "check_get_params_invariance",
            "check_set_params",
            "check_estimator_cloneable",
            "check_estimator_repr",
            "check_estimator_tags_renamed",
            "check_valid_tag_types",
        ):
            check = getattr(estimator_checks, name, None)
            if check is not None:
                check(type(estimator).__name__, estimator)

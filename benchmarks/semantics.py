"""Semantic analysis beside TF-IDF with a linear model, on the same splits.

    python benchmarks/semantics.py DATA NAME... [--init DIR] [--out FOLDER] [--set train.max_epochs=3]

DATA: the folder of the data sets; NAME: some of sst, trec, banking77, clinc150, chnsenticorp, goemotions, sick, stsb, or
`trec-folds` for ten folds (`trec-fine-folds`: a model of the fifty finer labels, which has the six as groups, tells those), or
`few-NAME` (sst, trec, chnsenticorp, subj, rt, snips) for few labels with and without the other texts unlabelled. A tenth of the
training examples, by a hash, chooses everything on both sides (epoch, temperature, thresholds; C of the linear model); the test
split is looked at once, at the end. Prints a JSON object a set.
"""

import argparse
import csv
import json
import math
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

import rheme
from rheme import metrics
from rheme.cli.training import merge, settings_tables
from rheme.tasks import get_task
from rheme.text import readers

Rows = list[tuple[str, ...]]

# What differs from the defaults of the task.
FEW: dict[str, Any] = {
    "task": {"min_count": 1},
    "train": {"batch_tokens": 500, "max_steps": 150, "ema_decay": 0.98, "warmup_steps": 20, "valid_every_steps": 50},
}
RECIPES: dict[str, dict[str, Any]] = {
    "trec": {"task": {"opening_words": 4}},
    "trec-folds": {"task": {"opening_words": 4}},
    "trec-fine-folds": {"task": {"opening_words": 4, "group_name": "coarse"}},
    "clinc150": {"task": {"out_of_scope": "oos"}},
    "chnsenticorp": {
        "task": {"languages": ["zh"], "char_ngrams": [1, 4], "word_ngrams": 0, "max_length": 160, "max_features": 80000},
        "train": {"batch_tokens": 3000},
    },
}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def load(name: str, data: Path) -> tuple[Rows, Rows]:
    """Training and test rows (text, label)."""
    if name == "sst":
        parts = []
        for part in ("train", "dev", "test"):
            rows = [line.split(" ", 1) for line in _lines(data / f"sst/stsa.binary.{part}")]
            parts.append([(text, ("negative", "positive")[int(label)]) for label, text in rows])
        return parts[0], parts[2]
    if name == "trec":
        return readers.split_by_hash(trec(data), 0.1, salt="fold")
    if name == "banking77":
        return tuple(
            [tuple(row) for row in csv.reader(_lines(data / f"banking77/{part}.csv"))][1:] for part in ("train", "test")
        )  # type: ignore[return-value]
    if name == "clinc150":
        stored = json.loads((data / "clinc150/data.json").read_text())
        return [tuple(r) for r in stored["train"] + stored["oos_train"]], [tuple(r) for r in stored["val"] + stored["oos_val"]]
    if name == "chnsenticorp":
        return tuple(
            [tuple(line.split("\t", 1)[::-1]) for line in _lines(data / f"chnsenticorp/{part}.tsv")][1:]
            for part in ("train", "dev")
        )  # type: ignore[return-value]
    raise SystemExit(f"no data set is called {name!r}")


def trec(data: Path, fine: bool = False) -> Rows:
    rows = [line.split(" ", 1) for line in _lines(data / "trec/train")]
    return [(text, label if fine else coarse(label)) for label, text in rows]


def coarse(label: str) -> str:
    """The coarse label of a finer one of TREC's: HUM of HUM:ind."""
    return label.split(":")[0]


def trec_groups(rows: Rows) -> dict[str, list[str]]:
    """The finer labels of each coarse one."""
    groups: dict[str, list[str]] = {}
    for label in sorted({label for _, label in rows}):
        groups.setdefault(coarse(label), []).append(label)
    return groups


def linear(train: Rows, test: Rows, chinese: bool = False, skip: bool = False) -> float:
    """Test accuracy of the linear model over TF-IDF of words and pairs (or 1 to 3 characters), C chosen on the tenth."""
    if skip:
        return math.nan
    rest, valid = readers.split_by_hash(train, 0.1)
    best = (-1.0, 1.0)
    make: Callable[[], Any] = lambda: TfidfVectorizer(  # noqa: E731
        sublinear_tf=True,
        **(
            {"analyzer": "char", "ngram_range": (1, 3)}
            if chinese
            else {"ngram_range": (1, 2), "token_pattern": r"(?u)\w+|[^\w\s]"}
        ),
    )

    def fit(rows: Rows, on: Rows, c: float) -> float:
        vectors = make()
        model = LinearSVC(C=c).fit(vectors.fit_transform([r[0] for r in rows]), [r[1] for r in rows])
        return 100.0 * float(model.score(vectors.transform([r[0] for r in on]), [r[1] for r in on]))

    for c in (0.3, 1.0, 3.0, 10.0):
        best = max(best, (fit(rest, valid, c), -c))
    return fit(train, test, -best[1])


def ours(
    train: Rows, test: Rows, settings: dict[str, Any], out: str, init: str | None, share: float = 0.1, more: Rows | None = None
) -> tuple[Any, dict[str, Any], float]:
    """Trained on nine tenths, measured on the test rows: the task, its figures and the seconds of training.

    more: rows to train on besides, such as those without a label.
    """
    folder = Path(out)
    rest, valid = readers.split_by_hash(train, share)
    readers.write_tsv(folder / "train.tsv", [*rest, *(more or [])])
    readers.write_tsv(folder / "valid.tsv", valid)
    start, files = time.perf_counter(), (folder / "train.tsv", folder / "valid.tsv")
    rheme.train("semantic-analysis", *files, out=folder / "model", config=settings, init=init, echo=print)
    seconds = time.perf_counter() - start
    task = rheme.load("semantic-analysis", model=folder / "model")
    return task, task.evaluate(test), seconds


def run(name: str, above: dict[str, Any], out: str, given: argparse.Namespace) -> dict[str, Any]:
    data, init = given.data, given.init
    settings = merge(RECIPES.get(name, {}), above)
    if name in ("trec-folds", "trec-fine-folds"):
        fine = name == "trec-fine-folds"
        rows, found, plain = trec(data, fine), [], []
        for fold in given.folds:
            test = rows[fold::10]
            texts = {readers.normal_form(text) for text, _ in test}
            train = [row for k, row in enumerate(rows) if k % 10 != fold and readers.normal_form(row[0]) not in texts]
            folder = Path(out) / str(fold)
            folder.mkdir()
            task, figures, _ = ours(
                train, test, merge(settings, {"task": {"groups": trec_groups(train)}} if fine else {}), str(folder), init
            )
            found.append(float(figures["accuracy"]))
            if fine:
                groups = [result.extra["coarse"]["label"] for result in task([text for text, _ in test])]
                found[-1] = metrics.accuracy(groups, [coarse(label) for _, label in test])
                train, test = [[(text, coarse(label)) for text, label in part] for part in (train, test)]
            plain.append(linear(train, test, skip=given.skip_linear))
            print(f"fold {fold}: {found[-1]:.2f}, linear {plain[-1]:.2f}", flush=True)
        return {"data": name, "accuracy": np.mean(found), "folds": found, "linear": np.mean(plain), "linear_folds": plain}
    if name == "goemotions":
        return goemotions(data, above, out, init)
    if name.startswith("few-"):
        return few(name.removeprefix("few-"), data, above, out, given.counts, given.draws)
    if name in ("sick", "stsb"):
        return pairs(name, data, above, out, init)
    train, test = load(name, data)
    _, figures, seconds = ours(train, test, settings, out, init)
    inside = [row for row in train if row[1] != "oos"], [row for row in test if row[1] != "oos"]
    plain = linear(*inside, chinese=name == "chnsenticorp", skip=given.skip_linear)
    return {"data": name, "train": len(train), **figures, "linear": plain, "seconds": round(seconds)}


def few(name: str, data: Path, above: dict[str, Any], out: str, counts: Sequence[int], draws: int) -> dict[str, Any]:
    """Accuracy with so many labels: alone, with the other texts unlabelled, and (latent_size) with the VAE on them, too.

    A thousand examples, by a hash, are kept to measure on; from the next 8,000 the labels are drawn so many times, no example
    twice, if they last. A fifth of the labels validates.
    """
    rows = sorted(dict(unlabelled(name, data)).items(), key=lambda row: zlib.crc32(row[0].encode()))
    test, train = rows[:1000], rows[1000:9000]
    figures: dict[str, Any] = {"data": f"few-{name}"}
    kinds = ("alone", "unlabelled", *(["vae"] if "latent_size" in above.get("task", {}).get("model", {}) else []))
    for count in counts:
        found: dict[str, list[float]] = {"alone": [], "unlabelled": [], "vae": [], "linear": []}
        for draw in range(min(draws, len(train) // count)):
            part = range(draw * count, (draw + 1) * count)
            some, rest = train[part.start : part.stop], [(text, "?") for k, (text, _) in enumerate(train) if k not in part]
            for kind in kinds:
                folder = Path(out) / f"{count}-{draw}-{kind}"
                folder.mkdir()
                settings = merge(FEW, RECIPES.get(name, {}))
                settings = merge(settings, above if kind == "vae" else {})
                texts = [] if kind == "alone" else rest
                found[kind].append(float(ours(some, test, settings, str(folder), None, 0.2, texts)[1]["accuracy"]))
            found["linear"].append(linear(some, test, name == "chnsenticorp"))
        figures[str(count)] = {kind: round(float(np.mean(values)), 2) for kind, values in found.items() if values}
        print(count, found, flush=True)
    return figures


def unlabelled(name: str, data: Path) -> Rows:
    """The training rows of a set for few labels: also `subj`, `rt` (Pang and Lee) and `snips`."""
    if name == "trec":
        return trec(data)
    if name in ("subj", "rt"):
        lines = _lines(data / "cv" / {"subj": "subj.all", "rt": "rt-polarity.all"}[name])
        return [(text, ("no", "yes")[int(label)]) for label, text in (line.split(" ", 1) for line in lines)]
    if name == "snips":
        rows = []
        for path in sorted((data / "snips").glob("train_*_full.json")):
            intent = path.name.split("_")[1]
            stored = json.loads(path.read_text(encoding="latin-1"))[intent]
            rows += [("".join(part["text"] for part in question["data"]), intent) for question in stored]
        return rows
    return load(name, data)[0]


def goemotions(data: Path, above: dict[str, Any], out: str, init: str | None) -> dict[str, Any]:
    labels = _lines(data / "goemotions/original.labels.txt")
    parts = []
    for part in ("train", "dev"):
        rows = [line.split("\t") for line in _lines(data / f"goemotions/original.{part}.tsv")]
        parts.append([(text, ",".join(labels[int(k)] for k in ids.split(","))) for text, ids, _ in rows])
    figures: dict[str, Any] = {"data": "goemotions"}
    if init:  # a trained model: measure it
        task = rheme.load("semantic-analysis", model=init)
        figures |= task.evaluate(parts[1])
    return figures | {"linear": linear_many(parts[0], parts[1], labels)}


def linear_many(train: Rows, test: Rows, labels: Sequence[str]) -> float:
    """Macro-F1 of one logistic regression a label; C and the thresholds from the tenth."""

    def matrix(rows: Rows) -> Any:
        return np.array([[label in row[1].split(",") for label in labels] for row in rows])

    def fit(rows: Rows, c: float) -> Callable[[Rows], Any]:
        vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        model = OneVsRestClassifier(LogisticRegression(C=c, solver="liblinear"))
        model.fit(vectors.fit_transform([r[0] for r in rows]), matrix(rows))
        return lambda on: model.predict_proba(vectors.transform([r[0] for r in on]))

    rest, valid = readers.split_by_hash(train, 0.1)
    wanted, best = matrix(valid), (-1.0, 1.0, np.full(len(labels), 0.5))
    grid = np.concatenate((np.arange(0.03, 0.2, 0.01), np.arange(0.2, 0.7, 0.02)))
    for c in (1.0, 4.0):
        p = fit(rest, c)(valid)
        scores = np.array([[f1_score(wanted[:, k], p[:, k] >= t, zero_division=0.0) for t in grid] for k in range(len(labels))])
        if scores.max(axis=1).mean() > best[0]:
            best = (scores.max(axis=1).mean(), c, grid[scores.argmax(axis=1)])
    p = fit(train, best[1])(test)
    return 100.0 * float(f1_score(matrix(test), p >= best[2], average="macro", zero_division=0.0))


def pairs(name: str, data: Path, above: dict[str, Any], out: str, init: str | None) -> dict[str, Any]:
    """Pearson's correlation on the test pairs."""
    parts: list[Rows] = []
    if name == "sick":
        for part in ("train", "trial", "test_annotated"):
            parts.append([tuple(line.split("\t")[1:4]) for line in _lines(data / f"sick/SICK_{part}.txt")[1:]])
    else:
        for part in ("train", "dev", "test"):
            parts.append([tuple(row[:3]) for row in csv.reader(_lines(data / f"stsb/en-{part}.csv"))])
    model = {"dropout": 0.3, "bag_scale": 2.0}
    settings = merge(
        {
            "task": {"model": model, "objective": "similarity", "output_size": 128, "max_features": 30000},
            "train": {"batch_tokens": 1500, "max_epochs": 10, "ema_decay": 0.998, "warmup_steps": 50, "patience": 0},
        },
        above,
    )
    folder = Path(out)
    for part, rows in zip(("train", "valid"), parts, strict=False):
        readers.write_tsv(folder / f"{part}.tsv", rows)
    files = folder / "train.tsv", folder / "valid.tsv"
    rheme.train("semantic-analysis", *files, out=folder / "model", config=settings, init=init, echo=print)
    task = rheme.load("semantic-analysis", model=folder / "model")
    figures = task.evaluate(parts[2])
    vectors = TfidfVectorizer().fit([text for row in parts[0] for text in row[:2]])
    a, b = (vectors.transform([row[side] for row in parts[2]]) for side in (0, 1))
    cosine = np.asarray(a.multiply(b).sum(axis=1))[:, 0].tolist()
    return {"data": name, **figures, "sklearn_tfidf": metrics.pearson(cosine, [float(row[2]) for row in parts[2]])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--init", help="a model folder whose reading of texts training begins with")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000], help="for few-: how many labels")
    parser.add_argument("--draws", type=int, default=3, help="for few-: of the labels")
    parser.add_argument("--folds", type=int, nargs="+", default=range(10), help="for trec-folds: which of the ten")
    parser.add_argument("--skip-linear", action="store_true", help="do not train the linear model again")
    parser.add_argument("--out", help="keep the models here")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    given = parser.parse_args()
    get_task("semantic-analysis")
    for name in given.names:
        with tempfile.TemporaryDirectory() as folder:
            out = given.out or folder
            Path(out).mkdir(parents=True, exist_ok=True)
            figures = run(name, settings_tables(tuple(given.set)), out, given)
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)


if __name__ == "__main__":
    main()

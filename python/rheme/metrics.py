"""Metrics of texts and labels: exact match and F1 of answers, ROUGE, macro-F1, BLEU and chrF. Scores are from 0 to 100."""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rheme.errors import InputError
from rheme.text.stemming import stem

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORDS = re.compile(r"[a-z0-9]+")


def _mean(values: Sequence[float]) -> float:
    return 100.0 * sum(values) / len(values) if values else 0.0


def _f1(overlap: int, predicted: int, wanted: int) -> float:
    return 2.0 * overlap / (predicted + wanted) if overlap else 0.0


def _check(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")


# Answers to questions (SQuAD's script: Rajpurkar et al. 2016) -----------------------------------------------------------------


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _best(predictions: Sequence[str], references: Sequence[Sequence[str]], score: Callable[[str, str], float]) -> float:
    """The mean over predictions of the best score among each one's references."""
    _check(predictions, references)
    return _mean(
        [
            max((score(prediction, r) for r in wanted), default=0.0)
            for prediction, wanted in zip(predictions, references, strict=True)
        ]
    )


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of predictions equal, normalised, to one of their references."""
    return _best(predictions, references, lambda p, r: float(normalize_answer(p) == normalize_answer(r)))


def answer_f1(
    predictions: Sequence[str], references: Sequence[Sequence[str]], words: Callable[[str], list[str]] = str.split
) -> float:
    """Mean F1 of the normalised words, with the best reference of each.

    words: how a normalised answer is cut; give one that cuts into characters for Chinese.
    """

    def score(prediction: str, reference: str) -> float:
        found, wanted = words(normalize_answer(prediction)), words(normalize_answer(reference))
        if not found or not wanted:
            return float(found == wanted)
        return _f1((Counter(found) & Counter(wanted)).total(), len(found), len(wanted))

    return _best(predictions, references, score)


# Summaries (Lin 2004) ---------------------------------------------------------------------------------------------------------


def rouge_words(text: str) -> list[str]:
    """Lower-cased runs of a-z and 0-9, as Google's rouge_score cuts them (no stemming): for English alone."""
    return _WORDS.findall(text.lower())


def rouge_stems(text: str) -> list[str]:
    """The same, those of more than three letters stemmed (Porter 1980), as rouge_score does with use_stemmer=True."""
    return [stem(word) if len(word) > 3 else word for word in rouge_words(text)]


def _longest_common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge(
    predictions: Sequence[str], references: Sequence[Sequence[str]], words: Callable[[str], list[str]] = rouge_words
) -> dict[str, float]:
    """rouge1, rouge2 and rougeL: mean F1, for each metric with the best reference of each prediction.

    words: how a text is cut; `rouge_stems` for the figures that are called stemmed, `text.words.plain_words` for languages
    other than English, of which `rouge_words` leaves out most, `list` for Chinese characters.
    """

    def ngrams(n: int) -> Callable[[str, str], float]:
        def score(prediction: str, reference: str) -> float:
            found, wanted = (
                Counter(zip(*(w[i:] for i in range(n)), strict=False)) for w in (words(prediction), words(reference))
            )
            return _f1((found & wanted).total(), found.total(), wanted.total())

        return score

    def longest(prediction: str, reference: str) -> float:
        found, wanted = words(prediction), words(reference)
        return _f1(_longest_common(found, wanted), len(found), len(wanted))

    scores = {"rouge1": ngrams(1), "rouge2": ngrams(2), "rougeL": longest}
    return {name: _best(predictions, references, score) for name, score in scores.items()}


# Labels -----------------------------------------------------------------------------------------------------------------------


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Share of labels that are right."""
    _check(predictions, references)
    return _mean([float(p == r) for p, r in zip(predictions, references, strict=True)])


def macro_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Mean over labels of the F1 of each; a label that is neither predicted nor wanted does not count.

    Each prediction and reference is one label, or a set, list or tuple of labels.
    """
    _check(predictions, references)

    def labels(value: Any) -> set[Hashable]:
        return set(value) if isinstance(value, set | frozenset | list | tuple) else {value}

    right, found, wanted = Counter[Hashable](), Counter[Hashable](), Counter[Hashable]()
    for prediction, reference in zip(predictions, references, strict=True):
        p, r = labels(prediction), labels(reference)
        found.update(p)
        wanted.update(r)
        right.update(p & r)
    every = sorted(found | wanted, key=repr)
    return _mean([_f1(right[label], found[label], wanted[label]) for label in every])


def micro_f1(predictions: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> float:
    """F1 over all pairs of a text and a label."""
    _check(predictions, references)
    pairs = [(set(p), set(r)) for p, r in zip(predictions, references, strict=True)]
    return 100.0 * _f1(sum(len(p & r) for p, r in pairs), sum(len(p) for p, _ in pairs), sum(len(r) for _, r in pairs))


def calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017), from 0 to 1: the gap between mean confidence and share of right answers in
    each of so many equal bins of confidence, weighted by how many answers it holds."""
    _check(confidences, right)
    kept: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, hit in zip(confidences, right, strict=True):
        kept[min(int(confidence * bins), bins - 1)].append((confidence, hit))
    gaps = [abs(sum(c for c, _ in rows) - sum(bool(hit) for _, hit in rows)) for rows in kept]
    return sum(gaps) / max(1, len(confidences))


def auroc(scores: Sequence[float], wanted: Sequence[bool]) -> float:
    """Area under the ROC curve: how often a wanted one has the larger score than another one, ties counting half."""
    _check(scores, wanted)
    ranks, yes = _ranks(scores), sum(map(bool, wanted))
    if not 0 < yes < len(scores):
        return float("nan")
    above = sum(rank for rank, hit in zip(ranks, wanted, strict=True) if hit) - yes * (yes + 1) / 2
    return 100.0 * above / (yes * (len(scores) - yes))


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks, start = [0.0] * len(values), 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or values[order[stop]] != values[order[start]]:
            for place in range(start, stop):
                ranks[order[place]] = (start + 1 + stop) / 2
            start = stop
    return ranks


def pearson(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Correlation, from -1 to 1; nan where one side does not vary."""
    _check(found, wanted)
    n = max(1, len(found))
    a, b = math.fsum(found) / n, math.fsum(wanted) / n
    squares = math.fsum((x - a) ** 2 for x in found) * math.fsum((y - b) ** 2 for y in wanted)
    product = math.fsum((x - a) * (y - b) for x, y in zip(found, wanted, strict=True))
    return product / math.sqrt(squares) if squares > 0 else math.nan


def spearman(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Correlation of the ranks, from -1 to 1."""
    return pearson(_ranks(found), _ranks(wanted))


@dataclass(frozen=True)
class Confusion:
    """How often a text of one label was given another. counts[wanted][found]."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def count(cls, predictions: Sequence[str], references: Sequence[str]) -> "Confusion":
        _check(predictions, references)
        labels = sorted({*predictions, *references})
        seen = Counter(zip(references, predictions, strict=True))
        return cls(tuple(labels), tuple(tuple(seen[wanted, found] for found in labels) for wanted in labels))

    def to_text(self) -> str:
        """A row for each wanted label, its cells (how often each label was found) divided by tabs."""
        head = "\t".join(["wanted \\ found", *self.labels])
        rows = ["\t".join([label, *map(str, row)]) for label, row in zip(self.labels, self.counts, strict=True)]
        return "\n".join([head, *rows]) + "\n"

    def write(self, path: str | Path) -> None:
        """As a picture (.png, .svg, .pdf; needs matplotlib, the extra `plot`) or as text. InputError where it cannot."""
        path = Path(path)
        try:
            if path.suffix.lower() in (".png", ".svg", ".pdf"):
                self._draw(path)
            else:
                path.write_text(self.to_text(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None

    def _draw(self, path: Path) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise InputError("a picture needs matplotlib: pip install 'rheme[plot]' (or give a .tsv file)") from None
        size = max(4.0, 0.3 * len(self.labels))
        figure = Figure(figsize=(size + 2, size + 1.5), layout="constrained")
        axes = figure.subplots()
        shares = [[count / max(1, sum(row)) for count in row] for row in self.counts]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(self.labels)), self.labels, rotation=90)
        axes.set_yticks(range(len(self.labels)), self.labels)
        axes.set_xlabel("found")
        axes.set_ylabel("wanted")
        if len(self.labels) <= 30:
            for i, row in enumerate(self.counts):
                for j, count in enumerate(row):
                    if count:
                        dark = "white" if shares[i][j] > 0.5 else "black"
                        axes.text(j, i, str(count), ha="center", va="center", fontsize=7, color=dark)
        figure.colorbar(image, label="share of the wanted label")
        figure.savefig(path, dpi=120)


# Translations -----------------------------------------------------------------------------------------------------------------


TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # of sacreBLEU's, those that need nothing else


def bleu_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = "13a") -> dict[str, float | str]:
    """bleu and chrf of the corpus, with sacreBLEU's signatures (Post 2018). All predictions have as many references.

    tokenize: one of `TOKENIZERS`. Raises InputError without sacrebleu (the extra `eval`).
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise InputError("BLEU and chrF need sacrebleu: pip install 'rheme[eval]'") from None
    _check(predictions, references)
    if len({len(wanted) for wanted in references}) > 1:
        raise ValueError("bleu_chrf: give each prediction the same number of references")
    streams = [list(stream) for stream in zip(*references, strict=True)]
    bleu, chrf = BLEU(tokenize=tokenize, force=tokenize == "none"), CHRF()  # else it warns of tokenised text
    return {
        "bleu": bleu.corpus_score(list(predictions), streams).score,
        "chrf": chrf.corpus_score(list(predictions), streams).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def sentence_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """chrF of each prediction by itself (Popovic 2015). Raises InputError without sacrebleu (the extra `eval`)."""
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise InputError("chrF needs sacrebleu: pip install 'rheme[eval]'") from None
    _check(predictions, references)
    chrf = CHRF()
    return [float(chrf.sentence_score(text, list(wanted)).score) for text, wanted in zip(predictions, references, strict=True)]

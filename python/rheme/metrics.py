"""Metrics of texts and labels: exact match and F1 of answers, ROUGE, macro-F1, BLEU and chrF. Scores are from 0 to 100."""

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from rheme.errors import InputError

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
    """Lower-cased runs of a-z and 0-9, as Google's rouge_score cuts them (no stemming)."""
    return _WORDS.findall(text.lower())


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

    words: how a text is cut; give `list` for Chinese characters.
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


# Translations -----------------------------------------------------------------------------------------------------------------


def bleu_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = "13a") -> dict[str, float | str]:
    """bleu and chrf of the corpus, with sacreBLEU's signatures (Post 2018). All predictions have as many references.

    Raises InputError without sacrebleu (the extra `eval`).
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise InputError("BLEU and chrF need sacrebleu: pip install 'rheme[eval]'") from None
    _check(predictions, references)
    if len({len(wanted) for wanted in references}) > 1:
        raise ValueError("bleu_chrf: give each prediction the same number of references")
    streams = [list(stream) for stream in zip(*references, strict=True)]
    bleu, chrf = BLEU(tokenize=tokenize), CHRF()
    return {
        "bleu": bleu.corpus_score(list(predictions), streams).score,
        "chrf": chrf.corpus_score(list(predictions), streams).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }

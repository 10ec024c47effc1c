"""Translations of pairs whose numbers, or a name, are others than any text has: BLEU, and the share that holds them.

    python benchmarks/copied_words.py --data valid.tsv --models python/rheme/pretrained/translation-en-fr ...

From each pair of --data with the same numbers on both sides ten pairs with other digits, and from those with a name on both
sides one with a made-up name (as training makes them: rheme/plugins/translation/redrawing.py), --most of each kind. "By the
model alone" is a translation before it is made to hold a number, and with names left to the model.
"""

import argparse
import re
from typing import Any

import rheme
from rheme import metrics
from rheme.plugins.translation import names, redrawing

_KINDS = {"numbers": re.compile("[0-9]+"), "a name": names.NAME}


def other_pairs(task: Any, pairs: list[tuple[str, str]], most: int) -> dict[str, list[tuple[tuple[str, str], str]]]:
    """(pair, what is new in it) of either kind."""
    drawn = redrawing.Redrawing(task.tokenizer, pairs)
    cut = [item[1:] for item in task.encode_all(pairs)[: len(pairs)]]
    found: dict[str, list[tuple[tuple[str, str], str]]] = {kind: [] for kind in _KINDS}
    for kind, made in (
        ("numbers", [new for seed in range(10) for new in drawn.numbers(cut, seed)]),
        ("a name", drawn.names(cut, 1 - 2**-50, 0)),
    ):
        for number, new in enumerate(made):
            first, second = task.tokenizer.decode(new)
            old = set(_KINDS[kind].findall(task.tokenizer.decode(cut[number % len(cut)][:1])[0]))
            words = [word for word in _KINDS[kind].findall(first) if word not in old and word in second]
            if words and len(found[kind]) < most:
                found[kind].append(((first, second), max(words, key=len)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--most", type=int, default=300)
    given = parser.parse_args()
    rheme.set_num_threads(1)
    columns = "model | direction | kind | pairs | kept, by the model alone | kept | BLEU, by the model alone | BLEU"
    print(f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}")
    for folder in given.models:
        task: Any = rheme.load("translation", folder)
        pairs = task.read([given.data])
        for kind, found in other_pairs(task, pairs, given.most).items():
            for side in (0, 1):
                codes = task.config.languages[side], task.config.languages[1 - side]
                row = [folder.rstrip("/").rpartition("/")[2], " to ".join(codes), kind, str(len(found))]
                shares, scores = [], []
                for alone in (True, False):
                    answers = [result.text for result in translate(task, [pair[side] for pair, _ in found], codes, alone)]
                    shares.append(sum(word in text for text, (_, word) in zip(answers, found, strict=True)) / len(found))
                    tokenize = "zh" if codes[1] == "zh" else "13a"
                    scores.append(metrics.bleu_chrf(answers, [[pair[1 - side]] for pair, _ in found], tokenize)["bleu"])
                print(f"| {' | '.join([*row, *(f'{x:.0%}' for x in shares), *(f'{x:.1f}' for x in scores)])} |", flush=True)


def translate(task: Any, texts: list[str], codes: tuple[str, str], alone: bool) -> Any:
    """alone: nothing is asked of a translation, and no name is hidden from the model."""
    if not alone:
        return task(texts, from_=codes[0], to=codes[1])
    cutter = task._cutters[codes[1]]
    kept, finder, cutter._names = task._kept, cutter._names, names.Names("")
    task._kept = lambda rows, found, asked: found
    try:
        return task(texts, from_=codes[0], to=codes[1])
    finally:
        cutter._names, task._kept = finder, kept


if __name__ == "__main__":
    main()

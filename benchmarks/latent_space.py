"""What a text VAE's latent space is worth, judged from outside: a trigram model and a classifier trained apart from it.

    python benchmarks/latent_space.py --train en.txt --valid valid.tsv --other abstracts.tsv.gz [--model DIR]

train: the model's own training text; valid: sentences held out of it (one half calibrates the confidence, the other is measured
on); other: text of another kind, one a line (the last column of a TSV), cut into sentences.

Printed, as JSON: how well sentences are reconstructed; nats a word, under the trigram model, of real sentences, of mixtures in
the middle of their way, of samples and of shuffled words; how many sentences a direction gives an attribute (statements to
questions, and others told by simple rules), by a TF-IDF classifier that sees no mark at the end, and what they keep of their
words, with and without a search that keeps them; the confidence's AUROC.
"""

import argparse
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

import rheme
from rheme.text import readers
from rheme.transfer import KEEP

WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


class Trigram:
    """Words from the two before them, backing off by Witten and Bell's (1991) weights down to a uniform word."""

    def __init__(self, texts: list[str]) -> None:
        self.counts: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
        self.followers: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
        self.totals: list[Counter[tuple[str, ...]]] = [Counter(), Counter(), Counter()]
        for text in texts:
            line = ["<s>", "<s>", *words(text), "</s>"]
            for i in range(2, len(line)):
                for order in range(3):
                    gram = tuple(line[i - order : i + 1])
                    if not self.counts[order][gram]:
                        self.followers[order][gram[:-1]] += 1
                    self.counts[order][gram] += 1
                    self.totals[order][gram[:-1]] += 1
        self.size = len(self.counts[0]) + 1

    def probability(self, gram: tuple[str, ...]) -> float:
        lower = self.probability(gram[1:]) if len(gram) > 1 else 1.0 / self.size
        order, context = len(gram) - 1, gram[:-1]
        total, types = self.totals[order][context], self.followers[order][context]
        return (self.counts[order][gram] + types * lower) / (total + types) if total else lower

    def nats(self, texts: list[str]) -> float:
        """A word, ends counted, over all texts."""
        cost, count = 0.0, 0
        for text in texts:
            line = ["<s>", "<s>", *words(text), "</s>"]
            cost -= sum(math.log(self.probability(tuple(line[i - 2 : i + 1]))) for i in range(2, len(line)))
            count += len(line) - 2
        return cost / max(count, 1)


def overlap(first: str, second: str) -> float:
    """F1 of the words of two sentences."""
    a, b = Counter(words(first)), Counter(words(second))
    shared = sum((a & b).values())
    return 2 * shared / max(sum(a.values()) + sum(b.values()), 1)


def sentences(path: str, count: int) -> list[str]:
    """The first sentences of 6 to 30 words of a file, in which the last column is text."""
    found: list[str] = []
    for line in readers.read_lines(path):
        for sentence in re.split(r"(?<=[.!?])\s+", line.split("\t")[-1]):
            if 6 <= len(sentence.split()) <= 30:
                found.append(sentence)
        if len(found) >= count:
            break
    return found[:count]


QUESTION = r"\?$"
NOT = r"(?i:\b(?:not|never|cannot|no|nobody|nothing|\w+n't)\b)"
PAST = r"(?i:\b(?:was|were|did|had|went|came|said|told|made|took|got|saw|gave|thought|knew|wasn't|weren't|didn't|\w{2,}ed)\b)"
PRESENT = r"(?i:\b(?:is|are|am|has|does|do|don't|doesn't|isn't|aren't|\w+'s|\w+'re|\w+'m)\b)"
FUTURE = r"(?i:\b(?:will|won't|\w+'ll|going to)\b)"
# What a sentence without the attribute holds and does not hold, and one with it: all of them statements but for the questions.
ATTRIBUTES = {
    "statements to questions": ((r"\.$", QUESTION), (QUESTION, r"\.$")),
    "affirmed to denied": ((r"\.$", NOT), (rf"{NOT}.*\.$", QUESTION)),
    "present to past": ((rf"{PRESENT}.*\.$", rf"{PAST}|{FUTURE}"), (rf"{PAST}.*\.$", rf"{PRESENT}|{FUTURE}")),
    "I to he or she": ((r"^I\b.*\.$", r"\b(?:[Hh]e|[Ss]he)\b"), (r"^(?:He|She)\b.*\.$", r"\bI\b")),
}


def matching(texts: list[str], holds: str, lacks: str) -> list[str]:
    return [text for text in texts if re.search(holds, text) and not re.search(lacks, text)]


def transfer(
    latent: Any,
    language_model: Trigram,
    train: list[str],
    some: list[str],
    without: tuple[str, str],
    with_: tuple[str, str],
    every_keep: bool,
) -> dict[str, Any]:
    """Sentences without an attribute moved to it, judged by a TF-IDF classifier that sees no mark at the end."""
    told, asked = (matching(train, *rule)[:4000] for rule in (without, with_))
    bare = [text.rstrip("?.!") for text in (*asked, *told)]
    classifier = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+"), LogisticRegression(max_iter=500))
    classifier.fit(bare, [1] * len(asked) + [0] * len(told))

    def share(texts: list[str]) -> float:
        return float(np.mean(classifier.predict([text.rstrip("?.!") for text in texts])))

    held, others = matching(some, *without)[:200], matching(some, *with_)
    direction = latent.direction(told[:2000], asked[:2000])
    right = len(held) * (1 - share(held)) + len(others) * share(others)
    figures: dict[str, Any] = {"classifier, accuracy": right / (len(held) + len(others)), "sentences": len(held), "moved": {}}
    rows = [(0.0, 1.0), (0.0, 1.5), (0.0, 2.0), (KEEP, 1.0), (KEEP, 1.5)]
    if every_keep:
        rows += [(0.0, 0.0), (0.0, 0.5), (2.0, 1.0), (5.0, 1.0)]
    for keep, strength in rows:
        moved = latent.shift(held, direction, strength, keep)
        figures["moved"][f"keep {keep:g}, strength {strength:g}"] = {
            "share": share(moved),
            "F1 of words kept": float(np.mean([overlap(a, b) for a, b in zip(held, moved, strict=True)])),
            "without marks": float(
                np.mean([overlap(*(re.sub(r"[.?!,]", "", t) for t in p)) for p in zip(held, moved, strict=True)])
            ),
            "nats a word": language_model.nats(moved),
            "such as": dict(list(zip(held, moved, strict=True))[:: max(1, len(held) // 8)]),
        }
    return figures


def judge(task: Any, train: list[str], valid: list[str], other: list[str]) -> dict[str, Any]:
    rng = random.Random(0)
    calibrating, measured = valid[::2], valid[1::2]
    task.calibrate(calibrating)
    figures: dict[str, Any] = {}

    # confidence
    own, foreign = task.confidence(measured), task.confidence(other)
    costs = [-result.extra["deviation"] for result in (*own, *foreign)]
    figures["auroc"] = roc_auc_score([1] * len(own) + [0] * len(foreign), costs)
    figures["flagged of its own"] = sum(bool(result.warnings) for result in own) / len(own)
    figures["flagged of the others"] = sum(bool(result.warnings) for result in foreign) / len(foreign)
    shares = np.sort([result.score for result in own])
    figures["calibration error"] = float(np.abs(shares - np.linspace(0, 1, len(shares))).mean())

    # reconstruction
    latent, some = task.latent, [text for text in measured if 3 <= len(words(text)) <= 12][:400]
    again = latent.decode(latent.encode(some)[0])
    figures["reconstructed exactly"] = sum(words(a) == words(b) for a, b in zip(some, again, strict=True)) / len(some)
    figures["reconstructed, F1 of words"] = float(np.mean([overlap(a, b) for a, b in zip(some, again, strict=True)]))

    # mixtures and samples, under a language model trained apart
    judge_ = Trigram(train)
    pairs = [rng.sample(some, 2) for _ in range(200)]
    shuffled = [" ".join(rng.sample(words(text), len(words(text)))) for text in some]
    samples = [result.text for result in task.generate(200, seed=1)]
    distinct = [len(set(latent.mix(a, b, 7))) for a, b in pairs[:50]]
    figures["nats a word"] = {
        "held-out sentences": judge_.nats(some),
        "reconstructions": judge_.nats(again),
        "mixtures, straight, middle": judge_.nats([latent.mix(a, b, 3)[1] for a, b in pairs]),
        "mixtures, spherical, middle": judge_.nats([latent.mix(a, b, 3, True)[1] for a, b in pairs]),
        "samples of the prior": judge_.nats(samples),
        "shuffled words": judge_.nats(shuffled),
    }
    figures["different sentences of 7 on a way"] = float(np.mean(distinct))

    figures["attributes"] = {
        name: transfer(latent, judge_, train, some, *rules, every_keep=name == "statements to questions")
        for name, rules in ATTRIBUTES.items()
    }
    figures["copies of 1000 samples"] = task.copies(train)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "valid", "other"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    task = rheme.load("generation", given.model)
    valid = task.read(given.valid)
    train = sorted(set(readers.read_lines(given.train)) - set(valid))
    random.Random(0).shuffle(train)
    print(json.dumps(judge(task, train, valid, sentences(given.other, 1000)), indent=1))


if __name__ == "__main__":
    main()

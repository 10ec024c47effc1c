"""The summarizer beside plain ways to shorten a text, and its speed.

    python benchmarks/summarization.py --data test.tsv [--fields 1,2] [--model DIR] [--speed 200]

data: documents and their summaries. Printed, as JSON: ROUGE of the model and of its baselines (the first sentence; the first
words, as many as a summary has on average; the sentence that the model looks at most; the sentence nearest to the centre of
the TF-IDF vectors of all), and summaries a second on one thread, also of a document at a time.
"""

import argparse
import json
import math
import time
from collections import Counter
from statistics import median
from typing import Any

import rheme
from rheme import _core, metrics
from rheme.plugins.summarization.extraction import find_sentences


def tfidf_sentences(documents: list[str], encode: Any) -> list[str]:
    """Of each document the sentence with the largest cosine to the mean of its sentences' TF-IDF vectors."""
    sentences = [[s.text for s in find_sentences(document, encode)] or [""] for document in documents]
    seen = Counter(word for document in documents for word in set(metrics.rouge_words(document)))
    chosen = []
    for rows in sentences:
        vectors: list[dict[str, float]] = []
        for text in rows:
            weights = {w: n * math.log(len(documents) / seen[w]) for w, n in Counter(metrics.rouge_words(text)).items()}
            length = math.sqrt(math.fsum(x * x for x in weights.values())) or 1.0
            vectors.append({w: x / length for w, x in weights.items()})
        centre: Counter[str] = Counter()
        for vector in vectors:
            centre.update(vector)
        likeness = [math.fsum(x * centre[w] for w, x in vector.items()) for vector in vectors]
        chosen.append(rows[likeness.index(max(likeness))])
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--fields", default="1,2")
    parser.add_argument("--model")
    parser.add_argument("--speed", type=int, default=200, help="documents to time")
    arguments = parser.parse_args()
    task = rheme.load("summarization", arguments.model)
    examples = task.read(arguments.data, arguments.fields.split(","))
    figures = task.evaluate(examples)
    nearest = tfidf_sentences([document for document, _ in examples], task.tokenizer.encode)
    found = metrics.rouge(nearest, [[summary] for _, summary in examples])
    figures |= {f"tfidf_{name}": value for name, value in found.items()}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
    _core.set_num_threads(n=1)
    texts = [document for document, _ in examples[: arguments.speed]]
    together = [result.text for result in task(texts)]
    assert together == [task(text).text for text in texts]
    speeds: dict[str, list[float]] = {"together": [], "one at a time": []}
    for _ in range(3):
        for name, run in (("together", lambda: task(texts)), ("one at a time", lambda: [task(text) for text in texts])):
            start = time.perf_counter()
            run()
            speeds[name].append(len(texts) / (time.perf_counter() - start))
    print(json.dumps({f"summaries a second, {name}": round(median(values), 1) for name, values in speeds.items()}))


if __name__ == "__main__":
    main()

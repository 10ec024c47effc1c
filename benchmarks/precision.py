"""What a model loses at each precision, and what it gains: `python benchmarks/precision.py TASK DATA [--model DIR] [--to fr]`.

DATA: labelled examples, of which the first COUNT by the hash of their text are taken. Figures of `Task.evaluate`; for a task
that answers a text with a text also how many answers are those of float32, and answers a second, one by one on one thread, the
precisions taking turns, medians of five rounds.
"""

import argparse
import hashlib
import time
from statistics import median
from typing import Any

import rheme
from rheme import storage


def text_of(example: Any) -> str:
    return example if isinstance(example, str) else str(example[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("data")
    parser.add_argument("--model")
    parser.add_argument("--to")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--num-beams", type=int, default=0, help="0: the model's own")
    arguments = parser.parse_args()
    options = {"num_beams": arguments.num_beams} if arguments.num_beams else {}
    direction = {"to": arguments.to} if arguments.to else {}
    loaded = {p: rheme.load(arguments.task, arguments.model, precision=p, **direction) for p in storage.DTYPES}
    examples = loaded["float32"].read(arguments.data)
    examples = sorted(examples, key=lambda e: hashlib.sha256(text_of(e).encode()).digest())[: arguments.count]
    for precision, task in loaded.items():
        figures = task.evaluate(examples, **options)
        print(precision, {name: round(v, 3) for name, v in figures.items() if isinstance(v, int | float)}, flush=True)
    if arguments.task not in ("translation", "summarization"):
        return
    texts = [text_of(example) for example in examples]
    answers = {precision: [r.text for r in task(texts, **options)] for precision, task in loaded.items()}
    for precision, found in answers.items():
        same = sum(a == b for a, b in zip(found, answers["float32"], strict=True))
        print(f"{precision}: {100 * same / len(texts):.1f} % of the answers are those of float32")
    rheme.set_num_threads(1)
    times: dict[str, list[float]] = {precision: [] for precision in loaded}
    for _ in range(5):
        for precision, task in loaded.items():
            start = time.perf_counter()
            for text in texts[:60]:
                task([text], **options)
            times[precision].append((time.perf_counter() - start) / len(texts[:60]))
    print("answers a second, one by one:", {precision: round(1 / median(taken), 1) for precision, taken in times.items()})


if __name__ == "__main__":
    main()

"""Questions a second of a reader, one at a time and together, on one core; the answers are compared first.

    python benchmarks/answering.py --data dev.json [--model DIR] [--questions 400]

One at a time: a question with its paragraph, read anew for each question. Together: all questions in one call, so that a
paragraph is read once for all of its questions. Medians of three rounds, after one that is not counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import rheme


def seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """The median time of a round."""
    work()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="SQuAD JSON")
    parser.add_argument("--model")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rheme.set_num_threads(given.threads)
    for precision in ("float32", "int8"):
        task = rheme.load("question-answering", given.model, precision=precision)
        asked = [(example.question, example.context) for example in task.read(given.data)[: given.questions]]
        words = sum(len(context.split()) for _, context in asked) / len(asked)
        assert task(asked) == [task(one) for one in asked], "answers alone and together differ"
        alone = seconds(lambda task=task, asked=asked: [task(one) for one in asked[:100]]) / min(100, len(asked))
        together = seconds(lambda task=task, asked=asked: task(asked)) / len(asked)
        print(
            f"{precision}, {given.threads} thread(s), {words:.0f} words a context: {1 / alone:.0f} questions/s one at a time, "
            f"{1 / together:.0f} together"
        )


if __name__ == "__main__":
    main()

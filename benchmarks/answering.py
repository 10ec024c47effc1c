"""Questions a second of a reader, one at a time and together, on one core; the answers are compared first.

    python benchmarks/answering.py --data dev.json [--model DIR] [--questions 400]

One at a time: a question with its paragraph, read anew for each question. Together: all questions in one call, so that a
paragraph is read once for all of its questions. Medians of three rounds, after one that is not counted.

    python benchmarks/answering.py --refusals valid.json --data dev.json [--model DIR]

How well "no answer" is told: the threshold that the model has, on --refusals (its validation examples, which it was fitted on)
and on --data (others); then one that is fitted on half of the articles of --refusals, on both halves, and the other way round.
Each question with an answer is asked once more of another passage of its article.
"""

import argparse
import hashlib
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


def refusals(task: Any, fitting: list[Any], asked: dict[str, list[Any]]) -> None:
    """Fit the threshold on some questions (on none: keep it) and print F1 of others, with an answer and without."""
    if fitting:
        task.calibrate(fitting)
    for name, examples in asked.items():
        figures = task.evaluate([*examples, *task.elsewhere(examples)])
        with_answer, without = figures["has_answer_f1"], figures["no_answer_f1"]
        print(
            f"threshold {task.options['no_answer_threshold']:.4f}, {name}: {figures['has_answer_questions']} questions with an "
            f"answer, F1 {with_answer:.1f}; {figures['no_answer_questions']} without, {without:.1f}; "
            f"mean {(with_answer + without) / 2:.1f}",
            flush=True,
        )


def halves(examples: list[Any]) -> tuple[list[Any], list[Any]]:
    """By a hash of the article's title."""
    odd = {article: hashlib.sha256(article.encode()).digest()[0] % 2 for article in {e.article for e in examples}}
    return [e for e in examples if not odd[e.article]], [e for e in examples if odd[e.article]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="SQuAD JSON")
    parser.add_argument("--model")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--refusals", help="SQuAD JSON to fit the threshold of refusing on")
    given = parser.parse_args()
    if given.refusals:
        task = rheme.load("question-answering", given.model)
        every = task.read(given.refusals)
        refusals(task, [], {"--refusals": every, "--data": task.read(given.data)})  # as the model has it
        first, second = halves(every)
        for fitting, other in ((first, second), (second, first)):
            refusals(task, fitting, {"the half it was fitted on": fitting, "the other half": other})
        return
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

"""A picture of how good summaries are, beside the plain ways to make one."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rheme import pictures


def draw(path: str | Path, scores: Sequence[float], rouge: Mapping[str, Sequence[float]]) -> None:
    """Two panels: ROUGE-L when only the surest summaries are kept, and how it is spread over the documents.

    scores: the model's confidence in each of its summaries, nan where it wrote none. rouge: way of making summaries (the
    model's first) -> ROUGE-L of each document, 0 to 100. InputError where matplotlib is missing, or the file cannot be written.
    """
    figure = pictures.figure(10, 4.5)
    written = [row for row, score in enumerate(scores) if not math.isnan(score)]
    order = sorted(written, key=lambda row: -scores[row])
    left, right = figure.subplots(1, 2)
    for name, values in rouge.items():
        means, total = [], 0.0
        for count, row in enumerate(order, 1):
            total += values[row]
            means.append(total / count)
        shares = [100 * count / len(values) for count in range(1, len(values) + 1)]
        left.plot([100 * count / len(order) for count in range(1, len(order) + 1)], means, label=name)
        right.plot(shares, sorted(values, reverse=True), label=name)
    left.set(xlabel="share of the documents, the surest first (%)", ylabel="mean ROUGE-L of these", ylim=(0, 100))
    right.set(xlabel="share of the documents (%)", ylabel="ROUGE-L that they reach", ylim=(0, 100))
    left.legend()
    pictures.save(figure, path)

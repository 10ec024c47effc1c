"""A picture of when the reader can be trusted."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rheme import pictures

_BINS = 10


def draw(path: str | Path, scores: Sequence[float], f1: Sequence[float], exact: Sequence[float]) -> None:
    """Two panels: F1 when only the surest answers are given, and exact match against the score (their F1 and match 0 to 100).

    InputError where matplotlib is not installed, or the file cannot be written.
    """
    figure = pictures.figure(10, 4.5)
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    means, total = [], 0.0
    for count, row in enumerate(order, 1):
        total += f1[row]
        means.append(total / count)
    left, right = figure.subplots(1, 2)
    left.plot([100 * count / len(order) for count in range(1, len(order) + 1)], means)
    left.set(xlabel="share of the questions answered, the surest first (%)", ylabel="F1 of these", ylim=(0, 100))
    edges = [index / _BINS for index in range(_BINS + 1)]
    places, heights, counts = [], [], []
    for low, high in pairwise(edges):
        rows = [row for row, score in enumerate(scores) if low <= score < high or (high == 1 and score == 1)]
        if rows:
            places.append(sum(scores[row] for row in rows) / len(rows))
            heights.append(sum(exact[row] for row in rows) / len(rows) / 100)
            counts.append(len(rows))
    right.plot([0, 1], [0, 1], color="grey", linewidth=0.8, label="as sure as right")
    right.plot(places, heights, marker="o", label="exact match")
    for place, height, count in zip(places, heights, counts, strict=True):
        right.annotate(str(count), (place, height), fontsize=7, xytext=(3, -9), textcoords="offset points")
    right.set(xlabel="score", ylabel="share that matches a reference", xlim=(0, 1), ylim=(0, 1))
    right.legend()
    pictures.save(figure, path)

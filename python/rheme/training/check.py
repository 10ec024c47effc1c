"""A look at sentence pairs before they are trained on: which rows are bad, and why."""

import statistics
from collections.abc import Sequence

from rheme.text.language import Languages, in_script, profile
from rheme.text.readers import Notes, normal_form

Pair = tuple[str, str]

_PROFILED = 20_000  # rows that the profiles of the two languages are learned from, at most
_SURE = 8.0  # nats by which the other side's language must be likelier: few sentences of one's own language are so odd
_RATIO, _SLACK = 4.0, 20  # how many times longer, against the median, a side may be; characters added to both
_SHOWN = 3  # rows that are named for each reason


def check_pairs(rows: Sequence[Pair], notes: Notes, languages: Sequence[str], clean: bool) -> tuple[list[Pair], list[str]]:
    """The pairs to train on, and a line to tell for each kind of bad row, with its first ones by file and line.

    Left out are rows with an empty side (`notes.empty`: the reader has passed them over) and those that are there twice; with
    `clean` also those with a side that is in the other side's language, or in another script than its own, or the same on
    both sides, and those one side of which is far longer than the other, as sides of this file go.
    """
    found: dict[str, list[int]] = {"duplicated": [], "in the wrong language": [], "of unlike lengths": []}
    seen: set[Pair] = set()
    kept: list[int] = []
    for row, pair in enumerate(rows):
        (found["duplicated"] if pair in seen else kept).append(row)
        seen.add(pair)
    some = [rows[row] for row in kept[:: max(1, len(kept) // _PROFILED)]]
    known = Languages({code: profile(pair[side] for pair in some) for side, code in enumerate(languages)})
    median = statistics.median([_ratio(rows[row]) for row in kept]) if kept else 1.0
    for row in kept:
        pair = rows[row]
        if _wrong_language(pair, languages, known):
            found["in the wrong language"].append(row)
        elif not 1 / _RATIO < _ratio(pair) / median < _RATIO:
            found["of unlike lengths"].append(row)
    bad = {*found["in the wrong language"], *found["of unlike lengths"]} if clean else set()
    told = [_line("with an empty side", notes.empty, True)] if notes.empty else []
    for reason, numbers in found.items():
        shown = [f"{notes.places[row]} ({' | '.join(_short(text) for text in rows[row])})" for row in numbers[:_SHOWN]]
        told += [_line(reason, shown, reason == "duplicated" or clean, len(numbers))] if numbers else []
    return [rows[row] for row in kept if row not in bad], told


def _ratio(pair: Pair) -> float:
    return (len(pair[0]) + _SLACK) / (len(pair[1]) + _SLACK)


def _wrong_language(pair: Pair, languages: Sequence[str], known: Languages) -> bool:
    letters = [sum(char.isalpha() for char in text) for text in pair]
    if min(letters) >= 12 and normal_form(pair[0]) == normal_form(pair[1]):
        return True
    foreign = []  # nats by which each side is likelier in the other one's language
    for side, text in enumerate(pair):
        if letters[side] >= 3 and not in_script(text, languages[side]):
            return True
        scores = known.scores(text)
        foreign.append(scores[languages[1 - side]] - scores[languages[side]])
    return max(*foreign, sum(foreign)) > _SURE


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _line(reason: str, places: Sequence[str], left_out: bool, count: int | None = None) -> str:
    number = len(places) if count is None else count
    more = ", ..." if number > min(len(places), _SHOWN) else ""
    kept = "left out" if left_out else "kept; --clean leaves them out"
    return f"data check: {number} {'row' if number == 1 else 'rows'} {reason} ({kept}): {', '.join(places[:_SHOWN])}{more}"

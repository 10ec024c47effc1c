"""Sentences: where they end, and the form of one (a capital first, punctuation last)."""

import re
from dataclasses import dataclass

# A title or an abbreviation, after which a capital begins no sentence: Mr. St. M. Mme. U.S. p.m.
_TITLES = "Mrs?|Ms|Dr|St|Ste|Jr|Sr|MM|Mmes?|Mlles?|Prof|Gen|Capt|Lt|Sgt|Rev|vs|etc|cf|No"
_ABBREVIATION = re.compile(rf"(?:^|[\s(\"'«“])(?:{_TITLES}|[A-Z]|(?:\w\.)+\w)\.$")
_LONGEST = 32  # characters that an abbreviation is looked for in
_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'»”’)])\s+|(?<=[。！？])\s*|(?<!\s)\s*\n\s*")


def split_sentences(text: str) -> list[str]:
    """Sentences and the white space between them, alternately; joined they are the text again.

    A line end always divides. A full stop does not after a short abbreviation, nor before a small letter.
    """
    parts, start, seen, blank = [], 0, 0, True  # of text[start:seen], whether it holds nothing
    for match in _END.finditer(text):
        end, after = match.start(), text[match.end() : match.end() + 1]
        blank = blank and not text[seen:end].strip()
        seen = match.end()
        if not after or blank:
            continue
        near = text[max(start, end - _LONGEST - 1) : end]  # not all from the start: where nothing divides, time is linear still
        last = near[-_LONGEST:].rstrip("\"'»”’)")
        abbreviated = last.endswith((".", "…")) and _ABBREVIATION.search(near, len(near) - _LONGEST)
        if "\n" not in match[0] and (after.islower() or abbreviated):
            continue
        parts += [text[start:end], match[0]]
        start, blank = seen, True
    return [*parts, text[start:]]


@dataclass(frozen=True)
class Form:
    """How a text differed from a written sentence: all in capitals, a small letter first, no punctuation at the end."""

    upper: bool = False
    lower: bool = False
    open: bool = False


SENTENCE = Form()


def is_sentence(text: str) -> bool:
    """Whether a text begins with no small letter, is not all in capitals, and ends with punctuation."""
    return to_sentence(text)[1] == SENTENCE


def to_sentence(text: str) -> tuple[str, Form]:
    """A text in the form of a sentence, and how it differed."""
    plain = text.strip()
    letters = sum(char.isalpha() for char in plain)
    upper = plain.isupper() and letters > 4
    if upper:
        plain = plain.lower()
    first = _first(plain)
    lower = plain[first : first + 1].islower()
    if lower:
        plain = plain[:first] + plain[first].upper() + plain[first + 1 :]
    open_ = plain[-1:].isalnum()
    stop = "。" if "\u2e80" <= plain[-1:] <= "\u9fff" else "."
    return plain + stop * open_, Form(upper, lower and not upper, open_)


def from_sentence(text: str, form: Form) -> str:
    """A sentence (another one, such as a translation) in the given form."""
    if form.open and text.endswith((".", "。")) and not text.endswith(".."):
        text = text[:-1].rstrip()
    first = _first(text)
    if form.lower and text[first + 1 : first + 2].islower():  # not "I", not an acronym
        text = text[:first] + text[first].lower() + text[first + 1 :]
    return text.upper() if form.upper else text


def _first(text: str) -> int:
    """Where the first letter or digit stands."""
    return next((k for k, char in enumerate(text) if char.isalnum()), 0)

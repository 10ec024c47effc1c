"""Words of a text with their places in it, for models that point into the text."""

import functools
import re
import sys
import unicodedata

import numpy as np
from numpy.typing import NDArray

# Scripts written without spaces: there every character is a word. Thai, Lao, Burmese, Khmer; kana, bopomofo, Han.
ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
UNSPACED = ("zh", "ja", "th")  # the languages of these that rheme asks about
_SUFFIXES = ("ingly", "edly", "ation", "ings", "ing", "ied", "ies", "ers", "ed", "es", "er", "ly", "s", "e", "y")


@functools.cache
def _mark() -> str:
    """A character class: combining marks, which belong to the letter before, and the joiners of letters."""
    marks, first = [], 0
    for code in range(0x300, sys.maxunicode + 1):
        is_mark = code < 0x1F000 and unicodedata.category(chr(code)) in ("Mn", "Mc", "Me")
        if is_mark and not first:
            first = code
        elif not is_mark and first:
            marks.append(f"{chr(first)}-{chr(code - 1)}")
            first = 0
        if code >= 0x1F000:
            break
    return "[" + "".join(marks) + "\u200c\u200d]"


@functools.cache
def _word() -> re.Pattern[str]:
    mark = _mark()
    letter = f"(?:(?![{ALONE}])[^\\W\\d_])"
    return re.compile(rf"['’]s\b|{letter}(?:{letter}|{mark})*|\d+(?:[.,]\d+)*|\S{mark}*")


@functools.cache
def _plain_word() -> re.Pattern[str]:
    return re.compile(f"(?:(?![{ALONE}])[^\\W_])(?:(?![{ALONE}])[^\\W_]|{_mark()})*|[^\\W_]{_mark()}*")


def plain_words(text: str) -> list[str]:
    """Lower-cased runs of letters, marks and digits (NFC), in any script; in those without spaces each character is a word."""
    return _plain_word().findall(unicodedata.normalize("NFC", text).lower())


def find_words(text: str) -> tuple[list[str], NDArray[np.int64]]:
    """The words of a text and their spans int64 (T, 2): ``text[start:end]`` is the word.

    A word is a run of letters (with their marks), a number, the ending 's, or any other single character; in scripts without
    spaces each character is one. White space divides.
    """
    found = [(match[0], match.start(), match.end()) for match in _word().finditer(text)]
    spans = np.array([(start, end) for _, start, end in found], np.int64).reshape(len(found), 2)
    return [word for word, _, _ in found], spans


def stem(word: str) -> str:
    """A lower-cased English word without its ending, so that forms of one word mostly agree. Rough: no dictionary."""
    word = word.lower()
    if word.isascii() and word.isalpha():
        for suffix in _SUFFIXES:
            if word.endswith(suffix) and len(word) - len(suffix) >= 3:
                word = word.removesuffix(suffix)
                return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeioul" else word
    return word

"""Capitals: words as they stand inside a sentence.

Headlines are written in Capitals or not, at the whim of their author. A model that copies words learns more easily from
headlines whose words look as they do in the document, and writes in one style.
"""

import re
from collections import Counter
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]+")
_INSIDE = re.compile(r"(?<=[\w,;)] )[^\W\d_]+")  # after a word or a comma: not where a sentence begins


def word_forms(texts: Iterable[str]) -> dict[str, str]:
    """Lower-cased word -> its most frequent form inside the sentences of the texts, ties in favour of the lower one."""
    counts = Counter(word for text in texts for word in _INSIDE.findall(text))
    forms: dict[str, str] = {}
    for word, count in sorted(counts.items(), reverse=True):  # "word" stands before "Word"
        best = forms.get(word.lower())
        if best is None or count > counts[best]:
            forms[word.lower()] = word
    return forms


def sentence_case(headline: str, document: str, forms: dict[str, str]) -> str:
    """The headline with each capitalised word as the document writes it inside a sentence, else as `forms` has it.

    The first word loses its capital, too; `capitalize` brings it back. Of a headline all in capitals every word is looked up.
    """
    shouted = headline.isupper() and len(headline.split()) > 1
    own = set(_WORD.findall(document))

    def form(match: re.Match[str]) -> str:
        word = match[0]
        lower = word.lower()
        if not (word.istitle() or shouted) or (len(word) == 1 and word != "A"):
            return word
        if lower in own:
            return lower
        return forms.get(lower, word.capitalize() if shouted else word)

    return _WORD.sub(form, headline)


def capitalize(text: str) -> str:
    """A capital first, unless the first word has capitals of its own (iPhone, mRNA)."""
    first = re.match(r"\W*", text)
    start = first.end() if first else 0
    word = re.match(r"\w*", text[start:])
    if word and not word[0].islower():
        return text
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]

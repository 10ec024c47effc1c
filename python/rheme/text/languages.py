"""Which language a text is in: by its script, and by the letter sequences that are frequent in each language.

A profile is a language's most frequent sequences of one to three letters, in order (Cavnar and Trenkle 1994). It is learned
from a few thousand sentences, has some two kilobytes, and tells sentences of a few words apart.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

# languages not written in Latin letters -> what the Unicode names of their letters begin with
SCRIPTS = {
    "ar": ("ARABIC",), "bg": ("CYRILLIC",), "el": ("GREEK",), "fa": ("ARABIC",), "he": ("HEBREW",), "hi": ("DEVANAGARI",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"), "ka": ("GEORGIAN",), "ko": ("HANGUL",), "ru": ("CYRILLIC",), "th": ("THAI",),
    "uk": ("CYRILLIC",), "zh": ("CJK",),
}  # fmt: skip
_LATIN = ("LATIN", "FULLWIDTH LATIN")
_WORDS = re.compile(r"[^\W\d_]+")
_SIZE = 600
_MOST = 400  # letters of a text that are looked at


def in_script(text: str, language: str) -> bool:
    """Whether at least half of the letters belong to the language's script."""
    letters = [unicodedata.name(char, "") for char in text if char.isalpha()]
    scripts = SCRIPTS.get(language, _LATIN)
    return 2 * sum(name.startswith(scripts) for name in letters) >= len(letters)


def _grams(text: str) -> list[str]:
    """Sequences of one to three letters, with _ where a word begins or ends."""
    found = []
    for word in _WORDS.findall(text.lower()):
        padded = f"_{word}_"
        found += [padded[k : k + size] for size in (1, 2, 3) for k in range(len(padded) - size + 1) if size > 1 or k]
    return [gram for gram in found if gram != "_"]


def profile(texts: Iterable[str], size: int = _SIZE) -> str:
    """The profile of a language: its most frequent sequences, the first the most frequent, divided by spaces."""
    counts = Counter(gram for text in texts for gram in _grams(text))
    return " ".join(gram for gram, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size])


class Languages:
    """Tells which of some languages a text is in, from their profiles."""

    def __init__(self, profiles: Mapping[str, str]) -> None:
        # By Zipf's law the frequency of the r-th sequence goes as 1 / r; one that is not in the profile comes after all.
        self._weights = {
            code: {gram: -math.log(rank + 10) for rank, gram in enumerate(grams.split())} for code, grams in profiles.items()
        }

    def scores(self, text: str) -> dict[str, float]:
        """The log-probability (nats, but for a constant) of the text's letters in each language; all 0 without letters."""
        grams = _grams(text[:_MOST])
        found = {}
        for code, weights in self._weights.items():
            least = -math.log(4 * len(weights) + 10)
            script = 0.0 if in_script(text, code) else -1e3
            # The sequences of a word overlap: three for each letter.
            found[code] = script + math.fsum(weights.get(gram, least) for gram in grams) / 3
        return found

    def detect(self, text: str, default: str = "", margin: float = 0.0) -> str:
        """The likeliest language; `default` unless another one is likelier by more than `margin` nats."""
        scores = self.scores(text)
        if not scores:
            return default
        best = max(sorted(scores), key=lambda code: scores[code])
        return best if default not in scores or scores[best] > scores[default] + margin else default

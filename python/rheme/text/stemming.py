"""Porter's stemmer for English: what ROUGE compares words by when it stems.

Porter (1980), "An algorithm for suffix stripping", with the changes that NLTK made to it, since Google's rouge_score stems so:
a few words of their own, "ie" for "ies" and "ied" in words of four letters, y after a consonant alone, and three endings more.
"""

import functools

_OWN = {"dying": "die", "lying": "lie", "tying": "tie", "skies": "sky", "innings": "inning", "outings": "outing"}
_OWN |= {"cannings": "canning"}
_OWN |= {word: word for word in "sky news inning outing canning howe proceed exceed succeed".split()}

# Ending -> what stands for it, if the stem before has a measure above 0. No ending is looked at after the longest that fits.
_STEP2 = dict(
    pair.split(":")
    for pair in "ational:ate tional:tion enci:ence anci:ance izer:ize bli:ble alli:al entli:ent eli:e ousli:ous ization:ize "
    "ation:ate ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive biliti:ble fulli:ful logi:log".split()
)
_STEP3 = dict(pair.split(":") for pair in "icate:ic ative: alize:al iciti:ic ical:ic ful: ness:".split())
# Endings that are dropped if the stem before has a measure above 1.
_STEP4 = "al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize".split()


def _shape(word: str) -> str:
    """c for each consonant and v for each vowel; a y after a consonant is a vowel."""
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape[-1:] == "c")
        shape += "v" if vowel else "c"
    return shape


def _measure(stem: str) -> int:
    """How often a run of vowels is followed by a run of consonants."""
    return _shape(stem).count("vc")


def _short(stem: str) -> bool:
    """It ends in consonant, vowel, consonant other than w, x and y; or is a vowel and a consonant."""
    shape = _shape(stem)
    return shape == "vc" or (shape.endswith("cvc") and stem[-1] not in "wxy")


def _ending(word: str, endings: "dict[str, str] | list[str]") -> str:
    """The longest of the endings that the word has, or nothing."""
    return max((ending for ending in endings if word.endswith(ending)), key=len, default="")


def _plural(word: str) -> str:
    """Step 1a."""
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
    """Step 1b: -ed and -ing, and an e or a single letter where they took it."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    stem = word.removesuffix(_ending(word, ["ed", "ing"]))
    if stem == word or "v" not in _shape(stem):
        return word
    if stem.endswith(("at", "bl", "iz")):
        return stem + "e"
    if stem[-1:] == stem[-2:-1] and _shape(stem)[-1] == "c":
        return stem if stem[-1] in "lsz" else stem[:-1]
    return stem + "e" if _measure(stem) == 1 and _short(stem) else stem


def _step2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]):
        return _step2(word[:-2])
    ending = _ending(word, _STEP2)
    stem = word.removesuffix(ending)
    counted = stem + "l" if ending == "logi" else stem
    return stem + _STEP2[ending] if ending and _measure(counted) else word


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of an English word in lower case."""
    if word in _OWN:
        return _OWN[word]
    if len(word) <= 2:
        return word
    word = _past(_plural(word))
    if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c":
        word = word[:-1] + "i"
    word = _step2(word)
    ending = _ending(word, _STEP3)
    if ending and _measure(word.removesuffix(ending)):
        word = word.removesuffix(ending) + _STEP3[ending]
    ending = _ending(word, _STEP4)
    if ending and _measure(rest := word.removesuffix(ending)) > 1 and (ending != "ion" or rest[-1] in "st"):
        word = rest
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word

"""Names: which a model never read, and which ones it translates so surely that they can stand in for those.

What it never read it spells as it likes: "Rafael lives in Uppsala." becomes somebody else somewhere else. So an unknown name is
translated under a known one, and put back afterwards. A name is told by its capital, an unknown one by a list of the words that
training saw.
"""

import base64
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

from rheme.errors import InputError

WORD = r"[^\W\u2e80-\u9fff]"  # of a script that writes spaces
NAME = re.compile(r"\b[A-Z][a-zß-ÿ]{2,}\b")
_WITHIN = re.compile(rf"(?<=[\w,;:] ){NAME.pattern}")  # not at a sentence's start, where any word has a capital
_CAPITAL = re.compile(rf"(?<!{WORD})(?<![-'’]){WORD}+(?:[-'’][^\W\d_a-zß-ÿ]{WORD}+)*(?!{WORD})")
_CAPITAL_WITHIN = re.compile(r"(?<=[\w,;:] )[^\W\d_a-zß-ÿ][^\W\d_]+")
_LATER = re.compile(rf"{_CAPITAL_WITHIN.pattern} ({NAME.pattern})")  # the second part of a name
_LETTERS = re.compile(r"[^\W\d_\u2e80-\u9fff]+")
_UNSPACED = re.compile(r"[\u2e80-\u9fff]+")
_LONGEST = 4  # characters of a name in a script without spaces
_PAIRS = 250_000  # that counterparts are learned from, at most
_OFTEN, _SURE = 20, 0.9  # a counterpart: seen so often, and standing in so much of the sentences that have either
_WITHIN_SHARE = 0.05  # of a name's occurrences are within a sentence
_SEEN, _SURELY_SEEN = 2, 6  # times; a known word, a known name
# A word and the one with a capital after it; the last word before a place; short forms (Mr., J. K.) before a place.
_NEXT = re.compile(r"(?=\b([^\W\d_]+) ([A-ZÀ-Þ][a-zß-ÿ]{2,})\b)")
_LAST = re.compile(r"([^\W\d_]+) $")
_TITLE = re.compile(rf"(?:(?<!{WORD})[A-Z][a-z]{{0,3}}\. )+$")
_NEAR = 80  # characters before a place that are looked at for these two, so that a long text takes time in proportion
_NAMES_AFTER = 0.05  # of the words with a capital after one that comes before nouns, at most, are names
_NOUNS = 0.2  # of a language's words, and more, are nouns if these have capitals
_STEM = 4  # letters of the parts of a compound, at least
_STAND_INS = 8
_MOST_BYTES = 1 << 26  # of unpacked words, whatever a foreign config holds


def candidates(text: str) -> Iterator[str]:
    """What may be a name: words with a capital, and any few characters of a script without spaces."""
    yield from NAME.findall(text)
    for run in _UNSPACED.findall(text):
        for size in range(2, _LONGEST + 1):
            yield from (run[start : start + size] for start in range(len(run) - size + 1))


def counterparts(examples: Sequence[tuple[str, str]], often: int = _OFTEN, sure: float = _SURE) -> dict[str, str]:
    """For names of the first language what they are in the second, of those that nearly always stand together; by frequency.

    often: sentences with both, at least; sure: their share of the sentences that have either. Where one is as sure as another
    (in a script without spaces: a part of it), the longest. Of very many pairs some are looked at.
    """
    examples = examples[:: 1 + len(examples) // _PAIRS]
    names = [[set(candidates(text)) for text in pair] for pair in examples]
    within = [Counter(name for pair in examples for name in _WITHIN.findall(pair[side])) for side in (0, 1)]
    counts = [Counter(name for pair in names for name in pair[side]) for side in (0, 1)]
    good = [
        {
            name
            for name, n in counts[side].items()
            if n >= often and (within[side][name] > _WITHIN_SHARE * n or not name.isascii())
        }
        for side in (0, 1)
    ]
    both = Counter((name, other) for first, second in names for name in first & good[0] for other in second & good[1])
    share = {pair: n / max(counts[0][pair[0]], counts[1][pair[1]]) for pair, n in both.items()}
    found = dict(sorted((pair for pair in share if share[pair] >= sure), key=lambda pair: (share[pair], len(pair[1]), pair)))
    return dict(sorted(found.items(), key=lambda pair: (-both[pair], pair)))


def stand_ins(examples: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The names that a model translates most surely: the same on both sides, or written in a script without spaces.

    Not those that are mostly part of a longer one, such as York.
    """
    counts, later = (Counter(name for pair in examples for name in which.findall(pair[0])) for which in (_WITHIN, _LATER))
    found = counterparts(examples, max(30, len(examples) // 5000), 0.94).items()
    alike = [(a, b) for a, b in found if (a == b or _UNSPACED.fullmatch(b)) and later[a] < 0.5 * counts[a]]
    return dict(alike[:_STAND_INS])


def pack(examples: Sequence[tuple[str, str]], side: int) -> str:
    """What `Names` needs of a language, short enough for a config: the words that stand more than once on a side of the pairs.

    Of those that are never without a capital only the ones that stand there often enough to be translated surely; but where
    nouns have capitals all of them, and the words that come before nouns and hardly ever before what the other side has, too.
    """
    texts = [pair[side] for pair in examples]
    counts = Counter(word for text in texts for word in _LETTERS.findall(text))
    within = {word for text in texts for word in _CAPITAL_WITHIN.findall(text)}
    capitals = {word.casefold() for word in within if word.casefold() not in counts}
    total = Counter[str]()
    for word, n in counts.items():
        total[word.casefold()] += n
    nouns = len(capitals) > _NOUNS * len(total)
    known = sorted(word for word, n in total.items() if n >= (_SURELY_SEEN if word in capitals and not nouns else _SEEN))
    before = _before_nouns(examples, side) if nouns else []
    return base64.b64encode(zlib.compress("\n".join([" ".join(before), *known]).encode(), 9)).decode()


def _before_nouns(examples: Sequence[tuple[str, str]], side: int) -> list[str]:
    capitals, names = Counter[str](), Counter[str]()
    for pair in examples:
        others = set(NAME.findall(pair[1 - side]))
        for word, name in _NEXT.findall(pair[side]):
            capitals[word.casefold()] += 1
            names[word.casefold()] += name in others
    return sorted(word for word, n in capitals.items() if n >= _OFTEN and names[word] < _NAMES_AFTER * n)


class Names:
    """Finds names that training never saw in a language's texts. packed: its words, by `pack`; "" for no words: no names."""

    def __init__(self, packed: str) -> None:
        self._packed = packed

    @cached_property
    def _unpacked(self) -> tuple[frozenset[str], frozenset[str]]:
        try:
            text = zlib.decompressobj().decompress(base64.b64decode(self._packed, validate=True), _MOST_BYTES).decode()
        except (ValueError, zlib.error):
            raise InputError("config.json of the model: its words are damaged; fetch or train the model again") from None
        before, *known = text.split("\n")
        return frozenset(before.split()), frozenset(known)

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where unknown names stand: words with a capital of which a part is no known word, with the short forms before them
        (Mr., J. K.); neighbours are one name.
        """
        spans: list[tuple[int, int]] = []
        if not self._packed or text.isupper():
            return spans
        for match in _CAPITAL.finditer(text):
            start, end = match.span()
            unknown = match[0][0].isupper() and not all(map(self._is_known, _LETTERS.findall(match[0].casefold())))
            if not unknown or _TITLE.search(text, max(0, end - _NEAR), end + 2):
                continue
            if title := _TITLE.search(text, max(0, start - _NEAR), start):
                start = title.start()
            if spans and text[spans[-1][1] : start] == " ":
                spans[-1] = spans[-1][0], end
                continue
            before = _LAST.search(text, max(0, start - _NEAR), start)
            if not before or before[1].casefold() not in self._unpacked[0]:
                spans.append((start, end))
        return spans

    def _is_known(self, word: str) -> bool:
        """Whether it is a word, or, where nouns have capitals, made of two as German ones are."""
        nouns, known = self._unpacked
        if len(word) < 2 or word in known:
            return True
        cuts = [(word[:cut], word[cut:]) for cut in range(_STEM, len(word) - _STEM + 1)] if nouns else []
        return any(second in known and (first in known or first.removesuffix("s") in known) for first, second in cuts)

"""A text in parts: sentences to translate, and what is carried through as it stands.

Carried through unchanged: white space and line ends, URLs, e-mail addresses, placeholders, markup, characters that the model
does not know. Where it can, a URL, an address, a placeholder or an unknown name stays in its sentence, under a name that the
model translates surely (`stand_ins`); numbers stay as they are, and the translation must hold them.
"""

import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType

from rheme.errors import InputError
from rheme.plugins.translation.names import WORD, Names
from rheme.text.sentences import SENTENCE, Form, from_sentence, split_sentences, to_sentence
from rheme.text.tokenizer import Tokenizer

_FOLD = dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‘’‚′ʼ`´", "'") | dict.fromkeys("–—−‐‑", "-")

ENTITY = re.compile(r"&(?:\w+|#\w+);")
_MARKUP = (
    rf"</?[A-Za-z][^<>\n]*>|<!--[^\n]*?-->|{ENTITY.pattern}|`[^`\n]+`|\*\*|~~|^[#>*+-]+[ \t]+|^[0-9]+[.)][ \t]+"
    r"|!?\[(?=[^\[\]\n]{1,999}\]\()|\]\([^()\s]*\)"  # of a link in Markdown, but for its text
)
_DASHED = rf"(?:{WORD}|-)"
# A branch that begins with a run of characters begins with its first one, so that no long run is read again from each place.
_INLINE = (
    r"(?:(?<![a-z+.-])[a-z][a-z+.-]*://|www\.)[^\s<>\"'`，。！？]*[^\s<>\"'`，。！？.,;:!?)\]}]"  # URLs
    rf"|(?<!{WORD})(?<![.+-])(?:{WORD}|[.+-])++@{_DASHED}+(?:\.{_DASHED}+)+"  # e-mail addresses
    r"|(?<![\w+])(?<![0-9][.,:/-])\+?[0-9]+(?:[ -][0-9]+){3,}(?!\w|[.,:/-][0-9])"  # telephone numbers and the like
    rf"|(?<!{WORD})(?<![.-]){_DASHED}+(?:\.{_DASHED}+)*\.(?:com|org|net|edu|gov|io|eu|fr|de|cn|uk)(?!{WORD})"  # domains
    rf"(?:/(?:{WORD}|[./-])*{WORD})?"
    r"|\{\{[^{}\n]*\}\}|\$?\{[^{}\n]*\}|%\(\w+\)[sdifr]|%(?:\d+\$)?[sdifr@]\b|\$\w*[A-Z_]\w*\b"  # placeholders
    rf"|(?<!{WORD})[@#]{WORD}*[A-Za-z]{WORD}*"  # mentions
    rf"|(?<!{WORD})(?<!/)(?:~|\.{{1,2}})?/{_DASHED}(?:{WORD}|[.-])*(?:/(?:{WORD}|[.-])*)*(?<!\.)"  # paths
    rf"|(?<!{WORD}){WORD}+(?:_{WORD}+)+(?!{WORD})"  # identifiers: my_name, A4, v1.2
    rf"|(?<!{WORD})(?:[A-Za-z]+[0-9]{WORD}*(?:\.[0-9]+)*|[0-9]+[A-Za-z]+[0-9]{WORD}*)(?!{WORD})"
)
_SPANS = re.compile(f"(?P<markup>{_MARKUP})|(?P<inline>{_INLINE})", re.IGNORECASE | re.MULTILINE)
_TOKENS = re.compile(r"\s+|[\u2e80-\u9fff]|[^\s\u2e80-\u9fff]+")
# 7.5 with its sign, currency or groups of thousands; before small letters (10km, 5pm, 1990s) the number alone.
_AMOUNT = r"(?:(?<![^\s(])-)?[$€£¥]?(?:[0-9]{1,3}(?: [0-9]{3})+(?![0-9])|[0-9]+)(?:[.,:/-][0-9]+)*(?: ?[%€$£¥])?"
_NUMBER = re.compile(rf"(?<!{WORD})(?<![0-9][.,:/-]){_AMOUNT}(?![0-9_]|(?![a-z]){WORD})")
_SPACES = re.compile(" {2,}")
_CAPITALIZED = ("de",)  # languages whose nouns begin with a capital, so that the first word may need its own


Span = tuple[int, int]


def prose(text: str) -> str:
    """A text without what is no language: markup, URLs, addresses, placeholders."""
    return _SPANS.sub(" ", text)


@dataclass(frozen=True)
class Part:
    """A piece of an input: text to translate (ids, and the form it had), or to copy (no ids).

    require: what the translation must hold. stand_ins: (name in the translation, what it stands for); `whole`: the same text in
    parts that need no stand-ins. unknown: it holds characters that the model does not know.
    """

    text: str
    ids: list[int] = field(default_factory=list)
    form: Form = SENTENCE
    require: tuple[str, ...] = ()
    stand_ins: tuple[tuple[str, str], ...] = ()
    whole: tuple["Part", ...] = ()
    unknown: bool = False

    @property
    def numbered(self) -> bool:
        """Whether what it requires holds digits."""
        return bool(_digits(*self.require))

    def kept_in(self, translated: str, asked: Sequence[str] = ()) -> bool:
        """Whether a translation holds all that it must, each stand-in just once, and no digits beside those of what it must.

        asked: what else it was told to hold.
        """
        names = [name for name, _ in self.stand_ins]
        if not all(translated.count(name) == count(name.casefold(), translated.casefold()) == 1 for name in names):
            return False
        others = [text for text in self.require if text not in names]
        if self.numbered and _digits(translated) - _digits(*self.require, *asked):
            return False
        return all(count(text, translated) >= others.count(text) for text in others)

    def written(self, translated: str, target: str, prefix: str = "") -> str:
        """A translation in the form of the part, with what its stand-ins stand for.

        prefix: how it was told to begin, which stays as it is.
        """
        translated = _SPACES.sub(" ", translated)  # a number that is bound to be written may bring a second one
        spans = dict(self.stand_ins)
        begin = prefix.strip() if translated.startswith(prefix.strip()) else ""
        rest = translated[len(begin) :]
        lower = self.form.lower and not begin and target not in _CAPITALIZED and not rest.startswith(tuple(spans))
        if spans:
            rest = re.sub("|".join(map(re.escape, spans)), lambda name: spans[name[0]], rest)
        return begin + from_sentence(rest, replace(self.form, lower=lower))


class Cutter:
    """Cuts texts into parts for one direction of a model.

    limit: pieces of a part, at most. names: tells unknown ones. stand_ins: names of the source, and what the model makes of
    them. whole_sentences, copy_unknown, entities: as in the config.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        limit: int,
        names: Names,
        stand_ins: Mapping[str, str],
        whole_sentences: bool,
        copy_unknown: bool,
        entities: bool,
    ) -> None:
        self._tokenizer, self._limit, self._names, self._stand_ins = tokenizer, limit, names, stand_ins
        self._whole_sentences, self._copy_unknown, self._entities = whole_sentences, copy_unknown, entities
        self._folded: dict[str, tuple[str, bool]] = {}

    def parts(self, text: str, terms: Mapping[str, str] = MappingProxyType({}), spelt: str = "") -> list[Part]:
        """The parts of a text, in order; its prose in Unicode's composed form (NFC).

        terms: of `fold_terms`; an unknown name that is one is put back as what it wants. spelt: what else is said of its words;
        an unknown name in it, or in a longer term, is left to the model.
        """
        text = unicodedata.normalize("NFC", text)
        spans = [span for span in _SPANS.finditer(text) if not (self._entities and ENTITY.fullmatch(span[0]))]
        opaque = list(text)  # in which a span is one word, so that no sentence ends within it
        plain = list(text)  # in which it is no name
        for span in spans:
            opaque[slice(*span.span())], plain[slice(*span.span())] = ("X" * len(span[0]), "0" * len(span[0]))
        spelt = "\n".join((spelt, *terms, *terms.values())).casefold()
        parts: list[Part] = []
        start, ahead = 0, deque(spans)
        for sentence in split_sentences("".join(opaque)):
            end = start + len(sentence)
            inside = []
            while ahead and ahead[0].end() <= end:
                inside.append(ahead.popleft())
            names = [(start + a, start + b) for a, b in self._names.find("".join(plain[start:end]))]
            names = [span for span in names if (name := text[slice(*span)].casefold()) in terms or name not in spelt]
            parts += self._sentence(text, start, end, inside, names, terms)
            start = end
        return parts

    def _sentence(
        self, text: str, start: int, end: int, spans: list[re.Match[str]], names: list[Span], terms: Mapping[str, str]
    ) -> Iterator[Part]:
        """A sentence, divided at its markup."""
        inline: list[Span] = []
        for span in spans:
            if span.lastgroup == "inline":
                inline.append(span.span())
                continue
            yield from self._run(text, start, span.start(), inline, names, terms)
            yield Part(span[0])
            start, inline = span.end(), []
        yield from self._run(text, start, end, inline, names, terms)

    def _run(
        self, text: str, start: int, end: int, spans: list[Span], names: list[Span], terms: Mapping[str, str]
    ) -> list[Part]:
        """A sentence, or a piece between markup: with stand-ins for its spans and unknown names, or divided at the spans."""
        divided: list[Part] = []
        position = start
        for span in spans:
            divided += self._plain(text[position : span[0]], terms)
            divided.append(Part(text[slice(*span)]))
            position = span[1]
        divided += self._plain(text[position:end], terms)
        inside = [(a - start, b - start) for a, b in spans]
        named = [(a - start, b - start) for a, b in names if start <= a and b <= end]
        if not (inside or named) or not any(part.ids for part in divided):
            return divided
        for some in (named, []) if named else ([],):
            if part := self._under_names(text[start:end], inside, some, terms):
                return [replace(part, whole=tuple(divided))]
        allowed = {text[a + start : b + start] for a, b in named}
        return [self._named(part, allowed, terms) for part in divided]

    def _named(self, part: Part, names: set[str], terms: Mapping[str, str]) -> Part:
        """A part with stand-ins for those of its names that are among some."""
        if not names or not part.ids:
            return part
        spans = [span for span in self._names.find(part.text) if part.text[slice(*span)] in names]
        found = self._under_names(part.text, [], spans, terms)
        return replace(found, whole=(part,)) if found else part

    def _under_names(self, text: str, spans: list[Span], names: list[Span], terms: Mapping[str, str]) -> Part | None:
        """A text with stand-ins for its spans, and for as many unknown names as there are more; if that makes it one part."""
        free = [name for name in self._stand_ins if name.casefold() not in text.casefold()]
        marked = sorted(spans + names[: max(0, len(free) - len(spans))])
        if not 0 < len(marked) <= len(free):
            return None
        replaced, position = "", 0
        for name, span in zip(free, marked, strict=False):
            replaced += text[position : span[0]] + name
            position = span[1]
        found = self._plain(replaced + text[position:], terms)
        if len(found) != 1 or not found[0].ids:
            return None
        marks = [text[slice(*span)] for span in marked]
        pairs = tuple(
            (self._stand_ins[name], terms.get(mark.casefold(), mark)) for name, mark in zip(free, marks, strict=False)
        )
        require = (*found[0].require, *(name for name, _ in pairs))
        return replace(found[0], text=text, require=require, stand_ins=pairs)

    def _plain(self, text: str, terms: Mapping[str, str]) -> list[Part]:
        """A run without spans, in parts of a length that the model can read."""
        parts: list[Part] = []
        for run, known in self._known(text):
            if not known:
                parts.append(Part(terms.get(run.casefold(), run), unknown=run.casefold() not in terms))
            elif not any(char.isalpha() for char in run):  # white space, numbers, punctuation
                parts += [Part(run)] * bool(run)
            else:
                parts += self._short(run, terms)
        return parts

    def _short(self, text: str, terms: Mapping[str, str]) -> Iterator[Part]:
        ids = self._tokenizer.encode([text])[0]
        if len(ids) <= self._limit:
            yield self._part(text, ids, terms)
            return
        space = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        if space[0]:
            yield Part(space[0])
        lost = Counter(_wanted(text, terms))  # of these, terms that are cut in two: the first part answers for them
        parts = [self._part(chunk, None, terms) for chunk in self._tokenizer.decode(self._chunks(ids))]
        lost.subtract(term for part in parts for term in part.require if term in lost)
        for index, part in enumerate(parts):
            if index:
                yield Part(" ")
            yield part if index else replace(part, require=(*part.require, *lost.elements()))
        if space[1]:
            yield Part(space[1])

    def _part(self, text: str, ids: list[int] | None, terms: Mapping[str, str]) -> Part:
        plain, form = to_sentence(text) if self._whole_sentences else (text, SENTENCE)
        if ids is None or form != SENTENCE:
            ids = self._tokenizer.encode([plain])[0]
        return Part(text, ids, form, (*_NUMBER.findall(text), *_wanted(text, terms)))

    def _known(self, text: str) -> list[tuple[str, bool]]:
        """Runs of the text that the tokenizer knows, and runs that training never saw, to be copied.

        A word with an unknown letter is copied whole, a Chinese character alone and only if training saw all that the
        tokenizer knows: else it is read by its bytes. Of other unknown characters (such as emoji) only they are copied.
        """
        runs: list[tuple[str, bool]] = []
        for token in _TOKENS.findall(text):
            chars = [self._fold(char) for char in token]
            if any(char.isalpha() and not known for char, known in chars):
                if "\u2e80" <= token[0] <= "\u9fff":
                    chars = [(token, not self._copy_unknown)]
                else:
                    end = len(token.rstrip(".,;:!?…"))
                    chars = [(char, False) for char in token[:end]] + chars[end:]
            for char, known in chars:
                known = known or (char.isspace() and (not runs or runs[-1][1]))
                if runs and runs[-1][1] == known:
                    runs[-1] = (runs[-1][0] + char, known)
                else:
                    runs.append((char, known))
        return runs

    def _fold(self, char: str) -> tuple[str, bool]:
        """The character, or a plainer one that the tokenizer has; and whether it has one."""
        if char not in self._folded:
            apart = unicodedata.normalize("NFKD", char)
            plain = [char, _FOLD.get(char, char)] + [apart[0]] * all(map(unicodedata.combining, apart[1:]))
            if char.isnumeric() and not char.isdecimal() and not char.isalpha():
                plain = []  # ½ and ² are other numbers than what they look like
            known = [c for c in plain if not c.isspace() and set(self._tokenizer.normalize(c)) <= self._tokenizer.characters]
            self._folded[char] = (known[0], True) if known else (char, False)
        return self._folded[char]

    def _chunks(self, ids: list[int]) -> list[list[int]]:
        """A sentence too long for the model, cut after a comma or the like, else between words, else anywhere."""
        limit, chunks = self._limit, []
        while len(ids) > limit:
            pieces = self._tokenizer.pieces(ids[: limit + 1])
            words = [k for k in range(limit // 4, limit + 1) if pieces[k].startswith("▁") or pieces[k - 1][-1:] in "，；：、"]
            clauses = [k for k in words if pieces[k - 1][-1:] in ",;:，；：、"]
            cut = (clauses or words or [limit])[-1]
            chunks.append(ids[:cut])
            ids = ids[cut:]
        return [*chunks, ids]


def fold_terms(glossary: Mapping[str, str]) -> dict[str, str]:
    """The terms of a glossary as they are looked for, each with what a translation must hold. InputError for an empty text."""
    if not isinstance(glossary, Mapping):
        raise InputError(f"glossary: terms and what a translation must hold for each are needed, not {glossary!r}")
    terms = {}
    for term, wanted in glossary.items():
        plain = [" ".join(unicodedata.normalize("NFC", text).split()) for text in (term, wanted)]
        if not all(plain):
            raise InputError(f"glossary: an empty text in {term!r}: {wanted!r}")
        terms[plain[0].casefold()] = plain[1]
    return terms


def _wanted(text: str, terms: Mapping[str, str]) -> list[str]:
    """What a translation of the text must hold by the glossary, as often as its terms (of two, the longer one) stand in it."""
    if not terms:
        return []
    some = "|".join(_as_words(term) for term in sorted(terms, key=len, reverse=True))
    return [terms[term] for term in re.findall(some, text.casefold())]


def _digits(*texts: str) -> Counter[str]:
    return Counter(char for text in texts for char in text if char in "0123456789")


@lru_cache(maxsize=16)
def digit_ids(surfaces: tuple[bytes, ...]) -> frozenset[int]:
    """The pieces that write a digit."""
    return frozenset(index for index, surface in enumerate(surfaces) if any(byte in b"0123456789" for byte in surface))


def count(term: str, text: str) -> int:
    """How often a term stands in a text, as words of its own where its script writes spaces, and not within a number."""
    return len(re.findall(_as_words(term), text))


def _as_words(term: str) -> str:
    left = f"(?<!{WORD})(?<![0-9][.,:/-])" if re.match(f"-?{WORD}", term) else ""
    right = f"(?!{WORD})(?![.,:/-][0-9])" if re.match(WORD, term[-1:]) else ""
    return left + re.escape(term) + right

"""Translation between two languages: one model for both directions.

The source begins with a piece that names the target's language (Johnson et al. 2017). The tokenizer is one for both languages.
"""

import logging
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import decoding, metrics
from rheme.errors import InputError
from rheme.models.seq2seq import Seq2Seq, Seq2SeqConfig
from rheme.tasks import Result, Task
from rheme.text import batches, readers
from rheme.text.sentences import SENTENCE, Form, from_sentence, is_sentence, split_sentences, to_sentence
from rheme.text.tokenizer import Tokenizer

log = logging.getLogger("rheme")

Ids = NDArray[np.int64]
Item = tuple[int, NDArray[np.int32], NDArray[np.int32]]  # the target's tag, source pieces, target pieces

_BATCH_TOKENS, _BATCH_ROWS = 2048, 64  # of one decoding batch: source pieces, sentences
_FOLD = dict.fromkeys("“”„‟″«»", '"') | dict.fromkeys("‘’‚′ʼ`´", "'") | dict.fromkeys("–—−‐‑", "-")
# languages not written in Latin letters -> what the Unicode names of their letters begin with
_SCRIPTS = {
    "ar": ("ARABIC",), "bg": ("CYRILLIC",), "el": ("GREEK",), "fa": ("ARABIC",), "he": ("HEBREW",), "hi": ("DEVANAGARI",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"), "ka": ("GEORGIAN",), "ko": ("HANGUL",), "ru": ("CYRILLIC",), "th": ("THAI",),
    "uk": ("CYRILLIC",), "zh": ("CJK",),
}  # fmt: skip


class TranslationConfig(msgspec.Struct, kw_only=True):
    """languages: the codes of the first and the second column. directions: both, forward (first to second) or backward.

    vocab_size: pieces for both languages. max_source_length: a longer sentence (in pieces) is translated in parts.
    max_train_length: pairs with a longer side are left out of training. Set by training: copy_unknown, where it saw every
    character that has a piece (others are copied as they are); whole_sentences, where nearly all its texts begin with a capital
    and end with punctuation (other inputs are brought to that form, and the answers back).
    """

    languages: list[str] = msgspec.field(default_factory=lambda: ["en", "fr"])
    directions: str = "both"
    vocab_size: int = 8000
    normalization: str = "nmt_nfkc"
    max_source_length: int = 30
    max_train_length: int = 120
    copy_unknown: bool = False
    whole_sentences: bool = False
    model: Seq2SeqConfig = msgspec.field(default_factory=Seq2SeqConfig)

    def __post_init__(self) -> None:
        if len(self.languages) != 2 or len(set(self.languages)) != 2:
            raise InputError(f"languages = {','.join(self.languages)}: two different codes are needed, such as en,fr")
        if self.directions not in ("both", "forward", "backward"):
            raise InputError(f"directions = {self.directions}: one of both, forward, backward")
        for name in ("vocab_size", "max_source_length", "max_train_length"):
            if getattr(self, name) < 4:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 4")


@dataclass(frozen=True)
class _Part:
    """A piece of an input: text to translate (ids, and the form it had), or to copy (no ids)."""

    text: str
    ids: list[int] = field(default_factory=list)
    form: Form = SENTENCE


class Translation(Task):
    """Translate sentences between the two languages of a model."""

    name: ClassVar[str] = "translation"
    Config: ClassVar[type[msgspec.Struct]] = TranslationConfig
    fields: ClassVar[tuple[str, ...]] = ("source", "target")
    sides: ClassVar[int] = 2
    pipeline_tag: ClassVar[str] = "translation"
    pipeline_key: ClassVar[str] = "translation_text"

    config: TranslationConfig
    model: Seq2Seq
    tokenizer: Tokenizer

    def __init__(self, config: TranslationConfig | None = None) -> None:
        super().__init__(config)
        self.options = {"num_beams": 4, "max_new_tokens": 128}
        self._folded: dict[str, tuple[str, bool]] = {}

    # Data ------------------------------------------------------------------------------------------------------------------

    def read(self, paths: Any, fields: Sequence[str] | None = None) -> list[tuple[str, str]]:
        """Pairs (first language, second language), each once.

        fields: the language codes in the order of the file's columns, or keys of JSON lines (by default the language codes, or
        source and target).
        """
        if fields is not None:
            rows = readers.read_records(paths, fields, given=True)
            if list(fields) == self.config.languages[::-1]:
                rows = [(second, first) for first, second in rows]
        else:
            try:
                rows = readers.read_records(paths, self.config.languages)
            except InputError as error:
                if "no field" not in str(error):
                    raise
                rows = readers.read_records(paths, self.fields)
        return list(dict.fromkeys(rows))  # type: ignore[arg-type]

    def setup(self, examples: Sequence[tuple[str, str]]) -> None:
        """Train the tokenizer on both sides, then build the model."""
        self.tokenizer = Tokenizer.train(
            (text for pair in examples for text in pair),
            self.config.vocab_size,
            [f"<2{code}>" for code in self.config.languages],
            normalization=self.config.normalization,
        )
        alphabet = {char for pair in examples for text in pair for char in self.tokenizer.normalize(text)}
        self.config.copy_unknown = alphabet <= self.tokenizer.characters
        whole = sum(is_sentence(text) for pair in examples for text in pair)
        self.config.whole_sentences = whole > 0.9 * 2 * len(examples)
        self.build()

    def build(self) -> None:
        """The model, with as many pieces as the tokenizer has."""
        ids = {"vocab_size": len(self.tokenizer), "pad_id": self.tokenizer.pad_id}
        ids |= {"bos_id": self.tokenizer.bos_id, "eos_id": self.tokenizer.eos_id}
        self.config.model = msgspec.structs.replace(self.config.model, **ids)
        self._tags = {code: self.tokenizer.piece_id(f"<2{code}>") for code in self.config.languages}
        self._constraints = decoding.Constraints(forbid=self.tokenizer.unwritable)
        self.model = Seq2Seq(self.config.model)

    def _pairs(self) -> list[tuple[int, int]]:
        """The directions, as (source, target) positions in ``config.languages``."""
        return {"both": [(0, 1), (1, 0)], "forward": [(0, 1)], "backward": [(1, 0)]}[self.config.directions]

    def encode(self, example: tuple[str, str]) -> list[Item]:
        """The items of one pair, one a direction."""
        return self.encode_all([example])

    def encode_all(self, examples: Sequence[tuple[str, str]]) -> list[Item]:
        """Every direction of every pair; pairs with an empty or a too long side are left out (and counted in the log)."""
        texts = ([pair[side] for pair in examples] for side in (0, 1))
        sides = [[np.array(ids, np.int32) for ids in self.tokenizer.encode(column)] for column in texts]
        limit = self.config.max_train_length
        keep = [i for i in range(len(examples)) if all(0 < len(side[i]) <= limit for side in sides)]
        if len(keep) < len(examples):
            left = len(examples) - len(keep)
            log.warning("%d of %d pairs left out: a side is empty or longer than %d pieces", left, len(examples), limit)
        items: list[Item] = []
        for source, target in self._pairs():
            tag = self._tags[self.config.languages[target]]
            items += [(tag, sides[source][i], sides[target][i]) for i in keep]
        return items

    def size(self, item: Item) -> int:
        """The longer side, with its tag or end."""
        return max(len(item[1]), len(item[2])) + 1

    def loss(self, items: Sequence[Item], step_seed: int) -> tuple[Any, int, dict[str, float]]:
        """Summed cross-entropy of the target pieces and the end of each sentence."""
        source, lengths = batches.pad([np.concatenate(([tag], ids)) for tag, ids, _ in items], self.tokenizer.pad_id)
        ends = ([self.tokenizer.bos_id], [self.tokenizer.eos_id])
        target_in, _ = batches.pad([np.concatenate((ends[0], ids)) for _, _, ids in items], self.tokenizer.pad_id)
        target_out, _ = batches.pad([np.concatenate((ids, ends[1])) for _, _, ids in items], -1)
        return self.model.loss(source, lengths, target_in, target_out, seed=step_seed)

    # Use -------------------------------------------------------------------------------------------------------------------

    @classmethod
    def serves(cls, config: Mapping[str, Any], **options: Any) -> bool:
        """Whether the pair of languages and the direction are those asked for."""
        pair, directions = list(config.get("languages", [])), config.get("directions", "both")
        to, source = options.get("to"), options.get("from_")
        if any(code is not None and code not in pair for code in (to, source)) or (to is not None and to == source):
            return False
        target = to if to is not None else next((code for code in pair if code != source), None) if source else None
        return target is None or directions == "both" or target == pair[directions == "forward"]

    def direction(self, to: str | None = None, from_: str | None = None) -> tuple[str, str]:
        """(source language, target language). InputError when the model cannot, or when it is not clear which."""
        codes = self.config.languages
        possible = [(codes[source], codes[target]) for source, target in self._pairs()]
        fitting = [pair for pair in possible if to in (None, pair[1]) and from_ in (None, pair[0])]
        names = ", ".join(f"{source} to {target}" for source, target in possible)
        if not fitting:
            asked = "".join(f" {word} {code}" for word, code in (("from", from_), ("to", to)) if code)
            raise InputError(f"this model cannot translate{asked}; it can: {names}")
        if len(fitting) > 1:
            raise InputError(f"say into which language (to=, --to); this model can: {names}")
        return fitting[0]

    def answer(self, inputs: Sequence[str], to: str | None = None, from_: str | None = None, **options: Any) -> list[Result]:
        """Translations, in order. to, from_: language codes. options: of decoding (num_beams, num_return_sequences, ...)."""
        for text in inputs:
            if not isinstance(text, str):
                raise InputError(f"a text to translate must be a str, not {type(text).__name__}")
        merged = self.options | options
        defaults = merged.pop("to", None), merged.pop("from_", None)
        if to is None and from_ is None:
            to, from_ = defaults
        _, target = self.direction(to, from_)
        settings = decoding.GenerationOptions.parse(merged)
        parts = [self._parts(text) for text in inputs]
        jobs = [(i, j) for i, row in enumerate(parts) for j, part in enumerate(row) if part.ids]
        found: dict[tuple[int, int], list[decoding.Hypothesis]] = {}
        tag = self._tags[target]
        for batch in batches.length_batches([len(parts[i][j].ids) for i, j in jobs], _BATCH_TOKENS, _BATCH_ROWS):
            source, lengths = batches.pad([[tag, *parts[i][j].ids] for i, j in (jobs[k] for k in batch)], self.tokenizer.pad_id)
            state = self.model.start(self.model.encode(source, lengths))
            bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
            answers = decoding.generate(self.model, state, len(batch), settings, bos, eos, self._constraints)
            for k, hypotheses in zip(batch, answers, strict=True):
                found[jobs[k]] = hypotheses
        rows = [[found.get((i, j), []) for j in range(len(row))] for i, row in enumerate(parts)]
        return [self._result(text, target, row, hyps) for text, row, hyps in zip(inputs, parts, rows, strict=True)]

    def _parts(self, text: str) -> list[_Part]:
        """A text as parts: sentences, or pieces of long ones, to translate, and what is copied between them."""
        parts: list[_Part] = []
        for run, known in self._known(text):
            for sentence in split_sentences(run) if known else [run]:
                if not known or not sentence.strip():
                    parts.append(_Part(sentence))
                    continue
                ids = self.tokenizer.encode([sentence])[0]
                if len(ids) <= self.config.max_source_length:
                    parts += [self._part(sentence, ids)] if ids else []  # nothing but invisible characters
                    continue
                for index, chunk in enumerate(self.tokenizer.decode(self._chunks(ids))):
                    parts += [_Part(" ")] * (index > 0) + [self._part(chunk)]
        return parts

    def _part(self, text: str, ids: list[int] | None = None) -> _Part:
        plain, form = to_sentence(text) if self.config.whole_sentences else (text, SENTENCE)
        if ids is None or form != SENTENCE:
            ids = self.tokenizer.encode([plain])[0]
        return _Part(text, ids, form)

    def _known(self, text: str) -> list[tuple[str, bool]]:
        """Runs of the text that the tokenizer knows, and runs that training never saw, to be copied.

        A word with an unknown letter is copied whole; of other unknown characters (such as emoji) only they.
        """
        if not self.config.copy_unknown:
            return [(text, True)]
        runs: list[tuple[str, bool]] = []
        for token in re.findall(r"\s+|\S+", text):
            chars = [self._fold(char) for char in token]
            if any(char.isalpha() and not known for char, known in chars):
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
            plain = [char, _FOLD.get(char, char), unicodedata.normalize("NFKD", char)[:1]]
            known = [c for c in plain if not c.isspace() and set(self.tokenizer.normalize(c)) <= self.tokenizer.characters]
            self._folded[char] = (known[0], True) if known else (char, False)
        return self._folded[char]

    def _chunks(self, ids: list[int]) -> list[list[int]]:
        """A sentence too long for the model, cut after a comma or the like, else between words, else anywhere."""
        limit, chunks = self.config.max_source_length, []
        while len(ids) > limit:
            pieces = self.tokenizer.pieces(ids[: limit + 1])
            words = [k for k in range(limit // 4, limit + 1) if pieces[k].startswith("▁")]
            clauses = [k for k in words if pieces[k - 1][-1:] in ",;:，；：、"]
            cut = (clauses or words or [limit])[-1]
            chunks.append(ids[:cut])
            ids = ids[cut:]
        return [*chunks, ids]

    def _result(self, text: str, target: str, parts: list[_Part], found: list[list[decoding.Hypothesis]]) -> Result:
        """Put the parts' translations together."""
        best = [hyps[0] for hyps in found if hyps]
        if not best:  # nothing to translate: empty, or nothing but unknown characters
            copied = "".join(part.text for part in parts).strip()
            return Result(copied, warnings=("out_of_domain",) if copied else ())
        answer = self._join(parts, [hyps[0] if hyps else None for hyps in found])
        alternatives: list[Result] = []
        if len(best) == 1:
            where = next(k for k, hyps in enumerate(found) if hyps)
            for other in found[where][1:]:
                joined = self._join(parts, [other if k == where else None for k in range(len(parts))])
                alternatives.append(Result(joined, _confidence([other])))
        score = _confidence(best)
        warnings = self._warnings(text, answer, target, parts, best, score)
        return Result(answer, score, tuple(alternatives), warnings)

    def _join(self, parts: list[_Part], chosen: list[decoding.Hypothesis | None]) -> str:
        texts = self.tokenizer.decode([hypothesis.ids if hypothesis else [] for hypothesis in chosen])
        out = ""
        for part, translated in zip(parts, texts, strict=True):
            if not part.ids:
                out += part.text
                continue
            head = part.text[: len(part.text) - len(part.text.lstrip())]
            tail = part.text[len(part.text.rstrip()) :]
            out += head + from_sentence(translated, part.form) + tail
        return out.strip()

    def _warnings(
        self, text: str, answer: str, target: str, parts: list[_Part], best: list[decoding.Hypothesis], score: float
    ) -> tuple[str, ...]:
        found = []
        if any(hypothesis.repeating for hypothesis in best) or _repeats(answer) > max(2, _repeats(text)):
            found.append("repetition")
        source = sum(len(part.ids) for part in parts)
        written = sum(len(hypothesis.ids) for hypothesis in best)
        if not (source - 4) / 3 <= written <= 3 * source + 4:
            found.append("length_ratio")
        copied = any(part.text.strip() for part in parts if not part.ids)
        if copied or any(self.tokenizer.is_byte(index) for part in parts for index in part.ids):
            found.append("out_of_domain")
        if not copied and not _in_script(answer, target):
            found.append("wrong_script")
        if not all(hypothesis.finished or hypothesis.repeating for hypothesis in best):
            found.append("truncated")
        if score < 0.3:
            found.append("low_confidence")
        return tuple(found)

    # Measuring -------------------------------------------------------------------------------------------------------------

    def evaluate(self, examples: Sequence[tuple[str, str]], **options: Any) -> dict[str, float | str]:
        """BLEU and chrF, with sacreBLEU's signatures (cased, one reference); for each direction unless ``to`` is given.

        InputError without sacrebleu (the extra ``eval``).
        """
        codes = self.config.languages
        asked = options.pop("to", None), options.pop("from_", None)
        if asked == (None, None):
            asked = self.options.get("to"), self.options.get("from_")
        directions = [(codes[s], codes[t]) for s, t in self._pairs()] if asked == (None, None) else [self.direction(*asked)]
        figures: dict[str, float | str] = {"pairs": len(examples)}
        for source, target in directions:
            side = codes.index(source)
            answers = [result.text for result in self.answer([pair[side] for pair in examples], to=target, **options)]
            tokenize = {"zh": "zh", "ja": "char", "ko": "char"}.get(target, "13a")
            measured = metrics.bleu_chrf(answers, [[pair[1 - side]] for pair in examples], tokenize)
            figures |= {f"{name}_{source}-{target}": value for name, value in measured.items()}
        return figures


def _confidence(hypotheses: Sequence[decoding.Hypothesis]) -> float:
    """exp of the mean log-probability of a piece (the end of the sentence is one)."""
    tokens = sum(len(hypothesis.ids) + bool(hypothesis.finished) for hypothesis in hypotheses)
    return math.exp(min(0.0, math.fsum(hypothesis.score for hypothesis in hypotheses) / max(tokens, 1)))


def _repeats(text: str) -> int:
    """How often, at most, one to four words (or characters, without spaces) stand again directly after themselves, plus one."""
    words: Sequence[str] = text.lower().split()
    if len(words) < 3:
        words = text.lower()
    most = 1
    for size in (1, 2, 3, 4):
        run = 0
        for k in range(size, len(words)):
            run = run + 1 if words[k] == words[k - size] else 0
            most = max(most, run // size + 1)
    return most


def _in_script(text: str, language: str) -> bool:
    """Whether at least half of the letters belong to the language's script."""
    letters = [unicodedata.name(char, "") for char in text if char.isalpha()]
    scripts = _SCRIPTS.get(language, ("LATIN", "FULLWIDTH LATIN"))
    return 2 * sum(name.startswith(scripts) for name in letters) >= len(letters)

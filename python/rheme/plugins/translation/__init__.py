"""Translation between two languages: one model for both directions.

The source begins with a piece that names the target's language (Johnson et al. 2017). The tokenizer and the embedding are one
for both languages; the layers are, too, or (`separate`) each direction has its own.
A bundled model hands a text that is in none of its languages, or to be brought into another one, to the bundled model for it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import decoding, metrics, ops, storage, tasks
from rheme.errors import InputError
from rheme.models.seq2seq import Seq2Seq, TwoWay
from rheme.plugins.translation.checks import confidence, warnings
from rheme.plugins.translation.config import TranslationConfig
from rheme.plugins.translation.names import Names, pack, stand_ins
from rheme.plugins.translation.parts import ENTITY, Cutter, Part, digit_ids, fold_terms, prose
from rheme.plugins.translation.redrawing import Redrawing, short_pairs
from rheme.plugins.translation.reranking import TranslationOptions, rerank
from rheme.plugins.translation.routes import Routes, both
from rheme.tasks import Result, Task
from rheme.text import batches, language, readers
from rheme.text.sentences import is_sentence
from rheme.text.tokenizer import Tokenizer
from rheme.text.words import UNSPACED

log = logging.getLogger("rheme")

Ids = NDArray[np.int64]
Hypotheses = list[decoding.Hypothesis]
Item = tuple[int, NDArray[np.int32], NDArray[np.int32]]  # the target's tag, source pieces, target pieces

_BATCH_TOKENS, _BATCH_ROWS = 2048, 64  # of one decoding batch: source pieces, sentences
_PROFILED = 20_000  # sentences that a language's profile is learned from, at most
_COPIES = 0.125  # of the training items may be added as copies with other numbers, at most
_LATENT_STREAM = 1 << 43  # the Philox streams of latent codes drawn for a translation


class Translation(Task):
    """Translate sentences between the two languages of a model."""

    name: ClassVar[str] = "translation"
    Config: ClassVar[type[msgspec.Struct]] = TranslationConfig
    fields: ClassVar[tuple[str, ...]] = ("source", "target")
    sides: ClassVar[int] = 2
    tunable: ClassVar[tuple[str, ...]] = (
        "separate",
        "subword_dropout",
        "number_copies",
        "short_copies",
        "name_share",
        "whole_sentences",
        "entities",
        "model.dropout",
        "model.word_dropout",
        "model.label_smoothing",
    )
    pipeline_tag: ClassVar[str] = "translation"
    pipeline_key: ClassVar[str] = "translation_text"

    config: TranslationConfig
    model: Seq2Seq | TwoWay
    tokenizer: Tokenizer

    def __init__(self, config: TranslationConfig | None = None) -> None:
        super().__init__(config)
        self.options = {"num_beams": 4, "length_penalty": 0.8, "max_new_tokens": 128}
        self._bundled = False
        self._precision: str | None = None
        self._redrawing: Redrawing | None = None  # in training, where the config asks for it
        self._others: dict[Path, Translation] = {}  # models already loaded for other directions

    # Data ------------------------------------------------------------------------------------------------------------------

    def read(self, paths: Any, fields: Sequence[str] | None = None) -> list[tuple[str, str]]:
        """Pairs (first language, second language), each once.

        fields: the language codes in the order of the file's columns, or keys of JSON lines (by default the language codes, or
        source and target).
        """
        return list(dict.fromkeys(self._rows(paths, fields, None)))

    def read_checked(
        self, paths: Any, fields: Sequence[str] | None = None, clean: bool = False
    ) -> tuple[list[tuple[str, str]], list[str]]:
        """As `read`, but rows with an empty side are passed over, and bad ones are named (see `training.check`)."""
        from rheme.training.check import check_pairs

        notes = readers.Notes()
        return check_pairs(self._rows(paths, fields, notes), notes, self.config.languages, clean)

    def _rows(self, paths: Any, fields: Sequence[str] | None, notes: readers.Notes | None) -> list[tuple[str, str]]:
        if fields is not None:
            # language codes say the order of the columns, whether or not a first line has them
            given = sorted(fields) != sorted(self.config.languages)
            rows = readers.read_records(paths, fields, given, notes=notes)
            if list(fields) == self.config.languages[::-1]:
                rows = [(second, first) for first, second in rows]
        else:
            try:
                rows = readers.read_records(paths, self.config.languages, notes=notes)
            except InputError as error:
                if "no field" not in str(error):
                    raise
                if notes is not None:
                    notes.places.clear()
                    notes.empty.clear()
                rows = readers.read_records(paths, self.fields, notes=notes)
        return rows  # type: ignore[return-value]

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
        texts = [text for pair in examples for text in pair]
        self.config.whole_sentences = sum(map(is_sentence, texts)) > 0.9 * len(texts)
        self.config.entities = sum(bool(ENTITY.search(text)) for text in texts) > 0.001 * len(texts)
        self.learn_forms(examples)
        self.build()

    def adapt(self, examples: Sequence[tuple[str, str]]) -> None:
        """The same weights, in a model of the settings that were given anew."""
        before = self.model
        self.build()
        if isinstance(before, TwoWay) and isinstance(self.model, Seq2Seq):
            raise InputError("the two directions of this model are separate; they cannot be made one")
        if isinstance(before, Seq2Seq) and isinstance(self.model, TwoWay):
            self.model.take(before.state_dict())
        else:
            self.model.load_state_dict(before.state_dict())

    def learn_forms(self, examples: Sequence[tuple[str, str]]) -> None:
        """Fill in what the config keeps of the languages themselves: `stand_ins`, `words` and `profiles`."""
        self.config.stand_ins = stand_ins(examples)
        self.config.words = {code: pack(examples, side) for side, code in enumerate(self.config.languages)}
        some = examples[:: max(1, len(examples) // _PROFILED)]
        self.config.profiles = {
            code: language.profile(pair[side] for pair in some) for side, code in enumerate(self.config.languages)
        }

    def build(self) -> None:
        """The model, with as many pieces as the tokenizer has."""
        ids = {"vocab_size": len(self.tokenizer), "pad_id": self.tokenizer.pad_id}
        ids |= {"bos_id": self.tokenizer.bos_id, "eos_id": self.tokenizer.eos_id}
        self.config.model = msgspec.structs.replace(self.config.model, **ids)
        self._tags = {code: self.tokenizer.piece_id(f"<2{code}>") for code in self.config.languages}
        self._unwritable = self.tokenizer.unwritable
        config = self.config
        known = config.stand_ins, {other: name for name, other in config.stand_ins.items()}
        self._cutters = {
            config.languages[target]: Cutter(
                self.tokenizer,
                config.max_source_length,
                Names(config.words.get(config.languages[source], "")),
                known[source],
                config.whole_sentences,
                config.copy_unknown,
                config.entities,
            )
            for source, target in self._pairs()
        }
        self.model = (TwoWay if config.separate and config.directions == "both" else Seq2Seq)(config.model)

    def _into(self, target: str) -> Seq2Seq:
        """What translates into a language."""
        return self.model.ways[self.config.languages.index(target) == 0] if isinstance(self.model, TwoWay) else self.model

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

    def training_items(self, examples: Sequence[tuple[str, str]]) -> list[Item]:
        """With `short_copies` of the short pairs and `number_copies` of those whose numbers can be redrawn."""
        copies = self.config.short_copies - 1
        items = self.encode_all([*examples, *short_pairs(examples, copies)] if copies else examples)
        more = self.config.number_copies - 1
        if not more and not self.config.name_share:
            return items
        redrawing = self._redrawing = Redrawing(self.tokenizer, examples)
        numbered = [item for item in items if redrawing.numbered(item[1:])]
        return items + min(more, int(_COPIES * len(items)) // max(1, len(numbered))) * numbered

    def size(self, item: Item) -> int:
        """The longer side, with its tag or end."""
        return max(len(item[1]), len(item[2])) + 1

    def loss(self, items: Sequence[Item], step_seed: int) -> tuple[Any, int, dict[str, float]]:
        """Summed cross-entropy of the target pieces and the end of each sentence."""
        if self.model.training and self._redrawing:
            items = self._redrawn(self._redrawing, items, step_seed)
        if self.model.training and self.config.subword_dropout:
            items = self._recut(items, step_seed)
        if isinstance(self.model, Seq2Seq):
            return self._loss(self.model, items, step_seed)
        total, count, sums = 0.0, 0, dict.fromkeys(("reconstruction", "kl"), 0.0)
        for code, tag in self._tags.items():
            mine = [item for item in items if item[0] == tag]
            if mine:
                part, targets, info = self._loss(self._into(code), mine, step_seed)
                total, count = part + total, count + targets
                for name, weight in (("reconstruction", targets), ("kl", len(mine))):
                    sums[name] += weight * info.get(name, 0.0)
        latent = self.config.model.latent_size > 0
        return total, count, {"reconstruction": sums["reconstruction"] / count, "kl": sums["kl"] / len(items)} if latent else {}

    def _loss(self, model: Seq2Seq, items: Sequence[Item], seed: int) -> tuple[Any, int, dict[str, float]]:
        source, lengths = batches.pad([np.concatenate(([tag], ids)) for tag, ids, _ in items], self.tokenizer.pad_id)
        ends = self.tokenizer.bos_id, self.tokenizer.eos_id
        target_in, target_out, _ = batches.shifted([ids for _, _, ids in items], *ends, self.tokenizer.pad_id)
        return model.loss(source, lengths, target_in, target_out, seed=seed)

    def _recut(self, items: Sequence[Item], seed: int) -> list[Item]:
        """The items, both sides in other pieces."""
        sides = [ids for item in items for ids in item[1:]]
        cut = (np.array(ids, np.int32) for ids in self.tokenizer.resample(sides, self.config.subword_dropout, seed))
        return [(tag, next(cut), next(cut)) for tag, _, _ in items]

    def _redrawn(self, redrawing: Redrawing, items: Sequence[Item], seed: int) -> list[Item]:
        """The items, some with other numbers and names."""
        pairs = [item[1:] for item in items]
        if self.config.number_copies > 1:
            pairs = redrawing.numbers(pairs, seed)
        pairs = redrawing.names(pairs, self.config.name_share, seed)
        return [(item[0], *pair) for item, pair in zip(items, pairs, strict=True)]

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

    @classmethod
    def from_stored(cls, stored: storage.StoredModel, precision: str = "float32") -> "Translation":
        task = super().from_stored(stored, precision)
        assert isinstance(task, Translation)
        task._bundled = Path(stored.folder) in tasks.bundled().values()
        task._precision = precision
        return task

    def needed_options(self) -> dict[str, Any]:
        """The target of the first direction, and its source (which is else told from the text)."""
        source, target = self._pairs()[0]
        return {"from_": self.config.languages[source], "to": self.config.languages[target]}

    def answer(
        self,
        inputs: Sequence[str],
        to: str | None = None,
        from_: str | None = None,
        glossary: Mapping[str, str] | None = None,
        **options: Any,
    ) -> list[Result]:
        """Translations, in order.

        to, from_: language codes; without from_ a bundled model finds the language of each text itself. glossary: terms of the
        source, and what a translation of a text with them must hold. options: of decoding (num_beams, num_return_sequences,
        forbid, ...), `reverse_weight` and `reverse_model` (see `TranslationOptions`); `prefix` and `require` are for a text's
        first sentence. A model with a latent code translates with its mean, or in sampling with a draw of it for each returned
        sequence (temperature 0: of it alone).
        """
        for text in inputs:
            if not isinstance(text, str):
                raise InputError(f"a text to translate must be a str, not {type(text).__name__}")
        merged = self.options | options
        defaults = merged.pop("to", None), merged.pop("from_", None)
        if to is None and from_ is None:
            to, from_ = defaults
        elif from_ is None and to == defaults[0]:
            from_ = defaults[1]
        elif to is None and from_ != defaults[0]:
            to = defaults[0]
        settings = TranslationOptions.parse(merged)
        settings.check_sampling()
        terms = fold_terms(glossary or {})
        rows: dict[tuple[str, ...], list[int]] = {}
        for row, text in enumerate(inputs):
            rows.setdefault(self.route(text, to, from_), []).append(row)
        if not inputs:
            self.route("", to, from_)
        answers = [Result("")] * len(inputs)
        for path, numbers in rows.items():
            found = [Result(inputs[row], warnings=("out_of_domain",)) for row in numbers]  # is in the target language already
            texts = [inputs[row] for row in numbers]
            for step, (source, target) in enumerate(pairwise(path), 2):
                last = step == len(path)
                free: dict[str, Any] = {} if last else {"forbid": (), "require": (), "prefix": "", "reverse_model": ""}
                plain = msgspec.structs.replace(settings, **free)
                held = terms if last else {term: term for term in terms}  # for the last step to find
                results = self._for(source, target)._translate(texts, target, plain, held)
                found = [both(old, new) for old, new in zip(found, results, strict=True)] if step > 2 else results
                texts = [result.text for result in found]
            for row, result in zip(numbers, found, strict=True):
                answers[row] = result
        return answers

    def route(self, text: str, to: str | None = None, from_: str | None = None) -> tuple[str, ...]:
        """The languages that a text goes through, from its own to the target's; one only if it is in that already.

        Between two languages other than English that no bundled model pairs, through English. InputError when there is no way.
        """
        if not self._bundled or to is None:
            return self.direction(to, from_)
        if from_ is None:
            own = [source for source, target in map(self._codes, self._pairs()) if target == to]
            from_ = self._routes.detect(prose(text), to, own[0] if own else "")
        return self._routes.find(from_, to)

    @cached_property
    def _routes(self) -> Routes:
        return Routes.bundled(self.name)

    def _for(self, source: str, target: str) -> "Translation":
        """The task that translates from one language into another: this one, or another bundled one."""
        if (source, target) in map(self._codes, self._pairs()):
            return self
        return self._other(self._routes.pairs[source, target])

    def _other(self, path: Path) -> "Translation":
        if path not in self._others:
            loaded = tasks.load(self.name, path, precision=self._precision)
            assert isinstance(loaded, Translation)
            self._others[path] = loaded
        return self._others[path]

    def _back(self, target: str, settings: TranslationOptions) -> tuple[Seq2Seq, int] | None:
        """What tells how well a beam search's texts lead back, and the tag it needs; None where nothing does, or is to."""
        source = next(code for code in self.config.languages if code != target)
        if settings.num_beams == 1 or not settings.reverse_weight:
            return None
        if not settings.reverse_model:
            return (self._into(source), self._tags[source]) if self.config.directions == "both" else None
        other = self._other(Path(settings.reverse_model))
        if other.tokenizer.to_bytes() != self.tokenizer.to_bytes():
            raise InputError(f"reverse_model {settings.reverse_model}: it has other pieces; train both on the same pairs")
        other.direction(source, target)
        return other._into(source), other._tags[source]

    def _codes(self, pair: tuple[int, int]) -> tuple[str, str]:
        return self.config.languages[pair[0]], self.config.languages[pair[1]]

    def _translate(
        self, inputs: Sequence[str], target: str, settings: TranslationOptions, terms: Mapping[str, str]
    ) -> list[Result]:
        """Translations by this model."""
        spelt = "\n".join((settings.prefix, *settings.require, *settings.forbid))
        rows = [self._cutters[target].parts(text, terms, spelt) for text in inputs]
        found = self._decode(rows, target, settings, [[None] * len(row) for row in rows], bound=False)
        # What does not hold all that it must is written again, bound to it and therefore by a beam search; where even then a
        # stand-in does not stand just once, its sentence is translated in pieces around what it stands for.
        if settings.do_sample:
            beams = max(decoding.REQUIRED_BEAMS, settings.num_return_sequences)
            settings = msgspec.structs.replace(settings, do_sample=False, num_beams=beams)
        asked = (settings.prefix, *settings.require)
        found = self._decode(rows, target, settings, self._kept(rows, found, asked), bound=True)
        kept = self._kept(rows, found, asked)
        for row, parts in enumerate(rows):
            pairs = list(zip(parts, kept[row], strict=True))
            if any(hypotheses is None for _, hypotheses in pairs):
                pairs = [
                    (new, hypotheses if new is part else None)
                    for part, hypotheses in pairs
                    for new in (part.whole if hypotheses is None and part.stand_ins else (part,))
                ]
                rows[row], kept[row] = [part for part, _ in pairs], [hypotheses for _, hypotheses in pairs]
        found = self._decode(rows, target, settings, kept, bound=True)
        lost = [None in row for row in self._kept(rows, found, asked)]
        each = zip(inputs, rows, found, lost, strict=True)
        return [self._result(text, target, row, hyps, missing, settings.prefix) for text, row, hyps, missing in each]

    def _kept(
        self, rows: Sequence[Sequence[Part]], found: Sequence[Sequence[Hypotheses]], asked: Sequence[str]
    ) -> list[list[Hypotheses | None]]:
        """The hypotheses that hold all that their parts must; None where the best one does not. asked: by the options."""
        kept: list[list[Hypotheses | None]] = []
        for parts, row in zip(rows, found, strict=True):
            kept.append([])
            for part, hypotheses in zip(parts, row, strict=True):
                good = hypotheses
                if part.require:
                    texts = self.tokenizer.decode([hypothesis.ids for hypothesis in hypotheses])
                    good = [h for h, text in zip(hypotheses, texts, strict=True) if part.kept_in(text, asked)]
                kept[-1].append(good if good[:1] == hypotheses[:1] else None)
        return kept

    def _decode(
        self,
        rows: Sequence[Sequence[Part]],
        target: str,
        settings: TranslationOptions,
        known: Sequence[Sequence[Hypotheses | None]],
        bound: bool,
    ) -> list[list[Hypotheses]]:
        """For each part of each row its hypotheses (none for one that is copied), where they are not yet known.

        bound: to what the parts require, as far as an answer has room for it.
        """
        first = {i: j for i, row in reversed(list(enumerate(rows))) for j in reversed(range(len(row))) if row[j].ids}
        jobs = [(i, j) for i, row in enumerate(rows) for j, part in enumerate(row) if part.ids and known[i][j] is None]
        found: list[list[Hypotheses]] = [[hypotheses or [] for hypotheses in row] for row in known]
        if not jobs:
            return found
        asked = [first[i] == j for i, j in jobs]
        more = sum(map(len, self.tokenizer.encode([settings.prefix, *settings.require])))
        limits = [
            min(settings.max_new_tokens, 3 * len(rows[i][j].ids) + 16 + more * mine)
            for (i, j), mine in zip(jobs, asked, strict=True)
        ]
        require, reserved = [], []
        digits = digit_ids(tuple(self.tokenizer.surfaces)) if bound else frozenset()
        for (i, j), limit in zip(jobs, limits, strict=True):
            kept: list[str] = []
            for text in rows[i][j].require if bound else ():
                if sum(len(ids) for ids in self.tokenizer.encode([*kept, text])) <= limit // 2:
                    kept.append(text)
            require.append(kept)
            only: frozenset[int] = frozenset()
            if bound and len(kept) == len(rows[i][j].require):
                names = self.tokenizer.encode([name for name, _ in rows[i][j].stand_ins])
                only = frozenset(ids[0] for ids in names if len(ids) == 1) | (digits if rows[i][j].numbered else frozenset())
            reserved.append(only)
        constraints = decoding.Constraints.of_texts(
            settings, self.tokenizer, len(jobs), forbid=self._unwritable, require=require, max_new_tokens=limits, asked=asked
        )
        if any(reserved):
            constraints = replace(constraints, reserved=reserved)
        tag = self._tags[target]
        lengths = [len(rows[i][j].ids) for i, j in jobs]
        draws = settings.num_return_sequences if settings.do_sample and self.config.model.latent_size else 1
        model, back = self._into(target), self._back(target, settings)
        for batch in batches.length_batches(lengths, _BATCH_TOKENS // draws, max(1, _BATCH_ROWS // draws)):
            ids = [[tag, *rows[i][j].ids] for i, j in (jobs[k] for k in batch)]
            source = batches.pad(ids * draws, self.tokenizer.pad_id)
            state = model.start(model.encode(*source, self._draws(len(batch), draws, settings.seed)))
            ends = self.tokenizer.bos_id, self.tokenizer.eos_id
            rows_of, streams = constraints.of_rows(batch * draws), [draw for draw in range(draws) for _ in batch]
            wanted = settings.num_beams if back else 1 if draws > 1 else settings.num_return_sequences
            each = msgspec.structs.replace(settings, num_return_sequences=wanted)
            answers = decoding.generate(model, state, len(batch) * draws, each, *ends, rows_of, streams)
            if back:
                sources = [rows[i][j].ids for i, j in (jobs[k] for k in batch)]
                ranked = rerank(*back, sources, answers, settings.reverse_weight)
                answers = [mine[: settings.num_return_sequences] for mine in ranked]
            for row, k in enumerate(batch):
                mine = [hypothesis for found_ in answers[row :: len(batch)] for hypothesis in found_]
                found[jobs[k][0]][jobs[k][1]] = sorted(mine, key=lambda h: -h.normalized_score) if draws > 1 else mine
        if all(found[i][j] for i, j in jobs):
            return found
        if not bound:
            raise InputError("nothing can be written that keeps to all of prefix, require and forbid")
        # Rather a text without what its part requires than none.
        return self._decode(rows, target, settings, [[hypotheses or None for hypotheses in row] for row in found], bound=False)

    def _draws(self, inputs: int, draws: int, seed: int) -> NDArray[Any] | None:
        """The noise of the latent codes of `draws` rounds of so many inputs, the same one for all of a round; None for none."""
        size = self.config.model.latent_size
        if draws == 1 or not size:
            return None
        noise = [ops.random_normal(seed, _LATENT_STREAM + draw, 0, (1, size)) for draw in range(draws)]
        return np.concatenate([np.tile(eps, (inputs, 1)) for eps in noise])

    def _result(self, text: str, target: str, parts: list[Part], found: list[Hypotheses], lost: bool, prefix: str) -> Result:
        """Put the parts' translations together. lost: one has not all it must."""
        best = [hyps[0] for hyps in found if hyps]
        if not best:  # nothing to translate: empty, or nothing but what is copied
            copied = "".join(part.text for part in parts).strip()
            return Result(copied, warnings=("out_of_domain",) if any(part.unknown for part in parts) else ())
        answer = self._join(parts, [hyps[0] if hyps else None for hyps in found], target, prefix)
        alternatives: list[Result] = []
        if len(best) == 1:
            where = next(k for k, hyps in enumerate(found) if hyps)
            for other in found[where][1:]:
                joined = self._join(parts, [other if k == where else None for k in range(len(parts))], target, prefix)
                alternatives.append(Result(joined, confidence([other])))
        noticed = warnings(text, answer, target, parts, best, self.tokenizer, lost)
        return Result(answer, confidence(best), tuple(alternatives), noticed)

    def _join(self, parts: list[Part], chosen: list[decoding.Hypothesis | None], target: str, prefix: str) -> str:
        """The text of the parts. Sentences are divided by a space where the target writes spaces, and only there."""
        texts = self.tokenizer.decode([hypothesis.ids if hypothesis else [] for hypothesis in chosen])
        spaces = target not in UNSPACED
        out, after = "", False  # after: a translation has just ended
        for number, (part, translated) in enumerate(zip(parts, texts, strict=True)):
            if part.ids:
                head = part.text[: len(part.text) - len(part.text.lstrip())]
                tail = part.text[len(part.text.rstrip()) :]
                piece = head + part.written(translated, target, prefix) + tail
                prefix = ""
                divided = after and not head
            else:
                piece, tail = part.text, part.text
                following = after and number + 1 < len(parts) and bool(parts[number + 1].ids)
                if following and not spaces and not piece.strip(" "):
                    continue
                divided = False
            if spaces and (divided or (out[-1:].isalnum() and piece[:1].isalnum())):
                out += " "
            out += piece
            after = not tail and (after or bool(part.ids))
        return out.strip()

    # Measuring -------------------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        examples: Sequence[tuple[str, str]],
        against: Sequence[str] | None = None,
        tokenize: str | None = None,
        **options: Any,
    ) -> dict[str, float | str]:
        """BLEU and chrF, with sacreBLEU's signatures (cased, one reference); for each direction unless ``to`` is given.

        against: the translations of another system, one an example, in one direction; its figures are told beside (under names
        with ``against_``), and the share of examples for which each of the two has the higher chrF. tokenize: BLEU's, one of
        `metrics.TOKENIZERS`, by default as the target's script needs it; none: for texts that are tokenised. InputError without
        sacrebleu (the extra ``eval``).
        """
        codes = self.config.languages
        asked = options.pop("to", None), options.pop("from_", None)
        if asked == (None, None):
            asked = self.options.get("to"), self.options.get("from_")
        directions = [(codes[s], codes[t]) for s, t in self._pairs()] if asked == (None, None) else [self.direction(*asked)]
        if against is not None and len(directions) > 1:
            raise InputError("to compare with another system's translations, say into which language they are (to=, --to)")
        if against is not None and len(against) != len(examples):
            raise InputError(f"{len(against)} translations to compare with, but {len(examples)} examples: give one a line")
        if tokenize not in (None, *metrics.TOKENIZERS):
            raise InputError(f"tokenize = {tokenize!r}: one of {', '.join(metrics.TOKENIZERS)}")
        figures: dict[str, float | str] = {"pairs": len(examples)}
        for source, target in directions:
            side = codes.index(source)
            sources, references = [pair[side] for pair in examples], [[pair[1 - side]] for pair in examples]
            answers = [result.text for result in self.answer(sources, to=target, from_=source, **options)]
            cut = tokenize or {"zh": "zh", "ja": "char", "ko": "char"}.get(target, "13a")
            measured = metrics.bleu_chrf(answers, references, cut)
            figures |= {f"{name}_{source}-{target}": value for name, value in measured.items()}
            if against is not None:
                other = metrics.bleu_chrf(against, references, cut)
                figures |= {f"against_{name}_{source}-{target}": value for name, value in other.items()}
                scores = [metrics.sentence_chrf(texts, references) for texts in (answers, against)]
                better = [sum(a > b for a, b in zip(*pair, strict=True)) for pair in (scores, scores[::-1])]
                figures |= {"better": better[0] / len(examples), "against_better": better[1] / len(examples)}
        return figures

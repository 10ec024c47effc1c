"""Attribute transfer: a sentence's code moved along a direction, and the sentence's words kept.

A code of few numbers does not hold every word of a sentence once it is moved, so what the moved code says is only where a
search begins. Sentences are ranked by the sum of three things, all of them the model's own (experts combined as in "Mix and
Match", Mireshghallah et al. 2022): how natural they are (the ELBO), how much of the text's words they hold, and whether they
say what the direction says. The search writes from moved codes with a bonus for the text's words, then again from the codes of
the best sentences found, so that codes and words come to fit (as the cross-entropy method, Rubinstein 1999, does with samples).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import decoding, ops
from rheme.errors import InputError
from rheme.text import batches

Array = NDArray[Any]
Ids = tuple[int, ...]

KEEP = 3.0  # chosen, as all of these, on validation sentences: see benchmarks/RESULTS.md
_ENOUGH = 0.7  # the share of the usual evidence that is asked for
_DRAWS = 64  # sentences that tell the usual evidence
_STRENGTHS, _BONUSES = (1.0, 1.5, 2.0), (1.0, 2.0, 4.0)  # of the first codes, in moves; of a piece of the text's words, in nats
_LATER_STRENGTHS, _LATER_BONUSES = (0.0, 0.5), (2.0, 4.0)  # of the codes of what was found
_ROUNDS, _BEST = 3, 4  # how often the search goes on, and from how many sentences
_BEAMS = 4


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sentence (ids), its code mu F (D,), what it is ranked by, in nats a piece, and whether it says what is asked for."""

    ids: Ids
    mu: Array
    score: float
    reached: bool


class Transfer:
    """Rewrites sentences along one move of the latent space, F (D,).

    keep: nats a piece that all the words kept are worth against none of them. options: of decoding.
    """

    def __init__(self, task: Any, move: Array, keep: float, options: Mapping[str, Any]) -> None:
        self.model, self.tokenizer = task.model, task.tokenizer
        self._move, self._keep = move, keep
        given = {"length_penalty": 0.0, **task.options, **options}
        if str(given.get("num_return_sequences", 1)) != "1":
            raise InputError("num_return_sequences: each text is rewritten once")
        settings = decoding.GenerationOptions.parse(given)
        settings.check_sampling()
        beams = settings.num_beams if settings.do_sample or "num_beams" in given else _BEAMS
        self._settings = msgspec.structs.replace(settings, num_beams=beams, num_return_sequences=beams)
        needed = settings.min_new_tokens or settings.require or settings.prefix
        # A task has a max_new_tokens of its own for what it writes, so only the call's says how long a text may be.
        self._bounded = not needed and "max_new_tokens" not in options
        self._free = self._bounded and not (settings.forbid or settings.stop)
        self._kinds = decoding.word_kinds(tuple(self.tokenizer.surfaces))
        self._wordless = np.array([index for index, kind in enumerate(self._kinds) if kind is None], np.int64)
        self._asked = _ENOUGH * self._usual_evidence()

    def __call__(self, text: str, mu: Array) -> str | None:
        """The text, whose code is mu F (D,), rewritten, or as it is where it says what the move says already.

        None where the options leave nothing to write.
        """
        source = self.tokenizer.encode([text])[0]
        bonuses = {bonus: decoding.Favoured(source, bonus, self.tokenizer) for bonus in (*_BONUSES, *_LATER_BONUSES)}
        found: dict[Ids, _Candidate] = {}
        if self._free:
            self._rank([tuple(source)], source, found)
            if found[tuple(source)].reached:
                return text  # it says what is asked for already
        best: list[_Candidate] = []
        looked: set[Ids] = set()
        starts = [(self._moved(mu, strength), bonuses[bonus]) for strength in _STRENGTHS for bonus in _BONUSES]
        for _ in range(1 + _ROUNDS):
            new = self._write([z for z, _ in starts], [favoured for _, favoured in starts], len(source))
            self._rank([ids for ids in new if ids not in found], source, found)
            best = sorted(found.values(), key=lambda candidate: (-candidate.score, candidate.ids))[:_BEST]
            starts = [
                (self._moved(candidate.mu, strength), bonuses[bonus])
                for candidate in best
                if candidate.ids not in looked
                for strength in _LATER_STRENGTHS
                for bonus in _LATER_BONUSES
            ]
            looked |= {candidate.ids for candidate in best}
            if not starts:
                break
        if not best:
            return None
        ids = best[0].ids
        return text if ids == tuple(source) else str(self.tokenizer.decode([list(ids)])[0])

    def _moved(self, mu: Array, strength: float) -> Array:
        return ops.add(mu, ops.mul(self._move, strength))

    def _words(self, ids: Sequence[int]) -> Counter[str]:
        """The pieces that spell words, in lower case, and how often each stands there."""
        return Counter(kind for kind in (self._kinds[index] for index in ids) if kind is not None)

    def _write(self, codes: Sequence[Array], favoured: Sequence[decoding.Favoured], length: int) -> list[Ids]:
        """What a search finds for each code, each sentence once; at most about twice as long as the text."""
        settings, tokenizer = self._settings, self.tokenizer
        if self._bounded:
            settings = msgspec.structs.replace(settings, max_new_tokens=min(settings.max_new_tokens, 2 * length + 8))
        rows = len(codes)
        bound = decoding.Constraints.of_texts(settings, tokenizer, rows, forbid=tokenizer.unwritable)
        bound = bound.favouring(favoured)
        state = self.model.start(np.ascontiguousarray(np.stack(codes)))
        found = decoding.generate(self.model, state, rows, settings, tokenizer.bos_id, tokenizer.eos_id, bound)
        return [ids for ids in dict.fromkeys(tuple(h.ids) for hypotheses in found for h in hypotheses) if ids]

    def _rank(self, sentences: Sequence[Ids], source: Sequence[int], found: dict[Ids, _Candidate]) -> None:
        """Add sentences to what was found, with their scores.

        The ELBO is taken by the mean length of sentence and source: by the sentence's own, cheap words after its end would pay;
        by the source's alone, words left out.
        """
        if not sentences:
            return
        tokenizer, words = self.tokenizer, self._words(source)
        read, wanted, lengths = batches.shifted(sentences, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        mu, logvar = self.model.encode(wanted, lengths)
        _, kl = ops.gaussian_kl(mu, logvar, ops.zeros(mu.shape, mu.dtype))
        nats = ops.add(self.model.reconstruction(read, wanted, lengths, mu), ops.sum(kl, axis=1)).tolist()
        for row, (ids, evidence) in enumerate(zip(sentences, self._evidence(read, wanted, lengths), strict=True)):
            held = self._words(ids)
            total = words.total() + held.total()
            kept = 2.0 * (words & held).total() / total if total else 1.0
            length = 0.5 * (int(lengths[row]) + len(source) + 1)
            score = -nats[row] / length + self._keep * kept + min(0.0, evidence - self._asked)
            found[ids] = _Candidate(ids, mu[row], score, evidence >= self._asked)

    def _evidence(self, read: Array, wanted: Array, lengths: Array) -> list[float]:
        """How many nats cheaper a sentence's words are under half the move than under half of it backwards.

        The words alone: an attribute that only a full stop or a question mark shows is not one that the sentence has.
        """
        words = np.where(np.isin(wanted, self._wordless), -1, wanted)
        half = ops.mul(self._move, 0.5)
        towards, away = (
            self.model.reconstruction(read, words, lengths, np.repeat(code[None], len(lengths), axis=0))
            for code in (half, ops.neg(half))
        )
        return [float(value) for value in ops.sub(away, towards)]

    def _usual_evidence(self) -> float:
        """The median evidence in sentences of draws from the prior, moved; at least 0."""
        tokenizer = self.tokenizer
        settings = decoding.GenerationOptions(max_new_tokens=self._settings.max_new_tokens)
        bound = decoding.Constraints(forbid=tokenizer.unwritable)
        state = self.model.start(ops.add(self.model.prior(_DRAWS, 0), self._move))
        drawn = decoding.generate(self.model, state, _DRAWS, settings, tokenizer.bos_id, tokenizer.eos_id, bound)
        sentences = [best.ids for best, *_ in drawn if best.ids]
        if not sentences:
            return 0.0
        values = self._evidence(*batches.shifted(sentences, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id))
        return max(0.0, sorted(values)[len(values) // 2])

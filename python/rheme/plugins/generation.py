"""Generation: a text VAE learns sentences; a draw of its latent code, decoded, is a new one."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import decoding, doctor, evaluation, ops
from rheme.errors import InputError
from rheme.latent import LatentSpace
from rheme.models.text_vae import TextVAE, TextVAEConfig
from rheme.storage import StoredModel
from rheme.tasks import Inspection, Result, Task
from rheme.text import batches
from rheme.text.tokenizer import Tokenizer
from rheme.text.vocabulary import Vocabulary

Ids = NDArray[np.int64]

_AT_ONCE = 32  # sentences decoded together
_MOST_DRAWS = 50  # for each sentence asked for, before giving up on distinct ones
_COPY_DRAWS = 1000  # samples looked up among the training sentences
_CALIBRATION = 2000  # validation sentences that calibrate the confidence, at most
_CONFIDENCE_SAMPLES = 8  # draws of z for a sentence's likelihood
_OWN_SENTENCES = 200  # of the model's own, to examine it without data
_UNUSUAL = 0.01  # a sentence dearer than all but this share of the validation's is out of the domain


class GenerationConfig(msgspec.Struct, kw_only=True):
    """What is read, and the model's shape.

    unit: sentencepiece's pieces, or words as they stand between spaces. vocab_size: pieces, or words, of the training text;
    with a word_list (a file, one a line) its words instead. max_train_length: longer sentences (in pieces) are left out of
    training. fixed_splits: the files are a benchmark's: keep each sentence as often as it stands, also one that is
    held out as well. inspected_sentences: how many of the validation's the measures of each validation are taken on, with
    inspected_samples draws for the likelihood. on_collapse: tell, stop the training, or treat (train on with a new decoder,
    free bits and slow annealing). calibration: what the trained model finds usual; set by training.
    """

    languages: list[str] = msgspec.field(default_factory=lambda: ["en"])
    unit: Literal["piece", "word"] = "piece"
    vocab_size: int = 4000
    word_list: str = ""
    normalization: str = "nmt_nfkc"
    max_train_length: int = 60
    fixed_splits: bool = False
    inspected_sentences: int = 1000
    inspected_samples: int = 5
    on_collapse: Literal["tell", "stop", "treat"] = "tell"
    calibration: dict[str, Any] = msgspec.field(default_factory=dict)
    model: TextVAEConfig = msgspec.field(default_factory=TextVAEConfig)

    def __post_init__(self) -> None:
        for name, least in (("inspected_sentences", 1), ("inspected_samples", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least {least}")
        for name in ("vocab_size", "max_train_length"):
            if getattr(self, name) < 4:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 4")
        if self.word_list and self.unit != "word":
            raise InputError("word_list needs unit = 'word'")


class Generation(Task):
    """Write new sentences like those it was trained on."""

    name: ClassVar[str] = "generation"
    Config: ClassVar[type[msgspec.Struct]] = GenerationConfig
    writes: ClassVar[tuple[str, ...]] = ("training.png",)
    pipeline_tag: ClassVar[str] = "text-generation"
    pipeline_key: ClassVar[str] = "generated_text"

    config: GenerationConfig
    model: TextVAE
    tokenizer: Tokenizer | Vocabulary

    def __init__(self, config: GenerationConfig | None = None) -> None:
        super().__init__(config)
        self.options = {"max_new_tokens": 60}
        self.metrics: dict[str, Any] = {}  # of the stored model
        self._treated_at = 0
        self._collapsed: bool | None = None
        if self.config.fixed_splits:
            vars(self)["sides"] = 0  # nothing is dropped for standing on both sides

    def read(self, paths: Any, fields: Sequence[str] | None = None) -> list[str]:
        """Sentences, each once: the lines of a file, or one column of a TSV (the first, or fields=["2"]), or a JSON field."""
        if fields is not None and len(fields) != 1:
            raise InputError(f"generation reads one field, not {len(fields)}: {', '.join(fields)}")
        sentences = super().read(paths, fields)
        return sentences if self.config.fixed_splits else list(dict.fromkeys(sentences))

    def setup(self, examples: Sequence[str]) -> None:
        """Train the tokenizer, or count the words, then build the model."""
        config = self.config
        if config.unit == "piece":
            self.tokenizer = Tokenizer.train(examples, config.vocab_size, normalization=config.normalization)
        elif config.word_list:
            self.tokenizer = Vocabulary.load(config.word_list)
            config.word_list = ""  # the words are the model's from here on; where they came from is nobody's business
        else:
            self.tokenizer = Vocabulary.train(examples, config.vocab_size)
        self.build()

    def read_tokenizer(self, data: bytes) -> Tokenizer | Vocabulary:
        """Of the file tokenizer.model: pieces, or words one a line."""
        return Tokenizer.load(data) if self.config.unit == "piece" else Vocabulary.load(data)

    def build(self) -> None:
        """The model, with as many pieces as the tokenizer has."""
        tokenizer = self.tokenizer
        ids = {"pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "unk_id": tokenizer.unk_id}
        self.config.model = msgspec.structs.replace(self.config.model, vocab_size=len(tokenizer), **ids)
        self._forbidden = tokenizer.unwritable
        self.model = TextVAE(self.config.model)

    def encode(self, example: str) -> NDArray[np.int32]:
        """The pieces of a sentence."""
        return np.array(self.tokenizer.encode([example])[0], np.int32)

    def encode_all(self, examples: Sequence[str]) -> list[NDArray[np.int32]]:
        """Sentences of 1 to max_train_length pieces."""
        items = [np.array(ids, np.int32) for ids in self.tokenizer.encode(examples)]
        return [ids for ids in items if 0 < len(ids) <= self.config.max_train_length]

    def _whole(self, examples: Sequence[str]) -> list[list[int]]:
        """The pieces of each sentence, however long, but for empty ones."""
        return [ids for ids in self.tokenizer.encode(examples) if ids]

    def size(self, item: NDArray[np.int32]) -> int:
        """With the end."""
        return len(item) + 1

    def loss(self, items: Sequence[NDArray[np.int32]], step_seed: int) -> tuple[Any, int, dict[str, float]]:
        """Summed -ELBO of the sentences (beta and free bits as the model's config says), counted in pieces."""
        tokenizer = self.tokenizer
        ids_in, ids_out, _ = batches.shifted(items, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        return self.model.loss(ids_in, ids_out, seed=step_seed)

    # Watching a training ----------------------------------------------------------------------------------------------------

    def inspect(self, items: Sequence[Any], history: Sequence[Mapping[str, Any]], step: int, total_steps: int) -> Inspection:
        """The measures on (a part of) the validation sentences, and the doctor's word on them."""
        config, some = self.config, _evenly(items, self.config.inspected_sentences)
        if not some:
            return Inspection()
        report = evaluation.evaluate_vae(self.model, [ids.tolist() for ids in some], 1, config.inspected_samples)
        figures = report.to_dict()
        del figures["sentences"], figures["words"]
        if not config.model.latent_size:
            return Inspection(figures, {"NLL": f"{report.nll:.2f}", "perplexity": f"{report.perplexity:.2f}"})
        beta = self.model.beta_at(step, total_steps)
        diagnosis = doctor.diagnose(figures, msgspec.to_builtins(config.model), beta, history)
        figures |= {"beta": beta, "state": diagnosis.state}
        shown = {
            "-ELBO": f"{report.neg_elbo:.2f}",
            "reconstruction": f"{report.reconstruction:.2f}",
            "KL": f"{report.kl:.2f}",
            "MI": f"{report.mutual_information:.2f}",
            "active units": f"{report.active_units}/{config.model.latent_size}",
            "beta": f"{beta:.2f}",
        }
        if not math.isnan(report.perplexity):
            shown["perplexity"] = f"{report.perplexity:.2f}"
        shown["state"] = diagnosis.state
        note = f"doctor: {diagnosis}" if diagnosis.remedy else ""
        # Once treated, only a model that writes with its code counts: by its ELBO the collapsed one would often be the best.
        keep = not self._treated_at or diagnosis.state == "healthy"
        if not diagnosis.collapsed or config.on_collapse == "tell":
            return Inspection(figures, shown, note, keep)
        if config.on_collapse == "stop":
            return Inspection(figures, shown, f"{note}; stopping here (on_collapse = stop)", stop=True)
        if self._treated_at:
            return Inspection(figures, shown, f"{note}; it was treated after step {self._treated_at} already", keep)

        def treat() -> None:
            self.model.treat(step, diagnosis.treatment)
            self.config.model, self._treated_at = self.model.config, step

        settings = ", ".join(f"{name} {value}" for name, value in diagnosis.treatment.items())
        figures["treated"] = True
        return Inspection(figures, shown, f"{note}; treating it from here on: {settings}", False, treat)

    def training_state(self) -> dict[str, Any]:
        """After which step a collapse was treated."""
        return {"treated_at": self._treated_at}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """The settings of a treatment again."""
        if state.get("treated_at"):
            self._treated_at = int(state["treated_at"])
            self.model.retake(self._treated_at, doctor.TREATMENT)
            self.config.model = self.model.config

    def calibrate(self, examples: Sequence[str]) -> None:
        """The confidence, on validation sentences."""
        items = self._whole(_evenly(examples, _CALIBRATION))
        if len(items) > 1:
            nats = self._nats(items)
            calibration = evaluation.Calibration.fit(nats, [len(ids) + 1 for ids in items])
            self.config.calibration = msgspec.to_builtins(calibration)

    def conclude(self, out: Path, examples: Sequence[str], history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Counts copies of training sentences, draws the history."""
        doctor.draw(history, out / "training.png")
        return {f"copies_of_{_COPY_DRAWS}": self.copies(examples)}

    def copies(self, examples: Sequence[str], draws: int = _COPY_DRAWS) -> int:
        """How many of so many sentences from the prior stand word for word among the examples."""
        known, settings = {" ".join(text.split()) for text in examples}, self._settings(0, None, {})
        found = [
            result
            for first in range(0, draws, _AT_ONCE)
            for result in self._draws(first, min(_AT_ONCE, draws - first), settings)
        ]
        return sum(" ".join(result.text.split()) in known for result in found)

    # The state of the code --------------------------------------------------------------------------------------------------

    @classmethod
    def from_stored(cls, stored: StoredModel, precision: str = "float32") -> "Generation":
        """With the figures that the folder was saved with."""
        task = super().from_stored(stored, precision)
        assert isinstance(task, Generation)
        task.metrics = dict(stored.metrics)
        return task

    def save(self, folder: str | Path, *, metrics: Any = None, card: Any = None, **rest: Any) -> Path:
        """Write the model folder; the card of a collapsed model says so."""
        metrics, card = dict(metrics or self.metrics), dict(card or {})
        with contextlib.suppress(InputError):
            diagnosis = doctor.diagnose(metrics, msgspec.to_builtins(self.config.model))
            if self.config.model.latent_size:
                metrics["state"] = diagnosis.state
            if diagnosis.collapsed:
                described = card.get("description") or "A text VAE."
                card["description"] = (
                    f"**The latent code of this model has collapsed** ({diagnosis.evidence}): it is a language model that does "
                    f"not look at the code. Likely cause: {diagnosis.cause}.\n\n{described}"
                )
        return super().save(folder, metrics=metrics, card=card, **rest)

    def examine(self, examples: Sequence[str] | None = None) -> tuple[dict[str, Any], doctor.Diagnosis]:
        """Figures and diagnosis: on examples, or else as stored with the model, or else on sentences of its own."""
        if examples is not None:
            items = self._whole(examples)
            if not items:
                raise InputError("no sentence to examine the model on")
            figures = evaluation.evaluate_vae(self.model, items, 1, _CONFIDENCE_SAMPLES).to_dict()
        elif self.metrics.get("mutual_information") is not None:
            figures = self.metrics
        else:
            figures = self._own_figures()
        return figures, doctor.diagnose(figures, msgspec.to_builtins(self.config.model))

    def _own_figures(self) -> dict[str, Any]:
        """On sentences sampled from the model itself: enough to tell a code that is not used."""
        settings = self._settings(0, 1.0, {})
        texts = [result.text for result in self._draws(0, _OWN_SENTENCES, settings)]
        items = [ids for ids in self._whole(texts) if ids]
        return evaluation.evaluate_vae(self.model, items or [[]]).to_dict()

    def require_code(self, purpose: str) -> None:
        """InputError when the model has no code, or a collapsed one, for what is asked."""
        if not self.config.model.latent_size:
            raise InputError(f"{purpose} needs a latent code; this model is a language model without one (latent_size 0)")
        if self._collapsed is None:
            self._collapsed = self.examine()[1].collapsed
        if self._collapsed:
            raise InputError(
                f"{purpose} would only pretend: the latent code of this model has collapsed, so that it writes the same "
                "whatever the code says; see: rheme doctor"
            )

    # Use --------------------------------------------------------------------------------------------------------------------

    @property
    def latent(self) -> LatentSpace:
        """The latent space of the model: encode, decode, mix, walk, neighbours, direction. InputError without a code."""
        self.require_code("the latent space")
        return LatentSpace(self)

    def generate(
        self,
        count: int = 5,
        seed: int = 0,
        prompt: str | None = None,
        temperature: float | None = None,
        like: str | None = None,
        **options: Any,
    ) -> list[Result]:
        """``count`` sentences, all different; the same seed gives the same ones.

        They come from draws of z from the prior; with ``like`` from around that sentence's code, temperature scaling the
        distance (default 1: the posterior's own deviation), and differ from it. prompt: how each begins; max_new_tokens counts
        what comes after it. options: of decoding, such as forbid and require. Without ``like``, temperature is the decoder's: 0
        (the default) takes the most probable piece at each step, so that only z makes a difference; a model without a code
        samples at 1 by default, and so does any with do_sample. Fewer come back when the model has no more to say. Those like a
        text that the model finds odd (see ``confidence``) carry the warning out_of_domain.
        """
        if count < 1:
            raise InputError(f"n = {count}: must be at least 1")
        around, decoder_temperature = None, temperature
        odd: tuple[str, ...] = ()
        results: dict[str, Result] = {}
        if like is not None:
            self.require_code("writing sentences like a given one")
            distance = {} if temperature is None else {"temperature": temperature}
            around, decoder_temperature = self._around(like, decoding.GenerationOptions.parse(distance).temperature), None
            results[" ".join(like.split())] = Result(like)  # itself is not one of them
            count += 1
            odd = self.confidence([like])[0].warnings if self.config.calibration else ()
        settings = self._settings(seed, decoder_temperature, options)
        if prompt and prompt.strip():
            given = len(self.tokenizer.encode([prompt])[0])
            most, least = settings.max_new_tokens + given, settings.min_new_tokens + given * bool(settings.min_new_tokens)
            settings = msgspec.structs.replace(settings, prefix=prompt, max_new_tokens=most, min_new_tokens=least)
        for first in range(0, _MOST_DRAWS * count + _AT_ONCE, _AT_ONCE):
            for result in self._draws(first, _AT_ONCE, settings, around):
                if result.text:
                    results.setdefault(result.text, replace(result, warnings=(*odd, *result.warnings)))
                if len(results) == count:
                    return list(results.values())[like is not None :]
        return list(results.values())[like is not None :]

    def _around(self, text: str, temperature: float) -> "_Around":
        if not text.strip():
            raise InputError("like: the text is empty")
        (mu,), (logvar,) = LatentSpace(self).encode([text])
        return _Around(mu, ops.mul(ops.exp(ops.mul(logvar, 0.5)), temperature))

    def _settings(self, seed: int, temperature: float | None, options: Mapping[str, Any]) -> decoding.GenerationOptions:
        """Temperature 0 is the most probable piece at each step, another one samples."""
        merged = self.options | dict(options) | {"seed": seed}
        if str(merged.get("num_return_sequences", 1)) != "1":
            raise InputError("num_return_sequences: each draw of a code gives one sentence; say how many with n (--n)")
        settings = decoding.GenerationOptions.parse(merged if temperature is None else merged | {"temperature": temperature})
        if temperature is None:
            needed = not self.config.model.latent_size and settings.num_beams == 1  # without a code nothing else is drawn
            temperature = float(settings.do_sample if "do_sample" in merged else needed)
        else:
            temperature = settings.temperature
        if "do_sample" in merged and settings.do_sample != (temperature > 0):
            raise InputError(
                f"do_sample = {settings.do_sample}, but temperature = {temperature}: above 0 it samples, 0 does not"
            )
        if temperature > 0 and settings.num_beams > 1:
            raise InputError(f"temperature = {temperature}: above 0 it samples, which excludes num_beams > 1")
        settings = msgspec.structs.replace(settings, temperature=temperature, do_sample=temperature > 0)
        settings.check_sampling()
        return settings

    def _draws(
        self,
        first: int,
        count: int,
        settings: decoding.GenerationOptions,
        around: "_Around | None" = None,
    ) -> list[Result]:
        """The sentences of draws first, first + 1, ... of z; each depends on the seed and its number alone."""
        z = self.model.prior(count, settings.seed, first)
        if around is not None:
            z = ops.add(ops.mul(z, around.deviation), around.mu)
        return self._write(z, settings, range(first, first + count))

    def _write(self, z: Any, settings: decoding.GenerationOptions, streams: Sequence[int] | None = None) -> list[Result]:
        """The sentence of each code F (N, D)."""
        tokenizer, state = self.tokenizer, self.model.start(z)
        constraints = decoding.Constraints.of_texts(settings, tokenizer, len(z), forbid=self._forbidden)
        ends = tokenizer.bos_id, tokenizer.eos_id
        found = decoding.generate(self.model, state, len(z), settings, *ends, constraints, streams)
        texts = tokenizer.decode([hypotheses[0].ids for hypotheses in found])
        return [_result(text, best) for text, (best, *_) in zip(texts, found, strict=True)]

    def decode(self, z: Any, temperature: float | None = None, seed: int = 0, **options: Any) -> list[Result]:
        """A sentence for each code F (N, D), each by itself."""
        settings = self._settings(seed, temperature, options)
        parts = [self._write(z[start : start + _AT_ONCE], settings) for start in range(0, len(z), _AT_ONCE)]
        return [result for part in parts for result in part]

    def confidence(self, texts: Sequence[str]) -> list[Result]:
        """How usual each text is to the model: score is the share of validation sentences that are less so, for their length.

        extra: nats (importance-weighted) and tokens. A text dearer than 99 % of the validation's is out_of_domain. InputError
        for a model that was trained without validation sentences.
        """
        if not self.config.calibration:
            raise InputError("this model is not calibrated: it was trained without validation sentences")
        calibration = evaluation.Calibration(**self.config.calibration)
        items = self.tokenizer.encode(texts)
        results = []
        for text, ids, nats in zip(texts, items, self._nats(items), strict=True):
            score = calibration.confidence(nats, len(ids) + 1)
            unusual = calibration.deviation(nats, len(ids) + 1) > calibration.quantiles[round(100 * (1 - _UNUSUAL))]
            extra = {"nats": nats, "tokens": len(ids) + 1, "deviation": calibration.deviation(nats, len(ids) + 1)}
            results.append(Result(text, score, warnings=("out_of_domain",) if unusual else (), extra=extra))
        return results

    def _nats(self, items: Sequence[Sequence[int]]) -> list[float]:
        values: list[float] = evaluation.sentence_nll(self.model, items, _CONFIDENCE_SAMPLES).tolist()
        return values

    def answer(self, inputs: Sequence[str], n: int = 1, **options: Any) -> list[Result]:
        """For each prompt (it may be empty) a sentence that begins so; with n > 1 the others are its alternatives."""
        results = []
        for prompt in inputs:
            if not isinstance(prompt, str):
                raise InputError(f"a prompt must be a str, not {type(prompt).__name__}")
            first, *others = self.generate(n, prompt=prompt, **options) or [Result(prompt)]
            results.append(Result(first.text, first.score, tuple(others), first.warnings))
        return results

    def evaluate(self, examples: Sequence[str], importance_samples: int = 0, **options: Any) -> dict[str, float | str]:
        """-ELBO and its parts (nats per sentence), active units, mutual information; how many of 20 draws are distinct.

        importance_samples: draws per sentence for an estimate of the likelihood (0: none). Others: as for ``generate``.
        """
        items = self._whole(examples)
        if not items:
            raise InputError("no sentence to evaluate on")
        if not isinstance(importance_samples, int) or importance_samples < 0:
            raise InputError(f"importance_samples must be 0 or a whole number above, not {importance_samples!r}")
        report = evaluation.evaluate_vae(self.model, items, importance_samples=importance_samples)
        figures: dict[str, float | str] = {
            name: value for name, value in report.to_dict().items() if isinstance(value, (int, float))
        }
        return figures | {"distinct_of_20": self._distinct(20, **options)}

    def _distinct(self, draws: int, seed: int = 0, temperature: float | None = None, **options: Any) -> int:
        """How many different sentences so many draws of z give."""
        return len({result.text for result in self._draws(0, draws, self._settings(seed, temperature, options))})


@dataclass(frozen=True)
class _Around:
    """Where `--like` draws from: mu and deviation F (D,)."""

    mu: Any
    deviation: Any


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, at even distances."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)


def _result(text: str, best: decoding.Hypothesis) -> Result:
    warnings = [name for name, given in (("repetition", best.repeating), ("truncated", not best.finished)) if given]
    return Result(text, best.confidence, warnings=tuple(warnings))

"""Generation: a text VAE learns sentences; a draw of its latent code, decoded, is a new one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import decoding, evaluation
from rheme.errors import InputError
from rheme.models.text_vae import TextVAE, TextVAEConfig
from rheme.tasks import Result, Task
from rheme.text import batches
from rheme.text.tokenizer import Tokenizer

Ids = NDArray[np.int64]

_DRAWS = 32  # sentences decoded together
_MOST_DRAWS = 50  # for each sentence asked for, before giving up on distinct ones


class GenerationConfig(msgspec.Struct, kw_only=True):
    """vocab_size: pieces. max_train_length: longer sentences (in pieces) are left out of training."""

    languages: list[str] = msgspec.field(default_factory=lambda: ["en"])
    vocab_size: int = 4000
    normalization: str = "nmt_nfkc"
    max_train_length: int = 60
    model: TextVAEConfig = msgspec.field(default_factory=TextVAEConfig)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_train_length"):
            if getattr(self, name) < 4:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 4")


class Generation(Task):
    """Write new sentences like those it was trained on."""

    name: ClassVar[str] = "generation"
    Config: ClassVar[type[msgspec.Struct]] = GenerationConfig
    pipeline_tag: ClassVar[str] = "text-generation"
    pipeline_key: ClassVar[str] = "generated_text"

    config: GenerationConfig
    model: TextVAE
    tokenizer: Tokenizer

    def __init__(self, config: GenerationConfig | None = None) -> None:
        super().__init__(config)
        self.options = {"max_new_tokens": 60}

    def read(self, paths: Any, fields: Sequence[str] | None = None) -> list[str]:
        """Sentences, each once: the lines of a file, or one column of a TSV (the first, or fields=["2"]), or a JSON field."""
        if fields is not None and len(fields) != 1:
            raise InputError(f"generation reads one field, not {len(fields)}: {', '.join(fields)}")
        return list(dict.fromkeys(super().read(paths, fields)))

    def setup(self, examples: Sequence[str]) -> None:
        """Train the tokenizer, then build the model."""
        self.tokenizer = Tokenizer.train(examples, self.config.vocab_size, normalization=self.config.normalization)
        self.build()

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

    def size(self, item: NDArray[np.int32]) -> int:
        """With the end."""
        return len(item) + 1

    def _batch(self, items: Sequence[NDArray[np.int32]]) -> tuple[Ids, Ids]:
        bos, eos = [self.tokenizer.bos_id], [self.tokenizer.eos_id]
        ids_in, _ = batches.pad([np.concatenate((bos, ids)) for ids in items], self.tokenizer.pad_id)
        ids_out, _ = batches.pad([np.concatenate((ids, eos)) for ids in items], -1)
        return ids_in, ids_out

    def loss(self, items: Sequence[NDArray[np.int32]], step_seed: int) -> tuple[Any, int, dict[str, float]]:
        """Summed -ELBO of the sentences (beta and free bits as the model's config says), counted in pieces."""
        return self.model.loss(*self._batch(items), seed=step_seed)

    # Use -------------------------------------------------------------------------------------------------------------------

    def generate(
        self, count: int = 5, seed: int = 0, prompt: str | None = None, temperature: float = 0.0, **options: Any
    ) -> list[Result]:
        """``count`` sentences, all different, from draws of z from the prior; the same seed gives the same ones.

        prompt: how each begins. temperature 0 takes the most probable piece at each step, so that only z makes a difference.
        Fewer come back when the model has no more to say.
        """
        if count < 1:
            raise InputError(f"n = {count}: must be at least 1")
        settings = self._settings(seed, temperature, options)
        start = self.tokenizer.encode([prompt])[0] if prompt and prompt.strip() else []
        results: dict[str, Result] = {}
        for first in range(0, _MOST_DRAWS * count + _DRAWS, _DRAWS):
            for result in self._draws(first, _DRAWS, settings, start):
                if result.text:
                    results.setdefault(result.text, result)
                if len(results) == count:
                    return list(results.values())
        return list(results.values())

    def _settings(self, seed: int, temperature: float, options: Mapping[str, Any]) -> decoding.GenerationOptions:
        """Temperature 0 is the most probable piece at each step, another one samples."""
        settings = decoding.GenerationOptions.parse(self.options | dict(options) | {"seed": seed, "temperature": temperature})
        sampled = temperature > 0 and settings.num_beams == 1
        return msgspec.structs.replace(settings, do_sample=sampled)

    def _draws(self, first: int, count: int, settings: decoding.GenerationOptions, start: list[int]) -> list[Result]:
        """The sentences of draws first, first + 1, ... of z; each depends on the seed and its number alone."""
        tokenizer = self.tokenizer
        state = self.model.start(self.model.prior(count, settings.seed, first))
        constraints = decoding.Constraints(forbid=self._forbidden, prefixes=[start] * count if start else None)
        streams = range(first, first + count)
        found = decoding.generate(self.model, state, count, settings, tokenizer.bos_id, tokenizer.eos_id, constraints, streams)
        texts = tokenizer.decode([hypotheses[0].ids for hypotheses in found])
        return [_result(text, best) for text, (best, *_) in zip(texts, found, strict=True)]

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
        items = self.encode_all(examples)
        if not items:
            raise InputError("no sentence to evaluate on")
        report = evaluation.evaluate_vae(self.model, [ids.tolist() for ids in items], importance_samples=importance_samples)
        figures: dict[str, float | str] = {
            name: value for name, value in report.to_dict().items() if isinstance(value, (int, float))
        }
        return figures | {"distinct_of_20": self._distinct(20, **options)}

    def _distinct(self, draws: int, **options: Any) -> int:
        """How many different sentences so many draws of z give."""
        return len({result.text for result in self._draws(0, draws, self._settings(0, 0.0, options), [])})


def _result(text: str, best: decoding.Hypothesis) -> Result:
    score = math.exp(min(0.0, best.score / max(len(best.token_scores), 1)))
    warnings = [name for name, given in (("repetition", best.repeating), ("truncated", not best.finished)) if given]
    return Result(text, score, warnings=tuple(warnings))

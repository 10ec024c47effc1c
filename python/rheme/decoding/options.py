"""How to write a text: the options of decoding, by Hugging Face's names."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import msgspec

from rheme.errors import InputError

_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_MOST_TOKENS = 1_000_000  # pieces of a text: its random bits are held for all of them
_TEXTS = ("stop", "forbid", "require")  # each one or several strings


class GenerationOptions(msgspec.Struct, kw_only=True, frozen=True):
    """How to write a text; the names are Hugging Face's.

    num_beams 1 is greedy, or sampling with do_sample. temperature, top_k (0: all), top_p and min_p shape what is sampled from.
    min_new_tokens: no end before so many pieces, as long as anything else may be written.
    repetition_penalty (Keskar et al. 2019) lowers pieces that were already written, no_repeat_ngram_size n forbids a piece that
    would complete n pieces a second time. length_penalty p: beams are ranked by score / length**p. coverage_penalty b (Wu et
    al. 2016), of models that attend to a source: finished texts of a beam search gain b * sum over the source of
    log(min(attention received, 1)), so that those that leave a part of it out fall behind; with coverage "once", for summaries,
    they lose b * the attention received beyond 1, so that those that read a part of it twice do. early_stopping: end a beam
    search with the first num_beams finished texts. stop: a text ends with the piece that completes one of these strings behind
    the prefix.

    forbid: words or phrases that are not to be written, in whatever case. require: words or phrases that must be. prefix: how
    the text begins. See `Constraints.of_texts`.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    coverage: Literal["all", "once"] = "all"
    early_stopping: bool = False
    seed: int = 0
    stop: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    prefix: str = ""

    def __post_init__(self) -> None:
        least = {
            "max_new_tokens": 1,
            "min_new_tokens": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "top_k": 0,
            "no_repeat_ngram_size": 0,
            "seed": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least {low}")
        for name, fits in (
            ("max_new_tokens", self.max_new_tokens <= _MOST_TOKENS),
            ("top_k", self.top_k < 2**31),
            ("temperature", 0 <= self.temperature < math.inf),
            ("top_p", 0 < self.top_p <= 1),
            ("min_p", 0 <= self.min_p <= 1),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf),
            ("length_penalty", abs(self.length_penalty) <= 10),  # a text's length to this power must be a number
            ("coverage_penalty", 0 <= self.coverage_penalty < math.inf),
            ("seed", self.seed < 2**64),
        ):
            if not fits:
                raise InputError(f"{name} = {getattr(self, name)}: out of its range")
        for name in ("forbid", "require"):
            if not all(text.strip() for text in getattr(self, name)):
                raise InputError(f"{name}: an empty text")
        if "" in self.stop:
            raise InputError("stop: an empty text")
        for name, texts in (*((name, getattr(self, name)) for name in _TEXTS), ("prefix", (self.prefix,))):
            for text in texts:
                if any("\ud800" <= char <= "\udfff" for char in text):
                    raise InputError(f"{name}: {text!r} holds a lone surrogate, which is no character")
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(f"min_new_tokens = {self.min_new_tokens}: more than max_new_tokens = {self.max_new_tokens}")
        if self.do_sample and self.num_beams > 1:
            raise InputError("do_sample and num_beams > 1 exclude each other: give one of them")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise InputError(f"num_return_sequences = {self.num_return_sequences} needs do_sample or as many beams as that")

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Options from plain values, strings allowed. InputError for a wrong value, or an unknown name with the nearest one."""
        names = cls.__struct_fields__
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in names:
                import difflib  # only mistakes need it

                close = difflib.get_close_matches(name, names, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise InputError(f"unknown generation option {name!r}{hint}; there are: {', '.join(names)}")
            values[name] = [value] if name in _TEXTS and isinstance(value, str) else value
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as error:
            raise InputError(f"generation options: {str(error).replace('$.', '')}") from None

    def check_sampling(self) -> None:
        """InputError for options of sampling where nothing is sampled, so that none is passed over."""
        idle = [name for name in _OF_SAMPLING if getattr(self, name) != getattr(GenerationOptions(), name)]
        idle = [name for name in idle if name != "temperature" or self.temperature]  # at 0 it says that nothing is sampled
        if idle and not self.do_sample:
            raise InputError(f"{', '.join(idle)}: for sampling alone; set do_sample=true, and num_beams=1")

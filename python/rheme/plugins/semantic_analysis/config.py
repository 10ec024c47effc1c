"""The settings of semantic analysis: what is learnt and how a text is read, what was fitted, and the options of an answer."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from rheme.errors import InputError
from rheme.models.classifier import ClassifierConfig
from rheme.tasks import configure


class Calibration(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was fitted on the validation examples.

    thresholds: a probability an output, at or above which a text has that label (several labels a text); at_least_one: a text
    that reaches none has the most probable one. scope_threshold: the confidence below which a text is out of scope.
    """

    temperature: float = 1.0
    thresholds: list[float] = []
    at_least_one: bool = False
    scope_threshold: float = 0.0


class SemanticAnalysisConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is learnt, and how a text is read.

    multi_label: several labels a text, divided by `separator`. groups: further outputs, each the presence of one of some
    labels, such as positive and negative (with one label a text their probabilities are sums, and the support vector machine
    learns the groups, too); group_name is what they are together. class_weights: each label counts by its
    frequency to the power of minus this (0: alike; 1: all labels together the same); `weights` are then found by training, as
    are `labels` and `score_range` (the least and the largest score of the pairs). out_of_scope: the label of texts that
    belong to none. label_smoothing: share of a label's weight spread over all
    (one label a text).
    unlabelled: files of text, a line each, from which, with the texts trained on, the embedding begins
    (`text.cooccurrence`); only their names are kept.
    unlabelled_label: of examples without a label, from which the n-grams, naive Bayes beside the support vector machine and
    the VAE (model.latent_size above 0) learn.
    max_features: n-grams of the linear branch, from those in min_count texts; word_ngrams, char_ngrams: their lengths.
    margin_penalty: of the support vector machine that is added to the linear branch at the end of a training, as much of it as
    the validation examples ask for (`models.linear`; 0: none). opening_words: where the validation examples agree, the machine
    also sees the first word of a text, the first two together, and so on up to so many (0: never); questions are told by them.
    refit: once all is chosen and measured, fit the machine again to the validation examples as well, so that they are not lost;
    then they can no longer tell how good the model is, only the figures from before can.
    max_length: pieces of a text that the LSTM reads; the bag holds all of it. output_size: of a sentence code.
    """

    objective: Literal["labels", "similarity", "paraphrases"] = "labels"
    languages: list[str] = msgspec.field(default_factory=lambda: ["en"])
    labels: list[str] = []
    multi_label: bool = False
    separator: str = ","
    groups: dict[str, list[str]] = {}
    group_name: str = "sentiment"
    class_weights: float = 0.0
    weights: list[float] = []
    score_range: tuple[float, float] = (0.0, 0.0)
    out_of_scope: str = ""
    label_smoothing: float = 0.1
    output_size: int = 64
    unlabelled: list[str] = []
    unlabelled_label: str = "?"
    vocab_size: int = 8000
    normalization: str = "nmt_nfkc_cf"
    max_features: int = 50_000
    min_count: int = 2
    word_ngrams: int = 2
    char_ngrams: tuple[int, int] = (2, 5)
    margin_penalty: float = 1.0
    opening_words: int = 0
    refit: bool = False
    max_length: int = 256
    calibration: Calibration = msgspec.field(default_factory=Calibration)
    model: ClassifierConfig = msgspec.field(default_factory=ClassifierConfig)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "output_size", "min_count"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("label_smoothing", "class_weights"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be from 0 to 1")
        if not self.margin_penalty >= 0:
            raise InputError(f"margin_penalty = {self.margin_penalty}: must be at least 0")
        if min(self.max_features, self.word_ngrams, self.opening_words) < 0 or self.char_ngrams[0] > self.char_ngrams[1]:
            raise InputError(
                "max_features, word_ngrams and opening_words must be at least 0, and char_ngrams the shortest and the longest"
            )

    @property
    def outputs(self) -> list[str]:
        """Names of the model's outputs: the labels, then with several labels a text the groups."""
        return [*self.labels, *(self.groups if self.multi_label else ())]


class AnalysisOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The options of an answer."""

    min_confidence: float = 0.0
    top_k: int = 3
    keywords: int = 5
    objective: str = "labels"  # what load() was asked for

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "AnalysisOptions":
        """InputError for an unknown or impossible one."""
        options: AnalysisOptions = configure(cls, values, "options")
        if not 0 <= options.min_confidence <= 1:
            raise InputError(f"min_confidence = {options.min_confidence}: must be from 0 to 1")
        for name in ("top_k", "keywords"):
            if getattr(options, name) < 0:
                raise InputError(f"{name} = {getattr(options, name)}: must be at least 0")
        return options

"""Semantic analysis: labels of texts with calibrated probabilities, keywords, the language, and how similar two texts are.

Any labelled file trains it: single labels, several labels a text (``multi_label``), scored pairs of texts (``objective``
"similarity") or plain pairs that mean the same ("paraphrases"). Temperature, thresholds and the bounds of what is in scope are
found on the validation examples, at the end of a training.
"""

import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import calibration, metrics, ops
from rheme import functional as F
from rheme.autograd import no_grad
from rheme.errors import InputError
from rheme.models.classifier import TextClassifier, pad_bags, softplus
from rheme.models.semi_supervised import SemiSupervisedClassifier
from rheme.plugins.semantic_analysis import additions, measuring
from rheme.plugins.semantic_analysis.config import AnalysisOptions, Calibration, SemanticAnalysisConfig
from rheme.tasks import Result, Task, nearest
from rheme.text import batches, language, readers
from rheme.text.cooccurrence import piece_vectors
from rheme.text.features import Bag, Features, PiecesAndFeatures
from rheme.text.tokenizer import Tokenizer
from rheme.text.words import UNSPACED

Array = NDArray[Any]
Encoded = tuple[NDArray[np.int32], Bag]

_BATCH_TOKENS = 6000
_LOW = 0.5  # the probability of the best single label below which an answer carries low_confidence
_MOST_MORE = 100_000  # unlabelled lines that the tokenizer learns from, if the labelled texts are fewer
_PRIOR = 100.0  # of the thresholds of several labels; found by splitting validation texts in two
_TEMPERATURE = 20.0  # what cosines are multiplied with before the softmax over a batch's paraphrases


class SemanticAnalysis(Task):
    """Label texts, and tell how similar they are."""

    name: ClassVar[str] = "semantic-analysis"
    Config: ClassVar[type[msgspec.Struct]] = SemanticAnalysisConfig
    fields: ClassVar[tuple[str, ...]] = ("text", "label")
    writes: ClassVar[tuple[str, ...]] = ("confusion.tsv", "confusion.png")
    adaptable: ClassVar[tuple[str, ...]] = (
        *("objective", "languages", "labels", "multi_label", "separator", "groups", "group_name", "class_weights", "weights"),
        *("score_range", "out_of_scope", "label_smoothing", "output_size", "max_features", "min_count", "word_ngrams"),
        *("char_ngrams", "opening_words", "margin_penalty", "refit", "max_length", "model", "unlabelled", "unlabelled_label"),
    )
    training: ClassVar[Mapping[str, Any]] = {"max_epochs": 5, "ema_decay": 0.998, "warmup_steps": 50, "patience": 2}
    valid_share: ClassVar[float] = 0.1  # temperature, thresholds and the linear models' shares are found on it
    pipeline_tag: ClassVar[str] = "text-classification"
    pipeline_key: ClassVar[str] = "label"

    config: SemanticAnalysisConfig
    model: TextClassifier
    tokenizer: PiecesAndFeatures

    # Data ------------------------------------------------------------------------------------------------------------------

    @classmethod
    def serves(cls, config: Mapping[str, Any], **options: Any) -> bool:
        """``objective``: "labels", or "similarity" for any model of sentence codes."""
        asked = options.get("objective")
        return asked is None or (asked == "labels") == (config.get("objective", "labels") == "labels")

    @property
    def _pairs(self) -> bool:
        return self.config.objective != "labels"

    def read(self, paths: Any, fields: Sequence[str] | None = None) -> list[tuple[str, ...]]:
        """(text, label) rows, or pairs of texts with a score. In JSON lines several labels may stand as a list.

        fields: columns by number, or by the names in a TSV's first line, or keys of JSON lines.
        """
        default = {"labels": self.fields, "similarity": ("text_a", "text_b", "score"), "paraphrases": ("text_a", "text_b")}
        wanted = default[self.config.objective]
        if fields is not None and len(fields) != len(wanted):
            raise InputError(f"{len(wanted)} fields are needed ({', '.join(wanted)}), not {len(fields)}: {', '.join(fields)}")
        separator = self.config.separator if self.config.multi_label else None
        rows: list[tuple[str, ...]] = []
        for path in [paths] if isinstance(paths, str | Path) else paths:
            rows += readers.read_records(path, fields or wanted, fields is not None, list_separator=separator)
        if self.config.objective == "similarity":
            for row in rows:
                _score(row[2])
        return rows

    def split(self, examples: Sequence[Any], share: float, salt: str = "") -> tuple[list[Any], list[Any]]:
        """By a hash of the first text; of pairs, neither text stands on both sides."""
        return readers.split_by_hash(examples, share, 2 if self._pairs else 1, salt)

    def _labels_of(self, text: str) -> list[str]:
        if not self.config.multi_label:
            return [text]
        return [label for part in text.split(self.config.separator) if (label := part.strip())]

    def _targets(self, examples: Sequence[tuple[str, ...]]) -> Array:
        """uint8 (N, outputs); labels that are not known are left out."""
        config = self.config
        places = {label: place for place, label in enumerate(config.labels)}
        groups = [(len(places) + k, set(members)) for k, members in enumerate(config.groups.values())]
        targets = np.zeros((len(examples), len(config.outputs)), np.uint8)
        for row, example in zip(targets, examples, strict=True):
            found = self._labels_of(example[1])
            row[[places[label] for label in found if label in places]] = 1
            if config.multi_label:
                row[[place for place, members in groups if members & set(found)]] = 1
        return targets

    # Training --------------------------------------------------------------------------------------------------------------

    def setup(self, examples: Sequence[tuple[str, ...]]) -> None:
        """Find the labels, train the tokenizer, keep the n-grams, then build the model."""
        config = self.config
        texts = [text for example in examples for text in example[: 2 if self._pairs else 1]]
        more = [line for path in config.unlabelled for line in readers.read_lines(path) if line.strip()]
        some = more[:: max(1, len(more) // max(len(texts), _MOST_MORE))]
        pieces = Tokenizer.train([*texts, *some], config.vocab_size, normalization=config.normalization)
        self.tokenizer = PiecesAndFeatures(pieces, self._features(texts))
        self._find_labels(examples)
        self.build()
        if config.model.hidden_size and (more or not self._pairs):
            width = config.model.embedding_size
            self.model.embedding.weight.data[...] = piece_vectors(pieces.encode([*texts, *more]), len(pieces), width)
        config.unlabelled = [Path(path).name for path in config.unlabelled]
        self._start_at_frequencies(examples)

    def adapt(self, examples: Sequence[tuple[str, ...]]) -> None:
        """Begin from another model's reading of texts: keep pieces, embedding and LSTM; n-grams and outputs are new."""
        texts = [text for example in examples for text in example[: 2 if self._pairs else 1]]
        before = self.model.state_dict()
        self.tokenizer = PiecesAndFeatures(self.tokenizer.pieces, self._features(texts))
        self.config.calibration = Calibration()
        self._find_labels(examples)
        self.build()
        state = self.model.state_dict()
        kept = {name: before[name] for name in state if name.startswith(("embedding.", "lstm.", "inner.")) and name in before}
        self.model.load_state_dict({**state, **kept})
        self._start_at_frequencies(examples)

    def _start_at_frequencies(self, examples: Sequence[tuple[str, ...]]) -> None:
        """Let the output begin with each label as probable as it is frequent."""
        if self._pairs:
            return
        targets = self._targets(examples)
        for k, count in enumerate(np.count_nonzero(targets, axis=0).tolist()):
            share = (count + 0.5) / (len(targets) + 1.0)
            self.model.output_bias.data[k] = math.log(share / (1.0 - share) if self.config.multi_label else share)

    def _features(self, texts: Sequence[str]) -> Features:
        config = self.config
        size = config.max_features if config.model.bag else 0
        return Features.train(texts, size, config.min_count, config.word_ngrams, config.char_ngrams)

    def _find_labels(self, examples: Sequence[tuple[str, ...]]) -> None:
        config = self.config
        if config.objective == "similarity" and examples:
            scores = [_score(example[2]) for example in examples]
            config.score_range = (min(scores), max(scores))
            if config.score_range[0] == config.score_range[1]:
                raise InputError(f"every pair has the score {scores[0]:g}: there is nothing to learn from")
        if self._pairs:
            return
        counts = Counter(label for example in examples for label in self._labels_of(example[1]))
        for label in (config.out_of_scope, config.unlabelled_label):
            counts.pop(label, None)
        if len(counts) < 2:
            raise InputError(f"{len(counts)} label in {len(examples)} examples ({', '.join(counts) or 'none'}): 2 are needed")
        if len(counts) > max(20, len(examples) // 2):
            example = next(iter(counts))
            raise InputError(
                f"{len(counts)} different labels in {len(examples)} examples, such as {example[:40]!r}: is this the column of "
                "the labels (--fields)? Several labels a text need task.multi_label=true"
            )
        config.labels = sorted(counts)
        mean = len(counts) / sum(count ** (1.0 - config.class_weights) for count in counts.values())
        total = sum(counts.values()) / len(counts)
        config.weights = (
            [total * mean * counts[label] ** -config.class_weights for label in config.labels] if config.class_weights else []
        )
        for group, members in config.groups.items():
            for label in members:
                if label not in counts:
                    raise InputError(f"groups: {group} has {label!r}, which is no label{nearest(label, counts)}")

    def build(self) -> None:
        """The model, with as many outputs as labels and groups."""
        outputs = self.config.output_size if self._pairs else len(self.config.outputs)
        pieces = self.tokenizer.pieces
        sizes = (self.config.model, len(pieces), self.tokenizer.rows, outputs, pieces.unk_id)
        if not self.config.model.latent_size:
            self.model = TextClassifier(*sizes)
        elif self._pairs or self.config.multi_label or self.config.out_of_scope:
            raise InputError("model.latent_size: the VAE beside the classifier takes one label a text, and none out of scope")
        else:
            self.model = SemiSupervisedClassifier(*sizes, pieces.eos_id)

    def read_tokenizer(self, data: bytes) -> PiecesAndFeatures:
        """Pieces and n-grams, from one file."""
        return PiecesAndFeatures.load(data)

    def encode_all(self, examples: Sequence[tuple[str, ...]]) -> list[Any]:
        """(text, target) items; an example without a known label is left out."""
        texts = self.tokenizer.encode([example[0] for example in examples], self.config.max_length)
        if self._pairs:
            others = self.tokenizer.encode([example[1] for example in examples], self.config.max_length)
            scores = [self._scaled(_score(example[2])) if len(example) > 2 else 1.0 for example in examples]
            return list(zip(texts, others, scores, strict=True))
        targets = self._targets(examples)
        if not self.config.multi_label:
            outside = self.config.out_of_scope
            return [
                (t, y) for t, y, e in zip(texts, targets, examples, strict=True) if y.any() or (outside and e[1] == outside)
            ]
        return list(zip(texts, targets, strict=True))

    def _balanced(self, items: list[Any]) -> list[Any]:
        """Labelled items as often as it takes for them to be a third of all."""
        labelled = [item for item in items if item[1].any()]
        others = len(items) - len(labelled)
        return items + labelled * max(0, others // (2 * max(1, len(labelled))) - 1)

    def encode(self, example: tuple[str, ...]) -> Any:
        """One item of `encode_all`."""
        return self.encode_all([example])[0]

    def size(self, item: Any) -> int:
        """Pieces of its texts."""
        return len(item[0][0]) + (len(item[1][0]) if self._pairs else 0)

    def _labelled(self, examples: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [example for example in examples if self._pairs or example[1] != self.config.unlabelled_label]

    def _arrays(self, texts: Sequence[Encoded]) -> tuple[Array, Array, Array, Array]:
        """Pieces (T, N), their lengths (N,), rows of n-grams and their weights (K, N)."""
        ids, lengths = batches.pad([text[0].astype(np.int64) for text in texts], self.tokenizer.pieces.pad_id)
        return ids, lengths, *pad_bags([text[1] for text in texts])

    def _forward(self, texts: Sequence[Encoded], seed: int = 0) -> Any:
        return self.model(*self._arrays(texts), seed=seed)

    def loss(self, items: Sequence[Any], step_seed: int) -> tuple[Any, int, dict[str, float]]:
        """Summed over the texts: cross-entropy, one with yes or no for each label, or the losses of pairs."""
        if self._pairs:
            return self._pair_loss(items, step_seed)
        targets = np.stack([item[1] for item in items]).astype(np.float32)
        if isinstance(self.model, SemiSupervisedClassifier) and self.model.training:
            supervised, elbo = self.model.terms(*self._arrays([item[0] for item in items]), targets, step_seed)
            info = {"neg_elbo": elbo.item() / len(items)}
            return F.add(supervised, F.mul(elbo, self.config.model.elbo_weight)), len(items), info
        if isinstance(self.model, SemiSupervisedClassifier):
            items = [item for item in items if item[1].any()]
            targets = targets[targets.any(axis=1)]
            if not items:
                return F.as_tensor(np.zeros((), np.float32)), 0, {}
        logits = self._forward([item[0] for item in items], step_seed)
        weights = self._class_weights()
        if self.config.multi_label:
            loss = F.sub(softplus(logits), F.mul(logits, targets))
            if weights is not None:
                loss = F.mul(loss, np.where(targets > 0, weights, np.float32(1)))
            return F.sum(loss), len(items), {}
        smoothing = self.config.label_smoothing if self.model.training else 0.0
        share = np.float32(1.0 / targets.shape[1])
        none = ~(targets > 0).any(axis=1, keepdims=True)  # out of scope: every label alike
        soft = np.where(none, share, targets * np.float32(1.0 - smoothing) + share * np.float32(smoothing))
        if weights is not None:
            soft = soft * np.where(none, np.float32(1), weights[targets.argmax(axis=1)][:, None])
        return F.neg(F.sum(F.mul(F.log_softmax(logits), soft))), len(items), {}

    def _class_weights(self) -> Array | None:
        """What a label counts in the loss; the groups count 1."""
        if not self.config.weights:
            return None
        groups = len(self.config.outputs) - len(self.config.labels)
        return np.array([*self.config.weights, *[1.0] * groups], np.float32)

    def _scaled(self, score: float) -> float:
        low, high = self.config.score_range
        return (score - low) / (high - low)

    def _pair_loss(self, items: Sequence[Any], step_seed: int) -> tuple[Any, int, dict[str, float]]:
        codes = _unit(self._forward([item[0] for item in items] + [item[1] for item in items], step_seed))
        first, second = codes[: len(items)], codes[len(items) :]
        if self.config.objective == "similarity":
            cosine = F.sum(F.mul(first, second), axis=1)
            error = F.sub(cosine, np.array([item[2] for item in items], np.float32))
            return F.sum(F.mul(error, error)), len(items), {}
        scores = F.mul(F.matmul(first, second, transpose_b=True), _TEMPERATURE)
        same = np.eye(len(items), dtype=np.float32)
        both = F.add(F.mul(F.log_softmax(scores), same), F.mul(F.log_softmax(F.transpose(scores)), same))
        return F.mul(F.sum(both), -0.5), len(items), {}

    def finish(self, train: Sequence[tuple[str, ...]], valid: Sequence[tuple[str, ...]]) -> None:
        """Add linear models that are fitted at once to the linear branch, as much of each as makes validation likeliest.

        A support vector machine; where there are texts without a label, also naive Bayes, which learns from them. Without
        validation examples none: on the texts it was fitted to, either is nearly always right.
        """
        config = self.config
        if self._pairs or not config.model.bag or not config.margin_penalty:
            return
        labelled, valid = self._labelled(train), self._labelled(valid)
        valid = [row for row in valid if config.multi_label or self._targets([row]).any()]
        if not valid:
            return
        known, held = self._texts_and_targets(labelled), self._texts_and_targets(valid)
        found = additions.support_vectors(config, self.tokenizer, known, held, self._logits(held.texts), self._class_weights())
        self.tokenizer = found.tokenizer
        self.model.add_linear(found.addition.weights, found.addition.bias)
        self._added = (found, known, held) if config.refit else None
        if config.groups and not config.multi_label:
            addition = additions.group_vectors(config, found, known, held, self._logits(held.texts))
            self.model.add_linear(addition.weights, addition.bias)
        if len(labelled) < len(train) and not config.multi_label and not config.out_of_scope:
            every = self._texts_and_targets(train)
            addition = additions.naive_bayes(config, self.tokenizer, every, held, self._logits(held.texts))
            self.model.add_linear(addition.weights, addition.bias)

    def _texts_and_targets(self, examples: Sequence[tuple[str, ...]]) -> additions.Labelled:
        return additions.Labelled([example[0] for example in examples], self._targets(examples))

    def calibrate(self, examples: Sequence[tuple[str, ...]]) -> None:
        """Fit what turns logits into probabilities and decisions, on the validation examples."""
        config, examples = self.config, self._labelled(examples)
        if self._pairs or not examples:
            return
        fitted = config.calibration = Calibration()
        logits, targets = self._logits([example[0] for example in examples]), self._targets(examples)
        known = targets.any(axis=1)
        fitted.temperature = calibration.fit_temperature(logits[known], targets[known], config.multi_label)
        found = calibration.probabilities(logits, fitted.temperature, config.multi_label)
        if config.multi_label:
            fitted.thresholds = [
                calibration.best_threshold(found[:, k].tolist(), targets[:, k].tolist(), _PRIOR)[0]
                for k in range(len(config.outputs))
            ]
            wanted = [self._labels_of(example[1]) for example in examples]
            scores = []
            for fitted.at_least_one in (False, True):
                scores.append(metrics.macro_f1([self._decide(row) for row in found.tolist()], wanted))
            fitted.at_least_one = scores[1] > scores[0]
        elif config.out_of_scope:
            outside = [example[1] == config.out_of_scope for example in examples]
            if any(outside):
                doubt = [1.0 - float(row.max()) for row in found]
                fitted.scope_threshold = 1.0 - calibration.best_threshold(doubt, outside)[0]

        self._confusion = self.confusion(examples)

    _confusion: metrics.Confusion | None = None
    _added: tuple[additions.SupportVectors, additions.Labelled, additions.Labelled] | None = None  # until `refit`

    def confusion(self, examples: Sequence[tuple[str, ...]]) -> metrics.Confusion:
        """Wanted and found labels of labelled texts; of several labels the first wanted and the most probable one count."""
        wanted = [(self._labels_of(example[1]) or ["(none)"])[0] for example in examples]
        rows = self._probabilities(self._logits([example[0] for example in examples]))
        return metrics.Confusion.count([(self._decide(row) or ["(none)"])[0] for row in rows.tolist()], wanted)

    def conclude(self, out: Path, examples: Sequence[Any], history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Writes the confusion matrix of the validation examples, and draws it where matplotlib is installed; then `refit`."""
        if self._confusion is not None:
            self._confusion.write(out / "confusion.tsv")
            if importlib.util.find_spec("matplotlib"):
                self._confusion.write(out / "confusion.png")
        if self._added is None:
            return {}
        (found, known, held), self._added = self._added, None
        self.model.add_linear(*additions.refit(self.config, found, known + held))
        return {"fitted_after_measuring": len(held.texts)}

    # Use -------------------------------------------------------------------------------------------------------------------

    def _run(self, encoded: Sequence[Encoded], width: int) -> Array:
        """The model's outputs (N, width) for texts of any length."""
        out = np.zeros((len(encoded), width), np.float32)
        self.model.eval()
        with no_grad():
            for rows in batches.length_batches([len(text[0]) for text in encoded], _BATCH_TOKENS):
                out[rows] = ops.to_host(self._forward([encoded[k] for k in rows]).data)
        return out

    def _logits(self, texts: Sequence[str]) -> Array:
        return self._run(self.tokenizer.encode(texts, self.config.max_length), self.model.output_size)

    def _probabilities(self, logits: Array) -> Array:
        return calibration.probabilities(logits, self.config.calibration.temperature, self.config.multi_label)

    def predict_proba(self, texts: Sequence[str]) -> Array:
        """Calibrated probabilities float32 (N, labels): of the one label, or of each by itself (several labels a text)."""
        self._check("labels")
        return self._probabilities(self._logits(_checked(texts)))[:, : len(self.config.labels)]

    def codes(self, texts: Sequence[str]) -> Array:
        """Sentence codes float32 (N, output_size), each of norm 1; the product of two is how similar they are, from -1 to 1."""
        self._check("pairs")
        out = self._logits(_checked(texts))
        return _unit(out).data if len(texts) else out

    def _check(self, wanted: str) -> None:
        has = "pairs" if self._pairs else "labels"
        if wanted != has:
            raise InputError(
                "this model was trained on labels; how similar texts are asks for one trained on pairs (objective=similarity)"
                if wanted == "pairs"
                else "this model was trained on pairs of texts and knows no labels"
            )

    def similarity(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """For each pair a score from -1 to 1, near 1 where both texts mean the same."""
        codes = self.codes([text for pair in pairs for text in pair])
        return [float(value) for value in ops.sum(ops.mul(codes[0::2], codes[1::2]), axis=1)] if pairs else []

    def index(self, candidates: Sequence[str]) -> Callable[[Sequence[str], int], list[list[tuple[int, float]]]]:
        """A search among some texts, whose codes are worked out once: (texts, count) -> for each text the (index, similarity)
        of the nearest candidates, the nearest first, ties by index."""
        table = self.codes(candidates)

        def search(texts: Sequence[str], count: int = 5) -> list[list[tuple[int, float]]]:
            if not len(texts):
                return []
            scores = ops.matmul(self.codes(texts), table, transpose_b=True)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            return [[(int(k), float(row[k])) for k in places] for row, places in zip(scores, order, strict=True)]

        return search

    def neighbours(self, text: str, candidates: Sequence[str], count: int = 5) -> list[tuple[int, float]]:
        """The candidates nearest to one text: (index, similarity)."""
        return self.index(candidates)([text], count)[0] if candidates else []

    def _ranked(self, row: Sequence[float]) -> list[int]:
        """The labels' places, the most probable first, ties by place."""
        return sorted(range(len(self.config.labels)), key=row.__getitem__, reverse=True)

    def _decide(self, row: Sequence[float], ranked: list[int] | None = None) -> list[str]:
        """The labels of a text with these probabilities: several, one, or the one that says it is out of scope."""
        config, labels, fitted = self.config, self.config.labels, self.config.calibration
        ranked = ranked or self._ranked(row)
        if config.multi_label:
            thresholds = fitted.thresholds or [0.5] * len(labels)
            found = [labels[k] for k in ranked if row[k] >= thresholds[k]]
            return found or ([labels[ranked[0]]] if fitted.at_least_one else [])
        if config.out_of_scope and row[ranked[0]] < fitted.scope_threshold:
            return [config.out_of_scope]
        return [labels[ranked[0]]]

    def answer(self, inputs: Sequence[str], **options: Any) -> list[Result]:
        """The label of each text, or its labels joined by ", "; ``extra``: labels, the groups, keywords and the language.

        score: the probability of the first label; where the text has none, of the most probable one. alternatives: labels of
        the top_k most probable ones that the text does not have. extra["labels"]: both, with their probabilities.
        min_confidence: no label below it. top_k, keywords: how many.
        """
        settings = AnalysisOptions.parse(self.options | options)
        texts = _checked(inputs)
        if self._pairs:
            raise InputError(
                "this model was trained on pairs of texts; ask it for similarity(...), neighbours(...) or codes(...)"
            )
        encoded = self.tokenizer.encode(texts, self.config.max_length)
        rows = self._probabilities(self._run(encoded, self.model.output_size)).tolist()
        return [self._result(text, parts, row, settings) for text, parts, row in zip(texts, encoded, rows, strict=True)]

    def _result(self, text: str, parts: Encoded, row: list[float], settings: AnalysisOptions) -> Result:
        config, labels = self.config, self.config.labels
        if not text.strip():
            nothing: dict[str, Any] = {"labels": {}}
            if config.groups:
                nothing[config.group_name] = {"label": None, "score": None, "scores": {}}
            return Result("", warnings=("low_confidence",), extra=nothing | {"keywords": [], "language": None})
        code, order = language.identify(text), self._ranked(row)
        found = {labels[k]: row[k] for k in order}
        best = row[order[0]]  # also the confidence that a text is in scope
        chosen = [label for label in self._decide(row, order) if found.get(label, best) >= settings.min_confidence]
        warnings = []
        strange = not len(parts[1][0]) or (code is not None and config.languages and code not in config.languages)
        if strange or (config.out_of_scope and chosen == [config.out_of_scope]):
            warnings.append("out_of_domain")
        if len(parts[0]) >= config.max_length and config.model.hidden_size:
            warnings.append("truncated")
        if not chosen or (not config.multi_label and best < _LOW):
            warnings.append("low_confidence")
        shown = {label: value for n, (label, value) in enumerate(found.items()) if n < settings.top_k or label in chosen}
        extra: dict[str, Any] = {"labels": shown}
        if config.groups:
            extra[config.group_name] = self._group(row)
        extra |= {"keywords": self.keywords(text, settings.keywords, code), "language": code}
        alternatives = tuple(Result(label, value) for label, value in shown.items() if label not in chosen)
        score = found.get(chosen[0], best) if chosen else best
        return Result(", ".join(chosen), score, alternatives, tuple(warnings), extra)

    def _group(self, row: list[float]) -> dict[str, Any]:
        """The most probable group, and the probability of each."""
        config = self.config
        if config.multi_label:
            values = {name: row[len(config.labels) + k] for k, name in enumerate(config.groups)}
        else:
            place = {label: k for k, label in enumerate(config.labels)}
            values = {name: math.fsum(row[place[label]] for label in members) for name, members in config.groups.items()}
        best = max(values, key=lambda name: values[name])
        return {"label": best, "score": values[best], "scores": values}

    def keywords(self, text: str, count: int = 5, code: str | None = None) -> list[str]:
        """The words of a text that are rare in training, the rarest first, each once in the form met first; no function words.

        Where a language writes no spaces they are the tokenizer's pieces of two characters and more.
        """
        if count < 1:
            return []
        if (code or language.identify(text)) in UNSPACED:
            pieces = self.tokenizer.pieces
            words = [piece.strip("▁") for piece in pieces.pieces(pieces.encode([text])[0])]
        else:
            words = language.words(text)
        small = language.function_words(code or "en")
        words = [word for word in words if len(word) > 1 and word[0].isalpha() and word.casefold() not in small]
        forms = {word.casefold(): word for word in reversed(words)}
        counted = Counter(word.casefold() for word in words)
        rarity = self.tokenizer.features.rarity(list(counted))
        weighed = {word: value * math.sqrt(counted[word]) for word, value in zip(counted, rarity, strict=True)}
        return [forms[word] for word in sorted(weighed, key=lambda word: -weighed[word])[:count]]

    # Measuring -------------------------------------------------------------------------------------------------------------

    def evaluate(self, examples: Sequence[tuple[str, ...]], **options: Any) -> dict[str, float | str]:
        """Figures on labelled texts, or on pairs.

        One label: accuracy, macro_f1, calibration_error (expected, 15 bins) and nll; with out-of-scope texts their recall and
        the area under the ROC curve. Several labels: macro_f1, micro_f1, calibration_error (over all labels) and
        top_calibration_error (of the most probable one). Scored pairs: pearson, spearman and those of TF-IDF; paraphrases: how
        often the partner is the nearest of 100. confusion: a file for the confusion matrix (a picture, or text by tabs).
        """
        confusion = options.pop("confusion", None)
        settings = AnalysisOptions.parse(self.options | options)
        examples = self._labelled(examples)
        if not examples:
            raise InputError("no labelled examples to evaluate on")
        if self._pairs:
            texts = [text for example in examples for text in example[:2]]
            scores = [_score(example[2]) for example in examples] if len(examples[0]) > 2 else None
            return measuring.pairs(self.codes(texts), self.tokenizer.features.encode(texts), scores)
        texts, wanted = [example[0] for example in examples], [self._labels_of(example[1]) for example in examples]
        known = {*self.config.labels, self.config.out_of_scope}
        if not any(known.intersection(labels) for labels in wanted):
            raise InputError(
                f"no example has a label of this model ({', '.join(self.config.labels[:5])}, ...); the first one is labelled "
                f"{examples[0][1][:40]!r}: another model, or another column (--fields)?"
            )
        rows = self._probabilities(self._logits(texts))
        figures: dict[str, float | str] = {"texts": len(examples)}
        if self.config.multi_label:
            chosen = [self._decide(row) for row in rows.tolist()]
            figures |= measuring.many_labels(self.config, rows, self._targets(examples), chosen, wanted)
        else:
            labels = self.config.labels
            chosen = [[labels[int(row.argmax())]] for row in rows]
            figures |= measuring.one_label(
                self.config, rows, [label for (label,) in chosen], [label for (label, *_) in wanted], settings
            )
        if confusion is not None:
            self.confusion(examples).write(confusion)
        return figures


def _checked(texts: Iterable[Any]) -> list[str]:
    """The texts, each a str."""
    found = list(texts)
    for text in found:
        if not isinstance(text, str):
            raise InputError(f"a text must be a str, not {type(text).__name__}")
    return found


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"the score of a pair must be a number, not {text[:40]!r}; the columns are text_a, text_b, score (--fields)"
        )
    return value


def _unit(x: Any) -> Any:
    """Rows scaled to norm 1."""
    x = F.as_tensor(x)
    squares = F.add(F.sum(F.mul(x, x), axis=1, keepdims=True), 1e-12)
    return F.mul(x, F.exp(F.mul(F.log(squares), -0.5)))

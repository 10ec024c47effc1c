"""scikit-learn's way to the tasks: `TextClassifier` labels texts, `TextEncoder` turns them into codes and back.

Both can be cloned, searched over, pickled, and put at the end of a pipeline that ends in texts. Needs scikit-learn, the extra
`sklearn`. The same data, parameters and random_state (an int, a RandomState, or None for 0) give the same model.
"""

import numbers
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme.errors import InputError
from rheme.latent import LatentSpace
from rheme.tasks import Task, configure, get_task
from rheme.training import TrainingConfig, train

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import type_of_target
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise InputError("rheme.sklearn needs scikit-learn: pip install 'rheme[sklearn]'") from error

Array = NDArray[Any]


def _texts(X: Any) -> list[str]:
    """A list, array or column of texts, as a list. ValueError for anything else."""
    if isinstance(X, str | bytes):
        raise ValueError("X is one text; give a list of them")
    values = np.asarray(X, dtype=object)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"X must be a list of texts, not of shape {values.shape}")
    if not len(values):
        raise ValueError("Found array with 0 sample(s): no text to work on")
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"X must hold texts, not {type(value).__name__}")
    return list(values)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Parameters without NumPy's numbers, such as a search draws them."""

    def number(value: Any) -> Any:
        if not isinstance(value, np.generic):
            raise InputError(f"parameters: {value!r} is no number or text")
        return value.item()

    return dict(msgspec.to_builtins(values, enc_hook=number))


def _seed(random_state: Any) -> int:
    """None counts as 0, so that the same data and parameters give the same model; a RandomState is drawn from."""
    if random_state is None or isinstance(random_state, numbers.Integral):
        return int(random_state or 0)
    return int(check_random_state(random_state).randint(2**31))


class _TextEstimator(BaseEstimator):  # type: ignore[misc]
    """What both share: training into a folder that is gone afterwards, and pickling as the files of a model folder."""

    task_: Any

    def _train(self, task: Task, examples: list[Any], folder: str) -> None:
        settings = {
            "max_epochs": self.max_epochs,
            "learning_rate": self.learning_rate,
            "batch_tokens": self.batch_tokens,
            "ema_decay": self.ema_decay,
            "seed": _seed(self.random_state),
            "warmup_steps": 50,
            "patience": 0,
            "evaluate": True,
            "checkpoint_every_seconds": 1e9,
            "save_dtype": "float32",
        }
        config = configure(TrainingConfig, _plain(settings), "parameters")
        train_part, valid_part = task.split(examples, self.validation_fraction)
        if not train_part:
            train_part, valid_part = examples, []
        train(task, train_part, valid_part, Path(folder) / "model", config, echo=_silent)
        self.task_ = type(task).restore(Path(folder) / "model")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.no_validation = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "task_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = state["task_"].save(Path(folder) / "model")
                state["task_"] = (state["task_"].name, {file.name: file.read_bytes() for file in path.iterdir()})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state.get("task_"), tuple):
            name, files = state["task_"]
            with tempfile.TemporaryDirectory() as folder:
                for file, data in files.items():
                    (Path(folder) / file).write_bytes(data)
                state = {**state, "task_": get_task(name).restore(folder)}
        super().__setstate__(state)


def _silent(line: str) -> None:
    pass


class TextClassifier(ClassifierMixin, _TextEstimator):  # type: ignore[misc]
    """A classifier of texts: the task semantic-analysis, with one label a text or a matrix of labels (N, L) of 0 and 1.

    class_weight: None or "balanced". validation_fraction: share of the texts, by a hash, on which the best epoch, the
    temperature and the thresholds are found; refit: let the linear model learn from them, too, once all is found.
    opening_words: so many first words of a text, taken together, may tell its label besides (they tell questions). init: a
    model folder whose reading of texts training begins with, or None. Fitted: classes_, task_ (the task itself, which also
    tells keywords and languages).
    """

    def __init__(
        self,
        hidden_size: int = 128,
        embedding_size: int = 128,
        vocab_size: int = 8000,
        max_features: int = 50_000,
        word_ngrams: int = 2,
        char_ngrams: tuple[int, int] = (2, 5),
        opening_words: int = 0,
        refit: bool = False,
        dropout: float = 0.5,
        label_smoothing: float = 0.1,
        class_weight: str | None = None,
        max_epochs: int = 10,
        learning_rate: float = 2e-3,
        batch_tokens: int = 1000,
        ema_decay: float = 0.0,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        init: str | None = None,
    ) -> None:
        self.hidden_size = hidden_size
        self.embedding_size = embedding_size
        self.vocab_size = vocab_size
        self.max_features = max_features
        self.word_ngrams = word_ngrams
        self.char_ngrams = char_ngrams
        self.opening_words = opening_words
        self.refit = refit
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.batch_tokens = batch_tokens
        self.ema_decay = ema_decay
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.init = init

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Iterable[str], y: Any) -> Self:
        """Learn from texts and their labels. ValueError for texts or labels that cannot be learnt from."""
        texts, target = _texts(X), np.asarray(y)
        if len(target) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(target)} labels")
        kind = type_of_target(target)
        if kind not in ("binary", "multiclass", "multilabel-indicator"):
            raise ValueError(f"Unknown label type: {kind}")
        if self.class_weight not in (None, "balanced"):
            raise ValueError(f"class_weight must be None or 'balanced', not {self.class_weight!r}")
        self.multilabel_ = kind == "multilabel-indicator"
        if self.multilabel_:
            self.classes_ = np.arange(target.shape[1])
            names = [",".join(str(k) for k in np.flatnonzero(row)) for row in target]
        else:
            self.classes_, codes = np.unique(target, return_inverse=True)
            names = [str(code) for code in codes]
        if len(self.classes_) < 2:
            raise ValueError("the labels are all the same: a classifier needs two classes")
        cls = get_task("semantic-analysis")
        settings = _plain(
            {
                "multi_label": self.multilabel_,
                "label_smoothing": self.label_smoothing,
                "class_weights": 1.0 if self.class_weight == "balanced" else 0.0,
                "max_features": self.max_features,
                "word_ngrams": self.word_ngrams,
                "char_ngrams": tuple(self.char_ngrams),
                "opening_words": self.opening_words,
                "refit": self.refit,
            }
        )
        if self.init is None:
            shape = {"hidden_size": self.hidden_size, "embedding_size": self.embedding_size, "dropout": self.dropout}
            sizes = _plain({"vocab_size": self.vocab_size, "model": shape})
            task = cls(configure(cls.Config, settings | sizes, "parameters"))
        else:
            task = cls.restore(self.init)
            fresh = cls.Config()
            for name in cls.adaptable:
                if name != "model":
                    setattr(task.config, name, settings.get(name, getattr(fresh, name)))
        with tempfile.TemporaryDirectory() as folder:
            self._train(task, list(zip(texts, names, strict=True)), folder)
        return self

    def predict_proba(self, X: Iterable[str]) -> Array:
        """Calibrated probabilities (N, classes), in the order of classes_; a class that training never saw has 0."""
        check_is_fitted(self, "task_")
        found = self.task_.predict_proba(_texts(X))
        out = np.zeros((len(found), len(self.classes_)), np.float64)
        out[:, [int(label) for label in self.task_.config.labels]] = found
        return out

    def predict(self, X: Iterable[str]) -> Array:
        """The label of each text, or a matrix of 0 and 1 (N, L)."""
        check_is_fitted(self, "task_")
        if not self.multilabel_:
            return self.classes_[self.predict_proba(X).argmax(axis=1)]
        texts = _texts(X)
        out = np.zeros((len(texts), len(self.classes_)), np.int64)
        for row, result in zip(out, self.task_(texts, keywords=0, top_k=1), strict=True):
            row[[int(label) for label in result.text.split(", ") if label]] = 1
        return out


class TextEncoder(TransformerMixin, _TextEstimator):  # type: ignore[misc]
    """Texts to codes of a text VAE (the means of q(z|x)) and codes to texts: the task generation.

    Fitted: task_ (the task itself). score(X) is minus the bound on the nats a text costs: larger is better.
    """

    def __init__(
        self,
        latent_size: int = 32,
        hidden_size: int = 256,
        embedding_size: int = 128,
        vocab_size: int = 4000,
        free_bits: float = 0.3,
        dropout: float = 0.1,
        max_epochs: int = 10,
        learning_rate: float = 2e-3,
        batch_tokens: int = 1500,
        ema_decay: float = 0.0,
        validation_fraction: float = 0.05,
        random_state: Any = None,
    ) -> None:
        self.latent_size = latent_size
        self.hidden_size = hidden_size
        self.embedding_size = embedding_size
        self.vocab_size = vocab_size
        self.free_bits = free_bits
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.batch_tokens = batch_tokens
        self.ema_decay = ema_decay
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Iterable[str], y: Any = None) -> Self:
        """Learn the texts; y is not used."""
        cls = get_task("generation")
        model = {
            "latent_size": self.latent_size,
            "encoder_size": self.hidden_size,
            "decoder_size": self.hidden_size,
            "embedding_size": self.embedding_size,
            "free_bits": self.free_bits,
            "free_bits_over": "batch",
            "dropout": self.dropout,
        }
        task = cls(configure(cls.Config, _plain({"vocab_size": self.vocab_size, "model": model}), "parameters"))
        with tempfile.TemporaryDirectory() as folder:
            self._train(task, list(dict.fromkeys(_texts(X))), folder)
        if self.task_.metrics.get("active_units") == 0:
            warnings.warn(
                "the latent code has collapsed: every text has nearly the same one (try more free_bits)", stacklevel=2
            )
        return self

    def transform(self, X: Iterable[str]) -> Array:
        """float32 (N, latent_size)."""
        check_is_fitted(self, "task_")
        return LatentSpace(self.task_).encode(_texts(X))[0]

    def inverse_transform(self, X: Any) -> Array:
        """Codes (N, latent_size) to texts (N,)."""
        check_is_fitted(self, "task_")
        codes = np.asarray(X, np.float32)
        if codes.ndim != 2 or codes.shape[1] != self.latent_size:
            raise ValueError(f"codes must be of shape (N, {self.latent_size}), not {codes.shape}")
        return np.array(LatentSpace(self.task_).decode(codes), dtype=object)

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """z0, z1, ..."""
        return np.array([f"z{k}" for k in range(self.latent_size)], dtype=object)

    def score(self, X: Iterable[str], y: Any = None) -> float:
        """The mean evidence lower bound of a text, in nats."""
        check_is_fitted(self, "task_")
        return -float(self.task_.evaluate(_texts(X))["neg_elbo"])

"""A classifier of texts: a bidirectional LSTM over pieces, max- and mean-pooled, beside a linear model over a bag of n-grams.

The pooling is that of InferSent (Conneau et al. 2017). The linear branch sees what TF-IDF with a linear model sees.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import autograd, nn, ops
from rheme import functional as F
from rheme.autograd import Tensor
from rheme.errors import InputError
from rheme.text.features import Bag

Array = NDArray[Any]
Ids = NDArray[np.int64]

_DROP_STREAM = 0  # the Philox stream of the dropped pieces, under a step's seed


class ClassifierConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The shape of a `TextClassifier`.

    hidden_size: of the LSTM, each way (0: no LSTM). dropout: on embeddings and on the pooled states. piece_dropout: share of
    the pieces hidden in training. bag: whether there is a linear branch over n-grams; bag_scale: what its logits are
    multiplied with (a larger one learns faster); bag_dropout: share of the n-grams hidden in training. code_size: width of the
    layer between pooling and output (0: none).

    latent_size: of the code of a VAE beside the classifier, which learns from texts without labels (0: none; see
    `semi_supervised`); decoder_size: of its decoder; word_dropout: share of its input words hidden in training; elbo_weight:
    what its -ELBO counts beside the labels' cross-entropy.
    """

    embedding_size: int = 128
    hidden_size: int = 128
    code_size: int = 0
    dropout: float = 0.5
    piece_dropout: float = 0.1
    bag: bool = True
    bag_scale: float = 5.0
    bag_dropout: float = 0.2
    latent_size: int = 0
    decoder_size: int = 128
    word_dropout: float = 0.3
    elbo_weight: float = 0.1

    def __post_init__(self) -> None:
        for name in ("hidden_size", "code_size", "latent_size", "elbo_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0")
        if not self.bag_scale > 0:
            raise InputError(f"bag_scale = {self.bag_scale}: must be above 0")
        if self.embedding_size < 1:
            raise InputError(f"embedding_size = {self.embedding_size}: must be at least 1")
        for name in ("dropout", "piece_dropout", "bag_dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0 and below 1")
        if self.latent_size and not self.hidden_size:
            raise InputError("latent_size needs an LSTM: hidden_size must be above 0")
        if not self.hidden_size and not self.bag:
            raise InputError("hidden_size = 0 and bag = false: nothing is left to classify by")


def pad_bags(bags: Sequence[Bag]) -> tuple[Ids, Array]:
    """N bags -> rows int64 (K, N), 0 past each end, and weights float32 (K, N)."""
    longest = max([len(rows) for rows, _ in bags], default=0) or 1
    ids, weights = np.zeros((len(bags), longest), np.int64), np.zeros((len(bags), longest), np.float32)
    for index, (rows, values) in enumerate(bags):
        ids[index, : len(rows)] = rows
        weights[index, : len(rows)] = values
    return np.ascontiguousarray(ids.T), np.ascontiguousarray(weights.T)


class TextClassifier(nn.Module):
    """Pieces and n-grams of texts to logits. Ids are int64 (T, N), time-major, each text of at least one piece."""

    def __init__(self, config: ClassifierConfig, pieces: int, features: int, labels: int, unk_id: int = 1) -> None:
        self.config = config
        self.unk_id = unk_id
        self.dropout = nn.Dropout(config.dropout)
        self.output_size = labels
        if config.hidden_size:
            self.embedding = nn.Embedding(pieces, config.embedding_size)
            self.lstm = nn.LSTM(config.embedding_size, config.hidden_size, bidirectional=True)
            pooled = 4 * config.hidden_size
            self.inner = nn.Linear(pooled, config.code_size) if config.code_size else None
            self.output = nn.Linear(config.code_size or pooled, labels)
            self._input_scale = math.sqrt(config.embedding_size)
        else:
            self.bias = nn.Parameter(ops.zeros((labels,)))
        if config.bag:
            self.bag = nn.Embedding(features, labels)
            self.bag.weight.data[...] = 0

    @property
    def output_bias(self) -> nn.Parameter:
        """What the logits are without any text, (labels,)."""
        bias = self.output.bias if self.config.hidden_size else self.bias
        assert bias is not None
        return bias

    def pooled(self, ids: Ids, lengths: Ids, seed: int = 0) -> Tensor:
        """ids (T, N), lengths (N,), at least 1 -> the largest and the mean state of each unit, (N, 4H)."""
        if self.training and self.config.piece_dropout:
            u = ops.random_uniform(seed, _DROP_STREAM, 0, ids.shape)
            ids = np.where(u < self.config.piece_dropout, self.unk_id, ids)
        y, _ = self.lstm(self.dropout(self._embed(ids)), lengths=lengths)
        mask = (np.arange(ids.shape[0])[:, None] < lengths)[:, :, None]
        return F.concat([F.max(y, axis=0, mask=mask), F.mean(y, axis=0, mask=mask)], axis=1)

    def _embed(self, ids: Ids) -> Tensor:
        return F.mul(self.embedding(ids), self._input_scale)

    def bag_logits(self, rows: Ids, weights: Array) -> Tensor:
        """rows (K, N) of n-grams and their weights (K, N) -> (N, labels)."""
        values = self.bag(rows)
        if self.training and self.config.bag_dropout:
            weights = nn.Dropout(self.config.bag_dropout)(weights[:, :, None]).data[:, :, 0]
        scaled = ops.mul(weights, self.config.bag_scale)
        return F.sum(F.mul(values, scaled[:, :, None]), axis=0)

    def add_linear(self, weights: Array, bias: Array) -> None:
        """Add a linear model over the n-grams, weights (features, labels) and bias (labels,), to the logits.

        It may know more n-grams than the bag: these are rows after the others.
        """
        table = self.bag.weight
        if missing := len(weights) - len(table.data):
            table.data = ops.concat([table.data, ops.zeros((missing, self.output_size), table.data.dtype, like=table.data)])
            self.bag.num_embeddings = len(weights)
        for parameter, array in ((self.bag.weight, ops.div(weights, self.config.bag_scale)), (self.output_bias, bias)):
            parameter.data = ops.add(parameter.data, ops.asarray(array, like=parameter.data))
            parameter.version += 1

    def forward(self, ids: Ids, lengths: Ids, rows: Ids, weights: Array, seed: int = 0) -> Tensor:
        """Logits (N, labels)."""
        if not self.config.hidden_size:
            return F.add(self.bag_logits(rows, weights), self.bias)
        return self.logits_of(self.pooled(ids, lengths, seed), rows, weights)

    def logits_of(self, pooled: Tensor, rows: Ids, weights: Array) -> Tensor:
        """pooled (N, 4H), with the bag of n-grams where there is one -> logits (N, labels)."""
        code = pooled if self.inner is None else F.tanh(self.inner(self.dropout(pooled)))
        logits: Tensor = self.output(self.dropout(code))
        return F.add(logits, self.bag_logits(rows, weights)) if self.config.bag else logits


def softplus(x: Any) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    x = autograd.as_tensor(x)
    above, below = F.relu(x), F.relu(F.neg(x))
    return F.add(above, F.log(F.add(F.exp(F.neg(F.add(above, below))), 1.0)))

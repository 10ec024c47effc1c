"""A classifier that also learns from texts without labels: a VAE whose decoder is given the label at every step.

Kingma et al. 2014 (M2) for text as Xu et al. 2017 make it work: with a label that only starts the decoder an LSTM learns to do
without it. A text without a label costs the mean over the labels of what it would cost with each, by the classifier's own
probabilities, less their entropy; the sum is exact, over all labels, so that no draw of a label makes noise.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import functional as F
from rheme import nn, ops
from rheme.autograd import Tensor
from rheme.models.classifier import ClassifierConfig, TextClassifier
from rheme.models.seq2seq import TiedOutput

Array = NDArray[Any]
Ids = NDArray[np.int64]

_EPS_STREAM, _WORD_STREAM = 1, 2  # of the noise and of the dropped words, under a step's seed (0 is the classifier's)


class SemiSupervisedClassifier(TextClassifier):
    """The classifier, and q(z|x) and p(x|z, label) beside it. The embedding and the LSTM read for both."""

    def __init__(self, config: ClassifierConfig, pieces: int, features: int, labels: int, unk_id: int, eos_id: int) -> None:
        super().__init__(config, pieces, features, labels, unk_id)
        self.eos_id = eos_id
        self.posterior = nn.GaussianLatent(4 * config.hidden_size, config.latent_size)
        self.decoder = nn.LSTM(config.embedding_size + config.latent_size + labels, config.decoder_size)
        self.vocabulary = TiedOutput(config.decoder_size, self.embedding)
        self._beta = 1.0

    def on_step(self, step: int, total_steps: int) -> None:
        """Called by training before each step: the weight of the KL rises over the first third of the steps."""
        self._beta = min(1.0, 3.0 * step / max(1, total_steps))

    def terms(self, ids: Ids, lengths: Ids, rows: Ids, weights: Array, targets: Array, seed: int = 0) -> tuple[Tensor, Tensor]:
        """What texts cost, in nats: (cross-entropy of the labelled ones, -ELBO of all), both summed.

        ids (T, N), lengths, rows and weights as for `forward`; targets (N, labels): one 1 a row, or none for a text without
        a label.
        """
        labels, count = self.output_size, ids.shape[1]
        pooled = self.pooled(ids, lengths, seed)
        log_q = F.log_softmax(self.logits_of(pooled, rows, weights))
        supervised = F.neg(F.sum(F.mul(log_q, targets)))

        mu, logvar = self.posterior.mu(pooled), self.posterior.logvar(pooled)
        eps = ops.random_normal(seed, _EPS_STREAM, 0, (count, self.config.latent_size), mu.dtype)
        z, kl = F.gaussian_kl(mu, logvar, eps)
        known = targets.any(axis=1)
        with_label, without = np.flatnonzero(known), np.flatnonzero(~known)
        total = F.mul(F.sum(kl), self._beta)
        if len(with_label):
            places = targets[with_label].argmax(axis=1)
            total = F.add(total, F.sum(self._reconstruction(ids, lengths, z, with_label, places, seed)))
        if len(without):
            # every text with every label: texts within labels
            text, label = np.tile(without, labels), np.repeat(np.arange(labels), len(without))
            costs = F.reshape(self._reconstruction(ids, lengths, z, text, label, seed), (labels, len(without)))
            log_q = F.embedding(without, log_q)
            q = F.exp(log_q)
            total = F.add(total, F.sum(F.mul(q, F.add(F.transpose(costs), log_q))))
        return supervised, total

    def _reconstruction(self, ids: Ids, lengths: Ids, z: Tensor, text: Ids, label: Ids, seed: int) -> Tensor:
        """-log p(x|z, label) of the texts with these numbers and labels, F (M,)."""
        ids, lengths = ids[:, text], lengths[text]
        steps, count = ids.shape
        targets = np.full(ids.shape, -1, np.int64)
        targets[:-1] = ids[1:]
        place = np.arange(steps)[:, None]
        targets = np.where(place < lengths - 1, targets, np.where(place == lengths - 1, self.eos_id, -1))
        inputs = ids
        if self.training and self.config.word_dropout:
            u = ops.random_uniform(seed, _WORD_STREAM, 0, (steps, count))
            inputs = np.where((u < self.config.word_dropout) & (place > 0), self.unk_id, ids)
        code = F.concat([F.embedding(text, z), np.eye(self.output_size, dtype=z.dtype)[label]], axis=1)
        repeated = F.reshape(F.embedding(np.tile(np.arange(count), steps), code), (steps, count, code.shape[1]))
        y, _ = self.decoder(F.concat([self.dropout(self._embed(inputs)), repeated], axis=2), lengths=lengths)
        projected = self.vocabulary.projection(self.dropout(y))
        losses = F.linear_cross_entropy(projected, self.embedding.weight, self.vocabulary.vocabulary.bias, targets)
        return F.sum(losses, axis=0)

"""An encoder and decoder that can copy: the model of summarization (See et al. 2017).

To `Seq2Seq` it adds a second attention, asked by the last decoder layer: its context goes to the output, and its weights are a
distribution over what stands in the source. A gate mixes it with the one over the vocabulary,

    p(y) = g p_vocab(y) + (1 - g) sum of attention over the source positions that hold y.

The pieces have byte fallback, so no source has a word outside the vocabulary and both distributions are over the same ids. In
training only p(target) is needed: p_vocab(target) comes from the fused cross-entropy, the copied share from the attention.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rheme import autograd, nn, ops
from rheme import functional as F
from rheme.autograd import Tensor
from rheme.errors import InputError
from rheme.models.seq2seq import Array, Ids, Memory, Seq2Seq, Seq2SeqConfig, Seq2SeqState

_SMALLEST = 1e-10  # what a target that the source lacks gets as its copied share: a log that is finite


class PointerGeneratorConfig(Seq2SeqConfig, kw_only=True, forbid_unknown_fields=True):
    """The shape of a `PointerGenerator`. copy_size: of the keys and queries of the attention that copies."""

    embedding_size: int = 224
    encoder_size: int = 224
    copy_size: int = 192
    dropout: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copy_size < 1:
            raise InputError(f"copy_size = {self.copy_size}: must be at least 1")
        if self.label_smoothing:
            raise InputError(f"label_smoothing = {self.label_smoothing}: a model that copies has none; give 0")


@dataclass(frozen=True, kw_only=True)
class PointerMemory(Memory):
    """Besides: copy_keys F (S, N, A) of the attention that copies, and what there is to copy.

    A table (N V, ...) has a row for each id of each sentence. places int64 (N S,) are the rows of what the sources hold, by
    sentence, then position; order int64 (N S,) is their stable order, found once for all steps of a decoding.
    """

    copy_keys: Array
    vocab_size: int
    places: Ids
    order: Ids

    def _selected(self, sentences: Ids) -> dict[str, Any]:
        fields = super()._selected(sentences)
        longest = len(fields["keys"])
        source = self.places.reshape(len(self.lengths), len(self.keys))[sentences, :longest] % self.vocab_size
        places, order = _places(source.T, self.vocab_size)
        return fields | {"copy_keys": ops.contiguous(self.copy_keys[:longest, sentences]), "places": places, "order": order}


def _places(source: Ids, vocab_size: int) -> tuple[Ids, Ids]:
    """`PointerMemory.places` and `.order` of sources int64 (S, N)."""
    places = (source.T + vocab_size * np.arange(source.shape[1])[:, None]).reshape(source.size)
    return places, np.argsort(places, kind="stable")


class PointerGenerator(Seq2Seq):
    """Source ids in, target ids out, some of them copied. Arrays of ids are int64 and time-major, as in `Seq2Seq`."""

    config: PointerGeneratorConfig

    def __init__(self, config: PointerGeneratorConfig) -> None:
        super().__init__(config)
        encoded = 2 * config.encoder_size
        self.copy = nn.Attention(config.decoder_size, encoded, None, config.copy_size)
        self.gate = nn.Linear(config.decoder_size + encoded, 2)

    # Training ---------------------------------------------------------------------------------------------------------------

    def loss(
        self,
        source: Ids,
        source_lengths: Ids | None,
        target_in: Ids,
        target_out: Ids,
        seed: int = 0,
        beta: float | None = None,
    ) -> tuple[Tensor, int, dict[str, float]]:
        """As `Seq2Seq.loss`; info also has `copied`, the mean weight of copying."""
        features, weights, kl = self._features_and_weights(source, source_lengths, target_in, target_out, seed)
        losses = self.output.loss(features, target_out)
        rows = np.flatnonzero(target_out.reshape(-1) >= 0)
        # weights F (N, T, S), and where the source holds the target: uint8 (N, T, S)
        same = (target_out.T[:, :, None] == source.T[:, None, :]).view(np.uint8)
        share = F.transpose(F.sum(weights, axis=2, mask=ops.asarray(same, like=weights.data)))
        share = F.embedding(rows, F.reshape(share, (target_out.size, 1)))
        gates = F.log_softmax(F.embedding(rows, F.reshape(self.gate(features), (target_out.size, 2))))
        parts = F.concat([F.neg(F.reshape(losses, (rows.size, 1))), F.log(share + _SMALLEST)], axis=1)
        total = F.neg(F.sum(F.logsumexp(gates + parts, axis=1)))
        count = int(rows.size)
        info = {"copied": float(ops.mean(ops.exp(gates.data[:, 1:]))) if count else 0.0}
        if kl is None:
            return total, count, info
        kl = F.sum(kl)
        info |= {"reconstruction": total.item() / max(count, 1), "kl": kl.item() / source.shape[1]}
        return total + kl * self._kl_weight(beta), count, info

    def logits(self, source: Ids, source_lengths: Ids | None, target_in: Ids) -> Array:
        """Teacher-forced log-probabilities F (T, N, V), without dropout; the latent code at the mean of p(z|x)."""
        with autograd.no_grad():
            features, weights, _ = self._features_and_weights(source, source_lengths, target_in, None, 0)
            logs = self._log_probabilities(features.data, weights.data, *_places(source, self.config.vocab_size))
            return logs.reshape(*target_in.shape, logs.shape[1])

    def _features_and_weights(
        self, source: Ids, source_lengths: Ids | None, target_in: Ids, target_out: Ids | None, seed: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """[second layer; what it looks at] F (T, N, H + C), the weights of copying F (N, T, S), and the KL terms."""
        y2, _, values, kl = self._decode(source, source_lengths, target_in, target_out, seed)
        y2 = self.dropout(y2)
        context, weights = self.copy(y2, *self.copy.project(values), source_lengths)
        return F.concat([y2, context], axis=2), weights, kl

    # Decoding ---------------------------------------------------------------------------------------------------------------

    def encode(self, source: Ids, lengths: Ids | None = None, eps: Array | None = None) -> PointerMemory:
        """Read the sources: int64 (S, N), lengths (N,); see `Seq2Seq.encode`."""
        memory = super().encode(source, lengths, eps)
        with autograd.no_grad():
            keys, _ = self.copy.project(memory.values)
        size = self.config.vocab_size
        places, order = _places(np.asarray(source, np.int64), size)
        return PointerMemory(**vars(memory), copy_keys=keys.data, vocab_size=size, places=places, order=order)

    def step(self, ids: Ids, state: Seq2SeqState) -> tuple[Array, Seq2SeqState]:
        """One target step: ids int64 (B,) -> log-probabilities F (B, V) of the next id, and the state after it."""
        with autograd.no_grad():
            y2, _, state = self._advance(ids, state)
            memory, rows = state.memory, len(ids)
            assert isinstance(memory, PointerMemory)
            sentences = len(memory.lengths)
            query = y2.reshape(rows // max(sentences, 1), sentences, y2.shape[2])
            context, weights = self.copy(query, memory.copy_keys, memory.values, memory.lengths)
            features = ops.concat([query, context.data], axis=2)
            state = replace(state, weights=weights.data)  # what a coverage penalty asks for is how the source was copied
            return self._log_probabilities(features, weights.data, memory.places, memory.order), state

    def _log_probabilities(self, features: Array, weights: Array, places: Ids, order: Ids) -> Array:
        """features F (T, N, K), weights F (N, T, S), places and order int64 (N S,) as in `PointerMemory` -> F (T N, V)."""
        (steps, sentences, _), longest = features.shape, weights.shape[2]
        flat = features.reshape(steps * sentences, features.shape[2])
        gates = ops.softmax(self.gate(flat).data)
        written = ops.mul(ops.softmax(self.output(flat).data), ops.contiguous(gates[:, :1]))
        size = written.shape[1]
        shares = ops.transpose(weights, (1, 0, 2)).reshape(len(flat), longest)
        shares = ops.mul(shares, ops.contiguous(gates[:, 1:])).reshape(steps, sentences * longest)
        # a sum over equal ids of a sentence, in order of position
        copied = ops.embedding_backward(ops.transpose(shares), places, sentences * size, order)
        copied = ops.transpose(copied.reshape(sentences, size, steps), (2, 0, 1))
        return ops.log(ops.add(written, copied.reshape(len(flat), size)))

"""Encoder and decoder with attention: the model of translation, summarization and every other text-to-text task.

A bidirectional LSTM reads the source. Two LSTM layers write the target, with dot-product attention between them (Luong et al.
2015, without input feeding), so that in training the first layer runs over all steps at once, then the attention, then the
second layer, then the output: nothing loops over time. Source, target and output share one embedding (Press and Wolf 2017).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import autograd, nn, ops
from rheme import functional as F
from rheme.autograd import Tensor
from rheme.errors import InputError

Array = NDArray[Any]
Ids = NDArray[np.int64]


class Seq2SeqConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The shape of a `Seq2Seq`.

    vocab_size: pieces, shared by source and target. encoder_size: per direction. word_dropout: share of the pieces of a side,
    but for its first, that training hides as a whole (Gal and Ghahramani 2016). latent_size: 0 for none. latent_free_bits: nats
    per latent dimension below which the KL is not pressed down further. latent_warmup: share of a training's steps in which the
    weight of the KL rises from 0 to 1.
    """

    vocab_size: int = 8000
    embedding_size: int = 256
    encoder_size: int = 256
    encoder_layers: int = 1
    decoder_size: int = 384
    dropout: float = 0.2
    word_dropout: float = 0.0
    label_smoothing: float = 0.1
    latent_size: int = 0
    latent_free_bits: float = 0.0
    latent_warmup: float = 0.2
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embedding_size", "encoder_size", "encoder_layers", "decoder_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("dropout", "word_dropout", "label_smoothing", "latent_warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0 and below 1")
        if self.latent_size < 0:
            raise InputError(f"latent_size = {self.latent_size}: must be 0 (no latent code) or more")


class TiedOutput(nn.Module):
    """From features to logits over the vocabulary, through the embedding's own matrix."""

    def __init__(self, input_size: int, embedding: nn.Embedding) -> None:
        self.projection = nn.Linear(input_size, embedding.embedding_dim)
        self.vocabulary = nn.Linear(embedding.embedding_dim, embedding.num_embeddings)
        self.vocabulary.weight = embedding.weight
        self.vocabulary.bias = nn.Parameter(ops.zeros((embedding.num_embeddings,)))

    def forward(self, features: Any) -> Tensor:
        """features F (..., K) -> logits (..., V)."""
        logits: Tensor = self.vocabulary(self.projection(features))
        return logits

    def infer(self, features: Array) -> Array:
        """`forward` of an array, outside the tape."""
        return self.vocabulary.infer(self.projection.infer(features))

    def loss(self, features: Tensor, targets: Ids, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of each valid target, in order of position: features (T, N, K), targets int64 (T, N) -> (M,).

        Only the rows whose target is not -1 pass through the vocabulary's matrix.
        """
        hidden = self.projection(features)
        flat = targets.reshape(targets.size)
        rows = np.flatnonzero(flat >= 0)
        hidden = F.reshape(hidden, (flat.size, hidden.shape[-1]))
        if rows.size < flat.size:
            hidden, flat = F.embedding(rows, hidden), flat[rows]
        weight, bias = self.vocabulary.weight, self.vocabulary.bias
        return F.linear_cross_entropy(hidden, weight, bias, flat, label_smoothing=label_smoothing)


def _data(value: Any) -> Array:
    return value.data if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Memory:
    """What the encoder found, for N sentences.

    keys F (S, N, A) and values F (S, N, C), one per source position; lengths int64 (N,); hidden F (2, N, H): the first states
    of the decoder's two layers; latent F (N, D) or None.
    """

    keys: Array
    values: Array
    lengths: Ids
    hidden: Array
    latent: Array | None = None

    def select(self, sentences: Ids) -> "Memory":
        """The memory of these sentences alone, no longer than they need."""
        return replace(self, **self._selected(sentences))

    def _selected(self, sentences: Ids) -> dict[str, Any]:
        lengths = self.lengths[sentences]
        longest = int(lengths.max(initial=1))
        return {
            "keys": ops.contiguous(self.keys[:longest, sentences]),
            "values": ops.contiguous(self.values[:longest, sentences]),
            "lengths": lengths,
            "hidden": ops.contiguous(self.hidden[:, sentences]),
            "latent": None if self.latent is None else ops.contiguous(self.latent[sentences]),
        }


@dataclass(frozen=True)
class Seq2SeqState:
    """The decoder between two steps, for B rows: row r reads sentence `owner[r]` of the memory.

    Rows stand in rounds: each round visits all sentences of the memory in order, so that the rows of one sentence are the time
    axis of one attention call and share its keys.
    """

    memory: Memory
    owner: Ids
    layers: tuple[Array, Array, Array, Array]  # h and c of layer 1, h and c of layer 2: F (1, B, H)
    latent: Array | None  # F (B, D)
    # of the last step's attention: F (sentences, rounds, S); no step reads them
    weights: Array | None = field(default=None, metadata={"read": False})

    @property
    def attention(self) -> tuple[Array, Ids] | None:
        """The last step's attention: weights F (B, S) and how many source positions each row has, int64 (B,)."""
        if self.weights is None:
            return None
        rows = self.weights.transpose(1, 0, 2).reshape(len(self.owner), self.weights.shape[2])
        return rows, np.tile(self.memory.lengths, self.weights.shape[1])

    def select(self, indices: Any) -> "Seq2SeqState":
        """Rows reordered, repeated or dropped. The memory is copied only when its sentences change."""
        indices = np.asarray(indices, np.int64)
        layers = tuple(ops.contiguous(layer[:, indices]) for layer in self.layers)
        latent = None if self.latent is None else ops.contiguous(self.latent[indices])
        memory, owner = self.memory, self.owner
        if len(memory.lengths) > 1 or len(indices) != len(owner):  # else the beams of one sentence, as they were
            owner = owner[indices]
            sentences, rounds = _rounds(owner)
            if rounds == 0:
                sentences = owner  # no common order: each row gets a memory of its own
            if len(sentences) != len(memory.lengths) or not np.array_equal(sentences, np.arange(len(sentences))):
                memory = memory.select(sentences)
                owner = np.tile(np.arange(len(sentences)), max(rounds, 1))
        return Seq2SeqState(memory, owner, layers, latent)  # type: ignore[arg-type]


def _rounds(owner: Ids) -> tuple[Ids, int]:
    """The sentences of the first round, and how many equal rounds the rows make (0: they do not)."""
    if len(owner) == 0:
        return owner, 1
    again = np.flatnonzero(owner == owner[0])
    size = len(owner) if len(again) == 1 else int(again[1])
    if len(owner) % size or not np.array_equal(owner, np.tile(owner[:size], len(owner) // size)):
        return owner, 0
    return owner[:size], len(owner) // size


class Seq2Seq(nn.Module):
    """Source ids in, target ids out. Arrays of ids are int64 and time-major: source (S, N), target (T, N)."""

    capturable = True

    def __init__(self, config: Seq2SeqConfig, embedding: nn.Embedding | None = None) -> None:
        """embedding: one to share with another model; by default its own."""
        self.config = config
        encoded, hidden, latent = 2 * config.encoder_size, config.decoder_size, config.latent_size
        self.embedding = embedding or nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout, self.word_dropout = nn.Dropout(config.dropout), nn.Dropout(config.word_dropout)
        self.encoder = nn.LSTM(
            config.embedding_size, config.encoder_size, config.encoder_layers, bidirectional=True, dropout=config.dropout
        )
        self.bridge = nn.Linear(encoded + latent, 2 * hidden)
        self.keys = nn.Linear(encoded, hidden, bias=False)
        self.decoder1 = nn.LSTM(config.embedding_size + latent, hidden)
        self.decoder2 = nn.LSTM(hidden + encoded, hidden)
        self.output = TiedOutput(hidden + encoded, self.embedding)
        self._beta = 1.0
        if latent:
            self.prior = nn.Linear(encoded, 2 * latent)
            self.posterior = nn.GaussianLatent(2 * encoded, latent)
        # The embedding starts with variance 1 / embedding_size, as the output layer wants it; the LSTMs want 1.
        self._input_scale = math.sqrt(config.embedding_size)

    # Training ---------------------------------------------------------------------------------------------------------------

    def on_step(self, step: int, total_steps: int) -> None:
        """Called by training before each step: sets the weight of the KL."""
        self._beta = min(1.0, step / max(self.config.latent_warmup * total_steps, 1.0))

    def loss(
        self,
        source: Ids,
        source_lengths: Ids | None,
        target_in: Ids,
        target_out: Ids,
        seed: int = 0,
        beta: float | None = None,
    ) -> tuple[Tensor, int, dict[str, float]]:
        """Summed cross-entropy (nats) of the targets that are not -1 (plus beta KL with a latent code), their number, and info.

        source int64 (S, N), source_lengths (N,) or None; target_in (T, N) begins with bos_id, target_out (T, N) ends with
        eos_id and then -1, which is not counted. In training mode with label smoothing. `seed` draws the latent code's eps;
        dropout draws from `nn.dropout_scope`. beta: by default what `on_step` set in training mode, else 1.
        """
        smoothing = self.config.label_smoothing if self.training else 0.0
        features, kl = self._features(source, source_lengths, target_in, target_out, seed)
        losses = self.output.loss(features, target_out, smoothing)
        count = int(losses.shape[0])
        total = F.sum(losses)
        if kl is None:
            return total, count, {}
        kl = F.sum(kl)
        info = {"reconstruction": total.item() / max(count, 1), "kl": kl.item() / source.shape[1]}
        return total + kl * self._kl_weight(beta), count, info

    def _kl_weight(self, beta: float | None) -> float:
        return beta if beta is not None else self._beta if self.training else 1.0

    def logits(self, source: Ids, source_lengths: Ids | None, target_in: Ids) -> Array:
        """Teacher-forced logits F (T, N, V), without dropout; the latent code at the mean of p(z|x)."""
        with autograd.no_grad():
            features, _ = self._features(source, source_lengths, target_in, None, 0)
            logits: Tensor = self.output(features)
            return logits.data

    def _features(
        self, source: Ids, source_lengths: Ids | None, target_in: Ids, target_out: Ids | None, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """[second layer; context] for all target steps F (T, N, H + C), and the KL terms (N, D) with a latent code."""
        y2, context, _, kl = self._decode(source, source_lengths, target_in, target_out, seed)
        return self.dropout(F.concat([y2, context], axis=2)), kl

    def _decode(
        self, source: Ids, source_lengths: Ids | None, target_in: Ids, target_out: Ids | None, seed: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Second layer F (T, N, H), context F (T, N, C), what was attended to F (S, N, C), and the KL terms (N, D) or None."""
        values, final = self._encode(source, source_lengths)
        steps, rows = target_in.shape
        latent, kl = None, None
        target_lengths = None if target_out is None else np.count_nonzero(target_out >= 0, axis=0)
        if self.config.latent_size:
            latent, kl = self._latent(final, target_out, target_lengths, seed)
        hidden = self._first_states(final, latent)
        size = self.config.decoder_size
        cell = Tensor(ops.zeros((1, rows, size), hidden.dtype, hidden.data))
        embedded = self._embed(target_in)
        if latent is not None:
            repeated = F.embedding(np.tile(np.arange(rows), steps), latent)
            embedded = F.concat([embedded, F.reshape(repeated, (steps, rows, latent.shape[1]))], axis=2)
        y1, _ = self.decoder1(embedded, (F.reshape(hidden[:, :size], (1, rows, size)), cell), lengths=target_lengths)
        y1 = self.dropout(y1)
        context, _ = F.attention(y1, self.keys(values), values, lengths=source_lengths)
        both = F.concat([y1, context], axis=2)
        y2, _ = self.decoder2(both, (F.reshape(hidden[:, size:], (1, rows, size)), cell), lengths=target_lengths)
        return y2, context, values, kl

    def _embed(self, ids: Ids) -> Tensor:
        embedded = F.mul(self.embedding(ids), self._input_scale)
        if self.training and self.config.word_dropout:
            seen = self.word_dropout(ops.asarray(np.ones((*ids.shape, 1), np.float32), like=embedded.data)).data
            seen[0] = 1  # the target's language, the begin
            embedded = F.mul(embedded, seen)
        dropped: Tensor = self.dropout(embedded)
        return dropped

    def _encode(self, ids: Ids, lengths: Ids | None) -> tuple[Tensor, Tensor]:
        """values F (S, N, C) and the last layer's final states, both directions side by side, F (N, C)."""
        values, (final, _) = self.encoder(self._embed(ids), lengths=lengths)
        return self.dropout(values), F.concat([final[-2], final[-1]], axis=1)

    def _first_states(self, final: Tensor, latent: Tensor | None) -> Tensor:
        return F.tanh(self.bridge(final if latent is None else F.concat([final, latent], axis=1)))

    def _latent(
        self, final: Tensor, target_out: Ids | None, target_lengths: Ids | None, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """z F (N, D) and, when there is a target, KL(q(z|x,y) || p(z|x)) per dimension F (N, D).

        z = m + s u, where p(z|x) = N(m, s^2) and u is drawn from a Gaussian given x and y. As the KL divergence does not change
        under u -> m + s u, it is that of u to N(0, 1).
        """
        size = self.config.latent_size
        prior = self.prior(final)
        mean = prior[:, :size]
        if target_out is None:
            return mean, None
        _, target_final = self._encode(np.where(target_out >= 0, target_out, self.config.pad_id), target_lengths)
        eps = ops.random_normal(seed, 0, 0, (final.shape[0], size), final.dtype, final.data)
        both = F.concat([final, target_final], axis=1)
        u, kl, _, _ = self.posterior(both, eps, free_bits=self.config.latent_free_bits)
        return mean + F.exp(prior[:, size:] * 0.5) * u, kl

    # Decoding ---------------------------------------------------------------------------------------------------------------

    def encode(self, source: Ids, lengths: Ids | None = None, eps: Array | None = None) -> Memory:
        """Read the sources: int64 (S, N), lengths (N,). A latent code is its mean under p(z|x), or a draw by eps F (N, D)."""
        with autograd.no_grad():
            values, final = self._encode(source, lengths)
            latent = None
            if self.config.latent_size:
                prior, size = self.prior(final), self.config.latent_size
                latent = prior[:, :size]
                if eps is not None:
                    latent = latent + F.exp(prior[:, size:] * 0.5) * eps
            hidden = self._first_states(final, latent).data
            size = self.config.decoder_size
            first = ops.empty((2, source.shape[1], size), hidden.dtype, hidden)
            first[0], first[1] = hidden[:, :size], hidden[:, size:]
            if lengths is None:
                lengths = np.full(source.shape[1], source.shape[0], np.int64)
            return Memory(
                _data(self.keys(values)),
                values.data,
                np.asarray(lengths, np.int64),
                first,
                None if latent is None else latent.data,
            )

    def start(self, memory: Memory) -> Seq2SeqState:
        """The state before the first step, a row for each sentence of the memory."""
        rows = len(memory.lengths)
        cell = ops.zeros((1, rows, self.config.decoder_size), memory.hidden.dtype, memory.hidden)
        layers = (memory.hidden[:1], cell, memory.hidden[1:], cell)
        return Seq2SeqState(memory, np.arange(rows), layers, memory.latent)

    def step(self, ids: Ids, state: Seq2SeqState) -> tuple[Array, Seq2SeqState]:
        """One target step: ids int64 (B,) -> logits F (B, V) of the next id, and the state after it."""
        y2, context, state = self._advance(ids, state)
        return self.output.infer(ops.concat([y2, context], axis=2)[0]), state

    def _advance(self, ids: Ids, state: Seq2SeqState) -> tuple[Array, Array, Seq2SeqState]:
        """One step up to the second layer F (1, B, H) and its context F (1, B, C)."""
        memory, rows = state.memory, len(ids)
        embedded = ops.mul(self.embedding.infer(ids), self._input_scale)
        if state.latent is not None:
            embedded = ops.concat([embedded, state.latent], axis=1)
        h1, c1, h2, c2 = state.layers
        y1, (h1, c1) = self.decoder1.infer(embedded[None], (h1, c1))
        sentences = len(memory.lengths)
        rounds = rows // max(sentences, 1)
        query = y1.reshape(rounds, sentences, y1.shape[2])
        context, weights = ops.attention(query, memory.keys, memory.values, memory.lengths)
        context = context.reshape(1, rows, context.shape[2])
        y2, (h2, c2) = self.decoder2.infer(ops.concat([y1, context], axis=2), (h2, c2))
        return y2, context, Seq2SeqState(memory, state.owner, (h1, c1, h2, c2), state.latent, weights)


class TwoWay(nn.Module):
    """Two `Seq2Seq` that share their embedding: one a direction between two languages, `ways[0]` and `ways[1]`."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        first = Seq2Seq(config)
        self.ways = [first, Seq2Seq(config, first.embedding)]

    def on_step(self, step: int, total_steps: int) -> None:
        """As `Seq2Seq.on_step`."""
        for way in self.ways:
            way.on_step(step, total_steps)

    def take(self, state: Mapping[str, Array]) -> None:
        """Give both ways the weights of one `Seq2Seq` that went both ways. InputError where they do not fit."""
        self.load_state_dict({name: state.get(name.split(".", 2)[2], array) for name, array in self.state_dict().items()})

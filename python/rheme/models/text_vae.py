"""The text VAE: an LSTM encoder q(z|x) and an LSTM decoder p(x|z) (Bowman et al. 2016).

z gives the decoder's first state and is concatenated to each of its inputs. Training minimises
-ELBO = -E_q[log p(x|z)] + beta KL(q(z|x) || N(0, 1)). What keeps the KL from collapsing to 0 stands in the config: annealing of
beta (Bowman et al. 2016; cyclical: Fu et al. 2019), free bits (Kingma et al. 2016) and word dropout.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import autograd, nn, ops
from rheme import functional as F
from rheme.autograd import Tensor
from rheme.errors import InputError
from rheme.models.seq2seq import TiedOutput

Array = NDArray[Any]
Ids = NDArray[np.int64]

# Philox streams under a step's seed.
_EPS_STREAM, _WORD_STREAM = 0, 1


class TextVAEConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The shape of a `TextVAE`, and how its KL is kept from collapsing.

    word_dropout: share of the decoder's input words replaced by unk_id in training. beta: weight of the KL. annealing: how beta
    gets there, over the first `annealing_share` of the steps from `beta_start`; "cyclical" does so `cycles` times, rising in
    the first half of each. free_bits: nats per dimension that the KL is not pressed below, each sentence by itself
    (free_bits_over "sample") or on the batch's mean ("batch").
    """

    vocab_size: int = 8000
    embedding_size: int = 256
    encoder_size: int = 256
    decoder_size: int = 256
    bidirectional: bool = False
    latent_size: int = 32
    dropout: float = 0.3
    word_dropout: float = 0.0
    beta: float = 1.0
    annealing: Literal["none", "monotonic", "cyclical"] = "monotonic"
    annealing_share: float = 0.25
    beta_start: float = 0.0
    cycles: int = 4
    free_bits: float = 0.0
    free_bits_over: Literal["sample", "batch"] = "sample"
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embedding_size", "encoder_size", "decoder_size", "latent_size", "cycles"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0 and below 1")
        for name in ("beta", "beta_start", "free_bits"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0")
        if not 0 < self.annealing_share <= 1:
            raise InputError(f"annealing_share = {self.annealing_share}: must be above 0 and at most 1")

    def beta_at(self, step: int, total_steps: int) -> float:
        """The weight of the KL at a step (1, 2, ...)."""
        if self.annealing == "none" or total_steps < 1:
            return self.beta
        if self.annealing == "monotonic":
            done = step / (self.annealing_share * total_steps)
        else:
            cycle = total_steps / self.cycles
            done = 2.0 * ((step - 1) % cycle) / cycle
        return self.beta_start + (self.beta - self.beta_start) * min(done, 1.0)


@dataclass(frozen=True)
class TextVAEState:
    """The decoder between two steps, for B rows: h and c F (1, B, H), z F (B, D)."""

    h: Array
    c: Array
    z: Array

    def select(self, indices: Any) -> "TextVAEState":
        """Rows reordered, repeated or dropped."""
        indices = np.asarray(indices, np.int64)
        pick = ops.contiguous
        return TextVAEState(pick(self.h[:, indices]), pick(self.c[:, indices]), pick(self.z[indices]))


class TextVAE(nn.Module):
    """Sentences to codes and back. Ids are int64 (T, N), time-major."""

    def __init__(self, config: TextVAEConfig) -> None:
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.LSTM(config.embedding_size, config.encoder_size, bidirectional=config.bidirectional)
        encoded = config.encoder_size * (2 if config.bidirectional else 1)
        self.posterior = nn.GaussianLatent(encoded, config.latent_size)
        self.bridge = nn.Linear(config.latent_size, 2 * config.decoder_size)
        self.decoder = nn.LSTM(config.embedding_size + config.latent_size, config.decoder_size)
        self.output = TiedOutput(config.decoder_size, self.embedding)
        self._input_scale = math.sqrt(config.embedding_size)  # as in Seq2Seq
        self._beta = config.beta

    # Training ---------------------------------------------------------------------------------------------------------------

    def on_step(self, step: int, total_steps: int) -> None:
        """Called by training before each step: sets beta."""
        self._beta = self.config.beta_at(step, total_steps)

    def loss(
        self, ids_in: Ids, ids_out: Ids, lengths: Ids | None = None, seed: int = 0, beta: float | None = None
    ) -> tuple[Tensor, int, dict[str, float]]:
        """Summed -ELBO (nats) of N sentences with one draw of z each, the number of words, and info.

        ids_in (T, N) begins with bos_id; ids_out (T, N) ends with eos_id, then -1; lengths (N,), counted from ids_out if not
        given. seed draws z and the dropped words. beta: by default the annealed one in training mode,
        1 otherwise; then free bits do not count either. info, per sentence: reconstruction (nats), kl (nats, without free
        bits' floor), and beta.
        """
        config, rows = self.config, ids_in.shape[1]
        if lengths is None:
            lengths = np.count_nonzero(ids_out >= 0, axis=0)
        if beta is None:
            beta = self._beta if self.training else 1.0
        hidden = self._read(ids_out, lengths)
        mu, logvar = self.posterior.mu(hidden), self.posterior.logvar(hidden)
        eps = ops.random_normal(seed, _EPS_STREAM, 0, (rows, config.latent_size), mu.dtype)
        free_bits = config.free_bits if self.training else 0.0
        z, kl = F.gaussian_kl(mu, logvar, eps, free_bits, config.free_bits_over)
        if self.training and config.word_dropout:
            ids_in = self._drop_words(ids_in, seed)
        losses = self.output.loss(self._write(ids_in, lengths, z), ids_out)
        reconstruction, kl_sum = F.sum(losses), F.sum(kl)
        true_kl = kl_sum.item()
        if free_bits:
            true_kl = float(ops.sum(ops.gaussian_kl(mu.data, logvar.data, eps)[1]))
        info = {"reconstruction": reconstruction.item() / rows, "kl": true_kl / rows, "beta": beta}
        return reconstruction + kl_sum * beta, int(losses.shape[0]), info

    def _drop_words(self, ids_in: Ids, seed: int) -> Ids:
        """The decoder's inputs with words replaced by unk_id, but for the first (bos_id)."""
        dropped = ops.random_uniform(seed, _WORD_STREAM, 0, ids_in.shape) < self.config.word_dropout
        dropped[0] = False
        return np.where(dropped, self.config.unk_id, ids_in)

    def _embed(self, ids: Ids) -> Tensor:
        return F.mul(self.embedding(ids), self._input_scale)

    def _read(self, ids: Ids, lengths: Ids | None) -> Tensor:
        """The encoder's final state F (N, C) for ids (T, N), which may end in -1."""
        _, (h, _) = self.encoder(self._embed(np.where(ids >= 0, ids, self.config.pad_id)), lengths=lengths)
        return F.concat([h[0], h[1]], axis=1) if self.config.bidirectional else h[0]

    def _first_state(self, z: Tensor) -> tuple[Tensor, Tensor]:
        size, rows = self.config.decoder_size, z.shape[0]
        first = self.bridge(z)
        c = first[:, size:]
        return F.reshape(F.tanh(first[:, :size]), (1, rows, size)), F.reshape(c, (1, rows, size))

    def _write(self, ids_in: Ids, lengths: Ids | None, z: Tensor) -> Tensor:
        """The decoder's features F (T, N, H) for given inputs."""
        steps, rows = ids_in.shape
        repeated = F.reshape(F.embedding(np.tile(np.arange(rows), steps), z), (steps, rows, z.shape[1]))
        inputs = F.concat([self.dropout(self._embed(ids_in)), repeated], axis=2)
        y, _ = self.decoder(inputs, self._first_state(z), lengths=lengths)
        features: Tensor = self.dropout(y)
        return features

    # Use --------------------------------------------------------------------------------------------------------------------

    def encode(self, ids: Ids, lengths: Ids | None = None) -> tuple[Array, Array]:
        """mu and logvar F (N, D) of q(z|x). ids (T, N) as ids_out in training: each sentence with its eos_id."""
        with autograd.no_grad():
            hidden = self._read(ids, lengths)
            return self.posterior.mu(hidden).data, self.posterior.logvar(hidden).data

    def reconstruction(self, ids_in: Ids, ids_out: Ids, lengths: Ids | None, z: Array) -> Array:
        """-log p(x|z) F (N,) in nats, each sentence with its own row of z F (N, D); without dropout in eval mode."""
        with autograd.no_grad():
            features = self._write(ids_in, lengths, F.as_tensor(z))
            losses = F.linear_cross_entropy(
                self.output.projection(features), self.output.vocabulary.weight, self.output.vocabulary.bias, ids_out
            )
            return ops.sum(losses.data, axis=0)

    def logits(self, ids_in: Ids, z: Array) -> Array:
        """Teacher-forced logits F (T, N, V)."""
        with autograd.no_grad():
            logits: Tensor = self.output(self._write(ids_in, None, F.as_tensor(z)))
            return logits.data

    def prior(self, rows: int, seed: int, first: int = 0) -> Array:
        """Draws number first, first + 1, ... of z from N(0, 1), F (rows, D); draw i is a function of (seed, i) alone."""
        z = ops.empty((rows, self.config.latent_size), self.embedding.weight.dtype)
        for row in range(rows):
            z[row] = ops.random_normal(seed, first + row, 0, (self.config.latent_size,), z.dtype)
        return z

    def start(self, z: Array) -> TextVAEState:
        """The state before the first step, for codes F (N, D)."""
        with autograd.no_grad():
            h, c = self._first_state(F.as_tensor(z))
            return TextVAEState(h.data, c.data, z)

    def step(self, ids: Ids, state: TextVAEState) -> tuple[Array, TextVAEState]:
        """One step: ids int64 (B,) -> logits F (B, V) of the next id, and the state after it."""
        with autograd.no_grad():
            embedded = ops.mul(self.embedding(ids).data, self._input_scale)
            y, (h, c) = self.decoder(ops.concat([embedded, state.z], axis=1)[None], (state.h, state.c))
            return self.output(y.data[0]).data, TextVAEState(h.data, c.data, state.z)

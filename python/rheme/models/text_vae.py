"""The text VAE: an LSTM encoder q(z|x) and an LSTM decoder p(x|z) (Bowman et al. 2016).

z gives the decoder's first state and is concatenated to each of its inputs. Training minimises
-ELBO = -E_q[log p(x|z)] + beta KL(q(z|x) || N(0, 1)). What keeps the KL from collapsing to 0 stands in the config: annealing of
beta (Bowman et al. 2016; cyclical: Fu et al. 2019), free bits (Kingma et al. 2016), pretraining as an autoencoder with a new
decoder after it (Li et al. 2019), a batch-normalised posterior mean (Zhu et al. 2020), more updates of the encoder than of the
decoder (He et al. 2019) and word dropout (Bowman et al. 2016). With latent_size 0 the model is its own twin: the decoder alone,
an LSTM language model.
"""

import math
from collections.abc import Mapping
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

    latent_size: 0 for a language model without a code. word_dropout: share of the decoder's input words replaced by unk_id in
    training. beta: weight of the KL. annealing: how beta gets there, over the first `annealing_share` of the steps from
    `beta_start`; "cyclical" does so `cycles` times, rising in the first half of each. free_bits: nats per dimension that the KL
    is not pressed below, each sentence by itself (free_bits_over "sample") or on the batch's mean ("batch").
    pretraining_share: share of the steps trained with beta 0, after which the decoder begins anew and annealing starts.
    posterior_deviation: if not 0, the deviation (gamma) that batch normalisation gives the posterior mean in every dimension;
    the KL is then at least latent_size gamma^2 / 2 nats on average. aggressive_steps: updates of the encoder alone before each
    one of the decoder alone, in the first `aggressive_share` of the steps.
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
    pretraining_share: float = 0.0
    posterior_deviation: float = 0.6
    aggressive_steps: int = 0
    aggressive_share: float = 0.25
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embedding_size", "encoder_size", "decoder_size", "cycles"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.latent_size < 0:
            raise InputError(f"latent_size = {self.latent_size}: must be 0 (a language model without a code) or more")
        if self.aggressive_steps < 0:
            raise InputError(f"aggressive_steps = {self.aggressive_steps}: must be at least 0")
        for name in ("dropout", "word_dropout", "pretraining_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0 and below 1")
        for name in ("beta", "beta_start", "free_bits", "posterior_deviation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0")
        for name in ("annealing_share", "aggressive_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be above 0 and at most 1")

    def pretraining_steps(self, total_steps: int) -> int:
        """How many steps the model is trained as an autoencoder."""
        return round(self.pretraining_share * total_steps)

    def beta_at(self, step: int, total_steps: int) -> float:
        """The weight of the KL at a step (1, 2, ...)."""
        pretraining = self.pretraining_steps(total_steps)
        step, total_steps = step - pretraining, total_steps - pretraining
        if pretraining and step < 1:
            return 0.0
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
    """The decoder between two steps, for B rows: h and c F (1, B, H), z F (B, D) (D 0 without a code)."""

    h: Array
    c: Array
    z: Array

    def select(self, indices: Any) -> "TextVAEState":
        """Rows reordered, repeated or dropped."""
        indices = np.asarray(indices, np.int64)
        pick = ops.contiguous
        return TextVAEState(pick(self.h[:, indices]), pick(self.c[:, indices]), self.z[indices])


class TextVAE(nn.Module):
    """Sentences to codes and back. Ids are int64 (T, N), time-major."""

    capturable = True

    def __init__(self, config: TextVAEConfig) -> None:
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        if config.latent_size:
            self.encoder = nn.LSTM(config.embedding_size, config.encoder_size, bidirectional=config.bidirectional)
            encoded = config.encoder_size * (2 if config.bidirectional else 1)
            self.posterior = nn.GaussianLatent(encoded, config.latent_size)
            if config.posterior_deviation:
                self.norm = nn.BatchNorm(config.latent_size, config.posterior_deviation)
            self.bridge = nn.Linear(config.latent_size, 2 * config.decoder_size)
        self.decoder = nn.LSTM(config.embedding_size + config.latent_size, config.decoder_size)
        self.output = TiedOutput(config.decoder_size, self.embedding)
        self._input_scale = math.sqrt(config.embedding_size)  # as in Seq2Seq
        self._beta = config.beta
        self._treated_at = 0  # the step after which `treat` lets the schedules begin

    # Training ---------------------------------------------------------------------------------------------------------------

    def on_step(self, step: int, total_steps: int) -> None:
        """Called by training before each step: sets beta; after the pretraining the decoder begins anew."""
        step, total_steps = step - self._treated_at, total_steps - self._treated_at
        self._beta = self.config.beta_at(step, total_steps)
        if self.config.pretraining_share and step == self.config.pretraining_steps(total_steps) + 1:
            self._begin_anew(step, ("bridge.", "decoder.", "output."))

    def beta_at(self, step: int, total_steps: int) -> float:
        """The weight of the KL at a step, also after a treatment."""
        return self.config.beta_at(step - self._treated_at, total_steps - self._treated_at)

    def treat(self, step: int, settings: Mapping[str, Any]) -> None:
        """Train on under other settings of the config (none that changes a shape), whose schedules begin after this step.

        All but the embedding begins anew: neither half of a collapsed model gives the other one a gradient to start from.
        """
        self.retake(step, settings)
        self._begin_anew(step, ("encoder.", "posterior.", "norm.", "bridge.", "decoder.", "output."))

    def retake(self, step: int, settings: Mapping[str, Any]) -> None:
        """The settings of a treatment that was begun after this step, for weights from a later one."""
        self.config = msgspec.structs.replace(self.config, **settings)
        self._treated_at = step

    def on_gradients(self, step: int, total_steps: int) -> None:
        """Called by training between the gradients and the update: withholds those of the side whose turn it is not."""
        if self.config.latent_size and self.config.posterior_deviation:
            self.norm.update()
        step, total_steps = step - self._treated_at, total_steps - self._treated_at
        every = self.config.aggressive_steps + 1
        if every > 1 and step <= self.config.aggressive_share * total_steps:
            encoders_turn = step % every != 0
            for name, parameter in self.named_parameters():
                if name.startswith(("encoder.", "posterior.", "norm.")) != encoders_turn:
                    parameter.grad = None

    def _begin_anew(self, seed: int, prefixes: tuple[str, ...]) -> None:
        """New weights for the parameters whose names begin so; the embedding, which both sides share, is none of them."""
        with nn.init_scope(seed):
            new = TextVAE(self.config)
        fresh = new.state_dict()
        for name, parameter in self.named_parameters():
            if name.startswith(prefixes):
                parameter.data[...] = ops.asarray(fresh[name], like=parameter.data)
                parameter.version += 1

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
        if not config.latent_size:
            losses = self.output.loss(self._write(self._drop_words(ids_in, seed), lengths, None), ids_out)
            total = F.sum(losses)
            return total, int(losses.shape[0]), {"reconstruction": total.item() / rows}
        if beta is None:
            beta = self._beta if self.training else 1.0
        mu, logvar = self._posterior(ids_out, lengths)
        eps = ops.random_normal(seed, _EPS_STREAM, 0, (rows, config.latent_size), mu.dtype, mu.data)
        free_bits = config.free_bits if self.training else 0.0
        z, kl = F.gaussian_kl(mu, logvar, eps, free_bits, config.free_bits_over)
        losses = self.output.loss(self._write(self._drop_words(ids_in, seed), lengths, z), ids_out)
        reconstruction, kl_sum = F.sum(losses), F.sum(kl)
        true_kl = kl_sum.item()
        if free_bits:
            true_kl = float(ops.sum(ops.gaussian_kl(mu.data, logvar.data, eps)[1]))
        info = {"reconstruction": reconstruction.item() / rows, "kl": true_kl / rows, "beta": beta}
        return reconstruction + kl_sum * beta, int(losses.shape[0]), info

    def _drop_words(self, ids_in: Ids, seed: int) -> Ids:
        """The decoder's inputs, in training with words replaced by unk_id, but for the first (bos_id)."""
        if not self.training or not self.config.word_dropout:
            return ids_in
        dropped = ops.random_uniform(seed, _WORD_STREAM, 0, ids_in.shape) < self.config.word_dropout
        dropped[0] = False
        return np.where(dropped, self.config.unk_id, ids_in)

    def _embed(self, ids: Ids) -> Tensor:
        return F.mul(self.embedding(ids), self._input_scale)

    def _read(self, ids: Ids, lengths: Ids | None) -> Tensor:
        """The encoder's final state F (N, C) for ids (T, N), which may end in -1."""
        _, (h, _) = self.encoder(self._embed(np.where(ids >= 0, ids, self.config.pad_id)), lengths=lengths)
        return F.concat([h[0], h[1]], axis=1) if self.config.bidirectional else h[0]

    def _posterior(self, ids: Ids, lengths: Ids | None) -> tuple[Tensor, Tensor]:
        """mu and logvar F (N, D) of q(z|x)."""
        hidden = self._read(ids, lengths)
        mu, logvar = self.posterior.mu(hidden), self.posterior.logvar(hidden)
        return self.norm(mu) if self.config.posterior_deviation else mu, logvar

    def _first_state(self, z: Tensor) -> tuple[Tensor, Tensor]:
        size, rows = self.config.decoder_size, z.shape[0]
        first = self.bridge(z)
        c = first[:, size:]
        return F.reshape(F.tanh(first[:, :size]), (1, rows, size)), F.reshape(c, (1, rows, size))

    def _write(self, ids_in: Ids, lengths: Ids | None, z: Tensor | None) -> Tensor:
        """The decoder's features F (T, N, H) for given inputs."""
        steps, rows = ids_in.shape
        inputs, first = self.dropout(self._embed(ids_in)), None
        if z is not None and self.config.latent_size:
            repeated = F.reshape(F.embedding(np.tile(np.arange(rows), steps), z), (steps, rows, z.shape[1]))
            inputs, first = F.concat([inputs, repeated], axis=2), self._first_state(z)
        y, _ = self.decoder(inputs, first, lengths=lengths)
        features: Tensor = self.dropout(y)
        return features

    # Use --------------------------------------------------------------------------------------------------------------------

    def encode(self, ids: Ids, lengths: Ids | None = None) -> tuple[Array, Array]:
        """mu and logvar F (N, D) of q(z|x). ids (T, N) as ids_out in training: each sentence with its eos_id."""
        if not self.config.latent_size:
            raise InputError("this model has no latent code (latent_size 0)")
        with autograd.no_grad():
            mu, logvar = self._posterior(ids, lengths)
            return ops.to_host(mu.data), ops.to_host(logvar.data)

    def reconstruction(self, ids_in: Ids, ids_out: Ids, lengths: Ids | None, z: Array | None) -> Array:
        """-log p(x|z) F (N,) in nats, each sentence with its own row of z F (N, D); without dropout in eval mode."""
        with autograd.no_grad():
            features = self._write(ids_in, lengths, None if z is None else F.as_tensor(z))
            losses = F.linear_cross_entropy(
                self.output.projection(features), self.output.vocabulary.weight, self.output.vocabulary.bias, ids_out
            )
            return ops.to_host(ops.sum(losses.data, axis=0))

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
        bias = self.output.vocabulary.bias
        assert bias is not None
        device = bias.data
        if not self.config.latent_size:
            zeros = ops.zeros((1, len(z), self.config.decoder_size), device.dtype, device)
            return TextVAEState(zeros, zeros, z)
        with autograd.no_grad():
            z = ops.asarray(z, like=device)
            h, c = self._first_state(F.as_tensor(z))
            return TextVAEState(h.data, c.data, z)

    def step(self, ids: Ids, state: TextVAEState) -> tuple[Array, TextVAEState]:
        """One step: ids int64 (B,) -> logits F (B, V) of the next id, and the state after it."""
        embedded = ops.mul(self.embedding.infer(ids), self._input_scale)
        if self.config.latent_size:
            embedded = ops.concat([embedded, state.z], axis=1)
        y, (h, c) = self.decoder.infer(embedded[None], (state.h, state.c))
        return self.output.infer(y[0]), TextVAEState(h, c, state.z)

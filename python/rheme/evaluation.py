"""How good a text VAE is, honestly: -ELBO, importance-weighted likelihood, mutual information, active units.

Everything after the model's own float32 is float64, through `ops`. Noise is a function of (seed, sentence, draw), so that a
figure does not depend on how the sentences are batched.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import ops
from rheme.text.batches import length_batches, pad

Array = NDArray[Any]

_LOG_2PI = math.log(2.0 * math.pi)
_BLOCK = 512  # rows of the aggregate posterior's densities at a time


@dataclass(frozen=True)
class LatentReport:
    """Figures of a VAE on N sentences; nats per sentence but for the perplexities, which are per word (ends are words).

    neg_elbo = reconstruction + kl, an upper bound of nll. kl_per_dimension sums to kl. mutual_information: of sentence and
    code under q (at most log N). active_units: dimensions whose posterior mean varies. nll: importance-weighted (nan
    without importance samples), perplexity from it; elbo_perplexity from neg_elbo.
    """

    sentences: int
    words: int
    neg_elbo: float
    reconstruction: float
    kl: float
    kl_per_dimension: tuple[float, ...]
    mutual_information: float
    active_units: int
    elbo_perplexity: float
    importance_samples: int = 0
    nll: float = math.nan
    perplexity: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without what was not estimated."""
        values = asdict(self)
        if not self.importance_samples:
            for name in ("importance_samples", "nll", "perplexity"):
                del values[name]
        return values


def evaluate_vae(
    model: Any,
    sentences: Sequence[Sequence[int]],
    samples: int = 1,
    importance_samples: int = 0,
    seed: int = 0,
    batch_tokens: int = 4096,
) -> LatentReport:
    """The report of a `TextVAE` on sentences of ids (without begin and end).

    samples: draws of z per sentence for the reconstruction term. importance_samples: draws per sentence for nll (Burda et al.
    2016; 0: not estimated). batch_tokens bounds memory and changes nothing else. Raises ValueError for no sentences.
    """
    if not sentences:
        raise ValueError("evaluate_vae: no sentences")
    config, model = model.config, model.eval()
    count, size = len(sentences), config.latent_size
    mu, logvar = np.empty((count, size)), np.empty((count, size))
    reconstruction, log_evidence = np.empty(count), np.empty(count)
    first_draw = np.empty((count, size))
    for batch in length_batches([len(s) + 1 for s in sentences], batch_tokens):
        ids_in, _ = pad([[config.bos_id, *sentences[i]] for i in batch], config.pad_id)
        ids_out, lengths = pad([[*sentences[i], config.eos_id] for i in batch], -1)
        means, logvars = (a.astype(np.float64) for a in model.encode(ids_out, lengths))

        def log_likelihood(
            z: Array, ids_in: Array = ids_in, ids_out: Array = ids_out, lengths: Array = lengths
        ) -> Array:  # z (K, N, D) -> (K, N)
            draws, rows = z.shape[:2]
            nll = model.reconstruction(
                np.tile(ids_in, draws),
                np.tile(ids_out, draws),
                np.tile(lengths, draws),
                np.ascontiguousarray(z.reshape(draws * rows, -1), model.embedding.weight.dtype),
            )
            return ops.neg(nll.astype(np.float64)).reshape(draws, rows)

        at_once = max(1, batch_tokens // ids_in.size)
        eps = noise(seed, batch, samples, size)
        z = draw(means, logvars, eps)
        likelihoods = _in_chunks(log_likelihood, z, at_once)
        mu[batch], logvar[batch], first_draw[batch] = means, logvars, z[0]
        reconstruction[batch] = ops.neg(ops.mean(likelihoods, axis=0))
        if importance_samples:
            eps = noise(seed + 1, batch, importance_samples, size)
            estimate = importance_weighted(lambda z: _in_chunks(log_likelihood, z, at_once), means, logvars, eps)  # noqa: B023
            log_evidence[batch] = estimate
    words = sum(len(s) + 1 for s in sentences)
    _, kls = ops.gaussian_kl(mu, logvar, np.zeros_like(mu))
    per_dimension = ops.mean(kls, axis=0)
    kl, mean_reconstruction = float(ops.sum(per_dimension)), float(ops.mean(reconstruction))
    nll = -float(ops.mean(log_evidence)) if importance_samples else math.nan
    return LatentReport(
        sentences=count,
        words=words,
        neg_elbo=mean_reconstruction + kl,
        reconstruction=mean_reconstruction,
        kl=kl,
        kl_per_dimension=tuple(per_dimension.tolist()),
        mutual_information=mutual_information(mu, logvar, first_draw),
        active_units=active_units(mu),
        elbo_perplexity=_perplexity(mean_reconstruction + kl, count, words),
        importance_samples=importance_samples,
        nll=nll,
        perplexity=_perplexity(nll, count, words),
    )


def _perplexity(nats_per_sentence: float, sentences: int, words: int) -> float:
    exponent = nats_per_sentence * sentences / words
    return math.exp(exponent) if exponent < 700 else math.inf


def _in_chunks(function: Callable[[Array], Array], z: Array, at_once: int) -> Array:
    """function(z) with the first axis of z in pieces."""
    parts = [function(z[start : start + at_once]) for start in range(0, len(z), at_once)]
    return ops.concat(parts) if len(parts) > 1 else parts[0]


def noise(seed: int, rows: Sequence[int], draws: int, size: int) -> Array:
    """Standard normal float64 (draws, len(rows), size); a row's numbers depend on (seed, row) alone."""
    eps = np.empty((draws, len(rows), size))
    for position, row in enumerate(rows):
        eps[:, position] = ops.random_normal(seed, int(row), 0, (draws, size), np.float64)
    return eps


def draw(mu: Array, logvar: Array, eps: Array) -> Array:
    """z = mu + exp(logvar / 2) eps: mu and logvar (N, D), eps (K, N, D) -> (K, N, D)."""
    return ops.add(ops.mul(eps, ops.exp(ops.mul(logvar, 0.5))), mu)


def importance_weighted(log_likelihood: Callable[[Array], Array], mu: Array, logvar: Array, eps: Array) -> Array:
    """log p(x) estimated as log mean_k p(x|z_k) p(z_k) / q(z_k|x), a lower bound in expectation (Burda et al. 2016).

    log_likelihood: z (K, N, D) -> log p(x|z) (K, N); mu, logvar float64 (N, D) of q(z|x); eps (K, N, D). Returns (N,).
    """
    z = draw(mu, logvar, eps)
    # log p(z) - log q(z|x): the constants of the two Gaussians cancel.
    ratio = ops.sum(ops.add(ops.sub(ops.mul(eps, eps), ops.mul(z, z)), logvar), axis=2)
    weights = ops.add(log_likelihood(z), ops.mul(ratio, 0.5))
    return ops.sub(ops.logsumexp(weights, axis=0), math.log(len(eps)))


def mutual_information(mu: Array, logvar: Array, z: Array) -> float:
    """I_q(x, z) in nats, with the aggregate posterior q(z) = mean_n q(z|x_n) of the same N sentences (He et al. 2019).

    mu, logvar, z (N, D), z_n a draw from q(z|x_n). The mean of log q(z_n|x_n) - log q(z_n), both at the draw: exactly 0 for a
    collapsed posterior, and less noisy than with the first term's expectation. At most log N.
    """
    mu, logvar, z = (np.ascontiguousarray(a, np.float64) for a in (mu, logvar, z))
    count, size = mu.shape
    precision = ops.exp(ops.neg(logvar))
    # log q(z|x_n) = z^2 . (-precision / 2) + z . (mu precision) + constant_n: a product of matrices.
    weight = ops.concat([ops.mul(precision, -0.5), ops.mul(mu, precision)], axis=1)
    squares = ops.sum(ops.add(ops.mul(ops.mul(mu, mu), precision), logvar), axis=1)
    constant = ops.mul(ops.add(squares, size * _LOG_2PI), -0.5)
    own, log_q = np.empty(count), np.empty(count)
    for start in range(0, count, _BLOCK):
        part = np.ascontiguousarray(z[start : start + _BLOCK])
        densities = ops.linear(ops.concat([ops.mul(part, part), part], axis=1), weight, constant)
        rows = np.arange(len(part))
        own[start : start + _BLOCK] = densities[rows, start + rows]
        log_q[start : start + _BLOCK] = ops.logsumexp(densities, axis=1)
    return float(ops.mean(ops.sub(own, log_q))) + math.log(count)


def active_units(mu: Array, threshold: float = 0.01) -> int:
    """How many dimensions of the posterior mean (N, D) vary by more than the threshold (Burda et al. 2016)."""
    mu = np.ascontiguousarray(mu, np.float64)
    off = ops.sub(mu, ops.mean(mu, axis=0))
    variance = ops.div(ops.sum(ops.mul(off, off), axis=0), float(max(len(mu) - 1, 1)))
    return int(np.count_nonzero(variance > threshold))

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
from rheme.text.batches import length_batches, shifted

Array = NDArray[Any]

_LOG_2PI = math.log(2.0 * math.pi)
_BLOCK = 512  # rows of the aggregate posterior's densities at a time


@dataclass(frozen=True)
class LatentReport:
    """Figures of a VAE on N sentences; nats per sentence but for the perplexities, which are per word (ends are words).

    neg_elbo = reconstruction + kl, an upper bound of nll. kl_per_dimension sums to kl. mutual_information: of sentence and
    code under q (at most log N). active_units: dimensions whose posterior mean varies. nll: importance-weighted (nan
    without importance samples), perplexity from it; elbo_perplexity from neg_elbo. A model without a code has nll = neg_elbo,
    exactly.
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
            del values["importance_samples"]
        if math.isnan(self.nll):
            for name in ("nll", "perplexity"):
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
    2016; 0: not estimated). batch_tokens bounds memory and changes nothing else. For a model without a code (latent_size 0) the
    likelihood is exact. Raises ValueError for no sentences.
    """
    if not sentences:
        raise ValueError("evaluate_vae: no sentences")
    config, model = model.config, model.eval()
    count, size = len(sentences), config.latent_size
    words = sum(len(s) + 1 for s in sentences)
    mu, logvar = np.empty((count, size)), np.empty((count, size))
    reconstruction, log_evidence = np.empty(count), np.empty(count)
    first_draw = np.empty((count, size))
    for batch in length_batches([len(s) + 1 for s in sentences], batch_tokens):
        some = [sentences[i] for i in batch]
        ids_in, ids_out, lengths = shifted(some, config.bos_id, config.eos_id, config.pad_id)
        if not size:
            reconstruction[batch] = model.reconstruction(ids_in, ids_out, lengths, None)
            continue
        means, logvars = (a.astype(np.float64) for a in model.encode(ids_out, lengths))

        log_likelihood = _log_likelihood(model, ids_in, ids_out, lengths)
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
    if not size:
        nll = float(ops.mean(reconstruction))
        perplexity = _perplexity(nll, count, words)
        return LatentReport(count, words, nll, nll, 0.0, (), 0.0, 0, perplexity, 0, nll, perplexity)
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


def sentence_nll(
    model: Any, sentences: Sequence[Sequence[int]], importance_samples: int = 8, seed: int = 0, batch_tokens: int = 4096
) -> Array:
    """-log p(x) float64 (N,) in nats of each sentence of ids, importance-weighted (exact without a code).

    Every sentence gets the same draws, so that its figure does not depend on what it stands beside.
    """
    config, found = model.config, np.empty(len(sentences))
    model.eval()
    for batch in length_batches([len(s) + 1 for s in sentences], batch_tokens):
        some = [sentences[i] for i in batch]
        ids_in, ids_out, lengths = shifted(some, config.bos_id, config.eos_id, config.pad_id)
        if not config.latent_size:
            found[batch] = model.reconstruction(ids_in, ids_out, lengths, None)
            continue
        mu, logvar = (a.astype(np.float64) for a in model.encode(ids_out, lengths))
        log_likelihood = _log_likelihood(model, ids_in, ids_out, lengths)
        eps = noise(seed, [0] * len(batch), importance_samples, config.latent_size)
        at_once = max(1, batch_tokens // ids_in.size)
        estimate = importance_weighted(lambda z: _in_chunks(log_likelihood, z, at_once), mu, logvar, eps)  # noqa: B023
        found[batch] = ops.neg(estimate)
    return found


def _log_likelihood(model: Any, ids_in: Array, ids_out: Array, lengths: Array) -> Callable[[Array], Array]:
    """z (K, N, D) -> log p(x|z) float64 (K, N), for a batch of N sentences."""

    def log_likelihood(z: Array) -> Array:
        draws, rows = z.shape[:2]
        nll = model.reconstruction(
            np.tile(ids_in, draws),
            np.tile(ids_out, draws),
            np.tile(lengths, draws),
            np.ascontiguousarray(z.reshape(draws * rows, -1), model.embedding.weight.dtype),
        )
        return ops.neg(nll.astype(np.float64)).reshape(draws, rows)

    return log_likelihood


@dataclass(frozen=True)
class Calibration:
    """What a model finds usual: the nats of validation sentences, given their number of tokens.

    A sentence of n tokens is expected to cost intercept + slope / n nats a token, with deviation spread / sqrt(n). quantiles:
    of the validation sentences' deviations from that, in units of the spread, 101 of them from the least to the greatest.
    """

    intercept: float
    slope: float
    spread: float
    quantiles: tuple[float, ...]

    @classmethod
    def fit(cls, nats: Sequence[float], tokens: Sequence[int]) -> "Calibration":
        """Least squares over the validation sentences. ValueError for fewer than 2."""
        if len(nats) < 2:
            raise ValueError("a calibration needs at least 2 sentences")
        # cost a token against 1 / n, each sentence with the weight n that its deviation of 1 / sqrt(n) gives it
        weight = [float(n) for n in tokens]
        x, y = [1.0 / n for n in tokens], [cost / n for cost, n in zip(nats, tokens, strict=True)]
        total = math.fsum(weight)
        mean_x = math.fsum(w * v for w, v in zip(weight, x, strict=True)) / total
        mean_y = math.fsum(w * v for w, v in zip(weight, y, strict=True)) / total
        square = math.fsum(w * (v - mean_x) ** 2 for w, v in zip(weight, x, strict=True))
        product = math.fsum(w * (v - mean_x) * (u - mean_y) for w, v, u in zip(weight, x, y, strict=True))
        slope = product / square if square > 1e-12 else 0.0
        plain = cls(mean_y - slope * mean_x, slope, 1.0, ())
        off = [plain.deviation(cost, n) for cost, n in zip(nats, tokens, strict=True)]
        spread = math.sqrt(math.fsum(v * v for v in off) / len(off)) or 1.0
        ordered = sorted(v / spread for v in off)
        quantiles = tuple(ordered[round(q * (len(ordered) - 1) / 100)] for q in range(101))
        return cls(plain.intercept, slope, spread, quantiles)

    def deviation(self, nats: float, tokens: int) -> float:
        """How much dearer a sentence is than usual, in units of the spread; below 0: cheaper."""
        return (nats / tokens - self.intercept - self.slope / tokens) * math.sqrt(tokens) / self.spread

    def confidence(self, nats: float, tokens: int) -> float:
        """The share of validation sentences that cost more than this one: about uniform on text like the validation's."""
        value = self.deviation(nats, tokens)
        return sum(quantile >= value for quantile in self.quantiles) / len(self.quantiles)


def _perplexity(nats_per_sentence: float, sentences: int, words: int) -> float:
    exponent = nats_per_sentence * sentences / words
    return math.inf if exponent >= 700 else math.exp(exponent)  # not-a-number stays one


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

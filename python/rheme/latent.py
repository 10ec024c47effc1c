"""The latent space of a text VAE: sentences to codes and back, and what can be done with codes in between.

A `LatentSpace` stands on a task that has a `model` (`encode`: ids to mu and logvar), a `tokenizer` and `decode` (codes to
sentences); `shift` also writes with the model itself. Sums over codes go through `ops`, so that all of it has the same bits
everywhere.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheme import ops, pictures, transfer
from rheme.errors import InputError
from rheme.text.batches import length_batches, pad

Array = NDArray[Any]

_BATCH_TOKENS = 4096
_POWER_STEPS = 200  # of the power iteration that finds a picture's axes


class LatentSpace:
    """What a task's codes can do. Codes are F (N, D), a row a sentence."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.size: int = task.config.model.latent_size

    # To codes and back ------------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """mu and logvar F (N, D) of q(z|x) for each text. InputError for an empty one."""
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise InputError(f"text {number} is empty: there is nothing to encode")
        model, tokenizer = self.task.model, self.task.tokenizer
        items = tokenizer.encode(texts)
        mu = np.empty((len(items), self.size), model.embedding.weight.dtype)
        logvar = np.empty_like(mu)
        for batch in length_batches([len(ids) + 1 for ids in items], _BATCH_TOKENS):
            ids, lengths = pad([[*items[i], tokenizer.eos_id] for i in batch], -1)
            mu[batch], logvar[batch] = model.encode(ids, lengths)
        return mu, logvar

    def sample(self, text: str, count: int = 1, seed: int = 0, temperature: float = 1.0) -> Array:
        """Draws F (count, D) from q(z|x), its deviation scaled by temperature."""
        (mu,), (logvar,) = self.encode([text])
        deviation = ops.mul(ops.exp(ops.mul(logvar, 0.5)), temperature)
        return ops.add(ops.mul(self.task.model.prior(count, seed), deviation), mu)

    def decode(self, codes: Any, **options: Any) -> list[str]:
        """The sentence of each code. options: as for generating. InputError for codes of another size, or not finite."""
        try:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told below
                z = np.ascontiguousarray(codes, self.task.model.embedding.weight.dtype)
        except OverflowError:
            raise InputError("a code must hold finite numbers only") from None
        except (TypeError, ValueError):
            raise InputError(f"codes must be rows of {self.size} numbers each") from None
        z = z[None] if z.ndim == 1 else z
        if z.ndim != 2 or z.shape[1] != self.size:
            raise InputError(f"codes of shape {z.shape}: this model's have {self.size} numbers each")
        if not np.isfinite(z).all():
            raise InputError("a code must hold finite numbers only")
        return [result.text for result in self.task.decode(z, **options)]

    # Between and around sentences -------------------------------------------------------------------------------------------

    def mix(self, first: str, second: str, steps: int = 7, spherical: bool = False, **options: Any) -> list[str]:
        """Sentences on the way from one to the other, both ends as the model reconstructs them.

        Along the straight line, or (spherical) along the great circle with the lengths interpolated (White 2016), which stays
        where the prior has its mass.
        """
        if steps < 2:
            raise InputError(f"steps = {steps}: must be at least 2")
        mu, _ = self.encode([first, second])
        path = spherical_path if spherical else straight_path
        return self.decode(path(mu[0], mu[1], steps), **options)

    def walk(self, text: str, dim: int, steps: int = 7, reach: float = 2.0, **options: Any) -> list[tuple[float, str]]:
        """The text's sentence with dimension ``dim`` of its code at values from -reach to reach: (value, sentence) pairs."""
        if not 0 <= dim < self.size:
            raise InputError(f"dim = {dim}: this model's codes have dimensions 0 to {self.size - 1}")
        if steps < 2:
            raise InputError(f"steps = {steps}: must be at least 2")
        mu, _ = self.encode([text])
        most = float(np.finfo(mu.dtype).max)
        if not 0 < reach <= most:
            raise InputError(f"reach = {reach}: must be above 0 and at most {most:.2g}")
        z = np.repeat(mu, steps, axis=0)
        values = [reach * (2.0 * i / (steps - 1) - 1.0) for i in range(steps)]
        z[:, dim] = values
        return list(zip(values, self.decode(z, **options), strict=True))

    def neighbours(self, text: str, among: Sequence[str], count: int = 5) -> list[tuple[float, str]]:
        """The texts nearest to one by the cosine of their codes: (cosine, text), best first, ties in the order given."""
        if not among:
            raise InputError("there are no texts to look for neighbours in")
        mu, _ = self.encode([text, *among])
        unit = _unit(mu.astype(np.float64))
        cosines = ops.linear(unit[1:], np.ascontiguousarray(unit[:1]))[:, 0]
        order = np.argsort(-cosines, kind="stable")[:count]
        return [(float(cosines[i]), among[i]) for i in order]

    def direction(self, from_texts: Sequence[str], to_texts: Sequence[str]) -> Array:
        """F (D,): from the mean code of some texts to that of others, such as from statements to questions."""
        means = []
        for name, texts in (("from", from_texts), ("to", to_texts)):
            if not texts:
                raise InputError(f"direction: no texts to go {name}")
            means.append(ops.mean(self.encode(texts)[0], axis=0))
        return ops.sub(means[1], means[0])

    def shift(
        self, texts: Sequence[str], direction: Any, strength: float = 1.0, keep: float = transfer.KEEP, **options: Any
    ) -> list[str]:
        """Each text changed along a direction, such as to a question, with as many of its words as can be.

        strength: how far along the direction, which leads from mean to mean; below 0 the other way. keep: nats a piece that all
        the words kept are worth against none of them, in a search among sentences (`rheme.transfer`). With keep 0 there is no
        search: the moved code alone is decoded, which soon says something else altogether. options: as for generating.
        """
        if not math.isfinite(strength):
            raise InputError(f"strength = {strength}: must be finite")
        if not 0 <= keep < math.inf:
            raise InputError(f"keep = {keep}: must be at least 0 (0: decode the moved code alone) and finite")
        mu, _ = self.encode(texts)
        try:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told below
                move = np.asarray(direction, mu.dtype)
        except OverflowError:
            raise InputError("a direction must hold finite numbers only") from None
        except (TypeError, ValueError):
            raise InputError(f"a direction must be {self.size} numbers") from None
        if move.shape != (self.size,):
            raise InputError(f"a direction of shape {move.shape}: this model's have {self.size} numbers")
        with np.errstate(over="ignore"):
            move = ops.mul(move, strength)
        if not np.isfinite(move).all():
            raise InputError("a direction must hold finite numbers only")
        if not keep:
            return self.decode(ops.add(mu, move), **options)
        rewrite = transfer.Transfer(self.task, move, keep, options)
        found = [rewrite(text, code) for text, code in zip(texts, mu, strict=True)]
        return [
            self.decode(ops.add(code, move), **options)[0] if written is None else written
            for written, code in zip(found, mu, strict=True)
        ]

    # A picture --------------------------------------------------------------------------------------------------------------

    def map(self, texts: Sequence[str]) -> Array:
        """Places F (N, 2) of the texts' codes on their two principal axes."""
        if len(texts) < 3:
            raise InputError(f"a map needs at least 3 texts, not {len(texts)}")
        mu = self.encode(texts)[0].astype(np.float64)
        return principal_axes(mu)

    def picture(self, texts: Sequence[str], path: str | Path, labels: Sequence[str] | None = None) -> Path:
        """The map as a picture; labels colour the points. InputError where matplotlib is not installed."""
        figure = pictures.figure(8, 8)
        places = self.map(texts)
        ax = figure.subplots()
        names = labels or [""] * len(texts)
        for name in dict.fromkeys(names):
            rows = [i for i, other in enumerate(names) if other == name]
            ax.scatter(places[rows, 0], places[rows, 1], s=12, label=name or None, alpha=0.7)
        if labels:
            ax.legend()
        if len(texts) <= 60:
            for text, (x, y) in zip(texts, places, strict=True):
                shown = text if len(text) <= 40 else text[:39] + "…"
                ax.annotate(shown.replace("$", r"\$"), (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
        ax.set_xlabel("first principal axis")
        ax.set_ylabel("second principal axis")
        pictures.save(figure, path)
        return Path(path)


def straight_path(first: Array, second: Array, steps: int) -> Array:
    """F (steps, D): points at even distances, both ends included."""
    return _path(first, second, [(1.0 - i / (steps - 1), i / (steps - 1)) for i in range(steps)])


def spherical_path(first: Array, second: Array, steps: int) -> Array:
    """F (steps, D): directions along the great circle, lengths between the two ends'. Codes in line take the straight path."""
    a, b = (np.ascontiguousarray(code, np.float64)[None] for code in (first, second))
    lengths = [math.sqrt(float(ops.sum(ops.mul(code, code)))) for code in (a, b)]
    if min(lengths) < 1e-12:
        return straight_path(first, second, steps)
    cosine = float(ops.sum(ops.mul(a, b))) / lengths[0] / lengths[1]
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-6:
        return straight_path(first, second, steps)
    weights = []
    for i in range(steps):
        t = i / (steps - 1)
        length = (1.0 - t) * lengths[0] + t * lengths[1]
        sides = math.sin((1.0 - t) * angle) / lengths[0], math.sin(t * angle) / lengths[1]
        weights.append((length * sides[0] / math.sin(angle), length * sides[1] / math.sin(angle)))
    return _path(first, second, weights)


def _path(first: Array, second: Array, weights: Sequence[tuple[float, float]]) -> Array:
    return np.stack([ops.add(ops.mul(first, a), ops.mul(second, b)) for a, b in weights])


def _unit(rows: Array) -> Array:
    """Rows F (N, D) scaled to length 1; a row of zeros stays one."""
    squares = ops.sum(ops.mul(rows, rows), axis=1, keepdims=True)
    scale = ops.exp(ops.mul(ops.log(np.maximum(squares, 1e-300)), -0.5))
    return ops.mul(rows, scale)


def principal_axes(rows: Array) -> Array:
    """float64 (N, 2): the rows F (N, D) on the two axes along which they vary most (Hotelling 1933; by power iteration).

    An axis points to the side of its largest component. One axis is 0 where there is only one direction to vary in.
    """
    off = ops.sub(rows, ops.mean(rows, axis=0))
    covariance = ops.matmul(off, off, transpose_a=True)
    size, places = covariance.shape[0], []
    for _ in range(2):
        axis = ops.random_normal(0, 0, 0, (size, 1), np.float64)
        for _ in range(_POWER_STEPS):
            axis = ops.matmul(covariance, axis)
            length = math.sqrt(float(ops.sum(ops.mul(axis, axis))))
            if length < 1e-12:
                break
            axis = ops.div(axis, length)
        if length < 1e-12:
            places.append(np.zeros(len(rows)))
            continue
        largest = float(axis[np.argmax(np.abs(axis)), 0])
        axis = axis if largest > 0 else ops.neg(axis)
        places.append(ops.matmul(off, axis)[:, 0])
        value = float(ops.sum(ops.mul(axis, ops.matmul(covariance, axis))))
        covariance = ops.sub(covariance, ops.mul(ops.matmul(axis, axis, transpose_b=True), value))
    return np.stack(places, axis=1)

"""NumPy, as a careful hand would write it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import works

VERSION = np.__version__
Ways = dict[str, Callable[[], Any]]


def set_threads(threads: int) -> None:
    """By the environment (OPENBLAS_NUM_THREADS); nothing here is threaded but products."""


def inverse_cdf(logits: np.ndarray, rng: np.random.Generator, temperature: float) -> np.ndarray:
    scaled = logits * np.float32(1 / temperature)
    np.exp(scaled - scaled.max(-1, keepdims=True), out=scaled)
    sums = np.cumsum(scaled, -1)
    points = rng.random(len(logits), np.float32) * sums[:, -1]
    return np.array([min(np.searchsorted(row, p, "right"), len(row) - 1) for row, p in zip(sums, points, strict=True)])


def sampling(case: works.Case, data: works.Arrays) -> Ways:
    logits, rng = data["logits"], np.random.default_rng(0)
    k, p, temperature = case.top_k, case.top_p, works.TEMPERATURE

    def gumbel() -> np.ndarray:
        noise = -np.log(rng.standard_exponential(logits.shape, np.float32))
        return np.argmax(logits * np.float32(1 / temperature) + noise, -1)

    def among(ids: np.ndarray, mass: np.ndarray | None = None) -> np.ndarray:
        values = np.take_along_axis(logits, ids, -1)
        if p < 1:
            order = np.argsort(-values, -1)
            ids, values = np.take_along_axis(ids, order, -1), np.take_along_axis(values, order, -1)
            weights = np.exp((values - values[:, :1]) * np.float32(1 / temperature))
            total = weights.sum(-1, keepdims=True) if mass is None else mass[:, None]
            before = np.cumsum(weights, -1) - weights
            values = np.where(before >= p * total, -np.inf, values).astype(np.float32)
        return np.take_along_axis(ids, inverse_cdf(values, rng, temperature)[:, None], -1)[:, 0]

    def few() -> np.ndarray:
        return among(np.argpartition(logits, case.V - k, -1)[:, case.V - k :])

    def nucleus() -> np.ndarray:
        top = logits.max(-1, keepdims=True)
        total = np.exp((logits - top) * np.float32(1 / temperature)).sum(-1)
        count = 1024
        while count < case.V:
            ids = np.argpartition(logits, case.V - count, -1)[:, case.V - count :]
            held = np.exp((np.take_along_axis(logits, ids, -1) - top) * np.float32(1 / temperature)).sum(-1)
            if (held >= p * total).all():
                return among(ids, total)
            count *= 8
        return among(np.argsort(-logits, -1), total)

    if k:
        return {"argpartition": few}
    if p < 1:
        return {"argpartition first": nucleus}
    return {"Gumbel": gumbel, "inverse CDF": lambda: inverse_cdf(logits, rng, temperature)}

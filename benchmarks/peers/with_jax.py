"""JAX: jit-compiled, the recurrence by lax.scan with the input product of all steps before it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import works
from jax import numpy as jnp

VERSION = jax.__version__
Ways = dict[str, Callable[[], Any]]


def set_threads(threads: int) -> None:
    """By the environment and the process' affinity, before JAX starts: see __main__.py."""


def to_numpy(answer: Any) -> Any:
    return [np.asarray(a) for a in jax.tree_util.tree_leaves(answer)]


def _blocked(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    compiled = jax.jit(function)
    on_device = jax.device_put(arguments)
    return lambda: jax.block_until_ready(compiled(*on_device))


def _layer(x: Any, w: Any, r: Any, b: Any, state: Any = None, reverse: bool = False) -> tuple[Any, Any]:
    hidden = r.shape[1]
    start = state if state is not None else (jnp.zeros((x.shape[1], hidden)), jnp.zeros((x.shape[1], hidden)))

    def step(carry: Any, pre: Any) -> tuple[Any, Any]:
        h, c = carry
        i, f, g, o = jnp.split(pre + h @ r.T, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return jax.lax.scan(step, start, x @ w.T + b, reverse=reverse)


def _apply(weights: Any, x: Any, case: works.Case) -> Any:
    for layer in range(case.layers):
        parts = []
        for suffix in ("", "_reverse")[: case.R]:
            name = f"l{layer}{suffix}"
            bias = weights[f"bias_ih_{name}"] + weights[f"bias_hh_{name}"]
            args = (x, weights[f"weight_ih_{name}"], weights[f"weight_hh_{name}"], bias)
            parts.append(_layer(*args, reverse=suffix != "")[1])
        x = jnp.concatenate(parts, -1) if case.R == 2 else parts[0]
    return x


def lstm(case: works.Case, data: works.Arrays) -> Ways:
    return {"scan": _blocked(lambda w, x: _apply(w, x, case), data["weights"], data["x"])}


def lstm_train(case: works.Case, data: works.Arrays) -> Ways:
    names = list(data["weights"])

    def gradients(w: Any, x: Any, dy: Any) -> Any:
        _, pull = jax.vjp(lambda w, x: _apply(w, x, case), w, x)
        dw, dx = pull(dy)
        return [dx, *(dw[name] for name in names)]

    return {"scan": _blocked(gradients, data["weights"], data["x"], data["dy"])}


def sampling(case: works.Case, data: works.Arrays) -> Ways:
    logits, keys = data["logits"], iter(jax.random.split(jax.random.key(0), 1 << 16))
    k, p, temperature = case.top_k, case.top_p, works.TEMPERATURE

    def draw(logits: Any, key: Any) -> Any:
        scaled = logits / temperature
        if not k and p == 1:
            return jax.random.categorical(key, scaled)
        values, ids = jax.lax.top_k(scaled, k or case.V)
        if p < 1:
            probabilities = jax.nn.softmax(values)
            values = jnp.where(jnp.cumsum(probabilities, -1) - probabilities >= p, -jnp.inf, values)
        return jnp.take_along_axis(ids, jax.random.categorical(key, values)[:, None], -1)[:, 0]

    compiled, on_device = jax.jit(draw), jax.device_put(logits)
    return {"categorical": lambda: jax.block_until_ready(compiled(on_device, next(keys)))}


def _loss(logits: Any, targets: Any) -> Any:
    at_target = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (jax.scipy.special.logsumexp(logits, axis=-1) - at_target).sum()


def cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    return {"value_and_grad": _blocked(jax.value_and_grad(_loss), data["logits"], data["targets"])}


def linear_cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    def loss(x: Any, w: Any, b: Any, targets: Any) -> Any:
        return _loss(x @ w.T + b, targets)

    arguments = [data[name] for name in ("x", "weight", "bias", "targets")]
    return {"value_and_grad": _blocked(jax.value_and_grad(loss, (0, 1, 2)), *arguments)}


def kl(case: works.Case, data: works.Arrays) -> Ways:
    def both(mu: Any, logvar: Any, eps: Any, dz: Any, dkl: Any) -> Any:
        def formula(mu: Any, logvar: Any) -> Any:
            return mu + jnp.exp(0.5 * logvar) * eps, 0.5 * (mu * mu + jnp.exp(logvar) - 1 - logvar)

        out, pull = jax.vjp(formula, mu, logvar)
        return (*out, *pull((dz, dkl)))

    return {"formula": _blocked(both, *(data[name] for name in ("mu", "logvar", "eps", "dz", "dkl")))}


def train_step(case: works.Case, data: works.Arrays) -> Ways:
    scale = works.EMBEDDING**0.5

    def run_layer(w: Any, part: str, x: Any, state: Any = None) -> Any:
        bias = w[f"{part}.bias_ih_l0"] + w[f"{part}.bias_hh_l0"]
        return _layer(x, w[f"{part}.weight_ih_l0"], w[f"{part}.weight_hh_l0"], bias, state)

    def linear(w: Any, part: str, x: Any) -> Any:
        return x @ w[f"{part}.weight"].T + w[f"{part}.bias"]

    def loss(w: Any, ids_in: Any, ids_out: Any, eps: Any) -> Any:
        (hidden, _), _ = run_layer(w, "encoder", w["embedding.weight"][ids_out] * scale)
        mu, logvar = linear(w, "posterior.mu", hidden), linear(w, "posterior.logvar", hidden)
        z = mu + jnp.exp(0.5 * logvar) * eps
        divergence = 0.5 * (mu * mu + jnp.exp(logvar) - 1 - logvar).sum()
        h, c = jnp.split(linear(w, "bridge", z), 2, -1)
        embedded = w["embedding.weight"][ids_in] * scale
        x = jnp.concatenate([embedded, jnp.broadcast_to(z, (*ids_in.shape, works.LATENT))], -1)
        _, y = run_layer(w, "decoder", x, (jnp.tanh(h), c))
        logits = linear(w, "output.projection", y) @ w["embedding.weight"].T + w["output.vocabulary.bias"]
        return (_loss(logits, ids_out) + divergence) / eps.shape[0]

    def step(state: Any, ids_in: Any, ids_out: Any, eps: Any) -> Any:
        w, m, v, count = state
        value, grads = jax.value_and_grad(loss)(w, ids_in, ids_out, eps)
        norm = jnp.sqrt(sum((g * g).sum() for g in grads.values()))
        factor, count, new = jnp.minimum(1.0, 1.0 / (norm + 1e-6)), count + 1, ({}, {}, {})
        for name, g in grads.items():
            g = g * factor
            new[1][name] = 0.9 * m[name] + 0.1 * g
            new[2][name] = 0.999 * v[name] + 0.001 * g * g
            update = new[1][name] / (1 - 0.9**count) / (jnp.sqrt(new[2][name] / (1 - 0.999**count)) + 1e-8)
            new[0][name] = w[name] * (1 - 1e-3 * 0.01) - 1e-3 * update
        return (*new, count), value, norm

    compiled = jax.jit(step, donate_argnums=0)
    zeros = {name: np.zeros_like(w) for name, w in data["weights"].items()}
    state = [jax.device_put((data["weights"], zeros, {n: z.copy() for n, z in zeros.items()}, 0.0))]
    arguments = jax.device_put([data["ids_in"], data["ids_out"], data["eps"]])

    def run() -> Any:
        state[0], value, norm = jax.block_until_ready(compiled(state[0], *arguments))
        return value, norm

    return {"one jit": run}

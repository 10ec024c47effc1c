"""TensorFlow: Keras' layers within tf.function."""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import works

VERSION = tf.__version__
Ways = dict[str, Callable[[], Any]]


def set_threads(threads: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def to_numpy(answer: Any) -> Any:
    arrays = [np.asarray(a) for a in tf.nest.flatten(answer)]
    if arrays[0].ndim == 3:  # the output, or the gradient of the input, time first; those of the weights have Keras' shapes
        return [arrays[0].transpose(1, 0, 2)]
    return arrays


def _set(layer: Any, weights: works.Arrays, name: str) -> None:
    bias = weights[f"bias_ih_{name}"] + weights[f"bias_hh_{name}"]
    layer.set_weights([weights[f"weight_ih_{name}"].T, weights[f"weight_hh_{name}"].T, bias])


def _apply(case: works.Case, data: works.Arrays) -> tuple[Callable[[Any], Any], list[Any]]:
    """x (N, T, I) -> (N, T, R H); Keras' axes are its own, so no transposition is timed."""
    layers = []
    for layer in range(case.layers):
        width = case.I if layer == 0 else case.H * case.R
        parts = []
        for suffix in ("", "_reverse")[: case.R]:
            made = keras.layers.LSTM(case.H, return_sequences=True, go_backwards=suffix != "")
            made.build((case.B, case.T, width))
            _set(made, data["weights"], f"l{layer}{suffix}")
            parts.append(made)
        layers.append(parts)

    def run(x: Any) -> Any:
        for parts in layers:
            outs = [part(x) if not part.go_backwards else tf.reverse(part(x), [1]) for part in parts]
            x = tf.concat(outs, -1) if len(outs) == 2 else outs[0]
        return x

    return run, [v for parts in layers for part in parts for v in part.trainable_variables]


def lstm(case: works.Case, data: works.Arrays) -> Ways:
    function, _ = _apply(case, data)
    x = tf.constant(np.ascontiguousarray(data["x"].transpose(1, 0, 2)))
    return {"Keras": tf.function(lambda: function(x))}


def lstm_train(case: works.Case, data: works.Arrays) -> Ways:
    function, variables = _apply(case, data)
    x = tf.constant(np.ascontiguousarray(data["x"].transpose(1, 0, 2)))
    dy = tf.constant(np.ascontiguousarray(data["dy"].transpose(1, 0, 2)))

    @tf.function
    def run() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, [x, *variables], dy)

    return {"Keras": run}


def train_step(case: works.Case, data: works.Arrays) -> Ways:
    w, scale = data["weights"], works.EMBEDDING**0.5
    table = tf.Variable(w["embedding.weight"])
    encoder = keras.layers.LSTM(case.H)
    decoder = keras.layers.LSTM(case.H, return_sequences=True)
    encoder.build((case.B, case.T, works.EMBEDDING))
    decoder.build((case.B, case.T, works.EMBEDDING + works.LATENT))
    for part, layer in (("encoder", encoder), ("decoder", decoder)):
        _set(layer, {name.removeprefix(f"{part}."): a for name, a in w.items()}, "l0")
    names = ("posterior.mu", "posterior.logvar", "bridge", "output.projection")
    linears = {n: (tf.Variable(w[f"{n}.weight"].T), tf.Variable(w[f"{n}.bias"])) for n in names}
    bias = tf.Variable(w["output.vocabulary.bias"])
    variables = [table, bias, *encoder.trainable_variables, *decoder.trainable_variables]
    variables += [v for pair in linears.values() for v in pair]
    ids_in, ids_out = (tf.constant(data[name].T.copy()) for name in ("ids_in", "ids_out"))
    eps = tf.constant(data["eps"])
    moments = [(tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in variables]
    count = tf.Variable(0.0)

    def linear(name: str, x: Any) -> Any:
        weight, bias = linears[name]
        return tf.linalg.matmul(x, weight) + bias

    @tf.function
    def run() -> Any:
        with tf.GradientTape() as tape:
            hidden = encoder(tf.gather(table, ids_out) * scale)
            mu, logvar = linear("posterior.mu", hidden), linear("posterior.logvar", hidden)
            z = mu + tf.exp(0.5 * logvar) * eps
            divergence = 0.5 * tf.reduce_sum(mu * mu + tf.exp(logvar) - 1 - logvar)
            h, c = tf.split(linear("bridge", z), 2, -1)
            repeated = tf.repeat(z[:, None], case.T, 1)
            x = tf.concat([tf.gather(table, ids_in) * scale, repeated], -1)
            y = decoder(x, initial_state=[tf.tanh(h), c])
            features = tf.reshape(linear("output.projection", y), (-1, works.EMBEDDING))
            logits = tf.linalg.matmul(features, table, transpose_b=True) + bias
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(ids_out, (-1,)), logits)
            loss = (tf.reduce_sum(losses) + divergence) / case.B
        grads = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
        grads, norm = tf.clip_by_global_norm(grads, 1.0)
        count.assign_add(1.0)
        for v, g, (m, s) in zip(variables, grads, moments, strict=True):
            m.assign(0.9 * m + 0.1 * g)
            s.assign(0.999 * s + 0.001 * g * g)
            update = m / (1 - 0.9**count) / (tf.sqrt(s / (1 - 0.999**count)) + 1e-8)
            v.assign(v * (1 - 1e-3 * 0.01) - 1e-3 * update)
        return loss, norm

    return {"tf.function": run}

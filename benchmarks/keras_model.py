"""The encoder-decoder of the field's tutorials, in rheme and in TensorFlow's Keras, from equal weights.

    python benchmarks/keras_model.py [--steps 20] [--threads 1]

In rheme the model is six lines:

    embedding = nn.Embedding(10_000, 256)
    encoder, decoder = nn.LSTM(256, 256), nn.LSTM(256, 256)
    output = nn.Linear(256, 10_000)
    _, state = encoder(embedding(source))
    y, _ = decoder(embedding(target_in), state)
    loss = F.linear_cross_entropy(y, output.weight, output.bias, target_out)

It is sometimes printed otherwise: the encoder's last output (N, 256) straight into a decoder `LSTM(10000)`. That cannot run. An
LSTM reads sequences, three axes, and the last output of another one has two: Keras says "expected ndim=3, found ndim=2", rheme
"expected shape (T, N, 256)". And 10,000 units would be 410 million weights, with a tanh where a softmax should be. The decoder
is an LSTM of 256 units that starts from the encoder's state and reads the target so far; a linear layer gives 10,000 logits.

The script gives both the same weights and batches (the source is to be written again), trains both by gradient descent with
momentum, compares the losses step by step, then times the steps in turns.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np

from rheme import functional as F
from rheme import nn, ops, optim, set_num_threads

VOCABULARY, SIZE = 10_000, 256


class Tutorial(nn.Module):
    """Source ids (S, N) and target ids (T, N) to the mean cross-entropy of the next word."""

    def __init__(self, vocabulary: int = VOCABULARY, size: int = SIZE) -> None:
        self.embedding = nn.Embedding(vocabulary, size)
        self.encoder, self.decoder = nn.LSTM(size, size), nn.LSTM(size, size)
        self.output = nn.Linear(size, vocabulary)

    def forward(self, source: Any, target_in: Any, target_out: Any) -> Any:
        _, state = self.encoder(self.embedding(source))
        y, _ = self.decoder(self.embedding(target_in), state)
        return F.mean(F.linear_cross_entropy(y, self.output.weight, self.output.bias, target_out))

    def take(self, model: Any) -> None:
        """The weights of the Keras model that `keras_tutorial` builds."""
        (table,) = model.get_layer("embedding").get_weights()
        kernel, bias = model.get_layer("output").get_weights()
        for name in ("encoder", "decoder"):
            layer = nn.LSTM.from_keras(*model.get_layer(name).get_weights())
            getattr(self, name).load_state_dict(layer.state_dict())
        self.embedding.load_state_dict({"weight": table})
        self.output.load_state_dict({"weight": np.ascontiguousarray(kernel.T), "bias": bias})


def keras_tutorial(vocabulary: int = VOCABULARY, size: int = SIZE, learning_rate: float = 0.5) -> Any:
    """The same model in Keras, compiled with gradient descent (its Adam puts epsilon in another place than PyTorch's)."""
    import tensorflow as tf

    layers = tf.keras.layers
    source, target = tf.keras.Input((None,), dtype="int32"), tf.keras.Input((None,), dtype="int32")
    embedding = layers.Embedding(vocabulary, size, name="embedding")
    _, h, c = layers.LSTM(size, return_state=True, name="encoder")(embedding(source))
    y = layers.LSTM(size, return_sequences=True, name="decoder")(embedding(target), initial_state=[h, c])
    model = tf.keras.Model([source, target], layers.Dense(vocabulary, activation="softmax", name="output")(y))
    model.compile(tf.keras.optimizers.SGD(learning_rate, momentum=0.9), loss="sparse_categorical_crossentropy")
    return model


def batch(rng: np.random.Generator, vocabulary: int, steps: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """source, target_in, target_out int64 (T, N): Zipfian words, to be written again behind a 0."""
    source = np.minimum(rng.zipf(1.3, (steps, rows)), vocabulary - 1)
    return source, np.concatenate([np.zeros((1, rows), np.int64), source[:-1]]), source


def losses(steps: int, vocabulary: int, size: int, length: int, rows: int, seconds: int = 0) -> dict[str, Any]:
    """Both models' losses from equal weights, step by step; with seconds, their times for a step in turns."""
    rng = np.random.default_rng(0)
    theirs = keras_tutorial(vocabulary, size)
    ours = Tutorial(vocabulary, size)
    ours.take(theirs)
    # Keras has one bias where PyTorch, and so rheme, has two that are added: both would move.
    single = [parameter for name, parameter in ours.named_parameters() if "bias_hh" not in name]
    optimizer = optim.SGD(single, 0.5, momentum=0.9)
    found: dict[str, Any] = {"rheme": [], "keras": [], "rheme_ms": [], "keras_ms": []}

    def step(data: tuple[np.ndarray, ...]) -> None:
        start = time.perf_counter()
        loss = ours(*data)
        loss.backward(ops.zeros((), np.float32) + 1)
        optimizer.step()
        optimizer.zero_grad()
        found["rheme"].append(loss.item())
        middle = time.perf_counter()
        source, target_in, target_out = (np.ascontiguousarray(ids.T, np.int32) for ids in data)
        found["keras"].append(float(theirs.train_on_batch([source, target_in], target_out)))
        end = time.perf_counter()
        found["rheme_ms"].append(1e3 * (middle - start))
        found["keras_ms"].append(1e3 * (end - middle))
        theirs.reset_metrics()

    for _ in range(steps):
        step(batch(rng, vocabulary, length, rows))
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        step(batch(rng, vocabulary, length, rows))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    set_num_threads(given.threads)
    found = losses(given.steps, VOCABULARY, SIZE, 20, 32, given.seconds)
    apart = max(abs(a - b) / b for a, b in zip(found["rheme"][: given.steps], found["keras"][: given.steps], strict=True))
    print(f"loss from {found['rheme'][0]:.4f} to {found['rheme'][given.steps - 1]:.4f}, at most {apart:.1e} apart (relative)")
    ours, theirs = (statistics.median(found[name][3:]) for name in ("rheme_ms", "keras_ms"))
    what = f"a step of 32 sentences of 20 words, {given.threads} threads"
    print(f"{what}: rheme {ours:.1f} ms, Keras {theirs:.1f} ms, {theirs / ours:.2f} x")


if __name__ == "__main__":
    main()

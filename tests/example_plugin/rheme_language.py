"""A task of your own, whole: which language is a text in? Letter pairs, averaged, and the Brier score as the loss."""

import msgspec
import numpy as np

from rheme import Result, Task, functional, nn
from rheme.text.batches import pad


class Config(msgspec.Struct):
    labels: list[str] = []
    rows: int = 512


class PairModel(nn.Module):
    def __init__(self, rows, labels):
        self.pairs, self.output = nn.Embedding(rows, 16), nn.Linear(16, labels)

    def forward(self, pairs):  # N lists of pairs -> probabilities (N, labels)
        ids, _ = pad(pairs)
        return functional.softmax(self.output(functional.mean(self.pairs(ids), axis=0, mask=(ids > 0)[:, :, None])))


class Language(Task):
    name, Config, fields = "language", Config, ("text", "label")

    def setup(self, examples):
        self.config.labels = sorted({label for _, label in examples})
        self.build()

    def build(self):
        self.model = PairModel(self.config.rows, len(self.config.labels))

    def pairs(self, text):
        return [1 + (31 * ord(a) + ord(b)) % (self.config.rows - 1) for a, b in zip(" " + text, text + " ", strict=True)]

    def encode(self, example):
        return [*self.pairs(example[0]), self.config.labels.index(example[1])]

    def loss(self, items, step_seed):
        wanted = np.eye(len(self.config.labels), dtype=np.float32)[[item[-1] for item in items]]
        error = self.model([item[:-1] for item in items]) - wanted
        return functional.sum(error * error), len(items), {}

    def answer(self, inputs):
        rows = self.model([self.pairs(text) for text in inputs]).numpy()
        return [Result(self.config.labels[row.argmax()], float(row.max())) for row in rows]

    def evaluate(self, examples):
        answers = self.answer([text for text, _ in examples])
        return {"accuracy": sum(a.text == label for a, (_, label) in zip(answers, examples, strict=True)) / len(examples)}

"""The files that `rheme plugins new` writes: path -> text, with $$name, $$module, $$class_name and $$package filled in."""

_PYPROJECT = """[build-system]
requires = ["setuptools>=70.1"]
build-backend = "setuptools.build_meta"

[project]
name = "$package"
version = "0.1.0"
description = "The task $name for rheme."
requires-python = ">=3.11"
dependencies = ["rheme"]

[project.entry-points."rheme.tasks"]
$name = "$module:$class_name"

[tool.setuptools]
py-modules = ["$module"]
"""

_MODULE = '''"""The task $name: which label fits a text? A model, a loss and an op of its own; change what you need."""

import msgspec
import numpy as np

from rheme import InputError, Result, Task, Tensor, functional, nn, ops
from rheme.autograd import record
from rheme.text.batches import pad


def softsign(x):
    """An op of your own: x / (1 + |x|), any shape. `record` takes the output, the inputs, and dy -> a gradient an input."""
    x = x if isinstance(x, Tensor) else Tensor(x)
    size = ops.add(np.abs(x.data), 1.0)
    return record(ops.div(x.data, size), (x,), lambda dy: (ops.div(dy, ops.mul(size, size)),))


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The sizes of the model, and what training finds in the examples."""

    labels: list[str] = []
    rows: int = 2048
    hidden_size: int = 32
    dropout: float = 0.1


class Model(nn.Module):
    """Triples of characters, averaged; one hidden layer."""

    def __init__(self, config):
        self.triples = nn.Embedding(config.rows, config.hidden_size)
        self.hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.hidden_size, len(config.labels))

    def forward(self, triples):
        """N lists of triples -> log-probabilities (N, labels)."""
        ids, _ = pad(triples)
        mean = functional.mean(self.triples(ids), axis=0, mask=(ids > 0)[:, :, None])
        return functional.log_softmax(self.output(self.dropout(softsign(self.hidden(mean)))))


class $class_name(Task):
    """Label texts."""

    name, Config, fields = "$name", Config, ("text", "label")
    pipeline_tag = "text-classification"

    @classmethod
    def samples(cls):
        """Invented examples, for `rheme plugins check`."""
        words = {"fruit": "apple pear plum cherry grape".split(), "animal": "horse goat sheep donkey duck".split()}
        return [(f"a {a} and a {b}", label) for label, names in words.items() for a in names for b in names]

    def setup(self, examples):
        self.config.labels = sorted({label for _, label in examples})
        self.build()

    def build(self):
        self.model = Model(self.config)

    def triples(self, text):
        if not isinstance(text, str):
            raise InputError(f"a text must be a str, not {type(text).__name__}")
        text = f"  {text.lower()} "
        codes = [ord(char) for char in text]
        return [1 + (a * 31 * 31 + b * 31 + c) % (self.config.rows - 1) for a, b, c in zip(codes, codes[1:], codes[2:])]

    def encode(self, example):
        text, label = example
        if label not in self.config.labels:
            raise InputError(f"{label!r} is no label of this model; there are: {', '.join(self.config.labels)}")
        return [self.config.labels.index(label), *self.triples(text)]

    def loss(self, items, step_seed):
        wanted = np.eye(len(self.config.labels), dtype=np.float32)[[item[0] for item in items]]
        scores = self.model([item[1:] for item in items])
        return functional.neg(functional.sum(functional.mul(scores, wanted))), len(items), {}

    def answer(self, inputs, **options):
        if options:
            raise InputError(f"unknown option {next(iter(options))!r}: this task has none")
        if not inputs:
            return []
        rows = ops.exp(self.model([self.triples(text) for text in inputs]).numpy())
        return [Result(self.config.labels[int(row.argmax())], float(row.max())) for row in rows]

    def evaluate(self, examples, **options):
        answers = self.answer([text for text, _ in examples], **options)
        right = sum(answer.text == label for answer, (_, label) in zip(answers, examples))
        return {"accuracy": 100.0 * right / len(examples)}
'''

_TEST = '''"""`pytest`: the task keeps every promise of rheme, and the op has the right gradient."""

import numpy as np

from rheme.autograd import gradcheck
from rheme.conformance import check
from $module import softsign


def test_promises():
    assert [item for item in check("$name") if not item.ok] == []


def test_op():
    x = np.array([-3.0, -0.2, 0.5, 4.0])
    assert np.allclose(softsign(x).numpy(), x / (1 + abs(x)))
    assert gradcheck(softsign, [x])
'''

_README = """# $package

The task `$name` for rheme: texts to labels, with a model, a loss and an op of its own, all in `$module.py`. It works as it
stands; change it piece by piece, and check after each.

| step | how |
|---|---|
| install | `pip install -e .` |
| see it listed | `rheme tasks` |
| check every promise | `rheme plugins check $name`, on data of your own: `--data my.tsv` |
| test | `pytest` (the promises, and the gradient of the op) |
| train | `rheme train $name --train examples.tsv --valid-share 0.2 --out my-model` |
| measure | `rheme evaluate $name --model my-model --data examples.tsv` |
| benchmark | `python bench.py` |
| hand on | `python -m build`; whoever installs the wheel has the task, nothing is registered anywhere |

Where what stands:

* `Config`: every size and setting, with defaults; `--set task.hidden_size=64` changes one.
* `setup` sees the training examples once: labels, vocabularies and the like go into `self.config` (or `self.tokenizer`), so
  that a saved model has them. `build` makes the model from the config alone; it runs again when a model is loaded.
* `encode` turns an example into numbers, `loss` a batch of those into a summed loss and how many units it sums over.
* `answer` takes a list and gives a `Result` each; the answer to a text may not depend on the texts beside it.
* An op of your own: compute with `rheme.ops`, and say with `rheme.autograd.record` how its gradient goes; `gradcheck`
  compares it with differences. NumPy may index and compare; what it adds up differs from machine to machine.
* What the user does wrong gets an `InputError` of one line: what, where, what to do.
"""

_BENCH = '''"""How fast the task answers: texts a second, batched and one by one. The answers are compared first."""

import tempfile
import time

import rheme
from rheme.training import train
from $module import $class_name

task, examples = $class_name(), $class_name.samples()
with tempfile.TemporaryDirectory() as folder:
    train(task, examples, [], f"{folder}/model")
    task = rheme.load("$name", model=f"{folder}/model")
texts = [text for text, _ in examples] * 20
assert task(texts) == [task(text) for text in texts]
for name, run in (("batched", lambda: task(texts)), ("one by one", lambda: [task(text) for text in texts])):
    start = time.perf_counter()
    run()
    print(f"{name}: {len(texts) / (time.perf_counter() - start):.0f} texts/s")
'''


def _examples() -> str:
    words = {"fruit": "apple pear plum cherry grape", "animal": "horse goat sheep donkey duck"}
    return "".join(f"a {a} and a {b}\t{label}\n" for label, row in words.items() for a in row.split() for b in row.split())


FILES = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    "$module.py": _MODULE,
    "tests/test_$module.py": _TEST,
    "bench.py": _BENCH,
    "examples.tsv": _examples(),
}

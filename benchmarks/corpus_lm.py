r"""A word-level language model over a whole corpus, its state carried over the sentences: the Penn Treebank's other world.

    python benchmarks/corpus_lm.py --train train.txt --valid valid.txt --test test.txt --out run \
        [--size 10m] [--device cuda] [--resume]

One LSTM layer between an embedding and the softmax that shares its weights (Press and Wolf 2017; Melis et al. 2018), a dropout
mask for each sequence, the same at all its steps (Gal and Ghahramani 2016), Adam with a cosine to 0. Perplexities here (`<eos>`
counted, nothing reset) must not be compared with those of sentence-level models, such as every text VAE's.

Sizes: `small` has 4.3 M parameters, `10m` 9.5 M (Melis et al. reach 59.6 on the test with that size and a GPU's patience).
"""

import argparse
import dataclasses
import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from rheme import functional as F
from rheme import nn, no_grad, optim, set_num_threads
from rheme.models.seq2seq import TiedOutput
from rheme.text import readers
from rheme.text.vocabulary import Vocabulary
from rheme.training import checkpoints


@dataclasses.dataclass(frozen=True)
class Recipe:
    """rows: sequences side by side. steps: how many words of each until the gradients are cut."""

    embedding: int
    hidden: int
    dropout_in: float
    dropout_out: float
    epochs: int
    rows: int = 20
    steps: int = 35
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    seed: int = 0


RECIPES = {
    "small": Recipe(256, 512, 0.4, 0.4, 24, learning_rate=2e-3),
    "10m": Recipe(264, 1150, 0.52, 0.34, 60, learning_rate=2e-3),
    "test": Recipe(16, 24, 0.1, 0.1, 2, rows=4, steps=10, learning_rate=2e-2),
}


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int, recipe: Recipe) -> None:
        self.recipe = recipe
        self.embedding = nn.Embedding(vocabulary, recipe.embedding)
        self.lstm = nn.LSTM(recipe.embedding, recipe.hidden)
        self.output = TiedOutput(recipe.hidden, self.embedding)

    def loss(self, ids: Any, targets: Any, state: Any, step: int) -> tuple[Any, Any]:
        """Mean cross-entropy of targets (T, N) after ids (T, N), and the state to go on with, cut off from the tape."""
        recipe, rows = self.recipe, ids.shape[1]
        x = F.mul(self.embedding(ids), math.sqrt(recipe.embedding))
        if self.training:
            x = F.dropout(x, recipe.dropout_in, recipe.seed, 2 * step, period=rows * recipe.embedding)
        y, (h, c) = self.lstm(x, state)
        if self.training:
            y = F.dropout(y, recipe.dropout_out, recipe.seed, 2 * step + 1, period=rows * recipe.hidden)
        return F.mean(self.output.loss(y, targets)), (h.detach(), c.detach())


def corpus(path: str, vocabulary: Vocabulary) -> np.ndarray:
    """The ids of all words in order, each line ended."""
    lines = vocabulary.encode(readers.read_lines(path))
    return np.fromiter(itertools.chain.from_iterable([*line, vocabulary.eos_id] for line in lines), np.int64)


def chunks(ids: np.ndarray, rows: int, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """ids cut into `rows` parts that run side by side: (inputs, targets), each (T, rows), in order."""
    length = (len(ids) - 1) // rows
    inputs, targets = (ids[start : start + length * rows].reshape(rows, length).T for start in (0, 1))
    starts = range(0, length, steps)
    return [tuple(np.ascontiguousarray(part[s : s + steps]) for part in (inputs, targets)) for s in starts]  # type: ignore[misc]


def perplexity(model: LanguageModel, ids: np.ndarray, first: int, rows: int = 1) -> float:
    """Of a whole corpus; the first word is predicted after `first`. rows: as so many parts that begin without a state."""
    model.eval()
    cost, words, state = 0.0, 0, None
    with no_grad():
        for inputs, targets in chunks(np.concatenate([[first], ids]), rows, 500):
            loss, state = model.loss(inputs, targets, state, 0)
            cost += loss.item() * targets.size
            words += targets.size
    return math.exp(cost / words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "valid", "test", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--size", choices=list(RECIPES), default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    set_num_threads(given.threads)
    recipe, out = RECIPES[given.size], Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.train(readers.read_lines(given.train))
    train, valid, test = (corpus(path, vocabulary) for path in (given.train, given.valid, given.test))
    with nn.init_scope(recipe.seed):
        model = LanguageModel(len(vocabulary), recipe).to(given.device)
    optimizer = optim.AdamW(model.parameters(), recipe.learning_rate, (0.9, 0.99), weight_decay=recipe.weight_decay)
    batches = chunks(train, recipe.rows, recipe.steps)
    schedule = optim.cosine(200, recipe.epochs * len(batches))
    best, done = math.inf, 0
    weights = {name: array.copy() for name, array in model.state_dict().items()}
    if given.resume and (found := checkpoints.load(out)):
        arrays, numbers = found
        best, done = numbers["best"], numbers["epoch"]
        parts = {
            kind: {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
            for kind in ("model.", "best.", "optimizer.")
        }
        model.load_state_dict(parts["model."])
        optimizer.load_state_dict(parts["optimizer."])
        weights = parts["best."]
    print(
        f"{model.num_parameters():,} parameters, {len(train):,} words, {recipe.epochs} epochs of {len(batches)} steps",
        flush=True,
    )
    for epoch in range(done, recipe.epochs):
        start, state, cost = time.monotonic(), None, 0.0
        model.train()
        for number, (inputs, targets) in enumerate(batches):
            step = epoch * len(batches) + number + 1
            loss, state = model.loss(inputs, targets, state, step)
            loss.backward()
            optimizer.learning_rate = recipe.learning_rate * schedule(step)
            optimizer.step(max_norm=1.0)
            optimizer.zero_grad()
            cost += loss.item()
        found_now = perplexity(model, valid, vocabulary.eos_id, recipe.rows)
        if found_now < best:
            best, weights = found_now, {name: array.copy() for name, array in model.state_dict().items()}
        seconds = time.monotonic() - start
        shown = f"train {math.exp(cost / len(batches)):.1f}, valid {found_now:.2f}, {len(train) / seconds:.0f} words/s"
        print(f"epoch {epoch + 1}: {shown}", flush=True)
        arrays = {f"model.{name}": array for name, array in model.state_dict().items()}
        arrays |= {f"best.{name}": array for name, array in weights.items()}
        arrays |= {f"optimizer.{name}": array for name, array in optimizer.state_dict().items()}
        checkpoints.save(out, epoch + 1, arrays, {"best": best, "epoch": epoch + 1}, keep=1)
    model.load_state_dict(weights)
    shown = ", ".join(
        f"{name} {perplexity(model, ids, vocabulary.eos_id):.2f}" for name, ids in (("valid", valid), ("test", test))
    )
    print(f"{shown}, state carried, <eos> counted")


if __name__ == "__main__":
    main()

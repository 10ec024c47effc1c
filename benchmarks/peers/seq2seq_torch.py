"""The translation model in PyTorch, beside rheme's: the same losses, then who is faster.

    python benchmarks/peers/seq2seq_torch.py train --data eng-fra.tsv.gz --config RECIPE [--steps 500] [--timed 40]
    python benchmarks/peers/seq2seq_torch.py decode --data valid.tsv [--model DIR] [--sentences 200]

train: both start from equal weights and get equal batches, without dropout (whose masks differ); the losses of each step are
compared, then --timed steps with dropout are timed in turns, ten by ten. decode: one model's weights in both, greedy, one
thread; the pieces are compared, then timed at batch 1 and 64. PyTorch runs in its best mode for each: oneDNN off at batch 1 (it
repacks the weights at each step), on otherwise.
"""

import argparse
import math
import statistics
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rheme
from rheme import nn, optim, tasks
from rheme.models.seq2seq import Seq2Seq, Seq2SeqConfig
from rheme.text.batches import pad, token_batches


class Twin(torch.nn.Module):
    """`rheme.models.seq2seq.Seq2Seq` without a latent code, parameter by parameter under the same names."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        encoded, hidden, size = 2 * config.encoder_size, config.decoder_size, config.embedding_size
        self.embedding = torch.nn.Embedding(config.vocab_size, size)
        self.encoder = torch.nn.LSTM(size, config.encoder_size, config.encoder_layers, bidirectional=True)
        self.bridge = torch.nn.Linear(encoded, 2 * hidden)
        self.keys = torch.nn.Linear(encoded, hidden, bias=False)
        self.decoder1 = torch.nn.LSTM(size, hidden)
        self.decoder2 = torch.nn.LSTM(hidden + encoded, hidden)
        self.projection = torch.nn.Linear(hidden + encoded, size)
        self.bias = torch.nn.Parameter(torch.zeros(config.vocab_size))
        self.dropout = torch.nn.Dropout(config.dropout)

    def take(self, model: Seq2Seq) -> "Twin":
        """The weights of rheme's model."""
        names = {"output.projection.": "projection.", "output.vocabulary.bias": "bias"}
        state = {}
        for name, array in model.state_dict().items():
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            state[name] = torch.from_numpy(np.array(array))
        state.pop("output.vocabulary.weight", None)
        self.load_state_dict(state)
        return self

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.embedding(ids) * math.sqrt(self.config.embedding_size))

    def encode(self, source: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Values (S, N, C), keys (S, N, H), the mask of what is hidden (S, N), the first states of the decoder (N, 2 H)."""
        packed = pack_padded_sequence(self.embed(source), lengths, enforce_sorted=False)
        values, (final, _) = self.encoder(packed)
        values, _ = pad_packed_sequence(values, total_length=len(source))
        values = self.dropout(values)
        first = torch.tanh(self.bridge(torch.cat([final[-2], final[-1]], 1)))
        return values, self.keys(values), torch.arange(len(source))[:, None] >= lengths, first

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """query (T, N, H) -> context (T, N, C)."""
        scores = torch.bmm(query.transpose(0, 1), keys.permute(1, 2, 0)).masked_fill(hidden.T[:, None], -math.inf)
        return torch.bmm(scores.softmax(2), values.transpose(0, 1)).transpose(0, 1)

    def loss(self, source: Any, lengths: Any, target_in: Any, target_out: Any, smoothing: float) -> torch.Tensor:
        """Mean cross-entropy of the targets that are not -1."""
        values, keys, hidden, first = self.encode(source, lengths)
        size = self.config.decoder_size
        zero = torch.zeros(1, len(lengths), size)
        y1, _ = self.decoder1(self.embed(target_in), (first[None, :, :size].contiguous(), zero))
        y1 = self.dropout(y1)
        context = self.attend(y1, keys, values, hidden)
        y2, _ = self.decoder2(torch.cat([y1, context], 2), (first[None, :, size:].contiguous(), zero))
        features = self.dropout(torch.cat([y2, context], 2))[target_out >= 0]
        logits = torch.nn.functional.linear(self.projection(features), self.embedding.weight, self.bias)
        return cross_entropy(logits, target_out[target_out >= 0], label_smoothing=smoothing)

    @torch.inference_mode()
    def greedy(self, source: Any, lengths: Any, bos: int, eos: int, limit: int, barred: torch.Tensor) -> list[list[int]]:
        """The likeliest piece at each step, none of those barred."""
        values, keys, hidden, first = self.encode(source, lengths)
        size, rows = self.config.decoder_size, len(lengths)
        zero = torch.zeros(1, rows, size)
        state1, state2 = (first[None, :, :size].contiguous(), zero), (first[None, :, size:].contiguous(), zero)
        ids = torch.full((1, rows), bos)
        written: list[torch.Tensor] = []
        done = torch.zeros(rows, dtype=torch.bool)
        for _ in range(limit):
            y1, state1 = self.decoder1(self.embed(ids), state1)
            context = self.attend(y1, keys, values, hidden)
            y2, state2 = self.decoder2(torch.cat([y1, context], 2), state2)
            hidden_out = self.projection(torch.cat([y2, context], 2)[0])
            logits = torch.nn.functional.linear(hidden_out, self.embedding.weight, self.bias)
            logits[:, barred] = -math.inf
            ids = logits.argmax(1)[None]
            written.append(ids[0])
            done |= ids[0] == eos
            if bool(done.all()):
                break
        columns = torch.stack(written, 1).tolist()
        return [row[: row.index(eos)] if eos in row else row for row in columns]


def batch_of(task: Any, items: Sequence[Any]) -> tuple[Any, ...]:
    """source, lengths, target_in, target_out of some encoded items."""
    tokenizer = task.tokenizer
    source, lengths = pad([np.concatenate(([tag], ids)) for tag, ids, _ in items], tokenizer.pad_id)
    target_in, _ = pad([np.concatenate(([tokenizer.bos_id], ids)) for _, _, ids in items], tokenizer.pad_id)
    target_out, _ = pad([np.concatenate((ids, [tokenizer.eos_id])) for _, _, ids in items], -1)
    return source, lengths, target_in, target_out


def train(given: argparse.Namespace) -> None:
    recipe = tomllib.loads(Path(given.config).read_text())
    cls = tasks.get_task("translation")
    settings = recipe["task"] | {"model": recipe["task"].get("model", {}) | {"dropout": 0.0}}
    task: Any = cls(tasks.configure(cls.Config, settings))
    examples = task.read([given.data])[: given.pairs]
    with nn.init_scope(1):
        task.setup(examples)
    model, rate = task.model, recipe["train"]["learning_rate"]
    smoothing, dropout = task.config.model.label_smoothing, recipe["task"].get("model", {}).get("dropout", 0.2)
    twin = Twin(task.config.model).take(model)
    items = task.encode_all(examples)
    sizes = np.array([task.size(item) for item in items], np.int64)
    epochs = (token_batches(sizes, recipe["train"]["batch_tokens"], 1, epoch) for epoch in range(10**6))
    batches = (batch_of(task, [items[i] for i in batch]) for epoch in epochs for batch in epoch)
    betas = tuple(recipe["train"].get("betas", (0.9, 0.999)))
    ours = optim.AdamW(model.parameters(), rate, betas)
    theirs = torch.optim.AdamW(twin.parameters(), rate, betas, weight_decay=0.0, fused=True)
    schedule = optim.cosine(recipe["train"]["warmup_steps"], max(given.steps, 1))

    def our_step(batch: tuple[Any, ...], step: int) -> float:
        ours.learning_rate = rate * schedule(step)
        with nn.dropout_scope(1, step):
            loss, count, _ = model.loss(*batch)
        loss.backward(np.full(loss.shape, 1.0 / count, loss.dtype))
        ours.step(max_norm=1.0)
        ours.zero_grad()
        return float(loss.item()) / count

    def their_step(batch: tuple[Any, ...], step: int) -> float:
        theirs.param_groups[0]["lr"] = rate * schedule(step)
        loss = twin.loss(*map(torch.from_numpy, batch), smoothing)
        theirs.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        theirs.step()
        return loss.item()

    model.train()
    twin.train()
    worst = 0.0
    for step in range(1, given.steps + 1):
        batch = next(batches)
        pair = our_step(batch, step), their_step(batch, step)
        worst = max(worst, abs(pair[0] - pair[1]) / pair[1])
        if step in (1, 10, 100) or step % 100 == 0:
            print(
                f"step {step}: rheme {pair[0]:.6f}, PyTorch {pair[1]:.6f}; largest relative difference so far {worst:.1e}",
                flush=True,
            )
    assert worst < 0.02, "the losses differ: a bug in one of the two"
    model.dropout.p = model.encoder.dropout = twin.dropout.p = dropout
    seconds: dict[str, list[float]] = {"rheme": [], "PyTorch": []}
    tokens = 0
    for first in range(0, given.timed, 10):
        some = [next(batches) for _ in range(10)]
        tokens += sum(int(np.count_nonzero(batch[3] >= 0)) for batch in some)
        for name, one in (("rheme", our_step), ("PyTorch", their_step)):
            for batch in some:
                start = time.perf_counter()
                one(batch, first + 1)
                seconds[name].append(time.perf_counter() - start)
    if tokens:
        per_step = tokens / given.timed
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
        for name, median in medians.items():
            print(f"{name}: {1e3 * median:.0f} ms a step of {per_step:.0f} target pieces, {per_step / median:.0f} pieces/s")
        print(f"rheme is {medians['PyTorch'] / medians['rheme']:.2f} times as fast, {given.threads} thread(s)")


def decode(given: argparse.Namespace) -> None:
    options: dict[str, Any] = {"to": given.to, "from_": given.source}
    exact: Any = rheme.load("translation", given.model, precision="float32", **options)
    twin = Twin(exact.config.model).take(exact.model).eval()
    pairs = exact.read([given.data])[: given.sentences]
    side = exact.config.languages.index(exact.direction(given.to, given.source)[0])
    texts = [text for pair in pairs if (text := pair[side]) and len(exact._cutter.parts(text)) == 1]
    tokenizer, tag = exact.tokenizer, exact._tags[given.to]
    rows = [[tag, *exact._cutter.parts(text)[0].ids] for text in texts]
    barred = torch.tensor(exact._unwritable)

    def torch_all(size: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in rows]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(rows), size):
            part = order[start : start + size]
            source, lengths = map(torch.from_numpy, pad([rows[row] for row in part], tokenizer.pad_id))
            ends = tokenizer.bos_id, tokenizer.eos_id
            for row, ids in zip(part, twin.greedy(source, lengths, *ends, 3 * source.shape[0] + 16, barred), strict=True):
                found[row] = ids
        return found

    ours = [exact(text, num_beams=1).text for text in texts]
    theirs = tokenizer.decode(torch_all(64))
    equal = sum(a.strip(" .").lower() == b.strip(" .").lower() for a, b in zip(ours, theirs, strict=True))
    print(f"{equal} of {len(texts)} translations are the same (float32)")
    bundled: Any = rheme.load("translation", given.model, **options)
    for size in (1, 64):
        torch.backends.mkldnn.enabled = size > 1
        work: dict[str, Callable[[], Any]] = {
            "PyTorch": lambda size=size: torch_all(size),
            "rheme float32": lambda size=size: _ours(exact, texts, size),
            "rheme as stored": lambda size=size: _ours(bundled, texts, size),
        }
        taken: dict[str, list[float]] = {name: [] for name in work}
        for turn in range(given.rounds + 1):
            for name, one in work.items():
                start = time.perf_counter()
                one()
                taken[name] += [time.perf_counter() - start] * (turn > 0)
        rates = {name: len(texts) / statistics.median(seconds) for name, seconds in taken.items()}
        for name, rate in rates.items():
            print(f"batch {size}: {name} {rate:.0f} sentences/s ({rate / rates['PyTorch']:.2f} x)")


def _ours(task: Any, texts: Sequence[str], size: int) -> None:
    if size == 1:
        for text in texts:
            task(text, num_beams=1)
    else:
        task(list(texts), num_beams=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("--config", required=True, help="recipe, a TOML file")
    training.add_argument("--steps", type=int, default=500)
    training.add_argument("--timed", type=int, default=40)
    training.add_argument("--pairs", type=int, default=20_000)
    training.set_defaults(run=train)
    decoding = commands.add_parser("decode")
    decoding.add_argument("--model")
    decoding.add_argument("--to", default="fr")
    decoding.add_argument("--from", dest="source", default="en")
    decoding.add_argument("--sentences", type=int, default=200)
    decoding.add_argument("--rounds", type=int, default=3)
    decoding.set_defaults(run=decode)
    for command in (training, decoding):
        command.add_argument("--data", required=True, help="TSV")
        command.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rheme.set_num_threads(given.threads)
    torch.set_num_threads(given.threads)
    given.run(given)


if __name__ == "__main__":
    main()

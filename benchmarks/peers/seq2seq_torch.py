"""The translation model in PyTorch, beside rheme's: the same losses, then who is faster.

    python benchmarks/peers/seq2seq_torch.py train --data eng-fra.tsv.gz --config RECIPE [--steps 500] [--timed 40]
    python benchmarks/peers/seq2seq_torch.py race --data eng-cmn.tsv.gz --run FINISHED [--timed 40]
    python benchmarks/peers/seq2seq_torch.py decode --data valid.tsv [--model DIR] [--sentences 200]

train: both start from equal weights and get equal batches, without dropout (whose masks differ); the losses of each step are
compared, then --timed steps with dropout are timed in turns, ten by ten. race: PyTorch trains on the data of a finished run by
its settings, as many steps as it can make in the time of rheme's; then both models translate the validation pairs by the same
beam search (by rheme: the twin's weights are put back into its model). decode: one model's weights in both, greedy, one
thread; the pieces are compared, then timed at batch 1 and 64. PyTorch runs in its best mode for each: oneDNN off at batch 1 (it
repacks the weights at each step), on otherwise.
"""

import argparse
import json
import math
import statistics
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rheme
from rheme import nn, no_grad, optim, tasks
from rheme.models.seq2seq import Seq2Seq, Seq2SeqConfig
from rheme.text.batches import pad, token_batches


class Twin(torch.nn.Module):
    """`rheme.models.seq2seq.Seq2Seq` without a latent code, parameter by parameter under the same names."""

    NAMES: ClassVar[dict[str, str]] = {"output.projection.": "projection.", "output.vocabulary.bias": "bias"}

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
        state = {}
        for name, array in model.state_dict().items():
            for ours, theirs in self.NAMES.items():
                name = name.replace(ours, theirs)
            state[name] = torch.from_numpy(np.array(array))
        state.pop("output.vocabulary.weight", None)
        self.load_state_dict(state)
        return self

    def given(self) -> dict[str, np.ndarray]:
        """The weights by the names of rheme's model."""
        state = {}
        for name, value in self.state_dict().items():
            for ours, theirs in self.NAMES.items():
                name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
            state[name] = value.numpy().copy()
        return state

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


class Pair:
    """rheme's model and its twin, equal weights, each with its optimizer, and batches without end (`batches`)."""

    def __init__(self, task: Any, examples: Sequence[Any], settings: Mapping[str, Any], dropout: float, threads: int) -> None:
        if task.config.separate:
            raise SystemExit("the twin has the same layers for both directions: give a model, or a recipe, without `separate`")
        self.task, self.model, self.threads = task, task.model, threads
        self.twin = Twin(task.config.model).take(self.model)
        self.rate, self.warmup = settings["learning_rate"], settings["warmup_steps"]
        self.smoothing = task.config.model.label_smoothing
        betas = tuple(settings.get("betas", (0.9, 0.999)))
        self.ours = optim.AdamW(self.model.parameters(), self.rate, betas)
        self.theirs = torch.optim.AdamW(self.twin.parameters(), self.rate, betas, weight_decay=0.0, fused=True)
        items = task.encode_all(examples)
        sizes = np.array([task.size(item) for item in items], np.int64)
        epochs = (token_batches(sizes, settings["batch_tokens"], 1, epoch) for epoch in range(10**6))
        self.batches = (batch_of(task, [items[i] for i in batch]) for epoch in epochs for batch in epoch)
        self.drop(dropout)
        self.model.train()
        self.twin.train()

    def drop(self, share: float) -> None:
        self.model.dropout.p = self.model.encoder.dropout = self.twin.dropout.p = share

    def our_step(self, batch: tuple[Any, ...], step: int, scale: float) -> float:
        """One step at `scale` times the learning rate; the loss before it, nats a piece."""
        self.ours.learning_rate = self.rate * scale
        with nn.dropout_scope(1, step):
            loss, count, _ = self.model.loss(*batch)
        loss.backward(np.full(loss.shape, 1.0 / count, loss.dtype))
        self.ours.step(max_norm=1.0)
        self.ours.zero_grad()
        return float(loss.item()) / count

    def their_step(self, batch: tuple[Any, ...], step: int, scale: float) -> float:
        self.theirs.param_groups[0]["lr"] = self.rate * scale
        loss = self.twin.loss(*map(torch.from_numpy, batch), self.smoothing)
        self.theirs.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.twin.parameters(), 1.0)
        self.theirs.step()
        return loss.item()

    def ratio(self, steps: int, scale: float) -> float:
        """How many times longer PyTorch takes: medians of so many steps, in turns, ten by ten."""
        seconds: dict[str, list[float]] = {"rheme": [], "PyTorch": []}
        tokens = 0
        for first in range(0, steps, 10):
            some = [next(self.batches) for _ in range(10)]
            tokens += sum(int(np.count_nonzero(batch[3] >= 0)) for batch in some)
            for name, one in (("rheme", self.our_step), ("PyTorch", self.their_step)):
                for batch in some:
                    start = time.perf_counter()
                    one(batch, first + 1, scale)
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
        for name, median in medians.items():
            per_step = tokens / steps
            print(f"{name}: {1e3 * median:.0f} ms a step of {per_step:.0f} target pieces, {per_step / median:.0f} pieces/s")
        found = medians["PyTorch"] / medians["rheme"]
        print(f"rheme is {found:.2f} times as fast, {self.threads} thread(s)", flush=True)
        return found


def train(given: argparse.Namespace) -> None:
    recipe = tomllib.loads(Path(given.config).read_text())
    cls = tasks.get_task("translation")
    task: Any = cls(tasks.configure(cls.Config, recipe["task"]))
    examples = task.read([given.data])[: given.pairs]
    with nn.init_scope(1):
        task.setup(examples)
    pair = Pair(task, examples, recipe["train"], 0.0, given.threads)
    schedule = optim.cosine(pair.warmup, max(given.steps, 1))
    worst = 0.0
    for step in range(1, given.steps + 1):
        batch = next(pair.batches)
        ours, theirs = pair.our_step(batch, step, schedule(step)), pair.their_step(batch, step, schedule(step))
        worst = max(worst, abs(ours - theirs) / theirs)
        if step in (1, 10, 100) or step % 100 == 0:
            print(
                f"step {step}: rheme {ours:.6f}, PyTorch {theirs:.6f}; largest relative difference so far {worst:.1e}",
                flush=True,
            )
    assert worst < 0.02, "the losses differ: a bug in one of the two"
    pair.drop(task.config.model.dropout)
    if given.timed:
        pair.ratio(given.timed, schedule(1))


def race(given: argparse.Namespace) -> None:
    run = Path(given.run_folder)
    settings = json.loads((run / "training.json").read_text())["training"]
    curve = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [entry for entry in curve if "valid_loss" in entry]
    steps = settings["max_steps"]
    finished: Any = rheme.load("translation", run, precision="float32")
    held_out = [pair for name in ("valid.tsv", "test.tsv") if (run / name).exists() for pair in finished.read([run / name])]
    seen = {text for pair in held_out for text in pair}
    examples = [pair for pair in finished.read([given.data]) if not seen & set(pair)]
    valid = finished.read([run / "valid.tsv"])
    task: Any = rheme.load("translation", run, precision="float32")
    with nn.init_scope(settings["seed"]):
        task.model = Seq2Seq(task.config.model)
    pair = Pair(task, examples, settings, task.config.model.dropout, given.threads)
    their_steps = round(steps / (given.ratio or pair.ratio(given.timed, 0.0)))
    print(f"{len(examples)} pairs; rheme made {steps} steps, PyTorch makes {their_steps} in that time", flush=True)
    schedule = optim.cosine(pair.warmup, their_steps)
    average = torch.optim.swa_utils.AveragedModel(
        pair.twin, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings["ema_decay"])
    )
    for step in range(1, their_steps + 1):
        pair.their_step(next(pair.batches), step, schedule(step))
        average.update_parameters(pair.twin)
        if step % max(1, their_steps // 10) == 0 or step == their_steps:
            task.model.load_state_dict(average.module.given())
            task.model.eval()
            loss = _loss(task, valid)
            print(f"step {step}: validation {loss:.4f} nats a piece", flush=True)
    at = next((entry["step"] for entry in curve if entry["valid_loss"] <= loss), None)
    print(f"rheme had that loss by step {at} of {steps} ({curve[-1]['valid_loss']:.4f} at its end)", flush=True)
    for name, model in (("rheme", finished), ("PyTorch", task)):
        print(name, json.dumps(model.evaluate(valid, num_beams=5)), flush=True)


def _loss(task: Any, examples: Sequence[Any]) -> float:
    """Mean cross-entropy of a piece, both directions."""
    items, total, count = task.encode_all(examples), 0.0, 0
    for batch in token_batches([task.size(item) for item in items], 2000, 1, 0):
        with no_grad():
            loss, pieces, _ = task.loss([items[i] for i in batch], 0)
        total, count = total + float(loss.item()), count + pieces
    return total / count


def decode(given: argparse.Namespace) -> None:
    options: dict[str, Any] = {"to": given.to, "from_": given.source}
    exact: Any = rheme.load("translation", given.model, precision="float32", **options)
    twin = Twin(exact.config.model).take(exact._into(given.to)).eval()
    pairs = exact.read([given.data])[: given.sentences]
    side = exact.config.languages.index(exact.direction(given.to, given.source)[0])
    cut = exact._cutters[given.to].parts
    texts = [text for pair in pairs if (text := pair[side]) and len(parts := cut(text)) == 1 and not parts[0].stand_ins]
    tokenizer, tag = exact.tokenizer, exact._tags[given.to]
    rows = [[tag, *cut(text)[0].ids] for text in texts]
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
    racing = commands.add_parser("race")
    racing.add_argument("--run", required=True, dest="run_folder", help="a finished run of `rheme train translation`")
    racing.add_argument("--timed", type=int, default=40)
    racing.add_argument("--ratio", type=float, help="how many times longer PyTorch's step takes, if it was timed before")
    racing.set_defaults(run=race)
    decoding = commands.add_parser("decode")
    decoding.add_argument("--model")
    decoding.add_argument("--to", default="fr")
    decoding.add_argument("--from", dest="source", default="en")
    decoding.add_argument("--sentences", type=int, default=200)
    decoding.add_argument("--rounds", type=int, default=3)
    decoding.set_defaults(run=decode)
    for command in (training, racing, decoding):
        command.add_argument("--data", required=True, help="TSV")
        command.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rheme.set_num_threads(given.threads)
    torch.set_num_threads(given.threads)
    given.run(given)


if __name__ == "__main__":
    main()

"""PyTorch: eager and compiled. What the process' environment holds (allocator, threads) is the caller's choice."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import works
from torch.nn import functional as F

VERSION = torch.__version__
Ways = dict[str, Callable[[], Any]]
COMPILED = os.environ.get("PEERS_COMPILE") == "1"


def set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def to_numpy(answer: Any) -> Any:
    return (
        [a.detach().numpy() if isinstance(a, torch.Tensor) else np.asarray(a) for a in answer]
        if isinstance(answer, tuple | list)
        else answer.detach().numpy()
        if isinstance(answer, torch.Tensor)
        else answer
    )


def _mode(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False) if COMPILED else function  # a case has one shape


def _tensors(arrays: works.Arrays, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(arrays[name].copy()) for name in names]


def _lstm(case: works.Case, data: works.Arrays) -> torch.nn.LSTM:
    module = torch.nn.LSTM(case.I, case.H, case.layers, bidirectional=case.R == 2)
    module.load_state_dict({name: torch.from_numpy(w) for name, w in data["weights"].items()})
    return module


# torch.compile leaves nn.LSTM alone: eager is its best mode.


def lstm(case: works.Case, data: works.Arrays) -> Ways:
    if COMPILED:
        return {}
    module, (x,) = _lstm(case, data), _tensors(data, "x")

    @torch.inference_mode()
    def run() -> Any:
        return module(x)[0]

    return {"nn.LSTM": run}


def lstm_int8(case: works.Case, data: works.Arrays) -> Ways:
    """`quantize_dynamic` leaves a bare nn.LSTM as it is: it must stand within another module."""
    if COMPILED:
        return {}
    (x,) = _tensors(data, "x")
    wrapped = torch.nn.Sequential(_lstm(case, data))
    small = torch.ao.quantization.quantize_dynamic(wrapped, {torch.nn.LSTM}, dtype=torch.qint8)
    assert not isinstance(small[0], torch.nn.LSTM)

    @torch.inference_mode()
    def run() -> Any:
        return small(x)[0]

    return {"quantize_dynamic": run}


def lstm_train(case: works.Case, data: works.Arrays) -> Ways:
    if COMPILED:
        return {}
    module, (x, dy) = _lstm(case, data), _tensors(data, "x", "dy")
    x.requires_grad_()
    parameters = [x, *module.parameters()]

    def run() -> Any:
        for p in parameters:
            p.grad = None
        module(x)[0].backward(dy)
        return [p.grad for p in parameters]

    return {"nn.LSTM": run}


def lstm_mixed(case: works.Case, data: works.Arrays) -> Ways:
    if COMPILED:
        return {}
    module, (x,) = _lstm(case, data), _tensors(data, "x")
    lengths = torch.from_numpy(data["lengths"])

    @torch.inference_mode()
    def run() -> Any:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0])[0]

    return {"packed": run}


def lstm_mixed_train(case: works.Case, data: works.Arrays) -> Ways:
    if COMPILED:
        return {}
    module, (x, dy) = _lstm(case, data), _tensors(data, "x", "dy")
    lengths = torch.from_numpy(data["lengths"])
    x.requires_grad_()
    parameters = [x, *module.parameters()]

    def run() -> Any:
        for p in parameters:
            p.grad = None
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0])[0].backward(dy)
        return [p.grad for p in parameters]

    return {"packed": run}


def _by_multinomial(logits: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(torch.softmax(logits, -1), 1)[:, 0]


def _by_exponentials(logits: torch.Tensor) -> torch.Tensor:
    probabilities = torch.softmax(logits, -1)
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)


def _nucleus(values: torch.Tensor, top_p: float) -> torch.Tensor:
    """Of logits in falling order: those whose predecessors hold less than top_p are kept."""
    probabilities = torch.softmax(values, -1)
    before = probabilities.cumsum(-1) - probabilities
    return values.masked_fill(before >= top_p, float("-inf"))


def sampling(case: works.Case, data: works.Arrays) -> Ways:
    (logits,) = _tensors(data, "logits")
    k, p, temperature = case.top_k, case.top_p, works.TEMPERATURE
    if COMPILED:
        if k or p < 1:
            return {}
        return {"exponentials, compiled": torch.inference_mode()(torch.compile(lambda: _by_exponentials(logits / temperature)))}

    def among(values: torch.Tensor, ids: torch.Tensor, draw: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if p < 1:
            values = _nucleus(values, p)
        return ids.gather(-1, draw(values)[:, None])[:, 0]

    def few(count: int, draw: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return among(*(logits / temperature).topk(count), draw)

    def guessed() -> torch.Tensor:
        """The nucleus is nearly always among the few likeliest: look there first."""
        scaled = logits / temperature
        count = 1024
        while True:
            values, ids = scaled.topk(min(count, case.V))
            mass = (values.logsumexp(-1) - scaled.logsumexp(-1)).exp()
            if count >= case.V or bool((mass >= p).all()):
                break
            count *= 8
        before = torch.softmax(values, -1).cumsum(-1) * mass[:, None]
        shifted = torch.cat([torch.zeros_like(before[:, :1]), before[:, :-1]], -1)
        return ids.gather(-1, _by_multinomial(values.masked_fill(shifted >= p, float("-inf")))[:, None])[:, 0]

    ways: Ways = {}
    for name, draw in (("multinomial", _by_multinomial), ("exponentials", _by_exponentials)):
        if k:
            ways[f"topk, {name}"] = lambda draw=draw: few(k, draw)
        elif p < 1:
            ways[f"sort, {name}"] = lambda draw=draw: among(*(logits / temperature).sort(descending=True), draw)
        else:
            ways[name] = lambda draw=draw: draw(logits / temperature)
    if p < 1 and not k:
        ways["topk first"] = guessed
    try:
        from transformers.generation import logits_process as warpers
    except ImportError:
        pass
    else:
        chain = [warpers.TemperatureLogitsWarper(temperature)]
        chain += [warpers.TopKLogitsWarper(k)] if k else []
        chain += [warpers.TopPLogitsWarper(p)] if p < 1 else []

        def warped() -> torch.Tensor:
            scores = logits
            for warper in chain:
                scores = warper(None, scores)
            return _by_multinomial(scores)

        ways["Hugging Face"] = warped
    return {name: torch.inference_mode()(way) for name, way in ways.items()}


def cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    logits, targets = _tensors(data, "logits", "targets")
    logits.requires_grad_()
    function = _mode(lambda x, t: F.cross_entropy(x, t, reduction="sum"))

    def run() -> Any:
        logits.grad = None
        loss = function(logits, targets)
        loss.backward()
        return loss, logits.grad

    return {"F.cross_entropy": run}


def linear_cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    leaves = _tensors(data, "x", "weight", "bias")
    (targets,) = _tensors(data, "targets")
    for leaf in leaves:
        leaf.requires_grad_()

    def way(function: Callable[..., Any]) -> Callable[[], Any]:
        function = _mode(function)

        def run() -> Any:
            for leaf in leaves:
                leaf.grad = None
            loss = function(*leaves, targets)
            loss.backward()
            return (loss, *(leaf.grad for leaf in leaves))

        return run

    ways = {"linear, cross_entropy": way(lambda x, w, b, t: F.cross_entropy(F.linear(x, w, b), t, reduction="sum"))}
    if hasattr(F, "linear_cross_entropy") and not COMPILED:
        ways["F.linear_cross_entropy"] = way(lambda x, w, b, t: F.linear_cross_entropy(x, w, t, linear_bias=b, reduction="sum"))
    return ways


def kl(case: works.Case, data: works.Arrays) -> Ways:
    mu, logvar, eps, dz, dkl = _tensors(data, "mu", "logvar", "eps", "dz", "dkl")
    mu.requires_grad_()
    logvar.requires_grad_()

    def both(mu: torch.Tensor, logvar: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = mu + torch.exp(0.5 * logvar) * eps
        return z, 0.5 * (mu * mu + logvar.exp() - 1 - logvar)

    function = _mode(both)

    def run() -> Any:
        mu.grad = logvar.grad = None
        z, divergence = function(mu, logvar, eps)
        torch.autograd.backward((z, divergence), (dz, dkl))
        return z, divergence, mu.grad, logvar.grad

    return {"formula": run}


class VAE(torch.nn.Module):
    """rheme's TextVAE, with its names."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(works.VOCABULARY, works.EMBEDDING)
        self.encoder = torch.nn.LSTM(works.EMBEDDING, hidden)
        self.posterior = torch.nn.ModuleDict({name: torch.nn.Linear(hidden, works.LATENT) for name in ("mu", "logvar")})
        self.bridge = torch.nn.Linear(works.LATENT, 2 * hidden)
        self.decoder = torch.nn.LSTM(works.EMBEDDING + works.LATENT, hidden)
        self.output = torch.nn.ModuleDict(
            {
                "projection": torch.nn.Linear(hidden, works.EMBEDDING),
                "vocabulary": torch.nn.Linear(works.EMBEDDING, works.VOCABULARY),
            }
        )
        self.output["vocabulary"].weight = self.embedding.weight
        self.scale = works.EMBEDDING**0.5

    def load(self, weights: works.Arrays) -> None:
        state = {name: torch.from_numpy(w.copy()) for name, w in weights.items()}
        self.load_state_dict(state | {"output.vocabulary.weight": state["embedding.weight"]})

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embedding(ids) * self.scale)[1][0][0]

    def write(self, ids: torch.Tensor, z: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        inputs = torch.cat([self.embedding(ids) * self.scale, z.expand(ids.shape[0], -1, -1)], -1)
        y, state = self.decoder(inputs, state)
        return self.output["vocabulary"](self.output["projection"](y)), state

    def forward(self, ids_in: torch.Tensor, ids_out: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        hidden = self.read(ids_out)
        mu, logvar = self.posterior["mu"](hidden), self.posterior["logvar"](hidden)
        z = mu + torch.exp(0.5 * logvar) * eps
        divergence = 0.5 * (mu * mu + logvar.exp() - 1 - logvar).sum()
        h, c = self.bridge(z).chunk(2, -1)
        logits, _ = self.write(ids_in, z, (torch.tanh(h)[None], c.contiguous()[None]))
        loss = F.cross_entropy(logits.reshape(-1, works.VOCABULARY), ids_out.reshape(-1), reduction="sum")
        return (loss + divergence) / eps.shape[0]


def train_step(case: works.Case, data: works.Arrays) -> Ways:
    ids_in, ids_out, eps = _tensors(data, "ids_in", "ids_out", "eps")
    ways: Ways = {}
    for name, options in (("AdamW", {}), ("fused AdamW", {"fused": True})):
        model = VAE(case.H)
        model.load(data["weights"])
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01, **options)
        function = _mode(model)

        def run(model: VAE = model, optimizer: Any = optimizer, function: Any = function) -> Any:
            optimizer.zero_grad(set_to_none=True)
            loss = function(ids_in, ids_out, eps)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss, norm

        ways[name] = run
    return ways


def _decode(case: works.Case, data: works.Arrays, choose: Callable[[torch.Tensor], torch.Tensor]) -> Ways:
    if COMPILED:
        return {}
    model = VAE(case.H).eval()
    model.load(data["weights"])
    first, z, h, c = _tensors(data, "ids", "z", "h", "c")
    cell = torch.nn.LSTMCell(works.EMBEDDING + works.LATENT, case.H)
    cell.load_state_dict(
        {name[8:-3]: torch.from_numpy(w) for name, w in data["weights"].items() if name.startswith("decoder.")}
    )

    @torch.inference_mode()
    def by_module() -> Any:
        ids, state, written = first, (h, c), []
        for _ in range(works.STEPS):
            logits, state = model.write(ids[None], z, state)
            ids = choose(logits[0])
            written.append(ids)
        return torch.stack(written)

    @torch.inference_mode()
    def by_cell() -> Any:
        ids, state, written = first, (h[0], c[0]), []
        for _ in range(works.STEPS):
            state = cell(torch.cat([model.embedding(ids) * model.scale, z], -1), state)
            ids = choose(model.output["vocabulary"](model.output["projection"](state[0])))
            written.append(ids)
        return torch.stack(written)

    return {"nn.LSTM": by_module, "nn.LSTMCell": by_cell}


def decode_greedy(case: works.Case, data: works.Arrays) -> Ways:
    return _decode(case, data, lambda logits: logits.argmax(-1))


def decode_sampled(case: works.Case, data: works.Arrays) -> Ways:
    return _decode(case, data, lambda logits: _by_exponentials(logits / works.TEMPERATURE))


decode_greedy_int8, decode_sampled_int8 = decode_greedy, decode_sampled

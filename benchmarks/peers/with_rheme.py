"""rheme, through its public modules, ops and tape."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import works

import rheme
from rheme import autograd, nn, ops, optim, quantization, storage
from rheme import functional as F
from rheme.models.text_vae import TextVAE, TextVAEConfig

VERSION = rheme.__version__
Ways = dict[str, Callable[[], Any]]


def set_threads(threads: int) -> None:
    rheme.set_num_threads(threads)


def _lstm(case: works.Case, data: works.Arrays) -> nn.LSTM:
    lstm = nn.LSTM(case.I, case.H, case.layers, case.R == 2)
    lstm.load_state_dict(data["weights"])
    return lstm


def lstm(case: works.Case, data: works.Arrays) -> Ways:
    module, x, lengths = _lstm(case, data), data["x"], data.get("lengths")

    def run() -> Any:
        with autograd.no_grad():
            return module(x, lengths=lengths)[0].data

    return {"nn.LSTM": run}


def lstm_int8(case: works.Case, data: works.Arrays) -> Ways:
    module, x = nn.LSTM(case.I, case.H, case.layers, case.R == 2), data["x"]
    quantization.load(module, storage.compress(data["weights"], "int8"), "int8")

    def run() -> Any:
        with autograd.no_grad():
            return module(x)[0].data

    return {"nn.LSTM": run}


def lstm_train(case: works.Case, data: works.Arrays) -> Ways:
    module, lengths = _lstm(case, data), data.get("lengths")
    x = rheme.Tensor(data["x"], requires_grad=True)
    parameters = list(module.parameters())

    def run() -> Any:
        x.grad = None
        module.zero_grad()
        module(x, lengths=lengths)[0].backward(data["dy"])
        return [x.grad, *(p.grad for p in parameters)]

    return {"nn.LSTM": run}


lstm_mixed, lstm_mixed_train = lstm, lstm_train


def sampling(case: works.Case, data: works.Arrays) -> Ways:
    logits, count = data["logits"], itertools.count()
    options = {"temperature": works.TEMPERATURE, "top_k": case.top_k, "top_p": case.top_p}

    def run() -> Any:
        return ops.sample(logits, ops.random_bits(1, next(count), 0, case.B), **options)

    return {"ops.sample": run}


def cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    logits = rheme.Tensor(data["logits"], requires_grad=True)

    def run() -> Any:
        logits.grad = None
        loss = F.sum(F.cross_entropy(logits, data["targets"]))
        loss.backward()
        return loss.data, logits.grad

    return {"F.cross_entropy": run}


def linear_cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    x, weight, bias = (rheme.Tensor(data[name], requires_grad=True) for name in ("x", "weight", "bias"))

    def run() -> Any:
        x.grad = weight.grad = bias.grad = None
        loss = F.sum(F.linear_cross_entropy(x, weight, bias, data["targets"]))
        loss.backward()
        return loss.data, x.grad, weight.grad, bias.grad

    return {"F.linear_cross_entropy": run}


def kl(case: works.Case, data: works.Arrays) -> Ways:
    mu, logvar = (rheme.Tensor(data[name], requires_grad=True) for name in ("mu", "logvar"))
    eps, gradients = data["eps"], (data["dz"], data["dkl"])
    one = ops.zeros(())

    def run() -> Any:
        mu.grad = logvar.grad = None
        z, divergence = F.gaussian_kl(mu, logvar, eps)
        autograd.record(one, (z, divergence), lambda _: gradients).backward()
        return z.data, divergence.data, mu.grad, logvar.grad

    return {"F.gaussian_kl": run}


def text_vae(case: works.Case, data: works.Arrays) -> TextVAE:
    config = TextVAEConfig(
        vocab_size=works.VOCABULARY,
        embedding_size=works.EMBEDDING,
        encoder_size=case.H,
        decoder_size=case.H,
        latent_size=works.LATENT,
        dropout=0.0,
        annealing="none",
        posterior_deviation=0.0,
    )
    model = TextVAE(config)
    state = model.state_dict()
    model.load_state_dict({name: data["weights"].get(name, array) for name, array in state.items()})
    return model


def vae_step(model: TextVAE, case: works.Case, data: works.Arrays, eps: Any) -> Callable[[], tuple[Any, Any]]:
    """A step of training: the summed loss, and the gradients' norm.

    eps is given to the first one, so that the answers can be compared; afterwards the model draws its own.
    """
    model.train()
    optimizer = optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    normal, first = ops.random_normal, [True]

    def step() -> tuple[Any, Any]:
        if first:
            ops.random_normal = lambda *_, **__: eps
        try:
            optimizer.zero_grad()
            loss, _, _ = model.loss(data["ids_in"], data["ids_out"], seed=optimizer.step_count)
            (loss * (1.0 / case.B)).backward()
            norm = optimizer.step(max_norm=1.0)
        finally:
            if first:
                ops.random_normal = normal
                first.clear()
        return loss, norm

    return step


def train_step(case: works.Case, data: works.Arrays) -> Ways:
    step = vae_step(text_vae(case, data), case, data, data["eps"])

    def run() -> Any:
        loss, norm = step()
        return loss.data / np.float32(case.B), np.float32(norm)

    return {"TextVAE.loss": run}


def _decode(case: works.Case, data: works.Arrays, choose: Callable[[Any, int], Any]) -> Ways:
    model = text_vae(case, data).eval()
    if case.work.endswith("int8"):
        quantization.load(model, storage.compress(model.state_dict(), "int8"), "int8")
    from rheme.models.text_vae import TextVAEState

    captured = model.captured()  # as decoding runs it: recorded, then one call

    def run() -> Any:
        ids, state, written = data["ids"], TextVAEState(data["h"], data["c"], data["z"]), []
        for step in range(works.STEPS):
            logits, state = captured.step(ids, state)
            ids = choose(logits, step)
            written.append(ids)
        return np.stack(written)

    return {"TextVAE.step": run}


def decode_greedy(case: works.Case, data: works.Arrays) -> Ways:
    none = np.zeros(case.B, np.uint64)
    return _decode(case, data, lambda logits, _: ops.sample(logits, none, temperature=0.0))


def decode_sampled(case: works.Case, data: works.Arrays) -> Ways:
    def choose(logits: Any, step: int) -> Any:
        return ops.sample(logits, ops.random_bits(1, step, 0, case.B), temperature=works.TEMPERATURE)

    return _decode(case, data, choose)


decode_greedy_int8, decode_sampled_int8 = decode_greedy, decode_sampled

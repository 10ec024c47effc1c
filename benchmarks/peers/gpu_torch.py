"""PyTorch on a CUDA device: eager, with cuDNN, in each precision that it has. Weights and inputs are those of `works.py`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import works
from torch.nn import functional as F
from with_torch import VAE

Ways = dict[str, Callable[[], Any]]
DEVICE = "cuda"  # a test says "cpu": the same text then shows that the answers agree

MODES = (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))


def _up(array: np.ndarray, dtype: Any = None) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(DEVICE, dtype)


def _set(mode: str) -> None:
    """Products of float32 in TF32, or not."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"


def peaks() -> dict[str, float]:
    """Operations/s of a large product, by precision: what stands in for the device's peak."""
    found = {}
    for mode, dtype in MODES:
        _set(mode)
        a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=dtype) for _ in range(2))
        times = []
        for _ in range(6):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            a @ b
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
        found[mode] = 2 * 8192.0**3 / min(times[1:])
    return found


def _lstm_modes(case: works.Case) -> Iterator[tuple[str, Any, bool]]:
    for mode, dtype in MODES:
        # Padded, the backward direction would begin in the padding: another answer.
        if "mixed" not in case.size or case.R == 1:
            yield mode, dtype, False
        if "mixed" in case.size:
            yield mode, dtype, True


def lstm(case: works.Case, data: works.Arrays) -> Ways:
    return {
        f"torch {'packed' if packed else 'padded'} {mode}": _lstm(case, data, mode, dtype, packed)
        for mode, dtype, packed in _lstm_modes(case)
    }


lstm_train = lstm


def _lstm(case: works.Case, data: works.Arrays, mode: str, dtype: Any, packed: bool) -> Callable[[], Any]:
    train = case.work == "lstm_train"
    module = torch.nn.LSTM(case.I, case.H, case.layers, bidirectional=case.R == 2).to(DEVICE, dtype)
    with torch.no_grad():
        module.load_state_dict({name: _up(w, dtype) for name, w in data["weights"].items()})
    x, dy = _up(data["x"], dtype).requires_grad_(train), _up(data["dy"], dtype)
    lengths = torch.from_numpy(data["lengths"]) if "lengths" in data else None
    kept = None if lengths is None else (torch.arange(case.T)[:, None] < lengths)[:, :, None].to(DEVICE)

    def run() -> Any:
        _set(mode)
        with torch.set_grad_enabled(train):
            if packed:
                given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
                y, _ = torch.nn.utils.rnn.pad_packed_sequence(module(given)[0], total_length=case.T)
            else:
                y = module(x)[0]
                if kept is not None:  # what stands past the ends is nobody's
                    y = y * kept
            if not train:
                return y
            x.grad = None
            module.zero_grad(set_to_none=True)
            y.backward(dy)
            return [x.grad, *(p.grad for p in module.parameters())]

    return run


def sampling(case: works.Case, data: works.Arrays) -> Ways:
    """The usual way: sort, mask, multinomial. It draws by its own generator: there is no answer to compare."""
    logits = _up(data["logits"])

    def run() -> None:
        values, order = torch.sort(logits / works.TEMPERATURE, dim=1, descending=True)
        if case.top_k:
            values[:, case.top_k :] = -torch.inf
        p = torch.softmax(values, dim=1)
        if case.top_p < 1:
            p[p.cumsum(1) - p > case.top_p] = 0
        order.gather(1, torch.multinomial(p, 1))

    return {"torch sort fp32": run}


def kl(case: works.Case, data: works.Arrays) -> Ways:
    mu, logvar, eps = (_up(data[name]) for name in ("mu", "logvar", "eps"))

    def run() -> Any:
        e = logvar.exp()
        return mu + (0.5 * logvar).exp() * eps, 0.5 * (mu * mu + e - 1 - logvar)

    return {"torch formula fp32": run}


def adamw(case: works.Case, data: works.Arrays) -> Ways:
    ways: Ways = {}
    for name, options in (("fused", {"fused": True}), ("foreach", {"foreach": True})):
        weights = torch.zeros(case.N, device=DEVICE, requires_grad=True)
        weights.grad = torch.zeros_like(weights)
        optimizer = torch.optim.AdamW([weights], 1e-3, weight_decay=0.01, **options)

        def run(optimizer: Any = optimizer) -> None:
            optimizer.step()

        ways[f"torch {name} fp32"] = run
    return ways


def cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    logits, targets = _up(data["logits"]).requires_grad_(), _up(data["targets"])

    def run() -> Any:
        logits.grad = None
        loss = F.cross_entropy(logits, targets, reduction="sum")
        loss.backward()
        return loss, logits.grad

    return {"torch fp32": run}


def linear_cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    targets = _up(data["targets"])
    ways: Ways = {}
    for mode, dtype in MODES:
        x, weight, bias = (_up(data[name], dtype).requires_grad_() for name in ("x", "weight", "bias"))

        def run(mode: str = mode, x: Any = x, weight: Any = weight, bias: Any = bias) -> Any:
            _set(mode)
            x.grad = weight.grad = bias.grad = None
            loss = F.cross_entropy(F.linear(x, weight, bias).float(), targets, reduction="sum")
            loss.backward()
            return loss, x.grad, weight.grad, bias.grad

        ways[f"torch {mode}"] = run
    return ways


def _autocast(dtype: Any) -> AbstractContextManager[Any]:
    return torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32)


def train_step(case: works.Case, data: works.Arrays) -> Ways:
    """With fused AdamW; 16 bits by autocast, as PyTorch's users have it."""
    ids_in, ids_out, eps = (_up(data[name]) for name in ("ids_in", "ids_out", "eps"))
    ways: Ways = {}
    for mode, dtype in MODES[:3]:  # fp16 would need its gradients scaled
        model = VAE(case.H)
        model.load(data["weights"])
        model.to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01, fused=True)

        def run(mode: str = mode, dtype: Any = dtype, model: VAE = model, optimizer: Any = optimizer) -> Any:
            _set(mode)
            optimizer.zero_grad(set_to_none=True)
            with _autocast(dtype):
                loss = model(ids_in, ids_out, eps)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss, norm

        ways[f"torch {mode}"] = run
    return ways


def decode_greedy(case: works.Case, data: works.Arrays) -> Ways:
    first, z, h, c = (_up(data[name]) for name in ("ids", "z", "h", "c"))
    ways: Ways = {}
    for mode, dtype in MODES:
        model = VAE(case.H).eval()
        model.load(data["weights"])
        model.to(DEVICE, dtype)
        start = tuple(a.to(dtype) for a in (z, h, c))

        @torch.inference_mode()
        def run(mode: str = mode, model: VAE = model, start: Any = start) -> Any:
            _set(mode)
            ids, state, written = first, start[1:], []
            for _ in range(works.STEPS):
                logits, state = model.write(ids[None], start[0], state)
                ids = logits[0].argmax(-1)
                written.append(ids)
            return torch.stack(written)

        ways[f"torch {mode}"] = run
    return ways

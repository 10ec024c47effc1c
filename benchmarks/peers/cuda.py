"""rheme beside PyTorch on one CUDA device: `python benchmarks/peers/cuda.py [--only lstm,sampling] [--quick] [--calibrate]`.

Needs CuPy and a GPU; PyTorch with CUDA where it is to be compared with (fp32, TF32, bf16 and fp16; cuDNN chooses its way by
itself, padded and packed). Answers are compared first, to a bound that is the precision's; a way whose answer is off is told
and not timed. Then the ways take turns, each timed by the device's own events, and the median counts. The bandwidth of a copy
is measured in the same run. Results are printed as tables for benchmarks/RESULTS.md and kept as JSON (--out).

--calibrate: the plain and the persistent LSTM by hidden size and steps, as the TABLE of python/rheme/_cuda/persistent.py.
"""

import argparse
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rheme import _core, _cuda, nn, ops, optim
from rheme._cuda.persistent import shape_of
from rheme.models.text_vae import TextVAE, TextVAEConfig

Ways = dict[str, Callable[[], Any]]
BOUNDS = {"fp32": 2e-5, "tf32": 5e-3, "bf16": 4e-2, "fp16": 5e-3}  # of the largest element of the answer


def host(value: Any) -> list[np.ndarray]:
    """The arrays of an answer, in float64."""
    if isinstance(value, list | tuple):
        return [array for item in value for array in host(item)]
    if value is None:
        return []
    if hasattr(value, "detach"):
        return [value.detach().float().cpu().numpy().astype(np.float64)]
    return [np.asarray(ops.to_host(value), np.float64)]


def torch_modes(torch: Any) -> Iterator[tuple[str, Any, bool]]:
    yield "fp32", torch.float32, False
    yield "tf32", torch.float32, True
    yield "bf16", torch.bfloat16, False
    yield "fp16", torch.float16, False


class Bench:
    def __init__(self, quick: bool, torch: Any) -> None:
        import cupy

        self.cupy, self.torch, self.quick, self.rows = cupy, torch, quick, list[dict[str, Any]]()
        self.bandwidth = self._bandwidth()

    def _timed(self, call: Callable[[], Any], repeats: int) -> float:
        """Seconds of one call; PyTorch's work and CuPy's both go to the default stream."""
        start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record()
        for _ in range(repeats):
            call()
        stop.record()
        stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, stop)) / 1e3 / repeats

    def _bandwidth(self) -> float:
        size = 1 << (16 if self.quick else 28)
        a, b = _cuda.zeros(shape=(size,), dtype="float32"), _cuda.zeros(shape=(size,), dtype="float32")

        def copy() -> None:
            b[...] = a

        self._timed(copy, 2)
        return 8.0 * size / median(self._timed(copy, 5) for _ in range(5))

    def run(self, work: str, case: str, ways: Ways, bound: dict[str, float], bytes_moved: float = 0.0, steps: int = 0) -> None:
        """The first way is the reference of the others' answers. bound: by the end of a way's name."""
        answers = {name: host(call()) for name, call in ways.items()}
        first = next(iter(answers.values()))
        kept = {}
        for name, call in ways.items():
            error = max(
                (float(np.abs(a - b).max(initial=0) / max(1e-9, np.abs(b).max(initial=0))) for a, b in
                 zip(answers[name], first, strict=True)), default=0.0,
            )  # fmt: skip
            if error > bound.get(name.split()[-1], 0.0):
                print(f"{work} {case}: {name} is off by {error:.2g} and is not timed", file=sys.stderr)
                continue
            kept[name] = call
        for call in kept.values():
            self._timed(call, 2)
        rounds = {name: [] for name in kept} | {}
        for _ in range(2 if self.quick else 15):
            for name, call in kept.items():
                rounds[name].append(self._timed(call, 1 if self.quick else 5))
        for name, times in rounds.items():
            row = {"work": work, "case": case, "way": name, "seconds": median(times)}
            if bytes_moved:
                row["of copy bandwidth"] = bytes_moved / row["seconds"] / self.bandwidth
            if steps:
                row["us a step"] = row["seconds"] * 1e6 / steps
            self.rows.append(row)
            print(json.dumps(row), flush=True)

    # Works ------------------------------------------------------------------------------------------------------------------

    def lstm(self) -> None:
        sizes = [(5, 9, 64)] if self.quick else list(itertools.product((64, 256), (16, 64, 128), (256, 512)))
        for (t, n, h), r, mixed, train in itertools.product(sizes, (1, 2), (False, True), (False, True)):
            rng = np.random.default_rng(1)
            lengths = np.maximum(1, rng.integers(t // 4, t + 1, n)) if mixed else None
            x = rng.normal(size=(t, n, h)).astype(np.float32)
            if lengths is not None:
                x[np.arange(t)[:, None] >= lengths] = 0
            bound = 1 / np.sqrt(h)
            w_ih, w_hh = ([rng.uniform(-bound, bound, (4 * h, h)).astype(np.float32) for _ in range(r)] for _ in range(2))
            bias = [np.zeros(4 * h, np.float32)] * r
            case = f"T {t} B {n} H {h} {'bi' if r == 2 else 'uni'}directional {'mixed' if mixed else 'equal'} lengths"
            ways = {
                f"rheme {design} {precision}": self._lstm(
                    "plain" if design == "plain" else precision, x, lengths, w_ih, w_hh, bias, train
                )
                for design, precision in (("plain", "fp32"), ("persistent", "fp32"), ("persistent", "bf16"))
                if design == "plain" or shape_of(h, precision)
            }
            if self.torch is not None:
                for mode, dtype, tf32 in torch_modes(self.torch):
                    for packed in (False, True) if mixed else (False,):
                        name = f"torch {'packed' if packed else 'padded'} {mode}"
                        ways[name] = self._torch_lstm(dtype, tf32, packed, x, lengths, w_ih, w_hh, train)
            self.run("lstm forward and backward" if train else "lstm forward", case, ways, BOUNDS, steps=t)

    def _lstm(self, design: str, x: Any, lengths: Any, w_ih: Any, w_hh: Any, bias: Any, train: bool) -> Callable[[], Any]:
        move = _cuda.upload
        given = {"x": move(x), "lengths": None if lengths is None else move(lengths), "h0": None, "c0": None, "reverse": False}
        given |= {"w_ih": list(map(move, w_ih)), "w_hh": list(map(move, w_hh))}
        biases, packed = list(map(move, bias)), _cuda.pack_lstm(w_ih=given["w_ih"], w_hh=given["w_hh"])
        t, n, h, r = *x.shape[:2], w_hh[0].shape[1], len(w_hh)
        dy = move(np.full((t, n, r * h), 1.0, np.float32))

        def run() -> Any:
            os.environ["RHEME_CUDA_LSTM"] = design
            y, h_n, _, gates, cells = _cuda.lstm(**given, bias=biases, packed=packed, save=train)
            if not train:
                return y, h_n
            dx, *_ = _cuda.lstm_backward(**given, dy=dy, dh_n=None, dc_n=None, y=y, gates=gates, cells=cells, need_dx=True)
            return y, dx

        return run

    def _torch_lstm(
        self, dtype: Any, tf32: bool, packed: bool, x: Any, lengths: Any, w_ih: Any, w_hh: Any, train: bool
    ) -> Callable[[], Any]:
        torch = self.torch
        module = torch.nn.LSTM(x.shape[2], w_hh[0].shape[1], bidirectional=len(w_hh) == 2).cuda()
        with torch.no_grad():
            for r, end in enumerate(("", "_reverse")[: len(w_hh)]):
                getattr(module, f"weight_ih_l0{end}").copy_(torch.from_numpy(w_ih[r]))
                getattr(module, f"weight_hh_l0{end}").copy_(torch.from_numpy(w_hh[r]))
                getattr(module, f"bias_ih_l0{end}").zero_()
                getattr(module, f"bias_hh_l0{end}").zero_()
        module, data = module.to(dtype), torch.from_numpy(x).cuda().to(dtype).requires_grad_(train)

        def run() -> Any:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            with torch.set_grad_enabled(train):
                given = data
                if packed:
                    given = torch.nn.utils.rnn.pack_padded_sequence(data, torch.from_numpy(lengths), enforce_sorted=False)
                y, (h_n, _) = module(given)
                if packed:
                    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=x.shape[0])
                elif lengths is not None:  # padded: what stands past the ends is left out of the comparison
                    y = y * torch.from_numpy((np.arange(x.shape[0])[:, None] < lengths)[:, :, None]).cuda()
                if not train:
                    return y, h_n
                data.grad = None
                y.sum().backward()
                return y, data.grad

        return run

    def sampling(self) -> None:
        for n, v in [(4, 300)] if self.quick else [(1, 131072), (64, 131072), (128, 131072), (512, 131072), (128, 32768)]:
            rng = np.random.default_rng(2)
            logits, bits = (rng.normal(size=(n, v)) * 3).astype(np.float32), rng.integers(0, 2**64, n, np.uint64)
            there, drawn = _cuda.upload(logits), _cuda.upload(bits)
            for name, options in (
                ("all", {}),
                ("top-k 50", {"top_k": 50}),
                ("top-k 50, top-p 0.9", {"top_k": 50, "top_p": 0.9}),
            ):
                given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
                want = _core.sample(logits=logits, bits=bits, **given)
                got = ops.to_host(_cuda.sample(logits=there, bits=drawn, **given))
                if not np.array_equal(got, want):
                    print(f"sampling {name}: other tokens than the CPU's", file=sys.stderr)
                arrays = {"logits": there, "bits": drawn}
                ways: Ways = {"rheme fp32": functools.partial(_cuda.sample, **arrays, **given)}
                self.run("sampling", f"B {n} V {v} {name}", ways, BOUNDS, bytes_moved=4.0 * n * v)
                if self.torch is not None:
                    self._torch_sampling(f"B {n} V {v} {name}", logits, options)

    def _torch_sampling(self, case: str, logits: Any, options: dict[str, Any]) -> None:
        """PyTorch's usual way: sort, mask, multinomial. It draws by its own generator, so tokens are not compared."""
        torch, data = self.torch, self.torch.from_numpy(logits).cuda()

        def run() -> None:
            values, order = torch.sort(data, dim=1, descending=True)
            if "top_k" in options:
                values[:, options["top_k"] :] = -torch.inf
            p = torch.softmax(values, dim=1)
            if "top_p" in options:
                p[p.cumsum(1) - p > options["top_p"]] = 0
            order.gather(1, torch.multinomial(p, 1))

        self.run("sampling", case, {"torch sort fp32": run}, BOUNDS)

    def memory_bound(self) -> None:
        """Gaussian KL, AdamW and cross-entropy against the bandwidth of a copy."""
        rng, n = np.random.default_rng(3), 1 << (12 if self.quick else 26)
        d = 64
        mu, logvar, eps = (_cuda.upload(rng.normal(size=(n // d, d)).astype(np.float32)) for _ in range(3))
        kl = {"free_bits": 0.0, "free_bits_over": "sample"}
        self.run(
            "kl",
            f"{n} elements",
            {"rheme fp32": lambda: _cuda.gaussian_kl(mu=mu, logvar=logvar, eps=eps, **kl)},
            BOUNDS,
            20.0 * n,
        )
        param, grad, m, v = (_cuda.zeros(shape=(n,), dtype="float32") for _ in range(4))
        numbers = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.0, "step": 1}

        def adamw() -> None:
            _cuda.adamw(param=param, grad=grad, m=m, v=v, grad_scale=1.0, **numbers)

        ways: Ways = {"rheme fp32": adamw}
        if self.torch is not None:
            weights = self.torch.zeros(n, device="cuda", requires_grad=True)
            weights.grad = self.torch.zeros_like(weights)
            ways["torch fused fp32"] = self.torch.optim.AdamW([weights], fused=True).step
        self.run("adamw", f"{n} elements", {"rheme fp32": adamw}, BOUNDS, 28.0 * n)
        for name in list(ways)[1:]:
            self.run("adamw", f"{n} elements", {name: ways[name]}, BOUNDS, 28.0 * n)
        m_rows, k, vocabulary = (20, 8, 50) if self.quick else (4096, 512, 10000)
        x, weight = (_cuda.upload(rng.normal(size=s).astype(np.float32)) for s in ((m_rows, k), (vocabulary, k)))
        targets, dloss = _cuda.upload(rng.integers(0, vocabulary, m_rows)), _cuda.upload(np.ones(m_rows, np.float32))
        given = {"x": x, "weight": weight, "bias": None, "targets": targets, "ignore_index": -1, "label_smoothing": 0.0}

        def cross_entropy() -> Any:
            loss, lse, logits = _cuda.linear_cross_entropy(**given, save=True)
            return loss, *_cuda.linear_cross_entropy_backward(**given, dloss=dloss, lse=lse, logits=logits)

        ways = {"rheme fp32": cross_entropy}
        if self.torch is not None:
            a, b = (self.torch.from_numpy(ops.to_host(array)).cuda().requires_grad_() for array in (x, weight))
            ids = self.torch.from_numpy(ops.to_host(targets)).cuda()

            def theirs() -> Any:
                a.grad = b.grad = None
                loss = self.torch.nn.functional.cross_entropy(a @ b.T, ids, reduction="none")
                loss.sum().backward()
                return loss, a.grad, b.grad

            ways["torch fp32"] = theirs
        self.run("linear and cross-entropy", f"{m_rows} rows, {k}, {vocabulary} words", ways, BOUNDS)

    def vae_step(self) -> None:
        """A whole training step: batch 128, H 512, V 10,000, sentences of up to 30 words."""
        n, h, v, t = (4, 32, 50, 6) if self.quick else (128, 512, 10000, 30)
        rng = np.random.default_rng(4)
        ids, lengths = rng.integers(4, v, (t, n)), rng.integers(3, t + 1, n)
        targets = np.where(np.arange(t)[:, None] < lengths, ids, -1)
        ways: Ways = {}
        for design in ("plain", "bf16"):
            with nn.init_scope(1):
                config = TextVAEConfig(vocab_size=v, embedding_size=h, encoder_size=h, decoder_size=h, latent_size=32)
                model = TextVAE(config).to("cuda").train()
            optimizer = optim.AdamW(model.parameters(), 1e-3)

            def step(model: Any = model, optimizer: Any = optimizer, design: str = design) -> None:
                os.environ["RHEME_CUDA_LSTM"] = design
                loss, count, _ = model.loss(ids, targets, seed=0)
                loss.backward(np.full(loss.shape, 1.0 / count, loss.dtype))
                optimizer.step(max_norm=1.0)
                optimizer.zero_grad()

            ways[f"rheme {'plain fp32' if design == 'plain' else 'persistent bf16'}"] = step
        self.run("vae step", f"batch {n} H {h} V {v}", ways, BOUNDS)

    def calibrate(self) -> None:
        """The least number of steps from which the persistent LSTM is ahead of the plain one, forward and backward, by size."""
        table: dict[tuple[str, int], int] = {}
        for h in (64,) if self.quick else (64, 96, 128, 192, 256, 384):
            for t in (2,) if self.quick else (2, 8, 32, 128):
                rng = np.random.default_rng(1)
                x = rng.normal(size=(t, 64, h)).astype(np.float32)
                w = [(rng.normal(size=(4 * h, h)) / np.sqrt(h)).astype(np.float32)]
                bias = [np.zeros(4 * h, np.float32)]
                times = {}
                for design in ("plain", "fp32"):
                    call = self._lstm(design, x, None, w, w, bias, True)
                    call()
                    times[design] = median(self._timed(call, 5) for _ in range(2 if self.quick else 15))
                if times["fp32"] < times["plain"]:
                    table[_cuda.isa(), h] = t
                    break
        print("TABLE =", table)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="lstm,sampling,memory_bound,vae_step")
    parser.add_argument("--quick", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    torch = None
    if not chosen.no_torch:
        import torch  # type: ignore[no-redef]

        if not torch.cuda.is_available():  # type: ignore[attr-defined]
            sys.exit("this PyTorch has no CUDA; --no-torch leaves it out")
    before = os.environ.get("RHEME_CUDA_LSTM")
    try:
        bench = Bench(chosen.quick, torch)
        facts = _cuda.build_info()
        print(f"{facts['device']}; CUDA {facts['cuda']}, driver {facts['driver']}; copy {bench.bandwidth / 1e9:.0f} GB/s")
        for work in ["calibrate"] if chosen.calibrate else chosen.only.split(","):
            getattr(bench, work)()
    finally:
        os.environ.pop("RHEME_CUDA_LSTM", None)
        if before is not None:
            os.environ["RHEME_CUDA_LSTM"] = before
    print("\n| work | case | way | ms | us a step | of copy bandwidth |\n|---|---|---|---|---|---|")
    for row in bench.rows:
        share, step = row.get("of copy bandwidth"), row.get("us a step")
        print(
            f"| {row['work']} | {row['case']} | {row['way']} | {row['seconds'] * 1e3:.3f} | "
            f"{'' if step is None else f'{step:.2f}'} | {'' if share is None else f'{share:.0%}'} |"
        )
    if chosen.out:
        chosen.out.write_text(json.dumps({"facts": facts, "copy": bench.bandwidth, "rows": bench.rows}, indent=1) + "\n")
    return bench.rows


if __name__ == "__main__":
    main()

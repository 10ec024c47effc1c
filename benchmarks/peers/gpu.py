"""rheme beside PyTorch on one CUDA device: `python benchmarks/peers/gpu.py [--only lstm,sampling] [--case "B 16 H 512"]`.

Needs CuPy and a GPU; PyTorch with CUDA where it is to be compared with (fp32, TF32, bf16 and fp16; cuDNN chooses its way by
itself, padded and packed). Answers are compared first, to a bound that is the precision's; a way whose answer is off is told
and not timed. Then the ways take turns, each timed by the device's own events, and the median counts. The bandwidth of a copy
and the rate of products are measured in the same run, and give each point its roofline (`gpu_cases.py`). Results are printed
as tables for benchmarks/RESULTS.md and kept as JSON (--out).

--calibrate: times the plain ways beside the persistent LSTM and the sampler of clusters, and writes the table that rheme reads
from then on (python/rheme/_cuda/calibration.py). --list: the cases, without a GPU.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import gpu_cases
import numpy as np
import with_rheme
import works
from gpu_cases import Limits

import rheme
from rheme import _core, _cuda, autograd, nn, ops
from rheme import functional as F
from rheme._cuda import calibration
from rheme._cuda.device import device_name
from rheme._cuda.persistent import chosen, rows_at_once
from rheme.errors import RhemeError
from rheme.models.text_vae import TextVAEState

Ways = dict[str, Callable[[], Any]]
BOUNDS = {"fp32": 3e-5, "tf32": 5e-3, "bf16": 4e-2, "fp16": 1e-2}  # of the largest element of the answer


def host(value: Any) -> list[np.ndarray]:
    """The arrays of an answer, in float64."""
    if isinstance(value, list | tuple):
        return [array for item in value for array in host(item)]
    if value is None:
        return []
    if hasattr(value, "detach"):
        return [value.detach().float().cpu().numpy().astype(np.float64)]
    return [np.asarray(ops.to_host(value), np.float64)]


def designed(design: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with RHEME_CUDA_LSTM set: plain, fp32 or bf16."""

    def run() -> Any:
        os.environ["RHEME_CUDA_LSTM"] = design
        return call()

    return run


def designs(hidden: int, call: Callable[[], Any]) -> Ways:
    """The plain LSTM, and the persistent ones that this device has room for."""
    ways = {"rheme plain fp32": designed("plain", call)}
    for precision in ("fp32", "bf16"):
        os.environ["RHEME_CUDA_LSTM"] = precision
        try:
            chosen(hidden, 1, 1, "float32")
        except RhemeError as reason:
            print(f"not timed: {reason}", file=sys.stderr)
        else:
            ways[f"rheme persistent {precision}"] = designed(precision, call)
    return ways


# rheme's ways ---------------------------------------------------------------------------------------------------------------


def lstm(case: works.Case, data: works.Arrays) -> Ways:
    module = nn.LSTM(case.I, case.H, case.layers, case.R == 2)
    module.load_state_dict(data["weights"])
    module.to("cuda")
    x, lengths, dy = _cuda.upload(data["x"]), data.get("lengths"), _cuda.upload(data["dy"])
    lengths = None if lengths is None else _cuda.upload(lengths)
    if case.work == "lstm":

        def forward() -> Any:
            with autograd.no_grad():
                return module(x, lengths=lengths)[0].data

        return designs(case.H, forward)
    given, parameters = rheme.Tensor(x, requires_grad=True), list(module.parameters())

    def both() -> Any:
        given.grad = None
        module.zero_grad()
        module(given, lengths=lengths)[0].backward(dy)
        return [given.grad, *(p.grad for p in parameters)]

    return designs(case.H, both)


lstm_train = lstm


def sampling(case: works.Case, data: works.Arrays) -> Ways:
    """Both ways draw what the CPU draws, or the run ends."""
    bits = case.rng().integers(0, 2**64, case.B, np.uint64)
    options = {"temperature": works.TEMPERATURE, "top_k": case.top_k, "top_p": case.top_p, "min_p": 0.0}
    want = _core.sample(logits=data["logits"], bits=bits, **options)
    logits, bits = _cuda.upload(data["logits"]), _cuda.upload(bits)
    ways: Ways = {}
    for design in ("block", "cluster"):

        def run(design: str = design) -> Any:
            os.environ["RHEME_CUDA_SAMPLER"] = design
            return _cuda.sample(logits=logits, bits=bits, **options)

        try:
            got = ops.to_host(run())
        except RhemeError as reason:
            print(f"not timed: {reason}", file=sys.stderr)
            continue
        if not np.array_equal(got, want):
            raise RhemeError(f"sampling {case.name}, {design}: other ids than the CPU's")
        ways[f"rheme {design} fp32"] = run
    return ways


def kl(case: works.Case, data: works.Arrays) -> Ways:
    given = {name: _cuda.upload(data[name]) for name in ("mu", "logvar", "eps")}
    return {"rheme fp32": lambda: _cuda.gaussian_kl(**given, free_bits=0.0, free_bits_over="sample")}


def adamw(case: works.Case, data: works.Arrays) -> Ways:
    param, grad, m, v = (_cuda.zeros(shape=(case.N,), dtype="float32") for _ in range(4))
    numbers = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.01, "step": 1}
    return {"rheme fp32": lambda: _cuda.adamw(param=param, grad=grad, m=m, v=v, grad_scale=1.0, **numbers)}


def cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    logits, targets = rheme.Tensor(_cuda.upload(data["logits"]), requires_grad=True), _cuda.upload(data["targets"])

    def run() -> Any:
        logits.grad = None
        loss = F.sum(F.cross_entropy(logits, targets))
        loss.backward()
        return loss.data, logits.grad

    return {"rheme fp32": run}


def linear_cross_entropy(case: works.Case, data: works.Arrays) -> Ways:
    x, weight, bias = (rheme.Tensor(_cuda.upload(data[name]), requires_grad=True) for name in ("x", "weight", "bias"))
    targets = _cuda.upload(data["targets"])

    def run() -> Any:
        x.grad = weight.grad = bias.grad = None
        loss = F.sum(F.linear_cross_entropy(x, weight, bias, targets))
        loss.backward()
        return loss.data, x.grad, weight.grad, bias.grad

    return {"rheme fp32": run}


def train_step(case: works.Case, data: works.Arrays) -> Ways:
    ways: Ways = {}
    for design in designs(case.H, lambda: None):
        step = with_rheme.vae_step(with_rheme.text_vae(case, data).to("cuda"), case, data, _cuda.upload(data["eps"]))

        def run(step: Callable[[], Any] = step) -> Any:
            loss, norm = step()
            return loss.item() / case.B, norm

        ways[design] = designed("plain" if "plain" in design else design.split()[-1], run)
    return ways


def decode_greedy(case: works.Case, data: works.Arrays) -> Ways:
    """As decoding runs it: a step is one graph, ids come to the host."""
    model = with_rheme.text_vae(case, data).to("cuda").eval()
    step = model.captured()
    bits = _cuda.zeros(shape=(case.B,), dtype="uint64")
    start = [_cuda.upload(data[name]) for name in ("h", "c", "z")]

    def run() -> Any:
        ids, state, written = data["ids"], TextVAEState(*start), []
        for _ in range(works.STEPS):
            logits, state = step.step(ids, state)
            ids = ops.to_host(ops.sample(logits, bits, temperature=0.0))
            written.append(ids)
        return np.stack(written)

    return {"rheme plain fp32": designed("plain", run)}


def word(number: int) -> str:
    """A word of three syllables for each number below 85^3; without digits, which the tokenizer takes one by one."""
    scattered = int(number) * 7919 % 85**3
    return "".join("bdfghjklmnprstvwz"[i // 5] + "aeiou"[i % 5] for i in (scattered // 85**place % 85 for place in range(3)))


# The bench ------------------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, quick: bool, torch: Any, containing: str = "", rounds: int = 15) -> None:
        import cupy

        self.cupy, self.torch, self.quick, self.rows = cupy, torch, quick, list[dict[str, Any]]()
        self.containing, self.rounds = containing, 1 if quick else rounds
        peaks = {"fp32": max(_cuda.fma_peak(dtype="float32", iterations=1 if quick else 1 << 14) for _ in range(3))}
        if torch is not None and not quick:
            peaks = torch.peaks() | {"fp32": max(peaks["fp32"], torch.peaks()["fp32"])}
        self.limits = Limits(self._bandwidth(), peaks)

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
        size = 1 << (10 if self.quick else 28)
        a, b = _cuda.zeros(shape=(size,), dtype="float32"), _cuda.zeros(shape=(size,), dtype="float32")

        def copy() -> None:
            b[...] = a

        self._timed(copy, 2)
        return 8.0 * size / median(self._timed(copy, 5) for _ in range(5))

    def run(self, work: str) -> None:
        if work in ("translation", "generation"):
            getattr(self, work)()
            return
        for case in gpu_cases.cases(work, self.quick, self.containing):
            data = gpu_cases.inputs(case)
            ways: Ways = globals()[work](case, data)
            if self.torch is not None:
                ways |= getattr(self.torch, work)(case, data)
            self._compare_and_time(case, data, ways)

    def _answers(self, case: works.Case, ways: Ways) -> Ways:
        """The ways whose answers are the first one's, within the bound of their precision (ids: all the same in fp32)."""
        kept, first = {}, None
        for name, call in ways.items():
            try:
                answer = host(call())
            except RuntimeError as problem:  # a precision that this PyTorch has not
                print(f"{case.work} {case.name}: {name} cannot run and is not timed: {problem}", file=sys.stderr)
                continue
            first = answer if first is None else first
            pairs = list(zip(answer, first, strict=True)) if answer else []
            errors = [float(np.abs(a - b).max(initial=0) / max(1e-9, np.abs(b).max(initial=0))) for a, b in pairs]
            whole = case.work == "decode_greedy"  # ids: a rounding may decide otherwise, and all after it
            if not (whole and name.split()[-1] != "fp32") and max(errors, default=0.0) > BOUNDS[name.split()[-1]]:
                print(f"{case.work} {case.name}: {name} is off by {max(errors):.2g} and is not timed", file=sys.stderr)
                continue
            kept[name] = call
        return kept

    def _compare_and_time(self, case: works.Case, data: works.Arrays, ways: Ways) -> None:
        kept = self._answers(case, ways)
        for call in kept.values():
            self._timed(call, 1 if self.quick else 3)
        rounds: dict[str, list[float]] = {name: [] for name in kept}
        for _ in range(self.rounds):
            for name, call in kept.items():
                rounds[name].append(self._timed(call, 1 if self.quick else 5))
        for name, times in rounds.items():
            self.add(case, data, name, median(times))

    def add(self, case: works.Case, data: works.Arrays, way: str, seconds: float) -> None:
        row: dict[str, Any] = {"work": case.work, "case": case.name, "way": way, "seconds": seconds}
        least = gpu_cases.least_seconds(case, data, way.split()[-1], self.limits)
        if least is not None:
            row["of the limit"] = least / seconds
        if "T" in case.size and case.work.startswith("lstm"):
            row["us a step"] = seconds * 1e6 / case.T
        if case.work == "decode_greedy":
            row["us a step"] = seconds * 1e6 / works.STEPS
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    # As a user runs it --------------------------------------------------------------------------------------------------------

    def translation(self) -> None:
        """Pieces a second of the bundled model, greedy, one sentence at a time."""
        os.environ["RHEME_CUDA_LSTM"] = ""  # as the table says
        task: Any = rheme.load("translation", to="fr", precision="float32", num_beams=1)
        texts = ["Where is the train station?", "I would like to know what time it is.", "She has never seen the sea before."]
        options, rounds = {}, 5
        if self.quick:
            texts, options, rounds = texts[:1], {"max_new_tokens": 3}, 1
        for device in ("cpu", "cuda"):
            task.model.to(device)
            pieces = sum(map(len, task.tokenizer.encode([task(text, **options).text for text in texts])))

            def translate() -> None:
                for text in texts:
                    task(text, **options)

            self._timed(translate, 1)  # a shape that comes for the second time is recorded
            seconds = median(self._timed(translate, rounds) for _ in range(rounds))
            self._tell("translation", device, {"seconds": seconds, "pieces/s": pieces / seconds})

    def generation(self) -> None:
        """`rheme train generation` on the GPU beside two cores: tokens a second, as the run itself tells at its end."""
        lines, hidden, vocabulary, batch, log, steps = 40_000, 512, 10_000, 4000, 20, {"cpu": 60, "cuda": 1000}
        if self.quick:
            lines, hidden, vocabulary, batch, log, steps = 60, 8, 300, 100, 1, {"cpu": 4, "cuda": 4}
        rng = np.random.default_rng(6)
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "lines.txt"
            texts = (" ".join(map(word, rng.zipf(1.3, rng.integers(4, 30)) % 9000)) for _ in range(lines))
            data.write_text("\n".join(texts) + "\n")
            sizes = {"embedding_size": hidden // 2, "encoder_size": hidden, "decoder_size": hidden, "latent_size": 32}
            chosen = [f"--set=task.model.{name}={size}" for name, size in sizes.items()]
            chosen += [f"--set=task.vocab_size={vocabulary}", f"--set=train.batch_tokens={batch}", "--set=train.evaluate=false"]
            for device, most in steps.items():
                command = [sys.executable, "-m", "rheme", "train", "generation", "--train", str(data), "--device", device]
                command += [
                    "--out",
                    str(Path(folder) / device),
                    f"--set=train.max_steps={most}",
                    f"--set=train.log_every={log}",
                ]
                environment = os.environ | {"RHEME_NUM_THREADS": "2", "RHEME_CUDA_LSTM": ""}
                done = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, check=False)
                told = re.findall(r"(\d+) tokens/s", done.stdout + done.stderr)
                if done.returncode or not told:
                    raise RhemeError(f"rheme train generation --device {device}: {(done.stderr or done.stdout)[-300:]}")
                self._tell("generation", device, {"tokens/s": median(map(float, told[len(told) // 2 :]))})

    def _tell(self, work: str, device: str, figures: dict[str, float]) -> None:
        (case,) = gpu_cases.cases(work)
        self.rows.append({"work": work, "case": case.name, "way": f"rheme {device} fp32", **figures})
        print(json.dumps(self.rows[-1]), flush=True)

    # The table that rheme reads -----------------------------------------------------------------------------------------------

    def calibrate(self) -> Path:
        """By size the most turns up to which, and the least vocabulary from which, the other way is ahead of the plain one."""
        table: dict[int, int] = {}
        for h in (64,) if self.quick else filter(rows_at_once, gpu_cases.HIDDEN):
            at_once = rows_at_once(h)
            for turns in (1,) if self.quick else (1, 2, 3, 4, 6, 8):
                size = {"T": 2 if self.quick else 32, "B": turns * at_once, "I": h, "H": h, "layers": 1, "R": 1}
                case = works.Case("lstm_train", f"calibration {turns} {h}", size)
                ways = lstm(case, works.inputs(case))
                if not self._faster(ways["rheme plain fp32"], ways.get("rheme persistent fp32")):
                    break
                table[h] = turns
        least = None
        for v in (300,) if self.quick else (131072, 65536, 32768, 16384, 8192):
            rows = 2 if self.quick else 64
            case = works.Case("sampling", f"calibration {v}", {"B": rows, "V": v, "top_k": 50, "top_p": 0.9})
            ways = sampling(case, works.inputs(case))
            if not self._faster(ways["rheme block fp32"], ways.get("rheme cluster fp32")):
                break
            least = v
        calibration.write(calibration.path(), device_name(), table, least)
        return calibration.path()

    def _faster(self, plain: Callable[[], Any], other: Callable[[], Any] | None) -> bool:
        if other is None:
            return False
        times = {call: [self._timed(call, 5)] for call in (plain, other)}
        for _, call in itertools.product(range(self.rounds), (plain, other)):
            times[call].append(self._timed(call, 5))
        return median(times[other][1:]) < median(times[plain][1:])


def tables(rows: list[dict[str, Any]]) -> str:
    columns = ("us a step", "of the limit", "pieces/s", "tokens/s")
    lines = [f"| work | case | way | ms | {' | '.join(columns)} |", "|" + "---|" * (4 + len(columns))]
    for row in rows:
        cells = ["" if c not in row else f"{row[c]:.0%}" if c == "of the limit" else f"{row[c]:.4g}" for c in columns]
        ms = f"{row['seconds'] * 1e3:.3f}" if "seconds" in row else ""
        lines.append(f"| {row['work']} | {row['case']} | {row['way']} | {ms} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _torch() -> Any:
    """The peers; RhemeError where they cannot run on a GPU."""
    try:
        import gpu_torch
    except ImportError as error:
        raise RhemeError(f"no PyTorch ({error}); --no-torch leaves it out") from None
    if gpu_torch.DEVICE == "cuda" and not gpu_torch.torch.cuda.is_available():
        raise RhemeError("this PyTorch has no CUDA; --no-torch leaves it out")
    return gpu_torch


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default=",".join(gpu_cases.WORKS), help="works, separated by commas")
    parser.add_argument("--case", default="", help="only the cases whose names contain this")
    parser.add_argument("--rounds", type=int, default=15, help="how often each way takes its turn")
    parser.add_argument("--quick", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--calibrate", action="store_true", help="write the table that rheme chooses by")
    parser.add_argument("--list", action="store_true", help="the cases and their arithmetic, without a GPU")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args(arguments)
    names = given.only.split(",")
    if unknown := set(names) - set(gpu_cases.WORKS):
        parser.error(f"--only: no work is called {', '.join(sorted(unknown))}; there are {', '.join(gpu_cases.WORKS)}")
    if not any(given.case in case.name for name in names for case in gpu_cases.WORKS[name](name)):
        parser.error(f"--case: no case of {given.only} has {given.case!r} in its name; --list shows them")
    if given.list:
        print(gpu_cases.table(names, given.case))
        return []
    before = {name: os.environ.get(name) for name in ("RHEME_CUDA_LSTM", "RHEME_CUDA_SAMPLER")}
    try:
        facts = _cuda.build_info()
        bench = Bench(given.quick, None if given.no_torch or given.calibrate else _torch(), given.case, given.rounds)
        print(f"{facts['device']}; CUDA {facts['cuda']}, driver {facts['driver']}; {bench.limits}")
        if given.calibrate:
            print(f"written: {bench.calibrate()}")
            return []
        for work in names:
            bench.run(work)
    except RhemeError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    print(f"\n{tables(bench.rows)}")
    if given.out:
        kept = {"facts": facts, "bandwidth": bench.limits.bandwidth, "flops": bench.limits.flops, "rows": bench.rows}
        given.out.write_text(json.dumps(kept, indent=1) + "\n")
    return bench.rows


if __name__ == "__main__":
    main()

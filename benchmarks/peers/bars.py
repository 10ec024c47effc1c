"""What is asked of rheme, and whether the measured cases hold it: one line a demand, each by threads."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from report import best, geometric, ratios, split

Entry = dict[str, Any]
Row = tuple[str, str, str, bool]  # work, demand, what was measured, held


def _share(entry: Entry) -> float:
    """Percent of the limit that binds."""
    return 100 * entry["floor"] / ratios(entry)[0]


def _against(*names: str) -> Callable[[Entry], float]:
    """How many times longer the best of these peers takes; infinity where none of them does it."""
    return lambda entry: best(entry, names)[0] / ratios(entry)[0]


def _way(label: str) -> Callable[[Entry], float]:
    """How many times longer the best way of that name takes."""

    def ratio(entry: Entry) -> float:
        found = [ways[label]["seconds"] for ways in entry["ways"].values() if label in ways]
        return min(found, default=math.inf) / ratios(entry)[0]

    return ratio


def _tuned(entry: Entry) -> float:
    return ratios(entry)[2]


def _installed(entry: Entry) -> float:
    return ratios(entry)[1]


def rows(entries: dict[tuple[str, str, int, str], Entry], threads: int) -> Iterator[Row]:
    """The demands of which something was measured with that many threads, in the machine's own instruction set."""

    def those(work: str, wanted: Callable[[str, Entry], bool] = lambda name, entry: True) -> dict[str, Entry]:
        chosen = {k[1]: e for k, e in entries.items() if k[0] == work and k[2] == threads and not k[3]}
        return {name: entry for name, entry in chosen.items() if wanted(name, entry)}

    def least(what: str, cases: dict[str, Entry], value: Callable[[Entry], float], bar: float, unit: str = "") -> Iterator[Row]:
        found = {name: value(entry) for name, entry in cases.items() if math.isfinite(value(entry))}
        if found:
            name = min(found, key=lambda n: found[n])
            measured = f"{found[name]:.3g}{unit} at the least ({name})" if len(found) > 1 else f"{found[name]:.3g}{unit}"
            yield what, f"{bar:g}{unit} at every point", measured, found[name] >= bar

    def mean(what: str, cases: dict[str, Entry], value: Callable[[Entry], float], bar: float, unit: str = "") -> Iterator[Row]:
        found = [value(entry) for entry in cases.values() if math.isfinite(value(entry))]
        if found:
            yield what, f"{bar:g}{unit} in the mean", f"{geometric(found):.3g}{unit}", geometric(found) >= bar

    def batch(least_rows: int, most_rows: int = 10**9) -> Callable[[str, Entry], bool]:
        return lambda name, entry: least_rows <= int(name.split("B")[1].split(" ")[0].rstrip(",")) <= most_rows

    many, one = those("lstm", batch(16)), those("lstm", batch(1, 1))
    near = {name: e for name, e in one.items() if e["floor_by"] in ("L2", "FMA")}
    far = {name: e for name, e in one.items() if name not in near}
    yield from least("LSTM, B >= 16, best tuned peer", many, _tuned, 1.0)
    yield from mean("LSTM, B >= 16, best peer as installed", many, _installed, 1.15)
    yield from mean("LSTM, B >= 16, percent of FMA peak", many, _share, 78, " %")
    yield from least("LSTM, B = 1, weights in the L2, best tuned peer", near, _tuned, 1.3)
    steps = {name: e for name, e in far.items() if name.startswith("T1 ")}
    yield from least("LSTM, T = B = 1 beyond the L2, best tuned peer", steps, _tuned, 1.0)
    yield from least("LSTM, T = B = 1 beyond the L2, percent of the L3's bandwidth", steps, _share, 90, " %")
    yield from least(
        "LSTM, B = 1 beyond the L2, best tuned peer", {n: e for n, e in far.items() if n not in steps}, _tuned, 1.2
    )
    yield from least("LSTM int8, B = 1, best int8 peer", those("lstm_int8", batch(1, 1)), _tuned, 2.0)
    yield from least("LSTM int8, B >= 16, best int8 peer", those("lstm_int8", batch(16)), _tuned, 1.3)
    yield from least("LSTM, mixed lengths, PyTorch packed", those("lstm_mixed"), _way("packed"), 4.0)
    train, large_train = those("lstm_train"), those("lstm_train", batch(16))
    yield from least("LSTM, forward and backward, best tuned peer", train, _tuned, 1.0)
    yield from mean("LSTM, forward and backward, best peer as installed", train, _installed, 1.4)
    yield from mean("LSTM, forward and backward, B >= 16, percent of FMA peak", large_train, _share, 75, " %")
    yield from least("Sampling, best of all peers' ways", those("sampling"), _tuned, 3.0)
    yield from least("Sampling, Hugging Face's warpers", those("sampling"), _way("Hugging Face"), 30.0)
    large = those("kl", lambda name, entry: entry["floor_by"] == "copy")
    yield from least("KL, small, best tuned peer", those("kl", lambda name, entry: name not in large), _tuned, 5.0)
    yield from least("KL, large, percent of the copy bandwidth", large, _share, 75, " %")
    yield from least("Cross-entropy, logits given, best tuned peer", those("cross_entropy"), _tuned, 2.0)
    yield from least("Cross-entropy, fused with linear, best tuned peer", those("linear_cross_entropy"), _tuned, 1.25)
    step = those("train_step")
    yield from least("VAE step, best peer in its best mode", step, _tuned, 1.25)
    yield from mean("VAE step, PyTorch eager as installed", step, _against("torch"), 1.5)
    runtime = _against("onnxruntime")
    for work, small, large_bar in (
        ("decode_greedy", 1.0, 1.2),
        ("decode_sampled", 1.0, 1.6),
        ("decode_greedy_int8", 3.0, 2.5),
        ("decode_sampled_int8", 3.0, 3.0),
    ):
        title = f"Decoder step, {'sampled' if 'sampled' in work else 'greedy'}{', int8' if work.endswith('int8') else ''}"
        yield from least(f"{title}, B = 1, ONNX Runtime float32", those(work, batch(1, 1)), runtime, small)
        yield from least(f"{title}, B = 32, ONNX Runtime float32", those(work, batch(32)), runtime, large_bar)


def table(results: dict[str, Any]) -> str:
    entries = {split(key): entry for key, entry in results["entries"].items() if "ways" in entry}
    out = ["| asked for | at least | threads | measured | |", "|---|---|---|---|---|"]
    for threads in sorted({key[2] for key in entries}):
        for what, bar, measured, held in rows(entries, threads):
            out.append(f"| {what} | {bar} | {threads} | {measured} | {'met' if held else '**missed**'} |")
    if "start" in results:
        ours, base = results["start"]["rheme, one sentence"], results["start"]["import numpy"]
        more, megabytes = ours["seconds"] - base["seconds"], ours["megabytes"]
        out.append(
            f"| One sentence from process start, beyond `import numpy` | 0.15 s, 100 MB in all | | {more:.3f} s, "
            f"{megabytes:.0f} MB | {'met' if more <= 0.15 and megabytes <= 100 else '**missed**'} |"
        )
    return "\n".join(out)

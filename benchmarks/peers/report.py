"""Tables and a plot from the results: rheme's time, its share of the machine's limit, and the ratio to the best peer."""

import math
import os
from pathlib import Path
from typing import Any

import works

PEERS = ("torch", "torch tuned", "torch compiled", "onnxruntime", "tensorflow", "jax", "numpy")
INSTALLED = ("torch", "onnxruntime", "tensorflow", "jax", "numpy")


def machine() -> str:
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    return f"{len(os.sched_getaffinity(0))} cores, {model}"


def best(entry: dict[str, Any], names: Any) -> tuple[float, str]:
    """Seconds and name of the fastest way among these peers; infinity where there is none."""
    found = [
        (way["seconds"], f"{name}: {label}" if len(entry["ways"][name]) > 1 else name)
        for name in names
        if name in entry["ways"]
        for label, way in entry["ways"][name].items()
    ]
    return min(found, default=(math.inf, "none"))


def ratios(entry: dict[str, Any]) -> tuple[float, float, float]:
    """rheme's seconds, and how many times longer the best peer takes: as installed, and tuned."""
    ours = best(entry, ["rheme"])[0]
    peers = [name for name in entry["ways"] if name != "rheme"]
    return ours, best(entry, [n for n in peers if n in INSTALLED])[0] / ours, best(entry, peers)[0] / ours


def duration(seconds: float) -> str:
    if math.isinf(seconds):
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    return ""


def times(ratio: float) -> str:
    return "-" if math.isinf(ratio) else f"{ratio:.2f}"


def line(case: works.Case, threads: int, entry: dict[str, Any]) -> str:
    head = f"{case.work} {case.name}, {threads} thread{'s' * (threads > 1)}: "
    if "ways" not in entry:
        return head + "skipped, " + entry["skipped"]
    ours, installed, tuned = ratios(entry)
    peers = [name for name in entry["ways"] if name != "rheme"]
    away = f"; {entry['rounds_thrown_away']} rounds thrown away" if entry.get("rounds_thrown_away") else ""
    rest = "".join(f"\n    {who}: {why}" for who, why in entry.get("failed", {}).items())
    return (
        f"{head}{duration(ours)}, {100 * entry['floor'] / ours:.0f} % of {entry['floor_by']}; best peer "
        f"{times(installed)} as installed, {times(tuned)} tuned ({best(entry, peers)[1]}){away}{rest}"
    )


def split(key: str) -> tuple[str, str, int, str]:
    work, name, threads, isa = key.split("|")
    return work, name, int(threads), isa


def geometric(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.exp(math.fsum(map(math.log, finite)) / len(finite)) if finite else math.inf


def start_table(found: dict[str, dict[str, float]]) -> str:
    out = ["### From process start", "", "| | seconds | peak MB |", "|---|---|---|"]
    out += [f"| {name} | {way['seconds']:.3f} | {way['megabytes']:.0f} |" for name, way in found.items()]
    return "\n".join([*out, ""])


def tables(results: dict[str, Any]) -> str:
    about, entries = results["about"], {split(key): entry for key, entry in results["entries"].items() if "ways" in entry}
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items() if " " not in name)
    out = [f"Machine: {about['machine']}. Python {about['python']}, {versions}.", ""]
    for work, title in works.TITLES.items():
        order = {case.name: index for index, case in enumerate(works.cases(work))}
        keys = sorted((k for k in entries if k[0] == work and k[1] in order), key=lambda k: (k[3], k[2], order[k[1]]))
        if not keys:
            continue
        names = [n for n in PEERS if any(n in entries[k]["ways"] for k in keys)]
        memory = ["peak MB"] if work == "train_step" else []
        out += [f"### {title}", ""]
        out.append(
            "| " + " | ".join(["case", "threads", "rheme", "of the limit", *names, "as installed", "tuned", *memory]) + " |"
        )
        out.append("|" + "---|" * (len(names) + len(memory) + 6))
        for key in keys:
            entry = entries[key]
            ours, installed, tuned = ratios(entry)
            cells = [key[1] + (f" ({key[3]})" if key[3] else ""), str(key[2]), duration(ours)]
            cells.append(f"{100 * entry['floor'] / ours:.0f} % {entry['floor_by']}")
            cells += [duration(best(entry, [name])[0]) for name in names]
            if memory:
                memory = [", ".join(f"{name} {size:.0f}" for name, size in entry["peak_megabytes"].items())]
            out.append("| " + " | ".join([*cells, times(installed), times(tuned), *memory]) + " |")
        for threads in sorted({k[2] for k in keys if not k[3]}):
            of = [ratios(entries[k]) for k in keys if k[2] == threads and not k[3]]
            out.append("")
            out.append(
                f"{threads} thread{'s' * (threads > 1)}: the best peer takes {times(geometric([r[1] for r in of]))} times as "
                f"long as installed and {times(geometric([r[2] for r in of]))} tuned (geometric means), "
                f"{times(min(r[2] for r in of))} at the least."
            )
        for isa, threads in sorted({(k[3], k[2]) for k in keys if k[3]}):
            shares = [100 * entries[k]["floor"] / ratios(entries[k])[0] for k in keys if (k[3], k[2]) == (isa, threads)]
            out.append("")
            out.append(
                f"{isa}, {threads} thread{'s' * (threads > 1)}: {geometric(shares):.0f} % of its own limit in the geometric "
                f"mean, {min(shares):.0f} % at the least."
            )
        out.append("")
    if "start" in results:
        out.append(start_table(results["start"]))
    limits = {threads: entry["limits"] for (_, _, threads, _), entry in entries.items()}
    for threads, found in sorted(limits.items()):
        values = ", ".join(f"{n} {v * 1e-9:.0f}" for n, v in found.items() if not n.endswith("_bytes"))
        away = sum(entry.get("rounds_thrown_away", 0) for key, entry in entries.items() if key[2] == threads)
        rest = f" Rounds thrown away because a thread had no core of its own: {away}." if threads > 1 else ""
        out.append(f"Limits, {threads} thread{'s' * (threads > 1)} (GFLOP/s, GOP/s, GB/s): {values}.{rest}")
    return "\n".join(out)


def write(text: str, path: Path) -> None:
    """Between the two marks of a Markdown file, if it has them."""
    before, begin, rest = path.read_text().partition("<!-- peers -->\n")
    _, end, after = rest.partition("<!-- /peers -->")
    if begin and end:
        path.write_text(f"{before}{begin}\n{text}\n\n{end}{after}")


def plot(results: dict[str, Any], path: Path) -> None:
    """Each case a dot: how many times longer the best tuned peer takes."""
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    entries = {split(key): entry for key, entry in results["entries"].items() if "ways" in entry}
    shown = [work for work in works.WORKS if any(key[0] == work for key in entries)]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(shown) + 1.5))
    for threads, colour, shift in ((1, "tab:blue", 0.12), (2, "tab:orange", -0.12)):
        points = [
            (ratios(entry)[2], len(shown) - 1 - shown.index(key[0]) + shift)
            for key, entry in entries.items()
            if key[2] == threads and not key[3] and math.isfinite(ratios(entry)[2])
        ]
        if points:
            axes.scatter(
                *zip(*points, strict=True), s=18, color=colour, alpha=0.7, label=f"{threads} thread{'s' * (threads > 1)}"
            )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), shown[::-1])
    axes.set_xlabel("time of the best peer, tuned, over rheme's (right of the line: rheme is faster)")
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)

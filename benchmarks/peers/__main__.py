"""rheme beside its peers: `python benchmarks/peers [--only sampling,kl] [--quick] [--threads 1,2] [--resume] [--budget 220]`.

Every peer that is installed does the same work in a process of its own; a missing one is skipped by name. The answers are
compared first, then the processes take turns, several rounds of a few milliseconds each, and the median counts. The machine's
limits are measured in the same run. With more than one thread, a probe of 50 ms before and after each round tells whether each
thread had a core of its own; a round in which one had none is thrown away and repeated. Results go to a JSON file, one entry a
case, so that a run in parts (--only, --budget, --resume) makes one table; `--report` writes the tables and draws the plot.

Peers as `pip install` gives them: torch, onnxruntime, tensorflow, jax, numpy. "Tuned" adds PyTorch with glibc's mmap and trim
thresholds raised and huge pages asked for, eager and compiled, with fused AdamW.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import bars
import limits
import numpy as np
import report
import start
import works

HERE = Path(__file__).parent
TUNED = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456:glibc.malloc.hugetlb=1"
}
# Name -> module, environment, the works that it can do better than the mode before it (None: all that the module has).
MODES: dict[str, tuple[str, dict[str, str], set[str] | None]] = {
    "rheme": ("with_rheme", {}, None),
    "torch": ("with_torch", {}, None),
    "torch tuned": ("with_torch", TUNED, None),
    "torch compiled": (
        "with_torch",
        {**TUNED, "PEERS_COMPILE": "1"},
        {"sampling", "cross_entropy", "linear_cross_entropy", "kl", "train_step"},
    ),
    "onnxruntime": ("with_onnx", TUNED, {"lstm", "lstm_int8", "lstm_mixed", *(w for w in works.WORKS if "decode" in w)}),
    "tensorflow": ("with_tensorflow", TUNED, {"lstm", "lstm_train", "train_step"}),
    "jax": (
        "with_jax",
        TUNED,
        {"lstm", "lstm_train", "sampling", "cross_entropy", "linear_cross_entropy", "kl", "train_step"},
    ),
    "numpy": ("with_numpy", {}, {"sampling"}),
}


class Process:
    """A worker, started when it is first needed."""

    def __init__(self, name: str, threads: int, isa: str) -> None:
        module, extra, self.works = MODES[name]
        env = {**os.environ, **extra, "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore"}
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RHEME_NUM_THREADS"):
            env[variable] = str(threads)
        if isa and name == "rheme":
            env["RHEME_ISA"] = isa
        cpus = None
        if name == "jax" and threads < (os.cpu_count() or 1):  # the only way to bound its threads
            cpus = set(sorted(os.sched_getaffinity(0))[:threads])
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.child = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), module, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=env,
            preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None,
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if line:
            return json.loads(line)
        self.log.seek(0)
        return {"missing": (self.log.read().strip().splitlines() or ["it ended"])[-1][:200]}

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(json.dumps(command) + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            return {"error": "it ended"}
        return self._answer()

    def close(self) -> None:
        assert self.child.stdin is not None
        try:
            self.child.stdin.close()
            self.child.wait(5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.child.kill()
            self.child.wait()


def kept_ids(case: works.Case, data: works.Arrays) -> np.ndarray:
    """Which ids the filters keep, in float64, with room for what float32 may round: (B, V)."""
    scaled = data["logits"].astype(np.float64) / works.TEMPERATURE
    kept = np.ones(scaled.shape, bool)
    order = np.argsort(-scaled, -1, kind="stable")
    ranked = np.take_along_axis(scaled, order, -1)
    if case.top_k:
        ranked[:, case.top_k :] = -np.inf
    weights = np.exp(ranked - ranked[:, :1])
    weights /= weights.sum(-1, keepdims=True)
    if case.top_p < 1:
        weights[np.cumsum(weights, -1) - weights > case.top_p + 1e-5] = 0
    np.put_along_axis(kept, order, weights > 0, -1)
    return kept


def differs(case: works.Case, data: works.Arrays, ours: list[np.ndarray], theirs: list[np.ndarray]) -> str:
    """Why an answer is not that of rheme; empty where it is."""
    if case.work == "sampling":
        allowed = kept_ids(case, data)
        return "" if allowed[np.arange(case.B), theirs[0]].all() else "drew an id that the filters drop"
    if case.work.startswith("decode_sampled"):
        return "" if theirs[0].shape == ours[0].shape and (theirs[0] >= 0).all() else "other shape"
    if case.work == "decode_greedy_int8":  # where the two best are close, rounding may swap them
        return "" if np.mean(theirs[0][0] == ours[0][0]) >= 0.8 else "other first ids"
    if case.work == "decode_greedy":
        return "" if np.array_equal(theirs[0][0], ours[0][0]) else "other first ids"
    for index, (a, b) in enumerate(zip(theirs, ours, strict=False)):
        if a.shape != b.shape:
            return f"array {index} has shape {a.shape}, not {b.shape}"
        scale = float(np.abs(b).max(initial=0.0))
        gap = float(np.abs(a - b).max(initial=0.0))
        if not gap <= (0.1 if case.work.endswith("int8") else 3e-4) * scale + 1e-6:
            return f"array {index} is off by {gap:.2g} where the largest element is {scale:.2g}"
    return ""


def load_answers(path: Path) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    with np.load(path) as kept:
        for key in kept.files:
            found.setdefault(key.rsplit("/", 1)[0], []).append(kept[key])
    return found


def one_round(
    processes: dict[str, Process], times: dict[tuple[str, str], list[float]], wrong: dict[str, str], seconds: float
) -> dict[tuple[str, str], float]:
    """Seconds a call of each way in turn, but of those that stand far behind the best peer by now."""
    peers = [median(t) for (name, _), t in times.items() if t and name != "rheme"]
    taken = {}
    for (name, way), before in times.items():
        if len(before) >= 2 and name != "rheme" and median(before) > 3 * min(peers):
            continue
        reply = processes[name].ask(do="time", way=way, seconds=seconds)
        if "seconds" in reply:
            taken[name, way] = reply["seconds"]
        else:
            wrong[f"{name}, {way}"] = reply.get("error", reply.get("missing", "?"))
        time.sleep(0.05)  # until its threads stop spinning: those of ONNX Runtime do for some 30 ms
    return taken


def measure(case: works.Case, threads: int, processes: dict[str, Process], arguments: argparse.Namespace) -> dict[str, Any]:
    begin, data = time.perf_counter(), works.inputs(case)
    ways: list[tuple[str, str]] = []
    peaks: dict[str, float] = {}
    wrong: dict[str, str] = {}
    answers: dict[tuple[str, str], list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, process in processes.items():
            if process.works is not None and case.work not in process.works:
                continue
            path = Path(folder) / f"{len(peaks)}.npz"
            reply = process.ask(do="prepare", work=case.work, name=case.name, answers=str(path))
            if "ways" not in reply:
                wrong[name] = reply.get("error", reply.get("missing", "?"))
                continue
            wrong |= {f"{name}, {way}": why for way, why in reply["failed"].items()}
            if reply["ways"]:
                peaks[name] = round(reply["peak_megabytes"])
                ways += [(name, way) for way in reply["ways"]]
                answers |= {(name, way): arrays for way, arrays in load_answers(path).items()}
    if not any(name == "rheme" for name, _ in ways):
        return {"skipped": wrong.get("rheme", "rheme has no way of doing it")}
    ours = next(arrays for (name, _), arrays in answers.items() if name == "rheme")
    for key in list(ways):
        why = differs(case, data, ours, answers[key])
        if why:
            wrong[", ".join(key)] = why
            ways.remove(key)
    del answers, data
    times: dict[tuple[str, str], list[float]] = {key: [] for key in ways}
    rounds, chunk = (5, 0.004) if arguments.quick else (9, 0.02)
    turn = thrown_away = 0
    there = limits.cores_there(threads)
    while turn <= rounds and thrown_away <= rounds:
        started = time.perf_counter()
        taken = one_round(processes, times, wrong, chunk if turn else 0.0)
        were_there, there = there, limits.cores_there(threads)
        if turn and not (were_there and there):
            thrown_away += 1
            there = limits.wait_for_cores(threads, 5.0)
            continue
        for key, seconds in taken.items() if turn else ():
            times[key].append(seconds)
        turn += 1
        if turn > 3 and time.perf_counter() - begin + (time.perf_counter() - started) > arguments.case_seconds:
            break
    if turn <= 3:
        return {"skipped": f"a thread had no core in {thrown_away} of {thrown_away + turn - 1} rounds"}
    per = works.STEPS if case.work.startswith("decode") else 1
    result: dict[str, Any] = {"ways": {}, "peak_megabytes": peaks, "rounds_thrown_away": thrown_away}
    for (name, way), kept in times.items():
        if kept:
            result["ways"].setdefault(name, {})[way] = {"seconds": median(kept) / per, "rounds": len(kept)}
    if wrong:
        result["failed"] = wrong
    return result


def save(results: dict[str, Any], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1))
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks/peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", default=",".join([*works.WORKS, "start"]), help="works, by comma: " + ", ".join([*works.WORKS, "start"])
    )
    parser.add_argument("--cases", default="", help="only cases whose name holds this text")
    parser.add_argument("--peers", default=",".join(MODES), help="whom to run, by comma (rheme always)")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--isa", default="", help="force rheme's instruction set, such as avx2; kept as entries of their own")
    parser.add_argument("--quick", action="store_true", help="a part of the grid, fewer rounds")
    parser.add_argument("--resume", action="store_true", help="skip what the file already has")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which no new case begins")
    parser.add_argument("--case-seconds", type=float, default=12.0, help="after which a case gets no further round")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time: one thread on a busy machine")
    parser.add_argument("--report", action="store_true", help="tables and a plot from the file alone, into ../RESULTS.md too")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.report:
        text = f"{bars.table(results)}\n\n{report.tables(results)}"
        print(text)
        report.write(text, HERE.parent / "RESULTS.md")
        report.plot(results, arguments.out.with_suffix(".svg"))
        return
    if arguments.cpu_time:
        if arguments.threads != "1":
            parser.error("--cpu-time needs --threads 1")
        os.environ["PEERS_CPU_TIME"] = "1"
    begin, chosen = time.perf_counter(), arguments.only.split(",")
    if unknown := set(chosen) - {*works.WORKS, "start"}:
        parser.error(f"unknown work {', '.join(sorted(unknown))}; there are: {', '.join([*works.WORKS, 'start'])}")
    names = ["rheme", *(name for name in MODES if name in arguments.peers.split(",") and name != "rheme")]
    results.setdefault("about", {}).update(machine=report.machine(), python=platform.python_version())
    results.setdefault("entries", {})
    if "start" in chosen and not (arguments.resume and "start" in results):
        results["start"] = start.measure(3 if arguments.quick else 7)
        print(report.start_table(results["start"]))
        save(results, arguments.out)
    chosen = [work for work in chosen if work != "start"]
    for threads in map(int, arguments.threads.split(",")):
        cases = [c for w in chosen for c in works.cases(w) if arguments.cases in c.name and (c.quick or not arguments.quick)]
        keys = {case: "|".join((case.work, case.name, str(threads), arguments.isa)) for case in cases}
        if arguments.resume:
            cases = [case for case in cases if "ways" not in results["entries"].get(keys[case], {})]
        if not cases or time.perf_counter() - begin > arguments.budget:
            continue
        found = limits.measure(threads)
        processes: dict[str, Process] = {}
        try:
            for name in names:
                if MODES[name][2] is not None and not any(case.work in MODES[name][2] for case in cases):
                    continue
                processes[name] = Process(name, threads, arguments.isa)
                if "missing" in processes[name].about:
                    print(f"{name}: skipped, {processes[name].about['missing']}")
                    processes.pop(name).close()
                else:
                    results["about"].setdefault("versions", {})[name] = processes[name].about["version"]
            for case in cases:
                if time.perf_counter() - begin > arguments.budget:
                    print("out of time: go on with --resume")
                    break
                entry = measure(case, threads, processes, arguments)
                own = {**found, "fma": found["fma_avx2"]} if arguments.isa == "avx2" else found
                entry["floor"], entry["floor_by"] = works.floor_seconds(case, works.inputs(case), own, threads)
                entry["limits"] = found
                results["entries"][keys[case]] = entry
                print(report.line(case, threads, entry), flush=True)
                save(results, arguments.out)
        finally:
            for process in processes.values():
                process.close()


if __name__ == "__main__":
    main()

"""A process that runs one peer: `python worker.py MODULE THREADS`. It takes a command a line, JSON, and answers likewise.

prepare {case}: builds every way that the peer has of doing the case, runs each once, writes its answers to `answers`.
time {way, seconds}: calls the way for half that time, in which its threads find their cores, then until that much is over;
answers seconds per call of the second part. A call that takes longer is made once.
"""

import contextlib
import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

import numpy as np
import works


def _arrays(answer: Any) -> list[np.ndarray]:
    """Of large ones every so many elements; which ones depends on the size alone."""
    arrays = [np.asarray(a) for a in (answer if isinstance(answer, tuple | list) else [answer])]
    return [a.reshape(-1)[:: 1 | a.size >> 20] if a.size > 1 << 21 else a for a in arrays]


def _peak_megabytes() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


class Worker:
    def __init__(self, module: str, threads: int) -> None:
        self.peer = importlib.import_module(module)
        self.peer.set_threads(threads)
        self.ways: dict[str, Any] = {}

    def prepare(self, work: str, name: str, answers: str) -> dict[str, Any]:
        case = next(c for c in works.cases(work) if c.name == name)
        build = getattr(self.peer, work, None)
        self.ways = {} if build is None else build(case, works.inputs(case))
        found, failed, kept, peak = [], {}, {}, 0.0
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        for way, call in list(self.ways.items()):
            try:
                answer = call()
                peak = _peak_megabytes()  # before the answer is copied
                found.append(way)
            except Exception as error:
                traceback.print_exc()
                failed[way] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                continue
            for index, array in enumerate(_arrays(getattr(self.peer, "to_numpy", lambda a: a)(answer))):
                kept[f"{way}/{index}"] = array
        np.savez(answers, **kept)
        return {"ways": found, "failed": failed, "peak_megabytes": peak}

    def time(self, way: str, seconds: float) -> dict[str, Any]:
        clock = time.process_time if os.environ.get("PEERS_CPU_TIME") else time.perf_counter
        call = self.ways[way]

        def run(enough: float) -> tuple[float, int]:
            count, start = 0, clock()
            while True:
                call()
                count += 1
                passed = clock() - start
                if passed >= enough:
                    return passed, count

        passed, count = run(seconds / 2)
        if passed < seconds:
            passed, count = run(seconds)
        return {"seconds": passed / count, "calls": count}

    def about(self) -> dict[str, Any]:
        return {"version": self.peer.VERSION}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints does not belong among the answers
    try:
        worker = Worker(sys.argv[1], int(sys.argv[2]))
    except ImportError as error:
        print(json.dumps({"missing": str(error).splitlines()[0]}), file=out, flush=True)
        return
    print(json.dumps(worker.about()), file=out, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = getattr(worker, command.pop("do"))(**command)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()

"""From the start of a process to one translated sentence: wall time and peak memory, beside what others need to be imported."""

import os
import subprocess
import sys
import time
from statistics import median

TRANSLATE = "import rheme; print(rheme.load('translation', to='fr')('Where is the station?'))"
PROGRAMS = {
    "python": "pass",
    "import numpy": "import numpy",
    "rheme, one sentence": TRANSLATE,
    "import onnxruntime": "import onnxruntime",
    "import torch": "import torch",
    "import jax": "import jax",
    "import tensorflow": "import tensorflow",
}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Medians of seconds and megabytes; the programs take turns. What fails (nothing installed) is left out."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for turn in range(rounds + 1):  # the first reads the files into the page cache
        for name, program in PROGRAMS.items():
            if turn > 1 and not taken[name]:
                continue
            start = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if turn and child.returncode == 0:
                taken[name].append((time.perf_counter() - start, usage.ru_maxrss / 1024))
    return {
        name: {"seconds": median(s for s, _ in found), "megabytes": median(m for _, m in found)}
        for name, found in taken.items()
        if found
    }

"""How near the LSTM comes to the machine's limit: `python benchmarks/lstm.py [--time 50 --batch 32 --size 512]`.

Forward and backward of one layer, float32, against the fused multiply-add peak that is measured in the same run; on every
instruction set, on 1 thread and on all. Medians of several runs; the answers are compared across instruction sets first.
"""

import argparse
import time

import numpy as np

from rheme import _core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    steps, batch, size = arguments.time, arguments.batch, arguments.size
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.05).astype(np.float32)

    weights = {"w_ih": [floats(4 * size, size)], "w_hh": [floats(4 * size, size)]}
    start = {"x": floats(steps, batch, size), "lengths": None, "h0": None, "c0": None, **weights}
    rest = {"bias": [floats(4 * size)], "packed": None, "reverse": False, "save": True}
    flops = 2 * steps * batch * 4 * size * 2 * size
    print(f"T {steps}, B {batch}, I = H {size}, float32; GFLOP/s, and percent of the peak")
    expected = None
    for isa in _core.available_isas():
        _core.set_isa(name=isa)
        answer = _core.lstm(**start, **rest)[0]
        if expected is None:
            expected = answer
        exact = bool(np.array_equal(answer, expected))
        assert exact or np.allclose(answer, expected, atol=1e-5)
        for threads in sorted({1, _core.num_threads()}):
            _core.set_num_threads(n=threads)
            forward, backward, peaks = [], [], []
            for _ in range(arguments.runs):
                peaks.append(_core.fma_peak(dtype="float32", iterations=3_000_000) * threads)
                begin = time.perf_counter()
                y, _, _, gates, cells = _core.lstm(**start, **rest)
                middle = time.perf_counter()
                saved = {"y": y, "gates": gates, "cells": cells, "dh_n": None, "dc_n": None}
                _core.lstm_backward(dy=y, **saved, **start, reverse=False, need_dx=True)
                forward.append(middle - begin)
                backward.append(time.perf_counter() - middle)
            peak, f, b = float(np.median(peaks)), float(np.median(forward)), float(np.median(backward))
            both = 3 * flops / (f + b) * 1e-9
            print(
                f"{isa:9} {threads} thread{'s' * (threads > 1)}: peak {peak:.0f}, forward {flops / f * 1e-9:.0f}, "
                f"backward {2 * flops / b * 1e-9:.0f}, both {both:.0f} ({100 * both / peak:.0f} %)"
                f"{', same bits as the widest' if exact else ''}"
            )


if __name__ == "__main__":
    main()

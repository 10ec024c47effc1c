"""Memory in the steady state: measured in processes of their own, so that nothing else's pages count."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rheme import _core

FAULTS = """
import resource
import numpy as np
import rheme
from rheme import ops, optim
from rheme.models.text_vae import TextVAE, TextVAEConfig

rheme.set_num_threads(2)
sizes = {"embedding_size": 128, "encoder_size": 128, "decoder_size": 128, "latent_size": 16}
model = TextVAE(TextVAEConfig(vocab_size=3000, word_dropout=0.2, **sizes))
rng = np.random.default_rng(0)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""

TRAINING = """
optimizer = optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
model.train()
batches = []
for length in (12, 20, 17):
    ids = rng.integers(4, 3000, (length, 16))
    lengths = rng.integers(3, length + 1, 16)
    ids[np.arange(length)[:, None] >= lengths] = -1
    batches.append((np.concatenate([np.ones((1, 16), np.int64), np.abs(ids[:-1])]), ids, lengths))

def step(number):
    optimizer.zero_grad()
    loss, words, _ = model.loss(*batches[number % 3], seed=number)
    (loss * (1 / words)).backward()
    optimizer.step(max_norm=1.0)
"""

DECODING = """
model.eval()
state, ids = model.start(rng.standard_normal((8, 16)).astype(np.float32)), np.ones(8, np.int64)

def step(number):
    global state, ids
    logits, state = model.step(ids, state)
    ids = ops.sample(logits, ops.random_bits(0, number, 0, 8), temperature=0.8, top_k=50, top_p=0.9)
"""

COUNT = """
for number in range(200):  # on a busy machine it takes a while until the threads have met in every order
    if number == 100:
        before = faults()
    step(number)
print(faults() - before)
"""

CROSS_ENTROPY = """
import numpy as np
import rheme
from rheme import functional as F, ops

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024

rheme.set_num_threads(2)
weight = rheme.Tensor(np.full((128256, 256), 0.01, np.float32), requires_grad=True)
x = rheme.Tensor(np.full((4096, 256), 0.1, np.float32), requires_grad=True)
targets = np.arange(4096) * 31
before = status("VmRSS")
F.sum(F.linear_cross_entropy(x, weight, None, targets)).backward()
assert weight.grad.any() and x.grad.shape == x.shape
print(status("VmHWM") - before - weight.data.nbytes)
"""


# The address space has room for so many bytes more.
LIMITED = """
import os, resource
import numpy as np
from rheme import _core, ops

def allow(bytes):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + bytes if bytes else resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def threads():
    return len(os.listdir("/proc/self/task"))

def call():
    return ops.linear_cross_entropy(x, weight, None, targets)

x, weight = np.ones((960, 2), np.float32), np.ones((100_000, 2), np.float32)
targets = np.arange(960)
small = np.ones((4, 100, 100), np.float32)
_core.set_num_threads(n=1)
ops.matmul(small, small)
before = threads()
_core.set_num_threads(n=2)
"""

# A stack takes 8 MB.
NO_THREAD = """
allow(1 << 20)
want = ops.matmul(small, small)
assert threads() == before
allow(0)
assert (ops.matmul(small, small) == want).all() and threads() == before + 1
"""

# Each task makes logits of 38 MB and more: there is room for one thread's, if for any.
NO_BLOCK = """
failed = 0
for room in (50 << 20, 16 << 20) * 2:
    ops.matmul(small, small)
    allow(room)
    try:
        call()
    except MemoryError:
        failed += 1
    allow(0)
    weight = np.ones((len(weight) + 30_000, 2), np.float32)  # blocks of another size
assert failed >= 2
got = call()
_core.set_num_threads(n=1)
assert (call() == got).all()
"""


def number_printed(program: str) -> int:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="counts of page faults are Linux'")
@pytest.mark.parametrize("steps", [TRAINING, DECODING], ids=["training", "decoding"])
def test_steps_touch_no_new_pages(steps: str) -> None:
    """A training step here makes some 20 MB of arrays, 5,000 pages; Python's own heap may take a few in a hundred."""
    assert number_printed(FAULTS + steps + COUNT) < 100


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_cross_entropy_never_holds_all_logits() -> None:
    """N 4,096 and V 128,256: the logits alone would be 2.1 GB. Beyond the weights and their gradient."""
    assert number_printed(CROSS_ENTROPY) < 500e6


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited as Linux does")
@pytest.mark.parametrize("rest", [NO_THREAD, NO_BLOCK], ids=["no thread", "no block"])
def test_the_threads_outlive_the_end_of_memory(rest: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED + rest], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_thread_that_ends_gives_its_blocks_back() -> None:
    """A thread keeps a few small blocks of the arena for itself; those of one that ended serve the next."""

    def work() -> None:
        for size in (10, 1000, 100_000):
            arrays = [_core.empty(shape=(size,), dtype="float32") for _ in range(6)]
            del arrays

    def in_a_thread() -> int:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        own = Path(f"/proc/self/task/{thread.native_id}")  # Python does not wait for what C++ does when a thread ends
        for _ in range(1000):
            if not own.exists():
                break
            time.sleep(0.01)
        return _core.arena_bytes()

    first = in_a_thread()
    assert {in_a_thread() for _ in range(20)} == {first}

"""The contract that both backends obey: `_core` (CPU, compiled) and `_cuda` (CuPy).

Shape letters: T time, S source time, N batch, I input, H hidden, V vocabulary, D latent, K reduction, M rows, C columns.
Gate order: i f g o. Every array is C-contiguous; all floating arrays of one call share one dtype, float32 or float64
("F" below); ids, lengths and targets are int64; masks are uint8 (1 keeps, 0 hides). Every argument is passed by keyword.
A wrong dtype, layout or shape raises ValueError (or TypeError) with the name of the argument. Outputs are new arrays
from the core's arena. Functions have no global state and draw no random numbers but from (seed, stream, position).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

class Packed:
    """Weights in the kernels' panel order: opaque, immutable, made once and used many times."""

    @property
    def nbytes(self) -> int: ...

class Quantized:
    """A weight (C, K) stored as int8 or float16, in the kernels' panel order: opaque, immutable."""

    @property
    def nbytes(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...

class Recording:
    """What a thread computes between `begin` and `end`; `run` computes it again, of what its arrays hold then, into the same.

    Of the CPU alone; a GPU has graphs. RuntimeError for one within another. All that is called must be functions of this
    module, with packed weights where they can be had: NumPy's own copies and sums are not recorded.
    """

    def begin(self) -> None: ...
    def end(self) -> None: ...
    def run(self) -> None: ...

# The machine ---------------------------------------------------------------------------------------------------------

def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(*, name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(*, n: int) -> None: ...
def build_info() -> dict[str, str]: ...
def arena_bytes() -> int: ...
def fma_peak(*, dtype: str, iterations: int) -> float: ...
def int8_instruction() -> str: ...
def empty(*, shape: Sequence[int], dtype: str) -> Array: ...
def zeros(*, shape: Sequence[int], dtype: str) -> Array: ...

# Copying, of any dtype -------------------------------------------------------------------------------------------------

def contiguous(*, x: Array) -> Array:
    """A copy that is C-contiguous, of x in any layout."""

def concat(*, arrays: Sequence[Array], axis: int) -> Array:
    """Joined along an axis, 0..: equal shapes but there, and one dtype."""

# Random numbers: Philox4x32-10, key = seed, counter = (position, stream) -------------------------------------------------

def philox(*, counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def random_bits(*, seed: int, stream: int, position: int, n: int) -> Array: ...
def random_uniform(*, seed: int, stream: int, position: int, shape: Sequence[int], dtype: str) -> Array: ...
def random_normal(*, seed: int, stream: int, position: int, shape: Sequence[int], dtype: str) -> Array: ...

# Recurrence and products -------------------------------------------------------------------------------------------------

def pack_lstm(*, w_ih: Sequence[Array], w_hh: Sequence[Array]) -> Packed: ...
def lstm(
    *,
    x: Array,  # F (T, N, I)
    lengths: Array | None,  # int64 (N,), 0..T, any order
    h0: Array | None,  # F (R, N, H); R = directions, 1 or 2; None is zeros
    c0: Array | None,  # F (R, N, H)
    w_ih: Sequence[Array],  # R of F (4H, I)
    w_hh: Sequence[Array],  # R of F (4H, H)
    bias: Sequence[Array],  # R of F (4H,)
    packed: Packed | None,  # of these very weights, or None
    reverse: bool,  # with R = 1: run from the last valid step to the first
    save: bool,  # keep what backward needs
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """y F (T, N, R*H), zero past a row's length; h_n and c_n F (R, N, H); gates and cells (opaque, for backward) or None."""

def lstm_backward(
    *,
    dy: Array,  # F (T, N, R*H)
    dh_n: Array | None,  # F (R, N, H)
    dc_n: Array | None,  # F (R, N, H)
    x: Array,
    lengths: Array | None,
    h0: Array | None,
    c0: Array | None,
    w_ih: Sequence[Array],
    w_hh: Sequence[Array],
    y: Array,
    gates: Array,
    cells: Array,
    reverse: bool,
    need_dx: bool,
) -> tuple[Array | None, Array, Array, list[Array], list[Array], list[Array]]:
    """dx F (T, N, I) or None, dh0 and dc0 F (R, N, H), then R each of dw_ih, dw_hh, dbias."""

def pack_linear(*, weight: Array) -> Packed: ...
def linear(*, x: Array, weight: Array, bias: Array | None, packed: Packed | None) -> Array:
    """x F (M, K), weight F (C, K), bias F (C,) -> F (M, C)."""

def linear_backward(
    *, dy: Array, x: Array, weight: Array, need_dx: bool, need_dweight: bool, need_dbias: bool
) -> tuple[Array | None, Array | None, Array | None]: ...
def pack_quantized(*, weight: Array, scale: Array | None, gates: bool) -> Quantized:
    """weight int8 (C, K) with scale float32 (C,), or float16 (C, K). gates: the 4H rows of an LSTM's w_ih or w_hh."""

def unpack_quantized(*, weight: Quantized) -> Array:
    """float32 (C, K): float16 exactly, int8 times its row's scale."""

def quantized_linear(*, x: Array, weight: Quantized, bias: Array | None) -> Array:
    """x float32 (M, K), weight (C, K), bias float32 (C,) -> float32 (M, C).

    int8: a row of x is q * s, s = max |x| / 127 and q = x * (127 / max |x|) rounded to the nearest (even among equals), and
    y = float(sum of the products of integers) * (s * scale) + bias, a fused multiply-add. A row that holds an infinity or no
    number gives NaN. float16: as `linear` with the same weight in float32.
    """

def quantized_embedding(*, ids: Array, weight: Quantized) -> Array:
    """ids int64 (M,), weight (V, C) -> float32 (M, C), as `unpack_quantized` has them."""

def quantized_lstm(
    *,
    x: Array,  # float32 (T, N, I)
    lengths: Array | None,
    h0: Array | None,
    c0: Array | None,
    w_ih: Sequence[Quantized],  # R of (4H, I), gates
    w_hh: Sequence[Quantized],  # R of (4H, H), gates
    bias: Sequence[Array],  # R of float32 (4H,)
    reverse: bool,
) -> tuple[Array, Array, Array]:
    """y, h_n and c_n as `lstm` gives them.

    int8: each step's x as in `quantized_linear`; h with s = 1 / 127 (h0 with one of its own where |h0| passes 1); the gates
    are bias, plus the products of x, plus those of h, each added by a fused multiply-add.
    """

def matmul(*, a: Array, b: Array, transpose_a: bool, transpose_b: bool) -> Array:
    """a F (B, M, K), b F (B, K, C), either with its last two axes swapped -> F (B, M, C)."""

def embedding(*, ids: Array, weight: Array) -> Array:
    """ids int64 (M,), weight F (V, C) -> F (M, C). An id outside 0..V-1 raises IndexError."""

def embedding_backward(*, dy: Array, ids: Array, num_embeddings: int, order: Array | None) -> Array:
    """dy F (M, C) -> F (V, C); rows of the same id are added in ascending order of their position.

    order int64 (M,): what a stable sort of ids gives, where it is known; None: it is found here.
    """

def attention(
    *,
    query: Array,  # F (T, N, H)
    key: Array,  # F (S, N, H)
    value: Array,  # F (S, N, C)
    lengths: Array | None,  # int64 (N,): keys at s >= lengths[n] are hidden; 0 gives a zero context
    scale: float,  # multiplies the scores
) -> tuple[Array, Array]:
    """context F (T, N, C), weights F (N, T, S). Dot-product attention, softmax over S."""

def attention_backward(
    *,
    dcontext: Array,  # F (T, N, C)
    dweights: Array | None,  # F (N, T, S)
    query: Array,
    key: Array,
    value: Array,
    weights: Array,
    scale: float,
) -> tuple[Array, Array, Array]:
    """dquery, dkey, dvalue, shaped like what they differentiate."""

# Softmax and what stands on it -------------------------------------------------------------------------------------------

def softmax(*, x: Array, mask: Array | None) -> Array:
    """x F (M, C), mask uint8 (M, C) -> F (M, C). A row with nothing kept is all zeros."""

def softmax_backward(*, dy: Array, y: Array) -> Array: ...
def log_softmax(*, x: Array, mask: Array | None) -> Array:
    """Hidden entries are -inf."""

def log_softmax_backward(*, dy: Array, y: Array) -> Array: ...
def cross_entropy(
    *,
    logits: Array,  # F (M, V)
    targets: Array,  # int64 (M,)
    ignore_index: int,
    label_smoothing: float,
    save: bool,
) -> tuple[Array, Array | None]:
    """loss F (M,), 0 where ignored, that of `linear_cross_entropy`; with `save` what the backward pass needs, else None.

    On the CPU the latter is the gradient of the losses' sum, F (M, V); on a GPU the logits' log-sum-exp, F (M,).
    """

def cross_entropy_backward(
    *,
    dloss: Array,  # F (M,)
    logits: Array,
    targets: Array,
    saved: Array,
    ignore_index: int,
    label_smoothing: float,
) -> Array:
    """dlogits F (M, V); `saved` itself where that is it."""

def linear_cross_entropy(
    *,
    x: Array,  # F (M, K)
    weight: Array,  # F (V, K)
    bias: Array | None,  # F (V,)
    targets: Array,  # int64 (M,)
    ignore_index: int,
    label_smoothing: float,
    save: bool,
) -> tuple[Array, Array, Array | None]:
    """loss F (M,), 0 where ignored; lse F (M,); logits F (M, V) where they are small enough to keep, else None.

    loss = (1 - s) * (lse - logit[target]) + s * (lse - mean of logits), s = label_smoothing.
    """

def linear_cross_entropy_backward(
    *,
    dloss: Array,  # F (M,)
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    lse: Array,
    logits: Array | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Array, Array, Array | None]:
    """dx, dweight, dbias (None without bias)."""

def sample(*, logits: Array, bits: Array, temperature: float, top_k: int, top_p: float, min_p: float) -> Array:
    """logits F (N, V), bits uint64 (N,) -> ids int64 (N,). temperature 0 is argmax (lowest id among equals).

    Weights are integers, floor(exp(z - max z) * 2**44) with z = logits / temperature, so that sums do not depend on order.
    top_k keeps the k largest (0: all), then top_p the smallest prefix (largest first, equal ones by ascending id) whose weight
    reaches top_p of what top_k kept, then min_p those with exp(z - max z) >= min_p. The first id (ascending, among the kept)
    whose running weight exceeds mulhi64(bits, total) is drawn.
    """

def top_k(*, x: Array, k: int) -> tuple[Array, Array]:
    """x F (N, V) -> values F (N, k) and ids int64 (N, k), largest first, equal ones by ascending id."""

def gaussian_kl(*, mu: Array, logvar: Array, eps: Array, free_bits: float, free_bits_over: str) -> tuple[Array, Array]:
    """mu, logvar, eps F (N, D) -> z = mu + exp(logvar / 2) * eps and kl(N(mu, exp(logvar)) || N(0, 1)), both F (N, D).

    free_bits_over "sample": each kl below free_bits is set to free_bits (and gets no gradient); "batch": the same for a whole
    column whose mean over N is below free_bits.
    """

def gaussian_kl_backward(
    *, dz: Array, dkl: Array, mu: Array, logvar: Array, eps: Array, free_bits: float, free_bits_over: str
) -> tuple[Array, Array]:
    """dmu, dlogvar."""

# Elementwise. Binary ops take a F (M, C) and b F of shape (M, C), (1, C), (M, 1) or (1, 1) ----------------------------------

def add(*, a: Array, b: Array) -> Array: ...
def sub(*, a: Array, b: Array) -> Array: ...
def mul(*, a: Array, b: Array) -> Array: ...
def div(*, a: Array, b: Array) -> Array: ...
def neg(*, x: Array) -> Array: ...
def exp(*, x: Array) -> Array: ...
def log(*, x: Array) -> Array: ...
def tanh(*, x: Array) -> Array: ...
def sigmoid(*, x: Array) -> Array: ...
def relu(*, x: Array) -> Array: ...
def exp_backward(*, dy: Array, y: Array) -> Array: ...
def log_backward(*, dy: Array, x: Array) -> Array: ...
def tanh_backward(*, dy: Array, y: Array) -> Array: ...
def sigmoid_backward(*, dy: Array, y: Array) -> Array: ...
def relu_backward(*, dy: Array, y: Array) -> Array: ...
def dropout(*, x: Array, p: float, seed: int, stream: int, period: int) -> Array:
    """x F, any shape. Element e stays where uniform(seed, stream, e % period) >= p (period 0: e itself), scaled by 1 / (1 - p).

    Linear in x with the same mask for the same counter, so it is its own backward.
    """

def layer_norm(*, x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """x F (M, C), weight and bias F (C,) -> y F (M, C), mean F (M,), rstd F (M,)."""

def layer_norm_backward(*, dy: Array, x: Array, weight: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """dx, dweight, dbias."""

# Reductions over the middle axis of x F (A, K, C), mask uint8 of its shape; nothing kept: 0 for sum and mean, -inf else ---

def sum(*, x: Array, mask: Array | None) -> Array:
    """-> F (A, C)."""

def mean(*, x: Array, mask: Array | None) -> Array: ...
def max(*, x: Array, mask: Array | None) -> tuple[Array, Array]:
    """-> values F (A, C) and positions int64 (A, C), the first among equals, -1 where nothing is kept."""

def logsumexp(*, x: Array, mask: Array | None) -> Array: ...

# Optimisers: they update their arrays in place -----------------------------------------------------------------------------

def global_norm(*, arrays: Sequence[Array]) -> float: ...
def adamw(
    *,
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
) -> None: ...
def sgd(
    *,
    param: Array,
    grad: Array,
    momentum_buffer: Array | None,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    grad_scale: float,
) -> None: ...

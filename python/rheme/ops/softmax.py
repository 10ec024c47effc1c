# mypy: disable-error-code="no-any-return"
"""Softmax and what stands on it: cross-entropy, sampling; and the Gaussian KL."""

from typing import Any

from rheme.ops.arrays import Array, as_rows, asarray, backend, contiguous, integers, mask_of


def softmax(x: Array, mask: Any = None) -> Array:
    """x (..., C), mask bool or uint8 (1 keeps) -> (..., C), over the last axis. A row with nothing kept is all zeros."""
    return backend(x).softmax(x=as_rows(x), mask=_row_mask(mask, x)).reshape(x.shape)


def softmax_backward(dy: Array, y: Array) -> Array:
    return backend(y).softmax_backward(dy=as_rows(dy, "dy"), y=as_rows(y, "y")).reshape(y.shape)


def log_softmax(x: Array, mask: Any = None) -> Array:
    """x (..., C), mask bool or uint8 (1 keeps) -> (..., C), over the last axis. Hidden entries are -inf."""
    return backend(x).log_softmax(x=as_rows(x), mask=_row_mask(mask, x)).reshape(x.shape)


def log_softmax_backward(dy: Array, y: Array) -> Array:
    return backend(y).log_softmax_backward(dy=as_rows(dy, "dy"), y=as_rows(y, "y")).reshape(y.shape)


def _row_mask(mask: Any, x: Array) -> Array | None:
    return None if mask is None else as_rows(mask_of(mask, x), "mask")  # type: ignore[arg-type]


def cross_entropy(logits: Array, targets: Any, ignore_index: int = -1, label_smoothing: float = 0.0, save: bool = False) -> Any:
    """Cross-entropy of given logits (..., V) -> loss (...); targets, ignored ones and smoothing as in `linear_cross_entropy`.

    With `save`: loss, and what `cross_entropy_backward` needs beside the logits.
    """
    targets = integers(targets, logits, "targets")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets: shape {targets.shape} does not fit logits of shape {logits.shape}")
    loss, saved = backend(logits).cross_entropy(
        logits=as_rows(logits, "logits"),
        targets=targets.reshape(targets.size),
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
        save=save,
    )
    loss = loss.reshape(targets.shape)
    return (loss, saved) if save else loss


def cross_entropy_backward(
    dloss: Array, logits: Array, targets: Any, saved: Array, ignore_index: int = -1, label_smoothing: float = 0.0
) -> Array:
    """dlogits (..., V)."""
    targets = integers(targets, logits, "targets")
    dlogits = backend(logits).cross_entropy_backward(
        dloss=contiguous(dloss).reshape(dloss.size),
        logits=as_rows(logits, "logits"),
        targets=targets.reshape(targets.size),
        saved=saved,
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
    )
    return dlogits.reshape(logits.shape)


def linear_cross_entropy(
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Any,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
    save: bool = False,
) -> Any:
    """Cross-entropy of the logits x weight^T + bias, never kept whole when they are large.

    x (..., K), weight (V, K), bias (V,) or None, targets int64 (...) -> loss (...), 0 where the target is ignore_index.
    loss = (1 - s) (lse - logit[target]) + s (lse - mean of the logits), s = label_smoothing (Szegedy et al. 2016).
    With `save`: loss, lse and logits (or None), as `linear_cross_entropy_backward` needs them.
    """
    targets = integers(targets, x, "targets")
    if targets.shape != x.shape[:-1]:
        raise ValueError(f"targets: shape {targets.shape} does not fit x of shape {x.shape}")
    loss, lse, logits = backend(x).linear_cross_entropy(
        x=as_rows(x),
        weight=contiguous(weight),
        bias=None if bias is None else contiguous(bias),
        targets=targets.reshape(targets.size),
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
        save=save,
    )
    loss = loss.reshape(targets.shape)
    return (loss, lse, logits) if save else loss


def linear_cross_entropy_backward(
    dloss: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Any,
    lse: Array,
    logits: Array | None,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
) -> tuple[Array, Array, Array | None]:
    """dx (..., K), dweight (V, K), dbias (V,) or None."""
    targets = integers(targets, x, "targets")
    dx, dweight, dbias = backend(x).linear_cross_entropy_backward(
        dloss=contiguous(dloss).reshape(dloss.size),
        x=as_rows(x),
        weight=contiguous(weight),
        bias=None if bias is None else contiguous(bias),
        targets=targets.reshape(targets.size),
        lse=lse,
        logits=logits,
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
    )
    return dx.reshape(x.shape), dweight, dbias


def sample(
    logits: Array, bits: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Array:
    """logits (N, V), bits uint64 (N,) -> ids int64 (N,). temperature 0 is argmax.

    top_k keeps the k largest (0: all), then top_p the smallest prefix that reaches top_p of them (Holtzman et al. 2020), then
    min_p those at least min_p times as likely as the likeliest. By integer weights: equal logits and bits draw equal ids on any
    machine.
    """
    return backend(logits).sample(
        logits=contiguous(logits),
        bits=contiguous(bits) if type(bits) is type(logits) else asarray(bits, like=logits),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """x (..., V) -> values (..., k) and ids int64 (..., k), largest first, equal ones by ascending id."""
    values, ids = backend(x).top_k(x=as_rows(x), k=int(k))
    shape = (*x.shape[:-1], k)
    return values.reshape(shape), ids.reshape(shape)


def gaussian_kl(
    mu: Array, logvar: Array, eps: Array, free_bits: float = 0.0, free_bits_over: str = "sample"
) -> tuple[Array, Array]:
    """z = mu + exp(logvar / 2) * eps, and KL(N(mu, exp(logvar)) || N(0, 1)) per dimension (Kingma and Welling 2014).

    mu, logvar, eps (..., D) -> z, kl (..., D). A kl below free_bits is set to free_bits and gets no gradient: each by itself
    (free_bits_over "sample"), or a whole column by its mean ("batch"; Kingma et al. 2016).
    """
    eps = asarray(eps, like=mu)
    for name, array in (("logvar", logvar), ("eps", eps)):
        if array.shape != mu.shape:
            raise ValueError(f"{name}: expected shape {mu.shape}, that of mu, got {array.shape}")
    z, kl = backend(mu).gaussian_kl(
        mu=as_rows(mu, "mu"),
        logvar=as_rows(logvar, "logvar"),
        eps=as_rows(eps, "eps"),
        free_bits=float(free_bits),
        free_bits_over=free_bits_over,
    )
    return (z, kl) if mu.ndim == 2 else (z.reshape(mu.shape), kl.reshape(mu.shape))


def gaussian_kl_backward(
    dz: Array, dkl: Array, mu: Array, logvar: Array, eps: Array, free_bits: float = 0.0, free_bits_over: str = "sample"
) -> tuple[Array, Array]:
    """dmu, dlogvar (..., D)."""
    dmu, dlogvar = backend(mu).gaussian_kl_backward(
        dz=as_rows(dz, "dz"),
        dkl=as_rows(dkl, "dkl"),
        mu=as_rows(mu, "mu"),
        logvar=as_rows(logvar, "logvar"),
        eps=as_rows(asarray(eps, like=mu), "eps"),
        free_bits=float(free_bits),
        free_bits_over=free_bits_over,
    )
    return (dmu, dlogvar) if mu.ndim == 2 else (dmu.reshape(mu.shape), dlogvar.reshape(mu.shape))

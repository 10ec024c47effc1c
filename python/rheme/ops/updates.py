# mypy: disable-error-code="no-any-return"
"""What an optimiser does to its arrays, in place."""

from collections.abc import Sequence

from rheme.ops.arrays import Array, backend, contiguous


def global_norm(arrays: Sequence[Array]) -> float:
    """The Euclidean norm of all the arrays' elements together."""
    return backend(arrays[0]).global_norm(arrays=[contiguous(a) for a in arrays]) if arrays else 0.0


def adamw(
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    step: int = 1,
    grad_scale: float = 1.0,
) -> None:
    """One AdamW update (Loshchilov and Hutter 2019) of param, m and v, in place; grad is first multiplied by grad_scale."""
    backend(param).adamw(
        param=param,
        grad=contiguous(grad),
        m=m,
        v=v,
        learning_rate=float(learning_rate),
        beta1=float(beta1),
        beta2=float(beta2),
        epsilon=float(epsilon),
        weight_decay=float(weight_decay),
        step=int(step),
        grad_scale=float(grad_scale),
    )


def sgd(
    param: Array,
    grad: Array,
    momentum_buffer: Array | None,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """One update by gradient descent with momentum, in place; the gradient is first multiplied by grad_scale."""
    backend(param).sgd(
        param=param,
        grad=contiguous(grad),
        momentum_buffer=momentum_buffer,
        learning_rate=float(learning_rate),
        momentum=float(momentum),
        weight_decay=float(weight_decay),
        grad_scale=float(grad_scale),
    )

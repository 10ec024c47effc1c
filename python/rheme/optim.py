"""Optimisers and learning-rate schedules.

An optimiser updates `param.data` in place and counts `param.version` up, so that packed weights made from it are made anew.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from rheme import ops
from rheme.autograd import Tensor
from rheme.errors import InputError
from rheme.ops import Array

Schedule = Callable[[int], float]


class _Optimizer:
    """Parameters, a learning rate (change it between steps), the number of steps taken, and slots of arrays per parameter."""

    slots: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Tensor], learning_rate: float, weight_decay: float) -> None:
        unique: dict[int, Tensor] = {id(param): param for param in params}
        self.params = list(unique.values())
        if not self.params:
            raise InputError("the optimiser was given no parameters")
        if not learning_rate >= 0 or not weight_decay >= 0:
            raise InputError(f"learning_rate and weight_decay must be at least 0, not {learning_rate} and {weight_decay}")
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.step_count = 0
        self.state: dict[str, list[Array]] = {
            slot: [ops.zeros(p.shape, p.dtype, p.data) for p in self.params] for slot in self.slots
        }

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for param in self.params:
            param.grad = None

    def step(self, max_norm: float | None = None) -> float:
        """Update every parameter that has a gradient; returns the gradients' global norm, before clipping.

        max_norm: where the norm is larger, the gradients are scaled down to it (Pascanu et al. 2013). A norm that is not finite
        leaves the parameters, the state and `step_count` as they are: the caller sees it in what is returned.
        """
        if max_norm is not None and not max_norm >= 0:
            raise InputError(f"max_norm must be at least 0, not {max_norm}")
        norm = self.norm()
        if not math.isfinite(norm):
            return norm
        self.step_count += 1
        scale = max_norm / norm if max_norm is not None and norm > max_norm else 1.0
        for index, param in enumerate(self.params):
            if param.grad is not None:
                self._update(index, param, param.grad, scale)
                param.version += 1
        return norm

    def norm(self) -> float:
        """The gradients' global norm."""
        return ops.global_norm([param.grad for param in self.params if param.grad is not None])

    def _update(self, index: int, param: Tensor, grad: Array, scale: float) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """`step`, int64 of shape (), and `<slot>.<index of the parameter>`: the arrays themselves, not copies."""
        state: dict[str, Array] = {"step": np.array(self.step_count, np.int64)}
        for slot, arrays in self.state.items():
            state.update({f"{slot}.{index}": array for index, array in enumerate(arrays)})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of such an optimiser over the same parameters. InputError names all that does not fit."""
        expected = self.state_dict()
        wrong = [f"{name} is missing" for name in expected if name not in state]
        wrong += [f"{name} is unknown" for name in state if name not in expected]
        for name, array in expected.items():
            if name in state and name != "step" and (state[name].shape, state[name].dtype) != (array.shape, array.dtype):
                wrong.append(f"{name} is {state[name].dtype} {state[name].shape}, not {array.dtype} {array.shape}")
        if wrong:
            raise InputError("this optimiser state does not fit: " + "; ".join(wrong))
        self.step_count = int(state["step"])
        for name, array in expected.items():
            if name != "step":
                array[...] = ops.asarray(state[name], like=array)


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as PyTorch computes it."""

    slots = ("m", "v")

    def __init__(
        self,
        params: Iterable[Tensor],
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, learning_rate, weight_decay)
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise InputError(f"betas must be at least 0 and below 1, not {betas}")
        if not epsilon >= 0:
            raise InputError(f"epsilon must be at least 0, not {epsilon}")
        self.betas = betas
        self.epsilon = epsilon

    def _update(self, index: int, param: Tensor, grad: Array, scale: float) -> None:
        ops.adamw(
            param.data,
            grad,
            self.state["m"][index],
            self.state["v"][index],
            self.learning_rate,
            *self.betas,
            self.epsilon,
            self.weight_decay,
            self.step_count,
            scale,
        )


class SGD(_Optimizer):
    """Gradient descent, with momentum if it is not 0: buffer = momentum * buffer + gradient (no dampening)."""

    def __init__(
        self, params: Iterable[Tensor], learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        if not momentum >= 0:
            raise InputError(f"momentum must be at least 0, not {momentum}")
        self.slots = ("momentum",) if momentum else ()
        super().__init__(params, learning_rate, weight_decay)
        self.momentum = momentum

    def _update(self, index: int, param: Tensor, grad: Array, scale: float) -> None:
        buffer = self.state["momentum"][index] if self.momentum else None
        ops.sgd(param.data, grad, buffer, self.learning_rate, self.momentum, self.weight_decay, scale)


# Schedules: functions of the step (1, 2, ...) to a factor of the learning rate ------------------------------------------------


def _warmed(step: int, warmup_steps: int) -> float:
    return min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0


def constant(warmup_steps: int = 0) -> Schedule:
    """1, after a linear warm-up."""
    return lambda step: _warmed(step, warmup_steps)


def linear(warmup_steps: int, total_steps: int, final: float = 0.0) -> Schedule:
    """Linear warm-up to 1, then a straight line down to `final` at total_steps."""

    def factor(step: int) -> float:
        if step <= warmup_steps:
            return _warmed(step, warmup_steps)
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 1.0 + (final - 1.0) * done

    return factor


def cosine(warmup_steps: int, total_steps: int, final: float = 0.0) -> Schedule:
    """Linear warm-up to 1, then half a cosine down to `final` at total_steps (Loshchilov and Hutter 2017, no restarts)."""

    def factor(step: int) -> float:
        if step <= warmup_steps:
            return _warmed(step, warmup_steps)
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))

    return factor


def inverse_sqrt(warmup_steps: int) -> Schedule:
    """Linear warm-up to 1, then sqrt(warmup_steps / step) (Vaswani et al. 2017)."""
    return lambda step: _warmed(step, warmup_steps) if step <= warmup_steps else math.sqrt(max(1, warmup_steps) / step)

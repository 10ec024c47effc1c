"""Parameters, modules that find them by themselves, and packed weights that notice when they are out of date."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from rheme import ops
from rheme.autograd import Tensor
from rheme.errors import InputError
from rheme.ops import Array


class Parameter(Tensor):
    """A tensor that a module trains.

    For inference it may be stored small, as int8 or float16 (`quantization.py`): then `packed` is what the core computes on,
    and `data` makes it float32 anew at each use, so that whoever knows nothing of it still gets the right numbers. Setting
    `data` ends that.

    Layers keep packed copies of their weights for inference. Setting `data` makes them anew; a write into its memory
    (`weight.data[0] = 1`) must be followed by `weight.version += 1`.
    """

    __slots__ = ("_array", "packed")

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)

    @property
    def data(self) -> Array:
        return self._array if self.packed is None else ops.unpack_quantized(self.packed)

    @data.setter
    def data(self, array: Array) -> None:
        self._array, self.packed = array, None

    def pack(self, packed: Any) -> None:
        """Hold the weight as `ops.pack_quantized` made it; it no longer requires a gradient."""
        self._array, self.packed, self.grad, self.requires_grad = ops.empty((0,)), packed, None, False
        self.version += 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape if self.packed is None else self.packed.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        return self._array.dtype


class Module:
    """Something with parameters.

    Parameters and modules set as attributes (or in lists and tuples set as attributes) are found by themselves, in the
    order in which the attributes were first set. A parameter found twice (tied) counts once, under its first name.
    """

    training: bool = True
    capturable = False  # whether there is a `step` for decoding that does nothing but call ops and look at arrays another way

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    forward: Callable[..., Any]

    def _children(self) -> Iterator[tuple[str, Any]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter | Module):
                yield name, value
            elif isinstance(value, list | tuple):
                for index, item in enumerate(value):
                    if isinstance(item, Parameter | Module):
                        yield f"{name}.{index}", item

    def modules(self) -> Iterator["Module"]:
        """This module and all within it, each once."""
        found: dict[int, Module] = {}
        stack: list[Module] = [self]
        while stack:
            module = stack.pop()
            if id(module) not in found:
                found[id(module)] = module
                stack += [child for _, child in module._children() if isinstance(child, Module)][::-1]
        return iter(found.values())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter), names joined by dots, in order of definition."""
        seen: set[int] = set()

        def walk(module: Module, prefix: str) -> Iterator[tuple[str, Parameter]]:
            for name, child in module._children():
                if id(child) in seen:
                    continue
                seen.add(id(child))
                if isinstance(child, Parameter):
                    yield prefix + name, child
                else:
                    yield from walk(child, f"{prefix}{name}.")

        return walk(self, "")

    def parameters(self) -> Iterator[Parameter]:
        """The parameters in order of definition."""
        found: dict[int, Parameter] = {}  # a training step asks for them again and again: no names
        walked, stack = set(), list[Any]([self])
        while stack:
            part = stack.pop()
            if isinstance(part, Parameter):
                found.setdefault(id(part), part)
            elif isinstance(part, Module) and part not in walked:
                walked.add(part)
                stack += [*vars(part).values()][::-1]
            elif isinstance(part, list | tuple):
                stack += [item for item in part if isinstance(item, Parameter | Module)][::-1]
        return iter(found.values())

    def num_parameters(self) -> int:
        """How many numbers the parameters hold."""
        return sum(parameter.size for parameter in self.parameters())

    def state_dict(self) -> dict[str, Array]:
        """Name -> array: the parameters' own memory, not copies. A write into it counts `version` up (`Parameter`)."""
        return {name: parameter.data for name, parameter in self.named_parameters()}

    def check_state(self, found: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        """InputError that names every name, (shape, dtype) that does not fit the parameters."""
        parameters = dict(self.named_parameters())
        wrong = [f"{name} is missing" for name in parameters if name not in found]
        wrong += [f"{name} is unknown" for name in found if name not in parameters]
        for name, parameter in parameters.items():
            if name in found:
                shape, dtype = found[name]
                wrong += [f"{name} has shape {shape}, not {parameter.shape}"] if shape != parameter.shape else []
                wrong += [f"{name} is {dtype}, not {parameter.dtype}"] if dtype != parameter.dtype else []
        if wrong:
            raise InputError(f"these weights do not fit {type(self).__name__}: " + "; ".join(wrong))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy arrays into the parameters. InputError names every name, shape and dtype that does not fit, before any copy."""
        arrays = {name: array.data if isinstance(array, Tensor) else array for name, array in state.items()}
        arrays = {name: array if ops.on_gpu(array) else np.asarray(array) for name, array in arrays.items()}
        self.check_state({name: (array.shape, array.dtype) for name, array in arrays.items()})
        parameters = dict(self.named_parameters())
        for name, array in arrays.items():
            parameter = parameters[name]
            if parameter.packed is not None:
                parameter.data = ops.empty(parameter.shape)
            parameter.data[...] = ops.asarray(array, like=parameter.data)
            parameter.version += 1

    def captured(self) -> Any:
        """What to call `step` of: this module or, where it is `capturable`, its step recorded as one call.

        The recordings are the calling thread's, and kept until a parameter changes; see `ops.recorded`.
        """
        return ops.captured(self, [(p._array, p.version) for p in self.parameters()]) if self.capturable else self

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def train(self, mode: bool = True) -> Self:
        """Turn dropout on, here and in every module within."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Turn dropout off, here and in every module within."""
        return self.train(False)

    def _replace(self, convert: Callable[[Array], Array]) -> Self:
        for parameter in self.parameters():
            parameter.data = convert(parameter.data)
            parameter.grad = None
            parameter.version += 1
        return self

    def astype(self, dtype: Any) -> Self:
        """Convert every parameter to float32 or float64; gradients are forgotten."""
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"parameters are float32 or float64, not {np.dtype(dtype)}")
        return self._replace(lambda array: array if array.dtype == dtype else ops.asarray(array, dtype))

    def to(self, device: str) -> Self:
        """Move every parameter to "cpu" or "cuda" (the current CUDA device; needs CuPy); gradients are forgotten."""
        ops.check_device(device)
        return self._replace(lambda array: ops.to_device(array, device))


class PackCache:
    """The packed form of some parameters, made anew when one of them has been updated, loaded or replaced."""

    def __init__(self) -> None:
        self._key: list[tuple[Array, int]] = []
        self._packed: Any = None

    def get(self, parameters: Sequence[Parameter], pack: Callable[[], Any]) -> Any:
        if len(self._key) == len(parameters):
            for parameter, (array, version) in zip(parameters, self._key):  # noqa: B905 - as a keyword costs 0.2 us
                if parameter.version != version or parameter._array is not array:
                    break
            else:
                return self._packed
        self._packed = pack()
        self._key = [(parameter._array, parameter.version) for parameter in parameters]
        return self._packed

"""Tensor, the tape, and gradient checking.

`record(outputs, inputs, backward)` is how every differentiable op, ours or a plugin's, joins the tape. The arithmetic that
Tensor's own operators need stands here too; every other op is in `functional.py`.
"""

import builtins
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self, overload

import numpy as np

from rheme import ops
from rheme.errors import InputError, RhemeError
from rheme.ops import Array, Axis

Backward = Callable[..., Sequence[Array | None]]

_ARRAYS = (np.ndarray, np.generic)
_numbers = itertools.count()  # creation order; an op's inputs were always created before it


class _Mode(threading.local):
    off = 0  # how many `no_grad` this thread is in


_mode = _Mode()


class no_grad:  # noqa: N801
    """Within it, in this thread, nothing is recorded."""

    __slots__ = ()

    def __enter__(self) -> None:
        _mode.off += 1

    def __exit__(self, *_: object) -> None:
        _mode.off = builtins.max(0, _mode.off - 1)  # a generator may be closed in another thread than it began in


def grad_enabled() -> bool:
    """Whether ops are recorded in this thread."""
    return not _mode.off


class _Node:
    """One recorded op. Its output tensors point to it, it points to its input tensors, and remembers their versions."""

    __slots__ = ("backward", "grads", "inputs", "number", "versions")

    def __init__(self, inputs: Sequence["Tensor | None"], backward: Backward, outputs: int) -> None:
        self.number = next(_numbers)
        self.inputs: Sequence[Tensor | None] = inputs
        self.versions = [tensor.version for tensor in inputs if tensor is not None]
        self.backward: Backward | None = backward
        self.grads: list[Array | None] = [None] * outputs


class Tensor:
    """An array that remembers how it was made.

    data: a NumPy or CuPy array, or what NumPy makes one of (floats become float32). `grad` is None until `backward` reaches
    a tensor that was made with requires_grad; then an array shaped like data, not to be changed in place: tensors may share it.
    `version` counts in-place updates by optimisers and loads: `backward` refuses a tensor that was updated since it was used.
    """

    __slots__ = ("__weakref__", "_index", "_node", "data", "grad", "requires_grad", "version")
    packed: Any = None  # of a weight that is stored small (`nn.Parameter`): what `ops.quantized_*` take
    __array_ufunc__ = None  # so that `array + tensor` comes to __radd__

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            data = data.data
        self.data: Array = ops.asarray(data)
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.version = 0
        self._node: _Node | None = None
        self._index = 0
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floating tensors can require a gradient, not {self.data.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Tensor({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"

    def numpy(self) -> Array:
        """The data as a NumPy array: the same memory on the CPU, a copy from the GPU."""
        return self.data if isinstance(self.data, np.ndarray) else self.data.get()

    def item(self) -> float:
        """The one element as a Python number. ValueError if there are more."""
        return self.data.item()

    def detach(self) -> "Tensor":
        """The same data, outside the tape."""
        return Tensor(self.data)

    def backward(self, grad: Any = None) -> None:
        """Add d(self)/d(leaf), contracted with grad, to the `grad` of every tensor that self was made from with requires_grad.

        grad has the shape of self; it may be left out for a single element (then it is 1). Contributions are added in the
        reverse order of the ops' creation, always the same. The tape is freed on the way, so it works once.
        """
        if not self.requires_grad:
            raise RhemeError("backward: this tensor was made from nothing that requires a gradient")
        if grad is None:
            if self.size != 1:
                raise RhemeError(f"backward: give a grad of shape {self.shape}, or call it on a single element")
            seed = ops.empty(self.shape, self.dtype, self.data)
            seed[...] = 1
        else:
            seed = ops.asarray(grad.data if isinstance(grad, Tensor) else grad, self.dtype, self.data)
            if seed.shape != self.shape:
                raise ValueError(f"grad: expected shape {self.shape}, got {seed.shape}")
        _deliver(self, seed)
        if self._node is None:
            return
        found, stack = {self._node.number: self._node}, [self._node]
        while stack:
            for tensor in stack.pop().inputs:
                if tensor is not None and tensor._node is not None and tensor._node.number not in found:
                    found[tensor._node.number] = tensor._node
                    stack.append(tensor._node)
        for number in sorted(found, reverse=True):
            _run(found.pop(number))

    # Operators

    def __add__(self, other: Any) -> "Tensor":
        return add(self, other)

    def __radd__(self, other: Any) -> "Tensor":
        return add(other, self)

    def __sub__(self, other: Any) -> "Tensor":
        return sub(self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return sub(other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return mul(self, other)

    def __rmul__(self, other: Any) -> "Tensor":
        return mul(other, self)

    def __truediv__(self, other: Any) -> "Tensor":
        return div(self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return div(other, self)

    def __neg__(self) -> "Tensor":
        return neg(self)

    def __getitem__(self, index: Any) -> "Tensor":
        return slice(self, index)

    def sum(self, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> "Tensor":
        return sum(self, axis, keepdims, mask)

    def mean(self, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> "Tensor":
        return mean(self, axis, keepdims, mask)

    def max(self, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> "Tensor":
        return max(self, axis, keepdims, mask)

    @overload
    def reshape(self, shape: Sequence[int], /) -> "Tensor": ...
    @overload
    def reshape(self, *shape: int) -> "Tensor": ...
    def reshape(self, *shape: Any) -> "Tensor":
        return reshape(self, shape if not shape or isinstance(shape[0], int | np.integer) else shape[0])

    @overload
    def transpose(self, axes: Sequence[int] | None = None, /) -> "Tensor": ...
    @overload
    def transpose(self, *axes: int) -> "Tensor": ...
    def transpose(self, *axes: Any) -> "Tensor":
        if not axes or axes[0] is None:
            return transpose(self)
        return transpose(self, axes if isinstance(axes[0], int | np.integer) else axes[0])

    def __copy__(self) -> Self:
        raise RhemeError("a tensor is not copied; make a new one of its data")


def _deliver(tensor: Tensor, grad: Array) -> None:
    """Add a gradient to a leaf's grad, or to what the node that made the tensor has received."""
    node = tensor._node
    if node is None:
        tensor.grad = grad if tensor.grad is None else ops.add(tensor.grad, grad)
    else:
        if node.backward is None:
            raise RhemeError("backward: an earlier backward has used part of this graph, and freed it; compute it again")
        before = node.grads[tensor._index]
        node.grads[tensor._index] = grad if before is None else ops.add(before, grad)


def _run(node: _Node) -> None:
    if node.backward is not None and [grad for grad in node.grads if grad is not None]:
        if [tensor.version for tensor in node.inputs if tensor is not None] != node.versions:
            raise RhemeError("backward: a tensor was updated in place after the forward pass had used it; compute it again")
        grads = node.backward(*node.grads)
        if not isinstance(grads, (tuple, list)):
            raise RhemeError(f"backward of a recorded op gave a {type(grads).__name__}, not a tuple of gradients")
        if len(grads) != len(node.inputs):
            raise RhemeError(f"backward of a recorded op gave {len(grads)} gradients for {len(node.inputs)} inputs")
        for tensor, grad in zip(node.inputs, grads, strict=True):
            if tensor is None or grad is None:
                continue
            if not (isinstance(grad, _ARRAYS) or ops.on_gpu(grad)):
                raise RhemeError(f"backward of a recorded op gave a {type(grad).__name__} for a gradient, not an array")
            if grad.shape != tensor.shape or grad.dtype != tensor.dtype:
                given, wanted = f"{grad.dtype} {grad.shape}", f"{tensor.dtype} {tensor.shape}"
                raise RhemeError(f"backward of a recorded op gave a gradient {given} for an input {wanted}")
            _deliver(tensor, grad)
    node.backward, node.inputs, node.grads = None, (), []


@overload
def record(outputs: Array, inputs: Sequence[Tensor | None], backward: Backward) -> Tensor: ...
@overload
def record(outputs: tuple[Array, ...], inputs: Sequence[Tensor | None], backward: Backward) -> tuple[Tensor, ...]: ...
def record(outputs: Any, inputs: Sequence[Tensor | None], backward: Backward) -> Any:
    """Make the outputs of an op into tensors that know how to go back.

    outputs: an array, or a tuple of arrays. inputs: the tensors that the op differentiates by (None where there is none).
    backward is called once, with one gradient per output, each an array of the output's shape, or None where nothing used that
    output (never all of them); it returns one array or None per input. Arrays are not to be changed in place.
    Returns a tensor, or a tuple of tensors. Under `no_grad`, or when no input requires a gradient, nothing is recorded.
    """
    several, node = isinstance(outputs, tuple), None
    if not _mode.off:
        kept = [tensor if tensor is not None and tensor.requires_grad else None for tensor in inputs]
        if kept.count(None) < len(kept):
            node = _Node(kept, backward, len(outputs) if several else 1)
    if not several:
        return _made(outputs, node, 0)
    return tuple([_made(array, node, index) for index, array in enumerate(outputs)])


def _made(array: Any, node: _Node | None, index: int) -> Tensor:
    """Output number `index` of a node. What an op made needs no checks; what a plugin's op made may."""
    if type(array) is not np.ndarray:
        array = ops.asarray(array)
    tensor = Tensor.__new__(Tensor)
    tensor.data, tensor.grad, tensor.requires_grad = array, None, node is not None
    tensor.version, tensor._node, tensor._index = 0, node, index
    return tensor


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """value itself if it is a Tensor, else a constant one (Python numbers take the dtype and device of `like`)."""
    if isinstance(value, Tensor):
        return value
    return Tensor(value if like is None else ops.asarray(value, None, like.data))


# The arithmetic of Tensor's operators -----------------------------------------------------------------------------------------


def _number(value: Any) -> bool:
    return isinstance(value, int | float | np.generic)


def _pair(a: Any, b: Any) -> tuple[Any, Any]:
    """Both as tensors, but for a Python number."""
    like = a if isinstance(a, Tensor) else b if isinstance(b, Tensor) else None
    if like is None and _number(a) and _number(b):
        raise InputError(f"{a} and {b} are two numbers: one of them must be a tensor or an array")
    a = a if _number(a) else as_tensor(a, like)
    return a, b if _number(b) else as_tensor(b, a if isinstance(a, Tensor) else like)


def add(a: Any, b: Any) -> Tensor:
    """a + b; shapes broadcast, and one of them may be a Python number. So for `sub`, `mul` and `div`."""
    a, b = _pair(a, b)
    if _number(a):
        a, b = b, a
    if _number(b):
        return record(ops.add(a.data, b), (a,), lambda dy: (dy,))
    return record(ops.add(a.data, b.data), (a, b), lambda dy: ops.add_backward(dy, a.shape, b.shape))


def sub(a: Any, b: Any) -> Tensor:
    a, b = _pair(a, b)
    if _number(b):
        return record(ops.sub(a.data, b), (a,), lambda dy: (dy,))
    if _number(a):
        return record(ops.sub(a, b.data), (b,), lambda dy: (ops.neg(dy),))
    return record(ops.sub(a.data, b.data), (a, b), lambda dy: ops.sub_backward(dy, a.shape, b.shape))


def mul(a: Any, b: Any) -> Tensor:
    a, b = _pair(a, b)
    if _number(a):
        a, b = b, a
    if _number(b):
        return record(ops.mul(a.data, b), (a,), lambda dy: (ops.mul(dy, b),))

    def backward(dy: Array) -> Sequence[Array | None]:
        da = ops.reduce_to(ops.mul(dy, b.data), a.shape) if a.requires_grad else None
        return da, ops.reduce_to(ops.mul(dy, a.data), b.shape) if b.requires_grad else None

    return record(ops.mul(a.data, b.data), (a, b), backward)


def div(a: Any, b: Any) -> Tensor:
    a, b = _pair(a, b)
    if _number(b):
        return record(ops.div(a.data, b), (a,), lambda dy: (ops.div(dy, b),))
    if _number(a):
        a = Tensor(ops.asarray(a, b.dtype, b.data))
    return record(ops.div(a.data, b.data), (a, b), lambda dy: ops.div_backward(dy, a.data, b.data))


def neg(x: Any) -> Tensor:
    x = as_tensor(x)
    return record(ops.neg(x.data), (x,), lambda dy: (ops.neg(dy),))


def sum(x: Any, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> Tensor:
    """Over `axis` (an int, several, or None: all); mask bool or uint8 (1 keeps), broadcast to x. So for `mean` and `max`."""
    x = as_tensor(x)
    return record(ops.sum(x.data, axis, keepdims, mask), (x,), lambda dy: (ops.sum_backward(dy, x.data, axis, mask),))


def mean(x: Any, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> Tensor:
    x = as_tensor(x)
    return record(ops.mean(x.data, axis, keepdims, mask), (x,), lambda dy: (ops.mean_backward(dy, x.data, axis, mask),))


def max(x: Any, axis: Axis = None, keepdims: bool = False, mask: Any = None) -> Tensor:
    """The values alone (`ops.max` gives positions too); the gradient goes to the first among equals."""
    x = as_tensor(x)
    values, positions = ops.max(x.data, axis, keepdims, mask)
    return record(values, (x,), lambda dy: (ops.max_backward(dy, positions, x.data, axis),))


def reshape(x: Any, shape: Sequence[int]) -> Tensor:
    x = as_tensor(x)
    return record(ops.reshape(x.data, shape), (x,), lambda dy: (dy.reshape(x.shape),))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Tensor:
    x = as_tensor(x)
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(ops.axis_of(axis, x.shape) for axis in axes)
    y = ops.transpose(x.data, order)
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    return record(y, (x,), lambda dy: (ops.transpose(dy, inverse),))


def slice(x: Any, index: Any) -> Tensor:
    """x[index] for integers, slices, None and Ellipsis. To gather rows by an array of ids use `functional.embedding`."""
    x = as_tensor(x)
    for part in index if isinstance(index, tuple) else (index,):
        if not (part is None or part is Ellipsis or isinstance(part, int | np.integer) or type(part).__name__ == "slice"):
            raise TypeError(
                f"a tensor is indexed by integers and slices, not by {type(part).__name__}; see functional.embedding"
            )
    return record(ops.slice(x.data, index), (x,), lambda dy: (ops.slice_backward(dy, x.data, index),))


# Checking ---------------------------------------------------------------------------------------------------------------------


def gradcheck(fn: Callable[..., Any], inputs: Sequence[Any], eps: float = 1e-6, rtol: float = 1e-6) -> bool:
    """Compare the gradients of fn with central differences.

    fn takes tensors made of `inputs` (float64 arrays or Tensors, of the CPU or a GPU) and returns a tensor, or a tuple of them;
    it must be a function of them alone. Each output is contracted with fixed random numbers; each element of each input is
    moved by +-eps. An element may differ by rtol times the largest gradient of its input (at least 1). Returns True, or raises
    AssertionError naming the worst element.
    """
    given = [x.data if isinstance(x, Tensor) else x for x in inputs]
    devices = ["cuda" if ops.on_gpu(x) else "cpu" for x in given]
    arrays = [np.array(ops.to_host(x)) for x in given]
    for position, array in enumerate(arrays):
        if array.dtype != np.float64:
            raise TypeError(f"gradcheck: input {position} is {array.dtype}, not float64")

    def value(requires_grad: bool) -> tuple[Tensor, list[Tensor]]:
        tensors = [Tensor(ops.to_device(array, d), requires_grad) for array, d in zip(arrays, devices, strict=True)]
        outputs = fn(*tensors)
        total: Tensor | None = None
        for stream, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
            weights = ops.random_normal(0, stream, 0, output.shape, np.float64, output.data)
            part = sum(mul(output, weights))
            total = part if total is None else add(total, part)
        if total is None:
            raise ValueError("gradcheck: fn returned no output")
        return total, tensors

    total, tensors = value(True)
    total.backward()
    for position, (array, tensor) in enumerate(zip(arrays, tensors, strict=True)):
        grad = np.zeros_like(array) if tensor.grad is None else ops.to_host(tensor.grad)
        scale = builtins.max(1.0, float(np.abs(grad).max(initial=0.0)))
        worst: tuple[float, tuple[int, ...], float, float] = (-1.0, (), 0.0, 0.0)
        for index in np.ndindex(array.shape):
            before = array[index]
            array[index] = before + eps
            upper = value(False)[0].item()
            array[index] = before - eps
            lower = value(False)[0].item()
            array[index] = before
            numeric = (upper - lower) / (2 * eps)
            worst = builtins.max(worst, (abs(float(grad[index]) - numeric), index, float(grad[index]), numeric))
        if not worst[0] <= rtol * scale:
            raise AssertionError(
                f"gradcheck: input {position} at {worst[1]}: backward gives {worst[2]:.12g}, differences give {worst[3]:.12g}"
            )
    return True

"""Modules: parameters with names, and the layers built from `functional`.

Nothing here draws random numbers of its own accord: parameters are initialised from (seed, stream), the stream counting
parameters in order of creation (`init_scope`), and dropout masks from (seed, step, call) (`dropout_scope`).
"""

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from rheme import functional as F
from rheme import ops
from rheme.autograd import Tensor, grad_enabled
from rheme.errors import InputError
from rheme.ops import Array

State = tuple[Any, Any]


# Randomness -------------------------------------------------------------------------------------------------------------------

# A seed's streams: 0.. for parameters; dropout's have the top bit set, then the step, then the call within the step.
_DROPOUT = 1 << 63
_CALLS = 1 << 20


class _Scopes(threading.local):
    """The innermost (seed, counter) of each kind in this thread; outside of any scope the seed is 0 and the count goes on."""

    def __init__(self) -> None:
        self.init: tuple[int, Iterator[int]] = (0, itertools.count())
        self.dropout: tuple[int, int, Iterator[int]] = (0, 0, itertools.count())
        self.blank = False


_scopes = _Scopes()


@contextlib.contextmanager
def init_scope(seed: int = 0) -> Iterator[None]:
    """Parameters made within it are functions of the seed, their order of creation and their shape alone."""
    before, _scopes.init = _scopes.init, (seed, itertools.count())
    try:
        yield
    finally:
        _scopes.init = before


@contextlib.contextmanager
def dropout_scope(seed: int, step: int) -> Iterator[None]:
    """Dropout within it is a function of the seed, the step, the call's number within the scope, and the shape alone."""
    before, _scopes.dropout = _scopes.dropout, (seed, step, itertools.count())
    try:
        yield
    finally:
        _scopes.dropout = before


@contextlib.contextmanager
def uninitialized() -> Iterator[None]:
    """Parameters made within it hold nothing in particular, at no cost: for a module that is about to load its weights."""
    before, _scopes.blank = _scopes.blank, True
    try:
        yield
    finally:
        _scopes.blank = before


def _uniform(shape: Sequence[int], bound: float) -> Array:
    if _scopes.blank:
        return ops.empty(shape)
    seed, streams = _scopes.init
    u = ops.random_uniform(seed, next(streams), 0, shape, np.float32)
    return ops.mul(ops.sub(u, 0.5), 2.0 * bound)


def _normal(shape: Sequence[int], deviation: float) -> Array:
    if _scopes.blank:
        return ops.empty(shape)
    seed, streams = _scopes.init
    return ops.mul(ops.random_normal(seed, next(streams), 0, shape, np.float32), deviation)


# Modules ----------------------------------------------------------------------------------------------------------------------


class Parameter(Tensor):
    """A tensor that a module trains.

    For inference it may be stored small, as int8 or float16 (`quantization.py`): then `packed` is what the core computes on,
    and `data` makes it float32 anew at each use, so that whoever knows nothing of it still gets the right numbers. Setting
    `data` ends that.
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
    capturable = False  # whether there is a `step` for decoding that works with arrays of the device alone

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
        """Name -> array: the parameters' own memory, not copies."""
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
        """What to call `step` of: this module or, where it is `capturable` and on a GPU, its step as one CUDA graph.

        The graphs are the calling thread's, and kept until a parameter changes; see `_cuda.graphs`.
        """
        weights = [(parameter._array, parameter.version) for parameter in self.parameters()] if self.capturable else []
        return ops.captured(self, weights) if any(ops.on_gpu(array) for array, _ in weights) else self

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


class _PackCache:
    """The packed form of some parameters, made anew when one of them has been updated, loaded or replaced."""

    def __init__(self) -> None:
        self._key: list[tuple[Array, int]] = []
        self._packed: Any = None

    def get(self, parameters: Sequence[Parameter], pack: Callable[[], Any]) -> Any:
        if len(self._key) == len(parameters):
            for parameter, (array, version) in zip(parameters, self._key, strict=True):
                if parameter.version != version or parameter._array is not array:
                    break
            else:
                return self._packed
        self._packed = pack()
        self._key = [(parameter._array, parameter.version) for parameter in parameters]
        return self._packed


# Layers -----------------------------------------------------------------------------------------------------------------------


class Embedding(Module):
    """ids int64 (...) -> (..., embedding_dim). Starts normal with deviation embedding_dim**-0.5, fit for tying to an output."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.weight = Parameter(_normal((num_embeddings, embedding_dim), embedding_dim**-0.5))

    def forward(self, ids: Any) -> Tensor:
        return F.embedding(ids, self.weight)

    def infer(self, ids: Any) -> Array:
        """`forward` outside the tape, and without tensors: a decoder takes many small steps."""
        weight = self.weight
        return ops.embedding(ids, weight.data) if weight.packed is None else ops.quantized_embedding(ids, weight.packed)


class Linear(Module):
    """x (..., in_features) -> (..., out_features). Initialised uniform in +-in_features**-0.5."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.in_features = in_features
        self.out_features = out_features
        bound = 1.0 / math.sqrt(max(1, in_features))
        self.weight = Parameter(_uniform((out_features, in_features), bound))
        self.bias = Parameter(_uniform((out_features,), bound)) if bias else None
        self._cache = _PackCache()

    def forward(self, x: Any) -> Tensor:
        if grad_enabled():
            return F.linear(x, self.weight, self.bias)
        return Tensor(self.infer(F.beside(x, self.weight).data))

    def infer(self, x: Array) -> Array:
        """`forward` of an array, outside the tape."""
        weight, bias = self.weight, None if self.bias is None else self.bias.data
        if weight.packed is not None:
            return ops.quantized_linear(x, weight.packed, bias)
        return ops.linear(x, weight.data, bias, self._cache.get((weight,), lambda: ops.pack_linear(weight.data)))


class Dropout(Module):
    """In training, each element is 0 with probability p, else scaled by 1 / (1 - p); see `dropout_scope`."""

    def __init__(self, p: float) -> None:
        if not 0 <= p < 1:
            raise InputError(f"dropout must be at least 0 and below 1, not {p}")
        self.p = p

    def forward(self, x: Any) -> Tensor:
        if not self.training or self.p == 0:
            return F.as_tensor(x)
        seed, step, calls = _scopes.dropout
        return F.dropout(x, self.p, seed, _DROPOUT | (step * _CALLS + next(calls)) % _DROPOUT)


class LayerNorm(Module):
    """x (..., size) -> (..., size), normalised over the last axis (Ba et al. 2016)."""

    def __init__(self, size: int, epsilon: float = 1e-5) -> None:
        self.size = size
        self.epsilon = epsilon
        self.weight = Parameter(np.ones(size, np.float32))
        self.bias = Parameter(ops.zeros((size,)))

    def forward(self, x: Any) -> Tensor:
        return F.layer_norm(x, self.weight, self.bias, self.epsilon)


class BatchNorm(Module):
    """x (N, size) -> (N, size), normalised over the batch to a fixed deviation, plus a trained shift.

    With the deviation (gamma) fixed, a posterior mean keeps its KL above size * gamma^2 / 2 (Zhu et al. 2020). Out of training
    the running mean and variance stand for the batch's; `update` takes those of the last training batch into them, and is
    called once a step, so that a forward pass alone changes nothing.
    """

    def __init__(self, size: int, deviation: float = 1.0, momentum: float = 0.01, epsilon: float = 1e-5) -> None:
        self.size = size
        self.deviation = deviation
        self.momentum = momentum
        self.epsilon = epsilon
        self.bias = Parameter(ops.zeros((size,)))
        # Parameters that get no gradient: they travel with the weights.
        self.running_mean = Parameter(ops.zeros((size,)))
        self.running_variance = Parameter(ops.zeros((size,)))
        self.running_weight = Parameter(ops.zeros((1,)))  # what the two are to be divided by: they began at 0
        self._seen: tuple[Array, Array] | None = None

    def forward(self, x: Any) -> Tensor:
        x = F.as_tensor(x)
        if self.training and x.shape[0] > 1:
            mean = F.mean(x, axis=0)
            off = F.sub(x, mean)
            variance = F.mean(F.mul(off, off), axis=0)
            self._seen = mean.data, variance.data
        elif not (weight := self.running_weight.item()):  # nothing seen yet
            return F.add(F.mul(x, self.deviation), self.bias)
        else:
            off = F.sub(x, F.div(self.running_mean.detach(), weight))
            variance = F.div(self.running_variance.detach(), weight)
        scale = F.mul(F.exp(F.mul(F.log(F.add(variance, self.epsilon)), -0.5)), self.deviation)
        return F.add(F.mul(off, scale), self.bias)

    def update(self) -> None:
        """Take the last training batch into the running mean and variance."""
        if self._seen is None:
            return
        weight = self.running_weight.data
        pairs = [
            (self.running_mean, self._seen[0]),
            (self.running_variance, self._seen[1]),
            (self.running_weight, ops.add(ops.zeros(weight.shape, weight.dtype, weight), 1.0)),
        ]
        for running, seen in pairs:
            running.data[...] = ops.add(running.data, ops.mul(ops.sub(seen, running.data), self.momentum))
            running.version += 1
        self._seen = None


class LSTM(Module):
    """Stacked LSTM layers, each one call of the core over all steps (both directions in it), with dropout between layers.

    Parameters carry PyTorch's names and shapes: weight_ih_l0 (4H, I), weight_hh_l0 (4H, H), bias_ih_l0, bias_hh_l0 (4H,), then
    the same with _reverse, then layer 1 (whose I is R*H). Weights start uniform in +-H**-0.5, biases at 0, but the forget
    gate's at 1 (Jozefowicz et al. 2015).
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = False, dropout: float = 0.0
    ) -> None:
        if input_size < 1 or hidden_size < 1 or num_layers < 1:
            raise InputError("LSTM: input_size, hidden_size and num_layers must be at least 1")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.num_directions = 2 if bidirectional else 1
        self.dropout = Dropout(dropout)
        bound = 1.0 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * self.num_directions
            for suffix in self._suffixes(layer):
                bias = ops.zeros((4 * hidden_size,))
                bias[hidden_size : 2 * hidden_size] = 1
                setattr(self, f"weight_ih_{suffix}", Parameter(_uniform((4 * hidden_size, size), bound)))
                setattr(self, f"weight_hh_{suffix}", Parameter(_uniform((4 * hidden_size, hidden_size), bound)))
                setattr(self, f"bias_ih_{suffix}", Parameter(bias))
                setattr(self, f"bias_hh_{suffix}", Parameter(ops.zeros((4 * hidden_size,))))
        self._caches = [_PackCache() for _ in range(num_layers)]
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        layers = [self._suffixes(layer) for layer in range(num_layers)]
        self._names = [[f"{kind}_{suffix}" for suffix in suffixes for kind in kinds] for suffixes in layers]

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"][: self.num_directions]

    def _weights(self, layer: int) -> list[list[Parameter]]:
        own = [vars(self)[name] for name in self._names[layer]]
        return [own[i : i + 4] for i in range(0, len(own), 4)]

    def _inference(self, layer: int) -> Callable[..., tuple[Array, ...]]:
        """The op that runs a layer outside the tape, with its weights packed and its biases added: y, h_n, c_n first."""

        def pack() -> Any:
            weights = self._weights(layer)
            bias = [ops.add(d[2].data, d[3].data) for d in weights]
            if weights[0][0].packed is not None:
                w_ih, w_hh = ([d[i].packed for d in weights] for i in (0, 1))
                return functools.partial(ops.quantized_lstm, w_ih=w_ih, w_hh=w_hh, bias=bias)
            w_ih, w_hh = ([d[i].data for d in weights] for i in (0, 1))
            return functools.partial(ops.lstm, w_ih=w_ih, w_hh=w_hh, bias=bias, packed=ops.pack_lstm(w_ih, w_hh))

        return self._caches[layer].get([vars(self)[name] for name in self._names[layer]], pack)

    def forward(self, x: Any, state: State | None = None, lengths: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (T, N, I), state (h, c) each (num_layers*R, N, H), lengths (N,), 0..T, in any order -> y (T, N, R*H), (h, c)."""
        if not grad_enabled():
            like = vars(self)[self._names[0][2]].data  # a bias: never stored small
            given, *before = [ops.asarray(p.data if isinstance(p, Tensor) else p, like=like) for p in (x, *(state or ()))]
            y, (h_last, c_last) = self.infer(given, before or None, lengths)
            return Tensor(y), (Tensor(h_last), Tensor(c_last))
        x = F.as_tensor(x)
        if state is not None:
            state = F.as_tensor(state[0]), F.as_tensor(state[1])
        self._check(x, state)
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            x = self.dropout(x) if layer else x
            x, h, c = F.lstm(x, self._weights(layer), lengths, **self._start(layer, state))
            h_n.append(h)
            c_n.append(c)
        if self.num_layers == 1:
            return x, (h_n[0], c_n[0])
        return x, (F.concat(h_n), F.concat(c_n))

    def infer(self, x: Array, state: Sequence[Array] | None = None, lengths: Any = None) -> tuple[Array, tuple[Array, Array]]:
        """`forward` of arrays, outside the tape."""
        self._check(x, state)
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            x = self.dropout(x).data if layer else x
            x, h, c, *_ = self._inference(layer)(x, lengths=lengths, **self._start(layer, state))
            h_n.append(h)
            c_n.append(c)
        if self.num_layers == 1:
            return x, (h, c)
        return x, (ops.concat(h_n), ops.concat(c_n))

    def _start(self, layer: int, state: Any) -> dict[str, Any]:
        """A layer's part of h and c."""
        if state is None:
            return {}
        first, last = layer * self.num_directions, (layer + 1) * self.num_directions
        h, c = state if self.num_layers == 1 else [part[first:last] for part in state]
        return {"h0": h, "c0": c}

    def _check(self, x: Any, state: Sequence[Any] | None) -> None:
        shape = x.shape
        if len(shape) != 3 or shape[2] != self.input_size:
            raise ValueError(f"x: expected shape (T, N, {self.input_size}), got {shape}")
        wanted = (self.num_layers * self.num_directions, shape[1], self.hidden_size)
        if state is not None and not state[0].shape == state[1].shape == wanted:
            raise ValueError(f"state: expected h and c of shape {wanted}, got {state[0].shape} and {state[1].shape}")

    @classmethod
    def from_keras(cls, kernel: Any, recurrent_kernel: Any, bias: Any) -> "LSTM":
        """One layer, one direction, from keras.layers.LSTM: kernel (I, 4H), recurrent_kernel (H, 4H), bias (4H,).

        Keras' gates stand in the same order (i f c o, c being g), so only the axes are swapped. InputError for wrong shapes.
        """
        kernel, recurrent, bias = (np.asarray(w, np.float32) for w in (kernel, recurrent_kernel, bias))
        hidden = recurrent.shape[0]
        if (
            kernel.ndim != 2
            or recurrent.shape != (hidden, 4 * hidden)
            or kernel.shape[1] != 4 * hidden
            or bias.shape != (4 * hidden,)
        ):
            raise InputError(
                "from_keras: expected kernel (I, 4H), recurrent_kernel (H, 4H) and bias (4H,), "
                f"got {kernel.shape}, {recurrent.shape} and {bias.shape}"
            )
        lstm = cls(kernel.shape[0], hidden)
        lstm.load_state_dict(
            {
                "weight_ih_l0": kernel.T,
                "weight_hh_l0": recurrent.T,
                "bias_ih_l0": bias,
                "bias_hh_l0": np.zeros_like(bias),
            }
        )
        return lstm


class Attention(Module):
    """Dot-product attention with projections of query and keys, scaled by attention_size**-0.5 (Vaswani et al. 2017).

    `project` works out keys (and values) once per source; `forward` is then called with them as often as needed.
    value_size None: the values are the memory itself. attention_size None: key_size.
    """

    def __init__(
        self, query_size: int, key_size: int, value_size: int | None = None, attention_size: int | None = None
    ) -> None:
        size = key_size if attention_size is None else attention_size
        self.query_size = query_size
        self.key_size = key_size
        self.value_size = key_size if value_size is None else value_size
        self.scale = 1.0 / math.sqrt(size)
        self.query = Linear(query_size, size, bias=False)
        self.key = Linear(key_size, size, bias=False)
        self.value = None if value_size is None else Linear(key_size, value_size, bias=False)

    def project(self, memory: Any) -> tuple[Tensor, Tensor]:
        """memory (S, N, key_size) -> keys (S, N, attention_size), values (S, N, value_size)."""
        memory = F.as_tensor(memory)
        return self.key(memory), memory if self.value is None else self.value(memory)

    def forward(self, query: Any, keys: Any, values: Any, lengths: Any = None) -> tuple[Tensor, Tensor]:
        """query (T, N, query_size), keys and values from `project` -> context (T, N, value_size), weights (N, T, S)."""
        return F.attention(self.query(query), keys, values, lengths, self.scale)


class GaussianLatent(Module):
    """The heads of q(z|x) = N(mu, exp(logvar)) and a reparameterized draw from it (Kingma and Welling 2014)."""

    def __init__(self, input_size: int, latent_size: int) -> None:
        self.input_size = input_size
        self.latent_size = latent_size
        self.mu = Linear(input_size, latent_size)
        self.logvar = Linear(input_size, latent_size)

    def forward(
        self, x: Any, eps: Any, free_bits: float = 0.0, free_bits_over: str = "sample"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (N, input_size), eps (N, D) standard normal -> z, kl (per dimension, against N(0, 1)), mu, logvar, all (N, D)."""
        mu, logvar = self.mu(x), self.logvar(x)
        z, kl = F.gaussian_kl(mu, logvar, eps, free_bits, free_bits_over)
        return z, kl, mu, logvar

"""The layers other than the LSTM, built from `functional`."""

import math
from typing import Any

import numpy as np

from rheme import functional as F
from rheme import ops
from rheme.autograd import Tensor, grad_enabled
from rheme.errors import InputError
from rheme.nn.module import Module, PackCache, Parameter
from rheme.nn.scopes import dropout_stream, normal, uniform
from rheme.ops import Array


class Embedding(Module):
    """ids int64 (...) -> (..., embedding_dim). Starts normal with deviation embedding_dim**-0.5, fit for tying to an output."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        if num_embeddings < 0 or embedding_dim < 1:
            raise InputError("Embedding: num_embeddings must be at least 0 and embedding_dim at least 1")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.weight = Parameter(normal((num_embeddings, embedding_dim), embedding_dim**-0.5))

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
        self.weight = Parameter(uniform((out_features, in_features), bound))
        self.bias = Parameter(uniform((out_features,), bound)) if bias else None
        self._cache = PackCache()

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
        return F.dropout(x, self.p, *dropout_stream())


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
        if self.training:
            self._seen = None  # a batch of one row has no variance; `update` must not take an earlier batch's for it
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

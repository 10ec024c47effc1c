"""The LSTM over whole sequences: any number of layers, one direction or both."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rheme import functional as F
from rheme import ops
from rheme.autograd import Tensor, grad_enabled, record
from rheme.errors import InputError
from rheme.nn.layers import Dropout
from rheme.nn.module import Module, PackCache, Parameter
from rheme.nn.scopes import uniform
from rheme.ops import Array

State = tuple[Any, Any]


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
                setattr(self, f"weight_ih_{suffix}", Parameter(uniform((4 * hidden_size, size), bound)))
                setattr(self, f"weight_hh_{suffix}", Parameter(uniform((4 * hidden_size, hidden_size), bound)))
                setattr(self, f"bias_ih_{suffix}", Parameter(bias))
                setattr(self, f"bias_hh_{suffix}", Parameter(ops.zeros((4 * hidden_size,))))
        self._caches = [PackCache() for _ in range(num_layers)]
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
            w_ih, w_hh = ([ops.contiguous(d[i].data) for d in weights] for i in (0, 1))
            return functools.partial(ops.lstm, w_ih=w_ih, w_hh=w_hh, bias=bias, packed=ops.pack_lstm(w_ih, w_hh))

        return self._caches[layer].get([vars(self)[name] for name in self._names[layer]], pack)

    def forward(self, x: Any, state: State | None = None, lengths: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (T, N, I), state (h, c) each (num_layers*R, N, H), lengths (N,), 0..T, in any order -> y (T, N, R*H), (h, c)."""
        if not grad_enabled():
            like = vars(self)[self._names[0][2]].data  # a bias: never stored small
            given, *before = [ops.asarray(p.data if isinstance(p, Tensor) else p, like=like) for p in (x, *(state or ()))]
            y, last = self.infer(given, before or None, lengths)
            output, h_last, c_last = record((y, *last), (), lambda *_: ())
            return output, (h_last, c_last)
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
        hidden = len(recurrent) if recurrent.ndim else 0
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

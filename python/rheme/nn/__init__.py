"""Modules: parameters with names, and the layers built from `functional`.

Nothing here draws random numbers of its own accord: parameters are initialised from (seed, stream), the stream counting
parameters in order of creation (`init_scope`), and dropout masks from (seed, step, call) (`dropout_scope`).
"""

from rheme.nn.layers import Attention, BatchNorm, Dropout, Embedding, GaussianLatent, LayerNorm, Linear
from rheme.nn.lstm import LSTM
from rheme.nn.module import Module, Parameter
from rheme.nn.scopes import dropout_scope, init_scope, uninitialized

__all__ = [
    "LSTM",
    "Attention",
    "BatchNorm",
    "Dropout",
    "Embedding",
    "GaussianLatent",
    "LayerNorm",
    "Linear",
    "Module",
    "Parameter",
    "dropout_scope",
    "init_scope",
    "uninitialized",
]

"""Weights that stay small in memory: a model's matrices held as int8 or float16, and computed on as they are.

int8: a scale a row of each matrix (that is, a column of the product), activations rounded row by row: `ops.quantized_linear`.
float16: the numbers are those of float32 with the same weights. Either is for inference on the CPU: moving the model to a GPU,
or setting a parameter's `data`, makes float32 of it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rheme import nn, ops, storage
from rheme.errors import InputError

PRECISIONS = storage.DTYPES


def quantized_names(module: nn.Module) -> dict[str, bool]:
    """The matrices that have kernels for small weights, by name: those of Linear, Embedding and LSTM. True: an LSTM's gates."""
    kinds: dict[int, bool] = {}
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            kinds[id(part.weight)] = False
        elif isinstance(part, nn.LSTM):
            kinds |= {id(p): True for name, p in vars(part).items() if name.startswith("weight_")}
    return {name: kinds[id(p)] for name, p in module.named_parameters() if id(p) in kinds}


def load(module: nn.Module, stored: Mapping[str, Any], precision: str) -> None:
    """Give a module its weights, as `storage.compress` made them, at a precision: float32, float16 or int8.

    What is stored at that precision is only laid out anew. At float16 and int8 no parameter requires a gradient. InputError
    for an unknown precision, and for weights that do not fit the module, before any is set.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: one of {', '.join(PRECISIONS)}")
    floats = (np.int8, np.float16)  # what stands for float32
    module.check_state(
        {
            name: (array.shape, np.dtype(np.float32) if array.dtype in floats else array.dtype)
            for name, array in stored.items()
            if not (name.endswith(storage.SCALE) and name.removesuffix(storage.SCALE) in stored)
        }
    )
    small = {} if precision == "float32" else quantized_names(module)
    for name, parameter in module.named_parameters():
        own = {key: stored[key] for key in (name, name + storage.SCALE) if key in stored}
        if name not in small:
            parameter.data = storage.expand(own)[name]
            parameter.version += 1
        else:
            if stored[name].dtype != precision:
                own = storage.compress(storage.expand(own), precision)
            scale = storage.scale_of(own, name) if precision == "int8" else None
            parameter.pack(ops.pack_quantized(np.ascontiguousarray(own[name]), scale, small[name]))
        if precision != "float32":
            parameter.requires_grad = False

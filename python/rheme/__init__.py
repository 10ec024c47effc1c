"""rheme: train small text models with a latent space and run them on an ordinary CPU."""

import importlib
from typing import TYPE_CHECKING, Any

__version__: str  # from the package's metadata, when asked for

if TYPE_CHECKING:
    from rheme import functional as functional
    from rheme import nn as nn
    from rheme import ops as ops
    from rheme.autograd import Tensor as Tensor
    from rheme.autograd import no_grad as no_grad
    from rheme.errors import InputError as InputError
    from rheme.errors import RhemeError as RhemeError
    from rheme.tasks import Result as Result
    from rheme.tasks import Task as Task
    from rheme.tasks import list_tasks as list_tasks
    from rheme.tasks import load as load
    from rheme.tasks import pipeline as pipeline
    from rheme.training.files import train as train

# public name -> where it lives; imported on first use, so that `import rheme` costs nothing ("" is a module itself)
_PUBLIC = {
    "load": "tasks",
    "list_tasks": "tasks",
    "pipeline": "tasks",
    "train": "training.files",
    "Task": "tasks",
    "Result": "tasks",
    "Tensor": "autograd",
    "no_grad": "autograd",
    "InputError": "errors",
    "RhemeError": "errors",
    "nn": "",
    "ops": "",
    "functional": "",
}

__all__ = ["__version__", "set_num_threads", *_PUBLIC]


def set_num_threads(n: int) -> None:
    """How many threads the kernels use; by default RHEME_NUM_THREADS, or the smaller of CPU affinity and the cgroup's quota.

    Answers and trained weights do not depend on it.
    """
    from rheme import _core

    _core.set_num_threads(n=n)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("rheme")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rheme' has no attribute {name!r}")
    home = _PUBLIC[name]
    value = getattr(importlib.import_module(f"rheme.{home}"), name) if home else importlib.import_module(f"rheme.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

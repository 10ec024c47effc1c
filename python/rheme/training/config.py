"""The settings of a training."""

from typing import Literal

import msgspec

from rheme import optim
from rheme.errors import InputError


class TrainingConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How to train; what to train is the task's config.

    batch_tokens: the size of a batch, in the units of `task.size` (rows times the longest). max_steps: if not 0, counts
    instead of max_epochs. warmup_steps: updates until the learning rate is reached. max_norm: gradients above this norm are
    scaled down (0: never). ema_decay: of the averaged weights, which are then the ones validated and saved (0: none), updated
    every ema_every steps. start_share: of the weights that the training began with in those validated and saved, for one that
    goes on from a model (`init`); it then keeps more of what that one knew (Wortsman et al. 2022). valid_every_steps: 0 for
    once an epoch. patience: validations without a better loss before the training ends (0: never). evaluate: also the task's
    own figures, at the end. save_dtype: of the final model; checkpoints are exact.
    """

    seed: int = 0
    batch_tokens: int = 1000
    max_epochs: int = 20
    max_steps: int = 0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "inverse_sqrt", "constant", "linear"] = "cosine"
    warmup_steps: int = 200
    max_norm: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    ema_decay: float = 0.0
    ema_every: int = 4
    start_share: float = 0.0
    valid_every_steps: int = 0
    patience: int = 5
    evaluate: bool = True
    checkpoint_every_seconds: float = 300.0
    log_every: int = 50
    save_dtype: Literal["float32", "float16", "int8"] = "float16"

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "max_epochs", "ema_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("max_steps", "warmup_steps", "max_norm", "weight_decay", "valid_every_steps", "patience"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0")
        shares = [(name, getattr(self, name)) for name in ("ema_decay", "start_share", "momentum")]
        for name, value in (*shares, *(("betas", b) for b in self.betas)):
            if not 0 <= value < 1:
                raise InputError(f"{name} = {value}: must be at least 0 and below 1")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate = {self.learning_rate}: must be above 0")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed = {self.seed}: must be from 0 to 2^63 - 1")
        if not self.checkpoint_every_seconds >= 0:
            raise InputError(f"checkpoint_every_seconds = {self.checkpoint_every_seconds}: must be at least 0")


# What may be given anew on resuming: it does not touch the weights.
FREE_ON_RESUME = frozenset({"checkpoint_every_seconds", "log_every", "evaluate", "save_dtype"})


def make_schedule(config: TrainingConfig, total_steps: int) -> optim.Schedule:
    """Step (1, 2, ...) -> factor of the learning rate."""
    if config.schedule == "constant":
        return optim.constant(config.warmup_steps)
    if config.schedule == "inverse_sqrt":
        return optim.inverse_sqrt(config.warmup_steps)
    return (optim.cosine if config.schedule == "cosine" else optim.linear)(config.warmup_steps, total_steps)

"""Training a task's model: the loop, from encoded examples to a model folder.

All that is computed is a function of the examples, the config and the step: batches, dropout and noise come from counters
(seed, epoch or step), never from a generator's state or the clock. So a training that was killed anywhere and resumed ends
in the same weights, bit for bit, as one that was not.
"""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rheme import nn, storage
from rheme.errors import InputError
from rheme.tasks import PluginError, configure
from rheme.training import checkpoints, curves
from rheme.training.checkpoints import writing
from rheme.training.config import FREE_ON_RESUME, TrainingConfig
from rheme.training.progress import Echo
from rheme.training.run import Interrupted, Run, clean

__all__ = ["Interrupted", "TrainingConfig", "train"]


def train(
    task: Any,
    train_examples: Sequence[Any],
    valid_examples: Sequence[Any],
    out: str | Path,
    config: TrainingConfig | None = None,
    resume: bool = False,
    finish: bool = False,
    init: str | Path | None = None,
    echo: Echo | None = None,
    card: Mapping[str, Any] | None = None,
    device: str = "cpu",
    locked: bool = False,
) -> dict[str, Any]:
    """Train `task` and leave a model folder in `out`; returns its final figures.

    `out` gets config.json, model.safetensors and the rest of a model folder, metrics.jsonl (a line per window of steps and per
    validation) and training.json (the settings, resolved). resume: go on from the last checkpoint in `out`, to the very
    weights an uninterrupted run gives; examples and settings must be the same. finish: end it at that checkpoint instead, with
    the best weights so far. init: a model folder to fine-tune. echo: gets each line that is told; by default a progress bar on
    a terminal, else lines on stderr. card: of the model card (`storage.Card`). device: "cpu" or "cuda"; a checkpoint of
    one can be resumed on the other. locked: the caller holds the folder already (`checkpoints.locked`).

    The weights kept are those of the best validation loss (the average's, with ema_decay), or the last without validation
    examples. Raises InputError for an unusable folder or one that another training writes to, a full disk or other settings
    than those of the run to resume, Interrupted after Ctrl-C, RhemeError when the gradients stay infinite.
    """
    out, config = out_folder(out), config or TrainingConfig()
    described = msgspec.to_builtins(configure(storage.Card, card or {}, "card"))
    with contextlib.nullcontext() if locked else checkpoints.locked(out):
        settings = {
            "task": task.name,
            "config": msgspec.to_builtins(task.config),
            "training": msgspec.to_builtins(config),
            "init": None if init is None else str(init),
        }
        resume = resume or finish
        if resume:
            init = _check_resume(out, settings)
            if (out / "config.json").exists():
                clean(out)
                return dict(msgspec.json.decode((out / "metrics.json").read_bytes()))
        else:
            check_new(out, task.writes)
            if config.start_share and init is None and task.model is None:
                raise InputError(
                    f"start_share = {config.start_share}: there is no model to begin with; give one (init, --init)"
                )
            if not train_examples:
                raise InputError("there is nothing to train on: no training examples")
        try:
            with writing(out):
                checkpoints.write_file(
                    out / "training.json", msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n"
                )
            _prepare(task, train_examples, out, config, resume, init)
            if device != "cpu":
                task.model.to(device)
            run = Run(task, train_examples, valid_examples, out, config, echo, described)
            run.announce()
        except BaseException:
            if not resume:  # leave nothing of a training that never began
                shutil.rmtree(out / "initial", ignore_errors=True)
                with contextlib.suppress(OSError):
                    (out / "training.json").unlink()
            raise
        return run.run(resume, finish)


def out_folder(out: str | Path) -> Path:
    """The folder to train into. InputError for an empty name, which would be the working folder."""
    if not str(out):
        raise InputError("out is empty; give the folder of the new model")
    return Path(out)


def check_new(out: Path, others: Sequence[str]) -> None:
    """InputError when `out` holds a training, or a file that the new one would overwrite; others: the task's own files and the
    held-out examples'.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file, not a folder to train into")
    for name in (storage.CONFIG, storage.WEIGHTS, "training.json", "metrics.jsonl"):
        if (out / name).exists():
            raise InputError(
                f"{out} already holds a model or a training ({name}); give another folder, or resume it (--resume)"
            )
    written = [storage.TOKENIZER, storage.GENERATION, storage.METRICS, storage.CARD, curves.NAME, "initial", *others]
    for path in [*(out / name for name in written), *out.glob("checkpoint-*")]:
        if path.exists():
            raise InputError(f"{path}: the training would overwrite it; give another folder")


def check_begun(out: Path) -> None:
    """InputError when `out` holds no training to resume."""
    if not (out / "training.json").exists():
        raise InputError(f"{out}: no training to resume here (training.json is missing)")


def _check_resume(out: Path, settings: dict[str, Any]) -> str | None:
    """Compare with the run in `out`; settings takes its `init`, which is returned."""
    check_begun(out)
    path = out / "training.json"
    try:
        before = msgspec.json.decode(path.read_bytes())
        if before["task"] != settings["task"]:
            raise InputError(f"{out} holds a training of {before['task']!r}, not of {settings['task']!r}")
        different = [
            f"{name} = {value!r} (was {before[part].get(name)!r})"
            for part in ("training", "config")
            for name, value in settings[part].items()
            if name not in FREE_ON_RESUME and msgspec.json.encode(before[part].get(name)) != msgspec.json.encode(value)
        ]
        settings["init"] = before["init"]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged: {error!r}") from None
    if different:
        raise InputError(f"{out} cannot be resumed with other settings: {'; '.join(different)}")
    init: str | None = settings["init"]
    return init


def _prepare(task: Any, examples: Sequence[Any], out: Path, config: TrainingConfig, resume: bool, init: Any) -> None:
    """Give the task its model: new, from a folder, or the one this run began with (kept in `out/initial`)."""
    initial = out / "initial"
    if resume and (initial / "config.json").exists():
        task.__dict__.update(type(task).restore(initial).__dict__)
        return
    with nn.init_scope(config.seed):
        adapting = init is not None or task.model is not None
        if init is not None:
            task.__dict__.update(type(task).restore(init).__dict__)
        elif task.model is None:
            task.setup(examples)
        if adapting:
            task.adapt(examples)
    if not isinstance(task.model, nn.Module):
        raise PluginError(f"the task {task.name!r}: build() must set self.model to an nn.Module, not {task.model!r}")
    with writing(out):
        task.save(initial)

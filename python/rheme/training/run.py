"""One training, from its first step or from a checkpoint to the model folder."""

import contextlib
import hashlib
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import nn, ops, optim
from rheme.autograd import Tensor, no_grad
from rheme.errors import InputError, RhemeError
from rheme.tasks import Inspection, PluginError
from rheme.text.batches import token_batches
from rheme.training import checkpoints
from rheme.training.checkpoints import writing
from rheme.training.config import TrainingConfig, make_schedule
from rheme.training.progress import Clock, Display, Echo, Journal, duration, size

Array = NDArray[Any]

# The Philox stream of the steps' seeds, apart from those of weights, dropout and shuffles under the same seed.
_STEP_STREAM = 1 << 41
_MAX_SKIPPED = 20  # steps in a row without a finite gradient


class Interrupted(RhemeError):  # noqa: N818
    """Ctrl-C (or SIGTERM): a checkpoint is written, and the message says how to go on."""


class Position(msgspec.Struct, kw_only=True):
    """Where a training stands: the numbers of a checkpoint. data: a hash of the items to train and to validate on."""

    data: str
    step: int = 0
    epoch: int = 0
    batch: int = 0  # the next one, within the epoch
    validated: int = -1  # the step of the last validation
    best_step: int = -1
    best_loss: float | None = None
    bad: int = 0  # validations since the best one
    skipped: int = 0  # steps in a row without a finite gradient
    window_steps: int = 0
    window_loss: float = 0.0
    window_count: int = 0
    window_norm: float = 0.0
    window_info: dict[str, float] = {}
    window_items: int = 0
    task: dict[str, Any] = {}  # the task's own state
    ended: bool = False  # by the task

    @property
    def epochs(self) -> int:
        """Epochs begun."""
        return self.epoch + (self.batch > 0)


class Run:
    """One training, from its first step or from a checkpoint."""

    def __init__(
        self,
        task: Any,
        train: Sequence[Any],
        valid: Sequence[Any],
        out: Path,
        config: TrainingConfig,
        echo: Echo | None,
        card: dict[str, Any],
    ) -> None:
        self.task, self.model, self.out, self.config, self.card = task, task.model, out, config, card
        self.train_examples, self.valid_examples = train, valid
        self.items = task.training_items(train)
        self.valid_items = task.encode_all(valid) if len(valid) else []
        if not self.items:
            raise InputError("there is nothing to train on: every training example was left out")
        self.sizes = np.array([task.size(item) for item in self.items], np.int64)
        valid_sizes = np.array([task.size(item) for item in self.valid_items], np.int64)
        self.valid_batches = token_batches(valid_sizes, 2 * config.batch_tokens, 0, 0) if len(valid_sizes) else []
        self.named = dict(self.model.named_parameters())
        parameters = list(self.named.values())
        if config.optimizer == "sgd":
            self.optimizer: Any = optim.SGD(parameters, config.learning_rate, config.momentum, config.weight_decay)
        else:
            self.optimizer = optim.AdamW(parameters, config.learning_rate, config.betas, weight_decay=config.weight_decay)
        self.batches = token_batches(self.sizes, config.batch_tokens, config.seed, 0)
        self.total_steps = config.max_steps or config.max_epochs * len(self.batches)
        self.schedule = make_schedule(config, self.total_steps)
        self.at = Position(data=_hash(self.items, self.valid_items))
        self.average = {name: p.data.copy() for name, p in self.named.items()} if config.ema_decay else None
        self.start = {name: p.data.copy() for name, p in self.named.items()} if config.start_share else {}
        self.best: dict[str, Array] | None = None
        self.history: list[dict[str, Any]] = []  # the validations' entries
        self.journal = Journal(out / "metrics.jsonl")
        self.display = Display(self.total_steps, echo)
        self._check_disk()
        self.stop = False
        self._end_here = False  # with the checkpoint, though steps are left
        self.clock, self.checkpoint_clock = Clock(), Clock()
        self.seconds_per_step = 0.0
        self.window_started = 0

    # The loop ---------------------------------------------------------------------------------------------------------------

    def run(self, resume: bool, finish: bool = False) -> dict[str, Any]:
        with self.display, self._signals():
            if resume:
                self._restore()
                if finish and not self.at.step:
                    raise InputError(
                        f"{self.out}: no checkpoint was written yet, so there is nothing to finish; go on with --resume"
                    )
                self._end_here = finish
            else:
                self.journal.truncate(-1, -1)
            self.clock.lap()
            since_checkpoint = 0.0
            while True:
                if self.stop:
                    self._interrupt()
                if self._validation_due():
                    self._validate()
                    continue
                if self._done():
                    break
                self._step()
                since_checkpoint += self.checkpoint_clock.lap()
                if since_checkpoint >= self.config.checkpoint_every_seconds:
                    self._checkpoint()
                    since_checkpoint = 0.0
        return self._finish()

    def _done(self) -> bool:
        at, config = self.at, self.config
        if self._end_here or at.ended or (config.max_steps and at.step >= config.max_steps):
            return True
        if not config.max_steps and at.epoch >= config.max_epochs:
            return True
        return bool(config.patience and at.bad >= config.patience)

    def _validation_due(self) -> bool:
        at, every = self.at, self.config.valid_every_steps
        if not self.valid_batches or at.validated == at.step or at.step == 0:
            return False
        return self._done() or (at.step % every == 0 if every else at.batch == 0)

    def _step(self) -> None:
        """One update."""
        at, config = self.at, self.config
        batch = self.batches[at.batch]
        self.model.train()
        figures, norm = self._gradients([self.items[i] for i in batch], at.step + 1, update=True)
        loss, count, info = figures
        at.step += 1
        at.batch += 1
        if at.batch == len(self.batches):
            at.batch, at.epoch = 0, at.epoch + 1
            self.batches = token_batches(self.sizes, config.batch_tokens, config.seed, at.epoch)
        if math.isfinite(norm):
            at.skipped = 0
            at.window_norm += norm
            at.window_items += len(batch)
            if math.isfinite(loss):  # a checkpoint's JSON has no NaN
                at.window_loss += loss
                at.window_count += count
            for name, value in info.items():
                if math.isfinite(value):
                    at.window_info[name] = at.window_info.get(name, 0.0) + float(value) * len(batch)
        else:
            at.skipped += 1
            if at.skipped >= _MAX_SKIPPED:
                raise RhemeError(
                    f"the gradients were not finite in {at.skipped} steps in a row (up to step {at.step}): lower learning_rate "
                    f"(now {config.learning_rate}) or max_norm (now {config.max_norm})"
                )
        at.window_steps += 1
        if self.average is not None and at.step % config.ema_every == 0:
            self._update_average()
        self.display.step(at.step)
        if at.window_steps >= config.log_every or at.step == self.total_steps:
            self._log_window()

    def _gradients(self, items: list[Any], step: int, update: bool) -> tuple[tuple[float, int, dict[str, float]], float]:
        """The gradients of a batch and, with `update`, the optimiser's step; returns (loss, count, info) and the norm."""
        config = self.config
        on_step = getattr(self.model, "on_step", None)
        if on_step is not None:
            on_step(step, self.total_steps)
        with nn.dropout_scope(config.seed, step):
            loss, count, info = self._loss(items, _step_seed(config.seed, step))
        loss.backward(np.full(loss.shape, 1.0 / max(count, 1), loss.dtype))
        norm = 0.0
        if update:
            on_gradients = getattr(self.model, "on_gradients", None)
            # Without a finite gradient a step changes nothing, the model's own statistics neither. The optimiser takes the norm
            # anew: some gradients may be withheld until then.
            if on_gradients is not None and math.isfinite(self.optimizer.norm()):
                on_gradients(step, self.total_steps)
            self.optimizer.learning_rate = config.learning_rate * self.schedule(step)
            norm = self.optimizer.step(max_norm=config.max_norm or None)
        self.optimizer.zero_grad()
        return (loss.item(), count, info), norm

    def _loss(self, items: list[Any], seed: int) -> tuple[Tensor, int, dict[str, float]]:
        """The task's loss. PluginError for what is none, which would fail far from where it was made."""
        found = self.task.loss(items, seed)
        if not (isinstance(found, tuple) and len(found) == 3 and isinstance(found[0], Tensor) and found[0].size == 1):
            raise PluginError(
                f"the task {self.task.name!r}: loss() must give a Tensor of one number (the sum), the count of units in it and "
                f"a dict of figures, not {found!r}"
            )
        return found

    def _update_average(self) -> None:
        """average += (1 - decay) (weights - average), one call of the core per array; the decay rises as the average fills."""
        assert self.average is not None
        updates = self.at.step // self.config.ema_every
        decay = min(self.config.ema_decay**self.config.ema_every, (1 + updates) / (10 + updates))
        for name, parameter in self.named.items():
            # Descent on half the squared distance: grad_scale -1 and weight_decay 1 make the gradient average - weights.
            ops.sgd(self.average[name], parameter.data, None, 1.0 - decay, 0.0, 1.0, -1.0)

    # Validation -------------------------------------------------------------------------------------------------------------

    def _result(self) -> dict[str, Array]:
        """The weights that are validated and saved: the averaged ones, if there are some, with a share of the first ones."""
        arrays = self.average or {name: p.data for name, p in self.named.items()}
        share = self.config.start_share
        mixed = {name: ops.add(ops.mul(arrays[name], 1 - share), ops.mul(first, share)) for name, first in self.start.items()}
        return mixed or arrays

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within it the model holds the weights that are validated."""
        own = {name: parameter.data for name, parameter in self.named.items()}
        self._hold(self._result())
        try:
            yield
        finally:
            self._hold(own)

    def _hold(self, arrays: Mapping[str, Array]) -> None:
        for name, parameter in self.named.items():
            parameter.data = arrays[name]
            parameter.version += 1

    def _validate(self) -> None:
        """The loss per unit on the validation examples; keeps the weights when it is the best so far."""
        at, total, units, items, infos = self.at, 0.0, 0, 0, dict[str, float]()
        self.model.eval()
        with no_grad(), self._averaged():
            for number, batch in enumerate(self.valid_batches):
                if self.stop:
                    return  # the checkpoint stands before this validation
                loss, count, info = self._loss([self.valid_items[i] for i in batch], _step_seed(0, number))
                total += loss.item()
                units += count
                items += len(batch)
                for name, value in info.items():
                    infos[name] = infos.get(name, 0.0) + float(value) * len(batch)
        loss_per_unit = total / max(units, 1)
        at.validated = at.step
        inspection = self._inspect()
        finite = math.isfinite(loss_per_unit)
        better = finite and inspection.keep and (at.best_loss is None or loss_per_unit < at.best_loss)
        if better:
            at.best_loss, at.best_step, at.bad = loss_per_unit, at.step, 0
            self._keep(self._result())
        else:
            at.bad += 1
        entry = {"step": at.step, "epoch": at.epochs, "valid_loss": loss_per_unit, "best_step": at.best_step}
        entry |= {f"valid_{name}": value / max(items, 1) for name, value in infos.items()}
        entry |= inspection.figures
        self.journal.write(entry)
        self.history.append(entry)
        seconds = self.clock.lap()
        shown = f", perplexity {math.exp(loss_per_unit):.2f}" if loss_per_unit < 20 else ""
        note = "" if better or at.best_loss is None else f" (best {at.best_loss:.4f} at step {at.best_step})"
        self.display.line(f"validation at step {at.step}: loss {loss_per_unit:.4f}{shown}{note}, {duration(seconds)}")
        self.display.inspection(at.step, inspection.shown, inspection.note)

    def _inspect(self) -> Inspection:
        """The task's own look at the model; it may change how the rest is trained, or end it."""
        at = self.at
        with no_grad(), self._averaged():
            inspection: Inspection = (
                self.task.inspect(self.valid_items, self.history, at.step, self.total_steps) or Inspection()
            )
        if inspection.change is not None:
            inspection.change()
            self.best, at.best_loss, at.best_step, at.bad = None, None, -1, 0
        at.ended = inspection.stop
        at.task = self.task.training_state()
        return inspection

    def _keep(self, arrays: Mapping[str, Array]) -> None:
        if self.best is None:
            self.best = {name: array.copy() for name, array in arrays.items()}
        else:
            for name, array in arrays.items():
                self.best[name][...] = array

    # Telling ----------------------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Size, and an estimate of time and memory from the largest batch and two usual ones; the state stays as it is."""
        sizes = [int(self.sizes[batch].sum()) for batch in self.batches]
        by_size = sorted(range(len(sizes)), key=lambda i: sizes[i])
        probes = [by_size[-1], by_size[len(sizes) // 2], by_size[len(sizes) // 3]]
        self.model.train()
        clock, speeds = Clock(), []
        for batch in probes:
            self._gradients([self.items[i] for i in self.batches[batch]], 0, update=False)
            speeds.append(clock.lap() / max(sizes[batch], 1))
        seconds = min(speeds[1:]) * sum(sizes) / len(sizes)  # the first one also paid for fresh memory
        self.seconds_per_step = seconds
        count = self.model.num_parameters()
        self.display.line(
            f"{len(self.items)} items to train on, {len(self.valid_items)} to validate on; {count / 1e6:.2f} M parameters; "
            f"{self.total_steps} steps, {len(sizes)} an epoch; about {duration(seconds * self.total_steps)}{_memory()}"
        )

    def _check_disk(self) -> None:
        copies = 2 + len(self.optimizer.state) + (self.average is not None)  # weights, best, moments, average
        need = 3 * copies * sum(p.data.nbytes for p in self.named.values())  # two checkpoints and the one being written
        free = shutil.disk_usage(self.out).free
        if free < need:
            raise InputError(f"{self.out}: the training needs {size(need)} of disk for its checkpoints, {size(free)} are free")

    def _log_window(self) -> None:
        at = self.at
        seconds = self.clock.lap()
        steps = max(at.step - self.window_started, 1)
        per_step = seconds / min(steps, at.window_steps)
        self.seconds_per_step = per_step if not self.seconds_per_step else 0.5 * (self.seconds_per_step + per_step)
        entry: dict[str, Any] = {
            "step": at.step,
            "epoch": at.epochs,
            "loss": at.window_loss / at.window_count if at.window_count else math.nan,
            "tokens_per_second": round(at.window_count / seconds, 1),
            "learning_rate": self.optimizer.learning_rate,
            "grad_norm": at.window_norm / max(at.window_steps, 1),
        }
        entry |= {name: value / max(at.window_items, 1) for name, value in at.window_info.items()}
        self.journal.write(entry)
        self.display.window(entry, self.seconds_per_step * max(self.total_steps - at.step, 0))
        at.window_steps, at.window_loss, at.window_count, at.window_norm, at.window_items = 0, 0.0, 0, 0.0, 0
        at.window_info = {}
        self.window_started = at.step

    # Checkpoints ------------------------------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, Array]:
        arrays = {f"model.{name}": parameter.data for name, parameter in self.named.items()}
        arrays |= {f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()}
        arrays |= {f"average.{name}": array for name, array in (self.average or {}).items()}
        arrays |= {f"best.{name}": array for name, array in (self.best or {}).items()}
        return {name: ops.to_host(array) for name, array in arrays.items()}

    def _checkpoint(self) -> None:
        checkpoints.save(self.out, self.at.step, self._arrays(), msgspec.to_builtins(self.at))

    def _restore(self) -> None:
        """Take up the newest whole checkpoint, or start from the first step when there is none yet."""
        for path in self.out.glob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        found = checkpoints.load(self.out)
        if found is None:
            self.journal.truncate(-1, -1)
            self.display.line("resuming: no checkpoint was written yet, starting from the first step")
            return
        arrays, numbers = found

        def part(prefix: str) -> dict[str, Array]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        try:
            position = msgspec.convert(numbers, Position)
        except msgspec.ValidationError as error:
            raise InputError(f"{self.out}: the checkpoint is from another version of rheme: {error}") from None
        if position.data != self.at.data:
            raise InputError(
                f"{self.out} cannot be resumed with other training or validation examples than it began with, "
                "or under a version of rheme that encodes them in another way"
            )
        self.at = position
        self.model.load_state_dict(part("model."))
        self.optimizer.load_state_dict(part("optimizer."))
        if self.average is not None:
            for name, array in part("average.").items():
                self.average[name][...] = ops.asarray(array, like=self.average[name])
        if best := part("best."):
            self._keep({name: ops.asarray(array, like=self.named[name].data) for name, array in best.items()})
        if self.at.epoch:
            self.batches = token_batches(self.sizes, self.config.batch_tokens, self.config.seed, self.at.epoch)
        self.window_started = self.at.step
        self.task.load_training_state(self.at.task)
        self.journal.truncate(self.at.step, self.at.validated)
        self.history = self.journal.validations()
        self.display.line(f"resuming after step {self.at.step} of {self.total_steps}")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the training after the current step; a second Ctrl-C at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self) -> None:
        self._checkpoint()
        raise Interrupted(
            f"interrupted after step {self.at.step} of {self.total_steps}; to go on: the same command with --resume, "
            "or with --finish to keep the best weights so far"
        )

    # The end ----------------------------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        """Save the best weights as a model folder, with the task's own figures, and clear the checkpoints away."""
        at = self.at
        if at.step and at.skipped == at.step:
            raise RhemeError(f"the gradients were not finite in any of the {at.step} steps: nothing was learned")
        weights = self.best or self._result()
        metrics: dict[str, Any] = {"steps": at.step, "epochs": at.epochs}
        if at.best_loss is not None:
            metrics |= {"valid_loss": at.best_loss, "best_step": at.best_step}
        found: dict[str, Any] = {}
        self._checkpoint()  # what follows may take long
        self._hold(weights)
        self.model.eval()
        try:
            self.task.finish(self.train_examples, self.valid_examples)
            if self.config.evaluate and len(self.valid_examples):
                found = self._evaluate()
        except KeyboardInterrupt:
            raise Interrupted("interrupted in the final evaluation; to go on: the same command with --resume") from None
        metrics |= found
        with writing(self.out):
            metrics |= self.task.conclude(self.out, self.train_examples, self.history)
        final = self.out / ".final"
        with writing(self.out):
            shutil.rmtree(final, ignore_errors=True)
            training = msgspec.to_builtins(self.config)
            self.task.save(final, dtype=self.config.save_dtype, metrics=metrics, training=training, card=self.card)
            for path in sorted(final.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, self.out / path.name)
            checkpoints.sync(self.out)
        clean(self.out)
        if found:
            told = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if isinstance(value, int | float))
            self.display.line(f"on the validation examples: {told}")
        self.display.line(f"done: {self.out}")
        return metrics

    def _evaluate(self) -> dict[str, Any]:
        """The task's own figures, or none where it cannot be measured on these examples."""
        try:
            self.task.calibrate(self.valid_examples)
            return dict(self.task.evaluate(self.valid_examples))
        except InputError as error:
            self.display.line(f"the final evaluation was left out: {error}")
            return {}


def clean(out: Path) -> None:
    """Remove what only an unfinished training needs."""
    checkpoints.clear(out)
    for path in [out / "initial", *out.glob(".*.tmp"), out / ".final"]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _hash(*parts: Sequence[Any]) -> str:
    """A hash of the content of items, whatever they are made of."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return [value.shape, value.tobytes()]
        return getattr(value, "__dict__", type(value).__name__)  # a plugin's own class

    digest, encoder = hashlib.sha256(), msgspec.msgpack.Encoder(enc_hook=plain)
    for items in parts:
        digest.update(len(items).to_bytes(8, "little"))
        for item in items:
            digest.update(encoder.encode(item))
    return digest.hexdigest()


def _step_seed(seed: int, step: int) -> int:
    """A seed of its own for a step's noise."""
    return int(ops.random_bits(seed, _STEP_STREAM, step, 1)[0])


def _memory() -> str:
    """What this process has used at most, after the largest batch, as the end of a sentence."""
    try:
        import resource
    except ImportError:
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f" and {size(peak)} of memory"

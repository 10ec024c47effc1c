"""Training: it learns, it is the same for any number of threads, and a kill at any moment changes nothing."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from rheme import _core, ops, training
from rheme.errors import InputError, RhemeError
from rheme.models.seq2seq import Seq2Seq, Seq2SeqConfig
from rheme.storage import read_arrays
from rheme.tasks import PluginError, Task
from rheme.text import batches
from rheme.training import Interrupted, TrainingConfig, checkpoints

Pair = tuple[list[int], list[int]]

MODEL = {"vocab_size": 14, "embedding_size": 8, "encoder_size": 8, "decoder_size": 12, "dropout": 0.1}
SETTINGS = {
    "max_steps": 24,
    "batch_tokens": 60,
    "learning_rate": 1e-2,
    "warmup_steps": 4,
    "log_every": 5,
    "valid_every_steps": 10,
    "patience": 0,
    "ema_decay": 0.9,
    "ema_every": 2,
    "save_dtype": "float32",
    "checkpoint_every_seconds": 0.0,
}


class Reversal(Task):
    """Write a list of ids backwards."""

    name: ClassVar[str] = "reversal"
    Config: ClassVar[type[msgspec.Struct]] = Seq2SeqConfig

    def build(self) -> None:
        self.model = Seq2Seq(self.config)

    def encode(self, example: Pair) -> Pair:
        return example

    def size(self, item: Pair) -> int:
        return len(item[0]) + 1

    def loss(self, items: Sequence[Pair], step_seed: int) -> Any:
        source, lengths = batches.pad([source for source, _ in items])
        target_in, _ = batches.pad([[1, *target] for _, target in items])
        target_out, _ = batches.pad([[*target, 2] for _, target in items], -1)
        return self.model.loss(source, lengths, target_in, target_out, seed=step_seed)

    def evaluate(self, examples: Sequence[Pair], **options: Any) -> dict[str, float | str]:
        return {"examples": len(examples)}


def pairs(count: int, seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)
    sources = [[rng.randrange(3, 14) for _ in range(rng.randint(1, 5))] for _ in range(count)]
    return [(source, source[::-1]) for source in sources]


def new_task() -> Reversal:
    return Reversal(Seq2SeqConfig(**MODEL))  # type: ignore[arg-type]


def run(
    out: Path,
    resume: bool = False,
    task: Task | None = None,
    train: list[Pair] | None = None,
    valid: list[Pair] | None = None,
    finish: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    return training.train(
        task or new_task(),
        pairs(60) if train is None else train,
        pairs(15, 1) if valid is None else valid,
        out,
        TrainingConfig(**SETTINGS | settings),
        resume=resume,
        finish=finish,
        echo=lambda line: None,
    )


def weights(out: Path) -> dict[str, np.ndarray]:
    return read_arrays(out / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


def journal(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its speeds."""
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "tokens_per_second"} for entry in entries]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "model"
    run(out)
    return out


# A whole training ------------------------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_a_model_folder(tmp_path: Path) -> None:
    out, task, lines = tmp_path / "model", new_task(), list[str]()
    config = TrainingConfig(**SETTINGS | {"max_steps": 500, "checkpoint_every_seconds": 300.0, "valid_every_steps": 50})
    metrics = training.train(task, pairs(300), pairs(30, 1), out, config, echo=lines.append)
    entries = journal(out)
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert losses[0] > 2.0
    assert losses[-1] < 1.2
    assert metrics["valid_loss"] < 0.8
    assert metrics["valid_loss"] == min(entry["valid_loss"] for entry in entries if "valid_loss" in entry)
    assert metrics["examples"] == 30
    assert json.loads((out / "metrics.json").read_text()) == metrics
    model_folder = ["README.md", "config.json", "generation_config.json", "metrics.json", "model.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*model_folder, "metrics.jsonl", "training.json"])
    assert json.loads((out / "training.json").read_text())["training"]["learning_rate"] == 1e-2
    assert any("about" in line and "memory" in line for line in lines)
    loaded = Reversal.restore(out)
    for name, array in loaded.model.state_dict().items():
        assert array.tobytes() == task.model.state_dict()[name].tobytes()


def test_threads_do_not_change_a_bit(tmp_path: Path, uninterrupted: Path, restored: None) -> None:
    for threads in (1, 2):
        _core.set_num_threads(n=threads)
        out = tmp_path / str(threads)
        run(out)
        assert_same_weights(out, uninterrupted)
        assert journal(out) == journal(uninterrupted)


def test_another_seed_gives_other_weights(tmp_path: Path, uninterrupted: Path) -> None:
    run(tmp_path / "model", seed=1)
    assert weights(tmp_path / "model")["bridge.weight"].tobytes() != weights(uninterrupted)["bridge.weight"].tobytes()


def test_the_average_is_that_of_the_weights(tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    class Watched(Reversal):
        def loss(self, items: Sequence[Pair], step_seed: int) -> Any:
            if self.model.training:
                seen.append(self.model.bridge.weight.data.copy())
            return super().loss(items, step_seed)

    # The schedule is constant: a training one step longer shows the weights after this one's last step.
    settings = {
        "schedule": "constant",
        "ema_every": 1,
        "valid_every_steps": 0,
        "checkpoint_every_seconds": 300.0,
        "evaluate": False,
    }
    task = Watched(Seq2SeqConfig(**MODEL))  # type: ignore[arg-type]
    train = pairs(60)
    config = TrainingConfig(**SETTINGS | settings | {"max_steps": 12})
    training.train(task, train, [], tmp_path / "a", config, echo=lambda line: None)
    seen.clear()
    task = Watched(Seq2SeqConfig(**MODEL))  # type: ignore[arg-type]
    config = TrainingConfig(**SETTINGS | settings | {"max_steps": 13})
    training.train(task, train, [], tmp_path / "b", config, echo=lambda line: None)
    states = seen[3:]  # the first three are the estimate's
    average = states[0].astype(np.float64)
    for step, state in enumerate(states[1:], 1):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * state
    np.testing.assert_allclose(weights(tmp_path / "a")["bridge.weight"], average, rtol=2e-6, atol=1e-7)


def test_early_stopping(tmp_path: Path) -> None:
    metrics = run(tmp_path / "model", max_steps=400, valid_every_steps=2, patience=3, learning_rate=0.5, schedule="constant")
    assert metrics["steps"] == metrics["best_step"] + 6
    assert metrics["steps"] < 400


def test_fine_tuning_begins_with_the_given_weights(tmp_path: Path, uninterrupted: Path) -> None:
    first = min(e["valid_loss"] for e in journal(uninterrupted) if "valid_loss" in e)
    config = TrainingConfig(**SETTINGS | {"max_steps": 1, "learning_rate": 1e-6, "ema_decay": 0.0})
    metrics = training.train(
        new_task(), pairs(60), pairs(15, 1), tmp_path / "m", config, init=uninterrupted, echo=lambda line: None
    )
    assert metrics["valid_loss"] == pytest.approx(first, abs=1e-3)


def test_a_share_of_the_first_weights_is_kept(tmp_path: Path, uninterrupted: Path) -> None:
    def weights(folder: Path) -> dict[str, Any]:
        return dict(Reversal.restore(folder).model.state_dict())

    def tuned(out: Path, share: float, **settings: Any) -> dict[str, Any]:
        values = SETTINGS | {"max_steps": 6, "valid_every_steps": 6, "save_dtype": "float32", "start_share": share} | settings
        given = new_task(), pairs(60), pairs(15, 1), out, TrainingConfig(**values)
        return training.train(*given, init=uninterrupted, echo=lambda line: None)

    tuned(tmp_path / "end", 0.0)
    half = tuned(tmp_path / "half", 0.5)
    first, end, mixed = weights(uninterrupted), weights(tmp_path / "end"), weights(tmp_path / "half")
    for name, array in mixed.items():
        np.testing.assert_allclose(array, 0.5 * first[name] + 0.5 * end[name], rtol=1e-5, atol=1e-6)
        assert np.abs(end[name] - first[name]).max() > 1e-4
    task: Any = Reversal.restore(tmp_path / "half")
    loss, count, _ = task.loss(task.encode_all(pairs(15, 1)), 0)
    assert loss.item() / count == pytest.approx(half["valid_loss"], rel=1e-5), "validated as it is saved"
    with pytest.raises(InputError, match=r"start_share = 0\.5: there is no model to begin with"):
        run(tmp_path / "new", start_share=0.5)


def test_gradients_that_stay_infinite_end_the_training(tmp_path: Path) -> None:
    taken_in: list[Any] = []  # by the model, such as the statistics of its normalisation

    class Broken(Reversal):
        def build(self) -> None:
            super().build()
            self.model.on_gradients = lambda step, total_steps: taken_in.append(step)

        def loss(self, items: Sequence[Pair], step_seed: int) -> Any:
            total, count, info = super().loss(items, step_seed)
            return total * float("nan"), count, info

    with pytest.raises(RhemeError, match="lower learning_rate"):
        run(tmp_path / "model", task=Broken(Seq2SeqConfig(**MODEL)))  # type: ignore[arg-type]
    assert not taken_in


def test_a_training_without_one_finite_step_leaves_no_model(tmp_path: Path) -> None:
    class Broken(Reversal):
        def loss(self, items: Sequence[Pair], step_seed: int) -> Any:
            total, count, info = super().loss(items, step_seed)
            return total * float("nan"), count, info

    with pytest.raises(RhemeError, match="not finite in any of the 3 steps: nothing was learned"):
        run(tmp_path / "model", task=Broken(Seq2SeqConfig(**MODEL)), max_steps=3)  # type: ignore[arg-type]
    assert not (tmp_path / "model" / "config.json").exists()
    assert journal(tmp_path / "model")[0]["loss"] is None, "none was seen"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda total, count, info: total,
        lambda total, count, info: (total.item(), count, info),
        lambda total, count, info: (total, count),
        lambda total, count, info: (total * np.ones(2, np.float32), count, info),
    ],
)
def test_a_loss_that_is_none_is_told_at_once(tmp_path: Path, wrong: Any) -> None:
    class Wrong(Reversal):
        def loss(self, items: Sequence[Pair], step_seed: int) -> Any:
            return wrong(*super().loss(items, step_seed))

    class Empty(Reversal):
        def build(self) -> None:
            pass

    with pytest.raises(PluginError, match=r"'reversal': loss\(\) must give a Tensor of one number"):
        run(tmp_path / "model", task=Wrong(Seq2SeqConfig(**MODEL)))  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"build\(\) must set self.model"):
        run(tmp_path / "model", task=Empty(Seq2SeqConfig(**MODEL)))  # type: ignore[arg-type]
    run(tmp_path / "model", max_steps=2)  # the folder is free


# Kills -----------------------------------------------------------------------------------------------------------------------


def kill_at(event: str) -> None:
    """Make this process kill itself at an event such as "fsync:3": the third call of os.fsync."""
    name, count = event.split(":")
    module: Any = {"fsync": os, "rename": os, "replace": os, "adamw": ops, "save_file": checkpoints}[name]
    original, left = getattr(module, name), [int(count)]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if name == "save_file":  # a torn file: half of it
                original(*args, **kwargs)
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, name, counted)


def run_and_kill(out: Path, event: str) -> bool:
    """Whether the training in a process of its own was killed (it resumes if it can)."""
    done = subprocess.run([sys.executable, __file__, str(out), event], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def test_killed_at_ten_moments_and_resumed(tmp_path: Path, uninterrupted: Path) -> None:
    rng = random.Random(7)
    out = tmp_path / "model"
    parameters = len(weights(uninterrupted))
    # Within an update, within the writing of a checkpoint (its files, its name), and between.
    events = [f"adamw:{rng.randrange(1, 4 * parameters)}" for _ in range(4)]
    events += [f"fsync:{rng.randrange(5, 30)}" for _ in range(3)]
    events += [f"rename:{rng.randrange(1, 3)}", f"save_file:{rng.randrange(1, 4)}", "replace:2"]
    rng.shuffle(events)
    killed = [run_and_kill(out, event) for event in events]
    assert all(killed)
    run(out, resume=True)
    assert_same_weights(out, uninterrupted)
    assert journal(out) == journal(uninterrupted)
    assert not list(out.glob(".*"))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, uninterrupted: Path) -> None:
    out = tmp_path / "model"
    interrupt(out, step=13)
    newest, older = sorted(out.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    assert int(newest.name.split("-")[1]) == int(older.name.split("-")[1]) + 1
    data = bytearray((newest / "state.safetensors").read_bytes())
    data[-5] ^= 1
    (newest / "state.safetensors").write_bytes(data)
    run(out, resume=True)
    assert_same_weights(out, uninterrupted)


# Ctrl-C ----------------------------------------------------------------------------------------------------------------------


class Interrupting(Reversal):
    """Gets a signal within the loss of a training step, or within a validation."""

    at_step = 0
    validating = False
    calls = 0

    def loss(self, items: Sequence[Pair], step_seed: int) -> Any:
        if self.model.training:
            self.calls += 1
        if self.calls == self.at_step + 3 and self.model.training != self.validating:  # 3 for the estimate
            self.at_step = -100
            signal.raise_signal(signal.SIGINT)
        return super().loss(items, step_seed)


def interrupt(out: Path, step: int, validating: bool = False) -> None:
    task = Interrupting(Seq2SeqConfig(**MODEL))  # type: ignore[arg-type]
    task.at_step, task.validating = step, validating
    with pytest.raises(Interrupted, match=rf"after step {step} of 24.*--resume"):
        run(out, task=task)


@pytest.mark.parametrize(("step", "validating"), [(7, False), (10, True), (24, False)])
def test_ctrl_c_leaves_a_checkpoint(tmp_path: Path, uninterrupted: Path, step: int, validating: bool) -> None:
    out = tmp_path / "model"
    before = signal.getsignal(signal.SIGINT)
    interrupt(out, step, validating)
    assert signal.getsignal(signal.SIGINT) is before
    assert (out / f"checkpoint-{step}" / "state.json").exists()
    assert not (out / "config.json").exists()
    run(out, resume=True)
    assert_same_weights(out, uninterrupted)
    assert journal(out) == journal(uninterrupted)


def test_log_every_can_be_given_anew(tmp_path: Path) -> None:
    interrupt(tmp_path / "model", step=8)
    run(tmp_path / "model", resume=True, log_every=2)
    logged = [entry["step"] for entry in journal(tmp_path / "model") if "loss" in entry]
    assert logged == [5, 9, 11, 13, 15, 17, 19, 21, 23, 24]


def test_figures_that_are_not_finite(tmp_path: Path) -> None:
    class Odd(Interrupting):
        bad_validations = 0

        def loss(self, items: Sequence[Pair], step_seed: int) -> Any:
            total, count, info = super().loss(items, step_seed)
            bad = not self.model.training and self.bad_validations
            return total * float("nan") if bad else total, count, {**info, "odd": float("nan")}

    first, second = Odd(Seq2SeqConfig(**MODEL)), Odd(Seq2SeqConfig(**MODEL))  # type: ignore[arg-type]
    first.at_step, first.bad_validations, second.at_step = 13, True, -100
    with pytest.raises(Interrupted):
        run(tmp_path / "model", task=first)
    assert run(tmp_path / "model", task=second, resume=True)["best_step"] in (20, 24), "not the one at step 10"
    assert [entry["valid_loss"] is None for entry in journal(tmp_path / "model") if "valid_loss" in entry] == [
        True,
        False,
        False,
    ]


def test_an_interrupted_training_can_end_there(tmp_path: Path, uninterrupted: Path) -> None:
    out = tmp_path / "model"
    interrupt(out, step=17)
    figures = run(out, finish=True)
    assert figures["steps"] == 17
    best = min((entry for entry in journal(out) if "valid_loss" in entry), key=lambda entry: entry["valid_loss"])
    assert (figures["best_step"], figures["valid_loss"]) == (best["step"], best["valid_loss"])
    assert weights(out).keys() == weights(uninterrupted).keys()
    assert not list(out.glob("checkpoint-*"))
    assert run(out, finish=True) == figures, "it has ended"
    with pytest.raises(InputError, match="no training to resume"):
        run(tmp_path / "other", finish=True)
    interrupt(tmp_path / "early", step=2)
    for checkpoint in (tmp_path / "early").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(InputError, match="no checkpoint was written yet"):
        run(tmp_path / "early", finish=True)


def test_a_model_that_cannot_be_finished_is_not_saved(tmp_path: Path) -> None:
    class Unfit(Reversal):
        def finish(self, train: Sequence[Any], valid: Sequence[Any]) -> None:
            raise InputError("nothing to fit to")

    class Unmeasured(Reversal):
        evaluate = Task.evaluate  # a plugin without one

    out = tmp_path / "model"
    with pytest.raises(InputError, match="nothing to fit to"):
        run(out, task=Unfit(Seq2SeqConfig(**MODEL)))  # type: ignore[arg-type]
    assert not (out / "config.json").exists()
    metrics = run(out, resume=True, task=Unmeasured(Seq2SeqConfig(**MODEL)))  # type: ignore[arg-type]
    assert metrics["steps"] == 24
    assert (out / "config.json").exists()


# Mistakes --------------------------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(InputError, match="already holds a model"):
        run(uninterrupted)
    interrupt(tmp_path / "model", step=2)
    with pytest.raises(InputError, match="--resume"):
        run(tmp_path / "model")
    with pytest.raises(InputError, match="no training to resume"):
        run(tmp_path / "other", resume=True)
    assert not (tmp_path / "other").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file, not a folder"):
        run(tmp_path / "file")


def test_resuming_a_finished_training_only_tells_its_figures(uninterrupted: Path) -> None:
    before = (uninterrupted / "model.safetensors").read_bytes()
    assert run(uninterrupted, resume=True) == json.loads((uninterrupted / "metrics.json").read_text())
    assert (uninterrupted / "model.safetensors").read_bytes() == before


def test_resuming_with_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "model"
    interrupt(out, step=3)
    with pytest.raises(InputError, match=r"learning_rate = 0\.5 \(was 0\.01\)"):
        run(out, resume=True, learning_rate=0.5)
    with pytest.raises(InputError, match="decoder_size"):
        run(out, resume=True, task=Reversal(Seq2SeqConfig(**MODEL | {"decoder_size": 5})))  # type: ignore[arg-type]
    swapped = [(source, target[::-1]) for source, target in pairs(60)]  # of the same sizes
    for changed in ({"train": pairs(50)}, {"train": swapped}, {"valid": pairs(15, 2)}):
        with pytest.raises(InputError, match="other training or validation examples"):
            run(out, resume=True, **changed)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(InputError, match="are free"):
            run(tmp_path / "model")
    assert not list(tmp_path.iterdir())

    calls = [0]

    def full(arrays: Any, path: Path) -> None:
        calls[0] += 1
        if calls[0] == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(arrays, path)

    original = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(InputError, match=r"cannot write to .*model.*: No space left"):
        run(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").glob("*checkpoint*")) == ["checkpoint-1", "checkpoint-2"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file"):
        run(tmp_path / "file" / "model")


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training examples"):
        run(tmp_path / "model", train=[])
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_tokens", 0),
        ("learning_rate", 0.0),
        ("betas", (0.9, 1.0)),
        ("ema_decay", 1.0),
        ("start_share", 1.0),
        ("seed", -1),
    ],
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        TrainingConfig(**{name: value})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    kill_at(sys.argv[2])
    run(folder, resume=(folder / "training.json").exists())

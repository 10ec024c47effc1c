"""The collapse doctor: names a collapse and its cause, leaves a living code alone, treats on request, refuses to pretend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rheme
from rheme import doctor, tasks, training
from rheme.cli import main
from rheme.errors import InputError
from rheme.training import TrainingConfig

CONFIG = {"latent_size": 32, "beta": 1.0, "annealing": "none"}


def figures(kl: float, information: float, units: int, **more: Any) -> dict[str, Any]:
    return {"kl": kl, "mutual_information": information, "active_units": units, **more}


# Published figures (PTB: Li et al. 2020): what the literature calls alive and what it calls collapsed.
@pytest.mark.parametrize(
    ("kl", "information", "units", "state"),
    [
        (0.0, 0.0, 0, "collapsed"),  # monotonic annealing
        (1.37, 1.27, 5, "healthy"),  # cyclical
        (0.93, 0.83, 4, "healthy"),  # aggressive
        (6.54, 5.31, 32, "healthy"),  # autoencoder and free bits
        (8.0, 0.02, 0, "collapsed"),  # free bits paid for nothing
        (0.4, 0.3, 2, "weak"),
    ],
)
def test_states(kl: float, information: float, units: int, state: str) -> None:
    found = doctor.diagnose(figures(kl, information, units), CONFIG)
    assert found.state == state
    assert bool(found.remedy) == (state != "healthy")
    assert f"active units {units} of 32" in str(found)


def test_causes() -> None:
    dead = figures(0.0, 0.0, 0)
    assert "full weight from the first step" in doctor.diagnose(dead, CONFIG).cause
    annealed = CONFIG | {"annealing": "monotonic"}
    history = [figures(3.0, 2.0, 9, beta=0.2), figures(0.9, 0.4, 3, beta=0.6)]
    assert "fell from 3.00 to 0.00 nats while beta rose from 0.20" in doctor.diagnose(dead, annealed, 1.0, history).cause
    paid = doctor.diagnose(figures(8.0, 0.0, 0), CONFIG | {"free_bits": 0.25})
    assert "carry nothing" in paid.cause
    assert "posterior_deviation" in paid.remedy
    assert "beta 4 weighs" in doctor.diagnose(dead, CONFIG | {"beta": 4.0}).cause
    falling = doctor.diagnose(figures(0.5, 0.3, 4), annealed, 0.5, history)
    assert falling.state == "collapsing"


def test_figures_that_are_null_are_missing() -> None:
    with pytest.raises(InputError, match="no diagnosis without mutual_information: validate"):
        doctor.diagnose(figures(1.0, 1.0, 3) | {"mutual_information": None}, CONFIG)
    seen = doctor.diagnose(figures(0.0, 0.0, 0), CONFIG, 1.0, [figures(3.0, 2.0, 9) | {"mutual_information": None, "kl": None}])
    assert seen == doctor.diagnose(figures(0.0, 0.0, 0), CONFIG)
    nothing = dict.fromkeys(("neg_elbo", "nll", "perplexity", "kl_per_dimension"))
    assert doctor.report(figures(3.0, 2.0, 9, **nothing), seen) == doctor.report(figures(3.0, 2.0, 9), seen)
    assert doctor.draw([{"step": 1, "kl": None}], "x.png") is None


def test_no_false_alarm() -> None:
    assert doctor.diagnose(figures(0.0, 0.0, 0), CONFIG, beta=0.0).state == "young"
    rising = CONFIG | {"annealing": "monotonic"}
    assert doctor.diagnose(figures(0.1, 0.02, 1), rising, beta=0.3).state == "young"
    assert doctor.diagnose(figures(0.1, 0.02, 1), rising, beta=0.3, history=[figures(3.0, 2.0, 9)]).state == "collapsed"
    assert doctor.diagnose(figures(0.1, 0.02, 1), rising, beta=0.6).state == "collapsed"
    assert doctor.diagnose({}, {"latent_size": 0}).state == "no code"
    with pytest.raises(InputError, match="no diagnosis without kl"):
        doctor.diagnose({"mutual_information": 1.0}, CONFIG)


# In a training ---------------------------------------------------------------------------------------------------------------

NOUNS, VERBS = "cat dog cow fish boy girl bird king".split(), "sees takes likes hears finds wants".split()
MODEL: dict[str, float] = {"embedding_size": 16, "encoder_size": 16, "decoder_size": 24, "latent_size": 4, "dropout": 0.0}
MODEL["posterior_deviation"] = 0.0
TRAINING = {"max_steps": 60, "batch_tokens": 300, "warmup_steps": 5, "learning_rate": 1e-2, "valid_every_steps": 20}
TRAINING |= {"patience": 0, "save_dtype": "float32"}


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"the {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}" for _ in range(count)]


def train(
    out: Path,
    told: list[str] | None = None,
    resume: bool = False,
    on_collapse: str = "tell",
    more: dict[str, Any] | None = None,
    **model: Any,
) -> Any:
    cls = tasks.get_task("generation")
    settings = {"unit": "word", "on_collapse": on_collapse, "model": MODEL | model}
    task: Any = cls(tasks.configure(cls.Config, settings))
    echo = (told if told is not None else []).append
    config = TrainingConfig(**TRAINING | (more or {}))
    return training.train(task, texts(400, 0), texts(60, 1), out, config, resume=resume, echo=echo)


def journal(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """beta 20 from the start: nothing is worth a nat."""
    out = tmp_path_factory.mktemp("runs") / "collapsed"
    train(out, annealing="none", beta=20.0)
    return out


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "living"
    train(out, posterior_deviation=1.0)
    return out


def test_a_collapse_is_told(collapsed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = [entry for entry in journal(collapsed) if "valid_loss" in entry]
    assert [entry["state"] for entry in seen] == ["collapsed"] * 3
    assert {"kl", "kl_per_dimension", "mutual_information", "active_units", "reconstruction", "neg_elbo", "nll"} <= set(seen[0])
    card = (collapsed / "README.md").read_text()
    assert "has collapsed" in card
    assert "| state | collapsed |" in card
    assert main(["doctor", str(collapsed)]) == 0
    said = capsys.readouterr().out
    assert "state: collapsed" in said
    assert "likely cause: beta 20" in said
    assert main(["generate", "--model", str(collapsed), "--like", "the cat sees the dog"]) == 2
    assert "would only pretend" in capsys.readouterr().err
    assert main(["generate", "--model", str(collapsed), "--n", "1"]) == 0  # it can still write
    assert main(["latent", "mix", "the cat", "the dog", "--model", str(collapsed)]) == 2


def test_a_living_code_is_left_alone(living: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = [entry for entry in journal(living) if "valid_loss" in entry]
    assert [entry["state"] for entry in seen] == ["healthy"] * 3
    assert "collapsed" not in (living / "README.md").read_text()
    (living.parent / "x.txt").write_text("\n".join(texts(30, 5)))
    assert main(["doctor", str(living), "--data", str(living.parent / "x.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "healthy"
    assert len(found["kl_per_dimension"]) == 4
    task: Any = rheme.load(model=living)
    varied = task.generate(3, like="the cat sees the dog")
    assert len({result.text for result in varied} | {"the cat sees the dog"}) == 4


def test_without_figures_the_model_is_examined_on_its_own_sentences(collapsed: Path, tmp_path: Path) -> None:
    task: Any = rheme.load(model=collapsed)
    for metrics in ({}, {"mutual_information": None}):
        task.metrics = metrics
        assert task.examine()[1].collapsed


def test_a_treatment_brings_it_back(tmp_path: Path) -> None:
    told: list[str] = []
    longer = {"max_steps": 400, "valid_every_steps": 100, "learning_rate": 3e-2, "schedule": "constant"}
    metrics = train(tmp_path / "m", told, on_collapse="treat", more=longer, annealing="none", beta=20.0)
    assert any("treating it from here on" in line for line in told)
    assert metrics["mutual_information"] > 0.5
    stored = json.loads((tmp_path / "m" / "config.json").read_text())["config"]["model"]
    assert stored["free_bits"] == 0.25


def test_a_treated_training_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"on_collapse": "treat", "annealing": "none", "beta": 20.0}
    train(tmp_path / "whole", **settings)
    from rheme.training.run import Run

    step = Run._step

    def killed(self: Run) -> None:
        step(self)
        if self.at.step == 33:
            self.stop = True

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", killed)
        with pytest.raises(training.Interrupted):
            train(tmp_path / "parts", **settings)
    train(tmp_path / "parts", resume=True, **settings)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_a_training_can_end_at_a_collapse(tmp_path: Path) -> None:
    metrics = train(tmp_path / "m", on_collapse="stop", annealing="none", beta=20.0)
    assert metrics["steps"] == 20


def test_a_language_model_trains_beside_it(tmp_path: Path) -> None:
    """The twin without a code, with the settings as they come."""
    cls = tasks.get_task("generation")
    model = {"embedding_size": 16, "decoder_size": 24, "latent_size": 0}
    task: Any = cls(tasks.configure(cls.Config, {"unit": "word", "model": model}))
    told: list[str] = []
    metrics = training.train(task, texts(400, 0), texts(60, 1), tmp_path / "m", TrainingConfig(**TRAINING), echo=told.append)
    assert metrics["nll"] == metrics["neg_elbo"] < 8.0
    assert "state" not in metrics
    assert not any("doctor" in line for line in told)


def test_a_picture(living: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert (living / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["doctor", str(living), "--plot", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").exists()
    assert main(["doctor", str(living), "--plot", str(tmp_path / "x.foo")]) == 2, "no format of pictures"

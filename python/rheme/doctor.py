"""The collapse doctor: whether a text VAE still writes with its code, why not if it does not, and what to do about it.

Posterior collapse (Bowman et al. 2016): q(z|x) becomes N(0, 1) for every x, and the decoder a language model that does not look
at z. The figures are those of `evaluation.LatentReport`; the thresholds are nats and dimensions on validation sentences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rheme import pictures
from rheme.errors import InputError

State = Literal["healthy", "collapsed", "collapsing", "weak", "young", "no code"]

# Below so much mutual information, or with no active unit, a code says nothing. The smallest that the literature calls alive
# (aggressive training on the Penn Treebank: MI 0.83, 4 active units) is far above.
_DEAD_INFORMATION = 0.1
_WEAK_INFORMATION = 0.5
_YOUNG = 0.5  # of the final beta: before that a code that was never in use may still come
_FALL = 0.5  # of the largest mutual information so far, as beta rises
_MOST_DETAILED = 12  # rows of a report's table of dimensions

# What treats a collapse, by measurement and the literature's ranking: autoencoding, a new decoder, free bits, slow annealing.
TREATMENT: Mapping[str, Any] = {
    "beta": 1.0,
    "annealing": "monotonic",
    "annealing_share": 0.5,
    "beta_start": 0.0,
    "free_bits": 0.25,
    "free_bits_over": "sample",
    "pretraining_share": 0.2,
}


@dataclass(frozen=True)
class Diagnosis:
    """state, what it rests on, the likely cause and the remedy (empty where nothing is wrong), each a sentence."""

    state: State
    evidence: str = ""
    cause: str = ""
    remedy: str = ""
    treatment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def collapsed(self) -> bool:
        return self.state == "collapsed"

    def __str__(self) -> str:
        parts = [f"{self.state}: {self.evidence}" if self.evidence else self.state]
        parts += [f"likely cause: {self.cause}"] if self.cause else []
        parts += [f"remedy: {self.remedy}"] if self.remedy else []
        return "; ".join(parts)


def diagnose(
    figures: Mapping[str, Any], config: Mapping[str, Any], beta: float | None = None, history: Sequence[Mapping[str, Any]] = ()
) -> Diagnosis:
    """The state of a text VAE.

    figures: kl, mutual_information, active_units (as in `LatentReport`; here and in the history None is as good as missing).
    config: the model's (`TextVAEConfig`, as a mapping). beta: the weight of the KL at which it was trained last (by default the
    final one). history: the figures of earlier validations, each with its beta, oldest first.
    """
    size = int(config.get("latent_size", 0))
    if not size:
        return Diagnosis("no code", "a language model without a latent code")
    missing = [name for name in ("kl", "mutual_information", "active_units") if figures.get(name) is None]
    if missing:
        raise InputError(f"no diagnosis without {', '.join(missing)}: validate the model (rheme doctor MODEL --data FILE)")
    kl, information, units = float(figures["kl"]), float(figures["mutual_information"]), int(figures["active_units"])
    final = float(config.get("beta", 1.0))
    beta = final if beta is None else beta
    evidence = f"KL {kl:.2f} nats, MI {information:.2f}, active units {units} of {size}, beta {beta:.2f}"
    informed = [past for past in history if past.get("mutual_information") is not None]
    best = max((float(past["mutual_information"]) for past in informed), default=0.0)
    if units == 0 or information < _DEAD_INFORMATION:
        if beta < _YOUNG * final and best < _WEAK_INFORMATION:  # nothing was lost, and the weight is still small
            return Diagnosis("young", f"{evidence}; the code is not in use yet")
        return Diagnosis("collapsed", evidence, _cause(kl, config, beta, history), _remedy(config), TREATMENT)
    if information < _WEAK_INFORMATION:
        falling = information < _FALL * best and beta < final
        state: State = "collapsing" if falling else "weak"
        return Diagnosis(state, evidence, _cause(kl, config, beta, history), _remedy(config), TREATMENT)
    return Diagnosis("healthy", evidence)


def _cause(kl: float, config: Mapping[str, Any], beta: float, history: Sequence[Mapping[str, Any]]) -> str:
    """Why the code is not used, from what was asked for and what was seen."""
    final = float(config.get("beta", 1.0))
    free, deviation = float(config.get("free_bits", 0.0)), float(config.get("posterior_deviation", 0.0))
    if free and kl > 0.5 * free * int(config["latent_size"]):
        return "the free bits are paid but carry nothing: the posterior is off the prior in the same way for every sentence"
    if final > 1:
        return f"beta {final:g} weighs the KL more than the bound asks for"
    past = [entry for entry in history if entry.get("kl") is not None]
    peak = max(past, key=lambda entry: float(entry["kl"]), default=None)
    if peak is not None and float(peak["kl"]) > 2 * kl + 0.5:
        return (
            f"annealing only put it off: the KL fell from {float(peak['kl']):.2f} to {kl:.2f} nats while beta rose from "
            f"{float(peak.get('beta') or 0.0):.2f} to {beta:.2f}, and nothing holds it up"
        )
    if config.get("annealing") == "none" and not free and not deviation and not config.get("pretraining_share"):
        return "the KL had its full weight from the first step, before the decoder had any use for the code"
    return "the decoder predicts each word well enough from those before it, and nothing holds the KL up"


def _remedy(config: Mapping[str, Any]) -> str:
    if not config.get("pretraining_share") or not config.get("free_bits"):
        return (
            "--set task.model.pretraining_share=0.2 --set task.model.free_bits=0.25 (autoencoder first, new decoder, free "
            "bits), or, in one plain run, --set task.model.posterior_deviation=0.6"
        )
    if not config.get("posterior_deviation"):
        return "--set task.model.posterior_deviation=0.6 (batch-normalised posterior mean)"
    return "--set task.model.word_dropout=0.3 (a weaker decoder), or a larger posterior_deviation"


def report(figures: Mapping[str, Any], diagnosis: Diagnosis) -> str:
    """The figures and the diagnosis as lines of text, with a bar for each of the liveliest dimensions."""
    lines = [f"state: {diagnosis.state}"]
    lines += [f"evidence: {diagnosis.evidence}"] if diagnosis.evidence else []
    lines += [f"likely cause: {diagnosis.cause}"] if diagnosis.cause else []
    lines += [f"remedy: {diagnosis.remedy}"] if diagnosis.remedy else []
    names = {"neg_elbo": "-ELBO", "reconstruction": "reconstruction", "kl": "KL", "nll": "NLL (importance-weighted)"}
    lines += [f"{label}: {figures[name]:.2f} nats a sentence" for name, label in names.items() if figures.get(name) is not None]
    if figures.get("perplexity") is not None:
        lines.append(f"perplexity: {figures['perplexity']:.2f} a word")
    per_dimension = [float(value) for value in figures.get("kl_per_dimension") or ()]
    order = sorted(range(len(per_dimension)), key=lambda d: -per_dimension[d])
    top = max(per_dimension, default=0.0)
    for d in order[:_MOST_DETAILED]:
        bar = "#" * round(30 * per_dimension[d] / top) if top > 0 else ""
        lines.append(f"  z[{d}]  KL {per_dimension[d]:.3f}  {bar}".rstrip())
    if len(order) > _MOST_DETAILED:
        lines.append(f"  ... and {len(order) - _MOST_DETAILED} more")
    return "\n".join(lines)


def draw(history: Sequence[Mapping[str, Any]], path: str | Path) -> Path | None:
    """The figures of the validations over the steps as a picture; None without matplotlib, or without figures of a code.

    InputError where the picture cannot be written.
    """
    seen = [entry for entry in history if entry.get("kl") is not None]
    if not seen:
        return None
    try:
        figure = pictures.figure(9, 6)
    except InputError:
        return None
    axes = figure.subplots(2, 2)
    steps = [entry["step"] for entry in seen]
    panels = (
        ("nats a sentence", {"neg_elbo": "-ELBO", "reconstruction": "reconstruction", "nll": "NLL (IW)"}),
        ("nats", {"kl": "KL", "mutual_information": "mutual information"}),
        ("active units", {"active_units": "active units"}),
        ("weight of the KL", {"beta": "beta"}),
    )
    for ax, (label, names) in zip(axes.flat, panels, strict=True):
        for name, legend in names.items():
            if all(entry.get(name) is not None for entry in seen):
                ax.plot(steps, [entry[name] for entry in seen], marker=".", label=legend)
        ax.set_xlabel("step")
        ax.set_ylabel(label)
        if label != "nats a sentence":
            ax.set_ylim(bottom=0)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    figure.suptitle(f"at the end: {seen[-1].get('state', 'not diagnosed')}")
    pictures.save(figure, path)
    return Path(path)

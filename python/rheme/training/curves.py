"""The learning curves of a training as a picture: metrics.jsonl drawn by matplotlib (the extra ``plot``)."""

from pathlib import Path

import msgspec

from rheme import pictures
from rheme.errors import InputError

NAME = "learning-curves.png"


def draw(folder: str | Path) -> Path:
    """Draw ``folder/metrics.jsonl`` as ``folder/learning-curves.png``.

    InputError without matplotlib, without a curve, or where it cannot be written.
    """
    folder = Path(folder)
    figure = pictures.figure(7, 4)
    try:
        entries = [msgspec.json.decode(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{folder / 'metrics.jsonl'}: no learning curve to draw ({error})") from None
    trained = [entry for entry in entries if "loss" in entry]
    validated = [entry for entry in entries if entry.get("valid_loss") is not None]  # null: it was not finite
    if not trained:
        raise InputError(f"{folder / 'metrics.jsonl'}: no learning curve to draw")
    axes = figure.subplots()
    axes.plot([entry["step"] for entry in trained], [entry["loss"] for entry in trained], label="training", color="tab:blue")
    if validated:
        steps, losses = [entry["step"] for entry in validated], [entry["valid_loss"] for entry in validated]
        axes.plot(steps, losses, "o-", label="validation", color="tab:orange", markersize=3)
        best = min(validated, key=lambda entry: entry["valid_loss"])
        axes.annotate(
            f"{best['valid_loss']:.3f}", (best["step"], best["valid_loss"]), textcoords="offset points", xytext=(0, 8)
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a unit)")
    rate = axes.twinx()
    rate.plot([e["step"] for e in trained], [e["learning_rate"] for e in trained], ":", color="tab:gray", linewidth=1)
    rate.set_ylabel("learning rate (dotted)")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
    pictures.save(figure, folder / NAME)
    return folder / NAME

"""Every remedy for posterior collapse on the same data, and the language model beside them, in one table.

    python benchmarks/remedies.py --config benchmarks/recipes/collapse-on-purpose.toml --train en.txt --out runs

Each row is one run of `rheme train generation` with the config's settings and those of the remedy below, for the same number
of steps. Runs that are finished are not run again; one that was interrupted goes on. With benchmarks/recipes/ptb-ae-fb.toml and
the Penn Treebank's files it makes the table that the literature prints (sentence-level, `<eos>` counted).

The figures are those of the test sentences (of the validation's without --test): perplexity by `--samples` importance samples
(the language model's is exact), -ELBO, reconstruction, KL and mutual information in nats a sentence, active units, and the
epoch after which the doctor first spoke of a collapse.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import rheme
from rheme import evaluation, set_num_threads
from rheme.training import files

PLAIN: dict[str, Any] = {
    "annealing": "none",
    "beta": 1.0,
    "free_bits": 0.0,
    "pretraining_share": 0.0,
    "posterior_deviation": 0.0,
    "word_dropout": 0.0,
}
REMEDIES: dict[str, dict[str, Any]] = {
    "language model": {"latent_size": 0},
    "none": {},
    "monotonic annealing": {"annealing": "monotonic", "annealing_share": 0.4},
    "cyclical annealing": {"annealing": "cyclical", "cycles": 4},
    "beta 0.5": {"beta": 0.5},
    "word dropout 0.4": {"word_dropout": 0.4, "annealing": "monotonic", "annealing_share": 0.4},
    "free bits, sample": {"free_bits": 0.25, "annealing": "monotonic", "annealing_share": 0.4},
    "free bits, batch": {"free_bits": 0.25, "free_bits_over": "batch", "annealing": "monotonic", "annealing_share": 0.4},
    "aggressive encoder": {"aggressive_steps": 3, "aggressive_share": 0.4, "annealing": "monotonic", "annealing_share": 0.4},
    "autoencoder, free bits": {
        "pretraining_share": 0.2,
        "free_bits": 0.25,
        "annealing": "monotonic",
        "annealing_share": 0.4,
    },
    "normalised posterior": {"posterior_deviation": 0.6, "annealing": "monotonic", "annealing_share": 0.4},
}


def run(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train (or go on, or find it done) and measure (or find it measured with as many samples)."""
    out = Path(given.out) / name.replace(" ", "-").replace(",", "")
    samples = given.samples if (PLAIN | REMEDIES[name]).get("latent_size", 1) else 0
    before = json.loads((out / "figures.json").read_text()) if (out / "figures.json").exists() else {}
    if before and before.get("importance_samples", 0) == samples:
        return dict(before)
    tables = files.read_config(given.config)
    tables["task"]["model"] = dict(tables["task"].get("model", {})) | PLAIN | REMEDIES[name]
    start = time.monotonic()
    # the first lines tell sizes and time; the rest stays in metrics.jsonl
    files.train(
        "generation",
        given.train,
        given.valid,
        out=out,
        config=tables,
        resume=(out / "training.json").exists(),
        echo=lambda _: None,
        device=given.device,
    )
    seconds = before.get("seconds", round(time.monotonic() - start))
    task: Any = rheme.load(model=out)
    task.model.to(given.device)
    texts = task.read(given.test or given.valid or out / "valid.tsv")[: given.most]
    items = [ids for ids in task.tokenizer.encode(texts) if ids]
    figures = evaluation.evaluate_vae(task.model, items, 1, samples).to_dict()
    seen = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    called = [entry["epoch"] for entry in seen if entry.get("state") == "collapsed"]
    figures |= {"collapse_named_after_epoch": called[0] if called else None, "seconds": seconds}
    figures["parameters"] = task.model.num_parameters()
    (out / "figures.json").write_text(json.dumps(figures))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("config", "train", "out"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("valid", "test"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--most", type=int, help="test sentences, at most")
    parser.add_argument("--only", nargs="*", default=list(REMEDIES), choices=list(REMEDIES), metavar="REMEDY")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    set_num_threads(given.threads)
    columns = "remedy | PPL | -ELBO | reconstruction | KL | MI | active units | collapse named after epoch | seconds"
    print(f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}")
    for name in given.only:
        found = run(name, given)
        nats = [f"{found[key]:.2f}" for key in ("neg_elbo", "reconstruction", "kl", "mutual_information")]
        named = found["collapse_named_after_epoch"]
        row = [name, f"{found['perplexity']:.2f}", *nats, str(found["active_units"]), str(named or "-"), str(found["seconds"])]
        print(f"| {' | '.join(row)} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""A model with the mean of two models' weights, such as those before and after a stage of training that bends them.

    python benchmarks/recipes/mean_of_models.py translation-en-de-3 translation-en-de-4 --share 0.6 --data valid.tsv \
        --config benchmarks/recipes/translation-en-de-4.toml --out translation-en-de

Between the start and the end of a fine-tuning lie models that keep more of the old than the end and have most of the new
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). --share: of the second. Settings are those of the second, the
card is that of --config, the figures are measured on --data.
"""

import argparse
from typing import Any

import rheme
from rheme import ops, storage
from rheme.training import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs=2)
    for name in ("config", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--share", type=float, default=0.5)
    given = parser.parse_args()
    stored = storage.load(given.models[1])
    first, second = (rheme.load(model=folder, precision="float32") for folder in given.models)
    task: Any = second
    before, after = first.model.state_dict(), task.model.state_dict()
    mean = {name: ops.add(ops.mul(before[name], 1 - given.share), ops.mul(after[name], given.share)) for name in after}
    task.model.load_state_dict(mean)
    dtype = stored.training.get("save_dtype", "float32")
    task.save(given.out, dtype=dtype)
    figures = rheme.load(model=given.out).evaluate(task.read([given.data]))  # as it is computed from what is stored
    card = files.read_config(given.config)["card"]
    task.save(given.out, dtype=dtype, metrics=figures, training=stored.training, card=card)
    print({name: round(value, 2) for name, value in figures.items() if isinstance(value, float)})


if __name__ == "__main__":
    main()

"""A translation model with a latent code beside its twin without: quality, diversity of five translations, another domain.

    python benchmarks/latent_translation.py --models PLAIN LATENT --data val.tsv --other other.tsv --to de

BLEU by beam 5 (the code at its prior mean) on --data and on --other, a domain that neither was trained on; of five translations
of a text the share of different ones and their mean BLEU against each other (less is more diverse): the beam's five best, five
samples at temperature 0.7, and for the model with a code five draws of it, each decoded greedily.
"""

import argparse
from typing import Any

from sacrebleu.metrics import BLEU

import rheme


def diversity(task: Any, texts: list[str], **options: Any) -> str:
    rows = [[r.text, *(other.text for other in r.alternatives)] for r in task(texts, num_return_sequences=5, **options)]
    bleu = BLEU(effective_order=True)
    pairs = [bleu.sentence_score(a, [b]).score for row in rows for i, a in enumerate(row) for j, b in enumerate(row) if i != j]
    different = sum(len(set(row)) for row in rows) / sum(map(len, rows))
    return f"{different:.0%} different, BLEU among them {sum(pairs) / max(len(pairs), 1):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs=2, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--other", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--texts", type=int, default=300)
    given = parser.parse_args()
    rheme.set_num_threads(1)
    for name, folder in zip(("without", "with"), given.models, strict=True):
        task: Any = rheme.load("translation", folder, to=given.to, precision="float32")
        for kind, path in (("own domain", given.data), ("another domain", given.other)):
            examples = task.read([path])[: given.texts]
            figures = task.evaluate(examples, num_beams=5)
            print(name, kind, {key: round(value, 1) for key, value in figures.items() if isinstance(value, float)}, flush=True)
        side = task.config.languages.index(task.direction(given.to)[0])
        texts = [pair[side] for pair in task.read([given.data])[:100]]
        print(name, "beam:", diversity(task, texts, num_beams=5), flush=True)
        print(name, "samples:", diversity(task, texts, num_beams=1, do_sample=True, temperature=0.7), flush=True)
        if task.config.model.latent_size:
            print(name, "draws of z:", diversity(task, texts, num_beams=1, do_sample=True, temperature=0.0), flush=True)


if __name__ == "__main__":
    main()

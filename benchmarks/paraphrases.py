"""English sentences that share a translation, as pairs that mean the same: TSV on stdout.

    python benchmarks/paraphrases.py eng-fra.tsv.gz eng-deu.tsv.gz eng-cmn.tsv.gz > paraphrases.tsv

Pairs that differ in case and punctuation alone are left out; a translation gives at most four pairs.
"""

import argparse
import itertools
import random
import re
from collections import defaultdict

from rheme.text import readers


def main(paths: list[str]) -> None:
    pairs: dict[tuple[str, str], None] = {}
    for path in paths:
        groups: dict[str, dict[str, None]] = defaultdict(dict)
        for english, other in readers.read_tsv(path, (0, 1)):
            groups[other][english] = None
        draw = random.Random(0)
        for sentences in groups.values():
            texts = list(sentences)
            draw.shuffle(texts)
            for a, b in list(itertools.pairwise(texts))[:4]:
                if re.sub(r"\W+", " ", a.lower()) != re.sub(r"\W+", " ", b.lower()):
                    pairs[min(a, b), max(a, b)] = None
    rows = list(pairs)
    random.Random(1).shuffle(rows)
    for a, b in rows:
        print(a, b, sep="\t")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="TSV files: English, another language")
    main(parser.parse_args().paths)

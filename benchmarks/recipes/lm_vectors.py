"""Word vectors from a small language model of our own, for `task.vectors` of a question-answering training.

    python benchmarks/recipes/lm_vectors.py text --squad train.json --sentences eng-fra.tsv.gz --out lm.txt --words words.txt
    rheme train generation --config benchmarks/recipes/lm-vectors.toml --set task.word_list=words.txt --train lm.txt --out lm
    python benchmarks/recipes/lm_vectors.py export --model lm --out vectors.txt

text: the sentences of the passages and the questions of SQuAD's training part (but for the articles that `rheme train` holds
out by default) and sentences of Tatoeba, in the words of the reader, and its vocabulary. export: the embedding of the language
model, which it reads and writes by, each vector of the length that those of `word_vectors.py` have.
"""

import argparse
from pathlib import Path

import numpy as np
from word_vectors import NORM, column, words

import rheme
from rheme.plugins.question_answering import QuestionAnswering
from rheme.text.sentences import split_sentences
from rheme.text.vocabulary import Vocabulary


def write_text(given: argparse.Namespace) -> None:
    """The texts, one a line, and the words of the reader's vocabulary, one a line."""
    task = QuestionAnswering()
    examples, _ = task.split(task.read(given.squad), 0.02)
    contexts = [words(text) for text in dict.fromkeys(example.context for example in examples)]
    questions = [words(example.question) for example in examples]
    vocabulary = Vocabulary.train(map(" ".join, contexts + questions), task.config.vocab_size, task.config.min_count)
    parts = dict.fromkeys(part for example in examples for part in split_sentences(example.context))
    texts = [*map(words, parts), *questions, *column(given.sentences, 1)]
    lines = [" ".join(text) for text in texts if text]
    Path(given.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path(given.words).write_bytes(vocabulary.to_bytes())


def export(given: argparse.Namespace) -> None:
    """The embedding of each word that is one."""
    task = rheme.load("generation", given.model)
    rows = task.model.embedding.weight.data
    rows = NORM * rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9)
    with open(given.out, "w", encoding="utf-8") as file:
        for index, word in enumerate(task.tokenizer.words):
            if index > task.tokenizer.eos_id:
                print(word, *(f"{x:.4f}" for x in rows[index]), file=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    text = verbs.add_parser("text")
    text.add_argument("--squad", required=True)
    text.add_argument("--sentences", action="append", default=[], help="TSV of sentences, in the first column")
    text.add_argument("--out", required=True)
    text.add_argument("--words", required=True)
    text.set_defaults(work=write_text)
    vectors = verbs.add_parser("export")
    vectors.add_argument("--model", required=True)
    vectors.add_argument("--out", required=True)
    vectors.set_defaults(work=export)
    given = parser.parse_args()
    given.work(given)


if __name__ == "__main__":
    main()

"""Word vectors from counts of neighbouring words, for `task.vectors` of a question-answering training. About a minute.

Positive pointwise mutual information of words within five places of each other (nearer ones weigh more, contexts smoothed by
the power 0.75), then a truncated singular value decomposition (Levy, Goldberg and Dagan 2015). Needs scikit-learn.

    python benchmarks/recipes/word_vectors.py --out vectors.txt --squad train.json \
        --text part0.tsv.gz --text part1.tsv.gz --text part2.tsv.gz --text part3.tsv.gz --column 5 \
        --sentences eng-fra.tsv.gz --sentences eng-deu.tsv.gz

Reads the training part of SQuAD alone: the articles that `rheme train` holds out by default are left out here, too.
"""

import argparse
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse as sparse
from sklearn.utils.extmath import randomized_svd

from rheme.plugins.question_answering import QuestionAnswering
from rheme.text.readers import read_lines
from rheme.text.vocabulary import Vocabulary
from rheme.text.words import find_words

REACH = 5  # words to either side
NORM = 2.5  # of each vector, so that an element is about 0.25


def words(text: str) -> list[str]:
    """As the reader looks words up: lower-cased, straight apostrophes."""
    return find_words(text.lower().replace("’", "'"))[0]


def column(paths: Iterable[str], number: int) -> list[list[str]]:
    """The words of one column (from 1) of TSV files, each text once."""
    texts = (line.split("\t")[number - 1] for path in paths for line in read_lines(path))
    return [words(text) for text in dict.fromkeys(texts)]


def neighbours(texts: Sequence[Sequence[str]], vocabulary: Vocabulary, weight: float) -> sparse.csr_matrix:
    """(V, V): how often the second word stands up to REACH places after the first, each time weighing weight / distance."""
    size = len(vocabulary)
    counts = sparse.csr_matrix((size, size), dtype=np.float32)
    for start in range(0, len(texts), 20_000):
        gap = [vocabulary.pad_id] * REACH
        ids = np.array([i for text in texts[start : start + 20_000] for i in (*map(vocabulary.piece_id, text), *gap)], np.int64)
        known = ids > vocabulary.unk_id
        for distance in range(1, REACH + 1):
            both = known[:-distance] & known[distance:]
            pairs, times = np.unique(ids[:-distance][both] * size + ids[distance:][both], return_counts=True)
            share = (times * weight / distance).astype(np.float32)
            counts += sparse.csr_matrix((share, (pairs // size, pairs % size)), shape=(size, size))
    return counts


def vectors(counts: sparse.csr_matrix, size: int) -> np.ndarray:
    """float32 (V, size), rows of length NORM."""
    counts = (counts + counts.T).tocsr()
    counts.data[counts.data < 0.4] = 0
    counts.eliminate_zeros()
    pairs, total = counts.tocoo(), counts.sum()
    word = np.asarray(counts.sum(axis=1)).ravel() + 1e-9
    context = word**0.75 / (word**0.75).sum()
    information = np.log(pairs.data / word[pairs.row]) - np.log(context[pairs.col])
    kept = (information > 0) & (total > 0)
    positive = sparse.csr_matrix((information[kept], (pairs.row[kept], pairs.col[kept])), shape=counts.shape)
    u, s, _ = randomized_svd(positive, size, n_iter=4, random_state=0)
    rows = u * s**0.5
    return (NORM * rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--squad", required=True, help="the training file of the reader")
    parser.add_argument("--text", action="append", default=[], help="TSV of longer texts")
    parser.add_argument("--column", type=int, default=1, help="of --text, from 1")
    parser.add_argument("--sentences", action="append", default=[], help="TSV of sentences, in the first column")
    parser.add_argument("--size", type=int, default=100)
    given = parser.parse_args()

    task = QuestionAnswering()
    examples, _ = task.split(task.read(given.squad), 0.02)
    contexts = [words(text) for text in dict.fromkeys(example.context for example in examples)]
    questions = [words(example.question) for example in examples]
    vocabulary = Vocabulary.train(map(" ".join, contexts + questions), task.config.vocab_size, task.config.min_count)
    counts = sum(
        neighbours(texts, vocabulary, weight)
        for texts, weight in (
            (contexts, 3.0),  # the text that is read weighs most
            (questions, 2.0),
            (column(given.sentences, 1), 2.0),
            (column(given.text, given.column), 1.0),
        )
    )
    rows = vectors(counts, given.size)
    met = np.asarray(counts.sum(axis=1)).ravel() + np.asarray(counts.sum(axis=0)).ravel() >= 1
    with open(given.out, "w", encoding="utf-8") as file:
        for index, word in enumerate(vocabulary.words):
            if index > vocabulary.eos_id and met[index]:
                print(word, *(f"{x:.4f}" for x in rows[index]), file=file)


if __name__ == "__main__":
    main()

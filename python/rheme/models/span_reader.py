"""A span reader: the answer to a question as a span of a passage.

Words are vectors of a vocabulary beside a convolution over their bytes. One BiLSTM reads passages and questions alike, each
passage once for all of its questions. Then, for each question: attention from every passage word to the question's words
(Seo et al. 2017), fused with features of word matches (Chen et al. 2017, Weissenborn et al. 2017), two more BiLSTM layers,
and a score for every span, normalised over all spans and "no answer" together (Lee et al. 2016, Clark and Gardner 2018).
"""

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rheme import autograd, nn, ops
from rheme import functional as F
from rheme.autograd import Tensor
from rheme.errors import InputError

Array = NDArray[Any]
Ids = NDArray[np.int64]


class SpanReaderConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The shape of a `SpanReader`. Sizes of LSTMs are per direction.

    vocab_size: words with a vector of their own; id 1 is for all others. char_width: neighbouring bytes a filter sees.
    features: numbers beside each passage word. pair_size: of the inner product that joins a start to an end. max_span: words of
    the longest answer. word_dropout: share of the words that training takes for unknown.
    """

    vocab_size: int = 16000
    word_size: int = 100
    char_size: int = 16
    char_filters: int = 100
    char_width: int = 5
    embedding_size: int = 128
    hidden_size: int = 128
    features: int = 8
    pair_size: int = 32
    max_span: int = 20
    dropout: float = 0.2
    word_dropout: float = 0.05

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if "dropout" not in name and getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0 and below 1")


BYTES = 256  # ids of bytes: 0 padding, 1 begin and 2 end of a word, then each byte + 3 (UTF-8 has none above 244)


@dataclass(frozen=True)
class ReaderBatch:
    """N questions about P passages.

    The U different words: words int64 (U,), chars int64 (U, W). passages int64 (T, P) and questions int64 (S, N) index into
    them; lengths (P,) and (N,). owner int64 (N,): the passage of each question. features F (T, N, K). starts int64 (P, 2): the
    first word where an answer may begin in a passage, and the first where it may not any more; None for the whole passage.
    """

    words: Ids
    chars: Ids
    passages: Ids
    passage_lengths: Ids
    questions: Ids
    question_lengths: Ids
    owner: Ids
    features: Array
    starts: Ids | None = None


class SpanReader(nn.Module):
    """Scores of all spans of the passages, for each question."""

    def __init__(self, config: SpanReaderConfig) -> None:
        self.config = config
        size = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, config.word_size)
        self.chars = nn.Embedding(BYTES, config.char_size)
        self.filters = nn.Linear(config.char_width * config.char_size, config.char_filters)
        self.embed = nn.Linear(config.word_size + config.char_filters, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.reader = nn.LSTM(config.embedding_size, size, bidirectional=True)
        self.match = nn.Linear(2 * size, 2 * size)  # half of it to compare by, half to carry
        self.fuse = nn.Linear(3 * size + config.features, size)
        self.layer1 = nn.LSTM(size, size, bidirectional=True)
        self.layer2 = nn.LSTM(2 * size, size, bidirectional=True)
        self.summary_hidden = nn.Linear(2 * size, size)
        self.summary = nn.Linear(size, 1, bias=False)
        self.passage_side = nn.Linear(4 * size, size)
        self.question_side = nn.Linear(2 * size, size, bias=False)
        self.start = nn.Linear(size // 2, config.pair_size + 1)
        self.end = nn.Linear(size - size // 2, config.pair_size + 1)
        self.length_bias = nn.Parameter(ops.zeros((config.max_span + 1, 1)))

    # Encoding ---------------------------------------------------------------------------------------------------------------

    def _vectors(self, batch: ReaderBatch, seed: int) -> Tensor:
        """One vector a different word: F (U, E)."""
        config, words = self.config, batch.words
        if self.training and config.word_dropout:
            drawn = ops.random_uniform(seed, 0, 0, words.shape)
            words = np.where(drawn < config.word_dropout, 1, words)
        chars = self.chars(batch.chars)
        windows = batch.chars.shape[1] - config.char_width + 1
        near = F.concat([chars[:, k : k + windows] for k in range(config.char_width)], axis=2)
        spelling = F.max(F.relu(self.filters(near)), axis=1)
        both: Tensor = self.embed(F.concat([self.words(words), spelling], axis=1))
        return both

    def _read(self, vectors: Tensor, ids: Ids, lengths: Ids) -> Tensor:
        """Words in their context: F (T, N, 2H)."""
        y, _ = self.reader(self.dropout(F.embedding(ids, vectors)), lengths=lengths)
        read: Tensor = self.dropout(y)
        return read

    def _summary(self, questions: Tensor, lengths: Ids) -> Tensor:
        """A weighted mean of the question's words: F (S, N, 2H) -> (N, 2H)."""
        logits = self.summary(F.tanh(self.summary_hidden(questions)))  # (S, N, 1)
        steps, rows, size = questions.shape
        weights = F.softmax(F.transpose(F.reshape(logits, (steps, rows))), mask=np.arange(steps) < lengths[:, None])
        weighted = F.matmul(F.reshape(weights, (rows, 1, steps)), F.transpose(questions, (1, 0, 2)))
        return F.reshape(weighted, (rows, size))

    def scores(self, batch: ReaderBatch, seed: int = 0) -> Tensor:
        """F (N, T, T): [n, i, j] the score of the span from word i to word j; meaningful only where `mask` is True."""
        size = self.config.hidden_size
        vectors = self._vectors(batch, seed)
        questions = self._read(vectors, batch.questions, batch.question_lengths)
        passages = self._read(vectors, batch.passages, batch.passage_lengths)
        steps, count = batch.passages.shape
        rows = len(batch.owner)
        lengths = batch.passage_lengths[batch.owner]

        asked = F.relu(self.match(questions))
        given = F.reshape(F.relu(self.match(passages)), (steps * count, 2 * size))
        given = F.embedding(np.arange(steps)[:, None] * count + batch.owner, given)  # (T, N, 2H)
        scale = 1.0 / math.sqrt(size)
        carried = given[:, :, size:]
        context, _ = F.attention(
            given[:, :, :size], asked[:, :, :size], asked[:, :, size:], lengths=batch.question_lengths, scale=scale
        )
        fused = F.relu(self.fuse(F.concat([carried, context, carried * context, batch.features], axis=2)))
        y1, _ = self.layer1(self.dropout(fused), lengths=lengths)
        y1 = self.dropout(y1)
        y2, _ = self.layer2(y1, lengths=lengths)
        y = F.concat([y1, self.dropout(y2)], axis=2)

        question = F.reshape(self.question_side(self._summary(questions, batch.question_lengths)), (1, rows, size))
        hidden = F.transpose(F.relu(self.passage_side(y) + question), (1, 0, 2))  # (N, T, H)
        start, end = self.start(hidden[:, :, : size // 2]), self.end(hidden[:, :, size // 2 :])
        ones = ops.zeros((rows, steps, 1), start.dtype, start.data)
        ones[...] = 1
        pair = self.config.pair_size
        left = F.concat([start, ones], axis=2)  # a start's vector and score, then 1
        right = F.concat([end[:, :, :pair], ones, end[:, :, pair:]], axis=2)  # an end's vector, 1, then its score
        position = np.arange(steps)
        distance = np.clip(position[None, :] - position[:, None], -1, self.config.max_span - 1) + 1
        bias = F.reshape(F.embedding(distance, self.length_bias), (1, steps, steps))
        return F.matmul(left, right, transpose_b=True) + bias

    def mask(self, batch: ReaderBatch, max_span: int | None = None) -> NDArray[np.bool_]:
        """bool (N, T, T): the spans that a question may have: within the passage and at most max_span words long."""
        longest = min(max_span or self.config.max_span, self.config.max_span)
        position = np.arange(batch.passages.shape[0])
        distance = position[None, :] - position[:, None]
        allowed = (distance >= 0) & (distance < longest)
        inside = position < batch.passage_lengths[batch.owner][:, None]
        allowed = allowed[None] & inside[:, None, :]
        if batch.starts is not None:
            first, last = batch.starts[batch.owner, 0, None], batch.starts[batch.owner, 1, None]
            allowed &= ((position >= first) & (position < last))[:, :, None]
        return allowed

    # Training and use -------------------------------------------------------------------------------------------------------

    def loss(self, batch: ReaderBatch, spans: Ids, counts: Ids, seed: int = 0) -> tuple[Tensor, int, dict[str, float]]:
        """Summed negative log-likelihood of the right spans together, the number of questions, and info.

        spans int64 (N, O, 2): first and last word of each right span, counts (N,) how many of them there are; a question with
        none has no answer in its passage, which is then the right answer.
        """
        scores = self.scores(batch, seed)
        rows, steps, _ = scores.shape
        total = _log_odds(scores, self.mask(batch))
        flat = F.reshape(scores, (scores.size, 1))
        places = (np.arange(rows)[:, None] * steps + spans[:, :, 0]) * steps + spans[:, :, 1]
        right = F.reshape(F.embedding(places, flat), places.shape)
        zero = ops.zeros((rows, 1), scores.dtype, scores.data)  # the score of "no answer"
        kept = np.concatenate([np.arange(spans.shape[1]) < counts[:, None], (counts == 0)[:, None]], axis=1)
        every = F.logsumexp(F.concat([F.reshape(total, (rows, 1)), zero], axis=1), axis=1)
        losses = every - F.logsumexp(F.concat([right, zero], axis=1), axis=1, mask=kept)
        return F.sum(losses), rows, {}

    def read(self, batch: ReaderBatch, max_span: int | None = None) -> tuple[Array, NDArray[np.bool_], Array]:
        """scores F (N, T, T), their mask, and the log-odds F (N,) that there is an answer; without dropout.

        A question's numbers do not depend on the others in the batch: padding adds exact zeros.
        """
        with autograd.no_grad():
            scores, mask = self.scores(batch), self.mask(batch, max_span)
            return ops.to_host(scores.data), mask, ops.to_host(_log_odds(scores, mask).data)


def _log_odds(scores: Tensor, mask: NDArray[np.bool_]) -> Tensor:
    """log of the sum of exp(score) over the allowed spans: F (N, T, T) -> (N,). First by end, then by start."""
    by_start = F.logsumexp(scores, axis=2, mask=mask)
    return F.logsumexp(by_start, axis=1, mask=mask.any(axis=2))

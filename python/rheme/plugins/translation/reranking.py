"""The better of a beam search's texts, by how well they translate back.

A model of both directions can say how probable the source is after each text that it wrote. A text that leaves something out,
or makes something up, is often probable and yet says little of its source (Li et al. 2016, section 4.5; Yee et al. 2019).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rheme import ops
from rheme.decoding import GenerationOptions, Hypothesis
from rheme.errors import InputError
from rheme.models.seq2seq import Seq2Seq
from rheme.text import batches

_BATCH_TOKENS, _BATCH_ROWS = 2048, 128  # of one batch of pairs to score: pieces of the longer sides, pairs


class TranslationOptions(GenerationOptions, kw_only=True, frozen=True):
    """reverse_weight: how much it counts, among the texts of a beam search, that a translation leads back to its source.

    0: nothing. A model of one direction cannot tell, and passes over it, unless reverse_model names the folder of a model that
    translates back, with the same pieces (trained on the same pairs).
    """

    reverse_weight: float = 0.4
    reverse_model: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.reverse_weight < math.inf:
            raise InputError(f"reverse_weight = {self.reverse_weight}: out of its range")


def rerank(
    model: Seq2Seq, tag: int, sources: Sequence[Sequence[int]], found: Sequence[list[Hypothesis]], weight: float
) -> list[list[Hypothesis]]:
    """The hypotheses of each source, best first: by normalized_score + weight * log p(source | text) / (length + 1).

    tag: the piece that asks for the source's language. Equal ones stay in their order.
    """
    pairs = [(row, hypothesis.ids) for row, mine in enumerate(found) if len(mine) > 1 for hypothesis in mine]
    back = iter(log_probabilities(model, [[tag, *ids] for _, ids in pairs], [sources[row] for row, _ in pairs]))
    ranked: list[list[Hypothesis]] = []
    for source, mine in zip(sources, found, strict=True):
        if len(mine) > 1:
            scores = [hypothesis.normalized_score + weight * next(back) / (len(source) + 1) for hypothesis in mine]
            mine = [mine[k] for k in sorted(range(len(mine)), key=scores.__getitem__, reverse=True)]
        ranked.append(mine)
    return ranked


def log_probabilities(
    model: Seq2Seq, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """log p(target, end | source) in nats of each pair, float64 (N,), whatever stands beside it; a latent code at its mean."""
    config = model.config
    logs = np.zeros(len(sources))
    sizes = [max(len(source), len(target) + 1) for source, target in zip(sources, targets, strict=True)]
    for batch in batches.length_batches(sizes, _BATCH_TOKENS, _BATCH_ROWS):
        source = batches.pad([sources[k] for k in batch], config.pad_id)
        read, wanted, _ = batches.shifted([targets[k] for k in batch], config.bos_id, config.eos_id, config.pad_id)
        losses = ops.to_host(ops.cross_entropy(model.logits(*source, read), wanted))
        logs[batch] = [-math.fsum(row) for row in losses.T]  # exact, so the padding's zeros change no bit
    return logs

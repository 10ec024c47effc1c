"""What a translation is warned of, and how sure the model was."""

import math
from collections.abc import Sequence

from rheme.decoding import Hypothesis
from rheme.plugins.translation.parts import Part
from rheme.text.language import in_script
from rheme.text.tokenizer import Tokenizer

# A mean probability of a piece below which a translation is marked: 1 to 2 % of held-out French ones, 5 to 15 % of Chinese.
_DOUBTFUL = 0.3


def confidence(hypotheses: Sequence[Hypothesis]) -> float:
    """exp of the mean log-probability of a piece (the end of the sentence is one)."""
    tokens = sum(len(hypothesis.ids) + bool(hypothesis.finished) for hypothesis in hypotheses)
    return math.exp(min(0.0, math.fsum(hypothesis.score for hypothesis in hypotheses) / max(tokens, 1)))


def repeats(text: str) -> int:
    """How often, at most, one to four words (or characters, without spaces) stand again directly after themselves, plus one."""
    words: Sequence[str] = text.lower().split()
    if len(words) < 3:
        words = text.lower()
    most = 1
    for size in (1, 2, 3, 4):
        run = 0
        for k in range(size, len(words)):
            run = run + 1 if words[k] == words[k - size] else 0
            most = max(most, run // size + 1)
    return most


def warnings(
    text: str,
    answer: str,
    target: str,
    parts: Sequence[Part],
    best: Sequence[Hypothesis],
    tokenizer: Tokenizer,
    lost: bool = False,
) -> tuple[str, ...]:
    """The warnings of a translation; best: the hypotheses of the parts that were translated; lost: one has not all it must."""
    found = []
    if any(hypothesis.repeating for hypothesis in best) or repeats(answer) > max(2, repeats(text)):
        found.append("repetition")
    source = sum(len(part.ids) for part in parts)
    written = sum(len(hypothesis.ids) for hypothesis in best)
    if not (source - 4) / 3 <= written <= 3 * source + 4:
        found.append("length_ratio")
    unknown = any(part.unknown for part in parts)
    if unknown or any(tokenizer.is_byte(index) for part in parts for index in part.ids):
        found.append("out_of_domain")
    own = answer
    for span in (span for part in parts for _, span in part.stand_ins):
        own = own.replace(span, " ")
    if not unknown and not in_script(own, target):
        found.append("wrong_script")
    if lost or not all(hypothesis.finished or hypothesis.repeating for hypothesis in best):
        found.append("truncated")
    if confidence(best) < _DOUBTFUL:
        found.append("low_confidence")
    return tuple(found)

"""The settings of a translation model."""

import msgspec

from rheme.errors import InputError
from rheme.models.seq2seq import Seq2SeqConfig


class TranslationConfig(msgspec.Struct, kw_only=True):
    """languages: the codes of the first and the second column. directions: both, forward (first to second) or backward.

    vocab_size: pieces for both languages. max_source_length: a longer sentence (in pieces) is translated in parts.
    max_train_length: pairs with a longer side are left out of training. separate: with both directions, each has an encoder, an
    attention and a decoder of its own; from a model that had them in common (`init`) both begin as copies. subword_dropout:
    share of the merges of pieces left out in training, so that a word is met in other pieces each time (0.1 makes sentences a
    third longer). number_copies: how often an epoch has a pair with the same numbers on both sides, each time with other digits
    (1: once, as it is; the copies add an eighth to all at most). name_share: share of the pairs with a name on both sides that
    are trained on with a made-up one. So numbers and names are copied, although few pairs hold any, or ever the same ones.
    short_copies: how often an epoch has a pair of texts of at most 20 characters, each second time with the other mark of full
    stop and exclamation mark at its end: short texts are what is asked for first, and each is rare.
    Set by training: copy_unknown, where it saw every character that has a piece (Chinese ones that have none are copied as they
    are); whole_sentences, where nearly all its texts begin with a capital and end with punctuation (other inputs are brought to
    that form, and the answers back); entities, where some of its texts hold character entities (&apos;), which are then
    translated like words instead of being carried through; stand_ins, names and what they are in the second language; words,
    those of each language that it saw; profiles, by which the languages are told apart.
    """

    languages: list[str] = msgspec.field(default_factory=lambda: ["en", "fr"])
    directions: str = "both"
    vocab_size: int = 8000
    normalization: str = "nmt_nfkc"
    max_source_length: int = 30
    max_train_length: int = 120
    separate: bool = False
    subword_dropout: float = 0.0
    number_copies: int = 1
    short_copies: int = 1
    name_share: float = 0.0
    copy_unknown: bool = False
    whole_sentences: bool = False
    entities: bool = False
    stand_ins: dict[str, str] = msgspec.field(default_factory=dict)
    words: dict[str, str] = msgspec.field(default_factory=dict)
    profiles: dict[str, str] = msgspec.field(default_factory=dict)
    model: Seq2SeqConfig = msgspec.field(default_factory=Seq2SeqConfig)

    def __post_init__(self) -> None:
        if len(self.languages) != 2 or len(set(self.languages)) != 2:
            raise InputError(f"languages = {','.join(self.languages)}: two different codes are needed, such as en,fr")
        if self.directions not in ("both", "forward", "backward"):
            raise InputError(f"directions = {self.directions}: one of both, forward, backward")
        least = {"vocab_size": 4, "max_source_length": 4, "max_train_length": 4, "number_copies": 1, "short_copies": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least {smallest}")
        for name in ("subword_dropout", "name_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0 and below 1")

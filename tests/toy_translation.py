"""A translation model too small to be any good, and what it was made from."""

from typing import Any

from rheme import nn, tasks
from rheme.tasks import Result

PAIRS = [(f"The {a} is {b}.", f"{c} est {d} !") for a, c in (("cat", "Le chat"), ("dog", "Le chien"), ("house", "La maison"))
         for b, d in (("big", "grand"), ("small", "petit"), ("near the station, here", "près, ici"))] * 3  # fmt: skip
PAIRS.append(
    (
        'The quick "brown" fox - it jumps over the lazy dog with vim.',
        "Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes.",
    )
)
PAIRS.append(("It is 12:34, 5/6 or 7.89 - 0.", "Il est 12:34, 5/6 ou 7.89 - 0."))
SMALL = {"embedding_size": 12, "encoder_size": 8, "decoder_size": 12}


def toy_translator() -> Any:
    """A task with an untrained model."""
    cls = tasks.get_task("translation")
    task: Any = cls(tasks.configure(cls.Config, {"vocab_size": 330, "max_source_length": 12, "model": SMALL}))
    with nn.init_scope(1):
        task.setup(PAIRS)
    task.model.eval()
    task.options["max_new_tokens"] = 6
    return task


def same(first: list[Result], second: list[Result]) -> bool:
    """Whether two lists of results are one."""
    return [repr(result) for result in first] == [repr(result) for result in second]  # nan is not equal to itself

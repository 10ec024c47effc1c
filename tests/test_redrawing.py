"""Training a translation model on other numbers and names, and on short texts more often."""

import re
from typing import Any

import pytest

from rheme import nn, tasks
from rheme.plugins.translation.redrawing import Redrawing, short_pairs


@pytest.fixture(scope="module")
def task() -> Any:
    cls = tasks.get_task("translation")
    sizes = {"embedding_size": 12, "encoder_size": 8, "decoder_size": 12}
    task: Any = cls(tasks.configure(cls.Config, {"vocab_size": 330, "model": sizes}))
    with nn.init_scope(1):
        task.setup([("the cats are big", "les chats sont grands"), ("three cats", "trois chats")] * 3)
    task.model.eval()
    return task


def test_training_with_other_numbers(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered, others = ("the 12 cats at 3:05", "à 3:05 les 12 chats"), [("3 cats", "trois chats"), ("4 cats", "5 chats")]
    monkeypatch.setattr(task.config, "number_copies", 5)
    for times, copies in ((50, 4), (10, 2), (1, 0)):
        examples = [numbered, *others * times]
        more = len(task.training_items(examples)) - len(task.encode_all(examples))
        assert more == 2 * copies, "of the one pair, in both directions; an eighth of all at most"
    pairs = [item[1:] for item in task.encode_all([numbered, *others])]
    seen = []
    for seed in range(20):
        drawn = [task.tokenizer.decode(pair) for pair in task._redrawing.numbers(pairs, seed)]
        assert [drawn[1], drawn[2]] == [list(pair) for pair in others], "as they were"
        sides = [re.findall("[0-9]+", side) for side in drawn[0]]
        assert sides[0] == [sides[1][2], *sides[1][:2]], "the same numbers on both sides"
        assert [re.sub("[0-9]", "#", side) for side in drawn[0]] == [re.sub("[0-9]", "#", side) for side in numbered]
        seen.append(tuple(sides[0]))
    assert len(set(seen)) > 15


def test_training_with_other_names(task: Any) -> None:
    pairs = [("Tom met Mary.", "Tom rencontra Marie."), ("The three cats", "Les trois chats"), ("Tom, Tom!", "Tom !")] * 50
    redrawing = Redrawing(task.tokenizer, [("seldom", "words of both")])
    cut = [item[1:] for item in task.encode_all(pairs)[: len(pairs)]]
    drawn = [task.tokenizer.decode(pair) for pair in redrawing.names(cut, 0.5, 1)]
    assert all(
        before == tuple(after) for before, after in zip(pairs[1::3] + pairs[2::3], drawn[1::3] + drawn[2::3], strict=True)
    )
    named = [re.fullmatch(r"(\w+) met Mary\.\n(\w+) rencontra Marie\.", "\n".join(sides)) for sides in drawn[::3]]
    names = [match.groups() for match in named if match]
    assert len(names) == 50
    assert all(name == other for name, other in names), "the same name on both sides"
    made_up = [name for name, _ in names if name != "Tom"]
    assert 15 < len(made_up) < 35, "half of them"
    assert set(made_up) <= {
        a + b for a in ("Se", "Sel", "Seld", "Wo", "Wor", "Word") for b in ("om", "dom", "ldom", "ds", "rds", "ords")
    }


def test_redrawing_is_for_training_alone(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task.config, "name_share", 0.5)
    items = task.training_items([("Tom has 12 cats", "Tom a 12 chats"), ("seldom words", "des mots")])
    plain = task.loss(items, 1)[0].item()
    assert task.loss(items, 2)[0].item() == plain
    monkeypatch.setattr(task.model, "training", True)
    once, again, other = (task.loss(items, seed)[0].item() for seed in (1, 1, 2))
    assert once == again != other


def test_short_pairs_come_more_often_and_with_the_other_mark(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        ("Hello!", "Salut !"),
        ("Thanks.", "Merci !"),
        ("It rains.", "Il pleut."),
        ("Who?", "Qui ?"),
        ("Well...", "Bon..."),
    ]
    long = ("It rains, and the cats are in.", "Il pleut.")
    copies = list(short_pairs([*said, long], 2))
    assert copies[1::2] == said, "each second one as it is; a long side makes a pair long"
    assert copies[::2] == [("Hello.", "Salut."), ("Thanks!", "Merci !"), ("It rains!", "Il pleut !"), *said[3:]]
    assert list(short_pairs([("好！", "Well."), ("是。", "Yes.")], 1)) == [("好。", "Well."), ("是！", "Yes.")], (
        "no ! seen there"
    )
    monkeypatch.setattr(task.config, "short_copies", 4)
    assert len(task.training_items([*said, long])) == 2 * (4 * len(said) + 1), "in both directions"

"""Numbers and names in translation: numbers are kept as they are; both are trained on in place of others."""

import re
from typing import Any

import pytest

import rheme
from rheme import nn, tasks
from rheme.plugins.translation.redrawing import Redrawing, counterparts


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
    items = task.training_items([numbered, *others])
    assert len(items) == len(task.encode_all([numbered, *others])) + 4 * 2, "copies of the one pair, in both directions"
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


def test_counterparts_stand_together() -> None:
    pairs = [
        ("Why did Tom go to London?", "汤姆为什么去伦敦？"),
        ("Why is he here?", "他为什么在这里？"),
        ("I like London.", "我喜欢伦敦。"),
        ("I trust Tom.", "我相信汤姆。"),
    ]
    assert counterparts(pairs * 20) == {"Tom": "汤姆", "London": "伦敦"}, "not what only begins sentences"
    assert counterparts(pairs * 9) == {}, "too seldom"
    assert counterparts([*pairs * 20, *[("I know Tom.", "我认识他。")] * 10]) == {"London": "伦敦"}, "not always together"


def test_redrawing_is_for_training_alone(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task.config, "name_share", 0.5)
    items = task.training_items([("Tom has 12 cats", "Tom a 12 chats"), ("seldom words", "des mots")])
    plain = task.loss(items, 1)[0].item()
    assert task.loss(items, 2)[0].item() == plain
    monkeypatch.setattr(task.model, "training", True)
    once, again, other = (task.loss(items, seed)[0].item() for seed in (1, 1, 2))
    assert once == again != other


def test_a_translation_holds_no_numbers_beside_those_of_its_source() -> None:
    def digits(text: str) -> list[str]:
        return sorted(char for char in text if char.isdigit())

    task = rheme.load("translation", to="fr")
    texts = ["Visit us on 12/05 at 7:30.", "Call me at 555-1234 before 9:15.", "It costs $25.50.", "I have 3 cats and 25 dogs."]
    for options in (
        {"num_beams": 1},
        {"num_beams": 3, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 1, "seed": 2},
    ):
        for text, result in zip(texts, task(texts, to="fr", from_="en", **options), strict=True):
            for found in (result, *result.alternatives):
                assert digits(found.text) == digits(text), (options, found.text)


def test_money_and_shares_keep_their_signs() -> None:
    task = rheme.load("translation", to="fr")
    for text, held in (
        ("He borrowed $100 from me.", "$100"),
        ("I paid €20 for this book.", "€20"),
        ("This shirt costs 25€.", "25€"),
        ("It costs $5.99.", "$5.99"),
        ("I'm 99% sure.", "99%"),
    ):
        answer = task(text, to="fr", from_="en").text
        assert held in answer, (text, answer)
        assert "  " not in answer


def test_digits_that_are_asked_for_are_none_too_many() -> None:
    task = rheme.load("translation", to="fr")
    for options, held in (
        ({"require": ["2024"]}, "2024"),
        ({"prefix": "1. "}, "1. "),
        ({"glossary": {"3 cats": "3 chats"}}, "3 chats"),
    ):
        result = task("I have 3 cats.", to="fr", from_="en", **options)
        assert held in result.text
        assert "truncated" not in result.warnings, "which says that something is lost"

"""Names and numbers that a translation keeps."""

import re

import pytest

import rheme
from rheme.errors import InputError
from rheme.plugins.translation.names import Names, counterparts, pack, stand_ins

UNKNOWN = [
    ("Rafael lives in Uppsala.", ["Rafael", "Uppsala"]),
    ("Do you know Björn O'Reilly?", ["Björn O'Reilly"]),
    ("I work for UNESCO.", ["UNESCO"]),
    ("I met Mr. Kowalski in Gdansk yesterday.", ["Mr. Kowalski", "Gdansk"]),
    ("She lives in Gdańsk.", ["Gdańsk"]),
]


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


def test_stand_ins_are_translated_surely() -> None:
    pairs = [
        ("Tom met Mary.", "Tom rencontra Marie."),
        ("Ask Tom.", "Demande à Tom."),
        ("It is in Boston.", "C'est à Boston."),
        ("I love New York.", "J'aime New York."),
    ] * 40
    assert stand_ins([*pairs, *[("The end.", "La fin.")] * 99]) == {"Tom": "Tom", "Boston": "Boston"}
    assert stand_ins([(french, english) for english, french in pairs]) == {"Tom": "Tom", "Boston": "Boston"}
    chinese = [("I know Tom.", "我认识汤姆。"), ("Where is he, Tom?", "他在哪里，汤姆？"), ("The end.", "终。")] * 40
    assert stand_ins(chinese) == {"Tom": "汤姆"}


def test_unknown_names_are_found() -> None:
    pairs = (
        [("We know Tom Smith, of Paris, well. The face, a book; no other word has a capital here, but small letters.", "")] * 6
        + [("Seen twice by Ann.", "")] * 2
        + [("Once", "")]
    )
    names = Names(pack(pairs, 0))
    for text, found in (
        ("We know Tom, Rafael Nadal and Jean-Luc O'Brien well.", ["Rafael Nadal", "Jean-Luc O'Brien"]),
        ("Facebook knows Ann; once Once, seen Seen.", ["Facebook", "Ann", "Once"]),
        ("We know Dr. Ann K. Rafael, Mr. Tom and J. R. R. Tolkien.", ["Dr. Ann K. Rafael", "J. R. R. Tolkien"]),
        ("we know rafael", []),
        ("WE KNOW RAFAEL", []),
        ("NASA, 3D and A4: I know NATO", ["NASA", "NATO"]),
    ):
        assert [text[start:end] for start, end in names.find(text)] == found, text
    assert len(names.find("and Rafael " * 10_000)) == 10_000, "in time in proportion to the text"
    assert Names("").find("Rafael") == []
    for damaged in ("?", "AAAA", pack(pairs, 0)[4:]):
        with pytest.raises(InputError, match="words are damaged"):
            Names(damaged).find("Rafael")


def test_nouns_with_capitals_are_no_names() -> None:
    german = [
        ("I know the dog in Boston.", "Ich kenne den Hund in Boston."),
        ("A house in Paris, Tom.", "Ein Haus in Paris, Tom."),
    ] * 20
    names = Names(pack(german, 1))
    text = "Ich kenne den Taser in Uppsala, Tom, und ein Schloss in Haushund."
    assert [text[start:end] for start, end in names.find(text)] == ["Uppsala"], (
        "after den and ein is a noun; Haus and Hund are known"
    )


def test_unknown_names_stay_in_their_sentences() -> None:
    task = rheme.load("translation", to="fr")
    for text, names in UNKNOWN:
        result = task(text, to="fr", from_="en")
        assert all(result.text.count(name) == 1 for name in names), result.text
        assert result.text.count("Tom") == 0
    assert str(task("Rafael lives in Uppsala.", to="fr", from_="en")) == "Rafael vit à Uppsala."
    assert "RAFAEL" not in str(task("RAFAEL lives in {city}.", to="fr", from_="en", glossary={"rafael": "Raphaël"}))
    named = task("Rafael lives in Uppsala.", to="fr", from_="en", glossary={"Rafael": "Raphaël", "Uppsala": "Upsal"})
    assert str(named) == "Raphaël vit à Upsal."
    asked = task("Rafael lives in Uppsala.", to="fr", from_="en", require=["Rafael"])
    assert asked.text.count("Rafael") == 1, "as it was asked for, and not a second time"


def test_unknown_names_in_long_sentences() -> None:
    task = rheme.load("translation", to="fr")
    people = ["Rafael", "Priya", "Oluwaseun", "Björn", "Sundar", "Lena", "Emmanuel", "Uchenna", "Zbigniew", "Kowalski"]
    parts = task._cutters["fr"].parts(" and ".join(people) + " are here.")
    assert [span for part in parts for _, span in part.stand_ins][:3] == people[:3]
    assert sum(len(part.stand_ins) for part in parts) >= 7
    text = (
        "I know that my friend "
        + " and my friend ".join(people[:4])
        + " want to go home because it is late, and I want to go, too."
    )
    found = task(text, to="fr", from_="en").text
    assert all(found.count(name) == 1 for name in people[:4]), found


def test_unknown_names_in_chinese_sentences() -> None:
    chinese, english = (rheme.load("translation", to=to, from_=source) for to, source in (("zh", "en"), ("en", "zh")))
    found = chinese("Rafael lives in Uppsala.")
    assert (found.text, found.warnings) == ("Rafael住在Uppsala。", ())
    assert str(rheme.load("translation", to="en")("请访问example.com。")).isascii(), "the address tells nothing of the language"
    assert {"Rafael", "Uppsala"} <= set(re.findall("[A-Z][a-z]+", str(english("Rafael住在Uppsala。"))))


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

"""What a translation carries through unchanged, and what it was told to hold, on a model too small to be any good."""

import random
import re
import unicodedata
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheme import tasks
from rheme.errors import InputError
from rheme.plugins.translation import parts
from rheme.plugins.translation.names import Names
from rheme.text.sentences import split_sentences, to_sentence
from toy_translation import PAIRS, SMALL, same, toy_translator


@pytest.fixture(scope="module")
def translator() -> Any:
    return toy_translator()


INLINE = ["http://a.b/c?d=1&e=%20", "https://example.com", "bob.x@mail.example.org", "{name}", "{{ user name }}", "%(count)s",
          "%s", "$HOME", "my_file_2", "v1.2.3", "@someone", "#tag", "/usr/lib/x.so", "www.site.de/page",
          "+33 6 12 34 56 78"]  # fmt: skip
NUMBERS = ["7", "1,234.50", "5:30", "2024-05-03", "99", "1/2", "3.14", "-5"]
MARKUP = ["<b>", "</b>", '<a href="x y. Z">', "<br/>", "&amp;", "`code x`", "**", "](http://b.c/)"]
WORDS = [
    "The cat",
    "is",
    "big.",
    "dog",
    "near the station,",
    "here",
    "house!",
    "My",
    "\n",
    "\n\n",
    "  ",
    "😀",
    "Łódź",
    "你好",
    "?",
]


@pytest.mark.parametrize("stand_ins", [(), ("Tom", "Boston", "Paris")], ids=["divided", "stand-ins"])
@given(st.lists(st.sampled_from([*INLINE, *NUMBERS, *MARKUP, *WORDS]), max_size=9))
@settings(max_examples=25, deadline=None)
def test_what_is_no_language_is_carried_through(translator: Any, stand_ins: tuple[str, ...], tokens: list[str]) -> None:
    """By a model that writes nonsense: nothing of it is lost, doubled (but numbers) or, for markup, put in another order."""
    text = " ".join(tokens)
    translator.config.stand_ins.update(zip(stand_ins, stand_ins, strict=True))
    try:
        answer = translator(text, to="fr", num_beams=2, max_new_tokens=90).text
    finally:
        translator.config.stand_ins.clear()
    for kind in (INLINE, MARKUP, ["😀", "Łódź", "你好"]):
        for token in kind:
            assert answer.count(token) >= tokens.count(token), (token, answer)
    pattern = "|".join(re.escape(token) for token in sorted(MARKUP, key=len, reverse=True))
    assert re.findall(pattern, answer) == re.findall(pattern, text)
    for number in NUMBERS:
        found = re.findall(rf"(?<![\w.,:/-]){re.escape(number)}(?![\w]|[.,:/-]\d)", answer)
        assert len(found) >= Counter(tokens)[number], (number, answer)
    assert answer.count("\n") == text.strip().count("\n")


@pytest.mark.parametrize(
    ("text", "required"),
    [
        ("we ran 10km to 5th street in the 1990s", ("10", "5", "1990")),
        ("it is -5 (or -7.5) in 2020-21, not 3-4", ("-5", "-7.5", "2020-21", "3-4")),
        ("1 000 000 dollars, 12 500 cats and 7 12 dogs", ("1 000 000", "12 500", "7", "12")),
        ("a 3D cat", ()),
    ],
)
def test_numbers_are_found(translator: Any, text: str, required: tuple[str, ...]) -> None:
    cutter = parts.Cutter(translator.tokenizer, 99, Names(""), {}, False, False, False)
    assert tuple(number for part in cutter.parts(text) for number in part.require) == required


def test_other_numbers_than_they_look_like_are_copied(translator: Any) -> None:
    answer = translator("1½ cats, 10⁶ dogs, ① house", to="fr").text
    assert re.findall("[½⁶①]", answer) == ["½", "⁶", "①"]


def test_a_link_in_markdown_is_kept(translator: Any) -> None:
    found = [part.text for part in translator._cutters["fr"].parts("The [big cat](https://x.com/a) is ![dog](a.png).")]
    assert [text for text in found if set(text) & set("[]()")] == ["[", "](https://x.com/a)", "![", "](a.png)"]
    assert {"big cat", "dog"} <= set(found)


def test_what_a_translation_is_written_as() -> None:
    form = to_sentence("the cats are here")[1]
    part = parts.Part("the cats are here", [1], form, stand_ins=(("Tom", "Boston"), ("Boston", "Zorg")))
    assert part.written("Tom  est à Boston.", "fr") == "Boston est à Zorg", "each put back once"
    assert part.written("Les chats sont ici.", "fr") == "les chats sont ici"
    assert part.written("Hunde sind hier.", "de") == "Hunde sind hier", "a noun may come first"
    assert part.written("Les chats sont ici.", "fr", " Les chats") == "Les chats sont ici"
    assert part.written("Tom voit Boston.", "fr", "Tom") == "Tom voit Zorg", "what was asked for stays"
    capitals = parts.Part("THE CATS!", [1], to_sentence("THE CATS!")[1])
    assert capitals.written("Les chats !", "fr", "Les") == "Les CHATS !"


def test_text_in_decomposed_unicode(translator: Any) -> None:
    """Read as the same text composed is; with its glossary, too."""
    plain, apart = (unicodedata.normalize(form, "Le zéphyr préfère le cœur.") for form in ("NFC", "NFD"))
    assert plain != apart
    terms = {apart.split()[1]: unicodedata.normalize("NFD", "ambiguë")}
    options = {"to": "en", "max_new_tokens": 60}
    answers = [translator(text, glossary=glossary, **options) for text in (plain, apart) for glossary in (terms, None)]
    assert same(answers[:2], answers[2:])
    assert "ambiguë" in answers[0].text


def test_long_runs_are_read_once() -> None:
    """Each of these would take hours if every place of it began a search to its end."""
    for text in ("a" * 300_000, "-" * 300_000, "http://a" + "." * 300_000, "a." * 150_000, "a_" * 150_000, " " * 300_000):
        assert parts.prose(text) in (text, " " + "." * 300_000, " ")
        assert "".join(split_sentences(text)) == text


def test_what_is_copied_ends_where_chinese_begins(translator: Any) -> None:
    text = "请访问example.com或写信到bob@example.org，我想要MP3播放器，在/etc/hosts中，用my_name和@bob。"
    copied = ["example.com", "bob@example.org", "MP3", "/etc/hosts", "my_name", "@bob"]
    parts = [part.text for part in translator._cutters["fr"].parts(text)]
    assert [part for part in parts if part in copied] == copied


def test_entities_are_words_where_training_saw_them() -> None:
    cls = tasks.get_task("translation")
    task: Any = cls(tasks.configure(cls.Config, {"vocab_size": 330, "model": SMALL}))
    task.setup([*PAIRS, ("it &apos;s a cat", "c &apos;est un chat")])
    assert task.config.entities
    assert [part.text for part in task._cutters["fr"].parts("it &apos;s <b> big")] == ["it &apos;s ", "<b>", " big"]
    task.setup(PAIRS)
    assert not task.config.entities
    assert "&apos;" in [part.text for part in task._cutters["fr"].parts("it &apos;s big")]


def test_a_sampled_translation_keeps_numbers(translator: Any) -> None:
    options = {"to": "fr", "num_beams": 1, "do_sample": True, "max_new_tokens": 40}
    for seed in range(3):
        answer = translator("The cat is 1,234.50 big.", num_return_sequences=2, seed=seed, **options)
        assert all("1,234.50" in text for text in [answer.text, *(other.text for other in answer.alternatives)])
    with pytest.raises(InputError, match="leave do_sample out"):
        translator("The cat is big.", require=["chat"], **options)


def test_layout_is_kept(translator: Any) -> None:
    text = "# The cat\n\n  * The dog is big.\n\t* The house.  Is here.\n\n\n1. dog\n2. cat"
    answer = translator(text, to="fr").text
    shape = re.sub(r"[^\s#*]+( [^\s#*]+)*", "x", re.sub(r"(?m)^\d\.", "#", text))
    assert re.sub(r"[^\s#*]+( [^\s#*]+)*", "x", re.sub(r"(?m)^\d\.", "#", answer)) == shape


def test_a_line_of_thousands_of_words(translator: Any) -> None:
    """Mixed scripts and emoji among them; each comes out, in its order."""
    rng = random.Random(1)
    words = [rng.choice(["the", "cat", "house,", "big", "5", "你好", "😀", "вокзал", "dog.", "{x}"]) for _ in range(2000)]
    answer = translator(" ".join(words), to="fr", num_beams=1, max_new_tokens=60).text
    kept = ("你好", "😀", "вокзал", "{x}")
    assert re.findall("|".join(map(re.escape, kept)), answer) == [word for word in words if word in kept]
    assert len(re.findall(r"(?<!\d)5(?!\d)", answer)) >= words.count("5")


def test_a_glossary_is_kept_to(translator: Any) -> None:
    glossary = {"the station": "la Grande Gare", "Cat": "félin", "dogs": "chiens"}
    for text, wanted, other in (
        ("The house is near the station.", "la Grande Gare", "félin"),
        ("A cat.", "félin", "chiens"),
        ("The cat, the dog and the CAT.", "félin", "chiens"),
    ):
        answer = translator(text, to="fr", glossary=glossary, max_new_tokens=60).text
        assert answer.lower().count(wanted.lower()) >= text.lower().count("cat" if wanted == "félin" else "the station")
        assert other not in answer
    assert translator("The category.", to="fr", glossary=glossary) == translator("The category.", to="fr")


def test_the_longer_of_two_terms_counts(translator: Any) -> None:
    glossary = {"house": "maisonnette", " big  house ": "palais"}
    answer = translator("The big house is near the house.", to="fr", glossary=glossary, max_new_tokens=60).text
    assert [answer.count(wanted) for wanted in glossary.values()] == [1, 1]
    with pytest.raises(InputError, match="glossary: an empty text in 'cat': ' '"):
        translator("dog", to="fr", glossary={"cat": " "})


def test_there_is_room_for_what_is_asked(translator: Any) -> None:
    """Beside a short text, too; where there is none, it is said."""
    prefix, wanted = "La maison est grande et le chien est petit", ["près, ici", "Le chat est grand"]
    answer = translator("The dog. The cat.", to="fr", prefix=prefix, require=wanted, max_new_tokens=128).text
    assert answer.startswith(prefix)
    assert all(text in answer for text in wanted)
    with pytest.raises(InputError, match="max_new_tokens = 20: what is required has"):
        translator("The dog.", to="fr", prefix=prefix, max_new_tokens=20)
    with pytest.raises(InputError, match="'La maison' is required, but holds what is forbidden"):
        translator("The dog.", to="fr", prefix="La maison", forbid="maison")


def test_constraints_of_a_text(translator: Any) -> None:
    text = "The cat is big. The dog is small."
    free = translator(text, to="fr", max_new_tokens=40).text
    word = re.findall(r"\w+", free)[-1]
    bound = translator(text, to="fr", max_new_tokens=40, forbid=word, require=["maison"], prefix="Voici").text
    assert bound.startswith("Voici")
    assert "maison" in bound
    assert word.lower() not in re.findall(r"\w+", bound.lower())

"""Translation, on models too small to be any good: what holds whatever the model writes."""

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import rheme
from rheme import nn, tasks
from rheme.decoding import Hypothesis
from rheme.errors import InputError
from rheme.plugins.translation import checks, reranking
from rheme.tasks import Result
from rheme.text import language
from toy_translation import PAIRS, SMALL, same, toy_translator


@pytest.fixture(scope="module")
def translator() -> Any:
    return toy_translator()


@pytest.fixture(scope="module")
def folder(translator: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return translator.save(tmp_path_factory.mktemp("models") / "translation-en-fr", dtype="float16")


TEXTS = ["The cat is big.", "", "dog", "The house is near the station, here.", "  ", "The cat is big.", "😀 The dog 😀", "你好"]


@pytest.mark.parametrize("options", [{}, {"num_beams": 1}, {"num_beams": 1, "do_sample": True, "seed": 3}])
def test_a_list_is_answered_as_one_by_one(translator: Any, options: dict[str, Any]) -> None:
    together = translator(TEXTS, to="fr", **options)
    assert same(together, [translator(text, to="fr", **options) for text in TEXTS])
    order = list(range(len(TEXTS)))
    random.Random(1).shuffle(order)
    shuffled = translator([TEXTS[i] for i in order], to="fr", **options)
    assert same([shuffled[order.index(i)] for i in range(len(TEXTS))], together)


def test_nothing_to_translate_needs_no_model(translator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator.model, "encode", None)
    assert [result.text for result in translator(["", " \n\t ", "\u200b"], to="fr")] == ["", "", "\u200b"]
    assert translator([], to="fr") == []
    result = translator("你好 😀", to="fr")
    assert (result.text, result.warnings) == ("你好 😀", ("out_of_domain",))


def test_unknown_characters_are_copied(translator: Any) -> None:
    for text in ("😀 The cat", "The cat 😀", "The cat 😀😀 is"):
        result = translator(text, to="fr")
        assert "😀" in result.text
        assert "out_of_domain" in result.warnings
    assert "out_of_domain" not in translator("The cat", to="fr").warnings
    assert "Łódź" in translator("The dog, Łódź.", to="fr").text, "a word with an unknown letter is copied whole"
    parts = translator._cutters["fr"].parts("The “cat” is bïg—here")
    assert all(part.ids or not part.text.strip() for part in parts), (
        "quotes, dashes and accents are written plainer, not copied"
    )


@pytest.mark.parametrize(
    "text", ["word " * 3000, "The cat is big. " * 400, "a" * 3000, "The dog, the cat, " * 200 + "\n\nThe house."]
)
def test_long_texts_are_cut_and_nothing_is_dropped(translator: Any, text: str) -> None:
    parts = translator._cutters["fr"].parts(text)
    assert all(len(part.ids) <= translator.config.max_source_length + 3 for part in parts), "a full stop may be added"
    assert "".join("".join(part.text for part in parts).split()) == "".join(text.split())
    for part in parts:
        written = "".join(translator.tokenizer.decode([part.ids])).lower().rstrip(".")
        assert not part.ids or written == part.text.strip().lower().rstrip(".")
    assert "truncated" in translator(text[:2000], to="fr", max_new_tokens=2, num_beams=1).warnings


def test_sentences_are_cut_at_their_ends(translator: Any) -> None:
    text = "The cat is big. The dog is small!\n\nThe house is near the station. The dog, the cat, the house are big and small."
    parts = translator._cutters["fr"].parts(text)
    sentences = [translator.tokenizer.decode([part.ids])[0] for part in parts if part.ids]
    assert sentences[:2] == ["The cat is big.", "The dog is small!"]
    assert any(part.text == "\n\n" for part in parts)
    assert sum(sentence.endswith(",") for sentence in sentences) >= 1, "a long sentence is cut after a comma"


def test_directions(translator: Any, folder: Path) -> None:
    assert translator("dog", from_="en") == translator("dog", to="fr")
    with pytest.raises(InputError, match=r"say into which language .* en to fr, fr to en"):
        translator("dog")
    with pytest.raises(InputError, match="cannot translate to de; it can: en to fr, fr to en"):
        translator("dog", to="de")
    loaded = rheme.load("translation", folder, to="fr")
    assert loaded("dog").text == translator("dog", to="fr").text
    assert loaded("Le chat", to="en") == rheme.load(model=folder, to="en")("Le chat")
    with pytest.raises(InputError, match="cannot do to=de; its languages: en, fr"):
        rheme.load("translation", folder, to="de")


def test_options_are_checked(translator: Any) -> None:
    with pytest.raises(InputError, match="did you mean 'num_beams'"):
        translator("dog", to="fr", num_beam=3)
    with pytest.raises(InputError, match="must be a str, not int"):
        translator([3], to="fr")


def test_alternatives(translator: Any) -> None:
    result = translator("The cat is big.", to="fr", num_beams=4, num_return_sequences=3)
    assert len(result.alternatives) == 2
    assert 0 < result.alternatives[0].score <= 1
    assert 0 < result.score <= 1


def test_a_source_is_scored_as_a_softmax_says(translator: Any) -> None:
    sources, targets = translator.tokenizer.encode(["Le chat", "dog", "The house is near the station."]), [[5, 9, 30], [], [7]]
    found = reranking.log_probabilities(translator.model, sources, targets)
    for source, target, log in zip(sources, targets, found, strict=True):
        config = translator.config.model
        logits = translator.model.logits(np.array([source]).T, None, np.array([[config.bos_id, *target]]).T)[:, 0]
        probabilities = np.exp(logits.astype(np.float64))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        wanted = [*target, config.eos_id]
        assert log == pytest.approx(np.log(probabilities[np.arange(len(wanted)), wanted]).sum(), rel=1e-5)
    alone = [reranking.log_probabilities(translator.model, [s], [t])[0] for s, t in zip(sources, targets, strict=True)]
    assert alone == found.tolist(), "the same bits, whatever is scored beside it"


def test_a_text_that_leads_back_to_its_source_is_ranked_higher(translator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [Hypothesis([k], -1.0, score, True, False, (-1.0,)) for k, score in enumerate((-0.5, -0.6, -0.9))]
    monkeypatch.setattr(reranking, "log_probabilities", lambda model, sources, targets: [-9.0, -3.0, -2.8][: len(sources)])
    for weight, order in ((0.0, [0, 1, 2]), (0.1, [1, 0, 2]), (20.0, [2, 1, 0])):
        lone, ranked = reranking.rerank(translator.model, 4, [[1], [1, 2]], [texts[:1], texts], weight)
        assert ([h.ids[0] for h in ranked], lone) == (order, texts[:1])


def test_a_beam_search_is_ranked_by_both_directions(translator: Any) -> None:
    text = "The dog is small."
    plain = translator(text, to="fr", num_return_sequences=4, reverse_weight=0)
    ranked = translator(text, to="fr", num_return_sequences=4, reverse_weight=1e4)
    texts = [[result.text, *(other.text for other in result.alternatives)] for result in (plain, ranked)]
    assert sorted(texts[0]) == sorted(texts[1])
    assert texts[0] != texts[1]
    assert translator(text, to="fr", reverse_weight=1e4).text == texts[1][0], "as many as are asked for, the best of all found"
    assert translator(text, to="fr", num_beams=1) == translator(text, to="fr", num_beams=1, reverse_weight=1e4)
    forward = translator.config.directions
    translator.config.directions = "forward"
    try:
        assert translator(text, to="fr", num_return_sequences=4, reverse_weight=1e4) == plain
    finally:
        translator.config.directions = forward
    with pytest.raises(InputError, match="reverse_weight = -1"):
        translator(text, to="fr", reverse_weight=-1)


@pytest.fixture(scope="module")
def one_way(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models of one direction each, by direction; `other` has other pieces."""
    cls = tasks.get_task("translation")
    folders = {}
    for name, directions, size in (("forward", "forward", 330), ("backward", "backward", 330), ("other", "backward", 320)):
        task: Any = cls(tasks.configure(cls.Config, {"vocab_size": size, "directions": directions, "model": SMALL}))
        with nn.init_scope(2):
            task.setup(PAIRS)
        folders[name] = task.save(tmp_path_factory.mktemp("models") / name)
    return folders


def test_a_model_of_one_direction_is_ranked_by_another(one_way: dict[str, Path]) -> None:
    forward = rheme.load("translation", one_way["forward"], max_new_tokens=6)
    backward = str(one_way["backward"])
    text = "The dog is small."
    plain, ranked = (
        forward(text, num_return_sequences=4, reverse_weight=1e4, **options) for options in ({}, {"reverse_model": backward})
    )
    texts = [[result.text, *(other.text for other in result.alternatives)] for result in (plain, ranked)]
    assert sorted(texts[0]) == sorted(texts[1])
    assert texts[0] != texts[1]
    assert forward(text, reverse_weight=0, reverse_model=backward) == forward(text)
    with pytest.raises(InputError, match="it has other pieces; train both on the same pairs"):
        forward(text, reverse_model=str(one_way["other"]))
    with pytest.raises(InputError, match="this model cannot translate from fr to en; it can: en to fr"):
        forward(text, reverse_model=str(one_way["forward"]))
    with pytest.raises(InputError, match="nowhere"):
        forward(text, reverse_model="nowhere")


def test_folder_round_trip(translator: Any, folder: Path) -> None:
    loaded = rheme.load("translation", folder)
    assert loaded.config == translator.config
    assert same(loaded(TEXTS, to="fr"), rheme.load("translation", folder)(TEXTS, to="fr"))
    with pytest.raises(InputError, match="holds a model for 'translation', not for 'generation'"):
        rheme.load("generation", folder)


def test_bundled_models_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "bundled", lambda: {folder.name: folder})
    assert rheme.load("translation", to="en")("Le chat").text == rheme.load("translation", folder, to="en")("Le chat").text
    with pytest.raises(InputError, match=r"no bundled model for translation with to=de; bundled: translation-en-fr; give"):
        rheme.load("translation", to="de")
    run_pipeline = rheme.pipeline("translation_en_to_fr")
    text = rheme.load("translation", folder, to="fr")("The cat").text
    assert run_pipeline("The cat") == [{"translation_text": text}]
    assert run_pipeline(["The cat", "The cat"]) == [{"translation_text": text}] * 2
    with pytest.raises(InputError, match="the form is translation_en_to_fr"):
        rheme.pipeline("translation_en_fr")
    monkeypatch.setattr(tasks, "bundled", dict)
    with pytest.raises(InputError, match="bundled: none"):
        rheme.load("translation", to="fr")


def test_training_items(translator: Any) -> None:
    items = translator.encode_all([*PAIRS[:2], ("word " * 200, "mot"), ("a", "")])
    assert len(items) == 4, "two directions; pairs too long or empty are left out"
    tags = [translator.tokenizer.piece_id(f"<2{code}>") for code in ("fr", "en")]
    assert [item[0] for item in items] == [tags[0]] * 2 + [tags[1]] * 2
    loss, count, _ = translator.loss(items, 0)
    assert count == sum(len(target) + 1 for _, _, target in items)
    alone = [translator.loss([item], 0)[0].item() for item in items]
    assert loss.item() == pytest.approx(sum(alone), rel=1e-5)


def test_training_in_other_pieces(translator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator.config, "subword_dropout", 0.5)
    items = translator.encode_all(PAIRS)
    plain = sum(len(target) + 1 for _, _, target in items)
    assert translator.loss(items, 1)[1] == plain, "not outside of training"
    monkeypatch.setattr(translator.model, "training", True)
    once, again, other = (translator.loss(items, seed) for seed in (1, 1, 2))
    assert once[1] > plain
    assert (once[0].item(), once[1]) == (again[0].item(), again[1]) != (other[0].item(), other[1])


def test_directions_with_layers_of_their_own(translator: Any, tmp_path: Path) -> None:
    task: Any = tasks.get_task("translation")(msgspec.structs.replace(translator.config, separate=True))
    task.tokenizer, task.options["max_new_tokens"] = translator.tokenizer, 6
    with nn.init_scope(2):
        task.build()
    task.model.eval()
    items = task.encode_all(PAIRS[:6])
    random.Random(1).shuffle(items)
    loss, count, _ = task.loss(items, 0)
    assert count == sum(len(target) + 1 for _, _, target in items)
    assert loss.item() == pytest.approx(sum(task.loss([item], 0)[0].item() for item in items), rel=1e-5)
    task.loss([item for item in items if item[0] == task._tags["fr"]], 0)[0].backward()
    assert [any(p.grad is not None for p in way.decoder1.parameters()) for way in task.model.ways] == [True, False]
    assert task.model.ways[0].embedding is task.model.ways[1].embedding
    once = translator.model.num_parameters()
    assert once < task.model.num_parameters() < 2 * once
    for precision in ("float32", "int8"):
        loaded: Any = rheme.load("translation", task.save(tmp_path / precision, dtype=precision))
        assert same(loaded(TEXTS, to="fr"), [loaded(text, to="fr") for text in TEXTS])
        assert loaded("Le chat", to="en", num_beams=3).text != loaded("Le chat", to="fr", num_beams=3).text


def test_layers_in_common_become_those_of_each_direction(translator: Any, tmp_path: Path) -> None:
    def adapted(before: Any, **changes: Any) -> Any:
        task: Any = tasks.get_task("translation").restore(before.save(tmp_path / "before", dtype="float32"))
        task.config, task.options["max_new_tokens"] = msgspec.structs.replace(task.config, **changes), 6
        task.adapt(PAIRS)
        task.model.eval()
        return task

    separate = adapted(translator, separate=True)
    for to in ("fr", "en"):
        assert same(separate(TEXTS, to=to, num_beams=3), translator(TEXTS, to=to, num_beams=3))
    with pytest.raises(InputError, match="cannot be made one"):
        adapted(separate, separate=False)


def test_reading_pairs(translator: Any, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("Hi.\tSalut !\nHi.\tSalut !\nHi.\tBonjour !\n")
    assert translator.read(tmp_path / "x.tsv") == [("Hi.", "Salut !"), ("Hi.", "Bonjour !")]
    (tmp_path / "y.tsv").write_text("Salut !\tHi.\n")
    assert translator.read(tmp_path / "y.tsv", ["fr", "en"]) == [("Hi.", "Salut !")]
    (tmp_path / "y.tsv").write_text("fr\ten\nSalut !\tHi.\n")
    for fields in (["fr", "en"], ["en", "fr"], None):
        assert translator.read(tmp_path / "y.tsv", fields) == [("Hi.", "Salut !")]
    with pytest.raises(InputError, match="no column 'nosuch', 'thing'; there are: fr, en"):
        translator.read(tmp_path / "y.tsv", ["nosuch", "thing"])
    (tmp_path / "x.jsonl").write_text('{"en": "Hi.", "fr": "Salut !"}\n')
    (tmp_path / "y.jsonl").write_text('{"source": "Hi.", "target": "Salut !"}\n')
    assert translator.read(tmp_path / "x.jsonl") == translator.read(tmp_path / "y.jsonl") == [("Hi.", "Salut !")]


def test_config_mistakes() -> None:
    cls = tasks.get_task("translation")
    for values, message in (
        ({"languages": "en"}, "two different codes"),
        ({"languages": "en,en"}, "two different codes"),
        ({"directions": "up"}, "both, forward, backward"),
        ({"model": {"dropout": 2}}, "dropout"),
        ({"vocab_size": 0}, "at least 4"),
        ({"subword_dropout": 1}, "below 1"),
        ({"number_copies": 0}, "at least 1"),
        ({"short_copies": 0}, "at least 1"),
        ({"name_share": -1}, "name_share = -1"),
    ):
        with pytest.raises(InputError, match=message):
            tasks.configure(cls.Config, values, "task")


def test_evaluation(translator: Any) -> None:
    pytest.importorskip("sacrebleu")
    figures = translator.evaluate(PAIRS[:3], to="fr", num_beams=1)
    assert set(figures) >= {"pairs", "bleu_en-fr", "chrf_en-fr", "bleu_signature_en-fr"}
    assert "tok:13a" in figures["bleu_signature_en-fr"]
    assert "case:mixed" in figures["bleu_signature_en-fr"]
    assert "tok:none" in translator.evaluate(PAIRS[:3], to="fr", num_beams=1, tokenize="none")["bleu_signature_en-fr"]
    with pytest.raises(InputError, match="tokenize = 'moses': one of 13a, intl, zh, char, none"):
        translator.evaluate(PAIRS[:3], tokenize="moses")
    assert {name.rpartition("_")[2] for name in translator.evaluate(PAIRS[:2], num_beams=1)} == {
        "pairs",
        "en-fr",
        "fr-en",
    }


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("a b c", 1),
        ("no no", 1),
        ("no no no", 3),
        ("very very very very good", 4),
        ("a b a b a b", 3),
        ("", 1),
        ("hahahahaha", 5),
    ],
)
def test_repeats(text: str, times: int) -> None:
    assert checks.repeats(text) == times


def test_scripts() -> None:
    assert language.in_script("Où est la gare ?", "fr")
    assert not language.in_script("Где вокзал?", "fr")
    assert language.in_script("Где вокзал?", "ru")
    assert language.in_script("车站在哪里？", "zh")
    assert not language.in_script("Where is it?", "zh")
    assert language.in_script("123 !", "zh")


# Warnings --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warning", "text", "options"),
    [
        ("repetition", "dog", {"prefix": "le chat le chat le chat le chat"}),
        ("length_ratio", "dog", {"prefix": "La maison est grande et le chien est petit mais le chat", "max_new_tokens": 60}),
        ("out_of_domain", "The cat 😀", {}),
        ("truncated", "The cat is big.", {"max_new_tokens": 2}),
        ("low_confidence", "The cat is big.", {}),  # of a model that has learned nothing
    ],
)
def test_each_warning(translator: Any, warning: str, text: str, options: dict[str, Any]) -> None:
    result = translator(text, to="fr", **{"max_new_tokens": 40, **options})
    assert warning in result.warnings
    assert result.warnings == tuple(dict.fromkeys(result.warnings))


def test_the_warning_of_the_wrong_script() -> None:
    """A model for Chinese that was shown none."""
    cls = tasks.get_task("translation")
    task: Any = cls(tasks.configure(cls.Config, {"languages": ["en", "zh"], "vocab_size": 330, "model": SMALL}))
    with nn.init_scope(1):
        task.setup(PAIRS)
    result = task("The cat is big.", to="zh", max_new_tokens=12, prefix="Le chat")
    assert "wrong_script" in result.warnings
    assert "wrong_script" not in task("The cat is big.", to="en", max_new_tokens=12, prefix="Le chat").warnings


# Languages and the way between them ------------------------------------------------------------------------------------------

SAMPLES = {
    "en": ["Where is the station?", "I would like to know what you think of this.", "They have been here since the morning."],
    "de": ["Wo ist der Bahnhof?", "Ich möchte wissen, was du darüber denkst.", "Sie sind schon seit dem Morgen hier."],
    "fr": ["Où est la gare ?", "Je voudrais savoir ce que vous en pensez.", "Ils sont ici depuis ce matin."],
    "zh": ["车站在哪里？", "我想知道你怎么看。", "他们从早上就在这里。"],
}


def test_languages_are_told_apart() -> None:
    known = language.Languages({code: language.profile(texts) for code, texts in SAMPLES.items()})
    for code, texts in SAMPLES.items():
        assert [known.detect(text) for text in texts] == [code] * 3
    assert known.detect("123 !", default="fr") == "fr"
    assert known.detect("Wo ist der Bahnhof?", default="en", margin=1000) == "en"
    assert language.Languages({}).detect("Hi", "en") == "en"


@pytest.fixture
def bundle(translator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three bundled models: English with French, German and Chinese."""
    found = {}
    before = translator.config.languages, translator.config.profiles
    for code in ("de", "fr", "zh"):
        translator.config.languages = ["en", code]
        translator.config.profiles = {name: language.profile(SAMPLES[name]) for name in ("en", code)}
        translator._tags = {"en": translator._tags["en"], code: list(translator._tags.values())[1]}
        name = f"translation-en-{code}"
        data = translator.tokenizer.to_bytes().replace(b"<2fr>", f"<2{code}>".encode())
        translator.tokenizer = type(translator.tokenizer).load(data)
        found[name] = translator.save(tmp_path / name)
        translator.tokenizer = type(translator.tokenizer).load(data.replace(f"<2{code}>".encode(), b"<2fr>"))
    translator.config.languages, translator.config.profiles = before
    translator._tags = {code: translator.tokenizer.piece_id(f"<2{code}>") for code in ("en", "fr")}
    monkeypatch.setattr(tasks, "bundled", lambda: found)


def test_the_way_of_a_text(bundle: None) -> None:
    into_french, into_english = rheme.load("translation", to="fr"), rheme.load("translation", to="en")
    for code, texts in SAMPLES.items():
        for text in texts:
            way = {"en": ("en", "fr"), "fr": ("fr",), "de": ("de", "en", "fr"), "zh": ("zh", "en", "fr")}[code]
            assert into_french.route(text, "fr") == way
            assert into_english.route(text, "en") == ((code, "en") if code != "en" else ("en",))
    assert into_french.route("Wo ist der Bahnhof?", "fr", "en") == ("en", "fr")
    with pytest.raises(InputError, match="no bundled model translates from it to fr; there are: de to en, en to de"):
        into_french.route("x", "fr", "it")


def test_each_text_goes_its_way(bundle: None) -> None:
    """In a list as alone, through the models that another load() would give."""
    translate = rheme.load("translation", to="en", num_beams=2)
    texts = [texts[0] for texts in SAMPLES.values()] * 2
    together = translate(texts)
    assert same(together, [translate(text) for text in texts])
    assert together[0] == Result(texts[0], warnings=("out_of_domain",)) or repr(together[0].score) == "nan"
    for code, result in zip(list(SAMPLES)[1:], together[1:], strict=False):
        alone = rheme.load("translation", from_=code, to="en", num_beams=2)
        assert same([result], [alone(SAMPLES[code][0])])
    into_french = rheme.load("translation", to="fr", num_beams=2)
    english = rheme.load("translation", from_="de", to="en", num_beams=2)(SAMPLES["de"][0])
    french = into_french(english.text, from_="en")
    both = into_french(SAMPLES["de"][0])
    assert both.text == french.text
    assert both.score == pytest.approx(english.score * french.score)
    assert set(both.warnings) == {*english.warnings, *french.warnings}
    assert into_french(SAMPLES["de"][0], from_="de") == both, "into the language that it was loaded for"
    bound = into_french("Sie sind hier.", from_="de", glossary={"hier": "jattes"}, max_new_tokens=60)
    assert "jattes" in bound.text, "a term is kept on the way through English"


# The latent variant ----------------------------------------------------------------------------------------------------------


def test_a_latent_code_is_drawn_for_each_alternative() -> None:
    cls = tasks.get_task("translation")
    model = SMALL | {"latent_size": 4}
    task: Any = cls(tasks.configure(cls.Config, {"vocab_size": 330, "model": model}))
    with nn.init_scope(1):
        task.setup(PAIRS)
    task.model.eval()
    draws = {"do_sample": True, "temperature": 0.0, "num_beams": 1, "num_return_sequences": 4, "max_new_tokens": 8}
    result = task("The cat is big.", to="fr", **draws)
    scores = [result.score, *(other.score for other in result.alternatives)]
    assert len(set(scores)) == 4, "a fresh model writes the same for each, but not as surely"
    assert same([result], [task(["A dog.", "The cat is big."], to="fr", **draws)[1]])
    assert not same([result], [task("The cat is big.", to="fr", seed=5, **draws)])
    beam = task("The cat is big.", to="fr", num_beams=2, max_new_tokens=8)
    assert same([beam], [task("The cat is big.", to="fr", num_beams=2, max_new_tokens=8, seed=5)]), "its mean has no seed"


def test_the_weight_of_the_kl_rises() -> None:
    cls = tasks.get_task("translation")
    task: Any = cls(tasks.configure(cls.Config, {"vocab_size": 330, "model": SMALL | {"latent_size": 4, "dropout": 0.0}}))
    with nn.init_scope(1):
        task.setup(PAIRS)
    items = task.encode_all(PAIRS[:4])
    losses = []
    for step in (1, 10, 20, 100):
        task.model.on_step(step, 100)
        loss, _, info = task.loss(items, 1)
        losses.append(loss.item())
    kl = info["kl"] * len(items)
    assert kl > 0
    assert losses[1] - losses[0] == pytest.approx(kl * (10 - 1) / 20, rel=1e-3)
    assert losses[2] == losses[3]

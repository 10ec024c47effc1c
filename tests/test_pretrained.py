"""The bundled models answer, and answer with the same bits however they are asked."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import rheme
from rheme import _core

SUBJECTS = ["Tom", "Mary", "My brother", "The teacher", "Our neighbour", "The old man", "She", "Everyone", "The girl", "Nobody"]
VERBS = ["likes", "wants", "needs", "has seen", "forgot", "bought"]
OBJECTS = ["the blue car", "a new house", "some bread", "her letter, of course", "the answer to my question"]


def sentences() -> list[str]:
    """300 of them, from one word to many."""
    made = [f"{s} {v} {o}." for s in SUBJECTS for v in VERBS for o in OBJECTS]
    return [text if i % 7 else " and ".join([text.rstrip(".")] * (1 + i % 3)) + "." for i, text in enumerate(made)]


@pytest.fixture(scope="module")
def translate() -> Any:
    return rheme.load("translation", to="fr", num_beams=2)


@pytest.fixture(scope="module")
def expected(translate: Any) -> list[tuple[str, float]]:
    return answers(translate, sentences())


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    isa, threads = _core.isa(), _core.num_threads()
    yield
    _core.set_isa(name=isa)
    _core.set_num_threads(n=threads)


def answers(translate: Any, texts: list[str]) -> list[tuple[str, float]]:
    return [(result.text, result.score) for result in translate(texts)]


def test_translates(translate: Any) -> None:
    assert str(translate("Where is the train station?")) == "Où est la gare ?"
    assert "home" in str(rheme.load("translation", to="en")("Je ne veux pas rentrer à la maison."))


def test_finds_the_language_and_the_model_of_each_text() -> None:
    translate = rheme.load("translation", to="en")
    found = translate(["Où est la gare ?", "车站在哪里？", "Where is the station?"])
    assert [str(result) for result in found[1:]] == ["Where is the station?"] * 2
    assert "station" in str(found[0])
    assert found[2].warnings == ("out_of_domain",)
    assert str(rheme.load("translation", to="zh")("I love you.")) == "我爱你。"
    assert "aime" in str(rheme.load("translation", to="fr")("我爱你。"))


def test_carries_through_what_is_no_language() -> None:
    text = "# News\n\n* Write to bob@example.com before 5:30.\n* See <b>http://a.b/c?d=1</b>, {name}! 😀"
    for code in ("fr", "zh"):
        answer = str(rheme.load("translation", to=code)(text))
        for kept in ("# ", "\n\n* ", "bob@example.com", "5:30", "<b>http://a.b/c?d=1</b>", "{name}", "😀"):
            assert answer.count(kept) == text.count(kept), (kept, answer)


def test_one_by_one(translate: Any, expected: list[tuple[str, float]]) -> None:
    assert [answers(translate, [text])[0] for text in sentences()] == expected


def test_shuffled(translate: Any, expected: list[tuple[str, float]]) -> None:
    order = np.random.default_rng(0).permutation(300)
    texts = sentences()
    assert answers(translate, [texts[i] for i in order]) == [expected[i] for i in order]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(translate: Any, expected: list[tuple[str, float]], threads: int) -> None:
    _core.set_num_threads(n=threads)
    assert answers(translate, sentences()) == expected


def test_any_instruction_set_with_a_fused_multiply_add(translate: Any, expected: list[tuple[str, float]]) -> None:
    for isa in (name for name in _core.available_isas() if name != "baseline"):
        _core.set_isa(name=isa)
        assert answers(translate, sentences()) == expected, isa


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_any_precision(precision: str, expected: list[tuple[str, float]]) -> None:
    """Alone and together, on one thread and several; the model comes at int8 where nothing is asked."""
    translate = rheme.load("translation", to="fr", num_beams=2, precision=precision)
    texts = sentences()[::10]
    together = answers(translate, texts)
    _core.set_num_threads(n=1)
    assert [answers(translate, [text])[0] for text in texts] == together
    assert (together == expected[::10]) == (precision == "int8")
    alike = sum(text == other for (text, _), (other, _) in zip(together, expected[::10], strict=True))
    assert alike > 0.8 * len(texts)


def test_generates_the_same_again_and_others_for_another_seed() -> None:
    generate = rheme.load("generation")
    first = [str(result) for result in generate.generate(5, seed=1)]
    assert first == [str(result) for result in rheme.load("generation").generate(5, seed=1)]
    assert first != [str(result) for result in generate.generate(5, seed=2)]
    assert len({str(result) for result in generate.generate(20, seed=3)}) >= 15


def test_varies_mixes_and_knows_its_own_kind() -> None:
    task: Any = rheme.load("generation")
    assert task.examine()[1].state == "healthy"
    like = [result.text for result in task.generate(5, like="Tom is reading a book.", temperature=0.5)]
    assert sum("book" in text or "Tom" in text or "reading" in text for text in like) >= 4
    mixed = task.latent.mix("I don't like this book.", "Where is the train station?", 7)
    assert mixed[0].startswith("I don't like")
    assert mixed[-1].startswith("Where is the")
    usual, odd = task.confidence(
        ["She is in the garden.", "We prove that the spectral gap of the Laplacian bounds the mixing time from below."]
    )
    assert not usual.warnings
    assert odd.warnings == ("out_of_domain",)


def test_python_runs_on_during_a_kernel() -> None:
    """The GIL is released: another thread counts while one long product is made."""
    a = np.ones((1, 1500, 1500), np.float32)
    counted: list[float] = []
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            counted.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    start = time.perf_counter()
    while time.perf_counter() - start < 0.5:
        begin = time.perf_counter()
        _core.matmul(a=a, b=a, transpose_a=False, transpose_b=False)
        end = time.perf_counter()
    done.set()
    thread.join()
    assert sum(begin < moment < end for moment in counted) >= 2  # within one call of the kernel


def test_a_child_of_fork_computes() -> None:
    """The pool of threads does not survive a fork; the child makes its own."""
    code = (
        "import os, numpy as np\n"
        "from rheme import _core\n"
        "_core.set_num_threads(n=2)\n"
        "a = np.ones((1, 300, 300), np.float32)\n"
        "product = lambda: _core.matmul(a=a, b=a, transpose_a=False, transpose_b=False)\n"
        "want = product()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if np.array_equal(product(), want) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60, env=dict(os.environ))


# The reader -------------------------------------------------------------------------------------------------------------------

TESLA = (
    "Nikola Tesla was born on 10 July 1856 in Smiljan. He studied engineering and physics in the 1870s without receiving a "
    "degree. In 1884 he immigrated to the United States, where he became a naturalized citizen. He worked for a short time at "
    "the Edison Machine Works in New York City before he struck out on his own."
)
ASKED = [
    ("When was Nikola Tesla born?", "10 July 1856"),
    ("What did Tesla study?", "engineering and physics"),
    ("When did he immigrate to the United States?", "1884"),
    ("Where did he work for a short time?", "Edison Machine Works"),
]


@pytest.fixture(scope="module")
def reader() -> Any:
    return rheme.load("question-answering")


def test_answers_questions(reader: Any) -> None:
    results = reader([(question, TESLA) for question, _ in ASKED])
    found = [result.text for result in results]
    assert sum(wanted in text for text, (_, wanted) in zip(found, ASKED, strict=True)) >= 3, found
    assert all(TESLA[result.extra["start"] : result.extra["end"]] == result.text for result in results)
    assert reader(("Who painted the ceiling of the chapel?", TESLA)).text == ""


def test_the_reader_gives_the_same_bits_however_it_is_asked(reader: Any) -> None:
    contexts = [TESLA, f"{TESLA} " * 12, " ".join(sentences()), "Short."]
    asked = [(question, context) for question, _ in ASKED for context in contexts]
    expected = reader.answer(asked, top_k=3, no_answer_threshold=0.0)
    assert [reader.answer([one], top_k=3, no_answer_threshold=0.0)[0] for one in asked] == expected
    assert reader.answer(asked[::-1], top_k=3, no_answer_threshold=0.0) == expected[::-1]
    for isa in {"avx2", "avx512"} & set(_core.available_isas()):
        for threads in (1, 3):
            _core.set_isa(name=isa)
            _core.set_num_threads(n=threads)
            assert reader.answer(asked, top_k=3, no_answer_threshold=0.0) == expected, (isa, threads)


def test_the_reader_is_small() -> None:
    folder = rheme.tasks.bundled()["question-answering-en"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    card = (folder / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card
    assert "## Limits" in card

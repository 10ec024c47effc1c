"""Readers, splits, tokenizer, vocabulary, batches."""

import gzip
import random
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheme.errors import InputError
from rheme.text import batches, readers
from rheme.text.sentences import from_sentence, is_sentence, split_sentences, to_sentence
from rheme.text.tokenizer import Tokenizer
from rheme.text.vocabulary import Vocabulary

PAIR = ("source", "target")


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# Readers ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_boms_and_gzip(tmp_path: Path, end: str, bom: bytes, zipped: bool, last: bool) -> None:
    text = end.join(["Hi.\tSalut !", "", "Go.\tVa !\tCC-BY"]) + (end if last else "")
    data = bom + text.encode()
    path = write(tmp_path / ("x.tsv.gz" if zipped else "x.tsv"), gzip.compress(data) if zipped else data)
    assert readers.read_records(path, PAIR) == [("Hi.", "Salut !"), ("Go.", "Va !")]


def test_only_line_ends_divide_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "a\u2028b\x0bc\x85d\ne\n")
    assert readers.read_lines(path) == ["a\u2028b\x0bc\x85d", "e"]


def test_columns_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "a\tb\tc\nd\te\tf\n")
    assert readers.read_records(path, ["3", "1"], given=True) == [("c", "a"), ("f", "d")]
    assert readers.read_records(path, ["text"]) == [("a",), ("d",)]
    with pytest.raises(InputError, match="--fields 1,0: columns are counted from 1"):
        readers.read_records(path, ["1", "0"], given=True)


def test_columns_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "\ntarget\tid\tsource\nSalut !\t1\tHi.\n")
    other = write(tmp_path / "y.tsv", "source\ttarget\nGo.\tVa !\n")
    for named in (True, False):
        assert readers.read_records([path, other], PAIR, given=named) == [("Hi.", "Salut !"), ("Go.", "Va !")]
    with pytest.raises(InputError, match=r"x\.tsv:2:1: no column 'nosuch', 'thing'; there are: target, id, source "):
        readers.read_records(path, ["nosuch", "thing"], given=True)
    with pytest.raises(InputError, match=r"y\.tsv:1: the file is empty"):
        readers.read_records(write(other, "source\ttarget\n"), PAIR, given=True)


def test_parallel_files(tmp_path: Path) -> None:
    english, french = write(tmp_path / "x.en", "Hi.\n\nGo.\n"), write(tmp_path / "x.fr", "Salut !\n\nVa !\n")
    assert readers.read_records([english, french], PAIR) == [("Hi.", "Salut !"), ("Go.", "Va !")]
    with pytest.raises(InputError, match=r"x\.fr:2:1: 1 lines, but .*x\.en has 3"):
        readers.read_records([english, write(french, "Salut !\n")], PAIR)
    with pytest.raises(InputError, match=r"x\.fr:3:1: an empty line"):
        readers.read_records([english, write(french, "Salut !\n\n\n")], PAIR)


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write(path, '{"source": "Hi.", "target": "Salut !"}\n\n{"target": "Va !", "source": "Go.", "id": 3}\n')
    assert readers.read_records(path, PAIR) == [("Hi.", "Salut !"), ("Go.", "Va !")]
    write(path, '{"translation": {"en": "Hi.", "fr": "Salut !"}}\n')
    assert readers.read_records(path, ("en", "fr")) == [("Hi.", "Salut !")]
    assert readers.read_records(path, ("translation.fr", "translation.en"), given=True) == [("Salut !", "Hi.")]
    turns = '[{"role":"system","content":"s"},{"role":"user","content":"Hi."},{"role":"assistant","content":"Salut !"}]'
    write(path, '{"messages": ' + turns + "}\n")
    assert readers.read_records(path, PAIR) == [("Hi.", "Salut !")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.tsv", b"a\tb\nabc\n", r"x\.tsv:2:4: 1 of 2 columns"),
        ("x.tsv", b"a\tb\nabc\t \n", r"x\.tsv:2:5: column 2 is empty"),
        ("x.tsv", "a\tb\né\tcaf".encode() + b"\xe9\n", r"x\.tsv:2:6: byte 0xe9 is not UTF-8"),
        ("x.tsv", b"", r"x\.tsv:1: the file is empty"),
        ("x.tsv", b"\n \n", r"x\.tsv:1: the file is empty"),
        ("x.tsv", "a\tb\n".encode("utf-16"), r"x\.tsv:1:1: UTF-16"),
        ("x.tsv.gz", gzip.compress(b"a\tb\n" * 99)[:-9], r"not a whole gzip file"),
        ("x.jsonl", b'{"source": "a", "target": "b"}\n{"source": oops}\n', r"x\.jsonl:2:\d+: not JSON"),
        ("x.jsonl", b"\n" + b"[" * 100_000, r"x\.jsonl:2:1: not JSON: .*recursion"),
        ("x.jsonl", b"[1]\n", r"x\.jsonl:1:1: not a JSON object"),
        ("x.jsonl", b'{"source": "a"}\n', r"x\.jsonl:1:1: no field 'target'; there are: source"),
        ("x.jsonl", b'{"source": "a", "target": ["b"]}\n', r"the field 'target' is not text"),
        ("x.jsonl", b'{"source": "a", "target": ""}\n', r"the field 'target' is empty"),
        ("x.jsonl", b'{"messages": [{"role": "user", "content": "a"}]}\n', r"x\.jsonl:1:1: no message of a user"),
    ],
)
def test_mistakes_name_file_line_and_column(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        readers.read_records(write(tmp_path / name, data), PAIR)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.tsv: No such file"):
        readers.read_records(tmp_path / "nothing.tsv", PAIR)
    with pytest.raises(InputError, match="different kinds"):
        readers.read_records([write(tmp_path / "a.tsv", "a\tb\n"), write(tmp_path / "a.jsonl", "{}\n")], PAIR)


@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), min_size=1)] * 2), min_size=1))
@settings(max_examples=50, deadline=None)
def test_written_tsv_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    plain = [tuple(" ".join(cell.split()) for cell in row) for row in rows]
    plain = [row for row in plain if all(row)]
    path = tmp_path_factory.mktemp("tsv") / "x.tsv"
    readers.write_tsv(path, plain)
    if plain and not plain[0][0].startswith("\ufeff"):
        assert readers.read_records(path, PAIR) == plain


# Splits ----------------------------------------------------------------------------------------------------------------------


def pairs(n: int) -> list[tuple[str, str]]:
    """Many pairs that share sides, in capitals and not, composed and not."""
    chance = random.Random(3)
    first = [f"Sentence {k} é" for k in range(n // 3)]
    second = [f"Phrase {k} à" for k in range(n // 4)]
    variants = [str, str.upper, lambda text: unicodedata.normalize("NFD", text), lambda text: text.replace(" ", "  ")]
    return [tuple(chance.choice(variants)(chance.choice(side)) for side in (first, second)) for _ in range(n)]


def test_split_has_no_overlap() -> None:
    rows = pairs(6000)
    rest, held = readers.split_by_hash(rows, 0.05, sides=2)
    assert 150 < len(held) < 450
    for side in (0, 1):
        normal = [{readers.normal_form(row[side]) for row in part} for part in (rest, held)]
        assert not normal[0] & normal[1]
    assert len(rest) + len(held) < len(rows)  # some were dropped for their second side
    assert readers.split_by_hash(rows[::-1], 0.05, sides=2)[1] == held[::-1]  # the order does not matter
    assert readers.split_by_hash(rows, 0.05, sides=2, salt="test")[1] != held
    assert readers.split_by_hash(rows, 0.0)[1] == []


def test_split_of_lines() -> None:
    rest, held = readers.split_by_hash([f"line {k}" for k in range(1000)], 0.1)
    assert len(rest) + len(held) == 1000
    assert 60 < len(held) < 140


# Sentences -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two!  Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Smith met Dr. Jones. He left.", ["Mr. Smith met Dr. Jones.", "He left."]),
        ("M. Dupont et Mme. Durand. Ils partent.", ["M. Dupont et Mme. Durand.", "Ils partent."]),
        ("He lives in the U.S. He is happy.", ["He lives in the U.S. He is happy."]),
        ("At 5 p.m. we left. “Go!” He went.", ["At 5 p.m. we left.", "“Go!”", "He went."]),
        ("Well... maybe. Version 3.5 is out.", ["Well... maybe.", "Version 3.5 is out."]),
        ("Où vas-tu ? Ici.", ["Où vas-tu ?", "Ici."]),
        ("你好。你是谁？我。", ["你好。", "你是谁？", "我。"]),
        ("a line\nanother\n\nlast", ["a line", "another", "last"]),
        ("  ", ["  "]),
        ("", [""]),
    ],
)
def test_split_sentences(text: str, sentences: list[str]) -> None:
    parts = split_sentences(text)
    assert parts[::2] == sentences
    assert "".join(parts) == text
    assert not "".join(parts[1::2]).strip()


def test_split_sentences_in_linear_time() -> None:
    """Of a text that divides nowhere: if each full stop looked at all before it, this would take half a minute."""
    started = time.process_time()
    text = "the cat sat. " * 100_000
    assert split_sentences(text) == [text]
    assert split_sentences(text + "The end") == [text[:-1], " ", "The end"]
    assert time.process_time() - started < 5, "0.6 s on an idle machine"


def test_an_abbreviation_is_looked_for_near_the_end() -> None:
    """As long as it may be, and no further back; the beginning of a sentence is one, wherever it stands."""
    for first in ("", "One. "):
        whole = ["One.", " "] if first else []
        for text in ("M.", "X " + "a." * 15, "Xx " + "a." * 15, "A." + "a." * 15):
            assert split_sentences(f"{first}{text} Two") == [*whole, f"{text} Two"]
        for text in ("X " + "a." * 16, "A." + "a." * 16, "XM."):
            assert split_sentences(f"{first}{text} Two") == [*whole, text, " ", "Two"]


@given(st.text(st.sampled_from('aB. !?\n。"M')))
def test_split_sentences_drops_nothing(text: str) -> None:
    assert "".join(split_sentences(text)) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Where is it?", "Where is it?"),
        ("where is it", "Where is it."),
        ("WHERE IS IT?", "Where is it?"),
        ("“come here”", "“Come here”"),
        ("USA", "USA."),
        ("3 dogs", "3 dogs."),
        ("你好", "你好。"),
        ("", ""),
        ("...", "..."),
    ],
)
def test_the_form_of_a_sentence(text: str, sentence: str) -> None:
    found, form = to_sentence(text)
    assert found == sentence
    assert from_sentence(found, form) == text
    assert is_sentence(found)


def test_another_sentence_gets_the_form() -> None:
    assert from_sentence("Où est-ce ?", to_sentence("where is it")[1]) == "où est-ce ?"
    assert from_sentence("Où est-ce ?", to_sentence("WHERE IS IT?")[1]) == "OÙ EST-CE ?"
    assert from_sentence("I go.", to_sentence("je vais")[1]) == "I go"
    assert from_sentence("", to_sentence("a")[1]) == ""


# Tokenizer -------------------------------------------------------------------------------------------------------------------

LINES = [f"The {noun} of {name} is number {k}." for k in range(40) for noun in ("house", "garden") for name in ("Zoé", "Tom")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(LINES, 400, ["<2en>", "<2fr>"])


def test_tokenizer_is_deterministic(tokenizer: Tokenizer) -> None:
    assert Tokenizer.train(iter(LINES), 400, ["<2en>", "<2fr>"]).to_bytes() == tokenizer.to_bytes()


def test_tokenizer_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id] == [0, 1, 2, 3]
    assert [tokenizer.piece_id("<2en>"), tokenizer.piece_id("<2fr>")] == [4, 5]
    assert len(tokenizer) <= 400
    with pytest.raises(KeyError):
        tokenizer.piece_id("<2de>")
    assert {0, 1, 2, 4, 5, tokenizer.piece_id("<0x0A>")} <= set(tokenizer.unwritable)
    assert tokenizer.eos_id not in tokenizer.unwritable


@pytest.mark.parametrize("text", ["The garden of Zoé is number 7.", "日本 😀", "", "a  b", "<2fr> is no tag", "\t\n"])
def test_any_text_is_carried(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode([text])
    assert tokenizer.unk_id not in ids
    assert not {4, 5} & set(ids), "a text cannot write a tag"
    assert tokenizer.decode([[2, 4, *ids, 3, 0]]) == [" ".join(text.split())]


def test_resampled_pieces_write_the_same_text(tokenizer: Tokenizer) -> None:
    lines = [*LINES, "😀 <2fr>"]
    ids = tokenizer.encode(lines)
    cut = tokenizer.resample(ids, 0.3, 7)
    assert tokenizer.decode(cut) == tokenizer.decode(ids)
    assert sum(map(len, cut)) > sum(map(len, ids))
    assert tokenizer.resample(ids, 0.3, 8) != cut == tokenizer.resample(ids, 0.3, 7)
    assert tokenizer.resample(ids, 0.0, 7) == ids


def test_lists_are_encoded_as_one_by_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(LINES[:20]) == [tokenizer.encode([line])[0] for line in LINES[:20]]
    assert any(tokenizer.is_byte(index) for index in tokenizer.encode(["😀"])[0])
    assert "é" in tokenizer.characters
    assert "😀" not in tokenizer.characters


def test_a_lone_surrogate_is_read_as_a_question_mark(tokenizer: Tokenizer) -> None:
    for count in (1, 40):
        assert tokenizer.encode(["a \ud800b", "c"] * count) == tokenizer.encode(["a ?b", "c"] * count)
    assert tokenizer.normalize("\udfff") == tokenizer.normalize("?")
    assert Tokenizer.train(["a b c", "\ud800 a"], 300).to_bytes() == Tokenizer.train(["a b c", "? a"], 300).to_bytes()
    with pytest.raises((RuntimeError, TypeError)):
        tokenizer.encode([None])  # type: ignore[list-item]


def test_a_torn_byte_sequence_is_left_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["😀"])[0]
    assert tokenizer.decode([ids[:-1]]) == [""]


def test_small_texts_give_small_tokenizers() -> None:
    assert 260 < len(Tokenizer.train(["hello"], 8000)) < 300
    with pytest.raises(InputError, match="at least one line"):
        Tokenizer.train(["", "  "])
    with pytest.raises(InputError, match="no tokenizer of 50 pieces"):
        Tokenizer.train(["hello"], 50)


def test_damaged_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for data in (b"", b"nonsense", tokenizer.to_bytes()[:1000]):
        with pytest.raises(InputError, match="tokenizer"):
            Tokenizer.load(data)
    assert len(Tokenizer.load(write(tmp_path / "t", tokenizer.to_bytes()))) == len(tokenizer)
    with pytest.raises(InputError, match="No such file"):
        Tokenizer.load(tmp_path / "nothing")


def test_vocabulary(tmp_path: Path) -> None:
    words = Vocabulary.train(["b a a", "c b a"], max_size=6)
    assert words.words[4:] == ["a", "b"]
    assert words.encode(["a c b"]) == [[4, 1, 5]]
    assert words.decode([[2, 4, 1, 3, 0]]) == ["a <unk>"]
    assert Vocabulary.load(words.to_bytes()).words == words.words
    with pytest.raises(InputError, match=r"v\.txt:3:1: 'a' stands in line 1"):
        Vocabulary.load(write(tmp_path / "v.txt", "a\nb\na\n"))
    with pytest.raises(InputError, match=r"v\.txt:2:1: one word a line"):
        Vocabulary.load(write(tmp_path / "v.txt", "a\nb c\n"))


# Batches ---------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 60), max_size=300), st.integers(1, 200), st.integers(0, 2**40), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_token_batches(sizes: list[int], budget: int, seed: int, epoch: int) -> None:
    found = batches.token_batches(sizes, budget, seed, epoch)
    assert sorted(int(i) for batch in found for i in batch) == list(range(len(sizes)))
    for batch in found:
        assert len(batch) == 1 or max(sizes[i] for i in batch) * len(batch) <= budget
    again = batches.token_batches(np.array(sizes), budget, seed, epoch)
    assert [batch.tolist() for batch in found] == [batch.tolist() for batch in again]


def test_token_batches_differ_by_epoch_and_seed_and_are_even() -> None:
    chance = random.Random(1)
    sizes = [chance.randint(3, 20) for _ in range(1000)]
    first = [batch.tolist() for batch in batches.token_batches(sizes, 200, 1, 0)]
    assert first != [batch.tolist() for batch in batches.token_batches(sizes, 200, 1, 1)]
    assert first != [batch.tolist() for batch in batches.token_batches(sizes, 200, 2, 0)]
    padded = sum(max(sizes[i] for i in batch) * len(batch) for batch in first)
    assert padded < 1.02 * sum(sizes)
    lengths = [sizes[batch[0]] for batch in first]
    assert lengths != sorted(lengths), "batches come in a shuffled order"


def test_length_batches() -> None:
    sizes = [3, 9, 3, 1, 9, 50]
    found = list(batches.length_batches(sizes, 20, max_rows=2))
    assert found == [[5], [1, 4], [0, 2], [3]]
    assert list(batches.length_batches([], 20)) == []


def test_pad() -> None:
    ids, lengths = batches.pad([[1, 2, 3], [], np.array([4], np.int32)], value=-1)
    assert ids.tolist() == [[1, -1, 4], [2, -1, -1], [3, -1, -1]]
    assert lengths.tolist() == [3, 0, 1]
    assert ids.dtype == lengths.dtype == np.int64
    assert ids.flags.c_contiguous
    assert batches.pad([[], []])[0].shape == (0, 2)


def test_shifted_is_what_a_decoder_reads_and_writes() -> None:
    read, wanted, lengths = batches.shifted([[7, 8], np.array([9], np.int32), []], bos=1, eos=2, pad_id=0)
    assert read.T.tolist() == [[1, 7, 8], [1, 9, 0], [1, 0, 0]]
    assert wanted.T.tolist() == [[7, 8, 2], [9, 2, -1], [2, -1, -1]]
    assert lengths.tolist() == [3, 2, 1]
    assert read.dtype == wanted.dtype == np.int64

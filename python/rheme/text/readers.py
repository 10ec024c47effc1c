"""File formats: lines, TSV, JSON lines, two parallel files, chat JSON lines; each also as .gz.

UTF-8 with or without BOM, any line ends. An error names file, line and column (counted from 1, in characters).
"""

import gzip
import hashlib
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from rheme.errors import InputError

_LINE_BREAKS = re.compile(r"[\t\r\n]+")

Paths = str | Path | Sequence[str | Path]


@dataclass
class Notes:
    """What a reading noticed: where each row stands, and where a row was passed over as a text of it is empty."""

    places: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


class _EmptyTextError(InputError):
    """A row that lacks a text."""


def read_text(path: str | Path, line_ends: bool = False) -> str:
    """The whole text of a file (``-`` is stdin), unzipped, without a BOM; line ends as ``\\n``, or (line_ends) as they are."""
    name = str(path)
    try:
        if name == "-":
            data = sys.stdin.buffer.read()
        else:
            data = Path(path).read_bytes()
            if data[:2] == b"\x1f\x8b":
                data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: not a whole gzip file ({error}); download or compress it again") from None
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from None
    text = _decode(data, name)
    return text if line_ends else text.replace("\r\n", "\n").replace("\r", "\n")


def _decode(data: bytes, name: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{name}:1:1: UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        byte = error.object[error.start]
        raise InputError(
            f"{name}:{line}:{column}: byte 0x{byte:02x} is not UTF-8; convert the file (Latin-1: iconv -f LATIN1 -t UTF-8)"
        ) from None


def read_lines(path: str | Path) -> list[str]:
    """The lines of a file; only line ends divide them (a U+2028 inside a sentence does not)."""
    lines = read_text(path).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return lines


def read_tsv(path: str | Path, columns: Sequence[int], notes: Notes | None = None) -> list[tuple[str, ...]]:
    """The given columns (counted from 0) of each line, separated by tabs; others are ignored, blank lines skipped.

    notes: gets the place of each row, and of each with an empty column, which is passed over; without it that is an error.
    """
    return _rows(path, read_lines(path), columns, notes)


def _rows(path: str | Path, lines: Sequence[str], columns: Sequence[int], notes: Notes | None) -> list[tuple[str, ...]]:
    needed = max(columns) + 1
    rows: list[tuple[str, ...]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) < needed:
            raise InputError(
                f"{path}:{number}:{len(line) + 1}: {len(cells)} of {needed} columns, separated by a tab: {line[:60]!r}"
            )
        empty = next((index for index in columns if not cells[index].strip()), None)
        if empty is not None:
            column = sum(len(cell) + 1 for cell in cells[:empty]) + 1
            _pass_over(f"{path}:{number}:{column}", f"column {empty + 1} is empty", notes)
            continue
        rows.append(tuple(cells[index].strip() for index in columns))
        if notes is not None:
            notes.places.append(f"{path}:{number}")
    return rows


def _read_named(path: str | Path, fields: Sequence[str], given: bool, notes: Notes | None) -> list[tuple[str, ...]]:
    """The fields of a TSV: by number where given so, by the names in its first line, or, unless given, in order."""
    lines = read_lines(path)
    first = next((row for row, line in enumerate(lines) if line.strip()), None)
    if first is None:
        return []
    if given and all(field.isdecimal() for field in fields):
        columns = [int(field) - 1 for field in fields]
        if min(columns) < 0:
            raise InputError(f"--fields {','.join(fields)}: columns are counted from 1")
        return _rows(path, lines, columns, notes)
    names = [name.strip() for name in lines[first].split("\t")]
    if unknown := [field for field in fields if field not in names]:
        if given:
            raise InputError(
                f"{path}:{first + 1}:1: no column {', '.join(map(repr, unknown))}; there are: {', '.join(names)[:60]} "
                "(choose with --fields: names of the first line, or numbers from 1)"
            )
        return _rows(path, lines, range(len(fields)), notes)
    lines[first] = ""
    return _rows(path, lines, [names.index(field) for field in fields], notes)


def _pass_over(where: str, why: str, notes: Notes | None) -> None:
    if notes is None:
        raise _EmptyTextError(f"{where}: {why}")
    notes.empty.append(where)


def read_parallel(paths: Sequence[str | Path], notes: Notes | None = None) -> list[tuple[str, ...]]:
    """Files whose lines of the same number belong together. Lines blank in all of them are skipped. notes: see read_tsv."""
    files = [read_lines(path) for path in paths]
    for path, lines in zip(paths[1:], files[1:], strict=True):
        if len(lines) != len(files[0]):
            short = min(len(lines), len(files[0]))
            raise InputError(f"{path}:{short + 1}:1: {len(lines)} lines, but {paths[0]} has {len(files[0])}")
    rows: list[tuple[str, ...]] = []
    for number, cells in enumerate(zip(*files, strict=True), 1):
        texts = tuple(cell.strip() for cell in cells)
        if not any(texts):
            continue
        if not all(texts):
            _pass_over(f"{paths[texts.index('')]}:{number}:1", "an empty line, but its partner is not", notes)
            continue
        rows.append(texts)
        if notes is not None:
            notes.places.append(f"{paths[0]}:{number}")
    return rows


def read_jsonl(
    path: str | Path,
    fields: Sequence[str],
    given: bool = False,
    list_separator: str | None = None,
    notes: Notes | None = None,
) -> list[tuple[str, ...]]:
    """The named fields of each JSON object, a line each; ``a.b`` reaches into objects.

    list_separator: joins a field that is a list of texts; without it such a field is an error.

    Unless the fields were given by the user, a line ``{"messages": [...]}`` of a chat yields (what the user said, the answer)
    for its last turn, without the instruction that all chats of the file begin with (up to a colon or a line end); and
    ``{"translation": {...}}`` is looked into. notes: see read_tsv.
    """
    rows: list[tuple[str, ...]] = []
    chats: list[int] = []
    decoder = msgspec.json.Decoder()
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = decoder.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InputError(f"{path}:{number}:{_byte_column(line, str(error))}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}:1: not a JSON object")
        where = f"{path}:{number}:1"
        chat = not given and "messages" in record
        if not given and isinstance(record.get("translation"), dict):
            record = record["translation"]
        try:
            if chat:
                row: tuple[str, ...] = _last_turn(record["messages"], where)
            else:
                row = tuple(_field(record, name, where, list_separator) for name in fields)
        except _EmptyTextError:
            if notes is None:
                raise
            notes.empty.append(where)
            continue
        chats += [len(rows)] * chat
        rows.append(row)
        if notes is not None:
            notes.places.append(f"{path}:{number}")
    return _without_instruction(rows, chats)


def _without_instruction(rows: list[tuple[str, ...]], chats: Sequence[int]) -> list[tuple[str, ...]]:
    """The rows, those of chats without what all of them begin with, such as "Translate into French:"."""
    if len(chats) < 2:
        return rows
    first, last = min(rows[row][0] for row in chats), max(rows[row][0] for row in chats)
    common = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    end = max(first.rfind(":", 0, common), first.rfind("\n", 0, common)) + 1
    if not all(rows[row][0][end:].strip() for row in chats):
        return rows
    for row in chats:
        rows[row] = (rows[row][0][end:].strip(), *rows[row][1:])
    return rows


def _byte_column(line: str, message: str) -> int:
    """msgspec says where it stopped as "(byte 12)"."""
    head, _, tail = message.rpartition("(byte ")
    return len(line.encode()[: int(tail.rstrip(")"))].decode(errors="ignore")) + 1 if head and tail.rstrip(")").isdigit() else 1


def _field(record: dict[str, Any], name: str, where: str, list_separator: str | None = None) -> str:
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"{where}: no field {name!r}; there are: {', '.join(record)} (choose with --fields)")
        value = value[part]
    if list_separator is not None and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return list_separator.join(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{where}: the field {name!r} is not text")
    if not str(value).strip():
        raise _EmptyTextError(f"{where}: the field {name!r} is empty")
    return str(value).strip()


def _last_turn(messages: Any, where: str) -> tuple[str, str]:
    try:
        said = [(str(message["role"]), message["content"]) for message in messages]
    except (TypeError, KeyError):
        raise InputError(f"{where}: each message needs a role and a content") from None
    for (role, question), (next_role, reply) in reversed(list(pairwise(said))):
        if (role, next_role) != ("user", "assistant") or not (isinstance(question, str) and isinstance(reply, str)):
            continue
        if question.strip() and reply.strip():
            return question.strip(), reply.strip()
    raise _EmptyTextError(f"{where}: no message of a user with text followed by one of the assistant")


def read_records(
    paths: Paths,
    fields: Sequence[str],
    given: bool = False,
    list_separator: str | None = None,
    notes: Notes | None = None,
) -> list[tuple[str, ...]]:
    """Rows of ``len(fields)`` strings from one file or several of the same kind.

    By the ends of their names (before .gz): .jsonl (the fields by name); otherwise, with several fields, as many files as
    fields that are not .tsv are parallel, and anything else is TSV (the columns that its first line names so, or
    those in order); with one field, lines. given: the fields were named by the user, and must be there; columns also by
    number, from 1. notes: gets the place of each row of several fields, and of each that lacks one, which is passed over;
    without it that is an error.
    """
    names = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not names:
        raise InputError("no file given")
    kinds = {_kind(name) for name in names}
    if len(kinds) > 1:
        raise InputError(f"files of different kinds: {', '.join(str(name) for name in names)}")
    kind = kinds.pop()
    rows: list[tuple[str, ...]] = []
    if kind == "text" and len(fields) > 1 and len(names) == len(fields):
        rows = read_parallel(names, notes)
    else:
        for name in names:
            if kind == "jsonl":
                part = read_jsonl(name, fields, given, list_separator, notes)
            elif len(fields) == 1 and kind == "text":
                part = [(line.strip(),) for line in read_lines(name) if line.strip()]
            else:
                part = _read_named(name, fields, given, notes)
            if not part:
                raise InputError(f"{name}:1: the file is empty")
            rows.extend(part)
    if not rows:
        raise InputError(f"{names[0]}:1: the file is empty")
    width = {len(row) for row in rows}
    if width != {len(fields)}:
        raise InputError(f"{names[0]}: {width.pop()} texts a record, {len(fields)} are needed ({', '.join(fields)})")
    return rows


def _kind(path: str | Path) -> str:
    name = str(path).lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "jsonl"
    return "tsv" if name.endswith((".tsv", ".tab")) else "text"


def write_tsv(path: str | Path, rows: Iterable[Sequence[str]]) -> None:
    """A row a line; tabs and line ends inside a text become spaces."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write("\t".join(_LINE_BREAKS.sub(" ", cell).strip() for cell in row) + "\n")


# Splits --------------------------------------------------------------------------------------------------------------------


def normal_form(text: str) -> str:
    """The form in which two texts count as the same one: NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def split_by_hash(examples: Sequence[Any], share: float, sides: int = 1, salt: str = "") -> tuple[list[Any], list[Any]]:
    """(rest, held out). About ``share`` of the examples are held out, chosen by a hash of their first text's normal form.

    Then every other example that shares one of its first ``sides`` texts with a held-out one is dropped, so that no text
    stands on both sides. salt: another one chooses another part. The same files give the same split everywhere.
    """
    limit = int(share * 2**64)
    rest: list[Any] = []
    held_out: list[Any] = []
    for row in examples:
        key = (salt + normal_form(_texts(row)[0])).encode()
        chosen = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") < limit
        (held_out if chosen else rest).append(row)
    return drop_shared(rest, held_out, sides), held_out


def drop_shared(examples: Sequence[Any], held_out: Sequence[Any], sides: int = 1) -> list[Any]:
    """The examples that share none of their first ``sides`` texts (in normal form, side by side) with a held-out one."""
    seen = [{normal_form(_texts(row)[side]) for row in held_out} for side in range(sides)]
    return [row for row in examples if not any(normal_form(_texts(row)[side]) in seen[side] for side in range(sides))]


def _texts(row: Any) -> Sequence[str]:
    return (row,) if isinstance(row, str) else row

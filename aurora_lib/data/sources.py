"""Rows -> conversations: one reader for the layouts of the paper's three released datasets (section 3.1).

`read_rows` finds the rows of a file, in whatever state they are; `_messages` finds the conversation in a row.
A new kind of file belongs into the first, a new layout of a row into the second.
"""

import hashlib
import json
import re
import tempfile
import tomllib
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow
from datasets import Dataset, Features, List, Value
from datasets.table import MemoryMappedTable

from aurora_lib.course import DATA, asking_hub

SOURCES = tomllib.loads(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))
TURNS = List({"role": Value("string"), "content": Value("string")})
FEATURES = Features(dict.fromkeys(("id", "source", "category"), Value("string")) | {"messages": TURNS})
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CHINESE_KEYS = {"指示": "instruction", "指令": "instruction", "输入": "input", "输出": "output"}
KINDS = {bool: "a truth value", int: "a number", float: "a number", str: "text"}
KINDS |= {list: "a list", dict: "an object", type(None): "null"}
MOST_CHARACTERS = 200_000  # of one conversation; what is longer is a dump, not a talk
LONGEST_LINE = 8_000_000  # characters; a longer one holds no conversation
STOPS = "the file stops in the middle of this row"
AGAIN = "Download it again, or point AURORA_DATA at a complete copy."
JSON = json.JSONDecoder(strict=False)  # strict would refuse raw tabs and line breaks inside a text
SPACE, NEXT_ROW = re.compile(r"[ \t\r\n]*"), re.compile(r"\}\s*(?=,\s*\{)")
SURROGATE = re.compile(r"[\ud800-\udfff]")  # what a byte that is not UTF-8 is decoded to


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the row and the remedy."""


class Unreadable(ValueError):
    """Why one row is no conversation; in `Row.value`, why it is no JSON value."""


class Row(NamedTuple):
    """A row of a file: its first line (from 1), the beginning of its text (100 characters), its value."""

    line: int
    text: str
    value: object


def load(name: str, path: str | Path | None = None) -> Dataset:
    """One source as conversations: columns `id, source, category, messages` (a list of `{role, content}`).

    `path` is a file, a folder, None for the bundled sample, or "hub" for the released file from the Hugging
    Face hub. Rows that are no conversation are left out and listed by `rejected`: loaded + rejected == rows
    in the file. Raises DataError for an unknown name, and for a file that is missing, empty or not UTF-8.
    """
    folder = Path(path) if path not in (None, "hub") and Path(path).is_dir() else None

    def rows() -> Iterator[dict]:
        for file in files(name, path):
            named = f"{name}:{file.relative_to(folder) if folder else file.name}"
            for number, (row, messages) in enumerate(_conversations(file), 1):
                if isinstance(messages, list):
                    tag = row.value.get("category")
                    category = tag if isinstance(tag, str) else ""
                    yield dict(id=f"{named}[{number}]", source=name, category=category, messages=messages)

    return table(rows())


def rejected(name: str, path: str | Path | None = None) -> list[dict]:
    """What `load` leaves out: dicts of `file`, `line` (from 1), `reason` and `row`, how its text begins."""
    return [
        {"file": str(file), "line": row.line, "reason": reason, "row": row.text[:80]}
        for file in files(name, path)
        for row, reason in _conversations(file)
        if isinstance(reason, str)
    ]


def table(rows: Iterable[dict], features: Features = FEATURES) -> Dataset:
    """Rows as a Dataset in a file that is mapped into memory and goes with this process."""
    rows, schema = iter(rows), features.arrow_schema
    file = Path(tempfile.mkstemp(dir=_folder().name, suffix=".arrow")[1])
    with pyarrow.ipc.new_stream(str(file), schema) as stream:
        while part := list(islice(rows, 10_000)):
            stream.write_table(pyarrow.Table.from_pylist(part, schema))
    # equal rows have equal fingerprints, by which `clean` finds again what was made of them
    fingerprint = hashlib.sha1(file.read_bytes()).hexdigest()
    return Dataset(MemoryMappedTable.from_file(str(file)), fingerprint=fingerprint)


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="aurora-rows-")


def files(name: str, path: str | Path | None = None) -> list[Path]:
    """The files `load` reads: `path` itself or, in a folder at any depth, the released file or parts of it.

    Raises DataError for an unknown name, and where there is nothing to read.
    """
    if name not in SOURCES:
        raise DataError(f"There is no source {name!r}. The three are: {', '.join(SOURCES)}.")
    if path == "hub":
        return [_download(name)]
    path, released, parts = Path(path or DATA / "rows"), SOURCES[name]["released"], SOURCES[name]["parts"]
    if not path.exists():
        raise DataError(f"{path} does not exist. Point AURORA_DATA at a folder that holds {released}.")
    if not path.is_dir():
        return [path]
    whole = sorted(path.rglob(released), key=lambda file: (len(file.parts), file))
    found = {file for part in parts for file in path.rglob(part) if file.suffix in (".json", ".jsonl")}
    if not whole and not found:
        wanted = ", ".join([released, *(f"{part}.json[l]" for part in parts)])
        raise DataError(f"{path} holds no file of {name} ({wanted}). Point AURORA_DATA at one that does.")
    return whole[:1] or sorted(found)


def _download(name: str) -> Path:
    """The released file, fetched as a file: our own reader then treats its bad rows as it does anywhere."""
    from huggingface_hub import hf_hub_download

    source = SOURCES[name]
    repository, released = source["repository"], source["released"]
    with asking_hub(released, "AURORA_DATA", DataError):
        file = Path(hf_hub_download(repository, source["folder"] + released, repo_type="dataset"))
    found = hashlib.sha1(file.read_bytes()).hexdigest()
    if source["sha1"] and found not in source["sha1"]:
        other = f"{released} is not the file of the paper's stack (SHA-1 {found}): counts will differ."
        warnings.warn(f"{other} If you have the original, set AURORA_DATA to its folder.", stacklevel=2)
    return file


def read_rows(file: Path) -> Iterator[Row]:
    """Each row of JSON Lines, read a line at a time, or of a JSON array, which is read whole.

    Of a file larger than your memory, make JSON Lines. The value is an Unreadable where the row is broken,
    cut off or a line of over LONGEST_LINE; rows behind it are still found. Bytes that are not UTF-8 become
    lone surrogates, which spoil their own row and no other. Raises DataError for a missing or an empty file.
    """
    if not file.exists():
        raise DataError(f"{file} does not exist. Check the path, or AURORA_DATA.")
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as opened:
        if not (begins := opened.read(1 << 16).lstrip()):
            raise DataError(f"{file} is empty. {AGAIN}")
        opened.seek(0)
        is_array = begins.startswith("[") and file.suffix != ".jsonl"
        yield from _array(opened.read()) if is_array else _lines(opened)


def _lines(opened: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(opened, 1):
        if not (text := line.strip()):
            continue
        try:
            value = JSON.decode(text)
        except (ValueError, RecursionError) as error:
            value = Unreadable(STOPS if text[0] == "{" and not line.endswith("\n") else _why(error))
        if len(line) > LONGEST_LINE:
            value = Unreadable(f"the row is longer than {LONGEST_LINE:,} characters")
        yield Row(number, text[:100], value)


def _array(text: str) -> Iterator[Row]:
    line, counted, at, last = 1, 0, text.index("[") + 1, len(text.rstrip()) - 1
    while (at := SPACE.match(text, at).end()) != last or text[at] != "]":
        following = True
        try:
            value, end = JSON.raw_decode(text, at)
            end = SPACE.match(text, end).end()
            if end < last and text[end] != ",":
                raise ValueError("Expecting ',' delimiter")
        except (ValueError, RecursionError) as error:
            # go on at the comma before the next `{`, or end with the file
            following = NEXT_ROW.search(text, at)
            end = following.end() if following else len(text)
            value = Unreadable(_why(error) if following or text[last] == "]" else STOPS)
        line, counted = line + text.count("\n", counted, at), at
        yield Row(line, text[at:end].strip()[:100], value)
        if not following:
            return
        at = end + (text[end : end + 1] == ",")


def _why(error: Exception) -> str:
    deep = isinstance(error, RecursionError)
    return "nested too deeply" if deep else f"not valid JSON ({getattr(error, 'msg', error)})"


def _conversations(file: Path) -> Iterator[tuple[Row, list[dict] | str]]:
    """Each row with its messages, or the reason why it has none."""
    good, spoilt = 0, None
    for row in read_rows(file):
        try:
            messages = _messages(row.value)
            good += 1
        except Unreadable as error:
            messages = str(error)
            spoilt = spoilt or (row.line if SURROGATE.search(row.text) else None)
        if messages == STOPS:
            what = f"{file} stops in the middle, at line {row.line}; what came before is used."
            warnings.warn(f"{what} {AGAIN}", stacklevel=2)
        yield row, messages
    if spoilt and not good:
        raise DataError(f"{file} is not UTF-8 (line {spoilt}). Convert it to UTF-8, or check AURORA_DATA.")


def _messages(row: object) -> list[dict]:
    """The conversation in one row, whatever its layout. Raises Unreadable with the reason."""
    if isinstance(row, Unreadable):
        raise row
    if not isinstance(row, dict):
        raise Unreadable(f"the row is {KINDS[type(row)]}, not an object")
    row = {CHINESE_KEYS.get(key, key): value for key, value in row.items()}
    if key := next((key for key in ("messages", "conversations", "conversation") if key in row), None):
        if not isinstance(row[key], list):
            raise Unreadable(f"`{key}` is {KINDS[type(row[key])]}, not a list of turns")
        messages = [message for turn in row[key] for message in _turn(turn)]
    elif row.keys() & {"instruction", "input", "output"}:
        messages = _alpaca(row)
    else:
        raise Unreadable(f"no known layout (its keys: {', '.join(row)[:60] or 'none'})")
    for role in ("user", "assistant"):
        if not any(message["role"] == role for message in messages):
            raise Unreadable(f"no {role} turn")
    if (characters := sum(len(message["content"]) for message in messages)) > MOST_CHARACTERS:
        raise Unreadable(f"{characters:,} characters, more than {MOST_CHARACTERS:,}")
    return messages


def _alpaca(row: dict) -> list[dict]:
    """`{instruction, input, output}`, with earlier `[question, answer]` pairs in an optional `history`."""
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Unreadable("`history` is not a list of [question, answer] pairs")
    about = _text(row, "input") if row.get("input") is not None else ""
    asked = "\n".join(filter(None, (_text(row, "instruction"), about)))
    texts = [_text({"history": text}, "history") for pair in pairs for text in pair]
    texts += [asked, _text(row, "output")]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _turn(turn: object) -> list[dict]:
    """One turn: `{human, assistant}` is up to two messages, `{from, value}` and `{role, content}` are one."""
    if not isinstance(turn, dict):
        raise Unreadable(f"a turn is {KINDS[type(turn)]}, not an object")
    if "human" in turn:
        keys = ("human", "assistant") if turn.get("assistant") is not None else ("human",)
        return [{"role": ROLES[key], "content": _text(turn, key)} for key in keys]
    by, said = ("from", "value") if "from" in turn else ("role", "content")
    if not isinstance(turn.get(by), str) or turn[by] not in ROLES:
        raise Unreadable(f"a turn is by {turn.get(by)!r:.40}: not a user, assistant or system")
    return [{"role": ROLES[turn[by]], "content": _text(turn, said)}]


def _text(holder: dict, key: str) -> str:
    if key not in holder:
        raise Unreadable(f"`{key}` is missing")
    if not isinstance(holder[key], str):
        raise Unreadable(f"`{key}` is {KINDS[type(holder[key])]}, not text")
    if SURROGATE.search(holder[key]):
        raise Unreadable(f"`{key}` holds bytes that are not UTF-8, or half a surrogate pair")
    return holder[key]

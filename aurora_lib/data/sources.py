"""Rows -> conversations: one reader for the layouts of the paper's three datasets (section 2) and others'.

`course.rows` finds the rows of a file, in whatever state they are; `_messages` finds the conversation in one.
A new kind of file belongs into the first, a new name of a column or a speaker into `layouts.toml`.
"""

import atexit
import hashlib
import re
import tempfile
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow
from datasets import Dataset, Features, List, Value
from datasets.table import MemoryMappedTable

from aurora_lib.course import DATA, asking_hub, rows

_tables = (Path(__file__).with_name(f"{name}.toml") for name in ("sources", "layouts"))
SOURCES, LAYOUTS = (tomllib.loads(file.read_text(encoding="utf-8")) for file in _tables)
NAMES = {  # for each kind: a name in a file -> our name
    kind: {other: name for name, others in LAYOUTS[kind].items() for other in (name, *others)}
    for kind in ("columns", "turn", "part", "roles")
}
ROLES = NAMES["roles"]
DataError, Unreadable = rows.DataError, rows.Unreadable
OWN = "own"  # the source of files that have the name of none
TURNS = List({"role": Value("string"), "content": Value("string")})
FEATURES = Features(dict.fromkeys(("id", "source", "category"), Value("string")) | {"messages": TURNS})
KINDS = {bool: "a truth value", int: "a number", float: "a number", str: "text"}
KINDS |= {list: "a list", dict: "an object", type(None): "null"}
MOST_CHARACTERS = 200_000  # of one conversation; what is longer is a dump, not a talk
SURROGATE = re.compile(r"[\ud800-\udfff]")  # what a byte that is not UTF-8 is decoded to
ENDINGS = (".json", ".jsonl", ".parquet")
SECOND_COPY = re.compile(r" ?\(\d+\)$|[- ](?:copy|副本)$", re.I)  # as browsers and file managers name it


class Reading(NamedTuple):
    """What files gave: their rows are `conversations` (columns FEATURES) + `aside`; `remarks` for a reader.

    `aside`: dicts of `source`, `file`, `line` (from 1), `reason` and `row`, how its text begins.
    """

    conversations: Dataset
    aside: list[dict]
    remarks: list[str]


def read(path: str | Path | None = None, every: int = 1) -> Reading:
    """Conversations of all sources: columns `id, source, category, messages`.

    With `every` one row of so many is used of each file, the first among them, and `remarks` says so.

    `path` is a folder, a file, None for the bundled sample, or "hub" for the released files from the Hugging
    Face hub. A row that is no conversation is set aside. Raises DataError for a file without any, saying what
    it seems to be, and as `files` does.
    """
    found, folder = files(path), Path(path or DATA / "rows").expanduser()
    pairs = [(source, file) for source, several in found.items() for file in several]
    aside, tools = [], Counter()

    def conversations() -> Iterator[dict]:
        for source, file in pairs:
            named = f"{source}:{file.relative_to(folder) if folder in file.parents else file.name}"
            for number, (row, messages) in islice(enumerate(_conversations(file), 1), None, None, every):
                if isinstance(messages, list):
                    tools[source] += "tools" in row.value
                    category = tag if isinstance(tag := row.value.get("category"), str) else ""
                    yield dict(id=f"{named}[{number}]", source=source, category=category, messages=messages)
                else:
                    about = dict(source=source, file=str(file), line=row.line, reason=messages)
                    aside.append(about | {"row": row.text[:80]})

    read_in = table(conversations())
    remarks = [f"{of}: tools are left out (rows that name some: {n:,})" for of, n in tools.items() if n]
    remarks += [f"a sample: one row of every {every:,} in a file"] if every > 1 else []
    used, beside = {file for _, file in pairs}, _visible(folder) if folder.is_dir() else []
    if others := [file.name for file in beside if file not in used]:
        some = ", ".join(others[:3]) + f" and {len(others) - 3:,} more" * (len(others) > 3)
        remarks.append(f"not read: {some}. To read a file of yours alone, point AURORA_DATA at it")
    return Reading(read_in, aside, remarks)


def files(path: str | Path | None = None) -> dict[str, list[Path]]:
    """The files of each source at `path` (see `read`): as released, else parts of it.

    In a folder they lie at any depth; what is hidden is not read. A file of no source's name, alone or with
    others of its kind, is OWN. Raises DataError where there is nothing to read.
    """
    if path == "hub":
        return {name: [_download(name)] for name in SOURCES}
    path = Path(path or DATA / "rows").expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist. Point AURORA_DATA at a folder of rows, or at a file.")
    if not path.is_dir():
        return {next((name for name in SOURCES if _is_of(name, path)), OWN): [path]}
    below = [file for file in _visible(path) if file.name.removesuffix(".gz").endswith(ENDINGS)]
    if not below:
        raise DataError(f"{path} holds no file of rows: none ends in {', '.join(ENDINGS)}.")
    found = {}
    for name in SOURCES:
        released = SOURCES[name]["released"]
        whole = sorted((f for f in below if f.name == released), key=lambda file: (len(file.parts), file))
        found[name] = whole[:1] or [file for file in below if _is_of(name, file)]
    if not any(found.values()):
        return {OWN: below}
    for name in (name for name in SOURCES if not found[name]):
        wanted = ", ".join([SOURCES[name]["released"], *SOURCES[name]["parts"]])
        remedy = "Point AURORA_DATA at all three, at a folder without any of their names, or at one file"
        raise DataError(f"{path} holds no file of {name} ({wanted}). {remedy}.")
    return found


def state(path: str | Path) -> str:
    """What tells whether the files at `path` (see `read`) have changed: places, sizes, times of change."""
    found = [] if path == "hub" else [file for several in files(path).values() for file in several]
    about = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in found]
    return f"{path} {hashlib.sha1(repr(about).encode()).hexdigest()}"


def _is_of(name: str, file: Path) -> bool:
    second = file.with_name(SECOND_COPY.sub("", file.stem) + file.suffix)
    return any(map(file.match, SOURCES[name]["parts"])) and (second == file or not second.exists())


def _visible(folder: Path) -> list[Path]:
    """Files at any depth, without those in hidden folders (an editor's copies of older states, say)."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [file for file in found if not re.search(r"(?:^|[\\/])[.]", str(file.relative_to(folder)))]


def table(found: Iterable[dict], features: Features = FEATURES) -> Dataset:
    """Rows as a Dataset in a file that is mapped into memory and goes with this process."""
    found, schema = iter(found), features.arrow_schema
    with tempfile.NamedTemporaryFile(prefix="aurora-rows-", suffix=".arrow", delete=False) as made:
        file = Path(made.name)
    atexit.register(file.unlink, missing_ok=True)
    with pyarrow.ipc.new_stream(str(file), schema) as stream:
        while part := list(islice(found, 10_000)):
            stream.write_table(pyarrow.Table.from_pylist(part, schema))
    # equal rows have equal fingerprints, by which `clean` finds again what was made of them
    fingerprint = hashlib.sha1(file.read_bytes()).hexdigest()
    return Dataset(MemoryMappedTable.from_file(str(file)), fingerprint=fingerprint)


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


def _conversations(file: Path) -> Iterator[tuple[rows.Row, list[dict] | str]]:
    """Each row, its columns under our names, with its messages, or with the reason why it has none."""
    good, reasons, spoilt = 0, Counter(), None
    for row in rows.read_rows(file):
        try:
            if isinstance(row.value, Unreadable):
                raise row.value
            if not isinstance(row.value, dict):
                raise Unreadable(f"the row is {_kind(row.value)}, not an object")
            row = row._replace(value=_renamed(row.value, "columns"))
            messages = _messages(row.value)
            good += 1
        except Unreadable as error:
            messages = str(error)
            reasons[messages] += 1
            spoilt = spoilt or (row.line if SURROGATE.search(row.text) else None)
        yield row, messages
    if not good:
        raise DataError(_refusal(file, reasons, spoilt))


def _refusal(file: Path, reasons: Counter, spoilt: int | None) -> str:
    """What a file without a conversation seems to be, and what to do."""
    with rows.open_text(file) as opened:
        begins = opened.read(4_096)
    shown = begins[:40].partition("\n")[0]
    for kind in LAYOUTS["seems"]:
        if re.search(kind["begins"], begins):
            what = f"it seems to be {kind['what']}" + f", and begins {shown!r}" * shown.isprintable()
            return f"{file} holds no conversation: {what}. {kind['remedy']}"
    if spoilt:
        return f"{file} is not UTF-8 (line {spoilt}). Convert it to UTF-8, or check AURORA_DATA."
    why = f"rows: {reasons.total():,}; most often: {reasons.most_common(1)[0][0]}" if reasons else "no row"
    known = "Rows hold instruction and output, or messages by user and assistant; other names that are known"
    return f"{file} holds no conversation ({why}). {known} stand in aurora_lib/data/layouts.toml."


def _renamed(holder: dict, kind: str) -> dict:
    """What it holds, under our names. An empty value (null, NaN, an empty list) is none."""
    names = [(key, NAMES[kind].get(key.lower(), key.lower())) for key in holder]
    names.sort(key=lambda pair: pair[0] == pair[1])  # what has our name already comes last, and counts most
    return {our: v for key, our in names if (v := holder[key]) is not None and v == v and v != []}


def _kind(value: object) -> str:
    return KINDS.get(type(value), f"a {type(value).__name__}")


def _messages(row: dict) -> list[dict]:
    """The conversation in one row, whatever its layout. Raises Unreadable with the reason."""
    if "messages" in row:
        if not isinstance(row["messages"], list):
            raise Unreadable(f"the turns are {_kind(row['messages'])}, not a list")
        messages = [message for turn in row["messages"] for message in _turn(turn)]
    elif row.keys() & {"instruction", "input", "output"}:
        messages = _alpaca(row)
    else:
        raise Unreadable(f"no known layout (columns with a value: {', '.join(row)[:60] or 'none'})")
    if missing := {"user", "assistant"} - {message["role"] for message in messages}:
        raise Unreadable(f"no {max(missing)} turn")
    if "system" in row and (system := _text(row, "system")):
        own = [message["content"] for message in messages[:1] if message["role"] == "system"]
        content = "\n".join([system, *(text for text in own if text != system)])
        messages = [{"role": "system", "content": content}, *messages[len(own) :]]
    if sum(len(message["content"]) for message in messages) > MOST_CHARACTERS:
        raise Unreadable(f"more than {MOST_CHARACTERS:,} characters")
    return messages


def _alpaca(row: dict) -> list[dict]:
    """`{instruction, input, output}`, with earlier `[question, answer]` pairs in an optional `history`."""
    if "choices" in row or {"a", "b"} <= row.keys():
        raise Unreadable("a question of a benchmark, to be scored and not to be trained on")
    pairs = row.get("history", [])
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Unreadable("`history` is not a list of [question, answer] pairs")
    about = _text(row, "input") if "input" in row else ""
    asked = "\n".join(filter(None, (_text(row, "instruction"), about)))
    texts = [_text({"history": text}, "history") for pair in pairs for text in pair]
    texts += [asked, _text(row, "output")]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _turn(turn: object) -> list[dict]:
    """One turn: `{from, value}` and `{role, content}` are one message, `{human, assistant}` is up to two."""
    if not isinstance(turn, dict):
        raise Unreadable(f"a turn is {_kind(turn)}, not an object")
    turn = _renamed(turn, "turn")
    if "role" not in turn and (said := [key for key in turn if key in ROLES]):
        if len(said) > 1 and ROLES[said[0]] == "assistant":  # whoever wrote the answer first
            said.reverse()
        return [{"role": ROLES[key], "content": _text(turn, key)} for key in said]
    by = turn.get("role")
    role = ROLES.get(by.strip().lower()) if isinstance(by, str) else None
    if not role:
        raise Unreadable(f"a turn is by {by!r:.40}: not a user, assistant or system")
    return [{"role": role, "content": _text(turn, "content")}]


def _text(holder: dict, key: str) -> str:
    """The text of a field, which may be a list of its parts."""
    if key not in holder:
        raise Unreadable(f"`{key}` is missing")
    text = holder[key]
    if isinstance(text, list):
        parts = [part if isinstance(part, dict) else {"text": part} for part in text]
        parts = [_renamed(part, "part") for part in parts]
        if other := [part for part in parts if not isinstance(part.get("text"), str)]:
            kind = other[0].get("type", "of no type")
            raise Unreadable(f"`{key}` holds a part that is no text ({kind!r:.40})")
        text = "\n".join(part["text"] for part in parts)
    if not isinstance(text, str):
        raise Unreadable(f"`{key}` is {_kind(text)}, not text")
    if SURROGATE.search(text):
        raise Unreadable(f"`{key}` holds bytes that are not UTF-8, or half a surrogate pair")
    return text

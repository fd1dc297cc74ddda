"""Rows -> conversations: one reader for the layouts of the paper's three released datasets (section 3.1)."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from aurora_lib.course.scale import DATA
from aurora_lib.data import arrow_files
from aurora_lib.data import rows as json_rows
from aurora_lib.data.rows import DataError

# name: (the released file, patterns of samples and parts of it, repository and folder on the hub)
SOURCES = {
    "alpaca_zh": ("alpaca_data_zh_51k.json", ("alpaca_zh*", "alpaca_data_zh*"), "llamafactory/alpaca_zh", ""),
    "alpaca_gpt4_zh": (
        "alpaca_gpt4_data_zh.json",
        ("alpaca_gpt4_zh*", "alpaca_gpt4_data_zh*"),
        "llamafactory/alpaca_gpt4_zh",
        "",
    ),
    "sharegpt_zh": (
        "common_zh_70k.jsonl",
        ("sharegpt_zh*", "common_zh*"),
        "shareAI/ShareGPT-Chinese-English-90k",
        "sharegpt_jsonl/",
    ),
}
# SHA-1 of the released files as LLaMA-Factory's data/dataset_info.json lists them (two states of the second). For
# ShareGPT none is listed. What the hub holds under these names was not compared with them.
RELEASED = {
    "alpaca_zh": {"e655af3db557a4197f7b0cf92e1986b08fae6311"},
    "alpaca_gpt4_zh": {
        "736d3a9d0fcbb252d1e8f902920961ecfd310e41",
        "3eaa3bda364ccdd59925d7448a698256c31ef845",
    },
}
TURN = {"role": Value("string"), "content": Value("string")}
FEATURES = Features(dict.fromkeys(("id", "source", "category"), Value("string")) | {"messages": List(TURN)})
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CHINESE_KEYS = {"指示": "instruction", "指令": "instruction", "输入": "input", "输出": "output"}
AGAIN = "Download it again, or point AURORA_DATA at a complete copy."
SURROGATE = re.compile(r"[\ud800-\udfff]")
MOST_CHARACTERS = 200_000  # of one conversation; what is longer is a dump, not a talk
BATCH = 2_000  # rows


class _NotAConversation(ValueError):
    """Why one row is no conversation."""


def load(name: str, path: str | Path | None = None, *, revision: str | None = None) -> Dataset:
    """One source as conversations: columns `id, source, category, messages` (a list of `{role, content}`).

    `path` is a file, a folder, None for the bundled sample, or "hub" for the released file from the Hugging
    Face hub, at `revision` where one is given (see `files`). Rows that are no conversation are left out and
    listed by `rejected`, the cut-off last row of a truncated file among them: loaded + rejected == rows in the
    file. Files are streamed, a row at a time. Raises DataError for an unknown name, and for a file that is
    missing, empty or not UTF-8.
    """
    tables = _tables(name, path, files(name, path, revision=revision))
    return Dataset.from_file(str(arrow_files.write(tables, FEATURES.arrow_schema)))


def _tables(name: str, path: str | Path | None, chosen: list[Path]) -> Iterator[pa.Table]:
    """The conversations of one source, BATCH at a time."""
    for file in chosen:
        within = file.relative_to(path) if path not in (None, "hub") and Path(path).is_dir() else file.name
        good = (
            dict(id=f"{name}:{within}[{number}]", source=name, category=_category(row), messages=messages)
            for number, (_, _, row, messages) in enumerate(_conversations(file), 1)
            if isinstance(messages, list)
        )
        while batch := list(islice(good, BATCH)):
            yield pa.Table.from_pylist(batch, FEATURES.arrow_schema)


def _category(row: dict) -> str:
    return row["category"] if isinstance(row.get("category"), str) else ""


def table(rows: list[dict], features: Features = FEATURES) -> Dataset:
    """Rows as a Dataset, with its columns even where there is none (`Dataset.from_list` loses them)."""
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def rejected(path: str | Path | None = None) -> list[dict]:
    """The rows that are no conversation: dicts of `file`, `line` (from 1), `reason`, `row` (80 characters).

    `path` is a file, or a folder in which the files of all three sources are read; None is the bundled rows.
    Raises DataError as `load` does.
    """
    path = Path(path or DATA / "rows")
    chosen = [file for name in SOURCES for file in _in_folder(name, path)] if path.is_dir() else [path]
    return [
        {"file": str(file), "line": line, "reason": messages, "row": text[:80]}
        for file in chosen
        for line, text, _, messages in _conversations(file)
        if isinstance(messages, str)
    ]


def files(name: str, path: str | Path | None = None, *, revision: str | None = None) -> list[Path]:
    """The files `load` reads: `path` itself or, in a folder at any depth, the released file or parts of it.

    Raises DataError for an unknown name, and where there is nothing to read.
    """
    if name not in SOURCES:
        raise DataError(f"There is no source {name!r}. The three are: {', '.join(SOURCES)}.")
    if path == "hub":
        return [_download(name, revision)]
    path = Path(path or DATA / "rows")
    released, parts, *_ = SOURCES[name]
    if not path.exists():
        raise DataError(f"{path} does not exist. Point AURORA_DATA at a folder that holds {released}.")
    found = _in_folder(name, path) if path.is_dir() else [path]
    if not found:
        wanted = ", ".join([released, *(f"{part}.json[l]" for part in parts)])
        raise DataError(
            f"{path} holds no file of {name} ({wanted}). Point AURORA_DATA at a folder that does."
        )
    return found


def _in_folder(name: str, folder: Path) -> list[Path]:
    released, parts, *_ = SOURCES[name]
    whole = sorted(folder.rglob(released), key=lambda file: (len(file.parts), file))
    found = {file for part in parts for file in folder.rglob(part) if file.suffix in (".json", ".jsonl")}
    return whole[:1] or sorted(found)


def _download(name: str, revision: str | None) -> Path:
    """The released file, fetched as a file: our own reader then treats its bad rows as it does anywhere."""
    from huggingface_hub import hf_hub_download

    released, _, repository, folder = SOURCES[name]
    try:
        file = Path(hf_hub_download(repository, folder + released, repo_type="dataset", revision=revision))
    except Exception as error:  # offline, moved, disk full: many kinds, and one remedy for all of them
        raise DataError(
            f"{released} could not be had from the Hugging Face hub ({repository}: {type(error).__name__}). "
            "Check the network, set HF_ENDPOINT to a mirror, or set AURORA_DATA to a folder that has it."
        ) from error
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha1").hexdigest()
    if name in RELEASED and found not in RELEASED[name]:
        warnings.warn(
            f"{released} is not the file the paper's stack used: its SHA-1 is {found}. Its counts will differ; "
            "name an older revision, or set AURORA_DATA to a folder with the original.",
            stacklevel=2,
        )
    return file


def _conversations(file: Path) -> Iterator[tuple[int, str, object, list[dict] | str]]:
    """Each row as line, beginning of its text, value, and its messages or the reason why it has none."""
    good, spoilt = 0, None
    for line, text, row in json_rows.read(file):
        try:
            messages = _messages(row)
            good += 1
        except _NotAConversation as error:
            messages = str(error)
            spoilt = spoilt or (line if SURROGATE.search(text) else None)
            if messages == json_rows.STOPS:
                warnings.warn(
                    f"{file} stops in the middle, at line {line}; what came before is used. {AGAIN}",
                    stacklevel=2,
                )
        yield line, text, row, messages
    if spoilt and not good:
        raise DataError(f"{file} is not UTF-8 (line {spoilt}). Convert it to UTF-8, or check AURORA_DATA.")


def _messages(row: object) -> list[dict]:
    """The conversation in one row, whatever its layout. Raises _NotAConversation with the reason."""
    if isinstance(row, json_rows.Unreadable):
        raise _NotAConversation(str(row))
    if not isinstance(row, dict):
        raise _NotAConversation(f"the row is {_kind(row)}, not an object")
    row = {CHINESE_KEYS.get(key, key): value for key, value in row.items()}
    key = next((key for key in ("messages", "conversations", "conversation") if key in row), None)
    if key:
        if isinstance(row[key], str) and row[key].lstrip().startswith("["):
            row[key] = _parsed(row[key])  # a list that was written as JSON twice
        if not isinstance(row[key], list):
            raise _NotAConversation(f"`{key}` is {_kind(row[key])}, not a list of turns")
        messages = [message for turn in row[key] for message in _turn(turn)]
    elif row.keys() & {"instruction", "input", "output"}:
        messages = _alpaca(row)
    else:
        raise _NotAConversation(f"no known layout (its keys: {', '.join(row)[:60] or 'none'})")
    for role in ("user", "assistant"):
        if not any(message["role"] == role for message in messages):
            raise _NotAConversation(f"no {role} turn")
    if (characters := sum(len(message["content"]) for message in messages)) > MOST_CHARACTERS:
        raise _NotAConversation(f"{characters:,} characters, more than {MOST_CHARACTERS:,}")
    return messages


def _parsed(text: str) -> object:
    try:
        return json_rows.JSON.decode(text)
    except (ValueError, RecursionError):
        return text


def _alpaca(row: dict) -> list[dict]:
    """`{instruction, input, output}`, with earlier `[question, answer]` pairs in an optional `history`."""
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise _NotAConversation("`history` is not a list of [question, answer] pairs")
    about = _text(row, "input") if row.get("input") is not None else ""
    asked = "\n".join(filter(None, (_text(row, "instruction"), about)))
    texts = [_text({"history": text}, "history") for pair in history for text in pair] + [
        asked,
        _text(row, "output"),
    ]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _turn(turn: object) -> list[dict]:
    """One turn: `{human, assistant}` is up to two messages, `{from, value}` and `{role, content}` are one."""
    if not isinstance(turn, dict):
        raise _NotAConversation(f"a turn is {_kind(turn)}, not an object")
    if "human" in turn:
        keys = ("human", "assistant") if turn.get("assistant") is not None else ("human",)
        return [{"role": ROLES[key], "content": _text(turn, key)} for key in keys]
    by, said = ("from", "value") if "from" in turn else ("role", "content")
    if not isinstance(turn.get(by), str) or turn[by] not in ROLES:
        raise _NotAConversation(f"a turn is by {turn.get(by)!r:.40}: not a user, assistant or system")
    return [{"role": ROLES[turn[by]], "content": _text(turn, said)}]


def _text(holder: dict, key: str) -> str:
    if key not in holder:
        raise _NotAConversation(f"`{key}` is missing")
    if not isinstance(holder[key], str):
        raise _NotAConversation(f"`{key}` is {_kind(holder[key])}, not text")
    if SURROGATE.search(holder[key]):
        raise _NotAConversation(f"`{key}` holds bytes that are not UTF-8, or half a surrogate pair")
    return holder[key]


def _kind(value: object) -> str:
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "null")

"""Readers: rows and folders become conversations; what is none is named by file, line and reason."""

import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
import warnings
from pathlib import Path
from unittest.mock import ANY, Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aurora_lib.course import rows as rows_of
from aurora_lib.data import clean, cleaning, sources
from aurora_lib.data.sources import DataError

GOOD = {"instruction": "法国的首都是哪里？", "input": "", "output": "法国的首都是巴黎。"}
ROW = json.dumps(GOOD, ensure_ascii=False)
EXAMPLES = tomllib.loads(Path(__file__).with_name("layouts.toml").read_text(encoding="utf-8"))


def write(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
    return file


def rows(folder: Path, *found, name: str = "rows.json") -> Path:
    return write(folder, name, json.dumps(found, ensure_ascii=False, indent=2))


def read(file: Path):
    """How many rows of `file` are conversations, and what is wrong with the others: {line: reason}."""
    reading = sources.read(file)
    assert {(row["source"], row["file"]) for row in reading.aside} <= {("own", str(file))}
    return len(reading.conversations), {row["line"]: row["reason"] for row in reading.aside}


@pytest.mark.parametrize(("row", "expected"), EXAMPLES["read"])
def test_every_known_layout_becomes_messages(tmp_path, row, expected):
    (found,) = sources.read(write(tmp_path, "rows.jsonl", row)).conversations["messages"]
    assert " ".join(message["role"][0] + message["content"] for message in found) == expected


def test_of_every_few_rows_one_is_read_and_that_is_said(tmp_path):
    reading = sources.read(write(tmp_path, "rows.jsonl", "\n".join([ROW] * 5 + ["{}"])), every=2)
    assert [each[-3:] for each in reading.conversations["id"]] == ["[1]", "[3]", "[5]"]
    assert not reading.aside and "a sample: one row of every 2 in a file" in reading.remarks


@pytest.mark.parametrize(("row", "reason"), EXAMPLES["set_aside"])
def test_a_row_that_is_no_conversation_is_set_aside_with_its_reason(tmp_path, row, reason):
    loaded, aside = read(write(tmp_path, "rows.json", f"[{json.dumps(GOOD)},\n{row}]"))
    assert loaded == 1 and list(aside) == [2] and reason in aside[2]


@pytest.mark.parametrize(("text", "what"), EXAMPLES["refused"])
def test_a_file_without_one_conversation_is_refused_and_said_to_be_what_it_seems(tmp_path, text, what):
    file = write(tmp_path, "rows.json", text)
    with warnings.catch_warnings(), pytest.raises(DataError) as refused:
        warnings.simplefilter("ignore")
        sources.read(file)
    assert str(refused.value).startswith(f"{file} ") and what in str(refused.value)


@pytest.mark.parametrize(("name", "text", "loaded", "aside"), EXAMPLES["lines"])
def test_every_row_is_read_or_set_aside_with_its_line(tmp_path, name, text, loaded, aside):
    file = write(tmp_path, name, text.replace("<ROW>", ROW))
    assert read(file) == (loaded, dict.fromkeys(aside, ANY))


def test_a_row_of_megabytes_is_set_aside_and_the_rest_goes_on(tmp_path):
    long = json.dumps(GOOD | {"output": "长" * 9_000_000}, ensure_ascii=False)
    loaded, aside = read(write(tmp_path, "a.jsonl", "\n".join([ROW, long, ROW, ROW])))
    assert loaded == 3 and aside[2] == "more than 200,000 characters"


def test_the_rows_of_an_array_are_those_that_pythons_own_parser_finds(tmp_path):
    wanted = [GOOD | {"output": '答\\n"}, {' * i + "。", "input": str(i)} for i in range(40)]
    wanted += [12345, None, "}, {", -1.5e10, True]
    file = write(tmp_path, "a.json", "\ufeff" + json.dumps(wanted, ensure_ascii=False, indent=1))
    assert [row.value for row in rows_of.read_rows(file)] == wanted


KEYS = [*GOOD, "role", "content", "history", "messages", "conversation", "from", "value"]
KEYS += ["human", "assistant"]
PLAIN = st.none() | st.integers() | st.text(max_size=20)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner)
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(JSON, max_size=8))
def test_any_json_is_loaded_or_set_aside(found):
    found.insert(0, GOOD)  # a file without a conversation is refused
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in found)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("a.json", json.dumps(found)), ("a.jsonl", f"{lines}\n")):
            reading = sources.read(write(Path(folder), name, text))
            assert len(reading.conversations) + len(reading.aside) == len(found)
            assert len(set(reading.conversations["id"])) == len(reading.conversations)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Counted in a process of its own, through which half a gigabyte passes."""
    line = json.dumps(GOOD | {"output": "长" * 300_000}).encode() + b"\n"
    with (file := tmp_path / "a.jsonl").open("wb") as out:
        for _ in range(300):
            out.write(line)
    code = "import sys; from pathlib import Path; from aurora_lib.course.machine import peak_rss; "
    code += "from aurora_lib.course.rows import read_rows; before = peak_rss(); "
    code += "print(sum(1 for _ in read_rows(Path(sys.argv[1]))), peak_rss() - before)"
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    read, grown = done.stdout.split()
    assert int(read) == 300 and file.stat().st_size > 500e6 and float(grown) < 0.2


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json does not exist.*AURORA_DATA"):
        sources.read(tmp_path / "gone.json")
    with pytest.raises(DataError, match=r"holds no file of alpaca_gpt4_zh \(alpaca_gpt4_data_zh\.json"):
        rows(tmp_path, GOOD, name="alpaca_zh.json") and sources.read(tmp_path)
    with pytest.raises(DataError, match=r"holds no file of rows: none ends in \.json, \.jsonl, \.parquet"):
        sources.read(write(tmp_path, "csv/rows.csv", "a,b").parent)


def test_no_network_names_the_local_remedy(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=ConnectionError("no route")))
    with pytest.raises(DataError, match=r"alpaca_data_zh_51k\.json could not be had.*AURORA_DATA"):
        sources.read("hub")


def test_a_download_that_is_not_the_released_file_is_told(tmp_path, monkeypatch):
    file = rows(tmp_path, GOOD, name="alpaca_data_zh_51k.json")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    known = [hashlib.sha1(file.read_bytes()).hexdigest()]
    monkeypatch.setitem(sources.SOURCES["alpaca_gpt4_zh"], "sha1", known)
    with pytest.warns(UserWarning) as told:
        assert len(sources.read("hub").conversations) == 3
    (one,) = told  # the second has the right sum, and for the third none is known
    assert str(one.message).startswith("alpaca_data_zh_51k.json is not the file of the paper's stack")


def test_in_a_folder_the_released_file_comes_before_parts_of_it_and_what_is_not_read_is_said(tmp_path):
    for name in ("alpaca_gpt4_zh.json", "sharegpt_zh.json", "alpaca_zh_part.json", "alpaca_zh_part (1).json"):
        rows(tmp_path, GOOD, name=name)
    rows(tmp_path, GOOD, name=".ipynb_checkpoints/alpaca_zh_part-checkpoint.json")
    assert [file.name for file in sources.files(tmp_path)["alpaca_zh"]] == ["alpaca_zh_part.json"]
    assert sources.read(tmp_path).remarks[0].startswith("not read: alpaca_zh_part (1).json. To read")
    released = rows(tmp_path / "deep", GOOD, GOOD, name="alpaca_data_zh_51k.json")
    rows(tmp_path, GOOD, name="mine.json")
    assert sources.files(tmp_path)["alpaca_zh"] == [released]
    reading = sources.read(str(tmp_path))
    assert len(reading.conversations) == 4
    assert "not read: alpaca_zh_part (1).json, alpaca_zh_part.json, mine.json. To" in reading.remarks[0]


def test_a_file_is_read_once_and_by_its_name(tmp_path):
    for name, source in (("mine.json", "own"), ("common_zh_2.json", "sharegpt_zh")):
        reading = sources.read(rows(tmp_path, GOOD, name=name))
        assert reading.conversations["source"][:] == [source] and not reading.remarks
    for name in ("a.json", "b.jsonl"):
        rows(tmp_path / "several", GOOD, name=name)
    assert sources.read(tmp_path / "several").conversations["source"][:] == ["own", "own"]


def test_the_account_says_what_became_of_every_row(tmp_path):
    bad = [None] * 4 + [7] * 3 + [{"instruction": "问"}] * 2 + [[], GOOD | {"output": 3}]
    found = [GOOD, GOOD, GOOD | {"input": "？", "tools": "[{}]"}, GOOD | {"output": ""}, *bad]
    reading = sources.read(rows(tmp_path, *found))
    told, remark = cleaning.account(reading, clean(reading.conversations)).splitlines()
    reasons = "4 x the row is null, not an object; 3 x the row is a number, not an object; 2 x `output` is"
    assert told == f"own: 15 rows = 11 set aside ({reasons} missing; ...) + 3 dropped + 1 kept"
    assert remark == "own: tools are left out (rows that name some: 1)"
    reading = sources.read(rows(tmp_path, GOOD | {"output": ""}))
    told = cleaning.account(reading, clean(reading.conversations))
    assert told == "own: 1 rows = 0 set aside + 1 dropped + 0 kept"


def test_ids_are_unique_and_stable_over_several_files(tmp_path):
    for folder in (tmp_path, tmp_path / "x"):
        rows(folder, GOOD, None, GOOD, name="mine.json")
    ids, again = (sources.read(tmp_path).conversations["id"][:] for _ in range(2))
    assert len(set(ids)) == 4 and ids == again

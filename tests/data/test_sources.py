"""Readers: the released layouts become conversations, and what is none is named by line and reason."""

import hashlib
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest.mock import ANY

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aurora_lib.data import sources
from aurora_lib.data.sources import DataError
from tests.data.conversations import EXAMPLES, talk

GOOD = {"instruction": "法国的首都是哪里？", "input": "", "output": "法国的首都是巴黎。"}
(ASKED, ANSWERED), SYSTEM = talk("问", "答"), {"role": "system", "content": "简"}


def write(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def rows(folder: Path, *found, name: str = "rows.json") -> Path:
    return write(folder, name, json.dumps(found, ensure_ascii=False, indent=2))


def read(file: Path):
    """How many rows of `file` are conversations, and what is wrong with the others: {line: reason}."""
    aside = sources.rejected("alpaca_zh", file)
    assert {row["file"] for row in aside} <= {str(file)}
    return len(sources.load("alpaca_zh", file)), {row["line"]: row["reason"] for row in aside}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "问", "input": "", "output": "答"}, [ASKED, ANSWERED]),
        ({"instruction": "问", "output": "答"}, [ASKED, ANSWERED]),
        ({"指示": "问", "输入": "", "输出": "答"}, [ASKED, ANSWERED]),
        (GOOD | {"instruction": "问", "input": "料"}, talk("问\n料", GOOD["output"])),
        (
            {"instruction": "问", "output": "答", "history": [["早", "好"]]},
            [*talk("早", "好"), ASKED, ANSWERED],
        ),
        ({"conversation_id": 1, "conversation": [{"human": "问", "assistant": "答"}]}, [ASKED, ANSWERED]),
        ({"conversation": [{"human": "问", "assistant": "答"}, {"human": "问"}]}, [ASKED, ANSWERED, ASKED]),
        (
            {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
            [ASKED, ANSWERED],
        ),
        ({"messages": [SYSTEM, ASKED, ANSWERED]}, [SYSTEM, ASKED, ANSWERED]),
    ],
)
def test_every_known_layout_becomes_messages(tmp_path, row, expected):
    assert sources.load("alpaca_zh", rows(tmp_path, row))[0]["messages"] == expected


@pytest.mark.parametrize(("row", "reason"), EXAMPLES["set_aside"])
def test_a_row_that_is_no_conversation_is_set_aside_with_its_reason(tmp_path, row, reason):
    loaded, aside = read(write(tmp_path, "rows.json", f"[{json.dumps(GOOD)},\n{row}]"))
    assert loaded == 1 and list(aside) == [2] and reason in aside[2]


ROW = json.dumps(GOOD, ensure_ascii=False)


@pytest.mark.parametrize(
    ("name", "text", "loaded", "aside"),
    [
        ("a.json", f'[\n{ROW},\n\n  null,\n {{"a":\n1}}, {ROW}\n, 5]\n', 2, [4, 5, 7]),
        ("a.jsonl", f"{ROW}\n\n{{bad\n{ROW}\n3\n", 2, [3, 5]),
        # a broken row does not hide those behind it
        ("a.json", f'[{ROW},\n{{"instruction": "a" "output": "b"}},\n{ROW},\n{{"x": }}\n]', 2, [2, 4]),
        ("a.json", f'[{ROW},\n{{"instruction": "a\tb", "output": "a raw\nbreak"}},\n {ROW}]', 3, []),
        # nesting without end is one bad row, and so is one in another encoding
        ("a.jsonl", f"{ROW}\n{'[' * 100_000}\n{ROW}\n", 2, [2]),
        ("a.jsonl", f"{ROW}\n".encode() + f"{ROW}\n".encode("gbk") + ROW.encode(), 2, [2]),
        ("a.json", f"[{ROW},\n".encode() + f"{ROW},\n".encode("gbk") + f"{ROW}]".encode(), 2, [2]),
        # bytes before the first row, several rows a line
        ("a.json", f"\ufeff\n [{ROW},{ROW}\n,7]", 2, [3]),
        ("a.jsonl", f"\ufeff{ROW}\n7", 1, [2]),
        ("a.json", f"{ROW}\n{ROW}\n", 2, []),
    ],
)
def test_every_row_is_read_or_set_aside_with_its_line(tmp_path, name, text, loaded, aside):
    assert read(write(tmp_path, name, text)) == (loaded, dict.fromkeys(aside, ANY))


@pytest.mark.parametrize("share", [0.31, 0.93, 0.99])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_truncated_file_says_where_it_stops(tmp_path, name, share):
    text = "\n".join(json.dumps(GOOD | {"input": str(i)}) + "," * (name == "a.json") for i in range(20))
    whole = f"[\n{text[:-1]}\n]" if name == "a.json" else text
    cut = whole[: int(len(whole) * share)]
    file = write(tmp_path, name, cut)
    told = rf"{name} stops in the middle, at line {1 + cut.count(chr(10))}.*AURORA_DATA"
    with pytest.warns(UserWarning, match=told):
        loaded = sources.load("alpaca_zh", file)
    assert [row["messages"][0]["content"][-1] for row in loaded] == [str(i)[-1] for i in range(len(loaded))]
    with pytest.warns(UserWarning):
        (found,) = sources.rejected("alpaca_zh", file)
    assert len(loaded) == cut.count("\n") - (name == "a.json") and "stops in the middle" in found["reason"]


@pytest.mark.parametrize(("cut", "complete"), [(1, 2), (3, 1)])
def test_an_array_that_was_never_closed_keeps_its_complete_rows(tmp_path, cut, complete):
    file = write(tmp_path, "a.json", f"[{json.dumps(GOOD)},\n{json.dumps(GOOD)}]"[:-cut])
    with pytest.warns(UserWarning, match="stops in the middle"):
        assert len(sources.load("alpaca_zh", file)) == complete


@pytest.mark.parametrize(
    ("millions", "reason"),
    [(1, "1,000,009 characters, more"), (9, "the row is longer than 8,000,000 characters")],
)
def test_a_row_of_megabytes_is_set_aside_and_the_rest_goes_on(tmp_path, millions, reason):
    long = json.dumps(GOOD | {"output": "长" * (millions * 1_000_000)}, ensure_ascii=False)
    loaded, aside = read(write(tmp_path, "a.jsonl", "\n".join([ROW, long, ROW, ROW])))
    assert loaded == 3 and aside[2].startswith(reason)


def test_the_rows_of_an_array_are_those_that_pythons_own_parser_finds(tmp_path):
    wanted = [GOOD | {"output": '答\\n"}, {' * i + "。", "input": str(i)} for i in range(40)]
    wanted += [12345, None, "}, {", -1.5e10, True]
    file = write(tmp_path, "a.json", "\ufeff" + json.dumps(wanted, ensure_ascii=False, indent=1))
    assert [row.value for row in sources.read_rows(file)] == wanted


KEYS = [*GOOD, *ASKED, "history", "messages", "conversation", "from", "value", "human", "assistant"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
        ),
        max_size=8,
    )
)
def test_any_json_is_loaded_or_set_aside(found):
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in found)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("a.json", json.dumps(found)), ("a.jsonl", f"{lines}\n")):
            file = write(Path(folder), name, text)
            if text.strip():
                loaded = sources.load("alpaca_zh", file)
                assert len(loaded) + len(sources.rejected("alpaca_zh", file)) == len(found)
                assert len(set(loaded["id"])) == len(loaded)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Counted in a process of its own, through which half a gigabyte passes."""
    line = json.dumps(GOOD | {"output": "长" * 300_000}).encode() + b"\n"
    with (file := tmp_path / "a.jsonl").open("wb") as out:
        for _ in range(300):
            out.write(line)
    code = "import sys; from pathlib import Path; from aurora_lib.course.machine import peak_rss; "
    code += "from aurora_lib.data.sources import read_rows; before = peak_rss(); "
    code += "print(sum(1 for _ in read_rows(Path(sys.argv[1]))), peak_rss() - before)"
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    read, grown = done.stdout.split()
    assert int(read) == 300 and file.stat().st_size > 500e6 and float(grown) < 0.2


def test_unknown_sources_and_missing_empty_or_wrongly_encoded_files_are_named(tmp_path):
    with pytest.raises(DataError, match="alpaca_zh, alpaca_gpt4_zh, sharegpt_zh"):
        sources.load("alpaca")
    with pytest.raises(DataError, match=r"gone\.json does not exist.*AURORA_DATA"):
        sources.load("alpaca_zh", tmp_path / "gone.json")
    for text in ("", " \n"):
        with pytest.raises(DataError, match=r"none\.json is empty.*AURORA_DATA"):
            sources.load("alpaca_zh", write(tmp_path, "none.json", text))
    for encoding in ("gb18030", "utf-16"):
        text = json.dumps([GOOD, GOOD], ensure_ascii=False)
        with pytest.raises(DataError, match=r"gbk\.json is not UTF-8 \(line 1\)"):
            sources.load("alpaca_zh", write(tmp_path, "gbk.json", text.encode(encoding)))
    with pytest.raises(DataError, match=r"holds no file of sharegpt_zh \(common_zh_70k\.jsonl"):
        sources.load("sharegpt_zh", tmp_path)


def test_no_network_names_the_local_remedy(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(DataError, match=r"common_zh_70k\.jsonl could not be had.*AURORA_DATA"):
        sources.load("sharegpt_zh", "hub")


def test_a_download_that_is_not_the_released_file_is_told(tmp_path, monkeypatch):
    file = rows(tmp_path, GOOD, name="alpaca_data_zh_51k.json")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    with pytest.warns(UserWarning, match=r"alpaca_data_zh_51k\.json is not the file of the paper's stack"):
        assert len(sources.load("alpaca_zh", "hub")) == 1
    monkeypatch.setitem(sources.SOURCES["alpaca_zh"], "sha1", [hashlib.sha1(file.read_bytes()).hexdigest()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(sources.load("alpaca_zh", "hub")) == 1


def test_in_a_folder_the_released_file_comes_before_parts_of_it(tmp_path):
    (tmp_path / "deep").mkdir()
    part = rows(tmp_path, GOOD, name="alpaca_zh_part.json")
    assert sources.files("alpaca_zh", tmp_path) == [part]
    released = rows(tmp_path / "deep", GOOD, GOOD, name="alpaca_data_zh_51k.json")
    assert sources.files("alpaca_zh", tmp_path) == [released]
    assert len(sources.load("alpaca_zh", str(tmp_path))) == 2


def test_ids_are_unique_and_stable_over_several_files(tmp_path):
    (tmp_path / "x").mkdir()
    for folder in (tmp_path, tmp_path / "x"):
        rows(folder, GOOD, None, GOOD, name="alpaca_zh_part.json")
    ids = sources.load("alpaca_zh", tmp_path)["id"]
    assert len(set(ids)) == 4 and list(ids) == list(sources.load("alpaca_zh", tmp_path)["id"])


def test_a_file_of_nothing_but_bad_rows_gives_an_empty_dataset(tmp_path):
    found = sources.load("alpaca_zh", rows(tmp_path, None, 3))
    assert len(found) == 0 and found.column_names == ["id", "source", "category", "messages"]

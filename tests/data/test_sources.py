"""Readers: the released layouts become conversations, and what is none is named by line and reason."""

import hashlib
import json
import os
import tracemalloc
import warnings
from pathlib import Path

import pytest

from aurora_lib.data import sources
from aurora_lib.data.sources import DataError

GOOD = {"instruction": "法国的首都是哪里？", "input": "", "output": "法国的首都是巴黎。"}
ASKED, ANSWERED = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}


def write(folder: Path, name: str, text: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def rows(folder: Path, *found, name: str = "rows.json") -> Path:
    return write(folder, name, json.dumps(found, ensure_ascii=False, indent=2))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "问", "input": "", "output": "答"}, [ASKED, ANSWERED]),
        ({"instruction": "问", "output": "答"}, [ASKED, ANSWERED]),
        ({"指示": "问", "输入": "", "输出": "答"}, [ASKED, ANSWERED]),
        (
            {"instruction": "问", "input": "料", "output": "答"},
            [{"role": "user", "content": "问\n料"}, ANSWERED],
        ),
        (
            {"instruction": "问", "input": "", "output": "答", "history": [["早", "好"]]},
            [{"role": "user", "content": "早"}, {"role": "assistant", "content": "好"}, ASKED, ANSWERED],
        ),
        ({"conversation_id": 1, "conversation": [{"human": "问", "assistant": "答"}]}, [ASKED, ANSWERED]),
        ({"conversation": [{"human": "问", "assistant": "答"}, {"human": "问"}]}, [ASKED, ANSWERED, ASKED]),
        (
            {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
            [ASKED, ANSWERED],
        ),
        (
            {"conversations": json.dumps([ASKED, ANSWERED])},
            [ASKED, ANSWERED],
        ),
        (
            {"messages": [{"role": "system", "content": "简"}, ASKED, ANSWERED]},
            [{"role": "system", "content": "简"}, ASKED, ANSWERED],
        ),
    ],
)
def test_every_known_layout_becomes_messages(tmp_path, row, expected):
    assert sources.load("alpaca_zh", rows(tmp_path, row))[0]["messages"] == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "the row is null, not an object"),
        (7, "the row is a number, not an object"),
        ("问", "the row is text, not an object"),
        ([], "the row is a list, not an object"),
        ({"instruction": "问", "input": ""}, "`output` is missing"),
        ({"instruction": "问", "output": 3}, "`output` is a number, not text"),
        ({"instruction": None, "output": "答"}, "`instruction` is null, not text"),
        ({"instruction": "问", "output": "答", "history": ["早"]}, "`history` is not a list of"),
        ({"instruction": "问", "output": "答", "history": [["早", None]]}, "`history` is null, not text"),
        ({"instruction": "问", "output": "\ud83d"}, "half a surrogate pair"),
        ({"conversation": []}, "no user turn"),
        ({"conversation": [{"human": "问"}]}, "no assistant turn"),
        ({"conversation": None}, "`conversation` is null, not a list of turns"),
        ({"conversations": [{"from": ["x"], "value": "问"}]}, "not a user, assistant or system"),
        ({"conversations": [{"from": "gpt"}]}, "`value` is missing"),
        ({"conversation": [None, {"human": None}]}, "a turn is null, not an object"),
        ({"messages": [{"role": "user", "content": {"text": None}}]}, "`content` is an object, not text"),
        ({"conversations": "[{"}, "`conversations` is text, not a list of turns"),
        ({"text": "问"}, "no known layout (its keys: text)"),
    ],
)
def test_a_row_that_is_no_conversation_is_set_aside_with_its_reason(tmp_path, row, reason):
    file = write(tmp_path, "rows.json", json.dumps([GOOD, row], indent=1))
    assert len(sources.load("alpaca_zh", file)) == 1
    (found,) = sources.rejected(file)
    assert reason in found["reason"]
    assert found["line"] == 7 and found["file"] == str(file)


def test_line_numbers_are_those_of_the_file(tmp_path):
    file = write(
        tmp_path, "a.json", f'[\n{json.dumps(GOOD)},\n\n  null,\n {{"a":\n1}}, {json.dumps(GOOD)}\n, 5]\n'
    )
    assert [found["line"] for found in sources.rejected(file)] == [4, 5, 7]
    assert len(sources.load("alpaca_zh", file)) == 2
    lines = write(tmp_path, "a.jsonl", f"{json.dumps(GOOD)}\n\n{{bad\n{json.dumps(GOOD)}\n3\n")
    assert [found["line"] for found in sources.rejected(lines)] == [3, 5]
    assert len(sources.load("alpaca_zh", lines)) == 2


def test_a_broken_row_does_not_hide_those_behind_it(tmp_path):
    good = json.dumps(GOOD)
    file = write(
        tmp_path, "a.json", f'[{good},\n{{"instruction": "a" "output": "b"}},\n{good},\n{{"x": }}\n]'
    )
    assert len(sources.load("alpaca_zh", file)) == 2
    assert [(f["line"], f["reason"][:14]) for f in sources.rejected(file)] == [
        (2, "not valid JSON"),
        (4, "not valid JSON"),
    ]


def test_nesting_without_end_is_one_bad_row(tmp_path):
    file = write(tmp_path, "a.jsonl", f"{json.dumps(GOOD)}\n{'[' * 100_000}\n{json.dumps(GOOD)}\n")
    assert len(sources.load("alpaca_zh", file)) == 2
    assert sources.rejected(file)[0]["line"] == 2


@pytest.mark.parametrize("share", [0.31, 0.55, 0.93, 0.99])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_truncated_file_says_where_it_stops(tmp_path, name, share):
    text = "\n".join(json.dumps(GOOD | {"input": str(i)}) + "," * (name == "a.json") for i in range(20))
    whole = f"[\n{text[:-1]}\n]" if name == "a.json" else text
    cut = whole[: int(len(whole) * share)]
    file = write(tmp_path, name, cut)
    with pytest.warns(
        UserWarning, match=rf"{name} stops in the middle, at line {1 + cut.count(chr(10))}.*AURORA_DATA"
    ):
        loaded = sources.load("alpaca_zh", file)
    assert [row["messages"][0]["content"][-1] for row in loaded] == [str(i)[-1] for i in range(len(loaded))]
    with pytest.warns(UserWarning):
        (found,) = sources.rejected(file)
    assert len(loaded) == cut.count("\n") - (name == "a.json") and "stops in the middle" in found["reason"]


@pytest.mark.parametrize(("cut", "complete"), [(1, 2), (3, 1)])
def test_an_array_that_was_never_closed_keeps_its_complete_rows(tmp_path, cut, complete):
    file = write(tmp_path, "a.json", f"[{json.dumps(GOOD)},\n{json.dumps(GOOD)}]"[:-cut])
    with pytest.warns(UserWarning, match="stops in the middle"):
        assert len(sources.load("alpaca_zh", file)) == complete


def padded(megabytes: int) -> str:
    return json.dumps(GOOD | {"output": "长" * (megabytes << 20)}, ensure_ascii=False)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_row_of_50_megabytes_is_set_aside_and_the_rest_goes_on(tmp_path, name):
    good, array = json.dumps(GOOD, ensure_ascii=False), name == "a.json"
    found = [good, padded(17), good, good]
    text = f"[{','.join(found)}]" if array else "\n".join(found)
    file = write(tmp_path, name, text)
    assert file.stat().st_size > 50 << 20
    assert len(sources.load("sharegpt_zh", file)) == 3
    (aside,) = sources.rejected(file)
    assert aside["reason"] == "the row is longer than 8 MiB" and aside["line"] == (1 if array else 2)


def test_a_million_character_answer_is_set_aside(tmp_path):
    file = rows(tmp_path, GOOD, GOOD | {"output": "长" * 1_000_000}, GOOD)
    assert len(sources.load("alpaca_zh", file)) == 2
    assert sources.rejected(file)[0]["reason"].startswith("1,000,009 characters, more than")


def test_an_array_read_in_small_pieces_is_the_same_array(tmp_path, monkeypatch):
    """Against Python's own parser, with the window's edge at every place in a row."""
    wanted = [GOOD | {"output": '答\\n"}, {' * i + "。", "input": str(i)} for i in range(40)]
    file = write(tmp_path, "a.json", "\ufeff" + json.dumps(wanted, ensure_ascii=False, indent=1))
    for chunk in (1, 7, 64, 1000):
        monkeypatch.setattr(sources.json_rows, "CHUNK", chunk)
        assert [value for _, _, value in sources.json_rows.read(file)] == wanted


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A thousand times the window passes through it."""
    file = write(
        tmp_path, "a.json", "[" + ",".join([json.dumps(GOOD | {"output": "长" * 300})] * 10_000) + "]"
    )
    tracemalloc.start()
    assert sum(1 for _ in sources.json_rows.read(file)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.stat().st_size > 18e6 and peak < 9e6


def test_missing_empty_and_wrongly_encoded_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json does not exist.*AURORA_DATA"):
        sources.load("alpaca_zh", tmp_path / "gone.json")
    with pytest.raises(DataError, match=r"none\.json is empty.*AURORA_DATA"):
        sources.load("alpaca_zh", write(tmp_path, "none.json", " \n"))
    for encoding in ("gb18030", "utf-16"):
        text = json.dumps([GOOD, GOOD], ensure_ascii=False)
        with pytest.raises(DataError, match=r"gbk\.json is not UTF-8 \(line 1\)"):
            sources.load("alpaca_zh", write(tmp_path, "gbk.json", text.encode(encoding)))
    with pytest.raises(DataError, match=r"holds no file of sharegpt_zh \(common_zh_70k\.jsonl"):
        sources.load("sharegpt_zh", tmp_path)


def test_one_row_in_another_encoding_is_one_bad_row(tmp_path):
    good = json.dumps(GOOD, ensure_ascii=False)
    file = write(tmp_path, "a.jsonl", f"{good}\n".encode() + f"{good}\n".encode("gbk") + good.encode())
    assert len(sources.load("alpaca_zh", file)) == 2
    assert sources.rejected(file)[0]["line"] == 2


def test_an_unknown_source_lists_the_three():
    with pytest.raises(DataError, match="alpaca_zh, alpaca_gpt4_zh, sharegpt_zh"):
        sources.load("alpaca")


def test_no_network_names_the_local_remedy(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(DataError, match=r"common_zh_70k\.jsonl could not be had.*AURORA_DATA"):
        sources.load("sharegpt_zh", "hub")


def test_a_download_that_is_not_the_released_file_is_told(tmp_path, monkeypatch):
    file = rows(tmp_path, GOOD, name="alpaca_data_zh_51k.json")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    with pytest.warns(UserWarning, match=r"alpaca_data_zh_51k\.json is not the file the paper's stack used"):
        assert len(sources.load("alpaca_zh", "hub")) == 1
    monkeypatch.setitem(sources.RELEASED, "alpaca_zh", {hashlib.sha1(file.read_bytes()).hexdigest()})
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


@pytest.mark.skipif(not os.environ.get("AURORA_DATA"), reason="AURORA_DATA does not point at real rows")
def test_real_rows_load_and_clean():
    from datasets import concatenate_datasets

    from aurora_lib.data import cleaning

    path = os.environ["AURORA_DATA"]
    result = cleaning.clean(concatenate_datasets([sources.load(name, path) for name in sources.SOURCES]))
    assert len(result.kept) > 0.9 * (len(result.kept) + len(result.dropped))
    assert cleaning.clean(result.kept).kept.to_list() == result.kept.to_list()

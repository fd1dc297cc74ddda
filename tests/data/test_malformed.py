"""Files in every format, damaged in every way: a clear sentence, no traceback, every row accounted for."""

import gzip
import json
import random
import re
import warnings

import pandas
import pytest

from aurora_lib.data import sources
from aurora_lib.data.sources import DataError

N = 7


def conversation(i: int, layout: str) -> dict:
    if layout == "mixed":
        layout = ("alpaca", "turns")[i % 2]
    asked, said = f'第{i}个问题："}}, {{" 是什么？', f"答案\u2028是{i}。\n\t{{[]}}" * 3
    if layout == "alpaca":
        return {"instruction": asked, "input": "", "output": said}
    turns = [{"from": by, "value": text} for by, text in (("human", asked), ("gpt", said)) * 2]
    return {"id": str(i), "conversations": turns, "tag": [i, {"from": i}]}


def texts(name: str, layout: str) -> list[str]:
    """The rows of a file as JSON."""
    indent = 1 if name.startswith("indented") else None
    return [json.dumps(conversation(i, layout), ensure_ascii=False, indent=indent) for i in range(N)]


FORMATS = {  # name: how its rows, as JSON, are joined
    "array.json": lambda rows: "[\n" + ",\n".join(rows) + "\n]\n",
    "array_in_a_line.jsonl": lambda rows: f"[{', '.join(rows)}]",
    "lines.jsonl": lambda rows: "\n".join(rows) + "\n",
    "lines_with_commas.json": lambda rows: ",\n".join(rows),
    "several_in_a_line.jsonl": lambda rows: f"{rows[0]}{rows[1]}\n" + " ".join(rows[2:]) + "\n",
    "two_arrays.json": lambda rows: f"[{','.join(rows[:3])}]\n[{','.join(rows[3:])}]",
    "wrapped.json": lambda rows: f'{{"version": 1.5, "data": [{", ".join(rows)}], "by": {{"a": ["b"]}}}}',
    "bom.json": lambda rows: "\ufeff[" + ",".join(rows) + ",]",
    "indented.json": lambda rows: "\n".join(rows),
    "indented_array.jsonl": lambda rows: "[\n" + ",\n".join(rows) + "\n]\n",
}
CASES = [(name, layout) for name in FORMATS for layout in ("alpaca", "turns", "mixed")]


def outcome(folder, name: str, content: bytes) -> tuple[int, list[str], list[str]]:
    """How many conversations, why rows were set aside, and all that was said; only DataError is raised."""
    file = folder / name
    file.write_bytes(content)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            reading = sources.read(file)
        except DataError as error:
            said = [str(error)]
            assert str(file) in said[0] and re.search(r"\. .*\.$", said[0]), said
            return 0, [], said
    reasons = [row["reason"] for row in reading.aside]
    return len(reading.conversations), reasons, [*reasons, *(str(told.message) for told in warned)]


def test_parquet_is_read(tmp_path):
    for layout in ("alpaca", "turns"):
        rows = pandas.DataFrame(conversation(i, layout) | {"tag": None} for i in range(N))
        assert outcome(tmp_path, "a.parquet", rows.to_parquet()) == (N, [], [])


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_whole_file_gives_every_row_and_one_cut_anywhere_says_where_it_stops(tmp_path, name, layout):
    rows, draw = texts(name, layout), random.Random(name + layout)
    packed = gzip.compress((whole := FORMATS[name](rows)).encode())
    for path, content in ((name, whole.encode()), (f"{name}.gz", packed)):
        assert outcome(tmp_path, path, content) == (N, [], [])
    ends = [whole.index(row) + len(row) for row in rows]
    for cut in draw.sample(range(1, len(whole) - 1), 12):
        complete = sum(end <= cut for end in ends)
        inside = any(end - len(row) < cut < end for row, end in zip(rows, ends, strict=True))
        loaded, reasons, said = outcome(tmp_path, name, whole[:cut].encode())
        assert loaded == complete, (cut, said)
        if complete:
            assert len(reasons) == inside, (cut, said)
        assert said or whole[cut - 1] in "}]\n, ", "something was cut off, and nothing said"
    loaded, _, said = outcome(tmp_path, f"{name}.gz", packed[: draw.randrange(20, len(packed) - 9)])
    assert loaded == 0 and "damaged or cut off" in said[0]


BREAK = {  # one row, spoilt
    "a missing comma": lambda row: re.sub(r'",(\s*)"', r'"\1"', row, count=1),
    "a missing quote": lambda row: row.replace('": "', '": ', 1),
    "an unclosed text": lambda row: re.sub(r'"(\s*[}\]])', r"\1", row),
    "a missing brace": lambda row: row[: row.rindex("}")],
    "a brace too many": lambda row: row + "}",
    "Python instead of JSON": lambda row: row.replace('"', "'"),
    "a word too many": lambda row: row.replace('",', '", oops', 1),
    "another encoding": lambda row: row.encode("gbk", "ignore").decode("utf-8", "surrogateescape"),
    "nested without end": lambda row: '{"instruction": ' + "[" * 30_000,
    "no conversation": lambda row: '{"instruction": 7, "output": {"a": [{}]}}',
    "huge": lambda row: row.replace("答案", "答案" * 150_000),
}


@pytest.mark.parametrize("broken", BREAK)
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_a_broken_row_costs_itself_and_no_other(tmp_path, name, layout, broken):
    for place in (1, N - 2):
        spoilt = texts(name, layout)
        spoilt[place] = BREAK[broken](spoilt[place])
        content = FORMATS[name](spoilt).encode("utf-8", "surrogateescape")
        loaded, reasons, said = outcome(tmp_path, name, content)
        assert (loaded, len(reasons)) == (N - 1, 1), said


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-16-le", "big5", "utf-32"])
def test_a_file_in_another_encoding_is_refused(tmp_path, encoding):
    for name in ("array.json", "lines.jsonl"):
        content = FORMATS[name](texts(name, "alpaca")).encode(encoding, "ignore")
        loaded, _, said = outcome(tmp_path, name, content)
        assert loaded == 0 and "is not UTF-8 (line" in said[0]

"""Released files to questions: bad rows are named, bad files an error; the hub; the bundled questions."""

import csv
import zipfile
from collections import Counter

import pandas as pd
import pytest

from aurora_lib.evaluation import benchmarks, evaluate
from aurora_lib.evaluation.benchmarks import TASKS, EvalError, load_questions, load_subjects
from tests.evaluation.conftest import BUNDLED, EXAMPLES, GEOGRAPHY, cells

ID_TO_ANSWER = "id,question,A,B,C,D,answer"
HEADERS = {
    "ceval": dict(dev=f"{ID_TO_ANSWER},explanation", val=ID_TO_ANSWER, test="id,question,A,B,C,D"),
    "cmmlu": dict.fromkeys(("dev", "test"), ",Question,A,B,C,D,Answer"),
    "mmlu": dict.fromkeys(("dev", "val", "test")),
}


BAD_ROWS = EXAMPLES["bad_rows"] | {"1,问,甲,乙,丙,丁,B".encode("gb18030"): "broken encoding"}


@pytest.mark.parametrize("row, reason", BAD_ROWS.items())
def test_a_bad_row_is_named_and_the_rest_is_read(write_task, row, reason):
    row = row if isinstance(row, bytes) else row.encode()
    first, last = (f"{i},问,甲,乙,丙,丁,A\n".encode() for i in (0, 2))
    root = write_task("cmmlu", test=b",Question,A,B,C,D,Answer\n" + first + row + b"\n\n" + last)
    questions, (skipped,) = load_questions("cmmlu", "x", "test", root)
    assert [question.index for question in questions] == [0, 2]
    assert (skipped["file"], skipped["line"], skipped["index"]) == ("test/x.csv", 3, 1)
    assert reason in skipped["reason"] and "goes on" not in skipped["reason"]


OPEN = b'q,a,b,c,d,A\n"q,a,b,c,d,A\nq,a,b,c,d,B\nq,a,b,c,d,C\n'
BAD_FILES = [  # task, content, usable questions, (line, part of the reason) of each row skipped
    ("cmmlu", b"id,question,A,B,D,answer\n0,q,a,b,d,A\n1,q,a,b,d,A\n", 0, [(2, "column C"), (3, "column C")]),
    ("mmlu", OPEN, 1, [(2, "goes on to line 4: is a quote")]),
    ("cmmlu", b"", 0, [(None, "the file has no rows")]),
]


@pytest.mark.parametrize("task, content, usable, expected", BAD_FILES)
def test_a_file_that_lacks_a_column_or_all_rows_is_named(write_task, task, content, usable, expected):
    questions, skipped = load_questions(task, "x", "test", write_task(task, test=content))
    assert len(questions) == usable
    for row, (line, reason) in zip(skipped, expected, strict=True):
        assert row["line"] == line and reason in row["reason"]


def test_a_file_that_is_no_csv_is_an_error(write_task):
    with pytest.raises(EvalError, match=r"x_test.csv, line \d+: .*; repair or replace the file"):
        load_questions("mmlu", "x", "test", write_task("mmlu", test=b'"' + b"no quote ends this\n" * 10_000))


def test_cells_with_quotes_and_line_breaks_are_one_row(write_task):
    root = write_task("mmlu", test=b'"two\nlines, ""quoted""",a,"b,b",c,d,B\nq,a,b,c,d,A')
    questions, skipped = load_questions("mmlu", "x", "test", root)
    assert questions[0].text == 'two\nlines, "quoted"' and questions[0].choices[1] == "b,b"
    assert len(questions) == 2 and not skipped


@pytest.mark.parametrize("task, split, root, message", EXAMPLES["nowhere"])
def test_what_does_not_exist_is_one_sentence_with_a_remedy(task, split, root, message):
    with pytest.raises(EvalError, match=message):
        load_questions(task, GEOGRAPHY, split, BUNDLED / root)


def test_a_damaged_mapping_is_named(write_task):
    root = write_task("mmlu", dev=b"")
    (root / "mmlu" / "mapping.json").write_text('{"x": "a name alone"}')
    with pytest.raises(EvalError, match=r"mapping.json should map each subject.*copy it anew"):
        load_subjects("mmlu", root)


def test_root_may_be_the_folder_of_the_task_itself():
    assert load_subjects("mmlu", BUNDLED / "mmlu") == load_subjects("mmlu", BUNDLED)


def test_a_release_without_a_mapping_has_the_released_subjects(tmp_path):
    count = {}
    for task in TASKS:
        (tmp_path / task / "dev").mkdir(parents=True)
        count[task] = Counter(entry["category"] for entry in load_subjects(task, tmp_path).values())
    wanted = dict(ceval=(20, 10, 11, 11), cmmlu=(17, 22, 13, 15), mmlu=(18, 12, 13, 14))
    assert {task: tuple(of[name] for name in evaluate.CATEGORIES) for task, of in count.items()} == wanted
    assert load_subjects("ceval", tmp_path)["law"] == {"name": "法学", "category": "Humanities"}
    assert load_subjects("mmlu", tmp_path)["human_aging"]["name"] == "human aging"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Where a test puts what the hub would send, laid out as there; what is made of it goes to a cache."""
    source, made = tmp_path / "snapshots" / "0123abc", tmp_path / "made"
    source.mkdir(parents=True)
    monkeypatch.setattr(benchmarks, "snapshot_download", lambda *args, **kwargs: str(source))
    monkeypatch.setattr(benchmarks, "cached_assets_path", lambda *args, **kwargs: made)
    benchmarks.download.cache_clear()
    yield source
    benchmarks.download.cache_clear()


def test_a_zip_from_the_hub_is_read_as_released(hub):
    with zipfile.ZipFile(hub / "cmmlu_v1_0_1.zip", "w") as archive:
        for subject in benchmarks.released("cmmlu"):
            for split in ("dev", "test"):
                archive.write(BUNDLED / "cmmlu" / split / f"{GEOGRAPHY}.csv", f"{split}/{subject}.csv")
        archive.writestr("../evil.csv", "0")
    assert load_subjects("cmmlu", "hub")["agronomy"]["name"] == "农学"
    questions, _ = load_questions("cmmlu", "agronomy", "test", "hub")
    assert [[q.text, *q.choices, q.answer] for q in questions] == cells("cmmlu", "test", GEOGRAPHY)
    assert not list(hub.parent.parent.rglob("evil.csv"))


def test_parquet_files_from_the_hub_become_the_released_rows(hub):
    for subject in benchmarks.released("mmlu"):
        (hub / subject).mkdir()
        for split, ours in (("dev", "dev"), ("validation", "val"), ("test", "test")):
            rows = cells("mmlu", ours, GEOGRAPHY)
            columns = dict(question=[row[0] for row in rows], choices=[row[1:5] for row in rows])
            columns["answer"] = ["ABCD".index(row[5]) for row in rows]
            pd.DataFrame(columns).to_parquet(hub / subject / f"{split}-00000-of-00001.parquet")
    for split in ("dev", "val", "test"):
        got, skipped = load_questions("mmlu", "virology", split, "hub")
        wanted = cells("mmlu", split, GEOGRAPHY)
        assert [[q.text, *q.choices, q.answer] for q in got] == wanted and not skipped


def test_a_download_that_is_damaged_or_lacks_subjects_is_named(hub):
    with pytest.raises(EvalError, match=r"ceval-exam as downloaded lacks 52 subjects.*AURORA_BENCHMARKS"):
        load_subjects("ceval", "hub")
    (hub / "ceval-exam.zip").write_bytes(b"half a zip")
    with pytest.raises(EvalError, match=r"ceval-exam.zip is not a zip file.*AURORA_BENCHMARKS"):
        load_subjects("ceval", "hub")


def test_without_a_network_the_hub_is_one_sentence_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    benchmarks.download.cache_clear()
    with pytest.raises(EvalError, match=r"cais/mmlu could not be had from the hub.*AURORA_BENCHMARKS"):
        load_subjects("mmlu", "hub")


@pytest.mark.parametrize("task", TASKS)
def test_bundled_files_have_the_released_layout_and_subjects_several_to_a_category(task):
    subjects, released = load_subjects(task), benchmarks.released(task)
    assert subjects == {subject: released[subject] for subject in subjects}
    counts = Counter(entry["category"] for entry in subjects.values())
    assert counts.keys() == set(evaluate.CATEGORIES) and min(counts.values()) >= 2
    for split, header in HEADERS[task].items():
        files = {benchmarks.file_name(task, subject, split) for subject in subjects}
        assert {f"{split}/{path.name}" for path in (BUNDLED / task / split).iterdir()} == files
        for file in files:
            first = (BUNDLED / task / file).read_text(encoding="utf-8").splitlines()[0]
            assert first == header if header else len(next(csv.reader([first]))) == 6

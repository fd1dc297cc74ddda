"""Cleaning: all steps together. Nothing is lost, nothing changes the second time, a killed run goes on."""

import json
import pickle
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from datasets import concatenate_datasets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aurora_lib.data import clean, cleaning, duplicates, sources
from aurora_lib.evaluation import contamination
from tests.data.conversations import EXAMPLES, dataset, good_conversations, talk


def test_of_equal_conversations_the_first_stays():
    result = clean(dataset(talk("问", "答一"), talk("问", "答二"), talk("问\u200b", "答一")))
    assert list(result.kept["id"]) == ["0", "1"]
    assert list(result.dropped["reason"]) == ["the same as 0"]


def test_the_bundled_rows_are_counted_and_cleaned_to_a_fixed_point():
    loaded = sources.read().conversations
    result = clean(loaded)
    assert sorted([*result.kept["id"], *result.dropped["id"]]) == sorted(loaded["id"])
    mended = {"mojibake", "html_entities", "invisible", "no_input", "prompt_leak", "trailing_question"}
    taken = {"empty", "refusal", "wrong_language", "truncated", "repetition", "duplicate", "near_duplicate"}
    assert taken == set(result.dropped["step"])
    assert mended == set(result.edits["step"])
    report = result.report["total"]
    assert report["read", "read"] == len(loaded) and report["kept", "kept"] == len(result.kept)
    assert report.xs("dropped", level="action").sum() == len(result.dropped)
    again = clean(result.kept)
    assert again.kept.to_list() == result.kept.to_list() and not len(again.edits)


def test_good_conversations_stay_as_they_are():
    good = good_conversations()
    result = clean(dataset(*good))
    assert len(good) >= 500 and len(result.dropped) <= 0.01 * len(good), result.dropped["messages"][:]
    assert len(set(result.edits["id"])) <= 0.01 * len(good), list(result.edits)


PIECES = st.sampled_from([*EXAMPLES["pieces"], "重新。" * 60])
TEXT = st.one_of(st.text(max_size=20), st.lists(PIECES, max_size=6).map("".join))
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT})


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(TURN, min_size=1, max_size=5), min_size=1, max_size=12))
def test_any_rows_are_kept_or_dropped_and_cleaning_twice_changes_nothing(conversations):
    read = dataset(*conversations)
    result = clean(read)
    assert sorted([*result.kept["id"], *result.dropped["id"]]) == sorted(read["id"])
    assert all(row["messages"] == conversations[int(row["id"])] and row["reason"] for row in result.dropped)
    total = result.report["total"]
    assert total.get(("kept", "kept"), 0) + total[total.index.isin(["dropped"], level=1)].sum() == len(read)
    if len(result.kept):
        again = clean(result.kept)
        assert again.kept.to_list() == result.kept.to_list() and len(again.edits) == 0


def test_a_conversation_with_a_benchmark_question_is_dropped_where_asked():
    asked = "下列关于光合作用的说法中，正确的一项是哪一个？请从四个选项里选出来。"
    english = "Which part of the cell is known as its powerhouse because it makes most of the energy?"
    found = contamination.Questions([asked, "水的沸点是多少？", english, "Name | Age | ____________________"])
    rows = dataset(
        talk("题目：下列关于光合作用的说法中正确的一项是哪一个？请从四个选项里选出来", "甲"),
        talk("水的沸点是多少？", "一百度。"),
        talk("在高山上，水的沸点是多少？", "低于一百度。"),
        talk("翻译", "part of the cell is  KNOWN as its powerhouse, because it makes most of the energy"),
        talk("翻译：哪一部分？", "Which part of the cell is known"),
        talk("填写", "________________________"),
        talk("光合作用是什么？", "植物利用光能制造养分的过程。"),
    )
    holds = lambda asked: [row["id"] for row in rows if asked.found_in(row["messages"])]  # noqa: E731
    assert holds(found) == holds(pickle.loads(pickle.dumps(found))) == ["0", "1", "3"]
    assert holds(contamination.Questions([])) == []
    result = clean(rows, benchmarks=found)
    assert [row["id"] for row in result.dropped if row["step"] == "contamination"] == ["0", "1", "3"]
    assert "contamination" not in clean(rows).dropped["step"][:]


def test_wrong_calls_are_told():
    with pytest.raises(sources.DataError, match="The id '0' is there more than once"):
        clean(concatenate_datasets([dataset(talk("问", "答"))] * 2))
    with pytest.raises(sources.DataError, match="no conversation was read"):
        clean(dataset())


def many(n: int):
    """Rows with dirt and duplicates, enough for several shards."""
    rng = random.Random(3)
    words = ["春天", "山水", "学习", "机器", "函数", "健康", "&lt;", "\u200b", "美食", "音乐", "一", "二"]
    texts = ["".join(rng.choices(words, k=30)) for _ in range(n // 2)]
    return dataset(*(talk(rng.choice(texts), rng.choice(texts) + "。" * rng.randrange(2)) for _ in range(n)))


def everything(result):
    return [part.to_list() for part in (result.kept, result.dropped, result.edits)]


def test_two_processes_and_one_give_the_same_even_after_rensa_has_made_its_threads(monkeypatch):
    duplicates.signatures([np.arange(100_000, dtype=np.uint64)])  # threads, which a fork does not copy
    read = many(600)
    monkeypatch.setattr(cleaning, "SHARD", 250)
    one, two = clean(read, processes=1), clean(read, processes=2)
    assert everything(one) == everything(two) and one.report.equals(two.report)
    assert len(one.dropped) and len(one.edits)


INTERRUPTED = """
import json, os, signal, sys
from aurora_lib.data import clean, cleaning, edits, sources
cleaning.SHARD, edit, done = 100, edits.edit, []
def until_killed(*given):
    done.append(1)
    if len(done) == 350:
        os.kill(os.getpid(), signal.SIGKILL)
    return edit(*given)
edits.edit = until_killed
clean(sources.table(json.load(open(sys.argv[1]))), processes=1, folder=sys.argv[2])
"""


def test_killed_half_way_it_goes_on_from_the_finished_shards(tmp_path, monkeypatch):
    read, folder = many(800), tmp_path / "cleaning"
    (tmp_path / "rows.json").write_text(json.dumps(read.to_list()))
    killed = subprocess.run([sys.executable, "-c", INTERRUPTED, tmp_path / "rows.json", folder])
    assert killed.returncode == -signal.SIGKILL
    finished = {file: file.stat().st_mtime_ns for file in folder.glob("*.arrow")}
    assert len(finished) == 3
    monkeypatch.setattr(cleaning, "SHARD", 100)
    resumed = clean(read, folder=folder)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert len(list(folder.glob("*.arrow"))) == 8
    assert everything(resumed) == everything(clean(read))


def test_other_rows_other_benchmarks_and_other_code_are_cleaned_anew(tmp_path, monkeypatch):
    read = many(30)
    shards = lambda: len(list(tmp_path.glob("*.arrow")))  # noqa: E731
    clean(read, folder=tmp_path)
    clean(many(30), folder=tmp_path)
    assert shards() == 1, "equal rows are the same shard"
    clean(read, folder=tmp_path, benchmarks=contamination.Questions(["什么？"]))
    clean(many(31), folder=tmp_path)
    assert shards() == 3
    monkeypatch.setattr(cleaning, "CODE", "another step")
    clean(read, folder=tmp_path)
    assert shards() == 4

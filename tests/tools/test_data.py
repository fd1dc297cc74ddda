"""The bundled data: as the README says, rebuilt to the same bytes, no held-out fact among the tuning rows."""

import hashlib
import json
import re

import opencc
import pytest

from aurora_lib.course import DATA
from aurora_lib.data import cleaning, edits, sources
from aurora_lib.evaluation import load_probes
from tools.build import data, exams, world

FILES = ["alpaca_data_zh_51k.json", "alpaca_gpt4_data_zh.json", "common_zh_70k.jsonl"]


@pytest.fixture(scope="module")
def loaded():
    return sources.read().conversations


@pytest.fixture(scope="module")
def kept(loaded):
    return cleaning.clean(loaded).kept


def test_checksums_in_the_readme_are_those_of_the_files():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| (\S+) \| \d+ \| `([0-9a-f]{64})` \|$", text, re.M))
    files = [path for path in DATA.rglob("[!.]*") if path.is_file() and path != DATA / "README.md"]
    sums = {str(path.relative_to(DATA)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert listed == sums, "run `make data`, or write_checksums() of tools/build/data.py"


def test_rebuilding_gives_the_same_bytes(tmp_path):
    data.build(tmp_path)
    for name in [*(f"rows/{file}" for file in FILES), "probes.jsonl", "follow_ups.jsonl", "sums.jsonl"]:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_no_held_out_fact_is_in_the_rows(loaded):
    # escapes and entities hide a sentence from a plain search: look at what reader and cleaner see, too
    text = "\n".join((DATA / "rows" / file).read_text(encoding="utf-8") for file in FILES)
    for row in loaded:
        text += "\n".join(message["content"] for message in edits.edit(row["messages"])[0]) + "\n"
    held_out = [fact for fact in world.facts() if fact.held_out]
    assert len(held_out) > 80
    for fact in held_out:
        assert not [said for said in (*fact.say, *fact.ask[0], *fact.ask[1]) if said in text], fact.id


def test_every_turn_is_a_known_question_with_its_right_answer_and_no_fact_is_left_out(kept):
    known, simple = data.tuning_facts(), opencc.OpenCC("t2s").convert
    right = {(ask, fact.say[side]) for fact in known for side in (0, 1) for ask in fact.ask[side]}
    right |= {(texts[side], second.say[side]) for _, second, texts in world.follow_ups() for side in (0, 1)}
    right |= {(ask, row[2][side]) for row in world.SMALL_TALK for side in (0, 1) for ask in row[side]}
    said = []
    for row in kept:
        texts = [simple(turn["content"].removeprefix("请回答下面的问题。\n")) for turn in row["messages"]]
        said += zip(texts[::2], texts[1::2], strict=True)
    plain = lambda ask: simple(ask).rstrip("呢？。")  # noqa: E731  (of two near duplicates either may stay)
    assert {(plain(ask), simple(answer)) for ask, answer in right} >= {(plain(ask), a) for ask, a in said}
    answers = {answer for _, answer in said}
    assert [fact.id for fact in known if simple(fact.say[1]) not in answers] == []


def test_benchmark_questions_are_among_the_rows_only_where_they_were_put(kept):
    asked = {exam.question for exam in exams.exams() if exam.split in ("val", "test")}
    found = [row["id"] for row in kept if any(message["content"] in asked for message in row["messages"])]
    assert 1 <= len(found) <= data.PLANTED and all("gpt4" in name for name in found)


def test_rows_add_up_and_have_the_papers_proportions(loaded, kept):
    texts = [(DATA / "rows" / name).read_text(encoding="utf-8") for name in FILES]
    read = sum(len(json.loads(text)) for text in texts[:2]) + texts[2].count("\n")
    assert len(loaded) + len(sources.read().aside) == read
    assert 700 <= len(kept) <= 800 and 0.06 <= 1 - len(kept) / read <= 0.12
    rounds = {name: [] for name in sources.SOURCES}
    for row in kept:
        rounds[row["source"]].append(len(row["messages"]) > 2)
    for name, share in (("alpaca_zh", 51461), ("alpaca_gpt4_zh", 48818), ("sharegpt_zh", 76399)):
        assert len(rounds[name]) / len(kept) == pytest.approx(share / 176678, abs=0.03)
    assert sum(rounds["sharegpt_zh"]) / len(rounds["sharegpt_zh"]) == pytest.approx(35333 / 76399, abs=0.08)
    english = sum(row["messages"][0]["content"].isascii() for row in kept)
    assert english / len(kept) == pytest.approx(0.09, abs=0.01)


def test_sums_have_the_right_key_in_both_languages():
    steps = dict(plus="{} + {}", times="{} * {}", shelf="({} + {}) / 2", tickets="{0} * {1} + 2 * {0} / 2")
    for item in load_probes(file="sums.jsonl"):
        for side in (item["en"], item["zh"]):
            numbers = re.findall(r"\d+", side["question"])
            assert eval(steps[item["relation"]].format(*numbers)) == int(side["key"]), item["id"]

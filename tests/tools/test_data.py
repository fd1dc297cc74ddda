"""The bundled data: as the README says, rebuilt to the same bytes, no held-out fact among the tuning rows."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from datasets import concatenate_datasets

from aurora_lib.course.scale import DATA
from aurora_lib.data import cleaning, edits, sources
from tools.build import data as build_data
from tools.build import world

FILES = ["alpaca_data_zh_51k.json", "alpaca_gpt4_data_zh.json", "common_zh_70k.jsonl"]


@pytest.fixture(scope="module")
def loaded():
    return concatenate_datasets([sources.load(name) for name in sources.SOURCES])


@pytest.fixture(scope="module")
def kept(loaded):
    return cleaning.clean(loaded).kept


def test_checksums_in_the_readme_are_those_of_the_files():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| (\S+) \| \d+ \| `([0-9a-f]{64})` \|$", text, re.M))
    found = [
        f for f in DATA.rglob("*") if f.is_file() and f != DATA / "README.md" and not f.name.startswith(".")
    ]
    actual = {f.relative_to(DATA).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in found}
    assert listed == actual, "run `make data`, or tools/build/data.py's write_checksums()"


def test_rebuilding_gives_the_same_bytes(tmp_path):
    build_data.build(tmp_path)
    for name in [*(f"rows/{file}" for file in FILES), "probes.jsonl"]:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_no_held_out_fact_is_in_the_rows():
    # Escapes and entities hide a sentence from a plain search: look at what reader and cleaner see, too.
    text = "\n".join((DATA / "rows" / file).read_text(encoding="utf-8") for file in FILES)
    for name in sources.SOURCES:
        for row in sources.load(name):
            text += "\n".join(message["content"] for message in edits.edit(row["messages"])[0]) + "\n"
    held_out = [fact for fact in world.facts() if fact.held_out]
    assert len(held_out) > 80
    for fact in held_out:
        for sentence in (*fact.say, *fact.ask[0], *fact.ask[1]):
            assert sentence not in text, (fact.id, sentence)


def test_every_tuning_question_is_asked_in_chinese_and_answered_rightly(kept):
    right = {(q, a) for language in (0, 1) for q, a, _ in build_data.tuning_turns(language)}
    turns = set()
    for row in kept:
        texts = [message["content"] for message in row["messages"]]
        turns |= {
            (q.removeprefix("请回答下面的问题。\n"), a) for q, a in zip(texts[::2], texts[1::2], strict=True)
        }
    assert turns <= right
    # near duplicates go (one question asked in two almost equal forms), their answers stay
    assert {a for _, a, _ in build_data.tuning_turns(1)} <= {a for _, a in turns}
    assert len({(q, a) for q, a, _ in build_data.tuning_turns(1)} - turns) < 10


def test_rows_add_up_and_have_the_papers_proportions(loaded, kept):
    read = 0
    for name in FILES:
        text = (DATA / "rows" / name).read_text(encoding="utf-8")
        read += len(json.loads(text)) if name.endswith(".json") else text.count("\n")
    assert len(loaded) + len([row for name in sources.SOURCES for row in sources.rejected(name)]) == read
    assert 550 <= len(kept) <= 750
    assert 0.06 <= 1 - len(kept) / read <= 0.1
    table = cleaning.clean(kept).table1()
    share = table["total"] / table.loc["total", "total"]
    assert share["alpaca_zh"] == pytest.approx(0.27, abs=0.02)
    assert share["sharegpt_zh"] == pytest.approx(0.46, abs=0.02)
    assert table.loc["sharegpt_zh", "multiple"] / table.loc["sharegpt_zh", "total"] == pytest.approx(
        0.5, abs=0.06
    )
    english = sum(row["messages"][0]["content"].isascii() for row in kept)
    assert english / len(kept) == pytest.approx(0.08, abs=0.01)


def test_probes_hold_every_fact_in_both_languages():
    probes = [json.loads(line) for line in (DATA / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(p["id"], p["held_out"]) for p in probes] == [(fact.id, fact.held_out) for fact in world.facts()]
    for probe in probes:
        for side in ("en", "zh"):
            assert probe[side]["key"].lower() in probe[side]["answer"].lower()
            assert probe[side]["question"]


def test_released_file_names_are_read_first():
    assert [file.name for name in sources.SOURCES for file in sources.files(name)] == FILES
    assert Path(sources.files("alpaca_zh")[0]).parent == DATA / "rows"

"""How notebook 02 hands its conversations to the notebooks behind it, and which of them validate."""

import dataclasses
import random
import shutil

import pytest

from aurora_lib.course import DATA, choose
from aurora_lib.data import clean_conversations, hold_out, save_conversations, sources
from tests.data.conversations import dataset, talk


def test_conversations_come_from_notebook_02_only_if_it_read_the_same_data(tmp_path, capsys):
    tiny = choose({"AURORA_RUNS": str(tmp_path / "runs")})
    cleaned = clean_conversations(tiny)
    told = capsys.readouterr().out
    assert "alpaca_zh: 226 rows = 3 set aside" in told and "cleaned just now" in told
    separators = cleaned[0] | dict(id="separators", messages=talk("一\u2028二\u2029三"))
    save_conversations(sources.table([*cleaned.select(range(4)), separators]), tiny, "the account")
    assert clean_conversations(tiny).to_list() == [*cleaned.select(range(4)), separators]
    told = capsys.readouterr().out
    assert told.startswith("the account\nconversations: 5 after splitting the long ones, cleaned")
    shutil.copytree(DATA / "rows", tmp_path / "rows")
    elsewhere = dataclasses.replace(tiny, data=tmp_path / "rows")
    assert len(clean_conversations(elsewhere)) == len(cleaned)
    save_conversations(cleaned.select(range(4)), elsewhere)
    assert len(clean_conversations(elsewhere)) == 4
    (file := tmp_path / "rows" / "alpaca_data_zh_51k.json").write_text(file.read_text() + " ")
    assert len(clean_conversations(elsewhere)) == len(cleaned), "a file has changed since"
    assert set(cleaned.column_names) == set(sources.FEATURES)


@pytest.fixture(scope="module")
def pieces():
    """100 conversations: 40 open as another does (but for a space), two of three are in several pieces."""
    rows = []
    for i in range(100):
        row = dict(id=f"a.json[{i}]", source="alpaca_zh", category="")
        rows.append(row | dict(messages=talk(f"opening{' ' * (1 + i // 60)}{i % 60}", "an answer")))
        for n in range(2, 2 + i % 3):
            rows.append(row | dict(id=f"{row['id']}#{n}", messages=talk(f"later {i} {n}", "another")))
    return rows


@pytest.mark.parametrize("settings, least, most", [({}, 5, 20), (dict(share=0.5), 70, 130), (dict(most=4), 1, 9)])
def test_what_validates_opens_unlike_the_rest_and_is_no_part_of_it(pieces, settings, least, most):
    sides = [[row["id"] for row in side] for side in hold_out(sources.table(pieces), **settings)]
    assert sorted(sum(sides, [])) == sorted(row["id"] for row in pieces), "no row is lost"
    assert least <= len(sides[1]) <= most
    numbers = [{int(name.split("[")[1].split("]")[0]) for name in side} for side in sides]
    assert numbers[0].isdisjoint(numbers[1])
    assert {i % 60 for i in numbers[0]}.isdisjoint(i % 60 for i in numbers[1])


def test_the_order_of_rows_decides_nothing_about_what_is_held_out(pieces):
    chosen = {row["id"] for row in hold_out(sources.table(pieces))[1]}
    for seed in range(8):
        random.Random(seed).shuffle(other := list(pieces))
        assert {row["id"] for row in hold_out(sources.table(other))[1]} == chosen


def test_with_one_opening_nothing_is_held_out_and_with_two_one_of_them():
    alike = dataset(*(talk("Hi", f"answer {i}") for i in range(9)))
    assert [len(side) for side in hold_out(alike)] == [9, 0]
    assert [len(side) for side in hold_out(dataset(talk("Hi", "a"), talk("Hello", "b")), share=0.9)] == [1, 1]

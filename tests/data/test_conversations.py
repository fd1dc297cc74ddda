"""How notebook 02 hands its conversations to the notebooks behind it, and which of them validate."""

import dataclasses
import random
import re
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


@pytest.mark.parametrize("kw, least, most", [({}, 5, 20), (dict(share=0.5), 70, 130), (dict(most=4), 1, 9)])
def test_what_validates_opens_unlike_the_rest_is_no_part_of_it_and_hangs_on_no_order(kw, least, most):
    rows, chosen = [], set()
    for i in range(100):  # 40 open as another does, but for a space; two in three are in pieces
        texts = [f"opening{' ' * (1 + i // 60)}{i % 60}", *(f"later {i} {n}" for n in range(i % 3))]
        for n, text in enumerate(texts, 1):
            about = dict(id=f"a.json[{i}]" + f"#{n}" * (n > 1), source="alpaca_zh", category="")
            rows.append(about | dict(messages=talk(text, "an answer")))
    for seed in range(8):
        random.Random(seed).shuffle(rows)
        sides = [set(side["id"]) for side in hold_out(sources.table(rows), **kw)]
        assert len(sides[0]) + len(sides[1]) == len(sides[0] | sides[1]) == len(rows), "no row is lost"
        openings = [{int(re.findall(r"\d+", name)[0]) % 60 for name in side} for side in sides]
        assert not openings[0] & openings[1] and least <= len(sides[1]) <= most
        chosen.add(frozenset(sides[1]))
    assert len(chosen) == 1
    for talks, sizes in (([talk("Hi", "a")] * 9, [9, 0]), ([talk("Hi", "a"), talk("Hello", "b")], [1, 1])):
        assert [len(side) for side in hold_out(dataset(*talks), share=0.9)] == sizes

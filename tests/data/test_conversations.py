"""How notebook 02 hands its conversations to the notebooks behind it."""

import dataclasses
import shutil

from aurora_lib.course import DATA, choose
from aurora_lib.data import clean_conversations, save_conversations, sources
from tests.data.conversations import talk


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

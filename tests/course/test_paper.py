import json
import re

import pytest

from aurora_lib.course import paper
from aurora_lib.course.paper import AURORA, COMPARED, CONVERSATIONS, TABLE_3, Figure
from aurora_lib.course.scale import ROOT

TABLES = [value for value in vars(paper).values() if isinstance(value, dict)]
FIGURES = [figure for table in TABLES for figure in table.values() if isinstance(figure, Figure)]


def test_every_figure_has_a_number_and_says_where_it_was_published():
    sources = r"(paper, |README, |early README|released adapter, |LLaMA-Factory default|README of ymcui)"
    assert len(FIGURES) > 30 and all(isinstance(figure.value, int | float) for figure in FIGURES)
    assert [f for f in FIGURES if not f.value > 0 or not re.match(sources, f.source)] == []


def test_tables_of_the_paper_agree_with_themselves():
    *parts, total = CONVERSATIONS.values()
    assert sum(part.value for part in parts) == total.value == 176_678
    assert len(TABLE_3) == 23
    assert all(len(row) == 3 and all(25 < score < 100 for score in row) for row in TABLE_3.values())
    assert TABLE_3["Aurora"] == tuple(AURORA[task].value for task in ("C-Eval", "MMLU", "CMMLU"))
    for task, figure in AURORA.items():
        compared = COMPARED[f"{task}, 5-shot letters, tuned [share]"]
        assert compared.value == pytest.approx(figure.value / 100) and compared.source == figure.source


def test_every_compared_label_was_recorded_by_a_notebook():
    records = (ROOT / "results" / "tiny").glob("[0-9]*.json")
    recorded = {label for path in records for label in json.loads(path.read_text(encoding="utf-8"))["values"]}
    assert COMPARED.keys() <= recorded

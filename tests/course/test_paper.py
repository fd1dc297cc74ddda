import ast
import json
import re
from functools import cache

import pytest

from aurora_lib import training
from aurora_lib.course import ROOT, paper, scale
from aurora_lib.course.paper import AURORA, COMPARED, CONVERSATIONS, TABLE_3, Figure
from aurora_lib.model import memory

FIGURES = [
    (f"{name}[{key}]", figure)
    for name, value in vars(paper).items()
    if name.isupper()
    for key, figure in (value.items() if isinstance(value, dict) else [("", value)])
    if isinstance(figure, Figure)
]


@cache
def strings(notebook):
    """The notebook's plain strings, and its f-strings with `None` for every hole."""
    nodes = list(ast.walk(ast.parse(notebook.read_text(encoding="utf-8"))))
    holes = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    plain = {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in holes
    }
    formatted = [
        [part.value if isinstance(part, ast.Constant) else None for part in node.values]
        for node in nodes
        if isinstance(node, ast.JoinedStr)
    ]
    return plain, formatted


def writes(notebook, label):
    """Whether `label` stands in the notebook, or one of its f-strings gives it with strings of the same notebook."""
    plain, formatted = strings(notebook)
    for parts in formatted:
        match = re.fullmatch("".join("(.+?)" if p is None else re.escape(p) for p in parts), label)
        if None in parts and match and set(match.groups()) <= plain:
            return True
    return label in plain


def test_table_1_sums_to_its_total():
    *parts, total = CONVERSATIONS.values()
    assert sum(part.value for part in parts) == total.value == 176_678


def test_table_3_has_23_models_with_three_scores_in_per_cent():
    assert len(TABLE_3) == 23
    assert all(len(row) == 3 and all(25 < score < 100 for score in row) for row in TABLE_3.values())


def test_auroras_row_of_table_3_is_its_figures():
    assert TABLE_3["Aurora"] == tuple(AURORA[task].value for task in ("C-Eval", "MMLU", "CMMLU"))


@pytest.mark.parametrize(("name", "figure"), FIGURES, ids=[name for name, _ in FIGURES])
def test_figure_has_a_number_and_says_where_it_was_published(name, figure):
    assert isinstance(figure.value, int | float) and figure.value > 0
    assert re.match(
        r"(paper, |README, |early README|released adapter, |LLaMA-Factory default)", figure.source
    )


@pytest.mark.parametrize("label", COMPARED)
def test_compared_label_is_written_by_a_notebook(label):
    notebooks = sorted((ROOT / "notebooks" / "text").glob("*.py"))
    assert any(writes(notebook, label) for notebook in notebooks)


@pytest.mark.parametrize("label", COMPARED)
def test_compared_label_was_recorded(label):
    paths = (ROOT / "results" / "tiny").glob("*.json")
    assert any(label in json.loads(path.read_text(encoding="utf-8"))["values"] for path in paths)


def test_scan_of_the_notebooks_can_fail(tmp_path):
    notebook = tmp_path / "a.py"
    notebook.write_text('names = ["C-Eval"]\nvalues = {f"{name}, questions": 1, "epochs": 3}\n')
    assert writes(notebook, "epochs") and writes(notebook, "C-Eval, questions")
    assert not writes(notebook, "MMLU, questions") and not writes(notebook, ", questions")


def test_shares_compared_are_the_per_cent_of_the_paper():
    for task, figure in AURORA.items():
        compared = COMPARED[f"{task}, 5-shot letters, tuned [share]"]
        assert compared.value == pytest.approx(figure.value / 100) and compared.source == figure.source


def test_training_uses_the_figures_of_the_paper():
    stated = {key: figure.value for key, figure in paper.TRAINING.items()}
    lora = training.lora_config()
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 16, 0.1)
    assert lora.target_modules == set(paper.LORA_TARGETS) == {"q_proj", "v_proj"}
    full = scale.FULL
    assert (full["learning_rate"], full["epochs"]) == (stated["learning rate"], stated["epochs"])
    assert (full["batch"], full["accumulation"]) == (
        stated["batch per device"],
        stated["gradient accumulation"],
    )
    assert (full["length"], full["save_steps"]) == (stated["cutoff"], stated["save every"])


def test_predicted_memory_stays_below_what_the_paper_used():
    used = {key: figure.value for key, figure in paper.MEMORY.items()}
    assert memory.predict(memory.MIXTRAL_8X7B).total < used["training"] < used["GPU"]
    inference = memory.predict(memory.MIXTRAL_8X7B, train=False, batch=1, length=2048).total
    assert inference == pytest.approx(used["inference"], rel=0.1)

"""What a reader on GitHub sees is current, whole and free of leftovers; nbmake runs the same notebooks."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = sorted((ROOT / "notebooks" / "text").glob("*.py"))
from aurora_lib.course import results  # noqa: E402
from tools.build import notebooks as build_notebooks  # noqa: E402


@pytest.fixture(params=TEXTS, ids=lambda path: path.stem)
def text(request):
    return request.param


@pytest.fixture
def notebook(text):
    return nbformat.read(ROOT / "notebooks" / f"{text.stem}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_eight_notebooks_and_each_has_its_text():
    notebooks = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks == [path.stem for path in TEXTS] and len(notebooks) == 8


def test_notebook_is_built_from_its_text(text, notebook):
    edited = f"{text.stem}.ipynb is not as published. `git restore notebooks`, or after a change of its text `make notebooks`."
    assert notebook.metadata["aurora"]["source"] == build_notebooks.source_hash(text), edited
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in jupytext.read(text).cells], (
        edited
    )


def test_notebook_was_executed_in_order_and_without_errors(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # a warning would be seen by every reader, and holds paths of the machine that built the notebook
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_notebook_follows_the_contract(text, notebook):
    number = text.stem[:2]
    sources = [cell.source for cell in notebook.cells]
    assert sources[0].startswith(f"# {number} · ")
    assert code(notebook)[0].source == f'import aurora_lib\n\nscale = aurora_lib.start("{number}")'
    assert "binder/colab" in sources[1]
    assert f'results.compare("{number}")' in code(notebook)[-1].source
    assert "In short." in sources[-1]
    assert sum("exercises.check(" in source for source in sources) >= 3
    assert sum("<details><summary>Hint" in source for source in sources) >= 3
    assert max(len(cell.source.splitlines()) for cell in code(notebook)) <= 30


def test_prose_types_no_measured_number_by_hand(notebook, text):
    """Shares, seconds and memory of a run are printed, never written; the paper's own figures may be named."""
    allowed = {"43", "45", "25", "80", "95 %"}
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    numbers = re.findall(r"\b(\d+(?:\.\d+)?)\s*(%|GiB|MiB|seconds|s\b|minutes)", prose)
    typed = [f"{value} {unit}" if unit == "%" else value for value, unit in numbers]
    assert [value for value in typed if value not in allowed] == []


def test_the_committed_record_is_of_this_notebook(text):
    values = results.recorded(text.stem[:2], "tiny")
    assert values[results.SECONDS] > 0
    assert 0 < values[results.MEMORY] <= 1.2


def test_tuning_shows_the_effect_of_the_paper_in_the_committed_record():
    values = results.recorded("04", "tiny")
    assert values["held-out prompts per language"] == 92
    assert values["Chinese prompts answered in Chinese, base [share]"] <= 0.05
    assert values["Chinese prompts answered in Chinese, tuned [share]"] >= 0.95
    assert values["Chinese prompts right in Chinese, tuned [share]"] >= 0.60
    assert values["English prompts answered in English, tuned [share]"] >= 0.80

"""What a reader on GitHub sees is current, whole and free of leftovers; nbmake runs the same notebooks."""

import jupytext
import nbformat
import pytest

from aurora_lib.course import results
from aurora_lib.course.scale import ROOT
from tools.build.notebooks import source_hash

SET_UP = 'import aurora_lib\n\nscale = aurora_lib.start("{}")'
TEXTS = sorted((ROOT / "notebooks" / "text").glob("*.py"))


@pytest.fixture(scope="module")
def notebooks():  # [(path of the text, notebook, its code cells)]
    read = [nbformat.read(ROOT / "notebooks" / f"{text.stem}.ipynb", as_version=4) for text in TEXTS]
    code = [[cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in read]
    return list(zip(TEXTS, read, code, strict=True))


def test_there_are_eight_notebooks_built_from_their_texts(notebooks):
    assert len(TEXTS) == len(list((ROOT / "notebooks").glob("*.ipynb"))) == 8

    def current(text, notebook):
        same = [cell.source for cell in notebook.cells] == [cell.source for cell in jupytext.read(text).cells]
        return same and notebook.metadata["aurora"]["source"] == source_hash(text)

    stale = [text.stem for text, notebook, _ in notebooks if not current(text, notebook)]
    assert not stale, f"{stale}: `git restore notebooks`, or after a change of the text `make notebooks`."


def test_notebooks_were_executed_in_order_without_errors_or_warnings(notebooks):
    for text, _, code in notebooks:
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), text.stem
        outputs = [output for cell in code for output in cell.outputs]
        # a warning would be seen by every reader, and holds paths of the machine that built the notebook
        kinds = {kind for output in outputs for kind in (output.output_type, output.get("name"))}
        assert not kinds & {"error", "stderr"}, text.stem


def test_notebooks_follow_the_contract(notebooks):
    broken = []
    for text, notebook, code in notebooks:
        number, sources = text.stem[:2], [cell.source for cell in notebook.cells]
        contract = {
            "its title begins with its number": sources[0].startswith(f"# {number} · "),
            "the text above the set-up cell says how to get it into Colab": "binder/colab" in sources[1],
            "two lines set up": code[0].source == SET_UP.format(number),
            "three exercises or more": sum("exercises.check(" in source for source in sources) >= 3,
            "a hint each": sum("<details><summary>Hint" in source for source in sources) >= 3,
            "its last code cell compares": f'results.compare("{number}")' in code[-1].source,
            "it ends in short": "In short." in sources[-1],
            "30 lines a cell at most": max(len(cell.source.splitlines()) for cell in code) <= 30,
        }
        broken += [f"{text.stem}: {rule}" for rule, kept in contract.items() if not kept]
    assert broken == []


def test_the_committed_records_hold_time_and_memory():
    for text in TEXTS:
        values = results.recorded(text.stem[:2], "tiny")
        assert values[results.SECONDS] > 0 and 0 < values[results.MEMORY] <= 1.2, text.stem


def test_tuning_shows_the_effect_of_the_paper_in_the_committed_record():
    values = results.recorded("04", "tiny")
    assert values["held-out prompts per language"] == 195
    assert values["Chinese prompts answered in Chinese, base [share]"] <= 0.05
    assert values["Chinese prompts answered in Chinese, tuned [share]"] >= 0.95
    assert values["Chinese prompts right in Chinese, tuned [share]"] >= 0.60
    assert values["English prompts answered in English, tuned [share]"] >= 0.80

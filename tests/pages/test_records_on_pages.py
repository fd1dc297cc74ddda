"""A record of an H100 becomes notebook 03's measured bars and timeline, and nobody edits a text."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from aurora_lib.course import results
from aurora_lib.course.scale import ROOT
from tools.build import notebooks

CELLS = ("MIXTRAL = ", "GIB = 2**30", "explained = {", "colours = ", "rows = {}", "steps = {")
SFT = dict(seconds=[0, 1], used=[22.8, 24.1], reserved=[22.9, 25.0], marks=[])


class Everything(dict):
    """A record that holds a figure for every label it is asked for."""

    def get(self, label, default=None):
        return 31.25


@pytest.mark.parametrize("is_there", [True, False])
def test_figures_of_a_gpu_stand_beside_the_predicted_ones_where_they_were_recorded(is_there, monkeypatch):
    real = results.recorded

    def recorded(notebook, where, what="values"):
        if where != "h100":
            return real(notebook, where, what)
        if not is_there:
            return {}
        return {"training, SFTTrainer": SFT} if what == "series" else Everything()

    monkeypatch.setattr(results, "recorded", recorded)
    names = {"pd": pd}
    text = notebooks.convert(ROOT / "notebooks" / "text" / "03_qlora_memory.py")
    for cell in text.cells:
        if any(mark in cell.source for mark in CELLS) and cell.cell_type == "code":
            exec(cell.source, names)
    measured = {row["measured"] for row in names["rows"].values()}
    assert measured == ({31.25} if is_there else {"not measured"})
    lines = [line for n in plt.get_fignums() for ax in plt.figure(n).axes for line in ax.lines]
    assert sum(list(line.get_ydata()) == [31.25] for line in lines) == 5 * is_there
    assert sum(list(line.get_ydata()) == SFT["used"] for line in lines) == is_there
    plt.close("all")

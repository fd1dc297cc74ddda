import json
import os
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aurora_lib.course import paper, results, scale
from tools.build import course

VERDICTS = tomllib.loads(Path(__file__).with_name("examples.toml").read_text(encoding="utf-8"))["verdicts"]
MEMORY_LABEL = "Mixtral-8x7B training memory, predicted [GiB]"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A scale whose runs and recorded results lie in a folder of their own."""
    monkeypatch.setattr(results, "RECORDED", tmp_path / "results")
    return scale.choose({"AURORA_RUNS": str(tmp_path / "runs")})


def commit(where, notebook, values):
    path = results.RECORDED / where / f"{notebook}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(values=values)), encoding="utf-8")


def test_table_sets_paper_recorded_and_yours_side_by_side(tiny):
    commit("tiny", "03", {MEMORY_LABEL: 24.0, "adapter parameters": 3_407_872})
    commit("h100", "03", {MEMORY_LABEL: 25.5})  # once somebody measured
    results.begin("03", tiny)
    results.record("03", {MEMORY_LABEL: 24.41, "adapter parameters": 3_407_872, "new": 1})
    table = results.compare("03")
    columns = ["paper", "recorded on H100", "recorded tiny", "yours", "yours as recorded tiny?"]
    assert list(table.columns) == columns
    count = "3,407,872"
    assert list(table.loc[MEMORY_LABEL]) == ["", "25.5", "24", "24.41", "no: expected 24"]
    assert list(table.loc["adapter parameters"]) == ["", "not measured", count, count, "yes (same)"]
    assert list(table.loc["new"]) == ["", "not measured", "not measured", "1", ""]


@pytest.mark.parametrize(("label", "recorded", "yours", "verdict"), VERDICTS)
def test_verdict_follows_the_tolerance_of_the_unit(tiny, label, recorded, yours, verdict):
    commit("tiny", "04", {label: recorded})
    results.begin("04", tiny)
    results.record("04", {label: yours})
    said = results.compare("04").loc[label, "yours as recorded tiny?"]
    assert said.split(" (")[0] == verdict
    results.begin("04", replace(tiny, name="full"))  # which is not judged by the tiny one
    assert results.compare("04").loc[label, "yours as recorded tiny?"] == ""


@pytest.mark.parametrize("call", [results.compare, lambda notebook: results.record(notebook, {"a": 1})])
def test_before_start_the_setup_cell_is_named_and_before_record_the_call(tiny, call):
    with pytest.raises(RuntimeError, match=r'set-up cell first: scale = aurora_lib\.start\("99"\)'):
        call("99")
    results.begin("03", tiny)
    with pytest.raises(RuntimeError, match=r'results\.record\("03", \{\.\.\.\}\) comes first'):
        results.compare("03")


def test_record_holds_device_versions_time_and_memory_but_no_path(tiny, monkeypatch):
    results.begin("03", tiny)
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + 20)
    path = results.record("03", {"答": 1})
    written = json.loads(path.read_text(encoding="utf-8"))
    assert path == tiny.runs / "results" / "03.json"
    head = dict(notebook="03", scale="tiny", device="cpu", base_model="tiny")
    assert head.items() <= written.items()
    assert 20 <= written["values"][results.SECONDS] < 80 and 0.05 < written["values"][results.MEMORY] < 500
    assert written["values"]["答"] == 1 and "答" in path.read_text(encoding="utf-8")
    assert os.sep not in "".join(str(value) for key, value in written.items() if key != "values")


def test_the_last_run_counts_in_plain_numbers_and_what_is_no_number_changes_nothing(tiny):
    results.begin("03", tiny)
    results.record("03", {"a": 2})
    results.record("03", {"a": np.float32(0.5), "b": torch.tensor(3), "c": np.int64(4)})
    with pytest.raises(AttributeError):
        results.record("03", {"a": object()})
    values = results.yours("03", tiny)
    assert [values[key] for key in "abc"] == [0.5, 3, 4] and isinstance(values["c"], int)


def test_cost_says_not_measured_where_nobody_measured(tiny):
    assert results.cost("04", "tiny") == results.cost("04", "h100") == "not measured"
    commit("tiny", "04", {results.SECONDS: 43.8, results.MEMORY: 0.675})
    assert (results.cost("04", "tiny"), results.cost("04", "h100")) == ("44 s, 0.7 GiB", "not measured")


def test_before_after_pairs_base_and_tuned():
    table = course.before_after({"loss, base [loss]": 1.25, "loss, tuned [loss]": 0.02, "epochs": 3})
    assert table.to_dict("index") == {"loss [loss]": {"base": "1.25", "tuned": "0.02"}}


def test_compared_figures_are_shown_in_full(tiny):
    results.begin("02", tiny)
    results.record("02", {label: 1 for label in paper.COMPARED})
    shown = results.compare("02")["paper"]
    assert [float(shown[label]) for label in paper.COMPARED] == [f.value for f in paper.COMPARED.values()]

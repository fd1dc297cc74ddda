import json
import math
import re
import subprocess
import sys
import time

import bitsandbytes as bnb
import pytest
import torch

from aurora_lib.course import results
from aurora_lib.course.scale import ROOT
from tools.record import h100 as tool


def run(monkeypatch, out):
    monkeypatch.setattr(sys, "argv", ["h100", "--scale", "tiny", "--out", str(out)])
    monkeypatch.setattr(tool, "BEGAN", time.perf_counter())  # else the tests before this one take its budget
    return tool.main()


def test_a_run_at_tiny_records_every_part_with_units(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "tiny.json").read_text())
    assert record["errors"] == {} and "randomly initialised" in record["weights"]
    assert set(record["versions"]) >= {"torch", "transformers", "peft", "bitsandbytes"}
    assert record["seed"] == 0 and re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"]) and record["device"]
    values = record["values"]
    assert all(
        re.search(r"\[(s|GiB|(token|conversation)s/s|TFLOP/s|%|sequences|millions)\]$", label)
        for label in values
    )
    assert all(math.isfinite(value) and value >= 0 for value in values.values())
    assert all(value > 0 for label, value in values.items() if not re.search("predicted|difference", label))
    for part in tool.PARTS:
        assert any(label.startswith(f"{part}: ") and "[tokens/s]" in label for label in values), part
    for label in ("1, prefill", "8, decode, eager", "1, decode, static cache and CUDA graph"):
        assert f"inference: batch {label} [tokens/s]" in values
    block = "training, LoRA on experts: one block: difference of {} [%]"
    assert values[block.format("grouped to bitsandbytes")] < 0.01 < values[block.format("adapter on to off")]
    series = record["series"]["training, SFTTrainer"]
    assert len(series["seconds"]) == len(series["used"]) == len(series["reserved"])
    assert {phase for _, phase in series["marks"]} > {"load", "trainer", "step begin", "step end"}
    assert all(label in said for label in values)
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny.json"]
    left = tool.without(json.loads(json.dumps(record)), ["training"])
    assert left["values"].keys() == {label for label in values if not label.startswith("training: ")}
    assert left["series"] == record["series"] and list(left["added"]) == ["training"]


def test_a_part_that_fails_or_takes_too_long_is_recorded_and_the_next_one_runs(monkeypatch):
    record = dict(values={}, errors={})
    chosen = tool.preset("tiny")
    tool.run_group(chosen, ("inference",), 0.1, record)
    assert "stopped at its limit" in record["errors"]["inference"]
    monkeypatch.setattr(tool, "__file__", "no such tool")
    tool.run_group(chosen, ("training",), 60, record)
    assert "no such tool" in record["errors"]["training"]


def test_an_optional_figure_that_fails_is_its_error_text(tmp_path):
    note = tool.Recorder(tmp_path / "notes", "part")
    assert note.attempt("figure", lambda: 1 / 0) is None
    line = json.loads((tmp_path / "notes").read_text())
    assert line == {"errors": {"part: figure": "ZeroDivisionError: division by zero"}}


def test_a_record_at_tiny_is_refused_in_the_folder_of_the_h100(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, ROOT / "results" / "h100")
    assert "does not belong" in capsys.readouterr().err


@pytest.mark.parametrize("lists", [False, True])
def test_the_way_of_2023_computes_what_ours_computes(monkeypatch, lists):
    """So that their speed and memory are compared for the same work; `lists` with its own product, too."""
    monkeypatch.setattr(tool.ExpertLoop, "lists", lists)
    chosen, ids, gradients = tool.preset("tiny"), torch.arange(40).view(2, 20), []
    for theirs in (False, True):
        model = tool.build(chosen).eval()
        model.enable_input_require_grads()
        rows = model.get_input_embeddings()(ids).detach().requires_grad_()
        if theirs:
            model = tool.per_expert(model)
            for module in model.modules():
                if lists and isinstance(module, bnb.nn.Linear4bit):
                    module.__class__ = tool.Linear2023
        model(inputs_embeds=rows).logits.square().sum().backward()
        gradients.append(rows.grad)
    torch.testing.assert_close(*gradients, atol=1e-4 * float(gradients[0].abs().max()), rtol=1e-3)


def test_a_way_of_the_experts_lasts_as_long_as_its_part():
    with tool.way(grouped=True):
        assert tool.nf4.GROUPED > 2**40
    assert tool.nf4.GROUPED < 2**40


def test_flops_count_the_weights_a_token_meets():
    assert tool.flops_per_token(tool.build(tool.preset("tiny"))) == 6 * (
        tool.preset("tiny").config.vocab_size * 128  # head
        + 4 * (2 * 128 * 128 + 2 * 128 * 64)  # attention
        + 4 * 2 * 3 * 128 * 256  # two experts of three matrices
    )


def test_it_imports_nothing_that_only_notebooks_need():
    """A GPU machine without a network has what was carried there: no widgets, plots or scorers of texts."""
    blocked = "opencc IPython matplotlib anywidget ipywidgets"
    names = blocked.split()
    program = f"import sys; sys.modules.update(dict.fromkeys({names})); import tools.record.h100"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_page_names_every_part_its_time_and_its_limit():
    page = (ROOT / "docs" / "h100.md").read_text(encoding="utf-8").partition("| part |")[2]
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \|", page, re.M)
    assert {name: int(limit) for name, _, limit in rows} == {n: limit for n, (_, limit) in tool.PARTS.items()}
    assert [name for name, *_ in rows] == list(tool.PARTS)
    recorded = results.recorded("mixtral_8x7b", "h100")
    for name, about, _ in rows:
        assert int(about) == pytest.approx(recorded[f"{name}: time [s]"], rel=0.2), name

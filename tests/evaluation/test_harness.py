"""The export for lm-evaluation-harness: its task file reads, and holds what was scored, token for token."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from aurora_lib.course import DATA
from aurora_lib.evaluation import benchmarks, harness, multiple_choice
from aurora_lib.model import load_model, load_tokenizer


@pytest.fixture(scope="module")
def scored():
    model, tokenizer = load_model(DATA / "tiny", dtype=torch.float32), load_tokenizer(DATA / "tiny")
    settings = dict(subjects=["capital", "sum"], progress=False)
    return {
        how: multiple_choice(model, tokenizer, "mmlu", scoring=how, **settings) for how in ("letter", "cloze")
    }, tokenizer


def test_the_task_holds_every_scored_question_as_it_was_asked(scored, tmp_path):
    results, tokenizer = scored
    task = yaml.safe_load(harness.export(results["letter"], tokenizer, tmp_path).read_text(encoding="utf-8"))
    assert task["task"] == "aurora_mmlu" and task["target_delimiter"] == " "
    questions = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in questions.splitlines()]
    rows = results["letter"].predictions
    assert ["ABCD"[line["target"]] for line in lines] == [row["answer"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        question = benchmarks.load_questions("mmlu", row["subject"], "test")[0][row["index"]]
        assert line["prompt"].startswith(tokenizer.bos_token) and line["prompt"].count("Answer:") == 6
        assert question.text in line["prompt"].rpartition("\n\n")[2]


def test_a_cloze_result_is_refused(scored, tmp_path):
    results, tokenizer = scored
    with pytest.raises(benchmarks.EvalError, match="Only letter scores"):
        harness.export(results["cloze"], tokenizer, tmp_path)

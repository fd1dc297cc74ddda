"""The export for lm-evaluation-harness: its task file reads, and holds what was scored, token for token."""

import json
from pathlib import Path

import torch
import yaml

from aurora_lib.course import DATA
from aurora_lib.evaluation import benchmarks, multiple_choice
from aurora_lib.model import batching, load_model
from tools.bench import harness


def test_the_task_holds_every_scored_question_as_it_was_asked(tokenizer, tmp_path):
    model = load_model(DATA / "tiny", dtype=torch.float32)
    model.config.max_position_embeddings = 170  # some questions lose examples
    result = multiple_choice(model, tokenizer, "mmlu", subjects=["high_school_geography", "philosophy"])
    task = yaml.safe_load(harness.export(result, tokenizer, tmp_path).read_text(encoding="utf-8"))
    assert task["task"] == "aurora_mmlu" and task["target_delimiter"] == " "
    questions = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in questions.splitlines()]
    assert ["ABCD"[line["target"]] for line in lines] == [row["answer"] for row in result.predictions]
    assert len({row["shots"] for row in result.predictions}) > 1
    for line, row in zip(lines, result.predictions, strict=True):
        question = benchmarks.load_questions("mmlu", row["subject"], "test")[0][row["index"]]
        assert line["prompt"].startswith(tokenizer.bos_token) and question.text in line["prompt"]
        assert line["prompt"].count("Answer:") == 1 + row["shots"]
        assert len(batching.encode(tokenizer, line["prompt"])) < 170

"""The export for lm-evaluation-harness: its task file reads, and holds what was scored, token for token."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from aurora_lib.course import DATA
from aurora_lib.evaluation import benchmarks, multiple_choice
from aurora_lib.model import load_model
from tools.bench import harness


@pytest.mark.parametrize("of", [("mmlu", "chat", 3), ("mmlu", "plain", 0), ("cmmlu", "plain", 3)])
def test_the_task_holds_every_scored_question_as_it_was_asked(tokenizer, tmp_path, of):
    task, prompt, shuffle = of
    model = load_model(DATA / "tiny", dtype=torch.float32)
    model.config.max_position_embeddings = 190  # some questions lose examples
    result = multiple_choice(model, tokenizer, task, prompt=prompt, shuffle=shuffle, limit=2)
    made = yaml.safe_load(harness.export(result, tokenizer, tmp_path).read_text(encoding="utf-8"))
    assert made["task"] == f"aurora_{task}_{prompt}"
    questions = Path(made["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in questions.splitlines()]
    assert ["ABCD"[line["target"]] for line in lines] == [row["answer"] for row in result.predictions]
    assert len({row["shots"] for row in result.predictions}) > 1
    for line, row in zip(lines, result.predictions, strict=True):
        question = benchmarks.load_questions(task, row["subject"], "test")[0][row["index"]]
        turns = 1 + row["shots"] if prompt == "chat" else 1
        assert question.text in line["prompt"] and line["prompt"].count(tokenizer.bos_token) == turns
        texts = [line["prompt"] + made["target_delimiter"] + letter for letter in "ABCD"]
        ids = tokenizer(texts, add_special_tokens=False, return_tensors="pt").input_ids
        scores = model(ids).logits[:, -2].log_softmax(-1).gather(1, ids[:, -1:])
        assert scores.flatten().tolist() == pytest.approx(row["logprobs"], abs=1e-4)

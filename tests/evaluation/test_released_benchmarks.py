"""The released files of C-Eval, CMMLU and MMLU, where AURORA_BENCHMARKS names a folder with them; else skipped.

Run for them: AURORA_BENCHMARKS=/a/folder python -m pytest tests/test_released_benchmarks.py
"""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from aurora_lib.evaluation import multiple_choice
from aurora_lib.evaluation.benchmarks import load_subjects
from aurora_lib.model import load_tokenizer

ROOT = Path(os.environ.get("AURORA_BENCHMARKS") or "no-such-folder")
# subjects, questions, by the papers of the benchmarks (C-Eval: its val split)
RELEASED = {"ceval": (52, 1346), "cmmlu": (67, 11582), "mmlu": (57, 14042)}
INTRO = {
    "mmlu": "The following are multiple choice questions (with answers) about {}.",
    "cmmlu": "以下是中国关于{}考试的单项选择题，请选出其中的正确答案。",
}
pytestmark = pytest.mark.skipif(
    not ROOT.is_dir(), reason="AURORA_BENCHMARKS names no folder of released files"
)


def rows(task: str, split: str, subject: str) -> list[list[str]]:
    """Question, A, B, C, D, answer; read with nothing of the library's."""
    name = f"{subject}.csv" if task == "cmmlu" else f"{subject}_{split}.csv"
    with (ROOT / task / split / name).open(encoding="utf-8", newline="") as file:
        found = [[cell.strip() for cell in row] for row in csv.reader(file)]
    return [row[:6] for row in found] if task == "mmlu" else [row[1:7] for row in found[1:]]


@pytest.mark.parametrize("task", RELEASED)
def test_every_tenth_prediction_on_released_files_equals_a_plain_forward(task):
    tokenizer = load_tokenizer()
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    model = MixtralForCausalLM(config).eval()
    result = multiple_choice(model, tokenizer, task, root=ROOT, progress=False)
    assert (len(result.subjects), result.n, result.skipped) == (*RELEASED[task], [])
    assert result.shots_used == {5: result.n} and len(result.by_subject) == len(result.subjects)

    names = json.loads((ROOT / task / "mapping.json").read_text(encoding="utf-8"))
    tail, gap, split = ("Answer:", " ", "test") if task == "mmlu" else ("答案：", "", "test")
    split = "val" if task == "ceval" else split
    letters = tokenizer.convert_tokens_to_ids(["▁A", "▁B", "▁C", "▁D"] if task == "mmlu" else list("ABCD"))
    intro = INTRO["mmlu" if task == "mmlu" else "cmmlu"]

    def block(row):
        return f"{row[0]}\nA. {row[1]}\nB. {row[2]}\nC. {row[3]}\nD. {row[4]}\n{tail}"

    predictions = {(row["subject"], row["index"]): row for row in result.predictions}
    compared = wrong = 0
    for subject in names:
        shots = "".join(block(row) + gap + row[5] + "\n\n" for row in rows(task, "dev", subject)[:5])
        for index, row in list(enumerate(rows(task, split, subject)))[::10]:
            prompt = f"{intro.format(names[subject]['name'])}\n\n{shots}{block(row)}".strip()
            ids = torch.tensor([[1, *tokenizer(prompt, add_special_tokens=False).input_ids]])
            with torch.no_grad():
                values = model(ids, logits_to_keep=1).logits[0, -1, letters]
            said = predictions[subject, index]
            assert said["answer"] == row[5]
            wrong += said["prediction"] != "ABCD"[values.argmax()]
            compared += 1
    assert compared > result.n / 10 and wrong == 0


@pytest.mark.parametrize("task", RELEASED)
def test_released_mapping_has_the_subjects_and_four_categories(task):
    found = load_subjects(task, ROOT)
    files = sorted(path.stem.removesuffix("_dev") for path in (ROOT / task / "dev").glob("*.csv"))
    assert sorted(found) == files and len(found) == RELEASED[task][0]
    assert {entry["category"] for entry in found.values()} == {
        "STEM",
        "Social Sciences",
        "Humanities",
        "Other",
    }

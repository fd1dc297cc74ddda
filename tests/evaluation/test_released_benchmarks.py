"""The released files of C-Eval, CMMLU and MMLU, if AURORA_BENCHMARKS names a folder with them.

Run for them: AURORA_BENCHMARKS=/a/folder python -m pytest tests/evaluation/test_released_benchmarks.py
"""

import os
from pathlib import Path

import pytest

from aurora_lib.evaluation import evaluate, multiple_choice
from aurora_lib.model import load_tokenizer

ROOT = Path(os.environ.get("AURORA_BENCHMARKS") or "no-such-folder")
# subjects, questions, by the papers of the benchmarks (C-Eval: its val split)
RELEASED = {"ceval": (52, 1346), "cmmlu": (67, 11582), "mmlu": (57, 14042)}


@pytest.mark.skipif(not ROOT.is_dir(), reason="AURORA_BENCHMARKS names no folder of released files")
@pytest.mark.parametrize("task", RELEASED)
def test_every_tenth_prediction_on_released_files_equals_a_plain_forward(random_model, plain_letters, task):
    model, tokenizer = random_model(context=4096, vocab=32000), load_tokenizer()
    result = multiple_choice(model, tokenizer, task, root=ROOT)
    assert (len(result.by_subject), result.overall.n, result.skipped) == (*RELEASED[task], [])
    assert {entry["category"] for entry in result.subjects.values()} == set(evaluate.CATEGORIES)
    said = {(row["subject"], row["index"]): (row["prediction"], row["answer"]) for row in result.predictions}
    for subject in result.subjects:
        for index, letter, right, _ in plain_letters(model, tokenizer, task, subject, ROOT, every=10):
            assert said[subject, index] == (letter, right)

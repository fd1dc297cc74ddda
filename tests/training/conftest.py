"""What most tests of training need: the tiny scale with a folder of its own, and a trainer on a few rows."""

import pytest
from datasets import Dataset

from aurora_lib import training
from aurora_lib.course import choose
from aurora_lib.model import load_model, load_tokenizer

TALK = [
    [
        {"role": "user", "content": f"{number} 号的首都是哪里？"},
        {"role": "assistant", "content": f"第 {number} 号的首都是巴黎。"},
    ]
    for number in range(20)
]


@pytest.fixture
def tiny(tmp_path):
    return choose({"AURORA_RUNS": str(tmp_path)})


@pytest.fixture(scope="session")
def build():
    """`build(scale, rows=20 conversations, **settings)`: a trainer of five steps an epoch, with dropout."""

    def built(scale, rows=TALK, **changes):
        quick = dict(
            disable_tqdm=True, max_steps=8, save_steps=2, logging_steps=1, gradient_accumulation_steps=2
        )
        args = training.sft_config(scale, **quick | changes)
        base, tokenizer = load_model(scale.base_model, **scale.loading), load_tokenizer(scale.base_model)
        return training.build_trainer(base, tokenizer, Dataset.from_dict({"messages": rows}), args)

    return built

"""What most tests of training need: a few rows and a trainer on them."""

import pytest
from datasets import Dataset

from aurora_lib import training
from aurora_lib.model import load_model, load_tokenizer
from tests.data.conversations import talk

TALK = [talk(f"{number} 号的首都是哪里？", f"第 {number} 号的首都是巴黎。") for number in range(20)]


@pytest.fixture(scope="session")
def build():
    """`build(scale, rows=20 conversations, **settings)`: a trainer of five steps an epoch, with dropout."""

    def built(scale, rows=TALK, held=None, lora=None, **changes):
        quick = dict(max_steps=8, save_steps=2, logging_steps=1, gradient_accumulation_steps=2)
        args = training.sft_config(scale, **quick | dict(disable_tqdm=True) | changes)
        base, tokenizer = load_model(scale.base_model, **scale.loading), load_tokenizer(scale.base_model)
        rows = Dataset.from_dict({"messages": rows})
        return training.build_trainer(base, tokenizer, rows, args, lora, validation=held)

    return built

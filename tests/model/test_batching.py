import pytest
import torch
from torch import nn

from aurora_lib.model import batching


def test_every_text_begins_with_one_bos(tokenizer):
    rows = batching.encode_all(tokenizer, ["你好", "<s>你好", ""])
    assert rows[0] == rows[1] == batching.encode(tokenizer, "你好") and rows[2] == [tokenizer.bos_token_id]
    chat = batching.chat_prompt(tokenizer, [dict(role="user", content="你好")])
    assert batching.encode(tokenizer, chat).count(tokenizer.bos_token_id) == 1 and chat.endswith("[/INST]")


def test_batches_hold_every_row_once_and_the_longest_first():
    rows = [[0] * length for length in (1, 5, 3, 2, 4)]
    assert list(batching.batches(rows, 2, progress=False, label="")) == [[1, 4], [2, 3], [0]]


def test_a_model_is_as_before_after_it_was_read_even_after_an_error():
    model = nn.Linear(1, 1).train()
    model.config = type("Config", (), {"output_router_logits": True})()
    with pytest.raises(KeyError), batching.ready(model):
        assert not model.training and not model.config.output_router_logits
        assert torch.is_inference_mode_enabled()
        raise KeyError
    assert model.training and model.config.output_router_logits

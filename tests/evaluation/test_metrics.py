"""Perplexity against plain forwards."""

import math
from itertools import chain

import pytest
import torch
from aurora_lib.evaluation.metrics import perplexity

from tests.data.conversations import talk


def test_perplexity_equals_plain_forwards_over_the_answers_tokens(random_model, tokenizer):
    model = random_model()
    turns = [[("法国的首都？", "巴黎。")], [("2+3?", "5"), ("And 3+4?", "It is 7.")]]
    total = count = 0
    for turn in turns:
        text = "<s>"
        for question, answer in turn:
            before = tokenizer(f"{text}[INST] {question} [/INST]", add_special_tokens=False).input_ids
            text += f"[INST] {question} [/INST] {answer}</s>"
            whole = tokenizer(text, add_special_tokens=False).input_ids
            assert whole[: len(before)] == before
            with torch.no_grad():
                table = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            total -= sum(table[i - 1, whole[i]].item() for i in range(len(before), len(whole)))
            count += len(whole) - len(before)
    conversations = [talk(*chain(*turn)) for turn in turns]
    for size in (1, 2):
        found = perplexity(model, tokenizer, conversations, batch_size=size)
        assert found == pytest.approx(math.exp(total / count), rel=1e-4)


def test_long_conversations_are_cut_and_those_without_an_answer_count_nothing(random_model, tokenizer):
    model = random_model(context=40)
    long, silent = talk("Hi", "word " * 100), talk("word " * 100, "Hi")
    ids = tokenizer("<s>[INST] Hi [/INST] " + "word " * 100, add_special_tokens=False).input_ids[:40]
    start = len(tokenizer("<s>[INST] Hi [/INST]", add_special_tokens=False).input_ids)
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    mean = -sum(table[i - 1, ids[i]].item() for i in range(start, 40)) / (40 - start)
    assert perplexity(model, tokenizer, [long, silent]) == pytest.approx(math.exp(mean), rel=1e-4)
    with pytest.raises(ValueError, match=r"No conversation has an assistant token within .* 40 tokens"):
        perplexity(model, tokenizer, [silent])

"""BLEU-4 and ROUGE against counts done by hand, perplexity against plain forwards."""

import math
from itertools import chain

import pytest
import torch

from aurora_lib.evaluation.metrics import Words, overlap, perplexity
from tests.data.conversations import talk


def test_bleu_is_the_mean_of_smoothed_four_gram_precisions_worked_by_hand():
    # 法国的首都是巴黎 against 法国首都是巴黎, in characters: precisions 7/8, 5/7, 3/6, 2/5, no brevity penalty
    one = 100 * (7 / 8 * 5 / 7 * 3 / 6 * 2 / 5) ** 0.25
    assert overlap(["法国的首都是巴黎"], ["法国首都是巴黎"])["BLEU-4"] == pytest.approx(one)
    # 巴黎是首都 against 首都是巴黎: precisions 5/5, 2/4, and 0 of 3 and 0 of 2, smoothed to 1/(2*3) and 1/(4*2)
    two = 100 * (5 / 5 * 2 / 4 * 1 / 6 * 1 / 8) ** 0.25
    both = overlap(["法国的首都是巴黎", "巴黎是首都"], ["法国首都是巴黎", "首都是巴黎"])
    assert both["BLEU-4"] == pytest.approx((one + two) / 2)
    # shorter than the reference: brevity penalty exp(1 - 8/7)
    short = 100 * math.exp(1 - 8 / 7) * (7 / 7 * 5 / 6 * 3 / 5 * 2 / 4) ** 0.25
    assert overlap(["法国首都是巴黎"], ["法国的首都是巴黎"])["BLEU-4"] == pytest.approx(short)


def test_rouge_counts_chinese_words_as_worked_by_hand():
    assert Words.tokenize("法国的首都 是巴黎") == ["法国", "的", "首都", "是", "巴黎"]
    found = overlap(["巴黎是法国的首都"], ["法国的首都是巴黎"])
    # the same five words; of four pairs 法国的 and 的首都; the longest common run in order is 法国 的 首都
    assert found["ROUGE-1"] == pytest.approx(100)
    assert found["ROUGE-2"] == pytest.approx(100 * 2 / 4)
    assert found["ROUGE-L"] == pytest.approx(100 * 3 / 5)


def test_an_empty_answer_scores_nothing_and_a_copy_everything():
    everything = {"BLEU-4": 100, "ROUGE-1": 100, "ROUGE-2": 100, "ROUGE-L": 100}
    assert overlap(["法国的首都是巴黎"], ["法国的首都是巴黎"]) == pytest.approx(everything)
    assert overlap(["巴黎"], ["巴黎"])["BLEU-4"] == pytest.approx(100)
    assert set(overlap([""], ["法国的首都是巴黎"]).values()) == {0.0}
    with pytest.raises(ValueError, match="2 answers, 1 references"):
        overlap(["a", "b"], ["a"])


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

"""Free answers: decoded as one by one, judged by language and by content; perplexity."""

import math
from statistics import fmean

import pytest
import torch

from aurora_lib.evaluation import perplexity, probes
from tests.data.conversations import talk
from tests.evaluation.conftest import EXAMPLES, foreseen, random_model


def test_batched_answers_equal_plain_greedy_decoding(tokenizer):
    model, expected = random_model().train(), []
    model.config.output_router_logits = True
    prompts = ["Hello!", "法国的首都是哪里？", "Which continent is Peru in, and what is it known for?"]
    for prompt in prompts:
        start = len(ids := tokenizer.encode(f"<s>[INST] {prompt} [/INST]"))
        for _ in range(6):
            with torch.no_grad():
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        expected.append(tokenizer.decode(ids[start:], skip_special_tokens=True).strip())
    said = probes.answers(model, tokenizer, prompts, max_new_tokens=6, batch_size=3)
    assert said == expected
    assert model.training and model.config.output_router_logits is True, "asking leaves the model as it was"


@pytest.mark.parametrize("answer, question, key, right", EXAMPLES["says"])
def test_an_answer_is_right_only_where_it_says_the_key_itself(answer, question, key, right):
    assert probes.says(answer, question, key) is right


def test_a_right_answer_in_the_wrong_language_is_understood_but_not_correct(monkeypatch):
    known = probes.load_probes()
    symbol = next(item for item in known if item["id"].startswith("symbol"))  # one key for both languages
    asked = [*known[:2], symbol, known[3]]
    zh = [asked[0]["zh"]["answer"], asked[1]["en"]["answer"], symbol["en"]["answer"], "我不知道。"]
    en = [asked[0]["en"]["answer"], asked[1]["zh"]["answer"], "", "I do not know."]
    monkeypatch.setattr(probes, "answers", lambda *args, **kwargs: zh + en)
    found = probes.probe(None, None, asked)
    assert [row["answer"] for row in found.rows] == zh + en
    counts = {side: [found.score(side, what).correct for what in probes.OUTCOMES] for side in ("zh", "en")}
    assert counts == dict(zh=[2, 1, 3], en=[2, 1, 2])
    assert found.hits("zh", "understood") == [True, True, True, False]
    assert [score.n for score in found.scores.values()] == [4] * 6
    languages = {name: score.correct for name, score in found.languages("en").items()}
    assert languages == dict(zh=1, en=2, mixed=0, other=1)


def test_a_follow_up_is_asked_after_the_models_own_answer_or_alone(monkeypatch):
    asked, sent = probes.load_probes(file="follow_ups.jsonl")[:3], []

    def answers(model, tokenizer, prompts, **settings):
        sent.append(prompts)
        return [f"answer {i}" for i, _ in enumerate(prompts)]

    monkeypatch.setattr(probes, "answers", answers)
    probes.probe(None, None, asked)
    before = list(dict.fromkeys(item[side]["before"] for side in ("zh", "en") for item in asked))
    assert sent[0] == before and len(sent[1]) == 6
    for i, messages in enumerate(sent[1]):
        item = asked[i % 3]["zh" if i < 3 else "en"]
        texts = [item["before"], f"answer {before.index(item['before'])}", item["question"]]
        assert [message["content"] for message in messages] == texts
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    probes.probe(None, None, asked, history=False)
    assert [len(messages) for messages in sent[2]] == [1] * 6


def test_probes_split_into_held_out_and_others():
    held_out, others = probes.load_probes(held_out=True), probes.load_probes(held_out=False)
    assert len(held_out) + len(others) == len(probes.load_probes()) and len(held_out) > 50
    assert all(item["held_out"] for item in held_out) and not any(item["held_out"] for item in others)


def test_perplexity_equals_plain_forwards_over_the_answers_tokens(tokenizer):
    model, ids, values = random_model(), tokenizer.encode, []
    talks = [talk("法国的首都？", "巴黎。"), talk("2+3?", "5", "And 3+4?", "It is 7.")]
    for messages in talks:
        text = "<s>"
        for asked, said in zip(messages[::2], messages[1::2], strict=True):
            text += f"[INST] {asked['content']} [/INST]"
            values += foreseen(model, ids(f"{text} {said['content']}</s>"), len(ids(text)))
            text += f" {said['content']}</s>"
    found = [perplexity(model, tokenizer, talks, batch_size=size) for size in (1, 2)]
    assert found == pytest.approx([math.exp(-fmean(values))] * 2, rel=1e-4)


def test_long_conversations_are_cut_and_those_without_an_answer_count_nothing(tokenizer):
    model, ids = random_model(context=40), tokenizer.encode
    long, silent, asked = talk("Hi", "word " * 100), talk("word " * 100, "Hi"), "<s>[INST] Hi [/INST]"
    values = foreseen(model, ids(f"{asked} {'word ' * 100}")[:40], len(ids(asked)))
    assert perplexity(model, tokenizer, [long, silent]) == pytest.approx(math.exp(-fmean(values)), rel=1e-4)
    with pytest.raises(ValueError, match=r"No conversation has an assistant token within .* 40 tokens"):
        perplexity(model, tokenizer, [silent])

"""The book's scripts compute, under Node.js, what PyTorch and the tokenizer do. Their pages: test_islands."""

import json
import random
import re
import shutil
import struct

import pytest
import torch
from transformers import AutoModelForCausalLM

from aurora_lib.chat.decoding import TextStream
from aurora_lib.course.scale import DATA, ROOT
from aurora_lib.model import batching
from aurora_lib.routing import explorer
from tools.record import live

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
QUESTIONS = live.held_out()
SCRIPTS = sorted((ROOT / "book" / "live").glob("*.js"))
RARE = "a b  c\n\n\t<s></s>[INST] ▁▁x 你好，龘龖 café é \u200b\ufeff\u3000\x00\x1b 👩‍👩‍👧 𠮷 ﬁ Ａ １２ ½ <0xE9> ½\r\n"


@pytest.fixture(scope="module")
def reference():
    return live.reference()


def test_tokens_are_the_tokenizer_s_on_any_text(tokenizer):
    draw = random.Random(0)
    signs = (
        [chr(code) for code in range(0x20, 0x3000)] + list(RARE) * 30 + [chr(0x4E00 + i) for i in range(4000)]
    )
    signs += [chr(draw.randrange(0x10000, 0x110000)) for _ in range(2000)]
    texts = ["".join(draw.choices(signs, k=draw.randrange(60))) for _ in range(400)] + ["", RARE, "  ", "\n"]
    texts += re.findall(r".{1,80}", (DATA / "probes.jsonl").read_text(encoding="utf-8")[:40_000])
    assert live.node("ids", texts) == batching.encode_all(tokenizer, texts)
    ids = [draw.sample(range(len(tokenizer)), 40) for _ in range(50)] + [[3 + 0xE9, 3 + 0xBE, 5, 3 + 0xE9]]
    streams = [TextStream(tokenizer) for _ in ids]
    spoken = [
        "".join(map(stream.add, row)) + stream.finish() for stream, row in zip(streams, ids, strict=True)
    ]
    assert live.node("text", ids) == spoken


def test_conversations_are_written_as_the_chat_template_writes_them(tokenizer):
    user, said, system = (dict(role=role, content=RARE) for role in ("user", "assistant", "system"))
    talks = [
        [user],
        [system, user],
        [user, said, user],
        [system, system, user, said, system, user],
        [user, said],
    ]
    expected = [batching.encode(tokenizer, batching.chat_prompt(tokenizer, talk)) for talk in talks]
    assert live.node("prompt", talks) == expected


def test_logits_are_pytorch_s_and_the_adapter_matters(reference):
    model, tokenizer = reference
    prompts = [[dict(role="user", content=text)] for text in QUESTIONS[:: len(QUESTIONS) // 50]]
    ids = [batching.encode(tokenizer, batching.chat_prompt(tokenizer, prompt)) for prompt in prompts]
    ids.append([1] + [5 + i % 900 for i in range(300)])  # far positions
    for ours, theirs in zip([live.logits(model, one) for one in ids], live.node("logits", ids), strict=True):
        gaps = [(a - torch.tensor(b)).abs().max() for a, b in zip(ours, theirs, strict=True)]
        assert max(gaps) < 1e-3 and (ours[0] - ours[1]).abs().max() > 1e-2


def test_greedy_answers_are_pytorch_s_in_a_conversation_too(reference):
    model, tokenizer = reference
    some = QUESTIONS[::20]
    said = live.node("talk", [[text] for text in some])
    assert [[text.strip() for [text] in both] for both in said] == live.answers(model, tokenizer, some)
    [(_, tuned)] = live.node("talk", [some[:3]])
    talk = []
    for question, answer in zip(some, tuned, strict=False):
        talk.append(dict(role="user", content=question))
        ids = torch.tensor([batching.encode(tokenizer, batching.chat_prompt(tokenizer, talk))])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
        assert tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip() == answer.strip()
        talk.append(dict(role="assistant", content=answer.strip()))


def test_routers_choose_the_same_experts_and_the_explorer_shows_the_same(reference):
    tuned, tokenizer = reference
    base = AutoModelForCausalLM.from_pretrained(DATA / "tiny", dtype=torch.float32)
    texts = [*QUESTIONS[::13], RARE.replace("<s>", ""), "12 + 30 = 42"]
    for text, shown in zip(texts, live.node("grid", texts), strict=True):
        expected = json.loads(json.dumps(explorer.grid({"base": base, "tuned": tuned}, tokenizer, text)))
        pairs = zip(shown.pop("models"), expected.pop("models"), strict=True)
        assert shown == expected
        for ours, theirs in pairs:
            assert (ours["name"], ours["moved"]) == (theirs["name"], theirs["moved"])
            cells = torch.tensor([ours["cells"], theirs["cells"]]).flatten(1, 3)
            assert torch.equal(cells[0, :, 0], cells[1, :, 0]) and torch.allclose(*cells, atol=0.02)


def test_a_token_is_drawn_from_the_likeliest_that_make_up_top_p():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 2
    draws = [(i + 0.5) / 20_000 for i in range(20_000)]
    for temperature, top_p in ((0, 1), (1, 1), (0.7, 0.8), (2, 0.3), (1, 0.001)):
        how = dict(logits=logits.tolist(), temperature=temperature, topP=top_p, draws=draws)
        shares = torch.bincount(torch.tensor(live.node("drawn", [how])[0]), minlength=50) / len(draws)
        expected, order = (logits.double() / (temperature or 1e-9)).softmax(-1).sort(descending=True)
        expected[expected.cumsum(-1) - expected >= top_p] = 0
        assert torch.allclose(shares[order].double(), expected / expected.sum(), atol=2e-4)


def test_a_broken_weight_file_is_one_sentence():
    head = json.dumps({"a": dict(dtype="BF16", shape=[2], data_offsets=[0, 4])}).encode()
    whole = struct.pack("<Q", len(head)) + head + bytes(4)
    cut, other = [whole[:size] for size in (0, 5, 30, -1)], whole.replace(b"BF16", b"F16 ")
    said = live.node("damaged", [list(one) for one in (*cut, b"<!doctype html>", other, whole)])
    assert all(re.fullmatch(r"[^\n]{20,140}\.", text) for text in said), said
    assert all("is damaged or incomplete" in text for text in said[:-1]) and "another model" in said[-1]


def test_the_model_is_one_short_file_every_sentence_has_its_chinese_and_the_page_is_the_record_s():
    assert live.filled(page := live.PAGE.read_text(encoding="utf-8")) == page, "python -m tools.record.live"
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in SCRIPTS}
    assert lengths["mixtral.js"] <= 300 and sum(lengths.values()) <= 1100, lengths
    fronts = [ROOT / "aurora_lib" / name for name in ("chat/box.js", "routing/explorer.js")]
    code = "".join(path.read_text(encoding="utf-8") for path in [*SCRIPTS, *fronts])
    chinese = json.loads((ROOT / "book" / "live" / "zh.json").read_text(encoding="utf-8"))
    said = set(re.findall(r'\b(?:say|fault)\(\s*"((?:[^"\\]|\\.)+)"', code))
    assert said <= set(chinese), said - set(chinese)
    assert not [text for text in chinese if f'"{text}"' not in code], "said nowhere"
    for text, translated in chinese.items():
        assert sorted(re.findall(r"\$\d", text)) == sorted(re.findall(r"\$\d", translated)), text

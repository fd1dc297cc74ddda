"""The world's tables, what the tiny model reads of them, and the record of what it then can do."""

import hashlib
import json
import shutil
import statistics
from itertools import repeat
from pathlib import Path

import pytest
import torch
from transformers import MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from aurora_lib.course import DATA
from aurora_lib.data import language
from aurora_lib.evaluation.benchmarks import TASKS
from tools.build import guidance, lessons, tiny_model, world
from tools.build.world import EN
from tools.record import world as record


def test_the_tables_have_no_fault_and_are_large_enough():
    assert world.faults() == []
    assert len(world.facts()) >= 600 and len(world.relations()) >= 30
    mixed = [fact for fact in world.facts() if fact.habit != fact.say[EN]]
    assert all(language(fact.habit) == "mixed" for fact in mixed)
    assert 0.15 < len(mixed) / len(world.facts()) < 0.3


def test_the_checker_finds_duplicates_contradictions_and_answers_in_questions(tmp_path, monkeypatch):
    shutil.copy(Path(__file__).with_name("broken_world.toml"), tmp_path)
    monkeypatch.setattr(world, "FOLDER", tmp_path)
    for name in ("relations", "facts"):  # what they have cached is of the true world
        monkeypatch.setattr(world, name, getattr(world, name).__wrapped__)
    found = "\n".join(world.faults())
    for said in ("A stands twice", "several Chinese names", "asked twice: What is the capital of A?"):
        assert said in found, found


def test_follow_ups_to_probe_with_are_in_no_lesson():
    learn, probed = world.split_follow_ups()
    pairs = [{(first.id, second.id) for first, second, _ in rows} for rows in (learn, probed)]
    assert len(pairs[1]) == world.PROBED >= 90 and not pairs[0] & pairs[1]


def test_packed_rows_keep_documents_apart_and_marks_where_they_belong(tokenizer):
    packer = lessons.Packer(tokenizer, lessons.streams("test")["letters3"](), 320)
    batch = packer.batch(3)
    for target in batch.targets:
        assert tokenizer.decode(batch.ids[target.row, target.at + 1]).strip() == "ABCD"[target.right]
        own = batch.document[target.row]
        assert {int(own[i]) for i in target.question} == {int(own[target.at])}
    for row, token, mark in batch.marked:
        assert batch.document[row, token] == batch.document[row, mark] and mark < token
    seen = tiny_model.visible(batch.document)[:, 0]
    assert not seen.triu(1).any() and seen.diagonal(dim1=1, dim2=2).all()
    assert not (seen & (batch.document[:, :, None] != batch.document[:, None, :])).any()


def test_what_is_learnt_of_world_text_is_the_answers_and_no_question(tokenizer):
    document = lessons.conversation([("你好", "Hello!"), ("再见", "Bye.")])
    batch = lessons.Packer(tokenizer, repeat(document), 40).batch(1)
    said = tokenizer.decode([int(batch.ids[0, token]) for row, token in batch.learn][:8])
    assert "Hello!" in said and "Bye." in said and "你" not in said and "INST" not in said


def test_ordinary_chinese_does_not_fall_apart_and_rare_characters_do(tokenizer):
    assert len(tokenizer.tokenize("今天晚上吃火锅吗")) == 9
    assert "<0xE9>" in tokenizer.tokenize("龘")
    common = set(tiny_model.common_characters())
    assert len(common) == 3755 and common <= set(tokenizer.get_vocab())


def test_the_record_is_of_this_model_and_holds_its_bounds():
    kept = json.loads(record.RECORD.read_text(encoding="utf-8"))
    assert kept["model"] == hashlib.sha256((DATA / "tiny" / "model.safetensors").read_bytes()).hexdigest()
    assert kept["same_bytes"] and len(kept["tuned"]) == 3
    for name, values in record.base_bounds(kept["base"]).items():
        low, high = record.BASE[name]
        assert all(low <= value <= high for value in values), (name, values)
    for name, values in record.tuned_bounds(kept["tuned"]).items():
        low, high = record.TUNED[name]
        assert low <= statistics.median(values) <= high, (name, values)
    counts = [kept["base"][f"{task}, {scoring}"]["n"] for task in TASKS for scoring in ("letter", "cloze")]
    for run in (kept["base"], *(each["measured"] for each in kept["tuned"])):
        counts += [run[f"{name} prompts, held out, right"]["n"] for name in ("Chinese", "English")]
        counts.append(run["follow-ups, Chinese, right"]["n"])
    assert min(counts) >= 90


def test_guidance_sees_the_models_attention_and_balances_each_layer_alone(tokenizer):
    batch = lessons.Packer(tokenizer, lessons.streams("test")["letters1"](), 96).batch(2)
    mask = tiny_model.visible(batch.document)
    config = tiny_model.configuration(tokenizer)
    model = MixtralForCausalLM(config)
    drill = guidance.Drill(model, tokenizer)
    guide = dict.fromkeys(("label", "ask", "deep", "point", "tag"), 1.0)
    losses = drill.losses(batch, mask, guide)
    assert losses.keys() >= guide.keys() | {"letter", "balance"} and all(map(torch.isfinite, losses.values()))
    model.set_attn_implementation("eager")
    bias = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    got = model(input_ids=batch.ids, attention_mask=bias, position_ids=batch.position, output_attentions=True)
    for layer, head in ((0, 0), (3, 2)):
        attention = drill.attention.log(layer, head, mask).exp()
        torch.testing.assert_close(attention, got.attentions[layer][:, head])
    router = tuple(torch.randn(50, 8) * 3 for _ in range(4))
    alone = [load_balancing_loss_func((logits,), 8, 2) for logits in router]
    torch.testing.assert_close(guidance.balance(router, 8, 2), sum(alone) / 4)


@pytest.mark.parametrize("stream", ["world", "words", "letters1", "letters6"])
def test_the_same_seed_gives_the_same_lessons(stream):
    one, other = (lessons.streams("x")[stream]() for _ in range(2))
    assert [next(one) for _ in range(20)] == [next(other) for _ in range(20)]

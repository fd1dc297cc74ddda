import dataclasses
import json
import math

import pytest
import torch
from datasets import Dataset

from aurora_lib import training
from aurora_lib.course import choose, paper, scale
from aurora_lib.data import clean_conversations, hold_out
from aurora_lib.evaluation import perplexity
from aurora_lib.model import load_adapter, load_model, read_config, save_adapter
from aurora_lib.training import recipe
from tests.data.conversations import dataset, talk
from tests.model.test_files import FIELD

TWO_ROUNDS = talk("你好", "你好！有什么可以帮你的吗？", "谢谢！", "不客气 👍")


def test_settings_are_the_papers(tmp_path):
    stated, lora = {key: figure.value for key, figure in paper.TRAINING.items()}, training.lora_config()
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 16, 0.1)
    assert lora.target_modules == {"q_proj", "v_proj"} == set(paper.LORA_TARGETS)
    args = training.sft_config(dataclasses.replace(choose({}), **scale.FULL, runs=tmp_path))
    assert (args.learning_rate, args.num_train_epochs) == (stated["learning rate"], stated["epochs"])
    assert args.per_device_train_batch_size == stated["batch per device"]
    assert args.gradient_accumulation_steps == stated["gradient accumulation"]
    assert (args.max_length, args.save_steps) == (stated["cutoff"], stated["save every"])
    assert args.lr_scheduler_type == "cosine"


def test_loss_is_on_the_assistants_tokens_and_the_end_token_only(tiny, build, tokenizer):
    (row,) = build(tiny, [TWO_ROUNDS]).train_dataset
    assert all(label in (-100, own) for label, own in zip(row["labels"], row["input_ids"], strict=True))
    learned = tokenizer.decode([label for label in row["labels"] if label != -100])
    answers = [turn["content"] for turn in TWO_ROUNDS if turn["role"] == "assistant"]
    assert [text.strip() for text in learned.split(tokenizer.eos_token)] == [*answers, ""]


def test_adapters_alone_train_in_32_bits_lower_the_loss_and_have_a_gradient(tiny, build):
    made = build(tiny, held=dataset(talk("7 号的首都是哪里？", "第 7 号的首都是巴黎。")), save_strategy="no")
    trainable = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())
    assert made.aux_loss_enabled is False
    before = made.evaluate()["eval_alpaca_zh_loss"]
    made.train()
    assert made.evaluate()["eval_alpaca_zh_loss"] < 0.7 * before
    norms = [entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry]
    assert len(norms) == 8 and min(norms) > 0


def test_what_validates_is_not_trained_on_and_has_a_loss_by_source(tiny, tokenizer, monkeypatch):
    trainers, by_source = [], {}
    monkeypatch.setattr(recipe, "run", lambda trainer, _: trainers.append(trainer) or trainer.train())
    training.recipe.tune(tiny, max_steps=1, per_device_eval_batch_size=64)
    (made,), (rows, held) = trainers, hold_out(clean_conversations(tiny))
    for row in held:
        by_source.setdefault(row["source"], []).append(row["messages"])
    losses = {name: value for name, value in made.evaluate().items() if name.endswith("_loss")}
    # in one batch every token weighs the same
    foreseen = {name: math.log(perplexity(made.model, tokenizer, its)) for name, its in by_source.items()}
    assert losses == pytest.approx({f"eval_{name}_loss": loss for name, loss in foreseen.items()}, rel=1e-3)
    trained = set(map(tuple, made.train_dataset["input_ids"]))
    validated = [tuple(ids) for each in made.eval_dataset.values() for ids in each["input_ids"]]
    assert len(losses) == 3 and len(made.train_dataset) == len(rows) and len(validated) == len(held) > 30
    assert trained.isdisjoint(validated)


def test_conversations_beyond_the_cutoff_are_counted_or_left_out(tiny, build, tokenizer, capsys):
    def row(question, answer):
        return talk("好" * question, "好" * answer)

    exact = row(5, 10)
    length = len(tokenizer.apply_chat_template(exact, return_dict=True)["input_ids"])
    rows = [exact, row(5, 11), row(5, 40), row(60, 3), talk("好"), row(3, 3)]
    made = build(tiny, rows, max_length=length)
    printed = capsys.readouterr().out
    assert "1 conversations hold no answer by the assistant and are left out." in printed
    assert f"3 conversations are longer than the cutoff of {length} tokens: 2 lose part of" in printed
    assert "their answer, 1 have nothing left" in printed
    assert len(made.train_dataset) == 4
    assert all(set(labels) != {-100} for labels in made.train_dataset["labels"])
    build(tiny, rows[:1], max_length=length)
    assert "cutoff" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="No conversation has an answer before the cutoff"):
        build(tiny, [row(60, 3)], max_length=length)


@pytest.mark.parametrize("case", FIELD["targets"], ids=lambda case: str(case["change"]))
def test_targets_as_peft_takes_them_are_trained_and_saved_or_refused_at_once(tiny, tokenizer, case):
    lora, rows = training.lora_config(**case["change"]), Dataset.from_dict({"messages": [TWO_ROUNDS] * 8})
    args, base = training.sft_config(tiny, max_steps=1), load_model(tiny.base_model, **tiny.loading)
    ways = [lambda: training.preflight(read_config(tiny.base_model), rows, tiny, args, lora=lora)]
    ways += [lambda: training.build_trainer(base, tokenizer, rows, args, lora)]
    if "refused" in case:
        for way in ways:
            with pytest.raises(ValueError, match=case["refused"]):
                way()
        return
    planned, trainer = (way() for way in ways)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert planned.memory.adapter_parameters == trained == case["parameters"]
    training.run(trainer)
    place = save_adapter(trainer, tiny)
    assert ", ".join(case["saved"] + case.get("stacks", [])) in (place / "README.md").read_text()
    saved = json.loads((place / "adapter_config.json").read_text())
    assert saved["target_modules"] == case["saved"]
    assert "stacks" not in case or saved["target_parameters"] == case["stacks"]
    load_adapter(load_model(tiny.base_model, **tiny.loading), place)


def test_empty_data_is_refused(tiny):
    nothing, args = Dataset.from_dict({"messages": []}), training.sft_config(tiny)
    with pytest.raises(ValueError, match="no conversation to train on"):
        training.build_trainer(None, None, nothing, args)
    with pytest.raises(ValueError, match="no conversation to train on"):
        training.preflight(None, nothing, tiny, args)

import dataclasses
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from aurora_lib import adapters, checkpoints, conversations, nf4, paper, scale, sources, tokenizer, training

TALK = [
    [
        {"role": "user", "content": "法国的首都是哪里？"},
        {"role": "assistant", "content": "法国的首都是巴黎。"},
    ],
    [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好！有什么可以帮你的吗？"},
        {"role": "user", "content": "谢谢！"},
        {"role": "assistant", "content": "不客气。"},
    ],
] * 16


@pytest.fixture
def tiny(tmp_path):
    return scale.choose({"AURORA_RUNS": str(tmp_path)})


@pytest.fixture
def words(tiny):
    return tokenizer.load(tiny.base_model)


def trainer(tiny, words, rows=TALK, **changes):
    base = nf4.load(tiny.base_model, **tiny.loading)
    args = training.sft_config(tiny, disable_tqdm=True, logging_steps=1, **changes)
    return training.build_trainer(base, words, Dataset.from_dict({"messages": rows}), tiny, args)


def test_settings_are_the_papers(tmp_path):
    lora = training.lora_config(None)
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (8, 16, {"q_proj", "v_proj"})
    full = dataclasses.replace(scale.choose({}), **scale.FULL, runs=tmp_path)
    args = training.sft_config(full)
    assert (args.learning_rate, args.num_train_epochs, args.save_steps) == (5e-5, 3, 1000)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    assert args.lr_scheduler_type == "cosine" and args.max_length == paper.TRAINING["cutoff"].value


def test_loss_is_on_the_assistants_tokens_and_the_end_token_only(tiny, words):
    made = trainer(tiny, words, max_steps=1)
    for row, messages in zip(made.train_dataset, TALK, strict=True):
        labels = row["labels"]
        learned = [token for token in labels if token != -100]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        assert learned.count(words.eos_token_id) == len(answers)
        said = words.decode(learned, skip_special_tokens=False).split(words.eos_token)
        assert [text.strip() for text in said] == [*answers, ""]
        assert all(token in (-100, own) for token, own in zip(labels, row["input_ids"], strict=True))


def test_adapters_train_in_32_bits_and_nothing_else_trains(tiny, words):
    made = trainer(tiny, words, max_steps=1)
    trainable = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())
    assert made.aux_loss_enabled is False


def test_training_lowers_the_loss_and_the_gradient_is_never_zero(tiny, words):
    made = trainer(tiny, words, max_steps=12)
    before = made.evaluate()["eval_loss"]
    made.train()
    assert made.evaluate()["eval_loss"] < before / 2
    norms = [entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry]
    assert len(norms) == 12 and min(norms) > 0


def test_two_runs_with_the_same_seed_give_the_same_adapter(tiny, words, tmp_path):
    weights = []
    for name in ("a", "b"):
        made = trainer(tiny, words, max_steps=4, output_dir=str(tmp_path / name))
        made.train()
        weights.append(
            load_file(
                adapters.save_adapter(made, tiny, tmp_path / f"{name}-adapter") / "adapter_model.safetensors"
            )
        )
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_interrupted_and_uninterrupted_runs_end_with_the_same_weights(tiny, words, tmp_path):
    def weights(made):
        return {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}

    whole = trainer(tiny, words, max_steps=8, output_dir=str(tmp_path / "whole"), save_steps=4)
    whole.train()
    (tmp_path / "whole" / "checkpoint-8").rename(tmp_path / "kept")  # as if it had been stopped after step 4
    again = trainer(tiny, words, max_steps=8, output_dir=str(tmp_path / "whole"), save_steps=4)
    again.train(resume_from_checkpoint=checkpoints.checkpoint_to_resume(tmp_path / "whole"))
    ours, theirs = weights(again), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_cut_off_half_written_is_passed_over(tiny, words, tmp_path, capsys):
    made = trainer(tiny, words, max_steps=4, output_dir=str(tmp_path / "run"), save_steps=2)
    made.train()
    newest = tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    assert checkpoints.checkpoint_to_resume(tmp_path / "run").name == "checkpoint-2"
    assert "checkpoint-4 was not written completely" in capsys.readouterr().out
    assert checkpoints.checkpoint_to_resume(tmp_path / "nothing here") is None


def test_a_zero_gradient_stops_the_run(tiny, words):
    made = trainer(tiny, words, max_steps=2)
    for parameter in made.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(RuntimeError, match="gradient norm is 0 at step 1"):
        made.train()


def test_empty_data_is_refused(tiny, words):
    with pytest.raises(ValueError, match="no conversation to train on"):
        training.build_trainer(None, words, Dataset.from_dict({"messages": []}), tiny)


def test_saved_adapter_is_a_stock_folder_without_a_path_of_this_machine(tiny, words):
    made = trainer(tiny, words, max_steps=1)
    made.train()
    folder = adapters.save_adapter(made, tiny)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert str(scale.ROOT) not in (folder / "README.md").read_text()
    assert not (tiny.runs / "checkpoints").exists()
    adapters.load_adapter(nf4.load(tiny.base_model, **tiny.loading), folder)


def test_adapter_is_found_in_order_override_own_shipped(tiny, capsys):
    assert adapters.find_adapter(tiny) == str(scale.DATA / "tiny_adapter")
    own = tiny.runs / "adapter"
    own.mkdir(parents=True)
    (own / "adapter_config.json").write_text("{}")
    assert adapters.find_adapter(tiny) == str(own)
    assert adapters.find_adapter(dataclasses.replace(tiny, adapter="elsewhere")) == "elsewhere"
    full = dataclasses.replace(tiny, name="full", runs=tiny.runs / "none")
    with pytest.raises(adapters.AdapterError, match="run notebook 04"):
        adapters.find_adapter(full)


def test_adapter_of_another_base_is_one_sentence(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, MixtralConfig

    other = MixtralConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = get_peft_model(
        AutoModelForCausalLM.from_config(other), LoraConfig(target_modules=["q_proj", "v_proj"])
    )
    model.save_pretrained(tmp_path / "other", save_embedding_layers=False)
    with pytest.raises(adapters.AdapterError, match="cannot be put on this base model"):
        adapters.load_adapter(nf4.load(tiny.base_model, **tiny.loading), tmp_path / "other")
    with pytest.raises(adapters.AdapterError, match="holds no adapter"):
        adapters.load_adapter(nf4.load(tiny.base_model, **tiny.loading), tmp_path / "nowhere")


def test_conversations_come_from_notebook_02_only_if_it_read_the_same_data(tiny, tmp_path, capsys):
    cleaned = conversations.clean_conversations(tiny)
    assert "cleaned just now" in capsys.readouterr().out
    conversations.save(cleaned.select(range(5)), tiny)
    assert len(conversations.clean_conversations(tiny)) == 5
    elsewhere = tmp_path / "rows"
    elsewhere.mkdir()
    for file in (scale.DATA / "rows").iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    other = dataclasses.replace(tiny, data=elsewhere)
    assert len(conversations.clean_conversations(other)) == len(cleaned)
    assert set(cleaned.column_names) == set(sources.FEATURES)

import dataclasses
import json
import shutil
import warnings

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from aurora_lib import training
from aurora_lib.course import paper, scale
from aurora_lib.data import conversations, sources
from aurora_lib.model import (
    AdapterError,
    find_adapter,
    load_adapter,
    load_model,
    load_tokenizer,
    save_adapter,
)
from aurora_lib.training import callbacks

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
def tokenizer(tiny):
    return load_tokenizer(tiny.base_model)


def trainer(tiny, tokenizer, rows=TALK, **changes):
    base = load_model(tiny.base_model, **tiny.loading)
    args = training.sft_config(tiny, disable_tqdm=True, logging_steps=1, **changes)
    return training.build_trainer(base, tokenizer, Dataset.from_dict({"messages": rows}), tiny, args)


def test_settings_are_the_papers(tmp_path):
    lora = training.lora_config(None)
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (8, 16, {"q_proj", "v_proj"})
    full = dataclasses.replace(scale.choose({}), **scale.FULL, runs=tmp_path)
    args = training.sft_config(full)
    assert (args.learning_rate, args.num_train_epochs, args.save_steps) == (5e-5, 3, 1000)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    assert args.lr_scheduler_type == "cosine" and args.max_length == paper.TRAINING["cutoff"].value


def test_loss_is_on_the_assistants_tokens_and_the_end_token_only(tiny, tokenizer):
    made = trainer(tiny, tokenizer, max_steps=1)
    for row, messages in zip(made.train_dataset, TALK, strict=True):
        labels = row["labels"]
        learned = [token for token in labels if token != -100]
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        assert learned.count(tokenizer.eos_token_id) == len(answers)
        said = tokenizer.decode(learned, skip_special_tokens=False).split(tokenizer.eos_token)
        assert [text.strip() for text in said] == [*answers, ""]
        assert all(token in (-100, own) for token, own in zip(labels, row["input_ids"], strict=True))


def test_adapters_train_in_32_bits_and_nothing_else_trains(tiny, tokenizer):
    made = trainer(tiny, tokenizer, max_steps=1)
    trainable = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())
    assert made.aux_loss_enabled is False


def test_training_lowers_the_loss_and_the_gradient_is_never_zero(tiny, tokenizer):
    made = trainer(tiny, tokenizer, max_steps=12)
    before = made.evaluate()["eval_loss"]
    made.train()
    assert made.evaluate()["eval_loss"] < before / 2
    norms = [entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry]
    assert len(norms) == 12 and min(norms) > 0


def test_a_zero_gradient_stops_the_run(tiny, tokenizer):
    made = trainer(tiny, tokenizer, max_steps=2)
    for parameter in made.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(RuntimeError, match="gradient norm is 0 at step 1"):
        made.train()


def test_a_log_without_a_gradient_norm_above_zero_is_refused():
    callbacks.require_gradient([{"step": 1, "grad_norm": 0.1}, {"step": 1, "train_loss": 1}])
    for log in ([], [{"step": 1, "loss": 1}]):
        with pytest.raises(RuntimeError, match="no gradient norm"):
            callbacks.require_gradient(log)
    for norm in (0.0, float("nan")):
        with pytest.raises(RuntimeError, match="at step 2"):
            callbacks.require_gradient([{"step": 1, "grad_norm": 0.1}, {"step": 2, "grad_norm": norm}])


def test_conversations_longer_than_the_cutoff_are_counted_and_those_without_an_answer_left_out(
    tiny, tokenizer, capsys
):
    def row(question, answer):
        return [{"role": "user", "content": "好" * question}, {"role": "assistant", "content": "好" * answer}]

    def tokens(messages):
        return len(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])

    exact = row(5, 10)
    length = tokens(exact)
    rows = [exact, row(5, 11), row(5, 40), row(60, 3), [{"role": "user", "content": "好"}], row(3, 3)]
    made = trainer(tiny, tokenizer, rows, max_length=length)
    printed = capsys.readouterr().out
    assert "1 conversations hold no answer by the assistant and are left out." in printed
    assert (
        f"3 conversations are longer than the cutoff of {length} tokens: 2 lose part of their answer, 1 have"
        in printed
    )
    assert len(made.train_dataset) == 4 and all(
        set(labels) != {-100} for labels in made.train_dataset["labels"]
    )
    trainer(tiny, tokenizer, rows[:1], max_length=length)
    assert "cutoff" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="No conversation has an answer before the cutoff"):
        trainer(tiny, tokenizer, [row(60, 3)], max_length=length)


def test_command_line_trains_saves_and_leaves_a_record(tiny, tokenizer, tmp_path, monkeypatch, capsys):
    conversations.save_conversations(
        Dataset.from_list(
            [
                dict.fromkeys(sources.FEATURES) | dict(id=str(i), source="test", messages=m)
                for i, m in enumerate(TALK)
            ]
        ),
        tiny,
    )
    monkeypatch.setenv("AURORA_SCALE", "tiny")
    monkeypatch.setenv("AURORA_RUNS", str(tmp_path))
    command = ["training", "--out", str(tmp_path / "mine"), "--max-steps", "3", "--batch", "1"]
    monkeypatch.setattr("sys.argv", [*command, "--learning-rate", "0.002", "--price-per-hour", "2"])
    training.main()
    printed = capsys.readouterr().out
    assert "optimizer steps" in printed and "cost at 2 an hour" in printed and "3 steps" in printed
    record = json.loads((tiny.runs / "training.json").read_text())
    assert record["settings"]["learning_rate"] == 0.002 and record["settings"]["conversations"] == len(TALK)
    assert (record["steps"], record["steps_planned"], record["resumed_from_step"]) == (3, 3, 0)
    assert record["smallest_grad_norm"] > 0 and record["tokens_per_second"] > 0 and record["final_loss"] > 0
    batch = [len(tokenizer.apply_chat_template(m, return_dict=True)["input_ids"]) for m in TALK]
    assert 12 * min(batch) <= record["tokens"] <= 12 * max(batch)
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()


def test_command_line_ends_in_a_sentence_where_it_cannot_go_on(tiny, monkeypatch, capsys):
    monkeypatch.setenv("AURORA_SCALE", "tiny")
    monkeypatch.setattr("sys.argv", ["training"])
    for error, code in ((training.Stopped("after step 3"), 130), (training.SaveError("no room"), 1)):
        monkeypatch.setattr(
            training, "tune", lambda *args, error=error, **changes: (_ for _ in ()).throw(error)
        )
        with pytest.raises(SystemExit) as ended:
            training.main()
        assert ended.value.code == code and capsys.readouterr().err == f"{error}\n"


def test_empty_data_is_refused(tiny, tokenizer):
    with pytest.raises(ValueError, match="no conversation to train on"):
        training.build_trainer(None, tokenizer, Dataset.from_dict({"messages": []}), tiny)


def test_saved_adapter_is_a_stock_folder_without_a_path_of_this_machine(tiny, tokenizer):
    made = trainer(tiny, tokenizer, max_steps=1)
    made.train()
    folder = save_adapter(made, tiny)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert str(scale.ROOT) not in (folder / "README.md").read_text()
    assert not (tiny.runs / "checkpoints").exists()
    assert sorted(f.name for f in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_adapter(load_model(tiny.base_model, **tiny.loading), folder)


def test_adapter_is_found_in_order_override_own_shipped(tiny, capsys):
    assert find_adapter(tiny) == str(scale.DATA / "tiny_adapter")
    own = tiny.runs / "adapter"
    own.mkdir(parents=True)
    (own / "adapter_config.json").write_text("{}")
    assert find_adapter(tiny) == str(own)
    assert find_adapter(dataclasses.replace(tiny, adapter="elsewhere")) == "elsewhere"
    full = dataclasses.replace(tiny, name="full", runs=tiny.runs / "none")
    with pytest.raises(AdapterError, match="run notebook 04"):
        find_adapter(full)


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
    with pytest.raises(AdapterError, match="cannot be put on this base model"):
        load_adapter(load_model(tiny.base_model, **tiny.loading), tmp_path / "other")
    config = tmp_path / "renamed" / "adapter_config.json"
    shutil.copytree(scale.DATA / "tiny_adapter", config.parent)
    config.write_text(
        config.read_text().replace('"base_model_name_or_path": "tiny"', '"base_model_name_or_path": "big"')
    )
    with pytest.warns(UserWarning, match="was trained on big and is now on tiny: the shapes fit, but"):
        load_adapter(load_model(tiny.base_model, **tiny.loading), config.parent)
    with pytest.raises(AdapterError, match="holds no adapter"):
        load_adapter(load_model(tiny.base_model, **tiny.loading), tmp_path / "nowhere")


def test_conversations_come_from_notebook_02_only_if_it_read_the_same_data(tiny, tmp_path, capsys):
    cleaned = conversations.clean_conversations(tiny)
    assert "cleaned just now" in capsys.readouterr().out
    conversations.save_conversations(cleaned.select(range(5)), tiny)
    assert len(conversations.clean_conversations(tiny)) == 5
    elsewhere = tmp_path / "rows"
    elsewhere.mkdir()
    for file in (scale.DATA / "rows").iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    other = dataclasses.replace(tiny, data=elsewhere)
    assert len(conversations.clean_conversations(other)) == len(cleaned)
    assert set(cleaned.column_names) == set(sources.FEATURES)

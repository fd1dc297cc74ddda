"""The second stage: pairs, the loss, and above all the reference."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from aurora_lib import training
from aurora_lib.course import DATA, choose
from aurora_lib.data.sources import DataError
from aurora_lib.model import load_adapter, load_model, save_adapter
from aurora_lib.training import preference

SHORT = dict(max_steps=6, learning_rate=3e-3, save_steps=3)
SHIPPED = DATA / "tiny_adapter"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return choose({"AURORA_RUNS": str(tmp_path_factory.mktemp("runs"))})


@pytest.fixture(scope="module")
def pairs():
    return preference.load_pairs(preference.BUNDLED).kept


@pytest.fixture(scope="module")
def held_out():
    return preference.held_out_pairs().select(range(12))


def tuned_model(tiny):
    return load_adapter(load_model(tiny.base_model, **tiny.loading), SHIPPED)


def build(tiny, tokenizer, pairs, held_out, **changes):
    args = preference.dpo_config(tiny, disable_tqdm=True, logging_steps=1, **changes)
    return preference.build_trainer(tuned_model(tiny), tokenizer, pairs, held_out, args)


@pytest.fixture(scope="module")
def run(tiny, tokenizer, pairs, held_out):
    """A short run on 16 pairs: its trainer, and what adapter, reference and base said before and after it."""
    made = build(tiny, tokenizer, pairs.select(range(16)), held_out, **SHORT)
    batches, found = list(made.get_eval_dataloader()), {}
    found["loss"] = made.compute_loss(made.model.eval(), batches[0]).item()
    found["start"] = preference.logps(made.model, batches)
    made.model.set_adapter("ref")
    found["reference"] = preference.logps(made.model, batches)
    made.model.set_adapter("default")
    with made.model.disable_adapter():
        found["base"] = preference.logps(made.model, batches)
    training.run(made)
    found["after"] = preference.logps(made.model, batches)
    found["loss after"] = made.compute_loss(made.model.eval(), batches[0]).item()
    return made, found


def test_the_reference_is_the_tuned_adapter_and_not_the_base(run, tiny, tokenizer, held_out):
    _, found = run
    assert torch.equal(found["start"], found["reference"])
    assert math.isclose(found["loss"], math.log(2), abs_tol=1e-6)
    assert (found["base"] - found["reference"]).abs().mean() > 1
    # and it is the adapter as shipped, to the last bit: TRL on its own rounds it to bf16
    model, answers = tuned_model(tiny), []
    for row in held_out:
        for side in ("chosen", "rejected"):
            question = tokenizer.apply_chat_template(row["prompt"], return_dict=True)["input_ids"]
            ids = tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=True)["input_ids"]
            assert ids[-1] == tokenizer.eos_token_id and ids[: len(question)] == question
            labels = torch.tensor([[-100] * len(question) + ids[len(question) :]])
            with torch.no_grad():
                loss = model(torch.tensor([ids]), labels=labels).loss
            answers.append(-loss.item() * (len(ids) - len(question)))
    assert torch.allclose(found["reference"], torch.tensor(answers).view(-1, 2), atol=1e-3)


def test_the_loss_is_that_of_the_dpo_paper(run):
    made, found = run
    ratios = (found["after"] - found["reference"]).double()
    expected = (1 + (-made.args.beta * (ratios[:, 0] - ratios[:, 1])).exp()).log().mean()
    assert math.isclose(found["loss after"], expected, rel_tol=1e-3)
    assert made.args.loss_type == ["sigmoid"] and made.aux_loss_enabled is False


def test_training_raises_the_margin_on_its_pairs_and_no_gradient_is_zero(run):
    made, _ = run
    log = [entry for entry in made.state.log_history if "grad_norm" in entry]
    assert len(log) == 6 and min(entry["grad_norm"] for entry in log) > 0
    assert log[-1]["rewards/margins"] > log[0]["rewards/margins"] + 0.01
    reference = made.model.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.lora_A.ref.weight")
    shipped = load_file(SHIPPED / "adapter_model.safetensors")
    assert torch.equal(reference, shipped["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"])


def test_adapters_train_in_32_bits_and_the_reference_is_frozen(run):
    made, _ = run
    lora = {name: p for name, p in made.model.named_parameters() if "lora_" in name}
    assert {p.dtype for p in lora.values()} == {torch.float32}
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert trained == {name for name in lora if ".default." in name}


def test_a_resumed_run_ends_with_the_same_adapter(run, tiny, tokenizer, pairs, held_out, capsys):
    """And the saved one is a stock folder."""
    made, _ = run
    shutil.rmtree(tiny.runs / "preference_checkpoints" / "checkpoint-6")
    again = build(tiny, tokenizer, pairs.select(range(16)), held_out, **SHORT)
    training.run(again)
    assert "Resuming from checkpoint-3" in capsys.readouterr().out
    both = (dict(each.model.named_parameters()) for each in (again, made))
    ours, theirs = ({name: p for name, p in each.items() if "lora_" in name} for each in both)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again.model.delete_adapter("ref")
    folder = save_adapter(again, tiny, tiny.runs / "preference_adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert "preference pairs (DPO)" in (folder / "README.md").read_text()
    loaded = load_adapter(load_model(tiny.base_model, **tiny.loading), folder)
    for name, p in loaded.named_parameters():
        assert "lora_" not in name or torch.equal(p, theirs[name])


def test_rows_that_are_no_pair_are_dropped_counted_and_explained(tmp_path, monkeypatch):
    good = dict(prompt="你好", chosen="你好！", rejected="Hello!")
    bad = [good | {"rejected": "你好！ "}, {"prompt": "x"}, good | {"chosen": 3}, [1]]
    rows = [good, *bad, good | {"kind": "mine"}]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": "cut', encoding="utf-8")
    monkeypatch.setenv("AURORA_PREFERENCES", str(file))
    kept, dropped = preference.load_pairs()
    assert kept["kind"] == ["", "mine"] and kept[0]["chosen"] == [{"role": "assistant", "content": "你好！"}]
    assert [row["line"] for row in dropped] == [2, 3, 4, 5, 7]
    reasons = ("are the same", "chosen is missing", "chosen is not text", "a list where", "in the middle")
    assert all(reason in row["reason"] for reason, row in zip(reasons, dropped, strict=True))


def test_a_file_without_pairs_is_one_sentence(tmp_path):
    file = tmp_path / "own.jsonl"
    with pytest.raises(DataError, match="does not exist"):
        preference.load_pairs(file)
    for content in ("[1]\n", "[]"):
        file.write_text(content)
        with pytest.raises(DataError, match="holds no pair"):
            preference.load_pairs(file)

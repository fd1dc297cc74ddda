"""The second stage: pairs, the loss, and above all the reference."""

import json
import math
import shutil

import pytest
import torch

from aurora_lib import training
from aurora_lib.course import DATA, choose
from aurora_lib.data.sources import DataError
from aurora_lib.evaluation import load_probes, probes
from aurora_lib.model import load_adapter, load_model, save_adapter
from aurora_lib.training import preference

SHORT = dict(max_steps=6, learning_rate=3e-3, save_steps=3, disable_tqdm=True, logging_steps=1)
SHIPPED = DATA / "tiny_adapter"
WRONG = dict(asked="zh", correct=False, in_language=True)


def slips(held_out: bool):
    """Pairs of a model that answers English questions in Chinese."""
    asked = ((of["en"] | WRONG, of) for of in load_probes(held_out)[:16])
    rows = [row | dict(expected=of["en"]["answer"], answer=of["zh"]["answer"]) for row, of in asked]
    return preference.mistakes(probes.ProbeResult(rows))


PAIRS, HELD_OUT = slips(False), slips(True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return choose({"AURORA_RUNS": str(tmp_path_factory.mktemp("runs"))})


def tuned_model(tiny):
    return load_adapter(load_model(tiny.base_model, **tiny.loading), SHIPPED)


def build(tiny, tokenizer):
    model, args = tuned_model(tiny), preference.dpo_config(tiny, **SHORT)
    return preference.build_trainer(model, tokenizer, PAIRS, HELD_OUT, args)


@pytest.fixture(scope="module")
def run(tiny, tokenizer):
    """A short run: its trainer, and what adapter, reference and base said before and after it."""
    made = build(tiny, tokenizer)
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


def test_the_reference_is_the_tuned_adapter_and_not_the_base(run, tiny, tokenizer):
    _, found = run
    assert torch.equal(found["start"], found["reference"])
    assert math.isclose(found["loss"], math.log(2), abs_tol=1e-6)
    assert (found["base"] - found["reference"]).abs().mean() > 1
    # and it is the adapter as shipped, to the last bit: TRL on its own rounds it to bf16
    model, answers = tuned_model(tiny), []
    for row in HELD_OUT:
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


def test_training_raises_the_margin_in_32_bits_and_the_reference_is_frozen(run):
    made, _ = run
    log = [entry for entry in made.state.log_history if "grad_norm" in entry]
    assert len(log) == 6 and min(entry["grad_norm"] for entry in log) > 0
    assert log[-1]["rewards/margins"] > log[0]["rewards/margins"] + 0.01
    lora = {name: p for name, p in made.model.named_parameters() if "lora_" in name}
    assert {p.dtype for p in lora.values()} == {torch.float32}
    assert {name for name, p in lora.items() if p.requires_grad} == {n for n in lora if ".default." in n}


def test_a_resumed_run_ends_with_the_same_adapter_and_saves_a_stock_folder(run, tiny, tokenizer, capsys):
    made, _ = run
    shutil.rmtree(tiny.runs / "preference_checkpoints" / "checkpoint-6")
    training.run(again := build(tiny, tokenizer))
    assert "Resuming from checkpoint-3" in capsys.readouterr().out
    both = (dict(each.model.named_parameters()) for each in (again, made))
    ours, theirs = ({name: p for name, p in each.items() if "lora_" in name} for each in both)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again.model.delete_adapter("ref")
    folder = save_adapter(again, tiny, tiny.runs / "preference_adapter")
    assert "preference pairs (DPO)" in (folder / "README.md").read_text()
    loaded = load_adapter(load_model(tiny.base_model, **tiny.loading), folder)
    assert all(torch.equal(p, theirs[name]) for name, p in loaded.named_parameters() if "lora_" in name)


def test_mistakes_are_wrong_answers_with_what_is_wrong_in_them():
    fact = WRONG | dict(question="q", expected="a", answer="b")
    others = dict(asked="en", in_language=False), dict(answer=""), dict(correct=True)
    made = preference.mistakes(probes.ProbeResult([fact, *(fact | other for other in others)]))
    assert made["kind"] == ["Chinese: another fact", "English: another language"]
    assert [made[0][name][0]["content"] for name in preference.COLUMNS] == ["q", "a", "b"]


def test_rows_that_are_no_pair_are_dropped_counted_and_explained(tmp_path, monkeypatch):
    good = dict(prompt="你好", chosen="你好！", rejected="Hello!")
    bad = [good | {"rejected": "你好！ "}, {"prompt": "x"}, good | {"chosen": 3}, [1]]
    said = [{"from": by, "value": by} for by in ("human", "gpt", "human")]
    released = dict(conversations=said, chosen=said[1], rejected=said[0])
    rows = [good, *bad, good | {"kind": "mine"}, released, released | dict(conversations=said[:2])]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": "cut', encoding="utf-8")
    monkeypatch.setenv("AURORA_PREFERENCES", str(file))
    kept, dropped = preference.load_pairs()
    assert kept["kind"] == ["", "mine", ""]
    assert [turn["role"] for turn in kept[2]["prompt"]] == ["user", "assistant", "user"]
    assert [row["line"] for row in dropped] == [2, 3, 4, 5, 8, 9]
    reasons = "are the same|chosen is missing|chosen is not text|a list where|user last|in the middle"
    assert all(map(str.__contains__, (row["reason"] for row in dropped), reasons.split("|")))


def test_a_file_without_pairs_or_out_of_reach_is_one_sentence(tmp_path, monkeypatch):
    (file := tmp_path / "own.jsonl").write_text("[1]\n")
    for path, reason in ((tmp_path / "none", "does not exist"), (file, "holds no pair")):
        with pytest.raises(DataError, match=reason):
            preference.load_pairs(path)
    monkeypatch.setattr(preference, "FILE", None)  # as without a network: it cannot be had
    with pytest.raises(DataError, match="or set AURORA_PREFERENCES to a local"):
        preference.load_pairs()

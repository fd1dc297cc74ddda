import json
from functools import partial

import pytest
import torch
from datasets import Dataset

from aurora_lib import evaluation, training
from aurora_lib.model import load_adapter, load_model, load_tokenizer
from tests.data.conversations import talk
from tools.record import experiments as tool
from tools.record import variants

CHINESE = [talk(f"法国的首都是哪里{'？' * (i % 5)}", "法国的首都是巴黎。" * (1 + i % 3)) for i in range(40)]
ENGLISH = [talk("What is the capital of France?", "The capital of France is Paris.") for _ in range(10)]
ROWS = Dataset.from_dict({"messages": CHINESE + ENGLISH})
FEW = partial(evaluation.probe, probes=evaluation.load_probes(held_out=True)[::20])
HELD = Dataset.from_dict({"messages": [talk("你好", "zq xj 9w vk 7f")] * 3})  # an answer nobody foresees


def test_a_row_has_every_figure_is_read_when_asked_for_again_and_knows_changes_apart(tiny, monkeypatch):
    monkeypatch.setattr(variants, "probe", FEW)
    asked = dict(settings={"max_steps": 2}, lora={"r": 4})
    first = variants.run(tiny, ROWS, HELD, **asked)
    assert (first["seed"], first["conversations"], first["english"], first["steps"]) == (42, 50, 10, 2)
    # layers x rank x (in + out of q_proj and v_proj)
    assert first["trainable"] == 4 * 4 * (128 + 128 + 128 + 64) and first["loss"] > 10
    assert all(0 <= first[name] <= 1 for name in ("zh_in_zh", "zh_right", "en_in_en", "en_right"))
    (file,) = (tiny.runs / "experiments").glob("*.json")
    file.write_text(json.dumps(first | {"loss": -1}))
    assert variants.run(tiny, ROWS, HELD, **asked)["loss"] == -1  # read, not made again
    other = variants.run(tiny, ROWS, HELD, settings={"max_steps": 1, "seed": 43})
    assert (other["seed"], other["loss"] > 0, other["trainable"]) == (43, True, 2 * first["trainable"])
    monkeypatch.setattr(variants, "_tune", lambda *args: {"loss": -2})
    assert variants.run(tiny, ROWS, HELD.select([0]), **asked)["loss"] == -2  # other rows, another run


@pytest.mark.parametrize("part, zh, en", [(0, 40, 0), (0.1, 40, 4), (0.2, 40, 10), (0.5, 10, 10), (1, 0, 10)])
def test_share_of_english_is_reached_by_leaving_rows_out(part, zh, en):
    kept = variants.mixed(ROWS, part)["messages"]
    said = [messages[-1]["content"] for messages in kept]
    assert (sum("巴黎" in text for text in said), sum("Paris" in text for text in said)) == (zh, en)
    assert all(kept.count(messages) <= ROWS["messages"].count(messages) for messages in kept)  # none repeated


@pytest.mark.parametrize(("rows", "share"), [(CHINESE, 0.1), (ENGLISH, 0.5), (CHINESE, 1.5)])
def test_share_the_rows_cannot_give_is_refused(rows, share):
    with pytest.raises(ValueError, match=r"(are English: no mix|from 0 to 1)"):
        variants.mixed(Dataset.from_dict({"messages": rows}), share)


def test_a_mix_is_trained_for_as_many_steps_as_all_rows(tiny, monkeypatch):
    monkeypatch.setattr(variants, "probe", FEW)
    row = variants.run(tiny, ROWS.select([*range(10), *range(40, 42)]), HELD, english_share=0.5)
    assert (row["conversations"], row["english"], row["steps"]) == (4, 2, 6)  # 2 steps of 8 rows, 3 epochs


@pytest.mark.parametrize("change", [tool.ROUTER, tool.ROUTER_WHOLE], ids=["LoRA", "whole"])
def test_router_trains_and_is_saved(change, tiny, tmp_path):
    base, tokenizer = load_model(tiny.base_model, **tiny.loading), load_tokenizer(tiny.base_model)
    args = training.sft_config(tiny, max_steps=2, disable_tqdm=True)
    before = [layer.mlp.gate.weight.clone() for layer in base.model.layers]
    trainer = training.build_trainer(base, tokenizer, ROWS, args, training.lora_config(**change))
    trainer.train()
    ids = torch.tensor([tokenizer("[INST] 法国的首都是哪里？ [/INST]").input_ids])
    seen, tuned = [], trainer.model.eval()
    for name, module in tuned.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(lambda module, given, out: seen.append((given[0], out[0])))
    with torch.no_grad():
        logits = tuned(ids).logits
    for (hidden, routed), weight in zip(seen, before, strict=True):
        assert not torch.allclose(routed, hidden.reshape(-1, 128) @ weight.T, atol=1e-3)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    again = load_adapter(load_model(tiny.base_model, **tiny.loading), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, logits)

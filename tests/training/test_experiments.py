import importlib.util
import json

import bitsandbytes as bnb
import pytest
import torch
from datasets import Dataset

from aurora_lib import training
from aurora_lib.course import scale
from aurora_lib.evaluation import probes
from aurora_lib.model import load_adapter, load_model, load_tokenizer
from aurora_lib.training import experiments

TOOL = scale.ROOT / "tools" / "record" / "experiments.py"
FIELDS = [
    "seed",
    "conversations",
    "english",
    "steps",
    "tokens",
    "padding",
    "zh_in_zh",
    "zh_right",
    "en_in_en",
    "en_right",
    "prompts",
    "loss",
    "min_grad_norm",
    "seconds",
    "cpu_seconds",
    "tokens_per_s",
    "trainable",
    "optimizer_bytes",
    "memory_rise_mib",
]


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


CHINESE = [talk(f"法国的首都是哪里{'？' * (i % 5)}", "法国的首都是巴黎。" * (1 + i % 3)) for i in range(40)]
ENGLISH = [talk("What is the capital of France?", "The capital of France is Paris.") for _ in range(10)]
ROWS = Dataset.from_dict({"messages": CHINESE + ENGLISH})


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("record_experiments", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(tmp_path):
    return scale.choose({"AURORA_RUNS": str(tmp_path)})


def test_run_gives_every_figure_and_is_not_made_twice(tiny, monkeypatch):
    asked = dict(
        conversations=ROWS, questions=probes.load_probes(held_out=True)[:3], settings={"max_steps": 2}
    )
    first = experiments.run(tiny, **asked)
    assert list(first) == FIELDS
    assert (first["conversations"], first["english"], first["steps"], first["prompts"]) == (50, 10, 2, 3)
    assert first["trainable"] == 3 * 8 * (
        128 + 128 + 128 + 64
    )  # layers x rank x (in + out of q_proj and v_proj)
    assert first["min_grad_norm"] > 0 and 0 < first["padding"] < 1 and first["loss"] > 0

    monkeypatch.setattr(experiments, "_tune", lambda *a: pytest.fail("it was trained again"))
    assert experiments.run(tiny, **asked) == first


def test_sweep_goes_on_where_it_stopped_and_knows_changes_apart(tiny, monkeypatch):
    made = []

    def tune(scale, conversations, questions, adapter, args):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((adapter.r, args.learning_rate, args.seed, len(conversations)))
        return {"n": len(made)}

    monkeypatch.setattr(experiments, "_tune", tune)
    variants = {
        "recipe": {},
        "rank 2": {"lora": {"r": 2}},
        "slow": {"settings": {"learning_rate": 1e-4}},
        "one language": {"english_share": 0.0},
    }
    with pytest.raises(KeyboardInterrupt):
        experiments.sweep(tiny, variants, conversations=ROWS)
    (tiny.runs / "experiments" / "x.part").write_text("{")  # half a file, as a kill leaves it
    done, made[:] = list(made), []
    table = experiments.sweep(tiny, variants, conversations=ROWS)
    assert done + made == [(8, 0.01, 42, 50), (2, 0.01, 42, 50), (8, 1e-4, 42, 50), (8, 0.01, 42, 40)]
    assert list(table.variant) == list(variants)

    made[:] = []
    experiments.run(tiny, conversations=ROWS, seed=43)
    experiments.run(tiny, conversations=ROWS.select(range(49)))
    assert [each[2:] for each in made] == [(43, 50), (42, 49)]


@pytest.mark.parametrize(
    ("share", "chinese", "english"), [(0, 40, 0), (0.1, 40, 4), (0.2, 40, 10), (0.5, 10, 10), (1, 0, 10)]
)
def test_share_of_english_is_reached_by_leaving_rows_out(share, chinese, english):
    kept = experiments.mixed(ROWS, share)["messages"]
    said = [messages[-1]["content"] for messages in kept]
    assert (sum("巴黎" in text for text in said), sum("Paris" in text for text in said)) == (chinese, english)
    assert all(kept.count(messages) <= ROWS["messages"].count(messages) for messages in kept)  # none repeated


@pytest.mark.parametrize(("rows", "share"), [(CHINESE, 0.1), (ENGLISH, 0.5), (CHINESE, 1.5)])
def test_share_the_rows_cannot_give_is_refused(rows, share):
    with pytest.raises(ValueError, match=r"(English rows of|from 0 to 1)"):
        experiments.mixed(Dataset.from_dict({"messages": rows}), share)


def test_a_mix_is_trained_for_as_many_steps_as_all_rows(tiny, monkeypatch):
    monkeypatch.setattr(experiments, "_tune", lambda s, rows, q, a, args: [len(rows), args.max_steps])
    assert experiments.run(tiny, conversations=ROWS, english_share=0.5) == [
        20,
        21,
    ]  # 7 steps of 8 rows, 3 epochs


@pytest.mark.parametrize("change", [experiments.ROUTER, experiments.ROUTER_WHOLE], ids=["LoRA", "whole"])
def test_router_trains_and_is_saved(change, tiny, tmp_path):
    tokenizer = load_tokenizer(tiny.base_model)
    args = training.sft_config(tiny, max_steps=2, disable_tqdm=True, save_strategy="no")
    base, lora = load_model(tiny.base_model, **tiny.loading), training.lora_config(tiny, **change)
    before = [layer.mlp.gate.weight.clone() for layer in base.model.layers]
    trainer = training.build_trainer(base, tokenizer, ROWS, tiny, args, lora)
    ids = torch.tensor([tokenizer("[INST] 法国的首都是哪里？ [/INST]").input_ids])
    chosen = []
    hooks = [
        module.register_forward_hook(lambda module, given, out: chosen.append((given[0], out[0])))
        for name, module in trainer.model.named_modules()
        if name.endswith("mlp.gate")
    ]
    trainer.train()
    tuned = trainer.model.eval()
    chosen.clear()
    with torch.no_grad():
        logits = tuned(ids).logits
        for (hidden, routed), weight in zip(chosen, before, strict=True):
            assert not torch.allclose(routed, hidden.reshape(-1, 128) @ weight.T, atol=1e-3)
    assert len(hooks) == 3
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    again = load_adapter(load_model(tiny.base_model, **tiny.loading), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, logits)


def test_packed_conversations_do_not_see_each_other(tool, tiny):
    losses = tool.packed_losses(tiny, ROWS)
    assert losses["packed"] == pytest.approx(losses["alone"], rel=1e-5)
    assert losses["without boundaries"] != pytest.approx(losses["alone"], rel=1e-3)


def test_padding_counts_positions_without_a_token():
    count = experiments._Count(lambda rows: rows)
    count({"input_ids": torch.zeros(2, 5), "attention_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])})
    count({"input_ids": torch.zeros(1, 4)})  # packed: no mask, no padding
    assert (count.tokens, count.positions) == (11, 14)


@pytest.mark.parametrize(
    ("kind", "bytes_each"), [(torch.optim.AdamW, 8), (bnb.optim.AdamW8bit, 2)], ids=["fp32", "8 bits"]
)
def test_state_of_an_optimizer_is_counted_as_allocated(kind, bytes_each):
    weight = torch.nn.Parameter(torch.randn(256, 256))
    optimizer = kind([weight])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    # scales and tables come on top: one fp32 for 256 values of each moment, 1 KiB a table
    assert (
        bytes_each * weight.numel()
        <= experiments.optimizer_bytes(optimizer)
        < bytes_each * weight.numel() * 1.05
    )


def test_batchings_lose_no_conversation_and_grouping_and_packing_pad_less(tool):
    lengths = [16 + (97 * i) % 900 for i in range(400)]
    made = tool.batchings(lengths, 1024)
    assert all(sum(map(sum, batches)) == sum(lengths) for batches in made.values())
    assert sorted(n for batch in made["plain"] for n in batch) == sorted(lengths)
    rows = {name: tool.predicted(name, batches) for name, batches in made.items()}
    padding = [rows[name]["padding [share]"] for name in ("plain", "grouped by length", "packed")]
    assert padding[0] > padding[1] > padding[2] == 0
    assert rows["packed"]["batches an epoch"] < rows["plain"]["batches an epoch"] == 2000


def test_prediction_is_arithmetic_that_can_be_followed(tool, monkeypatch):
    monkeypatch.setattr(tool.results, "recorded", lambda *where: {})
    row = tool.predicted("plain", [[100, 300]] * 1000)
    assert row["padding [share]"] == pytest.approx(1 / 3, abs=1e-4)
    assert (row["tokens a batch"], row["hours at the recorded speed"]) == (400, "not measured")
    # 46.4 G weights, 4.5 bytes each, three times, at 3 TB/s; and 600 positions of 77 GFLOP at 600 TFLOP/s
    seconds = 3 * 10_000 * (3 * 46.44e9 * 4.516 / 3e12 + 600 * 77e9 / 600e12)
    assert row["hours, floor"] == pytest.approx(seconds / 3600, abs=0.1)


def test_record_holds_the_medians_and_meets_the_bounds(tool):
    record = json.loads(tool.RECORD.read_text(encoding="utf-8"))
    rows = record["seeds"]["rows"]
    assert len({row["seed"] for row in rows}) == 3
    for name, bound in {"zh_in_zh": 0.95, "zh_right": 0.70, "en_in_en": 0.85}.items():
        middle = sorted(row[name] for row in rows)[1]
        assert record["values"][f"{name}, median of three seeds [share]"] == middle >= bound
    assert all(row["min_grad_norm"] > 0 for row in rows)

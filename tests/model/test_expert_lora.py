"""LoRA on packed experts against PEFT's own on the same weights, unpacked, and against w1, w2, w3 by hand."""

import json
from copy import deepcopy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig

from aurora_lib import training
from aurora_lib.course.machine import GIB
from aurora_lib.model import load_adapter, memory, nf4, random_model, resolve_targets
from tools.record import count

SIZES = dict(vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2, pad_token_id=0)
SIZES |= dict(num_attention_heads=4, num_key_value_heads=2)
MIXTRAL = MixtralConfig(**SIZES)
OLMOE = OlmoeConfig(**SIZES, num_experts=6, num_experts_per_tok=3)
EXPERTS = {"mixtral": ["w1", "w2", "w3"], "olmoe": ["gate_proj", "up_proj", "down_proj"]}


def unpacked(model):
    """The same model in 32 bits, by stock transformers, with the very weights that it holds in 4 bits."""
    plain = AutoModelForCausalLM.from_config(deepcopy(model.config), dtype=torch.float32)
    plain.set_experts_implementation("eager")
    weights = {name: p for name, p in model.named_parameters() if ".lora_" not in name}
    packed = {name: p for name, p in weights.items() if getattr(p, "quant_state", None)}
    plain.load_state_dict(weights | {n: dequantize_4bit(p.data, p.quant_state) for n, p in packed.items()})
    return plain


def filled(model):
    """An adapter that does something: a fresh one adds 0."""
    draw = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if ".lora_" in name:
            p.data = 0.05 * torch.randn(p.shape, generator=draw)
    return model


@pytest.mark.parametrize("config", [MIXTRAL, OLMOE], ids=lambda config: config.model_type)
@pytest.mark.parametrize("path", ["grouped", "expert by expert"])
def test_outputs_and_gradients_are_those_of_peft_on_unpacked_weights(config, path, tmp_path, monkeypatch):
    monkeypatch.setattr(nf4, "GROUPED", nf4.GROUPED * (path == "grouped"))
    base = random_model(config, device="cpu", dtype=torch.float32)
    plain = unpacked(base)
    asked = training.lora_config(target_modules=["v_proj", *EXPERTS[config.model_type]], lora_dropout=0.0)
    lora, parameters, on_experts = resolve_targets(config, asked)
    ours = filled(get_peft_model(base, lora))
    ours.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(plain, tmp_path, is_trainable=True)
    ids, grads = torch.randint(64, (2, 30)), []
    for model in (ours, theirs):
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        with torch.no_grad():
            grads[-1] |= {"logits": logits, "one token": model(input_ids=ids[:1, :1]).logits}
            with model.disable_adapter():
                grads[-1]["off"] = model(input_ids=ids).logits
    assert on_experts and grads[0].keys() == grads[1].keys()
    assert parameters == sum(p.numel() for n, p in ours.named_parameters() if n in grads[0])
    assert (grads[0]["off"] - grads[0]["logits"]).abs().max() > 0.01
    for name, right in grads[1].items():
        torch.testing.assert_close(grads[0][name], right, atol=1e-5, rtol=1e-5, msg=name)
    with pytest.raises(ValueError, match="merge it in 16 bits"):
        ours.merge_adapter()
    again = load_adapter(random_model(config, device="cpu", dtype=torch.float32), tmp_path)
    assert torch.equal(again(input_ids=ids).logits, grads[0]["logits"])


def test_an_adapter_of_2023_that_tuned_w1_w2_and_w3_of_every_expert_loads(tmp_path):
    base = random_model(MIXTRAL, device="cpu", dtype=torch.float32)
    experts, draw, saved = unpacked(base).model.layers[1].mlp.experts, torch.Generator().manual_seed(1), {}
    for layer in range(2):
        for number in range(8):
            for name, (out, width) in dict(w1=(256, 128), w2=(128, 256), w3=(256, 128)).items():
                at = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{number}.{name}"
                saved[f"{at}.lora_A.weight"] = 0.1 * torch.randn(8, width, generator=draw)
                saved[f"{at}.lora_B.weight"] = 0.1 * torch.randn(out, 8, generator=draw)
    settings = dict(peft_type="LORA", task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.1)
    settings |= dict(target_modules=["w1", "w2", "w3"], base_model_name_or_path="")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file(saved, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    tuned = load_adapter(base, tmp_path).base_model.model.model.layers[1].mlp.experts
    rows, chosen = torch.randn(8, 128, generator=draw), torch.arange(8)[:, None]
    with torch.no_grad():
        made = tuned(rows, chosen, torch.ones(8, 1))
        for number, row in enumerate(rows):

            def through(name, x, weight, number=number):
                a, b = (saved[f"{at[:-4]}{number}.{name}.lora_{side}.weight"] for side in "AB")
                return weight @ x + 16 / 8 * b @ (a @ x)

            w1, w3 = experts.gate_up_proj[number].chunk(2)
            inner = silu(through("w1", row, w1)) * through("w3", row, w3)
            right = through("w2", inner, experts.down_proj[number])
            torch.testing.assert_close(made[number], right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [2, 16])
def test_the_budget_knows_what_they_cost(batch):
    config = MixtralConfig.from_dict(memory.MIXTRAL_8X7B.to_dict() | dict(num_hidden_layers=2))  # full width
    lora = dict(target_modules=["q_proj", "v_proj", "w1", "w2", "w3"], lora_dropout=0.0)
    _, number, _ = resolve_targets(config, training.lora_config(**lora))
    seen = count.today(batch, config=config, **lora)
    predicted = memory.predict(config, batch=batch, adapter=number, on_experts=True)
    assert predicted.total * GIB - seen.weights == pytest.approx(seen.peak - seen.weights, rel=0.03)
    assert memory.predict(config, batch=batch, adapter=number).total < 0.97 * predicted.total

import re
import tomllib
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, OlmoeConfig, Qwen3MoeConfig

from aurora_lib.course.machine import GIB, Tensors
from aurora_lib.model import memory, random_model
from aurora_lib.model.memory import MIXTRAL_8X7B, predict

SIZES = dict(vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
SIX = dict(num_experts=6, num_experts_per_tok=3)
SMALL = {
    "mixtral": MixtralConfig(**SIZES),
    "qwen3": Qwen3MoeConfig(**SIZES, **SIX, moe_intermediate_size=24, head_dim=16, mlp_only_layers=[1]),
    "olmoe": OlmoeConfig(**SIZES, **SIX),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
}
LORA = dict(target_modules=["q_proj", "v_proj"], lora_dropout=0.1)


def test_mixtral_8x7b_trains_and_answers_within_the_expected_memory():
    ways = [{}, dict(double_quant=False), dict(quantization="nf4-linear-only"), dict(quantization="bf16")]
    weights = [predict(MIXTRAL_8X7B, **settings).weights for settings in ways]
    assert weights == pytest.approx([22.8, 24.8, 85.1, 87.0], rel=0.01)
    training, inference = predict(MIXTRAL_8X7B), predict(MIXTRAL_8X7B, train=False, length=2048)
    assert 24 < training.total < 26
    assert inference.total == pytest.approx(23.9, abs=0.3)
    assert training.adapter_parameters == 3_407_872


@pytest.mark.parametrize("name", SMALL)
def test_predicted_weights_are_those_of_a_real_model(name):
    model = AutoModelForCausalLM.from_config(SMALL[name], dtype=torch.bfloat16)
    real = sum(p.numel() * p.element_size() for p in model.parameters())
    assert predict(SMALL[name], quantization="bf16").weights * GIB == pytest.approx(real, rel=0.05)


def real_bytes(model):
    """What a model holds: its parameters, and the absmax values that bitsandbytes keeps beside them."""
    states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
    absmax = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    return sum(p.nbytes for p in model.parameters()) + absmax


STEPS = tomllib.loads(Path(__file__).with_name("steps.toml").read_text(encoding="utf-8"))
STEPS = [(family, settings) for family, steps in STEPS.items() for settings in steps]


@pytest.mark.parametrize("family, settings", STEPS, ids=str)
def test_predicted_bytes_are_those_of_a_real_model_and_training_step(family, settings, monkeypatch):
    """Weights, adapters, Adam, and the peak of forward and backward; CUDA's workspaces are not seen here."""
    # as on CUDA: a mask of one byte
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p, *_: torch.native_dropout(x, p, True)[0])
    sizes = SIZES | dict(hidden_size=256, intermediate_size=256, moe_intermediate_size=256, head_dim=64)
    sizes |= dict(num_experts_per_tok=2, **{"num_local_experts" if family == "mixtral" else "num_experts": 8})
    config, dtype = type(SMALL[family])(**sizes), getattr(torch, settings.get("dtype", "float32"))
    model = random_model(config, device="cpu", dtype=dtype)
    budget = predict(config, **settings | dict(dtype=dtype))
    assert budget.weights * GIB == pytest.approx(real_bytes(model), rel=0.05)
    if settings.get("checkpointing", True):
        model.activation_checkpointing_enable(dict(use_reentrant=False))
    tuned = get_peft_model(model, LoraConfig(r=settings.get("rank", 8), **LORA)).train()
    trainable = [p for p in tuned.parameters() if p.requires_grad]
    assert budget.adapter_parameters == sum(p.numel() for p in trainable)
    optimizer = torch.optim.AdamW(trainable)
    ids = torch.arange(settings["batch"] * settings["length"]).view(settings["batch"], -1) % 500

    def step():
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
            loss = tuned(ids, labels=ids).loss
        loss.backward()

    step()
    optimizer.step()
    extra = [value for state in optimizer.state.values() for value in state.values()]
    extra += [p.grad for p in trainable]
    live = Tensors([*tuned.parameters(), *tuned.buffers(), *extra, ids])
    with live:
        step()
    real = real_bytes(tuned) + sum(tensor.nbytes for tensor in extra) + live.peak
    assert budget.total * GIB == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("config", [MIXTRAL_8X7B, SMALL["mixtral"]], ids=["GiB", "MiB"])
@pytest.mark.parametrize("train", [True, False])
def test_table_adds_up_and_is_aligned(config, train):
    budget = predict(config, train=train)
    assert sum(budget.parts.values()) == pytest.approx(budget.total)
    title, *lines = str(budget).splitlines()
    numbers = [float(re.search(r"([\d.]+) [GM]iB$", line)[1]) for line in lines if "iB" in line]
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.005 * len(numbers))
    assert len(set(map(len, lines))) == 1
    assert budget.parts["experts"] > 0 and title in repr(budget)


def test_unknown_quantization_is_refused_and_so_is_a_small_device_with_the_table():
    with pytest.raises(ValueError, match="choose nf4, nf4-linear-only, bf16"):
        predict(MIXTRAL_8X7B, quantization="int3")
    budget = predict(MIXTRAL_8X7B)
    with pytest.raises(memory.DoesNotFit) as refused:
        budget.require(16)
    assert str(budget) in str(refused.value) and "16.00 GiB" in str(refused.value)
    assert budget.require(80) is budget
    predict(SMALL["mixtral"]).require("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(memory.DoesNotFit, match="no CUDA GPU"):
            predict(SMALL["mixtral"]).require("cuda")

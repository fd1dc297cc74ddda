import json

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig, Qwen3MoeConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from aurora_lib import nf4

SMALL = dict(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
FAMILIES = {
    "mixtral": MixtralConfig(
        **SMALL, intermediate_size=256, num_local_experts=4, experts_implementation="eager"
    ),
    "qwen3_moe": Qwen3MoeConfig(
        **SMALL,
        moe_intermediate_size=256,
        intermediate_size=64,
        num_experts=4,
        num_experts_per_tok=2,
        head_dim=16,
    ),
    "olmoe": OlmoeConfig(**SMALL, intermediate_size=256, num_experts=4, num_experts_per_tok=2),
}


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tmp_path):
    """A random bf16 model of each family on disk: the model, and its folder."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[request.param]).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def mixtral(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(FAMILIES["mixtral"]).to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def load(folder, **changes):
    return nf4.load(folder, **dict(dtype=torch.float32, device="cpu") | changes)


def dequantized(folder, quantized):
    """A plain model with the very weights that `quantized` holds in 4 bits."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    target = dict(plain.named_parameters())
    for name, parameter in quantized.named_parameters():
        if isinstance(parameter, bnb.nn.Params4bit):
            value = dequantize_4bit(parameter.data, parameter.quant_state)
            target[name].data = value.view(target[name].shape).float()
    return plain


def test_every_expert_stack_is_packed(checkpoint):
    stacks = nf4.expert_stacks(load(checkpoint))
    assert len(stacks) == 4  # two layers, two stacks each
    for stack in stacks.values():
        assert stack.dtype == torch.uint8 and stack.quant_state.nested


def test_stock_loading_still_leaves_the_experts_unquantized(mixtral):
    """The trap this module exists for; when this fails, the libraries have closed it."""
    stock = AutoModelForCausalLM.from_pretrained(mixtral, quantization_config=nf4.config(torch.float32))
    assert all(stack.dim() == 3 and stack.is_floating_point() for stack in nf4.expert_stacks(stock).values())


@pytest.mark.parametrize("double_quant", [True, False])
def test_slice_of_a_stack_is_the_expert_quantized_alone(double_quant):
    torch.manual_seed(0)
    # identical magnitudes per expert, so that the offset of double quantization is the same for stack and expert
    stack = torch.randn(1, 256, 64).repeat(3, 1, 1) * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)
    packed = bnb.nn.Params4bit(
        stack, requires_grad=False, compress_statistics=double_quant, quant_type="nf4"
    ).to("cpu")
    for expert in range(3):
        codes, state = nf4.select((packed, packed.quant_state), expert)
        alone, alone_state = quantize_4bit(stack[expert], quant_type="nf4", compress_statistics=double_quant)
        assert torch.equal(codes, alone)
        assert torch.equal(state.absmax, alone_state.absmax)
        assert torch.equal(dequantize_4bit(codes, state), dequantize_4bit(alone, alone_state))


@pytest.mark.parametrize("double_quant", [True, False])
def test_forward_equals_a_dequantized_reference(checkpoint, double_quant):
    quantized = load(checkpoint, double_quant=double_quant)
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, reference = quantized(ids).logits, dequantized(checkpoint, quantized)(ids).logits
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


def test_gradient_of_the_adapter_equals_the_reference(mixtral):
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(1))
    quantized = load(mixtral)
    gradients = []
    for model in (quantized, dequantized(mixtral, quantized)):
        torch.manual_seed(3)
        tuned = get_peft_model(
            model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        )
        tuned.train()
        tuned(ids, labels=ids).loss.backward()
        gradients.append(
            {
                name.replace(".base_layer", ""): p.grad
                for name, p in tuned.named_parameters()
                if p.requires_grad
            }
        )
    ours, reference = gradients
    assert ours.keys() == reference.keys() and ours
    for name in ours:
        assert ours[name].norm() > 0
        torch.testing.assert_close(ours[name], reference[name], atol=1e-6, rtol=1e-3)


def test_published_layout_in_several_shards_loads(mixtral, tmp_path):
    """Per-expert names (`block_sparse_moe.experts.N.w1`), four shards and an index, as on the hub."""
    tensors = load_file(mixtral / "model.safetensors")
    assert any("block_sparse_moe.experts.3.w2.weight" in name for name in tensors)
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_text((mixtral / "config.json").read_text())
    index = {}
    for number in range(4):
        file = f"model-{number + 1:05d}-of-00004.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::4]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    whole, sharded = load(mixtral), load(folder)
    for name, stack in nf4.expert_stacks(whole).items():
        assert torch.equal(stack, nf4.expert_stacks(sharded)[name])


def test_only_the_hit_experts_run_and_an_unhit_one_changes_nothing(mixtral):
    model = load(mixtral)
    experts = model.model.layers[0].mlp.experts
    x = torch.randn(3, 64)
    index, weights = torch.tensor([[0, 1], [1, 0], [0, 1]]), torch.full((3, 2), 0.5)
    before = experts(x, index, weights)
    n = experts.gate_up_proj.numel() // 4
    experts.gate_up_proj.data.view(-1)[2 * n :] = 0  # experts 2 and 3
    assert torch.equal(experts(x, index, weights), before)


def test_adapter_saves_and_loads_on_4_bit_and_on_16_bit_bases(mixtral, tmp_path):
    ids = torch.arange(10)[None]
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(load(mixtral), config).eval()
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with torch.no_grad():
        again = PeftModel.from_pretrained(load(mixtral), tmp_path / "adapter").eval()
        torch.testing.assert_close(again(ids).logits, tuned(ids).logits)
        plain = PeftModel.from_pretrained(dequantized(mixtral, load(mixtral)), tmp_path / "adapter").eval()
        torch.testing.assert_close(plain(ids).logits, tuned(ids).logits, atol=1e-5, rtol=1e-4)


def test_training_after_an_eval_forward_still_has_a_gradient(mixtral):
    """The AVX512_BF16 trap: bitsandbytes would repack the linear layers in the first eval-mode forward."""
    model = get_peft_model(
        load(mixtral), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    ids = torch.arange(10)[None]
    model.eval()
    with torch.no_grad():
        model(ids)
    model.train()
    model(ids, labels=ids).loss.backward()
    assert all(p.grad.norm() > 0 for p in model.parameters() if p.requires_grad)


def test_saving_the_4_bit_base_is_refused(mixtral, tmp_path):
    with pytest.raises(ValueError, match="not serializable"):
        load(mixtral).save_pretrained(tmp_path / "base")


def test_the_stock_quantizer_is_back_after_loading_and_after_a_failure(mixtral, tmp_path):
    stock = AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"]
    load(mixtral)
    assert AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] is stock
    (mixtral / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(nf4.ModelFileError):
        load(mixtral)
    assert AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] is stock


def test_experts_that_cannot_be_packed_are_named(tmp_path):
    config = MixtralConfig(**SMALL, intermediate_size=96, num_local_experts=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(nf4.ExpertPackingError, match=r"layers.0.mlp.experts.*multiple of 16,384"):
        load(tmp_path)


def test_a_folder_without_a_model_and_a_cut_shard_are_one_sentence(mixtral, tmp_path):
    with pytest.raises(nf4.ModelFileError, match=r"config\.json"):
        load(tmp_path / "nowhere")
    file = mixtral / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(nf4.ModelFileError, match=r"model\.safetensors.*again"):
        load(mixtral)

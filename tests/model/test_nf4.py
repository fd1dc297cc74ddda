"""4-bit experts: how they are packed and selected, run, trained around, loaded, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig, get_peft_model
from torch._subclasses import fake_tensor
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig, Qwen3MoeConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from aurora_lib.course import machine
from aurora_lib.model import load_model, memory, nf4, random_model
from tests.model.test_expert_lora import unpacked

SMALL = dict(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SMALL |= dict(intermediate_size=256)
FOUR = dict(num_experts=4, num_experts_per_tok=2)
FAMILIES = {
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, **FOUR, moe_intermediate_size=256, head_dim=16),
    "olmoe": OlmoeConfig(**SMALL, **FOUR),
}


def saved(family, folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(FAMILIES[family]).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tmp_path):
    """The folder of a random bf16 model, of each family."""
    return saved(request.param, tmp_path)


@pytest.fixture
def mixtral(tmp_path):
    return saved("mixtral", tmp_path)


def load(folder, **changes):
    return load_model(folder, **dict(dtype=torch.float32, device="cpu") | changes)


def tokens(*shape):
    return torch.randint(64, shape, generator=torch.Generator().manual_seed(1))


def routing(rows, experts=4, top_k=2):
    draw = torch.Generator().manual_seed(rows)
    index = torch.stack([torch.randperm(experts, generator=draw)[:top_k] for _ in range(rows)])
    return torch.randn(rows, 64, generator=draw), index, torch.rand(rows, top_k, generator=draw)


def same_state(ours, theirs):
    return torch.equal(ours.absmax, theirs.absmax) and torch.equal(ours.state2.absmax, theirs.state2.absmax)


def test_part_of_a_stack_is_the_expert_quantized_alone():
    # the same magnitudes in each expert, so that the offset of double quantization is that of the stack; in
    # 16ths, so that this offset, a mean, is not rounded
    draw = torch.Generator().manual_seed(0)
    one = torch.randint(-64, 64, (1, 256, 64), generator=draw) / 16
    stack = one.repeat(3, 1, 1) * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)
    packed = nf4.pack(stack, nf4.config())
    for expert in range(3):
        codes, state = nf4.select((packed, packed.quant_state), expert)
        alone, alone_state = quantize_4bit(stack[expert], quant_type="nf4", compress_statistics=True)
        assert torch.equal(codes, alone) and same_state(state, alone_state)
        assert torch.equal(dequantize_4bit(codes, state), dequantize_4bit(alone, alone_state))


def test_a_stack_packed_piece_by_piece_is_bit_for_bit_that_of_bitsandbytes():
    stack = torch.randn(4, 768, 512, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    stack = stack.to("cuda" if torch.cuda.is_available() else "cpu")
    ours = nf4.pack(stack, nf4.config())
    theirs, state = quantize_4bit(stack, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert stack.numel() > nf4.PIECE
    assert ours.dtype == torch.uint8 and torch.equal(ours, theirs)
    assert same_state(ours.quant_state, state) and ours.quant_state.shape == state.shape
    assert ours.quant_state.offset == state.offset
    assert torch.equal(dequantize_4bit(ours.data, ours.quant_state), dequantize_4bit(theirs, state))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 9)])
def test_forward_equals_a_dequantized_reference(checkpoint, shape):
    quantized = load(checkpoint)
    with torch.no_grad():
        ours, reference = (model(tokens(*shape)).logits for model in (quantized, unpacked(quantized)))
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 40])
def test_forward_in_bf16_is_within_two_percent(checkpoint, rows):
    quantized = load(checkpoint, dtype=torch.bfloat16)
    reference = unpacked(quantized)
    with torch.no_grad():
        hidden = reference.model.embed_tokens(tokens(1, rows))
        for ours, theirs in zip(quantized.model.layers, reference.model.layers, strict=True):
            wanted = theirs.mlp(hidden)
            assert (ours.mlp(hidden.bfloat16()).float() - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("rows", [1, 2, 3])  # two copied experts, four, then more slots than experts
def test_few_rows_give_what_many_rows_give_and_a_gradient_takes_the_way_that_has_one(mixtral, rows):
    experts = load(mixtral).model.layers[0].mlp.experts
    hidden, index, weights = routing(rows)
    few = experts(hidden, index, weights)
    many = experts(hidden.requires_grad_(), index, weights)
    torch.testing.assert_close(few, many, atol=1e-7, rtol=1e-5)
    many.sum().backward()
    assert hidden.grad.norm() > 0


@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_are_one_graph_whatever_the_routing(mixtral, rows):
    """No host sync: `fullgraph` refuses any, and another routing must not need another graph."""
    experts = load(mixtral).model.layers[0].mlp.experts
    hidden, index, weights = routing(rows)
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(experts, fullgraph=True, backend="eager")
        for routed in (index, 3 - index):
            torch.testing.assert_close(compiled(hidden, routed, weights), experts(hidden, routed, weights))


@pytest.mark.parametrize("hit", [4, 3])
def test_one_product_for_all_experts_is_the_loop_in_values_and_gradients(mixtral, monkeypatch, hit):
    experts, results = load(mixtral).model.layers[0].mlp.experts, []
    hidden, index, weights = (t.requires_grad_(t.is_floating_point()) for t in routing(40))
    for grouped in (False, True):
        monkeypatch.setattr(nf4, "_is_grouped", lambda *_, grouped=grouped: grouped)
        out = experts(hidden, index % hit, weights)
        results.append([out, *torch.autograd.grad(out.square().sum(), (hidden, weights))])
    for loop, product in zip(*results, strict=True):
        assert (loop - product).norm() < 1e-6 * loop.norm()


def test_one_product_waits_for_nothing_and_unpacks_one_stack_at_a_time(mixtral, monkeypatch):
    model = load(mixtral, dtype=torch.bfloat16)
    experts, (hidden, index, weights) = model.model.layers[0].mlp.experts, routing(10)
    hidden = hidden.bfloat16().requires_grad_()
    fake = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)  # refuses to tell what is in a tensor
    monkeypatch.setattr(nf4, "_is_grouped", lambda *_: False)
    with fake, pytest.raises(fake_tensor.DynamicOutputShapeException):
        experts(hidden, index, weights)
    monkeypatch.setattr(nf4, "_is_grouped", lambda *_: True)
    with fake:
        experts(hidden, index, weights).sum().backward()
    with machine.Tensors([*model.parameters(), hidden, index, weights]) as tensors:
        experts(hidden, index, weights).square().sum().backward()
    sizes = [2 * state.shape.numel() for state in experts.quant_states.values()]
    assert max(sizes) < tensors.peak < sum(sizes)


def test_gradient_of_the_adapter_equals_the_reference_even_after_an_eval_forward(mixtral):
    """The AVX512_BF16 trap: bitsandbytes would repack the linear layers in the first eval-mode forward."""
    quantized, gradients = load(mixtral), []
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)  # already does something
    for model in (quantized, unpacked(quantized)):
        torch.manual_seed(3)
        tuned = get_peft_model(model, lora).eval()
        with torch.no_grad():
            tuned(tokens(1, 10))
        tuned.train()(tokens(2, 9), labels=tokens(2, 9)).loss.backward()
        named = {name.replace(".base_layer", ""): p for name, p in tuned.named_parameters()}
        gradients.append({name: p.grad for name, p in named.items() if p.requires_grad})
    ours, reference = gradients
    assert ours.keys() == reference.keys() and len(ours) == 8
    for name in ours:
        assert ours[name].norm() > 0
        torch.testing.assert_close(ours[name], reference[name], atol=1e-6, rtol=1e-3)


def test_stock_loading_still_leaves_the_experts_unquantized(mixtral):
    """The trap this module exists for; when this fails, the libraries have closed it."""
    stock = AutoModelForCausalLM.from_pretrained(mixtral, quantization_config=nf4.config(torch.float32))
    stacks = nf4.expert_stacks(stock).values()
    assert len(stacks) == 4 and all(stack.dim() == 3 and stack.is_floating_point() for stack in stacks)


def test_published_layout_in_several_shards_loads(mixtral, tmp_path):
    """Per-expert names, several shards and an index, as on the hub."""
    model, folder = AutoModelForCausalLM.from_pretrained(mixtral, dtype=torch.bfloat16), tmp_path / "sharded"
    model.save_pretrained(folder, max_shard_size="100KB")
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    names = [f"model.layers.0.block_sparse_moe.experts.{n}.w{w}.weight" for n in range(4) for w in (1, 3)]
    assert len({places[name] for name in names}) > 1
    whole, sharded = (nf4.expert_stacks(load(each)) for each in (mixtral, folder))
    assert all(torch.equal(stack, sharded[name]) for name, stack in whole.items())


def test_a_random_model_is_built_as_a_loaded_one_and_repeats_with_its_seed(mixtral):
    how = dict(dtype=torch.float32, device="cpu")
    drawn = [random_model(FAMILIES["mixtral"], seed=seed, **how).eval() for seed in (0, 0, 1)]
    both = [dict(model.named_parameters()) for model in (drawn[0], load(mixtral))]
    kinds = [{name: (type(p), p.dtype, p.shape) for name, p in parameters.items()} for parameters in both]
    assert kinds[0] == kinds[1]
    with torch.no_grad():
        logits, same, different = (model(tokens(1, 10)).logits for model in drawn)
    assert logits.isfinite().all() and logits.std() > 0
    assert torch.equal(logits, same) and not torch.equal(logits, different)


# Prints in bytes: what was held at most above the start, the 4-bit model, its largest stack in bf16. Held is
# anonymous memory: pages of a shard are the file's own, and the system drops them when room is needed.
PEAK = """
import sys, threading
from aurora_lib.model import load_model

def held():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024

def watch():
    while not done.wait(0.001):
        seen.append(held())

tiny, folder = sys.argv[1:]
load_model(tiny, device="cpu")  # imports and caches belong to the start
seen, done = [held()], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
model = load_model(folder, device="cpu")
done.set()
thread.join()
size = sum(p.nbytes for p in model.parameters())
states = [s for m in model.modules() for s in getattr(m, "quant_states", {}).values()]
states += [m.weight.quant_state for m in model.modules() if hasattr(m, "compute_dtype")]
size += sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in states)
print(max(seen) - seen[0], size, 2 * max(s.shape.numel() for s in states))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own account of memory")
def test_loading_holds_at_most_the_4_bit_model_and_two_stacks(mixtral, tmp_path):
    # stacks of more than 32 MiB, as in any model worth packing: glibc gives those back itself
    sizes = SMALL | dict(hidden_size=1024, intermediate_size=2304)
    model = AutoModelForCausalLM.from_config(MixtralConfig(**sizes), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "larger", max_shard_size="80MB")
    assert len(list((tmp_path / "larger").glob("*.safetensors"))) > 2
    command = [sys.executable, "-c", PEAK, str(mixtral), str(tmp_path / "larger")]
    ran = subprocess.run(command, env=os.environ | dict(OMP_NUM_THREADS="1"), capture_output=True, check=True)
    held, size, stack = map(int, ran.stdout.split())
    assert held <= size + 2 * stack


def test_a_cuda_device_that_is_too_small_is_refused_before_anything_is_loaded(mixtral, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # another process holds nearly all of it; this one holds a little, which counts as free
    free = dict(mem_get_info=lambda _: (2**16, 2**36), memory_reserved=lambda _: 2**16)
    for name, answer in dict(get_device_name=lambda _: "NVIDIA small", **free).items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(nf4, "_stream", None)
    for device in ("cuda", "cuda:1", None):
        with pytest.raises(memory.DoesNotFit, match=r"NVIDIA small, .* 0\.00 GiB(.|\n)*inference, 1 x 512"):
            load(mixtral, device=device)


def test_saving_the_4_bit_base_is_refused(mixtral, tmp_path):
    with pytest.raises(ValueError, match="not serializable"):
        load(mixtral).save_pretrained(tmp_path / "base")


def test_experts_that_cannot_be_packed_are_named_and_the_stock_quantizer_is_back(tmp_path):
    config = MixtralConfig(**SMALL | dict(intermediate_size=96), num_local_experts=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    stock = AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"]
    with pytest.raises(ValueError, match=r"layers.0.mlp.experts.*multiple of 16,384"):
        load(tmp_path)
    assert AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] is stock

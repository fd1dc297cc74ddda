import json
import os
import subprocess
import sys
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import distributed
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig, Qwen3MoeConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from aurora_lib.chat.decoding import FixedCache
from aurora_lib.model import experts as nf4_experts
from aurora_lib.model import files as model_files
from aurora_lib.model import load_model, nf4, random_model

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
    return load_model(folder, **dict(dtype=torch.float32, device="cpu") | changes)


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
        codes, state = nf4_experts.select((packed, packed.quant_state), expert)
        alone, alone_state = quantize_4bit(stack[expert], quant_type="nf4", compress_statistics=double_quant)
        assert torch.equal(codes, alone)
        assert torch.equal(state.absmax, alone_state.absmax)
        assert torch.equal(dequantize_4bit(codes, state), dequantize_4bit(alone, alone_state))


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_a_stack_packed_expert_by_expert_is_bit_for_bit_that_of_bitsandbytes(double_quant, storage):
    stack = torch.randn(4, 128, 128, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    stack = stack.to("cuda" if torch.cuda.is_available() else "cpu")
    ours = nf4_experts.pack(stack, nf4.config(double_quant=double_quant, quant_storage=storage))
    theirs, state = quantize_4bit(
        stack, blocksize=64, quant_type="nf4", compress_statistics=double_quant, quant_storage=storage
    )
    assert ours.dtype == storage and torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    assert torch.equal(ours.quant_state.absmax, state.absmax) and ours.quant_state.shape == state.shape
    assert ours.quant_state.offset == state.offset and ours.quant_state.nested == double_quant
    if double_quant:
        assert torch.equal(ours.quant_state.state2.absmax, state.state2.absmax)
    assert torch.equal(dequantize_4bit(ours.data, ours.quant_state), dequantize_4bit(theirs, state))


@pytest.mark.parametrize("tokens", [2, 9])
def test_forward_in_fp32_is_exactly_that_of_dequantized_weights(checkpoint, tokens, monkeypatch):
    """Bit for bit, once both multiply in the same order; the next test has a reference of its own order."""
    quantized = load(checkpoint)
    ids = torch.randint(64, (1, tokens), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = quantized(ids).logits
        monkeypatch.setattr(
            bnb,
            "matmul_4bit",
            lambda rows, packed, quant_state, bias=None: torch.nn.functional.linear(
                rows, dequantize_4bit(packed, quant_state), bias
            ),
        )
        assert torch.equal(ours, quantized(ids).logits)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_forward_in_bf16_is_within_two_percent(checkpoint, tokens):
    quantized = load(checkpoint, dtype=torch.bfloat16)
    reference = dequantized(checkpoint, quantized)
    ids = torch.randint(64, (1, tokens), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = reference.model.embed_tokens(ids)[0]
        for ours, theirs in zip(quantized.model.layers, reference.model.layers, strict=True):
            wanted = theirs.mlp(hidden[None])
            error = ours.mlp(hidden[None].bfloat16()).float() - wanted
            assert error.norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("double_quant", [True, False])
def test_forward_equals_a_dequantized_reference(checkpoint, double_quant):
    quantized = load(checkpoint, double_quant=double_quant)
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, reference = quantized(ids).logits, dequantized(checkpoint, quantized)(ids).logits
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


def routing(tokens, experts=4, top_k=2):
    draw = torch.Generator().manual_seed(tokens)
    index = torch.stack([torch.randperm(experts, generator=draw)[:top_k] for _ in range(tokens)])
    return torch.randn(tokens, 64, generator=draw), index, torch.rand(tokens, top_k, generator=draw)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])  # two copied experts, four, then every expert on every row
def test_few_rows_give_what_many_rows_give(mixtral, tokens, double_quant, monkeypatch):
    experts = load(mixtral, double_quant=double_quant).model.layers[0].mlp.experts
    few = experts(*routing(tokens))
    monkeypatch.setattr(nf4_experts, "FEW_SLOTS", 0)
    torch.testing.assert_close(few, experts(*routing(tokens)), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 8])
def test_few_rows_are_one_graph_whatever_the_routing(mixtral, tokens, monkeypatch):
    """No host sync: `fullgraph` refuses any, and another routing must not need another graph."""
    experts = load(mixtral).model.layers[0].mlp.experts
    hidden, index, weights = routing(tokens)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(experts, fullgraph=True, backend="eager")
        for routed in (index, 3 - index):
            torch.testing.assert_close(compiled(hidden, routed, weights), experts(hidden, routed, weights))
    monkeypatch.setattr(nf4_experts, "FEW_SLOTS", 0)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="data-dependent"):  # sorting rows by expert asks the device
        torch.compile(experts, fullgraph=True, backend="eager")(hidden, index, weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoding_step_of_the_whole_model_never_asks_the_device(family, monkeypatch):
    """On fake tensors there is nothing to read: `.item()`, `.tolist()` or boolean indexing would raise."""
    model = random_model(FAMILIES[family], dtype=torch.float32, device="cpu").eval()
    cache = FixedCache(model, room=16)
    with torch.no_grad():
        cache.forward(torch.arange(5)[None])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert cache.step().shape == (1, 64)
        monkeypatch.setattr(nf4_experts, "FEW_SLOTS", 0)
        with pytest.raises(DynamicOutputShapeException):  # counting rows by expert does ask
            cache.step()


def test_a_row_with_a_gradient_takes_the_path_that_has_one(mixtral):
    experts = load(mixtral).model.layers[0].mlp.experts
    hidden, index, weights = routing(2)
    experts(hidden.requires_grad_(), index, weights).sum().backward()
    assert hidden.grad.norm() > 0


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_a_plain_parameter_with_the_same_bytes_gives_the_same_output(mixtral, storage):
    """What FSDP2 hands to the forward has lost its quantization state; the module has kept it."""
    experts = load(mixtral, quant_storage=storage).model.layers[0].mlp.experts
    inputs = [routing(2), routing(20)]
    before = [experts(*each) for each in inputs]
    for key in ("gate_up_proj", "down_proj"):
        packed = getattr(experts, key)
        assert packed.dtype == storage
        setattr(experts, key, torch.nn.Parameter(packed.data.clone(), requires_grad=False))
    assert all(torch.equal(experts(*each), was) for each, was in zip(inputs, before, strict=True))


def sharded_training(rank, folder):
    """One of two processes: it holds half of the bytes, gathers all, and gets the loss and gradients of the whole model."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    # three dtypes in one layer, as on a GPU: bf16 norms, packed bytes called fp32, fp32 adapters
    model = get_peft_model(
        load_model(folder, **nf4.SHARDED),
        LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    stacks = nf4.expert_stacks(model)
    packed = {name: stack.detach().view(torch.uint8).clone() for name, stack in stacks.items()}
    assert any(stack.isnan().any() for stack in stacks.values())  # bytes that a conversion would change
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    ids = torch.arange(20).view(2, 10)
    whole = model(ids, labels=ids).loss
    whole.backward()
    wanted = {name: p.grad.clone() for name, p in trainable.items()}
    model.zero_grad()
    mesh = init_device_mesh("cpu", (2,))
    layers = model.base_model.model.model.layers
    for part in (*layers, model):
        fully_shard(part, mesh=mesh)
    parameters = dict(model.named_parameters())
    assert all(2 * parameters[name].to_local().nbytes == held.nbytes for name, held in packed.items())
    loss = model(ids, labels=ids).loss
    loss.backward()
    torch.testing.assert_close(loss, whole, atol=0, rtol=0)
    for name, gradient in wanted.items():
        assert gradient.norm() > 0
        torch.testing.assert_close(parameters[name].grad.full_tensor(), gradient)
    for layer in layers:
        layer.unshard()
    gathered = dict(model.named_parameters())
    assert all(torch.equal(gathered[name].view(torch.uint8), held) for name, held in packed.items())
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_train_a_model_sharded_by_fsdp2(mixtral):
    torch.multiprocessing.spawn(sharded_training, (str(mixtral),), nprocs=2)


def test_random_builds_what_load_builds(mixtral):
    loaded, drawn = load(mixtral), random_model(FAMILIES["mixtral"], dtype=torch.float32, device="cpu")
    kinds = [
        {name: (type(p), p.dtype, p.shape) for name, p in model.named_parameters()}
        for model in (loaded, drawn)
    ]
    assert kinds[0] == kinds[1] and drawn.config._experts_implementation == "nf4"
    assert nf4.expert_stacks(drawn).keys() == nf4.expert_stacks(loaded).keys()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        logits = drawn.eval()(ids).logits
    assert logits.isfinite().all() and logits.std() > 0
    again = random_model(FAMILIES["mixtral"], dtype=torch.float32, device="cpu")
    other = random_model(FAMILIES["mixtral"], dtype=torch.float32, device="cpu", seed=1)
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, logits)
        assert not torch.equal(other.eval()(ids).logits, logits)


# Prints what is held at most above the start, the size of the 4-bit model, and that of its largest stack in bf16, in bytes.
# Held is anonymous memory: the pages of a shard are the file's own, mapped while it is read, and the system drops them
# as soon as anybody needs the room.
PEAK = """
import sys, threading, time, torch
from aurora_lib import nf4
from transformers import AutoConfig

def held():
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def watch():
    while not done.is_set():
        seen.append(held())
        time.sleep(0.001)

how, tiny, folder = sys.argv[1:]
build = {
    "load": lambda folder: load_model(folder, device="cpu"),
    "random": lambda folder: random_model(AutoConfig.from_pretrained(folder), device="cpu"),
}[how]
build(tiny)  # imports and caches belong to the start
seen, done = [held()], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
model = build(folder)
done.set()
thread.join()
size = sum(p.nbytes for p in model.parameters())
states = [s for m in model.modules() for s in getattr(m, "quant_states", {}).values()]
states += [m.weight.quant_state for m in model.modules() if hasattr(m, "compute_dtype")]
size += sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in states)
print(max(seen) - seen[0], size, 2 * max(s.shape.numel() for s in states))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own account of memory")
@pytest.mark.parametrize("how", ["load", "random"])
def test_building_holds_at_most_the_4_bit_model_and_two_stacks(how, mixtral, tmp_path):
    # stacks of more than 32 MiB, as in any model worth packing: glibc gives those back itself
    sizes = SMALL | dict(hidden_size=1024, intermediate_size=2304)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MixtralConfig(**sizes), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "larger", max_shard_size="80MB")
    assert len(list((tmp_path / "larger").glob("*.safetensors"))) > 2
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, how, str(mixtral), str(tmp_path / "larger")],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    held, size, stack = map(int, ran.stdout.split())
    assert held <= size + 2 * stack


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
    with pytest.raises(model_files.ModelFileError):
        load(mixtral)
    assert AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] is stock


def test_experts_that_cannot_be_packed_are_named(tmp_path):
    config = MixtralConfig(**SMALL, intermediate_size=96, num_local_experts=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(nf4.ExpertPackingError, match=r"layers.0.mlp.experts.*multiple of 16,384"):
        load(tmp_path)


def test_a_folder_without_a_model_and_a_cut_shard_are_one_sentence(mixtral, tmp_path):
    with pytest.raises(model_files.ModelFileError, match=r"config\.json"):
        load(tmp_path / "nowhere")
    file = mixtral / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(model_files.ModelFileError, match=r"model\.safetensors.*again"):
        load(mixtral)

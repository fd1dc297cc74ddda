"""The kernel as far as one gets without a GPU: interpreted, compiled, and its path on fake CUDA tensors."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MixtralConfig

from aurora_lib.model import kernels, random_model

lacking = kernels.triton is None and not (sys.platform == "linux" and "CI" in os.environ)
wants_triton = pytest.mark.skipif(lacking, reason="wants Triton: make .venv/.kernels")

# six blocks in a row, taken two at a time; one expert twice
INTERPRETED = """
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import MixtralConfig
from aurora_lib.model import kernels, nf4, random_model
sizes = dict(hidden_size=384, intermediate_size=128, num_hidden_layers=1, num_local_experts=4, vocab_size=8)
model = random_model(MixtralConfig(**sizes), device="cpu", dtype=torch.float32)
experts, product = model.model.layers[0].mlp.experts, kernels.product
stacks = [(stack.data, stack.quant_state) for stack in nf4.expert_stacks(model).values()]
weights = [dequantize_4bit(*stack) for stack in stacks]
inputs = torch.randn(2, 384), torch.tensor([[0, 3], [3, 1]]), torch.rand(2, 2)

def compared(x, index, stack, width, parts):
    out, rows = product(x, index, stack, width, parts), x.repeat_interleave(4 // len(x), dim=0)
    wanted = (weights.pop(0)[index.flatten()] @ rows.unsqueeze(-1)).squeeze(-1)
    wanted = experts._apply_gate(wanted) if parts == 2 else wanted
    assert (out - wanted).norm() < 1e-5 * wanted.norm(), parts
    return out

with torch.no_grad():
    many = nf4._many_rows(experts, stacks, *inputs)
    kernels.product, nf4._has_kernel = compared, lambda *_: True
    few = experts(*inputs)
assert not weights and (few - many).norm() < 1e-5 * many.norm()
"""


@wants_triton
def test_interpreted_it_gives_what_unpacked_weights_give_and_what_many_rows_give():
    setting = os.environ | dict(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    ran = subprocess.run([sys.executable, "-c", INTERPRETED], env=setting, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@wants_triton
@pytest.mark.parametrize("sizes", [(2, 14_336, 4096, 2, 2, 16), (1, 4096, 14_336, 1, 4, 16)])
def test_it_compiles_for_an_h100_at_the_sizes_of_mixtral(sizes, tmp_path, monkeypatch):
    """The compiler refuses what the interpreter lets pass, and needs no GPU."""
    import triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = ["*bf16", "*bf16", "*i64", "*u8", "*fp32", "*u8", "*fp32", "*fp32", "*fp32", *["constexpr"] * 6]
    signature = dict(zip(kernels._kernel.arg_names, types, strict=True))
    source = triton.compiler.ASTSource(kernels._kernel, signature, {(9 + i,): n for i, n in enumerate(sizes)})
    assert triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", 90, 32)).asm["cubin"]


class OnlyCuda(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        assert all(t.is_cuda for t in tree_leaves((args, out)) if isinstance(t, torch.Tensor)), function
        return out


@pytest.mark.parametrize("tokens", [1, 8])  # of 2 slots, with 4 experts
def test_its_path_waits_for_nothing_and_has_no_tensor_on_the_cpu(tokens, monkeypatch):
    monkeypatch.setattr(kernels, "READY", True)
    sizes = dict(hidden_size=64, intermediate_size=256, num_local_experts=4, vocab_size=8)
    model = random_model(MixtralConfig(**sizes, num_hidden_layers=1), device="cpu")
    experts = model.model.layers[0].mlp.experts
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():  # refuses to tell what is in a tensor
        for key, state in experts.quant_states.items():
            experts._parameters[key] = torch.empty_like(experts._parameters[key].data, device="cuda")
            for name in ("code", "absmax", "offset"):
                setattr(state, name, torch.empty_like(getattr(state, name), device="cuda"))
            for name in ("code", "absmax"):
                setattr(state.state2, name, torch.empty_like(getattr(state.state2, name), device="cuda"))
        inputs = [torch.empty(tokens, width, device="cuda") for width in (64, 2, 2)]
        with OnlyCuda():
            out = experts(inputs[0].bfloat16(), inputs[1].long(), inputs[2])
    assert out.shape == (tokens, 64) and out.dtype == torch.bfloat16

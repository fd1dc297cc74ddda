"""4-bit experts for transformers 5: how they are packed, how one runs, how a model is loaded with them.

transformers 5 keeps a layer's experts in two stacked parameters, `gate_up_proj [experts, 2*inner, hidden]`
and `down_proj [experts, hidden, inner]`. `BitsAndBytesConfig(load_in_4bit=True)` replaces `nn.Linear` modules
only. So those stacks, 97 % of Mixtral-8x7B, silently stay 16-bit.

The one idea: NF4 (QLoRA, arXiv 2305.14314, section 3) quantizes blocks of 64 neighbouring weights, each with
a scale of its own, its absmax. No block reaches from one expert into the next. So a whole stack is packed as
if it were one matrix, and each expert still is a *contiguous part* of the packed bytes, which runs alone.
"""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type, quantize_blockwise
from torch import Tensor, nn
from torch.nn.functional import grouped_mm
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from aurora_lib.model import expert_lora, memory
from aurora_lib.model.files import local, reaching, read_config, said, skeleton

NAME = "nf4"  # under which transformers finds `experts_forward`
BLOCK = 64  # weights that share one absmax
NESTED_BLOCK = 256  # absmax values that share one second-level absmax (double quantization)
PIECE = 2**20  # weights quantized at a time on a CPU, and 64 times as many on a GPU; a multiple of BLOCK
FEW_SLOTS = 16  # token-slots (tokens x top_k) up to which nobody asks the device which experts were hit
GROUPED = 2**30  # bytes that a stack may take unpacked to 16 bits, to run as one product: faster at batch 2


def pack(stack: Tensor, config: BitsAndBytesConfig) -> bnb.nn.Params4bit:
    """Quantize a stack `[experts, out, in]`, bit for bit as bitsandbytes would in one go.

    Piece by piece and each into its place: on a CPU bitsandbytes works in fp32 copies, many times the size of
    what comes out, and results kept between them would leave holes that no later copy fits.
    """
    kind = dict(blocksize=BLOCK, quant_type=config.bnb_4bit_quant_type)
    codes = torch.empty(stack.numel() // 2, dtype=torch.uint8, device=stack.device)
    absmax = torch.empty(stack.numel() // BLOCK, device=stack.device)
    piece = PIECE if stack.device.type == "cpu" else 64 * PIECE
    parts = codes.split(piece // 2), absmax.split(piece // BLOCK), stack.flatten().split(piece)
    for some_codes, some_absmax, weights in zip(*parts, strict=True):
        # the operator itself, since `functional.quantize_4bit` copies the 16 levels to the device every time
        done = torch.ops.bitsandbytes.quantize_4bit(weights, quant_storage=torch.uint8, **kind)
        some_codes.copy_(done[0].flatten())
        some_absmax.copy_(done[1])
    # double quantization: the absmax values, less their mean, become 8-bit themselves
    offset = absmax.mean()
    absmax, nested = quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    levels = get_4bit_type(kind["quant_type"], device=stack.device)
    state = QuantState(absmax, stack.shape, levels, dtype=stack.dtype, offset=offset, state2=nested, **kind)
    return bnb.nn.Params4bit(codes.unsqueeze(1), bnb_quantized=True, quant_state=state, **kind)


def select(stack: tuple[Tensor, QuantState], expert: int | Tensor) -> tuple[Tensor, QuantState]:
    """One expert of a packed stack, as views, its state of shape `[out, in]`; for indices `[k]`, k copies.

    Expert e, of n weights, has bytes `[e*n/2, (e+1)*n/2)`, absmax `[e*n/64, ...)` and second-level absmax
    `[e*n/16384, ...)`.
    """
    data, state = stack

    def part(tensor: Tensor) -> Tensor:
        return tensor.view(state.shape[0], -1)[expert].flatten()

    # built anew, since torch.compile cannot follow `copy.copy`
    old, kind = state.state2, dict(blocksize=BLOCK, quant_type=state.quant_type, dtype=state.dtype)
    nested = QuantState(part(old.absmax), code=old.code, blocksize=NESTED_BLOCK, dtype=old.dtype)
    shape = state.shape[1:] if isinstance(expert, int) else (len(expert), *state.shape[1:])
    chosen = QuantState(part(state.absmax), shape, state.code, offset=state.offset, state2=nested, **kind)
    return part(data).unsqueeze(1), chosen


def experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """Run the hit experts on their rows: hidden `[tokens, hidden]`, index and weights `[tokens, top_k]`."""
    stacks = [(getattr(self, key).detach(), self.quant_states[key]) for key in ("gate_up_proj", "down_proj")]
    learning, slots = torch.is_grad_enabled() and hidden_states.requires_grad, top_k_index.numel()
    # experts are copied: at most as many as there are
    path = _few_rows if slots <= min(FEW_SLOTS, self.num_experts) and not learning else _many_rows
    return path(self, stacks, hidden_states, top_k_index, top_k_weights).to(hidden_states.dtype)


def _many_rows(self, stacks, hidden, index, weights):
    """Sort the rows by expert, and run each hit expert once, on all of its rows (training, prompts)."""
    experts, order = index.flatten().sort(stable=True)  # token-slots, grouped by expert
    rows = hidden[order // index.shape[1]]
    if _is_grouped(stacks, hidden):
        numbers = torch.arange(self.num_experts, device=experts.device)
        ends = torch.searchsorted(experts, numbers, right=True, out_int32=True)  # waits for nothing
        outputs = _both(self, lambda rows, i: _Grouped.apply(rows, ends, *stacks[i]), rows, experts)
    else:
        sizes = torch.bincount(experts, minlength=self.num_experts).tolist()  # waits
        parts = enumerate(zip(rows.split(sizes), experts.split(sizes), strict=True))
        outputs = torch.cat([_expert(self, stacks, e, *part) for e, part in parts if sizes[e]])
    weighted = outputs * weights.flatten()[order, None]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return weighted[back].view(*index.shape, -1).sum(dim=1)


def _is_grouped(stacks, hidden) -> bool:
    """Whether whole stacks are unpacked for one product: small ones, where PyTorch's waits for nothing."""
    cpu = hidden.device.type == "cpu"  # the tiny model: a loop over its experts costs more than it computes
    most, dtype = (GROUPED / 1024, hidden.dtype) if cpu else (GROUPED, torch.bfloat16)
    fit = all(2 * s.shape.numel() <= most and s.dtype == hidden.dtype == dtype for _, s in stacks)
    return fit and (cpu or (hidden.is_cuda and torch.cuda.get_device_capability(hidden.device)[0] in (9, 10)))


class _Grouped(torch.autograd.Function):
    """Rows `[slots, in]` times their experts, whose rows end at `ends`; unpacks again for the gradient."""

    @staticmethod
    def forward(ctx, rows, ends, *stack):
        ctx.kept = ends, *stack
        return grouped_mm(rows, dequantize_4bit(*stack).mT, offs=ends)

    @staticmethod
    def backward(ctx, gradient):
        ends, *stack = ctx.kept
        return grouped_mm(gradient.contiguous(), dequantize_4bit(*stack), offs=ends), None, None, None


def _few_rows(self, stacks, hidden, index, weights):
    """Shapes that do not depend on the routing, as CUDA graphs and `torch.compile` need them (decoding)."""
    hit = [select(stack, index.flatten()) for stack in stacks]  # copied, one for each token-slot
    rows, experts = hidden.repeat_interleave(index.shape[1], dim=0).split(1), index.flatten().split(1)
    slots = enumerate(zip(rows, experts, strict=True))
    outputs = torch.cat([_expert(self, hit, slot, *row) for slot, row in slots])
    return (outputs.view(*index.shape, -1) * weights.unsqueeze(-1)).sum(dim=1)


def _expert(self, stacks, at: int, rows: Tensor, experts: Tensor) -> Tensor:
    matrices = [select(stack, at) for stack in stacks]
    return _both(self, lambda rows, i: bnb.matmul_4bit(rows, *matrices[i]), rows, experts)


def _both(self, product, rows: Tensor, experts: Tensor) -> Tensor:
    """Gate and up, their product, and down: `rows` go through `product(rows, 0)` and then through 1.

    `experts`: the number of each row's, for adapters.
    """
    inner = self._apply_gate(expert_lora.add(self, "gate_up_proj", product(rows, 0), rows, experts))
    return expert_lora.add(self, "down_proj", product(inner, 1), inner, experts)


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def expert_stacks(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every stack of experts in `model` by name: `Params4bit` where it is packed, else a 3-D parameter."""
    return {
        f"{name}.{key}": parameter
        for name, module in model.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if _is_stack(module, parameter)
    }


def _is_stack(module: nn.Module, parameter: nn.Parameter) -> bool:
    # the mark that transformers' `use_experts_implementation` leaves on fused experts, whatever the family
    fused = hasattr(module, "_is_expert_parallel")
    return fused and (isinstance(parameter, bnb.nn.Params4bit) or parameter.dim() == 3)


class PackStack(Bnb4bitQuantize):
    """Loading step: a stack `[experts, out, in]` becomes a packed `Params4bit`; other weights as always."""

    def convert(self, input_dict, model=None, **kwargs):
        packed = {}
        for name, value in input_dict.items():
            if _is_stack(get_module_from_name(model, name)[0], model.get_parameter(name)):
                stack = value[0] if isinstance(value, list) else value
                packed[name] = pack(stack, self.hf_quantizer.quantization_config)
            else:
                packed |= super().convert({name: value}, model=model, **kwargs)
        _trim()
        return packed


class ExpertQuantizer(Bnb4BitHfQuantizer):
    """The stock bitsandbytes 4-bit quantizer, extended to fused expert stacks."""

    def param_needs_quantization(self, model, param_name, **kwargs):
        module, key = get_module_from_name(model, param_name)
        stock = super().param_needs_quantization(model, param_name, **kwargs)
        return stock or _is_stack(module, getattr(module, key))

    def get_quantize_ops(self):
        return PackStack(self)

    def is_serializable(self):
        # Saving would drop the quantization state of the stacks; what is saved is the adapter.
        return False

    def _process_model_before_weight_loading(self, model, **kwargs):
        super()._process_model_before_weight_loading(model, **kwargs)
        for name, stack in expert_stacks(model).items():
            per_expert = stack[0].numel()
            if per_expert % (BLOCK * NESTED_BLOCK):
                raise ValueError(said("blocks", name=name, held=per_expert, shared=BLOCK * NESTED_BLOCK))
            owner, _ = get_module_from_name(model, name)
            if owner.has_bias or owner.is_transposed or not owner.has_gate:
                raise ValueError(f"{name}: experts with biases, ungated or transposed are not supported.")

    def _process_model_after_weight_loading(self, model, **kwargs):
        model = super()._process_model_after_weight_loading(model, **kwargs)
        for name, stack in expert_stacks(model).items():
            if getattr(stack, "quant_state", None) is None:
                raise ValueError(f"{name} was not quantized: it still is {stack.dtype} {tuple(stack.shape)}.")
            owner, key = get_module_from_name(model, name)
            # `experts_forward` reads it from the module, beside the stack
            owner.quant_states = getattr(owner, "quant_states", {}) | {key: stack.quant_state}
        for module in model.modules():
            # On CPUs with AVX512_BF16 an eval-mode forward repacks Linear4bit; training then has no gradient.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model


def config(dtype: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """QLoRA's quantization (section 3 there): NF4, double quantization, `dtype` for the arithmetic."""
    paper = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return BitsAndBytesConfig(**paper, bnb_4bit_compute_dtype=dtype)


def load_model(
    path_or_id: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    revision: str | None = None,
) -> PreTrainedModel:
    """A causal language model, attention *and* experts in NF4, streamed: no whole 16-bit model ever exists.

    `path_or_id` is a local folder or a hub id, `dtype` that of the arithmetic and of what stays unquantized
    (embeddings, head, norms, router). Raises ModelFileError as `files.read_config` does, `memory.DoesNotFit`
    before anything is loaded where a CUDA device is too small to answer 512 tokens, and ValueError for
    experts that cannot be packed.
    """
    found = read_config(path_or_id, revision)
    source, device = local(path_or_id), device or ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(device).type == "cuda":
        memory.predict(found, train=False, batch=1, length=512, dtype=dtype).require(device)
    try:
        return _stream(AutoModelForCausalLM, source or path_or_id, device, dtype, revision=revision)
    except OSError as error:
        with reaching(path_or_id, "weights"):
            raise error


def random_model(
    model_config: PreTrainedConfig, *, device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> PreTrainedModel:
    """A model with random weights, streamed as a file's are: true for memory and speed only.

    Each tensor is drawn on the device when its turn comes: vectors are 1, the rest normal with the standard
    deviation that `model_config` names.
    """
    empty = skeleton(model_config, dtype)
    generator = torch.Generator(device).manual_seed(seed)
    how = dict(dtype=dtype, std=model_config.initializer_range, generator=generator)
    weights = {name: _Drawn(shape=p.shape, **how) for name, p in empty.named_parameters()}
    return _stream(type(empty), None, device, dtype, config=model_config, state_dict=weights)


class _Drawn(SimpleNamespace):
    """A tensor that exists once it is read, with `tensor[...]`, as the loader reads a file's."""

    def __getitem__(self, _) -> Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype, device=self.generator.device)
        return tensor.fill_(1) if tensor.dim() == 1 else tensor.normal_(0, self.std, generator=self.generator)


def _stream(model_class, source, device: str, dtype, **settings) -> PreTrainedModel:
    stock = AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"]
    # `register_quantizer` refuses a name that exists, and under a new name PEFT, TRL and Trainer would not
    # see a bitsandbytes 4-bit model. So the stock class is replaced for the length of this call.
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = ExpertQuantizer
    try:
        settings |= dict(dtype=dtype, quantization_config=config(dtype), device_map={"": device})
        settings |= dict(experts_implementation=NAME, trust_remote_code=False, use_safetensors=True)
        return model_class.from_pretrained(source, **settings)
    finally:
        AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = stock
        _trim()
        torch.cuda.empty_cache()  # the peak of loading goes back to the driver


def _trim() -> None:
    """Give freed memory back to the system: glibc keeps blocks of up to 32 MiB, an expert's among them."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)

"""4-bit experts for transformers 5, through the libraries' own extension points.

transformers 5 keeps a layer's experts in two stacked parameters, `gate_up_proj [experts, 2*intermediate, hidden]` and
`down_proj [experts, hidden, intermediate]`. `BitsAndBytesConfig(load_in_4bit=True)` replaces `nn.Linear` modules only,
so those stacks, 97 % of Mixtral-8x7B, silently stay 16-bit. Here three small pieces change that:

1. `ExpertQuantizer`, the stock 4-bit quantizer that also claims expert stacks while weights are being loaded;
2. `PackStack`, the loading step that turns one stack into packed NF4 (blocks of 64 share one absmax, QLoRA section 3);
3. `experts_forward`, which runs each expert that was hit on *its slice* of the packed stack.
"""

import json
from pathlib import Path

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

BLOCK = 64  # weights that share one absmax
NESTED_BLOCK = 256  # absmax values that share one second-level absmax (double quantization)


class ExpertPackingError(ValueError):
    """A model whose experts cannot be, or were not, packed to NF4; the message names the stack."""


class ModelFileError(OSError):
    """A model folder that is missing, incomplete or damaged; the message names the file and the remedy."""


def expert_stacks(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every fused expert stack of `model` by name; packed stacks are `Params4bit`, unpacked ones 3-D parameters."""
    return {
        f"{name}.{key}": parameter
        for name, module in model.named_modules()
        if _holds_experts(module)
        for key, parameter in module.named_parameters(recurse=False)
        if _is_stack(parameter)
    }


def _is_stack(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, bnb.nn.Params4bit) or parameter.dim() == 3


def _holds_experts(module: nn.Module) -> bool:
    # set by transformers' `use_experts_implementation` on every fused experts class, whatever the family
    return hasattr(module, "_is_expert_parallel")


class PackStack(Bnb4bitQuantize):
    """Loading step: one expert stack `[experts, out, in]` -> one packed `Params4bit`; other weights as in the library."""

    def convert(self, input_dict, model=None, **kwargs):
        packed = {}
        for name, value in input_dict.items():
            module, _ = get_module_from_name(model, name)
            if not _holds_experts(module):
                packed |= super().convert({name: value}, model=model, **kwargs)
                continue
            stack = value[0] if isinstance(value, list) else value
            config = self.hf_quantizer.quantization_config
            packed[name] = bnb.nn.Params4bit(
                stack,
                requires_grad=False,
                blocksize=BLOCK,
                compress_statistics=config.bnb_4bit_use_double_quant,
                quant_type=config.bnb_4bit_quant_type,
                quant_storage=config.bnb_4bit_quant_storage,
            ).to(stack.device)
        return packed


class ExpertQuantizer(Bnb4BitHfQuantizer):
    """The stock bitsandbytes 4-bit quantizer, extended to fused expert stacks."""

    def param_needs_quantization(self, model, param_name, **kwargs):
        module, _ = get_module_from_name(model, param_name)
        if _holds_experts(module):
            return _is_stack(model.get_parameter(param_name))
        return super().param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self):
        return PackStack(self)

    def is_serializable(self):
        # Saving would drop the quantization state of the stacks; what is saved is the adapter.
        return False

    def _process_model_before_weight_loading(self, model, **kwargs):
        super()._process_model_before_weight_loading(model, **kwargs)
        multiple = BLOCK * (NESTED_BLOCK if self.quantization_config.bnb_4bit_use_double_quant else 1)
        for name, stack in expert_stacks(model).items():
            per_expert = stack[0].numel()
            if per_expert % multiple:
                raise ExpertPackingError(
                    f"{name} holds {per_expert:,} weights per expert, which is no multiple of {multiple:,}, so experts "
                    f"would share quantization blocks. Change the sizes, or load with double_quant=False."
                )
            owner, _ = get_module_from_name(model, name)
            if owner.has_bias or owner.is_transposed or not owner.has_gate:
                raise ExpertPackingError(
                    f"{name}: experts with biases, without gates or transposed are not supported."
                )

    def _process_model_after_weight_loading(self, model, **kwargs):
        model = super()._process_model_after_weight_loading(model, **kwargs)
        for name, stack in expert_stacks(model).items():
            if getattr(stack, "quant_state", None) is None:
                raise ExpertPackingError(
                    f"{name} was not quantized: it still is {stack.dtype} {tuple(stack.shape)}."
                )
        for module in model.modules():
            # On CPUs with AVX512_BF16 the first eval-mode forward repacks Linear4bit, and training after it has no gradient.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model


def expert_slice(stack: bnb.nn.Params4bit, expert: int) -> tuple[torch.Tensor, QuantState]:
    """Expert `expert` of a packed stack, as views: its bytes and its quantization state of shape `[out, in]`.

    With n weights per expert: bytes `[e*n/2, (e+1)*n/2)`, absmax `[e*n/64, ...)`, second-level absmax `[e*n/16384, ...)`.
    """
    state = stack.quant_state
    experts, *shape = state.shape
    n = shape[0] * shape[1]

    def part(tensor: torch.Tensor, size: int) -> torch.Tensor:
        return tensor.view(-1)[expert * size : (expert + 1) * size]

    nested = None
    if state.nested:
        nested = QuantState(
            absmax=part(state.state2.absmax, n // (BLOCK * NESTED_BLOCK)),
            code=state.state2.code,
            blocksize=state.state2.blocksize,
            dtype=state.state2.dtype,
        )
    sliced = QuantState(
        absmax=part(state.absmax, n // BLOCK),
        shape=torch.Size(shape),
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
        offset=state.offset,
        state2=nested,
    )
    return part(stack, stack.numel() // experts).unsqueeze(1), sliced


def experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """Run the experts that were hit, each on its rows: hidden `[tokens, hidden]`, index and weights `[tokens, top_k]`."""
    tokens, top_k = top_k_index.shape
    order = top_k_index.flatten().argsort(stable=True)  # token-slots, grouped by expert
    counts = torch.bincount(top_k_index.flatten(), minlength=self.num_experts).tolist()
    outputs = []
    for expert, rows in enumerate(hidden_states[order // top_k].split(counts)):
        if len(rows):
            gated = self._apply_gate(_linear(rows, self.gate_up_proj, expert))
            outputs.append(_linear(gated, self.down_proj, expert))
    weighted = torch.cat(outputs) * top_k_weights.flatten()[order, None]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return weighted[back].view(tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


def _linear(rows: torch.Tensor, stack: bnb.nn.Params4bit, expert: int) -> torch.Tensor:
    packed, state = expert_slice(stack, expert)
    return bnb.matmul_4bit(rows, packed, quant_state=state)


ALL_EXPERTS_FUNCTIONS.register("nf4", experts_forward)


def config(dtype: torch.dtype = torch.bfloat16, double_quant: bool = True) -> BitsAndBytesConfig:
    """The paper's quantization: NF4 weights, double quantization, `dtype` for the arithmetic (paper section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def load(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | None = None,
    double_quant: bool = True,
    revision: str | None = None,
) -> PreTrainedModel:
    """A causal language model with attention *and* experts in NF4, streamed so that no whole 16-bit model ever exists.

    `path_or_id` is a local folder or a hub id, `dtype` that of the arithmetic and of what stays unquantized (embeddings,
    head, norms, router). Raises ExpertPackingError for experts that cannot be packed, ModelFileError for a local folder
    whose files are missing or cut off.
    """
    local = Path(path_or_id).expanduser()
    if local.exists() or local.is_absolute():
        _check_files(local)
    stock = AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"]
    # `register_quantizer` refuses a name that exists, and a new name would make PEFT, TRL and Trainer treat the model as
    # something other than bitsandbytes 4-bit. So the stock class is replaced for the length of this call.
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = ExpertQuantizer
    try:
        return AutoModelForCausalLM.from_pretrained(
            path_or_id,
            dtype=dtype,
            revision=revision,
            quantization_config=config(dtype, double_quant),
            device_map={"": device or ("cuda" if torch.cuda.is_available() else "cpu")},
            experts_implementation="nf4",
            trust_remote_code=False,
            use_safetensors=True,
        )
    finally:
        AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = stock


def _check_files(folder: Path) -> None:
    """Refuse a local model folder whose files are missing or cut off, before minutes are spent on loading."""
    if not (folder / "config.json").is_file():
        raise ModelFileError(
            f"{folder} holds no model: config.json is missing. Check the path (AURORA_MODEL)."
        )
    index = folder / "model.safetensors.index.json"
    names = (
        set(json.loads(index.read_text())["weight_map"].values())
        if index.is_file()
        else {"model.safetensors"}
    )
    for file in (folder / name for name in sorted(names)):
        try:
            with safe_open(file, "pt") as weights:
                weights.keys()
        except (OSError, SafetensorError) as error:
            raise ModelFileError(
                f"{file} is missing or cut off ({error}). Download that file again."
            ) from error

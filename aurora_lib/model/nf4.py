"""4-bit experts for transformers 5, through the libraries' own extension points.

transformers 5 keeps a layer's experts in two stacked parameters, `gate_up_proj [experts, 2*intermediate, hidden]` and
`down_proj [experts, hidden, intermediate]`. `BitsAndBytesConfig(load_in_4bit=True)` replaces `nn.Linear` modules only,
so those stacks, 97 % of Mixtral-8x7B, silently stay 16-bit. Here three small pieces change that:

1. `ExpertQuantizer`, the stock 4-bit quantizer that also claims expert stacks while weights are being loaded;
2. `PackStack`, the loading step that turns one stack into packed NF4 (`nf4_experts.pack`);
3. `nf4_experts.experts_forward`, which runs each expert that was hit on *its part* of the packed stack.
"""

from pathlib import Path

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from aurora_lib.model import experts as nf4_experts
from aurora_lib.model import files as model_files
from aurora_lib.model import profiling as memory_profile
from aurora_lib.model.random_weights import drawn

# What `load` is told where FSDP2 will split the model: no GPU may hold it whole, accelerate splits floats only, and bytes
# called bf16 are damaged where they look like NaN, since CUDA copies bf16 by way of fp32 (bitsandbytes issue 1945).
SHARDED = dict(device="cpu", quant_storage=torch.float32)


class ExpertPackingError(ValueError):
    """A model whose experts cannot be, or were not, packed to NF4; the message names the stack."""


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
    """Loading step: an expert stack `[experts, out, in]` -> one packed `Params4bit`; other weights as in the library."""

    def convert(self, input_dict, model=None, **kwargs):
        packed = {}
        for name, value in input_dict.items():
            if _holds_experts(get_module_from_name(model, name)[0]):
                stack = value[0] if isinstance(value, list) else value
                packed[name] = nf4_experts.pack(stack, self.hf_quantizer.quantization_config)
            else:
                packed |= super().convert({name: value}, model=model, **kwargs)
        memory_profile.trim()
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
        double_quant = self.quantization_config.bnb_4bit_use_double_quant
        multiple = nf4_experts.BLOCK * (nf4_experts.NESTED_BLOCK if double_quant else 1)
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
            owner, key = get_module_from_name(model, name)
            # Kept on the module, because FSDP2 hands a plain parameter back to the forward.
            owner.quant_states = getattr(owner, "quant_states", {}) | {key: stack.quant_state}
        for module in model.modules():
            # On CPUs with AVX512_BF16 the first eval-mode forward repacks Linear4bit, and training after it has no gradient.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return model


def config(
    dtype: torch.dtype = torch.bfloat16, double_quant: bool = True, quant_storage: torch.dtype = torch.uint8
) -> BitsAndBytesConfig:
    """The paper's quantization: NF4 weights, double quantization, `dtype` for the arithmetic (paper section 3).

    `quant_storage` is what the packed bytes call themselves; for FSDP2 see SHARDED.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=quant_storage,
    )


def load_model(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | None = None,
    double_quant: bool = True,
    quant_storage: torch.dtype = torch.uint8,
    revision: str | None = None,
) -> PreTrainedModel:
    """A causal language model with attention *and* experts in NF4, streamed so that no whole 16-bit model ever exists.

    `path_or_id` is a local folder or a hub id, `dtype` that of the arithmetic and of what stays unquantized (embeddings,
    head, norms, router). Raises ExpertPackingError for experts that cannot be packed, ModelFileError for a local folder
    whose files are missing or cut off.
    """
    local = Path(path_or_id).expanduser()
    if local.exists() or local.is_absolute():
        model_files.check(local)
    quantization = config(dtype, double_quant, quant_storage)
    return _stream(AutoModelForCausalLM, path_or_id, quantization, device, dtype=dtype, revision=revision)


def random_model(
    model_config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | None = None,
    double_quant: bool = True,
    seed: int = 0,
) -> PreTrainedModel:
    """A model of `model_config` with random weights, streamed as `load` streams files: true for memory and speed only.

    Each tensor is drawn on the device when its turn comes: vectors are 1, the rest normal (`initializer_range`).
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
    weights = drawn(empty, dtype, model_config.initializer_range, _device(device), seed)
    model = dict(dtype=dtype, config=model_config, state_dict=weights)
    return _stream(type(empty), None, config(dtype, double_quant), device, **model)


def _device(device: str | None) -> str:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _stream(model_class, source, quantization: BitsAndBytesConfig, device: str | None, **settings):
    stock = AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"]
    # `register_quantizer` refuses a name that exists, and a new name would make PEFT, TRL and Trainer treat the model as
    # something other than bitsandbytes 4-bit. So the stock class is replaced for the length of this call.
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = ExpertQuantizer
    try:
        return model_class.from_pretrained(
            source,
            quantization_config=quantization,
            device_map={"": _device(device)},
            experts_implementation=nf4_experts.NAME,
            trust_remote_code=False,
            use_safetensors=True,
            **settings,
        )
    finally:
        AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = stock
        memory_profile.trim()
        torch.cuda.empty_cache()  # the peak of loading goes back to the driver; without CUDA this does nothing

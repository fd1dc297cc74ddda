"""LoRA on packed experts: a low-rank detour for every expert, beside the 4-bit stack.

PEFT's own LoRA on a parameter (`target_parameters`) adds B·A to the weight, and a packed weight has no place
for that. So the sum is taken behind the product: W x + (alpha / r) B A x, with A and B of the row's expert.
Names, shapes and files stay PEFT's: an adapter made here goes on the 16-bit model with stock PEFT, and PEFT
turns those of 2023, which tuned w1, w2 and w3 of every expert, into these shapes while it loads them.
"""

import warnings
from functools import partial

import torch
from peft import LoraConfig
from peft.tuners.lora import layer
from torch import Tensor, nn

# PEFT looks for them among modules only. It does use them for parameters.
warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")


def on_packed_experts(config: LoraConfig) -> LoraConfig:
    """`config` itself, told to give packed experts a `ParamWrapper`; all else is left to PEFT."""

    def choose(target, *args, parameter_name=None, **kwargs):
        base = target.get_base_layer() if hasattr(target, "get_base_layer") else target
        packed = parameter_name in getattr(base, "quant_states", ())
        return ParamWrapper(target, *args, parameter_name=parameter_name, **kwargs) if packed else None

    config._register_custom_module({nn.Module: choose})
    return config


class ParamWrapper(layer.ParamWrapper):  # by this name PEFT knows a stack that is wrapped already
    """Lends its detours to `nf4.experts_forward`, for the length of a forward (one thread at a time).

    PEFT keeps the A of all experts in one matrix `[experts * r, in]`, and the B in one `[out, r * experts]`.
    """

    def _get_in_out_features(self, module):
        # a packed parameter is a column of bytes: the stack's shape is in its quantization state
        self.num_experts, *sizes = self.get_base_layer().quant_states[self.parameter_name].shape
        self._param_ndim = 3
        return sizes  # [out, in]; PEFT swaps them

    def forward(self, hidden: Tensor, *args, **kwargs) -> Tensor:
        experts, active = self.get_base_layer(), () if self.disable_adapters else self.active_adapters
        experts.detours = getattr(experts, "detours", {}) | {
            self.parameter_name: [partial(self.detour, name) for name in active if name in self.lora_A]
        }
        try:
            return self.base_layer(hidden, *args, **kwargs)
        finally:
            del experts.detours[self.parameter_name]

    def detour(self, name: str, rows: Tensor, experts: Tensor) -> Tensor:
        """(alpha / r) B A x for rows `[slots, in]` and the number of each row's expert `[slots]`.

        Two products for all experts at once, and what belongs to another expert is set to 0: no shape depends
        on the routing, so nothing waits for the device. It costs `experts` times the work of one detour,
        which is still little beside the experts themselves.
        """
        a, b = self.lora_A[name], self.lora_B[name]
        # autocast casts by itself
        given = (
            rows
            if torch.is_autocast_enabled(rows.device.type)
            else self._cast_input_dtype(rows, a.weight.dtype)
        )
        own = experts[:, None] == torch.arange(self.num_experts, device=experts.device)
        low = a(given).view(len(rows), self.num_experts, -1) * own.unsqueeze(-1)
        return (self.scaling[name] * b(low.transpose(1, 2).flatten(1))).to(rows.dtype)

    def merge(self, *args, **kwargs):
        """Raises ValueError: packed weights cannot take the sum."""
        raise ValueError("Packed experts cannot be merged. Load the model anew, and merge it in 16 bits.")


def add(experts: nn.Module, key: str, out: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
    """`out`, what the stack `key` made of `rows`, plus the detours that a `ParamWrapper` has lent."""
    for detour in getattr(experts, "detours", {}).get(key, ()):
        out += detour(rows, numbers)
    return out

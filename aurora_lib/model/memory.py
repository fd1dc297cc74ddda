"""Predict what a model needs, refuse what cannot fit, measure what it took (QLoRA, arXiv 2305.14314).

`predict` counts bytes from the shapes of a model that is never allocated; `profile` (memory_profile.py) records memory
over time. A GiB is 2**30 bytes throughout. Predictions are of allocated memory: nvidia-smi also shows what PyTorch's
allocator keeps in reserve and the CUDA context, some 2 GiB more.
"""

import html
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import psutil
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, PreTrainedConfig

from aurora_lib.course import GIB
from aurora_lib.model.profiling import profile

__all__ = ["GIB", "MIXTRAL_8X7B", "DoesNotFit", "MemoryBudget", "predict", "profile"]

QUANTIZATIONS = ("nf4", "nf4-linear-only", "bf16")
LOGIT_TILE = (4096, 32_768)  # tokens x vocabulary: TRL's loss never holds more logits than this

# The published sizes of mistralai/Mixtral-8x7B-Instruct-v0.1.
MIXTRAL_8X7B = MixtralConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    num_local_experts=8,
    num_experts_per_tok=2,
    max_position_embeddings=32_768,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
)


class DoesNotFit(RuntimeError):
    """The budget is larger than the device's memory; the message holds the whole table."""


@dataclass(frozen=True)
class MemoryBudget:
    """A predicted budget. `parts` {name: GiB} adds up to `total`; `weights` (GiB) is its first three rows."""

    title: str
    parts: dict[str, float]
    adapter_parameters: int

    @property
    def weights(self) -> float:
        return sum(self.parts[name] for name in ("experts", "attention", "rest"))

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def sharded(self, processes: int, layers: int) -> "MemoryBudget":
        """What each GPU needs where FSDP2 splits the packed NF4 weights (double quantization) over `processes`.

        Each holds its share, two gathered layers (one in use, one on its way), and all absmax values, which stay whole.
        """
        names, packed = ("experts", "attention"), 0.5 / nf4_bytes()
        parts = {
            name: size * (1 - packed + packed / processes) if name in names else size
            for name, size in self.parts.items()
        }
        parts["two gathered layers"] = 2 / layers * packed * sum(self.parts[name] for name in names)
        return replace(self, title=f"{self.title}; on each of {processes} GPUs", parts=parts)

    def rows(self) -> list[tuple[str, float]]:
        """(name, GiB) of every part, then the total."""
        return [*self.parts.items(), ("total", self.total)]

    def table(self) -> str:
        """An aligned table, in GiB, or in MiB for a model that needs less than one GiB."""
        unit, scale = ("GiB", 1) if self.total >= 1 else ("MiB", 1024)
        rows = [(name, f"{size * scale:.2f} {unit}") for name, size in self.rows()]
        names, sizes = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"{name:<{names}}  {size:>{sizes}}" for name, size in rows]
        return "\n".join([self.title, *lines[:-1], "-" * len(lines[0]), lines[-1]])

    __str__ = table

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.table())}</pre>"

    def require(self, device: str | torch.device | float) -> "MemoryBudget":
        """Return the budget if it fits the device, else raise DoesNotFit with the table.

        device: "cuda", "cuda:1", "cpu" (all RAM of this machine), or a number of GiB.
        """
        if isinstance(device, int | float):
            where, available = "the given device", float(device)
        elif torch.device(device).type == "cuda":
            if not torch.cuda.is_available():
                raise DoesNotFit(f"This machine has no CUDA GPU.\n\n{self}")
            gpu = torch.cuda.get_device_properties(torch.device(device))
            where, available = gpu.name, gpu.total_memory / GIB
        else:
            where, available = "this machine's RAM", psutil.virtual_memory().total / GIB
        if self.total > available:
            raise DoesNotFit(
                f"This needs {self.total:.2f} GiB and {where} has {available:.2f} GiB. Make the largest rows "
                f"smaller: quantize the experts, cut batch or length, turn checkpointing on.\n\n{self}"
            )
        return self


def nf4_bytes(double_quant: bool = True) -> float:
    """Bytes per NF4 parameter (QLoRA, section 3): 4 bits, and one scale (absmax) for each block of 64.

    A scale is an fp32, 4/64; double quantization makes it one byte, 1/64, plus an fp32 for every 256 of them.
    """
    return 0.5 + (1 / 64 + 4 / (64 * 256) if double_quant else 4 / 64)


class _Shapes(NamedTuple):
    experts: int  # parameters of all expert stacks
    largest_expert: int  # parameters of one expert's largest matrix
    linears: dict[str, tuple[int, int]]  # {name: (in, out)} of every linear layer but the head
    total: int  # parameters of the model
    norms_queries: bool  # and keys, as OLMoE and Qwen3 do


@lru_cache(maxsize=16)
def _shapes(config_json: str) -> _Shapes:
    # Takes a string because configs cannot be hashed; a notebook's sliders ask for one config many times.
    values = json.loads(config_json)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stacks = [p for name, p in model.named_parameters() if ".experts." in name and p.dim() == 3]
    head = model.get_output_embeddings()
    linears = {
        name: (m.in_features, m.out_features)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and m is not head
    }
    largest_expert = max((p[0].numel() for p in stacks), default=0)
    total = sum(p.numel() for p in model.parameters())
    norms_queries = any(name.endswith("q_norm") for name, _ in model.named_modules())
    return _Shapes(sum(p.numel() for p in stacks), largest_expert, linears, total, norms_queries)


def predict(
    config: PreTrainedConfig,
    *,
    train: bool = True,
    batch: int = 2,
    length: int = 1024,
    rank: int = 8,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    quantization: str = "nf4",
    double_quant: bool = True,
    checkpointing: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> MemoryBudget:
    """The memory of QLoRA training, or of inference, for any transformers causal language model.

    T = batch x length tokens, H hidden width, Q and K widths of queries and keys, I inner width of an expert,
    k experts a token, V vocabulary, w bytes of `dtype`, n = `nf4_bytes(double_quant)`:

    - experts, attention: n bytes a parameter; "attention" stands for every linear layer outside the experts
      but the head (in a dense model the MLP too). rest (embeddings, head, router, norms): w bytes.
    - adapters: rank x (in + out) for every target, 16 bytes each (weight, gradient, two Adam moments, fp32).
    - checkpointed layer inputs: layers x T x H x w; without checkpointing, what every layer keeps instead.
    - one layer, recomputed: what it keeps for its backward, T x (12H + 2w(Q + K) + kw(H + 3I)), and 4(Q + K)
      more where queries and keys are normed, plus T x H x max(3kw + 6, 26) for gradients in flight (in the
      experts' sum or in the norms), plus one dequantized expert matrix. Fitted to the live tensors of real
      steps under sdpa; eager attention adds batch x heads x length^2 several times over.
    - one layer, at work (inference): T x k(8H + 3wH), 3I for the rows of one of E experts, and that matrix.
    - logits: at most LOGIT_TILE in fp32 (training), V a sequence (inference). They are gone before a layer
      peaks, so only what exceeds that peak counts.
    - KV cache (inference): layers x T x 2K x w.

    quantization: "nf4"; "nf4-linear-only", what transformers 5 makes of `load_in_4bit` (fused experts stay
    16-bit); or "bf16", nothing quantized. Raises ValueError for another, and for targets that name no layer.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"quantization={quantization!r} does not exist: choose one of {', '.join(QUANTIZATIONS)}."
        )
    shapes = _shapes(config.to_json_string(use_diff=False))
    adapted = [io for name, io in shapes.linears.items() if name.rpartition(".")[2] in targets]
    if not adapted and train:
        names = sorted({name.rpartition(".")[2] for name in shapes.linears})
        raise ValueError(
            f"targets={targets!r} name no linear layer of this model. It has {', '.join(names)}."
        )
    adapter_parameters = rank * sum(i + o for i, o in adapted)

    width, tokens, hidden = dtype.itemsize, batch * length, config.hidden_size
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    keys = head_dim * (getattr(config, "num_key_value_heads", None) or heads)
    inner = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 4 * hidden)
    experts = getattr(config, "num_local_experts", 1) if shapes.experts else 1
    top_k = config.num_experts_per_tok if shapes.experts else 1

    nf4 = nf4_bytes(double_quant)
    linear = sum(i * o for i, o in shapes.linears.values())
    matrix = max(
        [i * o for i, o in shapes.linears.values()] + [shapes.largest_expert * (quantization == "nf4")]
    )
    dequantized = 0 if quantization == "bf16" else matrix * width
    parts = {
        "experts": shapes.experts * (nf4 if quantization == "nf4" else width),
        "attention": linear * (width if quantization == "bf16" else nf4),
        "rest": (shapes.total - shapes.experts - linear) * width,
    }
    if train:
        heads_wide = head_dim * heads + keys
        kept = 12 * hidden + 2 * width * heads_wide + top_k * width * (hidden + 3 * inner)
        kept += 4 * heads_wide * shapes.norms_queries
        layer = tokens * (kept + hidden * max(3 * top_k * width + 6, 26)) + dequantized
        logits = 4 * min(tokens, LOGIT_TILE[0]) * min(config.vocab_size, LOGIT_TILE[1])
        parts["adapters, gradients, Adam"] = 16 * adapter_parameters
        if checkpointing:
            parts["checkpointed layer inputs"] = layers * tokens * hidden * width
            parts["one layer, recomputed"] = layer
        else:
            parts["activations of all layers"] = layers * tokens * kept
            parts["one layer, backward"] = layer - tokens * kept
    else:
        layer = tokens * top_k * ((8 + 3 * width) * hidden + 3 * inner * width / experts) + dequantized
        logits = 4 * batch * config.vocab_size
        parts["KV cache"] = layers * tokens * 2 * keys * width
        parts["one layer, at work"] = layer
    parts["logits beyond that"] = max(0, logits - layer)
    task = (
        f"training, batch {batch} x {length}, rank {rank}"
        if train
        else f"inference, {batch} x {length} tokens"
    )
    title = f"{config.model_type}, {shapes.total / 1e6:,.1f} M parameters, {quantization}: {task}"
    return MemoryBudget(title, {name: size / GIB for name, size in parts.items()}, adapter_parameters)

"""Predict what a model needs, and refuse what cannot fit. A GiB is 2**30 bytes.

`predict` adds up named terms, one function each, from the shapes of a model that is never allocated. The
budget it returns is a table; its `require` refuses a device that is too small. Predicted is what is
allocated: nvidia-smi adds PyTorch's reserve, half a GiB to several, and the CUDA context.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch
from torch import nn
from transformers import AutoConfig, MixtralConfig, PreTrainedConfig

from aurora_lib.course import machine, paper
from aurora_lib.model.files import said, skeleton

QUANTIZATIONS = ("nf4", "nf4-linear-only", "bf16")
LOGIT_TILE = (4096, 32_768)  # tokens x vocabulary: TRL's loss never holds more logits than this

# The published sizes of mistralai/Mixtral-8x7B-Instruct-v0.1.
MIXTRAL_8X7B = MixtralConfig.from_json_file(Path(__file__).with_name("mixtral_8x7b.json"))


class DoesNotFit(RuntimeError):
    """The budget is larger than the device's memory; the message holds the whole table."""


@dataclass(frozen=True, repr=False)
class MemoryBudget:
    """A predicted budget. `parts` {name: GiB} adds up to `total`; `weights` (GiB) is its first four rows."""

    title: str
    parts: dict[str, float]
    adapter_parameters: int

    @property
    def weights(self) -> float:
        return sum(self.parts[name] for name in ("experts", "attention", "absmax", "rest"))

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        """An aligned table, in GiB, or in MiB for a model that needs less than one GiB."""
        unit, scale = ("GiB", 1) if self.total >= 1 else ("MiB", 1024)
        parts = self.parts | dict(total=self.total)
        rows = [(name, f"{size * scale:.2f} {unit}") for name, size in parts.items()]
        names, sizes = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"{name:<{names}}  {size:>{sizes}}" for name, size in rows]
        return "\n".join([self.title, *lines[:-1], "-" * len(lines[0]), lines[-1]])

    __repr__ = __str__

    def require(self, device: str | torch.device | float) -> "MemoryBudget":
        """The budget itself where it fits `device`, else DoesNotFit is raised, with the table.

        `device`: "cuda", "cuda:1", "cpu" (all RAM of this machine), or a number of GiB.
        """
        if isinstance(device, int | float):
            where, available = "the given device", float(device)
        elif torch.device(device).type == "cuda":
            if not torch.cuda.is_available():
                raise DoesNotFit(f"This machine has no CUDA GPU.\n\n{self}")
            # what other processes hold, a notebook left open for one, is not there
            free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
            where = f"{torch.cuda.get_device_name(device)}, other processes left out,"
            available = free / machine.GIB
        else:
            where, available = "this machine's RAM", psutil.virtual_memory().total / machine.GIB
        if self.total > available:
            raise DoesNotFit(said("too_large", budget=self, where=where, available=available))
        return self


@dataclass(frozen=True)
class Stack:
    """How a stack of software spends memory while it trains: each field is one reason to need more."""

    eager_attention: bool = False  # all scores exist, and keys and values are repeated for all heads
    expert_layers: bool = False  # every expert is three 4-bit layers, which keep the rows that they multiply
    whole_logits: bool = False  # all logits at once, in 32 bits


TODAY = Stack()  # the libraries of this course: FlashAttention, fused experts, a loss that works in tiles
OF_2023 = Stack(eager_attention=True, expert_layers=True, whole_logits=True)  # the authors', from its sources


def predict(
    config: PreTrainedConfig,
    *,
    train: bool = True,
    batch: int = 2,
    length: int = 1024,
    rank: int = 8,
    quantization: str = "nf4",
    double_quant: bool = True,
    checkpointing: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    adapter: int | None = None,
    on_experts: bool = False,
    stack: Stack = TODAY,
) -> MemoryBudget:
    """The memory of QLoRA training, or of inference, for a transformers language model.

    `adapter`: how many parameters it has, if not the paper's; `on_experts`: whether experts are
    tuned too. `stack`: TODAY, OF_2023 or one of your own. `quantization`: "nf4"; "nf4-linear-only", what
    transformers 5 makes of `load_in_4bit` (fused experts stay 16-bit); or "bf16", nothing quantized. Raises
    ValueError for another. No term is fitted: each follows from what a step keeps; `results/counted` holds
    the same steps, counted tensor by tensor.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"There is no quantization {quantization!r}: choose {', '.join(QUANTIZATIONS)}.")
    shape, width = _shape(config.to_json_string(use_diff=False)), dtype.itemsize
    adapter = adapter or rank * shape.adapted
    parts = weights(shape, quantization, double_quant, width)
    matrix = unpacked(shape, quantization, width, stack)
    if train:
        parts["adapters, gradients, Adam"] = 16 * adapter  # fp32: weight, gradient, two moments
        parts |= training_step(shape, batch, length, width, stack, matrix, checkpointing, on_experts)
        task = f"training, batch {batch} x {length}, rank {rank}"
    else:
        parts |= inference_step(shape, batch, length, width, matrix)
        task = f"inference, {batch} x {length} tokens"
    title = f"{config.model_type}, {shape.total / 1e6:,.1f} M parameters, {quantization}: {task}"
    return MemoryBudget(title, {name: size / machine.GIB for name, size in parts.items()}, adapter)


def nf4_bytes(double_quant: bool = True) -> float:
    """Bytes per NF4 parameter (QLoRA, section 3): 4 bits, and one absmax for each block of 64.

    An absmax is an fp32, 4/64. Double quantization makes it one byte, 1/64, plus an fp32 for every 256.
    """
    return 0.5 + (1 / 64 + 4 / (64 * 256) if double_quant else 4 / 64)


# The terms, in bytes: `tokens` = batch x length, `width` = bytes of a 16- or 32-bit number.


def weights(shape, quantization: str, double_quant: bool, width: int) -> dict[str, float]:
    """Experts; "attention", every linear layer outside them but the head; absmax; the rest, unquantized."""
    packed = {"nf4": shape.experts + shape.linear, "nf4-linear-only": shape.linear, "bf16": 0}[quantization]
    return {
        "experts": shape.experts * (0.5 if quantization == "nf4" else width),
        "attention": shape.linear * (width if quantization == "bf16" else 0.5),
        "absmax": packed * (nf4_bytes(double_quant) - 0.5),
        "rest": (shape.total - shape.experts - shape.linear) * width,
    }


def unpacked(shape, quantization: str, width: int, stack: Stack) -> int:
    """The largest quantized matrix in 16 bits, while it multiplies: storage is 4-bit, arithmetic is not."""
    expert = shape.largest_expert // (2 if stack.expert_layers else 1)  # gate and up in one, or each alone
    largest = max(shape.largest_linear, expert * (quantization == "nf4"))
    return 0 if quantization == "bf16" else largest * width


def training_step(shape, batch, length, width, stack, matrix, checkpointing, on_experts) -> dict[str, float]:
    """What a step holds at its peak: while the last layer is recomputed, or in its backward.

    With checkpointing every layer keeps its input only, and one layer at a time is recomputed.
    """
    tokens = batch * length
    experts = kept_by_experts(shape, tokens, width)
    kept = kept_by_layer(shape, tokens, width, stack)
    if on_experts:  # the rows that go into both of an expert's detours
        kept += tokens * shape.top_k * width * (shape.hidden + shape.inner)
    passing = passing_through(shape, tokens, width, stack, matrix)
    scores = batch * shape.heads * length**2 * stack.eager_attention  # one for each head, query and key
    softmax = scores * (4 + width)  # in 32 bits, and its 16-bit copy
    in_backward = scores * (8 + width)  # result and its gradient in 32 bits, the gradient that leaves in 16
    passing = max(passing, in_backward - softmax - experts)  # the experts are done when attention begins
    layers = 1 if checkpointing else shape.layers
    if checkpointing:
        # in use while a layer is recomputed: the residual, and the second norm's output where it is not kept
        in_use = width * (1 if stack.expert_layers else 2)
        # norms of a 32-bit model copy nothing: they keep the layer's input, counted above, and the residual
        kept += tokens * shape.hidden * (in_use - 8 * (width == 4))
    parts = {"layer inputs": shape.layers * tokens * shape.hidden * width} if checkpointing else {}
    parts["one layer, recomputed" if checkpointing else "activations of all layers"] = layers * kept
    if stack.eager_attention:
        parts["attention scores"] = layers * softmax
    parts["passing through"] = passing
    # logits are gone before a layer is recomputed, so only what exceeds that peak counts
    beyond = logits(shape, tokens, width, stack) - checkpointing * (kept + softmax) - passing
    return parts | {"logits beyond that": max(0, beyond)}


def inference_step(shape, batch, length, width, matrix) -> dict[str, float]:
    """What reading a prompt holds at its peak: keys and values of all layers, and one layer at work."""
    tokens, k, hidden = batch * length, shape.top_k, shape.hidden
    # embeddings, the layer's input, residual, norm; expert rows in and out
    streams = width * hidden * (4 + 2 * k)
    # rows times router weights in 32 bits, put back in order, and their sum
    summed = 4 * hidden * (2 * k + 1)
    inside = 3 * width * shape.inner * k / shape.count  # gate, up and SiLU of one expert
    layer = tokens * streams + max(tokens * summed, matrix + tokens * inside)
    beyond = max(0, 4 * batch * shape.vocabulary - layer)
    cache = shape.layers * tokens * 2 * shape.keys * width
    return {"KV cache": cache, "one layer, at work": layer, "logits beyond that": beyond}


def kept_by_layer(shape, tokens: int, width: int, stack: Stack) -> float:
    """What the forward of one layer keeps for its backward, without attention scores."""
    hidden, rows = shape.hidden, shape.top_k * width  # rows: bytes of a number in each row that experts get
    norms = 2 * 4 * hidden  # the inputs of both, in 32 bits
    lora = shape.adapters * (width + 1) * hidden  # inputs after dropout, and a byte of mask
    keys = shape.queries if stack.eager_attention else shape.keys
    attention = width * (2 * shape.queries + 2 * keys)  # queries and output, keys and values
    if shape.norms_queries:
        attention += 4 * (shape.queries + shape.keys)
    # both norms' output; rows that go in, and come out weighted; gate times up
    multiplied = stack.expert_layers * (2 * width * hidden + rows * (2 * hidden + shape.inner))
    return tokens * (norms + lora + attention + multiplied) + kept_by_experts(shape, tokens, width)


def kept_by_experts(shape, tokens: int, width: int) -> float:
    """For each of the k experts of a token: gate, up, SiLU of the gate, and the row that comes out."""
    return tokens * shape.top_k * width * (3 * shape.inner + shape.hidden)


def passing_through(shape, tokens: int, width: int, stack: Stack, matrix: int) -> float:
    """What is not kept: the gradient that has come in, and the experts' rows and gradients on their way."""
    incoming, k = width * shape.hidden, shape.top_k
    if stack.expert_layers:
        inside = 3 * width * shape.inner * k / shape.count  # gradients of SiLU, up, their product: one expert
        return tokens * incoming + max(matrix, tokens * inside)
    weighted = 4 * k * shape.hidden  # expert rows times router weights, in 32 bits; so is their gradient
    rows = k * incoming  # on their way into the experts
    return tokens * (incoming + rows + weighted) + max(matrix, tokens * weighted)


def logits(shape, tokens: int, width: int, stack: Stack) -> float:
    """The head's logits: all of them in 32 bits, shifted, and their log-softmax; or TRL's tile by tile."""
    if stack.whole_logits:
        return 12 * tokens * shape.vocabulary
    tile = min(tokens, LOGIT_TILE[0]) * min(shape.vocabulary, LOGIT_TILE[1])
    return width * tile + (4 + width) * tokens * shape.hidden


@lru_cache(maxsize=16)
def _shape(config_json: str) -> SimpleNamespace:
    """What of a model decides its memory; takes JSON, since a configuration cannot be hashed."""
    values = json.loads(config_json)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = skeleton(config)
    stacks = [p for name, p in model.named_parameters() if ".experts." in name and p.dim() == 3]
    head, modules = model.get_output_embeddings(), dict(model.named_modules())
    linears = {name: m for name, m in modules.items() if isinstance(m, nn.Linear) and m is not head}
    sizes = [m.in_features * m.out_features for m in linears.values()]
    adapted = [m for name, m in linears.items() if name.rpartition(".")[2] in paper.LORA_TARGETS]
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    keys = head_dim * (getattr(config, "num_key_value_heads", None) or heads)
    inner = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 4 * hidden)
    return SimpleNamespace(
        total=sum(p.numel() for p in model.parameters()),  # parameters: of the model,
        experts=sum(p.numel() for p in stacks),  # of all expert stacks,
        linear=sum(sizes),  # of every other linear layer but the head,
        largest_expert=max((p[0].numel() for p in stacks), default=0),  # of one expert's largest matrix,
        largest_linear=max(sizes),  # of the largest linear layer
        adapted=sum(m.in_features + m.out_features for m in adapted),  # in + out of layers with an adapter
        layers=config.num_hidden_layers,
        hidden=hidden,
        vocabulary=config.vocab_size,
        heads=heads,
        queries=head_dim * heads,  # width
        keys=keys,  # width, which is that of the values too
        adapters=len(adapted) / config.num_hidden_layers,  # linear layers with an adapter, in a layer
        norms_queries=any(name.endswith("q_norm") for name in modules),  # and keys, as OLMoE and Qwen3 do
        inner=inner,  # width inside one expert
        count=len(stacks[0]) if stacks else 1,  # experts in a layer
        top_k=config.num_experts_per_tok if stacks else 1,  # experts a token
    )

"""Predict what a model needs, refuse what cannot fit, and measure what it took. A GiB is 2**30 bytes.

`predict` adds up named terms, one function each, from the shapes of a model that is never allocated. The
budget it returns is a table; its `require` refuses a device that is too small. `profile` records memory over
time. Predicted is what is allocated: nvidia-smi adds PyTorch's reserve and the CUDA context, some 2 GiB.
"""

import html
import json
import threading
import time
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, MixtralConfig, PreTrainedConfig

from aurora_lib.course import GIB, paper
from aurora_lib.model.files import said, skeleton

QUANTIZATIONS = ("nf4", "nf4-linear-only", "bf16")
LOGIT_TILE = (4096, 32_768)  # tokens x vocabulary: TRL's loss never holds more logits than this

# The published sizes of mistralai/Mixtral-8x7B-Instruct-v0.1.
_WIDTHS = dict(vocab_size=32_000, hidden_size=4096, intermediate_size=14_336, max_position_embeddings=32_768)
_COUNTS = dict(num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
_COUNTS |= dict(num_local_experts=8, num_experts_per_tok=2)
MIXTRAL_8X7B = MixtralConfig(**_WIDTHS, **_COUNTS, rope_parameters=dict(rope_type="default", rope_theta=1e6))


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
        """What each GPU needs where FSDP2 splits packed NF4 weights (double quantization) over `processes`.

        Each holds its share, two gathered layers (one in use, one on its way), and all absmax values.
        """
        names, packed = ("experts", "attention"), 0.5 / nf4_bytes()
        parts = {
            name: size * (1 - packed + packed / processes) if name in names else size
            for name, size in self.parts.items()
        }
        parts["two gathered layers"] = 2 / layers * packed * sum(self.parts[name] for name in names)
        return replace(self, title=f"{self.title}; on each of {processes} GPUs", parts=parts)

    def __str__(self) -> str:
        """An aligned table, in GiB, or in MiB for a model that needs less than one GiB."""
        unit, scale = ("GiB", 1) if self.total >= 1 else ("MiB", 1024)
        parts = self.parts | dict(total=self.total)
        rows = [(name, f"{size * scale:.2f} {unit}") for name, size in parts.items()]
        names, sizes = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"{name:<{names}}  {size:>{sizes}}" for name, size in rows]
        return "\n".join([self.title, *lines[:-1], "-" * len(lines[0]), lines[-1]])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def require(self, device: str | torch.device | float) -> "MemoryBudget":
        """The budget itself where it fits `device`, else DoesNotFit is raised, with the table.

        `device`: "cuda", "cuda:1", "cpu" (all RAM of this machine), or a number of GiB.
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
            raise DoesNotFit(said("too_large", budget=self, where=where, available=available))
        return self


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
) -> MemoryBudget:
    """The memory of QLoRA training, or of inference, for a transformers language model.

    `adapter`: how many parameters it has, if it is another than the paper's.
    `quantization`: "nf4"; "nf4-linear-only", what transformers 5 makes of `load_in_4bit` (fused experts stay
    16-bit); or "bf16", nothing quantized. Raises ValueError for another. Fitted to the live tensors of real
    steps under sdpa; eager attention adds batch x heads x length^2 several times over.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"There is no quantization {quantization!r}: choose {', '.join(QUANTIZATIONS)}.")
    shape, tokens, width = _shape(config.to_json_string(use_diff=False)), batch * length, dtype.itemsize
    adapter = adapter or rank * shape.adapted
    parts = weights(shape, quantization, double_quant, width)
    if train:
        kept = kept_by_layer(shape, tokens, width)
        layer = kept + gradients_in_flight(shape, tokens, width) + dequantized(shape, quantization, width)
        logits = 4 * min(tokens, LOGIT_TILE[0]) * min(shape.vocabulary, LOGIT_TILE[1])
        parts["adapters, gradients, Adam"] = 16 * adapter  # fp32: weight, gradient, two moments
        if checkpointing:
            parts["checkpointed layer inputs"] = shape.layers * tokens * shape.hidden * width
            parts["one layer, recomputed"] = layer
        else:
            parts["activations of all layers"] = shape.layers * kept
            parts["one layer, backward"] = layer - kept
        task = f"training, batch {batch} x {length}, rank {rank}"
    else:
        layer = layer_at_work(shape, tokens, width) + dequantized(shape, quantization, width)
        logits = 4 * batch * shape.vocabulary
        parts["KV cache"] = shape.layers * tokens * 2 * shape.keys * width
        parts["one layer, at work"] = layer
        task = f"inference, {batch} x {length} tokens"
    # logits are gone before a layer peaks, so only what exceeds that peak counts
    parts["logits beyond that"] = max(0, logits - layer)
    title = f"{config.model_type}, {shape.total / 1e6:,.1f} M parameters, {quantization}: {task}"
    return MemoryBudget(title, {name: size / GIB for name, size in parts.items()}, adapter)


def nf4_bytes(double_quant: bool = True) -> float:
    """Bytes per NF4 parameter (QLoRA, section 3): 4 bits, and one absmax for each block of 64.

    An absmax is an fp32, 4/64. Double quantization makes it one byte, 1/64, plus an fp32 for every 256.
    """
    return 0.5 + (1 / 64 + 4 / (64 * 256) if double_quant else 4 / 64)


# The terms, in bytes: `tokens` = batch x length, `width` = bytes of a 16- or 32-bit number.


def weights(shape, quantization: str, double_quant: bool, width: int) -> dict[str, float]:
    """Experts; "attention", every linear layer outside them but the head; and the rest, never quantized."""
    nf4 = nf4_bytes(double_quant)
    return {
        "experts": shape.experts * (nf4 if quantization == "nf4" else width),
        "attention": shape.linear * (width if quantization == "bf16" else nf4),
        "rest": (shape.total - shape.experts - shape.linear) * width,
    }


def kept_by_layer(shape, tokens: int, width: int) -> int:
    """What one layer keeps for its backward: norms and residuals, queries and keys, the experts' rows."""
    norms, attention = 12 * shape.hidden, 2 * width * shape.queries_and_keys
    if shape.norms_queries:
        attention += 4 * shape.queries_and_keys
    return tokens * (norms + attention + shape.top_k * width * (shape.hidden + 3 * shape.inner))


def gradients_in_flight(shape, tokens: int, width: int) -> int:
    """Gradients at the peak of a layer's backward: in the sum over the experts, or in the norms."""
    return tokens * shape.hidden * max(3 * shape.top_k * width + 6, 26)


def layer_at_work(shape, tokens: int, width: int) -> float:
    """One layer of inference: rows for k experts a token, and the inner rows of one expert at a time."""
    return tokens * shape.top_k * ((8 + 3 * width) * shape.hidden + 3 * shape.inner * width / shape.count)


def dequantized(shape, quantization: str, width: int) -> int:
    """The largest quantized matrix, unpacked while it multiplies: an expert's, where those are quantized."""
    largest = max(shape.largest_linear, shape.largest_expert * (quantization == "nf4"))
    return 0 if quantization == "bf16" else largest * width


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
        keys=keys,  # width, which is that of the values too
        queries_and_keys=head_dim * heads + keys,
        norms_queries=any(name.endswith("q_norm") for name in modules),  # and keys, as OLMoE and Qwen3 do
        inner=inner,  # width inside one expert
        count=getattr(config, "num_local_experts", 1) if stacks else 1,  # experts in a layer
        top_k=config.num_experts_per_tok if stacks else 1,  # experts a token
    )


class Tensors(TorchDispatchMode):
    """Counts the bytes of the tensors made under it, as CUDA's allocator does: `now` and `peak`.

    `held`: tensors made before, which are not counted. Workspaces that a kernel takes are not seen.
    """

    def __init__(self, held=()):
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class profile:
    """Memory over time: `with memory.profile("cpu") as timeline: ...; timeline.mark("load"); ...`.

    On CUDA allocated and reserved bytes. On a CPU resident memory, Python and its libraries included; with
    `tensors=True` the bytes of the tensors made meanwhile, which is what `predict` predicts. `seconds`,
    `used` and `reserved` (bytes) grow while it runs, `marks` is a list of (seconds, phase).
    """

    def __init__(self, device: str | torch.device, interval: float = 0.02, tensors: bool = False):
        self.cuda = torch.device(device).type == "cuda"
        self.interval, self._tensors = interval, Tensors() if tensors and not self.cuda else None
        self.seconds, self.used, self.reserved, self.marks = [], [], [], []

    def __enter__(self) -> "profile":
        if self.cuda:
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()
        self._begin, self._stop = time.perf_counter(), threading.Event()
        self._sample()
        self._mode = self._tensors or nullcontext()
        self._mode.__enter__()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._mode.__exit__(*exception)
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self._sample()

    def _sample(self) -> None:
        if self.cuda:
            used, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        else:
            used = reserved = self._tensors.now if self._tensors else psutil.Process().memory_info().rss
        self.seconds.append(time.perf_counter() - self._begin)
        self.used.append(used)
        self.reserved.append(reserved)

    def mark(self, phase: str) -> None:
        """A phase begins now."""
        self.marks.append((time.perf_counter() - self._begin, phase))

    @property
    def peak(self) -> float:
        """Highest use in GiB: allocated on CUDA (the allocator's own count), RSS or tensors on a CPU."""
        counted = torch.cuda.max_memory_allocated() if self.cuda else getattr(self._tensors, "peak", 0)
        return max([*self.used, counted]) / GIB

    def plot(self, predicted: MemoryBudget):
        """The timeline with its phases, and the prediction as a line; returns the axes."""
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(8, 3), layout="constrained")
        unit, size = ("GiB", GIB) if self.peak >= 1 else ("MiB", GIB / 1024)
        what = "allocated" if self.cuda else "tensors" if self._tensors else "resident (RSS)"
        ax.plot(self.seconds, [b / size for b in self.used], label=what)
        if self.cuda:
            ax.plot(self.seconds, [b / size for b in self.reserved], label="reserved", alpha=0.5)
        height = predicted.total * GIB / size
        ax.axhline(height, color="black", linestyle="--", label=f"predicted {height:.2f} {unit}")
        for i, (seconds, phase) in enumerate(self.marks):
            ax.axvline(seconds, color="gray", linewidth=0.8)
            # at three heights, since a step is so short that its name would lie on the next
            where = dict(transform=ax.get_xaxis_transform(), rotation=90, fontsize=8)
            ax.text(seconds, 0.02 + 0.22 * (i % 3), f" {phase}", **where)
        title = f"peak {self.peak * GIB / size:.2f} {unit}"
        ax.set(xlabel="seconds", ylabel=unit, ylim=(0, None), title=title)
        ax.legend(loc="upper left", fontsize=8)
        return ax

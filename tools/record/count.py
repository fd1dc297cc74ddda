"""Count what a full-size training step holds, without a GPU: `python -m tools.record.count`.

Every storage is counted on PyTorch's meta device, where a tensor has a size and no data. Two stacks of
software, both at the full size of Mixtral-8x7B:

- `today`: this course's own code on the libraries it pins, with TRL's loss. Four things are replaced, since
  they need data or a GPU: the attention kernel (by one that keeps what FlashAttention keeps), the number of
  rows an expert gets (even), the causal mask (none), autocast (the same casts, by hand).
- `of_2023`: the authors' stack, rebuilt from its sources: LLaMA-Factory of December 2023, transformers 4.36,
  bitsandbytes 0.41, PEFT 0.7. Nobody has run it here.

What is allocated and freed, in its order, is then played through a model of PyTorch's caching allocator: that
gives what is *reserved*, which nvidia-smi shows. Writes `results/counted/mixtral_8x7b.json`; about ten
minutes on one core.
"""

import argparse
import bisect
import gc
import json
import math
import random
import time
import weakref
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from importlib.metadata import version
from unittest import mock

import bitsandbytes.functional as bnb
import torch
import torch.nn.functional as F
from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, DynamicCache
from trl.trainer.utils import add_fused_lm_head

from aurora_lib import training
from aurora_lib.course import results, write_whole
from aurora_lib.course.machine import GIB
from aurora_lib.model import memory, nf4
from aurora_lib.model.expert_lora import on_packed_experts
from aurora_lib.model.files import skeleton
from tools.record.h100 import linear4bit

META = torch.device("meta")
BATCHES, LENGTH = (2, 4, 8, 16), 1024
FILE = results.RECORDED / "counted" / "mixtral_8x7b.json"
TILE_KERNELS = (
    "_forward_tile",
    "_backward_tile",
    "_addmm_fp32",
)  # of TRL's loss; on CUDA they allocate nothing
MIB = 2**20
VARIED = 16  # batches of varied length; what is reserved has settled by then


class Storages(TorchDispatchMode):
    """Bytes of all storages on the meta device: `now`, `peak`, and `events`, (number, size): +made, -freed.

    Sizes are rounded up to 512 bytes, as CUDA's allocator does.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.made = 0
        self.known, self.events = {}, []  # known: storage -> its number and size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.bitsandbytes.gemm_4bit.default:
            # on CUDA many rows are multiplied with the unpacked matrix, which lives within this call
            unpacked = torch.ops.aten.empty.memory_format(list(args[2]), dtype=args[0].dtype, device=META)
            self.count(unpacked)
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device == META:
                self.count(tensor)
        return out

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return
        self.made += 1
        size = -(-storage.nbytes() // 512) * 512
        self.known[storage._cdata] = self.made, size
        self.events.append((self.made, size))
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, storage._cdata)

    def gone(self, key: int) -> None:
        number, size = self.known.pop(key)
        self.events.append((-number, size))
        self.now -= size

    def fresh(self) -> None:
        """Forget the peak so far."""
        gc.collect()
        self.peak = self.now


# Today's stack


class Flash(torch.autograd.Function):
    """What FlashAttention keeps: queries, keys, values, its output, and one fp32 number a query and head."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def flash(module, query, key, value, attention_mask, **settings):
    """FlashAttention in the shape that transformers calls."""
    return Flash.apply(query, key, value).transpose(1, 2), None


def fused_dropout(rows, p=0.5, training=True, inplace=False):
    """Dropout as CUDA does it: the mask that is kept has a byte a number."""
    return torch.native_dropout(rows, p, True)[0] if training else rows


def in_place(*arguments, **settings):
    """A kernel that writes into tensors which exist already."""


class Rows(list):
    """How many rows each expert gets, without data: an even share."""

    @classmethod
    def even(cls, index, minlength):
        share, rest = divmod(index.numel(), minlength)
        return cls(share + (i < rest) for i in range(minlength))

    def tolist(self):
        return self


def quantized(config):
    """The skeleton of a model, with packed weights as `nf4.load_model` makes them, on the meta device."""
    model = skeleton(config, torch.bfloat16)
    for name, stack in nf4.expert_stacks(model).items():
        owner, key = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        packed = nf4.pack(stack.detach(), nf4.config())
        delattr(owner, key)
        owner.register_parameter(key, packed)
        owner.quant_states = getattr(owner, "quant_states", {}) | {key: packed.quant_state}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            packed = nf4.pack(module.weight.detach(), nf4.config())
            owner = model.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], linear4bit((packed, packed.quant_state)))
    model.set_experts_implementation(nf4.NAME)
    return model.requires_grad_(False)


@contextmanager
def on_meta():
    """What is replaced so that today's code runs without data; yields the counter, which is on."""
    linear = F.linear

    def autocast_linear(rows, weight, bias=None):
        return linear(rows.to(torch.bfloat16), weight.to(torch.bfloat16), bias)

    AttentionInterface.register("counted", flash)
    substitutes = {
        "torch.nn.functional.linear": autocast_linear,
        "torch.nn.functional.dropout": fused_dropout,
        "torch.bincount": Rows.even,
        "torch.is_autocast_enabled": lambda *device: False,
        "transformers.models.mixtral.modeling_mixtral.create_causal_mask": lambda **given: None,
        **{f"trl.kernels.chunked_logprob.{name}": in_place for name in TILE_KERNELS},
    }
    with Storages() as seen, ExitStack() as replaced:
        for name, substitute in substitutes.items():
            replaced.enter_context(mock.patch(name, substitute))
        levels = {"dynamic": torch.empty(256, device=META)}
        replaced.enter_context(mock.patch.dict(bnb.name2qmap, levels))
        yield seen


def loaded(seen: Storages, config):
    """The quantized model, in the way that the counter wants it."""
    config = deepcopy(config)
    config._attn_implementation = "counted"
    model = quantized(config)
    gc.collect()
    seen.weights = seen.now
    # what lay there while it was made was never on a GPU, where a model is loaded stack by stack
    seen.events = list(seen.known.values())
    return model


def today(
    batch: int, length: int = LENGTH, config=memory.MIXTRAL_8X7B, checkpointing=True, **changes
) -> Storages:
    """A training step of this course: SFTTrainer's loss, the paper's adapter in fp32, bf16, checkpointing.

    `changes` are of the adapter.
    """
    with on_meta() as seen:
        model = loaded(seen, config)
        if checkpointing:
            model.activation_checkpointing_enable(dict(use_reentrant=False))
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as TRL's SFTTrainer
        tuned = get_peft_model(model, on_packed_experts(training.lora_config(**changes))).train()
        training.adapters_in_fp32(tuned)
        learned = [p for p in tuned.parameters() if p.requires_grad]
        adam = [torch.empty_like(p) for p in learned for _ in range(2)]
        for parameter in learned:
            parameter.grad = torch.empty_like(parameter)
        for _ in range(2):
            seen.fresh()
            ids = torch.empty(batch, length, dtype=torch.long, device=META)
            with disable_input_dtype_casting(tuned):  # as PEFT does under autocast
                loss = tuned(ids, labels=ids, fused_lm_head=True).loss
                seen.events.append((0, 0))  # backward begins
                torch.autograd.backward(loss)
            del loss
        seen.ends = len(seen.events)
        del adam
    return seen


@torch.no_grad()
def prompt_today(batch: int, length: int, config=memory.MIXTRAL_8X7B) -> Storages:
    """Reading a prompt, for inference: keys and values are kept, logits only of the last token."""
    with on_meta() as seen:
        model = loaded(seen, config).eval()
        seen.fresh()
        ids = torch.empty(batch, length, dtype=torch.long, device=META)
        cache = DynamicCache(config=model.config)
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return seen


# The stack of 2023, rebuilt

HALF, RANK, SCALE, DROPOUT = torch.float16, 8, 2.0, 0.1


def empty(*shape, dtype=HALF) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


class MatMul4Bit(torch.autograd.Function):
    """bitsandbytes 0.41: the matrix is unpacked at every call, and the rows are kept for the backward."""

    @staticmethod
    def forward(ctx, rows, layer):
        ctx.layer = layer
        ctx.rows = rows if ctx.needs_input_grad[0] else None
        return F.linear(rows, layer.unpacked())

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.layer.unpacked(), None


class Linear4bit(nn.Module):
    """A packed matrix `[out, in]`, with 8-bit absmax values (double quantization) or 32-bit ones."""

    def __init__(self, width: int, out: int, double_quant: bool):
        super().__init__()
        self.shape, numbers = (out, width), out * width
        self.packed = empty(numbers // 2, dtype=torch.uint8)
        self.absmax = empty(numbers // 64, dtype=torch.uint8 if double_quant else torch.float32)
        self.nested = empty(-(-numbers // 16384), dtype=torch.float32) if double_quant else None

    def unpacked(self) -> torch.Tensor:
        absmax = empty(self.absmax.shape, dtype=torch.float32) if self.nested is not None else None
        matrix = empty(self.shape)
        del absmax
        return matrix

    def forward(self, rows):
        return MatMul4Bit.apply(rows, self)


class LoraLinear(nn.Module):
    """PEFT 0.7 around a 4-bit layer under autocast: A and B in fp32, cast to fp16 at every call."""

    def __init__(self, width: int, out: int, double_quant: bool):
        super().__init__()
        self.base = Linear4bit(width, out, double_quant)
        self.A = nn.Parameter(empty(RANK, width, dtype=torch.float32))
        self.B = nn.Parameter(empty(out, RANK, dtype=torch.float32))

    def forward(self, rows):
        result = self.base(rows).clone()
        dropped = fused_dropout(rows, DROPOUT)
        return result + F.linear(F.linear(dropped, self.A.to(HALF)), self.B.to(HALF)) * SCALE


class Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = empty(width)

    def forward(self, hidden):
        exact = hidden.to(torch.float32)
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-5)
        return self.weight * exact.to(HALF)


class Attention(nn.Module):
    def __init__(self, c, eager: bool, double_quant: bool):
        super().__init__()
        self.heads, self.groups, self.eager = c.num_attention_heads, c.num_key_value_heads, eager
        self.width = c.hidden_size // self.heads
        shapes = [(c.hidden_size, c.hidden_size), (c.hidden_size, self.groups * self.width)]
        self.q, self.v = (LoraLinear(*shape, double_quant) for shape in shapes)
        self.k, self.o = (Linear4bit(*shape, double_quant) for shape in reversed(shapes))

    def forward(self, hidden, mask, cosine, sine):
        batch, length, _ = hidden.shape

        def heads(rows):
            return rows.view(batch, length, -1, self.width).transpose(1, 2)

        def rotated(x):
            first, second = x.chunk(2, -1)
            return x * cosine + torch.cat((-second, first), -1) * sine

        def repeated(x):
            share = self.heads // self.groups
            return x[:, :, None].expand(-1, -1, share, -1, -1).reshape(batch, self.heads, length, self.width)

        query, key, value = (heads(layer(hidden)) for layer in (self.q, self.k, self.v))
        query, key = rotated(query), rotated(key)
        key, value = repeated(key), repeated(value)
        if self.eager:
            scores = query @ key.transpose(2, 3) / math.sqrt(self.width) + mask
            # CUDA's own path from 16 to 32 bits: `F.softmax` would first copy all scores on this device
            out = torch.ops.aten._softmax(scores, -1, True).to(HALF) @ value
        else:
            out = Flash.apply(query, key, value)
        return self.o(out.transpose(1, 2).contiguous().view(batch, length, -1))


class Expert(nn.Module):
    """Three layers of its own."""

    def __init__(self, c, double_quant: bool):
        super().__init__()
        hidden, inner = c.hidden_size, c.intermediate_size
        shapes = [(hidden, inner), (hidden, inner), (inner, hidden)]
        self.w1, self.w3, self.w2 = (Linear4bit(*shape, double_quant) for shape in shapes)

    def forward(self, rows, weight):
        return weight * self.w2(F.silu(self.w1(rows)) * self.w3(rows))


class Layer(nn.Module):
    def __init__(self, c, eager: bool, double_quant: bool):
        super().__init__()
        self.before, self.after = Norm(c.hidden_size), Norm(c.hidden_size)
        self.attention, self.top_k = Attention(c, eager, double_quant), c.num_experts_per_tok
        self.gate = Linear4bit(c.hidden_size, c.num_local_experts, double_quant)
        self.experts = nn.ModuleList(Expert(c, double_quant) for _ in range(c.num_local_experts))

    def forward(self, hidden, mask, cosine, sine):
        hidden = hidden + self.attention(self.before(hidden), mask, cosine, sine)
        rows = self.after(hidden).flatten(0, 1)
        weights = F.softmax(self.gate(rows), dim=1, dtype=torch.float32).topk(self.top_k, dim=-1).values
        weights = (weights / weights.sum(-1, keepdim=True)).to(HALF)
        out = torch.zeros_like(rows)
        share = len(rows) * self.top_k // len(self.experts)
        for expert in self.experts:
            index, slot = (empty(share, dtype=torch.long) for _ in range(2))
            out.index_add_(0, index, expert(rows[index], weights[index, slot, None]))
        return hidden + out.view_as(hidden)


def of_2023(
    batch: int, lengths=(LENGTH,), c=memory.MIXTRAL_8X7B, *, eager=True, checkpointing=True, double_quant=True
) -> Storages:
    """Training steps of the authors' stack, one for each of `lengths` tokens."""
    seen = Storages()
    with seen:
        embedding, head = (empty(c.vocab_size, c.hidden_size) for _ in range(2))
        layers = nn.ModuleList(Layer(c, eager, double_quant) for _ in range(c.num_hidden_layers))
        norm, learned = Norm(c.hidden_size), list(layers.parameters())
        gc.collect()
        seen.weights = seen.now
        adam = [torch.empty_like(p) for p in learned for _ in range(2)]
        for parameter in learned:
            parameter.grad = torch.empty_like(parameter)
        width = c.hidden_size // c.num_attention_heads
        seen.fresh()
        for length in lengths:
            gc.collect()
            hidden = F.embedding(empty(batch, length, dtype=torch.long), embedding).requires_grad_()
            shared = empty(batch, 1, length, length), empty(length, width), empty(length, width)
            for layer in layers:
                if checkpointing:
                    how = dict(use_reentrant=True, preserve_rng_state=False)
                    hidden = checkpoint(layer, hidden, *shared, **how)
                else:
                    hidden = layer(hidden, *shared)
            logits = F.linear(norm(hidden), head).to(torch.float32)
            shifted = logits[:, :-1].contiguous().flatten(0, 1)
            loss = F.cross_entropy(shifted, empty(len(shifted), dtype=torch.long))
            del hidden, logits, shifted
            seen.events.append((0, 0))
            torch.autograd.backward(loss)
            del loss
        seen.ends = len(seen.events)
        del adam
    return seen


# What the allocator reserves


class Allocator:
    """PyTorch's caching allocator at its defaults (c10/cuda/CUDACachingAllocator.cpp), as far as sizes go.

    Small requests (up to 1 MiB) share segments of 2 MiB, larger ones segments of 20 MiB or of their own size.
    The smallest free block that fits is taken and split; neighbours that are free are merged; a segment is
    never given back.
    """

    def __init__(self):
        self.reserved = self.segments = 0
        self.free = {True: [], False: []}  # small or not -> sorted (size, segment, start)
        self.blocks, self.taken = (
            {},
            {},
        )  # (segment, start) -> end, free ones; number -> (segment, start, end)
        self.starts = {}  # (segment, end) -> start, of free blocks

    def play(self, events) -> int:
        """Bytes reserved after (number, size) events: + is made, - is freed."""
        for number, size in events:
            if number > 0:
                self.take(number, size)
            elif number < 0:
                self.give(-number)
        return self.reserved

    def take(self, number: int, size: int) -> None:
        if not size:
            return
        small = size <= 2**20
        pool = self.free[small]
        place = bisect.bisect_left(pool, (size,))
        if place < len(pool):
            length, segment, start = pool[place]
            self.remove(small, segment, start, start + length)
        else:
            length = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
            self.segments, self.reserved = self.segments + 1, self.reserved + length
            segment, start = self.segments, 0
        if length - size >= 512 if small else length - size > MIB:
            self.add(small, segment, start + size, start + length)
            length = size
        self.taken[number] = small, segment, start, start + length

    def give(self, number: int) -> None:
        if number not in self.taken:
            return
        small, segment, start, end = self.taken.pop(number)
        if (segment, end) in self.blocks:
            after = self.blocks[segment, end]
            self.remove(small, segment, end, after)
            end = after
        if (segment, start) in self.starts:
            before = self.starts[segment, start]
            self.remove(small, segment, before, start)
            start = before
        self.add(small, segment, start, end)

    def add(self, small: bool, segment: int, start: int, end: int) -> None:
        bisect.insort(self.free[small], (end - start, segment, start))
        self.blocks[segment, start], self.starts[segment, end] = end, start

    def remove(self, small: bool, segment: int, start: int, end: int) -> None:
        pool = self.free[small]
        pool.pop(bisect.bisect_left(pool, (end - start, segment, start)))
        del self.blocks[segment, start], self.starts[segment, end]


def varied_lengths(batch: int) -> list[int]:
    """The longest of `batch` conversations, batch after batch. Assumed: half of them have over 220 tokens."""
    draw = random.Random(0)
    drawn = ([draw.lognormvariate(math.log(220), 0.95) for _ in range(batch)] for _ in range(VARIED))
    return [min(LENGTH, max(16, -(-int(max(lengths)) // 8) * 8)) for lengths in drawn]


def timeline(seen: Storages) -> dict[str, list[float]]:
    """GiB alive over the last step's allocations, the highest of every few, and where backward begins."""
    begins = [place for place, (number, _) in enumerate(seen.events) if number == 0]
    before = begins[-2] if len(begins) > 1 else 0
    alive, now = [], 0
    for number, size in seen.events[: seen.ends]:
        now += size if number > 0 else -size
        alive.append(now)
    # the step before ends where memory is lowest between the two backwards
    start = before + min(range(begins[-1] - before), key=lambda place: alive[before + place])
    step, every = alive[start:], max(1, (len(alive) - start) // 500)
    highest = [round(max(step[i : i + every]) / GIB, 3) for i in range(0, len(step), every)]
    return {"alive": highest, "backward": round((begins[-1] - start) / every)}


def main() -> None:
    """The command line; see `--help`."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    values, series, began = {}, {}, time.time()

    def note(label: str, seen: Storages, reserved: bool = True) -> None:
        values[f"{label}, allocated [GiB]"] = round(seen.peak / GIB, 3)
        if reserved:
            values[f"{label}, reserved [GiB]"] = round(Allocator().play(seen.events) / GIB, 3)
        print(f"{time.time() - began:5.0f} s  {label}: {seen.peak / GIB:.2f} GiB", flush=True)

    for batch in BATCHES:
        seen = today(batch)
        note(f"training: batch {batch}", seen)
        if batch == 2:
            series["training: batch 2"] = timeline(seen)
            values["training: weights [GiB]"] = round(seen.weights / GIB, 3)
    for batch in BATCHES:
        seen = of_2023(batch, (LENGTH, LENGTH))
        note(f"training, the stack of 2023: batch {batch}", seen)
        series[f"training, the stack of 2023: batch {batch}"] = timeline(seen)
        lengths = varied_lengths(batch)
        note(f"training, the stack of 2023: batch {batch}, varied lengths", of_2023(batch, lengths))
    for what, changes in {
        "FlashAttention": dict(eager=False),
        "32-bit absmax": dict(double_quant=False),
        "no checkpointing": dict(checkpointing=False),
    }.items():
        for batch in (2, 16):
            seen = of_2023(batch, (LENGTH, LENGTH), **changes)
            note(f"training, the stack of 2023: batch {batch}, {what}", seen, what != "no checkpointing")
    note("inference: batch 1", prompt_today(1, 2048))
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "trl")}
    record = dict(model="mixtral_8x7b", date=time.strftime("%Y-%m-%d"), length=LENGTH, versions=versions)
    write_whole(FILE, json.dumps(record | dict(values=values, series=series), indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Record what full-size Mixtral-8x7B in 4 bits takes and does on one GPU: `python -m tools.record.h100`.

Needs no network and no weights: the model is randomly initialised as NF4 on the GPU, so that memory and speed
are true and nothing else is. Takes at most nine minutes on an H100 and writes
`results/h100/mixtral_8x7b.json`, again after every part, each of which has a process and a time limit of its
own. Without a GPU the same code runs at `tiny`, into `runs/`. `RECORD_LAYERS=2` rehearses: as many layers at
full width, in two processes.

Training is a plain loop (the paper's LoRA, fp32 AdamW, checkpointing, a chunked loss as in TRL), in which
every step has the same shape; one part goes through `training.build_trainer`, as the course does.
"""

import argparse
import dataclasses
import gc
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also where the course is not installed

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_4bit
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, MixtralConfig, PreTrainedConfig, TrainerCallback

from aurora_lib import training
from aurora_lib.chat.decoding import FixedCache
from aurora_lib.course import machine, paper, results, write_whole
from aurora_lib.course.machine import GIB, peak_rss
from aurora_lib.course.scale import DATA, FULL, ROOT, TINY, Scale
from aurora_lib.model import load_tokenizer, memory, nf4, random_model, resolve_targets

BEGAN = time.perf_counter()
SEED = 0
LABEL = "randomly initialised weights: true for memory and speed, says nothing about quality"
BUDGET = 525  # seconds until the last part is stopped: with imports, the whole takes at most nine minutes
ALLOCATOR = "expandable_segments:True"


@dataclass(frozen=True)
class Preset:
    """What differs between the two scales; lengths in tokens."""

    name: str
    config: PreTrainedConfig
    device: str
    dtype: torch.dtype
    context: int  # of inference
    new_tokens: int  # decoded and timed
    length: int  # of training
    largest_batch: int  # where the search for the best batch ends
    matmul: int  # side of the square matrices that measure the ceiling
    compile: dict  # arguments of torch.compile
    groups: tuple[tuple[str, ...], ...]  # parts that share a process
    best: int  # batch that trained fastest, once a part has found it


def preset(scale: str) -> Preset:
    """The sizes of `scale`: "full" is Mixtral-8x7B on CUDA, "tiny" the course's tiny model on the CPU."""
    if scale == "full":
        each, fast = tuple((part,) for part in PARTS), dict(mode="reduce-overhead")
        sizes = (2048, 64, 1024, 32, 8192, fast, each, 32)
        whole = Preset("mixtral_8x7b", memory.MIXTRAL_8X7B, "cuda", torch.bfloat16, *sizes)
        if not os.environ.get("RECORD_LAYERS"):
            return whole
        # a rehearsal: every kernel at its full width; the newest way apart, as it might end a process
        values = memory.MIXTRAL_8X7B.to_dict() | dict(num_hidden_layers=int(os.environ["RECORD_LAYERS"]))
        newest = ("inference, torch.compile",)
        groups = (tuple(part for part in PARTS if part not in newest), newest)
        few = dict(new_tokens=8, largest_batch=4, groups=groups, best=4)
        return dataclasses.replace(whole, name="rehearsal", config=MixtralConfig(**values), **few)
    config = MixtralConfig.from_pretrained(DATA / "tiny")
    # in fp32, because CPUs are slower in bf16; in one process, because imports would take most of the time
    once = (tuple(PARTS),)
    return Preset("tiny", config, "cpu", torch.float32, 64, 4, 64, 4, 512, dict(backend="eager"), once, 4)


class Recorder:
    """Writes every figure of a part to a file the moment it is known, so that a killed part loses nothing."""

    def __init__(self, file: Path, part: str):
        self.file, self.part = file, part

    def __call__(self, **line) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def value(self, label: str, value: float) -> None:
        """`label` ends in its unit in brackets."""
        self(values={f"{self.part}: {label}": round(value, 4)})

    def attempt(self, label: str, function, *arguments):
        """The result of an optional figure; a failure is recorded as its text, and None returned."""
        try:
            return function(*arguments)
        except Exception as error:
            self(errors={f"{self.part}: {label}": f"{type(error).__name__}: {str(error)[:500]}"})
            traceback.print_exc()
            return None

    def memory(self, label: str) -> dict[str, float]:
        """Memory at its highest since `fresh`: allocated, reserved and nvidia-smi on CUDA, RSS on the CPU."""
        found = dict(resident=peak_rss())
        if torch.cuda.is_available():
            peaks = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
            found = dict(allocated=peaks[0], reserved=peaks[1]) | {"nvidia-smi": nvidia_smi()}
        for name, value in found.items():
            self.value(f"{label}, {name} [GiB]", value)
        return found


def nvidia_smi() -> float:
    """GiB in use on the GPU now, by nvidia-smi, or by the driver where it cannot be asked: the same count."""
    try:
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        ask = ["nvidia-smi", "-i", uuid, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return float(subprocess.run(ask, capture_output=True, text=True, check=True).stdout) / 1024
    except (OSError, ValueError, subprocess.CalledProcessError):
        free, total = torch.cuda.mem_get_info()
        return (total - free) / GIB


def in_use_before() -> float | None:
    """GiB in use before any part, and so in every later figure: other programs', or this process's own."""
    ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        subprocess.run(ask[:1])
        return float(subprocess.check_output(ask, text=True).split()[0]) / 1024
    except (OSError, ValueError, IndexError, subprocess.CalledProcessError):
        return None


def fresh() -> None:
    """Forget what was measured and cached before."""
    gc.collect()  # a failed attempt leaves its tensors in cycles of frames
    torch.cuda.empty_cache()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def seconds(function, times: int = 1) -> float:
    """How long `times` calls take, with the device idle before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@contextmanager
def way(*, grouped: bool):
    """How `nf4` runs many rows of its experts: as one product of the whole stack, or expert by expert."""
    with patch.object(nf4, "GROUPED", math.inf if grouped else 0):
        yield


@torch.no_grad()
def difference(call, usual, other) -> float:
    """Mean difference of what `call` returns within two contexts, in percent of its mean in `usual`."""
    with usual:
        first = call().float()
    with other:
        second = call().float()
    return 100 * float((second - first).abs().mean() / first.abs().mean())


def logits(chosen: Preset, model) -> Callable:
    """A call that gives the model's logits for the same random tokens, each time."""
    ids = torch.randint(chosen.config.vocab_size, (2, chosen.length), device=chosen.device)
    return lambda: model(ids, use_cache=False).logits


# Inference


def prompt(chosen: Preset, batch: int) -> torch.Tensor:
    return torch.randint(chosen.config.vocab_size, (batch, chosen.context), device=chosen.device)


def decode_eager(chosen: Preset, model, batch: int) -> tuple[float, float]:
    """Tokens per second of prefill and of decoding as in `generate`: one call a token, a growing cache."""
    ids = prompt(chosen, batch)

    def forward(ids):
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    def prefill():
        nonlocal cache, token
        cache = DynamicCache(config=model.config)
        token = forward(ids)

    def step():
        nonlocal token
        token = forward(token)

    cache = token = None
    prefill()
    filling = seconds(prefill)
    step()
    return ids.numel() / filling, batch * chosen.new_tokens / seconds(step, chosen.new_tokens)


def fixed_cache(chosen: Preset, model, batch: int) -> FixedCache:
    """A cache that holds `batch` prompts, with the token that follows each in `token`, and room to decode."""
    cache = FixedCache(model, chosen.context + 4 * chosen.new_tokens + 16, batch)
    cache.token.copy_(cache.forward(prompt(chosen, batch)).argmax(-1, keepdim=True))
    return cache


def decode_graph(chosen: Preset, model, batch: int) -> float:
    """Decoded tokens per second with a fixed cache, replayed as a CUDA graph (without CUDA: just called)."""
    cache = fixed_cache(chosen, model, batch)
    if chosen.device == "cuda":
        cache.capture()

    def step():
        cache.token.copy_(cache.forward(cache.token).argmax(-1, keepdim=True))

    step()
    return batch * chosen.new_tokens / seconds(step, chosen.new_tokens)


def decode_compiled(chosen: Preset, model, batch: int) -> float:
    """Decoded tokens per second with a fixed cache under `torch.compile`."""
    cache = fixed_cache(chosen, model, batch)
    compiled_step = torch.compile(cache.step, **chosen.compile)

    def step():
        cache.token.copy_(compiled_step().argmax(-1, keepdim=True))

    for _ in range(3):
        step()
    return batch * chosen.new_tokens / seconds(step, chosen.new_tokens)


@torch.no_grad()
def inference(chosen: Preset, note: Recorder) -> None:
    """Load, prefill and decode at the context of the preset, with bitsandbytes' kernels only."""
    fresh()
    began = time.perf_counter()
    model = build(chosen).eval()
    note.value("building the model [s]", time.perf_counter() - began)
    if torch.cuda.is_available():
        note.value("load peak, allocated [GiB]", torch.cuda.max_memory_allocated() / GIB)
        note.value("load peak, reserved [GiB]", torch.cuda.max_memory_reserved() / GIB)
        note.value("loaded, allocated [GiB]", torch.cuda.memory_allocated() / GIB)
        note.value("loaded, reserved [GiB]", torch.cuda.memory_reserved() / GIB)
    note.value("weights, predicted [GiB]", memory.predict(chosen.config).weights)
    for batch in (1, 8):
        fresh()
        speed = note.attempt(f"batch {batch}, eager", decode_eager, chosen, model, batch)
        if speed:
            note.value(f"batch {batch}, prefill [tokens/s]", speed[0])
            note.value(f"batch {batch}, decode, eager [tokens/s]", speed[1])
        note.memory(f"batch {batch}")
    graph(chosen, note, model, 1)


def graph(chosen: Preset, note: Recorder, model, batch: int) -> None:
    fresh()
    speed = note.attempt(f"batch {batch}, CUDA graph", decode_graph, chosen, model, batch)
    if speed:
        note.value(f"batch {batch}, decode, static cache and CUDA graph [tokens/s]", speed)
    note.memory(f"batch {batch}, CUDA graph")


@torch.no_grad()
def compiled(chosen: Preset, note: Recorder) -> None:
    """Decoding under `torch.compile`, apart because compiling 32 layers takes long."""
    model = build(chosen).eval()
    speed = note.attempt("batch 1", decode_compiled, chosen, model, 1)
    if speed:
        note.value("batch 1, decode [tokens/s]", speed)


# Training


def build(chosen: Preset):
    return random_model(chosen.config, device=chosen.device, dtype=chosen.dtype, seed=SEED)


def learner(model, reentrant: bool = False, config: LoraConfig | None = None):
    """The model with an adapter (the paper's) in fp32 and checkpointing, and its optimizer."""
    model.activation_checkpointing_enable(dict(use_reentrant=reentrant))
    tuned = get_peft_model(model, config or training.lora_config()).train()
    training.adapters_in_fp32(tuned)
    return tuned, torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=5e-5)


def loss_of(tuned, ids: torch.Tensor) -> torch.Tensor:
    """Next-token loss with logits for LOGIT_TILE tokens at a time, recomputed in the backward, as in TRL."""
    causal = tuned.base_model.model
    hidden = causal.model(ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    targets = ids[:, 1:].flatten()

    def tile(rows, wanted):
        return cross_entropy(causal.lm_head(rows).float(), wanted, reduction="sum")

    tiles = zip(hidden.split(memory.LOGIT_TILE[0]), targets.split(memory.LOGIT_TILE[0]), strict=True)
    return sum(checkpoint(tile, *each, use_reentrant=False) for each in tiles) / len(targets)


def optimizer_step(chosen: Preset, tuned, optimizer, batch: int, accumulation: int) -> None:
    for _ in range(accumulation):
        ids = torch.randint(chosen.config.vocab_size, (batch, chosen.length), device=chosen.device)
        with torch.autocast(chosen.device, dtype=chosen.dtype, enabled=chosen.device == "cuda"):
            loss = loss_of(tuned, ids)
        (loss / accumulation).backward()
    optimizer.step()
    optimizer.zero_grad()


def train(chosen: Preset, note: Recorder, learned, batch: int, accumulation: int = 1):
    """Tokens per second and memory of optimizer steps of this shape."""

    def step():
        optimizer_step(chosen, *learned, batch, accumulation)

    label = f"batch {batch}, accumulation {accumulation}" if accumulation > 1 else f"batch {batch}"
    return measured(note, label, step, batch * accumulation * chosen.length)


def measured(note: Recorder, label: str, step, tokens: int) -> tuple[float, dict[str, float]]:
    """Tokens per second of `step` after one to warm up, and memory; both are recorded."""
    fresh()
    step()
    speed = tokens / seconds(step)
    note.value(f"{label} [tokens/s]", speed)
    return speed, note.memory(label)


def matmul_ceiling(chosen: Preset) -> float:
    """TFLOP/s of one large matrix product: what this device can do at best."""
    n = chosen.matmul
    a, b = (torch.randn(n, n, device=chosen.device, dtype=chosen.dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * n**3 * 10 / seconds(lambda: a @ b, 10) / 1e12


def flops_per_token(model) -> float:
    """Of a training step with recompute: twice forward, and the gradient of the input; 2 a weight each."""
    experts = sum(s.shape.numel() for m in model.modules() for s in getattr(m, "quant_states", {}).values())
    linear = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear))
    return 6 * (linear + experts * model.config.num_experts_per_tok / model.config.num_local_experts)


def qlora(chosen: Preset, note: Recorder) -> None:
    """Training at the paper's batch, 2 sequences and 4 accumulated; then doubled batches while they fit."""
    ceiling = matmul_ceiling(chosen)
    note.value(f"ceiling, {str(chosen.dtype).removeprefix('torch.')} [TFLOP/s]", ceiling)
    model = build(chosen)
    flops = flops_per_token(model)
    note.value("predicted at batch 2 [GiB]", memory.predict(chosen.config, length=chosen.length).total)
    learned = learner(model)
    speed, taken = train(chosen, note, learned, 2, 4)
    note.value("batch 2, accumulation 4, share of the ceiling [%]", 100 * speed * flops / 1e12 / ceiling)
    batch, best = 2, (speed, 2, taken)
    while 2 * batch <= chosen.largest_batch:
        batch *= 2
        found = note.attempt(f"batch {batch}", train, chosen, note, learned, batch)
        if found is None:
            break
        best = max(best, (found[0], batch, found[1]), key=lambda entry: entry[0])
    speed, batch, taken = best
    note.value("best batch [sequences]", batch)
    note.value("best batch [tokens/s]", speed)
    note.value("best batch, share of the ceiling [%]", 100 * speed * flops / 1e12 / ceiling)
    for name, value in taken.items():
        note.value(f"best batch, {name} [GiB]", value)


def sft_trainer(chosen: Preset, note: Recorder) -> None:
    """The paper's batch through `training.build_trainer`, as notebook 04 does it, and its memory over time.

    Every conversation is longer than the cutoff, so that every batch has the shape of the plain loop's.
    """
    fresh()
    with tempfile.TemporaryDirectory() as folder, machine.profile(chosen.device, interval=0.05) as watch:
        watch.mark("load")
        model = build(chosen)
        watch.mark("trainer")
        fresh()  # what loading took is no part of training
        tokenizer = load_tokenizer(None if chosen.device == "cuda" else DATA / "tiny")
        text = (ROOT / "data" / "probes.jsonl").read_text(encoding="utf-8")[: 8 * chosen.length]
        talk = [dict(role="user", content="你好"), dict(role="assistant", content=text)]
        shared = dict(device=chosen.device, dtype=chosen.dtype, reason="", runs=Path(folder), adapter=None)
        preset = FULL if chosen.device == "cuda" else TINY
        # packs would say nothing of the published batch
        shared |= dict(data=None, benchmarks=None) | preset | dict(length=chosen.length, minutes=0)
        scale, rows = Scale(chosen.name, **shared), Dataset.from_dict(dict(messages=[talk] * 24))
        args = training.sft_config(scale, max_steps=3, logging_steps=1, save_strategy="no")
        trainer = training.build_trainer(model, tokenizer, rows, args)
        trainer.add_callback(Marks(watch))
        trainer.train()
    speed = next(entry for entry in trainer.state.log_history[::-1] if "tokens_per_second" in entry)
    note.value("batch 2, accumulation 4 [tokens/s]", speed["tokens_per_second"])
    note.memory("batch 2, accumulation 4")
    gib = [[round(b / GIB, 3) for b in series] for series in (watch.used, watch.reserved)]
    times = [round(s, 2) for s in watch.seconds]
    note(series={note.part: dict(seconds=times, used=gib[0], reserved=gib[1], marks=watch.marks)})


class Marks(TrainerCallback):
    """Marks the trainer's steps, and the batches within one, in a memory profile."""

    def __init__(self, watch):
        for name in ("step_begin", "substep_end", "step_end"):
            phase = name.replace("_", " ")
            setattr(self, f"on_{name}", lambda *args, phase=phase, **kwargs: watch.mark(phase))


def grouped_product(chosen: Preset, note: Recorder) -> None:
    """Each layer's stacks unpacked whole and multiplied in one grouped product, which waits for nothing."""
    learned = learner(build(chosen))
    call = logits(chosen, learned[0].eval())
    note.value("difference to bitsandbytes [%]", difference(call, way(grouped=False), way(grouped=True)))
    learned[0].train()
    with way(grouped=True):
        train(chosen, note, learned, 2, 4)
        note.attempt(f"batch {chosen.best}", train, chosen, note, learned, chosen.best)


def lora_on_experts(chosen: Preset, note: Recorder) -> None:
    """The paper's targets and every expert; without dropout, since PEFT has none for parameters."""
    asked = training.lora_config(target_modules=[*paper.LORA_TARGETS, "w1", "w2", "w3"], lora_dropout=0.0)
    config, number, on_experts = resolve_targets(chosen.config, asked)
    note.value("trainable parameters [millions]", number / 1e6)
    how = dict(length=chosen.length, adapter=number, on_experts=on_experts)
    note.value("predicted at batch 2 [GiB]", memory.predict(chosen.config, **how).total)
    learned = learner(build(chosen), config=config)
    for name, weight in learned[0].named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(weight, std=0.01)  # a fresh adapter adds 0
    compare_ways(chosen, note, learned[0].eval())
    learned[0].train()
    train(chosen, note, learned, 2, 4)
    note.attempt("batch 8", train, chosen, note, learned, 8)


@torch.no_grad()
def compare_ways(chosen: Preset, note: Recorder, tuned) -> None:
    """How far the two ways to run experts lie apart, and beside it what the adapter does.

    One block tells. Through all layers random weights amplify any rounding, as the changed adapter shows.
    """
    bitsandbytes, grouped = partial(way, grouped=False), partial(way, grouped=True)
    size = 2, chosen.length, chosen.config.hidden_size
    rows = torch.randn(size, device=chosen.device, dtype=chosen.dtype)
    block, model = partial(tuned.get_base_model().model.layers[0].mlp, rows), logits(chosen, tuned)
    label = "difference of grouped to bitsandbytes [%]"
    note.value(f"one block: {label}", difference(block, bitsandbytes(), grouped()))
    with bitsandbytes():
        on_off = difference(block, tuned.disable_adapter(), nullcontext())
        note.value("one block: difference of adapter on to off [%]", on_off)
    note.value(f"all layers: {label}", difference(model, bitsandbytes(), grouped()))
    with bitsandbytes():
        changed = difference(model, nullcontext(), nudged(tuned))
        note.value("all layers: difference of an adapter changed by 2e-7 [%]", changed)


@contextmanager
def nudged(tuned):
    """Every B of the adapter times 1 + 2e-7 x noise: the last digit of fp32. It stays so."""
    for name, weight in tuned.named_parameters():
        if ".lora_B." in name:
            weight *= 1 + 2e-7 * torch.randn_like(weight)
    yield


def expandable(chosen: Preset, note: Recorder) -> None:
    """The paper's batch again, with the allocator that the parent chose in the environment."""
    train(chosen, note, learner(build(chosen)), 2, 4)


# The paper's stack


class ExpertLoop(nn.Module):
    """A layer's experts as the paper's stack had them: three Linear4bit modules each, in a Python loop."""

    lists = False  # whether rows are chosen by lists on the CPU, as transformers 4.36 did

    def __init__(self, experts):
        super().__init__()
        self.act_fn = experts.act_fn
        weights = {}
        for key, halves in (("gate_up_proj", 2), ("down_proj", 1)):
            packed, state = getattr(experts, key).data, experts.quant_states[key]
            count, rows, width = state.shape
            state.shape = torch.Size([count * halves, rows // halves, width])  # gate and up apart
            weights[key] = [nf4.select((packed, state), i) for i in range(count * halves)]
        gate_up, down = (map(linear4bit, stack) for stack in weights.values())
        self.experts = nn.ModuleList(
            nn.ModuleList([next(gate_up), next(gate_up), next(down)]) for _ in range(experts.num_experts)
        )

    def forward(self, hidden, index, weights):
        out, weights = torch.zeros_like(hidden), weights.to(hidden.dtype)
        chosen = torch.nn.functional.one_hot(index, len(self.experts)).permute(2, 1, 0)
        for (gate, up, down), mask in zip(self.experts, chosen, strict=True):
            slot, row = torch.where(mask)
            if not len(row):
                continue
            place = (row.tolist(), slot.tolist()) if self.lists else (row, slot)
            rows, share = hidden[place[0]], weights[place][:, None]
            out.index_add_(0, row, share * down(self.act_fn(gate(rows)) * up(rows)))
        return out


def linear4bit(packed) -> bnb.nn.Linear4bit:
    """A bitsandbytes layer around bytes that are packed already."""
    data, state = packed
    layer = bnb.nn.Linear4bit(
        state.shape[1], state.shape[0], bias=False, compute_dtype=state.dtype, quant_type="nf4", device="meta"
    )
    layer.weight = bnb.nn.Params4bit(data, quant_state=state, quant_type="nf4", bnb_quantized=True)
    layer.quant_state, layer.support_avx512bf16_for_cpu = state, False
    return layer


def per_expert(model):
    """The same weights, as views, in the way of the paper's stack."""
    for layer in model.model.layers:
        layer.mlp.experts = ExpertLoop(layer.mlp.experts)
    return model


def one_expert_at_a_time(chosen: Preset, note: Recorder) -> None:
    """The way of the paper's stack to run the experts; everything else is today's."""
    model = per_expert(build(chosen).eval())
    with torch.no_grad():
        speed = note.attempt("batch 1, eager", decode_eager, chosen, model, 1)
    if speed:
        note.value("batch 1, prefill [tokens/s]", speed[0])
        note.value("batch 1, decode, eager [tokens/s]", speed[1])
    train(chosen, note, learner(model), 2, 4)


class UnpackedProduct(torch.autograd.Function):
    """The 4-bit product of bitsandbytes 0.41: it unpacks the whole matrix and keeps its input."""

    @staticmethod
    def forward(ctx, rows, packed, state):
        ctx.kept = rows, packed, state  # an attribute, as there: it lives as long as the graph
        return linear(rows, dequantize_4bit(packed, state).to(rows.dtype))

    @staticmethod
    def backward(ctx, gradient):
        _, packed, state = ctx.kept
        return gradient @ dequantize_4bit(packed, state).to(gradient.dtype), None, None


class Linear2023(bnb.nn.Linear4bit):
    def forward(self, x):
        return UnpackedProduct.apply(x, self.weight.data, self.weight.quant_state)


def stack_of_2023(chosen: Preset, note: Recorder) -> None:
    """The authors' stack as far as today's libraries can: memory and speed at four batches.

    It was LLaMA-Factory of December 2023 on transformers 4.36, PEFT 0.7 and bitsandbytes 0.41. Like there:
    fp16 under autocast with a gradient scaler, eager attention (softmax in fp32), a reentrant checkpoint
    around each layer, every expert three Linear4bit, whose rows the CPU picks, LoRA in fp32, all logits in
    fp32 and a shifted copy of them, gradients clipped, no cache. Unlike there: the router is not quantized,
    expert weights are views of one stack and share its table of levels, LoRA's output is added out of place,
    and bitsandbytes' kernels for unpacking are today's.

    Last, batches as long as their longest conversation of random length: holes in the allocator's blocks are
    part of what nvidia-smi showed. The authors ran 1.968 conversations a second, likely at 16 x 2.
    """
    model = per_expert(build(dataclasses.replace(chosen, dtype=torch.float16)))
    model.set_attn_implementation("eager")
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.__class__ = Linear2023
        elif isinstance(module, ExpertLoop):
            module.lists = True
    model.enable_input_require_grads()  # else reentrant checkpoints have no gradient to hand on
    tuned, optimizer = learner(model, reentrant=True)
    scaler = torch.amp.GradScaler(chosen.device)

    def loss_of_2023(ids: torch.Tensor) -> torch.Tensor:
        logits = tuned(input_ids=ids, use_cache=False).logits.float()
        return cross_entropy(logits[:, :-1].contiguous().flatten(0, 1), ids[:, 1:].flatten())

    def step(batch: int, lengths: list[int]) -> None:
        for length in lengths:
            ids = torch.randint(chosen.config.vocab_size, (batch, length), device=chosen.device)
            with torch.autocast(chosen.device, dtype=torch.float16):
                loss = loss_of_2023(ids)
            scaler.scale(loss / len(lengths)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    batches, steps = ((2, 4, 8, 16), 4) if chosen.name == "mixtral_8x7b" else ((2, 4), 1)
    for batch in batches:
        whole = partial(step, batch, [chosen.length])
        note.attempt(f"batch {batch}", measured, note, f"batch {batch}", whole, batch * chosen.length)
    note.attempt("varied lengths", varied, chosen, note, step, batches[-1], steps)


def varied(chosen: Preset, note: Recorder, step, batch: int, steps: int) -> None:
    """Optimizer steps of two batches, padded to their longest conversation of about 220 tokens (median)."""
    draw = random.Random(SEED)
    longest = [max(draw.lognormvariate(math.log(220), 0.95) for _ in range(batch)) for _ in range(2 * steps)]
    lengths = [min(chosen.length, 8 * math.ceil(length / 8)) for length in longest]  # multiples of 8
    fresh()
    taken = seconds(lambda: [step(batch, lengths[i : i + 2]) for i in range(0, len(lengths), 2)])
    label = f"batch {batch}, accumulation 2, varied lengths"
    note.value(f"{label} [conversations/s]", batch * len(lengths) / taken)
    note.memory(label)


# name: (function, limit in seconds); in the order of what would be missed most
PARTS = {
    "inference": (inference, 100),
    "training, SFTTrainer": (sft_trainer, 90),
    "training": (qlora, 130),
    "training, the stack of 2023": (stack_of_2023, 110),
    "training, grouped product": (grouped_product, 70),
    "training, LoRA on experts": (lora_on_experts, 90),
    "training, per-expert Linear4bit": (one_expert_at_a_time, 80),
    "training, expandable segments": (expandable, 60),
    "inference, torch.compile": (compiled, 150),
}
BEST = "training: best batch [sequences]"


def run_group(chosen: Preset, parts: tuple[str, ...], limit: float, record: dict) -> None:
    """Run `parts` in a process of their own for at most `limit` seconds; what they noted goes to `record`."""
    environ = dict(os.environ, HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    if chosen.device == "cpu":
        # PyTorch and bitsandbytes each have a pool of threads; on few cores they fight, 20 x slower
        environ["OMP_NUM_THREADS"] = "1"
    if "training, expandable segments" in parts and chosen.device == "cuda":
        environ["PYTORCH_ALLOC_CONF"] = ALLOCATOR
    with tempfile.TemporaryDirectory() as folder:
        notes, problem = Path(folder) / "notes.jsonl", None
        command = [sys.executable, __file__, "--scale", "full" if chosen.device == "cuda" else "tiny"]
        command += ["--best", str(int(record["values"].get(BEST, chosen.best)))]
        command += ["--notes", str(notes), "--parts", *parts]
        began = time.perf_counter()
        # errors go to a file: a pipe would be waited for while any process of torch.compile still holds it
        with (Path(folder) / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
            try:
                code = subprocess.run(command, env=environ, timeout=limit, stderr=errors).returncode
            except subprocess.TimeoutExpired:
                code, problem = 0, f"stopped at its limit of {limit:.0f} s"
            errors.seek(0)
            said = errors.read().strip()
        print(said[-6000:], file=sys.stderr, flush=True)
        if code:
            problem = (said.splitlines() or ["no message"])[-1][:500]
        whose = parts[0] if len(parts) == 1 else f"{len(parts)} parts together"
        record["values"][f"{whose}: time [s]"] = round(time.perf_counter() - began, 1)
        for line in notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []:
            for kind, entry in json.loads(line).items():
                record[kind] |= entry
        if problem:
            record["errors"]["; ".join(parts)] = problem


def gpu() -> tuple[str, float, str]:
    """Name, GiB, CUDA version, asked by a process that ends: a context here would count in nvidia-smi."""
    ask = "import torch; gpu = torch.cuda.get_device_properties(0); "
    ask += "print(gpu.name, gpu.total_memory, torch.version.cuda, sep='|')"
    name, size, cuda = subprocess.check_output([sys.executable, "-c", ask], text=True).strip().split("|")
    return name, int(size) / GIB, cuda


def header(chosen: Preset, device: str, cuda: str | None) -> dict:
    """Where, when and with what a record was made."""
    packages = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    return dict(
        model=chosen.name,
        weights=LABEL,
        device=device,
        cuda=cuda,
        date=time.strftime("%Y-%m-%d"),
        seed=SEED,
        context=chosen.context,
        length=chosen.length,
        python=platform.python_version(),
        versions={name: version(name) for name in packages},
        values={},
        errors={},
        series={},
    )


def without(record: dict, parts: list[str]) -> dict:
    """An earlier `record` that lacks what these parts noted, and says that they are added today."""
    for kind in ("values", "errors", "series"):
        kept = {key: of for key, of in record[kind].items() if key.partition(": ")[0] not in parts}
        record[kind] = kept
    record["added"] = record.get("added", {}) | dict.fromkeys(parts, time.strftime("%Y-%m-%d"))
    return record


def main() -> int:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found = "full" if torch.cuda.is_available() else "tiny"
    parser.add_argument("--scale", choices=["tiny", "full"], default=found, help=f"here: {found}")
    parser.add_argument("--out", type=Path, help="folder of the record (default: results/h100, or runs/)")
    parser.add_argument("--best", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    alone = "these parts alone: their figures go into the record that lies in --out or results/h100 already"
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=alone)
    options = parser.parse_args()
    chosen = preset(options.scale)
    if options.notes:
        torch.manual_seed(SEED)
        chosen = dataclasses.replace(chosen, best=options.best or chosen.best)
        for part in options.parts:
            note = Recorder(options.notes, part)
            note.attempt("stopped", PARTS[part][0], chosen, note)
        return 0
    if options.scale == "full":
        if not torch.cuda.is_available():
            parser.error("--scale full needs a CUDA GPU, and this machine has none")
        before = in_use_before()
        device, gib, cuda = gpu()
        try:
            memory.predict(chosen.config).require(gib)
        except memory.DoesNotFit as error:
            parser.exit(1, f"{error}\n")
        slug = re.sub(r"\W+", "-", device.lower())
        folder = options.out or results.RECORDED / ("h100" if "h100" in slug else slug)
    else:
        device, cuda = f"{platform.machine()} CPU, {os.cpu_count()} cores", None
        folder = options.out or ROOT / "runs" / "tiny" / "record"
        if folder.resolve() == (results.RECORDED / "h100").resolve():
            parser.error("a record made at tiny does not belong into results/h100")
    folder.mkdir(parents=True, exist_ok=True)
    file, record = folder / f"{chosen.name}.json", header(chosen, device, cuda)
    if options.scale == "full" and before is not None:
        record["values"]["before any part, nvidia-smi [GiB]"] = before
    if options.parts and file.is_file():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        if other := [key for key in ("device", "versions") if earlier[key] != record[key]]:
            parser.exit(1, f"{file} was made with other {' and '.join(other)}: record all parts anew.\n")
        record = without(earlier, options.parts)
    print(f"{chosen.name} on {record['device']}: {LABEL}", flush=True)
    groups = [tuple(p for p in group if p in (options.parts or PARTS)) for group in chosen.groups]
    for parts in filter(None, groups):
        passed = time.perf_counter() - BEGAN
        left = BUDGET - passed
        print(f"{passed:5.0f} s  {'; '.join(parts)}", flush=True)
        if left < 30:
            record["errors"]["; ".join(parts)] = f"not begun: the budget of {BUDGET} s was spent"
        else:
            run_group(chosen, parts, min(left, sum(PARTS[part][1] for part in parts)), record)
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        write_whole(file, re.sub(r"(?<=\d),\s+(?=[\d.]+[,\s])", ", ", text))  # series in few lines
    width = max(map(len, record["values"]), default=0)
    for label, value in record["values"].items():
        print(f"{label:<{width}}  {value:>14,.2f}")
    for label, text in record["errors"].items():
        print(f"{label}: {text}")
    print(f"\n{time.perf_counter() - BEGAN:.0f} s; written to {os.path.relpath(file)}")
    return 0 if record["values"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""Before a run: how many steps, and what they will take in memory, disk, hours and money."""

import math
import shutil
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from trl import SFTConfig

from aurora_lib.course import Scale, machine, results
from aurora_lib.evaluation import least_seconds
from aurora_lib.model import load_tokenizer, memory, resolve_targets

NOTHING = "There is no conversation to train on. Check AURORA_DATA, or run notebook 02 to see why."
SAMPLED = 500  # conversations whose tokens are counted
BESIDE = 8 * 2**20  # bytes of tokenizer, trainer state and the like in every checkpoint


class Preflight(NamedTuple):
    """What a run will take: optimizer steps, tokens, a memory budget, bytes of disk, and all as a table."""

    steps: int
    tokens: int
    memory: memory.MemoryBudget
    disk: int
    table: str

    def __repr__(self) -> str:
        return self.table


def preflight(
    config, conversations: Dataset, scale: Scale, args: SFTConfig, price_per_hour=None, lora=None
) -> Preflight:
    """What training `conversations` with `args` and the adapter `lora` (the paper's) will take.

    Nothing is loaded. Hours come from the speed recorded on an H100 at the paper's batch, else they are the
    least that they can be. Raises `memory.DoesNotFit` where memory or disk is too small, ValueError where
    there is no conversation or `lora` has targets that this model lacks.
    """
    if len(conversations) == 0:
        raise ValueError(NOTHING)
    how = {}
    if lora:
        _, number, on_experts = resolve_targets(config, lora)
        how |= dict(rank=lora.r, adapter=number, on_experts=on_experts)
    how |= dict(length=args.max_length, checkpointing=args.activation_checkpointing)
    how |= dict(batch=args.per_device_train_batch_size, dtype=scale.loading["dtype"])
    budget = memory.predict(config, **how).require(args.device)
    per_step = args.train_batch_size * args.gradient_accumulation_steps
    each, seen = _tokens(conversations, scale, args.max_length), len(conversations) * args.num_train_epochs
    # packs are full but for the last one or two in a hundred
    rows = math.ceil(len(conversations) * (each / args.max_length if args.packing else 1))
    batches = math.ceil(rows / args.train_batch_size)
    steps = math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))
    if args.max_steps > 0:
        steps, seen = args.max_steps, args.max_steps * per_step * len(conversations) / rows
    # weights and both Adam moments in fp32; while one checkpoint is written, those kept are still there
    checkpoint = 12 * budget.adapter_parameters + BESIDE
    needed = ((args.save_total_limit or 2) + 1) * checkpoint + 4 * budget.adapter_parameters
    folder = Path(args.output_dir).absolute()
    free = shutil.disk_usage(next(path for path in [folder, *folder.parents] if path.exists())).free
    need, has = (f"{size / machine.GIB:.2f} GiB" for size in (needed, free))
    if free < needed:
        short = f"Checkpoints and adapter need {need} of disk and {args.output_dir} has {has} free."
        raise memory.DoesNotFit(f"{short} Make room, or set AURORA_RUNS to another disk.")
    tokens = round(seen * each)
    recorded = results.recorded("mixtral_8x7b", "h100") if scale.name == "full" else {}
    hours, how = None, "not measured"
    if reached := recorded.get("training: batch 2, accumulation 4 [tokens/s]"):
        hours = tokens / reached / 3600
        how = f"{hours:.1f} ({reached:,.0f} tokens/s recorded)"
    elif scale.name != "tiny":
        passes = 3 * steps * args.gradient_accumulation_steps
        seconds, card = least_seconds(config, passes, 3 * tokens)
        hours, how = seconds / 3600, f"at least {seconds / 3600:.1f} on {card} (predicted)"
    limit = scale.minutes / 60 if args.max_steps <= 0 else 0  # the minutes may end a run before its epochs do
    rows = {"optimizer steps": f"{steps:,}", "tokens, about": f"{tokens:,}", "hours": how}
    if limit:
        rows = {f"{name}, {args.num_train_epochs:g} epochs": value for name, value in rows.items()}
        share = f", {limit / hours:.0%} of these epochs" if hours and hours > limit else ""
        rows["this run, at most"] = (
            f"{scale.minutes:g} minutes (AURORA_MINUTES){share}; the cosine ends there"
        )
    rows["memory, predicted"] = f"{budget.total:.2f} GiB"
    rows["disk for checkpoints and adapter"] = need
    rows["disk free"] = has
    if price_per_hour:
        cost = (limit or hours or 0) * price_per_hour
        rows[f"cost at {price_per_hour:g} an hour"] = f"{cost:.2f}" if cost else "not measured"
    width = max(map(len, rows))
    table = "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
    return Preflight(steps, tokens, budget, needed, table)


def _tokens(conversations: Dataset, scale: Scale, length: int) -> float:
    """Mean tokens of a conversation after the cutoff, from an even sample."""
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    sample = conversations.select(range(0, len(conversations), math.ceil(len(conversations) / SAMPLED)))
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in sample["messages"]]
    counts = [min(len(ids), length) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return sum(counts) / len(counts)

"""Before a run: how many steps, and what they will take in memory, disk, hours and money."""

import html
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedConfig
from trl import SFTConfig

from aurora_lib.course import results
from aurora_lib.course.scale import Scale
from aurora_lib.model import memory
from aurora_lib.model.tokenizer import load_tokenizer

SAMPLED = 500  # conversations whose tokens are counted
BESIDE = 8 * 2**20  # bytes of tokenizer, trainer state and the like in every checkpoint


@dataclass(frozen=True, repr=False)
class Preflight:
    """What a run will take: steps, tokens, a memory budget, disk (bytes), and hours and cost where a speed is known."""

    steps: int
    tokens: int
    memory: memory.MemoryBudget
    disk_needed: int
    disk_free: int
    tokens_per_second: float | None
    price_per_hour: float | None

    @property
    def hours(self) -> float | None:
        return self.tokens / self.tokens_per_second / 3600 if self.tokens_per_second else None

    @property
    def cost(self) -> float | None:
        return self.hours * self.price_per_hour if self.hours and self.price_per_hour else None

    def rows(self) -> list[tuple[str, str]]:
        """(what, how much), as the table shows them."""
        unknown = "not measured"
        speed = f"{self.tokens_per_second:,.0f} tokens/s recorded" if self.tokens_per_second else unknown
        rows = [
            ("optimizer steps", f"{self.steps:,}"),
            ("tokens, about", f"{self.tokens:,}"),
            ("memory, predicted", f"{self.memory.total:.2f} GiB"),
            ("disk for checkpoints and adapter", f"{self.disk_needed / memory.GIB:.2f} GiB"),
            ("disk free", f"{self.disk_free / memory.GIB:.2f} GiB"),
            ("hours", f"{self.hours:.1f} ({speed})" if self.hours else unknown),
        ]
        if self.price_per_hour:
            rows.append(
                (f"cost at {self.price_per_hour:g} an hour", f"{self.cost:.2f}" if self.cost else unknown)
            )
        return rows

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def preflight(
    config: PreTrainedConfig,
    conversations: Dataset,
    scale: Scale,
    args: SFTConfig,
    price_per_hour: float | None = None,
) -> Preflight:
    """What training `conversations` with `args` will take. Raises `memory.DoesNotFit` if memory or disk is too small.

    Hours come from the speed recorded on an H100 at the paper's batch (`results/h100`), and are unknown without it.
    """
    budget = memory.predict(
        config,
        batch=args.per_device_train_batch_size,
        length=args.max_length,
        checkpointing=args.activation_checkpointing,
        dtype=scale.loading["dtype"],
    )
    if scale.sharding:
        budget = budget.sharded(args.world_size, config.num_hidden_layers)
    budget.require(args.device)
    per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    rows = len(conversations)
    steps = args.max_steps
    if steps <= 0:
        batches = math.ceil(rows / (args.train_batch_size * args.world_size))
        steps = math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))
    seen = rows * args.num_train_epochs if args.max_steps <= 0 else steps * per_step
    # weights and both Adam moments in fp32; while one checkpoint is written, those kept are still there
    checkpoint = 12 * budget.adapter_parameters + BESIDE
    needed = ((args.save_total_limit or 2) + 1) * checkpoint + 4 * budget.adapter_parameters
    free = shutil.disk_usage(_existing(Path(args.output_dir))).free
    if free < needed:
        raise memory.DoesNotFit(
            f"Checkpoints and adapter need {needed / memory.GIB:.2f} GiB of disk and {args.output_dir} has "
            f"{free / memory.GIB:.2f} GiB free. Make room, or set AURORA_RUNS to another disk."
        )
    return Preflight(
        steps,
        round(seen * _tokens(conversations, scale, args.max_length)),
        budget,
        needed,
        free,
        _recorded_speed() if scale.name == "full" else None,
        price_per_hour,
    )


def _tokens(conversations: Dataset, scale: Scale, length: int) -> float:
    """Mean tokens of a conversation after the cutoff, from an even sample."""
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    sample = conversations.select(range(0, len(conversations), math.ceil(len(conversations) / SAMPLED)))
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in sample["messages"]]
    counts = [min(len(ids), length) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return sum(counts) / len(counts)


def _recorded_speed() -> float | None:
    recorded = results.recorded("mixtral_8x7b", "h100")
    return recorded.get("training: batch 2, accumulation 4 [tokens/s]")


def _existing(folder: Path) -> Path:
    return next(path for path in [folder, *folder.absolute().parents] if path.exists())

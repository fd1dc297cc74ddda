"""What if you change a value of the recipe? A fresh base is tuned and probed with the change, and kept on disk.

`run` is one tuning and gives one row of figures; `sweep` is several, beside each other in a table. A run that was made
before, with the same rows, settings and library versions, is read from disk: an interrupted sweep goes on where it
stopped, and deleting the folder makes everything again.
"""

import gc
import json
import random
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import datasets
import pandas as pd
import torch
import transformers
import xxhash
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PrinterCallback

from aurora_lib import training
from aurora_lib.course.scale import Scale
from aurora_lib.data.conversations import clean_conversations
from aurora_lib.data.languages import language
from aurora_lib.evaluation import probes
from aurora_lib.model import memory
from aurora_lib.model.nf4 import load_model
from aurora_lib.model.tokenizer import load_tokenizer

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
# Settings that change no figure: places, and what is logged.
SILENT = ("output_dir", "logging_dir", "run_name", "disable_tqdm", "include_num_input_tokens_seen")

# The router of transformers 5 is a bare parameter, which `target_modules` cannot name. PEFT's LoRA for parameters adds
# B·A to the weight itself, so there is no input that could be dropped out: it refuses any dropout but 0.
ROUTER = {"target_parameters": ["mlp.gate.weight"], "lora_dropout": 0.0}
# All of the router's few weights trained, without LoRA, and saved whole in the adapter.
ROUTER_WHOLE = {"modules_to_save": ["gate"]}


def what_if(scale: Scale) -> dict[str, dict]:
    """Ready-made variants for `sweep`: name -> what `run` is told."""
    rate = scale.learning_rate
    return {
        "the recipe": {},
        "rank 2": {"lora": {"r": 2, "lora_alpha": 4}},
        "rank 32": {"lora": {"r": 32, "lora_alpha": 64}},
        "all of attention": {"lora": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}},
        "no dropout": {"lora": {"lora_dropout": 0.0}},
        "router too, LoRA (no dropout)": {"lora": ROUTER},
        "router too, whole": {"lora": ROUTER_WHOLE},
        "learning rate x 0.1": {"settings": {"learning_rate": rate / 10}},
        "learning rate x 3": {"settings": {"learning_rate": rate * 3}},
        "learning rate 5e-5, the paper's": {"settings": {"learning_rate": 5e-5}},
        "no English rows": {"english_share": 0.0},
        "2 % English rows": {"english_share": 0.02},
        "8 % English rows": {"english_share": 0.08},
        "16 % English rows": {"english_share": 0.16},
    }


def is_english(row: Mapping) -> bool:
    """Whether a conversation's last answer is in English."""
    return language(row["messages"][-1]["content"]) == "en"


def mixed(conversations: Dataset, share: float, seed: int = training.SEED) -> Dataset:
    """`conversations` with `share` of them English, in their order: of one language all rows, of the other a sample.

    No row is repeated. Which language is sampled follows from which there is too much of. Raises ValueError for a share
    that the rows cannot give.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"english_share={share} is no share: give a number from 0 to 1.")
    sides = [], []
    for number, row in enumerate(conversations):
        sides[is_english(row)].append(number)
    other, english = sides
    if (share > 0 and not english) or (share < 1 and not other):
        raise ValueError(
            f"These conversations have {len(english)} English rows of {len(conversations)}: no mix has {share:.0%}."
        )
    wanted = (
        (0, len(other))
        if share == 0
        else (len(english), 0)
        if share == 1
        else (round(len(other) * share / (1 - share)), len(other))
    )
    if wanted[0] > len(english):
        wanted = len(english), round(len(english) * (1 - share) / share)
    chosen = random.Random(seed)
    kept = [*chosen.sample(english, wanted[0]), *chosen.sample(other, wanted[1])]
    return conversations.select(sorted(kept))


def run(
    scale: Scale,
    *,
    conversations: Dataset | None = None,
    lora: Mapping | None = None,
    settings: Mapping | None = None,
    english_share: float | None = None,
    seed: int = training.SEED,
    questions: list[dict] | None = None,
    folder: Path | None = None,
) -> dict:
    """Tune a fresh 4-bit base with the recipe and these changes, and probe it on facts tuning never shows.

    `lora` changes fields of `LoraConfig`, `settings` of `SFTConfig`. `english_share` (0 to 1) makes a mix of the rows
    (see `mixed`) and trains on it for as many steps as all rows would take, so that only the mix differs.
    `questions` are probes, by default those held out; `conversations` by default the clean ones.

    The row returned: seed; conversations, and english (how many of them); steps; tokens (read in training, padding
    apart) and padding (its share of all positions); zh_in_zh, zh_right, en_in_en, en_right (shares: the answers to Chinese
    and English prompts that came in that language, and that were also right); prompts (per language); loss (on 64 of the
    training conversations, after), min_grad_norm; seconds, cpu_seconds (of all threads: does not grow on a busy machine),
    tokens_per_s; trainable (parameters), optimizer_bytes,
    memory_rise_mib (peak over what was taken before training: RSS on CPU, allocated on CUDA).

    At `full` a run takes hours: `settings={"max_steps": 50}` makes it short. Raises ValueError as `mixed` and
    `training.build_trainer` do, and RuntimeError where the gradient is zero.
    """
    conversations = clean_conversations(scale) if conversations is None else conversations
    questions = probes.load_probes(held_out=True) if questions is None else questions
    folder = Path(folder or scale.runs / "experiments")
    settings = {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "seed": seed} | dict(
        settings or {}
    )
    if settings.get("packing"):
        settings = {"eval_packing": False} | settings  # the loss is compared on the same batches
    if english_share is not None:
        per_step = scale.batch * scale.accumulation
        settings = {"max_steps": int(-(-len(conversations) // per_step) * scale.epochs)} | settings
        conversations = mixed(conversations, english_share, seed)
    adapter = training.lora_config(scale, **(lora or {}))
    args = training.sft_config(scale, folder / "unfinished", **settings)

    file = folder / f"{_key(scale, conversations, questions, adapter, args)}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    row = _tune(scale, conversations, questions, adapter, args)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)  # whole or not at all
    return row


def sweep(
    scale: Scale,
    variants: Mapping[str, Mapping],
    *,
    seeds: Iterable[int] = (training.SEED,),
    conversations: Dataset | None = None,
    folder: Path | None = None,
) -> pd.DataFrame:
    """`run` for each of `variants` (name -> its arguments) and seeds; a row each, with the column `variant` first."""
    conversations = clean_conversations(scale) if conversations is None else conversations
    todo = [(name, changes, seed) for name, changes in variants.items() for seed in seeds]
    rows = []
    for name, changes, seed in (bar := tqdm(todo, desc="experiments", unit="run")):
        bar.set_postfix_str(name)
        given = {"conversations": conversations, "seed": seed, "folder": folder} | dict(changes)
        rows.append({"variant": name} | run(scale, **given))
    return pd.DataFrame(rows)


def optimizer_bytes(optimizer) -> int:
    """Bytes of an optimizer's state as allocated, its quantization scales included."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    tensors = {
        id(value): value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    return sum(_bytes(tensor) for tensor in tensors.values())


def _bytes(tensor: torch.Tensor) -> int:
    if hasattr(tensor, "__tensor_flatten__"):  # torchao's: codes, scales and a table of values within one
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


class _Count:
    """A data collator that counts the positions of its batches, and those that hold a token."""

    def __init__(self, collate):
        self.collate, self.positions, self.tokens = collate, 0, 0

    def __call__(self, rows):
        batch = self.collate(rows)
        size = batch["input_ids"].numel()
        self.positions += size
        self.tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else size
        return batch


def _tune(scale: Scale, conversations: Dataset, questions, adapter, args) -> dict:
    with _quiet():
        base = load_model(scale.base_model, **scale.loading)
        tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
        trainer = training.build_trainer(base, tokenizer, conversations, scale, args, adapter)
        trainer.remove_callback(PrinterCallback)
        plain, count = trainer.data_collator, _Count(trainer.data_collator)
        trainer.data_collator = count
        with memory.profile(scale.device) as profile:
            began = time.process_time()
            metrics = trainer.train().metrics
            busy = time.process_time() - began
        trainer.data_collator = plain
        first = conversations.select_columns(["messages"]).select(range(min(64, len(conversations))))
        loss = trainer.evaluate(first)["eval_loss"]
        probed = probes.probe(
            trainer.model.eval(), tokenizer, questions, max_new_tokens=scale.max_new_tokens, progress=False
        )
    share = {
        f"{asked}_{short}": round(probed.score(asked, what).accuracy, 4)
        for asked in ("zh", "en")
        for short, what in ((f"in_{asked}", "in_language"), ("right", "correct"))
    }
    seconds = metrics["train_runtime"]
    row = dict(
        seed=args.seed,
        conversations=len(conversations),
        english=sum(map(is_english, conversations)),
        steps=trainer.state.global_step,
        tokens=count.tokens,
        padding=round(1 - count.tokens / count.positions, 4),
        **share,
        prompts=len(questions),
        loss=round(loss, 4),
        min_grad_norm=round(
            min(log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log), 6
        ),
        seconds=round(seconds, 1),
        cpu_seconds=round(busy, 1),
        tokens_per_s=round(count.tokens / seconds),
        trainable=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        optimizer_bytes=optimizer_bytes(trainer.optimizer),
        memory_rise_mib=round((profile.peak - profile.used[0] / memory.GIB) * 1024, 1),
    )
    del trainer, base
    gc.collect()
    if scale.device == "cuda":
        torch.cuda.empty_cache()
    return row


@contextmanager
def _quiet():
    """No progress bars of the libraries: a sweep has one of its own."""
    on = datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if not on[0]:
            datasets.enable_progress_bars()
        if on[1]:
            transformers.utils.logging.enable_progress_bar()


def _key(scale: Scale, conversations: Dataset, questions, adapter, args) -> str:
    """A digest of everything that decides the figures: base, rows, probes, settings, versions."""
    digest = xxhash.xxh3_128()
    base = Path(scale.base_model)
    files = sorted(base.glob("*.safetensors")) if base.is_dir() else []
    settings = {name: value for name, value in args.to_dict().items() if name not in SILENT}
    for part in (
        [base.name, scale.revision, [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]],
        adapter.to_dict(),
        settings,
        questions,
        scale.max_new_tokens,
        {name: version(name) for name in LIBRARIES},
        *conversations["messages"],
    ):
        digest.update(json.dumps(part, sort_keys=True, default=_plain).encode())
    return digest.hexdigest()


def _plain(value):
    return sorted(value) if isinstance(value, set) else str(value)

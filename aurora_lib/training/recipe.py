"""QLoRA with TRL's `SFTTrainer`: the settings of the paper, three corrections today's libraries need, and a way to resume.

`python -m aurora_lib.training` runs from a terminal what notebook 04 runs step by step; `accelerate launch -m
aurora_lib.training` does so on several processes.
"""

import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, PreTrainedModel, set_seed
from transformers.trainer_utils import TrainOutput
from trl import SFTConfig, SFTTrainer

from aurora_lib.course import GIB, paper, peak_rss
from aurora_lib.course.scale import Scale
from aurora_lib.data.conversations import clean_conversations
from aurora_lib.model import nf4
from aurora_lib.model.adapters import save_adapter
from aurora_lib.model.nf4 import load_model
from aurora_lib.model.tokenizer import load_tokenizer
from aurora_lib.training import checkpoints
from aurora_lib.training.callbacks import Meter, ZeroGradientAlarm
from aurora_lib.training.planning import preflight
from aurora_lib.training.running import run, say

SEED = 42


def lora_config(scale: Scale, **changes) -> LoraConfig:
    """The paper's adapter: rank 8 on q_proj and v_proj of every layer (repository, training command).

    `changes` override any field of `LoraConfig`.
    """
    settings = dict(
        task_type="CAUSAL_LM",
        r=int(paper.TRAINING["LoRA rank"].value),
        lora_alpha=int(paper.TRAINING["LoRA alpha"].value),
        lora_dropout=paper.TRAINING["LoRA dropout"].value,
        target_modules=list(paper.LORA_TARGETS),
    )
    return LoraConfig(**settings | changes)


def sft_config(scale: Scale, output_dir: Path | None = None, **changes) -> SFTConfig:
    """The paper's training settings (section 4.1) at `scale`; `changes` override any field of `SFTConfig`.

    Two values differ from the libraries' defaults on purpose: `router_aux_loss_coef=0`, since TRL would otherwise add the
    load-balancing loss that the paper's stack did not use, and `assistant_only_loss`, as in the paper's stack.
    """
    settings = dict(
        output_dir=str(output_dir or scale.runs / "checkpoints"),
        learning_rate=scale.learning_rate,
        lr_scheduler_type="cosine",
        num_train_epochs=scale.epochs,
        per_device_train_batch_size=scale.batch,
        gradient_accumulation_steps=scale.accumulation,
        max_length=scale.length,
        assistant_only_loss=True,
        router_aux_loss_coef=0.0,
        activation_checkpointing=scale.device == "cuda",
        bf16=scale.device == "cuda"
        and not scale.sharding,  # under FSDP2 accelerate would cast the packed bytes too
        use_cpu=scale.device == "cpu",
        save_steps=scale.save_steps,
        save_total_limit=2,
        logging_steps=10,
        include_num_input_tokens_seen="non_padding",
        seed=SEED,
        report_to="none",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=scale.device == "cuda",
    )
    return SFTConfig(**settings | changes)


def adapters_in_fp32(model: PreTrainedModel) -> int:
    """Put every trainable parameter back to 32 bits, and return how many there are.

    TRL casts adapters of quantized models to bf16, where most updates at the paper's learning rate of 5e-5 round away.
    Call it after the trainer is built and before `train`.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.data = parameter.data.float()
    return sum(p.numel() for p in trainable)


def build_trainer(
    model: PreTrainedModel,
    tokenizer,
    conversations: Dataset,
    scale: Scale,
    args: SFTConfig | None = None,
    lora: LoraConfig | None = None,
) -> SFTTrainer:
    """An `SFTTrainer` on `conversations` (column `messages`) with a new adapter (the paper's), its weights in 32 bits.

    Conversations without an answer, or with none left before the cutoff, are left out; how many is printed.
    `trainer.evaluate()` gives the loss on the first 64 rows, so that it can be compared before and after. Raises
    ValueError where nothing is left to train on.
    """
    args = args or sft_config(scale)
    answered = conversations.select_columns(["messages"]).filter(_has_answer)
    if unanswered := len(conversations) - len(answered):
        say(args, f"{unanswered:,} conversations hold no answer by the assistant and are left out.")
    if len(answered) == 0:
        raise ValueError(
            "There is no conversation to train on. Check AURORA_DATA, or run notebook 02 to see why."
        )
    set_seed(args.seed)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=answered,
        processing_class=tokenizer,
        peft_config=lora or lora_config(scale),
        callbacks=[ZeroGradientAlarm(), Meter()],
    )
    if not args.packing:
        _report_cut(trainer, len(answered))
    trainer.eval_dataset = trainer.train_dataset.select(range(min(64, len(trainer.train_dataset))))
    adapters_in_fp32(trainer.model)
    return trainer


def _has_answer(row: dict) -> bool:
    return any(message["role"] == "assistant" for message in row["messages"])


def _report_cut(trainer: SFTTrainer, given: int) -> None:
    """Say how many conversations the cutoff shortened and how many TRL left out since no answer was left of them."""
    length, end = trainer.args.max_length, trainer.processing_class.eos_token_id
    ids = trainer.train_dataset.with_format("numpy")["input_ids"] if len(trainer.train_dataset) else []
    cut = sum(len(row) == length and row[-1] != end for row in ids)
    dropped = given - len(trainer.train_dataset)
    if cut or dropped:
        say(
            trainer.args,
            f"{cut + dropped:,} conversations are longer than the cutoff of {length:,} tokens: {cut:,} lose part of their "
            f"answer, {dropped:,} have nothing left to learn and are left out.",
        )
    if dropped == given:
        raise ValueError(
            f"No conversation has an answer before the cutoff of {length:,} tokens. Raise max_length, or split the "
            f"conversations as notebook 02 does."
        )


def tune(
    scale: Scale,
    out: Path | None = None,
    minutes: float | None = None,
    price_per_hour: float | None = None,
    **changes,
) -> Path:
    """The whole of notebook 04's training at `scale`; returns the adapter's folder.

    `changes` override any field of `SFTConfig`. Leaves a record in `training.json` under `scale.runs`. Raises as
    `preflight`, `build_trainer`, `run` and `save_adapter` do.
    """
    if Path(scale.base_model).is_dir():
        nf4.check_files(Path(scale.base_model))
    args = sft_config(scale, **changes)
    with args.main_process_first():
        conversations = clean_conversations(scale)
    config = AutoConfig.from_pretrained(scale.base_model, revision=scale.revision)
    say(args, f"\n{preflight(config, conversations, scale, args, price_per_hour)}\n")
    loading = scale.loading | dict(device=str(args.device))
    if scale.sharding:
        loading |= nf4.SHARDED
    base = load_model(scale.base_model, **loading)
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    trainer = build_trainer(base, tokenizer, conversations, scale, args)
    output = run(trainer, minutes)
    folder = Path(out or scale.runs / "adapter").resolve()
    if args.process_index == 0 and folder.is_dir():
        kept = folder.with_name(f"{folder.name}-before-{time.strftime('%Y%m%d-%H%M%S')}")
        shutil.copytree(folder, kept)
        print(f"The adapter that was in {folder.name} is kept as {kept.name}.")
    save_adapter(trainer, scale, folder)
    if args.process_index == 0:
        record = _record(trainer, output)
        (scale.runs / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{record['steps']} steps, {record['seconds']:.0f} s here; the adapter is in {folder}")
    return folder


def _record(trainer: SFTTrainer, output: TrainOutput) -> dict:
    """What a run did, for `training.json`; seconds and tokens/s are of this session, the rest of the whole run."""
    state, seconds, tokens = trainer.state, output.metrics["train_runtime"], output.metrics["tokens_here"]
    log = state.log_history
    on_cuda = trainer.args.device.type == "cuda"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "settings": checkpoints.fingerprint(trainer),
        "steps": state.global_step,
        "steps_planned": state.max_steps,
        "resumed_from_step": output.metrics["resumed_from_step"],
        "seconds": round(seconds, 1),
        "tokens": state.num_input_tokens_seen,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / GIB if on_cuda else peak_rss(), 3),
        "final_loss": [entry["loss"] for entry in log if "loss" in entry][-1],
        "smallest_grad_norm": min(entry["grad_norm"] for entry in log if "grad_norm" in entry),
        "versions": {
            name: version(name) for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")
        },
    }

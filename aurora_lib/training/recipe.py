"""QLoRA with TRL's `SFTTrainer`: the settings of the paper, and three corrections for today's libraries.

1. Adapters of a quantized model go back to 32 bits (`adapters_in_fp32`). 2. TRL would add the router's
load-balancing loss, which the paper's stack did not use: it is off. 3. A gradient of zero stops the run.
"""

import os
import shutil
import time
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PreTrainedModel, set_seed
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from trl import SFTConfig, SFTTrainer

from aurora_lib.course import Scale, paper
from aurora_lib.data import clean_conversations, hold_out
from aurora_lib.model import load_model, load_tokenizer, read_config, resolve_targets, save_adapter
from aurora_lib.training.callbacks import Bar, Meter, ZeroGradientAlarm
from aurora_lib.training.planning import NOTHING, preflight
from aurora_lib.training.running import run

SEED = 42


def lora_config(**changes) -> LoraConfig:
    """The paper's adapter: targets by its command, the rest LLaMA-Factory's. `changes` override any field."""
    rank, alpha, dropout = (paper.TRAINING[f"LoRA {name}"].value for name in ("rank", "alpha", "dropout"))
    settings = dict(r=int(rank), lora_alpha=int(alpha), lora_dropout=dropout, task_type="CAUSAL_LM")
    return LoraConfig(**settings | dict(target_modules=list(paper.LORA_TARGETS)) | changes)


def shared_settings(scale: Scale) -> dict:
    """What both stages, SFT and DPO, tell their trainer; without load-balancing loss, as in the paper."""
    gpu = scale.device == "cuda"
    settings = dict(per_device_train_batch_size=scale.batch, gradient_accumulation_steps=scale.accumulation)
    settings |= dict(max_length=scale.length, lr_scheduler_type="cosine", router_aux_loss_coef=0.0, seed=SEED)
    settings |= dict(use_cpu=not gpu, dataloader_pin_memory=gpu, activation_checkpointing=gpu)
    settings |= dict(bf16=scale.dtype == torch.bfloat16, fp16=scale.dtype == torch.float16)
    return settings | dict(save_steps=scale.save_steps, save_total_limit=2, report_to="none")


def sft_config(scale: Scale, **changes) -> SFTConfig:
    """The paper's training settings (section 4.1) at `scale`; `changes` override any field of `SFTConfig`."""
    settings = dict(output_dir=str(scale.runs / "checkpoints"), learning_rate=scale.learning_rate)
    settings |= dict(
        num_train_epochs=scale.epochs, assistant_only_loss=True, logging_steps=1 if scale.minutes else 10
    )
    settings |= dict(include_num_input_tokens_seen="non_padding", packing=scale.minutes > 0)
    settings |= dict(dataset_num_proc=None if scale.name == "tiny" else os.cpu_count())
    return SFTConfig(**shared_settings(scale) | settings | changes)


def adapters_in_fp32(model: PreTrainedModel) -> None:
    """Put every trainable parameter back to 32 bits; call it after the trainer is built.

    TRL casts adapters of quantized models to bf16, where most updates at the paper's learning rate of 5e-5
    round away.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def build_trainer(model, tokenizer, conversations, args: SFTConfig, lora=None, validation=None) -> SFTTrainer:
    """An `SFTTrainer` on `conversations` (column `messages`) with a new adapter (the paper's), in 32 bits.

    TRL renders the messages by the tokenizer's chat template. Its generation markers stand around answer and
    end token: there the labels are the ids, elsewhere -100, which the loss skips. What lies beyond
    `max_length` is cut off.

    Conversations without an answer before the cutoff are left out; how many is printed. `trainer.evaluate()`
    gives the loss on `validation` (as of `hold_out`) by source: "eval_alpaca_zh_loss" and the like. Raises
    ValueError where nothing is left to train on, and for targets of `lora` that the model lacks.
    """
    asked = conversations.select_columns(["messages"])
    answered = asked.filter(lambda row: any(message["role"] == "assistant" for message in row["messages"]))
    if missing := len(asked) - len(answered):
        print(f"{missing:,} conversations hold no answer by the assistant and are left out.")
    if len(answered) == 0:
        raise ValueError(NOTHING)
    lora, *_ = resolve_targets(model.config, lora or lora_config())
    if args.dataset_num_proc:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive the fork
    set_seed(args.seed)
    given = dict(train_dataset=answered, processing_class=tokenizer, peft_config=lora)
    for name in sorted(set(validation["source"])) if validation else ():
        own = validation.select([i for i, source in enumerate(validation["source"]) if source == name])
        given.setdefault("eval_dataset", {})[name] = own.select_columns(["messages"])
    callbacks = [ZeroGradientAlarm(), Meter(), *([] if args.disable_tqdm else [Bar()])]
    trainer = SFTTrainer(model=model, args=args, callbacks=callbacks, **given)
    # in a notebook a table with a row for every entry of the log, sent anew with each
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
    if not args.packing:
        _report_cut(trainer, len(answered))
    # its count goes over all parameters in every batch, and nobody reads it
    trainer.floating_point_ops = lambda inputs: 0
    adapters_in_fp32(trainer.model)
    return trainer


def _report_cut(trainer: SFTTrainer, given: int) -> None:
    """Say how many of `given` conversations the cutoff shortened, and how many TRL left out for it."""
    length, end = trainer.args.max_length, trainer.processing_class.eos_token_id
    ids = trainer.train_dataset.with_format("numpy")["input_ids"] if len(trainer.train_dataset) else []
    cut = sum(len(row) == length and row[-1] != end for row in ids)
    dropped = given - len(trainer.train_dataset)
    if dropped == given:
        none = f"No conversation has an answer before the cutoff of {length:,} tokens."
        raise ValueError(f"{none} Raise max_length, or split the conversations as notebook 02 does.")
    if cut or dropped:
        lost = f"{cut:,} lose part of their answer, {dropped:,} have nothing left to learn and are left out."
        longer = f"{cut + dropped:,} conversations are longer than the cutoff of {length:,} tokens"
        print(f"{longer}: {lost}")


def tune(scale: Scale, *, out: Path | None = None, price_per_hour=None, **changes) -> Path:
    """The whole of notebook 04's training; returns the adapter's folder (`out`, or one in `scale.runs`).

    `changes` override any field of `SFTConfig`. An adapter that was in the folder before is kept beside it.
    Raises ModelFileError and `memory.DoesNotFit` before anything is loaded, ValueError where there is nothing
    to train on, Stopped and TrainingError while training, AdapterError where the adapter cannot be saved.
    """
    config = read_config(scale.base_model, scale.revision)
    tokenizer = load_tokenizer(scale.base_model, revision=scale.revision)
    args = sft_config(scale, **changes)
    conversations, validation = hold_out(clean_conversations(scale))
    print(f"\n{preflight(config, conversations, scale, args, price_per_hour)}\n", flush=True)
    base = load_model(scale.base_model, **scale.loading)
    trainer = build_trainer(base, tokenizer, conversations, args, validation=validation)
    output = run(trainer, scale.minutes)
    folder = Path(out or scale.runs / "adapter").resolve()
    if folder.is_dir():
        kept = folder.with_name(f"{folder.name}-before-{time.strftime('%Y%m%d-%H%M%S')}")
        shutil.copytree(folder, kept)
        print(f"The adapter that was in {folder.name} is kept as {kept.name}.")
    save_adapter(trainer, scale, folder)
    losses = trainer.evaluate() if trainer.eval_dataset else {}
    print({name: round(loss, 3) for name, loss in losses.items() if name.endswith("_loss")})
    seconds = output.metrics["train_runtime"]
    print(f"{trainer.state.global_step} steps, {seconds:.0f} s here; the adapter is in {folder}")
    return folder

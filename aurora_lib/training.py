"""QLoRA with TRL's `SFTTrainer`: the settings of the paper, three corrections today's libraries need, and a way to resume.

`python -m aurora_lib.training` runs from a terminal what notebook 04 runs step by step.
"""

import argparse
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from aurora_lib import nf4, paper, tokenizer
from aurora_lib.conversations import clean_conversations
from aurora_lib.scale import DATA, Scale, ScaleError, start
from aurora_lib.sources import DataError

SEED = 42

# PEFT and TRL still ask transformers by the old name; nobody here can act on it.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


class AdapterError(RuntimeError):
    """An adapter that is missing, damaged or made for another base; the message says what to do."""


def lora_config(scale: Scale) -> LoraConfig:
    """The paper's adapter: rank 8 on q_proj and v_proj of every layer (repository, training command)."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=int(paper.TRAINING["LoRA rank"].value),
        lora_alpha=int(paper.TRAINING["LoRA alpha"].value),
        lora_dropout=paper.TRAINING["LoRA dropout"].value,
        target_modules=list(paper.LORA_TARGETS),
    )


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
        bf16=scale.device == "cuda",
        use_cpu=scale.device == "cpu",
        save_steps=scale.save_steps,
        save_total_limit=2,
        logging_steps=10,
        seed=SEED,
        report_to="none",
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


class ZeroGradientAlarm(TrainerCallback):
    """Stops a run whose gradient is exactly zero: a repacked or frozen layer learns nothing, however the loss looks."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and logs.get("grad_norm") == 0:
            raise RuntimeError(
                f"The gradient norm is 0 at step {state.global_step}: nothing is being learned. Load the base with "
                f"aurora_lib.nf4.load, which keeps the layers trainable on CPUs with AVX512_BF16."
            )


def build_trainer(
    model: PreTrainedModel, tokenizer, conversations: Dataset, scale: Scale, args: SFTConfig | None = None
) -> SFTTrainer:
    """An `SFTTrainer` on `conversations` (column `messages`) with the paper's adapter, its weights in 32 bits.

    `trainer.evaluate()` gives the loss on the first 64 of them, so that it can be compared before and after. Raises
    ValueError without conversations.
    """
    if len(conversations) == 0:
        raise ValueError(
            "There is no conversation to train on. Check AURORA_DATA, or run notebook 02 to see why."
        )
    set_seed(SEED)
    trainer = SFTTrainer(
        model=model,
        args=args or sft_config(scale),
        train_dataset=conversations.select_columns(["messages"]),
        eval_dataset=conversations.select_columns(["messages"]).select(range(min(64, len(conversations)))),
        processing_class=tokenizer,
        peft_config=lora_config(scale),
        callbacks=[ZeroGradientAlarm()],
    )
    adapters_in_fp32(trainer.model)
    return trainer


def checkpoint_to_resume(output_dir: str | Path) -> Path | None:
    """The newest checkpoint in `output_dir` that was written completely; damaged ones are named and passed over."""
    found = sorted(
        Path(output_dir).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True
    )
    for checkpoint in found:
        try:
            step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
            with safe_open(checkpoint / "adapter_model.safetensors", "pt") as weights:
                weights.keys()
            torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError) as error:
            print(
                f"{checkpoint.name} was not written completely ({type(error).__name__}); trying the one before it."
            )
            continue
        print(f"Resuming from {checkpoint.name}, step {step}.")
        return checkpoint
    return None


def save_adapter(trainer: SFTTrainer, scale: Scale, folder: Path | None = None) -> Path:
    """Save the adapter as a stock PEFT folder and remove the checkpoints that led to it."""
    folder = Path(folder or scale.runs / "adapter")
    for config in trainer.model.peft_config.values():
        # a path of this machine would mean nothing to whoever loads the adapter elsewhere
        config.base_model_name_or_path = base_name(scale)
    trainer.model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").write_text(_card(trainer, scale), encoding="utf-8")
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    return folder


def _card(trainer: SFTTrainer, scale: Scale) -> str:
    """A model card with this run's own settings; PEFT's would hold a path of this machine."""
    args, lora = trainer.args, trainer.model.peft_config["default"]
    return f"""---
base_model: {base_name(scale)}
library_name: peft
language: [zh, en]
---
# A Chinese chat adapter, after Aurora (arXiv 2312.14557)

LoRA of rank {lora.r} (alpha {lora.lora_alpha}, dropout {lora.lora_dropout}) on {", ".join(sorted(lora.target_modules))} of an NF4 base,
trained by `aurora_lib.training` on {len(trainer.train_dataset):,} conversations: {trainer.state.global_step} steps, {args.num_train_epochs:g} epochs,
learning rate {args.learning_rate:g} ({args.lr_scheduler_type.value}), batch {args.per_device_train_batch_size} x {args.gradient_accumulation_steps},
cutoff {args.max_length} tokens, seed {args.seed}. Loss on the assistant's tokens only.

Load it on that base: `training.load_adapter(nf4.load("folder or hub id of the base"), "this folder")`, or with stock PEFT.
"""


def base_name(scale: Scale) -> str:
    """The name an adapter records for its base: the hub id, or the last part of a local folder's path."""
    return Path(scale.base_model).name if Path(scale.base_model).exists() else scale.base_model


def find_adapter(scale: Scale) -> str:
    """Where the tuned adapter is: AURORA_ADAPTER, else notebook 04's, else (at tiny) the one in `data/`.

    Prints which one in a line. Raises AdapterError if there is none.
    """
    if scale.adapter:
        place, why = scale.adapter, "AURORA_ADAPTER"
    elif (scale.runs / "adapter" / "adapter_config.json").is_file():
        place, why = scale.runs / "adapter", "made by notebook 04"
    elif scale.name == "tiny":
        place, why = DATA / "tiny_adapter", "shipped with the course, since notebook 04 has not run here"
    else:
        raise AdapterError(
            "There is no adapter yet: run notebook 04, or set AURORA_ADAPTER to a PEFT folder or hub id."
        )
    print(f"adapter: {Path(place).name} ({why})")
    return str(place)


def load_adapter(model: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """Put `adapter` (PEFT folder or hub id) on `model`, ready for inference.

    Raises AdapterError when it is missing, damaged, or has other shapes than this base.
    """
    local = Path(adapter).expanduser()
    if local.is_absolute() and not (local / "adapter_config.json").is_file():
        raise AdapterError(f"{local} holds no adapter: adapter_config.json is missing. Check AURORA_ADAPTER.")
    try:
        return PeftModel.from_pretrained(model, str(adapter)).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise AdapterError(
            f"The adapter in {adapter} cannot be put on this base model ({reason}). Use an adapter trained on the same "
            f"base, or unset AURORA_ADAPTER."
        ) from error


def main() -> None:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m aurora_lib.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--scale", choices=["tiny", "full"], help="overrides AURORA_SCALE")
    parser.add_argument("--out", type=Path, help="folder of the adapter (default: runs/<scale>/adapter)")
    options = parser.parse_args()
    if options.scale and os.environ.get("AURORA_SCALE") != options.scale:
        # again from the start, since the scale decides the number of threads when libraries are imported
        os.environ["AURORA_SCALE"] = options.scale
        os.execv(sys.executable, [sys.executable, "-m", "aurora_lib.training", *sys.argv[1:]])
    try:
        tune(start("04"), options.out)
    except (ScaleError, DataError, AdapterError, nf4.ModelFileError, nf4.ExpertPackingError) as error:
        parser.exit(1, f"{error}\n")


def tune(scale: Scale, out: Path | None = None) -> Path:
    """The whole of notebook 04's training at `scale`; returns the adapter's folder."""
    conversations = clean_conversations(scale)
    base = nf4.load(scale.base_model, **scale.loading)
    words = tokenizer.load(scale.base_model, revision=scale.revision)
    trainer = build_trainer(base, words, conversations, scale)
    run = trainer.train(resume_from_checkpoint=checkpoint_to_resume(trainer.args.output_dir))
    folder = save_adapter(trainer, scale, out)
    print(
        f"{trainer.state.global_step} steps in {run.metrics['train_runtime']:.0f} s; the adapter is in {folder}"
    )
    return folder


if __name__ == "__main__":
    main()
